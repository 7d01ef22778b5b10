//! Device accounts.
//!
//! Table `accounts`. Row: the account id, 16 bytes (random, so rows are spread already). Cells:
//!
//! | cell | value |
//! | --- | --- |
//! | `i` | form 1: created at, device, model?, platform? |
//! | `r` app id | the registration id, 24 bytes |
//! | `t` issue time, descending | empty: a token was issued then |

use std::sync::Arc;

use idl::ids::{AccountId, AppId, RegId};

use crate::keys::Key;
use crate::sorted::{Cells, Mutation, Put, Row, RowRead, SortedStore, StoreError, Table};
use crate::value::{Read, Reader, Writer};

/// Most issue times that are kept: a device that renews its token may still use those before it.
pub const TOKEN_TIMES_MAX: usize = 4;

const TABLE: Table = Table::Accounts;
const INFO: &[u8] = b"i";
const REGISTRATION: &[u8] = b"r";
const TOKEN: &[u8] = b"t";

/// What is known of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountInfo {
    /// Digest of the device's identity.
    pub device: String,
    /// Its model, as it says.
    pub model: Option<String>,
    /// Its platform, as it says.
    pub platform: Option<String>,
    /// When the account was made, in milliseconds since the epoch.
    pub created_at_ms: u64,
}

/// The store of accounts.
#[derive(Clone)]
pub struct Accounts {
    store: Arc<dyn SortedStore>,
}

impl Accounts {
    /// On a sorted store.
    pub fn new(store: Arc<dyn SortedStore>) -> Self {
        Self { store }
    }

    /// Makes an account with its first token, as one step. Repeating it changes nothing.
    pub async fn create(&self, id: AccountId, info: &AccountInfo, issued_at_ms: u64) -> Result<(), StoreError> {
        let value = Writer::form(1)
            .number(info.created_at_ms)
            .text(&info.device)
            .optional_text(info.model.as_deref())
            .optional_text(info.platform.as_deref())
            .build();
        self.store.write(vec![put(id, INFO.to_vec(), value), put(id, token_cell(issued_at_ms), Vec::new())]).await
    }

    /// What is known of an account; `None` if there is no such account.
    pub async fn info(&self, id: AccountId) -> Result<Option<AccountInfo>, StoreError> {
        let row = self.row(id, Cells::One(INFO.to_vec()), 1).await?;
        row.cell(INFO).map(|value| decode_info(value).map_err(|reason| damaged(id, reason))).transpose()
    }

    /// Remembers that a token was issued, and forgets all issue times but the newest [`TOKEN_TIMES_MAX`]. `false` if
    /// there is no such account, and then nothing is written. Repeating it changes nothing.
    pub async fn record_token(&self, id: AccountId, issued_at_ms: u64) -> Result<bool, StoreError> {
        let row = self.row(id, Cells::All, usize::MAX).await?;
        if row.cell(INFO).is_none() {
            return Ok(false);
        }
        let new = token_cell(issued_at_ms);
        let mut cells: Vec<_> = row.cells.into_iter().map(|(cell, _)| cell).filter(|c| c.starts_with(TOKEN)).collect();
        if !cells.contains(&new) {
            cells.push(new.clone());
        }
        cells.sort();
        let mut batch = vec![put(id, new, Vec::new())];
        batch.extend(cells.into_iter().skip(TOKEN_TIMES_MAX).map(|cell| Mutation::DeleteCell {
            table: TABLE,
            row: id.to_bytes().to_vec(),
            cell,
        }));
        self.store.write(batch).await?;
        Ok(true)
    }

    /// When the tokens in force were issued, newest first, at most [`TOKEN_TIMES_MAX`]; empty if there is no such
    /// account.
    pub async fn token_times(&self, id: AccountId) -> Result<Vec<u64>, StoreError> {
        let row = self.row(id, Cells::Prefix(TOKEN.to_vec()), TOKEN_TIMES_MAX).await?;
        let time = |cell: &[u8]| {
            let bytes = cell.get(TOKEN.len()..).and_then(|rest| rest.try_into().ok());
            bytes.map(|bytes| u64::MAX - u64::from_be_bytes(bytes)).ok_or_else(|| damaged(id, "a token's time"))
        };
        row.cells.iter().map(|(cell, _)| time(cell)).collect()
    }

    /// The registration of an app on this account.
    pub async fn registration(&self, id: AccountId, app: &AppId) -> Result<Option<RegId>, StoreError> {
        let cell = registration_cell(app);
        let row = self.row(id, Cells::One(cell.clone()), 1).await?;
        row.cell(&cell).map(|value| decode_regid(id, value)).transpose()
    }

    /// All registrations on this account, in the order of the app ids.
    pub async fn registrations(&self, id: AccountId) -> Result<Vec<(AppId, RegId)>, StoreError> {
        let row = self.row(id, Cells::Prefix(REGISTRATION.to_vec()), usize::MAX).await?;
        let entry = |(cell, value): &(Vec<u8>, Vec<u8>)| {
            let app = cell.get(REGISTRATION.len()..).and_then(|app| std::str::from_utf8(app).ok());
            let app = app.and_then(|app| app.parse().ok()).ok_or_else(|| damaged(id, "an app id"))?;
            Ok((app, decode_regid(id, value)?))
        };
        row.cells.iter().map(entry).collect()
    }

    async fn row(&self, id: AccountId, cells: Cells, limit: usize) -> Result<Row, StoreError> {
        let read = RowRead { table: TABLE, row: id.to_bytes().to_vec(), cells, limit };
        Ok(self.store.read(vec![read]).await?.pop().unwrap_or_default())
    }
}

/// The cell that says which registration an app has on an account. Written with the registration itself.
pub(crate) fn registration_cell(app: &AppId) -> Vec<u8> {
    Key::new().fixed(REGISTRATION).fixed(app.as_str().as_bytes()).build()
}

fn token_cell(issued_at_ms: u64) -> Vec<u8> {
    Key::new().fixed(TOKEN).descending(issued_at_ms).build()
}

fn put(id: AccountId, cell: Vec<u8>, value: Vec<u8>) -> Mutation {
    Mutation::Put(Put { table: TABLE, row: id.to_bytes().to_vec(), cell, value, expires_at_ms: None })
}

fn decode_info(value: &[u8]) -> Read<AccountInfo> {
    let mut reader = Reader::form(value, 1)?;
    let created_at_ms = reader.number()?;
    let info = AccountInfo {
        device: reader.text()?,
        model: reader.optional_text()?,
        platform: reader.optional_text()?,
        created_at_ms,
    };
    reader.end()?;
    Ok(info)
}

fn decode_regid(id: AccountId, value: &[u8]) -> Result<RegId, StoreError> {
    value.try_into().map(RegId).map_err(|_| damaged(id, "a registration id"))
}

fn damaged(id: AccountId, reason: impl std::fmt::Display) -> StoreError {
    StoreError::corrupt(TABLE, &id.to_bytes(), reason)
}
