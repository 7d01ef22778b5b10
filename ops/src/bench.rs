//! `campanile bench`: what servers cost, measured from outside their processes.
//!
//! The bench starts the server under test as a child, on free ports and in a folder that goes with it, drives it from
//! processes of its own, and reads nothing of it but `/proc`. Peers (ejabberd, Mosquitto) get the same runs where their
//! protocols allow, if the system has them. A server may be several processes: their figures are sums.
//!
//! `runs.rs` says what is measured, `server.rs` what a server under test must offer, `order.rs` what the bench says to
//! its worker processes, `worker.rs` and `devices.rs` what those do.

mod campanile;
mod devices;
mod ejabberd;
mod figure;
mod growth;
mod hostile;
mod link;
mod load;
mod mosquitto;
mod mqtt;
mod order;
mod peer_files;
mod process;
mod push;
mod rate;
mod records;
mod runs;
mod scram;
mod sender;
mod server;
mod slim;
mod worker;
mod xmpp;

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result, anyhow, bail};

use self::campanile::{Campanile, Program};
use self::ejabberd::Ejabberd;
use self::figure::Figure;
use self::load::THIS_PROGRAM;
use self::mosquitto::Mosquitto;
use self::process::Processes;
use self::runs::{Bench, Sizes};
use self::server::{Server, Transport};
use crate::lifecycle::raise_file_limit;

pub(crate) use self::growth::{Growth, run as run_growth};
pub(crate) use self::hostile::run_peers;
pub(crate) use self::order::Kind;
pub(crate) use self::worker::run as run_worker;

/// What is measured, and of what.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The servers, one after the other.
    pub(crate) servers: Vec<Kind>,
    /// The runs of each.
    pub(crate) parts: Vec<Part>,
    /// Without TLS.
    pub(crate) plain: bool,
    /// With TLS.
    pub(crate) tls: bool,
    /// Connections that stay.
    pub(crate) connections: usize,
    /// Logins.
    pub(crate) logins: usize,
    /// Broadcasts.
    pub(crate) broadcasts: u64,
    /// Rates of single messages, each second.
    pub(crate) rates: Vec<u64>,
    /// How long each rate is kept up.
    pub(crate) seconds: u64,
    /// Messages whose bytes are counted.
    pub(crate) messages: u64,
    /// The binary that is Campanile; this one without it.
    pub(crate) binary: Option<PathBuf>,
    /// Data folder of one that runs already and is measured instead.
    pub(crate) running: Option<PathBuf>,
    /// Its processes, if they are not the one of that folder.
    pub(crate) pids: Vec<u32>,
    /// Settings for the one that is started.
    pub(crate) settings: Vec<(String, String)>,
}

/// One kind of runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Memory of idle connections.
    Idle,
    /// Logins.
    Login,
    /// Broadcasts.
    Broadcast,
    /// Single messages.
    Latency,
    /// Bytes.
    Wire,
    /// Single messages while the server is attacked.
    Hostile,
}

/// How figures are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    /// As they come, for people, and the ratios at the end.
    Lines,
    /// As they come, one JSON object each.
    Json,
    /// As they come on stderr, and one table at the end.
    Markdown,
}

