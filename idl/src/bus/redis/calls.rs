//! Calls that wait for an answer.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::lock;
use crate::bus::timed_out;
use crate::contract::bus::Letter;
use crate::error::Failure;

/// How a call ended.
type Outcome = Result<Letter, Failure>;

/// All of this process. Bounded by the tasks that wait.
pub(super) struct Calls {
    next: AtomicU64,
    open: Mutex<HashMap<i64, oneshot::Sender<Outcome>>>,
}

impl Calls {
    pub(super) fn new(first: u64) -> Self {
        Self { next: AtomicU64::new(first), open: Mutex::default() }
    }

    pub(super) fn open(&self) -> OpenCall<'_> {
        let number = (self.next.fetch_add(1, Ordering::Relaxed) & (u64::MAX >> 1)).cast_signed();
        let (sender, answered) = oneshot::channel();
        lock(&self.open).insert(number, sender);
        OpenCall { calls: self, number, answered }
    }

    /// False if nobody waits any more.
    pub(super) fn end(&self, number: i64, outcome: Outcome) -> bool {
        let sender = lock(&self.open).remove(&number);
        sender.is_some_and(|sender| sender.send(outcome).is_ok())
    }
}

/// One call. Dropping it ends the waiting.
pub(super) struct OpenCall<'a> {
    calls: &'a Calls,
    pub(super) number: i64,
    answered: oneshot::Receiver<Outcome>,
}

impl OpenCall<'_> {
    pub(super) async fn answer(&mut self, deadline: Instant, who: &str) -> Outcome {
        match timeout_at(deadline, &mut self.answered).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) => Err(timed_out(who)),
        }
    }
}

impl Drop for OpenCall<'_> {
    fn drop(&mut self) {
        lock(&self.calls.open).remove(&self.number);
    }
}
