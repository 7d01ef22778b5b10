//! `campanile bench`: measures this server, and others beside it.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use super::{Settings, Usage, say_line};
use crate::bench::{self, Growth, Kind, Part, Plan, Shown};

/// Measure what a server costs, from outside its process.
///
/// Starts each server as a child on free ports of loopback, in a temporary folder, drives it from worker processes, and
/// reads its memory and CPU in /proc. Run it with a release build, on a machine that does nothing else: the generator
/// needs cores, too, and what it took is told with each figure. Every run begins with a new server process.
#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub(super) struct Bench {
    /// What to measure
    #[arg(value_enum, default_value = "all")]
    what: What,
    /// Which servers; may be repeated [default: all that are installed]
    #[arg(long, value_enum)]
    server: Vec<Kind>,
    /// Only with TLS
    #[arg(long, conflicts_with = "plain")]
    tls: bool,
    /// Only without TLS
    #[arg(long)]
    plain: bool,
    /// Connections that stay [default: 5000; among hostile peers 10000]
    #[arg(long, value_name = "N")]
    connections: Option<usize>,
    /// Logins
    #[arg(long, value_name = "N", default_value_t = 5000)]
    logins: usize,
    /// Broadcasts, each to all connections
    #[arg(long, value_name = "N", default_value_t = 40)]
    broadcasts: u64,
    /// Single messages a second; may be repeated [default: 100, 1000, and 70 % of the highest rate that a ramp finds]
    #[arg(long, value_name = "N")]
    rate: Vec<u64>,
    /// How long each rate is kept up
    #[arg(long, value_name = "N", default_value_t = 10)]
    seconds: u64,
    /// Messages whose bytes are counted
    #[arg(long, value_name = "N", default_value_t = 200)]
    messages: u64,
    /// Another binary of Campanile to measure
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Measure the Campanile that runs on the data folder, and start none; each run then finds what those before left
    #[arg(long, conflicts_with_all = ["binary", "with"])]
    running: bool,
    /// Of growth: the data folder of a front; may be repeated
    #[arg(long, value_name = "FOLDER", requires = "running")]
    front: Vec<PathBuf>,
    /// Of growth: connections at one step; may be repeated [default: 10000, 50000, 150000]
    #[arg(long, value_name = "N")]
    step: Vec<usize>,
    /// Of growth: a file with accounts, made where it is missing or has too few
    #[arg(long, value_name = "FILE")]
    accounts: Option<PathBuf>,
    /// A process of it, if it has several; may be repeated [default: the one of the data folder]
    #[arg(long, value_name = "PID", requires = "running")]
    pid: Vec<u32>,
    /// A setting for the Campanile that is measured; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    with: Vec<String>,
    /// Print the table of docs/benchmarks.md, and each figure with its notes on stderr
    #[arg(long)]
    markdown: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Everything
    All,
    /// Memory of idle connections
    Idle,
    /// CPU and rate of logins
    Login,
    /// CPU and rate of broadcasts
    Broadcast,
    /// Times of single messages
    Latency,
    /// Bytes on the wire
    Wire,
    /// What a connection costs as there are more of them, at several fronts of an installation that runs (--running,
    /// --front); registered, if there are --broadcasts, and else only bound. Not among all
    Growth,
    /// Times of single messages while the server is attacked, and which limit cut whom; of Campanile alone, and not part of all
    Hostile,
    /// The process of hostile peers, which takes its order from the bench
    #[value(hide = true)]
    HostilePeers,
    /// A process of the generator, which takes its orders from the bench
    #[value(hide = true)]
    Worker,
}

impl Bench {
    /// Measures and prints.
    pub(super) fn run(self, settings: &Settings) -> Result<()> {
        let parts = match self.what {
            What::Worker => return bench::run_worker(),
            What::All => vec![Part::Idle, Part::Login, Part::Broadcast, Part::Latency, Part::Wire],
            What::Idle => vec![Part::Idle],
            What::Login => vec![Part::Login],
            What::Broadcast => vec![Part::Broadcast],
            What::Latency => vec![Part::Latency],
            What::Wire => vec![Part::Wire],
            What::Growth => return self.grow(settings),
            What::Hostile => vec![Part::Hostile],
            What::HostilePeers => return bench::run_peers(),
        };
        let is_hostile = self.what == What::Hostile;
        let connections = self.connections.unwrap_or(if is_hostile { 10_000 } else { 5000 });
        if connections == 0 {
            return Err(Usage("--connections must be above 0".to_owned()).into());
        }
        let servers = match self.server {
            servers if servers.is_empty() && is_hostile => vec![Kind::Campanile],
            servers if servers.is_empty() => vec![Kind::Campanile, Kind::Ejabberd, Kind::Mosquitto],
            servers => servers,
        };
        if is_hostile && (servers != [Kind::Campanile] || self.running) {
            return Err(Usage("hostile peers are for a Campanile that the bench has started".to_owned()).into());
        }
        let with = |set: &String| -> Result<(String, String)> {
            let (key, value) =
                set.split_once('=').with_context(|| Usage(format!("--with {set} must be --with KEY=VALUE")))?;
            Ok((key.to_owned(), value.to_owned()))
        };
        let running = if self.running { Some(settings.load(&[])?.data().to_owned()) } else { None };
        let plan = Plan {
            servers,
            parts,
            plain: !self.tls,
            tls: !self.plain,
            connections,
            logins: self.logins,
            broadcasts: self.broadcasts,
            rates: self.rate,
            seconds: self.seconds,
            messages: self.messages,
            binary: self.binary,
            running,
            pids: self.pid,
            settings: self.with.iter().map(with).collect::<Result<_>>()?,
        };
        bench::run(&plan, shown(settings, self.markdown), say_line)
    }

    fn grow(self, settings: &Settings) -> Result<()> {
        if !self.running {
            return Err(Usage("growth measures an installation that runs: --running".to_owned()).into());
        }
        let growth = Growth {
            data: settings.load(&[])?.data().to_owned(),
            fronts: self.front,
            others: self.pid,
            steps: if self.step.is_empty() { vec![10_000, 50_000, 150_000] } else { self.step },
            broadcasts: self.broadcasts,
            accounts: self.accounts,
        };
        bench::run_growth(&growth, shown(settings, self.markdown), say_line)
    }
}

fn shown(settings: &Settings, markdown: bool) -> Shown {
    if settings.json {
        Shown::Json
    } else if markdown {
        Shown::Markdown
    } else {
        Shown::Lines
    }
}