/// Runs the plan. `say` gets each line of output.
pub(crate) fn run(plan: &Plan, shown: Shown, say: impl Fn(&str) -> Result<()>) -> Result<()> {
    let sizes = Sizes {
        connections: plan.connections,
        logins: plan.logins,
        broadcasts: plan.broadcasts,
        rates: plan.rates.clone(),
        seconds: plan.seconds,
        messages: plan.messages,
    };
    // Servers that are started here inherit it.
    raise_file_limit();
    let stopped = process::end_family_on_signals()?;
    let (mut figures, mut versions, mut failures): (Vec<Figure>, Vec<String>, u32) = (Vec::new(), Vec::new(), 0);
    for kind in &plan.servers {
        let mut told = |figure: Figure| {
            match shown {
                Shown::Lines => say(&figure::line(&figure))?,
                Shown::Json => say(&serde_json::to_string(&figure)?)?,
                // The table has no room for notes.
                Shown::Markdown => eprintln!("{}", figure::line(&figure)),
            }
            figures.push(figure);
            Ok(())
        };
        let name = runs::name(*kind);
        let Some(server) = prepare(*kind, plan, &sizes).with_context(|| format!("{name} can't be prepared"))? else {
            told(without_value(*kind, "all", "", "not installed".to_owned()))?;
            continue;
        };
        versions.push(format!("{name} {}", server.version()));
        for part in &plan.parts {
            for (transport, wanted) in [(Transport::Plain, plan.plain), (Transport::Tls, plan.tls)] {
                if !wanted {
                    continue;
                }
                let mut bench = Bench { sizes: &sizes, told: &mut told };
                let done = match part {
                    Part::Idle => bench.idle(server.as_ref(), transport),
                    Part::Login => bench.login(server.as_ref(), transport),
                    Part::Broadcast => bench.broadcast(server.as_ref(), transport),
                    Part::Latency => bench.latency(server.as_ref(), transport),
                    Part::Wire => bench.wire(server.as_ref(), transport),
                    Part::Hostile => bench.hostile(server.as_ref(), transport),
                };
                if stopped.load(Ordering::Relaxed) {
                    bail!("stopped by a signal");
                }
                if let Err(error) = done {
                    // The others are worth having.
                    failures += 1;
                    told(without_value(*kind, name_of(*part), transport.name(), format!("failed: {error:#}")))?;
                }
            }
        }
    }
    match shown {
        Shown::Lines => say(&figure::ratios(&figures))?,
        Shown::Markdown => {
            let sizes =
                format!("{} connections, {} logins, {} broadcasts", sizes.connections, sizes.logins, sizes.broadcasts);
            say(&format!(
                "{}; {}; {sizes}.\n\n{}",
                process::machine(),
                versions.join(", "),
                figure::markdown(&figures)
            ))?;
        }
        Shown::Json => {}
    }
    if failures > 0 { Err(anyhow!("{failures} of the runs failed")) } else { Ok(()) }
}

/// Installs a server in a folder and makes its accounts; `None` if the system does not have it.
fn prepare(kind: Kind, plan: &Plan, sizes: &Sizes) -> Result<Option<Box<dyn Server>>> {
    let mut count = sizes.devices();
    Ok(match kind {
        Kind::Campanile => {
            let mut settings = plan.settings.clone();
            if plan.parts.contains(&Part::Hostile) {
                count = count.max(sizes.connections + hostile::accounts());
                settings = hostile::settings().chain(settings).collect();
            }
            let server = if let Some(data) = &plan.running {
                Campanile::attach(data, Processes(plan.pids.clone()), count)?
            } else {
                let binary = plan.binary.clone().unwrap_or_else(|| PathBuf::from(THIS_PROGRAM));
                Campanile::prepare(Program { binary, settings }, count)?
            };
            Some(Box::new(server))
        }
        Kind::Ejabberd => Ejabberd::prepare(count)?.map(|server| Box::new(server) as Box<dyn Server>),
        Kind::Mosquitto => Mosquitto::prepare(count)?.map(|server| Box::new(server) as Box<dyn Server>),
    })
}

fn without_value(kind: Kind, what: &str, transport: &str, notes: String) -> Figure {
    Figure {
        server: runs::name(kind).to_owned(),
        what: what.to_owned(),
        transport: transport.to_owned(),
        value: None,
        unit: String::new(),
        n: 0,
        notes,
    }
}

fn name_of(part: Part) -> &'static str {
    match part {
        Part::Idle => "idle connections",
        Part::Login => "logins",
        Part::Broadcast => "broadcasts",
        Part::Latency => "single messages",
        Part::Wire => "bytes",
        Part::Hostile => "hostile peers",
    }
}
