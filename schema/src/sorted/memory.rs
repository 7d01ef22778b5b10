//! The sorted store in memory: for tests and the simulation. Nothing outlives the process.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use idl::clock::SharedClock;

use super::{Cells, Mutation, Put, Row, RowRead, RowScan, SortedStore, StoreError, Table};
use crate::keys;

/// Most expired cells that one write removes for good.
const PURGE_MAX: usize = 64;

/// A sorted store in memory.
pub struct MemoryStore {
    clock: SharedClock,
    state: Mutex<State>,
}

impl MemoryStore {
    /// An empty store whose cells expire by this clock.
    pub fn new(clock: SharedClock) -> Self {
        Self { clock, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere can't leave the maps half-changed in a way that matters to a test.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Cell {
    value: Vec<u8>,
    expires_at_ms: Option<u64>,
}

impl Cell {
    fn lives(&self, now_ms: u64) -> bool {
        self.expires_at_ms.is_none_or(|at| now_ms < at)
    }
}

type RowKey = (Table, Vec<u8>);

#[derive(Default)]
struct State {
    rows: BTreeMap<RowKey, BTreeMap<Vec<u8>, Cell>>,
    /// When which cell expires; entries of cells that were written anew since are passed over.
    expiries: BTreeSet<(u64, RowKey, Vec<u8>)>,
}

impl State {
    fn put(&mut self, put: Put) {
        let key = (put.table, put.row);
        if let Some(at) = put.expires_at_ms {
            self.expiries.insert((at, key.clone(), put.cell.clone()));
        }
        let cell = Cell { value: put.value, expires_at_ms: put.expires_at_ms };
        self.rows.entry(key).or_default().insert(put.cell, cell);
    }

    fn delete_cell(&mut self, key: &RowKey, cell: &[u8]) {
        if let Some(row) = self.rows.get_mut(key) {
            row.remove(cell);
            if row.is_empty() {
                self.rows.remove(key);
            }
        }
    }

    fn range<'a>(&'a self, scan: &'a RowScan) -> impl Iterator<Item = (&'a Vec<u8>, &'a BTreeMap<Vec<u8>, Cell>)> {
        self.rows
            .range((scan.table, scan.from.clone())..)
            .take_while(|((table, row), _)| *table == scan.table && scan.to.as_ref().is_none_or(|to| row < to))
            .map(|((_, row), cells)| (row, cells))
    }

    fn purge(&mut self, now_ms: u64) {
        for _ in 0..PURGE_MAX {
            if self.expiries.first().is_none_or(|(at, ..)| *at > now_ms) {
                return;
            }
            let Some((_, key, cell)) = self.expiries.pop_first() else { return };
            if self.rows.get(&key).and_then(|row| row.get(&cell)).is_some_and(|cell| !cell.lives(now_ms)) {
                self.delete_cell(&key, &cell);
            }
        }
    }
}

fn live(cells: &BTreeMap<Vec<u8>, Cell>, asked: &Cells, limit: usize, now_ms: u64) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (from, to) = asked.bounds();
    let to = to.map_or(Bound::Unbounded, Bound::Excluded);
    if matches!(&to, Bound::Excluded(to) if *to < from) {
        return Vec::new();
    }
    cells
        .range((Bound::Included(from), to))
        .filter(|(_, cell)| cell.lives(now_ms))
        .take(limit)
        .map(|(key, cell)| (key.clone(), cell.value.clone()))
        .collect()
}

#[async_trait]
impl SortedStore for MemoryStore {
    async fn write(&self, batch: Vec<Mutation>) -> Result<(), StoreError> {
        let now_ms = self.clock.now_ms();
        let mut state = self.state();
        for mutation in batch {
            match mutation {
                Mutation::Put(put) => state.put(put),
                Mutation::DeleteCell { table, row, cell } => state.delete_cell(&(table, row), &cell),
                Mutation::DeleteRow { table, row } => {
                    state.rows.remove(&(table, row));
                }
            }
        }
        state.purge(now_ms);
        Ok(())
    }

    async fn read(&self, rows: Vec<RowRead>) -> Result<Vec<Row>, StoreError> {
        let now_ms = self.clock.now_ms();
        let state = self.state();
        let row = |read: RowRead| {
            let key = (read.table, read.row);
            let cells = state.rows.get(&key).map(|cells| live(cells, &read.cells, read.limit, now_ms));
            Row { row: key.1, cells: cells.unwrap_or_default() }
        };
        Ok(rows.into_iter().map(row).collect())
    }

    async fn scan(&self, scan: RowScan) -> Result<Vec<Row>, StoreError> {
        let now_ms = self.clock.now_ms();
        let state = self.state();
        let rows = state
            .range(&scan)
            .map(|(row, cells)| Row { row: row.clone(), cells: live(cells, &Cells::All, usize::MAX, now_ms) })
            .filter(|row| !row.cells.is_empty())
            .take(scan.rows_max)
            .collect();
        Ok(rows)
    }

    async fn keys(&self, scan: RowScan) -> Result<Vec<Vec<u8>>, StoreError> {
        let now_ms = self.clock.now_ms();
        let state = self.state();
        let lives = |cells: &BTreeMap<Vec<u8>, Cell>| cells.values().any(|cell| cell.lives(now_ms));
        let rows = state.range(&scan).filter(|(_, cells)| lives(cells));
        Ok(rows.map(|(row, _)| row.clone()).take(scan.rows_max).collect())
    }

    async fn put_if_absent(&self, put: Put) -> Result<bool, StoreError> {
        let now_ms = self.clock.now_ms();
        let mut state = self.state();
        let there = state.rows.get(&(put.table, put.row.clone())).and_then(|row| row.get(&put.cell));
        if there.is_some_and(|cell| cell.lives(now_ms)) {
            return Ok(false);
        }
        state.put(put);
        state.purge(now_ms);
        Ok(true)
    }
}

impl Cells {
    /// The keys asked for, as a range: from, inclusive, and to, exclusive.
    pub(super) fn bounds(&self) -> (Vec<u8>, Option<Vec<u8>>) {
        match self {
            Self::All => (Vec::new(), None),
            Self::One(cell) => (cell.clone(), Some(keys::successor(cell))),
            Self::Range { from, to } => (from.clone(), to.clone()),
            Self::Prefix(prefix) => (prefix.clone(), keys::prefix_end(prefix)),
        }
    }
}
