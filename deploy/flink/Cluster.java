import java.nio.file.Path;
import java.time.Duration;
import java.time.Instant;
import java.util.HashMap;
import java.util.Map;

import org.apache.flink.api.common.JobID;
import org.apache.flink.api.common.JobStatus;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.functions.RichMapFunction;
import org.apache.flink.api.connector.source.lib.NumberSequenceSource;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.runtime.client.JobStatusMessage;
import org.apache.flink.runtime.minicluster.MiniCluster;
import org.apache.flink.runtime.minicluster.MiniClusterConfiguration;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.sink.v2.DiscardingSink;
import org.apache.flink.util.FlinkException;

/**
 * A Flink cluster in one process, and jobs that it runs. See ./cluster for its arguments. Jobs are submitted by REST, as
 * by any client, so that the JobManager keeps them after their end.
 */
public final class Cluster {
    /** How a job ends, if nobody interferes. */
    enum Kind {
        /** A batch job that succeeds. */
        BATCH,
        /** A streaming job that never ends, with checkpoints. */
        ENDLESS,
        /** A bounded streaming job that is restarted twice, and succeeds. */
        THROWS,
        /** A streaming job that fails. */
        FAILS,
    }

    /** What an exception's text may hold, and no report does. */
    private static final String SECRET = "customer-4711";

    private static final Duration CHECKPOINT_INTERVAL = Duration.ofSeconds(1);
    private static final Duration RESTART_DELAY = Duration.ofMillis(300);

    public static void main(String[] arguments) throws Exception {
        boolean isLoad = arguments.length == 4 && arguments[0].equals("--load");
        int slots = isLoad ? 2 * Integer.parseInt(arguments[1]) : 2 * Math.max(1, arguments.length);
        Configuration configuration = configuration(slots);
        if (isLoad) {
            // How long the JobManager lists ended jobs; the archive keeps their REST responses.
            configuration.setString("jobstore.expiration-time", "300");
            configuration.setString("jobmanager.archive.fs.dir", Path.of(arguments[3]).toAbsolutePath().toUri().toString());
        }
        MiniCluster cluster = new MiniCluster(
                new MiniClusterConfiguration.Builder()
                        .setConfiguration(configuration)
                        .setNumTaskManagers(1)
                        .setNumSlotsPerTaskManager(slots)
                        .setCommonBindAddress("127.0.0.1")
                        .build());
        cluster.start();
        int port = cluster.getRestAddress().get().getPort();
        System.out.println("rest http://127.0.0.1:" + port);
        if (isLoad) {
            load(cluster, port, Integer.parseInt(arguments[1]), Duration.ofSeconds(Long.parseLong(arguments[2])));
        } else {
            for (String kind : arguments) {
                JobID id = submit(port, Kind.valueOf(kind.toUpperCase()), 2, Duration.ofSeconds(4));
                System.out.println("job " + kind + " " + id);
            }
        }
        Thread.sleep(Long.MAX_VALUE);
    }

    private static Configuration configuration(int slots) {
        Configuration configuration = new Configuration();
        configuration.setString("rest.bind-port", "0");
        configuration.setString("metrics.fetcher.update-interval", "1000");
        // Otherwise a cluster in one process claims a million cores and a pebibyte.
        configuration.setString("taskmanager.cpu.cores", Integer.toString(slots));
        configuration.setString("taskmanager.memory.task.heap.size", 16 * slots + "mb");
        configuration.setString("taskmanager.memory.task.off-heap.size", "0");
        configuration.setString("taskmanager.memory.managed.size", 4 * slots + "mb");
        configuration.setString("taskmanager.memory.network.min", 32 + 2 * slots + "mb");
        configuration.setString("taskmanager.memory.network.max", 32 + 2 * slots + "mb");
        return configuration;
    }

