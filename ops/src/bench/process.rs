//! What processes cost, as `/proc` tells it. Nothing is asked of the processes themselves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use idl::clock::{Entropy as _, SystemEntropy};
use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use super::figure::float;

/// Clock ticks of `/proc/<pid>/stat` in a second: 100 on every Linux that we know.
const TICKS_PER_SECOND: f64 = 100.0;
/// Between two looks at a memory that settles.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Looks in a row without a change after which a memory has settled.
const LOOKS_ALIKE: usize = 6;
/// Memory that never settles is taken as it is after this time.
const SETTLING_TIME_MAX: Duration = Duration::from_secs(20);
/// How long a child may take to end by itself.
const ENDING_TIME_MAX: Duration = Duration::from_secs(10);

/// The processes of one server.
#[derive(Debug, Clone, Default)]
pub(super) struct Processes(pub(super) Vec<u32>);

/// Memory of processes, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// What is in RAM.
    pub(super) rss: u64,
    /// The part of it that is no file.
    pub(super) anonymous: u64,
}

impl Processes {
    /// CPU time that they have taken, of user and system together, in seconds; a process that has ended counts nothing.
    pub(super) fn cpu_seconds(&self) -> f64 {
        self.0.iter().filter_map(|pid| cpu_seconds(*pid)).sum()
    }

    /// Their memory now.
    pub(super) fn memory(&self) -> Result<Memory> {
        let mut sum = Memory::default();
        for pid in &self.0 {
            let memory = memory(*pid).with_context(|| format!("the memory of process {pid} can't be read"))?;
            sum.rss += memory.rss;
            sum.anonymous += memory.anonymous;
        }
        Ok(sum)
    }

    /// Their memory once it stands still.
    pub(super) fn settled_memory(&self) -> Result<Memory> {
        let started = Instant::now();
        let (mut last, mut alike) = (self.memory()?, 0);
        while alike < LOOKS_ALIKE && started.elapsed() < SETTLING_TIME_MAX {
            std::thread::sleep(LOOK_INTERVAL);
            let now = self.memory()?;
            // A page or two come and go with the server's own clocks.
            alike = if now.rss.abs_diff(last.rss) <= last.rss / 1000 { alike + 1 } else { 0 };
            last = now;
        }
        Ok(last)
    }
}

fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    let ticks = |field: usize| -> Option<f64> { after_name.split_whitespace().nth(field)?.parse().ok() };
    Some((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
}

fn memory(pid: u32) -> Result<Memory> {
    if let Ok(rollup) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) {
        let bytes = |name: &str| -> Option<u64> {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
        };
        if let (Some(rss), Some(anonymous)) = (bytes("Rss:"), bytes("Anonymous:")) {
            return Ok(Memory { rss, anonymous });
        }
    }
    let statm = fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let mut pages = statm.split_whitespace().skip(1).map_while(|pages| pages.parse::<u64>().ok());
    let rss = pages.next().context("statm has no pages")?;
    Ok(Memory { rss: rss * 4096, anonymous: rss.saturating_sub(pages.next().unwrap_or(0)) * 4096 })
}

/// All processes below one, and itself: who starts whom is in `/proc/<pid>/stat`.
pub(super) fn family(root: u32) -> Vec<(u32, String)> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let Some((before, after)) = stat.rsplit_once(')') else { continue };
        let name = before.split_once('(').map(|(_, name)| name.to_owned()).unwrap_or_default();
        let parent = after.split_whitespace().nth(1).and_then(|parent| parent.parse::<u32>().ok());
        all.push((pid, parent.unwrap_or(0), name));
    }
    let mut members = vec![root];
    let mut found = Vec::new();
    while let Some(member) = members.pop() {
        members.extend(all.iter().filter(|(_, parent, _)| *parent == member).map(|(pid, ..)| *pid));
        found.extend(all.iter().filter(|(pid, ..)| *pid == member).map(|(pid, _, name)| (*pid, name.clone())));
    }
    found
}

/// CPU and time from one moment to another.
#[derive(Debug, Clone)]
pub(super) struct Span {
    processes: Processes,
    cpu_seconds: f64,
    started: Instant,
}

impl Span {
    /// Begins now.
    pub(super) fn of(processes: &Processes) -> Self {
        Self { processes: processes.clone(), cpu_seconds: processes.cpu_seconds(), started: Instant::now() }
    }

    /// CPU since then, in microseconds for each of so many.
    pub(super) fn micros_each(&self, count: u64) -> f64 {
        (self.processes.cpu_seconds() - self.cpu_seconds) * 1e6 / float(count.max(1))
    }

    /// How many of so many there were in a second.
    pub(super) fn rate(&self, count: u64) -> f64 {
        float(count) / self.started.elapsed().as_secs_f64()
    }
}

/// A child process that ends with its owner.
#[derive(Debug)]
pub(super) struct Kept(pub(super) Child);

impl Kept {
    /// True while it runs.
    pub(super) fn is_running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// Asks it to end, and kills it if it does not.
    pub(super) fn stop(&mut self) {
        let started = Instant::now();
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        while self.is_running() && started.elapsed() < ENDING_TIME_MAX {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// From now on a signal ends what this process has started, and is noted: whoever waits for it then fails, and cleans up.
pub(super) fn end_family_on_signals() -> Result<Arc<AtomicBool>> {
    let noted = Arc::new(AtomicBool::new(false));
    let note = Arc::clone(&noted);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => (),
                    _ = terminate.recv() => (),
                }
                note.store(true, Ordering::Relaxed);
                for (pid, _) in family(std::process::id()).into_iter().skip(1) {
                    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
                    pid.and_then(|pid| kill_process(pid, Signal::KILL).ok());
                }
            }
        });
    });
    Ok(noted)
}

/// What this machine is, as far as it tells.
pub(super) fn machine() -> String {
    let field = |file: &str, name: &str| -> String {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim_start_matches([':', ' ', '\t']).trim().to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kilobytes: u64 = field("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0);
    format!(
        "{cores} cores ({}), {} GB, Linux {}",
        field("/proc/cpuinfo", "model name"),
        kilobytes >> 20,
        field("/proc/sys/kernel/osrelease", "")
    )
}

/// A folder that goes with its owner.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// A new one among the system's temporary files.
    pub(super) fn new() -> Result<Self> {
        let mut name = [0; 8];
        SystemEntropy.fill(&mut name);
        let path = std::env::temp_dir().join(format!("campanile-bench-{:016x}", u64::from_be_bytes(name)));
        fs::create_dir(&path).with_context(|| format!("the folder {} can't be made", path.display()))?;
        Ok(Self(path))
    }

    /// The one at this path, whoever makes it.
    pub(super) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Copies a folder with all that is in it; what is no file or folder is left out.
pub(super) fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, target) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_takes_cpu() {
        let own = Processes(vec![std::process::id()]);
        let memory = own.memory().expect("a process can read its own");
        assert!(memory.rss > 100_000 && memory.anonymous <= memory.rss, "{memory:?}");
        let span = Span::of(&own);
        let mut sum = 0_u64;
        while span.micros_each(1) <= 0.0 {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(7));
        }
        assert!(span.rate(1) > 0.0);
    }

    #[test]
    fn a_child_is_found_below_its_parent() {
        let child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep is everywhere");
        let mut child = Kept(child);
        let found = family(std::process::id());
        assert!(found.iter().any(|(pid, _)| *pid == child.0.id()), "{found:?}");
        child.stop();
        assert!(!child.is_running());
    }
}
