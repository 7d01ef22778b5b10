//! Traces: what happened to a message for one registration.
//!
//! Table `traces`. Row: a spread of the message id (2 bytes) · message id, 16 bytes · registration id, 24 bytes.
//!
//! | cell | value |
//! | --- | --- |
//! | `d` | form 1: delivered: when, when it was dispatched if that is known, to which front if that is known |
//! | `c` | form 1: clicked: when first |
//! | `x` | form 1: dropped: when, reason |
//! | `w` | the message without its texts, where a click will need a receipt |
//!
//! Each cell expires when its writer says, which is when the message's [record](crate::records) does.

use std::fmt;
use std::sync::Arc;

use idl::ids::{FrontId, MessageId, RegId};
use idl::message::Message;

use crate::batch::Batch;
use crate::keys::{self, Key};
use crate::sorted::{Cells, Mutation, Put, Row, RowRead, RowScan, SortedStore, StoreError, Table};
use crate::value::{Read, Reader, Writer};

const TABLE: Table = Table::Traces;
const CLICKED: &[u8] = b"c";
const DELIVERED: &[u8] = b"d";
const DROPPED: &[u8] = b"x";
const WANTED: &[u8] = b"w";

/// What happened so far to one message for one registration. A step may be there without those before it: what happened
/// to a delivery whose step was lost, or is still being written, is not made up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Steps {
    /// It was acknowledged. That it was dropped too does not undo it: a revocation may come after a delivery.
    pub delivered: Option<Delivered>,
    /// When it was first clicked, in milliseconds since the epoch.
    pub clicked: Option<u64>,
    /// It was given up.
    pub dropped: Option<Dropped>,
}

/// That a delivery was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivered {
    /// When, in milliseconds since the epoch.
    pub at_ms: u64,
    /// When it was last handed off before, if that is known.
    pub dispatched_at_ms: Option<u64>,
    /// To which front, if that is known.
    pub front: Option<FrontId>,
}

/// That a delivery was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    /// When, in milliseconds since the epoch.
    pub at_ms: u64,
    /// Why.
    pub reason: DropReason,
}

/// Why a delivery was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DropReason {
    /// Its message expired before it was acknowledged.
    Expired,
    /// The registration's attributes do not match the message's filter.
    Filtered,
    /// The user turned push off for the app.
    Disabled,
    /// The registration is gone.
    Unregistered,
    /// A newer message with the same collapse key took its place.
    Collapsed,
    /// The app took the message back.
    Revoked,
    /// The app stopped the message.
    Stopped,
    /// The device was not connected, and the message was for connected ones only.
    Offline,
    /// The registration had a message with the same job key already.
    Duplicate,
    /// The device did not take it.
    Refused,
}

impl DropReason {
    /// Every reason, by its number in the stored form, which never changes.
    pub const ALL: &[Self] = &[
        Self::Expired,
        Self::Filtered,
        Self::Disabled,
        Self::Unregistered,
        Self::Collapsed,
        Self::Revoked,
        Self::Stopped,
        Self::Offline,
        Self::Duplicate,
        Self::Refused,
    ];

