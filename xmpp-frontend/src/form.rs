//! What is said on a stream, and the forms in which it is: XML, and slim frames once a client has asked for them
//! (`docs/protocol.md`, section 12).

use std::sync::{Arc, OnceLock};

use idl::channel::{NS, Payload};
use idl::slim;

use crate::close::Reason;
use crate::negotiate::NS_SM;

/// How a stream's bytes are written and read. Every stream begins in XML.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Form {
    #[default]
    Xml,
    Slim,
}

/// Something to be said, whole.
#[derive(Debug, Clone)]
pub(crate) enum Frame {
    /// A stanza, as XML.
    Stanza(Arc<[u8]>),
    /// A payload on a channel: a stanza in XML. A broadcast's is shared by all its receivers.
    Payload(Arc<SharedPayload>),
    /// An element that stream management doesn't count, as XML.
    Other(Arc<[u8]>),
    /// `<enabled/>`, as XML: stanzas behind it are counted.
    Enabled(Arc<[u8]>),
    /// So many stanzas are handled.
    Ack(u32),
    /// How many stanzas are handled?
    AckRequest,
    /// The answer to a heartbeat in slim.
    Pong,
    /// A heartbeat in slim.
    Ping,
    /// What follows is in slim. Only where it is in XML.
    Switch,
}

/// A payload that is made into XML at most once, however many receive it.
#[derive(Debug)]
pub(crate) struct SharedPayload {
    payload: Payload,
    xml: OnceLock<Box<[u8]>>,
}

impl SharedPayload {
    pub(crate) fn new(payload: Payload) -> Self {
        Self { payload, xml: OnceLock::new() }
    }

    /// One like any other.
    #[cfg(test)]
    pub(crate) fn for_test() -> Arc<Self> {
        Arc::new(Self::new(Payload { number: idl::channel::PUSH, bytes: b"x".to_vec() }))
    }

    fn xml(&self) -> &[u8] {
        self.xml.get_or_init(|| self.payload.to_message().into())
    }

    /// About the bytes that it takes in XML, whether that is made or not.
    fn weight(&self) -> usize {
        NS.len() + self.payload.bytes.len().div_ceil(3).saturating_mul(4)
    }
}

impl Frame {
    pub(crate) fn stanza(text: impl AsRef<[u8]>) -> Self {
        Self::Stanza(text.as_ref().into())
    }

    pub(crate) fn other(text: impl AsRef<[u8]>) -> Self {
        Self::Other(text.as_ref().into())
    }

    pub(crate) fn payload(number: u32, bytes: Vec<u8>) -> Self {
        Self::Payload(Arc::new(SharedPayload::new(Payload { number, bytes })))
    }

    /// True for what stream management counts.
    pub(crate) fn is_stanza(&self) -> bool {
        matches!(self, Self::Stanza(_) | Self::Payload(_))
    }

    /// About how many bytes it takes.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Self::Stanza(text) | Self::Other(text) | Self::Enabled(text) => text.len(),
            Self::Payload(payload) => payload.weight(),
            Self::Ack(_) | Self::AckRequest | Self::Pong | Self::Ping | Self::Switch => 0,
        }
    }

    /// Appends its bytes. The form is another behind [`Frame::Switch`].
    pub(crate) fn write(&self, form: &mut Form, out: &mut Vec<u8>) {
        match (*form, self) {
            (Form::Xml, Self::Stanza(text) | Self::Other(text) | Self::Enabled(text)) => out.extend_from_slice(text),
            (Form::Xml, Self::Payload(payload)) => out.extend_from_slice(payload.xml()),
            (Form::Xml, Self::Ack(handled)) => {
                out.extend_from_slice(format!("<a xmlns='{NS_SM}' h='{handled}'/>").as_bytes());
            }
            (Form::Xml, Self::AckRequest) => out.extend_from_slice(format!("<r xmlns='{NS_SM}'/>").as_bytes()),
            (Form::Xml, Self::Switch) => {
                out.extend_from_slice(slim::SWITCH.as_bytes());
                *form = Form::Slim;
            }
            // Frames alone ask for a pong, and a stream that was resumed since is not in slim yet; nor does one switch twice.
            (Form::Xml, Self::Pong | Self::Ping) | (Form::Slim, Self::Switch) => {}
            (Form::Slim, Self::Stanza(text) | Self::Other(text) | Self::Enabled(text)) => {
                slim::write_stanza(out, &**text);
            }
            (Form::Slim, Self::Payload(payload)) => {
                slim::write_payload(out, payload.payload.number, &payload.payload.bytes);
            }
            (Form::Slim, Self::Ack(handled)) => slim::write_ack(out, *handled),
            (Form::Slim, Self::AckRequest) => out.extend_from_slice(&slim::ACK_REQUEST),
            (Form::Slim, Self::Pong) => out.extend_from_slice(&slim::PONG),
            (Form::Slim, Self::Ping) => out.extend_from_slice(&slim::PING),
        }
    }
}

impl Form {
    /// Appends the last words of a stream.
    pub(crate) fn write_end(self, reason: Reason, out: &mut Vec<u8>) {
        match self {
            Self::Xml => reason.write(out),
            Self::Slim => slim::write_end(out, reason.error()),
        }
    }
}
