//! Mailboxes: the stored, not yet acknowledged deliveries of each registration.
//!
//! Table `mailboxes`. Row: the registration id, 24 bytes. One cell a delivery, named by the message id, 16 bytes, so that
//! cells are in order of acceptance; gone when the message expires. Value, by its first byte:
//!
//! | form | then |
//! | --- | --- |
//! | 1 | the message as Thrift |
//! | 2 | when the message expires (8 bytes); the message itself is in [`crate::messages`] |
//! | 3 | a hash of its collapse key (8 bytes), the message as Thrift |
//! | 4 | when the message expires (8 bytes), a hash of its collapse key (8 bytes); the message itself is in [`crate::messages`] |
//!
//! 3 and 4 are written for messages with a collapse key, so that those that a new one replaces are found without reading
//! each message. A message that revokes another one is stored like any other: so it waits for its device.

use std::collections::BTreeMap;
use std::sync::Arc;

use idl::ids::{MessageId, RegId};
use idl::message::Message;

use crate::batch::Batch;
use crate::keys::{self, Key};
use crate::messages::{self, Messages};
use crate::registrations::{self, Registration};
use crate::sorted::{Cells, Mutation, Put, Row, RowRead, SortedStore, StoreError, Table};

const TABLE: Table = Table::Mailboxes;
const INLINE: u8 = 1;
const REFERENCE: u8 = 2;
const INLINE_COLLAPSING: u8 = 3;
const REFERENCE_COLLAPSING: u8 = 4;

/// What a mailbox holds of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "entries live for one call; a box would cost each single send an allocation"
)]
pub enum Entry {
    /// The message itself: for one target.
    Inline(Message),
    /// Only that it is there; the message is stored once for all its targets.
    Reference(Reference),
}

/// What a mailbox holds of a message that is stored once for all its targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reference {
    /// When the message expires, in milliseconds since the epoch.
    pub expires_at_ms: u64,
    /// A hash of its collapse key, if it has one.
    pub collapse_hash: Option<u64>,
}

impl Reference {
    /// To this message.
    pub fn to(message: &Message) -> Self {
        Self { expires_at_ms: message.expires_at_ms, collapse_hash: collapse_hash_of(message) }
    }
}

/// A registration with its mailbox, as an opening channel needs them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The registration; `None` if there is none.
    pub registration: Option<Registration>,
    /// The first deliveries of its mailbox, in order of id.
    pub mailbox: Vec<(MessageId, Message)>,
    /// True if there are more than those.
    pub more: bool,
}

/// The store of mailboxes.
#[derive(Clone)]
pub struct Mailboxes {
    store: Arc<dyn SortedStore>,
    messages: Messages,
}

impl Mailboxes {
    /// On a sorted store.
    pub fn new(store: Arc<dyn SortedStore>) -> Self {
        Self { messages: Messages::new(store.clone()), store }
    }

    /// Puts deliveries into mailboxes in one write, each until its message expires. Repeating it changes nothing (but it
    /// brings back what was acknowledged in between).
    pub async fn put(&self, entries: &[(RegId, MessageId, Entry)]) -> Result<(), StoreError> {
        if entries.is_empty() {
            return Ok(());
        }
        self.store.write(entries.iter().map(|(regid, id, entry)| put(*regid, *id, entry)).collect()).await
    }

