import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Scanner;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.generic.GenericRecordBuilder;
import org.apache.avro.message.BinaryMessageEncoder;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.Serializer;
import org.apache.kafka.common.serialization.StringSerializer;

/**
 * Reports to Kafka from Java: one report for each exec task on standard input, one per line.
 *
 * <p>Arguments: bootstrap servers, topic, file of TaskRunningInfo's schema and, if reports use a
 * schema registry's framing, the registry's address (Apicurio's: http://HOST:PORT/apis/registry/v2).
 */
public class Report {
    public static void main(String[] arguments) throws Exception {
        String servers = arguments[0], topic = arguments[1];
        Schema schema = new Schema.Parser().parse(Files.readString(Path.of(arguments[2])));
        String registry = arguments.length > 3 ? arguments[3] : null;

        Properties settings = new Properties();
        settings.put("bootstrap.servers", servers);
        settings.put("acks", "all"); // and idempotence, murmur2: Java's defaults
        Serializer<GenericRecord> values = registry == null ? singleObject(schema) : registered(registry);
        int sent = 0;
        try (var producer = new KafkaProducer<>(settings, new StringSerializer(), values);
                var lines = new Scanner(System.in, "UTF-8")) {
            for (; lines.hasNextLine(); sent++) {
                GenericRecord report = report(schema, lines.nextLine());
                var record = new ProducerRecord<>(topic, report.get("execId").toString(), report);
                producer.send(record, (metadata, error) -> {
                    if (error != null) {
                        System.err.println("not sent: " + error);
                        System.exit(1);
                    }
                });
            }
        }
        System.out.println("sent " + sent + " reports");
    }

    /** C3 01, the schema's fingerprint, the record: Avro has it ready. */
    static Serializer<GenericRecord> singleObject(Schema schema) {
        var encoder = new BinaryMessageEncoder<GenericRecord>(GenericData.get(), schema);
        return (topic, record) -> {
            try {
                var bytes = encoder.encode(record);
                byte[] value = new byte[bytes.remaining()];
                bytes.get(value);
                return value;
            } catch (java.io.IOException error) {
                throw new java.io.UncheckedIOException(error);
            }
        };
    }

    /** 00, the schema's id, the record. (Confluent's KafkaAvroSerializer does it with schema.registry.url alone.) */
    static Serializer<GenericRecord> registered(String registry) {
        var serializer = new io.apicurio.registry.serde.avro.AvroKafkaSerializer<GenericRecord>();
        serializer.configure(Map.of(
                "apicurio.registry.url", registry,
                "apicurio.registry.auto-register", true,
                "apicurio.registry.artifact-resolver-strategy", "io.apicurio.registry.serde.strategy.TopicIdStrategy",
                "apicurio.registry.headers.enabled", false,
                "apicurio.registry.as-confluent", true,
                "apicurio.registry.use-id", "contentId"), false);
        return serializer;
    }

    static GenericRecord report(Schema schema, String execId) {
        Schema engine = schema.getField("engine").schema();
        Schema progress = part(schema, "progress");
        Schema job = progress.getField("progressInfo").schema().getElementType();
        Schema status = schema.getField("status").schema();
        return new GenericRecordBuilder(schema)
                .set("execId", execId)
                .set("jobId", "job-1")
                .set("engine", new GenericRecordBuilder(engine)
                        .set("instance", "node-1:7077").set("engineType", "java").set("user", "ada")
                        .set("ticketId", "ticket-1").set("runningTasks", 1).build())
                .set("status", new GenericData.EnumSymbol(status, "Running"))
                .set("reportedAt", ChronoUnit.MICROS.between(Instant.EPOCH, Instant.now()))
                .set("sequence", 0L)
                .set("progress", new GenericRecordBuilder(progress)
                        .set("progress", 0.5)
                        .set("progressInfo", List.of(new GenericRecordBuilder(job)
                                .set("id", "stage-1").set("totalTasks", 4).set("runningTasks", 1)
                                .set("failedTasks", 0).set("succeedTasks", 2).build()))
                        .build())
                .set("resource", null) // unknown to the engine
                .set("metrics", Map.of("rowsRead", 12_345L))
                .build();
    }

    /** The schema of a part, which may be null. */
    static Schema part(Schema schema, String name) {
        return schema.getField(name).schema().getTypes().get(1);
    }
}
