//! A bound resource: what is known of one connection while it lives, and, with XEP-0198, while its stream is lost and may
//! still be resumed.
//!
//! A line has one owner, the task that serves its stream. Others put frames into it and may ask it to close.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use idl::ids::{AccountId, Epoch, Partition, Shard};
use tokio::sync::Notify;

use crate::channels::Work;
use crate::close::Reason;
use crate::lock;
use crate::middle::Place;
use crate::outbox::{AckTooHigh, Frame, Outbox};
use crate::sasl::Login;

/// One bound resource.
pub(crate) struct Line {
    pub(crate) place: Place,
    /// The part of the middle tier that works for the account.
    pub(crate) partition: Partition,
    pub(crate) resource: Box<str>,
    state: Mutex<State>,
    pub(crate) work: Mutex<Work>,
}

struct State {
    outbox: Outbox,
    issued_at_ms: u64,
    closing: Option<Reason>,
    /// Grows with each stream that serves this line; an older stream lets go.
    attachment: u64,
    wake: Arc<Notify>,
    resume_id: Option<Arc<str>>,
    received: Received,
}

/// Stanzas from the client, as XEP-0198 counts them.
#[derive(Default)]
struct Received {
    counting: bool,
    count: u32,
    /// Those that are not handled yet: what each is known by, and its number.
    open: VecDeque<(Ticket, u32)>,
    tickets: u64,
}

/// What an unhandled stanza is known by. A resumed stream counts again from what was handled, so a number may come twice;
/// a ticket does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// A stream's hold on its line.
#[derive(Clone)]
pub(crate) struct Attachment {
    number: u64,
    pub(crate) wake: Arc<Notify>,
}

/// What a stream has to do for its line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Nothing: wait.
    Nothing,
    /// Write the bytes.
    Write,
    /// All is written: end the stream.
    Close(Reason),
}

/// Why a frame was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The line is closing.
    Closing,
    /// The outbox is full; the line is closing from now on.
    Full,
}

impl Line {
    pub(crate) fn new(
        login: Login,
        epoch: Epoch,
        resource: &str,
        outbox_bytes_max: usize,
        work: Work,
    ) -> (Arc<Self>, Attachment) {
        let wake = Arc::new(Notify::new());
        let state = State {
            outbox: Outbox::new(outbox_bytes_max),
            issued_at_ms: login.issued_at_ms,
            closing: None,
            attachment: 0,
            wake: Arc::clone(&wake),
            resume_id: None,
            received: Received::default(),
        };
        let line = Self {
            place: Place { account: login.account, epoch },
            partition: Shard::of_account(login.account).into(),
            resource: resource.into(),
            state: Mutex::new(state),
            work: Mutex::new(work),
        };
        (Arc::new(line), Attachment { number: 0, wake })
    }

    pub(crate) fn account(&self) -> AccountId {
        self.place.account
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.place.epoch
    }

    /// The login that this line lives by.
    pub(crate) fn login(&self) -> Login {
        Login { account: self.place.account, issued_at_ms: lock(&self.state).issued_at_ms }
    }

    /// Puts a frame into the outbox. A full outbox closes the line.
    pub(crate) fn push(&self, frame: Frame) -> Result<(), Refused> {
        let mut state = lock(&self.state);
        if state.closing.is_some() {
            return Err(Refused::Closing);
        }
        let pushed = state.outbox.push(frame).map_err(|_| Refused::Full);
        if pushed.is_err() {
            state.closing = Some(Reason::OutboxFull);
        }
        state.wake.notify_one();
        pushed
    }

    /// Asks the owner to end the line, after what waits has been written. The first reason stays.
    pub(crate) fn close(&self, reason: Reason) {
        let mut state = lock(&self.state);
        state.closing.get_or_insert(reason);
        state.wake.notify_one();
    }

    pub(crate) fn closing(&self) -> Option<Reason> {
        lock(&self.state).closing
    }

