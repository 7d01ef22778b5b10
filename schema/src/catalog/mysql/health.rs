//! What is known of the server without asking it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use mysql_async::Pool;
use tokio::time::Instant;

/// How the last calls went.
#[derive(Debug, Clone, Default)]
pub struct MysqlState {
    /// When the server last answered a call.
    pub answered: Option<Instant>,
    /// When a call last found no server that answers, or one that doesn't let us in.
    pub failed: Option<Instant>,
    /// What was wrong then, in one line; without credentials.
    pub failure: Option<String>,
}

impl MysqlState {
    /// Whether the last call was answered. That the server is not as we want it shows with a call only, so ping now and then.
    pub fn is_well(&self) -> bool {
        self.answered.is_some() && self.failed.is_none_or(|failed| self.answered.is_some_and(|at| at > failed))
    }
}

/// What was done since the catalog was opened, and how many connections there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MysqlMetrics {
    /// Statements that were sent, `COMMIT` and the like among them.
    pub statements: u64,
    /// Tries after the first one of a call.
    pub retries: u64,
    /// Statements and waits for a connection that took too long.
    pub timeouts: u64,
    /// Calls that failed because of the server or the way to it.
    pub failures: u64,
    /// Connections that there are.
    pub connections: u64,
    /// Those of them that serve a call.
    pub connections_in_use: u64,
    /// Attempts to connect that failed.
    pub connects_failed: u64,
}

/// Counts and remembers.
#[derive(Default)]
pub(super) struct Health {
    pub(super) statements: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) timeouts: AtomicU64,
    failures: AtomicU64,
    state: Mutex<MysqlState>,
}

impl Health {
    pub(super) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn answered(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).answered = Some(Instant::now());
    }

    pub(super) fn failed(&self, failure: String) {
        Self::count(&self.failures);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.failed, state.failure) = (Some(Instant::now()), Some(failure));
    }

    pub(super) fn state(&self) -> MysqlState {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn metrics(&self, pool: &Pool) -> MysqlMetrics {
        let pool = pool.metrics();
        let gauge = |gauge: &std::sync::atomic::AtomicUsize| gauge.load(Ordering::Relaxed) as u64;
        let counter = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        MysqlMetrics {
            statements: counter(&self.statements),
            retries: counter(&self.retries),
            timeouts: counter(&self.timeouts),
            failures: counter(&self.failures),
            connections: gauge(&pool.connection_count),
            connections_in_use: gauge(&pool.connections_in_use),
            connects_failed: gauge(&pool.create_failed),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_well_while_the_last_call_was_answered() {
        let health = Health::default();
        assert!(!health.state().is_well(), "nothing is known yet");
        health.answered();
        assert!(health.state().is_well());
        tokio::time::advance(Duration::from_millis(1)).await;
        health.failed("gone".into());
        assert!(!health.state().is_well());
        assert_eq!(health.state().failure.as_deref(), Some("gone"));
        tokio::time::advance(Duration::from_millis(1)).await;
        health.answered();
        assert!(health.state().is_well());
    }
}
