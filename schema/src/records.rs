//! Records: what is known of each accepted message, longer than the message itself is kept.
//!
//! Table `records`. Row: a spread of app and bucket (2 bytes) · app id, escaped · bucket (1 byte: the low 4 bits of the message
//! id) · message id, descending, 16 bytes. So one message is looked up by its app and id, the writes of one large app go to
//! 16 places, and an app's newest messages are the merged beginnings of 16 ranges.
//!
//! | cell | value |
//! | --- | --- |
//! | `b` | form 1: everything that was known when the message was accepted; a record exists if this cell does |
//! | `t` | form 1: the targets, 24 bytes each, where there are several (one is inside `b`) |
//! | `r` | form 1: how many it was resolved to; goes before what `b` says |
//! | `e` | form 1: when it was ended, and how |
//! | `k` life | form 1: what one life of a process has counted, from its beginning; readers sum over lives |
//!
//! Table `job_keys`. Row: a spread of app and job key (2 bytes) · app id, escaped · job key, escaped · message id, descending,
//! 16 bytes. One cell `m`, empty. The record is the truth; a row here may point at none.
//!
//! All cells of one message expire together, at the record's `keep_until_ms`.

use std::sync::Arc;

use idl::ids::{AppId, MessageId, RegId};

use crate::batch::Batch;
use crate::buckets;
use crate::keys::{self, Key};
use crate::sorted::{Cells, Mutation, Put, Row, RowRead, RowScan, SortedStore, StoreError, Table};
use crate::value::{Read, Reader, Writer};

const TABLE: Table = Table::Records;
const BASE: &[u8] = b"b";
const TARGETS: &[u8] = b"t";
const RESOLVED: &[u8] = b"r";
const ENDED: &[u8] = b"e";
const TALLY: u8 = b'k';
/// The cell of a row of job keys.
const POINTER: &[u8] = b"m";
/// The last millisecond that the time of an id can name.
const ID_MS_MAX: u64 = (1 << 48) - 1;

// What the first byte of a base says.
const BROADCAST: u8 = 1;
const CALLBACK: u8 = 1 << 1;
const SCHEDULE: u8 = 1 << 2;
const RESOLUTION: u8 = 1 << 3;
const EXACT: u8 = 1 << 4;
const TARGET_HERE: u8 = 1 << 5;
const TARGETS_BESIDE: u8 = 1 << 6;

/// What is known of one accepted message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The message.
    pub id: MessageId,
    /// Whose it is.
    pub app: AppId,
    /// What it was sent to, as the contract numbers it: 1 registration ids, 2 aliases, 3 user accounts, 4 an expression.
    pub kind: i32,
    /// When it was accepted, in milliseconds since the epoch.
    pub created_at_ms: u64,
    /// From when on it is never delivered.
    pub expires_at_ms: u64,
    /// From when on nothing is known of it any more.
    pub keep_until_ms: u64,
    /// The app's own name for it; several messages may have the same.
    pub job_key: Option<String>,
    /// The topic or topics it was sent to, as the request named them.
    pub topic: Option<String>,
    /// Of a message to registrations: which. Empty for a broadcast.
    pub targets: Vec<RegId>,
    /// It is one row of the app's timeline.
    pub broadcast: bool,
    /// Targets of the request that were none of the app's.
    pub invalid_targets: u32,
    /// The schedule that made it.
    pub schedule: Option<MessageId>,
    /// Somebody wants receipts.
    pub has_callback: bool,
    /// How many registrations it is for, once that is known.
    pub resolved: Option<Resolved>,
    /// Set once it was taken back or stopped.
    pub ended: Option<Ended>,
    /// What became of it so far.
    pub tally: Tally,
}

/// How many registrations a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolved {
    /// So many.
    pub registrations: u64,
    /// False for an estimate.
    pub exact: bool,
}

/// That a message is delivered no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Since when, in milliseconds since the epoch.
    pub at_ms: u64,
    /// What was shown is taken back too; otherwise it was only stopped.
    pub revoked: bool,
}

/// Counts of one message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Deliveries that were acknowledged.
    pub delivered: u64,
    /// Deliveries that somebody clicked.
    pub clicked: u64,
}

/// The store of records.
#[derive(Clone)]
pub struct Records {
    store: Arc<dyn SortedStore>,
}

