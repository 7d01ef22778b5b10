//! The run against hostile peers: honest devices get single messages at a rate, in peace, while a second server on the same
//! machine is attacked, while their own is, and in peace again; and whoever attacks must be cut by the limit that is there for
//! it.
//!
//! Attackers, and what they make any server do, take the processor, the disk and the kernel of a machine that the honest
//! devices' server shares with them: the attack beside it has the same of that. What is left between the two is what a server
//! lets its own hostile peers do to its honest ones.
//!
//! `attack.rs` says what hostile peers do and which limit each is to meet, `peer.rs` does it, `crowd.rs` is the process that
//! is all of them. Which limit it was the server says itself, in its metrics.

mod attack;
mod crowd;
mod order;
mod peer;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use self::attack::{Attack, REASONS, SETTINGS};
use self::order::{AttackOrder, Fate};
use super::figure::{Figure, float};
use super::load::{Load, THIS_PROGRAM};
use super::order::{Connect, Order, Rate};
use super::process::{Kept, Processes, Span};
use super::runs::{Bench, name, quantile};
use super::server::{Running, Server, Transport, connect};

pub(crate) use self::crowd::run as run_peers;

/// How long the attack lasts: longer than the longest limit takes.
const ATTACK_TIME: Duration = Duration::from_secs(30);
/// Messages a second where no rate is asked for.
const RATE: u64 = 200;
/// Honest devices that connect with one order.
const CONNECTED_AT_ONCE: usize = 1000;
/// Between two looks at the server's memory.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// How long a page of metrics may take.
const METRICS_TIME_MAX: Duration = Duration::from_secs(30);

/// Settings that the server under attack has, before those that were asked for.
pub(super) fn settings() -> impl Iterator<Item = (String, String)> {
    SETTINGS.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
}

/// Devices that are needed besides the honest ones.
pub(super) fn accounts() -> usize {
    Attack::accounts()
}

/// The server under attack, and those who are not to notice.
struct Siege<'a> {
    server: &'a dyn Server,
    transport: Transport,
    running: Box<dyn Running>,
    load: Load,
    per_second: u64,
}

/// What single messages took in one phase.
struct Phase {
    sent: u64,
    /// Sorted.
    arrival_us: Vec<u64>,
    late_us_max: u64,
    /// Honest connections that were lost since the beginning.
    lost: u64,
}

/// What the attack did.
struct Attacked {
    fates: Vec<Fate>,
    /// Streams that ended meanwhile, by reason.
    ended: BTreeMap<String, u64>,
    /// What the server's memory grew by at most.
    grown_bytes: u64,
    /// Hostile connections at one time.
    at_once: u64,
    /// CPU that the attackers took, as a share of one core.
    attackers_cpu: f64,
    /// The same of the server.
    server_cpu: f64,
}

