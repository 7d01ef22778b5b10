//! Receipts: what an app server is told of its messages. An app's receipts are kept in order, so that they can be read again
//! from any place; those with a callback URL wait besides until they were posted.
//!
//! Table `receipts`, the log. Row: a spread of app and bucket (2 bytes) · app id, escaped · bucket (1 byte: the low four bits
//! of the receipt's id) · the receipt's id, 16 bytes. So what one app writes goes to sixteen places, which reading merges.
//! One cell `m`: the receipt.
//!
//! Table `callbacks`, what waits. The first byte tells two kinds of rows apart, so that the heads are read without what waits:
//!
//! | row | cell `m` |
//! | --- | --- |
//! | `h` · place | the URL: this URL has or had something waiting |
//! | `p` · place · the receipt's id, 16 bytes | the receipt, without the URL |
//!
//! where a place is a spread of app and URL (2 bytes) · app id, escaped · the first 16 bytes of the URL's SHA-256.

use std::sync::Arc;

use idl::ids::{AppId, MessageId, RegId};
use ring::digest;

use crate::batch::Batch;
use crate::buckets;
use crate::keys::{self, Key};
use crate::sorted::{Mutation, Put, Row, RowScan, SortedStore, StoreError, Table};
use crate::value::{Read, Reader, Writer};

const LOG: Table = Table::Receipts;
const CALLBACKS: Table = Table::Callbacks;
const CELL: &[u8] = b"m";
const HEAD: &[u8] = b"h";
const PENDING: &[u8] = b"p";

/// A head is kept for so long after the receipt that was written with it is given up: longer than the times at which receipts
/// of one URL are given up may differ.
const HEAD_MARGIN_MS: u64 = 24 * 3600 * 1000;

/// One receipt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Its place in the app's order of receipts: a ULID of its own.
    pub id: MessageId,
    /// Whose message it was.
    pub app: AppId,
    /// Of which message.
    pub message: MessageId,
    /// What happened: a bit of the contract's `Callback.types`.
    pub kind: i32,
    /// The regid or alias as the send named it.
    pub target: String,
    /// To which registration it happened, if it was one.
    pub regid: Option<RegId>,
    /// When it happened, in milliseconds since the epoch.
    pub at_ms: u64,
    /// Where it is to be posted; `None`: it is kept for reading alone.
    pub url: Option<String>,
    /// What the app server gave to be given back.
    pub param: Option<String>,
    /// The message's job key.
    pub job_key: Option<String>,
    /// Why it happened, where a code says more than `kind`.
    pub error_code: Option<i32>,
}

/// Where what waits for one callback URL of one app lies; its order is that of [`Receipts::urls`]. Two URLs have two keys.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UrlKey(Vec<u8>);

impl UrlKey {
    /// The key of an app's URL, which is compared byte by byte.
    pub fn new(app: &AppId, url: &str) -> Self {
        let (app, url) = (app.as_str().as_bytes(), url.as_bytes());
        let hash = digest::digest(&digest::SHA256, url);
        let hash = hash.as_ref().first_chunk::<16>().expect("SHA-256 has 32 bytes");
        Self(Key::new().fixed(&keys::spread(&[app, url])).escaped(app).fixed(hash).build())
    }

    fn head(&self) -> Vec<u8> {
        Key::new().fixed(HEAD).fixed(&self.0).build()
    }

    fn pending(&self) -> Vec<u8> {
        Key::new().fixed(PENDING).fixed(&self.0).build()
    }

    fn pending_one(&self, id: MessageId) -> Vec<u8> {
        Key::new().fixed(&self.pending()).fixed(&id.to_bytes()).build()
    }
}

/// The store of receipts.
#[derive(Clone)]
pub struct Receipts {
    store: Arc<dyn SortedStore>,
}

impl Receipts {
    /// On a sorted store.
    pub fn new(store: Arc<dyn SortedStore>) -> Self {
        Self { store }
    }

    /// An app's receipts in order of their ids: at most `limit`, those after `after` and before `before`, exclusive of both.
    /// Fewer than `limit` means there are no more. A receipt that is written late, with an id that readers have passed, is
    /// missed: so `before` must not be after the id of one that is still being written.
    pub async fn since(
        &self,
        app: &AppId,
        after: Option<MessageId>,
        before: MessageId,
        limit: usize,
    ) -> Result<Vec<Receipt>, StoreError> {
        let range = |bucket| {
            let prefix = log_prefix(app, bucket);
            let to = Key::new().fixed(&prefix).fixed(&before.to_bytes()).build();
            let from = match after {
                Some(after) => keys::successor(&Key::new().fixed(&prefix).fixed(&after.to_bytes()).build()),
                None => prefix,
            };
            (from, to)
        };
        let skip = log_prefix(app, 0).len();
        let rows = buckets::merged(self.store.as_ref(), LOG, range, skip, limit).await?;
        rows.iter().map(|row| decode(LOG, app, row, skip, None)).collect()
    }

