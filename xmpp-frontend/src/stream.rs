//! The bytes of one connection: a socket, what protects it, and what is under way in either direction.

use std::future::poll_fn;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead as _, AsyncWrite as _, AsyncWriteExt as _, ReadBuf};
use tokio::time::timeout;

use crate::close::Reason;
use crate::listener::Admission;
use crate::scratch::{self, Scratch};
use crate::socket::Socket;
use crate::tls::{Record, Records, Tls, TlsError};

/// How long, and how much, is read and thrown away after the last words: closing a socket with unread bytes makes the
/// kernel reset it, and the other side would lose what was written to it.
const LINGER_TIME: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 1024 * 1024;

/// A connection's bytes. At rest it holds no buffer.
pub(crate) struct Stream {
    socket: Socket,
    /// `None` if the bytes are in the clear.
    records: Option<Box<Records>>,
    underway: Option<Box<Underway>>,
    /// The other side sends nothing more.
    ended: bool,
    unflushed: bool,
    /// Some bytes went out since [`Stream::took_bytes`] was asked.
    took_bytes: bool,
    admission: Admission,
}

/// What is only there while something is.
#[derive(Default)]
struct Underway {
    /// Half a record.
    received: Vec<u8>,
    /// Data that came ahead of its time.
    ahead: Vec<u8>,
    /// What the socket has not taken yet.
    unsent: Vec<u8>,
    /// How much of that it has taken.
    sent: usize,
}

impl Underway {
    fn is_idle(&self) -> bool {
        self.received.is_empty() && self.ahead.is_empty() && self.unsent.is_empty()
    }
}

impl Stream {
    /// A connection in the clear.
    pub(crate) fn new(socket: Socket, admission: Admission) -> Self {
        Self { socket, records: None, underway: None, ended: false, unflushed: false, took_bytes: false, admission }
    }

    /// Does a TLS handshake. Returns what binds a channel to the session, where there is such a thing.
    pub(crate) async fn secure(&mut self, tls: &Tls) -> Result<Option<[u8; 32]>, Reason> {
        let agreed = tls.accept(&mut self.socket).await.map_err(|error| {
            tracing::debug!(%error, "a TLS handshake failed");
            Reason::TlsFailed
        })?;
        let mut records = Box::new(agreed.records);
        let underway = self.underway.get_or_insert_default();
        underway.ahead = agreed.opened;
        let mut sealed = agreed.sealed;
        let (mut begin, mut answer) = (0, Vec::new());
        // Whole records that came with the handshake's last message: nothing more may come that would have them opened.
        while let Some(rest) = sealed.get_mut(begin..) {
            match records.open(rest, &mut answer).map_err(|_| Reason::TlsFailed)? {
                Record::Partial => break,
                Record::Data(data, whole) => {
                    underway.ahead.extend_from_slice(rest.get(data).unwrap_or_default());
                    begin += whole;
                }
                Record::Control(whole) => begin += whole,
                Record::Closed => {
                    self.ended = true;
                    break;
                }
            }
        }
        underway.received = sealed.split_off(begin.min(sealed.len()));
        underway.unsent.append(&mut answer);
        self.records = Some(records);
        Ok(agreed.exporter)
    }

    /// True if it carries other forms than XML.
    pub(crate) fn may_be_slim(&self) -> bool {
        !matches!(self.socket, Socket::Xml(_))
    }

    /// The connection is logged in: its handshake is over.
    pub(crate) fn logged_in(&mut self) {
        self.admission.logged_in();
    }

    /// A login failed. An error if too many of this address did.
    pub(crate) fn login_failed(&mut self) -> Result<(), Reason> {
        self.admission.login_failed()
    }

    /// Has data read again before what is still to come.
    pub(crate) fn unread(&mut self, data: &[u8]) {
        if !data.is_empty() {
            let ahead = &mut self.underway.get_or_insert_default().ahead;
            ahead.splice(..0, data.iter().copied());
        }
    }

