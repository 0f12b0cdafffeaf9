"""Sends the events of the given number of runs through the transport of OPENLINEAGE_CONFIG: a third each completes, fails, aborts."""

import sys
import uuid
from datetime import datetime

from openlineage.client import OpenLineageClient
from openlineage.client.event_v2 import Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.facet_v2 import error_message_run, output_statistics_output_dataset, parent_run

ENDS = [RunState.COMPLETE, RunState.FAIL, RunState.ABORT]


def event(state, n, run, parent):
    job = parent_run.Job(namespace="clients", name="python")
    facets = {"parent": parent_run.ParentRunFacet(run=parent_run.Run(runId=parent), job=job)}
    if state == RunState.FAIL:
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(
            message="a s3cr3t message", programmingLanguage="python", stackTrace="a s3cr3t stack"
        )
    statistics = {}
    if state == RunState.RUNNING:
        facet = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(rowCount=n, size=8 * n)
        statistics["outputStatistics"] = facet
    return RunEvent(
        eventType=state,
        eventTime=datetime.now().isoformat(),  # without an offset, as several integrations have it
        run=Run(runId=run, facets=facets),
        job=Job(namespace="clients", name=f"python.task_{n % 10}"),
        producer="https://github.com/OpenLineage/OpenLineage/tree/1.54.0/client/python",
        inputs=[],
        outputs=[OutputDataset(namespace="files", name=f"out-{n}", outputFacets=statistics)],
    )


runs = int(sys.argv[1])
parent = str(uuid.uuid4())
client = OpenLineageClient()
for n in range(runs):
    run = str(uuid.uuid4())
    for state in [RunState.START, RunState.RUNNING, ENDS[n % len(ENDS)]]:
        client.emit(event(state, n, run, parent))
client.close()
print(f"sent {3 * runs} events of {runs} runs of {parent}")
