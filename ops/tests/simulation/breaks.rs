//! Deliberate breaks, made by wrappers around what is right: each must be caught, or the checkers are worth nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use idl::bus::{Bus, Call, FrontEvent, Reply};
use idl::contract::bus::{FrontBatch, FrontBatchReply};
use idl::error::Failure;
use idl::ids::{FrontId, MessageId, RegId};
use schema::registrations::{Cursor, Progress, Registrations};
use schema::sorted::{Mutation, Put, Row, RowRead, RowScan, SortedStore, StoreError, Table};
use tokio::time::{Instant, sleep};

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Break {
    Nothing,
    AckBeforeDurable,
    CursorMovedByLiveDelivery,
    NoDuplicateWindow,
}

/// A store that answers before it has written: what a crash meets on the way is gone.
pub(crate) struct HastyStore {
    inner: Arc<dyn SortedStore>,
    crashes: Arc<AtomicUsize>,
}

impl HastyStore {
    const DELAY: Duration = Duration::from_secs(2);

    pub(crate) fn new(inner: Arc<dyn SortedStore>) -> Self {
        Self { inner, crashes: Arc::default() }
    }

    pub(crate) fn crash(&self) {
        self.crashes.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl SortedStore for HastyStore {
    async fn write(&self, batch: Vec<Mutation>) -> Result<(), StoreError> {
        let accepts = batch.iter().any(|mutation| {
            matches!(mutation, Mutation::Put(put) if matches!(put.table, Table::Mailboxes | Table::Timelines))
        });
        if !accepts {
            return self.inner.write(batch).await;
        }
        let (inner, crashes, before) =
            (Arc::clone(&self.inner), Arc::clone(&self.crashes), self.crashes.load(Ordering::SeqCst));
        tokio::spawn(async move {
            sleep(Self::DELAY).await;
            if crashes.load(Ordering::SeqCst) == before {
                let _ = inner.write(batch).await;
            }
        });
        Ok(())
    }

    async fn read(&self, rows: Vec<RowRead>) -> Result<Vec<Row>, StoreError> {
        self.inner.read(rows).await
    }

    async fn scan(&self, scan: RowScan) -> Result<Vec<Row>, StoreError> {
        self.inner.scan(scan).await
    }

    async fn put_if_absent(&self, put: Put) -> Result<bool, StoreError> {
        self.inner.put_if_absent(put).await
    }
}

/// Moves every cursor past a broadcast as soon as it is published.
pub(crate) struct CursorMover {
    inner: Arc<dyn Bus>,
    store: Arc<dyn SortedStore>,
}

impl CursorMover {
    pub(crate) fn new(inner: Arc<dyn Bus>, store: Arc<dyn SortedStore>) -> Self {
        Self { inner, store }
    }

    async fn move_cursors(&self, id: MessageId) {
        let scan = RowScan { table: Table::Registrations, from: Vec::new(), to: None, rows_max: 1000 };
        let rows = self.store.scan(scan).await.expect("memory");
        // Past the overlap too: the judgement must not come back to it.
        let judged_to = MessageId::at(id.time_ms() + 120_000);
        let cursor = Some(Cursor { judged_to, acked: Vec::new() });
        let progress: Vec<_> = rows
            .into_iter()
            .filter_map(|row| Some(RegId(row.row.try_into().ok()?)))
            .map(|regid| (regid, Progress { cursor: cursor.clone(), ..Progress::default() }))
            .collect();
        Registrations::new(Arc::clone(&self.store)).write_progress(&progress).await.expect("memory");
    }
}

#[async_trait]
impl Bus for CursorMover {
    async fn request(&self, call: Call) -> Result<Reply, Failure> {
        self.inner.request(call).await
    }

    async fn deliver(&self, front: FrontId, batch: FrontBatch, deadline: Instant) -> Result<FrontBatchReply, Failure> {
        self.inner.deliver(front, batch, deadline).await
    }

    async fn publish(&self, event: FrontEvent, deadline: Instant) -> Result<(), Failure> {
        if let FrontEvent::Broadcast(broadcast) = &event {
            self.move_cursors(MessageId::from_bytes(&broadcast.id).expect("an id")).await;
        }
        self.inner.publish(event, deadline).await
    }
}
