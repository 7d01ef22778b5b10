//! Batches on their way into HBase: what waits becomes one group, and a group few calls.
//!
//! **Order within a batch.** What a batch does to one row is one *part*, at the place of the row's first mutation; parts in a
//! run on one table make a *step*. Step follows step, also over a retry: nothing of a later one is sent before the earlier
//! one was answered. The rows of one step may be seen in any order. A group serves many batches with one call a step: in
//! each round it takes the table that fewest others still need later, and does what every batch that has come to it has
//! there.
//!
//! **Order between batches.** All of a group has one timestamp ([`super::stamps`]), so no two batches of a group touch one
//! cell: one that would begins the next group.
//!
//! **A row at once.** The gateway sends what one row is put and what it is deleted as two operations. So where a part has
//! both, the put writes a tombstone (a value that has expired at any time) in place of each deleted cell, which readers see
//! as gone, and the deletion that follows clears it away. Where a part removes the row and puts cells after that, the cells
//! that are there are read first and get tombstones too. Deletions never carry `_ttl`: one that expired would bring back
//! what it hides.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use hbase_thrift::hbase::{BatchMutation, Mutation as Change, THbaseSyncClient as _};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::{Mutation, Put, StoreError, Table};
use super::Shared;
use super::cells::{self, FAMILY, column};
use super::gateway::{CallError, Failed, Link};
use super::lanes::Next;

/// What a mutation takes on the wire besides its key and value, and a row besides its key.
const CHANGE_BYTES: usize = 40;

type RowKey = (Table, Vec<u8>);

/// One batch, and whom to answer.
pub(super) struct Write {
    parts: Vec<Part>,
    mutations: usize,
    bytes: usize,
    deadline: Instant,
    answer: oneshot::Sender<Result<(), StoreError>>,
}

/// What becomes of one row.
struct Part {
    table: Table,
    row: Vec<u8>,
    /// All that was there before goes.
    clear: bool,
    /// What each cell becomes, as it is stored; `None` removes it.
    cells: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// For how long HBase keeps what is put.
    ttl_ms: Option<u64>,
}

impl Part {
    fn bytes(&self) -> usize {
        let cell =
            |(key, value): (&Vec<u8>, &Option<Vec<u8>>)| CHANGE_BYTES + key.len() + value.as_ref().map_or(0, Vec::len);
        CHANGE_BYTES + self.row.len() + self.cells.iter().map(cell).sum::<usize>()
    }

    fn puts(&self) -> bool {
        self.cells.values().any(Option::is_some)
    }
}

impl Write {
    /// What a batch comes to. [`StoreError::Unavailable`] if HBase could not take it, ever.
    pub(super) fn new(
        batch: Vec<Mutation>,
        now_ms: u64,
        row_bytes_max: usize,
        deadline: Instant,
        answer: oneshot::Sender<Result<(), StoreError>>,
    ) -> Result<Self, StoreError> {
        let mut parts: Vec<Part> = Vec::new();
        let mut places: HashMap<RowKey, (usize, Option<u64>, bool)> = HashMap::new();
        for mutation in batch {
            let (table, row) = match &mutation {
                Mutation::Put(put) => (put.table, put.row.clone()),
                Mutation::DeleteCell { table, row, .. } | Mutation::DeleteRow { table, row } => (*table, row.clone()),
            };
            let (place, ttl_ms, for_ever) = places.entry((table, row.clone())).or_insert_with(|| {
                parts.push(Part { table, row, clear: false, cells: BTreeMap::new(), ttl_ms: None });
                (parts.len() - 1, None, false)
            });
            let Some(part) = parts.get_mut(*place) else { continue };
            match mutation {
                Mutation::Put(Put { cell, value, expires_at_ms, .. }) => {
                    if expires_at_ms.is_some_and(|at| at <= now_ms) {
                        // It is gone already, and so is what was there.
                        part.cells.insert(cell, None);
                        continue;
                    }
                    match cells::ttl_ms(expires_at_ms, now_ms) {
                        // The row is put at once, so it is kept for as long as its last cell. Readers go by each one's time.
                        Some(ttl) => *ttl_ms = (*ttl_ms).max(Some(ttl)),
                        None => *for_ever = true,
                    }
                    part.ttl_ms = ttl_ms.filter(|_| !*for_ever);
                    part.cells.insert(cell, Some(cells::encode(&value, expires_at_ms, None)));
                }
                Mutation::DeleteCell { cell, .. } => drop(part.cells.insert(cell, None)),
                Mutation::DeleteRow { .. } => {
                    part.clear = true;
                    part.cells.clear();
                    (*ttl_ms, *for_ever, part.ttl_ms) = (None, false, None);
                }
            }
        }
        for part in &parts {
            check(part.table, &part.row, part.bytes(), row_bytes_max)?;
        }
        let mutations = parts.iter().map(|part| part.cells.len().max(1)).sum();
        let bytes = parts.iter().map(Part::bytes).sum();
        Ok(Self { parts, mutations, bytes, deadline, answer })
    }

