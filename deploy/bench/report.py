"""Reports the results as a table in Markdown, as JSON, and as bars in SVG."""
import json
import statistics
from html import escape
from pathlib import Path
from typing import Any

import filled
import queries

Facts = dict[str, Any]

COLOURS = {"limit": "#9aa5b1", "ours": "#1f6feb", "peer": "#d29922"}


# ---- Targets: what is asked of our own programs, as ratios to what ran beside them in the same round where there is something -----

EVENTS, CPU, SECONDS = ("events_per_s",), ("cpu_s_per_M", "ours"), ("seconds",)


class Ratio:
    """A figure, or its ratio to another or to the sum of others; the median of the rounds' ratios."""

    def __init__(self, what: str, asked: str, of: tuple[str, tuple[str, ...]], to: tuple[tuple[str, tuple[str, ...]], ...] = ()):
        self.what, self.asked, self.of, self.to = what, asked, of, to

    def measured(self, cases: dict[str, Facts]) -> float | None:
        runs = [cases.get(name, {}).get("runs", []) for name, _ in (self.of, *self.to)]
        rounds = min(map(len, runs))
        if rounds == 0:
            return None
        ratios = []
        for number in range(rounds):
            above = figure(runs[0][number], self.of[1])
            below = sum(figure(run[number], path) for run, (_, path) in zip(runs[1:], self.to))
            ratios.append(above / below if self.to else above)
        return statistics.median(ratios)

    def said(self, cases: dict[str, Facts]) -> Facts:
        measured = self.measured(cases)
        met = None
        if measured is not None and self.asked:
            sign, limit = self.asked.split()
            met = measured >= float(limit) if sign == ">=" else measured <= float(limit)
        rounded = measured if measured is None else round(measured, 3 if measured < 100 else 0)
        return {"what": self.what, "asked": self.asked, "measured": rounded, "met": met}


def figure(run: Facts, path: tuple[str, ...]) -> float:
    value: Any = run
    for key in path:
        value = max(value.values()) if key == "*" else value[key]
    return float(value)


def faster(what: str, asked: str, ours: str, other: str) -> Ratio:
    return Ratio(what, asked, (ours, EVENTS), ((other, EVENTS),))


TARGETS = [
    faster("router / raw transactional copy, events/s", ">= 0.85", "router", "raw-copy"),
    faster("router / Kafka Streams exactly once, events/s", ">= 3.5", "peers/own-router", "peers/streams-eos"),
    Ratio("the same, CPU per event", "<= 0.25", ("peers/own-router", CPU), (("peers/streams-eos", CPU),)),
    faster(r"consumer into PostgreSQL / psql \copy, events/s", ">= 0.85", "consumer-postgres", "psql-copy"),
    faster("consumer into PostgreSQL / Debezium, three tables, upsert, events/s", ">= 4.5", "peers/own-consumer", "peers/debezium-3-upsert"),
    faster("consumer into PostgreSQL / Aiven, three tables, upsert, events/s", ">= 2.5", "peers/own-consumer", "peers/aiven-3-upsert"),
    Ratio("PostgreSQL, bytes on disk per event, all tables and indexes", "<= 600", ("consumer-postgres", ("disk_bytes_per_event", "all"))),
    faster("consumer into SQLite / the same rows inside SQLite, events/s", ">= 0.8", "consumer-sqlite", "sqlite-limit"),
    faster("consumer into MariaDB / `LOAD DATA`, events/s", ">= 0.5", "consumer-mariadb", "load-data"),
    Ratio("MariaDB, bytes on disk per event, all tables and indexes", "", ("consumer-mariadb", ("disk_bytes_per_event", "all"))),
    Ratio("end to end, events/s", ">= 40000", ("end-to-end", EVENTS)),
    Ratio("latency at 1,000 reports/s, p50, ms", "<= 15", ("latency-1000", ("latency_ms", "p50"))),
    Ratio("latency at 1,000 reports/s, p99, ms", "<= 50", ("latency-1000", ("latency_ms", "p99"))),
    Ratio("router, peak memory, MiB", "<= 96", ("router", ("peak_mib", "*"))),
    Ratio("consumer into PostgreSQL, peak memory, MiB", "<= 96", ("consumer-postgres", ("peak_mib", "*"))),
    Ratio("consumer into SQLite, peak memory, MiB", "<= 96", ("consumer-sqlite", ("peak_mib", "*"))),
    Ratio("consumer into MariaDB, peak memory, MiB", "<= 96", ("consumer-mariadb", ("peak_mib", "*"))),
    faster("audit / reading the topic, events/s", ">= 0.3", "audit", "read-topic"),
    Ratio("audit / (reading the topic + scanning the tables), time", "", ("audit", SECONDS), (("read-topic", SECONDS), ("scan-tables", SECONDS))),
    Ratio("producer on one core, reports/s", ">= 300000", ("producer", EVENTS)),
    *(Ratio(f"{n} routers / one, CPU per event", "<= 1.1", (f"router-{n}", CPU), (("router-1", CPU),)) for n in (2, 4, 8)),
]


