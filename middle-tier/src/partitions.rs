//! Which part of the work is this middle's, and how a part of it changes hands.
//!
//! What is remembered of accounts (sessions, lengths of mailboxes) is of one term of owning their partition. A partition
//! that is to be given away is finished first: requests that have begun end, its sessions end with their progress written,
//! and what is being posted for its callback URLs arrives. One that is lost is another's already: what is remembered of it
//! is dropped at once, and nothing of it is written.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use idl::bus::{Hold, Ownership, Term};
use idl::error::{Code, Failure};
use idl::ids::{AccountId, AppId, Partition, RegId, Shard};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{Shared, sweep};

/// How long requests that have begun are waited for when their partition is given away: as long as most callers wait.
const FINISH: Duration = Duration::from_secs(10);

/// The partitions as this middle sees them, and what is under way of them.
pub(crate) struct Partitions {
    ownership: Ownership,
    /// Requests that have begun, for each partition.
    under_way: [AtomicUsize; Partition::COUNT],
    /// Some partition has no more of them.
    finished: Notify,
    /// Since when each partition is owned without a break, with the term that it is of.
    since: Mutex<[Option<(Term, u64)>; Partition::COUNT]>,
}

impl Partitions {
    /// Those that `ownership` says.
    pub(crate) fn new(ownership: Ownership, now_ms: u64) -> Self {
        let mut since = [None; Partition::COUNT];
        if ownership.is_whole() {
            for partition in Partition::all() {
                since[partition.number()] = ownership.term(partition).map(|term| (term, now_ms));
            }
        }
        Self {
            ownership,
            under_way: [const { AtomicUsize::new(0) }; Partition::COUNT],
            finished: Notify::new(),
            since: Mutex::new(since),
        }
    }

    /// True if there are no other middles.
    pub(crate) fn is_whole(&self) -> bool {
        self.ownership.is_whole()
    }

    /// True if work on an account is done here.
    pub(crate) fn has_account(&self, account: AccountId) -> bool {
        self.is_whole() || self.has(Shard::of_account(account).into())
    }

    /// True if work on a registration is done here.
    pub(crate) fn has_registration(&self, regid: RegId) -> bool {
        self.ownership.owns(Shard::of_registration(regid))
    }

    /// True if work on an application, and on no account of it, is done here.
    pub(crate) fn has_app(&self, app: &AppId) -> bool {
        self.is_whole() || self.has(Shard::of_app(app).into())
    }

    /// True if the partition is this middle's.
    pub(crate) fn has(&self, partition: Partition) -> bool {
        self.held(partition).is_some()
    }

    /// True if the partition is this middle's and not about to be given away.
    pub(crate) fn keeps(&self, partition: Partition) -> bool {
        matches!(self.ownership.hold(partition), Hold::Owned(_))
    }

    /// True for one middle among all: it does what is to be done once for the whole system.
    pub(crate) fn leads(&self) -> bool {
        self.ownership.owns(Shard(0))
    }

    /// The term for which the partition is this middle's.
    pub(crate) fn held(&self, partition: Partition) -> Option<Term> {
        self.ownership.hold(partition).term()
    }

    /// The partition of an account, and the term for which it is this middle's.
    pub(crate) fn of_account(&self, account: AccountId) -> Result<(Partition, Term), Failure> {
        let partition = Partition::from(Shard::of_account(account));
        let elsewhere = || Failure::new(Code::System, "this account's work is done by another middle; try again");
        Ok((partition, self.held(partition).ok_or_else(elsewhere)?))
    }

    /// The term of whoever has the partition, as far as it is known.
    pub(crate) fn term(&self, partition: Partition) -> Option<Term> {
        self.ownership.term(partition)
    }

    /// True if the partition has been this middle's since before that moment: what happened since then to its accounts'
    /// connections is known here.
    pub(crate) fn has_since_before(&self, partition: Partition, ms: u64) -> bool {
        let since = self.since()[partition.number()];
        since.is_some_and(|(term, since_ms)| self.held(partition) == Some(term) && since_ms < ms)
    }

