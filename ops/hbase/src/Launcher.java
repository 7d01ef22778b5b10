import java.io.BufferedReader;
import java.io.File;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Future;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.FileUtil;
import org.apache.hadoop.hbase.HBaseConfiguration;
import org.apache.hadoop.hbase.HConstants;
import org.apache.hadoop.hbase.LocalHBaseCluster;
import org.apache.hadoop.hbase.TableName;
import org.apache.hadoop.hbase.client.Admin;
import org.apache.hadoop.hbase.client.ColumnFamilyDescriptorBuilder;
import org.apache.hadoop.hbase.client.Connection;
import org.apache.hadoop.hbase.client.ConnectionFactory;
import org.apache.hadoop.hbase.client.TableDescriptor;
import org.apache.hadoop.hbase.client.TableDescriptorBuilder;
import org.apache.hadoop.hbase.io.compress.Compression;
import org.apache.hadoop.hbase.regionserver.BloomType;
import org.apache.hadoop.hbase.thrift.ThriftServer;
import org.apache.hadoop.hbase.util.JVMClusterUtil.RegionServerThread;
import org.apache.hadoop.hbase.zookeeper.MiniZooKeeperCluster;
import org.apache.hadoop.metrics2.lib.DefaultMetricsSystem;
import org.apache.hadoop.util.ToolRunner;

/**
 * A whole HBase in one process, for tests and trials: ZooKeeper, a master, region servers, and the Thrift gateway unless
 * that is a process of its own. What is the same for all of them is in hbase-site.xml.
 *
 * <pre>Launcher REGION_SERVER_PORT[,…] GATEWAY_PORT|- framed|buffered</pre>
 *
 * Says "launcher: ready" when every table can be used, then answers each line of its standard input with one line:
 * "launcher: done" or "launcher: failed: …":
 *
 * <pre>
 * create (TABLE FAMILY TTL_SECONDS|- HEX_SPLIT_KEY[,…]|-)…
 * disable-drop PREFIX
 * abort-regionserver
 * add-regionserver
 * </pre>
 */
public final class Launcher {
    private static final String LOOPBACK = "127.0.0.1";
    private static final long START_LIMIT_MS = 240_000;

    private final Configuration conf;
    private final LocalHBaseCluster cluster;
    private final Connection connection;
    private final Admin admin;

    private Launcher(int[] ports) throws Exception {
        conf = HBaseConfiguration.create();
        DefaultMetricsSystem.setMiniClusterMode(true);
        startZooKeeper();
        // Each region server has a port of its own, so none is made along with the master.
        cluster = new LocalHBaseCluster(conf, 1, 0);
        for (int i = 0; i < ports.length; i++) {
            cluster.addRegionServer(onPort(ports[i]), i);
        }
        cluster.startup();
        // What takes long is asked after more often than a client would.
        Configuration impatient = new Configuration(conf);
        impatient.setInt(HConstants.HBASE_CLIENT_PAUSE, 10);
        impatient.setInt(HConstants.HBASE_CLIENT_RETRIES_NUMBER, 1000);
        connection = ConnectionFactory.createConnection(impatient);
        admin = connection.getAdmin();
        untilTrue("the master to be ready", () -> cluster.getActiveMaster() != null && cluster.getActiveMaster().isInitialized());
        for (TableName table : admin.listTableNames()) {
            untilTrue(table + " to be served", () -> admin.isTableDisabled(table) || admin.isTableAvailable(table));
        }
    }

    public static void main(String[] args) throws Exception {
        PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        // What others print is for the log.
        System.setOut(System.err);
        try {
            int[] ports = java.util.Arrays.stream(args[0].split(",")).mapToInt(Integer::parseInt).toArray();
            Launcher launcher = new Launcher(ports);
            if (!args[1].equals("-")) {
                launcher.startGateway(Integer.parseInt(args[1]), args[2].equals("framed"));
            }
            out.println("launcher: ready");
            BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
            for (String line = lines.readLine(); line != null; line = lines.readLine()) {
                out.println("launcher: " + launcher.answer(line.split(" ")));
            }
        } catch (Throwable fault) {
            fault.printStackTrace();
        }
        // Nobody tells us anything any more. What is stored is safe without a farewell.
        Runtime.getRuntime().halt(1);
    }

    private String answer(String[] words) {
        try {
            switch (words[0]) {
                case "create" -> {
                    List<Future<Void>> made = new ArrayList<>();
                    for (int i = 1; i < words.length; i += 4) {
                        made.add(create(words[i], words[i + 1], words[i + 2], words[i + 3]));
                    }
                    for (Future<Void> table : made) {
                        table.get();
                    }
                }
                case "abort-regionserver" -> abortRegionServer();
                case "add-regionserver" -> addRegionServer();
                case "disable-drop" -> drop(words[1]);
                default -> throw new IllegalArgumentException("no such command: " + words[0]);
            }
            return "done";
        } catch (Exception fault) {
            fault.printStackTrace();
            return "failed: " + fault.toString().lines().findFirst().orElse("");
        }
    }

