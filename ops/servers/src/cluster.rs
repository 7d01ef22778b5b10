//! Campanile by its roles, each a process of its own, on servers that run already. All that is known of it here is its
//! command line, its settings and its `run.json`.

mod member;
mod tables;

use std::collections::hash_map::RandomState;
use std::ffi::OsStr;
use std::hash::{BuildHasher, Hasher};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::thread;
use std::time::Duration;
use std::{fmt, fs};

use anyhow::{Context, ensure};

use self::member::Member;
use crate::supervised::{Speech, Supervised};
use crate::{HBase, MariaDb, Redis, supervised};

/// How long what a process of a role does by itself may take, such as its drain.
const END_MAX: Duration = Duration::from_mins(1);

/// What a process of Campanile does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Decides, on the stores.
    Middle,
    /// Holds connections of devices.
    Front,
    /// Serves the HTTPS API.
    Http,
}

impl Role {
    /// The word of the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Middle => "middle",
            Self::Front => "front",
            Self::Http => "http",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The servers that a cluster keeps things in. Clusters may share them: each has names of its own in them.
#[derive(Clone, Copy)]
pub struct Engines<'a> {
    /// Bus and cache.
    pub redis: &'a Redis,
    /// Catalog.
    pub mariadb: &'a MariaDb,
    /// Sorted store.
    pub hbase: &'a HBase,
}

/// How a cluster is to be.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// The program `campanile`.
    pub binary: PathBuf,
    /// Settings of every process, which win over the cluster's own. A listener on port 0 becomes a port of its own in each
    /// process, which it keeps over restarts.
    pub settings: Vec<(String, String)>,
    /// How many processes of each role there are at first.
    pub middles: usize,
    /// See `middles`.
    pub fronts: usize,
    /// See `middles`.
    pub https: usize,
    /// About how many regions each table of HBase is cut into.
    pub regions: u16,
}

impl ClusterOptions {
    /// Two of each role, tables in one region.
    pub fn of(binary: impl Into<PathBuf>) -> Self {
        Self { binary: binary.into(), settings: Vec::new(), middles: 2, fronts: 2, https: 2, regions: 1 }
    }
}

/// The processes of one installation. They are called after their roles: `front-1`, `front-2`, `middle-1`, … Dropping it ends
/// them and removes their files, as does the end of whoever started it. What it keeps in the engines stays there.
///
/// A method that takes a name panics if there is no process of that name.
pub struct Cluster {
    // In this order: the folder around all others goes last.
    members: Vec<Member>,
    keeper: Supervised,
    options: ClusterOptions,
    prefix: String,
}

impl Cluster {
    /// Starts one, and waits until each process says that it serves.
    pub fn start(engines: Engines<'_>, options: ClusterOptions) -> anyhow::Result<Self> {
        let prefix = random_prefix();
        let folder = supervised::folder("cluster")?;
        let keeper = Supervised::new("the cluster's folder", folder.clone(), Speech::Silent, ["true"])?;
        let own = [
            ("bus.kind", "redis".to_owned()),
            ("redis.url", engines.redis.url()),
            ("redis.prefix", prefix.clone()),
            ("store.kind", "hbase".to_owned()),
            ("hbase.gateways", engines.hbase.gateway().to_string()),
            ("hbase.prefix", prefix.clone()),
            ("catalog.kind", "mysql".to_owned()),
            ("mysql.url", engines.mariadb.url(&prefix)),
            ("xmpp.starttls", "127.0.0.1:0".to_owned()),
            ("xmpp.tls", "127.0.0.1:0".to_owned()),
            ("http.https", "127.0.0.1:0".to_owned()),
            ("telemetry.listen", "127.0.0.1:0".to_owned()),
        ];
        let own = own.into_iter().map(|(key, value)| (key.to_owned(), value));
        let mut settings: Vec<(String, String)> = Vec::new();
        for (key, value) in own.chain(options.settings.iter().cloned()) {
            settings.retain(|(known, _)| *known != key);
            settings.push((key, value));
        }
        let mut cluster = Self { members: Vec::new(), keeper, options: ClusterOptions { settings, ..options }, prefix };
        cluster.prepare(engines.hbase)?;
        let ClusterOptions { middles, fronts, https, .. } = cluster.options;
        for (role, count) in [(Role::Middle, middles), (Role::Front, fronts), (Role::Http, https)] {
            for _ in 0..count {
                cluster.prepare_member(role)?;
            }
        }
        cluster.launch_all()?;
        Ok(cluster)
    }

    /// The names of its processes: middles, then fronts, then those that serve HTTPS, then what was added.
    pub fn names(&self) -> Vec<&str> {
        self.members.iter().map(Member::name).collect()
    }

