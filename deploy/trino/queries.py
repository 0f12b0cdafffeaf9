"""Keeps a Trino coordinator busy: so many clients at a time, each with one query after the other, for so many seconds.

queries.py URL CLIENTS SECONDS FILE

Queries succeed, fail while they run, do not parse, take too long, and are cancelled. Ends when all have ended. Writes the
line of each ended query in the coordinator's own list, GET /v1/query, to FILE: a JSON object of query ids. The list is read
each minute, since a coordinator forgets a query 15 minutes after its end.
"""

import json
import pathlib
import random
import sys
import threading
import time
import urllib.request

REQUEST_SECONDS_MAX = 120
LIST_EVERY_SECONDS = 60
# What a coordinator may add to the counts of a query after its end.
SETTLED_AFTER_SECONDS = 15
FETCH_EVERY_SECONDS = 1.0

SCAN = "SELECT orderkey, comment FROM tpch.sf1.lineitem"
KINDS = {
    "scans": (f"{SCAN} LIMIT 40000", 55),
    "counts": ("SELECT returnflag, count(*) FROM tpch.tiny.lineitem GROUP BY 1", 15),
    "fails": ("SELECT 1 / (nationkey - nationkey) FROM tpch.tiny.nation", 10),
    "does not parse": ("SELEC 1", 3),
    "takes too long": (SCAN, 5),
    "is cancelled": (SCAN, 12),
}

url, clients, seconds, file = sys.argv[1].rstrip("/"), int(sys.argv[2]), float(sys.argv[3]), pathlib.Path(sys.argv[4])
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
end = time.monotonic() + seconds
broken = threading.Event()


def ask(method, address, user, body=None, session=None):
    headers = {"X-Trino-User": user, "X-Trino-Source": "queries"}
    if session:
        headers["X-Trino-Session"] = session
    data = body.encode() if body else None
    request = urllib.request.Request(address, data=data, method=method, headers=headers)
    with direct.open(request, timeout=REQUEST_SECONDS_MAX) as answer:
        body = answer.read()
        return json.loads(body) if body else None


def run_query(kind, user, rng):
    text, _ = KINDS[kind]
    session = "query_max_execution_time=8s" if kind == "takes too long" else None
    answer = ask("POST", f"{url}/v1/statement", user, text, session)
    cancel_at = time.monotonic() + rng.uniform(3, 15) if kind == "is cancelled" else None
    while next_url := answer.get("nextUri"):
        if cancel_at and time.monotonic() > cancel_at:
            ask("DELETE", f"{url}/v1/query/{answer['id']}", user)
            return
        if kind != "counts":
            time.sleep(FETCH_EVERY_SECONDS)  # a query runs as long as its client has rows to fetch
        answer = ask("GET", next_url, user)


def client(number):
    rng = random.Random(number)
    kinds, weights = list(KINDS), [weight for _, weight in KINDS.values()]
    try:
        while time.monotonic() < end and not broken.is_set():
            run_query(rng.choices(kinds, weights)[0], f"user{number % 7}", rng)
    except BaseException:
        broken.set()
        raise


def read_list(ended):
    """Whether all listed queries have ended."""
    listed = ask("GET", f"{url}/v1/query", "watcher")
    for query in listed:
        if query["state"] in ("FINISHED", "FAILED"):
            ended[query["queryId"]] = query
    return all(query["queryId"] in ended for query in listed)


threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(clients)]
for thread in threads:
    thread.start()
ended = {}
while any(thread.is_alive() for thread in threads):
    if broken.is_set():
        sys.exit("a client has failed: see above")
    read_list(ended)
    for thread in threads:
        thread.join(LIST_EVERY_SECONDS / clients)
while not read_list(ended):
    time.sleep(1)
time.sleep(SETTLED_AFTER_SECONDS)
read_list(ended)
part = file.with_name(f"{file.name}.part")
part.write_text(json.dumps(ended))
part.rename(file)
print(f"{len(ended)} queries", flush=True)