impl Records {
    /// On a sorted store.
    pub fn new(store: Arc<dyn SortedStore>) -> Self {
        Self { store }
    }

    /// What is known of one message; `None` if there is no such message of this app, or no longer.
    pub async fn get(&self, app: &AppId, id: MessageId) -> Result<Option<Record>, StoreError> {
        Ok(self.get_many(app, &[id]).await?.pop().flatten())
    }

    /// What is known of these messages, in this order, in one multi-row read.
    pub async fn get_many(&self, app: &AppId, ids: &[MessageId]) -> Result<Vec<Option<Record>>, StoreError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let read = |id: &MessageId| RowRead { table: TABLE, row: row(app, *id), cells: Cells::All, limit: usize::MAX };
        let rows = self.store.read(ids.iter().map(read).collect()).await?;
        ids.iter().zip(&rows).map(|(id, row)| decode(app, *id, row)).collect()
    }

    /// The newest messages of an app whose ids are from `begin_ms`, inclusive, to `end_ms`, exclusive: at most `limit`, newest
    /// first. Fewer than `limit` means there are no more. 16 short scans.
    pub async fn between(
        &self,
        app: &AppId,
        begin_ms: u64,
        end_ms: u64,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        let Some((oldest, mut newest)) = bounds(begin_ms, end_ms) else { return Ok(Vec::new()) };
        let skip = prefix(app, 0).len();
        let mut found = Vec::new();
        while found.len() < limit {
            let wanted = limit - found.len();
            let range = |bucket| {
                let key = |id| Key::new().fixed(&prefix(app, bucket)).fixed(&descending(id)).build();
                (key(newest), keys::successor(&key(oldest)))
            };
            let rows = buckets::merged(self.store.as_ref(), TABLE, range, skip, wanted).await?;
            let mut last = None;
            for row in &rows {
                let id = id_of(TABLE, &row.row)?;
                found.extend(decode(app, id, row)?);
                last = Some(id);
            }
            // Counts that came after their record was gone are a row without a record: what follows takes its place.
            match last {
                Some(last) if rows.len() == wanted && last > oldest => newest = MessageId(last.0 - 1),
                _ => break,
            }
        }
        Ok(found)
    }

    /// The newest messages of an app with that job key: at most `limit`, newest first. Fewer than `limit` means there are no
    /// more.
    pub async fn by_job_key(&self, app: &AppId, job_key: &str, limit: usize) -> Result<Vec<Record>, StoreError> {
        let mut from = job_key_prefix(app, job_key);
        let to = keys::prefix_end(&from);
        let mut found = Vec::new();
        while found.len() < limit {
            let wanted = limit - found.len();
            let scan = RowScan { table: Table::JobKeys, from, to: to.clone(), rows_max: wanted };
            let keys = self.store.keys(scan).await?;
            let ids = keys.iter().map(|key| id_of(Table::JobKeys, key)).collect::<Result<Vec<_>, _>>()?;
            found.extend(self.get_many(app, &ids).await?.into_iter().flatten());
            match keys.last() {
                Some(last) if keys.len() == wanted => from = keys::successor(last),
                _ => break,
            }
        }
        Ok(found)
    }
}

impl Batch {
    /// Writes the record of an accepted message, and its row of job keys. One mutation for a message to one registration
    /// without a job key, or to a topic; one more for the targets, where there are several. The tally is not written: see
    /// [`Batch::tally`].
    pub fn record(&mut self, record: &Record) {
        let row = row(&record.app, record.id);
        let mut put = |cell: &[u8], value| {
            self.0.push(put(TABLE, row.clone(), cell, value, record.keep_until_ms));
        };
        put(BASE, base(record));
        if let [_, _, ..] = record.targets.as_slice() {
            put(TARGETS, targets(&record.targets));
        }
        if let Some(ended) = record.ended {
            put(ENDED, encode_ended(ended));
        }
        if let Some(job_key) = &record.job_key {
            let prefix = job_key_prefix(&record.app, job_key);
            let row = Key::new().fixed(&prefix).fixed(&descending(record.id)).build();
            self.0.push(self::put(Table::JobKeys, row, POINTER, Vec::new(), record.keep_until_ms));
        }
    }

    /// Writes how many registrations a message is for; the later of two counts.
    pub fn resolved(&mut self, app: &AppId, id: MessageId, keep_until_ms: u64, resolved: Resolved) {
        self.0.push(put(TABLE, row(app, id), RESOLVED, encode_resolved(resolved), keep_until_ms));
    }

