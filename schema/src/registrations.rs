//! Registrations: one app on one account.
//!
//! Table `registrations`. Row: the registration id, 24 bytes (keyed hash behind the account's shard, so rows are spread
//! already). A registration is one row with a cell for each thing, so that changing one thing writes one cell:
//!
//! | cell | value |
//! | --- | --- |
//! | `b` | form 1: account, app, the device's public key, seal key, created at; a registration exists if this cell does |
//! | `a` | form 1: attributes, name and value in turn |
//! | `c` | form 1: cursor: judged to, then acked ids |
//! | `e` | 1 enabled, 0 not |
//! | `h` | form 1: the last broadcasts that it acknowledged: id, when, front |
//! | `l` alias | empty |
//! | `s` | form 1: when the device was last there |
//! | `t` topic | message id: subscribed since |
//! | `u` user account | empty |
//! | `v` | version of the membership |
//!
//! `c`, `h` and `s` are its progress: they change with what the device does, apart from the rest, and are written over
//! whatever is there.
//!
//! The row is the truth. Rows in `names` and `topic_members` and the account's cell `r` point here; they are written after
//! it and may point at nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use idl::ids::{AccountId, Alias, AppId, FrontId, MessageId, RegId, TopicName, UserAccount};

use crate::accounts;
use crate::batch::Batch;
use crate::keys::Key;
use crate::names::{self, Name};
use crate::profiles::Profiles;
use crate::sorted::{Cells, Mutation, Put, Row, RowRead, SortedStore, StoreError, Table};
use crate::topics;
use crate::value::{Read, Reader, Writer};

const TABLE: Table = Table::Registrations;
const ATTRIBUTES: &[u8] = b"a";
const BASE: &[u8] = b"b";
const CURSOR: &[u8] = b"c";
const ENABLED: &[u8] = b"e";
const LAST_SEEN: &[u8] = b"s";
const RECENT: &[u8] = b"h";
const VERSION: &[u8] = b"v";
const ALIAS: u8 = b'l';
const TOPIC: u8 = b't';
const USER_ACCOUNT: u8 = b'u';
/// Most broadcasts that a registration remembers as acknowledged by it.
pub const RECENT_MAX: usize = 32;
/// The cell of an index row.
const MEMBER: &[u8] = b"m";

/// One app on one account.
#[derive(Clone, PartialEq, Eq)]
pub struct Registration {
    /// Its id.
    pub regid: RegId,
    /// On which account.
    pub account: AccountId,
    /// Of which app.
    pub app: AppId,
    /// The app's X25519 public key on that device.
    pub device_public: [u8; 32],
    /// The key that seals single deliveries.
    pub seal_key: [u8; 32],
    /// Whether push is on; while it is off, messages are kept.
    pub enabled: bool,
    /// Platform, app version, locale, model, region, ….
    pub attributes: BTreeMap<String, String>,
    /// Aliases that the app gave to it.
    pub aliases: BTreeSet<Alias>,
    /// User accounts that the app gave to it.
    pub user_accounts: BTreeSet<UserAccount>,
    /// Topics, each with since when: a message with a smaller id does not count.
    pub topics: BTreeMap<TopicName, MessageId>,
    /// Grows with every change of membership; begins above that of a registration of the same app before this one.
    pub version: u64,
    /// Since when it exists: a broadcast with a smaller id is not for it.
    pub created_at: MessageId,
    /// How far its timeline was judged.
    pub cursor: Cursor,
    /// When the device was last known to be there, in milliseconds since the epoch.
    pub last_seen_ms: Option<u64>,
    /// The last broadcasts that it acknowledged, at most [`RECENT_MAX`], the newest last.
    pub recent: Vec<RecentBroadcast>,
}

impl fmt::Debug for Registration {
    /// Without the seal key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("regid", &self.regid)
            .field("account", &self.account)
            .field("app", &self.app)
            .field("enabled", &self.enabled)
            .field("attributes", &self.attributes)
            .field("aliases", &self.aliases)
            .field("user_accounts", &self.user_accounts)
            .field("topics", &self.topics)
            .field("version", &self.version)
            .field("created_at", &self.created_at)
            .field("cursor", &self.cursor)
            .field("last_seen_ms", &self.last_seen_ms)
            .field("recent", &self.recent)
            .finish_non_exhaustive()
    }
}

