"""SQL executions, one of which fails, and a streaming query, on a real Spark. Prints the address of the UI, the ids of the
streaming query and of its run, and its last batch; then keeps the UI until it is stopped."""

import os
import sys
import time

os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
os.environ["PYSPARK_PYTHON"] = sys.executable

from pyspark.sql import SparkSession  # noqa: E402 (reads the environment)

spark = (
    SparkSession.builder.master("local[2]")
    .config("spark.driver.host", "127.0.0.1")
    .config("spark.ui.port", "0")
    .config("spark.ui.showConsoleProgress", "false")
    .config("spark.driver.memory", "512m")
    .config("spark.driver.extraJavaOptions", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
    .config("spark.sql.shuffle.partitions", "1")
    .getOrCreate()
)
spark.sparkContext.setLogLevel("OFF")
print(f"ui http://127.0.0.1:{spark.sparkContext.uiWebUrl.rsplit(':', 1)[1]}", flush=True)

spark.range(100).count()
try:
    spark.sql("SELECT raise_error('customer-4711') FROM range(10)").collect()
    sys.exit("the query did not fail")
except Exception:
    pass

query = (
    spark.readStream.format("rate").option("rowsPerSecond", 10).load()
    .writeStream.format("noop").queryName("clicks").trigger(processingTime="300 milliseconds").start()
)
while not query.lastProgress or query.lastProgress["batchId"] < 2:
    time.sleep(0.1)
query.stop()
print(f"query {query.id} {query.runId} {query.lastProgress['batchId']}", flush=True)
while True:
    time.sleep(1)
