//! How the parts are put together, from top to bottom: data folder, identity, engines, tiers, listeners; then the process
//! runs until it is told to stop, and the parts end in the opposite order. The role says which tiers there are.

mod engines;
pub mod migration;
mod tiers;
mod waiting;
mod websocket;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use http_frontend::BoundHttp;
use idl::bus::Ownership;
use idl::clock::{SharedClock, SharedEntropy, SystemClock, SystemEntropy};
use idl::error::Failure;
use idl::ids::Partition;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use xmpp_frontend::BoundFront;

use self::engines::{Carrier, Stores};
use self::tiers::Decider;
use crate::admin::{Admin, App, Ask};
use crate::config::{BusKind, Config, Role};
use crate::data_folder::{DataFolder, Owned};
use crate::identity::{LiveCertificate, ServerKeys};
use crate::lifecycle::{self, Health, Orders, Running};
use crate::socket::{AdminSocket, Process, Run};
use crate::telemetry::figures::Engines;
use crate::telemetry::{self, Metrics};

/// Between two tries to make the demo application.
const BETWEEN_DEMOS: Duration = Duration::from_millis(100);

/// A server that serves, as it is announced.
pub struct Ready {
    /// What `run.json` says.
    pub run: Run,
    /// The data folder.
    pub folder: DataFolder,
    /// The demo application, with its secret if that is known here.
    pub demo: Option<App>,
}

/// What every part is built from.
struct Place<'a> {
    config: &'a Config,
    folder: &'a DataFolder,
    clock: SharedClock,
    entropy: SharedEntropy,
    health: Health,
}

