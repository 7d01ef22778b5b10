//! From a client's messages to the XML stream that the front reads.

use idl::xml::{Event, Header, Limits, NS_STREAM, StreamReader, XmlError, write_footer, write_header};

use super::namespaces::declare;

/// Namespace of the elements that begin and end a stream (RFC 7395 §3.3.1).
pub(super) const NS_FRAMING: &str = "urn:ietf:params:xml:ns:xmpp-framing";

/// What a message is read in: a stream that declares no default namespace, and no prefix that anyone would use, because a
/// message has to declare what it needs (RFC 7395 §3.3.3).
const AROUND: &[u8] = b"<around-a-message:stream xmlns:around-a-message='http://etherx.jabber.org/streams'>";

/// What is wrong with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Not text (RFC 7395 §3.2).
    Binary,
    /// Text in another encoding.
    NotUtf8,
    /// Larger or deeper than a stanza may be.
    TooLarge,
    /// XML that XMPP forbids (RFC 6120 §11.1).
    Restricted,
    /// Not one whole element.
    NotWellFormed,
    /// More than one element, or text beside it (RFC 7395 §3.3.3).
    BadFormat,
    /// A stream's header as over TCP, instead of `<open/>` (RFC 7395 §3.4).
    NotFramed,
}

impl Fault {
    /// How the WebSocket is closed after the stream has ended with an error (RFC 6455 §7.4.1).
    pub(super) fn close_code(self) -> u16 {
        match self {
            Self::Binary => 1003,
            Self::NotUtf8 => 1007,
            Self::TooLarge => 1009,
            Self::Restricted | Self::NotWellFormed | Self::BadFormat | Self::NotFramed => 1008,
        }
    }

    /// Writes XML that breaks the same rule in a stream with those limits.
    pub(super) fn write(self, limits: Limits, out: &mut Vec<u8>) {
        match self {
            Self::TooLarge => {
                out.extend_from_slice(b"<a");
                out.resize(out.len() + limits.stanza_bytes_max, b' ');
            }
            Self::Restricted => out.extend_from_slice(b"<!---->"),
            Self::NotUtf8 | Self::NotWellFormed => out.extend_from_slice(b"<<"),
            Self::Binary | Self::BadFormat => out.extend_from_slice(b"text"),
            Self::NotFramed => out.extend_from_slice(b"<stream xmlns=''/>"),
        }
    }
}

impl From<XmlError> for Fault {
    fn from(error: XmlError) -> Self {
        match error {
            XmlError::TooLarge { .. } | XmlError::TooDeep { .. } => Self::TooLarge,
            XmlError::Restricted(_) => Self::Restricted,
            XmlError::NotWellFormed(_) | XmlError::NotAStream { .. } | XmlError::Encoding => Self::NotWellFormed,
            XmlError::StrayText => Self::BadFormat,
        }
    }
}

/// Appends what a message says to `out`: a stream's header for `<open/>`, its end for `<close/>`, and else the element, in
/// its own words. White space is nothing.
pub(super) fn translate(text: &str, limits: Limits, out: &mut Vec<u8>) -> Result<(), Fault> {
    let text = text.trim_ascii();
    let Some(element) = read(text, limits)? else { return Ok(()) };
    if element.is("open", NS_FRAMING) {
        let attribute = |name| element.attr(name).map(str::to_owned);
        let header = Header { to: attribute("to"), from: attribute("from"), id: None, version: attribute("version") };
        write_header(out, &header);
    } else if element.is("close", NS_FRAMING) {
        write_footer(out);
    } else if element.is("stream", NS_STREAM) {
        return Err(Fault::NotFramed);
    } else {
        // Where it declares no default namespace there is none, also for its children.
        out.extend_from_slice(declare(text, &[("xmlns", "")]).as_bytes());
    }
    Ok(())
}

/// The element that a message is.
pub(super) fn read(text: &str, limits: Limits) -> Result<Option<minidom::Element>, Fault> {
    if text.is_empty() {
        return Ok(None);
    }
    let mut reader =
        StreamReader::new(Limits { stanza_bytes_max: limits.stanza_bytes_max.max(AROUND.len()), ..limits });
    reader.read(&mut &*AROUND)?;
    reader.set_limits(limits);
    let mut unread = text.as_bytes();
    match reader.read(&mut unread)? {
        Some(Event::Element(element)) if unread.is_empty() => Ok(Some(element)),
        Some(Event::Element(_)) => Err(Fault::BadFormat),
        _ => Err(Fault::NotWellFormed),
    }
}