    /// Reads what there is and appends it to `scratch.heard`. At the end of the bytes that is [`Reason::Lost`].
    pub(crate) fn poll_hear(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<Result<(), Reason>> {
        if let Some(underway) = self.underway.as_mut().filter(|underway| !underway.ahead.is_empty()) {
            scratch.heard.append(&mut underway.ahead);
            self.rest();
            return Poll::Ready(Ok(()));
        }
        while scratch.heard.is_empty() {
            if self.ended {
                return Poll::Ready(Err(Reason::Lost));
            }
            ready!(self.poll_read(cx, scratch))?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<Result<(), Reason>> {
        let half = self.underway.as_ref().map_or(0, |underway| underway.received.len());
        let room = scratch.room();
        let mut buffer = ReadBuf::new(room);
        if let Some(underway) = &self.underway {
            buffer.put_slice(&underway.received);
        }
        ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buffer)).map_err(|_| Reason::Lost)?;
        let whole = buffer.filled().len();
        if whole == half {
            self.ended = true;
            return Poll::Ready(Ok(()));
        }
        if let Some(underway) = &mut self.underway {
            underway.received = Vec::new();
        }
        let Scratch { received, heard, .. } = scratch;
        let received = received.get_mut(..whole).unwrap_or_default();
        Poll::Ready(match &mut self.records {
            None => {
                heard.extend_from_slice(received);
                Ok(())
            }
            Some(_) => self.open(received, heard).map_err(|error| self.tell(cx, error)),
        })
    }

    /// Opens whole records and keeps the half one behind them.
    fn open(&mut self, received: &mut [u8], heard: &mut Vec<u8>) -> Result<(), TlsError> {
        let Some(records) = &mut self.records else { return Ok(()) };
        let (mut begin, mut answer) = (0, Vec::new());
        while let Some(rest) = received.get_mut(begin..).filter(|rest| !rest.is_empty()) {
            match records.open(rest, &mut answer)? {
                Record::Partial => {
                    self.underway.get_or_insert_default().received = rest.to_vec();
                    break;
                }
                Record::Data(data, whole) => {
                    heard.extend_from_slice(rest.get(data).unwrap_or_default());
                    begin += whole;
                }
                Record::Control(whole) => begin += whole,
                Record::Closed => {
                    self.ended = true;
                    break;
                }
            }
        }
        if !answer.is_empty() {
            // Behind what was sealed before it.
            self.underway.get_or_insert_default().unsent.append(&mut answer);
        }
        self.rest();
        Ok(())
    }

    /// Tells the other side of an error, if it takes that at once; the connection is lost either way.
    fn tell(&mut self, cx: &mut Context<'_>, error: TlsError) -> Reason {
        tracing::debug!(%error, "a TLS session failed");
        let mut alert = Vec::new();
        if self.is_all_said()
            && self.records.as_mut().is_some_and(|records| records.seal_error(error, &mut alert).is_ok())
        {
            let _ = Pin::new(&mut self.socket).poll_write(cx, &alert);
        }
        self.ended = true;
        Reason::Lost
    }

    /// True if everything that was said has been written.
    pub(crate) fn is_all_said(&self) -> bool {
        !self.unflushed && self.underway.as_ref().is_none_or(|underway| underway.unsent.is_empty())
    }

    /// True if the socket took bytes since this was asked last.
    pub(crate) fn took_bytes(&mut self) -> bool {
        mem::take(&mut self.took_bytes)
    }

    /// Says words behind those that are still unsent. What the socket does not take is kept, so words should be given only
    /// when [`Stream::is_all_said`]. Ready once all is written. `sealed` is a buffer to work in.
    pub(crate) fn poll_say(
        &mut self,
        cx: &mut Context<'_>,
        words: &[u8],
        sealed: &mut Vec<u8>,
    ) -> Poll<Result<(), Reason>> {
        if !words.is_empty() {
            sealed.clear();
            let bytes = match &mut self.records {
                None => words,
                Some(records) => {
                    records.seal(words, sealed).map_err(|_| Reason::Lost)?;
                    sealed.as_slice()
                }
            };
            self.poll_send(cx, bytes)?;
        }
        self.poll_all_said(cx)
    }

    /// Writes at once what the socket takes and keeps the rest.
    fn poll_send(&mut self, cx: &mut Context<'_>, mut bytes: &[u8]) -> Result<(), Reason> {
        if self.is_all_said() {
            while let Poll::Ready(written) = Pin::new(&mut self.socket).poll_write(cx, bytes) {
                let count = written.map_err(|_| Reason::Lost)?;
                self.took_bytes = true;
                self.unflushed = !matches!(self.socket, Socket::Tcp(_));
                bytes = bytes.get(count..).unwrap_or_default();
                if bytes.is_empty() {
                    return Ok(());
                }
                if count == 0 {
                    return Err(Reason::Lost);
                }
            }
        }
        self.underway.get_or_insert_default().unsent.extend_from_slice(bytes);
        Ok(())
    }

    fn poll_all_said(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Reason>> {
        if let Some(underway) = self.underway.as_mut().filter(|underway| !underway.unsent.is_empty()) {
            while let Some(rest) = underway.unsent.get(underway.sent..).filter(|rest| !rest.is_empty()) {
                let count = ready!(Pin::new(&mut self.socket).poll_write(cx, rest)).map_err(|_| Reason::Lost)?;
                if count == 0 {
                    return Poll::Ready(Err(Reason::Lost));
                }
                underway.sent += count;
                self.took_bytes = true;
                self.unflushed = !matches!(self.socket, Socket::Tcp(_));
            }
            underway.unsent = Vec::new();
            underway.sent = 0;
            self.rest();
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.socket).poll_flush(cx)).map_err(|_| Reason::Lost)?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn rest(&mut self) {
        if self.underway.as_ref().is_some_and(|underway| underway.is_idle()) {
            self.underway = None;
        }
    }

    /// Waits for data and appends it to `heard`. Dropping the future loses nothing.
    pub(crate) async fn hear(&mut self, heard: &mut Vec<u8>) -> Result<(), Reason> {
        poll_fn(|cx| {
            scratch::with(|scratch| {
                ready!(self.poll_hear(cx, scratch))?;
                heard.append(&mut scratch.heard);
                Poll::Ready(Ok(()))
            })
        })
        .await
    }

    /// Says words, and waits until all is written.
    pub(crate) async fn say(&mut self, words: &[u8]) -> Result<(), Reason> {
        let mut words = Some(words);
        poll_fn(|cx| scratch::with(|scratch| self.poll_say(cx, words.take().unwrap_or_default(), &mut scratch.sealed)))
            .await
    }

    /// Says the last words within that time, closes, and waits for the other side to close.
    pub(crate) async fn close(mut self, words: &[u8], time_max: Duration) {
        let said = timeout(time_max, async {
            self.say(words).await?;
            let mut goodbye = Vec::new();
            if let Some(records) = &mut self.records {
                records.seal_close(&mut goodbye).map_err(|_| Reason::Lost)?;
            }
            self.socket.write_all(&goodbye).await.map_err(|_| Reason::Lost)?;
            self.socket.shutdown().await.map_err(|_| Reason::Lost)
        });
        match said.await {
            Ok(Ok(())) => _ = timeout(LINGER_TIME, self.linger()).await,
            Ok(Err(_)) => {}
            Err(_) => self.abort(),
        }
    }

    /// Closes a connection that takes no bytes: what it has not taken is dropped.
    pub(crate) fn abort(self) {
        self.socket.forget_unsent();
    }

    /// Reads and throws away.
    async fn linger(mut self) -> Result<(), Reason> {
        let mut left = LINGER_BYTES_MAX;
        let mut heard = Vec::new();
        while left > 0 {
            self.hear(&mut heard).await?;
            left = left.saturating_sub(heard.len());
            heard.clear();
        }
        Ok(())
    }
}
