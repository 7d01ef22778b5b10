//! The runs: what is done to a server, and which figures come of it. Each begins with a new process of the server.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::figure::{Figure, float};
use super::load::Load;
use super::order::{Connect, Form, Kind, Order, Publish, Rate, Way};
use super::process::{Processes, Span};
use super::server::{LOGINS_AT_ONCE, Running, Server, Transport, connect};

/// Connections made before memory is measured, so that what is allocated once is not counted.
const WARM_UP: usize = 300;
/// How long the deliveries of one round may take.
const ROUND_TIME_MAX: Duration = Duration::from_mins(5);
/// Acknowledgements leave later than deliveries come, and are worked on after that.
const ACKS_TIME: Duration = Duration::from_secs(1);
/// Rates of single messages where none is asked for.
const FIXED_RATES: [u64; 2] = [100, 1000];
/// The ramp of rates: where it begins, how long each lasts, and what ends it.
const RAMP_START: u64 = 500;
const RAMP_TIME: Duration = Duration::from_secs(3);
const RAMP_P99_MAX: Duration = Duration::from_millis(100);
/// Messages a second while bytes are counted.
const WIRE_RATE: u64 = 50;

/// How much is done.
#[derive(Debug, Clone)]
pub(super) struct Sizes {
    /// Connections that stay.
    pub(super) connections: usize,
    /// Logins of the login run.
    pub(super) logins: usize,
    /// Broadcasts, one at a time.
    pub(super) broadcasts: u64,
    /// Rates of single messages, each second.
    pub(super) rates: Vec<u64>,
    /// How long each rate is kept up.
    pub(super) seconds: u64,
    /// Messages of the wire run.
    pub(super) messages: u64,
}

impl Sizes {
    /// Devices that a server must have for all runs.
    pub(super) fn devices(&self) -> usize {
        self.connections + self.warm_up() + 1
    }
}

impl Sizes {
    /// Connections that are there before memory is measured: what their logins gave back would else be used again by those that
    /// are measured, and make them seem to cost less.
    fn warm_up(&self) -> usize {
        WARM_UP.min(self.connections).max(self.connections / 2)
    }
}

/// What runs tell: takes each figure as soon as it is there.
pub(super) struct Bench<'a> {
    /// How much.
    pub(super) sizes: &'a Sizes,
    /// Takes figures.
    pub(super) told: &'a mut dyn FnMut(Figure) -> Result<()>,
}

/// What figures of one run have in common.
struct Run<'a> {
    server: &'a dyn Server,
    transport: Transport,
    running: Box<dyn Running>,
    load: Load,
    /// Devices acknowledge, and senders ask for that.
    acks: bool,
    /// How devices have it said.
    form: Form,
}

impl<'a> Run<'a> {
    fn start(server: &'a dyn Server, transport: Transport, devices: usize) -> Result<Self> {
        Ok(Self {
            server,
            transport,
            running: server.start()?,
            load: Load::for_devices(devices)?,
            acks: false,
            form: Form::Xml,
        })
    }

    fn processes(&self) -> &Processes {
        self.running.processes()
    }

    fn connect(&self, count: usize) -> Result<Connect> {
        Ok(Connect { form: self.form, ..connect(self.server, self.running.as_ref(), self.transport, count)? })
    }

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

    /// A connection that sends, with the first account that is no device's.
    fn sender(&self, devices: usize) -> Result<Connect> {
        Ok(Connect { from: devices, different: 1, acks: self.acks, ..self.connect(1)? })
    }

    /// So many messages to each connected device, which all have when it returns.
    fn broadcast(&mut self, devices: usize, at_once: u64) -> Result<()> {
        self.load.forget()?;
        if let Some(sent) = self.running.broadcast(at_once) {
            sent?;
        } else {
            let sender = self.sender(devices)?;
            self.load.first(&Order::Publish(Publish { sender, devices, times: at_once }))?;
        }
        self.load.wait(at_once, ROUND_TIME_MAX)?;
        Ok(())
    }
}

/// The server's name in figures.
pub(super) fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Campanile => "campanile",
        Kind::Ejabberd => "ejabberd",
        Kind::Mosquitto => "mosquitto",
    }
}

/// The forms that a server's streams have.
fn forms(server: &dyn Server) -> &'static [Form] {
    if server.kind() == Kind::Campanile { &[Form::Xml, Form::Slim] } else { &[Form::Xml] }
}

