"""Reads events from Python, from the topic's beginning to its end, and prints each: its key and what the
engine said.

Arguments: bootstrap servers, topic, file of TaskRunningInfoEvent's schema and, where events are in a schema
registry's framing, the registry's address (in Confluent's API).
"""

import functools
import io
import json
import struct
import sys
import urllib.request

import confluent_kafka
import fastavro


@functools.cache
def registered(registry, schema_id):
    with urllib.request.urlopen(f"{registry}/schemas/ids/{schema_id}") as answer:
        return fastavro.parse_schema(json.loads(json.load(answer)["schema"]))


def event(value, schema, registry):
    if value[0] == 0:  # a registry's framing; the schema is the one that wrote it
        (schema_id,) = struct.unpack(">I", value[1:5])
        return fastavro.schemaless_reader(io.BytesIO(value[5:]), registered(registry, schema_id), schema)
    return fastavro.schemaless_reader(io.BytesIO(value[10:]), schema)


def main(servers, topic, schema_file, registry=None):
    with open(schema_file, encoding="utf-8") as file:
        schema = fastavro.parse_schema(json.load(file))
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
        info = event(record.value(), schema, registry)["info"]
        print(record.key().decode(), info["status"], info["progress"]["progress"], info["sequence"])
    consumer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
