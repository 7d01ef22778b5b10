//! Waiting for engines that others run. After a power cut everything starts at once, so one that does not answer is waited
//! for; one that answers with a refusal will not change its mind, and ends the start.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, anyhow};
use schema::StoreError;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::lifecycle::{self, Health};

/// Between two tries at first, and at most.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// What takes no longer than this to connect is not worth a line of the log.
const TELL_AFTER: Duration = Duration::from_secs(1);
/// Between two lines of the log about the same engine.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// Between two looks at an engine that tells its state only when it is asked something.
const PULSE: Duration = Duration::from_secs(2);

/// What came of a try.
pub(super) enum Tried<T> {
    /// It is there.
    There(T),
    /// It does not answer, or not yet.
    Away(String),
}

/// Tries until the engine is there. An error of a try ends the waiting.
pub(super) async fn wait_for<T>(
    engine: &'static str,
    health: &Health,
    mut attempt: impl AsyncFnMut() -> Result<Tried<T>>,
) -> Result<T> {
    let trouble = Arc::new(Mutex::new(Some("not asked yet".to_owned())));
    let set = |said: Option<String>| *trouble.lock().unwrap_or_else(PoisonError::into_inner) = said;
    let shown = Arc::clone(&trouble);
    health.watch_engine(engine, move || shown.lock().unwrap_or_else(PoisonError::into_inner).clone());
    let (began, mut pause) = (Instant::now(), PAUSE);
    let mut told: Option<Instant> = None;
    loop {
        match attempt().await? {
            Tried::There(there) => {
                set(None);
                if told.is_some() {
                    tracing::info!(engine, "the engine is there");
                    lifecycle::notify_found(&format!("{engine} is there"));
                }
                return Ok(there);
            }
            Tried::Away(reason) => {
                let silent_since = told.map_or(TELL_AFTER, |_| TELL_EVERY);
                if told.unwrap_or(began).elapsed() >= silent_since {
                    told = Some(Instant::now());
                    tracing::warn!(engine, %reason, "waiting for an engine that does not answer");
                    lifecycle::notify_waiting(&format!("waiting for {engine}"), TELL_EVERY * 6);
                }
                set(Some(reason));
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// What an engine's error means at the start: a refusal is final, and these settings are to be looked at; everything else
/// may pass.
pub(super) fn judge<T>(
    tried: Result<T, StoreError>,
    refused: impl Fn(&str) -> bool,
    settings: &str,
) -> Result<Tried<T>> {
    match tried {
        Ok(there) => Ok(Tried::There(there)),
        Err(StoreError::Unavailable(text)) if refused(&text) => Err(anyhow!("{text}; {settings}")),
        Err(error @ StoreError::Corrupt(_)) => Err(error.into()),
        Err(error) => Ok(Tried::Away(error.to_string())),
    }
}

/// Asks an engine now and then, so that its state is known also while nobody needs it.
pub(super) struct Pulse(Box<dyn FnMut() -> Beat + Send>);

type Beat = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

impl Pulse {
    /// Asks so.
    pub(super) fn of<F: Future<Output = ()> + Send + 'static>(mut beat: impl FnMut() -> F + Send + 'static) -> Self {
        Self(Box::new(move || Box::pin(beat())))
    }

    /// Goes on until `drain` is cancelled.
    pub(super) async fn until(mut self, drain: CancellationToken) {
        let beating = async {
            loop {
                (self.0)().await;
                sleep(PULSE).await;
            }
        };
        tokio::select! {
            () = drain.cancelled() => {}
            () = beating => {}
        }
    }
}