    fn since(&self) -> MutexGuard<'_, [Option<(Term, u64)>; Partition::COUNT]> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self) -> usize {
        Partition::all().filter(|partition| self.has(*partition)).count()
    }

    async fn finished(&self, partition: Partition) {
        loop {
            let finished = self.finished.notified();
            if self.under_way[partition.number()].load(Ordering::SeqCst) == 0 {
                return;
            }
            finished.await;
        }
    }
}

/// Work of a partition that has begun: until it is dropped, the partition is not given away in peace.
pub(crate) struct Begun {
    pub(crate) shared: Arc<Shared>,
    partition: Option<Partition>,
}

impl Begun {
    /// Begins work of a partition, or work that is asked of every middle; `None` if the partition is not this middle's, or
    /// is being given away.
    pub(crate) fn of(shared: &Arc<Shared>, partition: Option<Partition>) -> Option<Self> {
        let partition = partition.filter(|_| !shared.partitions.is_whole());
        let begun = Self { shared: Arc::clone(shared), partition };
        let Some(partition) = partition else { return Some(begun) };
        // Counted first: whoever gives the partition away says so before it looks for what has begun.
        shared.partitions.under_way[partition.number()].fetch_add(1, Ordering::SeqCst);
        shared.partitions.keeps(partition).then_some(begun)
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let Some(partition) = self.partition else { return };
        let partitions = &self.shared.partitions;
        if partitions.under_way[partition.number()].fetch_sub(1, Ordering::SeqCst) == 1 {
            partitions.finished.notify_waiters();
        }
    }
}

/// Follows what the bus gives and takes until `drain` is cancelled.
pub(crate) async fn run(shared: Arc<Shared>, drain: CancellationToken) {
    let mut ownership = shared.partitions.ownership.clone();
    loop {
        let changes = tokio::select! {
            biased;
            () = drain.cancelled() => return,
            changes = ownership.changed() => changes,
        };
        if !changes.lost.is_empty() {
            lost(&shared, &changes.lost);
        }
        if !changes.gained.is_empty() {
            gained(&shared, &changes.gained);
        }
        if changes.orphaned {
            sweep::after_a_middle_vanished(&shared);
        }
        for partition in changes.leaving {
            let Some(term) = shared.partitions.held(partition) else { continue };
            shared.tasks.spawn(leave(Arc::clone(&shared), partition, term));
        }
        shared.metrics.partitions.set(i64::try_from(shared.partitions.count()).unwrap_or(i64::MAX));
    }
}

fn gained(shared: &Arc<Shared>, partitions: &[Partition]) {
    let now_ms = shared.clock.now_ms();
    let mut since = shared.partitions.since();
    for partition in partitions {
        let term = shared.partitions.held(*partition);
        let known = &mut since[partition.number()];
        if known.map(|(term, _)| term) != term {
            *known = term.map(|term| (term, now_ms));
        }
    }
    drop(since);
    shared.metrics.partitions_gained.inc_by(partitions.len() as u64);
    shared.receipts.look_everywhere();
}

/// Another has them already: nothing of them is written.
fn lost(shared: &Arc<Shared>, partitions: &[Partition]) {
    let dropped = shared.sessions.drop_lost(shared);
    if dropped > 0 {
        tracing::warn!(sessions = dropped, "partitions were lost before their sessions had ended");
    }
    forget(shared, partitions);
    shared.metrics.partitions_lost.inc_by(partitions.len() as u64);
}

/// Finishes what is under way of a partition, and gives it away.
async fn leave(shared: Arc<Shared>, partition: Partition, term: Term) {
    if timeout(FINISH, shared.partitions.finished(partition)).await.is_err() {
        tracing::warn!(partition = partition.number(), "a partition is given away before all its requests have ended");
    }
    tokio::join!(shared.sessions.end_of(&shared, partition), shared.receipts.leave(partition));
    if shared.partitions.held(partition) == Some(term) {
        forget(&shared, &[partition]);
        shared.metrics.partitions_given.inc();
        shared.partitions.ownership.left(partition);
    }
}

fn forget(shared: &Shared, partitions: &[Partition]) {
    shared.rooms.forget_of(partitions);
    shared.receipts.forget_of(partitions);
}
