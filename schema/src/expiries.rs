//! Deliveries whose expiry somebody wants to know of. A message is gone when it expires, so this holds all that telling of it
//! takes.
//!
//! Table `expiries`. Row: bucket (1 byte: the low four bits of the message id) · when it expires, 8 bytes · message id,
//! 16 bytes · registration id, 24 bytes. So what expires next lies at the beginning of one of sixteen places. One cell `m`:
//! form 1: app id, target, the callback's types, URL? and param?, job key?. It is kept for a week after the message expired.

use std::sync::Arc;

use idl::contract::message::Callback;
use idl::ids::{AppId, MessageId, RegId};

use crate::batch::Batch;
use crate::buckets::{self, BUCKETS};
use crate::keys::Key;
use crate::sorted::{Mutation, Put, Row, SortedStore, StoreError, Table};
use crate::value::{Read, Reader, Writer};

const TABLE: Table = Table::Expiries;
const CELL: &[u8] = b"m";

/// What nobody has taken for so long after its message expired is forgotten: a week.
pub const KEEP_MS: u64 = 7 * 24 * 3600 * 1000;

/// A delivery that will expire unless it is acknowledged before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiry {
    /// Of which message.
    pub message: MessageId,
    /// Whose message it is.
    pub app: AppId,
    /// To which registration.
    pub regid: RegId,
    /// The regid or alias as the send named it.
    pub target: String,
    /// When the message expires, in milliseconds since the epoch.
    pub expires_at_ms: u64,
    /// Which receipts are wanted, and where.
    pub callback: Callback,
    /// The message's job key.
    pub job_key: Option<String>,
}

/// The store of expiries.
#[derive(Clone)]
pub struct Expiries {
    store: Arc<dyn SortedStore>,
}

impl Expiries {
    /// On a sorted store.
    pub fn new(store: Arc<dyn SortedStore>) -> Self {
        Self { store }
    }

    /// What has expired at `now_ms`, of all apps, oldest first: at most `limit`. Each comes again until it is
    /// [done](Batch::expiry_done), or a week is over.
    pub async fn due(&self, now_ms: u64, limit: usize) -> Result<Vec<Expiry>, StoreError> {
        let rows = self.first(now_ms, limit).await?;
        rows.iter().map(decode).collect()
    }

    /// When the next delivery expires, in milliseconds since the epoch: in the past if one is due already; `None` if none is
    /// awaited.
    pub async fn next_ms(&self) -> Result<Option<u64>, StoreError> {
        let rows = self.first(u64::MAX, 1).await?;
        rows.first().map(|row| Ok(decode(row)?.expires_at_ms)).transpose()
    }

    async fn first(&self, until_ms: u64, limit: usize) -> Result<Vec<Row>, StoreError> {
        let range = |bucket: u8| {
            let from = vec![bucket];
            let to = match until_ms.checked_add(1) {
                Some(end) => Key::new().fixed(&from).number(end).build(),
                None => vec![bucket + 1],
            };
            (from, to)
        };
        buckets::merged(self.store.as_ref(), TABLE, range, 1, limit).await
    }
}

impl Batch {
    /// Awaits the expiry of a delivery. Repeating it changes nothing.
    pub fn await_expiry(&mut self, expiry: &Expiry) {
        let value = encode(expiry);
        let expires_at_ms = Some(expiry.expires_at_ms.saturating_add(KEEP_MS));
        self.0.push(Mutation::Put(Put { table: TABLE, row: row(expiry), cell: CELL.to_vec(), value, expires_at_ms }));
    }

    /// Awaits the expiry no longer: the delivery was acknowledged or dropped, or its expiry was told of. Only message,
    /// registration and time matter. Repeating it changes nothing.
    pub fn expiry_done(&mut self, expiry: &Expiry) {
        self.0.push(Mutation::DeleteRow { table: TABLE, row: row(expiry) });
    }
}

