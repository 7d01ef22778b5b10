//! One server process, held by a supervisor that ends it when this process ends.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::ops::ControlFlow;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};

use crate::waiting;

const SUPERVISOR: &str = include_str!("supervisor.sh");
/// For what the supervisor does at once.
const AT_ONCE_MAX: Duration = Duration::from_mins(1);
const LOG_TAIL_LINES: usize = 30;

/// Whether the server says something on its standard output that is not for the log.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speech {
    Silent,
    Speaks,
}

/// A server process that can be killed and started again with the same command.
pub(crate) struct Supervised {
    name: String,
    folder: PathBuf,
    pid: AtomicU32,
    talk: Mutex<Talk>,
    supervisor: Child,
}

struct Talk {
    /// `None` once the supervisor is to end: closing it is what tells it.
    orders: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Supervised {
    /// Starts the supervisor, which owns the folder from now on, but not yet the server.
    pub(crate) fn new(
        name: impl Into<String>,
        folder: PathBuf,
        speech: Speech,
        command: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> anyhow::Result<Self> {
        let name = name.into();
        let kind = if speech == Speech::Speaks { "speaker" } else { "server" };
        let mut supervisor = Command::new("sh")
            .args(["-c", SUPERVISOR, "supervisor"])
            .arg(&folder)
            .arg(kind)
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Ctrl-C is for us; the supervisor has to clear up after it.
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting the supervisor of {name}"))?;
        let orders = supervisor.stdin.take();
        let said = supervisor.stdout.take().context("the supervisor has a standard output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(said).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let talk = Mutex::new(Talk { orders, lines });
        Ok(Self { name, folder, pid: AtomicU32::new(0), talk, supervisor })
    }

    /// Starts the server; whether it answers is for the caller to find out.
    pub(crate) fn start(&self) -> anyhow::Result<()> {
        let answer = self.order("start")?;
        let pid = answer.parse().map_err(|_| anyhow!("the supervisor of {} answered {answer:?}", self.name))?;
        self.pid.store(pid, Ordering::Relaxed);
        Ok(())
    }

    /// The server's own process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Kills the server as a power cut would; it is gone when this returns.
    pub(crate) fn kill(&self) -> anyhow::Result<()> {
        self.order("KILL").map(drop)
    }

    /// Stops every thread of the server; they stand still when this returns.
    pub(crate) fn pause(&self) -> anyhow::Result<()> {
        self.order("STOP")?;
        let stopped = || {
            if matches!(self.state(), Some('T') | None) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        waiting::until(AT_ONCE_MAX, stopped).with_context(|| format!("{} did not stop", self.name))
    }

    /// Tells the server to end by itself.
    pub(crate) fn terminate(&self) -> anyhow::Result<()> {
        self.order("TERM").map(drop)
    }

    /// Waits until the server has ended by itself and returns its exit code, as the shell gives it.
    pub(crate) fn ended(&self, limit: Duration) -> anyhow::Result<i32> {
        let ended = || {
            if matches!(self.state(), Some('Z') | None) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        waiting::until(limit, ended).with_context(|| format!("{} did not end within {limit:?}", self.name))?;
        let answer = self.order("reap")?;
        answer.parse().map_err(|_| anyhow!("the supervisor of {} answered {answer:?}", self.name))
    }

    /// Lets a paused server go on.
    pub(crate) fn resume(&self) -> anyhow::Result<()> {
        self.order("CONT").map(drop)
    }

    /// Tells the server a line and waits for the first line it says that begins with the prefix; returns the rest of that.
    pub(crate) fn ask(&self, line: &str, prefix: &str, limit: Duration) -> anyhow::Result<String> {
        let talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = self.order_in(&talk, &format!("tell {line}"))?;
        ensure!(answer == "told", "{}: {answer}\n{}", self.name, self.log_tail());
        self.heard_in(&talk, prefix, limit)
    }

    /// Waits for a line of the server's that begins with the prefix; returns the rest of it.
    pub(crate) fn heard(&self, prefix: &str, limit: Duration) -> anyhow::Result<String> {
        let talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        self.heard_in(&talk, prefix, limit)
    }

    /// Waits until the server answers; an error with the end of its log if it does not, or ends.
    pub(crate) fn until_it_answers(&self, limit: Duration, mut answers: impl FnMut() -> bool) -> anyhow::Result<()> {
        let state = waiting::until(limit, || {
            if answers() {
                ControlFlow::Break(Ok(()))
            } else if self.has_ended() {
                ControlFlow::Break(Err("ended instead of answering"))
            } else {
                ControlFlow::Continue(())
            }
        });
        match state.unwrap_or(Err("did not answer in time")) {
            Ok(()) => Ok(()),
            Err(why) => bail!("{} {why} (limit {limit:?}); its log ends with\n{}", self.name, self.log_tail()),
        }
    }

    fn order(&self, order: &str) -> anyhow::Result<String> {
        let talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        self.order_in(&talk, order)
    }

    fn order_in(&self, talk: &Talk, order: &str) -> anyhow::Result<String> {
        let mut orders = talk.orders.as_ref().context("the supervisor is to end")?;
        writeln!(orders, "{order}").with_context(|| format!("the supervisor of {} is gone", self.name))?;
        self.heard_in(talk, "supervisor: ", AT_ONCE_MAX)
    }

    fn heard_in(&self, talk: &Talk, prefix: &str, limit: Duration) -> anyhow::Result<String> {
        let begun = waiting::now();
        loop {
            // In pieces, to see it when the server has ended.
            let left = limit.saturating_sub(begun.elapsed()).min(Duration::from_millis(200));
            let ended = self.has_ended();
            match talk.lines.recv_timeout(left) {
                Ok(line) => {
                    if let Some(rest) = line.strip_prefix(prefix) {
                        return Ok(rest.to_owned());
                    }
                }
                Err(RecvTimeoutError::Timeout) if !ended && begun.elapsed() < limit => {}
                Err(_) => {
                    let mut message = format!("{} did not say {prefix:?} within {limit:?}", self.name);
                    let _ = write!(message, "; its log ends with\n{}", self.log_tail());
                    bail!(message);
                }
            }
        }
    }

    /// Whether it was started and has ended by itself; where that can't be seen, it never seems so.
    pub(crate) fn has_ended(&self) -> bool {
        self.state() == Some('Z')
    }

    /// The state of the process as the system calls it: `T` stopped, `Z` ended. It is not forgotten before the supervisor
    /// asks for it, so its id names no other process.
    fn state(&self) -> Option<char> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.pid())).ok()?;
        text.rsplit_once(')')?.1.trim_start().chars().next()
    }

    /// The last lines that the server wrote.
    pub(crate) fn log_tail(&self) -> String {
        let log = fs::read(self.folder.join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.talk.get_mut().unwrap_or_else(PoisonError::into_inner).orders = None;
        let _ = self.supervisor.wait();
    }
}

/// A new folder for a server's files.
pub(crate) fn folder(name: &str) -> anyhow::Result<PathBuf> {
    let folder = tempfile::Builder::new().prefix(&format!("campanile-{name}-")).tempdir();
    // The supervisor removes it.
    Ok(folder.with_context(|| format!("making a folder for {name}"))?.keep())
}
