//! The slim form of a stream, read and written without I/O: binary frames instead of XML, with the same channels, the
//! same acknowledgements and the same stanzas. `docs/protocol.md` section 12 specifies it.
//!
//! ```text
//! frame  = length kind body        length: of kind and body, a varint · kind: one byte
//! varint = an unsigned LEB128 number of 32 bits in as few bytes as it needs
//! ```
//!
//! Each sequence of frames has one encoding: overlong varints, bodies where none belongs and bytes behind a body are
//! refused. Frames of an unknown kind are skipped. A frame that is over the limit is refused from its length alone.

use std::borrow::Cow;
use std::mem;

use minidom::Element;
use thiserror::Error;

use crate::xml::{Event, Limits, StreamReader, XmlError};

mod check;
#[cfg(test)]
mod tests;

pub use check::check;

/// Namespace of the stream feature and of the elements that switch to it.
pub const NS: &str = "urn:campanile:slim:1";
/// `<slim/>`: what the server announces, what the client asks with, and what the server agrees with. The byte behind the
/// last one is the first of the first frame.
pub const SWITCH: &str = "<slim xmlns='urn:campanile:slim:1'/>";
/// The server's answer when it does not switch: the stream stays what it was.
pub const FAILURE: &str = "<failure xmlns='urn:campanile:slim:1'/>";

const KIND_PING: u8 = 0;
const KIND_PONG: u8 = 1;
const KIND_PAYLOAD: u8 = 2;
const KIND_STANZA: u8 = 3;
const KIND_ACK_REQUEST: u8 = 4;
const KIND_ACK: u8 = 5;
const KIND_END: u8 = 6;

/// The bytes of [`Frame::Ping`].
pub const PING: [u8; 2] = [1, KIND_PING];
/// The bytes of [`Frame::Pong`].
pub const PONG: [u8; 2] = [1, KIND_PONG];
/// The bytes of [`Frame::AckRequest`].
pub const ACK_REQUEST: [u8; 2] = [1, KIND_ACK_REQUEST];
/// The bytes of [`Frame::End`] without a reason.
pub const CLOSE: [u8; 2] = [1, KIND_END];

/// Most bytes of a varint.
const VARINT_BYTES_MAX: usize = 5;
/// What the elements of a stream stand in: its default namespace and the prefix of its own elements.
const CONTEXT: &str = "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>";

/// One frame. What it holds is borrowed from the bytes that were read, unless they came in pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Asks for a sign of life.
    Ping,
    /// The answer to [`Frame::Ping`].
    Pong,
    /// A payload on a channel: `<message><channel number='…'>` of the XML form. A stanza to XEP-0198.
    Payload {
        /// The channel's number, from 1 to 65535.
        number: u32,
        /// What the channel's service and its client understand.
        bytes: Cow<'a, [u8]>,
    },
    /// The text of one element at the top of the stream, for [`element`]. A stanza to XEP-0198 if it is one in XML.
    Stanza(Cow<'a, str>),
    /// XEP-0198 `<r/>`: how many stanzas did you handle?
    AckRequest,
    /// XEP-0198 `<a/>`: so many.
    Ack(u32),
    /// The end of the stream: the text of a `<stream:error/>`, for [`element`], or nothing. The sender's last frame.
    End(Cow<'a, str>),
}

/// Why bytes are no slim stream. [`SlimError::condition`] is the stream error to send. After any, the stream is over.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SlimError {
    /// A frame is larger than the limit, or claims to be.
    #[error("a frame is larger than {limit} bytes")]
    TooLarge {
        /// The limit it met.
        limit: usize,
    },
    /// A varint has more bytes than its number needs, or more than 32 bits.
    #[error("a varint is overlong")]
    Varint,
    /// A frame of length 0, which has no kind.
    #[error("a frame has no kind")]
    Empty,
    /// The body is not what the kind demands: it is cut, or bytes follow.
    #[error("the body of a frame of kind {kind} has the wrong length")]
    Body {
        /// The frame's kind.
        kind: u8,
    },
    /// A channel number that can't be.
    #[error("a channel number must be from 1 to 65535")]
    Channel,
    /// A text that is not UTF-8.
    #[error("the text of a frame of kind {kind} is not UTF-8")]
    Text {
        /// The frame's kind.
        kind: u8,
    },
    /// The text is not one element and nothing else.
    #[error("a frame's text must be exactly one element")]
    NotOneElement,
    /// The text is not XML that may stand in a stream.
    #[error(transparent)]
    Xml(#[from] XmlError),
}

impl SlimError {
    /// The stream error's condition (RFC 6120 §4.9.3).
    pub const fn condition(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "policy-violation",
            Self::Xml(error) => error.condition(),
            _ => "bad-format",
        }
    }
}

/// Reads frames. Between frames it owns no heap memory, and making one costs nothing; inside a frame it owns at most
/// twice the bytes that have come, and never more than the limit (or 8 bytes, where the limit is smaller).
#[derive(Debug, Default)]
pub struct Reader {
    /// The frame that is half read, from its length on. Empty between frames.
    partial: Vec<u8>,
}