    /// Ends the line if no newer stream has taken it over, and returns for which reason: the first one stays. It can't be
    /// resumed from then on.
    pub(crate) fn give_up(&self, attachment: &Attachment, reason: Reason) -> Option<Reason> {
        let mut state = lock(&self.state);
        (state.attachment == attachment.number).then(|| *state.closing.get_or_insert(reason))
    }

    /// True while no newer stream has taken the line over.
    pub(crate) fn is_held_by(&self, attachment: &Attachment) -> bool {
        lock(&self.state).attachment == attachment.number
    }

    /// What is due; bytes to be written are appended to `out`.
    pub(crate) fn due(&self, attachment: &Attachment, out: &mut Vec<u8>) -> Due {
        let mut state = lock(&self.state);
        if state.attachment != attachment.number {
            return Due::Close(Reason::Resumed);
        }
        if !state.outbox.is_empty() {
            state.outbox.take(out);
            return Due::Write;
        }
        state.closing.map_or(Due::Nothing, Due::Close)
    }

    /// Turns stream management on. Returns false if it is on already.
    pub(crate) fn enable(&self, enabled: &str, resume_id: Option<Arc<str>>) -> bool {
        let mut state = lock(&self.state);
        if state.received.counting {
            return false;
        }
        state.received.counting = true;
        state.resume_id = resume_id;
        if state.outbox.push(Frame::Enabled(enabled.as_bytes().into())).is_err() {
            state.closing.get_or_insert(Reason::OutboxFull);
        }
        state.wake.notify_one();
        true
    }

    /// By what a lost stream can be resumed; `None` if it can't.
    pub(crate) fn resume_id(&self) -> Option<Arc<str>> {
        lock(&self.state).resume_id.clone()
    }

    /// The client has handled so many stanzas.
    pub(crate) fn acknowledge(&self, handled: u32) -> Result<(), AckTooHigh> {
        let ask = lock(&self.state).outbox.acknowledge(handled)?;
        if ask {
            let _ = self.push(Frame::other(format!("<r xmlns='{}'/>", crate::negotiate::NS_SM)));
        }
        Ok(())
    }

    /// Counts a stanza from the client. One that is `open` counts as handled only after [`Line::handled_one`] with the
    /// returned ticket; `None` while nothing is counted.
    pub(crate) fn received(&self, open: bool) -> Option<Ticket> {
        let received = &mut lock(&self.state).received;
        if !received.counting {
            return None;
        }
        received.count = received.count.wrapping_add(1);
        received.tickets += 1;
        let ticket = Ticket(received.tickets);
        if open {
            received.open.push_back((ticket, received.count));
        }
        Some(ticket)
    }

    /// A stanza that was open is handled. One of before the stream was resumed counts no more: it was sent again.
    pub(crate) fn handled_one(&self, ticket: Ticket) {
        let received = &mut lock(&self.state).received;
        if let Some(position) = received.open.iter().position(|(open, _)| *open == ticket) {
            received.open.remove(position);
        }
    }

    /// How many stanzas from the client are handled: the crash of this process loses none of them.
    pub(crate) fn handled(&self) -> u32 {
        lock(&self.state).received.handled()
    }

    /// A new stream takes the line over. The older one, if it still lives, ends.
    pub(crate) fn resume(&self, login: Login, handled: u32) -> Result<Attachment, ResumeError> {
        let mut state = lock(&self.state);
        let Some(id) = state.resume_id.clone().filter(|_| login.account == self.place.account) else {
            return Err(ResumeError::NotFound);
        };
        if state.closing.is_some() {
            return Err(ResumeError::NotFound);
        }
        // What the client is told not to be handled it sends again.
        let count = state.received.handled();
        let resumed = format!("<resumed xmlns='{}' h='{count}' previd='{id}'/>", crate::negotiate::NS_SM);
        state.outbox.resume(handled, resumed.as_bytes()).map_err(|AckTooHigh| ResumeError::AckTooHigh)?;
        state.received.count = count;
        state.received.open.clear();
        state.issued_at_ms = login.issued_at_ms;
        state.attachment += 1;
        let older = std::mem::replace(&mut state.wake, Arc::new(Notify::new()));
        older.notify_one();
        state.wake.notify_one();
        Ok(Attachment { number: state.attachment, wake: Arc::clone(&state.wake) })
    }
}