/// Up to where a registration's stored membership was judged against its app's timeline, and what matched was
/// acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// Everything before this id was judged.
    pub judged_to: MessageId,
    /// Ids within the overlap before `judged_to` that need not be delivered again, because they were acknowledged or did not
    /// match; ascending.
    pub acked: Vec<MessageId>,
}

/// A broadcast that a registration acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecentBroadcast {
    /// Which.
    pub id: MessageId,
    /// When, in milliseconds since the epoch.
    pub at_ms: u64,
    /// Through which front.
    pub front: FrontId,
}

/// What changes with what a registration's device does. `None` leaves a thing as it is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// How far its timeline was judged.
    pub cursor: Option<Cursor>,
    /// The last broadcasts that it acknowledged, the newest last: all of them, not what was added. Only the last
    /// [`RECENT_MAX`] are kept.
    pub recent: Option<Vec<RecentBroadcast>>,
    /// When the device was last known to be there, in milliseconds since the epoch.
    pub last_seen_ms: Option<u64>,
}

/// The store of registrations.
#[derive(Clone)]
pub struct Registrations {
    store: Arc<dyn SortedStore>,
    /// Forget what changes here.
    profiles: Option<Profiles>,
}

impl Registrations {
    /// On a sorted store.
    pub fn new(store: Arc<dyn SortedStore>) -> Self {
        Self { store, profiles: None }
    }

    /// On a sorted store whose registrations' profiles are remembered: they forget what changes here.
    pub fn remembered(store: Arc<dyn SortedStore>, profiles: Profiles) -> Self {
        Self { store, profiles: Some(profiles) }
    }

    /// Writes what changes a registration's profile.
    async fn write(&self, regid: RegId, batch: Vec<Mutation>) -> Result<(), StoreError> {
        let written = self.store.write(batch).await;
        // Also when it failed: it may have happened.
        if let Some(profiles) = &self.profiles {
            profiles.forget(&[regid]).await;
        }
        written
    }

    /// The registrations with these ids, in this order, in one multi-row read; `None` where there is none.
    pub async fn read(&self, regids: &[RegId]) -> Result<Vec<Option<Registration>>, StoreError> {
        if regids.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.store.read(regids.iter().map(|regid| read(*regid)).collect()).await?;
        regids.iter().zip(&rows).map(|(regid, row)| decode(*regid, row)).collect()
    }

    /// Writes a new registration: its row, then its index rows, then the account's cell. Repeating it changes nothing.
    pub async fn create(&self, new: &Registration) -> Result<(), StoreError> {
        let mut batch = vec![put(new.regid, BASE.to_vec(), base(new))];
        differences(None, new, &mut batch);
        batch.push(put_in(
            Table::Accounts,
            new.account.to_bytes().to_vec(),
            accounts::registration_cell(&new.app),
            new.regid.0.to_vec(),
        ));
        self.write(new.regid, batch).await
    }

    /// Writes what differs between two states of one registration, with its index rows: the row first. Nothing is written
    /// when nothing differs. Both must have the same id, account and app.
    pub async fn update(&self, old: &Registration, new: &Registration) -> Result<(), StoreError> {
        debug_assert_eq!((old.regid, old.account, &old.app), (new.regid, new.account, &new.app), "one registration");
        let mut batch = Vec::new();
        let (before, after) = (base(old), base(new));
        if before != after {
            batch.push(put(new.regid, BASE.to_vec(), after));
        }
        differences(Some(old), new, &mut batch);
        if batch.is_empty() { Ok(()) } else { self.write(new.regid, batch).await }
    }