    /// Accepts a message for its targets in one write: for one target inside its mailbox, for several once, and then a
    /// reference in each mailbox. Durable when `Ok`.
    pub async fn put_with_message(&self, message: &Message, targets: &[RegId]) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        batch.deliver(message, targets);
        batch.write(self.store.as_ref()).await
    }

    /// For each registration the first `limit` deliveries after `after`, in order of id, without what has expired. Fewer
    /// than `limit` means there are no more. One multi-row read, and one for the references; only a mailbox with
    /// references to nothing takes more.
    pub async fn read(
        &self,
        regids: &[RegId],
        after: Option<MessageId>,
        limit: usize,
    ) -> Result<Vec<Vec<(MessageId, Message)>>, StoreError> {
        let mut mailboxes = vec![Vec::new(); regids.len()];
        // Which mailboxes are not yet full, and from where on.
        let mut open: Vec<(usize, RegId, Option<MessageId>)> =
            regids.iter().enumerate().map(|(at, regid)| (at, *regid, after)).collect();
        while !open.is_empty() && limit > 0 {
            let reads = open.iter().map(|(_, regid, after)| read(*regid, *after, limit)).collect();
            let rows = self.store.read(reads).await?;
            let pages = self.resolve(&rows, limit).await?;
            open = open
                .into_iter()
                .zip(pages)
                .filter_map(|((at, regid, _), page)| {
                    let mailbox: &mut Vec<_> = mailboxes.get_mut(at)?;
                    mailbox.extend(page.deliveries);
                    let short = mailbox.len() < limit && page.more_from.is_some();
                    mailbox.truncate(limit);
                    short.then_some((at, regid, page.more_from))
                })
                .collect();
        }
        Ok(mailboxes)
    }

    /// How many deliveries each mailbox holds, counted up to `limit`. One multi-row read.
    pub async fn lengths(&self, regids: &[RegId], limit: usize) -> Result<Vec<usize>, StoreError> {
        if regids.is_empty() {
            return Ok(Vec::new());
        }
        let row = |regid: &RegId| RowRead { table: TABLE, row: regid.0.to_vec(), cells: Cells::All, limit };
        let rows = self.store.read(regids.iter().map(row).collect()).await?;
        Ok(rows.iter().map(|row| row.cells.len()).collect())
    }

    /// Removes deliveries that were acknowledged. Repeating it succeeds.
    pub async fn ack(&self, acks: &[(RegId, Vec<MessageId>)]) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        for (regid, ids) in acks {
            for id in ids {
                batch.acknowledged(*regid, *id);
            }
        }
        batch.write(self.store.as_ref()).await
    }

    /// Empties mailboxes. Repeating it succeeds.
    pub async fn clear(&self, regids: &[RegId]) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        for regid in regids {
            batch.clear_mailbox(*regid);
        }
        batch.write(self.store.as_ref()).await
    }

    /// Single deliveries, in this order; `None` where it was acknowledged, has expired or never was. One multi-row read, and
    /// one for the references.
    pub async fn get(&self, deliveries: &[(RegId, MessageId)]) -> Result<Vec<Option<Message>>, StoreError> {
        if deliveries.is_empty() {
            return Ok(Vec::new());
        }
        let read = |(regid, id): &(RegId, MessageId)| RowRead {
            table: TABLE,
            row: regid.0.to_vec(),
            cells: Cells::One(id.to_bytes().to_vec()),
            limit: 1,
        };
        let rows = self.store.read(deliveries.iter().map(read).collect()).await?;
        let pages = self.resolve(&rows, 1).await?;
        Ok(pages.into_iter().map(|mut page| page.deliveries.pop().map(|(_, message)| message)).collect())
    }

    /// For each registration which of the first `limit` deliveries of its mailbox have this collapse key, in order of id. One
    /// multi-row read.
    ///
    /// Messages that lie in the mailbox itself are compared by the key. Of those stored once for many targets only a hash of
    /// 64 bits is compared, since the key would take a further read: another key of the same app with the same hash would be
    /// taken for this one.
    pub async fn collapsing(
        &self,
        regids: &[RegId],
        key: &str,
        limit: usize,
    ) -> Result<Vec<Vec<MessageId>>, StoreError> {
        if regids.is_empty() {
            return Ok(Vec::new());
        }
        let read = |regid: &RegId| RowRead { table: TABLE, row: regid.0.to_vec(), cells: Cells::All, limit };
        let rows = self.store.read(regids.iter().map(read).collect()).await?;
        let hash = collapse_hash(key);
        let mailbox = |row: &Row| {
            let mut ids = Vec::new();
            for (cell, value) in &row.cells {
                if value_of(value).is_some_and(|value| value.collapse_hash() == Some(hash)) {
                    let (id, entry) = decode(&row.row, cell, value)?;
                    match &entry {
                        Entry::Inline(message) if message.handling.collapse_key.as_deref() != Some(key) => {}
                        _ => ids.push(id),
                    }
                }
            }
            Ok(ids)
        };
        rows.iter().map(mailbox).collect()
    }

    /// For each id the registration and the first `limit` deliveries of its mailbox: one multi-row read, and one for the
    /// references.
    pub async fn open(&self, regids: &[RegId], limit: usize) -> Result<Vec<Opened>, StoreError> {
        if regids.is_empty() {
            return Ok(Vec::new());
        }
        let reads = regids.iter().map(|regid| registrations::read(*regid));
        let reads = reads.chain(regids.iter().map(|regid| read(*regid, None, limit))).collect();
        let rows = self.store.read(reads).await?;
        let (registrations, mailboxes) = rows.split_at(regids.len().min(rows.len()));
        let pages = self.resolve(mailboxes, limit).await?;
        let opened = regids.iter().zip(registrations).zip(pages).map(|((regid, row), page)| {
            Ok(Opened {
                registration: registrations::decode(*regid, row)?,
                mailbox: page.deliveries,
                more: page.more_from.is_some(),
            })
        });
        opened.collect()
    }

    /// Decodes mailbox rows of up to `limit` + 1 cells, with one read for all their references. References to nothing are
    /// left out.
    async fn resolve(&self, rows: &[Row], limit: usize) -> Result<Vec<Page>, StoreError> {
        let mut pages = Vec::with_capacity(rows.len());
        let mut referred = BTreeMap::new();
        for row in rows {
            let cells = row.cells.iter().take(limit).map(|(cell, value)| decode(&row.row, cell, value));
            let cells = cells.collect::<Result<Vec<_>, _>>()?;
            for (id, entry) in &cells {
                if matches!(entry, Entry::Reference(_)) {
                    referred.insert(*id, None);
                }
            }
            let more_from = cells.last().map(|(id, _)| *id).filter(|_| row.cells.len() > limit);
            pages.push((cells, more_from));
        }
        let ids: Vec<_> = referred.keys().copied().collect();
        referred.extend(ids.iter().copied().zip(self.messages.get(&ids).await?));
        let page = |(cells, more_from): (Vec<(MessageId, Entry)>, _)| {
            let deliveries = cells.into_iter().filter_map(|(id, entry)| {
                let message = match entry {
                    Entry::Inline(message) => Some(message),
                    Entry::Reference(_) => referred.get(&id).cloned().flatten(),
                };
                message.map(|message| (id, message))
            });
            Page { deliveries: deliveries.collect(), more_from }
        };
        Ok(pages.into_iter().map(page).collect())
    }
}

