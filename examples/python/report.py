"""Reports to Kafka from Python: one report for each exec task on standard input, one per line.

Arguments: bootstrap servers, topic, file of TaskRunningInfo's schema and, if reports use a schema
registry's framing, the registry's address (in Confluent's API).
"""

import io
import json
import struct
import sys
import time
import urllib.request

import confluent_kafka
import fastavro


def single_object_header(schema):
    canonical = fastavro.schema.to_parsing_canonical_form(schema)
    return b"\xc3\x01" + bytes.fromhex(fastavro.schema.fingerprint(canonical, "CRC-64-AVRO"))


def registered_header(registry, topic, text):
    request = urllib.request.Request(
        f"{registry}/subjects/{topic}-value/versions",
        json.dumps({"schema": text}).encode(),
        {"Content-Type": "application/vnd.schemaregistry.v1+json"},
    )
    with urllib.request.urlopen(request) as answer:
        return struct.pack(">bI", 0, json.load(answer)["id"])


def report(exec_id):
    return {
        "execId": exec_id,
        "jobId": "job-1",
        "engine": {"instance": "node-1:7077", "engineType": "python", "user": "ada", "ticketId": "ticket-1", "runningTasks": 1},
        "status": "Running",
        "reportedAt": time.time_ns() // 1000,
        "sequence": 0,
        "progress": {
            "progress": 0.5,
            "progressInfo": [{"id": "stage-1", "totalTasks": 4, "runningTasks": 1, "failedTasks": 0, "succeedTasks": 2}],
        },
        "resource": None,  # unknown to the engine
        "metrics": {"rowsRead": 12345},
    }


def main(servers, topic, schema_file, registry=None):
    with open(schema_file, encoding="utf-8") as file:
        text = file.read()
    schema = fastavro.parse_schema(json.loads(text))
    header = registered_header(registry, topic, text) if registry else single_object_header(json.loads(text))

    # The partitioner of Java's clients, so that all engines choose the same partition for a key.
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": servers, "enable.idempotence": True, "partitioner": "murmur2_random"}
    )
    failed = []
    sent = 0
    for line in io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8", newline="\n"):
        info = report(line.rstrip("\n"))
        value = io.BytesIO(header)
        value.seek(len(header))
        fastavro.schemaless_writer(value, schema, info)
        producer.produce(topic, value.getvalue(), info["execId"], on_delivery=lambda error, _: error and failed.append(error))
        producer.poll(0)
        sent += 1
    producer.flush(60)
    if failed or len(producer):
        sys.exit(f"not sent: {failed[:1] or 'no answer'}")
    print(f"sent {sent} reports")


if __name__ == "__main__":
    main(*sys.argv[1:])
