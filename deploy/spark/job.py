"""A small deterministic PySpark job: slow stages, a shuffle that a second job reuses, a job that
fails, and further work after it. Takes about 25 seconds with --pace 1.

Job groups (tasks completed + failed + skipped):
  load    count   12                          rows made in Python and cached
  join    collect 12 + 6, then 6, 12 skipped  a shuffle; the second job skips the stage that made it
  check   count    3 + 1 failed               the last task raises, after the others have ended
  report  count    8                          the application continues after the failure
"""

import argparse
import json
import os
import pathlib
import sys
import time
import urllib.request

arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
arguments.add_argument("--ui-port", type=int, default=0, help="port of the Spark UI on loopback; 0: a free one, printed")
arguments.add_argument("--group-prefix", default="demo", help="job groups are PREFIX-load, …; '' sets no groups")
arguments.add_argument("--pace", type=float, default=1.0, help="factor of the duration of tasks")
arguments.add_argument("--rest-out", metavar="FILE", help="write the answers of Spark's REST API to this file once all jobs have ended")
arguments.add_argument("--event-log", metavar="FOLDER", help="write the event log to this folder, for a History Server")
arguments.add_argument("--linger", type=float, default=6.0, metavar="SECONDS", help="keep the UI up for this time after the last job")
arguments.add_argument("--release", metavar="FILE", help="stop lingering as soon as this file exists")
options = arguments.parse_args()

os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"  # otherwise the UI listens on every address
os.environ["PYSPARK_PYTHON"] = sys.executable

from pyspark import SparkConf, SparkContext  # noqa: E402 (reads the environment)


def ask(url):
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(url, timeout=10) as answer:
        return json.load(answer)


def settled(api):
    """Waits for the final answers: the UI learns of a job's end a moment after the driver."""
    deadline = time.monotonic() + 20
    while True:
        answers = {name: ask(f"{api}/{name}") for name in ("jobs", "stages", "allexecutors")}
        busy = (
            [job for job in answers["jobs"] if job["status"] in ("RUNNING", "UNKNOWN") or job["numActiveTasks"]]
            + [stage for stage in answers["stages"] if stage["status"] in ("ACTIVE", "PENDING") or stage["numActiveTasks"]]
            + [executor for executor in answers["allexecutors"] if executor["activeTasks"]]
        )
        if not busy:
            return answers
        if time.monotonic() > deadline:
            sys.exit(f"waited 20 s for Spark's REST API to show no running job: {busy}")
        time.sleep(0.1)


def takes(seconds):
    """Slows a partition down, row by row."""

    def slowly(rows):
        rows = list(rows)
        for row in rows:
            time.sleep(seconds * options.pace / len(rows))
            yield row

    return slowly


def fails_last(index, rows):
    last = index == 3
    time.sleep((2.0 if last else 0.3) * options.pace)
    if last:
        raise ValueError("amount is not a number: 'n/a'")
    return rows


def group(sc, name, description):
    if options.group_prefix:
        sc.setJobGroup(f"{options.group_prefix}-{name}", description)


conf = (
    SparkConf()
    .setMaster("local[2]")
    .setAppName("orders")
    .set("spark.driver.host", "127.0.0.1")
    .set("spark.ui.port", str(options.ui_port))
    .set("spark.ui.showConsoleProgress", "false")
    .set("spark.driver.memory", "512m")
    .set("spark.driver.extraJavaOptions", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")  # starts faster
)
if options.event_log:
    conf.set("spark.eventLog.enabled", "true")
    conf.set("spark.eventLog.dir", pathlib.Path(options.event_log).resolve().as_uri())
sc = SparkContext(conf=conf)
sc.setLogLevel("ERROR")
port = sc.uiWebUrl.rsplit(":", 1)[1]
print(f"application {sc.applicationId} ui http://127.0.0.1:{port}", flush=True)

group(sc, "load", "Load orders")
orders = sc.parallelize(range(2_400), 12).mapPartitions(takes(1.0)).map(lambda n: (n % 300, n)).cache()
print(f"load: {orders.count()} orders", flush=True)

group(sc, "join", "Sum orders per customer")
sums = orders.mapPartitions(takes(0.6)).reduceByKey(lambda a, b: a + b, 6).mapPartitions(takes(0.7))
print(f"join: {len(sums.collect())} customers", flush=True)
print(f"join: {sums.filter(lambda pair: pair[1] > 9_000).count()} large ones", flush=True)

group(sc, "check", "Check amounts")
try:
    sc.parallelize(range(400), 4).mapPartitionsWithIndex(fails_last).count()
    sys.exit("check: the job did not fail")
except Exception as error:  # py4j's error for a failed job
    print(f"check: failed as expected: {type(error).__name__}", flush=True)

group(sc, "report", "Write the report")
print(f"report: {sc.parallelize(range(80), 8).mapPartitions(takes(0.9)).count()} lines", flush=True)

if options.rest_out:
    answers = settled(f"http://127.0.0.1:{port}/api/v1/applications/{sc.applicationId}")
    part = pathlib.Path(options.rest_out + ".part")
    part.write_text(json.dumps({"application": sc.applicationId, **answers}, indent=1))
    part.rename(options.rest_out)

deadline = time.monotonic() + options.linger
while time.monotonic() < deadline and not (options.release and os.path.exists(options.release)):
    time.sleep(0.1)
sc.stop()
print("ended", flush=True)
