//! HBase with its Thrift gateway: ZooKeeper, master and region servers in one process that `ops/hbase` launches, the
//! gateway in there as well or in a process of its own.

mod class_path;
mod site;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::redis::connect;
use crate::supervised::{Speech, Supervised};
use crate::{ports, programs, supervised};

/// Also for a start on data that was written up to a kill.
const START_MAX: Duration = Duration::from_mins(5);
/// As long as its start may take: right after it, on a busy machine, `create` was once not answered within two minutes.
const COMMAND_MAX: Duration = Duration::from_mins(5);
const GATEWAY: &str = "org.apache.hadoop.hbase.thrift.ThriftServer";

/// What kind of HBase to start.
#[derive(Clone, Copy, Debug)]
pub struct HBaseOptions {
    /// Whether the gateway speaks the framed transport of Thrift; else the buffered one.
    pub framed: bool,
    /// How many region servers there are at first; at least one.
    pub region_servers: u32,
    /// Whether the gateway is a process of its own, which stays when HBase is killed and can be killed alone.
    pub separate_gateway: bool,
}

impl Default for HBaseOptions {
    fn default() -> Self {
        Self { framed: false, region_servers: 1, separate_gateway: false }
    }
}

/// A table of one family, to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableSpec {
    /// Its name, of letters, digits, `_`, `-` and `.`.
    pub name: String,
    /// The name of its family, of the same.
    pub family: String,
    /// The first key of each region but the first, none of them empty.
    pub splits: Vec<Vec<u8>>,
    /// How long a cell is kept, in whole seconds; `None`: for good.
    pub ttl: Option<Duration>,
}

impl TableSpec {
    /// As the launcher is told.
    fn described(&self) -> anyhow::Result<String> {
        for name in [&self.name, &self.family] {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
            ensure!(!name.is_empty() && name.bytes().all(plain), "{name:?} is no name of a table or family");
        }
        ensure!(self.splits.iter().all(|key| !key.is_empty()), "{}: the first region has no first key", self.name);
        let ttl = self.ttl.map_or_else(|| "-".to_owned(), |ttl| ttl.as_secs().max(1).to_string());
        let mut described = format!("{} {} {ttl} ", self.name, self.family);
        for (i, key) in self.splits.iter().enumerate() {
            described.push_str(if i > 0 { "," } else { "" });
            for byte in key {
                let _ = write!(described, "{byte:02x}");
            }
        }
        if self.splits.is_empty() {
            described.push('-');
        }
        Ok(described)
    }
}

/// An HBase of one's own. Dropping it ends it and removes its files.
pub struct HBase {
    // In this order, so that the gateway goes first.
    gateway: Option<Supervised>,
    cluster: Supervised,
    port: u16,
}

impl HBase {
    /// Starts one with [`HBaseOptions::default`].
    pub fn start() -> anyhow::Result<Self> {
        Self::start_with(HBaseOptions::default())
    }

    /// Starts one. The first time on a machine its jars are fetched, which takes a minute.
    pub fn start_with(options: HBaseOptions) -> anyhow::Result<Self> {
        ensure!(options.region_servers > 0, "an HBase has at least one region server");
        let java = programs::find("java").context("java is not installed")?;
        let region_servers = (0..options.region_servers).map(|_| ports::free()).collect::<Result<Vec<_>, _>>()?;
        let ports =
            site::Ports { zookeeper: ports::free()?, master: ports::free()?, region_servers, gateway: ports::free()? };
        let transport = if options.framed { "framed" } else { "buffered" };

        let folder = Folder::new("hbase", &|folder| site::of_cluster(folder, &ports))?;
        let listed: Vec<_> = ports.region_servers.iter().map(u16::to_string).collect();
        let gateway = if options.separate_gateway { "-".to_owned() } else { ports.gateway.to_string() };
        let mut command = folder.command(&java, "-Xmx1g")?;
        command.extend(["Launcher".to_owned(), listed.join(","), gateway, transport.to_owned()].map(OsString::from));
        let cluster = Supervised::new("HBase", folder.0, Speech::Speaks, command)?;
        let mut hbase = Self { gateway: None, cluster, port: ports.gateway };
        hbase.run()?;

        if options.separate_gateway {
            let folder = Folder::new("gateway", &|_| site::of_gateway(&ports))?;
            let mut command = folder.command(&java, "-Xmx512m")?;
            command.extend([GATEWAY, "-b", "127.0.0.1", "-p", &ports.gateway.to_string()].map(OsString::from));
            command.extend(options.framed.then(|| "-f".into()));
            command.push("start".into());
            hbase.gateway = Some(Supervised::new("HBase's gateway", folder.0, Speech::Silent, command)?);
            hbase.run_gateway()?;
        }
        Ok(hbase)
    }

