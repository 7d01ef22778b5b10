//! What is said on a stream, and the form it takes there: XML, or slim frames once both sides have agreed on them.

use std::mem;

use idl::channel::Payload;
use idl::slim;
use idl::xml::{self, StreamReader};

use crate::resume;

const NS_STREAMS: &str = "urn:ietf:params:xml:ns:xmpp-streams";

/// Most bytes that wait for the answer to `<slim/>`; what the server may not have of an earlier stream fits well.
const HELD_BYTES_MAX: usize = 2 * resume::KEPT_BYTES_MAX;
/// What each of them costs besides its text.
const HELD_BYTES_EACH: usize = 64;

/// What the device says, whatever the form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    /// A payload on a channel, which is a stanza.
    Payload(Payload),
    /// The text of any other element at the top of the stream.
    Element(String),
    /// XEP-0198: asks the server for its count.
    CountRequest,
    /// XEP-0198: the count of the server's stanzas.
    Count(u32),
    /// The end of the stream, with the condition of a stream error if there is one.
    End(Option<&'static str>),
}

impl Said {
    /// Bytes of what it carries.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Payload(payload) => payload.bytes.len(),
            Self::Element(text) => text.len(),
            Self::CountRequest | Self::Count(_) | Self::End(_) => 0,
        }
    }

    fn write_xml(&self, out: &mut Vec<u8>) {
        match self {
            Self::Payload(payload) => out.extend(payload.to_message()),
            Self::Element(text) => out.extend_from_slice(text.as_bytes()),
            Self::CountRequest => out.extend_from_slice(format!("<r xmlns='{}'/>", resume::NS).as_bytes()),
            Self::Count(count) => out.extend_from_slice(format!("<a xmlns='{}' h='{count}'/>", resume::NS).as_bytes()),
            Self::End(condition) => {
                out.extend_from_slice(stream_error(*condition).as_bytes());
                xml::write_footer(out);
            }
        }
    }

    fn write_slim(&self, out: &mut Vec<u8>) {
        match self {
            Self::Payload(payload) => slim::write_payload(out, payload.number, &payload.bytes),
            Self::Element(text) => slim::write_stanza(out, text),
            Self::CountRequest => out.extend_from_slice(&slim::ACK_REQUEST),
            Self::Count(count) => slim::write_ack(out, *count),
            Self::End(condition) => slim::write_end(out, stream_error(*condition)),
        }
    }
}

fn stream_error(condition: Option<&str>) -> String {
    condition.map_or_else(String::new, |condition| {
        format!("<stream:error><{condition} xmlns='{NS_STREAMS}'/></stream:error>")
    })
}

/// The form of a connection's stream.
#[derive(Debug)]
pub(crate) enum Form {
    /// As every connection begins.
    Xml(Box<StreamReader>),
    /// `<slim/>` was sent. Until the answer the server speaks XML, and the device does not know how it will be understood:
    /// it says nothing.
    Asked {
        reader: Box<StreamReader>,
        held: Vec<Said>,
        held_bytes: usize,
    },
    Slim(slim::Reader),
}

impl Form {
    pub(crate) fn xml(reader: StreamReader) -> Self {
        Self::Xml(Box::new(reader))
    }

    pub(crate) fn is_slim(&self) -> bool {
        matches!(self, Self::Slim(_))
    }

    /// `<slim/>` was sent.
    pub(crate) fn ask(&mut self) {
        *self = match mem::replace(self, Self::Slim(slim::Reader::new())) {
            Self::Xml(reader) => Self::Asked { reader, held: Vec::new(), held_bytes: 0 },
            other => other,
        };
    }

    /// The server's answer came. Returns what is to be said now.
    pub(crate) fn answered(&mut self, agreed: bool) -> Vec<Said> {
        match mem::replace(self, Self::Slim(slim::Reader::new())) {
            Self::Asked { reader, held, .. } => {
                if !agreed {
                    *self = Self::Xml(reader);
                }
                held
            }
            other => {
                *self = other;
                Vec::new()
            }
        }
    }

    /// Writes it, or holds it until the server has answered. An end that can't be said now is never said: the connection
    /// closes without.
    pub(crate) fn say(&mut self, said: Said, out: &mut Vec<u8>) {
        match self {
            Self::Xml(_) => said.write_xml(out),
            Self::Slim(_) => said.write_slim(out),
            Self::Asked { held, held_bytes, .. } => {
                *held_bytes += said.bytes() + HELD_BYTES_EACH;
                held.push(said);
            }
        }
    }

    /// True if more waits for the server's answer than the device keeps.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self, Self::Asked { held_bytes, .. } if *held_bytes > HELD_BYTES_MAX)
    }
}