    /// Picks the thread: batches on one row, if it is their first, go the same way.
    pub(super) fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        if let Some(part) = self.parts.first() {
            (part.table, &part.row).hash(&mut hasher);
        }
        hasher.finish()
    }
}

/// What HBase and its gateway can't take however often they are asked.
pub(super) fn check(table: Table, row: &[u8], bytes: usize, bytes_max: usize) -> Result<(), StoreError> {
    let refuse = |reason: String| Err(StoreError::Unavailable(format!("table {}: {reason}", table.name())));
    if row.is_empty() || row.len() > 32_767 {
        return refuse(format!("a row's key has {} bytes, and HBase takes 1 to 32767", row.len()));
    }
    if bytes > bytes_max {
        return refuse(format!("{bytes} bytes for one row, and at most {bytes_max} are sent at once"));
    }
    Ok(())
}

/// Decides which batches become one group.
pub(super) struct Grouping {
    mutations_left: usize,
    bytes_left: usize,
    /// Rows of the group: whether one is removed, and which cells change.
    rows: HashMap<RowKey, (bool, HashSet<Vec<u8>>)>,
    first: bool,
}

impl Grouping {
    pub(super) fn new(mutations_max: usize, bytes_max: usize) -> Self {
        Self { mutations_left: mutations_max, bytes_left: bytes_max, rows: HashMap::new(), first: true }
    }

    /// Whether this batch belongs to the group. The first does.
    pub(super) fn next(&mut self, write: &Write) -> Next {
        let fits = write.mutations <= self.mutations_left && write.bytes <= self.bytes_left;
        if !self.first && (!fits || write.parts.iter().any(|part| self.meets(part))) {
            return Next::Leave;
        }
        self.first = false;
        self.mutations_left = self.mutations_left.saturating_sub(write.mutations);
        self.bytes_left = self.bytes_left.saturating_sub(write.bytes);
        for part in &write.parts {
            let (clear, cells) = self.rows.entry((part.table, part.row.clone())).or_default();
            *clear |= part.clear;
            cells.extend(part.cells.keys().cloned());
        }
        Next::Take
    }

    /// Whether it matters which of them comes first.
    fn meets(&self, part: &Part) -> bool {
        self.rows
            .get(&(part.table, part.row.clone()))
            .is_some_and(|(clear, cells)| *clear || part.clear || part.cells.keys().any(|cell| cells.contains(cell)))
    }
}

/// How far a batch has come.
struct Progress {
    write: Write,
    /// Parts that are done.
    done: usize,
    /// Whether anything of it may have happened.
    sent: bool,
}

impl Progress {
    fn table(&self) -> Option<Table> {
        self.write.parts.get(self.done).map(|part| part.table)
    }

    /// How many parts the next step has.
    fn step(&self, table: Table) -> usize {
        self.write.parts.iter().skip(self.done).take_while(|part| part.table == table).count()
    }

    fn needs_later(&self, table: Table) -> bool {
        self.write.parts.iter().skip(self.done).skip_while(|part| part.table == table).any(|part| part.table == table)
            || (self.table() != Some(table) && self.write.parts.iter().skip(self.done).any(|part| part.table == table))
    }

    fn answer(self, error: Option<&CallError>) {
        let answer = match error {
            None => Ok(()),
            Some(_) if self.sent => Err(StoreError::TimedOut),
            Some(error) => Err(StoreError::Unavailable(format!("HBase: {}", error.reason()))),
        };
        // Whoever no longer waits needs no answer.
        drop(self.write.answer.send(answer));
    }
}