    /// Its name, as traces show it; never changes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Filtered => "filtered",
            Self::Disabled => "disabled",
            Self::Unregistered => "unregistered",
            Self::Collapsed => "collapsed",
            Self::Revoked => "revoked",
            Self::Stopped => "stopped",
            Self::Offline => "offline",
            Self::Duplicate => "duplicate",
            Self::Refused => "refused",
        }
    }

    fn of_number(number: u8) -> Read<Self> {
        let reason = Self::ALL.get(usize::from(number)).copied();
        reason.ok_or_else(|| format!("a drop for reason {number}, which is none"))
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The store of traces.
#[derive(Clone)]
pub struct Traces {
    store: Arc<dyn SortedStore>,
}

impl Traces {
    /// On a sorted store.
    pub fn new(store: Arc<dyn SortedStore>) -> Self {
        Self { store }
    }

    /// What happened to a message for one registration; no steps where nothing is known.
    pub async fn get(&self, id: MessageId, regid: RegId) -> Result<Steps, StoreError> {
        let read = RowRead { table: TABLE, row: row(id, regid), cells: Cells::All, limit: usize::MAX };
        self.store.read(vec![read]).await?.first().map_or(Ok(Steps::default()), decode)
    }

    /// What happened to a message for each registration of which something is known, in order of their ids: at most
    /// `limit`, those after `after`. Fewer than `limit` means there are no more.
    pub async fn of_message(
        &self,
        id: MessageId,
        after: Option<RegId>,
        limit: usize,
    ) -> Result<Vec<(RegId, Steps)>, StoreError> {
        let prefix = prefix(id);
        let to = keys::prefix_end(&prefix);
        let from = after.map(|regid| keys::successor(&row(id, regid))).unwrap_or(prefix);
        let rows = self.store.scan(RowScan { table: TABLE, from, to, rows_max: limit }).await?;
        let steps = |row: &Row| match row.row.last_chunk() {
            Some(regid) => Ok((RegId(*regid), decode(row)?)),
            None => Err(StoreError::corrupt(TABLE, &row.row, "no registration id at its end")),
        };
        rows.iter().map(steps).collect()
    }

    /// Notes that a delivery was clicked: `true` the first time (durably), `false` if it had been clicked before, which then
    /// stays as it is.
    pub async fn clicked(
        &self,
        id: MessageId,
        regid: RegId,
        at_ms: u64,
        keep_until_ms: u64,
    ) -> Result<bool, StoreError> {
        let value = Writer::form(1).number(at_ms).build();
        self.store.put_if_absent(put(id, regid, CLICKED, value, keep_until_ms)).await
    }

    /// What [`Batch::click_wanted`] kept for a delivery: the message without its texts.
    pub async fn click_wanted(&self, id: MessageId, regid: RegId) -> Result<Option<Message>, StoreError> {
        let read = RowRead { table: TABLE, row: row(id, regid), cells: Cells::One(WANTED.to_vec()), limit: 1 };
        let rows = self.store.read(vec![read]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let decode = |value| Message::from_stored(id, value);
        row.cell(WANTED).map(decode).transpose().map_err(|error| StoreError::corrupt(TABLE, &row.row, error))
    }
}

impl Batch {
    /// Notes that a delivery was acknowledged; the later of two counts.
    pub fn delivered(&mut self, id: MessageId, regid: RegId, delivered: &Delivered, keep_until_ms: u64) {
        let value = encode_delivered(delivered);
        self.0.push(Mutation::Put(put(id, regid, DELIVERED, value, keep_until_ms)));
    }

    /// Keeps of a delivery that was acknowledged what a receipt of a click will need: the message without its texts.
    pub fn click_wanted(&mut self, message: &Message, regid: RegId, keep_until_ms: u64) {
        let value = message.to_stored();
        self.0.push(Mutation::Put(put(message.id, regid, WANTED, value, keep_until_ms)));
    }

    /// Notes that a delivery was given up; the later of two counts. Does not undo that it was delivered.
    pub fn dropped(&mut self, id: MessageId, regid: RegId, dropped: Dropped, keep_until_ms: u64) {
        let value = encode_dropped(dropped);
        self.0.push(Mutation::Put(put(id, regid, DROPPED, value, keep_until_ms)));
    }
}

fn put(id: MessageId, regid: RegId, cell: &[u8], value: Vec<u8>, keep_until_ms: u64) -> Put {
    Put { table: TABLE, row: row(id, regid), cell: cell.to_vec(), value, expires_at_ms: Some(keep_until_ms) }
}

fn row(id: MessageId, regid: RegId) -> Vec<u8> {
    Key::new().fixed(&prefix(id)).fixed(&regid.0).build()
}

fn prefix(id: MessageId) -> Vec<u8> {
    let id = id.to_bytes();
    Key::new().fixed(&keys::spread(&[&id])).fixed(&id).build()
}

fn encode_delivered(delivered: &Delivered) -> Vec<u8> {
    let value = Writer::form(1).number(delivered.at_ms);
    let value = match delivered.dispatched_at_ms {
        Some(at_ms) => value.fixed(&[1]).number(at_ms),
        None => value.fixed(&[0]),
    };
    match delivered.front {
        Some(front) => value.fixed(&[1]).fixed(&front.to_bytes()),
        None => value.fixed(&[0]),
    }
    .build()
}

fn encode_dropped(dropped: Dropped) -> Vec<u8> {
    Writer::form(1).number(dropped.at_ms).fixed(&[dropped.reason as u8]).build()
}

fn decode(row: &Row) -> Result<Steps, StoreError> {
    let steps = || -> Read<Steps> {
        Ok(Steps {
            delivered: row.cell(DELIVERED).map(decode_delivered).transpose()?,
            clicked: row.cell(CLICKED).map(decode_clicked).transpose()?,
            dropped: row.cell(DROPPED).map(decode_dropped).transpose()?,
        })
    };
    steps().map_err(|reason| StoreError::corrupt(TABLE, &row.row, reason))
}

fn decode_delivered(value: &[u8]) -> Read<Delivered> {
    let mut reader = Reader::form(value, 1)?;
    let at_ms = reader.number()?;
    let dispatched_at_ms = marked(&mut reader)?.then(|| reader.number()).transpose()?;
    let front = marked(&mut reader)?.then(|| reader.fixed()).transpose()?;
    reader.end()?;
    Ok(Delivered { at_ms, dispatched_at_ms, front: front.map(|bytes| FrontId(u128::from_be_bytes(bytes))) })
}

fn decode_clicked(value: &[u8]) -> Read<u64> {
    let mut reader = Reader::form(value, 1)?;
    let at_ms = reader.number()?;
    reader.end()?;
    Ok(at_ms)
}

fn decode_dropped(value: &[u8]) -> Read<Dropped> {
    let mut reader = Reader::form(value, 1)?;
    let (at_ms, [reason]) = (reader.number()?, reader.fixed()?);
    reader.end()?;
    Ok(Dropped { at_ms, reason: DropReason::of_number(reason)? })
}

/// Whether what may be absent follows.
fn marked(reader: &mut Reader<'_>) -> Read<bool> {
    match reader.fixed()? {
        [0] => Ok(false),
        [1] => Ok(true),
        [other] => Err(format!("mark {other} where 0 or 1 was expected")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_reason_is_stored_by_its_place() {
        for (place, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, place);
            assert_eq!(DropReason::of_number(*reason as u8), Ok(*reason));
        }
        assert!(DropReason::of_number(10).is_err());
    }

    #[test]
    fn a_reason_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), DropReason::ALL.len());
        assert_eq!(DropReason::Unregistered.to_string(), "unregistered");
    }

    proptest! {
        #[test]
        fn steps_read_back_as_they_were_written(at_ms: u64, dispatched_at_ms: Option<u64>, front: Option<u128>, reason in 0usize..10) {
            let delivered = Delivered { at_ms, dispatched_at_ms, front: front.map(FrontId) };
            prop_assert_eq!(decode_delivered(&encode_delivered(&delivered)), Ok(delivered));
            let dropped = Dropped { at_ms, reason: DropReason::ALL[reason] };
            prop_assert_eq!(decode_dropped(&encode_dropped(dropped)), Ok(dropped));
        }

        #[test]
        fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(0u8..3, 0..50)) {
            let _ = decode_delivered(&bytes);
            let _ = decode_clicked(&bytes);
            let _ = decode_dropped(&bytes);
        }
    }
}
