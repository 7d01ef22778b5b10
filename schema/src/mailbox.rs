//! Mailboxes: the stored, not yet acknowledged deliveries of each registration.
//!
//! Table `mailboxes`. Row: the registration id, 24 bytes. One cell a delivery, named by the message id, 16 bytes, so that
//! cells are in order of acceptance; gone when the message expires. Value: `1` and the message as Thrift, or `2` and when
//! the message expires (8 bytes), where the message itself is in [`crate::messages`].

use std::collections::BTreeMap;
use std::sync::Arc;

use idl::ids::{MessageId, RegId};
use idl::message::Message;

use crate::keys;
use crate::messages::{self, Messages};
use crate::registrations::{self, Registration};
use crate::sorted::{Cells, Mutation, Put, Row, RowRead, SortedStore, StoreError, Table};

const TABLE: Table = Table::Mailboxes;
const INLINE: u8 = 1;
const REFERENCE: u8 = 2;

/// What a mailbox holds of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "entries live for one call; a box would cost each single send an allocation"
)]
pub enum Entry {
    /// The message itself: for one target.
    Inline(Message),
    /// Only that it is there and when it expires, in milliseconds since the epoch; the message is stored once for all its
    /// targets.
    Reference(u64),
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
        let batch = match targets {
            [] => return Ok(()),
            [target] => vec![put(*target, message.id, &Entry::Inline(message.clone()))],
            _ => {
                let reference = Entry::Reference(message.expires_at_ms);
                let references = targets.iter().map(|target| put(*target, message.id, &reference));
                std::iter::once(messages::put(message)).chain(references).collect()
            }
        };
        self.store.write(batch).await
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
        let delete = |regid: RegId, id: MessageId| Mutation::DeleteCell {
            table: TABLE,
            row: regid.0.to_vec(),
            cell: id.to_bytes().to_vec(),
        };
        let batch: Vec<_> = acks.iter().flat_map(|(regid, ids)| ids.iter().map(|id| delete(*regid, *id))).collect();
        if batch.is_empty() { Ok(()) } else { self.store.write(batch).await }
    }

    /// Empties mailboxes. Repeating it succeeds.
    pub async fn clear(&self, regids: &[RegId]) -> Result<(), StoreError> {
        if regids.is_empty() {
            return Ok(());
        }
        let batch = regids.iter().map(|regid| Mutation::DeleteRow { table: TABLE, row: regid.0.to_vec() }).collect();
        self.store.write(batch).await
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

fn put(regid: RegId, id: MessageId, entry: &Entry) -> Mutation {
    let (value, expires_at_ms) = match entry {
        Entry::Inline(message) => ([&[INLINE], message.to_stored().as_slice()].concat(), message.expires_at_ms),
        Entry::Reference(at_ms) => ([&[REFERENCE], at_ms.to_be_bytes().as_slice()].concat(), *at_ms),
    };
    Mutation::Put(Put {
        table: TABLE,
        row: regid.0.to_vec(),
        cell: id.to_bytes().to_vec(),
        value,
        expires_at_ms: Some(expires_at_ms),
    })
}

fn decode(row: &[u8], cell: &[u8], value: &[u8]) -> Result<(MessageId, Entry), StoreError> {
    let damaged = |reason: String| StoreError::corrupt(TABLE, row, reason);
    let id = MessageId::from_bytes(cell).map_err(|error| damaged(error.to_string()))?;
    let entry = match value.split_first() {
        Some((&INLINE, stored)) => {
            Entry::Inline(Message::from_stored(id, stored).map_err(|error| damaged(error.to_string()))?)
        }
        Some((&REFERENCE, at)) => {
            let at = at.try_into().map_err(|_| damaged(format!("a reference of {} bytes", at.len())))?;
            Entry::Reference(u64::from_be_bytes(at))
        }
        _ => return Err(damaged(format!("an unknown entry for message {id}"))),
    };
    Ok((id, entry))
}
