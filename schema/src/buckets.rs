//! Rows that are read in order but must not be written side by side: each goes to one of sixteen buckets, and reading merges
//! them.
//!
//! The bucket is the low four bits of an id, so it never has to be stored or guessed. Ids made one after another within a
//! millisecond differ in just those bits.

use idl::ids::MessageId;

use crate::keys;
use crate::sorted::{Row, RowScan, SortedStore, StoreError, Table};

/// How many buckets there are. Part of the stored form: it never changes.
pub(crate) const BUCKETS: u8 = 16;

/// The bucket of an id.
pub(crate) fn bucket(id: MessageId) -> u8 {
    id.to_bytes()[15] % BUCKETS
}

/// The first `limit` rows of all buckets together, in the order of what follows the first `skip` bytes of their keys.
/// `range` gives the keys of one bucket: from, inclusive, and to, exclusive.
///
/// Each bucket is read a page at a time, and only as far as it is needed: if the rows are spread evenly, twice what is
/// returned is read in all.
pub(crate) async fn merged(
    store: &dyn SortedStore,
    table: Table,
    range: impl Fn(u8) -> (Vec<u8>, Vec<u8>),
    skip: usize,
    limit: usize,
) -> Result<Vec<Row>, StoreError> {
    let page = (limit / usize::from(BUCKETS)).saturating_mul(2).max(1).min(limit);
    let mut buckets = Vec::with_capacity(usize::from(BUCKETS));
    for number in 0..BUCKETS {
        let (from, to) = range(number);
        let mut bucket = Bucket { from, to, rows: Vec::new().into_iter(), next: None, whole: false };
        bucket.step(store, table, page).await?;
        buckets.push(bucket);
    }
    let mut merged = Vec::new();
    while merged.len() < limit {
        let next = |(at, bucket): (usize, &Bucket)| bucket.next.is_some().then_some(at);
        let order = |at: &usize| buckets.get(*at).and_then(|bucket| bucket.next.as_ref()?.row.get(skip..));
        let first = buckets.iter().enumerate().filter_map(next).min_by(|a, b| order(a).cmp(&order(b)));
        let Some(bucket) = first.and_then(|at| buckets.get_mut(at)) else { break };
        merged.extend(bucket.next.take());
        bucket.step(store, table, page).await?;
    }
    Ok(merged)
}

struct Bucket {
    from: Vec<u8>,
    to: Vec<u8>,
    rows: std::vec::IntoIter<Row>,
    next: Option<Row>,
    /// True if the store has no more.
    whole: bool,
}

impl Bucket {
    /// Takes the next row, from the store if need be.
    async fn step(&mut self, store: &dyn SortedStore, table: Table, page: usize) -> Result<(), StoreError> {
        if self.rows.len() == 0 && !self.whole {
            let scan = RowScan { table, from: self.from.clone(), to: Some(self.to.clone()), rows_max: page };
            let rows = store.scan(scan).await?;
            self.whole = rows.len() < page;
            if let Some(last) = rows.last() {
                self.from = keys::successor(&last.row);
            }
            self.rows = rows.into_iter();
        }
        self.next = self.rows.next();
        Ok(())
    }
}
