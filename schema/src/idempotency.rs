//! First answers to idempotency keys: of requests with one key, one is carried out, and all get its answer.
//!
//! Table `idempotency`. Row: a spread of app and key (2 bytes) · app id, escaped · key, escaped. One cell `m`: form 1: the
//! request's fingerprint, 32 bytes · the message id it was accepted under, 16 bytes · 0 while there is no answer, or 1 and
//! the answer to the end.

use std::sync::Arc;

use idl::ids::{AppId, MessageId};

use crate::batch::Batch;
use crate::keys::{self, Key};
use crate::sorted::{Cells, Mutation, Put, RowRead, SortedStore, StoreError, Table};
use crate::value::{Read, Reader, Writer};

const TABLE: Table = Table::Idempotency;
const CELL: &[u8] = b"m";

/// All of a value but the answer: form, fingerprint, id, mark.
const HEAD_BYTES: usize = 1 + 32 + 16 + 1;

/// A key that is claimed is read; if it was given up or expired in between it is claimed again, at most so often.
const TRIES_MAX: usize = 8;

/// What claiming a key found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// The key is new, and is the caller's from now on, durably.
    New,
    /// The key was claimed before.
    Taken {
        /// Of the request that has it.
        fingerprint: [u8; 32],
        /// The id under which that one goes on. It is the caller's own if the caller claims a second time.
        id: MessageId,
        /// What it was answered; `None` while it is under way, or if it ended without an answer.
        answer: Option<Vec<u8>>,
    },
}

/// The store of first answers.
#[derive(Clone)]
pub struct Idempotency {
    store: Arc<dyn SortedStore>,
}

impl Idempotency {
    /// On a sorted store.
    pub fn new(store: Arc<dyn SortedStore>) -> Self {
        Self { store }
    }

    /// Claims a key of an app for a request until `expires_at_ms`, in milliseconds since the epoch. Of all that claim a key at
    /// one moment, one finds it [new](Claim::New). [`StoreError::TimedOut`] means that it may have been claimed.
    pub async fn claim(
        &self,
        app: &AppId,
        key: &str,
        fingerprint: [u8; 32],
        id: MessageId,
        expires_at_ms: u64,
    ) -> Result<Claim, StoreError> {
        let row = row(app, key);
        for _ in 0..TRIES_MAX {
            if self.store.put_if_absent(put(row.clone(), fingerprint, id, None, expires_at_ms)).await? {
                return Ok(Claim::New);
            }
            let read = RowRead { table: TABLE, row: row.clone(), cells: Cells::One(CELL.to_vec()), limit: 1 };
            let rows = self.store.read(vec![read]).await?;
            if let Some(value) = rows.first().and_then(|row| row.cell(CELL)) {
                return decode(value).map_err(|reason| StoreError::corrupt(TABLE, &row, reason));
            }
        }
        Err(StoreError::Unavailable("the idempotency key is claimed and given up too fast to be read".to_owned()))
    }

    /// Gives a key up: the next to claim it finds it new. Repeating it changes nothing.
    pub async fn release(&self, app: &AppId, key: &str) -> Result<(), StoreError> {
        self.store.write(vec![Mutation::DeleteRow { table: TABLE, row: row(app, key) }]).await
    }
}

impl Batch {
    /// Puts the answer beside the claim, until `expires_at_ms`. Written with what the request did, it is there exactly if that
    /// is. Repeating it changes nothing.
    pub fn idempotent_answer(
        &mut self,
        app: &AppId,
        key: &str,
        fingerprint: [u8; 32],
        id: MessageId,
        answer: &[u8],
        expires_at_ms: u64,
    ) {
        self.0.push(Mutation::Put(put(row(app, key), fingerprint, id, Some(answer), expires_at_ms)));
    }

    /// Takes a claim over for another id, without an answer: for a request whose claimant is gone. It replaces whatever is
    /// there, so that who does it must be alone in doing it.
    pub fn reclaim(&mut self, app: &AppId, key: &str, fingerprint: [u8; 32], id: MessageId, expires_at_ms: u64) {
        self.0.push(Mutation::Put(put(row(app, key), fingerprint, id, None, expires_at_ms)));
    }
}

fn row(app: &AppId, key: &str) -> Vec<u8> {
    let (app, key) = (app.as_str().as_bytes(), key.as_bytes());
    Key::new().fixed(&keys::spread(&[app, key])).escaped(app).escaped(key).build()
}

fn put(row: Vec<u8>, fingerprint: [u8; 32], id: MessageId, answer: Option<&[u8]>, expires_at_ms: u64) -> Put {
    let value = encode(fingerprint, id, answer);
    Put { table: TABLE, row, cell: CELL.to_vec(), value, expires_at_ms: Some(expires_at_ms) }
}

fn encode(fingerprint: [u8; 32], id: MessageId, answer: Option<&[u8]>) -> Vec<u8> {
    let writer = Writer::form(1).fixed(&fingerprint).message_id(id);
    match answer {
        Some(answer) => writer.fixed(&[1]).fixed(answer),
        None => writer.fixed(&[0]),
    }
    .build()
}

fn decode(value: &[u8]) -> Read<Claim> {
    let (head, rest) = value.split_at_checked(HEAD_BYTES).ok_or_else(|| format!("{} bytes, too few", value.len()))?;
    let mut head = Reader::form(head, 1)?;
    let fingerprint = head.fixed()?;
    let id = head.message_id()?;
    let answer = match (head.fixed()?, rest) {
        ([0], []) => None,
        ([0], _) => return Err("an answer where there is none".to_owned()),
        ([1], answer) => Some(answer.to_vec()),
        ([other], _) => return Err(format!("mark {other} where 0 or 1 was expected")),
    };
    Ok(Claim::Taken { fingerprint, id, answer })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_claim_reads_back_as_it_was_written(
            fingerprint: [u8; 32],
            id: u128,
            answer in prop::option::of(prop::collection::vec(any::<u8>(), 0..40)),
        ) {
            let stored = encode(fingerprint, MessageId(id), answer.as_deref());
            prop_assert_eq!(decode(&stored), Ok(Claim::Taken { fingerprint, id: MessageId(id), answer }));
            prop_assert!(decode(&stored[..HEAD_BYTES - 1]).is_err());
        }

        #[test]
        fn no_bytes_make_a_reader_panic(value in prop::collection::vec(0u8..3, 45..55)) {
            let _ = decode(&value);
        }
    }
}
