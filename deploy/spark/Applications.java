import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.List;
import java.util.stream.IntStream;

import org.apache.spark.SparkConf;
import org.apache.spark.SparkException;
import org.apache.spark.api.java.JavaSparkContext;

/**
 * A small Spark application in local mode that runs jobs for a time: those of the group "load" succeed, each third of the
 * group "check" fails. Its tasks sleep. Appends the address of its UI to a file, and writes an event log. Arguments: the
 * number of the application, seconds, folder of event logs, file of addresses. See ./applications.
 */
public final class Applications {
    private static final long TASK_MILLIS = 1_500;
    private static final long PAUSE_MILLIS = 4_000;

    public static void main(String[] arguments) throws Exception {
        int number = Integer.parseInt(arguments[0]);
        long end = System.nanoTime() + Long.parseLong(arguments[1]) * 1_000_000_000;
        SparkConf conf = new SparkConf()
                .setMaster("local[1]")
                .setAppName("application " + number)
                .set("spark.driver.host", "127.0.0.1")
                .set("spark.ui.port", "0")
                .set("spark.eventLog.enabled", "true")
                .set("spark.eventLog.dir", Path.of(arguments[2]).toAbsolutePath().toUri().toString())
                // For small drivers.
                .set("spark.testing.memory", "536870912")
                .set("spark.ui.showConsoleProgress", "false");
        try (JavaSparkContext spark = new JavaSparkContext(conf)) {
            spark.setLogLevel("OFF");
            announce(Path.of(arguments[3]), spark.sc().uiWebUrl().get());
            for (int job = 0; System.nanoTime() < end; job++) {
                run(spark, "load", job, false);
                run(spark, "check", job, job % 3 == 2);
                Thread.sleep(PAUSE_MILLIS);
            }
        }
    }

    private static void announce(Path file, String url) throws IOException {
        // One write: other applications append to the file too.
        Files.writeString(file, url + "\n", StandardOpenOption.CREATE, StandardOpenOption.APPEND);
    }

    private static void run(JavaSparkContext spark, String group, int job, boolean fails) {
        spark.setJobGroup(group, "job " + job);
        List<Integer> rows = IntStream.range(0, 4).boxed().toList();
        try {
            spark.parallelize(rows, 4).map(row -> {
                Thread.sleep(TASK_MILLIS);
                if (fails && row == 3) {
                    throw new IllegalStateException("cannot handle row " + row);
                }
                return row;
            }).count();
        } catch (Exception error) {
            // Scala's methods do not declare SparkException.
            if (!fails || !(error instanceof SparkException)) {
                throw error;
            }
        }
    }
}