DATABASES = {"postgres": "PostgreSQL", "sqlite": "SQLite"}
QUERY_TARGETS = [
    *(
        Ratio(f"{kind}, {title}{beside}: slowest query, p99 ms", f"<= {limit}", (case, ("slowest_ms", kind)))
        for database, title in DATABASES.items()
        for kind, limits in queries.LIMITS_MS.items()
        for case, beside, limit in zip((f"queries-{database}", f"queries-{database}-ingestion"), ("", ", beside ingestion"), limits)
        if limit
    ),
    *(
        faster(f"consumer into {title}, with `serve` and its clients / without, events/s", ">= 0.95", f"ingestion-{database}-served", f"ingestion-{database}")
        for database, title in DATABASES.items()
    ),
]


def targets(cases: dict[str, Facts]) -> list[Facts]:
    of_queries = QUERY_TARGETS if any(name.startswith(("queries-", "ingestion-")) for name in cases) else []
    return [target.said(cases) for target in TARGETS + of_queries]


# ---- Markdown --------------------------------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def case_row(case: Facts) -> list[str]:
    if not case["runs"]:
        return [case["what"], "failed"] + [""] * 7
    middle, all_runs = case["median"], [run["events_per_s"] for run in case["runs"]]
    cpu = middle["cpu_s_per_M"]
    peaks = [figure(run, ("peak_mib", "*")) for run in case["runs"]]
    name = case["what"] + (" (beside other work)" if any(run.get("noisy") for run in case["runs"]) else "")
    figures = [middle["events_per_s"], min(all_runs), max(all_runs), middle["seconds"], cpu["ours"], cpu["broker"], cpu["database"], statistics.median(peaks)]
    return [name, *map(number, figures)]


def queries_table(cases: list[Facts]) -> str:
    """Median and p99 of each query in each case."""
    names = list(dict.fromkeys(name for case in cases for name in case["median"]["queries"]))
    header = ["", *(f"{case['what']}: {percentile} ms" for case in cases for percentile in ("p50", "p99"))]

    def row(name: str) -> list[str]:
        measured = [case["median"]["queries"].get(name) for case in cases]
        figures = [[number(one["p50"]), number(one["p99"]) + (" (refused)" if one["refused"] else "")] if one else ["", ""] for one in measured]
        return [name, *(text for pair in figures for text in pair)]

    return table(header, [row(name) for name in names])