    /// What waits to be posted to an app's URL, oldest first: at most `limit`, those after `after`. Fewer than `limit` means
    /// there are no more. A receipt that was posted or given up is not among them.
    pub async fn pending(
        &self,
        app: &AppId,
        url: &str,
        after: Option<MessageId>,
        limit: usize,
    ) -> Result<Vec<Receipt>, StoreError> {
        let key = UrlKey::new(app, url);
        let prefix = key.pending();
        let skip = prefix.len();
        let to = keys::prefix_end(&prefix);
        let from = after.map_or(prefix, |after| keys::successor(&key.pending_one(after)));
        let rows = self.store.scan(RowScan { table: CALLBACKS, from, to, rows_max: limit }).await?;
        rows.iter().map(|row| decode(CALLBACKS, app, row, skip, Some(url))).collect()
    }

    /// URLs that have or lately had something waiting, of all apps, in order of their keys: at most `limit`, those after
    /// `after`. Fewer than `limit` means there are no more.
    pub async fn urls(&self, after: Option<UrlKey>, limit: usize) -> Result<Vec<(UrlKey, AppId, String)>, StoreError> {
        let from = after.map_or_else(|| HEAD.to_vec(), |after| keys::successor(&after.head()));
        let to = keys::prefix_end(HEAD);
        let rows = self.store.scan(RowScan { table: CALLBACKS, from, to, rows_max: limit }).await?;
        let decode = |row: &Row| decode_head(row).map_err(|reason| StoreError::corrupt(CALLBACKS, &row.row, reason));
        rows.iter().map(decode).collect()
    }
}

impl Batch {
    /// Writes receipts: into their apps' logs, until `keep_until_ms`; and those that have a URL among what waits for that,
    /// until `give_up_at_ms`. Times are in milliseconds since the epoch; those of one URL at which it is given up should differ
    /// by less than a day, so that none of them outlives what tells of it. Repeating it changes nothing (but what was posted in
    /// between waits again).
    pub fn receipts(&mut self, receipts: &[Receipt], keep_until_ms: u64, give_up_at_ms: u64) {
        let put = |table, row, value, expires_at_ms| {
            Mutation::Put(Put { table, row, cell: CELL.to_vec(), value, expires_at_ms: Some(expires_at_ms) })
        };
        // Table after table, for those backends where each change of table is another call.
        let logged =
            |receipt: &Receipt| put(LOG, log_row(receipt), encode(receipt, receipt.url.as_deref()), keep_until_ms);
        self.0.extend(receipts.iter().map(logged));
        for (receipt, url) in receipts.iter().filter_map(|receipt| Some((receipt, receipt.url.as_ref()?))) {
            let key = UrlKey::new(&receipt.app, url);
            // The head first: what waits without one would be found by nobody after a restart.
            let head = Writer::form(1).text(url).build();
            let head = put(CALLBACKS, key.head(), head, give_up_at_ms.saturating_add(HEAD_MARGIN_MS));
            self.0.extend([head, put(CALLBACKS, key.pending_one(receipt.id), encode(receipt, None), give_up_at_ms)]);
        }
    }

    /// Says that a receipt was posted: it waits no longer, and stays in the log. Repeating it changes nothing; without a URL
    /// there is nothing to do.
    pub fn receipt_posted(&mut self, receipt: &Receipt) {
        if let Some(url) = &receipt.url {
            let row = UrlKey::new(&receipt.app, url).pending_one(receipt.id);
            self.0.push(Mutation::DeleteRow { table: CALLBACKS, row });
        }
    }
}

fn log_prefix(app: &AppId, bucket: u8) -> Vec<u8> {
    let app = app.as_str().as_bytes();
    Key::new().fixed(&keys::spread(&[app, &[bucket]])).escaped(app).fixed(&[bucket]).build()
}

fn log_row(receipt: &Receipt) -> Vec<u8> {
    let prefix = log_prefix(&receipt.app, buckets::bucket(receipt.id));
    Key::new().fixed(&prefix).fixed(&receipt.id.to_bytes()).build()
}

fn encode(receipt: &Receipt, url: Option<&str>) -> Vec<u8> {
    let writer = Writer::form(1)
        .message_id(receipt.message)
        .fixed(&receipt.kind.to_be_bytes())
        .number(receipt.at_ms)
        .text(&receipt.target);
    let writer = match &receipt.regid {
        Some(regid) => writer.fixed(&[1]).fixed(&regid.0),
        None => writer.fixed(&[0]),
    };
    let writer = writer.optional_text(url).optional_text(receipt.param.as_deref());
    let writer = writer.optional_text(receipt.job_key.as_deref());
    match receipt.error_code {
        Some(code) => writer.fixed(&[1]).fixed(&code.to_be_bytes()),
        None => writer.fixed(&[0]),
    }
    .build()
}

/// A row whose key ends with the receipt's id, after `skip` bytes.
fn decode(table: Table, app: &AppId, row: &Row, skip: usize, url: Option<&str>) -> Result<Receipt, StoreError> {
    let decode = || {
        let id = row.row.get(skip..).unwrap_or_default();
        let id = MessageId::from_bytes(id).map_err(|error| error.to_string())?;
        let value = row.cell(CELL).ok_or_else(|| "no cell m".to_owned())?;
        decode_value(app, id, value, url)
    };
    decode().map_err(|reason| StoreError::corrupt(table, &row.row, reason))
}

