//! How the parts are put together, from top to bottom: data folder, identity, stores, bus, tiers, listeners; then the
//! server runs until it is told to stop, and the parts end in the opposite order.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use http_frontend::{Endpoint, EndpointTls, Http};
use idl::bus::{Bus, InProcess};
use idl::clock::{SharedClock, SharedEntropy, SystemClock, SystemEntropy};
use idl::ids::FrontId;
use middle_tier::Middle;
use prometheus_client::registry::Registry;
use schema::cache::in_process::InProcessCache;
use schema::catalog::sqlite::SqliteCatalog;
use schema::sorted::embedded::EmbeddedStore;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use xmpp_frontend::Front;

use crate::admin::{Admin, App, Ask};
use crate::callbacks::CallbackClient;
use crate::config::Config;
use crate::data_folder::{DataFolder, Owned};
use crate::identity::{LiveCertificate, ServerKeys};
use crate::lifecycle::{self, Health, Orders, Running};
use crate::socket::{AdminSocket, Process, Run};
use crate::telemetry;

/// A server that serves, as it is announced.
pub struct Ready {
    /// What `run.json` says.
    pub run: Run,
    /// The data folder.
    pub folder: DataFolder,
    /// The demo application, with its secret if that is known here.
    pub demo: Option<App>,
}