impl Bench<'_> {
    /// Single messages to honest devices before, during and after an attack.
    pub(super) fn hostile(&mut self, server: &dyn Server, transport: Transport) -> Result<()> {
        let devices = self.sizes.connections;
        let per_second = self.sizes.rates.first().copied().unwrap_or(RATE);
        let mut siege =
            Siege { server, transport, running: server.start()?, load: Load::for_devices(devices)?, per_second };
        let honest =
            Connect { app: server.app(), acks: true, ..connect(server, siege.running.as_ref(), transport, devices)? };
        // Devices answer pings once all of an order have connected, which must not take longer than silence may.
        for from in (0..devices).step_by(CONNECTED_AT_ONCE) {
            let count = CONNECTED_AT_ONCE.min(devices - from);
            siege.load.connect(&Connect { from, count, different: count, ..honest.clone() })?;
        }
        let peace = Duration::from_secs(self.sizes.seconds);
        // What happens once happens here.
        siege.phase(peace.min(Duration::from_secs(3)))?;
        let before = siege.phase(peace)?;
        let beside = siege.beside_an_attack(devices)?;
        let (during, attacked) = siege.under_attack(devices)?;
        let after = siege.phase(peace)?;
        self.phases(&siege, devices, [&before, &beside, &during, &after])?;
        self.honest(&siege, devices, [&before, &beside, &during, &after])?;
        self.fates(&siege, &attacked)
    }

    fn phases(&mut self, siege: &Siege<'_>, devices: usize, phases: [&Phase; 4]) -> Result<()> {
        let [before, beside, during, after] = phases;
        for (name, thousandths) in [("p50", 500), ("p99", 990), ("max", 1000)] {
            let millis = |phase: &Phase| quantile(&phase.arrival_us, thousandths).map(|micros| micros / 1000.0);
            for (when, phase) in ["before", "beside an attack", "under attack", "after"].into_iter().zip(phases) {
                let notes = format!(
                    "{}/s to {devices} devices; requests began at most {:.1} ms late",
                    siege.per_second,
                    float(phase.late_us_max) / 1000.0
                );
                let value = millis(phase).context("no message arrived")?;
                let what = format!("single message, {when}: {name}");
                (self.told)(siege.figure(&what, value, "ms", phase.sent, notes))?;
            }
            let [Some(before), Some(beside), Some(during), Some(after)] = [before, beside, during, after].map(millis)
            else {
                continue;
            };
            for (what, rest) in [("the mean of before and after", f64::midpoint(before, after)), ("beside one", beside)]
            {
                let what = format!("single message, under attack to {what}: {name}");
                (self.told)(siege.figure(&what, during / rest, "times", phases[2].sent, String::new()))?;
            }
        }
        Ok(())
    }

    fn honest(&mut self, siege: &Siege<'_>, devices: usize, phases: [&Phase; 4]) -> Result<()> {
        let sent: u64 = phases.iter().map(|phase| phase.sent).sum();
        let arrived: u64 = phases.iter().map(|phase| phase.arrival_us.len() as u64).sum();
        let what = "honest devices: messages that did not arrive";
        (self.told)(siege.figure(what, float(sent - arrived.min(sent)), "", sent, String::new()))?;
        let lost = phases.iter().map(|phase| phase.lost).max().unwrap_or(0);
        (self.told)(siege.figure("honest devices: connections lost", float(lost), "", devices as u64, String::new()))
    }

    fn fates(&mut self, siege: &Siege<'_>, attacked: &Attacked) -> Result<()> {
        for fate in &attacked.fates {
            let mut after: Vec<u64> = fate.after_ms.clone();
            after.sort_unstable();
            let seconds = |thousandths| quantile(&after, thousandths).unwrap_or(0.0) / 1000.0;
            let mut notes = format!(
                "to end as {}; {} left by themselves, {} could not begin; cut after {:.2} s (median), {:.2} s at most",
                fate.attack.reasons().join(" or "),
                fate.left,
                fate.failed,
                seconds(500),
                seconds(1000),
            );
            for (words, times) in &fate.said {
                let words = if words.is_empty() { "nothing" } else { words };
                let _ = write!(notes, "; {times} heard: {words}");
            }
            if let Some(failure) = &fate.failure {
                let _ = write!(notes, "; the last that failed: {failure}");
            }
            let what = format!("hostile, {}: cut", fate.attack.name());
            let began = fate.began - fate.left;
            (self.told)(siege.figure(&what, float(fate.cut), "connections", began, notes))?;
        }
        for (reason, limit) in REASONS {
            let whose: Vec<_> = attacked.fates.iter().filter(|fate| fate.attack.reasons().contains(&reason)).collect();
            let cut = whose.iter().map(|fate| fate.cut).sum();
            let names: Vec<_> = whose.iter().map(|fate| fate.attack.name()).collect();
            let ended = attacked.ended.get(reason).copied().unwrap_or(0);
            let what = format!("hostile, ended by {limit}");
            let notes = format!("the server's count of {reason}; of {}", names.join(", "));
            (self.told)(siege.figure(&what, float(ended), "connections", cut, notes))?;
        }
        let others: Vec<_> =
            attacked.ended.iter().filter(|(reason, _)| !REASONS.iter().any(|(known, _)| known == reason)).collect();
        let notes = others.iter().map(|(reason, count)| format!("{count} as {reason}")).collect::<Vec<_>>().join(", ");
        let left: u64 = attacked.fates.iter().map(|fate| fate.left).sum();
        let others: u64 = others.iter().map(|(_, count)| **count).sum();
        (self.told)(siege.figure("hostile, ended otherwise", float(others), "connections", left, notes))?;
        let bound: u64 = Attack::ALL.into_iter().map(|attack| attack.peers() as u64 * attack.memory_bytes_max()).sum();
        let at_once = attacked.at_once;
        let notes = format!("RSS at most above that of before, sampled; the limits allow {:.0} MB", float(bound) / 1e6);
        let grown = float(attacked.grown_bytes) / 1e6;
        (self.told)(siege.figure("hostile, memory of the server", grown, "MB", at_once, notes))?;
        (self.told)(siege.figure(
            "hostile, memory that limits allow",
            float(bound) / 1e6,
            "MB",
            at_once,
            String::new(),
        ))?;
        let notes = "of one core, user and system".to_owned();
        let [server, theirs] = [attacked.server_cpu, attacked.attackers_cpu].map(|share| share * 100.0);
        (self.told)(siege.figure("hostile, CPU of the server meanwhile", server, "%", at_once, notes.clone()))?;
        (self.told)(siege.figure("hostile, CPU of the attackers", theirs, "%", at_once, notes))
    }
}