    /// Removes a registration and all that hangs on it: its row first, then the account's cell (if it is still this
    /// registration's), index rows and mailbox. Repeating it succeeds.
    pub async fn delete(&self, registration: &Registration) -> Result<(), StoreError> {
        let regid = registration.regid;
        let account = registration.account.to_bytes().to_vec();
        let cell = accounts::registration_cell(&registration.app);
        // A retry must not cut off a newer registration of the same app.
        let current =
            RowRead { table: Table::Accounts, row: account.clone(), cells: Cells::One(cell.clone()), limit: 1 };
        let current = self.store.read(vec![current]).await?.pop().unwrap_or_default();
        let mut batch = vec![Mutation::DeleteRow { table: TABLE, row: regid.0.to_vec() }];
        if current.cell(&cell).is_some_and(|value| value == regid.0) {
            batch.push(Mutation::DeleteCell { table: Table::Accounts, row: account, cell });
        }
        batch.extend(index_rows(registration).into_iter().map(|(table, row)| Mutation::DeleteRow { table, row }));
        batch.push(Mutation::DeleteRow { table: Table::Mailboxes, row: regid.0.to_vec() });
        self.write(regid, batch).await
    }

    /// Writes the progress of registrations in one call, over what is stored. That of a registration that is gone does not
    /// bring it back.
    pub async fn write_progress(&self, progress: &[(RegId, Progress)]) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        for (regid, progress) in progress {
            batch.progress(*regid, progress);
        }
        batch.write(self.store.as_ref()).await
    }
}

impl Batch {
    /// Writes the progress of a registration, over what is stored. That of a registration that is gone does not bring it
    /// back.
    pub fn progress(&mut self, regid: RegId, progress: &Progress) {
        let Progress { cursor, recent, last_seen_ms } = progress;
        let cells = [
            (CURSOR, cursor.as_ref().map(encode_cursor)),
            (RECENT, recent.as_deref().map(encode_recent)),
            (LAST_SEEN, last_seen_ms.map(encode_last_seen)),
        ];
        for (cell, value) in cells {
            self.0.extend(value.map(|value| put(regid, cell.to_vec(), value)));
        }
    }
}

/// Asks for a registration's row, whole.
pub(crate) fn read(regid: RegId) -> RowRead {
    RowRead { table: TABLE, row: regid.0.to_vec(), cells: Cells::All, limit: usize::MAX }
}

/// A registration from its row; `None` without its base cell.
pub(crate) fn decode(regid: RegId, row: &Row) -> Result<Option<Registration>, StoreError> {
    let Some(base) = row.cell(BASE) else { return Ok(None) };
    decode_row(regid, base, row).map(Some).map_err(|reason| StoreError::corrupt(TABLE, &regid.0, reason))
}

/// What a registration's cell holds; `None` if it has none.
type CellOf = fn(&Registration) -> Option<Vec<u8>>;

/// Pushes what must be written to get from `old` to `new`, apart from the base: cells of the row, then index rows.
fn differences(old: Option<&Registration>, new: &Registration, batch: &mut Vec<Mutation>) {
    let regid = new.regid;
    let mut set = |cell: &[u8], before: Option<Vec<u8>>, after: Option<Vec<u8>>| {
        if before != after {
            batch.push(match after {
                Some(after) => put(regid, cell.to_vec(), after),
                None => Mutation::DeleteCell { table: TABLE, row: regid.0.to_vec(), cell: cell.to_vec() },
            });
        }
    };
    let cells: [(&[u8], CellOf); 6] = [
        (ATTRIBUTES, |of| Some(encode_attributes(&of.attributes))),
        (CURSOR, |of| Some(encode_cursor(&of.cursor))),
        (ENABLED, |of| Some(vec![u8::from(of.enabled)])),
        (LAST_SEEN, |of| of.last_seen_ms.map(encode_last_seen)),
        (RECENT, |of| (!of.recent.is_empty()).then(|| encode_recent(&of.recent))),
        (VERSION, |of| Some(of.version.to_be_bytes().to_vec())),
    ];
    for (cell, value) in cells {
        set(cell, old.and_then(value), value(new));
    }

    let (cells_before, cells_after) = (old.map(member_cells).unwrap_or_default(), member_cells(new));
    for (cell, value) in &cells_after {
        if cells_before.get(cell) != Some(value) {
            batch.push(put(regid, cell.clone(), value.clone()));
        }
    }
    for cell in cells_before.keys().filter(|cell| !cells_after.contains_key(*cell)) {
        batch.push(Mutation::DeleteCell { table: TABLE, row: regid.0.to_vec(), cell: cell.clone() });
    }

    let (rows_before, rows_after) = (old.map(index_rows).unwrap_or_default(), index_rows(new));
    for (table, row) in rows_after.difference(&rows_before) {
        batch.push(put_in(*table, row.clone(), MEMBER.to_vec(), Vec::new()));
    }
    for (table, row) in rows_before.difference(&rows_after) {
        batch.push(Mutation::DeleteRow { table: *table, row: row.clone() });
    }
}

