//! XML of a connection that is being negotiated.

use idl::xml::{Event, Limits, StreamReader};

use crate::close::Reason;
use crate::stream::Stream;

/// An XML stream under negotiation.
pub(crate) struct Incoming {
    stream: Stream,
    reader: StreamReader,
    heard: Vec<u8>,
    /// How much of that has been read.
    read: usize,
    /// Nothing of this XML stream has been read yet.
    fresh: bool,
}

impl Incoming {
    pub(crate) fn new(stream: Stream, limits: Limits) -> Self {
        Self { stream, reader: StreamReader::new(limits), heard: Vec::new(), read: 0, fresh: true }
    }

    /// A new XML stream begins with the next byte.
    pub(crate) fn restart(&mut self, limits: Limits) {
        self.reader = StreamReader::new(limits);
        self.fresh = true;
    }

    /// Other limits from the next element on.
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.reader.set_limits(limits);
    }

    /// The next header, element or end. The end of the bytes is [`Reason::Lost`]. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Event, Reason> {
        loop {
            let mut unread = self.heard.get(self.read..).unwrap_or_default();
            if self.fresh {
                // A line end behind the last element of the stream before is not the beginning of this one.
                unread = unread.trim_ascii_start();
                self.fresh = unread.is_empty();
            }
            let event = self.reader.read(&mut unread).map_err(|error| Reason::from(&error))?;
            self.read = self.heard.len() - unread.len();
            if let Some(event) = event {
                return Ok(event);
            }
            self.heard.clear();
            self.read = 0;
            self.stream.hear(&mut self.heard).await?;
        }
    }

    /// A login failed. An error if too many of this address did.
    pub(crate) fn login_failed(&mut self) -> Result<(), Reason> {
        self.stream.login_failed()
    }

    /// True if more than white space came that was not read. A line end behind `<starttls/>` is sent by some clients, and no
    /// TLS record begins with one.
    pub(crate) fn has_unread(&self) -> bool {
        !self.heard.get(self.read..).unwrap_or_default().trim_ascii_start().is_empty()
    }

    /// Writes all.
    pub(crate) async fn write(&mut self, bytes: &mut Vec<u8>) -> Result<(), Reason> {
        self.stream.say(bytes).await?;
        bytes.clear();
        Ok(())
    }

    /// The stream below. What was not read comes again from there.
    pub(crate) fn into_stream(self) -> Stream {
        self.into_parts().0
    }

    /// The stream below and the reader, unless any reader inside a usual stream reads on as this one does.
    pub(crate) fn into_parts(mut self) -> (Stream, Option<Box<StreamReader>>) {
        if self.has_unread() {
            self.stream.unread(self.heard.get(self.read..).unwrap_or_default());
        }
        let reader = (!self.reader.is_like_inside()).then(|| Box::new(self.reader));
        (self.stream, reader)
    }
}
