//! The settings of an HBase that fits into a test: one folder, loopback, fixed ports, a quick start.

use std::fmt::Write as _;
use std::path::Path;

/// The ports of one HBase. They are fixed, since a gateway of its own finds an HBase that was away only where it was.
pub(super) struct Ports {
    pub(super) zookeeper: u16,
    pub(super) master: u16,
    pub(super) region_servers: Vec<u16>,
    pub(super) gateway: u16,
}

/// The settings of the process that is ZooKeeper, master and region servers, and has the gateway in it.
pub(super) fn of_cluster(folder: &Path, ports: &Ports) -> String {
    let servers = ports.region_servers.len().to_string();
    let in_folder = |name: &str| folder.join(name).display().to_string();
    written(&[
        ("hbase.cluster.distributed", "false"),
        ("hbase.rootdir", &format!("file://{}", in_folder("data"))),
        ("hbase.tmp.dir", &in_folder("tmp")),
        ("hbase.wal.provider", "filesystem"),
        ("hbase.zookeeper.quorum", "127.0.0.1"),
        ("hbase.zookeeper.property.clientPort", &ports.zookeeper.to_string()),
        ("hbase.zookeeper.property.clientPortAddress", "127.0.0.1"),
        ("hbase.zookeeper.property.dataDir", &in_folder("zookeeper")),
        ("zookeeper.session.timeout.localHBaseCluster", "60000"),
        ("hbase.localcluster.assign.random.ports", "false"),
        ("hbase.master.hostname", "localhost"),
        ("hbase.master.port", &ports.master.to_string()),
        ("hbase.master.ipc.address", "127.0.0.1"),
        ("hbase.master.info.port", "-1"),
        ("hbase.master.start.timeout.localHBaseCluster", "300000"),
        ("hbase.unsafe.regionserver.hostname", "localhost"),
        ("hbase.regionserver.ipc.address", "127.0.0.1"),
        ("hbase.regionserver.info.port", "-1"),
        ("hbase.regionserver.handler.count", "10"),
        ("hbase.thrift.info.port", "-1"),
        ("hbase.thrift.server.socket.read.timeout", "600000"),
        // Many small tables: a chunk of 2 MB for each region would leave no memory for what is in them.
        ("hbase.hregion.memstore.mslab.enabled", "false"),
        // A quick start: nobody else comes.
        ("hbase.master.wait.on.regionservers.mintostart", &servers),
        ("hbase.master.wait.on.regionservers.maxtostart", &servers),
        ("hbase.master.wait.on.regionservers.interval", "100"),
        ("hbase.regionserver.msginterval", "300"),
    ])
}

/// The settings of a gateway that is a process of its own: it asks the master itself where everything is, since it would
/// not recover from an emptied ZooKeeper, and gives up soon.
pub(super) fn of_gateway(ports: &Ports) -> String {
    written(&[
        ("hbase.client.registry.impl", "org.apache.hadoop.hbase.client.RpcConnectionRegistry"),
        ("hbase.masters", &format!("localhost:{}", ports.master)),
        ("hbase.client.retries.number", "3"),
        ("hbase.rpc.timeout", "2000"),
        ("hbase.client.operation.timeout", "5000"),
        ("hbase.client.meta.operation.timeout", "5000"),
        ("hbase.zookeeper.quorum", "127.0.0.1"),
        ("hbase.zookeeper.property.clientPort", &ports.zookeeper.to_string()),
        ("hbase.thrift.info.port", "-1"),
        ("hbase.thrift.server.socket.read.timeout", "600000"),
    ])
}

fn written(settings: &[(&str, &str)]) -> String {
    let mut site = "<?xml version=\"1.0\"?>\n<configuration>\n".to_owned();
    for (name, value) in settings {
        let value = value.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(site, "  <property><name>{name}</name><value>{value}</value></property>");
    }
    site + "</configuration>\n"
}
