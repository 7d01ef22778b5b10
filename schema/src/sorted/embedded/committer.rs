//! The one thread that writes.
//!
//! It takes all requests that wait, up to the limits of a group, works out what each cell becomes (the later request
//! wins; `put_if_absent` sees those before it), writes that as one batch with one sync, and then answers. Nothing is
//! answered `Ok` before the sync, and nothing of a group can be read before.
//!
//! **After a failed write or sync** fjall is done: it refuses every write until it is opened again, and the batch may or
//! may not be in its journal. The group was answered [`StoreError::Unavailable`], "nothing was written", so the committer
//! keeps what the cells of the group held before. Reads go on from the old handle. With the next requests, at most once a
//! second, it tries whether the disk takes writes; if so it closes fjall, settles the journal, opens it, writes the
//! former values (which changes nothing if the batch was not in the journal) and only then accepts writes again. If the
//! process ends in between, the group may be there after all.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::super::{Mutation, Put, StoreError, Table};
use super::Shared;
use super::tables::{self, Broken, Change, Tables};

/// No more than one attempt to mend the store in this time.
const MEND_EVERY: Duration = Duration::from_secs(1);

/// What the committer is asked for.
pub(super) enum Request {
    Write { batch: Vec<Mutation>, answer: oneshot::Sender<Result<(), StoreError>> },
    PutIfAbsent { put: Put, answer: oneshot::Sender<Result<bool, StoreError>> },
}

pub(super) struct Committer {
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Request>,
    broken: Option<BrokenStore>,
}

struct BrokenStore {
    /// What failed, for the answers.
    reason: String,
    /// What the cells of the failed group held before.
    former: Vec<Change>,
    /// No attempt to mend before this.
    mend_at: Instant,
}

/// What the cells of a group become, in the order of their keys.
type Staged = BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>>;

/// Whom to answer when the group is durable, and what.
enum Answer {
    Written(oneshot::Sender<Result<(), StoreError>>),
    Put(oneshot::Sender<Result<bool, StoreError>>, bool),
}

impl Committer {
    pub(super) fn new(shared: Arc<Shared>, queue: mpsc::Receiver<Request>) -> Self {
        Self { shared, queue, broken: None }
    }

    /// Works until every sender is gone and the queue is empty.
    pub(super) fn run(mut self) {
        while let Some(first) = self.queue.blocking_recv() {
            let (mutations_max, bytes_max) =
                (self.shared.options.group_mutations_max, self.shared.options.group_bytes_max);
            let (mut mutations, mut bytes) = first.size();
            let mut group = vec![first];
            while mutations < mutations_max
                && bytes < bytes_max
                && let Ok(request) = self.queue.try_recv()
            {
                let size = request.size();
                mutations += size.0;
                bytes += size.1;
                group.push(request);
            }
            self.serve(group);
        }
    }

    fn serve(&mut self, group: Vec<Request>) {
        if let Err(error) = self.mend() {
            self.shared.metrics.groups_failed.fetch_add(1, Ordering::Relaxed);
            for request in group {
                request.fail(&error);
            }
            return;
        }
        let group = self.refuse_when_full(group);
        if group.is_empty() {
            return;
        }
        let mut answers = Vec::with_capacity(group.len());
        match self.commit(group, &mut answers) {
            Ok(()) => answers.into_iter().for_each(Answer::succeed),
            Err(error) => {
                self.shared.metrics.groups_failed.fetch_add(1, Ordering::Relaxed);
                for answer in answers {
                    answer.fail(&error);
                }
            }
        }
    }

    /// Stages the group and writes it. Whoever must be answered is in `answers` even after an error.
    fn commit(&mut self, group: Vec<Request>, answers: &mut Vec<Answer>) -> Result<(), StoreError> {
        let now_ms = self.shared.clock.now_ms();
        let mut staged = Staged::new();
        let requests = group.len() as u64;
        let committed = self.shared.tables(|tables| {
            let mut staging = Ok(());
            for request in group {
                let (answer, result) = stage(tables, request, &mut staged, now_ms);
                answers.push(answer);
                staging = staging.and(result);
            }
            staging?;
            if staged.is_empty() {
                return Ok(Ok(()));
            }
            let mutations = staged.len() as u64;
            let keys: Vec<_> = staged.keys().cloned().collect();
            match tables.commit(staged) {
                Ok(()) => {
                    let metrics = &self.shared.metrics;
                    metrics.groups.fetch_add(1, Ordering::Relaxed);
                    metrics.requests.fetch_add(requests, Ordering::Relaxed);
                    metrics.mutations.fetch_add(mutations, Ordering::Relaxed);
                    Ok(Ok(()))
                }
                Err(error) => Ok(Err((error.to_string(), former(tables, keys)))),
            }
        })?;
        committed.map_err(|(reason, former)| {
            tracing::error!(reason, "a group of writes failed; the store accepts no writes until the disk does");
            let error = StoreError::Unavailable(format!("the disk can't be written: {reason}"));
            self.broken = Some(BrokenStore { reason, former, mend_at: Instant::now() + MEND_EVERY });
            error
        })
    }

    /// Requests that put are refused while the disk has too little room; those that only delete make room.
    fn refuse_when_full(&self, group: Vec<Request>) -> Vec<Request> {
        let min = self.shared.options.free_bytes_min;
        // Where the room can't be told, the write itself will.
        let free = if min == 0 { min } else { tables::free_bytes(&self.shared.path).unwrap_or(min) };
        if free >= min {
            return group;
        }
        let error = StoreError::Unavailable(format!(
            "the disk has {} MiB free and the store needs {}",
            free >> 20,
            min.div_ceil(1 << 20)
        ));
        let (puts, deletes): (Vec<_>, Vec<_>) = group.into_iter().partition(Request::puts);
        self.shared.metrics.refused_full.fetch_add(puts.len() as u64, Ordering::Relaxed);
        for request in puts {
            request.fail(&error);
        }
        deletes
    }

