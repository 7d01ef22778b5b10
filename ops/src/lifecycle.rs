//! How the process lives and ends: signals, readiness, the drain, and what happens when a part of it crashes.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// Whether the server can serve.
#[derive(Clone)]
pub struct Health {
    started: Arc<AtomicBool>,
    stop: CancellationToken,
    tiers: Vec<(&'static str, IsReady)>,
}

type IsReady = Arc<dyn Fn() -> bool + Send + Sync>;

impl Health {
    /// Of a server that has not started yet, and ends when `stop` is cancelled.
    pub fn new(stop: CancellationToken) -> Self {
        Self { started: Arc::default(), stop, tiers: Vec::new() }
    }

    /// Asks a tier, too. For the time before it is shared.
    pub fn watch(&mut self, tier: &'static str, ready: impl Fn() -> bool + Send + Sync + 'static) {
        self.tiers.push((tier, Arc::new(ready)));
    }

    /// From now on it has started.
    pub fn started(&self) {
        self.started.store(true, Ordering::Relaxed);
    }

    /// Waits until every tier is ready.
    pub async fn tiers_ready(&self) {
        while !self.tiers.iter().all(|(_, ready)| ready()) {
            sleep(BETWEEN_LOOKS).await;
        }
    }

    /// Why it is not ready; `None` when it is.
    pub fn not_ready_because(&self) -> Option<String> {
        if self.stop.is_cancelled() {
            return Some("draining".to_owned());
        }
        if !self.started.load(Ordering::Relaxed) {
            return Some("starting".to_owned());
        }
        self.tiers.iter().find(|(_, ready)| !ready()).map(|(tier, _)| format!("the {tier} is not ready"))
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
        let mut health = Health::new(stop.clone());
        let front = Arc::new(AtomicBool::new(false));
        let watched = Arc::clone(&front);
        health.watch("front", move || watched.load(Ordering::Relaxed));
        assert_eq!(health.not_ready_because().as_deref(), Some("starting"));
        health.started();
        assert_eq!(health.not_ready_because().as_deref(), Some("the front is not ready"));
        front.store(true, Ordering::Relaxed);
        assert_eq!(health.not_ready_because(), None);
        stop.cancel();
        assert_eq!(health.not_ready_because().as_deref(), Some("draining"));
    }
}