    /// Where the Thrift gateway listens, before and after restarts.
    pub fn gateway(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The process id of HBase itself, another one after a restart.
    pub fn pid(&self) -> u32 {
        self.cluster.pid()
    }

    /// What HBase itself wrote about itself, as long as it lives; beside its other files.
    pub fn log(&self) -> PathBuf {
        self.cluster.folder().join("log")
    }

    /// Makes the tables, all at once; one that is there already is left as it is. They can be used when this returns. Panics if a table
    /// can't be made.
    pub fn create_tables(&self, tables: &[TableSpec]) {
        if tables.is_empty() {
            return;
        }
        let described: Result<Vec<_>, _> = tables.iter().map(TableSpec::described).collect();
        let made = described.and_then(|described| self.command(&format!("create {}", described.join(" "))));
        made.expect("the tables can be made");
    }

    /// Removes every table whose name begins so. Panics if that can't be done.
    pub fn drop_tables(&self, prefix: &str) {
        self.command(&format!("disable-drop {prefix}")).expect("tables can be removed");
    }

    /// Makes a region server end as after a fault of its own; another one must be there. It is gone when this returns, its
    /// regions come back elsewhere a little later. Panics if that can't be done.
    pub fn abort_region_server(&self) {
        self.command("abort-regionserver").expect("a region server can be aborted");
    }

    /// Adds a region server. The master knows it when this returns. Panics if that can't be done.
    pub fn add_region_server(&self) {
        self.command("add-regionserver").expect("a region server can be added");
    }

    /// Kills HBase as a power cut would, with its gateway unless that is a process of its own; it is gone when this returns.
    /// Panics if that can't be done.
    pub fn kill(&mut self) {
        self.cluster.kill().expect("HBase can be killed");
    }

    /// Starts it again after [`Self::kill`], on the same ports with the same data. Every table can be used when this
    /// returns. Panics if it does not answer in time.
    pub fn restart(&mut self) {
        self.run().expect("HBase starts again");
    }

    /// Makes HBase stand still, with its gateway unless that is a process of its own: connections are accepted by the
    /// system, but nothing is answered. Panics if that can't be done.
    pub fn pause(&self) {
        self.cluster.pause().expect("HBase can be paused");
    }

    /// Lets it go on after [`Self::pause`]. Panics if that can't be done.
    pub fn resume(&self) {
        self.cluster.resume().expect("HBase can go on");
    }

    /// The process id of the gateway. Panics, as do all that follow, if it is no process of its own.
    pub fn gateway_pid(&self) -> u32 {
        self.own_gateway().pid()
    }

    /// Kills the gateway alone; it is gone when this returns.
    pub fn kill_gateway(&mut self) {
        self.own_gateway().kill().expect("the gateway can be killed");
    }

    /// Starts the gateway again after [`Self::kill_gateway`], on the same port.
    pub fn restart_gateway(&mut self) {
        self.run_gateway().expect("the gateway starts again");
    }

    /// Makes the gateway alone stand still.
    pub fn pause_gateway(&self) {
        self.own_gateway().pause().expect("the gateway can be paused");
    }

    /// Lets the gateway go on after [`Self::pause_gateway`].
    pub fn resume_gateway(&self) {
        self.own_gateway().resume().expect("the gateway can go on");
    }

    pub(crate) fn missing() -> Option<&'static str> {
        class_path::missing()
    }

    fn own_gateway(&self) -> &Supervised {
        self.gateway.as_ref().expect("the gateway is a process of its own with HBaseOptions::separate_gateway")
    }

    fn run(&self) -> anyhow::Result<()> {
        self.cluster.start()?;
        self.cluster.heard("launcher: ready", START_MAX).map(drop)
    }

    fn run_gateway(&self) -> anyhow::Result<()> {
        let gateway = self.own_gateway();
        gateway.start()?;
        gateway.until_it_answers(START_MAX, || connect(self.port).is_some())
    }

    fn command(&self, command: &str) -> anyhow::Result<()> {
        let answer = self.cluster.ask(command, "launcher: ", COMMAND_MAX)?;
        ensure!(answer == "done", "HBase: {answer}; more is in {}", self.log().display());
        Ok(())
    }
}

/// A folder for a process of HBase's, with its settings.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str, site: &dyn Fn(&std::path::Path) -> String) -> anyhow::Result<Self> {
        let folder = supervised::folder(name)?;
        fs::create_dir(folder.join("site"))?;
        fs::write(folder.join("site/hbase-site.xml"), site(&folder))?;
        Ok(Self(folder))
    }

    /// The command up to the class that is to run.
    fn command(&self, java: &std::path::Path, heap: &str) -> anyhow::Result<Vec<OsString>> {
        let mut command = vec![java.as_os_str().to_owned()];
        let flags = ["--add-opens", "java.base/java.nio=ALL-UNNAMED", "-XX:+UseSerialGC", heap, "-cp"];
        command.extend(flags.map(OsString::from));
        command.push(class_path::class_path(&self.0.join("site"))?);
        Ok(command)
    }
}