/// The cells of names and topics.
fn member_cells(registration: &Registration) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let cell = |tag: u8, text: &str| Key::new().fixed(&[tag]).fixed(text.as_bytes()).build();
    let aliases = registration.aliases.iter().map(|alias| (cell(ALIAS, alias.as_str()), Vec::new()));
    let user_accounts = registration.user_accounts.iter().map(|user| (cell(USER_ACCOUNT, user.as_str()), Vec::new()));
    let topics =
        registration.topics.iter().map(|(topic, since)| (cell(TOPIC, topic.as_str()), since.to_bytes().to_vec()));
    aliases.chain(user_accounts).chain(topics).collect()
}

/// The rows that point at a registration from its names, its topics and its app.
fn index_rows(registration: &Registration) -> BTreeSet<(Table, Vec<u8>)> {
    let (app, regid) = (&registration.app, registration.regid);
    let aliases = registration.aliases.iter().cloned().map(Name::Alias);
    let user_accounts = registration.user_accounts.iter().cloned().map(Name::UserAccount);
    let names = aliases.chain(user_accounts).map(|name| (Table::Names, names::row(app, &name, regid)));
    let topics = registration.topics.keys().map(|topic| (Table::TopicMembers, topics::row(app, topic, regid)));
    let everyone = (Table::TopicMembers, topics::everyone_row(app, regid));
    names.chain(topics).chain([everyone]).collect()
}

fn put(regid: RegId, cell: Vec<u8>, value: Vec<u8>) -> Mutation {
    put_in(TABLE, regid.0.to_vec(), cell, value)
}

fn put_in(table: Table, row: Vec<u8>, cell: Vec<u8>, value: Vec<u8>) -> Mutation {
    Mutation::Put(Put { table, row, cell, value, expires_at_ms: None })
}

fn base(registration: &Registration) -> Vec<u8> {
    Writer::form(1)
        .fixed(&registration.account.to_bytes())
        .text(registration.app.as_str())
        .fixed(&registration.device_public)
        .fixed(&registration.seal_key)
        .message_id(registration.created_at)
        .build()
}

fn encode_attributes(attributes: &BTreeMap<String, String>) -> Vec<u8> {
    attributes.iter().fold(Writer::form(1), |writer, (name, value)| writer.text(name).text(value)).build()
}

fn encode_cursor(cursor: &Cursor) -> Vec<u8> {
    cursor.acked.iter().fold(Writer::form(1).message_id(cursor.judged_to), |writer, id| writer.message_id(*id)).build()
}

fn encode_recent(recent: &[RecentBroadcast]) -> Vec<u8> {
    let last = recent.len().saturating_sub(RECENT_MAX);
    let encode = |value: Writer, broadcast: &RecentBroadcast| {
        value.message_id(broadcast.id).number(broadcast.at_ms).fixed(&broadcast.front.to_bytes())
    };
    recent.iter().skip(last).fold(Writer::form(1), encode).build()
}

fn encode_last_seen(at_ms: u64) -> Vec<u8> {
    Writer::form(1).number(at_ms).build()
}

