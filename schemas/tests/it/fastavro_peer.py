"""Reads what Rust wrote, compares it with Rust's JSON of the same records, writes it again.

Argument: the folder of the exchange, with the .avsc files. Avro's single-object framing is
done by hand here (C3 01, CRC-64-AVRO little endian), so that nothing of ours checks itself.
"""

import datetime
import io
import json
import pathlib
import sys

import fastavro
import fastavro.schema

exchange = pathlib.Path(sys.argv[1])
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)


def load(name):
    parsed = json.loads((exchange / f"{name}.avsc").read_text())
    canonical = fastavro.schema.to_parsing_canonical_form(parsed)
    header = b"\xc3\x01" + bytes.fromhex(fastavro.schema.fingerprint(canonical, "CRC-64-AVRO"))
    # Times stay whole numbers: Python's datetime ends at the year 9999.
    plain = json.loads(json.dumps(parsed).replace('"logicalType": "timestamp-micros"', '"doc": "micros"'))
    return header, fastavro.parse_schema(plain)


def decode(header, schema, line):
    value = bytes.fromhex(line)
    assert value[:10] == header, f"header {value[:10].hex()} is not {header.hex()}"
    datum = io.BytesIO(value[10:])
    record = fastavro.schemaless_reader(datum, schema, None)
    assert datum.read() == b"", "bytes are left"
    return record


def encode(header, schema, record):
    datum = io.BytesIO()
    fastavro.schemaless_writer(datum, schema, record)
    return (header + datum.getvalue()).hex()


def micros(value):
    if isinstance(value, int):
        return value
    seconds = datetime.datetime.fromisoformat(value.replace("Z", "+00:00")) - EPOCH
    return (seconds.days * 86_400 + seconds.seconds) * 1_000_000 + seconds.microseconds


def same(written, read, where=""):
    if where.endswith(("reportedAt", "routedAt")):
        if isinstance(written, str) and written.startswith(("-", "0000")):
            return  # before Python's first year
        assert micros(written) == read, f"{where}: {written} is not {read}"
    elif isinstance(written, dict):
        assert written.keys() == read.keys(), f"{where}: {written.keys()} is not {read.keys()}"
        for key in written:
            same(written[key], read[key], f"{where}.{key}")
    elif isinstance(written, list):
        assert len(written) == len(read), where
        for i, item in enumerate(written):
            same(item, read[i], f"{where}[{i}]")
    else:
        assert type(written) is type(read) and written == read, f"{where}: {written!r} is not {read!r}"


info = load("TaskRunningInfo")
event = load("TaskRunningInfoEvent")
written = [json.loads(line) for line in (exchange / "events.json").read_text().split("\n")[:-1]]
infos = [decode(*info, line) for line in (exchange / "infos.hex").read_text().split()]
events = [decode(*event, line) for line in (exchange / "events.hex").read_text().split()]
assert len(written) == len(infos) == len(events) > 0
for one, one_info, one_event in zip(written, infos, events):
    same(one, one_event)
    same(one["info"], one_info)
(exchange / "infos.fastavro.hex").write_text("\n".join(encode(*info, record) for record in infos))
(exchange / "events.fastavro.hex").write_text("\n".join(encode(*event, record) for record in events))
