"""What the measurements of this folder share: programs that are measured together, their usage, the services, and endpoints."""
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
DEPLOY, ROOT = BENCH.parent, BENCH.parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
BIN = TARGET / "release"

PARTITIONS = 8
TEAMS = (1, 2, 4, 8)  # routers that share them
USERS = ("ours", "broker", "database", "others")
SOURCE, LETTERS = "task-running-info", "task-running-info-dead-letters"
RUN = "5f0c9a1e-7d42-4b8e-9c35-2e6f18d0a7b4"  # in each exec and job id: they are as long as ids often are, reports some 330 bytes
EVENT_BYTES = "max.message.bytes=1114124"
HISTORIES = ("task_progress", "task_resource", "task_metrics")
TABLES = ("task", *HISTORIES, "consumed_offset")
POSTGRES = ("track_commit_timestamp=on", "shared_buffers=512MB", "max_wal_size=8GB")
MARIADB = ("innodb_buffer_pool_size=2G", "innodb_log_file_size=4G")  # its pool is large, because it does not use the page cache
TICKS = os.sysconf("SC_CLK_TCK")
MOST_TRIES = 4

Facts = dict[str, Any]
Usage = tuple[float, ...]  # the time, and the CPU seconds of each of USERS until then


class Failed(Exception):
    """A step failed, so there is nothing to measure."""


BEGUN = time.time()


def say(text: str) -> None:
    print(f"[{time.time() - BEGUN:4.0f} s] {text}", flush=True)


def call(*command: object, **options: Any) -> str:
    """Runs a command to its end and returns its output."""
    words = [str(part) for part in command]
    # In its own session: it gets Ctrl-C only once, from this script.
    running = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options)
    try:
        printed, errors = running.communicate()
    except BaseException:
        running.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.communicate(timeout=40)
        running.kill()
        raise
    if running.returncode:
        raise Failed(f"{' '.join(words)[:300]}: exit code {running.returncode}\n{(printed + errors)[-2000:]}")
    return printed.strip()


# ---- What runs while we measure --------------------------------------------------------------------------------------------------


class Group:
    """Programs measured together: names, CPU and peak memory."""

    running: list["Group"] = []

    def __init__(self, logs: str, **commands: list[str]):
        self.logs, self.started = logs, time.time()
        self.programs: dict[str, subprocess.Popen[bytes]] = {}
        self.cpu_s: dict[str, float] = {}
        self.peak_mib: dict[str, float] = {}
        self.codes: dict[str, int] = {}
        self.seconds = 0.0  # until the last of them ended
        self.usage_lock = threading.Lock()
        Group.running.append(self)
        for name, command in commands.items():
            self.start(name, command)

    def start(self, name: str, command: list[str]) -> None:
        with open(self.log(name), "wb") as out:
            self.programs[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)

    def log(self, name: str) -> Path:
        return Path(f"{self.logs}-{name}.log")

    def look(self) -> float:
        """Records their usage so far, and which have ended; returns the sum of their CPU seconds."""
        with self.usage_lock:
            for name, program in list(self.programs.items()):
                if name in self.codes:
                    continue
                self.peak_mib[name] = max(self.peak_mib.get(name, 0), high_water_mib(program.pid))
                if fields := stat(program.pid):
                    self.cpu_s[name] = (int(fields[11]) + int(fields[12])) / TICKS
                # Not Popen's own poll: only this returns the total usage of a program that has ended.
                ended, status, usage = os.wait4(program.pid, os.WNOHANG)
                if ended:
                    self.codes[name] = program.returncode = os.waitstatus_to_exitcode(status)
                    self.cpu_s[name] = usage.ru_utime + usage.ru_stime
                    self.seconds = time.time() - self.started
            return sum(self.cpu_s.values())

    def check(self) -> None:
        self.look()
        for name, code in self.codes.items():
            if code:
                raise Failed(f"{name} ended with exit code {code}: {self.log(name).read_text(errors='replace')[-2000:]}")

    def wait(self, *names: str, limit_s: float = 900) -> None:
        """Waits until those named (or all) have ended; fails unless with exit code 0."""
        while any(name not in self.codes for name in names or self.programs):
            self.check()
            if time.time() - self.started > limit_s:
                raise Failed(f"{', '.join(self.programs)} took longer than {limit_s} s; see {self.logs}-*.log")
            time.sleep(0.01)
        self.check()

    def send(self, what: signal.Signals) -> None:
        for name, program in self.programs.items():
            if name not in self.codes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(program.pid, what)

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        self.send(signal.SIGSTOP)
        try:
            yield
        finally:
            self.send(signal.SIGCONT)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        self.send(how)
        deadline = time.time() + 30
        while len(self.codes) < len(self.programs):
            if time.time() > deadline:
                self.stop(signal.SIGKILL)
            self.look()
            time.sleep(0.02)
        if self in Group.running:
            Group.running.remove(self)

    @staticmethod
    def stop_all() -> None:
        for group in list(Group.running):
            group.stop()


def stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat, starting with the state."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def high_water_mib(pid: int) -> float:
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()):
            return int(found[1]) / 1024
    return 0


def tree_cpu_s(root: int) -> float:
    """CPU seconds of a server, its children, and those it has reaped."""
    total = 0
    if fields := stat(root):
        total += sum(map(int, fields[11:15]))
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{root}/task/{root}/children").read_text().split():
            if fields := stat(int(child)):
                total += int(fields[11]) + int(fields[12])
    return total / TICKS


def machine_cpu_s() -> float:
    with open("/proc/stat") as lines:
        busy = [int(ticks) for ticks in lines.readline().split()[1:9]]
    return (sum(busy) - busy[3] - busy[4]) / TICKS


def cpu_so_far(group: Group, place: "Place") -> Usage:
    """CPU seconds of our programs, the broker, the database, and everything else except this script."""
    ours, broker, database = group.look(), tree_cpu_s(place.broker_pid), tree_cpu_s(place.postgres_pid) + tree_cpu_s(place.mariadb_pid)
    own = time.process_time()
    return time.time(), ours, broker, database, machine_cpu_s() - ours - broker - database - own


class Sampler(threading.Thread):
    """Samples the usage ten times a second."""

    def __init__(self, group: Group, place: "Place"):
        super().__init__(daemon=True)
        self.group, self.place, self.stopped = group, place, threading.Event()
        self.samples: list[Usage] = []
        self.start()

    def run(self) -> None:
        while not self.stopped.is_set():
            self.sample()
            self.stopped.wait(0.1)
        self.sample()

    def sample(self) -> None:
        self.samples.append(cpu_so_far(self.group, self.place))

    def stop(self) -> None:
        self.stopped.set()
        self.join()

    def at(self, when: float, column: int) -> float:
        """The value of a column at a time, interpolated between two samples."""
        before = self.samples[0]
        for after in self.samples:
            if after[0] >= when:
                share = (when - before[0]) / (after[0] - before[0]) if after[0] > before[0] else 0
                return before[column] + max(0.0, share) * (after[column] - before[column])
            before = after
        return before[column]

    def used(self, first: float, last: float) -> dict[str, float]:
        return {name: self.at(last, i) - self.at(first, i) for i, name in enumerate(USERS, 1)}


