//! The promises of what is answered to elements, held against any bytes: what fuzzing calls.

use idl::xml::{Event, Limits, NS_CLIENT, StreamReader};
use minidom::Element;

use super::{Heard, Speaker, hear};

const LIMITS: Limits = Limits { stanza_bytes_max: 1024, depth_max: 8 };
/// What an answer may have besides what it repeats.
const ANSWER_BYTES_MAX: usize = 2048;
const SPEAKER: Speaker<'_> =
    Speaker { domain: "example.org", bare: "00000000000000000000000007@example.org", resource: "r" };

/// Reads bytes as what a client says after login. Asserts that whatever is answered is one stanza, and to the one who asked; that
/// errors and results are never answered; and that an answer is no longer than what it repeats makes it.
pub(crate) fn check(bytes: &[u8]) {
    let mut reader = StreamReader::inside(LIMITS);
    let mut rest = bytes;
    while let Ok(Some(Event::Element(element))) = reader.read(&mut rest) {
        if let Heard::Answer(answer) = hear(&element, &SPEAKER) {
            held(&element, &answer);
        }
    }
}

fn held(element: &Element, answer: &str) {
    assert!(!matches!(element.attr("type"), Some("error" | "result")), "{element:?} is answered with {answer}");
    // Each of at most as many bytes as came may be escaped in six.
    assert!(
        answer.len() <= 6 * LIMITS.stanza_bytes_max + ANSWER_BYTES_MAX,
        "{} bytes answer {element:?}",
        answer.len()
    );
    let mut reader = StreamReader::inside(Limits { stanza_bytes_max: answer.len().max(1), ..LIMITS });
    let mut rest = answer.as_bytes();
    let Ok(Some(Event::Element(read))) = reader.read(&mut rest) else { panic!("{answer} is no element") };
    assert!(rest.is_empty() && read.is(element.name(), NS_CLIENT), "{answer}");
    assert_eq!(read.attr("id"), element.attr("id"), "{answer}");
    assert_eq!(read.attr("from"), element.attr("to"), "{answer}");
    assert_eq!(read.attr("to"), Some(SPEAKER.full().as_str()), "{answer}");
}
