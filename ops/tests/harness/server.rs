//! The server, and the other commands of the same binary. With `WIRING=distributed` in the environment a server is six
//! processes on Redis, MariaDB and HBase, one for each role twice; else it is one process on the embedded stores. A test
//! sees no difference.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use campanile_ops::admin::App;
use campanile_ops::api::{Api, Envelope};
use campanile_ops::config::variable;
use campanile_ops::data_folder::DataFolder;
use idl::clock::SystemClock;
use rustix::process::Signal;
use schema::catalog::Catalog;
use schema::catalog::sqlite::SqliteCatalog;
use schema::sorted::SortedStore;
use schema::sorted::embedded::{EmbeddedOptions, EmbeddedStore};
use servers::{Cluster, Engines};

use super::one_process::{OneProcess, campanile_on_a_disk_that_fills};
use super::roles::{Roles, shared_engines};

/// The binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_campanile");

/// Listeners on any free port of loopback.
const FREE_PORTS: &[(&str, &str)] = &[
    ("xmpp.starttls", "127.0.0.1:0"),
    ("xmpp.tls", "127.0.0.1:0"),
    ("http.https", "127.0.0.1:0"),
    ("telemetry.listen", "127.0.0.1:0"),
    // Devices of a test come from one address.
    ("limits.http_accounts_per_address_per_minute", "0"),
];

/// The binary under test, without the settings of whoever runs the tests.
pub(crate) fn campanile() -> Command {
    without_settings(Command::new(BINARY))
}

pub(super) fn without_settings(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CAMPANILE_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Runs the binary to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    campanile().args(arguments).output().expect("the binary runs")
}

/// What a process wrote to a stream, as text.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A server with a data folder of its own. Dropping it kills it and takes the folder away; when the test has failed, its
/// last words are shown.
pub(crate) struct Server {
    wired: Wired,
    /// Of the next client of the HTTPS API.
    turn: AtomicUsize,
}

enum Wired {
    Whole(OneProcess),
    ByRoles(Roles),
}

impl Server {
    /// A server on free ports that is ready.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with settings, which win over the harness's own.
    pub(crate) fn start_with(settings: &[(&str, &str)]) -> Self {
        match variable("WIRING").as_deref() {
            None | Some("" | "embedded") => Self::start_whole(settings),
            Some("distributed") => {
                let engines = shared_engines().expect("the engines are installed: ops/test installs them");
                Self::start_by_roles(engines, settings)
            }
            Some(other) => panic!("WIRING is {other:?}; \"distributed\" and \"embedded\" are known"),
        }
    }

    /// One process, whatever the wiring of the other tests: for what is about that process or its disk.
    pub(crate) fn start_whole(settings: &[(&str, &str)]) -> Self {
        Self::of(Wired::Whole(OneProcess::start(campanile, all(settings))))
    }

    /// The same on a disk that [`Server::limit_files_to`] can fill.
    pub(crate) fn start_on_a_disk_that_fills(settings: &[(&str, &str)]) -> Self {
        Self::of(Wired::Whole(OneProcess::start(campanile_on_a_disk_that_fills, all(settings))))
    }

    /// Six processes on these engines.
    pub(crate) fn start_by_roles(engines: Engines<'_>, settings: &[(&str, &str)]) -> Self {
        Self::of(Wired::ByRoles(Roles::start(engines, all(settings))))
    }

    fn of(wired: Wired) -> Self {
        Self { wired, turn: AtomicUsize::new(0) }
    }

    /// Its processes. Panics if it is one.
    pub(crate) fn cluster(&self) -> &Cluster {
        match &self.wired {
            Wired::Whole(_) => panic!("it is one process"),
            Wired::ByRoles(roles) => &roles.cluster,
        }
    }

    /// Its processes, to do something with them. Panics if it is one.
    pub(crate) fn cluster_mut(&mut self) -> &mut Cluster {
        match &mut self.wired {
            Wired::Whole(_) => panic!("it is one process"),
            Wired::ByRoles(roles) => &mut roles.cluster,
        }
    }