fn decode_row(regid: RegId, base: &[u8], row: &Row) -> Read<Registration> {
    let mut reader = Reader::form(base, 1)?;
    let account = AccountId(u128::from_be_bytes(reader.fixed()?));
    let app = reader.text()?.parse().map_err(describe)?;
    let (device_public, seal_key, created_at) = (reader.fixed()?, reader.fixed()?, reader.message_id()?);
    reader.end()?;
    let mut registration = Registration {
        regid,
        account,
        app,
        device_public,
        seal_key,
        enabled: true,
        attributes: BTreeMap::new(),
        aliases: BTreeSet::new(),
        user_accounts: BTreeSet::new(),
        topics: BTreeMap::new(),
        version: 0,
        created_at,
        cursor: Cursor { judged_to: created_at, acked: Vec::new() },
        last_seen_ms: None,
        recent: Vec::new(),
    };
    for (cell, value) in &row.cells {
        let Some((tag, rest)) = cell.split_first() else { continue };
        match *tag {
            ALIAS => {
                registration.aliases.insert(text(rest)?.parse().map_err(describe)?);
            }
            USER_ACCOUNT => {
                registration.user_accounts.insert(text(rest)?.parse().map_err(describe)?);
            }
            TOPIC => {
                let since = MessageId::from_bytes(value).map_err(describe)?;
                registration.topics.insert(text(rest)?.parse().map_err(describe)?, since);
            }
            _ if cell == ATTRIBUTES => registration.attributes = decode_attributes(value)?,
            _ if cell == CURSOR => registration.cursor = decode_cursor(value)?,
            _ if cell == LAST_SEEN => registration.last_seen_ms = Some(decode_last_seen(value)?),
            _ if cell == RECENT => registration.recent = decode_recent(value)?,
            _ if cell == ENABLED => registration.enabled = value != b"\0",
            _ if cell == VERSION => {
                let bytes = value.as_slice().try_into().map_err(|_| "a version of other than 8 bytes".to_owned())?;
                registration.version = u64::from_be_bytes(bytes);
            }
            // The base, and what a newer build may add.
            _ => {}
        }
    }
    Ok(registration)
}

fn decode_attributes(value: &[u8]) -> Read<BTreeMap<String, String>> {
    let mut reader = Reader::form(value, 1)?;
    let mut attributes = BTreeMap::new();
    while !reader.is_empty() {
        attributes.insert(reader.text()?, reader.text()?);
    }
    Ok(attributes)
}

fn decode_cursor(value: &[u8]) -> Read<Cursor> {
    let mut reader = Reader::form(value, 1)?;
    let judged_to = reader.message_id()?;
    let mut acked = Vec::new();
    while !reader.is_empty() {
        acked.push(reader.message_id()?);
    }
    Ok(Cursor { judged_to, acked })
}

fn decode_recent(value: &[u8]) -> Read<Vec<RecentBroadcast>> {
    let mut reader = Reader::form(value, 1)?;
    let mut recent = Vec::new();
    while !reader.is_empty() {
        let (id, at_ms, front) = (reader.message_id()?, reader.number()?, reader.fixed()?);
        recent.push(RecentBroadcast { id, at_ms, front: FrontId(u128::from_be_bytes(front)) });
    }
    Ok(recent)
}

fn decode_last_seen(value: &[u8]) -> Read<u64> {
    let mut reader = Reader::form(value, 1)?;
    let at_ms = reader.number()?;
    reader.end()?;
    Ok(at_ms)
}

fn text(bytes: &[u8]) -> Read<&str> {
    std::str::from_utf8(bytes).map_err(describe)
}

fn describe(error: impl fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn recent() -> impl Strategy<Value = RecentBroadcast> {
        (any::<u128>(), any::<u64>(), any::<u128>()).prop_map(|(id, at_ms, front)| RecentBroadcast {
            id: MessageId(id),
            at_ms,
            front: FrontId(front),
        })
    }

    proptest! {
        #[test]
        fn progress_reads_back_as_it_was_written(
            judged_to: u128, acked in prop::collection::vec(any::<u128>().prop_map(MessageId), 0..5), at_ms: u64,
            recent in prop::collection::vec(recent(), 0..40),
        ) {
            let cursor = Cursor { judged_to: MessageId(judged_to), acked };
            prop_assert_eq!(decode_cursor(&encode_cursor(&cursor)), Ok(cursor));
            prop_assert_eq!(decode_last_seen(&encode_last_seen(at_ms)), Ok(at_ms));
            let last = recent.iter().rev().take(RECENT_MAX).rev().copied().collect();
            prop_assert_eq!(decode_recent(&encode_recent(&recent)), Ok(last));
        }

        #[test]
        fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(0u8..3, 0..100)) {
            let _ = decode_attributes(&bytes);
            let _ = decode_cursor(&bytes);
            let _ = decode_recent(&bytes);
            let _ = decode_last_seen(&bytes);
        }
    }
}