    /// The names of its processes of one role.
    pub fn of(&self, role: Role) -> Vec<&str> {
        self.members.iter().filter(|member| member.role() == role).map(Member::name).collect()
    }

    /// What the names of this cluster begin with in the engines, and the name of its database.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A setting of every process; `None` if it is as Campanile has it by itself.
    pub fn setting(&self, key: &str) -> Option<&str> {
        self.options.settings.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// Another value for a setting, from the next start of each process on. A listener keeps its address.
    pub fn set(&mut self, key: &str, value: &str) {
        self.options.settings.retain(|(known, _)| known != key);
        self.options.settings.push((key.to_owned(), value.to_owned()));
        for member in &mut self.members {
            member.set(key, value);
        }
    }

    /// Another program for one process, from its next start on.
    pub fn set_binary(&mut self, name: &str, binary: &Path) {
        self.member_mut(name).set_binary(binary);
    }

    /// The data folder of a process.
    pub fn data(&self, name: &str) -> PathBuf {
        self.member(name).data()
    }

    /// The file of keys that middles and fronts share.
    pub fn keys(&self) -> PathBuf {
        self.keeper.folder().join("keys.json")
    }

    /// The address of a listener of a process, by its key; `None` if it has none.
    pub fn address(&self, name: &str, key: &str) -> Option<SocketAddr> {
        self.member(name).address(key)
    }

    /// The id of a process, another one after a restart.
    pub fn pid(&self, name: &str) -> u32 {
        self.member(name).pid()
    }

    /// True while a process runs.
    pub fn runs(&self, name: &str) -> bool {
        self.member(name).runs()
    }

    /// What a process has written since its last start.
    pub fn output(&self, name: &str) -> String {
        self.member(name).output()
    }

    /// The file with all that a process has written.
    pub fn log(&self, name: &str) -> PathBuf {
        self.member(name).log()
    }

    /// The file that runs a process as this does: `sh FILE`.
    pub fn script(&self, name: &str) -> PathBuf {
        self.member(name).script()
    }

    /// Kills a process as a power cut would; it is gone when this returns. Panics if that can't be done.
    pub fn kill(&mut self, name: &str) {
        self.member_mut(name).kill();
    }

    /// Kills all processes at once.
    pub fn kill_all(&mut self) {
        self.members.iter_mut().for_each(Member::kill);
    }

    /// Tells a process to end, waits for that, and returns its exit code. Panics if it takes longer than any drain may.
    pub fn stop(&mut self, name: &str) -> i32 {
        let member = self.member_mut(name);
        member.signal_end();
        member.ended(END_MAX)
    }

    /// Stops all processes, those first that others ask. Returns the exit code of each that was not 0.
    pub fn stop_all(&mut self) -> Vec<(String, i32)> {
        let mut failed = Vec::new();
        for role in [Role::Http, Role::Front, Role::Middle] {
            let mut tier: Vec<_> =
                self.members.iter_mut().filter(|member| member.role() == role && member.runs()).collect();
            for member in &tier {
                member.signal_end();
            }
            failed.extend(tier.iter_mut().map(|member| (member.name().to_owned(), member.ended(END_MAX))));
        }
        failed.retain(|(_, code)| *code != 0);
        failed
    }

    /// Makes a process stand still. Panics if that can't be done.
    pub fn pause(&self, name: &str) {
        self.member(name).pause();
    }

    /// Lets it go on after [`Self::pause`]. Panics if that can't be done.
    pub fn resume(&self, name: &str) {
        self.member(name).resume();
    }

    /// Starts a process again, on the same ports with the same folder, after killing it if it runs; it serves when this
    /// returns. Panics if it does not in time.
    pub fn restart(&mut self, name: &str) {
        let member = self.member_mut(name);
        member.kill();
        member.launch().and_then(|()| member.ready()).expect("a process starts again");
    }

    /// Starts a process again as [`Self::restart`] does, but does not wait for it. [`Self::wait`] does.
    pub fn launch(&mut self, name: &str) {
        let member = self.member_mut(name);
        member.kill();
        member.launch().expect("a process starts again");
    }

    /// Waits until a process serves. Panics if it does not in time.
    pub fn wait(&mut self, name: &str) {
        self.member_mut(name).ready().expect("a process serves");
    }

    /// The same for all at once.
    pub fn restart_all(&mut self) {
        self.kill_all();
        self.launch_all().expect("all processes start again");
    }

    /// Starts one more process and returns its name. Others learn of it from the engines; only where devices are told to
    /// connect stays as it was.
    pub fn add(&mut self, role: Role) -> anyhow::Result<String> {
        self.prepare_member(role)?;
        let certificate = self.certificate();
        let member = self.members.last_mut().context("it was just made")?;
        if let (Role::Front | Role::Http, Some(certificate)) = (role, certificate) {
            member.take_certificate(&certificate)?;
        }
        member.launch()?;
        member.ready()?;
        Ok(member.name().to_owned())
    }

    /// Runs the program to its end, with the settings of the cluster and the data folder of a process: `["app", "list"]`.
    pub fn run(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Output> {
        self.member(name).run(arguments)
    }

    /// What all processes share outside the engines, and what must be there before the first of them.
    fn prepare(&self, hbase: &HBase) -> anyhow::Result<()> {
        let keys = self.keys();
        self.campanile([OsStr::new("keys"), OsStr::new("make"), keys.as_os_str()])?;
        let regions = self.options.regions.to_string();
        let printed = self.campanile(["migrate", "--print-hbase-shell", "--regions", &regions])?;
        // All at once; the gateway would make one after the other.
        hbase.create_tables(&tables::read(&printed)?);
        self.campanile(["migrate"])?;
        Ok(())
    }

    fn prepare_member(&mut self, role: Role) -> anyhow::Result<()> {
        let name = format!("{role}-{}", self.of(role).len() + 1);
        let mut settings = self.options.settings.clone();
        if role == Role::Http {
            settings.push(("xmpp.endpoints".to_owned(), self.endpoints().join(",")));
        } else {
            settings.push(("identity.keys".to_owned(), self.keys().display().to_string()));
        }
        let folder = self.keeper.folder().join(&name);
        self.members.push(Member::new(name, role, folder, &self.options.binary, settings)?);
        Ok(())
    }

    fn endpoints(&self) -> Vec<String> {
        let fronts = self.members.iter().filter(|member| member.role() == Role::Front);
        let of = |(key, tls): (&str, &'static str)| {
            let addresses = fronts.clone().filter_map(move |front| front.listener(key));
            addresses.map(|address| format!("localhost:{}:{tls}", address.port())).collect::<Vec<_>>()
        };
        [("xmpp.tls", "direct"), ("xmpp.starttls", "starttls")].into_iter().flat_map(of).collect()
    }

    /// Starts those that do not run, all at once, and waits until they serve.
    fn launch_all(&mut self) -> anyhow::Result<()> {
        // One makes a certificate of its own CA, which the others take over.
        let first = match self.certificate() {
            None => self.members.iter().position(|member| member.role() != Role::Middle),
            Some(_) => None,
        };
        if let Some(first) = first {
            self.members[first].launch()?;
        }
        let middles = |member: &&mut Member| member.role() == Role::Middle && !member.runs();
        self.members.iter_mut().filter(middles).try_for_each(Member::launch)?;
        if let Some(first) = first {
            let made = self.members[first].certificate_made()?;
            for member in self.members.iter().filter(|member| !member.runs()) {
                member.take_certificate(&made)?;
            }
        }
        self.members.iter_mut().filter(|member| !member.runs()).try_for_each(Member::launch)?;
        thread::scope(|scope| {
            let waiting: Vec<_> = self.members.iter_mut().map(|member| scope.spawn(|| member.ready())).collect();
            waiting.into_iter().try_for_each(|member| member.join().unwrap_or_else(|_| anyhow::bail!("waiting failed")))
        })
    }

    /// The folder with the certificate that is shared, once it is made.
    fn certificate(&self) -> Option<PathBuf> {
        self.members.iter().find_map(Member::certificate)
    }

    /// Runs the program to its end, which must be a good one; what it printed.
    fn campanile(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> anyhow::Result<String> {
        let folder = self.keeper.folder().join("nobody");
        fs::create_dir_all(&folder)?;
        let output = member::command(&self.options.binary, &folder, &self.options.settings)
            .args(arguments)
            .output()
            .with_context(|| format!("running {}", self.options.binary.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {}", self.options.binary.display(), said.trim_end());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn member(&self, name: &str) -> &Member {
        let found = self.members.iter().find(|member| member.name() == name);
        found.unwrap_or_else(|| panic!("there is no {name} among {:?}", self.names()))
    }

    fn member_mut(&mut self, name: &str) -> &mut Member {
        let at = self.members.iter().position(|member| member.name() == name);
        match at {
            Some(at) => &mut self.members[at],
            None => panic!("there is no {name} among {:?}", self.names()),
        }
    }
}

/// A name that no other cluster on the same engines has, now or later.
fn random_prefix() -> String {
    format!("c{:016x}", RandomState::new().build_hasher().finish())
}
