"""HTTP requests to `consumer serve` for its measurement, one after the other."""
import contextlib
import http.client
import math
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import filled

Facts = dict[str, Any]

# The p99 that is asked for, in milliseconds: with nothing else running, and beside ingestion.
LIMITS_MS = {"first page": (25, 100), "one task": (15, 15), "series": (50, 50), "as of": (1_000, 1_000), "usage": (2_000, 2_000), "other": (None, None)}
ORDERS = ("reported", "started", "duration", "progress", "memory", "cores")
# Of each query so many requests count, or as many as there are in so many seconds, and these at least.
REQUESTS, SECONDS, SECONDS_QUICK, LEAST = 200, 4.0, 0.4, 5
UNCOUNTED = 2


@dataclass(frozen=True)
class Query:
    kind: str
    name: str
    path: str


def queries(shape: filled.Shape, now: float) -> list[Query]:
    """All queries for a database with this content."""

    def ago(**spans: float) -> str:
        seconds = sum({"days": 86_400, "hours": 3_600}[unit] * count for unit, count in spans.items())
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now - seconds))

    def tasks(kind: str, name: str, **parameters: str) -> Query:
        return Query(kind, name, f"/api/v1/tasks?{urlencode(parameters)}")

    def of_task(kind: str, name: str, task: int, more: str = "") -> Query:
        return Query(kind, name, f"/api/v1/tasks/{filled.exec_id(task)}{more}")

    def usage(name: str, **parameters: str) -> Query:
        return Query("usage", name, f"/api/v1/usage?{urlencode(parameters)}")

    def first_pages() -> Iterator[Query]:
        for order in ORDERS:
            yield tasks("first page", f"all, by {order}", order=order)
        for order in ORDERS:
            yield tasks("first page", f"running, by {order}", order=order, running="true")
        for name, parameters in {
            "all, by start, oldest first": {"order": "started", "descending": "false"},
            "all, by last report, oldest first": {"order": "reported", "descending": "false"},
            "running, by start, oldest first": {"order": "started", "descending": "false", "running": "true"},
            "failed": {"status": "Failed"},
            "failed, by start": {"status": "Failed", "order": "started"},
            "of the user with the most tasks": {"user": "user-0"},
            "of the user with the most tasks, by start": {"user": "user-0", "order": "started"},
            "of a user with few tasks": {"user": "user-199"},
            "of a user with few tasks, by duration": {"user": "user-199", "order": "duration"},
            "of a type of engine": {"engine_type": "flink"},
            "of an engine": {"engine_instance": "engine-7.example:20007"},
            "of a job": {"job_id": f"job-{shape.tasks // 6}"},
            "by the beginning of the exec id": {"exec_id_prefix": filled.exec_id(shape.tasks // 2)},
            "silent": {"silent": "true"},
            "stalled": {"stalled": "true"},
            "started in the last hour": {"started_after": ago(hours=1)},
            "reported in the last hour": {"reported_after": ago(hours=1)},
            "ended on a day a week ago": {"ended_after": ago(days=8), "ended_before": ago(days=7)},
            "failed on a day a week ago, by duration": {"status": "Failed", "ended_after": ago(days=8), "ended_before": ago(days=7), "order": "duration"},
        }.items():
            yield tasks("first page", name, **parameters)

    return [
        *first_pages(),
        of_task("one task", "one with few reports", shape.tasks // 2),
        of_task("one task", "one with the most reports", 1),
        of_task("series", "of the task with the most reports", 1, "/series"),
        of_task("series", "of the task with the most reports, and two metrics", 1, "/series?metric=rowsRead&metric=gcSeconds"),
        tasks("as of", "five days ago, all", at=ago(days=5)),
        tasks("as of", "five days ago, running, by start", at=ago(days=5), running="true", order="started"),
        tasks("as of", "an hour ago, running", at=ago(hours=1), running="true"),
        usage("the last day, by user", by="user"),
        usage("a day a week ago, by user", by="user", **{"from": ago(days=8), "to": ago(days=7)}),
        usage("the last day, by queue, every hour", by="queue", every="hour"),
        Query("other", "jobs", "/api/v1/jobs"),
        Query("other", "engines", "/api/v1/engines"),
    ]


class Client:
    """A persistent connection."""

    def __init__(self, port: int):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def get(self, path: str) -> tuple[int, bytes]:
        self.connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
        answer = self.connection.getresponse()
        return answer.status, answer.read()

    def close(self) -> None:
        self.connection.close()


def percentile(sorted_values: list[float], share: float) -> float:
    return sorted_values[max(0, math.ceil(share * len(sorted_values)) - 1)]


def ask(port: int, query: Query, seconds: float = SECONDS) -> Facts:
    """Durations in milliseconds, and the number of refused requests, for example because the database took too long."""
    client = Client(port)
    taken: list[float] = []
    refused = 0
    begun = time.monotonic()
    for number in range(UNCOUNTED + REQUESTS):
        if number >= UNCOUNTED + LEAST and time.monotonic() - begun > seconds:
            break
        at = time.perf_counter()
        status, _ = client.get(query.path)
        if number >= UNCOUNTED:
            taken.append((time.perf_counter() - at) * 1e3)
            refused += status != 200
        elif number == 0 and 400 <= status < 500:
            raise ValueError(f"{query.path}: status {status}")
    client.close()
    taken.sort()
    return {"p50": round(percentile(taken, 0.5), 2), "p99": round(percentile(taken, 0.99), 2), "max": round(taken[-1], 2), "requests": len(taken), "refused": refused}


def slowest(measured: dict[str, Facts], asked: list[Query]) -> dict[str, float]:
    """The maximum p99 of each kind."""
    found: dict[str, float] = {}
    for query in asked:
        found[query.kind] = max(found.get(query.kind, 0), measured[name_of(query)]["p99"])
    return found


def name_of(query: Query) -> str:
    return f"{query.kind}: {query.name}"


class Watchers:
    """Requests of a page open in a browser: all changes, and the first page again each second."""

    def __init__(self, port: int):
        self.port, self.stopped = port, threading.Event()
        self.changes_bytes, self.pages, self.failures = 0, 0, 0
        self.stream: socket.socket | None = None
        self.threads = [threading.Thread(target=what, daemon=True) for what in (self.follow, self.poll)]

    def __enter__(self) -> "Watchers":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        if self.stream:
            with contextlib.suppress(OSError):
                self.stream.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(30)

    def follow(self) -> None:
        while not self.stopped.is_set():
            # It beats at least each 15 s.
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("GET", "/api/v1/changes")
                answer = connection.getresponse()
                self.stream = connection.sock
                while read := answer.read1(1 << 16):
                    self.changes_bytes += len(read)
            connection.close()
            self.stopped.wait(0.1)

    def poll(self) -> None:
        client = Client(self.port)
        while not self.stopped.wait(1):
            try:
                status, _ = client.get("/api/v1/tasks?running=true")
                self.pages += status == 200
                self.failures += status != 200
            except (OSError, http.client.HTTPException):
                self.failures += 1
                client = Client(self.port)
        client.close()
