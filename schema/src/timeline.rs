//! Timelines: the broadcasts of each app, each once, with its audience.
//!
//! Table `timelines`. Row: a spread of the app (2 bytes) · app id, escaped · message id, 16 bytes. One cell `m`: the message
//! as Thrift, with its audience, gone when the message expires. A broadcast is one row, whatever the size of its
//! audience.

use std::sync::Arc;

use idl::ids::{AppId, MessageId};
use idl::message::Message;

use crate::batch::Batch;
use crate::keys::{self, Key};
use crate::sorted::{Cells, Mutation, Put, Row, RowRead, RowScan, SortedStore, StoreError, Table};

const TABLE: Table = Table::Timelines;
const CELL: &[u8] = b"m";

/// The store of timelines.
#[derive(Clone)]
pub struct Timelines {
    store: Arc<dyn SortedStore>,
}

impl Timelines {
    /// On a sorted store.
    pub fn new(store: Arc<dyn SortedStore>) -> Self {
        Self { store }
    }

    /// Stores a broadcast until it expires, as one row of its app's timeline. Repeating it changes nothing.
    pub async fn append(&self, message: &Message) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        batch.broadcast(message);
        batch.write(self.store.as_ref()).await
    }

    /// A broadcast of an app; `None` if there is none with that id, or it has expired or was removed.
    pub async fn get(&self, app: &AppId, id: MessageId) -> Result<Option<Message>, StoreError> {
        let read = RowRead { table: TABLE, row: row(app, id), cells: Cells::One(CELL.to_vec()), limit: 1 };
        let rows = self.store.read(vec![read]).await?;
        let decode = |row: &Row| row.cell(CELL).map(|value| decode(id, &row.row, value)).transpose();
        rows.first().map_or(Ok(None), decode)
    }

    /// An app's broadcasts that have not expired, in order of id: at most `limit`, from `from`, inclusive, to `to`,
    /// exclusive. Fewer than `limit` means there are no more.
    pub async fn since(
        &self,
        app: &AppId,
        from: MessageId,
        to: Option<MessageId>,
        limit: usize,
    ) -> Result<Vec<Message>, StoreError> {
        let to = match to {
            Some(to) => Some(row(app, to)),
            None => keys::prefix_end(&prefix(app)),
        };
        let rows = self.store.scan(RowScan { table: TABLE, from: row(app, from), to, rows_max: limit }).await?;
        let skip = prefix(app).len();
        let decode = |row: &Row| {
            let damaged = |reason: String| StoreError::corrupt(TABLE, &row.row, reason);
            let id = MessageId::from_bytes(row.row.get(skip..).unwrap_or_default());
            let id = id.map_err(|error| damaged(error.to_string()))?;
            decode(id, &row.row, row.cell(CELL).ok_or_else(|| damaged("no cell m".to_owned()))?)
        };
        rows.iter().map(decode).collect()
    }
}

impl Batch {
    /// Stores a broadcast until it expires, as one row of its app's timeline, with its audience.
    pub fn broadcast(&mut self, message: &Message) {
        self.0.push(Mutation::Put(Put {
            table: TABLE,
            row: row(&message.app, message.id),
            cell: CELL.to_vec(),
            value: message.to_stored(),
            expires_at_ms: Some(message.expires_at_ms),
        }));
    }

    /// Removes a broadcast from its app's timeline; one that isn't there is no error. Who has it keeps it.
    pub fn remove_broadcast(&mut self, app: &AppId, id: MessageId) {
        self.0.push(Mutation::DeleteRow { table: TABLE, row: row(app, id) });
    }
}

fn decode(id: MessageId, row: &[u8], value: &[u8]) -> Result<Message, StoreError> {
    Message::from_stored(id, value).map_err(|error| StoreError::corrupt(TABLE, row, error))
}

fn row(app: &AppId, id: MessageId) -> Vec<u8> {
    Key::new().fixed(&prefix(app)).fixed(&id.to_bytes()).build()
}

fn prefix(app: &AppId) -> Vec<u8> {
    let app = app.as_str().as_bytes();
    Key::new().fixed(&keys::spread(&[app])).escaped(app).build()
}
