//! The server as a process, and the other commands of the same binary.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use campanile_ops::admin::App;
use campanile_ops::api::{Api, Envelope};
use campanile_ops::data_folder::DataFolder;
use campanile_ops::socket::Run;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use tempfile::TempDir;

use super::wait_for;

const BINARY: &str = env!("CARGO_BIN_EXE_campanile");

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

/// The same, which takes a write past RLIMIT_FSIZE for one that failed: the kernel would end it by a signal first. A shell
/// can ignore a signal for the program it becomes.
fn campanile_on_a_disk_that_fills() -> Command {
    let mut command = without_settings(Command::new("sh"));
    command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\"", BINARY]);
    command
}

fn without_settings(mut command: Command) -> Command {
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
    folder: TempDir,
    settings: Vec<(String, String)>,
    binary: fn() -> Command,
    child: Option<Child>,
    run: Run,
}

impl Server {
    /// A server on free ports that is ready.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with settings, which win over the harness's own.
    pub(crate) fn start_with(settings: &[(&str, &str)]) -> Self {
        Self::start_as(campanile, settings)
    }

    /// The same on a disk that [`Server::limit_files_to`] can fill.
    pub(crate) fn start_on_a_disk_that_fills(settings: &[(&str, &str)]) -> Self {
        Self::start_as(campanile_on_a_disk_that_fills, settings)
    }

    fn start_as(binary: fn() -> Command, settings: &[(&str, &str)]) -> Self {
        let settings = FREE_PORTS.iter().chain(settings).map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let nothing = Run { pid: 0, role: String::new(), version: String::new(), listeners: [].into(), ca: None };
        let folder = tempfile::tempdir().expect("a folder");
        let mut server = Self { folder, settings: settings.collect(), binary, child: None, run: nothing };
        server.launch();
        server
    }

    /// Kills the server as nothing else can: it gets no chance to say or write anything.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("a child can be killed");
            child.wait().expect("a child can be waited for");
        }
    }

    /// Starts it again on the same folder and the same ports, so that clients find it where it was.
    pub(crate) fn restart(&mut self) {
        self.kill();
        for (key, address) in self.run.listeners.clone() {
            self.set(&key, &address.to_string());
        }
        self.launch();
    }

    /// Another value for a setting, from the next start on.
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        self.settings.retain(|(known, _)| known != key);
        self.settings.push((key.to_owned(), value.to_owned()));
    }

    /// Ends it by SIGTERM and waits for its end.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        let mut child = self.child.take().expect("it runs");
        wait_for("the server ends after SIGTERM", || child.try_wait().expect("a child can be waited for"))
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).expect("a child can be sent a signal");
    }

    /// From now on none of its files grows over so many bytes, as on a full disk; `None`: they grow again.
    pub(crate) fn limit_files_to(&self, bytes: Option<u64>) {
        let maximum = getrlimit(Resource::Fsize).maximum;
        let pid = Pid::from_child(self.child.as_ref().expect("it runs"));
        let limit = Rlimit { current: bytes.or(maximum), maximum };
        prlimit(Some(pid), Resource::Fsize, limit).expect("a child's limits can be set");
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Its data folder.
    pub(crate) fn data(&self) -> &Path {
        self.folder.path()
    }

    /// The paths in its data folder.
    pub(crate) fn folder(&self) -> DataFolder {
        DataFolder::at(self.folder.path())
    }

    /// The CA that its clients trust.
    pub(crate) fn ca(&self) -> PathBuf {
        self.run.ca.clone().expect("it has a CA of its own")
    }

    /// The address of a listener, by its key.
    pub(crate) fn address(&self, key: &str) -> SocketAddr {
        *self.run.listeners.get(key).unwrap_or_else(|| panic!("{key} is not bound"))
    }

    /// Where its HTTPS API is.
    pub(crate) fn https(&self) -> String {
        self.run.https().expect("it serves HTTPS")
    }

    /// A client of its API that trusts its CA.
    pub(crate) fn api(&self) -> Api {
        Api::new(&self.https(), Some(&self.ca())).expect("a client of the API")
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
        let url = format!("http://{}{path}", self.address("telemetry.listen"));
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        let mut response = agent.get(&url).call().expect("telemetry answers");
        (response.status().as_u16(), response.body_mut().read_to_string().expect("a page"))
    }

    /// The sum of a metric over all its labels; 0 while it has none.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let (_, page) = self.telemetry("/metrics");
        let of_metric = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
        let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
        page.lines().filter(of_metric).filter_map(value).sum()
    }

    /// What it has written to stdout and stderr since its last start.
    pub(crate) fn output(&self) -> (String, String) {
        let read = |name| fs::read_to_string(self.data().join(name)).unwrap_or_default();
        (read("stdout"), read("stderr"))
    }

    fn launch(&mut self) {
        // What a killed server left behind says nothing about the next one.
        let _ = fs::remove_file(self.folder().run());
        wait_for("the server is ready", || {
            if self.child.is_none() {
                self.child = Some(self.spawn());
            }
            let child = self.child.as_mut().expect("it was just started");
            if let Some(status) = child.try_wait().expect("a child can be waited for") {
                let (_, said) = self.output();
                // A port of before may be taken by a client of another test for a moment.
                assert!(said.contains("in use"), "the server ended with {status}: {said}");
                self.child = None;
                return None;
            }
            let run = Run::read(&self.folder()).expect("run.json is whole")?;
            (run.pid == self.pid()).then(|| self.run = run)
        });
    }

    fn spawn(&self) -> Child {
        let file = |name| File::create(self.data().join(name)).expect("a file for its output");
        let mut command = (self.binary)();
        command.arg("serve").arg("--data").arg(self.data());
        for (key, value) in &self.settings {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        command.stdout(file("stdout")).stderr(file("stderr")).spawn().expect("the binary runs")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let (_, said) = self.output();
            let last: Vec<_> = said.lines().rev().take(40).collect();
            eprintln!("the server's last words:");
            last.iter().rev().for_each(|line| eprintln!("  {line}"));
        }
    }
}