/// Writes a group and answers its callers.
pub(super) fn commit(shared: &Shared, link: &mut Link, group: Vec<Write>) {
    let now = Instant::now();
    let (waiting, late): (Vec<_>, Vec<_>) = group.into_iter().partition(|write| write.deadline > now);
    for write in late {
        let reason = "the request waited in the queue until its time was over";
        drop(write.answer.send(Err(StoreError::Unavailable(reason.to_owned()))));
    }
    if waiting.is_empty() {
        return;
    }
    let metrics = shared.gateways.metrics();
    metrics.groups.add(1);
    metrics.writes.add(waiting.len());
    metrics.mutations.add(waiting.iter().map(|write| write.mutations).sum());
    let mut group: Vec<_> = waiting.into_iter().map(|write| Progress { write, done: 0, sent: false }).collect();
    let Err(failed) = advance(shared, link, &mut group) else {
        for progress in group {
            progress.answer(None);
        }
        return;
    };
    let alone = group.len() == 1;
    for mut progress in group {
        // HBase refused something for good: each alone, so that it stops nobody else. What was done is done over again.
        let outcome = match &failed {
            _ if progress.table().is_none() => Ok(()),
            failed if failed.error.is_lasting() && !alone => {
                progress.done = 0;
                let mut one = vec![progress];
                let outcome = advance(shared, link, &mut one);
                let Some(one) = one.pop() else { continue };
                progress = one;
                outcome
            }
            failed => Err(failed.clone()),
        };
        if outcome.is_err() {
            metrics.writes_failed.add(1);
        }
        progress.answer(outcome.err().map(|failed| failed.error).as_ref());
    }
}

/// Does step after step until all is done.
fn advance(shared: &Shared, link: &mut Link, group: &mut [Progress]) -> Result<(), Failed> {
    let stamp = i64::try_from(shared.stamps.next()).unwrap_or(i64::MAX);
    let until = group.iter().map(|progress| progress.write.deadline).max().unwrap_or_else(Instant::now);
    loop {
        let heads: HashSet<_> = group.iter().filter_map(Progress::table).collect();
        let later = |table: &Table| group.iter().filter(|progress| progress.needs_later(*table)).count();
        let Some(table) = heads.into_iter().min_by_key(|table| (later(table), *table)) else { return Ok(()) };
        let mut step = Step { shared, link, table, stamp, until };
        let calls = step.calls(group)?;
        for call in calls {
            step.send(call, group)?;
        }
        for progress in group.iter_mut().filter(|progress| progress.table() == Some(table)) {
            progress.done += progress.step(table);
        }
    }
}

/// What goes out at once.
struct Call {
    rows: Vec<BatchMutation>,
    /// Whose batches they belong to, by their places in the group.
    of: Vec<usize>,
    ttl_ms: Option<u64>,
    stamp: i64,
}

/// Changes of one row, on their way into a call.
struct Item {
    of: usize,
    changes: usize,
    bytes: usize,
    row: BatchMutation,
}

/// One table's turn.
struct Step<'a> {
    shared: &'a Shared,
    link: &'a mut Link,
    table: Table,
    stamp: i64,
    until: Instant,
}