    /// Brings a broken store back, if the disk takes writes again.
    fn mend(&mut self) -> Result<(), StoreError> {
        let Some(broken) = &mut self.broken else { return Ok(()) };
        let unavailable = |reason: &str| StoreError::Unavailable(format!("the disk can't be written: {reason}"));
        let now = Instant::now();
        if now < broken.mend_at {
            return Err(unavailable(&broken.reason));
        }
        broken.mend_at = now + MEND_EVERY;
        match reopen(&self.shared, &broken.former) {
            Ok(()) => {
                self.shared.metrics.mended.fetch_add(1, Ordering::Relaxed);
                tracing::info!("the disk takes writes again: the store was reopened");
                self.broken = None;
                Ok(())
            }
            Err(error) => {
                broken.reason = error.to_string();
                Err(unavailable(&broken.reason))
            }
        }
    }
}

fn reopen(shared: &Shared, former: &[Change]) -> Result<(), Broken> {
    tables::probe(&shared.path)?;
    // Closing waits for fjall's own threads, and must be complete before the folder can be opened.
    drop(shared.exchange(None));
    tables::settle_journal(&shared.path)?;
    let tables = Tables::open(&shared.path, &shared.clock, &shared.options)?;
    tables.commit(former.iter().cloned())?;
    shared.exchange(Some(tables));
    Ok(())
}

/// What these cells hold now. One that can't be read is left out: it can't be told what it held.
fn former(tables: &Tables, keys: Vec<(Table, Vec<u8>)>) -> Vec<Change> {
    keys.into_iter()
        .filter_map(|(table, key)| tables.value(table, &key).ok().map(|value| ((table, key), value)))
        .collect()
}

/// Works out what a request changes, on top of those before it in the group.
fn stage(tables: &Tables, request: Request, staged: &mut Staged, now_ms: u64) -> (Answer, Result<(), StoreError>) {
    match request {
        Request::Write { batch, answer } => {
            let result = batch.into_iter().try_for_each(|mutation| stage_mutation(tables, mutation, staged));
            (Answer::Written(answer), result)
        }
        Request::PutIfAbsent { put, answer } => {
            let key = (put.table, tables::key(&put.row, &put.cell));
            let there = match staged.get(&key) {
                Some(value) => Ok(value.clone()),
                None => tables.value(key.0, &key.1),
            };
            match there {
                Ok(Some(stored)) if tables::expired(&stored, now_ms) != Some(true) => {
                    (Answer::Put(answer, false), Ok(()))
                }
                Ok(_) => {
                    staged.insert(key, Some(tables::encode(&put.value, put.expires_at_ms)));
                    (Answer::Put(answer, true), Ok(()))
                }
                Err(error) => (Answer::Put(answer, false), Err(error)),
            }
        }
    }
}

fn stage_mutation(tables: &Tables, mutation: Mutation, staged: &mut Staged) -> Result<(), StoreError> {
    match mutation {
        Mutation::Put(put) => {
            let value = tables::encode(&put.value, put.expires_at_ms);
            staged.insert((put.table, tables::key(&put.row, &put.cell)), Some(value));
        }
        Mutation::DeleteCell { table, row, cell } => {
            staged.insert((table, tables::key(&row, &cell)), None);
        }
        Mutation::DeleteRow { table, row } => {
            let from = tables::key(&row, &[]);
            let in_group = staged
                .range_mut((table, from.clone())..)
                .take_while(|((of, key), _)| *of == table && key.starts_with(&from));
            in_group.for_each(|(_, value)| *value = None);
            for key in tables.keys_of_row(table, &row)? {
                staged.insert((table, key), None);
            }
        }
    }
    Ok(())
}

impl Request {
    /// Mutations and bytes.
    fn size(&self) -> (usize, usize) {
        let bytes = |mutation: &Mutation| match mutation {
            Mutation::Put(put) => put.row.len() + put.cell.len() + put.value.len(),
            Mutation::DeleteCell { row, cell, .. } => row.len() + cell.len(),
            Mutation::DeleteRow { row, .. } => row.len(),
        };
        match self {
            Self::Write { batch, .. } => (batch.len(), batch.iter().map(bytes).sum()),
            Self::PutIfAbsent { put, .. } => (1, put.row.len() + put.cell.len() + put.value.len()),
        }
    }

    fn puts(&self) -> bool {
        match self {
            Self::Write { batch, .. } => batch.iter().any(|mutation| matches!(mutation, Mutation::Put(_))),
            Self::PutIfAbsent { .. } => true,
        }
    }

    fn fail(self, error: &StoreError) {
        // Whoever no longer waits needs no answer.
        match self {
            Self::Write { answer, .. } => drop(answer.send(Err(error.clone()))),
            Self::PutIfAbsent { answer, .. } => drop(answer.send(Err(error.clone()))),
        }
    }
}

impl Answer {
    fn succeed(self) {
        match self {
            Self::Written(answer) => drop(answer.send(Ok(()))),
            Self::Put(answer, put) => drop(answer.send(Ok(put))),
        }
    }

    fn fail(self, error: &StoreError) {
        match self {
            Self::Written(answer) => drop(answer.send(Err(error.clone()))),
            Self::Put(answer, _) => drop(answer.send(Err(error.clone()))),
        }
    }
}
