/** Starts a PrestoSQL server. (Its own main class is in an archive with all connectors.) */
public class Presto {
    public static void main(String[] arguments) {
        new io.prestosql.server.Server().start(arguments[0]);
    }
}