def markdown(results: Facts) -> str:
    cases, about = results["cases"], results["input"]
    machine, versions = results["machine"], results["versions"]
    met = {True: "yes", False: "**no**", None: ""}
    mariadb = f"MariaDB {versions['mariadb']}, " if "mariadb" in versions else ""
    parts = [
        "# How fast" + (" (a quick run: it shows that all works, and measures nothing)" if results["quick"] else ""),
        f"{results['date']}, commit {versions['commit']}, {machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, {machine['system']}, kernel {machine['kernel']}: "
        "programs, broker and database share them.\n\n"
        f"Kafka {versions['kafka']} ({versions['java']}), PostgreSQL {versions['postgresql']}, {mariadb}librdkafka {versions['librdkafka']}, sqlx {versions['sqlx']}, "
        f"rusqlite {versions.get('rusqlite', 'unknown')}, SQLite of its limit {versions['sqlite_of_the_limit']}, rustc {versions['rustc']}.\n\n"
        f"Input: {about['events']:,} simulated reports in {about['partitions']} partitions, {about['bytes_per_event']} bytes each"
        + (f", {about['rows_per_event']} rows" if "rows_per_event" in about else "")
        + f", of {about['tasks_at_a_time']:,} tasks at a time. Medians of {results['runs']} runs in turn"
        + (f", after {results['warm_up']} of each case that does not count (`warm_up` in results.json)." if results.get("warm_up") else "."),
        "## Targets",
        table(["", "asked", "measured", "met"], [[t["what"], t["asked"].replace(">=", "≥").replace("<=", "≤"), number(t["measured"]), met[t["met"]]] for t in results["targets"]]),
        "## All cases",
        table(
            ["", "events/s", "least", "most", "s", "CPU-s/M events", "of the broker", "of the database", "peak MiB"],
            [case_row(case) for case in cases.values() if not case["median"].get("queries")],
        ),
    ]
    asked = [case for case in cases.values() if case["median"].get("queries")]
    if asked:
        size = results["filled"]
        parts += [f"## Queries over HTTP, of {size['tasks']:,} tasks with {size['rows']:,} rows of history", queries_table(asked)]
    late = {name: case for name, case in cases.items() if case["median"].get("latency_ms")}
    if late:
        parts += [
            "## Latency, from the report's making to its row's commit",
            table(["", "p50 ms", "p99 ms", "p99.9 ms", "max ms"], [[case["what"], *map(number, case["median"]["latency_ms"].values())] for case in late.values()]),
        ]
    for database, title in {"postgres": "PostgreSQL", "mariadb": "MariaDB"}.items():
        sizes = cases.get(f"consumer-{database}", {}).get("median", {}).get("disk_bytes_per_event")
        if sizes:
            parts += [f"## Bytes on disk per event, {title}, indexes included", table(["table", "bytes"], [[name, number(size)] for name, size in sizes.items()])]
    missing = [t["what"] for t in results["targets"] if t["measured"] is None]
    parts += ["## Read this with it", "\n".join(f"- {note}" for note in notes(results, missing))]
    return "\n\n".join(parts) + "\n"


def notes(results: Facts, missing: list[str]) -> list[str]:
    noise = [run["others_cpu_percent"] for case in results["cases"].values() for run in case["runs"]]
    loads = [run["load_average"] for case in results["cases"].values() for run in case["runs"]]
    said = [
        "Targets: a ratio is the median of the rounds' own ratios, since the machine's speed may change between rounds.",
        "events/s: the topic is loaded beforehand, the program starts cold; the 1, 2, 4 and 8 routers that are compared have joined before that and done half as many; they take turns of half a second on one core, which the broker does not run on, and their figures are of their own turns. Routers and the raw copy: from the first to the last append, by the broker's clock. "
        "Consumers: events committed after the first commit, from the first to the last commit. Limits and audits that end by themselves: from start to end. End to end: from the first report's making to the last row's commit.",
        "CPU-s/M events: CPU seconds per million events in that time, of the program (of the whole line where it runs), of the broker, and of the database. Memory: VmHWM of the largest program.",
        "Latency: commit timestamp less reportedAt; the first tenth is left out. A row is to be seen once its commit is on the disk, which comes just after that timestamp.",
        "Counts were checked in every run: each report is there once, in the topic and in the tables.",
        "Kafka and PostgreSQL are as they come but for the broker's threads, as many as `deploy/local-kafka` gives a machine of this size, and "
        "PostgreSQL's track_commit_timestamp=on, shared_buffers=512MB and max_wal_size=8GB; fsync and synchronous_commit are on. "
        + ("MariaDB has innodb_buffer_pool_size=2G and innodb_log_file_size=4G. " if "mariadb" in results["versions"] else "")
        + "The peers have a Kafka and a PostgreSQL of their own, and ours are measured there again beside them.",
    ]
    if "filled" in results:
        said.append(
            f"Queries: one after the other on one connection, {queries.REQUESTS} of each, or as many as there are in {queries.SECONDS:.0f} s, and {queries.LEAST} at least, after "
            f"{queries.UNCOUNTED} that do not count; answers are compressed. Refused: after 10 s the database is told to end a query. {filled.ABOUT}"
        )
    if noise:
        said.append(
            f"Everything else on the machine took {statistics.median(noise):.0f} % of one core in the median run, {max(noise)} % in the worst; "
            f"load average {min(loads):.1f} to {max(loads):.1f}. {len(results['thrown_away'])} runs were thrown away for noise and made again."
        )
    if missing:
        said.append("Not measured: " + "; ".join(missing) + ".")
    return said + [f"Failed: {error.splitlines()[0]}" for error in results["errors"]]


