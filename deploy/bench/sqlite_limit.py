#!/usr/bin/env python3
"""Upper bound of the consumer into SQLite: inserts the same rows, from a file, into the same tables with the same indexes.

sqlite_limit.py SOURCE TARGET

SOURCE is a database that a consumer filled, TARGET one that has its tables, empty. Rows go from one to the other inside SQLite,
with neither a parser nor a binding of values in between; commits, journal and durability are the consumer's.
"""
import sqlite3
import sys

HISTORIES = ("task_progress", "task_resource", "task_metrics")
ROWS_PER_COMMIT = 5_000


def main(source: str, target: str) -> None:
    database = sqlite3.connect(f"file:{target}?mode=rw", uri=True, isolation_level=None)
    database.execute("PRAGMA synchronous = NORMAL")
    database.execute("ATTACH ? AS source", (f"file:{source}?mode=ro",))
    # A WHERE in each, or SQLite would copy pages and indexes as they are.
    for table in ("task", "consumed_offset"):
        database.execute(f"INSERT INTO main.{table} SELECT * FROM source.{table} WHERE true")
    last = {table: database.execute(f"SELECT max(rowid) FROM source.{table}").fetchone()[0] or 0 for table in HISTORIES}
    for first in range(1, max(last.values()) + 1, ROWS_PER_COMMIT):
        rows = (first, first + ROWS_PER_COMMIT - 1)
        database.execute("BEGIN IMMEDIATE")
        for table in HISTORIES:
            database.execute(f"INSERT INTO main.{table} SELECT * FROM source.{table} WHERE rowid BETWEEN ? AND ?", rows)
        database.execute("COMMIT")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