struct Page {
    deliveries: Vec<(MessageId, Message)>,
    /// The last id of the page, if cells follow it.
    more_from: Option<MessageId>,
}

/// One cell more than `limit` tells whether there are more.
fn read(regid: RegId, after: Option<MessageId>, limit: usize) -> RowRead {
    let from = after.map(|id| keys::successor(&id.to_bytes())).unwrap_or_default();
    RowRead {
        table: TABLE,
        row: regid.0.to_vec(),
        cells: Cells::Range { from, to: None },
        limit: limit.saturating_add(1),
    }
}

impl Batch {
    /// Puts a message into the mailboxes of its targets, until it expires: for one target inside its mailbox, for several
    /// once, and then a reference in each mailbox; for none nothing. One that was acknowledged in between comes back.
    pub fn deliver(&mut self, message: &Message, targets: &[RegId]) {
        match targets {
            [] => {}
            [target] => self.0.push(put_inline(*target, message)),
            _ => {
                self.0.push(messages::put(message));
                let reference = Reference::to(message);
                self.0.extend(targets.iter().map(|target| put_reference(*target, message.id, reference)));
            }
        }
    }

    /// Removes a delivery from its mailbox; one that isn't there is no error.
    pub fn acknowledged(&mut self, regid: RegId, id: MessageId) {
        let (row, cell) = (regid.0.to_vec(), id.to_bytes().to_vec());
        self.0.push(Mutation::DeleteCell { table: TABLE, row, cell });
    }

    /// Empties a mailbox; an empty one is no error.
    pub fn clear_mailbox(&mut self, regid: RegId) {
        self.0.push(Mutation::DeleteRow { table: TABLE, row: regid.0.to_vec() });
    }
}

fn collapse_hash_of(message: &Message) -> Option<u64> {
    message.handling.collapse_key.as_deref().map(collapse_hash)
}

fn collapse_hash(key: &str) -> u64 {
    keys::hash(&[key.as_bytes()])
}

fn put(regid: RegId, id: MessageId, entry: &Entry) -> Mutation {
    match entry {
        Entry::Inline(message) => put_inline(regid, message),
        Entry::Reference(reference) => put_reference(regid, id, *reference),
    }
}

fn put_inline(regid: RegId, message: &Message) -> Mutation {
    let value = match collapse_hash_of(message) {
        Some(hash) => Key::new().fixed(&[INLINE_COLLAPSING]).number(hash),
        None => Key::new().fixed(&[INLINE]),
    };
    put_value(regid, message.id, value.fixed(&message.to_stored()).build(), message.expires_at_ms)
}

fn put_reference(regid: RegId, id: MessageId, reference: Reference) -> Mutation {
    let Reference { expires_at_ms, collapse_hash } = reference;
    let value = match collapse_hash {
        Some(hash) => Key::new().fixed(&[REFERENCE_COLLAPSING]).number(expires_at_ms).number(hash),
        None => Key::new().fixed(&[REFERENCE]).number(expires_at_ms),
    };
    put_value(regid, id, value.build(), expires_at_ms)
}

fn put_value(regid: RegId, id: MessageId, value: Vec<u8>, expires_at_ms: u64) -> Mutation {
    Mutation::Put(Put {
        table: TABLE,
        row: regid.0.to_vec(),
        cell: id.to_bytes().to_vec(),
        value,
        expires_at_ms: Some(expires_at_ms),
    })
}

/// A cell's value, taken apart as far as it costs nothing.
enum Value<'a> {
    Inline { stored: &'a [u8], collapse_hash: Option<u64> },
    Reference(Reference),
}