/// What figures of a form have behind their names: nothing for the one that all have.
fn named(form: Form) -> &'static str {
    match form {
        Form::Xml => "",
        Form::Slim => ", slim",
    }
}

impl Bench<'_> {
    /// Memory of idle connections: streams that are bound, and again with what pushes need.
    pub(super) fn idle(&mut self, server: &dyn Server, transport: Transport) -> Result<()> {
        self.idle_with(server, transport, false, Form::Xml)?;
        if server.app().is_some() {
            forms(server).iter().try_for_each(|form| self.idle_with(server, transport, true, *form))?;
        }
        Ok(())
    }

    fn idle_with(&mut self, server: &dyn Server, transport: Transport, channel: bool, form: Form) -> Result<()> {
        let (count, warm) = (self.sizes.connections, self.sizes.warm_up());
        let mut run = Run { form, ..Run::start(server, transport, count + warm)? };
        let app = server.app().filter(|_| channel);
        let warm_up = Connect { from: count, app: app.clone(), ..run.connect(warm)? };
        run.load.connect(&warm_up)?;
        let before = run.processes().settled_memory()?;
        let connections = Connect { app, ..run.connect(count)? };
        run.load.connect(&connections)?;
        let after = run.processes().settled_memory()?;
        let kilobytes = |after: u64, before: u64| (float(after) - float(before)) / float(count as u64) / 1024.0;
        let what = if channel { "idle connection, channel open, registered" } else { "idle connection, bound" };
        let what = format!("{what}{}", named(form));
        let notes = format!(
            "RSS {:.1} to {:.1} MB; anonymous {:.2} KB each; after {warm} to warm up",
            float(before.rss) / 1e6,
            float(after.rss) / 1e6,
            kilobytes(after.anonymous, before.anonymous),
        );
        let figure = run.figure(&what, kilobytes(after.rss, before.rss), "KB", count as u64, notes);
        (self.told)(figure)
    }

    /// CPU and rate of logins.
    pub(super) fn login(&mut self, server: &dyn Server, transport: Transport) -> Result<()> {
        self.login_with(server, transport, false)?;
        if transport == Transport::Tls {
            self.login_with(server, transport, true)?;
        }
        Ok(())
    }

    fn login_with(&mut self, server: &dyn Server, transport: Transport, tickets: bool) -> Result<()> {
        let (different, count) = (self.sizes.connections, self.sizes.logins);
        let mut run = Run::start(server, transport, 1)?;
        // Never the same account twice at one time: the second login would end the first.
        let at_once = LOGINS_AT_ONCE.min(different / 2).max(1);
        let logins = Connect { count, different, at_once, stay: false, tickets, ..run.connect(different)? };
        let warm_up = Connect { count: WARM_UP.min(count), ..logins.clone() };
        run.load.connect(&warm_up)?;
        let (ours, theirs) = (Span::of(run.processes()), Span::of(&run.load.processes()));
        let answer = run.load.connect(&logins)?;
        let n = count as u64;
        let (cpu, rate, generator) = (ours.micros_each(n), ours.rate(n), theirs.micros_each(n));
        let what = match (transport, tickets) {
            (Transport::Plain, _) => "login",
            (Transport::Tls, false) => "login, full handshake",
            (Transport::Tls, true) => "login, session ticket",
        };
        let resumed = if tickets { format!("; {} resumed", answer.resumed) } else { String::new() };
        let notes =
            format!("{} at once, closed at once; the generator took {generator:.0} µs{resumed}", logins.at_once);
        (self.told)(run.figure(&format!("{what}: CPU"), cpu, "µs", n, notes))?;
        (self.told)(run.figure(&format!("{what}: rate"), rate, "/s", n, "generator on the same cores".to_owned()))
    }

    /// CPU and rate of broadcasts: one after the other and ten at once, acknowledged where devices do that, and not.
    pub(super) fn broadcast(&mut self, server: &dyn Server, transport: Transport) -> Result<()> {
        let acks = if server.acknowledges() { &[false, true][..] } else { &[false] };
        for form in forms(server) {
            for acks in acks {
                for at_once in [1, 10] {
                    // One more, which sends where a connection has to.
                    let run = Run::start(server, transport, self.sizes.connections + 1)?;
                    self.broadcast_with(Run { acks: *acks, form: *form, ..run }, at_once)?;
                }
            }
        }
        Ok(())
    }

    fn broadcast_with(&mut self, mut run: Run<'_>, at_once: u64) -> Result<()> {
        let (devices, acks, server) = (self.sizes.connections, run.acks, run.server);
        let connections = Connect { app: server.app(), acks, ..run.connect(devices)? };
        run.load.connect(&connections)?;
        run.broadcast(devices, 1)?;
        let rounds = self.sizes.broadcasts.div_ceil(at_once).max(1);
        let (ours, theirs) = (Span::of(run.processes()), Span::of(&run.load.processes()));
        for _ in 0..rounds {
            run.broadcast(devices, at_once)?;
        }
        let n = rounds * at_once * devices as u64;
        let rate = ours.rate(n);
        if acks {
            std::thread::sleep(ACKS_TIME);
        }
        let (cpu, generator) = (ours.micros_each(n), theirs.micros_each(n));
        let what = format!(
            "broadcast, {}{}{}",
            if at_once == 1 { "one at a time".to_owned() } else { format!("{at_once} at once") },
            if acks { ", acknowledged" } else { "" },
            named(run.form),
        );
        let notes = format!(
            "{} to {devices} devices by {}; the generator took {generator:.1} µs",
            rounds * at_once,
            server.broadcasts_by()
        );
        (self.told)(run.figure(&format!("{what}: CPU per delivery"), cpu, "µs", n, notes))?;
        (self.told)(run.figure(&format!("{what}: rate"), rate, "/s", n, "generator on the same cores".to_owned()))
    }

    /// How long single messages take, at rates and at 70 % of the highest rate that a ramp finds.
    pub(super) fn latency(&mut self, server: &dyn Server, transport: Transport) -> Result<()> {
        let devices = self.sizes.connections;
        let mut run = Run::start(server, transport, devices + 1)?;
        run.acks = server.acknowledges();
        let connections = Connect { app: server.app(), acks: run.acks, ..run.connect(devices)? };
        run.load.connect(&connections)?;
        let mut rates = self.sizes.rates.clone();
        rates.iter().try_for_each(|rate| self.latency_at(&mut run, *rate, None))?;
        if rates.is_empty() {
            rates = FIXED_RATES.to_vec();
            rates.iter().try_for_each(|rate| self.latency_at(&mut run, *rate, None))?;
            let highest = run.highest_rate(devices)?;
            let notes = format!(
                "ramp by a half each {} s while p99 is below {} ms; generator on the same cores",
                RAMP_TIME.as_secs(),
                RAMP_P99_MAX.as_millis()
            );
            (self.told)(run.figure("single messages: highest rate", float(highest), "/s", highest, notes))?;
            self.latency_at(&mut run, highest * 7 / 10, Some("single message at 70 % load"))?;
        }
        Ok(())
    }

    fn latency_at(&mut self, run: &mut Run<'_>, per_second: u64, what: Option<&str>) -> Result<()> {
        let devices = self.sizes.connections;
        let (ours, theirs) = (Span::of(run.processes()), Span::of(&run.load.processes()));
        let times = run.at_rate(devices, per_second, Duration::from_secs(self.sizes.seconds))?;
        let n = times.sent;
        let (cpu, generator) = (ours.micros_each(n), theirs.micros_each(n));
        let what = what.map_or_else(|| format!("single message at {per_second}/s"), ToOwned::to_owned);
        let notes = format!(
            "{per_second}/s to {devices} devices, {} of {n} arrived; requests began at most {:.1} ms late",
            times.arrival_us.len(),
            times.late_us_max / 1000.0
        );
        for (name, thousandths) in [("p50", 500), ("p90", 900), ("p99", 990), ("max", 1000)] {
            let value = quantile(&times.arrival_us, thousandths).context("no message arrived")? / 1000.0;
            (self.told)(run.figure(&format!("{what}: {name}"), value, "ms", n, notes.clone()))?;
        }
        let notes = format!("the generator took {generator:.0} µs");
        (self.told)(run.figure(&format!("{what}: CPU"), cpu, "µs", n, notes))
    }

    /// Bytes in sockets for each message of 100 bytes.
    pub(super) fn wire(&mut self, server: &dyn Server, transport: Transport) -> Result<()> {
        for form in forms(server) {
            let run = Run::start(server, transport, 2)?;
            self.wire_with(Run { acks: server.acknowledges(), form: *form, ..run })?;
        }
        Ok(())
    }

    fn wire_with(&mut self, mut run: Run<'_>) -> Result<()> {
        let (n, server, form) = (self.sizes.messages, run.server, named(run.form));
        let connections = Connect { app: server.app(), acks: run.acks, ..run.connect(1)? };
        run.load.connect(&connections)?;
        // Of the session's tickets, and what else comes once.
        run.at_rate(1, WIRE_RATE, Duration::from_millis(500))?;
        run.load.forget()?;
        let length = Duration::from_micros(n * 1_000_000 / WIRE_RATE);
        let times = run.at_rate(1, WIRE_RATE, length)?;
        std::thread::sleep(ACKS_TIME);
        let bytes = run.load.every(&Order::Count)?;
        let each = |bytes: u64, n: u64| float(bytes) / float(n.max(1));
        let notes = "TCP payload, without headers of TCP and IP".to_owned();
        let what = format!("single message of 100 bytes{form}: on the wire");
        (self.told)(run.figure(&what, each(bytes.received, times.sent), "bytes", times.sent, notes.clone()))?;
        if run.acks {
            let notes = format!("{WIRE_RATE} messages a second, as many acknowledgements as the device makes of them");
            let what = format!("acknowledging a single message{form}: on the wire");
            (self.told)(run.figure(&what, each(bytes.sent, times.sent), "bytes", times.sent, notes))?;
        }
        let rounds = 20;
        run.broadcast(1, 1)?;
        let mut received = 0;
        for _ in 0..rounds {
            run.broadcast(1, 1)?;
            received += run.load.every(&Order::Count)?.received;
        }
        let what = format!("broadcast of 100 bytes{form}: on the wire");
        (self.told)(run.figure(&what, each(received, rounds), "bytes", rounds, notes))
    }
}

