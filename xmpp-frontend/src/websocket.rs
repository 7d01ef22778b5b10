//! XMPP over WebSocket (RFC 7395): a byte stream for the front, made of the messages that whoever serves WebSockets gives.
//!
//! The front reads and writes an XML stream as over TCP. `inward` makes it of the client's messages, `outward` cuts what the
//! front writes into messages. What a message breaks of RFC 7395 the front hears as XML that breaks the same rule, so that
//! stream errors, metrics and resumption are those of every other connection.

#[cfg(any(test, feature = "fuzzing"))]
mod check;
mod inward;
mod namespaces;
mod outward;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use idl::xml::Limits;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::check::check;
use self::inward::Fault;
use self::outward::Outward;

/// How much the translator takes of what the front writes before all messages made of it must have been taken.
const WRITE_BYTES_MAX: usize = 32 * 1024;
/// Elements that the front puts around what others wrote.
const ENVELOPES_MAX: usize = 8;
/// The close code of a stream that ended in order (RFC 6455 §7.4.1).
const CLOSE_NORMAL: u16 = 1000;

/// A WebSocket whose subprotocol is `xmpp`. Pings are answered below it.
///
/// Each method that takes a context wakes its task when it can go on.
pub trait Messages: Send + Unpin + 'static {
    /// The next message of the other side; `None` once there are no more.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Option<Message>>;

    /// Ready when [`Messages::send`] may be called. What was sent before it has left by then, up to one message.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Sends a text message.
    fn send(&mut self, text: String) -> io::Result<()>;

    /// Ready when everything that was sent has left.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Says that nothing more will be sent (RFC 6455 §7.4), after everything that was. May be called until it is ready.
    fn poll_close(&mut self, cx: &mut Context<'_>, code: u16) -> Poll<io::Result<()>>;
}

/// A message of the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Text.
    Text(String),
    /// Text that is no UTF-8.
    NotUtf8,
    /// Not text.
    Binary,
    /// Longer than whoever serves the WebSocket lets a message be. Nothing comes after it.
    TooLarge,
}

/// The byte stream of a WebSocket.
pub(crate) struct Translator<M> {
    messages: M,
    limits: Limits,
    /// What the front has not read yet.
    heard: Vec<u8>,
    read: usize,
    /// The close code for what the other side did against the protocol. Whatever it says after that is thrown away.
    fault: Option<u16>,
    outward: Outward,
    unsent: VecDeque<String>,
}

impl<M: Messages> Translator<M> {
    /// `limits` are those of stanzas after login: before it, the front's own are the narrower ones. No element that the
    /// front writes has more bytes than `written_bytes_max`.
    pub(crate) fn new(messages: M, limits: Limits, written_bytes_max: usize) -> Self {
        let written =
            Limits { stanza_bytes_max: written_bytes_max, depth_max: limits.depth_max.saturating_add(ENVELOPES_MAX) };
        Self {
            messages,
            limits,
            heard: Vec::new(),
            read: 0,
            fault: None,
            outward: Outward::new(written),
            unsent: VecDeque::new(),
        }
    }

    fn hear(&mut self, message: Message) {
        if self.fault.is_some() {
            return;
        }
        let fault = match message {
            Message::Text(text) => inward::translate(&text, self.limits, &mut self.heard).err(),
            Message::NotUtf8 => Some(Fault::NotUtf8),
            Message::Binary => Some(Fault::Binary),
            Message::TooLarge => Some(Fault::TooLarge),
        };
        if let Some(fault) = fault {
            self.fault = Some(fault.close_code());
            fault.write(self.limits, &mut self.heard);
        }
    }

    /// Ready when no message waits here.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            ready!(self.messages.poll_ready(cx))?;
            if let Some(text) = self.unsent.pop_front() {
                self.messages.send(text)?;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<M: Messages> AsyncRead for Translator<M> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let unread = this.heard.get(this.read..).unwrap_or_default();
            if !unread.is_empty() {
                let (now, later) = unread.split_at(unread.len().min(buffer.remaining()));
                buffer.put_slice(now);
                this.read += now.len();
                if later.is_empty() {
                    this.heard = Vec::new();
                    this.read = 0;
                }
                return Poll::Ready(Ok(()));
            }
            let Some(message) = ready!(this.messages.poll_receive(cx)) else { return Poll::Ready(Ok(())) };
            this.hear(message);
        }
    }
}

impl<M: Messages> AsyncWrite for Translator<M> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        let taken = bytes.get(..WRITE_BYTES_MAX).unwrap_or(bytes);
        this.outward.cut(taken, &mut this.unsent).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        // At once, as far as the other side takes it. What it doesn't take waits for the next write or flush.
        if let Poll::Ready(Err(error)) = this.poll_send(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        this.messages.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        this.messages.poll_close(cx, this.fault.unwrap_or(CLOSE_NORMAL))
    }
}