/// Why a stream was not resumed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ResumeError {
    /// There is no such stream of this account any more.
    NotFound,
    /// The client acknowledged more than was sent.
    AckTooHigh,
}

impl Received {
    fn handled(&self) -> u32 {
        self.open.front().map_or(self.count, |(_, first)| first.wrapping_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGIN: Login = Login { account: AccountId(1), issued_at_ms: 1 };

    fn line() -> (Arc<Line>, Attachment) {
        Line::new(LOGIN, Epoch(1), "r", 1024, Work::default())
    }

    fn due(line: &Line, attachment: &Attachment) -> (Due, String) {
        let mut out = Vec::new();
        let due = line.due(attachment, &mut out);
        (due, String::from_utf8(out).expect("text"))
    }

    #[test]
    fn a_full_outbox_closes_the_line_after_what_is_in_it_has_been_written() {
        let (line, attachment) = line();
        line.push(Frame::stanza("a")).expect("room");
        assert_eq!(line.push(Frame::stanza("x".repeat(1024))), Err(Refused::Full));
        assert_eq!(line.push(Frame::stanza("b")), Err(Refused::Closing));
        assert_eq!(due(&line, &attachment), (Due::Write, "a".to_owned()));
        assert_eq!(due(&line, &attachment).0, Due::Close(Reason::OutboxFull));
    }

    #[test]
    fn a_stanza_counts_as_handled_when_all_before_it_are() {
        let (line, _) = line();
        assert_eq!(line.received(true), None);
        assert!(line.enable("+", None));
        assert!(!line.enable("+", None));
        let [first, second, _] = [true, true, false].map(|open| line.received(open).expect("it is counted"));
        assert_eq!(line.handled(), 0);
        line.handled_one(second);
        assert_eq!(line.handled(), 0);
        line.handled_one(first);
        assert_eq!(line.handled(), 3);
    }

    #[test]
    fn what_is_sent_again_after_a_resumption_is_counted_once() {
        let (line, _) = line();
        line.enable("+", Some("id".into()));
        let two = || [true, true].map(|open| line.received(open).expect("it is counted"));
        let before = two();
        line.resume(LOGIN, 0).expect("a stream to resume");
        let again = two();
        // The older stream's stanzas are worked on all the same.
        let mut handled = Vec::new();
        for ticket in before.into_iter().chain(again) {
            line.handled_one(ticket);
            handled.push(line.handled());
        }
        assert_eq!(handled, [0, 0, 1, 2], "it never goes back");
    }

    #[test]
    fn a_resumed_line_belongs_to_the_newer_stream() {
        let (line, older) = line();
        assert_eq!(line.resume(LOGIN, 0).err(), Some(ResumeError::NotFound), "nothing was enabled");
        line.enable("+", Some("id".into()));
        line.push(Frame::stanza("a")).expect("room");
        assert_eq!(due(&line, &older).0, Due::Write);
        line.received(true);
        let stranger = Login { account: AccountId(2), issued_at_ms: 1 };
        assert_eq!(line.resume(stranger, 0).err(), Some(ResumeError::NotFound));
        assert_eq!(line.resume(LOGIN, 7).err(), Some(ResumeError::AckTooHigh));
        let newer = line.resume(LOGIN, 0).expect("a stream to resume");
        assert_eq!(due(&line, &older).0, Due::Close(Reason::Resumed));
        let (due, text) = due(&line, &newer);
        assert_eq!(due, Due::Write);
        assert!(text.starts_with("<resumed xmlns='urn:xmpp:sm:3' h='0' previd='id'/>a"), "{text}");
        line.close(Reason::Conflict);
        assert_eq!(line.resume(LOGIN, 0).err(), Some(ResumeError::NotFound));
    }
}
