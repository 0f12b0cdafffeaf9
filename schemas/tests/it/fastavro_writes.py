"""Writes records of the schemas in a folder as another implementation does.

Argument: a folder of .avsc files, each with or without a file of JSON lines of the same name. Prints
the name and single-object header of each schema, then each record's bytes, all in hexadecimal. The
framing is done by hand here (C3 01, CRC-64-AVRO little endian), so that nothing of ours checks itself.
"""

import io
import json
import pathlib
import sys

import fastavro
import fastavro.schema

values = []
for file in sorted(pathlib.Path(sys.argv[1]).glob("*.avsc")):
    schema = json.loads(file.read_text())
    canonical = fastavro.schema.to_parsing_canonical_form(schema)
    header = b"\xc3\x01" + bytes.fromhex(fastavro.schema.fingerprint(canonical, "CRC-64-AVRO"))
    print(file.stem, header.hex())
    records = file.with_suffix(".json")
    if not records.exists():
        continue
    # Times are whole numbers in the JSON.
    parsed = fastavro.parse_schema(json.loads(json.dumps(schema).replace('"logicalType"', '"was"')))
    for line in records.read_text().splitlines():
        datum = io.BytesIO()
        fastavro.schemaless_writer(datum, parsed, json.loads(line))
        values.append((header + datum.getvalue()).hex())
print("\n".join(values))
