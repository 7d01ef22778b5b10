//! Counters by day. Each life of a process writes its own absolute counts, so that writing them again changes nothing and no
//! two processes have to agree; reading adds them up.
//!
//! Table `days`. Row: a spread of the app (2 bytes) · app id, escaped · day, 4 bytes. One cell for each life, named by it,
//! 16 bytes: form 1: the seven counts, 8 bytes each, in the order of [`DayCounts`].

use std::ops::{Add, AddAssign};
use std::sync::Arc;

use idl::ids::AppId;

use crate::batch::Batch;
use crate::keys::{self, Key};
use crate::sorted::{Mutation, Put, Row, RowScan, SortedStore, StoreError, Table};
use crate::value::{Read, Reader, Writer};

const TABLE: Table = Table::Days;

/// What an app did in a day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DayCounts {
    /// Registrations that sends to aliases were resolved to.
    pub alias_recipients: u64,
    /// Registrations that sends to user accounts were resolved to.
    pub user_account_recipients: u64,
    /// Registrations that sends to registration ids were resolved to.
    pub regid_recipients: u64,
    /// Registrations that broadcasts were meant for.
    pub broadcast_recipients: u64,
    /// Deliveries that were acknowledged.
    pub delivered: u64,
    /// Notifications that were opened.
    pub clicked: u64,
    /// Messages that were accepted.
    pub messages: u64,
}

impl DayCounts {
    fn all(&self) -> [u64; 7] {
        [
            self.alias_recipients,
            self.user_account_recipients,
            self.regid_recipients,
            self.broadcast_recipients,
            self.delivered,
            self.clicked,
            self.messages,
        ]
    }

    fn from_all(all: [u64; 7]) -> Self {
        let [
            alias_recipients,
            user_account_recipients,
            regid_recipients,
            broadcast_recipients,
            delivered,
            clicked,
            messages,
        ] = all;
        Self {
            alias_recipients,
            user_account_recipients,
            regid_recipients,
            broadcast_recipients,
            delivered,
            clicked,
            messages,
        }
    }
}

impl Add for DayCounts {
    type Output = Self;

    /// Count by count; a sum that is too large stays at the largest number.
    fn add(self, other: Self) -> Self {
        let mut sum = self.all();
        for (sum, other) in sum.iter_mut().zip(other.all()) {
            *sum = sum.saturating_add(other);
        }
        Self::from_all(sum)
    }
}

impl AddAssign for DayCounts {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// The store of counters by day.
#[derive(Clone)]
pub struct Days {
    store: Arc<dyn SortedStore>,
}

impl Days {
    /// On a sorted store.
    pub fn new(store: Arc<dyn SortedStore>) -> Self {
        Self { store }
    }

    /// An app's counts of each day from `first` to `last`, both inclusive and written as yyyymmdd, in order; days without
    /// counts are left out. It reads all of these days at once.
    pub async fn read(&self, app: &AppId, first: u32, last: u32) -> Result<Vec<(u32, DayCounts)>, StoreError> {
        let from = row(app, first);
        let to = Some(keys::successor(&row(app, last)));
        let rows = self.store.scan(RowScan { table: TABLE, from, to, rows_max: usize::MAX }).await?;
        let skip = prefix(app).len();
        let decode = |row: &Row| decode(row, skip).map_err(|reason| StoreError::corrupt(TABLE, &row.row, reason));
        rows.iter().map(decode).collect()
    }

    /// An app's counts of one day as all lives of processes but one wrote them.
    pub async fn of_others(&self, app: &AppId, day: u32, life: u128) -> Result<DayCounts, StoreError> {
        let from = row(app, day);
        let to = Some(keys::successor(&from));
        let mut rows = self.store.scan(RowScan { table: TABLE, from, to, rows_max: 1 }).await?;
        let Some(row) = rows.first_mut() else { return Ok(DayCounts::default()) };
        row.cells.retain(|(cell, _)| *cell != life.to_be_bytes());
        let counts = decode(row, prefix(app).len()).map_err(|reason| StoreError::corrupt(TABLE, &row.row, reason))?;
        Ok(counts.1)
    }
}

impl Batch {
    /// Writes the counts of one day and one life of a process, kept until `keep_until_ms`, in milliseconds since the epoch.
    /// `day` is written as yyyymmdd. They are absolute: they replace what that life wrote of that day before.
    pub fn day(&mut self, app: &AppId, day: u32, life: u128, counts: &DayCounts, keep_until_ms: u64) {
        self.0.push(Mutation::Put(Put {
            table: TABLE,
            row: row(app, day),
            cell: life.to_be_bytes().to_vec(),
            value: encode(counts),
            expires_at_ms: Some(keep_until_ms),
        }));
    }
}

fn prefix(app: &AppId) -> Vec<u8> {
    let app = app.as_str().as_bytes();
    Key::new().fixed(&keys::spread(&[app])).escaped(app).build()
}

fn row(app: &AppId, day: u32) -> Vec<u8> {
    Key::new().fixed(&prefix(app)).fixed(&day.to_be_bytes()).build()
}

fn decode(row: &Row, skip: usize) -> Read<(u32, DayCounts)> {
    let day = row.row.get(skip..).and_then(|day| day.try_into().ok()).map(u32::from_be_bytes);
    let day = day.ok_or_else(|| "no day at its end".to_owned())?;
    let mut sum = DayCounts::default();
    for (_, value) in &row.cells {
        sum += decode_counts(value)?;
    }
    Ok((day, sum))
}

fn encode(counts: &DayCounts) -> Vec<u8> {
    counts.all().into_iter().fold(Writer::form(1), Writer::number).build()
}

fn decode_counts(value: &[u8]) -> Read<DayCounts> {
    let mut value = Reader::form(value, 1)?;
    let mut all = [0; 7];
    for count in &mut all {
        *count = value.number()?;
    }
    value.end()?;
    Ok(DayCounts::from_all(all))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_sum_that_is_too_large_stays_at_the_largest_number() {
        let some = DayCounts { clicked: 2, messages: 3, ..DayCounts::default() };
        let much = DayCounts { clicked: u64::MAX, ..DayCounts::default() };
        assert_eq!(some + much, DayCounts { clicked: u64::MAX, messages: 3, ..DayCounts::default() });
    }

    proptest! {
        #[test]
        fn counts_read_back_as_they_were_written(all: [u64; 7], at in 0usize..57) {
            let stored = encode(&DayCounts::from_all(all));
            prop_assert_eq!(decode_counts(&stored).map(|counts| counts.all()), Ok(all));
            prop_assert!(decode_counts(&stored[..at]).is_err());
        }

        #[test]
        fn no_bytes_make_a_reader_panic(value in prop::collection::vec(0u8..3, 0..70), row in prop::collection::vec(any::<u8>(), 0..9)) {
            let row = Row { row, cells: vec![(vec![0; 16], value)] };
            let _ = decode(&row, 4);
        }
    }
}
