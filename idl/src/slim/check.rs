//! The promises of the reader, held against any bytes: what fuzzing calls.

use super::{Frame, Reader, SlimError};
use crate::xml::Limits;

/// Limit of the frames, so low that fuzzing meets it.
const FRAME_BYTES_MAX: usize = 300;
const LIMITS: Limits = Limits { stanza_bytes_max: FRAME_BYTES_MAX, depth_max: 8 };

/// Reads bytes as a slim stream in several ways and asserts what the module promises: however they are cut, the frames and
/// the error are the same; each frame is the one encoding of what it says; memory stays within the limit and is given
/// back between frames; texts are read as elements without a panic. The first byte also says how long the pieces are.
///
/// # Panics
///
/// If a promise is broken.
pub fn check(input: &[u8]) {
    let whole = read(&[input]);
    let pieces: Vec<&[u8]> = input.chunks(1).collect();
    assert_eq!(read(&pieces), whole, "byte by byte it reads the same");
    let length = input.first().map_or(1, |first| usize::from(*first).max(1));
    let pieces: Vec<&[u8]> = input.chunks(length).collect();
    assert_eq!(read(&pieces), whole, "in pieces of {length} bytes it reads the same");
    for frame in &whole.0 {
        if let Frame::Stanza(text) | Frame::End(text) = frame {
            // Whether it is an element is not the reader's to say.
            let _ = super::element(text, LIMITS);
        }
    }
}

/// The frames, and the error that ended them.
pub(super) fn read<'a>(pieces: &[&'a [u8]]) -> (Vec<Frame<'a>>, Option<SlimError>) {
    let mut reader = Reader::new();
    let mut frames = Vec::new();
    for piece in pieces {
        let mut rest = *piece;
        loop {
            let before = rest;
            match reader.read(&mut rest, FRAME_BYTES_MAX) {
                Ok(Some(frame)) => {
                    assert_eq!(reader.heap_bytes(), 0, "between frames there is no memory");
                    let mut written = Vec::new();
                    frame.write(&mut written);
                    let read = before.strip_suffix(rest).unwrap_or_default();
                    let (shorter, longer) =
                        if read.len() < written.len() { (read, &*written) } else { (&*written, read) };
                    assert!(
                        longer.ends_with(shorter),
                        "{frame:?} is written as {written:x?} and was read from {read:x?}"
                    );
                    frames.push(frame);
                }
                Ok(None) => {
                    assert!(rest.is_empty(), "all bytes are read");
                    assert!(reader.heap_bytes() <= FRAME_BYTES_MAX, "{} bytes are kept", reader.heap_bytes());
                    assert!(!reader.is_between_frames() || reader.heap_bytes() == 0);
                    break;
                }
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}
