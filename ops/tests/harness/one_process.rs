//! The whole server as one process, on the embedded stores.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

use campanile_ops::data_folder::DataFolder;
use campanile_ops::socket::Run;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use tempfile::TempDir;

use super::server::{BINARY, without_settings};
use super::wait_for;

/// The binary, which takes a write past RLIMIT_FSIZE for one that failed: the kernel would end it by a signal first. A shell
/// can ignore a signal for the program it becomes.
pub(super) fn campanile_on_a_disk_that_fills() -> Command {
    let mut command = without_settings(Command::new("sh"));
    command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\"", BINARY]);
    command
}

/// A process of the role `all` with a data folder of its own. Dropping it kills it and takes the folder away.
pub(super) struct OneProcess {
    folder: TempDir,
    settings: Vec<(String, String)>,
    binary: fn() -> Command,
    child: Option<Child>,
    run: Run,
}

impl OneProcess {
    /// Started and ready.
    pub(super) fn start(binary: fn() -> Command, settings: Vec<(String, String)>) -> Self {
        let nothing = Run { pid: 0, role: String::new(), version: String::new(), listeners: [].into(), ca: None };
        let folder = tempfile::tempdir().expect("a folder");
        let mut process = Self { folder, settings, binary, child: None, run: nothing };
        process.launch();
        process
    }

    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("a child can be killed");
            child.wait().expect("a child can be waited for");
        }
    }

    pub(super) fn restart(&mut self) {
        self.kill();
        for (key, address) in self.run.listeners.clone() {
            self.set(&key, &address.to_string());
        }
        self.launch();
    }

    pub(super) fn set(&mut self, key: &str, value: &str) {
        self.settings.retain(|(known, _)| known != key);
        self.settings.push((key.to_owned(), value.to_owned()));
    }

    pub(super) fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        let mut child = self.child.take().expect("it runs");
        wait_for("the server ends after SIGTERM", || child.try_wait().expect("a child can be waited for"))
    }

    pub(super) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).expect("a child can be sent a signal");
    }

    pub(super) fn limit_files_to(&self, bytes: Option<u64>) {
        let maximum = getrlimit(Resource::Fsize).maximum;
        let pid = Pid::from_child(self.child.as_ref().expect("it runs"));
        let limit = Rlimit { current: bytes.or(maximum), maximum };
        prlimit(Some(pid), Resource::Fsize, limit).expect("a child's limits can be set");
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    pub(super) fn data(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn ca(&self) -> Option<PathBuf> {
        self.run.ca.clone()
    }

    pub(super) fn address(&self, key: &str) -> Option<SocketAddr> {
        self.run.listeners.get(key).copied()
    }

    /// What it has written to stdout and stderr since its last start.
    pub(super) fn output(&self) -> (String, String) {
        let read = |name| fs::read_to_string(self.data().join(name)).unwrap_or_default();
        (read("stdout"), read("stderr"))
    }

    fn launch(&mut self) {
        let folder = DataFolder::at(self.data());
        // What a killed server left behind says nothing about the next one.
        let _ = fs::remove_file(folder.run());
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
            let run = Run::read(&folder).expect("run.json is whole")?;
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

impl Drop for OneProcess {
    fn drop(&mut self) {
        self.kill();
    }
}
