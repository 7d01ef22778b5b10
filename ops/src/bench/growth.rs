//! Growth: what a connection costs as there are more and more of them, at several front processes of one installation that
//! runs already.
//!
//! Each front has a share of the connections, at a listener of its own. Steps follow each other on the same processes:
//! memory at each is what was there before the first connection, subtracted from what is there now.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::Shown;
use super::campanile::Campanile;
use super::figure::{self, Figure, float};
use super::load::Load;
use super::order::{Answer, Connect, Kind};
use super::process::{self, Memory, Processes, Span};
use super::runs::name;
use super::server::{Running, Server as _, Transport, connect_at};
use crate::data_folder::DataFolder;
use crate::lifecycle::raise_file_limit;
use crate::socket::Run;

/// Connections at each front that come first and stay, so that what is allocated once is not counted.
const WARM_UP: usize = 300;
/// Logins at one time at each front.
const LOGINS_AT_ONCE: usize = 16;
/// How long the deliveries of one broadcast may take.
const BROADCAST_TIME_MAX: Duration = Duration::from_mins(10);
/// Acknowledgements leave later than deliveries come, and are worked on after that.
const ACKS_TIME: Duration = Duration::from_secs(3);

/// What grows, and how far.
#[derive(Debug, Clone)]
pub(crate) struct Growth {
    /// Data folder of the process with the API.
    pub(crate) data: PathBuf,
    /// Data folders of the fronts.
    pub(crate) fronts: Vec<PathBuf>,
    /// The other processes whose memory and CPU are told.
    pub(crate) others: Vec<u32>,
    /// How many connections there are at each step, fewest first.
    pub(crate) steps: Vec<usize>,
    /// Devices register, and get this many broadcasts at each step, one after another; 0 leaves them bound and no more.
    pub(crate) broadcasts: u64,
    /// File with accounts, made where it is missing or has too few.
    pub(crate) accounts: Option<PathBuf>,
}

/// What is known of an installation with so many connections.
struct Step {
    connections: usize,
    fronts: PerConnection,
    others: PerConnection,
    logins_per_second: f64,
    login_us: Cpu,
    broadcast: Option<Delivered>,
}

/// Kilobytes for each connection.
struct PerConnection {
    rss: f64,
    anonymous: f64,
}

/// CPU of the fronts, of the other processes and of the generator, in microseconds for each.
struct Cpu {
    fronts: f64,
    others: f64,
    generator: f64,
}

/// What deliveries cost.
struct Delivered {
    us: Cpu,
    per_second: f64,
}

/// Measures each step. `say` gets each line of output.
pub(crate) fn run(growth: &Growth, shown: Shown, say: impl Fn(&str) -> Result<()>) -> Result<()> {
    raise_file_limit();
    let _stopped = process::end_family_on_signals()?;
    let last = growth.steps.last().copied().context("there is no step")?;
    if !growth.steps.is_sorted_by(|before, after| before < after) {
        bail!("each step must have more connections than the one before");
    }
    let fronts: Vec<Run> = growth
        .fronts
        .iter()
        .map(|data| Run::read(&DataFolder::at(data))?.with_context(|| format!("no front runs on {}", data.display())))
        .collect::<Result<_>>()?;
    let addresses: Vec<SocketAddr> = fronts
        .iter()
        .map(|front| front.reach("xmpp.tls").context("a front has no listener xmpp.tls"))
        .collect::<Result<_>>()?;
    if addresses.is_empty() {
        bail!("there is no front: name their data folders with --front");
    }
    let warm_up = WARM_UP * addresses.len();
    let kept = growth.accounts.as_deref();
    let server = Campanile::attach_unregistered(&growth.data, Processes(growth.others.clone()), last + warm_up, kept)?;
    let fleet = Fleet {
        fronts: Processes(fronts.iter().map(|front| front.pid).collect()),
        others: Processes(growth.others.clone()),
        load: Load::for_devices_at(last + warm_up, addresses.len())?,
        running: server.start()?,
        server,
        addresses,
        registers: growth.broadcasts > 0,
    };
    let steps = fleet.grow(growth, |step| {
        for figure in step.figures() {
            match shown {
                Shown::Json => say(&serde_json::to_string(&figure)?)?,
                Shown::Lines => say(&figure::line(&figure))?,
                // The table has no room for notes.
                Shown::Markdown => eprintln!("{}", figure::line(&figure)),
            }
        }
        Ok(())
    })?;
    if shown == Shown::Markdown {
        say(&format!("{}; {} fronts.\n\n{}", process::machine(), growth.fronts.len(), table(&steps)))?;
    }
    Ok(())
}

/// The installation and its devices.
struct Fleet {
    fronts: Processes,
    others: Processes,
    load: Load,
    running: Box<dyn Running>,
    server: Campanile,
    addresses: Vec<SocketAddr>,
    registers: bool,
}

impl Fleet {
    fn grow(mut self, growth: &Growth, mut told: impl FnMut(&Step) -> Result<()>) -> Result<Vec<Step>> {
        let mut there = WARM_UP * self.addresses.len();
        self.connect(0, there).context("the first connections")?;
        let before = (self.fronts.settled_memory()?, self.others.settled_memory()?);
        let first = there;
        let mut steps = Vec::new();
        for connections in &growth.steps {
            let spans = self.spans();
            let count = connections + first - there;
            let answer = self.connect(there, count)?;
            let n = answer.count;
            let (login_us, logins_per_second) = (spans.micros_each(n), spans.fronts.rate(n));
            there += count;
            let each = |now: Memory, before: Memory| {
                let kilobytes =
                    |now: u64, before: u64| (float(now) - float(before)) / float(*connections as u64) / 1024.0;
                PerConnection {
                    rss: kilobytes(now.rss, before.rss),
                    anonymous: kilobytes(now.anonymous, before.anonymous),
                }
            };
            let (fronts, others) = (self.fronts.settled_memory()?, self.others.settled_memory()?);
            let broadcast = self.registers.then(|| self.broadcasts(there, growth.broadcasts)).transpose()?;
            let step = Step {
                connections: *connections,
                fronts: each(fronts, before.0),
                others: each(others, before.1),
                logins_per_second,
                login_us,
                broadcast,
            };
            told(&step)?;
            steps.push(step);
        }
        Ok(steps)
    }

