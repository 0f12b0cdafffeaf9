import io.openlineage.client.Clients;
import io.openlineage.client.OpenLineage;
import io.openlineage.client.OpenLineage.RunEvent.EventType;
import io.openlineage.client.OpenLineageClient;
import java.net.URI;
import java.time.ZoneId;
import java.time.ZonedDateTime;
import java.util.List;
import java.util.UUID;

/** Sends the events of the given number of runs through the transport of OPENLINEAGE_CONFIG: a third each completes, fails, aborts. */
public class Client {
    static final OpenLineage OL = new OpenLineage(URI.create("https://github.com/OpenLineage/OpenLineage/tree/1.54.0/client/java"));
    static final EventType[] ENDS = {EventType.COMPLETE, EventType.FAIL, EventType.ABORT};

    public static void main(String[] arguments) throws Exception {
        int runs = Integer.parseInt(arguments[0]);
        UUID parent = UUID.randomUUID();
        try (OpenLineageClient client = Clients.newClient()) {
            for (int n = 0; n < runs; n++) {
                UUID run = UUID.randomUUID();
                client.emit(event(EventType.START, n, run, parent));
                client.emit(event(EventType.RUNNING, n, run, parent));
                client.emit(event(ENDS[n % ENDS.length], n, run, parent));
            }
        }
        System.out.println("sent " + 3 * runs + " events of " + runs + " runs of " + parent);
    }

    static OpenLineage.RunEvent event(EventType type, int n, UUID run, UUID parent) {
        var parentFacet = OL.newParentRunFacetBuilder()
            .run(OL.newParentRunFacetRunBuilder().runId(parent).build())
            .job(OL.newParentRunFacetJobBuilder().namespace("clients").name("java").build())
            .build();
        var facets = OL.newRunFacetsBuilder().parent(parentFacet);
        if (type == EventType.FAIL) {
            facets.errorMessage(OL.newErrorMessageRunFacet("a s3cr3t message", "JAVA", "a s3cr3t stack"));
        }
        var outputs = OL.newOutputDatasetBuilder().namespace("files").name("out-" + n);
        if (type == EventType.RUNNING) {
            var statistics = OL.newOutputStatisticsOutputDatasetFacetBuilder().rowCount((long) n).size(8L * n).build();
            outputs.outputFacets(OL.newOutputDatasetOutputFacetsBuilder().outputStatistics(statistics).build());
        }
        return OL.newRunEventBuilder()
            .eventType(type)
            .eventTime(ZonedDateTime.now(ZoneId.of("Europe/London")))
            .run(OL.newRunBuilder().runId(run).facets(facets.build()).build())
            .job(OL.newJobBuilder().namespace("clients").name("java.task_" + n % 10).build())
            .inputs(List.of())
            .outputs(List.of(outputs.build()))
            .build();
    }
}