# ---- Bars ------------------------------------------------------------------------------------------------------------------------

CHARTS = {
    "routers": ("From topic to topic, events/s", "events_per_s", ["raw-copy", "router", "peers/own-router", "peers/streams-eos"]),
    "consumers": (
        "Into the tables, events/s",
        "events_per_s",
        ["psql-copy", "consumer-postgres", "sqlite-limit", "consumer-sqlite", "load-data", "consumer-mariadb", "peers/own-consumer", "peers/aiven-3-upsert", "peers/debezium-3-upsert",
         "peers/flink-3-upsert", "peers/debezium-upsert", "peers/quix-upsert", "peers/telegraf"],
    ),
    "cpu": (
        "CPU seconds per million events, of the program itself",
        "cpu",
        ["raw-copy", "router", "router-1", "router-2", "router-4", "router-8", "consumer-postgres", "consumer-sqlite", "consumer-mariadb", "audit", "peers/streams-eos", "peers/debezium-3-upsert", "peers/flink-3-upsert"],
    ),
}  # fmt: skip


def bars(title: str, rows: list[tuple[str, str, float]]) -> str:
    """Rows of (kind, label, value)."""
    label_width, bar_width, height, top = 420, 360, 24, 44
    most = max(value for _, _, value in rows)
    drawn = []
    for i, (kind, label, value) in enumerate(rows):
        y, width = top + i * height, max(1.0, bar_width * value / most)
        drawn.append(
            f'<text x="{label_width - 8}" y="{y + 14}" text-anchor="end">{escape(label)}</text>'
            f'<rect x="{label_width}" y="{y + 2}" width="{width:.1f}" height="16" rx="2" fill="{COLOURS[kind]}"/>'
            f'<text x="{label_width + width + 6:.1f}" y="{y + 14}">{number(value)}</text>'
        )
    size = (label_width + bar_width + 90, top + len(rows) * height + 12)
    key = "".join(
        f'<rect x="{size[0] - x}" y="12" width="12" height="12" rx="2" fill="{COLOURS[kind]}"/><text x="{size[0] - x + 17}" y="23">{text}</text>'
        for kind, text, x in (("limit", "limit", 200), ("ours", "ours", 136), ("peer", "others", 74))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" width="{size[0]}" height="{size[1]}" '
        'font-family="system-ui, sans-serif" font-size="13" fill="#24292f">\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n<text x="12" y="24" font-size="16" font-weight="600">{escape(title)}</text>\n'
        + key
        + "\n"
        + "\n".join(drawn) + "\n</svg>\n"
    )


def charts(cases: dict[str, Facts]) -> dict[str, str]:
    drawn = {}
    for name, (title, figure_name, order) in CHARTS.items():
        rows = []
        for case_name in order:
            case = cases.get(case_name)
            if case and case["runs"]:
                value = case["median"]["cpu_s_per_M"]["ours"] if figure_name == "cpu" else case["median"][figure_name]
                rows.append((case["kind"], case["what"].replace("`", "").split(", same tables")[0], value))
        if rows:
            drawn[name] = bars(title, rows)
    return drawn


def write(results: Facts, out: Path) -> None:
    results["targets"] = targets(results["cases"])
    (out / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    (out / "results.md").write_text(markdown(results))
    for name, svg in charts(results["cases"]).items():
        (out / f"{name}.svg").write_text(svg)