fn row(expiry: &Expiry) -> Vec<u8> {
    Key::new()
        .fixed(&[buckets::bucket(expiry.message)])
        .number(expiry.expires_at_ms)
        .fixed(&expiry.message.to_bytes())
        .fixed(&expiry.regid.0)
        .build()
}

fn encode(expiry: &Expiry) -> Vec<u8> {
    Writer::form(1)
        .text(expiry.app.as_str())
        .text(&expiry.target)
        .fixed(&expiry.callback.types.to_be_bytes())
        .optional_text(expiry.callback.url.as_deref())
        .optional_text(expiry.callback.param.as_deref())
        .optional_text(expiry.job_key.as_deref())
        .build()
}

fn decode(row: &Row) -> Result<Expiry, StoreError> {
    let decode = || {
        let value = row.cell(CELL).ok_or_else(|| "no cell m".to_owned())?;
        decode_parts(&row.row, value)
    };
    decode().map_err(|reason| StoreError::corrupt(TABLE, &row.row, reason))
}

fn decode_parts(row: &[u8], value: &[u8]) -> Read<Expiry> {
    // A key reads as a value whose form is the bucket.
    let bucket = *row.first().ok_or_else(|| "an empty key".to_owned())?;
    if bucket >= BUCKETS {
        return Err(format!("there is no bucket {bucket}"));
    }
    let mut key = Reader::form(row, bucket)?;
    let expires_at_ms = key.number()?;
    let message = key.message_id()?;
    let regid = RegId(key.fixed()?);
    key.end()?;
    let mut value = Reader::form(value, 1)?;
    let app = value.text()?.parse().map_err(|error: idl::ids::InvalidId| error.to_string())?;
    let target = value.text()?;
    let types = i32::from_be_bytes(value.fixed()?);
    let callback = Callback { types, url: value.optional_text()?, param: value.optional_text()? };
    let job_key = value.optional_text()?;
    value.end()?;
    Ok(Expiry { message, app, regid, target, expires_at_ms, callback, job_key })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn expiry() -> impl Strategy<Value = Expiry> {
        let optional = || prop::option::of(".{0,40}");
        let ids = any::<(u128, [u8; 24], u64, i32)>();
        (ids, ("[a-z.]{1,20}", ".{0,140}", optional(), optional(), optional())).prop_map(
            |((message, regid, expires_at_ms, types), (app, target, url, param, job_key))| Expiry {
                message: MessageId(message),
                app: app.parse().expect("an app id"),
                regid: RegId(regid),
                target,
                expires_at_ms,
                callback: Callback { url, param, types },
                job_key,
            },
        )
    }

    proptest! {
        #[test]
        fn an_expiry_reads_back_as_it_was_written(expiry in expiry()) {
            prop_assert_eq!(decode_parts(&row(&expiry), &encode(&expiry)), Ok(expiry));
        }

        #[test]
        fn an_expiry_that_is_cut_is_refused(expiry in expiry(), at: prop::sample::Index) {
            let (row, value) = (row(&expiry), encode(&expiry));
            prop_assert!(decode_parts(&row[..at.index(row.len())], &value).is_err());
            prop_assert!(decode_parts(&row, &value[..at.index(value.len())]).is_err());
        }

        #[test]
        fn within_a_bucket_what_expires_first_comes_first(a in expiry(), b in expiry()) {
            let order = |expiry: &Expiry| (buckets::bucket(expiry.message), expiry.expires_at_ms);
            if order(&a) != order(&b) {
                prop_assert_eq!(row(&a).cmp(&row(&b)), order(&a).cmp(&order(&b)));
            }
        }

        #[test]
        fn no_bytes_make_a_reader_panic(
            row in prop::collection::vec(0u8..20, 0..60),
            value in prop::collection::vec(prop_oneof![0u8..3, any::<u8>()], 0..80),
        ) {
            let _ = decode_parts(&row, &value);
        }
    }
}
