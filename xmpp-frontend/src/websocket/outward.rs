//! From the XML stream that the front writes to messages.

use std::collections::VecDeque;

use idl::xml::{Event, Header, Limits, NS_CLIENT, NS_STREAM, StreamReader, XmlError, escape_attribute};

use super::inward::NS_FRAMING;
use super::namespaces::declare;
use crate::sasl;

/// Cuts the front's XML stream into messages.
pub(super) struct Outward {
    reader: StreamReader,
    limits: Limits,
    /// What came since the last cut.
    text: Vec<u8>,
}

impl Outward {
    pub(super) fn new(limits: Limits) -> Self {
        Self { reader: StreamReader::new(limits), limits, text: Vec::new() }
    }

    /// Takes more of the stream and appends the messages that are whole with it.
    pub(super) fn cut(&mut self, mut bytes: &[u8], messages: &mut VecDeque<String>) -> Result<(), XmlError> {
        while !bytes.is_empty() {
            let before = bytes;
            let event = self.reader.read(&mut bytes)?;
            self.text.extend_from_slice(before.get(..before.len() - bytes.len()).unwrap_or_default());
            let message = match event {
                None => continue,
                Some(Event::Opened(header)) => open(&header),
                Some(Event::Closed) => format!("<close xmlns='{NS_FRAMING}'/>"),
                Some(Event::Element(element)) => {
                    if element.is("success", sasl::NS) {
                        // Another stream begins behind it (RFC 6120 §6.4.6), which is all that the reader is told of it.
                        self.reader = StreamReader::new(self.limits);
                    }
                    alone(&String::from_utf8_lossy(&self.text))
                }
            };
            self.text = Vec::new();
            messages.push_back(message);
        }
        Ok(())
    }
}

fn open(header: &Header) -> String {
    let Header { to, from, id, version } = header;
    let attributes = [("to", to), ("from", from), ("id", id), ("version", version)];
    let attributes =
        attributes.into_iter().filter_map(|(name, value)| Some((name, escape_attribute(value.as_deref()?))));
    let attributes: Vec<_> = attributes.map(|(name, value)| format!(" {name}='{value}'")).collect();
    format!("<open xmlns='{NS_FRAMING}'{}/>", attributes.concat())
}

/// An element that was written inside a stream, so that it means the same outside. The prefix stays as it is: many a client
/// looks for `stream:features` by that name.
fn alone(element: &str) -> String {
    let declarations = [("xmlns", NS_CLIENT), ("xmlns:stream", NS_STREAM)];
    let needed = if element.contains("stream:") { declarations.as_slice() } else { &declarations[..1] };
    declare(element.trim_ascii_start(), needed)
}