impl Value<'_> {
    fn collapse_hash(&self) -> Option<u64> {
        match self {
            Self::Inline { collapse_hash, .. } => *collapse_hash,
            Self::Reference(reference) => reference.collapse_hash,
        }
    }
}

fn value_of(value: &[u8]) -> Option<Value<'_>> {
    let (form, rest) = value.split_first()?;
    let number = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_be_bytes);
    match *form {
        INLINE => Some(Value::Inline { stored: rest, collapse_hash: None }),
        INLINE_COLLAPSING => {
            let (hash, stored) = rest.split_at_checked(8)?;
            Some(Value::Inline { stored, collapse_hash: number(hash) })
        }
        REFERENCE => Some(Value::Reference(Reference { expires_at_ms: number(rest)?, collapse_hash: None })),
        REFERENCE_COLLAPSING => {
            let (expires_at, hash) = rest.split_at_checked(8)?;
            let (expires_at_ms, collapse_hash) = (number(expires_at)?, Some(number(hash)?));
            Some(Value::Reference(Reference { expires_at_ms, collapse_hash }))
        }
        _ => None,
    }
}

fn decode(row: &[u8], cell: &[u8], value: &[u8]) -> Result<(MessageId, Entry), StoreError> {
    let damaged = |reason: String| StoreError::corrupt(TABLE, row, reason);
    let id = MessageId::from_bytes(cell).map_err(|error| damaged(error.to_string()))?;
    match value_of(value) {
        Some(Value::Inline { stored, .. }) => {
            let message = Message::from_stored(id, stored).map_err(|error| damaged(error.to_string()))?;
            Ok((id, Entry::Inline(message)))
        }
        Some(Value::Reference(reference)) => Ok((id, Entry::Reference(reference))),
        None => {
            let form = value.first().map_or_else(|| "nothing".to_owned(), |form| format!("form {form}"));
            Err(damaged(format!("an unknown entry for message {id}: {form} and {} bytes", value.len())))
        }
    }
}

#[cfg(test)]
mod tests {
    use idl::contract::message::Notification;
    use idl::message::Handling;
    use proptest::prelude::*;

    use super::*;

    fn message(id: u128, payload: String, collapse_key: Option<String>) -> Message {
        Message {
            id: MessageId(id),
            app: "com.example.demo".parse().expect("an app id"),
            notification: Notification { payload: Some(payload), ..Notification::default() },
            accepted_at_ms: 1,
            expires_at_ms: 2,
            audience: None,
            handling: Handling { collapse_key, ..Handling::default() },
        }
    }

    fn read_back(put: Mutation) -> Result<(MessageId, Entry), StoreError> {
        let Mutation::Put(Put { row, cell, value, .. }) = put else { panic!("a put") };
        decode(&row, &cell, &value)
    }

    #[test]
    fn the_hash_of_a_collapse_key_never_changes() {
        // FNV-1a of the key and 0xff.
        assert_eq!(collapse_hash(""), 0xaf64_724c_8602_eb6e);
        assert_eq!(collapse_hash("score"), 0x0197_ef0b_273f_3cfe);
    }

    #[test]
    fn what_was_written_before_there_were_collapse_keys_is_read() {
        let stored = message(7, "hello".into(), None).to_stored();
        let cell = MessageId(7).to_bytes();
        let inline = decode(b"row", &cell, &[&[1], stored.as_slice()].concat());
        assert_eq!(inline, Ok((MessageId(7), Entry::Inline(message(7, "hello".into(), None)))));
        let reference = decode(b"row", &cell, &[2, 0, 0, 0, 0, 0, 0, 1, 2]);
        let expected = Reference { expires_at_ms: 0x102, collapse_hash: None };
        assert_eq!(reference, Ok((MessageId(7), Entry::Reference(expected))));
    }

    proptest! {
        #[test]
        fn a_delivery_reads_back_as_it_was_put(
            id: u128, payload in ".{0,20}", key in prop::option::of(".{0,20}"), expires_at_ms: u64,
        ) {
            let message = message(id, payload, key);
            let reference = Reference { expires_at_ms, ..Reference::to(&message) };
            prop_assert_eq!(reference.collapse_hash, message.handling.collapse_key.as_deref().map(collapse_hash));
            for entry in [Entry::Inline(message.clone()), Entry::Reference(reference)] {
                prop_assert_eq!(read_back(put(RegId([1; 24]), message.id, &entry)), Ok((message.id, entry)));
            }
        }

        #[test]
        fn no_bytes_make_a_reader_panic(
            cell in prop::collection::vec(any::<u8>(), 14..18), value in prop::collection::vec(0u8..6, 0..40),
        ) {
            let _ = value_of(&value);
            let _ = decode(b"row", &cell, &value);
        }
    }
}
