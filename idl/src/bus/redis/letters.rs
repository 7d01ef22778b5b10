//! What requests and letters look like in an entry.

use std::time::Duration;

use super::ProcessId;
use crate::bus::{FrontEvent, Reply, Request, Unreadable};
use crate::contract::bus as wire;
use crate::error::{Code, Failure};
use crate::ids::FrontId;
use crate::wire::{WireError, decode_trusted, encode};

/// Of what carries requests. A reader takes greater ones as far as it understands them.
const VERSION: i32 = 1;
/// Largest request or letter: what a reader takes.
pub(super) const BYTES_MAX: usize = crate::wire::TRUSTED_BYTES_MAX - 1024;
/// Longest patience that is believed.
const PATIENCE_MAX: Duration = Duration::from_mins(10);

pub(super) const ANSWER: i32 = 1;
pub(super) const BATCH: i32 = 2;
pub(super) const EVENT: i32 = 3;
pub(super) const QUESTION: i32 = 4;

/// Who waits for an answer, and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Return {
    pub(super) to: ProcessId,
    pub(super) call: i64,
    pub(super) patience: Duration,
}

/// A request as it came.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) back: Return,
    pub(super) mark: u32,
    /// What is asked, or why this build can't tell.
    pub(super) request: Result<Request, Unreadable>,
}

pub(super) fn request(request: &Request, back: Return, mark: u32) -> Vec<u8> {
    encode(&wire::RequestEnvelope {
        version: VERSION,
        method: request.number(),
        body: request.to_bytes(),
        reply_to: back.to.to_bytes().to_vec(),
        call: back.call,
        patience_ms: milliseconds(back.patience),
        mark: Some((mark & 0xf_ffff).cast_signed()),
    })
}

/// Fails if not even whom to answer can be told.
pub(super) fn received(bytes: &[u8]) -> Result<Received, WireError> {
    let envelope: wire::RequestEnvelope = decode_trusted(bytes)?;
    let to = process(&envelope.reply_to)?;
    let back = Return { to, call: envelope.call, patience: patience(envelope.patience_ms) };
    let mark = envelope.mark.unwrap_or_default().cast_unsigned();
    Ok(Received { back, mark, request: Request::from_bytes(envelope.method, &envelope.body) })
}

fn empty(kind: i32, call: i64) -> wire::Letter {
    wire::Letter {
        kind,
        call,
        reply_to: None,
        front: None,
        number: None,
        body: None,
        failure: None,
        patience_ms: None,
        no_place: None,
    }
}

fn asking(kind: i32, back: Return) -> wire::Letter {
    let mut letter = empty(kind, back.call);
    letter.reply_to = Some(back.to.to_bytes().to_vec());
    letter.patience_ms = Some(milliseconds(back.patience));
    letter
}

pub(super) fn batch(front: FrontId, batch: &wire::FrontBatch, back: Return) -> Vec<u8> {
    let letter =
        wire::Letter { front: Some(front.to_bytes().to_vec()), body: Some(encode(batch)), ..asking(BATCH, back) };
    encode(&letter)
}

pub(super) fn event(front: FrontId, event: &FrontEvent, back: Return) -> Vec<u8> {
    encode(&wire::Letter {
        front: Some(front.to_bytes().to_vec()),
        number: Some(event.number()),
        body: Some(event.to_bytes()),
        ..asking(EVENT, back)
    })
}

pub(super) fn question(request: &Request, back: Return) -> Vec<u8> {
    let letter =
        wire::Letter { number: Some(request.number()), body: Some(request.to_bytes()), ..asking(QUESTION, back) };
    encode(&letter)
}

pub(super) fn reply(call: i64, reply: &Reply) -> Vec<u8> {
    let letter = wire::Letter { number: Some(reply.number()), body: Some(reply.to_bytes()), ..empty(ANSWER, call) };
    encode(&letter)
}

pub(super) fn batch_reply(call: i64, reply: &wire::FrontBatchReply) -> Vec<u8> {
    encode(&wire::Letter { body: Some(encode(reply)), ..empty(ANSWER, call) })
}

pub(super) fn taken(call: i64) -> Vec<u8> {
    encode(&empty(ANSWER, call))
}

pub(super) fn failure(call: i64, failure: &Failure) -> Vec<u8> {
    encode(&wire::Letter { failure: Some(failure.to_status()), ..empty(ANSWER, call) })
}

pub(super) fn no_place(call: i64) -> Vec<u8> {
    encode(&wire::Letter { no_place: Some(true), ..empty(ANSWER, call) })
}

/// A letter as it came.
pub(super) fn letter(bytes: &[u8]) -> Result<wire::Letter, WireError> {
    decode_trusted(bytes)
}

/// Who waits for an answer to a letter.
pub(super) fn back(letter: &wire::Letter) -> Result<Return, WireError> {
    let to = process(letter.reply_to.as_deref().unwrap_or_default())?;
    Ok(Return { to, call: letter.call, patience: patience(letter.patience_ms.unwrap_or_default()) })
}

/// The front that a letter is for.
pub(super) fn front(letter: &wire::Letter) -> Option<FrontId> {
    FrontId::from_bytes(letter.front.as_deref()?).ok()
}

/// What a middle answered.
pub(super) fn into_reply(letter: wire::Letter) -> Result<Reply, Failure> {
    if let Some(status) = letter.failure {
        return Err(Failure::from_status(status));
    }
    let body = letter.body.unwrap_or_default();
    Reply::from_bytes(letter.number.unwrap_or_default(), &body).map_err(|error| unreadable(&error))
}

/// What a front answered.
pub(super) fn into_batch_reply(letter: wire::Letter) -> Result<wire::FrontBatchReply, Failure> {
    match letter.failure {
        Some(status) => Err(Failure::from_status(status)),
        None => decode_trusted(&letter.body.unwrap_or_default()).map_err(|error| unreadable(&error.into())),
    }
}

fn unreadable(error: &Unreadable) -> Failure {
    Failure::new(Code::TimedOut, format!("the answer can't be read, so it may have happened: {error}"))
}

/// What is answered to a request that this build can't act on. It may be retried: while releases change, another process
/// may know it.
pub(super) fn not_known(error: &Unreadable) -> Failure {
    Failure::new(Code::System, format!("the process that was asked can't act on this: {error}; try again"))
}

fn process(bytes: &[u8]) -> Result<ProcessId, WireError> {
    let bytes = bytes.try_into().map_err(|_| WireError::Malformed {
        expected: "ProcessId",
        reason: format!("{} bytes, and 16 were expected", bytes.len()),
    })?;
    Ok(ProcessId(u128::from_be_bytes(bytes)))
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn patience(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0)).min(PATIENCE_MAX)
}