impl Step<'_> {
    /// The calls of this step, in their order.
    fn calls(&mut self, group: &[Progress]) -> Result<Vec<Call>, Failed> {
        let mut expiring: BTreeMap<u64, Vec<Item>> = BTreeMap::new();
        let (mut lasting, mut clearing) = (Vec::new(), Vec::new());
        let table = self.table;
        for (of, progress) in group.iter().enumerate().filter(|(_, progress)| progress.table() == Some(table)) {
            for part in progress.write.parts.iter().skip(progress.done).take(progress.step(table)) {
                let (puts, deletes) = self.changes(part)?;
                if part.clear && part.puts() {
                    clearing.push(item(of, part, vec![delete(FAMILY.to_vec())]));
                }
                match part.ttl_ms {
                    Some(ttl_ms) if !puts.is_empty() => {
                        expiring.entry(ttl_ms).or_default().push(item(of, part, puts));
                        if !deletes.is_empty() {
                            lasting.push(item(of, part, deletes));
                        }
                    }
                    _ => lasting.push(item(of, part, [puts, deletes].concat())),
                }
            }
        }
        let mut calls = Vec::new();
        for (ttl_ms, items) in expiring {
            self.pack(items, Some(ttl_ms), self.stamp, &mut calls);
        }
        self.pack(lasting, None, self.stamp, &mut calls);
        self.pack(clearing, None, self.stamp.saturating_sub(1), &mut calls);
        Ok(calls)
    }

    /// What a part puts and what it deletes; what is put comes first.
    fn changes(&mut self, part: &Part) -> Result<(Vec<Change>, Vec<Change>), Failed> {
        if !part.puts() {
            let delete_cells = part.cells.keys().map(|cell| delete(column(cell)));
            let deletes = if part.clear { vec![delete(FAMILY.to_vec())] } else { delete_cells.collect() };
            return Ok((Vec::new(), deletes));
        }
        let (mut puts, mut deletes) = (Vec::new(), Vec::new());
        for (cell, value) in &part.cells {
            puts.push(put(column(cell), value.clone().unwrap_or_else(cells::tombstone)));
            if value.is_none() {
                deletes.push(delete(column(cell)));
            }
        }
        if part.clear {
            let name = self.shared.table(part.table);
            let there = self
                .link
                .retry(self.until, |client| client.get_row(name.clone(), part.row.clone(), cells::Attributes::new()))?;
            for there in there.into_iter().filter_map(|row| row.columns).flat_map(BTreeMap::into_keys) {
                if cells::cell_of(&there).is_some_and(|cell| !part.cells.contains_key(cell)) {
                    puts.push(put(there.clone(), cells::tombstone()));
                    deletes.push(delete(there));
                }
            }
        }
        Ok((puts, deletes))
    }

    /// Fills calls up to the limits of a group. An item that is larger goes alone.
    fn pack(&self, items: Vec<Item>, ttl_ms: Option<u64>, stamp: i64, calls: &mut Vec<Call>) {
        let options = self.shared.gateways.options();
        let (mut changes, mut bytes) = (0, 0);
        let mut call = Call { rows: Vec::new(), of: Vec::new(), ttl_ms, stamp };
        for item in items {
            let full =
                changes + item.changes > options.group_mutations_max || bytes + item.bytes > options.group_bytes_max;
            if full && !call.rows.is_empty() {
                calls.push(std::mem::replace(&mut call, Call { rows: Vec::new(), of: Vec::new(), ttl_ms, stamp }));
                (changes, bytes) = (0, 0);
            }
            changes += item.changes;
            bytes += item.bytes;
            call.rows.push(item.row);
            call.of.push(item.of);
        }
        if !call.rows.is_empty() {
            calls.push(call);
        }
    }

    fn send(&mut self, call: Call, group: &mut [Progress]) -> Result<(), Failed> {
        let (name, attributes) = (self.shared.table(self.table), cells::attributes(call.ttl_ms));
        let outcome = self.link.retry(self.until, |client| {
            client.mutate_rows_ts(name.clone(), call.rows.clone(), call.stamp, attributes.clone())
        });
        self.shared.gateways.metrics().calls.add(1);
        if outcome.as_ref().map_or_else(|failed| failed.sent, |()| true) {
            for of in call.of {
                if let Some(progress) = group.get_mut(of) {
                    progress.sent = true;
                }
            }
        }
        outcome
    }
}

fn item(of: usize, part: &Part, changes: Vec<Change>) -> Item {
    let row = BatchMutation { row: Some(part.row.clone()), mutations: None };
    let bytes = changes.iter().map(|change| {
        CHANGE_BYTES + change.column.as_ref().map_or(0, Vec::len) + change.value.as_ref().map_or(0, Vec::len)
    });
    let bytes = CHANGE_BYTES + part.row.len() + bytes.sum::<usize>();
    Item { of, changes: changes.len(), bytes, row: BatchMutation { mutations: Some(changes), ..row } }
}

/// Durable when answered: it goes through the write-ahead log.
pub(super) fn put(column: Vec<u8>, value: Vec<u8>) -> Change {
    Change::new(false, column, value, true)
}

