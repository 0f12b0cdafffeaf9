import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.message.BinaryMessageDecoder;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.StringDeserializer;

/**
 * Reads events from Java, from the topic's beginning to its end, and prints each event's key and
 * report.
 *
 * <p>Arguments: bootstrap servers, topic, folder of the schema's versions (schemas/avro) and, if events are
 * in a schema registry's framing, the registry's address (Apicurio's: http://HOST:PORT/apis/registry/v2).
 */
public class ReadEvents {
    public static void main(String[] arguments) throws Exception {
        String servers = arguments[0], topic = arguments[1];
        List<Schema> versions = versions(Path.of(arguments[2]));
        String registry = arguments.length > 3 ? arguments[3] : null;

        Properties settings = new Properties();
        settings.put("bootstrap.servers", servers);
        settings.put("isolation.level", "read_committed"); // skips aborted transactions of the router
        Deserializer<GenericRecord> values = registry == null ? singleObject(versions) : registered(registry);
        var out = new PrintStream(System.out, true, StandardCharsets.UTF_8); // independent of the locale
        try (var consumer = new KafkaConsumer<>(settings, new StringDeserializer(), values)) {
            var partitions = consumer.partitionsFor(topic).stream()
                    .map(p -> new org.apache.kafka.common.TopicPartition(topic, p.partition())).toList();
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            var ends = consumer.endOffsets(partitions);
            while (!partitions.stream().allMatch(p -> consumer.position(p) >= ends.get(p))) {
                for (var record : consumer.poll(Duration.ofMillis(500))) {
                    var info = (GenericRecord) record.value().get("info");
                    var part = (GenericRecord) info.get("progress"); // null if the engine does not know it
                    var progress = part == null ? "-" : part.get("progress");
                    out.println(record.key() + " " + info.get("status") + " " + progress + " " + info.get("sequence"));
                }
            }
        }
    }

    /** Every version of the schema, the newest last. */
    static List<Schema> versions(Path folder) throws java.io.IOException {
        var versions = new ArrayList<Schema>();
        for (int version = 1; Files.isDirectory(folder.resolve("v" + version)); version++) {
            Path file = folder.resolve("v" + version + "/TaskRunningInfoEvent.avsc");
            if (Files.exists(file)) {
                versions.add(new Schema.Parser().parse(Files.readString(file)));
            }
        }
        return versions;
    }

    static Deserializer<GenericRecord> singleObject(List<Schema> versions) {
        var decoder = new BinaryMessageDecoder<GenericRecord>(GenericData.get(), versions.get(versions.size() - 1));
        versions.forEach(decoder::addSchema); // the header says which one wrote the record
        return (topic, value) -> {
            try {
                return decoder.decode(value);
            } catch (java.io.IOException error) {
                throw new java.io.UncheckedIOException(error);
            }
        };
    }

    static Deserializer<GenericRecord> registered(String registry) {
        var deserializer = new io.apicurio.registry.serde.avro.AvroKafkaDeserializer<GenericRecord>();
        deserializer.configure(Map.of(
                "apicurio.registry.url", registry,
                "apicurio.registry.as-confluent", true,
                "apicurio.registry.use-id", "contentId"), false);
        return deserializer;
    }
}
