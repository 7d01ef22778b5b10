//! Puts that must find nothing there.
//!
//! `checkAndPut` does it in one step, but it may be answered by nobody (was it done?), it takes the region server's time
//! (a deletion with a later timestamp hides what it puts), and it knows nothing of cells that have expired by our clock. So
//! each attempt of ours puts a mark of its own into the value and then reads it back: what is there then is the truth, and
//! an attempt can be repeated.

use hbase_thrift::hbase::{TCell, THbaseSyncClient as _};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::{Put, StoreError};
use super::Shared;
use super::cells::{self, Mark, column};
use super::gateway::{Failed, Link};
use super::writes;

/// Between attempts while a deletion hides what was put: clocks differ by little, if they do.
const HIDDEN_PAUSE: std::time::Duration = std::time::Duration::from_millis(1);

/// One put, and whom to answer.
pub(super) struct Guard {
    pub(super) put: Put,
    pub(super) deadline: Instant,
    pub(super) answer: oneshot::Sender<Result<bool, StoreError>>,
}

/// Puts, unless there is something, and answers.
pub(super) fn serve(shared: &Shared, link: &mut Link, guard: Guard) {
    let Guard { put, deadline, answer } = guard;
    let outcome = if deadline <= Instant::now() {
        Err(StoreError::Unavailable("the request waited in the queue until its time was over".to_owned()))
    } else {
        let mut attempt = Attempt { shared, link, put: &put, mark: Mark::default(), until: deadline, sent: false };
        shared.gateways.entropy().fill(&mut attempt.mark);
        attempt.run()
    };
    // Whoever no longer waits needs no answer.
    drop(answer.send(outcome));
}

struct Attempt<'a> {
    shared: &'a Shared,
    link: &'a mut Link,
    put: &'a Put,
    mark: Mark,
    until: Instant,
    /// Whether the put may have happened.
    sent: bool,
}

impl Attempt<'_> {
    fn run(&mut self) -> Result<bool, StoreError> {
        let put = self.put;
        let stored = cells::encode(&put.value, put.expires_at_ms, Some(self.mark));
        writes::check(put.table, &put.row, stored.len() + put.cell.len() + put.row.len(), self.shared.row_bytes_max())?;
        self.shared.gateways.metrics().guards.add(1);
        if put.expires_at_ms.is_some_and(|at| at <= self.shared.clock.now_ms()) {
            // It would be gone at once. Whether it could have been put is all there is to tell.
            return Ok(self.there()?.is_none_or(|there| !there.lives));
        }
        let mut expected = Vec::new();
        loop {
            let put_it = self.check_and_put(&expected, &stored)?;
            match self.there()? {
                Some(there) if there.mark == Some(self.mark) => return Ok(true),
                Some(there) if there.lives => return Ok(false),
                Some(there) => expected = there.stored,
                // It was hidden by a deletion, or has been deleted since: then putting it again comes after that.
                None => expected = Vec::new(),
            }
            if put_it {
                std::thread::sleep(HIDDEN_PAUSE);
            }
            if Instant::now() >= self.until {
                return Err(if self.sent { StoreError::TimedOut } else { unavailable("no answer in time") });
            }
        }
    }

    /// Nothing is expected to be there where `expected` is empty.
    fn check_and_put(&mut self, expected: &[u8], stored: &[u8]) -> Result<bool, StoreError> {
        let put = self.put;
        let name = self.shared.table(put.table);
        let attributes = cells::attributes(cells::ttl_ms(put.expires_at_ms, self.shared.clock.now_ms()));
        let change = writes::put(column(&put.cell), stored.to_vec());
        let outcome = self.link.retry(self.until, |client| {
            client.check_and_put(
                name.clone(),
                put.row.clone(),
                column(&put.cell),
                expected.to_vec(),
                change.clone(),
                attributes.clone(),
            )
        });
        self.sent |= outcome.as_ref().map_or_else(|failed| failed.sent, |put| *put);
        outcome.map_err(|failed| self.failed(&failed))
    }

    /// What is there now.
    fn there(&mut self) -> Result<Option<There>, StoreError> {
        let put = self.put;
        let name = self.shared.table(put.table);
        let columns = vec![column(&put.cell)];
        let rows = self.link.retry(self.until, |client| {
            client.get_row_with_columns(name.clone(), put.row.clone(), columns.clone(), cells::Attributes::new())
        });
        let rows = rows.map_err(|failed| self.failed(&failed))?;
        let cell =
            rows.into_iter().filter_map(|row| row.columns).flat_map(std::collections::BTreeMap::into_values).next();
        let Some(TCell { value: Some(stored), timestamp }) = cell else { return Ok(None) };
        self.shared.observe([timestamp]);
        let decoded = cells::decode(put.table, &put.row, &stored)?;
        let (lives, mark) = (decoded.lives(self.shared.clock.now_ms()), decoded.mark);
        Ok(Some(There { lives, mark, stored }))
    }

    fn failed(&self, failed: &Failed) -> StoreError {
        if self.sent || failed.sent { StoreError::TimedOut } else { unavailable(failed.error.reason()) }
    }
}

struct There {
    lives: bool,
    mark: Option<Mark>,
    stored: Vec<u8>,
}

fn unavailable(reason: &str) -> StoreError {
    StoreError::Unavailable(format!("HBase: {reason}"))
}
