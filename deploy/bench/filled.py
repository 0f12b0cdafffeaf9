#!/usr/bin/env python3
"""Fills a database of `consumer migrate` within minutes, as if it had stored tasks for ten days.

filled.py postgres://… | mysql://… | sqlite:FILE  TASKS  ROWS

ROWS are about those of the three histories together. The content is deterministic, except for the times, which end now."""
import re
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass, field

PRIME = 1_000_003  # pseudo-random numbers are less
LONG, LONGEST = 5, 20_000  # tasks with the most reports, and how many these are
SECOND, DAY, DAYS = 1_000_000, 86_400_000_000, 10
PARTITIONS = 8
EARLIER = 1 << 40  # offsets are so much below 0: no topic has them, so that the database belongs to none, and a consumer can store one in it
ABOUT = (
    f"A fiftieth of the tasks runs. {LONG} tasks have {LONGEST:,} reports each (a twentieth of all at most); of the others most have two, and some tens of them. "
    "Engines, users and queues have very different numbers of tasks. An application is an engine's of a day, and many tasks report it. Rows lie in the order "
    "of their reports, so that those of a task are far apart. Of the running tasks a hundredth is silent, and another hundredth is stuck."
)
HISTORIES = ("task_progress", "task_resource", "task_metrics")


def exec_id(task: int | str) -> str:
    return f"5f0c9a1e-7d42-4b8e-9c35-2e6f18d0a7b4-filled-{task}"


