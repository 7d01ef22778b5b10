//! The promises of how commands and what travels on the bus are read, held against any bytes: what fuzzing calls.

use std::fmt::Debug;

use thrift::protocol::TSerializable;

use super::{FrontEvent, Reply, Request};
use crate::contract::bus as wire;
use crate::contract::message::Notification;
use crate::contract::push::{AppKeys, FromDevice, Hello, ToDevice};
use crate::error::Failure;
use crate::ids::MessageId;
use crate::message::Message;
use crate::wire::{WireError, decode_device, decode_trusted, encode};

/// Reads bytes as what the first of them names, as one that a device, another process or a store may hold, and asserts what
/// the readers promise: what was read is written so that it reads back equal, in at most as many bytes.
///
/// The letters: `h` what a device opens the channel with, `d` what it says, `t` what it is told, `k` keys of an app, `n` what is
/// sealed for it; `q` a request, `a` a reply and `f` an event of the bus, with their number as a second byte; `e` and `l`
/// the envelopes and letters that carry these between processes; `b` a batch for a front and `r` its answer; `m` a stored message.
/// Any other first byte is a request.
///
/// # Panics
///
/// If a promise is broken.
pub fn check(input: &[u8]) {
    let Some((&kind, bytes)) = input.split_first() else { return };
    match kind {
        b'h' => _ = again::<Hello>(bytes, decode_device),
        b'd' => _ = again::<FromDevice>(bytes, decode_device),
        b't' => _ = again::<ToDevice>(bytes, decode_trusted),
        b'k' => _ = again::<AppKeys>(bytes, decode_trusted),
        b'n' => _ = again::<Notification>(bytes, decode_trusted),
        b'a' => numbered(bytes, Reply::from_bytes, |reply| (reply.number(), reply.to_bytes())),
        b'f' => numbered(bytes, FrontEvent::from_bytes, |event| (event.number(), event.to_bytes())),
        b'e' => {
            if let Some(envelope) = again::<wire::RequestEnvelope>(bytes, decode_trusted) {
                request(envelope.method, &envelope.body);
            }
        }
        b'l' => {
            if let Some(letter) = again::<wire::Letter>(bytes, decode_trusted) {
                let (number, body) = (letter.number.unwrap_or_default(), letter.body.unwrap_or_default());
                request(number, &body);
                _ = Reply::from_bytes(number, &body);
                _ = FrontEvent::from_bytes(number, &body);
                _ = letter.failure.map(Failure::from_status);
            }
        }
        b'b' => _ = again::<wire::FrontBatch>(bytes, decode_trusted),
        b'r' => _ = again::<wire::FrontBatchReply>(bytes, decode_trusted),
        b'm' => {
            if let Ok(message) = Message::from_stored(MessageId(7), bytes) {
                assert_eq!(Message::from_stored(MessageId(7), &message.to_stored()), Ok(message));
            }
        }
        _ => numbered(bytes, Request::from_bytes, |request| (request.number(), request.to_bytes())),
    }
}

/// What the bytes are, if it reads back as it is written.
fn again<T>(bytes: &[u8], decode: impl Fn(&[u8]) -> Result<T, WireError>) -> Option<T>
where
    T: TSerializable + PartialEq + Debug,
{
    let decoded = decode(bytes).ok()?;
    let encoded = encode(&decoded);
    assert!(encoded.len() <= bytes.len(), "{} bytes are written as {}: {decoded:?}", bytes.len(), encoded.len());
    assert_eq!(decode(&encoded).as_ref(), Ok(&decoded));
    Some(decoded)
}

fn numbered<T, E>(bytes: &[u8], read: impl Fn(i32, &[u8]) -> Result<T, E>, write: impl Fn(&T) -> (i32, Vec<u8>))
where
    T: PartialEq + Debug,
    E: PartialEq + Debug,
{
    let Some((&number, bytes)) = bytes.split_first() else { return };
    let Ok(decoded) = read(i32::from(number), bytes) else { return };
    let (written, encoded) = write(&decoded);
    assert_eq!(written, i32::from(number));
    assert_eq!(read(written, &encoded), Ok(decoded));
}

fn request(number: i32, body: &[u8]) {
    if let Ok(request) = Request::from_bytes(number, body) {
        assert_eq!(Request::from_bytes(request.number(), &request.to_bytes()).as_ref(), Ok(&request));
        assert!(request.ids() > 0, "a request needs an id");
    }
}