impl Reader {
    /// A reader before a frame.
    pub const fn new() -> Self {
        Self { partial: Vec::new() }
    }

    /// True if no frame is half read.
    pub fn is_between_frames(&self) -> bool {
        self.partial.is_empty()
    }

    /// Heap memory that it owns, in bytes.
    pub fn heap_bytes(&self) -> usize {
        self.partial.capacity()
    }

    /// Reads from `bytes`, which shrinks by what was read, up to the end of the next frame of a known kind. `None` means
    /// that all bytes were read and more are needed. A frame with its length may have `frame_bytes_max` bytes; the limit
    /// may change from call to call. After an error the stream is over.
    pub fn read<'a>(&mut self, bytes: &mut &'a [u8], frame_bytes_max: usize) -> Result<Option<Frame<'a>>, SlimError> {
        while let Some(kind_and_body) = self.read_any(bytes, frame_bytes_max)? {
            if let Some(frame) = Frame::parse(kind_and_body)? {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    /// Kind and body of the next frame of any kind.
    fn read_any<'a>(
        &mut self,
        bytes: &mut &'a [u8],
        frame_bytes_max: usize,
    ) -> Result<Option<Cow<'a, [u8]>>, SlimError> {
        if self.partial.is_empty() {
            let head = Head::read(bytes, frame_bytes_max)?;
            if let Some((frame, rest)) = head.as_ref().and_then(|head| bytes.split_at_checked(head.frame_bytes)) {
                *bytes = rest;
                return Ok(head.and_then(|head| frame.get(head.length_bytes..)).map(Cow::Borrowed));
            }
            self.partial = mem::take(bytes).to_vec();
            return Ok(None);
        }
        let head = loop {
            if let Some(head) = Head::read(&self.partial, frame_bytes_max)? {
                break head;
            }
            let Some((first, rest)) = bytes.split_first() else { return Ok(None) };
            self.partial.push(*first);
            *bytes = rest;
        };
        let missing = head.frame_bytes.saturating_sub(self.partial.len());
        let (piece, rest) = bytes.split_at(missing.min(bytes.len()));
        *bytes = rest;
        self.append(piece, head.frame_bytes);
        if self.partial.len() < head.frame_bytes {
            return Ok(None);
        }
        let mut frame = mem::take(&mut self.partial);
        frame.drain(..head.length_bytes);
        Ok(Some(Cow::Owned(frame)))
    }

    /// Room grows with what has come, not with what the length claims, and not beyond the frame.
    fn append(&mut self, piece: &[u8], frame_bytes: usize) {
        let needed = self.partial.len() + piece.len();
        if needed > self.partial.capacity() {
            let room = needed.max(self.partial.capacity().saturating_mul(2)).min(frame_bytes);
            self.partial.reserve_exact(room - self.partial.len());
        }
        self.partial.extend_from_slice(piece);
    }
}

/// The length of a frame.
struct Head {
    /// Bytes of the length itself.
    length_bytes: usize,
    /// Bytes of the whole frame.
    frame_bytes: usize,
}

impl Head {
    fn read(bytes: &[u8], frame_bytes_max: usize) -> Result<Option<Self>, SlimError> {
        let Some((length, length_bytes)) = read_varint(bytes)? else { return Ok(None) };
        if length == 0 {
            return Err(SlimError::Empty);
        }
        let frame_bytes = usize::try_from(length).ok().and_then(|length| length.checked_add(length_bytes));
        match frame_bytes.filter(|frame_bytes| *frame_bytes <= frame_bytes_max) {
            Some(frame_bytes) => Ok(Some(Self { length_bytes, frame_bytes })),
            None => Err(SlimError::TooLarge { limit: frame_bytes_max }),
        }
    }
}

impl<'a> Frame<'a> {
    /// `None` if the kind is unknown.
    fn parse(kind_and_body: Cow<'a, [u8]>) -> Result<Option<Self>, SlimError> {
        let Some((&kind, body)) = kind_and_body.split_first() else { return Err(SlimError::Empty) };
        let wrong = SlimError::Body { kind };
        let empty = |frame| if body.is_empty() { Ok(frame) } else { Err(wrong.clone()) };
        let frame = match kind {
            KIND_PING => empty(Self::Ping)?,
            KIND_PONG => empty(Self::Pong)?,
            KIND_ACK_REQUEST => empty(Self::AckRequest)?,
            KIND_ACK => match read_varint(body)? {
                Some((handled, bytes)) if bytes == body.len() => Self::Ack(handled),
                _ => return Err(wrong),
            },
            KIND_PAYLOAD => {
                let (number, number_bytes) = read_varint(body)?.ok_or(wrong)?;
                if !(1..=u32::from(u16::MAX)).contains(&number) {
                    return Err(SlimError::Channel);
                }
                Self::Payload { number, bytes: without(kind_and_body, 1 + number_bytes) }
            }
            KIND_STANZA => Self::Stanza(text(kind_and_body, kind)?),
            KIND_END => Self::End(text(kind_and_body, kind)?),
            _ => return Ok(None),
        };
        Ok(Some(frame))
    }