    /// Kills the server as nothing else can: it gets no chance to say or write anything.
    pub(crate) fn kill(&mut self) {
        match &mut self.wired {
            Wired::Whole(process) => process.kill(),
            Wired::ByRoles(roles) => roles.cluster.kill_all(),
        }
    }

    /// Starts it again on the same folder and the same ports, so that clients find it where it was.
    pub(crate) fn restart(&mut self) {
        match &mut self.wired {
            Wired::Whole(process) => process.restart(),
            Wired::ByRoles(roles) => roles.cluster.restart_all(),
        }
    }

    /// Another value for a setting, from the next start on.
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        match &mut self.wired {
            Wired::Whole(process) => process.set(key, value),
            Wired::ByRoles(roles) => roles.cluster.set(key, value),
        }
    }

    /// Ends it by SIGTERM and waits for its end.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        match &mut self.wired {
            Wired::Whole(process) => process.stop(),
            Wired::ByRoles(roles) => roles.stop(),
        }
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        match &self.wired {
            Wired::Whole(process) => process.signal(signal),
            Wired::ByRoles(roles) => roles.signal(signal),
        }
    }

    /// From now on none of its files grows over so many bytes, as on a full disk; `None`: they grow again.
    pub(crate) fn limit_files_to(&self, bytes: Option<u64>) {
        match &self.wired {
            Wired::Whole(process) => process.limit_files_to(bytes),
            Wired::ByRoles(_) => panic!("it keeps nothing in files"),
        }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        match &self.wired {
            Wired::Whole(process) => process.pid(),
            Wired::ByRoles(roles) => roles.pid(),
        }
    }

    /// Its data folder.
    pub(crate) fn data(&self) -> &Path {
        match &self.wired {
            Wired::Whole(process) => process.data(),
            Wired::ByRoles(roles) => roles.data(),
        }
    }

    /// The paths in its data folder.
    pub(crate) fn folder(&self) -> DataFolder {
        DataFolder::at(self.data())
    }

    /// The CA that its clients trust.
    pub(crate) fn ca(&self) -> PathBuf {
        match &self.wired {
            Wired::Whole(process) => process.ca().expect("it has a CA of its own"),
            Wired::ByRoles(roles) => roles.ca(),
        }
    }

    /// The address of a listener, by its key.
    pub(crate) fn address(&self, key: &str) -> SocketAddr {
        let address = match &self.wired {
            Wired::Whole(process) => process.address(key),
            Wired::ByRoles(roles) => roles.address(key),
        };
        address.unwrap_or_else(|| panic!("{key} is not bound"))
    }

    /// Where its HTTPS API is.
    pub(crate) fn https(&self) -> String {
        format!("https://localhost:{}", self.address("http.https").port())
    }

    /// A client of its API that trusts its CA. Where several processes serve the API, clients take turns.
    pub(crate) fn api(&self) -> Api {
        let base = match &self.wired {
            Wired::Whole(_) => self.https(),
            Wired::ByRoles(roles) => {
                let https = roles.https();
                let turn = self.turn.fetch_add(1, Ordering::Relaxed);
                format!("https://localhost:{}", https[turn % https.len()].port())
            }
        };
        Api::new(&base, Some(&self.ca())).expect("a client of the API")
    }

    /// The demo application, with its key and secret.
    pub(crate) fn demo(&self) -> App {
        let bytes = fs::read(self.folder().demo()).expect("the first start makes a demo application");
        serde_json::from_slice(&bytes).expect("an application")
    }

    /// Sends as the demo application's server and expects it to be accepted; returns the message's id.
    pub(crate) fn send(&self, path: &str, form: &[(&str, &str)]) -> String {
        let secret = self.demo().secret.expect("the demo's secret is kept");
        let envelope = self.api().post(path, Some(&secret), form).expect("the API answers");
        assert_eq!(envelope.code, 0, "{path} was not accepted: {envelope:?}");
        envelope.data["id"].as_str().expect("an accepted message has an id").to_owned()
    }

    /// Posts as the demo application's server, whatever comes of it.
    pub(crate) fn post(&self, path: &str, form: &[(&str, &str)]) -> Envelope {
        let secret = self.demo().secret.expect("the demo's secret is kept");
        self.api().post(path, Some(&secret), form).expect("the API answers")
    }

    /// Runs another command of the binary on this server's data folder.
    pub(crate) fn command(&self, arguments: &[&str]) -> Output {
        campanile().arg("--data").arg(self.data()).args(arguments).output().expect("the binary runs")
    }

    /// Runs a command that must succeed, and reads the lines of JSON that it prints.
    pub(crate) fn json(&self, arguments: &[&str]) -> Vec<serde_json::Value> {
        let output = self.command(&[&["--json"], arguments].concat());
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }

    /// Gets a page of its telemetry listener: status and body.
    pub(crate) fn telemetry(&self, path: &str) -> (u16, String) {
        page(self.address("telemetry.listen"), path)
    }

    /// The sum of a metric over all its labels, and over all processes; of moments the latest. 0 while it has none.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let listeners = match &self.wired {
            Wired::Whole(_) => vec![self.address("telemetry.listen")],
            Wired::ByRoles(roles) => roles.telemetry(),
        };
        let sums = listeners.into_iter().map(|listener| sum(&page(listener, "/metrics").1, name));
        let is_moment = name.split('{').next().is_some_and(|name| name.ends_with("_last_run_ms"));
        if is_moment { sums.fold(0.0, f64::max) } else { sums.sum() }
    }

    /// The sum of a metric of one process over all its labels. Panics if there are no processes of roles.
    pub(crate) fn metric_of(&self, process: &str, name: &str) -> f64 {
        sum(&self.telemetry_of(process, "/metrics").1, name)
    }

    /// Gets a page of the telemetry listener of one process: status and body.
    pub(crate) fn telemetry_of(&self, process: &str, path: &str) -> (u16, String) {
        page(self.cluster().address(process, "telemetry.listen").expect("it tells how it is"), path)
    }

    /// What it has written to stdout and stderr since its last start.
    pub(crate) fn output(&self) -> (String, String) {
        match &self.wired {
            Wired::Whole(process) => process.output(),
            Wired::ByRoles(roles) => (String::new(), roles.output()),
        }
    }

    /// What its sorted store holds, while it is stopped.
    pub(crate) async fn sorted(&self) -> Arc<dyn SortedStore> {
        match &self.wired {
            Wired::Whole(_) => {
                let options = EmbeddedOptions::default();
                let store = EmbeddedStore::open(&self.folder().store(), Arc::new(SystemClock), options);
                Arc::new(store.expect("the server has left its store"))
            }
            Wired::ByRoles(roles) => roles.sorted().await,
        }
    }

    /// What its catalog holds, while it is stopped.
    pub(crate) async fn catalog(&self) -> Arc<dyn Catalog> {
        match &self.wired {
            Wired::Whole(_) => Arc::new(SqliteCatalog::open(&self.folder().catalog()).expect("the catalog")),
            Wired::ByRoles(roles) => roles.catalog().await,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.kill();
            let (_, said) = self.output();
            let last: Vec<_> = said.lines().rev().take(40).collect();
            eprintln!("the server's last words:");
            last.iter().rev().for_each(|line| eprintln!("  {line}"));
        }
    }
}

/// The harness's settings with a test's.
fn all(settings: &[(&str, &str)]) -> Vec<(String, String)> {
    FREE_PORTS.iter().chain(settings).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// The sum of a metric over all its labels; 0 while it has none.
fn sum(page: &str, name: &str) -> f64 {
    let of_metric = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
    let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
    page.lines().filter(of_metric).filter_map(value).sum()
}

fn page(listener: SocketAddr, path: &str) -> (u16, String) {
    let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    let mut response = agent.get(format!("http://{listener}{path}")).call().expect("telemetry answers");
    (response.status().as_u16(), response.body_mut().read_to_string().expect("a page"))
}
