//! Feedback: targets of an app that turned out to be invalid, each until the app server has read it once.
//!
//! Table `feedback`. Row: a spread of app and kind (2 bytes) · app id, escaped · kind (1 byte: `r` registration id, `a` alias)
//! · the target, escaped, so that one that is named again is there once. One cell `m`, empty, gone when the caller says.

use std::sync::Arc;

use idl::ids::AppId;

use crate::batch::Batch;
use crate::keys::{self, Key};
use crate::sorted::{Mutation, Put, RowScan, SortedStore, StoreError, Table};

const TABLE: Table = Table::Feedback;
const CELL: &[u8] = b"m";

/// What a target is that was invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InvalidKind {
    /// A registration id: it names no registration, or one that is gone.
    RegId,
    /// An alias that no registration has.
    Alias,
}

impl InvalidKind {
    fn tag(self) -> u8 {
        match self {
            Self::RegId => b'r',
            Self::Alias => b'a',
        }
    }
}

/// The store of feedback.
#[derive(Clone)]
pub struct Feedback {
    store: Arc<dyn SortedStore>,
}

impl Feedback {
    /// On a sorted store.
    pub fn new(store: Arc<dyn SortedStore>) -> Self {
        Self { store }
    }

    /// Takes up to `limit` of an app's invalid targets, in the order of their bytes: they are gone, durably, when this
    /// returns. Fewer than `limit` means there are no more. Two that take at the same moment may both get a target. After an
    /// error nothing has to be lost: what is still there comes again.
    pub async fn take(&self, app: &AppId, kind: InvalidKind, limit: usize) -> Result<Vec<String>, StoreError> {
        let prefix = prefix(app, kind);
        let to = keys::prefix_end(&prefix);
        let rows = self.store.scan(RowScan { table: TABLE, from: prefix.clone(), to, rows_max: limit }).await?;
        let target = |row: &[u8]| {
            decode(row.get(prefix.len()..).unwrap_or_default())
                .map_err(|reason| StoreError::corrupt(TABLE, row, reason))
        };
        let targets = rows.iter().map(|row| target(&row.row)).collect::<Result<Vec<_>, _>>()?;
        let taken = rows.into_iter().map(|row| Mutation::DeleteRow { table: TABLE, row: row.row }).collect();
        Batch(taken).write(self.store.as_ref()).await?;
        Ok(targets)
    }
}

impl Batch {
    /// Says that a target of an app turned out to be invalid; kept until `keep_until_ms`, in milliseconds since the epoch, or
    /// until it is taken. Repeating it keeps it until the new time.
    pub fn invalid(&mut self, app: &AppId, kind: InvalidKind, target: &str, keep_until_ms: u64) {
        let row = Key::new().fixed(&prefix(app, kind)).escaped(target.as_bytes()).build();
        let expires_at_ms = Some(keep_until_ms);
        self.0.push(Mutation::Put(Put { table: TABLE, row, cell: CELL.to_vec(), value: Vec::new(), expires_at_ms }));
    }
}

fn prefix(app: &AppId, kind: InvalidKind) -> Vec<u8> {
    let (app, kind) = (app.as_str().as_bytes(), [kind.tag()]);
    Key::new().fixed(&keys::spread(&[app, &kind])).escaped(app).fixed(&kind).build()
}

/// The target at the end of a row's key.
fn decode(end: &[u8]) -> Result<String, String> {
    match keys::unescape(end) {
        Some((target, [])) => String::from_utf8(target).map_err(|error| error.to_string()),
        Some(_) => Err("something after the target".to_owned()),
        None => Err("no target at its end".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_target_reads_back_as_it_was_written(target in "\\PC{0,40}|[\u{0}\u{1}a]{0,8}") {
            let mut batch = Batch::default();
            let app = "com.example.demo".parse().expect("an app id");
            batch.invalid(&app, InvalidKind::Alias, &target, 1);
            let [Mutation::Put(put)] = batch.0.as_slice() else { panic!("{batch:?}") };
            let end = put.row.strip_prefix(prefix(&app, InvalidKind::Alias).as_slice()).expect("the prefix");
            prop_assert_eq!(decode(end), Ok(target));
        }

        #[test]
        fn no_bytes_make_a_reader_panic(end in prop::collection::vec(prop_oneof![0u8..3, any::<u8>()], 0..20)) {
            let _ = decode(&end);
        }
    }
}
