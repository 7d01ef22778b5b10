//! The runs: what is done to a server, and which figures come of it. Each begins with a new process of the server.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::figure::{Figure, float};
use super::load::Load;
use super::order::{Connect, Kind, Order, Publish, Rate, Way};
use super::process::{Processes, Span};
use super::server::{Running, Server, Transport, connect};

/// Connections made before memory is measured, so that what is allocated once is not counted.
const WARM_UP: usize = 300;
/// How long the deliveries of one round may take.
const ROUND_TIME_MAX: Duration = Duration::from_mins(5);

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
        self.connections + WARM_UP
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
}

impl<'a> Run<'a> {
    fn start(server: &'a dyn Server, transport: Transport, devices: usize) -> Result<Self> {
        Ok(Self { server, transport, running: server.start()?, load: Load::for_devices(devices)? })
    }

    fn processes(&self) -> &Processes {
        self.running.processes()
    }

    fn connect(&self, count: usize) -> Connect {
        connect(self.server, self.running.as_ref(), self.transport, count)
    }

    fn figure(&self, figure: &str, value: f64, unit: &str, n: u64, notes: String) -> Figure {
        Figure {
            server: name(self.server.kind()).to_owned(),
            figure: figure.to_owned(),
            transport: self.transport.name().to_owned(),
            value: Some(value),
            unit: unit.to_owned(),
            n,
            notes,
        }
    }

    /// So many messages to each connected device, which all have when it returns.
    fn broadcast(&mut self, devices: usize, at_once: u64) -> Result<()> {
        self.load.forget()?;
        if let Some(sent) = self.running.broadcast(at_once) {
            sent?;
        } else {
            let sender = Connect { from: devices, count: 1, different: 1, ..self.connect(1) };
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

impl Bench<'_> {
    /// Memory of idle connections: streams that are bound, and again with what pushes need.
    pub(super) fn idle(&mut self, server: &dyn Server, transport: Transport) -> Result<()> {
        self.idle_with(server, transport, false)?;
        if server.app().is_some() {
            self.idle_with(server, transport, true)?;
        }
        Ok(())
    }

    fn idle_with(&mut self, server: &dyn Server, transport: Transport, channel: bool) -> Result<()> {
        let count = self.sizes.connections;
        let mut run = Run::start(server, transport, count + WARM_UP)?;
        let app = server.app().filter(|_| channel);
        let warm_up = Connect { from: count, app: app.clone(), ..run.connect(WARM_UP) };
        run.load.connect(&warm_up)?;
        let before = run.processes().settled_memory()?;
        let connections = Connect { app, ..run.connect(count) };
        run.load.connect(&connections)?;
        let after = run.processes().settled_memory()?;
        let kilobytes = |after: u64, before: u64| (float(after) - float(before)) / float(count as u64) / 1024.0;
        let what = if channel { "idle connection, channel open, registered" } else { "idle connection, bound" };
        let notes = format!(
            "RSS {:.1} to {:.1} MB; anonymous {:.2} KB each; after {WARM_UP} to warm up",
            float(before.rss) / 1e6,
            float(after.rss) / 1e6,
            kilobytes(after.anonymous, before.anonymous),
        );
        let figure = run.figure(what, kilobytes(after.rss, before.rss), "KB", count as u64, notes);
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
        let logins = Connect { count, different, stay: false, tickets, ..run.connect(different) };
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
        let acks = if server.app().is_some() { &[false, true][..] } else { &[false] };
        for acks in acks {
            for at_once in [1, 10] {
                self.broadcast_with(server, transport, *acks, at_once)?;
            }
        }
        Ok(())
    }

    fn broadcast_with(&mut self, server: &dyn Server, transport: Transport, acks: bool, at_once: u64) -> Result<()> {
        let devices = self.sizes.connections;
        // One more, which sends where a connection has to.
        let mut run = Run::start(server, transport, devices + 1)?;
        let connections = Connect { app: server.app(), acks, ..run.connect(devices) };
        run.load.connect(&connections)?;
        run.broadcast(devices, 1)?;
        run.processes().settled_memory()?;
        let rounds = self.sizes.broadcasts.div_ceil(at_once).max(1);
        let (ours, theirs) = (Span::of(run.processes()), Span::of(&run.load.processes()));
        for _ in 0..rounds {
            run.broadcast(devices, at_once)?;
        }
        let n = rounds * at_once * devices as u64;
        let rate = ours.rate(n);
        if acks {
            // Acknowledgements leave later than they are due, and are worked on after that.
            std::thread::sleep(Duration::from_secs(1));
        }
        let (cpu, generator) = (ours.micros_each(n), theirs.micros_each(n));
        let what = format!(
            "broadcast, {}{}",
            if at_once == 1 { "one at a time".to_owned() } else { format!("{at_once} at once") },
            if acks { ", acknowledged" } else { "" },
        );
        let notes = format!(
            "{} to {devices} devices by {}; the generator took {generator:.1} µs",
            rounds * at_once,
            server.broadcasts_by()
        );
        (self.told)(run.figure(&format!("{what}: CPU per delivery"), cpu, "µs", n, notes))?;
        (self.told)(run.figure(&format!("{what}: rate"), rate, "/s", n, "generator on the same cores".to_owned()))
    }
}

/// The value that so many thousandths of sorted values don't exceed.
fn quantile(sorted: &[u64], thousandths: usize) -> Option<f64> {
    let at = (sorted.len().checked_sub(1)?) * thousandths / 1000;
    sorted.get(at).map(|value| float(*value))
}