/// Runs the server until it is told to stop: by a signal, through its socket, or by `orders`. Every listener is bound and
/// `run.json` is written when `announce` is called. An error means that it could not start, that a part of it crashed,
/// or that its drain took too long. An engine that does not answer is no error: it is waited for.
pub async fn serve(config: Config, orders: Orders, announce: impl FnOnce(&Ready)) -> Result<()> {
    let Orders { stop, reload } = orders;
    let role = config.role;
    // What must outlive a crash: the folder, and who this server is.
    let folder = DataFolder::at(config.data());
    folder.create()?;
    let _owned = folder.own()?;
    folder.note_role(role)?;
    let place = Place::new(&config, &folder, Health::new(stop.clone()));
    let mut registry = telemetry::registry();
    let certificate = match role {
        Role::Middle => None,
        _ => Some(Arc::new(LiveCertificate::load(&config, &folder, &place.clock, &mut registry)?)),
    };
    let keys = match role {
        Role::Http => None,
        _ => Some(ServerKeys::of(&config, &folder, place.entropy.as_ref())?),
    };

    // What is told while the rest starts.
    let (drain_fronts, drain_middle, drain_watchers) =
        (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let (mut fronts, mut middles, mut watchers) = (Running::default(), Running::default(), Running::default());
    let metrics = Metrics::default();
    let telemetry = match config.telemetry.listen.0 {
        Some(address) => {
            let telemetry = telemetry::bind(address, metrics.clone(), place.health.clone()).await?;
            let address = telemetry.address()?;
            watchers.start("telemetry", telemetry.serve(drain_watchers.clone()));
            Some(address)
        }
        None => None,
    };

    // The engines: the bus for every role, the stores for the middle tier.
    let (carrier, mut stores) = tokio::select! {
        opened = open(&place, &mut registry) => opened?,
        () = stop.cancelled() => {
            tracing::info!("stopped before it had started");
            return Ok(());
        }
    };
    for (engine, pulse) in stores.iter_mut().flat_map(|stores| std::mem::take(&mut stores.pulses)) {
        watchers.start(engine, pulse.until(drain_watchers.clone()));
    }

    // The tiers of the role. From here on ports are known.
    let decider = match (stores, &keys) {
        (Some(stores), Some(keys)) => Some(tiers::middle(&place, &carrier, stores, keys, &mut registry)?),
        _ => None,
    };
    let front = match (&keys, &certificate) {
        (Some(keys), Some(certificate)) if role.has_front() => {
            Some(tiers::front(&place, &carrier, keys, certificate, &mut registry).await?)
        }
        _ => None,
    };
    let http = match &certificate {
        Some(certificate) if role.has_http() => {
            let front = front.as_ref().map(BoundFront::acceptor);
            Some(tiers::http(&place, carrier.bus(), front, keys.as_ref(), certificate, &mut registry).await?)
        }
        _ => None,
    };
    registry.register_collector(Box::new(Engines(place.health.clone())));
    metrics.publish(registry);
    let xmpp = front.as_ref().map(BoundFront::addresses).unwrap_or_default();
    let listeners = tiers::listeners(xmpp, http.as_ref().map(BoundHttp::addresses), telemetry);
    let socket = AdminSocket::bind(&folder)?;

    // Everything runs: the middle first, so that nobody asks in vain.
    let tasks = TaskTracker::new();
    let ownership = decider.as_ref().map(|decider| decider.ownership.clone());
    if let Some(Decider { middle, .. }) = decider {
        middles.start("middle-tier", middle.serve(drain_middle.clone()));
    }
    if let Some(front) = front {
        let acceptor = front.acceptor();
        place.health.watch("xmpp-frontend", move || acceptor.is_ready());
        fronts.start("xmpp-frontend", front.serve(drain_fronts.clone(), tasks.clone()));
    }
    if let Some(http) = http {
        http.set_endpoints(tiers::endpoints(&config, xmpp));
        fronts.start("http-frontend", http.serve(drain_fronts.clone(), tasks.clone()));
    }
    let admin = Admin::new(carrier.bus(), folder.clone());
    let run = Run {
        pid: std::process::id(),
        role: role.name().to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        listeners,
        ca: certificate.as_ref().and_then(|certificate| certificate.current().ca),
    };
    if let Some(certificate) = &certificate {
        watchers.start("certificate", Arc::clone(certificate).watch(reload, drain_watchers.clone()));
    }
    let status = status(&run, &place, ownership);
    let process = Process { status, certificate, stop: stop.clone() };
    watchers.start("admin socket", socket.serve(admin.clone(), process, drain_watchers.clone(), tasks.clone()));

    // Ready, unless it is told to stop, or a part crashes, before that.
    let mut published = None;
    let crash = {
        let crashed = async {
            tokio::select! {
                error = middles.crashed() => error,
                error = fronts.crashed() => error,
                error = watchers.crashed() => error,
            }
        };
        let living = async {
            place.health.tiers_ready().await;
            let demo = demo(&config, &admin).await?;
            place.health.started();
            published = Some(run.publish(&folder)?);
            lifecycle::notify_ready();
            tracing::info!(listeners = ?run.listeners, "ready");
            announce(&Ready { run, folder: folder.clone(), demo });
            std::future::pending::<Result<()>>().await
        };
        tokio::select! {
            () = stop.cancelled() => None,
            error = crashed => Some(error),
            failed = living => failed.err(),
        }
    };

    // The end, in the opposite order. What ends last can still be asked.
    if let Some(error) = &crash {
        tracing::error!(%error, "shutting down");
    }
    stop.cancel();
    lifecycle::notify_stopping();
    let drained = lifecycle::within(config.limits.drain_max, async {
        drain_fronts.cancel();
        fronts.ended().await?;
        tasks.close();
        // Commands at the socket are among the tasks.
        drain_watchers.cancel();
        tasks.wait().await;
        // While the middle still serves: it ends what it has of each partition that another one takes over. One that crashed
        // ends nothing; others take over when its lease has run out.
        if crash.is_none() {
            carrier.detach().await;
        }
        drain_middle.cancel();
        middles.ended().await?;
        watchers.ended().await
    })
    .await;
    drop(published);
    tracing::info!("stopped");
    match crash {
        Some(error) => Err(error),
        None => drained,
    }
}

/// Opens the stores of a folder that no server owns, and does one thing with them.
pub async fn without_server(config: &Config, _owned: &Owned, ask: Ask) -> Result<Value> {
    let folder = DataFolder::at(config.data());
    if let Some(role) = folder.role() {
        bail!(
            "the data folder {} is that of a process with role = {role:?}, which does not run: its applications are not \
             in there; ask a process of the installation that runs, with --data, or give the settings with --config",
            folder.path().display()
        );
    }
    let place = Place::new(config, &folder, Health::new(CancellationToken::new()));
    let keys = ServerKeys::of(config, &folder, place.entropy.as_ref())?;
    let mut registry = Registry::default();
    let carrier = Carrier::open(&place, &mut registry).await?;
    let stores = Stores::open(&place, &mut registry).await?;
    let Decider { middle, .. } = tiers::middle(&place, &carrier, stores, &keys, &mut registry)?;
    let drain = CancellationToken::new();
    let serving = tokio::spawn(middle.serve(drain.clone()));
    let answer = Admin::new(carrier.bus(), folder.clone()).perform(ask).await;
    drain.cancel();
    serving.await.context("the middle tier crashed")?;
    answer.map_err(|failure| anyhow!(failure.description))
}

impl<'a> Place<'a> {
    fn new(config: &'a Config, folder: &'a DataFolder, health: Health) -> Self {
        Self { config, folder, clock: Arc::new(SystemClock), entropy: Arc::new(SystemEntropy), health }
    }
}

async fn open(place: &Place<'_>, registry: &mut Registry) -> Result<(Carrier, Option<Stores>)> {
    let carrier = Carrier::open(place, registry).await?;
    let stores = if place.config.role.has_middle() { Some(Stores::open(place, registry).await?) } else { None };
    Ok((carrier, stores))
}

/// The demo application, for who tries Campanile: whoever runs roles makes the applications that are wanted.
async fn demo(config: &Config, admin: &Admin) -> Result<Option<App>> {
    if config.role != Role::All {
        return Ok(None);
    }
    let mut made = admin.demo().await;
    // A bus between processes may need a moment until this one is a middle of it.
    while config.bus.kind != BusKind::InProcess
        && let Err(error) = &made
        && error.downcast_ref().is_some_and(|failure: &Failure| failure.code.retryable())
    {
        tracing::debug!(%error, "the demo application is asked for again");
        sleep(BETWEEN_DEMOS).await;
        made = admin.demo().await;
    }
    made.context("the demo application can't be made")
}

fn status(run: &Run, place: &Place<'_>, ownership: Option<Ownership>) -> Arc<dyn Fn() -> Value + Send + Sync> {
    let (run, health, clock) = (run.clone(), place.health.clone(), Arc::clone(&place.clock));
    let started_ms = clock.now_ms();
    Arc::new(move || {
        let mut status = json!(run);
        status["state"] = json!(health.not_ready_because().unwrap_or_else(|| "ready".to_owned()));
        status["uptime_s"] = json!(clock.now_ms().saturating_sub(started_ms) / 1000);
        let engines = health.engines().into_iter().map(|(engine, state)| (engine, state.to_string()));
        status["engines"] = json!(engines.collect::<BTreeMap<_, _>>());
        if let Some(ownership) = &ownership {
            let own = Partition::all().filter(|partition| ownership.hold(*partition).term().is_some());
            status["partitions"] = json!(own.map(Partition::number).collect::<Vec<_>>());
        }
        status
    })
}