    /** Begins to make a table with one family, cut into regions at the keys; nothing if it is there already. */
    private Future<Void> create(String name, String family, String ttl, String splits) throws IOException {
        var described = ColumnFamilyDescriptorBuilder.newBuilder(family.getBytes(StandardCharsets.UTF_8))
            .setBloomFilterType(BloomType.ROW)
            .setBlockCacheEnabled(true)
            .setCompressionType(Compression.Algorithm.NONE);
        if (!ttl.equals("-")) {
            described.setTimeToLive(Integer.parseInt(ttl));
        }
        TableName table = TableName.valueOf(name);
        TableDescriptor descriptor = TableDescriptorBuilder.newBuilder(table).setColumnFamily(described.build()).build();
        if (admin.tableExists(table)) {
            return CompletableFuture.completedFuture(null);
        }
        List<byte[]> keys = new ArrayList<>();
        for (String key : splits.equals("-") ? new String[0] : splits.split(",")) {
            keys.add(HexFormat.of().parseHex(key));
        }
        return admin.createTableAsync(descriptor, keys.isEmpty() ? null : keys.toArray(new byte[0][]));
    }

    /** Makes a region server end as after a fault of its own, without handing over its regions. */
    private void abortRegionServer() throws Exception {
        List<RegionServerThread> live = cluster.getLiveRegionServers();
        if (live.size() < 2) {
            throw new IllegalStateException("there is no other region server that could take over");
        }
        RegionServerThread last = live.get(live.size() - 1);
        last.getRegionServer().abort("as told");
        last.join();
    }

    private void addRegionServer() throws Exception {
        int online = cluster.getActiveMaster().getServerManager().getOnlineServersList().size();
        RegionServerThread added = cluster.addRegionServer(onPort(0), cluster.getRegionServers().size());
        added.start();
        added.waitForServerOnline();
        untilTrue("the master to see the region server",
            () -> cluster.getActiveMaster().getServerManager().getOnlineServersList().size() > online);
    }

    /** Removes every table whose name begins so. */
    private void drop(String prefix) throws IOException {
        for (TableName table : admin.listTableNames()) {
            if (table.getNameAsString().startsWith(prefix)) {
                if (!admin.isTableDisabled(table)) {
                    admin.disableTable(table);
                }
                admin.deleteTable(table);
            }
        }
    }

    private Configuration onPort(int port) {
        Configuration own = new Configuration(conf);
        own.setInt(HConstants.REGIONSERVER_PORT, port);
        return own;
    }

    private void startZooKeeper() throws Exception {
        // What it remembers of the processes before a kill only holds up the start; HBase keeps nothing else there.
        File folder = new File(conf.get(HConstants.ZOOKEEPER_DATA_DIR));
        FileUtil.fullyDelete(folder);
        int wanted = conf.getInt(HConstants.ZOOKEEPER_CLIENT_PORT, 0);
        MiniZooKeeperCluster zooKeeper = new MiniZooKeeperCluster(conf);
        zooKeeper.setDefaultClientPort(wanted);
        int port = zooKeeper.startup(folder);
        if (port != wanted) {
            throw new IOException("port " + wanted + " for ZooKeeper is in use");
        }
    }

    private void startGateway(int port, boolean framed) throws Exception {
        List<String> args = new ArrayList<>(List.of("-b", LOOPBACK, "-p", Integer.toString(port)));
        if (framed) {
            args.add("-f");
        }
        args.add("start");
        Thread gateway = new Thread(() -> {
            try {
                ToolRunner.run(conf, new ThriftServer(conf), args.toArray(new String[0]));
            } catch (Throwable fault) {
                fault.printStackTrace();
            }
            // Without its gateway it is of no use.
            Runtime.getRuntime().halt(1);
        }, "gateway");
        gateway.setDaemon(true);
        gateway.start();
        untilTrue("the gateway to listen", () -> {
            try (Socket socket = new Socket()) {
                socket.connect(new InetSocketAddress(LOOPBACK, port), 1000);
                return true;
            } catch (IOException refused) {
                return false;
            }
        });
    }

    /** Something to look at until it is so. */
    private interface Condition {
        boolean holds() throws Exception;
    }

    private static void untilTrue(String what, Condition condition) throws Exception {
        long begun = System.nanoTime();
        while (!condition.holds()) {
            if (System.nanoTime() - begun > START_LIMIT_MS * 1_000_000) {
                throw new IOException("waited in vain for " + what);
            }
            Thread.sleep(20);
        }
    }
}
