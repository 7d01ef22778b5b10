//! Wakes sessions when a paced message of theirs becomes due.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use idl::ids::AccountId;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{Shared, dispatch};

const INTERVAL: Duration = Duration::from_millis(100);

/// When which account's session is to be woken. One entry a session is enough: it says the next moment when it is woken.
#[derive(Default)]
pub(crate) struct Alarms(Mutex<BTreeSet<(u64, AccountId)>>);

impl Alarms {
    /// Wakes the account's session then.
    pub(crate) fn set(&self, due_ms: u64, account: AccountId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert((due_ms, account));
    }

    /// Wakes nobody of these.
    pub(crate) fn forget(&self, accounts: &BTreeSet<AccountId>) {
        if !accounts.is_empty() {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(_, account)| !accounts.contains(account));
        }
    }

    fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn due(&self, now_ms: u64) -> BTreeSet<(u64, AccountId)> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let later = all.split_off(&(now_ms.saturating_add(1), AccountId(0)));
        std::mem::replace(&mut *all, later)
    }
}

/// Wakes sessions until `drain` is cancelled.
pub(crate) async fn run(shared: Arc<Shared>, drain: CancellationToken) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = drain.cancelled() => return,
            _ = ticks.tick() => {}
        }
        shared.metrics.sessions_paced.set(i64::try_from(shared.alarms.len()).unwrap_or(i64::MAX));
        shared.metrics.ran("paced", shared.clock.now_ms());
        for (_, account) in shared.alarms.due(shared.clock.now_ms()) {
            if let Some(handle) = shared.sessions.find(account) {
                dispatch::drive(&shared, &handle);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_is_given_once_and_what_is_later_stays() {
        let alarms = Alarms::default();
        alarms.set(10, AccountId(1));
        alarms.set(11, AccountId(2));
        alarms.set(10, AccountId(u128::MAX));
        assert_eq!(alarms.due(9).len(), 0);
        assert_eq!(alarms.due(10).len(), 2);
        assert_eq!(alarms.due(10).len(), 0);
        assert_eq!(alarms.due(11), BTreeSet::from([(11, AccountId(2))]));
    }
}
