//! `campanile device` as a process.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::server::{Server, campanile};
use super::wait_for;

/// A device on the terminal, of the demo application. Dropping it kills it.
pub(crate) struct TerminalDevice {
    child: Child,
    lines: Arc<Mutex<Vec<Value>>>,
    reader: Option<JoinHandle<()>>,
}

impl TerminalDevice {
    /// Starts it with these arguments, such as `["--alias", "a", "--topic", "t"]`, and waits until it is ready.
    pub(crate) fn start(server: &Server, arguments: &[&str]) -> Self {
        let device = Self::launch(server, arguments);
        device.regid();
        device
    }

    /// Starts it.
    pub(crate) fn launch(server: &Server, arguments: &[&str]) -> Self {
        let mut child = campanile()
            .arg("--data")
            .arg(server.data())
            .args(["--json", "device", "--app", "com.example.demo"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let lines: Arc<Mutex<Vec<Value>>> = Arc::default();
        let (stdout, sink) = (child.stdout.take().expect("it is piped"), Arc::clone(&lines));
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                sink.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Self { child, lines, reader: Some(reader) }
    }

    /// Everything that it has printed.
    pub(crate) fn lines(&self) -> Vec<Value> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What it has printed of one event.
    pub(crate) fn events(&self, event: &str) -> Vec<Value> {
        self.lines().into_iter().filter(|line| line["event"] == event).collect()
    }

    /// Its registration; waits until it is ready.
    pub(crate) fn regid(&self) -> String {
        wait_for("the device is ready", || {
            self.events("ready").last().and_then(|ready| ready["regid"].as_str()).map(str::to_owned)
        })
    }

    /// The payloads of all pushes so far, in order.
    pub(crate) fn payloads(&self) -> Vec<String> {
        let payload = |push: &Value| push["payload"].as_str().unwrap_or_default().to_owned();
        self.events("push").iter().map(payload).collect()
    }

    /// Waits until a push with this payload has been printed.
    pub(crate) fn wait_for_push(&self, payload: &str) -> Value {
        wait_for(format!("a push {payload:?}"), || {
            self.events("push").into_iter().find(|push| push["payload"] == payload)
        })
    }

    /// Kills it, so that it gets no chance to say or write anything, and waits for the last line that it had printed.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a child can be waited for");
        if let Some(reader) = self.reader.take() {
            reader.join().expect("it reads to the end");
        }
    }

    /// Ends it as Ctrl-C does, and waits for its end.
    pub(crate) fn stop(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::INT).expect("a child can be sent a signal");
        let status = wait_for("the device ends", || self.child.try_wait().expect("a child can be waited for"));
        assert!(status.success(), "{status}");
    }
}

impl Drop for TerminalDevice {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
