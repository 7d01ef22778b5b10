//! The promises of the reader, held against any bytes: what fuzzing calls.

use minidom::Element;

use super::{Event, Limits, StreamReader, write_element, write_header};
use crate::channel::Payload;

/// So low that fuzzing meets them.
const LIMITS: Limits = Limits { stanza_bytes_max: 512, depth_max: 6 };
/// What is read may be longer when it is written: characters are escaped, namespaces declared.
const LIMITS_WRITTEN: Limits = Limits { stanza_bytes_max: 64 * 1024, depth_max: 8 };

/// Reads bytes as an XML stream in several ways and asserts what the module promises: however they are cut, the events and
/// the condition of the error are the same; what was read is written so that it reads back equal; a reader between elements can be
/// replaced by another; a payload on a channel reads back from its stanza.
///
/// The first byte says how: the lowest bit whether the bytes are inside a stream already, the others how long the pieces are.
///
/// # Panics
///
/// If a promise is broken.
pub fn check(input: &[u8]) {
    let Some((&how, bytes)) = input.split_first() else { return };
    let inside = how & 1 == 1;
    let begin = || if inside { StreamReader::inside(LIMITS) } else { StreamReader::new(LIMITS) };
    let whole = read(begin(), bytes, bytes.len().max(1));
    for length in [1, usize::from(how >> 1).max(1)] {
        assert_eq!(read(begin(), bytes, length), whole, "in pieces of {length} bytes it reads the same");
    }
    if inside {
        assert_eq!(read_with_readers_lent(bytes), whole, "any reader at rest reads on");
    }
    for event in &whole.0 {
        match event {
            Event::Opened(header) => {
                let mut written = Vec::new();
                write_header(&mut written, header);
                let read = StreamReader::new(LIMITS_WRITTEN).read(&mut written.as_slice());
                assert_eq!(read.as_ref(), Ok(&Some(event.clone())), "{}", String::from_utf8_lossy(&written));
            }
            Event::Element(element) => {
                reads_back(element);
                for payload in
                    [Payload::from_message(element), Payload::from_open(element)].into_iter().flatten().flatten()
                {
                    let message = one_element(&payload.to_message());
                    assert_eq!(Payload::from_message(&message), Some(Ok(payload)));
                }
            }
            Event::Closed => {}
        }
    }
}

/// The events up to the end of the stream, and the condition of the error that ended it.
fn read(mut reader: StreamReader, bytes: &[u8], length: usize) -> (Vec<Event>, Option<&'static str>) {
    let mut events = Vec::new();
    for piece in bytes.chunks(length) {
        let mut rest = piece;
        loop {
            match reader.read(&mut rest) {
                Ok(Some(event)) => {
                    let closed = event == Event::Closed;
                    events.push(event);
                    if closed {
                        return (events, None);
                    }
                }
                Ok(None) => {
                    assert!(rest.is_empty(), "all bytes are read");
                    break;
                }
                Err(error) => return (events, Some(error.condition())),
            }
        }
    }
    (events, None)
}

/// As connections do: whenever the reader is at rest, another one that is at rest reads on.
fn read_with_readers_lent(bytes: &[u8]) -> (Vec<Event>, Option<&'static str>) {
    let mut reader = StreamReader::inside(LIMITS);
    let mut events = Vec::new();
    for byte in bytes {
        match reader.read(&mut std::slice::from_ref(byte)) {
            Ok(event) => events.extend(event),
            Err(error) => return (events, Some(error.condition())),
        }
        if events.last() == Some(&Event::Closed) {
            break;
        }
        if reader.is_like_inside() {
            reader = StreamReader::inside(LIMITS);
        }
    }
    (events, None)
}

fn reads_back(element: &Element) {
    if element.has_ns("") {
        // It would take the namespace of the stream, and nothing of that kind is ever written.
        return;
    }
    let mut written = Vec::new();
    write_element(&mut written, element);
    assert_eq!(one_element(&written), *element, "{}", String::from_utf8_lossy(&written));
}

/// The only element that these bytes are in a stream.
fn one_element(written: &[u8]) -> Element {
    let shown = || String::from_utf8_lossy(written);
    let mut reader = StreamReader::inside(LIMITS_WRITTEN);
    let mut rest = written;
    match reader.read(&mut rest) {
        Ok(Some(Event::Element(element))) if rest.is_empty() => element,
        other => panic!("{other:?} is read from {}", shown()),
    }
}
