//! Keys, entries of streams, and the ids that are made of them.

use std::fmt;
use std::str::FromStr;

use ::redis::Value;

use super::ProcessId;
use crate::bus::Lane;
use crate::ids::{MessageId, Partition};

/// The consumer group of every request stream.
pub(super) const GROUP: &str = "middle";

/// One lane of one partition: a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Slot {
    pub(super) partition: Partition,
    pub(super) lane: Lane,
}

impl Slot {
    pub(super) const COUNT: usize = Partition::COUNT * Lane::ALL.len();

    pub(super) fn all() -> impl Iterator<Item = Self> {
        Partition::all().flat_map(|partition| Lane::ALL.into_iter().map(move |lane| Self { partition, lane }))
    }

    pub(super) fn index(self) -> usize {
        self.partition.number() * Lane::ALL.len() + self.lane as usize
    }
}

/// The names of all keys. What is in braces decides where a key lives in a cluster.
pub(super) struct Keys {
    requests: Vec<String>,
    dead: Vec<String>,
    pub(super) members: String,
    pub(super) owners: String,
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        let requests = Slot::all().map(|slot| {
            let (number, lane) = (slot.partition.number(), slot.lane.name());
            format!("{prefix}:{{p{number:02}}}:{lane}")
        });
        let dead = Partition::all().map(|partition| format!("{prefix}:{{p{:02}}}:dead", partition.number()));
        Self {
            requests: requests.collect(),
            dead: dead.collect(),
            members: format!("{prefix}:{{members}}:living"),
            owners: format!("{prefix}:{{members}}:owners"),
            prefix: prefix.to_owned(),
        }
    }

    pub(super) fn requests(&self, slot: Slot) -> &str {
        &self.requests[slot.index()]
    }

    pub(super) fn dead(&self, partition: Partition) -> &str {
        &self.dead[partition.number()]
    }

    pub(super) fn inbox(&self, process: ProcessId) -> String {
        format!("{}:{{in:{process}}}:in", self.prefix)
    }
}

/// The id that Redis gave to an entry of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct EntryId {
    pub(super) ms: u64,
    pub(super) seq: u64,
}

impl EntryId {
    pub(super) fn after(self) -> Self {
        match self.seq.checked_add(1) {
            Some(seq) => Self { seq, ..self },
            None => Self { ms: self.ms.saturating_add(1), seq: 0 },
        }
    }

    /// The id of the request in this entry, the same however often it is delivered: 48 bits of time, 24 of the sequence,
    /// 12 of the stream, 20 of chance, and 24 that are 0, for ids in a row. Later entries of one stream get greater ids, no
    /// two streams the same ones; chance tells apart what Redis numbers twice after it lost everything and its clock went
    /// back. A sequence over 24 bits, which needs a clock that stands still, runs into the time.
    pub(super) fn message_id(self, stream: u16, chance: u32) -> MessageId {
        let ms = self.ms.saturating_add(self.seq >> 24) & 0xffff_ffff_ffff;
        let parts = [
            (u128::from(ms), 80),
            (u128::from(self.seq & 0xff_ffff), 56),
            (u128::from(stream & 0xfff), 44),
            (u128::from(chance & 0xf_ffff), 24),
        ];
        MessageId(parts.into_iter().fold(0, |id, (part, shift)| id | (part << shift)))
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

impl FromStr for EntryId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (ms, seq) = text.split_once('-').unwrap_or((text, "0"));
        Ok(Self { ms: ms.parse()?, seq: seq.parse()? })
    }
}

/// The number of a request stream in ids.
pub(super) fn stream_number(slot: Slot) -> u16 {
    u16::try_from(slot.index()).expect("192 streams")
}

/// The number in ids of what came in a process's own stream: above those of all request streams.
pub(super) fn letter_number(place: usize) -> u16 {
    0xf00 + u16::try_from(place % 0xff).expect("below 255")
}

/// One entry of a stream: its fields in order, names left out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id: EntryId,
    pub(super) values: Vec<Vec<u8>>,
}

/// Entries as `XRANGE` and its like answer them. What is no entry, or was deleted meanwhile, is left out.
pub(super) fn entries(value: Value) -> Vec<Entry> {
    let Value::Array(items) = value else { return Vec::new() };
    items.into_iter().filter_map(entry).collect()
}

fn entry(value: Value) -> Option<Entry> {
    let Value::Array(parts) = value else { return None };
    let mut parts = parts.into_iter();
    let id = text(&parts.next()?)?.parse().ok()?;
    let Value::Array(fields) = parts.next()? else { return None };
    let values = fields.into_iter().skip(1).step_by(2);
    let values = values.filter_map(|value| if let Value::BulkString(bytes) = value { Some(bytes) } else { None });
    Some(Entry { id, values: values.collect() })
}

/// Entries by key, as `XREAD` and `XREADGROUP` answer them; nothing where there were none.
pub(super) fn streams(value: Value) -> Vec<(Vec<u8>, Vec<Entry>)> {
    let Value::Array(items) = value else { return Vec::new() };
    let stream = |item| {
        let Value::Array(parts) = item else { return None };
        let mut parts = parts.into_iter();
        let Value::BulkString(key) = parts.next()? else { return None };
        Some((key, entries(parts.next()?)))
    };
    items.into_iter().filter_map(stream).collect()
}

/// A value as text.
pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn slot(index: usize) -> Slot {
        Slot::all().nth(index % Slot::COUNT).expect("192 slots")
    }

    #[test]
    fn slots_are_numbered_without_gaps_and_their_keys_differ() {
        let keys = Keys::new("test");
        assert!(Slot::all().enumerate().all(|(index, slot)| slot.index() == index));
        let names: BTreeSet<_> = Slot::all().map(|slot| keys.requests(slot)).collect();
        assert_eq!(names.len(), Slot::COUNT);
        assert!(names.contains("test:{p07}:high"));
    }

    proptest! {
        #[test]
        fn later_entries_of_a_stream_have_greater_ids_with_room_for_rows(
            ms in 0_u64..1 << 47, seq in 0_u64..1 << 24, later in 1_u64..1 << 20, other_seq in 0_u64..1 << 24,
            index in 0_usize..192, chances: [u32; 2], row in 0_u128..1 << 24,
        ) {
            let stream = stream_number(slot(index));
            let id = EntryId { ms, seq }.message_id(stream, chances[0]);
            let next = EntryId { ms, seq }.after().message_id(stream, chances[1]);
            let after = EntryId { ms: ms + later, seq: other_seq }.message_id(stream, chances[1]);
            prop_assert!(id.0 + row < next.0 && id.0 + row < after.0);
            prop_assert_eq!(id.time_ms(), ms);
            prop_assert_eq!(id, EntryId { ms, seq }.message_id(stream, chances[0]));
        }

        #[test]
        fn streams_never_share_an_id(
            ms in 0_u64..1 << 47, seq: u32, one in 0_usize..192, other in 0_usize..192, chances: [u32; 2],
            rows in [0_u128..1 << 24, 0_u128..1 << 24],
        ) {
            prop_assume!(one != other);
            let entry = EntryId { ms, seq: seq.into() };
            let first = entry.message_id(stream_number(slot(one)), chances[0]);
            let second = entry.message_id(stream_number(slot(other)), chances[1]);
            prop_assert_ne!(first.0 + rows[0], second.0 + rows[1]);
        }

        #[test]
        fn an_entry_id_reads_back_as_it_was_printed(ms: u64, seq: u64) {
            prop_assert_eq!(EntryId { ms, seq }.to_string().parse(), Ok(EntryId { ms, seq }));
        }
    }
}