/// Runs the server until it is told to stop: by a signal, through its socket, or by `orders`. Every listener is bound and
/// `run.json` is written when `announce` is called. An error means that it could not start, that a part of it crashed,
/// or that its drain took too long.
pub async fn serve(config: Config, orders: Orders, announce: impl FnOnce(&Ready)) -> Result<()> {
    let Orders { stop, reload } = orders;
    // What must outlive a crash: the folder, and who this server is.
    let folder = DataFolder::at(config.data());
    folder.create()?;
    let _owned = folder.own()?;
    let clock: SharedClock = Arc::new(SystemClock);
    let entropy: SharedEntropy = Arc::new(SystemEntropy);
    let mut registry = telemetry::registry();
    let certificate = Arc::new(LiveCertificate::load(&config, &folder, &clock, &mut registry)?);

    // The middle tier on its stores, and the bus to it.
    let keys = ServerKeys::load_or_make(&folder, entropy.as_ref())?;
    let Core { bus, middle } = core(&config, &folder, &keys, &clock, &entropy, &mut registry)?;

    // The tiers that face outwards.
    let front_id = front_id(&clock, &entropy);
    let front = Front::build(
        front_config(&config),
        xmpp_frontend::Dependencies {
            bus: Arc::clone(&bus) as Arc<dyn Bus>,
            inbox: bus.attach_front(front_id),
            front: front_id,
            keys: keys.tokens,
            tls: certificate.tls(&[b"xmpp-client"])?,
            clock: Arc::clone(&clock),
            entropy,
        },
        &mut registry,
    );
    let http = Http::build(
        http_config(&config),
        http_frontend::Dependencies {
            bus: Arc::clone(&bus) as Arc<dyn Bus>,
            tls: certificate.tls(&[])?,
            clock: Arc::clone(&clock),
        },
        &mut registry,
    );

    // Listeners. From here on ports are known.
    let front = front.bind().await.map_err(|error| unbound(&error, "xmpp.starttls, xmpp.tls or xmpp.plain"))?;
    let http = http.bind().await.map_err(|error| unbound(&error, "http.https or http.plain"))?;
    http.set_endpoints(endpoints(&config, front.addresses()));
    let mut health = Health::new(stop.clone());
    let acceptor = front.acceptor();
    health.watch("xmpp-frontend", move || acceptor.is_ready());
    let mut listeners = listeners(front.addresses(), http.addresses());
    let telemetry = match config.telemetry.listen.0 {
        Some(address) => Some(telemetry::bind(address, Arc::new(registry), health.clone()).await?),
        None => None,
    };
    if let Some(telemetry) = &telemetry {
        listeners.insert("telemetry.listen".to_owned(), telemetry.address()?);
    }
    let socket = AdminSocket::bind(&folder)?;

    // Everything runs: the middle first, so that nobody asks in vain.
    let (drain_fronts, drain_middle, drain_watchers) =
        (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let tasks = TaskTracker::new();
    let (mut fronts, mut middles, mut watchers) = (Running::default(), Running::default(), Running::default());
    middles.start("middle-tier", middle.serve(drain_middle.clone()));
    fronts.start("xmpp-frontend", front.serve(drain_fronts.clone(), tasks.clone()));
    fronts.start("http-frontend", http.serve(drain_fronts.clone(), tasks.clone()));
    if let Some(telemetry) = telemetry {
        watchers.start("telemetry", telemetry.serve(drain_watchers.clone()));
    }
    let admin = Admin::new(Arc::clone(&bus) as Arc<dyn Bus>, folder.clone());
    let demo = admin.demo().await.context("the demo application can't be made")?;
    let run = Run {
        pid: std::process::id(),
        role: config.role.name().to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        listeners,
        ca: certificate.current().ca,
    };
    watchers.start("certificate", Arc::clone(&certificate).watch(reload, drain_watchers.clone()));
    let process = Process { status: status(&run, &health, &clock), certificate, stop: stop.clone() };
    watchers.start("admin socket", socket.serve(admin, process, drain_watchers.clone(), tasks.clone()));

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
            health.tiers_ready().await;
            health.started();
            published = Some(run.publish(&folder)?);
            lifecycle::notify_ready();
            tracing::info!(listeners = ?run.listeners, "ready");
            announce(&Ready { run, folder, demo });
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
    let clock: SharedClock = Arc::new(SystemClock);
    let entropy: SharedEntropy = Arc::new(SystemEntropy);
    let keys = ServerKeys::load_or_make(&folder, entropy.as_ref())?;
    let Core { bus, middle } = core(config, &folder, &keys, &clock, &entropy, &mut Registry::default())?;
    let drain = CancellationToken::new();
    let serving = tokio::spawn(middle.serve(drain.clone()));
    let answer = Admin::new(bus, folder).perform(ask).await;
    drain.cancel();
    serving.await.context("the middle tier crashed")?;
    answer.map_err(|failure| anyhow!(failure.description))
}

/// The bus and the middle tier on its stores: what every role `all` and every command on the store has.
struct Core {
    bus: Arc<InProcess>,
    middle: Middle,
}

fn core(
    config: &Config,
    folder: &DataFolder,
    keys: &ServerKeys,
    clock: &SharedClock,
    entropy: &SharedEntropy,
    registry: &mut Registry,
) -> Result<Core> {
    let limits = &config.limits;
    let store = EmbeddedStore::open(&folder.store(), Arc::clone(clock), limits.store.clone())
        .with_context(|| format!("the store {} can't be opened", folder.store().display()))?;
    registry.register_collector(Box::new(telemetry::Store(store.metrics())));
    let catalog = SqliteCatalog::open(&folder.catalog())?;
    let cache = InProcessCache::new(Arc::clone(clock), Arc::clone(entropy), limits.cache);
    let bus = Arc::new(InProcess::new(limits.bus, Arc::clone(clock), Arc::clone(entropy)));
    let middle = Middle::build(
        limits.middle.clone(),
        middle_tier::Dependencies {
            bus: Arc::clone(&bus) as Arc<dyn Bus>,
            inbox: bus.attach_middle(),
            sorted: Arc::new(store),
            catalog: Arc::new(catalog),
            cache: Arc::new(cache),
            poster: Arc::new(CallbackClient::new(&config.callbacks, limits.callbacks)?),
            keys: keys.tokens.clone(),
            regid_key: keys.regid.clone(),
            clock: Arc::clone(clock),
            entropy: Arc::clone(entropy),
        },
        registry,
    );
    Ok(Core { bus, middle })
}

fn front_config(config: &Config) -> xmpp_frontend::Config {
    xmpp_frontend::Config {
        domain: config.domain.0.clone(),
        starttls: config.xmpp.starttls.0,
        tls: config.xmpp.tls.0,
        plain: config.xmpp.plain.0,
        allow_plain_remote: config.allow_plain_remote,
        limits: config.limits.xmpp.clone(),
    }
}

fn http_config(config: &Config) -> http_frontend::Config {
    http_frontend::Config {
        https: config.http.https.0,
        plain: config.http.plain.0,
        allow_plain_remote: config.allow_plain_remote,
        endpoints: Vec::new(),
        domain: config.domain.0.clone(),
        limits: config.limits.http.clone(),
    }
}

/// Where devices are told to connect.
fn endpoints(config: &Config, addresses: xmpp_frontend::Addresses) -> Vec<Endpoint> {
    let advertised = &config.xmpp.advertised_host;
    let host = if advertised.is_empty() { &config.domain.0 } else { advertised };
    [(addresses.tls, EndpointTls::Direct), (addresses.starttls, EndpointTls::StartTls)]
        .into_iter()
        .filter_map(|(address, tls)| Some(Endpoint { host: host.clone(), port: address?.port(), tls }))
        .collect()
}

fn listeners(xmpp: xmpp_frontend::Addresses, http: http_frontend::Addresses) -> BTreeMap<String, SocketAddr> {
    let all = [
        ("xmpp.starttls", xmpp.starttls),
        ("xmpp.tls", xmpp.tls),
        ("xmpp.plain", xmpp.plain),
        ("http.https", http.https),
        ("http.plain", http.plain),
    ];
    all.into_iter().filter_map(|(key, address)| Some((key.to_owned(), address?))).collect()
}

fn status(run: &Run, health: &Health, clock: &SharedClock) -> Arc<dyn Fn() -> Value + Send + Sync> {
    let (run, health, clock) = (run.clone(), health.clone(), Arc::clone(clock));
    let started_ms = clock.now_ms();
    Arc::new(move || {
        let mut status = json!(run);
        status["state"] = json!(health.not_ready_because().unwrap_or_else(|| "ready".to_owned()));
        status["uptime_s"] = json!(clock.now_ms().saturating_sub(started_ms) / 1000);
        status
    })
}

/// A front that starts again is another front.
fn front_id(clock: &SharedClock, entropy: &SharedEntropy) -> FrontId {
    let mut random = [0; 16];
    entropy.fill(&mut random);
    FrontId(FrontId::at(clock.now_ms()).0 | u128::from_be_bytes(random) >> 48)
}

fn unbound(error: &io::Error, keys: &str) -> anyhow::Error {
    anyhow!("{error}; set {keys} to another address, or to \"\" for none")
}
