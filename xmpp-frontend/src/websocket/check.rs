//! The promises of WebSocket's two directions, held against any bytes: what fuzzing calls.

use std::collections::VecDeque;

use idl::xml::{Event, Header, Limits, NS_STREAM, StreamReader, XmlError, write_element, write_header};
use minidom::Element;

use super::inward::{Fault, NS_FRAMING, read, translate};
use super::outward::Outward;

const LIMITS: Limits = Limits { stanza_bytes_max: 512, depth_max: 6 };
/// What is translated may be longer: it declares namespaces, and characters are escaped.
const LIMITS_WRITTEN: Limits = Limits { stanza_bytes_max: 64 * 1024, depth_max: 8 };

/// Reads bytes as a message of a client. Asserts that the front hears in its stream just what the message says, or an error
/// of the same kind, and that an element which the front writes means the same as a message of its own.
pub(crate) fn check(bytes: &[u8]) {
    let Ok(message) = std::str::from_utf8(bytes) else { return };
    let mut out = Vec::new();
    match translate(message, LIMITS, &mut out) {
        Err(fault) => {
            assert!(out.is_empty(), "nothing is said before the fault");
            fault.write(LIMITS, &mut out);
            match StreamReader::inside(LIMITS).read(&mut out.as_slice()) {
                Err(error) => assert!(is_kin(fault, &error), "{fault:?} is heard as {error:?}"),
                // An element that is of no stream: the front ends the stream for its namespace.
                Ok(Some(Event::Element(element))) => assert!(fault == Fault::NotFramed && element.has_ns("")),
                other => panic!("{fault:?} is heard as {other:?}"),
            }
        }
        Ok(()) => match read(message.trim_ascii(), LIMITS) {
            Ok(Some(element)) => means_the_same(&element, &out),
            nothing => assert!(nothing == Ok(None) && out.is_empty(), "{nothing:?} is translated"),
        },
    }
}

fn means_the_same(element: &Element, translated: &[u8]) {
    let shown = String::from_utf8_lossy(translated);
    let opens = element.is("open", NS_FRAMING);
    let mut reader = if opens { StreamReader::new(LIMITS_WRITTEN) } else { StreamReader::inside(LIMITS_WRITTEN) };
    let mut rest = translated;
    let heard = reader.read(&mut rest);
    assert!(rest.is_empty(), "{shown}");
    match heard {
        Ok(Some(Event::Opened(header))) if opens => {
            let Header { to, from, id, version } = header;
            let said = ["to", "from", "version"].map(|name| element.attr(name));
            assert_eq!([to.as_deref(), from.as_deref(), version.as_deref()], said, "{shown}");
            assert_eq!(id, None, "{shown}");
        }
        Ok(Some(Event::Closed)) => assert!(element.is("close", NS_FRAMING), "{shown}"),
        Ok(Some(Event::Element(heard))) => {
            assert_eq!(heard, *element, "{shown}");
            // What the front never writes: elements of the stream itself, and those without a namespace.
            if !heard.has_ns(NS_STREAM) && !heard.has_ns("") && !heard.is("success", crate::sasl::NS) {
                stands_alone(&heard);
            }
        }
        other => panic!("{other:?} is heard of {shown}"),
    }
}

/// The element, as the front would write it to another client, is a message that means the same.
fn stands_alone(element: &Element) {
    let mut stream = Vec::new();
    write_header(&mut stream, &Header::default());
    write_element(&mut stream, element);
    let (mut outward, mut messages) = (Outward::new(LIMITS_WRITTEN), VecDeque::new());
    outward.cut(&stream, &mut messages).expect("the front writes a stream");
    assert_eq!(messages.len(), 2, "{messages:?}");
    let read = messages.pop_back().map(|message| read(&message, LIMITS_WRITTEN));
    assert_eq!(read, Some(Ok(Some(element.clone()))));
}

fn is_kin(fault: Fault, error: &XmlError) -> bool {
    let condition = match fault {
        Fault::TooLarge => "policy-violation",
        Fault::Restricted => "restricted-xml",
        Fault::NotUtf8 | Fault::NotWellFormed => "not-well-formed",
        Fault::Binary | Fault::BadFormat => "bad-format",
        Fault::NotFramed => return false,
    };
    error.condition() == condition
}