    /// Writes that a message is delivered no further; the later of two counts.
    pub fn ended(&mut self, app: &AppId, id: MessageId, keep_until_ms: u64, ended: Ended) {
        self.0.push(put(TABLE, row(app, id), ENDED, encode_ended(ended), keep_until_ms));
    }

    /// Writes all that one life of a process has counted of a message since that life began: not what came since the last
    /// time, so that repeating it counts nothing twice.
    pub fn tally(&mut self, app: &AppId, id: MessageId, keep_until_ms: u64, life: u128, tally: Tally) {
        let value = Writer::form(1).number(tally.delivered).number(tally.clicked).build();
        self.0.push(put(TABLE, row(app, id), &tally_cell(life), value, keep_until_ms));
    }
}

// ------------------------------------------------------------------------------------------------ keys

fn put(table: Table, row: Vec<u8>, cell: &[u8], value: Vec<u8>, keep_until_ms: u64) -> Mutation {
    Mutation::Put(Put { table, row, cell: cell.to_vec(), value, expires_at_ms: Some(keep_until_ms) })
}

fn row(app: &AppId, id: MessageId) -> Vec<u8> {
    Key::new().fixed(&prefix(app, buckets::bucket(id))).fixed(&descending(id)).build()
}

fn prefix(app: &AppId, bucket: u8) -> Vec<u8> {
    let app = app.as_str().as_bytes();
    Key::new().fixed(&keys::spread(&[app, &[bucket]])).escaped(app).fixed(&[bucket]).build()
}

fn job_key_prefix(app: &AppId, job_key: &str) -> Vec<u8> {
    let (app, job_key) = (app.as_str().as_bytes(), job_key.as_bytes());
    Key::new().fixed(&keys::spread(&[app, job_key])).escaped(app).escaped(job_key).build()
}

/// The id that a row ends with.
fn id_of(table: Table, row: &[u8]) -> Result<MessageId, StoreError> {
    let id = row.last_chunk().ok_or_else(|| StoreError::corrupt(table, row, "no message id at its end"))?;
    Ok(MessageId(!u128::from_be_bytes(*id)))
}

/// Sixteen bytes whose order is that of the ids, the newest first.
fn descending(id: MessageId) -> [u8; 16] {
    (!id.0).to_be_bytes()
}

fn tally_cell(life: u128) -> Vec<u8> {
    Key::new().fixed(&[TALLY]).fixed(&life.to_be_bytes()).build()
}

/// The first and the last id of a time; `None` if no id is in it.
fn bounds(begin_ms: u64, end_ms: u64) -> Option<(MessageId, MessageId)> {
    let last = if end_ms > ID_MS_MAX { u128::MAX } else { MessageId::at(end_ms).0.checked_sub(1)? };
    let first = (begin_ms <= ID_MS_MAX).then(|| MessageId::at(begin_ms))?;
    (first.0 <= last).then_some((first, MessageId(last)))
}

// ------------------------------------------------------------------------------------------------ values

fn base(record: &Record) -> Vec<u8> {
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    let flags = flag(record.broadcast, BROADCAST)
        | flag(record.has_callback, CALLBACK)
        | flag(record.schedule.is_some(), SCHEDULE)
        | flag(record.resolved.is_some(), RESOLUTION)
        | flag(record.resolved.is_some_and(|resolved| resolved.exact), EXACT)
        | flag(record.targets.len() == 1, TARGET_HERE)
        | flag(record.targets.len() > 1, TARGETS_BESIDE);
    let mut value = Writer::form(1)
        .fixed(&[flags])
        .fixed(&record.kind.to_be_bytes())
        .number(record.created_at_ms)
        .number(record.expires_at_ms)
        .number(record.keep_until_ms)
        .fixed(&record.invalid_targets.to_be_bytes())
        .optional_text(record.job_key.as_deref())
        .optional_text(record.topic.as_deref());
    if let Some(schedule) = record.schedule {
        value = value.message_id(schedule);
    }
    if let Some(resolved) = record.resolved {
        value = value.number(resolved.registrations);
    }
    if let [target] = record.targets.as_slice() {
        value = value.fixed(&target.0);
    }
    value.build()
}