    /// Writes the frame.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ping => out.extend_from_slice(&PING),
            Self::Pong => out.extend_from_slice(&PONG),
            Self::Payload { number, bytes } => write_payload(out, *number, bytes),
            Self::Stanza(text) => write_stanza(out, text.as_bytes()),
            Self::AckRequest => out.extend_from_slice(&ACK_REQUEST),
            Self::Ack(handled) => write_ack(out, *handled),
            Self::End(reason) => write_end(out, reason.as_bytes()),
        }
    }
}

/// Writes a payload on a channel, from 1 to 65535; the same bytes for every receiver.
pub fn write_payload(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    write_head(out, KIND_PAYLOAD, varint_bytes(u64::from(number)) + bytes.len());
    write_varint(out, u64::from(number));
    out.extend_from_slice(bytes);
}

/// Writes the text of one element, as it would stand in the XML form. That it is UTF-8 is the caller's to see to.
pub fn write_stanza(out: &mut Vec<u8>, text: impl AsRef<[u8]>) {
    let text = text.as_ref();
    write_head(out, KIND_STANZA, text.len());
    out.extend_from_slice(text);
}

/// Writes how many stanzas were handled (XEP-0198 `h`).
pub fn write_ack(out: &mut Vec<u8>, handled: u32) {
    write_head(out, KIND_ACK, varint_bytes(u64::from(handled)));
    write_varint(out, u64::from(handled));
}

/// Writes the end of the stream: the text of a `<stream:error/>`, as it would stand in the XML form, or nothing.
pub fn write_end(out: &mut Vec<u8>, reason: impl AsRef<[u8]>) {
    let reason = reason.as_ref();
    write_head(out, KIND_END, reason.len());
    out.extend_from_slice(reason);
}

/// Reads the text of [`Frame::Stanza`] or [`Frame::End`]: one element from its `<` to its `>`, with the namespaces that it
/// would have in the XML form (`jabber:client`, and the prefix `stream`).
pub fn element(text: &str, limits: Limits) -> Result<Element, SlimError> {
    if !text.starts_with('<') {
        return Err(SlimError::NotOneElement);
    }
    let stanza_bytes_max = limits.stanza_bytes_max.max(CONTEXT.len());
    let mut reader = StreamReader::new(Limits { stanza_bytes_max, ..limits });
    reader.read(&mut CONTEXT.as_bytes())?;
    reader.set_limits(limits);
    let mut rest = text.as_bytes();
    match reader.read(&mut rest)? {
        Some(Event::Element(element)) if rest.is_empty() => Ok(element),
        _ => Err(SlimError::NotOneElement),
    }
}

/// A frame's length and kind. A body of 4 GiB or more can't be read by anybody: callers have limits far below.
fn write_head(out: &mut Vec<u8>, kind: u8, body_bytes: usize) {
    let length = u64::try_from(body_bytes).unwrap_or(u64::MAX).saturating_add(1);
    out.reserve(varint_bytes(length) + 1 + body_bytes);
    write_varint(out, length);
    out.push(kind);
}

fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            return out.push(low & 0x7f);
        }
        out.push(low | 0x80);
    }
}

fn varint_bytes(value: u64) -> usize {
    let bits = (u64::BITS - value.leading_zeros()).max(1);
    bits.div_ceil(7) as usize
}

/// The number at the beginning of the bytes, and how many bytes it has. `None` if they are cut.
fn read_varint(bytes: &[u8]) -> Result<Option<(u32, usize)>, SlimError> {
    let mut value = 0;
    for (at, byte) in bytes.iter().enumerate().take(VARINT_BYTES_MAX) {
        let last = byte & 0x80 == 0;
        let (overlong, too_large) = (last && *byte == 0 && at > 0, at + 1 == VARINT_BYTES_MAX && *byte > 0x0f);
        if overlong || too_large {
            return Err(SlimError::Varint);
        }
        value |= u32::from(byte & 0x7f) << (7 * at);
        if last {
            return Ok(Some((value, at + 1)));
        }
    }
    Ok(None)
}

/// Without the first bytes.
fn without(bytes: Cow<'_, [u8]>, count: usize) -> Cow<'_, [u8]> {
    match bytes {
        Cow::Borrowed(bytes) => Cow::Borrowed(bytes.get(count..).unwrap_or_default()),
        Cow::Owned(mut bytes) => {
            bytes.drain(..count.min(bytes.len()));
            Cow::Owned(bytes)
        }
    }
}

fn text(kind_and_body: Cow<'_, [u8]>, kind: u8) -> Result<Cow<'_, str>, SlimError> {
    match without(kind_and_body, 1) {
        Cow::Borrowed(bytes) => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
        Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
    }
    .ok_or(SlimError::Text { kind })
}