impl Siege<'_> {
    fn figure(&self, what: &str, value: f64, unit: &str, n: u64, notes: String) -> Figure {
        Figure {
            server: name(self.server.kind()).to_owned(),
            what: what.to_owned(),
            transport: self.transport.name().to_owned(),
            value: Some(value),
            unit: unit.to_owned(),
            n,
            notes,
        }
    }

    /// Sends single messages to the honest devices for so long.
    fn phase(&mut self, length: Duration) -> Result<Phase> {
        let by = self.running.way().context("the server has no way for single messages")?;
        let sent = u64::try_from(length.as_millis())?.saturating_mul(self.per_second).div_ceil(1000).max(1);
        let mut answer = self.load.first(&Order::Rate(Rate { by, per_second: self.per_second, count: sent }))?;
        answer.arrival_us.sort_unstable();
        let late_us_max = answer.late_us.iter().copied().max().unwrap_or(0);
        Ok(Phase { sent, arrival_us: answer.arrival_us, late_us_max, lost: answer.lost })
    }

    /// The phase in which a second server, with nobody but hostile peers, bears the attack.
    fn beside_an_attack(&mut self, devices: usize) -> Result<Phase> {
        let other = self.server.start()?;
        let mut attackers = Attackers::send(&self.order(other.as_ref(), devices)?)?;
        let phase = self.phase(ATTACK_TIME)?;
        attackers.fates()?;
        Ok(phase)
    }

    fn order(&self, whom: &dyn Running, devices: usize) -> Result<AttackOrder> {
        let addresses = whom.addresses();
        Ok(AttackOrder {
            to: addresses.tls.context("the server has no listener for TLS")?,
            ca: addresses.ca.clone(),
            domain: addresses.domain.clone(),
            devices: self.server.devices().to_owned(),
            from: devices,
            for_ms: u64::try_from(ATTACK_TIME.as_millis())?,
        })
    }

    fn under_attack(&mut self, devices: usize) -> Result<(Phase, Attacked)> {
        let telemetry = self.running.telemetry().context("the server must tell its metrics to be attacked")?;
        let order = self.order(self.running.as_ref(), devices)?;
        let processes = self.running.processes().clone();
        let ended_before = streams_ended(telemetry)?;
        let memory = Watch::begin(processes.clone())?;
        let mut attackers = Attackers::send(&order)?;
        let (ours, theirs) = (Span::of(&processes), Span::of(&attackers.processes()));
        let phase = self.phase(ATTACK_TIME)?;
        let share = |span: &Span| span.micros_each(1) / 1e6 * span.rate(1);
        let (server_cpu, attackers_cpu) = (share(&ours), share(&theirs));
        let fates = attackers.fates()?;
        let grown_bytes = memory.end()?;
        let mut ended = streams_ended(telemetry)?;
        for (reason, count) in &mut ended {
            *count -= ended_before.get(reason).copied().unwrap_or(0).min(*count);
        }
        ended.retain(|_, count| *count > 0);
        let at_once = Attack::ALL.into_iter().map(|attack| attack.peers() as u64).sum();
        Ok((phase, Attacked { fates, ended, grown_bytes, at_once, attackers_cpu, server_cpu }))
    }
}