    /// Connects devices, each front its share.
    fn connect(&mut self, from: usize, count: usize) -> Result<Answer> {
        let to = *self.addresses.first().context("there is a front")?;
        let tls = Some(self.running.addresses().ca.clone());
        let order = connect_at(&self.server, self.running.as_ref(), (to, tls), count);
        let at_once = LOGINS_AT_ONCE * self.addresses.len();
        let app = self.server.app().filter(|_| self.registers);
        self.load.connect_to(&Connect { from, at_once, app, acks: self.registers, ..order }, &self.addresses)
    }

    /// One broadcast to warm up, then as many as are asked for, each to all who are there.
    fn broadcasts(&mut self, devices: usize, count: u64) -> Result<Delivered> {
        self.broadcast()?;
        std::thread::sleep(ACKS_TIME);
        let spans = self.spans();
        (0..count).try_for_each(|_| self.broadcast())?;
        let n = count * devices as u64;
        let per_second = spans.fronts.rate(n);
        std::thread::sleep(ACKS_TIME);
        Ok(Delivered { us: spans.micros_each(n), per_second })
    }

    fn broadcast(&mut self) -> Result<()> {
        self.load.forget()?;
        self.running.broadcast(1).context("an API has broadcasts")??;
        self.load.wait(1, BROADCAST_TIME_MAX)?;
        Ok(())
    }

    fn spans(&self) -> Spans {
        Spans {
            fronts: Span::of(&self.fronts),
            others: Span::of(&self.others),
            generator: Span::of(&self.load.processes()),
        }
    }
}

/// CPU from one moment on.
struct Spans {
    fronts: Span,
    others: Span,
    generator: Span,
}

impl Spans {
    fn micros_each(&self, n: u64) -> Cpu {
        let each = |span: &Span| span.micros_each(n);
        Cpu { fronts: each(&self.fronts), others: each(&self.others), generator: each(&self.generator) }
    }
}

impl Step {
    fn figures(&self) -> Vec<Figure> {
        let Self { connections, fronts, others, login_us, .. } = self;
        let figure = |what: &str, value: f64, unit: &str, notes: String| Figure {
            server: name(Kind::Campanile).to_owned(),
            what: format!("{connections} connections: {what}"),
            transport: Transport::Tls.name().to_owned(),
            value: Some(value),
            unit: unit.to_owned(),
            n: *connections as u64,
            notes,
        };
        let anonymous = |of: &PerConnection| format!("anonymous {:.2} KB", of.anonymous);
        let shares =
            |cpu: &Cpu| format!("{:.1} µs in other processes; the generator took {:.1} µs", cpu.others, cpu.generator);
        let mut figures = vec![
            figure("memory of the fronts for each", fronts.rss, "KB", anonymous(fronts)),
            figure("memory of other processes for each", others.rss, "KB", anonymous(others)),
            figure("logins of this step: CPU of the fronts", login_us.fronts, "µs", shares(login_us)),
            figure("logins of this step: rate", self.logins_per_second, "/s", "generator on the same cores".to_owned()),
        ];
        if let Some(Delivered { us, per_second }) = &self.broadcast {
            figures.push(figure("broadcast: CPU of the fronts per delivery", us.fronts, "µs", shares(us)));
            figures.push(figure("broadcast: rate", *per_second, "/s", "generator on the same cores".to_owned()));
        }
        figures
    }
}

/// A row for each step.
fn table(steps: &[Step]) -> String {
    let mut page = String::from(
        "| connections | fronts, each | other processes, each | logins | CPU of a login: fronts, others | broadcast's \
         deliveries | CPU of one: fronts, others |\n| --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for step in steps {
        let cpu = |cpu: &Cpu| format!("{:.1} + {:.1} µs", cpu.fronts, cpu.others);
        let (rate, us) = match &step.broadcast {
            Some(Delivered { us, per_second }) => (format!("{per_second:.0}/s"), cpu(us)),
            None => ("–".to_owned(), "–".to_owned()),
        };
        let _ = writeln!(
            page,
            "| {} | {:.2} KB | {:.2} KB | {:.0}/s | {} | {rate} | {us} |",
            step.connections,
            step.fronts.rss,
            step.others.rss,
            step.logins_per_second,
            cpu(&step.login_us),
        );
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_without_broadcasts_has_a_row_and_no_figure_of_them() {
        let cpu = || Cpu { fronts: 250.0, others: 120.0, generator: 300.0 };
        let each = || PerConnection { rss: 2.5, anonymous: 2.25 };
        let step = |broadcast| Step {
            connections: 10_000,
            fronts: each(),
            others: each(),
            logins_per_second: 1234.4,
            login_us: cpu(),
            broadcast,
        };
        let bound = step(None);
        assert_eq!(bound.figures().len(), 4);
        assert!(table(&[bound]).ends_with("| 10000 | 2.50 KB | 2.50 KB | 1234/s | 250.0 + 120.0 µs | – | – |\n"));
        let registered = step(Some(Delivered { us: cpu(), per_second: 99.9 }));
        assert_eq!(registered.figures().len(), 6);
        assert!(table(&[registered]).ends_with("| 100/s | 250.0 + 120.0 µs |\n"));
    }
}