fn delete(column: Vec<u8>) -> Change {
    Change::new(true, column, None, true)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const T: Table = Table::Mailboxes;

    fn write(batch: Vec<Mutation>) -> Write {
        try_write(batch).unwrap()
    }

    fn try_write(batch: Vec<Mutation>) -> Result<Write, StoreError> {
        let (answer, _) = oneshot::channel();
        Write::new(batch, 100, 1000, Instant::now() + Duration::from_secs(9), answer)
    }

    fn put_at(table: Table, row: &[u8], cell: &[u8], expires_at_ms: Option<u64>) -> Mutation {
        let (row, cell, value) = (row.to_vec(), cell.to_vec(), b"v".to_vec());
        Mutation::Put(Put { table, row, cell, value, expires_at_ms })
    }

    fn delete_row(row: &[u8]) -> Mutation {
        Mutation::DeleteRow { table: T, row: row.to_vec() }
    }

    #[test]
    fn what_happens_to_a_row_is_one_part_and_the_later_wins() {
        let batch = vec![
            put_at(T, b"a", b"1", None),
            delete_row(b"a"),
            put_at(Table::Names, b"n", b"m", None),
            put_at(T, b"a", b"2", Some(5000)),
            put_at(T, b"a", b"3", Some(100)),
        ];
        let write = write(batch);
        let tables: Vec<_> = write.parts.iter().map(|part| part.table).collect();
        assert_eq!(tables, [T, Table::Names]);
        let part = &write.parts[0];
        assert!(part.clear);
        let cells: Vec<_> = part.cells.iter().map(|(cell, value)| (cell.as_slice(), value.is_some())).collect();
        assert_eq!(cells, [(b"2".as_slice(), true), (b"3", false)], "one that has expired is a deletion");
        assert_eq!(part.ttl_ms, cells::ttl_ms(Some(5000), 100));
    }

    #[test]
    fn a_row_put_at_once_is_kept_for_as_long_as_its_last_cell() {
        let both = write(vec![put_at(T, b"a", b"1", Some(5000)), put_at(T, b"a", b"2", Some(90_000_000))]);
        assert_eq!(both.parts[0].ttl_ms, cells::ttl_ms(Some(90_000_000), 100));
        for batch in [[Some(5000), None], [None, Some(5000)]] {
            let write = write(batch.map(|at| put_at(T, b"a", if at.is_some() { b"1" } else { b"2" }, at)).to_vec());
            assert_eq!(write.parts[0].ttl_ms, None);
        }
    }

    #[test]
    fn what_hbase_can_never_take_is_refused_before_it_stops_others() {
        for (row, what) in [(vec![], "1 to 32767"), (vec![0; 40_000], "1 to 32767"), (vec![0; 999], "at most 1000")] {
            let error = try_write(vec![put_at(T, &row, b"c", None)]).err().unwrap();
            assert!(error.to_string().contains(what), "{error}");
        }
    }

    #[test]
    fn batches_that_touch_one_cell_are_not_of_one_group() {
        let mut group = Grouping::new(500, 1 << 20);
        let one = |row: &[u8], cell: &[u8]| write(vec![put_at(T, row, cell, None)]);
        assert_eq!(group.next(&one(b"a", b"1")), Next::Take);
        assert_eq!(group.next(&one(b"a", b"2")), Next::Take, "another cell of the row");
        assert_eq!(group.next(&one(b"a", b"1")), Next::Leave);
        assert_eq!(group.next(&write(vec![delete_row(b"a")])), Next::Leave);
        assert_eq!(group.next(&write(vec![delete_row(b"b")])), Next::Take);
        assert_eq!(group.next(&one(b"b", b"1")), Next::Leave);
    }

    #[test]
    fn a_group_has_an_end_and_a_larger_batch_is_one_of_its_own() {
        let mut group = Grouping::new(2, 1 << 20);
        assert_eq!(group.next(&write((0..5).map(|cell| put_at(T, b"a", &[cell], None)).collect())), Next::Take);
        assert_eq!(group.next(&write(vec![put_at(T, b"b", b"1", None)])), Next::Leave);
        let mut group = Grouping::new(500, 150);
        assert_eq!(group.next(&write(vec![put_at(T, b"a", b"1", None)])), Next::Take);
        assert_eq!(group.next(&write(vec![put_at(T, b"b", b"1", None)])), Next::Leave);
    }
}