/// What came of messages at a rate.
struct Times {
    sent: u64,
    /// Sorted.
    arrival_us: Vec<u64>,
    late_us_max: f64,
}

impl Run<'_> {
    fn at_rate(&mut self, devices: usize, per_second: u64, length: Duration) -> Result<Times> {
        let count = u64::try_from(length.as_millis())?.saturating_mul(per_second).div_ceil(1000).max(1);
        let by = match self.running.way() {
            Some(way) => way,
            None => Way::Sender(self.sender(devices)?),
        };
        let mut answer = self.load.first(&Order::Rate(Rate { by, per_second, count }))?;
        answer.arrival_us.sort_unstable();
        let late_us_max = float(answer.late_us.iter().copied().max().unwrap_or(0));
        Ok(Times { sent: count, arrival_us: answer.arrival_us, late_us_max })
    }

    /// The highest rate at which all messages arrive soon.
    fn highest_rate(&mut self, devices: usize) -> Result<u64> {
        let (mut rate, mut highest) = (RAMP_START, 0);
        // A rate must fail twice: a machine has other things to do at times.
        while self.bears(devices, rate)? || self.bears(devices, rate)? {
            (highest, rate) = (rate, rate * 3 / 2);
        }
        if highest == 0 {
            bail!("not even {RAMP_START} messages a second arrive soon");
        }
        Ok(highest)
    }

    /// True if all messages at a rate arrive soon.
    fn bears(&mut self, devices: usize, rate: u64) -> Result<bool> {
        let times = self.at_rate(devices, rate, RAMP_TIME)?;
        let p99 = quantile(&times.arrival_us, 990).unwrap_or(f64::MAX);
        let limit = RAMP_P99_MAX.as_secs_f64() * 1e6;
        Ok(times.arrival_us.len() as u64 == times.sent && p99 <= limit && times.late_us_max <= limit)
    }
}

/// The value that so many thousandths of sorted values don't exceed.
pub(super) fn quantile(sorted: &[u64], thousandths: usize) -> Option<f64> {
    let at = (sorted.len().checked_sub(1)?) * thousandths / 1000;
    sorted.get(at).map(|value| float(*value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let sorted: Vec<u64> = (1..=1001).collect();
        assert_eq!(quantile(&sorted, 500), Some(501.0));
        assert_eq!(quantile(&sorted, 1000), Some(1001.0));
        assert_eq!(quantile(&[7], 990), Some(7.0));
        assert_eq!(quantile(&[], 500), None);
    }
}
