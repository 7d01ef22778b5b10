//! Bytes of one connection: XML in, frames out, and how a stream is closed so that the other side hears why.

use std::io;
use std::time::Duration;

use idl::xml::{Event, Limits, StreamReader};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf, split};
use tokio::time::{Instant, timeout, timeout_at};

use crate::close::Reason;

/// Read at once.
const READ_BYTES: usize = 4096;
/// How long, and how much, is read and thrown away after the last words: closing a socket with unread bytes makes the
/// kernel reset it, and the other side would lose what was written to it.
const LINGER_TIME: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 1024 * 1024;

/// The reading side of an XML stream.
pub(crate) struct Incoming<R> {
    from: R,
    reader: StreamReader,
    buffer: Vec<u8>,
    /// How much of the buffer has been read.
    read: usize,
    /// Nothing of this stream has been read yet.
    fresh: bool,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    pub(crate) fn new(from: R, limits: Limits) -> Self {
        Self { from, reader: StreamReader::new(limits), buffer: Vec::new(), read: 0, fresh: true }
    }

    /// A new stream begins with the next byte.
    pub(crate) fn restart(&mut self, limits: Limits) {
        self.reader = StreamReader::new(limits);
        self.fresh = true;
    }

    /// The next header, element or end. The end of the bytes is [`Reason::Lost`]. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Event, Reason> {
        loop {
            let mut unread = self.buffer.get(self.read..).unwrap_or_default();
            if self.fresh {
                // A line end behind the last element of the stream before is not the beginning of this one.
                unread = unread.trim_ascii_start();
                self.fresh = unread.is_empty();
            }
            let event = self.reader.read(&mut unread).map_err(|error| Reason::from(&error))?;
            self.read = self.buffer.len() - unread.len();
            if let Some(event) = event {
                return Ok(event);
            }
            self.buffer.clear();
            self.read = 0;
            self.buffer.reserve(READ_BYTES);
            match self.from.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return Err(Reason::Lost),
                Ok(_) => {}
            }
        }
    }

    /// What is below, and whether bytes were left unread that came before.
    pub(crate) fn into_inner(self) -> (R, bool) {
        (self.from, self.read < self.buffer.len())
    }

    /// Reads and throws away, for a bounded time, until the other side closes too.
    async fn linger(&mut self) {
        let until = Instant::now() + LINGER_TIME;
        let mut left = LINGER_BYTES_MAX;
        while left > 0 {
            self.buffer.clear();
            self.buffer.reserve(READ_BYTES);
            match timeout_at(until, self.from.read_buf(&mut self.buffer)).await {
                Ok(Ok(count)) if count > 0 => left = left.saturating_sub(count),
                _ => return,
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Incoming<S> {
    /// Reading and writing apart, so that neither waits for the other.
    pub(crate) fn split(self, write_time_max: Duration) -> (Incoming<ReadHalf<S>>, Outgoing<WriteHalf<S>>) {
        let Self { from, reader, buffer, read, fresh } = self;
        let (from, to) = split(from);
        (Incoming { from, reader, buffer, read, fresh }, Outgoing::new(to, write_time_max))
    }

    /// Writes all, during negotiation, where nothing else is going on.
    pub(crate) async fn write(&mut self, bytes: &mut Vec<u8>) -> Result<(), Reason> {
        if !bytes.is_empty() {
            let written = async {
                self.from.write_all(bytes).await?;
                self.from.flush().await
            };
            written.await.map_err(|_| Reason::Lost)?;
            bytes.clear();
        }
        Ok(())
    }

    /// Writes the last words and closes, within that time.
    pub(crate) async fn say_last(&mut self, words: &[u8], time_max: Duration) {
        let said = timeout(time_max, async {
            self.from.write_all(words).await?;
            self.from.shutdown().await
        });
        if matches!(said.await, Ok(Ok(()))) {
            self.linger().await;
        }
    }
}

/// The writing side: one write at a time, which can be interrupted and goes on where it was.
pub(crate) struct Outgoing<W> {
    to: W,
    buffer: Vec<u8>,
    written: usize,
    flushed: bool,
    write_time_max: Duration,
    /// When the write under way has made no progress for too long.
    stalled_at: Option<Instant>,
}

impl<W: AsyncWrite + Unpin> Outgoing<W> {
    fn new(to: W, write_time_max: Duration) -> Self {
        Self { to, buffer: Vec::new(), written: 0, flushed: true, write_time_max, stalled_at: None }
    }

    /// True if everything has been written.
    pub(crate) fn is_idle(&self) -> bool {
        self.written == self.buffer.len() && self.flushed
    }

    /// Where the next bytes to be written are put.
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Writes until all is written. Dropping the future loses nothing: the next one goes on.
    pub(crate) async fn drive(&mut self) -> Result<(), Reason> {
        while self.written < self.buffer.len() {
            self.flushed = false;
            let stalled_at = *self.stalled_at.get_or_insert_with(|| Instant::now() + self.write_time_max);
            let rest = self.buffer.get(self.written..).unwrap_or_default();
            let count = in_time(stalled_at, self.to.write(rest)).await?;
            if count == 0 {
                return Err(Reason::Lost);
            }
            self.written += count;
            self.stalled_at = None;
        }
        if !self.flushed {
            let stalled_at = *self.stalled_at.get_or_insert_with(|| Instant::now() + self.write_time_max);
            in_time(stalled_at, self.to.flush()).await?;
            self.flushed = true;
            self.stalled_at = None;
        }
        self.written = 0;
        self.buffer.clear();
        // A large write must not make an idle connection large.
        self.buffer.shrink_to(READ_BYTES);
        Ok(())
    }

    /// Writes what is in the buffer, closes, and waits for the other side to close, all within bounds.
    pub(crate) async fn close<R: AsyncRead + Unpin>(&mut self, incoming: &mut Incoming<R>) {
        let closed = timeout(self.write_time_max, async {
            self.drive().await?;
            self.to.shutdown().await.map_err(|_| Reason::Lost)
        });
        if matches!(closed.await, Ok(Ok(()))) {
            incoming.linger().await;
        }
    }
}

async fn in_time<T>(until: Instant, io: impl Future<Output = io::Result<T>>) -> Result<T, Reason> {
    match timeout_at(until, io).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(_)) => Err(Reason::Lost),
        Err(_) => Err(Reason::WriteTime),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { stanza_bytes_max: 1024, depth_max: 4 };

    #[tokio::test(start_paused = true)]
    async fn a_write_that_makes_no_progress_times_out_even_if_it_is_interrupted() {
        let (ours, _theirs) = tokio::io::duplex(16);
        let (_incoming, mut outgoing) = Incoming::new(ours, LIMITS).split(Duration::from_secs(30));
        outgoing.buffer().extend_from_slice(&[b'x'; 100]);
        for _ in 0..29 {
            assert!(timeout(Duration::from_secs(1), outgoing.drive()).await.is_err());
        }
        assert_eq!(timeout(Duration::from_secs(2), outgoing.drive()).await, Ok(Err(Reason::WriteTime)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_interrupted_write_goes_on_where_it_was() {
        let (ours, mut theirs) = tokio::io::duplex(16);
        let (_incoming, mut outgoing) = Incoming::new(ours, LIMITS).split(Duration::from_secs(30));
        let text: Vec<u8> = (0..100).collect();
        outgoing.buffer().extend_from_slice(&text);
        let mut got = Vec::new();
        while got.len() < text.len() {
            let _ = timeout(Duration::from_millis(1), outgoing.drive()).await;
            let mut piece = [0; 7];
            let count = theirs.read(&mut piece).await.expect("bytes");
            got.extend_from_slice(&piece[..count]);
        }
        assert_eq!(got, text);
    }
}
