//! How the process lives and ends: signals, readiness, the drain, and what happens when a part of it crashes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How often a tier that is not ready is looked at while the server starts.
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

/// Whether the server can serve. Clones are of one server.
#[derive(Clone)]
pub struct Health {
    started: Arc<AtomicBool>,
    stop: CancellationToken,
    watched: Arc<RwLock<Watched>>,
}

#[derive(Default)]
struct Watched {
    tiers: Vec<(&'static str, IsReady)>,
    engines: Vec<(&'static str, Trouble)>,
}

type IsReady = Arc<dyn Fn() -> bool + Send + Sync>;
type Trouble = Arc<dyn Fn() -> Option<String> + Send + Sync>;

impl Health {
    /// Of a server that has not started yet, and ends when `stop` is cancelled.
    pub fn new(stop: CancellationToken) -> Self {
        Self { started: Arc::default(), stop, watched: Arc::default() }
    }

    /// Asks a tier, too.
    pub fn watch(&self, tier: &'static str, ready: impl Fn() -> bool + Send + Sync + 'static) {
        self.watched.write().unwrap_or_else(PoisonError::into_inner).tiers.push((tier, Arc::new(ready)));
    }

    /// Asks an engine that others run, too, for what is wrong with it. Several may have the same name.
    pub fn watch_engine(&self, engine: &'static str, trouble: impl Fn() -> Option<String> + Send + Sync + 'static) {
        self.watched.write().unwrap_or_else(PoisonError::into_inner).engines.push((engine, Arc::new(trouble)));
    }

    /// From now on it has started.
    pub fn started(&self) {
        self.started.store(true, Ordering::Relaxed);
    }

    /// Waits until every engine is there and every tier is ready.
    pub async fn tiers_ready(&self) {
        while !self.away().is_empty() || self.unready_tier().is_some() {
            sleep(BETWEEN_LOOKS).await;
        }
    }

    /// Why it is not ready; `None` when it is.
    pub fn not_ready_because(&self) -> Option<String> {
        if self.stop.is_cancelled() {
            return Some("draining".to_owned());
        }
        let away = self.away();
        if !away.is_empty() {
            return Some(format!("waiting for {}", away.into_iter().collect::<Vec<_>>().join(", ")));
        }
        if !self.started.load(Ordering::Relaxed) {
            return Some("starting".to_owned());
        }
        self.unready_tier().map(|tier| format!("the {tier} is not ready"))
    }

    /// How the engines that others run are, by name.
    pub fn engines(&self) -> BTreeMap<&'static str, EngineState> {
        let mut engines = BTreeMap::new();
        for (engine, trouble) in &self.watched().engines {
            let state = engines.entry(*engine).or_insert(EngineState::Up);
            if let Some(trouble) = trouble() {
                *state = EngineState::Away(trouble);
            }
        }
        engines
    }

    /// The engines that something is wrong with.
    fn away(&self) -> BTreeSet<&'static str> {
        self.watched().engines.iter().filter(|(_, trouble)| trouble().is_some()).map(|(engine, _)| *engine).collect()
    }

    fn unready_tier(&self) -> Option<&'static str> {
        self.watched().tiers.iter().find(|(_, ready)| !ready()).map(|(tier, _)| *tier)
    }

    fn watched(&self) -> RwLockReadGuard<'_, Watched> {
        self.watched.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How an engine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineState {
    /// It is there.
    Up,
    /// It can't be used, and why. Tries go on.
    Away(String),
}

impl EngineState {
    /// True if it is there.
    pub fn is_up(&self) -> bool {
        *self == Self::Up
    }
}

impl fmt::Display for EngineState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up => f.write_str("up"),
            Self::Away(trouble) => write!(f, "away: {trouble}"),
        }
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health").field("not_ready_because", &self.not_ready_because()).finish()
    }
}

/// What a server that runs can be told from outside.
#[derive(Clone, Default)]
pub struct Orders {
    /// To end.
    pub stop: CancellationToken,
    /// To read its certificate again. Told before it can, it does so once it can.
    pub reload: Arc<Notify>,
}

/// Gives the orders that signals mean. The first SIGTERM or SIGINT is to stop; the second ends the process at once, with
/// exit code 1. SIGHUP is to reload.
pub fn watch_signals(orders: Orders) -> Result<()> {
    let mut hangup = signal(SignalKind::hangup()).context("SIGHUP can't be watched")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be watched")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be watched")?;
    tokio::spawn(async move {
        let mut draining = false;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => {
                    orders.reload.notify_one();
                    continue;
                }
            }
            if draining {
                tracing::warn!("a second signal: ending at once");
                std::process::exit(1);
            }
            tracing::info!("a signal: draining; another one ends at once");
            draining = true;
            orders.stop.cancel();
        }
    });
    Ok(())
}

