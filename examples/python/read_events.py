"""Reads events from Python, from the topic's beginning to its end, and prints each event's key and
report.

Arguments: bootstrap servers, topic, folder of the schema's versions (schemas/avro) and, if events are in a
schema registry's framing, the registry's address (in Confluent's API).
"""

import functools
import io
import json
import pathlib
import struct
import sys
import urllib.request

import confluent_kafka
import fastavro
import fastavro.schema


@functools.cache
def registered(registry, schema_id):
    with urllib.request.urlopen(f"{registry}/schemas/ids/{schema_id}") as answer:
        return fastavro.parse_schema(json.loads(json.load(answer)["schema"]))


def versions(folder):
    """Every version of the schema, by the fingerprint in a record's header, newest last."""
    files = sorted(pathlib.Path(folder).glob("v*/TaskRunningInfoEvent.avsc"), key=lambda file: int(file.parent.name[1:]))
    schemas = {}
    for file in files:
        schema = json.loads(file.read_text(encoding="utf-8"))
        canonical = fastavro.schema.to_parsing_canonical_form(schema)
        fingerprint = bytes.fromhex(fastavro.schema.fingerprint(canonical, "CRC-64-AVRO"))
        schemas[fingerprint] = fastavro.parse_schema(schema)
    return schemas


def event(value, schemas, registry):
    *_, newest = schemas.values()
    if value[0] == 0:  # a registry's framing: an id names the schema that wrote the record
        (schema_id,) = struct.unpack(">I", value[1:5])
        return fastavro.schemaless_reader(io.BytesIO(value[5:]), registered(registry, schema_id), newest)
    return fastavro.schemaless_reader(io.BytesIO(value[10:]), schemas[value[2:10]], newest)


def main(servers, topic, schema_folder, registry=None):
    schemas = versions(schema_folder)
    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": servers, "group.id": "none", "enable.auto.commit": False,
         "isolation.level": "read_committed", "enable.partition.eof": True}
    )
    partitions = consumer.list_topics(topic).topics[topic].partitions
    consumer.assign([confluent_kafka.TopicPartition(topic, p, confluent_kafka.OFFSET_BEGINNING) for p in partitions])
    left = set(partitions)
    while left:
        record = consumer.poll(60)
        if record is None:
            sys.exit("no answer")
        if record.error():
            if record.error().code() != confluent_kafka.KafkaError._PARTITION_EOF:
                sys.exit(str(record.error()))
            left.discard(record.partition())
            continue
        info = event(record.value(), schemas, registry)["info"]
        part = info["progress"]  # each part is null if the engine does not know it
        progress = "-" if part is None else part["progress"]
        print(record.key().decode(), info["status"], progress, info["sequence"])
    consumer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