/// The process of hostile peers.
struct Attackers {
    child: Kept,
    answer: BufReader<std::process::ChildStdout>,
}

impl Attackers {
    fn send(order: &AttackOrder) -> Result<Self> {
        let mut child = Command::new(THIS_PROGRAM)
            .args(["bench", "hostile-peers"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("the attackers can't be started")?;
        let (orders, answer) = (child.stdin.take(), child.stdout.take());
        let attackers =
            Self { child: Kept(child), answer: BufReader::new(answer.context("the attackers have no stdout")?) };
        let mut orders = orders.context("the attackers have no stdin")?;
        writeln!(orders, "{}", serde_json::to_string(order)?).context("the attackers have ended")?;
        Ok(attackers)
    }

    fn processes(&self) -> Processes {
        Processes(vec![self.child.0.id()])
    }

    /// What became of them, once all have met their end.
    fn fates(&mut self) -> Result<Vec<Fate>> {
        let mut line = String::new();
        self.answer.read_line(&mut line).context("the attackers have ended")?;
        serde_json::from_str(&line).context("the attackers have ended")
    }
}

/// Looks at memory from time to time.
struct Watch {
    before: u64,
    most: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    looking: JoinHandle<()>,
}

impl Watch {
    fn begin(processes: Processes) -> Result<Self> {
        let before = processes.memory()?.rss;
        let (most, stop) = (Arc::new(AtomicU64::new(before)), Arc::new(AtomicBool::new(false)));
        let (seen, stopped) = (Arc::clone(&most), Arc::clone(&stop));
        let looking = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Ok(memory) = processes.memory() {
                    seen.fetch_max(memory.rss, Ordering::Relaxed);
                }
                thread::sleep(LOOK_INTERVAL);
            }
        });
        Ok(Self { before, most, stop, looking })
    }

    /// What it grew by at most.
    fn end(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        if self.looking.join().is_err() {
            bail!("who looked at memory panicked");
        }
        Ok(self.most.load(Ordering::Relaxed).saturating_sub(self.before))
    }
}

/// The server's counts of streams that ended, by reason.
fn streams_ended(telemetry: SocketAddr) -> Result<BTreeMap<String, u64>> {
    let mut socket = TcpStream::connect(telemetry).context("the metrics")?;
    socket.set_read_timeout(Some(METRICS_TIME_MAX))?;
    socket.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut page = String::new();
    socket.read_to_string(&mut page).context("the metrics")?;
    Ok(counts(&page))
}

fn counts(page: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for line in page.lines() {
        let Some(rest) = line.strip_prefix("campanile_front_streams_ended_total{") else { continue };
        let Some((labels, count)) = rest.split_once("} ") else { continue };
        let reason = labels.split(',').find_map(|label| label.strip_prefix("reason=\"")?.strip_suffix('"'));
        if let (Some(reason), Ok(count)) = (reason, count.trim().parse::<u64>()) {
            *counts.entry(reason.to_owned()).or_default() += count;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_a_page_of_metrics() {
        let page = "HTTP/1.1 200 OK\r\n\r\n# HELP campanile_front_streams_ended Streams\n\
                    campanile_front_streams_ended_total{reason=\"idle\",again=\"yes\"} 7\n\
                    campanile_front_streams_ended_total{reason=\"lost\",again=\"yes\"} 1\n\
                    campanile_front_limits_hit_total{limit=\"idle_time_max\"} 7\n";
        assert_eq!(counts(page), BTreeMap::from([("idle".to_owned(), 7), ("lost".to_owned(), 1)]));
    }
}
