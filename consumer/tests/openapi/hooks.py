"""Hooks for schemathesis with what a schema cannot express: existing ids, issued cursors, and combinations of parameters."""

import os

import schemathesis
from schemathesis import GenerationMode


def exists(value):
    """Half of the generated ids belong to existing tasks."""
    return len(str(value)) % 2 == 0


@schemathesis.hook
def map_case(context, case):
    if case.meta is None or case.meta.generation.mode != GenerationMode.POSITIVE:
        return case
    ids, query = case.path_parameters or {}, case.query or {}
    # All of Linkis' paths: an unknown id is a general error (400).
    if "id" in ids:
        ids["id"] = os.environ["EXEC_ID"]
    if "exec_id" in ids and exists(ids["exec_id"]):
        ids["exec_id"] = os.environ["EXEC_ID"]
    if "job_id" in ids and exists(ids["job_id"]):
        ids["job_id"] = os.environ["JOB_ID"]
    query.pop("cursor", None)
    # The start must be before the end, which may be the present.
    if "to" in query or "exec_id" not in ids:
        query.pop("from", None)
    # The number of rows before a page is limited.
    if int(query.get("pageNow", 1)) > 100:
        query["pageNow"] = 100
    return case
