//! A client's program as a process, which prints a line of JSON for each event.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, spawn};

use serde_json::Value;

use crate::harness::wait_for;

/// A running program. Dropping it kills it.
pub(crate) struct Program {
    pub(crate) child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Program {
    /// Starts one that reads nothing.
    pub(crate) fn start(command: &mut Command) -> Self {
        Self::start_reading(command.stdin(Stdio::null()))
    }

    /// Starts one, whose input the caller has chosen.
    pub(crate) fn start_reading(command: &mut Command) -> Self {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the client's program runs");
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let stdout: Box<dyn Read + Send> = Box::new(child.stdout.take().expect("it is piped"));
        let stderr: Box<dyn Read + Send> = Box::new(child.stderr.take().expect("it is piped"));
        let keep = |stream| {
            let kept = Arc::clone(&lines);
            spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    kept.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                }
            })
        };
        let readers = vec![keep(stdout), keep(stderr)];
        Self { child, lines, readers }
    }

    /// Everything that it has printed, on either stream.
    pub(crate) fn said(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What it has printed of these events.
    pub(crate) fn events(&self, events: &[&str]) -> Vec<Value> {
        let lines = self.said();
        let parsed = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        parsed.filter(|line| line["event"].as_str().is_some_and(|event| events.contains(&event))).collect()
    }

    /// Waits for the event of that place among these events, unless the program ends without it.
    pub(crate) fn wait_for_event(&mut self, events: &[&str], place: usize) -> Value {
        wait_for(format!("the client's {events:?}"), || {
            let ended = self.child.try_wait().expect("a child can be waited for");
            if ended.is_some() {
                // Its last words may not have been read yet.
                self.read_to_the_end();
            }
            let found = self.events(events).get(place).cloned();
            assert!(found.is_some() || ended.is_none(), "the client ended with {ended:?}: {:#?}", self.said());
            found
        })
    }

    /// Waits for its end and for all that it printed.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let status = wait_for("the client ends", || self.child.try_wait().expect("a child can be waited for"));
        self.read_to_the_end();
        status
    }

    fn read_to_the_end(&mut self) {
        for reader in self.readers.drain(..) {
            reader.join().expect("a reader doesn't panic");
        }
    }

    /// Waits for its end, which must be success.
    pub(crate) fn succeed(&mut self) {
        let status = self.end();
        assert!(status.success(), "the client ended with {status}: {:#?}", self.said());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
