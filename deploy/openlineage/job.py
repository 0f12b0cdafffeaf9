"""A Spark application with OpenLineage's listener: writes rows, fails once, and prints what it did.

job.py JARS BOOTSTRAP_SERVERS TOPIC FOLDER
"""

import sys

from pyspark.sql import SparkSession
from pyspark.sql.functions import col, expr

jars, servers, topic, folder = sys.argv[1:]
transport = "spark.openlineage.transport"
serializer = "org.apache.kafka.common.serialization.StringSerializer"
settings = {
    "spark.master": "local[2]",
    "spark.app.name": "lineage",
    "spark.ui.enabled": "false",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.sql.shuffle.partitions": "2",
    "spark.sql.warehouse.dir": f"{folder}/warehouse",
    "spark.driver.extraClassPath": jars,
    "spark.extraListeners": "io.openlineage.spark.agent.OpenLineageSparkListener",
    "spark.openlineage.namespace": "clients",
    f"{transport}.type": "kafka",
    f"{transport}.topicName": topic,
    f"{transport}.properties.bootstrap.servers": servers,
    f"{transport}.properties.key.serializer": serializer,
    f"{transport}.properties.value.serializer": serializer,
}
builder = SparkSession.builder
for key, value in settings.items():
    builder = builder.config(key, value)
spark = builder.getOrCreate()
print(f"application {spark.sparkContext.applicationId}", flush=True)
spark.range(1_000).write.parquet(f"{folder}/thousand")
spark.read.parquet(f"{folder}/thousand").where(col("id") < 100).write.parquet(f"{folder}/hundred")
try:
    refused = expr("if(id < 5, id, cast(raise_error('a s3cr3t message') AS BIGINT)) AS id")
    spark.range(10).select(refused).write.parquet(f"{folder}/failed")
except Exception:
    print("failed 1", flush=True)
spark.stop()
print("wrote 1000 100", flush=True)
