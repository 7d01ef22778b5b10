//! A store that does what the test wants of the next writes: refuses them, holds them up, or loses their answers as a crash
//! would.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use schema::sorted::memory::MemoryStore;
use schema::sorted::{Mutation, Put, Row, RowRead, RowScan, SortedStore, StoreError, Table};
use tokio::sync::{Semaphore, watch};

/// What becomes of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is refused and not written.
    Refused,
    /// It is not written, and never answered: the process ends before.
    Lost,
    /// It is written, and never answered: the process ends after.
    Unanswered,
    /// It is written once the gate is opened.
    Held,
    /// It is written, and answered once the gate is opened.
    Late,
}

#[derive(Debug, Clone, Copy)]
struct Rule {
    /// Only writes to this table; `None`: all.
    table: Option<Table>,
    /// So many of them pass before.
    pass: usize,
    /// Only the next one.
    once: bool,
    fault: Fault,
}

/// The store, with a gate before its writes.
pub(crate) struct Gate {
    inner: MemoryStore,
    rule: Mutex<Option<Rule>>,
    /// Grows when the gate is opened.
    opened: watch::Sender<u64>,
    /// A permit for each write that met its fault.
    met: Semaphore,
    /// Nothing can be read or written.
    down: AtomicBool,
    /// Writes so far.
    writes: AtomicUsize,
    /// Rows of a batch are written one after the other.
    in_pieces: AtomicBool,
    /// Scans so far, by table.
    scans: Mutex<BTreeMap<Table, usize>>,
}

impl Gate {
    pub(crate) fn new(inner: MemoryStore) -> Arc<Self> {
        Arc::new(Self {
            inner,
            rule: Mutex::default(),
            opened: watch::Sender::new(0),
            met: Semaphore::new(0),
            down: AtomicBool::new(false),
            writes: AtomicUsize::new(0),
            in_pieces: AtomicBool::new(false),
            scans: Mutex::default(),
        })
    }

    fn rule(&self) -> MutexGuard<'_, Option<Rule>> {
        self.rule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on every write to the table, but the first `pass`, meets the fault.
    pub(crate) fn fault(&self, table: Table, pass: usize, fault: Fault) {
        *self.rule() = Some(Rule { table: Some(table), pass, once: false, fault });
    }

    /// The next write to the table meets the fault, and no other.
    pub(crate) fn fault_once(&self, table: Table, fault: Fault) {
        *self.rule() = Some(Rule { table: Some(table), pass: 0, once: true, fault });
    }

    /// From now on every write, but the first `pass`, meets the fault.
    pub(crate) fn fault_all(&self, pass: usize, fault: Fault) {
        *self.rule() = Some(Rule { table: None, pass, once: false, fault });
    }

    /// Waits until a write has met its fault.
    pub(crate) async fn met(&self) {
        self.met.acquire().await.expect("it is never closed").forget();
    }

    /// Whether a write has met its fault that nobody has waited for.
    pub(crate) fn has_met(&self) -> bool {
        self.met.available_permits() > 0
    }

    /// No more faults; what is held goes on.
    pub(crate) fn open(&self) {
        *self.rule() = None;
        self.opened.send_modify(|opened| *opened += 1);
    }

    /// Whether nothing can be read or written.
    pub(crate) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    /// How many writes there were.
    pub(crate) fn writes(&self) -> usize {
        self.writes.load(Ordering::SeqCst)
    }

    /// How many scans of a table there were.
    pub(crate) fn scans(&self, table: Table) -> usize {
        self.scans.lock().unwrap_or_else(PoisonError::into_inner).get(&table).copied().unwrap_or(0)
    }

    /// From now on each mutation of a batch is a write of its own, in order: a store of many machines does no better.
    pub(crate) fn write_in_pieces(&self) {
        self.in_pieces.store(true, Ordering::SeqCst);
    }

    fn check(&self) -> Result<(), StoreError> {
        if self.down.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("the test took it away".to_owned()));
        }
        Ok(())
    }

    /// Which fault a write meets. Those that come after the write are left to [`Gate::written`].
    async fn pass(&self, tables: &[Table]) -> Result<Option<Fault>, StoreError> {
        self.check()?;
        self.writes.fetch_add(1, Ordering::SeqCst);
        let mut opened = self.opened.subscribe();
        let fault = {
            let mut rule = self.rule();
            match rule.as_mut().filter(|rule| rule.table.is_none_or(|table| tables.contains(&table))) {
                Some(rule) if rule.pass > 0 => {
                    rule.pass -= 1;
                    None
                }
                Some(Rule { fault, once, .. }) => {
                    let (fault, once) = (*fault, *once);
                    if once {
                        *rule = None;
                    }
                    Some(fault)
                }
                None => None,
            }
        };
        if fault.is_some() {
            self.met.add_permits(1);
        }
        match fault {
            Some(Fault::Refused) => Err(StoreError::Unavailable("the test refuses it".to_owned())),
            Some(Fault::Lost) => std::future::pending().await,
            Some(Fault::Held) => {
                opened.changed().await.map_err(|_| StoreError::TimedOut)?;
                Ok(None)
            }
            Some(Fault::Unanswered | Fault::Late) | None => Ok(fault),
        }
    }

    /// What comes of a write after it is made.
    async fn written(&self, fault: Option<Fault>) -> Result<(), StoreError> {
        match fault {
            Some(Fault::Late) => self.opened.subscribe().changed().await.map_err(|_| StoreError::TimedOut),
            Some(_) => std::future::pending().await,
            None => Ok(()),
        }
    }
}

fn table(mutation: &Mutation) -> Table {
    match mutation {
        Mutation::Put(put) => put.table,
        Mutation::DeleteCell { table, .. } | Mutation::DeleteRow { table, .. } => *table,
    }
}

#[async_trait]
impl SortedStore for Gate {
    async fn write(&self, batch: Vec<Mutation>) -> Result<(), StoreError> {
        let pieces = if self.in_pieces.load(Ordering::SeqCst) {
            batch.into_iter().map(|mutation| vec![mutation]).collect()
        } else {
            vec![batch]
        };
        for piece in pieces {
            let tables: Vec<Table> = piece.iter().map(table).collect();
            let fault = self.pass(&tables).await?;
            self.inner.write(piece).await?;
            self.written(fault).await?;
        }
        Ok(())
    }

    async fn read(&self, rows: Vec<RowRead>) -> Result<Vec<Row>, StoreError> {
        self.check()?;
        self.inner.read(rows).await
    }

    async fn scan(&self, scan: RowScan) -> Result<Vec<Row>, StoreError> {
        self.check()?;
        *self.scans.lock().unwrap_or_else(PoisonError::into_inner).entry(scan.table).or_default() += 1;
        self.inner.scan(scan).await
    }

    async fn keys(&self, scan: RowScan) -> Result<Vec<Vec<u8>>, StoreError> {
        self.check()?;
        self.inner.keys(scan).await
    }

    async fn put_if_absent(&self, put: Put) -> Result<bool, StoreError> {
        let fault = self.pass(&[put.table]).await?;
        let put = self.inner.put_if_absent(put).await?;
        self.written(fault).await?;
        Ok(put)
    }
}