@dataclass
class Place:
    """A Kafka, a PostgreSQL and perhaps a MariaDB to measure on."""

    bootstrap: str
    broker_pid: int
    postgres_url: str  # of a superuser, ending in the slash before the database's name
    postgres_pid: int
    mariadb_url: str = ""  # likewise
    mariadb_pid: int = 0

    def sql(self, query: str, database: str = "postgres") -> str:
        return call("psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", query, self.postgres_url + database)

    def rows(self, query: str, database: str) -> list[list[str]]:
        return [line.split("|") for line in self.sql(query, database).splitlines()]

    def fresh_database(self, database: str) -> str:
        self.drop_database(database)
        self.sql(f"CREATE DATABASE {database}")
        self.sql("CHECKPOINT")
        return self.postgres_url + database

    def drop_database(self, database: str) -> None:
        self.sql(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")

    def mariadb(self, *more: str) -> list[str]:
        """A command of its client."""
        found = re.fullmatch(r"mysql://(\w+)@([\w.]+):(\d+)/", self.mariadb_url)
        user, host, port = found.groups() if found else ("", "", "")
        return ["mariadb", "--no-defaults", f"--user={user}", f"--host={host}", f"--port={port}", "--batch", "--skip-column-names", *more]

    def mariadb_rows(self, query: str, database: str = "mysql") -> list[list[str]]:
        return [line.split("\t") for line in call(*self.mariadb(f"--database={database}", f"--execute={query}")).splitlines()]

    def fresh_mariadb(self, database: str) -> str:
        self.drop_mariadb(database)
        self.mariadb_rows(f"CREATE DATABASE {database}")
        return self.mariadb_url + database

    def drop_mariadb(self, database: str) -> None:
        self.mariadb_rows(f"DROP DATABASE IF EXISTS {database}")

    def tool(self, name: str, *arguments: str) -> str:
        return call(DEPLOY / "local-kafka", "tool", name, "--bootstrap-server", self.bootstrap, *arguments)

    def topics(self, *arguments: str) -> str:
        return self.tool("kafka-topics", *arguments)

    def shares(self, group: str) -> list[int]:
        """Number of partitions of each member of a consumer group."""
        members = [line.split() for line in self.tool("kafka-consumer-groups", "--describe", "--members", "--group", group).splitlines()]
        return [int(words[-1]) for words in members if words and words[0] == group]

    def make_topic(self, topic: str, *settings: str) -> None:
        config = [part for setting in settings for part in ("--config", setting)]
        self.topics("--create", "--if-not-exists", "--topic", topic, "--partitions", str(PARTITIONS), *config)

    def drop_topic(self, topic: str) -> None:
        self.topics("--delete", "--topic", topic)

    @contextlib.contextmanager
    def broker_on(self, cores: list[int]) -> Iterator[None]:
        def move(cores: Iterable[int]) -> None:
            call("taskset", "--all-tasks", "--cpu-list", "--pid", ",".join(map(str, cores)), self.broker_pid)

        move(cores)
        try:
            yield
        finally:
            move(os.sched_getaffinity(0))

    def read_topic(self, topic: str, records: int) -> dict[str, int]:
        """Checks its number of records: otherwise some were lost or duplicated."""
        read = json.loads(call(BIN / "examples/read_topic", topic, "--bootstrap-servers", self.bootstrap))
        if read["records"] != records:
            raise Failed(f"{topic} has {read['records']} records, not {records}")
        return read


GIVEN: set[int] = set()  # ports, so that none is given twice before its program listens


def free_port() -> int:
    for _ in range(100):
        port = random.randrange(20_000, 32_000)  # below those that the kernel hands to outgoing connections
        with socket.socket() as look:
            if port not in GIVEN and look.connect_ex(("127.0.0.1", port)):
                GIVEN.add(port)
                return port
    raise Failed("found no free port between 20000 and 32000")


@dataclass
class Endpoint:
    """A program's metrics and health."""

    port: int = field(default_factory=free_port)

    @property
    def options(self) -> list[str]:
        return ["--metrics-listen", f"127.0.0.1:{self.port}"]

    def get(self, path: str) -> str | None:
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.read().decode()
        return None

    def committed(self) -> int:
        """Records read and committed."""
        metrics = self.get("/metrics") or ""
        return sum(int(n) for n in re.findall(r"^messaging_client_consumed_messages_total\{.*\} (\d+)", metrics, re.MULTILINE))


def wait_ready(group: Group, *endpoints: Endpoint) -> None:
    """Waits until each is ready, that is, has its partitions."""
    deadline = time.time() + 60
    while not all(endpoint.get("/readyz") for endpoint in endpoints):
        group.check()
        if time.time() > deadline:
            raise Failed(f"waited 60 s for {', '.join(group.programs)} to be ready; see {group.logs}-*.log")
        time.sleep(0.1)


def wait_committed(group: Group, endpoint: Endpoint, events: int, limit_s: float = 900) -> list[tuple[float, int]]:
    """Waits until a program of the group has committed this number of records; returns its growth: (time, records)."""
    seen: list[tuple[float, int]] = []
    while not seen or seen[-1][1] < events:
        group.check()
        count = endpoint.committed()
        if count and (not seen or count > seen[-1][1]):
            seen.append((time.time(), count))
        if time.time() - group.started > limit_s:
            raise Failed(f"only {seen[-1][1] if seen else 0} of {events} records were done in {limit_s} s; see {group.logs}-*.log")
        time.sleep(0.2)  # each answer takes CPU of the program that is measured
    return seen


def machine() -> Facts:
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    system = re.search(r'PRETTY_NAME="(.*)"', Path("/etc/os-release").read_text())
    return {
        "cpu": cpu[1] if cpu else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory[1]) / 2**20) if memory else 0,
        "kernel": os.uname().release,
        "system": system[1] if system else "unknown",
    }


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def stop_once(number: int, _: object) -> None:
    """A further signal does not interrupt the clean-up."""
    for other in STOP_SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)