@dataclass
class Shape:
    """Numbers of tasks, jobs, engines, …"""

    tasks: int
    rows: int
    now: int = field(default_factory=lambda: time.time_ns() // 1000)  # in microseconds

    def __post_init__(self) -> None:
        if self.ended < LONG or self.spread < 1:
            raise ValueError(f"{self.rows} rows of {self.tasks} tasks: give at least 1,000 tasks, and 20 rows for each")

    @property
    def reports(self) -> int:
        return self.rows // 3

    @property
    def running(self) -> int:
        return self.tasks // 50

    @property
    def ended(self) -> int:
        return self.tasks - self.running

    @property
    def engines(self) -> int:
        return max(20, self.tasks // 500)

    @property
    def longest(self) -> int:
        return min(LONGEST, self.reports // 20)

    @property
    def spread(self) -> int:
        """How many more reports than two one that has ended has at most: with a power of 8 they have a ninth of it on average."""
        left = self.reports - LONG * self.longest - 60 * self.running
        return 9 * (left - 2 * self.ended) // max(1, self.ended)


# ---- SQL building blocks of all databases: `//` divides integers -------------------------------------------------------------------------


def at_random(of: str, salt: int) -> str:
    """A uniform integer from 0 to PRIME - 1."""
    return f"((({of}) * {7_919 + 104_729 * salt} + {611_953 * salt}) % {PRIME})"


def upto(most: int | str, random: str, power: int = 1) -> str:
    """An integer from 0 to most - 1: the higher the power, the smaller on average."""
    raised = random
    for _ in range(power - 1):
        raised = f"({raised} * {random} // {PRIME})"
    return f"({raised} * {most} // {PRIME})"


def one_of(random: str, **percents: int) -> str:
    passed, cases = 0, []
    for text, share in percents.items():
        passed += share
        cases.append(f"WHEN {random} < {passed * PRIME // 100} THEN '{text}'")
    return f"CASE {' '.join(cases)} ELSE '{text}' END"


class Database:
    """What PostgreSQL and SQLite share."""

    division = "/"

    def real(self, value: str) -> str:
        return f"CAST({value} AS double precision)"


class Postgres(Database):
    def __init__(self, url: str):
        self.url = url
        self.script: list[str] = []

    def prepare(self) -> None:
        for setting in ("synchronous_commit = off", "work_mem = '512MB'", "maintenance_work_mem = '512MB'", "jit = off"):
            self.execute(f"SET {setting}")
        self.execute("SET max_parallel_workers_per_gather = 0")  # rows stay in their order

    def psql(self, *statements: str) -> list[str]:
        commands = [part for statement in statements for part in ("-c", statement)]
        printed = subprocess.run(["psql", "-qAtX", "-v", "ON_ERROR_STOP=1", *commands, self.url], check=True, stdout=subprocess.PIPE, text=True)
        return printed.stdout.splitlines()

    def execute(self, statement: str) -> None:
        self.script.append(statement)

    def at_once(self, statements: list[str]) -> None:
        self.psql("BEGIN", *statements, "COMMIT", "VACUUM (ANALYZE) task")

    def columns(self, table: str) -> list[str]:
        return self.psql(f"SELECT column_name FROM information_schema.columns WHERE table_name = '{table}' AND is_generated = 'NEVER'")

    def indexes(self) -> dict[str, str]:
        """Indexes that are not unique, with their definitions."""
        tables = ", ".join(f"'{table}'::regclass" for table in ("task", *HISTORIES))
        made = f"SELECT indexrelid::regclass || '|' || replace(pg_get_indexdef(indexrelid), E'\n', ' ') FROM pg_index WHERE NOT indisunique AND indrelid IN ({tables})"
        return dict(line.split("|", 1) for line in self.psql(made))

    def numbers(self, last: int) -> str:
        return f"(SELECT n::bigint AS n FROM generate_series(1, {last}) AS n) AS number"

    def each_below(self, most: str) -> str:
        return f"CROSS JOIN LATERAL generate_series(0, {most} - 1) AS k"

    def time(self, micros: str) -> str:
        return f"(timestamptz 'epoch' + ({micros}) * interval '1 microsecond')"

    def array(self, *values: str) -> str:
        return f"ARRAY[{', '.join(values)}]"

    def json(self, text: str) -> str:
        return f"({text})::json"

    def finish(self) -> None:
        self.execute("SELECT setval(pg_get_serial_sequence('task', 'task_id'), max(task_id)) FROM task")
        self.psql(*self.script)
        self.psql("VACUUM (ANALYZE)", "CHECKPOINT")


class Mariadb(Database):
    division = "DIV"

    def __init__(self, url: str):
        found = re.fullmatch(r"mysql://(\w+)@([\w.]+):(\d+)/(\w+)", url)
        if not found:
            sys.exit(f"{url}: expected mysql://USER@HOST:PORT/DATABASE")
        user, host, port, database = found.groups()
        self.client = ["mariadb", "--no-defaults", f"--user={user}", f"--host={host}", f"--port={port}", f"--database={database}", "--batch", "--skip-column-names"]
        self.script: list[str] = []

    def sql(self, *statements: str) -> list[str]:
        settings = "SET sql_mode = 'STRICT_ALL_TABLES,ANSI_QUOTES,PIPES_AS_CONCAT'"
        printed = subprocess.run(self.client, input=";\n".join([settings, *statements]), check=True, stdout=subprocess.PIPE, text=True)
        return printed.stdout.splitlines()

    def prepare(self) -> None:
        self.execute("SET sort_buffer_size = 536870912, tmp_memory_table_size = 1073741824, max_heap_table_size = 1073741824")

    def execute(self, statement: str) -> None:
        self.script.append(statement)

    def at_once(self, statements: list[str]) -> None:
        self.sql("START TRANSACTION", *statements, "COMMIT", "ANALYZE TABLE task")

    def columns(self, table: str) -> list[str]:
        return self.sql(f"SELECT column_name FROM information_schema.columns WHERE table_schema = database() AND table_name = '{table}' AND is_generated = 'NEVER' AND column_name <> 'row_id'")

    def indexes(self) -> dict[str, str]:
        tables = ", ".join(f"'{table}'" for table in ("task", *HISTORIES))
        made = (
            "SELECT concat(index_name, ' ON ', table_name, '|CREATE INDEX ', index_name, ' ON ', table_name, ' (', group_concat(column_name, "
            "CASE collation WHEN 'D' THEN ' DESC' ELSE '' END ORDER BY seq_in_index), ')') FROM information_schema.statistics "
            f"WHERE table_schema = database() AND non_unique AND table_name IN ({tables}) GROUP BY table_name, index_name"
        )
        return dict(line.split("|", 1) for line in self.sql(made))

    def real(self, value: str) -> str:
        return f"CAST({value} AS double)"

    def numbers(self, last: int) -> str:
        return f"(SELECT CAST(seq AS signed) AS n FROM seq_1_to_{last}) AS number"

    def each_below(self, most: str) -> str:
        return f"STRAIGHT_JOIN (SELECT CAST(seq AS signed) AS k, seq FROM seq_0_to_{LONGEST}) AS k ON k.seq < {most}"

    def time(self, micros: str) -> str:
        return f"({micros})"

    def array(self, *values: str) -> str:
        return f"json_array({', '.join(values)})"

    def json(self, text: str) -> str:
        return text

    def finish(self) -> None:
        self.sql(*self.script, *(f"ANALYZE TABLE {table}" for table in ("task", *HISTORIES)))


class Sqlite(Database):
    def __init__(self, file: str):
        self.database = sqlite3.connect(f"file:{file}?mode=rw", uri=True, isolation_level=None)

    def prepare(self) -> None:
        for pragma in ("journal_mode = DELETE", "journal_mode = OFF", "synchronous = OFF", "cache_size = -500000"):
            self.execute(f"PRAGMA {pragma}")
        self.execute("CREATE TEMP TABLE filled_number AS WITH RECURSIVE number (k) AS (SELECT 0 UNION ALL SELECT k + 1 FROM number LIMIT 20000) SELECT k FROM number")
        self.execute("CREATE INDEX temp.filled_numbers ON filled_number (k)")

    def at_once(self, statements: list[str]) -> None:
        for statement in ["BEGIN IMMEDIATE", *statements, "COMMIT", "PRAGMA wal_checkpoint(TRUNCATE)"]:
            self.execute(statement)
        self.database.close()

    def execute(self, statement: str) -> None:
        self.database.execute(statement).fetchall()

    def columns(self, table: str) -> list[str]:
        return [name for (name,) in self.database.execute("SELECT name FROM pragma_table_info(?)", (table,))]

    def indexes(self) -> dict[str, str]:
        return dict(self.database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql LIKE 'CREATE INDEX%'"))

    def numbers(self, last: int) -> str:
        return f"(WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number LIMIT {last}) SELECT n FROM number) AS number"

    def each_below(self, most: str) -> str:
        return f"JOIN filled_number AS k ON k.k < {most}"

    def time(self, micros: str) -> str:
        return f"({micros})"

    def array(self, *values: str) -> str:
        return f"json_array({', '.join(values)})"

    def json(self, text: str) -> str:
        return text

    def finish(self) -> None:
        self.execute("PRAGMA journal_mode = WAL")
        self.database.close()


# ---- Filling ---------------------------------------------------------------------------------------------------------------------------


def tasks(shape: Shape, sql: Database) -> str:
    """SQL of the generated tasks."""
    last, ends = shape.tasks, (shape.spread + 3) * 10 * SECOND
    types = one_of("of_engine", spark=60, hive=20, jdbc=8, python=6, shell=4, flink=2)
    return f"""
        SELECT n, job, engine, engine_type, engine_user, reports, step, is_final, status, stuck,
            CASE WHEN engine_type = 'flink' THEN NULL WHEN status = 'Succeed' THEN 1.0 WHEN stuck = 1 THEN 0.0 ELSE {sql.real("of_end")} / {PRIME} END AS share,
            CASE WHEN NOT is_final THEN {shape.now} - of_step * step // {PRIME} - CASE WHEN n % 100 = 3 THEN {600 * SECOND} ELSE 0 END - (reports - 1) * step
                WHEN n < {LONG} THEN {shape.now} - {DAYS * DAY} + n * {(DAYS - 2) * DAY // LONG}
                ELSE {shape.now} - {ends} - {DAYS * DAY} * ({shape.ended} - n) // {shape.ended} END AS began
        FROM (SELECT n, job, engine, is_final, of_step, of_end, CASE WHEN NOT is_final AND n % 100 = 7 THEN 1 ELSE 0 END AS stuck,
                {types} AS engine_type, {upto(200, "of_user", 3)} AS engine_user,
                CASE WHEN n < {LONG} OR n = {last} THEN {shape.longest} WHEN NOT is_final THEN 20 + {upto(200, "of_reports", 4)} ELSE 2 + {upto(shape.spread + 1, "of_reports", 8)} END AS reports,
                CASE WHEN n < {LONG} OR n = {last} THEN {5 * SECOND} WHEN NOT is_final THEN {2 * SECOND} + {upto(28 * SECOND, "of_step")} ELSE {2 * SECOND} + {upto(8 * SECOND, "of_step")} END AS step,
                CASE WHEN is_final THEN {one_of("of_end", Succeed=90, Failed=6, Cancelled=2, Timeout=2)} ELSE {one_of("of_end", Running=90, Scheduled=6, WaitForRetry=4)} END AS status
            FROM (SELECT e.*, {at_random("engine", 1)} AS of_engine, {at_random("engine", 2)} AS of_user, {at_random("n", 3)} AS of_reports,
                    {at_random("n", 4)} AS of_step, {at_random("n", 5)} AS of_end
                FROM (SELECT n, n // 3 AS job, {upto(shape.engines, at_random("n // 3", 6))} AS engine, n <= {shape.ended} AS is_final FROM {sql.numbers(last)}) AS e) AS r) AS t"""


def contents(shape: Shape, sql: Database) -> dict[str, dict[str, str]]:
    """Each column of each table, from the task t and its report r."""
    done = f"CASE WHEN t.stuck = 1 THEN 42 ELSE r.k * 100 // (t.reports - 1) END"
    jobs = lambda each: sql.array(each, each)  # noqa: E731
    status = "CASE WHEN r.k = t.reports - 1 THEN t.status WHEN r.k = 0 THEN 'Inited' WHEN r.k = 1 THEN 'Scheduled' ELSE 'Running' END"
    progress = "t.share * r.k / (t.reports - 1) + CASE WHEN t.stuck = 1 THEN 0.42 ELSE 0 END"
    event = {"event_partition": f"t.n % {PARTITIONS}", "event_offset": f"r.place - {EARLIER}", "reported_at": sql.time("r.at")}
    return {
        "task": {
            "task_id": "t.n", "exec_id": f"'{exec_id('')}' || t.n", "job_id": "'job-' || t.job", "engine_instance": "'engine-' || (t.engine % 97) || '.example:' || (20000 + t.engine)",
            "engine_type": "t.engine_type", "engine_user": "'user-' || t.engine_user", "ticket_id": "'ticket-' || t.engine", "status": "t.status", "is_final": "t.is_final",
            "progress": progress, "sequence": "r.k", "first_reported_at": sql.time("t.began"), "ended_at": f"CASE WHEN t.is_final THEN {sql.time('r.at')} END", **event,
        },
        "task_progress": {
            "task_id": "t.n", "sequence": "r.k", "progress": progress, "status": status, "job_ids": sql.array("'job-' || t.n || '-0'", "'job-' || t.n || '-1'"),
            "job_tasks": sql.array(jobs("100"), jobs("8"), jobs("0"), jobs(done)), **event,
        },
        "task_resource": {
            "task_id": "t.n", "memory_bytes": "(1 + (t.n + r.k // 5) % 16) * 1073741824", "cores": "1 + (t.n + r.k // 5) % 16", "instances": "1 + t.n % 4",
            "application_id": f"'application-' || (r.at // {DAY}) || '-' || t.engine", "queue": "'queue-' || (t.engine_user % 20)", "status": "'RUNNING'", **event,
        },
        "task_metrics": {
            "task_id": "t.n", "engine_running_tasks": "1 + t.n % 10",
            "metrics": sql.json("""'{"rowsRead":' || (r.k * 1000) || ',"shuffleBytes":' || (r.k * 65536) || ',"gcSeconds":' || ((t.n + r.k) % 100) || '}'"""), **event,
        },
    }  # fmt: skip


def fill(sql: Database, shape: Shape) -> None:
    def execute(statement: str) -> None:
        sql.execute(statement.replace(" // ", f" {sql.division} "))

    indexes = sql.indexes()
    sql.prepare()
    for index in indexes:
        sql.execute(f"DROP INDEX {index}")
    execute(f"CREATE TEMPORARY TABLE filled_task AS {tasks(shape, sql)}")
    sql.execute("CREATE UNIQUE INDEX filled_tasks ON filled_task (n)")
    sql.execute(
        "CREATE TEMPORARY TABLE filled_report AS SELECT n, k, at, row_number() OVER (ORDER BY at, n) AS place, is_last "
        f"FROM (SELECT n, k.k, began + k.k * step AS at, k.k = reports - 1 AS is_last FROM filled_task {sql.each_below('reports')}) AS report ORDER BY at, n"
    )
    for table, columns in contents(shape, sql).items():
        known = sql.columns(table)
        columns = {name: value for name, value in columns.items() if name in known}
        only = "WHERE r.is_last ORDER BY t.n" if table == "task" else ""
        execute(f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(columns.values())} FROM filled_report AS r JOIN filled_task AS t ON t.n = r.n {only}")
    for made in indexes.values():
        sql.execute(made)
    sql.finish()


def report_again(sql: Database, now: int) -> None:
    """Three more reports of each running task that is not silent, the last one less than 20 s ago: marks are judged by the clock."""
    which = "NOT task.is_final AND task.task_id % 100 <> 3"

    def newest(of: str, ago: str) -> dict[str, str]:
        return {
            "reported_at": sql.time(f"{now} - ({of}.task_id * 7919 % 20) * {SECOND} - {ago} * {10 * SECOND}"),
            "event_offset": f"{of}.event_offset + 3 - {ago}",
            "sequence": f"{of}.sequence + 3 - {ago}",
            "progress": f"CASE WHEN {of}.task_id % 100 = 7 THEN {of}.progress ELSE {of}.progress * (1000 - 3 + {ago}) / 1000 END",
        }

    statements = []
    for table in HISTORIES:
        columns = {name: newest("last", "times.ago").get(name, f"last.{name}") for name in sql.columns(table)}
        statements.append(
            f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(columns.values())} FROM task JOIN {table} AS last ON last.task_id = task.task_id "
            "AND last.event_partition = task.event_partition AND last.event_offset = task.event_offset "
            f"CROSS JOIN (SELECT 2 AS ago UNION ALL SELECT 1 UNION ALL SELECT 0) AS times WHERE {which} ORDER BY times.ago DESC"
        )
    sql.at_once([*statements, f"UPDATE task SET {', '.join(f'{name} = {value}' for name, value in newest('task', '0').items())} WHERE {which}"])


def of(url: str) -> Database:
    if url.startswith("sqlite:"):
        return Sqlite(url.removeprefix("sqlite:"))
    return Mariadb(url) if url.startswith("mysql:") else Postgres(url)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"{__doc__}\n{ABOUT}")
    fill(of(sys.argv[1]), Shape(int(sys.argv[2]), int(sys.argv[3])))
