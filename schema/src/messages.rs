//! Messages with several targets, each stored once; mailboxes refer to them.
//!
//! Table `messages`. Row: a spread of the id (2 bytes: ids begin with the time, which would gather the writes) · message id,
//! 16 bytes. One cell `m`: the message as Thrift ([`idl::message::Message::to_stored`]), gone when the message expires.

use std::sync::Arc;

use idl::ids::MessageId;
use idl::message::Message;

use crate::keys::{self, Key};
use crate::sorted::{Cells, Mutation, Put, Row, RowRead, SortedStore, StoreError, Table};

const TABLE: Table = Table::Messages;
const CELL: &[u8] = b"m";

/// The store of messages.
#[derive(Clone)]
pub struct Messages {
    store: Arc<dyn SortedStore>,
}

impl Messages {
    /// On a sorted store.
    pub fn new(store: Arc<dyn SortedStore>) -> Self {
        Self { store }
    }

    /// Stores a message until it expires. Repeating it changes nothing.
    pub async fn put(&self, message: &Message) -> Result<(), StoreError> {
        self.store.write(vec![put(message)]).await
    }

    /// The messages with these ids, in this order; `None` where there is none or it has expired.
    pub async fn get(&self, ids: &[MessageId]) -> Result<Vec<Option<Message>>, StoreError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.store.read(ids.iter().map(|id| read(*id)).collect()).await?;
        ids.iter().zip(&rows).map(|(id, row)| decode(*id, row)).collect()
    }
}

/// The mutation that stores a message.
pub(crate) fn put(message: &Message) -> Mutation {
    Mutation::Put(Put {
        table: TABLE,
        row: row(message.id),
        cell: CELL.to_vec(),
        value: message.to_stored(),
        expires_at_ms: Some(message.expires_at_ms),
    })
}

fn read(id: MessageId) -> RowRead {
    RowRead { table: TABLE, row: row(id), cells: Cells::One(CELL.to_vec()), limit: 1 }
}

fn decode(id: MessageId, row: &Row) -> Result<Option<Message>, StoreError> {
    let decode = |value| Message::from_stored(id, value).map_err(|error| StoreError::corrupt(TABLE, &row.row, error));
    row.cell(CELL).map(decode).transpose()
}

fn row(id: MessageId) -> Vec<u8> {
    let id = id.to_bytes();
    Key::new().fixed(&keys::spread(&[&id])).fixed(&id).build()
}