fn targets(targets: &[RegId]) -> Vec<u8> {
    targets.iter().fold(Writer::form(1), |value, target| value.fixed(&target.0)).build()
}

fn encode_resolved(resolved: Resolved) -> Vec<u8> {
    Writer::form(1).number(resolved.registrations).fixed(&[u8::from(resolved.exact)]).build()
}

fn encode_ended(ended: Ended) -> Vec<u8> {
    Writer::form(1).number(ended.at_ms).fixed(&[u8::from(ended.revoked)]).build()
}

fn decode(app: &AppId, id: MessageId, row: &Row) -> Result<Option<Record>, StoreError> {
    let Some(base) = row.cell(BASE) else { return Ok(None) };
    decode_row(app, id, base, row).map(Some).map_err(|reason| StoreError::corrupt(TABLE, &row.row, reason))
}

fn decode_row(app: &AppId, id: MessageId, base: &[u8], row: &Row) -> Read<Record> {
    let mut record = decode_base(app, id, base, row.cell(TARGETS))?;
    for (cell, value) in &row.cells {
        match cell.as_slice() {
            RESOLVED => record.resolved = Some(decode_resolved(value)?),
            ENDED => record.ended = Some(decode_ended(value)?),
            [TALLY, ..] => {
                let mut reader = Reader::form(value, 1)?;
                let tally = Tally { delivered: reader.number()?, clicked: reader.number()? };
                reader.end()?;
                record.tally.delivered = record.tally.delivered.saturating_add(tally.delivered);
                record.tally.clicked = record.tally.clicked.saturating_add(tally.clicked);
            }
            // The base and the targets, and what a newer build may add.
            _ => {}
        }
    }
    Ok(record)
}

fn decode_base(app: &AppId, id: MessageId, base: &[u8], targets: Option<&[u8]>) -> Read<Record> {
    let mut reader = Reader::form(base, 1)?;
    let [flags] = reader.fixed()?;
    let is = |flag: u8| flags & flag != 0;
    let mut record = Record {
        id,
        app: app.clone(),
        kind: i32::from_be_bytes(reader.fixed()?),
        created_at_ms: reader.number()?,
        expires_at_ms: reader.number()?,
        keep_until_ms: reader.number()?,
        invalid_targets: u32::from_be_bytes(reader.fixed()?),
        job_key: reader.optional_text()?,
        topic: reader.optional_text()?,
        targets: Vec::new(),
        broadcast: is(BROADCAST),
        schedule: None,
        has_callback: is(CALLBACK),
        resolved: None,
        ended: None,
        tally: Tally::default(),
    };
    if is(SCHEDULE) {
        record.schedule = Some(reader.message_id()?);
    }
    if is(RESOLUTION) {
        record.resolved = Some(Resolved { registrations: reader.number()?, exact: is(EXACT) });
    }
    if is(TARGET_HERE) {
        record.targets.push(RegId(reader.fixed()?));
    }
    reader.end()?;
    if is(TARGETS_BESIDE) {
        record.targets = decode_targets(targets.ok_or_else(|| "a record without its targets".to_owned())?)?;
    }
    Ok(record)
}

fn decode_targets(value: &[u8]) -> Read<Vec<RegId>> {
    let mut reader = Reader::form(value, 1)?;
    let mut targets = Vec::new();
    while !reader.is_empty() {
        targets.push(RegId(reader.fixed()?));
    }
    Ok(targets)
}

fn decode_resolved(value: &[u8]) -> Read<Resolved> {
    let mut reader = Reader::form(value, 1)?;
    let (registrations, [exact]) = (reader.number()?, reader.fixed()?);
    reader.end()?;
    Ok(Resolved { registrations, exact: exact != 0 })
}