    /** Keeps this many jobs of all kinds running, a new one for each that ends; then waits until all have ended. */
    private static void load(MiniCluster cluster, int port, int jobs, Duration duration) throws Exception {
        Instant end = Instant.now().plus(duration);
        Map<JobID, Instant> cancelAt = new HashMap<>();
        int submitted = 0;
        while (true) {
            boolean isOver = Instant.now().isAfter(end);
            int running = 0;
            for (JobStatusMessage job : cluster.listJobs().get()) {
                if (job.getJobState().isGloballyTerminalState()) {
                    continue;
                }
                running++;
                if (!job.getJobName().equals(nameOf(Kind.ENDLESS)) || job.getJobState() != JobStatus.RUNNING) {
                    continue;
                }
                // From when it runs: a busy cluster starts jobs late, also ones whose submission has timed out.
                int order = cancelAt.size();
                Instant due = cancelAt.computeIfAbsent(job.getJobId(), id -> Instant.now().plus(lasts(order)));
                if (isOver || Instant.now().isAfter(due)) {
                    cluster.cancelJob(job.getJobId()); // asked again unless it is soon cancelled
                }
            }
            if (isOver && running == 0) {
                System.out.println("ended " + submitted + " jobs");
                return;
            }
            for (; running < jobs && !isOver; running++) {
                Kind kind = Kind.values()[submitted % Kind.values().length];
                try {
                    submit(port, kind, 1, lasts(submitted));
                } catch (FlinkException e) {
                    System.out.println("not submitted: " + e.getMessage());
                    break;
                }
                submitted++;
            }
            Thread.sleep(500);
        }
    }

    /** They do not end all at once. */
    private static Duration lasts(int order) {
        return Duration.ofSeconds(30 + order * 7L % 60);
    }

    private static String nameOf(Kind kind) {
        return kind.name().toLowerCase();
    }

    /** A job of three vertices: a slow source, a map, and a sum with a sink. */
    private static JobID submit(int port, Kind kind, int parallelism, Duration lasts) throws Exception {
        Configuration configuration = new Configuration();
        configuration.setString("parallelism.default", Integer.toString(parallelism));
        configuration.setString("execution.runtime-mode", kind == Kind.BATCH ? "BATCH" : "STREAMING");
        if (kind == Kind.ENDLESS) {
            configuration.setString("execution.checkpointing.interval", CHECKPOINT_INTERVAL.toMillis() + "ms");
        }
        configuration.setString("restart-strategy.type", kind == Kind.THROWS ? "fixed-delay" : "none");
        configuration.setString("restart-strategy.fixed-delay.attempts", "2");
        configuration.setString("restart-strategy.fixed-delay.delay", RESTART_DELAY.toMillis() + "ms");

        long records = kind == Kind.ENDLESS ? Long.MAX_VALUE : 200L * parallelism;
        // One that is restarted twice runs one and two thirds times.
        long pauseMillis = Math.max(1, lasts.toMillis() / 200 * (kind == Kind.THROWS ? 3 : 5) / 5);
        StreamExecutionEnvironment environment =
                StreamExecutionEnvironment.createRemoteEnvironment("127.0.0.1", port, configuration);
        environment
                .fromSource(new NumberSequenceSource(1, records), WatermarkStrategy.noWatermarks(), "numbers")
                .map(new Slowly(kind == Kind.ENDLESS ? 20 : pauseMillis))
                .rebalance()
                .map(new Throwing(kind))
                .keyBy(number -> number % 4)
                .reduce(Long::sum)
                .sinkTo(new DiscardingSink<>());
        return environment.executeAsync(nameOf(kind)).getJobID();
    }

    private static final class Slowly extends RichMapFunction<Long, Long> {
        private final long pauseMillis;

        Slowly(long pauseMillis) {
            this.pauseMillis = pauseMillis;
        }

        @Override
        public Long map(Long number) throws Exception {
            Thread.sleep(pauseMillis);
            return number;
        }
    }

    private static final class Throwing extends RichMapFunction<Long, Long> {
        private final Kind kind;
        private long seen;

        Throwing(Kind kind) {
            this.kind = kind;
        }

        @Override
        public Long map(Long number) {
            int attempt = getRuntimeContext().getTaskInfo().getAttemptNumber();
            boolean throwing = kind == Kind.FAILS || kind == Kind.THROWS && attempt < 2;
            if (throwing && ++seen > 60) {
                throw new IllegalStateException("cannot handle " + SECRET);
            }
            return number;
        }
    }
}
