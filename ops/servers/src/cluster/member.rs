//! One process of a cluster.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use super::Role;
use crate::ports;
use crate::supervised::{Speech, Supervised};

/// From the start of a process until it serves.
const START_MAX: Duration = Duration::from_mins(2);
/// What is between the address and the port of a listener that may be anywhere.
const ANY_PORT: &str = ":0";

pub(super) struct Member {
    name: String,
    role: Role,
    process: Supervised,
    binary: PathBuf,
    settings: BTreeMap<String, String>,
    /// What `run.json` said at the last start.
    listeners: BTreeMap<String, SocketAddr>,
    /// How long the log was at the last start.
    log_before: usize,
    runs: bool,
}

impl Member {
    /// Not started yet. The folder becomes its own.
    pub(super) fn new(
        name: String,
        role: Role,
        folder: PathBuf,
        binary: &Path,
        settings: Vec<(String, String)>,
    ) -> anyhow::Result<Self> {
        fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        let script = folder.join("run");
        let process = Supervised::new(name.clone(), folder, Speech::Silent, ["sh".into(), script])?;
        let (settings, listeners) = (settings.into_iter().collect(), BTreeMap::new());
        let mut member =
            Self { name, role, process, binary: binary.to_owned(), settings, listeners, log_before: 0, runs: false };
        for (key, value) in &mut member.settings {
            if let (true, Some(address)) = (listens(role, key), value.strip_suffix(ANY_PORT)) {
                *value = format!("{address}:{}", ports::free()?);
            }
        }
        Ok(member)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn role(&self) -> Role {
        self.role
    }

    pub(super) fn data(&self) -> PathBuf {
        self.process.folder().join("data")
    }

    pub(super) fn script(&self) -> PathBuf {
        self.process.folder().join("run")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.process.folder().join("log")
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(super) fn runs(&self) -> bool {
        self.runs && !self.process.has_ended()
    }

    pub(super) fn output(&self) -> String {
        let written = fs::read(self.log()).unwrap_or_default();
        String::from_utf8_lossy(written.get(self.log_before..).unwrap_or_default()).into_owned()
    }

    /// Where it listens, as it has said.
    pub(super) fn address(&self, key: &str) -> Option<SocketAddr> {
        self.listeners.get(key).copied()
    }

    /// Where it will listen, as it was told.
    pub(super) fn listener(&self, key: &str) -> Option<SocketAddr> {
        self.settings.get(key)?.parse().ok()
    }

    pub(super) fn set(&mut self, key: &str, value: &str) {
        if !(listens(self.role, key) && value.ends_with(ANY_PORT) && self.settings.contains_key(key)) {
            self.settings.insert(key.to_owned(), value.to_owned());
        }
    }

    pub(super) fn set_binary(&mut self, binary: &Path) {
        binary.clone_into(&mut self.binary);
    }

    /// Starts it; [`Self::ready`] waits.
    pub(super) fn launch(&mut self) -> anyhow::Result<()> {
        // What a killed process left behind says nothing about the next one.
        let _ = fs::remove_file(self.data().join("run.json"));
        self.log_before = fs::metadata(self.log()).map_or(0, |log| usize::try_from(log.len()).unwrap_or(0));
        fs::write(self.script(), self.written()).with_context(|| format!("writing the script of {}", self.name))?;
        self.process.start()?;
        self.runs = true;
        Ok(())
    }

    /// Waits until it serves.
    pub(super) fn ready(&mut self) -> anyhow::Result<()> {
        let path = self.data().join("run.json");
        let mut said = None;
        self.process.until_it_answers(START_MAX, || {
            said = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
            said.as_ref().is_some_and(|run| run["pid"] == self.process.pid())
        })?;
        let listeners = said.as_ref().and_then(|run| run["listeners"].as_object()).context("run.json has listeners")?;
        let address = |address: &Value| address.as_str()?.parse().ok();
        self.listeners = listeners.iter().filter_map(|(key, value)| Some((key.clone(), address(value)?))).collect();
        Ok(())
    }

    pub(super) fn kill(&mut self) {
        if self.runs {
            self.process.kill().expect("a process can be killed");
            self.runs = false;
        }
    }

    pub(super) fn signal_end(&self) {
        self.process.terminate().expect("a process can be told to end");
    }

    /// Waits until it has ended; its exit code.
    pub(super) fn ended(&mut self, limit: Duration) -> i32 {
        self.runs = false;
        self.process.ended(limit).expect("a process ends when it is told to")
    }

    pub(super) fn pause(&self) {
        self.process.pause().expect("a process can be paused");
    }

    pub(super) fn resume(&self) {
        self.process.resume().expect("a process can go on");
    }

    /// The folder with its certificate, once that is made.
    pub(super) fn certificate(&self) -> Option<PathBuf> {
        let folder = self.data().join("tls");
        // This is written last.
        folder.join("server.json").exists().then_some(folder)
    }

    /// Waits until it has made its certificate.
    pub(super) fn certificate_made(&self) -> anyhow::Result<PathBuf> {
        self.process.until_it_answers(START_MAX, || self.certificate().is_some())?;
        self.certificate().context("it was there")
    }

    /// Takes over another one's certificate, before its first start.
    pub(super) fn take_certificate(&self, from: &Path) -> anyhow::Result<()> {
        let to = self.data().join("tls");
        if to.exists() {
            return Ok(());
        }
        let copy = || -> std::io::Result<()> {
            fs::create_dir_all(&to)?;
            for file in fs::read_dir(from)? {
                let file = file?;
                fs::copy(file.path(), to.join(file.file_name()))?;
            }
            Ok(())
        };
        copy().with_context(|| format!("copying {} to {}", from.display(), to.display()))
    }

    /// Runs the program to its end on the data folder.
    pub(super) fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let output = command(&self.binary, &self.data(), &[]).args(arguments).output();
        output.with_context(|| format!("running {}", self.binary.display()))
    }

    /// A script that becomes the process.
    fn written(&self) -> String {
        let mut script = format!("# Runs {} as its cluster does: no settings come from the environment.\n", self.name);
        script += "for name in $(env | sed -n 's/^\\(CAMPANILE_[A-Za-z0-9_]*\\)=.*/\\1/p'); do unset \"$name\"; done\n";
        let quoted = |word: &str| format!("'{}'", word.replace('\'', r"'\''"));
        let (binary, data) = (self.binary.display().to_string(), self.data().display().to_string());
        let _ = write!(script, "exec {} serve --role {} --data {}", quoted(&binary), self.role, quoted(&data));
        for (key, value) in &self.settings {
            let _ = write!(script, " \\\n    --set {}", quoted(&format!("{key}={value}")));
        }
        script + "\n"
    }
}

/// Whether a role listens where this key says.
fn listens(role: Role, key: &str) -> bool {
    let keys: &[_] = match role {
        Role::Middle => &[],
        Role::Front => &["xmpp.starttls", "xmpp.tls", "xmpp.plain"],
        Role::Http => &["http.https", "http.plain"],
    };
    key == "telemetry.listen" || keys.contains(&key)
}

/// The program with a data folder and settings, and none from the environment.
pub(super) fn command(binary: &Path, data: &Path, settings: &[(String, String)]) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CAMPANILE_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).arg("--data").arg(data);
    for (key, value) in settings {
        command.arg("--set").arg(format!("{key}={value}"));
    }
    command
}