fn decode_value(app: &AppId, id: MessageId, value: &[u8], url: Option<&str>) -> Read<Receipt> {
    let mut value = Reader::form(value, 1)?;
    let message = value.message_id()?;
    let kind = i32::from_be_bytes(value.fixed()?);
    let at_ms = value.number()?;
    let target = value.text()?;
    let regid = if is_there(&mut value)? { Some(RegId(value.fixed()?)) } else { None };
    let stored_url = value.optional_text()?;
    let param = value.optional_text()?;
    let job_key = value.optional_text()?;
    let error_code = if is_there(&mut value)? { Some(i32::from_be_bytes(value.fixed()?)) } else { None };
    value.end()?;
    let url = stored_url.or_else(|| url.map(str::to_owned));
    Ok(Receipt { id, app: app.clone(), message, kind, target, regid, at_ms, url, param, job_key, error_code })
}

fn is_there(value: &mut Reader<'_>) -> Read<bool> {
    match value.fixed()? {
        [0] => Ok(false),
        [1] => Ok(true),
        [other] => Err(format!("mark {other} where 0 or 1 was expected")),
    }
}

fn decode_head(row: &Row) -> Read<(UrlKey, AppId, String)> {
    let key = row.row.strip_prefix(HEAD).ok_or_else(|| "a head that does not begin as one".to_owned())?;
    let escaped = key.get(2..).ok_or_else(|| "a key that is cut".to_owned())?;
    let (app, _) = keys::unescape(escaped).ok_or_else(|| "no application id in it".to_owned())?;
    let app = String::from_utf8(app).map_err(|error| error.to_string())?;
    let app: AppId = app.parse().map_err(|error: idl::ids::InvalidId| error.to_string())?;
    let value = row.cell(CELL).ok_or_else(|| "no cell m".to_owned())?;
    let mut value = Reader::form(value, 1)?;
    let url = value.text()?;
    value.end()?;
    let expected = UrlKey::new(&app, &url);
    if expected.0 == key { Ok((expected, app, url)) } else { Err(format!("URL {url:?} under the key of another")) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn app() -> AppId {
        "com.example.demo".parse().expect("an app id")
    }

    fn receipt() -> impl Strategy<Value = Receipt> {
        let optional = || prop::option::of(".{0,40}");
        let ids = (any::<u128>(), any::<u128>(), prop::option::of(any::<[u8; 24]>()));
        (ids, any::<(i32, u64, Option<i32>)>(), (".{0,140}", optional(), optional(), optional())).prop_map(
            |((id, message, regid), (kind, at_ms, error_code), (target, url, param, job_key))| Receipt {
                id: MessageId(id),
                app: app(),
                message: MessageId(message),
                kind,
                target,
                regid: regid.map(RegId),
                at_ms,
                url,
                param,
                job_key,
                error_code,
            },
        )
    }

    proptest! {
        #[test]
        fn a_receipt_reads_back_as_it_was_written(receipt in receipt()) {
            let stored = encode(&receipt, receipt.url.as_deref());
            prop_assert_eq!(decode_value(&app(), receipt.id, &stored, None), Ok(receipt.clone()));
            let stored = encode(&receipt, None);
            prop_assert_eq!(decode_value(&app(), receipt.id, &stored, receipt.url.as_deref()), Ok(receipt));
        }

        #[test]
        fn a_receipt_that_is_cut_or_goes_on_is_refused(receipt in receipt(), at: prop::sample::Index) {
            let mut stored = encode(&receipt, receipt.url.as_deref());
            let cut = at.index(stored.len());
            prop_assert!(decode_value(&app(), receipt.id, &stored[..cut], None).is_err());
            stored.push(0);
            prop_assert!(decode_value(&app(), receipt.id, &stored, None).is_err());
        }

        #[test]
        fn no_bytes_make_a_reader_panic(
            row in prop::collection::vec(any::<u8>(), 0..60),
            mut value in prop::collection::vec(prop_oneof![0u8..3, any::<u8>()], 0..80),
        ) {
            if let Some(form) = value.first_mut() {
                *form = 1;
            }
            let _ = decode_value(&app(), MessageId(1), &value, None);
            let row = Row { row: [HEAD, &row].concat(), cells: vec![(CELL.to_vec(), value)] };
            prop_assert!(decode_head(&row).is_err());
        }

        #[test]
        fn what_waits_for_two_urls_does_not_mix(a in "[ab\u{0}]{0,3}", b in "[ab\u{0}]{0,3}") {
            let (one, other) = (UrlKey::new(&app(), &a), UrlKey::new(&app(), &b));
            prop_assert_eq!(one == other, a == b);
            prop_assert_eq!(other.pending_one(MessageId(7)).starts_with(&one.pending()), a == b);
        }
    }
}