fn decode_ended(value: &[u8]) -> Read<Ended> {
    let mut reader = Reader::form(value, 1)?;
    let (at_ms, [revoked]) = (reader.number()?, reader.fixed()?);
    reader.end()?;
    Ok(Ended { at_ms, revoked: revoked != 0 })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn app() -> AppId {
        "com.example.demo".parse().expect("an app id")
    }

    fn record() -> impl Strategy<Value = Record> {
        let times = (any::<i32>(), any::<u64>(), any::<u64>(), any::<u64>(), any::<u32>());
        let texts = (prop::option::of(".{0,20}"), prop::option::of(".{0,20}"));
        let targets = prop::collection::vec(any::<[u8; 24]>().prop_map(RegId), 0..4);
        let rest = (
            any::<u128>(),
            any::<bool>(),
            any::<bool>(),
            prop::option::of(any::<u128>().prop_map(MessageId)),
            prop::option::of((any::<u64>(), any::<bool>())),
        );
        (times, texts, targets, rest).prop_map(|(times, (job_key, topic), targets, rest)| {
            let (kind, created_at_ms, expires_at_ms, keep_until_ms, invalid_targets) = times;
            let (id, broadcast, has_callback, schedule, resolved) = rest;
            Record {
                id: MessageId(id),
                app: app(),
                kind,
                created_at_ms,
                expires_at_ms,
                keep_until_ms,
                job_key,
                topic,
                targets,
                broadcast,
                invalid_targets,
                schedule,
                has_callback,
                resolved: resolved.map(|(registrations, exact)| Resolved { registrations, exact }),
                ended: None,
                tally: Tally::default(),
            }
        })
    }

    /// The cells that a batch puts into the table of records, as a row.
    fn stored(record: &Record) -> Row {
        let mut batch = Batch::default();
        batch.record(record);
        let cells = batch.0.into_iter().filter_map(|mutation| match mutation {
            Mutation::Put(put) if put.table == TABLE => Some((put.cell, put.value)),
            _ => None,
        });
        Row { row: row(&record.app, record.id), cells: cells.collect() }
    }

    #[test]
    fn the_stored_form_of_a_key_never_changes() {
        let row = row(&app(), MessageId(0x0123_4567_89ab_cdef_0123_4567_89ab_cde5));
        let mut expected = keys::spread(&[b"com.example.demo", &[5]]).to_vec();
        expected.extend_from_slice(b"com.example.demo\x00\x01\x05");
        expected.extend_from_slice(&0xfedc_ba98_7654_3210_fedc_ba98_7654_321a_u128.to_be_bytes());
        assert_eq!(row, expected);
    }

    #[test]
    fn a_time_holds_the_ids_of_its_milliseconds() {
        let at = |ms| MessageId::at(ms);
        let before = |id: MessageId| MessageId(id.0 - 1);
        assert_eq!(bounds(5, 7), Some((at(5), before(at(7)))));
        assert_eq!(bounds(0, 1), Some((MessageId::MIN, before(at(1)))));
        assert_eq!(bounds(0, u64::MAX), Some((MessageId::MIN, MessageId::MAX)));
        assert_eq!(bounds(ID_MS_MAX, ID_MS_MAX + 1), Some((at(ID_MS_MAX), MessageId::MAX)));
        for (begin, end) in [(0, 0), (5, 5), (6, 5), (ID_MS_MAX + 1, u64::MAX)] {
            assert_eq!(bounds(begin, end), None);
        }
    }

    proptest! {
        #[test]
        fn a_record_reads_back_as_it_was_written(record in record()) {
            prop_assert_eq!(decode(&record.app, record.id, &stored(&record)), Ok(Some(record)));
        }

        #[test]
        fn damaged_bytes_are_an_error_or_a_record(
            record in record(), cell in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte: u8, cut: bool,
        ) {
            let mut row = stored(&record);
            let cell = cell.index(row.cells.len());
            let value = &mut row.cells[cell].1;
            let at = at.index(value.len());
            if cut {
                value.truncate(at);
            } else {
                value[at] = byte;
            }
            let _ = decode(&record.app, record.id, &row);
        }

        #[test]
        fn no_bytes_make_a_reader_panic(
            cells in prop::collection::vec(("[btrekx]", prop::collection::vec(0u8..4, 0..80)), 0..4), flags: u8,
        ) {
            let mut cells: Vec<_> = cells.into_iter().map(|(cell, value)| (cell.into_bytes(), value)).collect();
            cells.push((BASE.to_vec(), [&[1, flags], [0; 60].as_slice()].concat()));
            cells.sort();
            cells.dedup_by(|a, b| a.0 == b.0);
            let _ = decode(&app(), MessageId(1), &Row { row: Vec::new(), cells });
        }

        #[test]
        fn newer_ids_of_a_bucket_come_first(a: u128, b: u128) {
            let (a, b) = (a & !0xf, b & !0xf);
            prop_assert_eq!(row(&app(), MessageId(a)).cmp(&row(&app(), MessageId(b))), b.cmp(&a));
        }
    }
}
