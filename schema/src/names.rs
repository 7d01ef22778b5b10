//! Names that an app gives to registrations: aliases and user accounts. One name may hold many registrations, so each is
//! a row of its own.
//!
//! Table `names`. Row: a spread of kind, app and name (2 bytes) · kind (1 byte: `a` alias, `u` user account) · app id,
//! escaped · name, escaped · registration id, 24 bytes. One cell `m`, empty. The registration's own row is the truth; a
//! row here may point at a registration that is gone or no longer has the name. Written by [`crate::registrations`].

use std::sync::Arc;

use idl::ids::{Alias, AppId, RegId, UserAccount};

use crate::keys::{self, Key};
use crate::sorted::{RowScan, SortedStore, StoreError, Table};

const TABLE: Table = Table::Names;

/// A name of either kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Name {
    /// An alias.
    Alias(Alias),
    /// A user account.
    UserAccount(UserAccount),
}

impl Name {
    fn parts(&self) -> (u8, &str) {
        match self {
            Self::Alias(alias) => (b'a', alias.as_str()),
            Self::UserAccount(user_account) => (b'u', user_account.as_str()),
        }
    }
}

/// The index from names to registrations.
#[derive(Clone)]
pub struct Names {
    store: Arc<dyn SortedStore>,
}

impl Names {
    /// On a sorted store.
    pub fn new(store: Arc<dyn SortedStore>) -> Self {
        Self { store }
    }

    /// Registrations that have or had the name, in order of their ids: at most `limit`, those after `after`. Fewer than
    /// `limit` means there are no more. Check each against the registration itself.
    pub async fn members(
        &self,
        app: &AppId,
        name: &Name,
        after: Option<RegId>,
        limit: usize,
    ) -> Result<Vec<RegId>, StoreError> {
        members(self.store.as_ref(), TABLE, prefix(app, name), after, limit).await
    }
}

/// The row that says that a registration has a name.
pub(crate) fn row(app: &AppId, name: &Name, regid: RegId) -> Vec<u8> {
    Key::new().fixed(&prefix(app, name)).fixed(&regid.0).build()
}

/// Reads the registration ids that end the rows with a prefix.
pub(crate) async fn members(
    store: &dyn SortedStore,
    table: Table,
    prefix: Vec<u8>,
    after: Option<RegId>,
    limit: usize,
) -> Result<Vec<RegId>, StoreError> {
    let to = keys::prefix_end(&prefix);
    let from = match after {
        Some(regid) => keys::successor(&Key::new().fixed(&prefix).fixed(&regid.0).build()),
        None => prefix.clone(),
    };
    let rows = store.keys(RowScan { table, from, to, rows_max: limit }).await?;
    let regid = |row: &[u8]| {
        let bytes = row.get(prefix.len()..).and_then(|rest| rest.try_into().ok());
        bytes.map(RegId).ok_or_else(|| StoreError::corrupt(table, row, "no registration id at its end"))
    };
    rows.iter().map(|row| regid(row)).collect()
}

fn prefix(app: &AppId, name: &Name) -> Vec<u8> {
    let (kind, text) = name.parts();
    let (app, text) = (app.as_str().as_bytes(), text.as_bytes());
    Key::new().fixed(&keys::spread(&[&[kind], app, text])).fixed(&[kind]).escaped(app).escaped(text).build()
}