/// Parts of the server that run until they are told to drain. One that ends before has crashed.
#[derive(Default)]
pub struct Running {
    parts: JoinSet<&'static str>,
}

impl Running {
    /// Runs a part.
    pub fn start(&mut self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        self.parts.spawn(async move {
            part.await;
            name
        });
    }

    /// Waits until a part ends, which it should not.
    pub async fn crashed(&mut self) -> anyhow::Error {
        match self.parts.join_next().await {
            Some(Ok(name)) => anyhow!("the {name} ended by itself"),
            Some(Err(error)) => anyhow!("a part of the server crashed: {error}"),
            None => std::future::pending().await,
        }
    }

    /// Waits until all parts have ended, as they do while they drain.
    pub async fn ended(&mut self) -> Result<()> {
        while let Some(part) = self.parts.join_next().await {
            part.context("a part of the server crashed while it drained")?;
        }
        Ok(())
    }
}

/// Gives a drain its time. When it is over, whatever has not ended is left behind.
pub async fn within(limit: Duration, drain: impl Future<Output = Result<()>>) -> Result<()> {
    timeout(limit, drain)
        .await
        .unwrap_or_else(|_| Err(anyhow!("the drain was not over after {} ms (limits.drain_ms_max)", limit.as_millis())))
}

/// Tells the service manager that the server is ready.
pub fn notify_ready() {
    notify(&NotifyState::Ready);
}

/// Tells the service manager that the server still starts, because it waits for something, and must not be given up.
pub fn notify_waiting(status: &str, patience: Duration) {
    notify(&NotifyState::Status(status));
    notify(&NotifyState::ExtendTimeoutUsec(u32::try_from(patience.as_micros()).unwrap_or(u32::MAX)));
}

/// Tells the service manager that what was waited for is there.
pub fn notify_found(status: &str) {
    notify(&NotifyState::Status(status));
}

/// Tells the service manager that the server is going to end.
pub fn notify_stopping() {
    notify(&NotifyState::Stopping);
}

fn notify(state: &NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

/// Lets this process open as many files as the system allows it to: each connection is one. Returns how many that is.
pub fn raise_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(error) => {
            tracing::warn!(%error, "the limit of open files stays as it is");
            limit.current.unwrap_or(u64::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_panics_is_a_crash() {
        let mut running = Running::default();
        running.start("steady part", std::future::pending());
        running.start("shaky part", async { panic!("as the test wants") });
        let error = running.crashed().await.to_string();
        assert!(error.contains("crashed"), "{error}");
    }

    #[tokio::test]
    async fn a_part_that_ends_by_itself_is_a_crash() {
        let mut running = Running::default();
        running.start("front", async {});
        assert_eq!(running.crashed().await.to_string(), "the front ended by itself");
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_that_does_not_end_is_given_up() {
        let error = within(Duration::from_secs(3), std::future::pending()).await.expect_err("too long");
        assert!(error.to_string().contains("3000 ms"), "{error}");
    }

    #[test]
    fn a_server_is_ready_when_it_has_started_and_its_tiers_are_until_it_drains() {
        let stop = CancellationToken::new();
        let health = Health::new(stop.clone());
        let front = Arc::new(AtomicBool::new(false));
        let watched = Arc::clone(&front);
        health.watch("front", move || watched.load(Ordering::Relaxed));
        assert_eq!(health.not_ready_because().as_deref(), Some("starting"));
        health.started();
        assert_eq!(health.not_ready_because().as_deref(), Some("the front is not ready"));
        front.store(true, Ordering::Relaxed);
        assert_eq!(health.not_ready_because(), None);
        let bus = Arc::new(AtomicBool::new(false));
        let watched = Arc::clone(&bus);
        health.watch_engine("redis", move || (!watched.load(Ordering::Relaxed)).then(|| "refused".to_owned()));
        health.watch_engine("redis", || None);
        health.watch_engine("hbase", || Some("silent".to_owned()));
        assert_eq!(health.not_ready_because().as_deref(), Some("waiting for hbase, redis"));
        assert_eq!(health.engines()["redis"].to_string(), "away: refused");
        bus.store(true, Ordering::Relaxed);
        assert_eq!(health.not_ready_because().as_deref(), Some("waiting for hbase"));
        assert!(health.engines()["redis"].is_up());
        stop.cancel();
        assert_eq!(health.not_ready_because().as_deref(), Some("draining"));
    }
}
