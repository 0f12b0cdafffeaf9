"""What a schema cannot say of requests to `consumer serve`, for schemathesis: which ids there are, that a cursor is one
that was given, and which parameters go together."""

import os

import schemathesis
from schemathesis import GenerationMode


def exists(value):
    """Half of the ids that are made up are of tasks that there are."""
    return len(str(value)) % 2 == 0


@schemathesis.hook
def map_case(context, case):
    if case.meta is None or case.meta.generation.mode != GenerationMode.POSITIVE:
        return case
    ids, query = case.path_parameters or {}, case.query or {}
    # Of Linkis' paths all: an id that is not there is an error as any other (400).
    if "id" in ids:
        ids["id"] = os.environ["EXEC_ID"]
    if "exec_id" in ids and exists(ids["exec_id"]):
        ids["exec_id"] = os.environ["EXEC_ID"]
    if "job_id" in ids and exists(ids["job_id"]):
        ids["job_id"] = os.environ["JOB_ID"]
    query.pop("cursor", None)
    # A time has a beginning before its end, and the present may be the end.
    if "to" in query or "exec_id" not in ids:
        query.pop("from", None)
    # At most so many rows before a page.
    if int(query.get("pageNow", 1)) > 100:
        query["pageNow"] = 100
    return case
