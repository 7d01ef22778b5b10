//! What is measured: one process, or the roles with their engines.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use campanile_ops::admin::App;
use campanile_ops::api::Api;
use campanile_ops::data_folder::DataFolder;
use campanile_ops::socket::Run;
use servers::{Cluster, Engines, Role};
use tempfile::TempDir;

use crate::Figures;

/// Clock ticks of `/proc/<pid>/stat` in a second: 100 on every Linux that we know.
const TICKS_PER_SECOND: f64 = 100.0;

/// Settings of every process.
pub(crate) fn settings() -> Vec<(String, String)> {
    [
        ("http.plain", "127.0.0.1:0"),
        ("log.level", "warn"),
        // Devices of a benchmark come from one address.
        ("limits.http_accounts_per_address_per_minute", "0"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .to_vec()
}

/// A running installation, with an application.
pub(crate) struct Installation {
    pub(crate) app: App,
    pub(crate) ca: PathBuf,
    apis: Vec<Api>,
    plain: Vec<SocketAddr>,
    processes: Processes,
}

enum Processes {
    One { child: Child, run: Run, _folder: TempDir },
    Roles { cluster: Box<Cluster>, engines: BTreeMap<&'static str, u32> },
}

impl Installation {
    /// One process on the embedded stores.
    pub(crate) fn alone() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_campanile"));
        command.arg("serve").arg("--data").arg(folder.path());
        let own = [
            ("xmpp.starttls", "127.0.0.1:0"),
            ("xmpp.tls", "127.0.0.1:0"),
            ("http.https", "127.0.0.1:0"),
            ("telemetry.listen", "127.0.0.1:0"),
        ];
        let own = own.map(|(key, value)| (key.to_owned(), value.to_owned()));
        for (key, value) in own.into_iter().chain(settings()) {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("the binary runs");
        let data = DataFolder::at(folder.path());
        let run = loop {
            match Run::read(&data).expect("run.json is whole") {
                Some(run) => break run,
                None => std::thread::sleep(std::time::Duration::from_millis(20)),
            }
        };
        let app = serde_json::from_slice(&fs::read(data.demo()).expect("a demo application")).expect("an application");
        let ca = run.ca.clone().expect("it has a CA of its own");
        let apis = vec![Api::new(&run.https().expect("it serves HTTPS"), Some(&ca)).expect("a client")];
        let plain = vec![run.listeners["http.plain"]];
        Self { app, ca, apis, plain, processes: Processes::One { child, run, _folder: folder } }
    }

    /// The roles, with the engines that they are on.
    pub(crate) fn of_roles(cluster: Cluster, engines: Engines<'_>) -> Self {
        let https: Vec<String> = cluster.of(Role::Http).into_iter().map(str::to_owned).collect();
        let made = cluster.run(&https[0], &["--json", "app", "create", "com.example.demo"]).expect("the binary runs");
        let app = serde_json::from_slice(&made.stdout).expect("an application");
        let run = |name: &String| Run::read(&DataFolder::at(&cluster.data(name))).expect("whole").expect("it runs");
        let runs: Vec<Run> = https.iter().map(run).collect();
        let ca = runs.iter().find_map(|run| run.ca.clone()).expect("they have a CA of their own");
        let api = |run: &Run| Api::new(&run.https().expect("it serves HTTPS"), Some(&ca)).expect("a client");
        let apis = runs.iter().map(api).collect();
        let plain = runs.iter().map(|run| run.listeners["http.plain"]).collect();
        let engines =
            [("Redis", engines.redis.pid()), ("MariaDB", engines.mariadb.pid()), ("HBase", engines.hbase.pid())].into();
        Self { app, ca, apis, plain, processes: Processes::Roles { cluster: Box::new(cluster), engines } }
    }

    pub(crate) fn secret(&self) -> &str {
        self.app.secret.as_deref().expect("a new application tells its secret")
    }

    /// The plain listeners of the HTTP frontends.
    pub(crate) fn plain(&self) -> &[SocketAddr] {
        &self.plain
    }

    /// A client of one of the HTTP frontends, in turn.
    pub(crate) fn api(&self, number: usize) -> &Api {
        &self.apis[number % self.apis.len()]
    }

    /// Sends, and expects it to be accepted.
    pub(crate) async fn send(&self, path: &'static str, form: &[(&str, &str)]) {
        let (api, secret) = (self.api(0).clone(), self.secret().to_owned());
        let form: Vec<(String, String)> = form.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let sent = tokio::task::spawn_blocking(move || {
            let form: Vec<(&str, &str)> = form.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            api.post(path, Some(&secret), &form)
        });
        let envelope = sent.await.expect("runs").expect("the API answers");
        assert_eq!(envelope.code, 0, "{envelope:?}");
    }

    /// The CPU time of each process so far.
    pub(crate) fn cpu(&self) -> Cpu {
        let mut spent = BTreeMap::new();
        match &self.processes {
            Processes::One { child, .. } => {
                spent.insert("all", seconds(child.id()));
            }
            Processes::Roles { cluster, engines } => {
                for (role, name) in [(Role::Front, "fronts"), (Role::Middle, "middles"), (Role::Http, "HTTP frontends")]
                {
                    let pids = cluster.of(role).into_iter().filter(|name| cluster.runs(name));
                    spent.insert(name, pids.map(|name| seconds(cluster.pid(name))).sum());
                }
                spent.extend(engines.iter().map(|(name, pid)| (*name, seconds(*pid))));
            }
        }
        Cpu(spent)
    }

    /// The sums of these metrics over all middles.
    pub(crate) fn figures(&self, names: &[&'static str]) -> Figures {
        let addresses: Vec<SocketAddr> = match &self.processes {
            Processes::One { run, .. } => vec![run.listeners["telemetry.listen"]],
            Processes::Roles { cluster, .. } => {
                let middles = cluster.of(Role::Middle);
                middles.iter().filter_map(|name| cluster.address(name, "telemetry.listen")).collect()
            }
        };
        let page = |address| {
            let mut answer = ureq::get(&format!("http://{address}/metrics")).call().expect("telemetry answers");
            answer.body_mut().read_to_string().expect("a page")
        };
        let pages: Vec<String> = addresses.into_iter().map(page).collect();
        let sum = |name: &&'static str| {
            let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
            let lines = pages.iter().flat_map(|page| page.lines()).filter(of_name);
            (*name, lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
        };
        names.iter().map(sum).collect()
    }

    /// The cluster; there is one.
    pub(crate) fn cluster(&self) -> &Cluster {
        match &self.processes {
            Processes::Roles { cluster, .. } => cluster,
            Processes::One { .. } => panic!("it is one process"),
        }
    }

    fn cluster_mut(&mut self) -> &mut Cluster {
        match &mut self.processes {
            Processes::Roles { cluster, .. } => cluster,
            Processes::One { .. } => panic!("it is one process"),
        }
    }

    pub(crate) fn kill(&mut self, name: &str) {
        self.cluster_mut().kill(name);
    }

    pub(crate) fn restart(&mut self, name: &str) {
        self.cluster_mut().restart(name);
    }

    /// Stops all processes; true if each ended well.
    pub(crate) fn stop(mut self) -> bool {
        self.cluster_mut().stop_all().is_empty()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        if let Self::One { child, .. } = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// CPU seconds by process.
pub(crate) struct Cpu(BTreeMap<&'static str, f64>);

impl Cpu {
    pub(crate) fn since(&self, before: &Self) -> Self {
        let since = |(name, now): (&&'static str, &f64)| (*name, now - before.0.get(name).copied().unwrap_or(0.0));
        Self(self.0.iter().map(since).collect())
    }

    /// Of our own processes together.
    pub(crate) fn ours(&self) -> f64 {
        let engines = ["Redis", "MariaDB", "HBase"];
        self.0.iter().filter(|(name, _)| !engines.contains(name)).map(|(_, seconds)| seconds).sum()
    }

    /// Who took which part.
    pub(crate) fn shares(&self) -> String {
        let all: f64 = self.0.values().sum();
        let mut text = format!("{all:.1} CPU s");
        for (name, seconds) in &self.0 {
            let _ = write!(text, ", {name} {:.0} %", 100.0 * seconds / all.max(0.01));
        }
        text
    }
}

fn seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).unwrap_or_default();
    let Some((_, after_name)) = stat.rsplit_once(')') else { return 0.0 };
    let ticks = |field: usize| -> f64 {
        after_name.split_whitespace().nth(field).and_then(|ticks| ticks.parse().ok()).unwrap_or(0.0)
    };
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
}
