//! Buffers and parsers that belong to a thread and are lent to a connection while its data is handled. A connection at rest
//! has none of its own.

use std::cell::Cell;

use idl::xml::StreamReader;

use crate::tls::RECORD_MAX;

/// Read at once.
const READ_BYTES: usize = 2 * RECORD_MAX;
/// Larger buffers are given back after use.
const KEPT_BYTES: usize = 256 * 1024;
/// Parsers that a thread keeps; more are in use at one time only while elements are half read.
const READERS_MAX: usize = 8;

/// What a thread lends.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Bytes as they came from a socket, at least [`READ_BYTES`].
    pub(crate) received: Vec<u8>,
    /// What the other side said.
    pub(crate) heard: Vec<u8>,
    /// What is to be said.
    pub(crate) said: Vec<u8>,
    /// The same as it goes into a socket.
    pub(crate) sealed: Vec<u8>,
    readers: Vec<StreamReader>,
}

thread_local! {
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

/// Borrows the thread's scratch. Who borrows it again meanwhile gets another.
pub(crate) fn with<T>(act: impl FnOnce(&mut Scratch) -> T) -> T {
    let mut scratch = SCRATCH.take().unwrap_or_default();
    let done = act(&mut scratch);
    scratch.tidy();
    SCRATCH.set(Some(scratch));
    done
}

impl Scratch {
    /// Room for what is received, all of which may be written to.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        if self.received.len() < READ_BYTES {
            self.received.resize(READ_BYTES, 0);
        }
        &mut self.received
    }

    /// A reader that is inside a stream with the usual header, between its elements.
    pub(crate) fn take_reader(&mut self) -> Option<StreamReader> {
        self.readers.pop()
    }

    /// Gives back a reader that is where [`Scratch::take_reader`] found it.
    pub(crate) fn keep_reader(&mut self, reader: StreamReader) {
        if self.readers.len() < READERS_MAX {
            self.readers.push(reader);
        }
    }

    fn tidy(&mut self) {
        for buffer in [&mut self.heard, &mut self.said, &mut self.sealed] {
            buffer.clear();
            if buffer.capacity() > KEPT_BYTES {
                *buffer = Vec::new();
            }
        }
    }
}
