//! A bound resource: what is known of one connection while it lives, and, with XEP-0198, while its stream is lost and may
//! still be resumed.
//!
//! A line has one owner, the task that serves its stream: it alone reads. Whoever has something to say puts it into the
//! outbox and flushes, which writes at once what the socket takes; the owner is woken for the rest.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};

use idl::ids::{AccountId, Epoch, Partition, Shard};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::channels::Work;
use crate::client_state::Haste;
use crate::close::Reason;
use crate::form::{Form, Frame};
use crate::intake::Share;
use crate::listener::Resumable;
use crate::lock;
use crate::middle::Place;
use crate::outbox::{AckTooHigh, Outbox};
use crate::presence::Presence;
use crate::routing::Dealings;
use crate::sasl::Login;
use crate::scratch::{self, Scratch};
use crate::stream::Stream;
use crate::wheel::{Tick, Wheel};

/// One bound resource.
pub(crate) struct Line {
    pub(crate) place: Place,
    /// The part of the middle tier that works for the account.
    pub(crate) partition: Partition,
    pub(crate) resource: Box<str>,
    /// Its place in the hub, by which the wheel knows it.
    slot: AtomicU32,
    wheel: Arc<Wheel>,
    state: Mutex<State>,
    pub(crate) work: Mutex<Work>,
}

struct State {
    outbox: Outbox,
    issued_at_ms: u64,
    closing: Option<Reason>,
    /// The stream is beyond help.
    failed: Option<Reason>,
    /// Grows with each stream that serves this line; an older stream lets go.
    attachment: Attachment,
    hold: Hold,
    /// Of the stream's owner.
    waker: Option<Waker>,
    /// `None` while the client has not turned stream management on.
    received: Option<Box<Received>>,
    /// `None` while its client deals with nobody but us.
    dealings: Option<Box<Dealings>>,
    /// When the client said something last.
    heard_at: Tick,
    /// When it was asked for a sign of life since.
    probed_at: Option<Tick>,
    /// When the write under way last made progress.
    stalled_at: Option<Tick>,
    /// When the line was found to be closing.
    closing_at: Option<Tick>,
    /// When the wheel comes to it next.
    armed_at: Tick,
}

/// By whom a line is served.
enum Hold {
    /// A stream is about to be.
    Coming,
    Stream(Stream),
    /// The stream is lost and may be resumed.
    Parked(Parked),
    /// Nobody any more.
    Gone,
}

/// What a line holds while it waits to be resumed.
pub(crate) struct Parked {
    pub(crate) until: Tick,
    /// Its place among those that wait.
    pub(crate) place: Resumable,
    /// Draining waits for it.
    pub(crate) token: TaskTrackerToken,
}

/// Stanzas from the client, as XEP-0198 counts them.
#[derive(Default)]
struct Received {
    /// By what a lost stream can be resumed; `None` if it can't.
    resume_id: Option<Arc<str>>,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attachment(u32);

/// What the owner of a stream has to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Listen to what was heard.
    Listen,
    /// Go on when others have had their turn.
    Yield,
    /// End the stream. All that could be written is.
    End(Reason),
    /// Nothing any more: the stream is another's.
    LetGo,
}

/// What a line finds due when the wheel comes to it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    /// It was silent: ask for a sign of life.
    Probe,
    /// It has waited for its resumption long enough.
    Expired,
}

/// Why a stanza from another connection was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// The line is closing.
    Closing,
    /// What others may take of the outbox is full.
    Busy,
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
        wheel: &Arc<Wheel>,
    ) -> (Arc<Self>, Attachment) {
        let attachment = Attachment(0);
        let state = State {
            outbox: Outbox::new(outbox_bytes_max),
            issued_at_ms: login.issued_at_ms,
            closing: None,
            failed: None,
            attachment,
            hold: Hold::Coming,
            waker: None,
            received: None,
            dealings: None,
            heard_at: wheel.now(),
            probed_at: None,
            stalled_at: None,
            closing_at: None,
            armed_at: Tick::NEVER,
        };
        let line = Self {
            place: Place { account: login.account, epoch },
            partition: Shard::of_account(login.account).into(),
            resource: resource.into(),
            slot: AtomicU32::new(u32::MAX),
            wheel: Arc::clone(wheel),
            state: Mutex::new(state),
            work: Mutex::new(work),
        };
        (Arc::new(line), attachment)
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

    /// It has that slot of the hub from now on.
    pub(crate) fn sits_at(&self, slot: u32) {
        self.slot.store(slot, Ordering::Relaxed);
    }

    /// That slot, whether it has it still or not.
    pub(crate) fn slot(&self) -> u32 {
        self.slot.load(Ordering::Relaxed)
    }

    /// Puts a frame into the outbox, to be written at the next flush. A full outbox closes the line.
    pub(crate) fn put(self: &Arc<Self>, frame: Frame) -> Result<(), Refused> {
        let mut state = lock(&self.state);
        if state.closing.is_some() {
            return Err(Refused::Closing);
        }
        if frame.is_stanza() {
            state.release();
        }
        if state.outbox.push(frame).is_err() {
            self.close_now(&mut state, Reason::OutboxFull);
            return Err(Refused::Full);
        }
        Ok(())
    }

    /// Writes at once what the socket takes of what waits.
    pub(crate) fn flush(&self) {
        let mut state = lock(&self.state);
        let Some(waker) = state.waker.clone() else { return };
        let mut cx = Context::from_waker(&waker);
        let written = scratch::with(|scratch| state.poll_write(&mut cx, scratch, self.wheel.now()));
        if let Poll::Ready(Err(reason)) = written {
            state.fail(reason);
        }
        self.arm(&mut state);
    }

    /// Puts a frame into the outbox and flushes it.
    pub(crate) fn say(self: &Arc<Self>, frame: Frame) -> Result<(), Refused> {
        self.put(frame)?;
        self.flush();
        Ok(())
    }

    /// Puts a frame into the outbox and flushes it, unless it is too full for what others say: what is not stored, and so does
    /// not come again, must not end a line.
    pub(crate) fn offer(self: &Arc<Self>, frame: Frame) -> Result<(), Refused> {
        if !lock(&self.state).outbox.has_room_for_others(&frame, 0) {
            return Err(Refused::Full);
        }
        self.say(frame)
    }

    /// Puts a stanza of another connection into the outbox, to be written at the next flush, or holds it back while the
    /// client is inactive. Such stanzas never fill the outbox.
    pub(crate) fn deliver(&self, frame: Frame, haste: Haste) -> Result<(), NotTaken> {
        let state = &mut *lock(&self.state);
        if state.closing.is_some() {
            return Err(NotTaken::Closing);
        }
        let held_bytes = state.dealings.as_ref().map_or(0, |dealings| dealings.client_state.held_bytes());
        if !state.outbox.has_room_for_others(&frame, held_bytes) {
            return Err(NotTaken::Busy);
        }
        let frame = match &mut state.dealings {
            Some(dealings) => dealings.client_state.hold(frame, haste),
            None => Some(frame),
        };
        if let Some(frame) = frame {
            state.release();
            state.outbox.push(frame).map_err(|_| NotTaken::Busy)?;
        }
        Ok(())
    }

    /// Acts on what the line has in its dealings with others.
    pub(crate) fn with_dealings<T>(&self, act: impl FnOnce(&mut Dealings) -> T) -> T {
        act(lock(&self.state).dealings.get_or_insert_default())
    }

    /// The presence of a line that is available and not closing.
    pub(crate) fn presence(&self) -> Option<Presence> {
        let state = lock(&self.state);
        let presence = state.dealings.as_ref().and_then(|dealings| dealings.presence.clone());
        presence.filter(|_| state.closing.is_none())
    }

    /// The line is not available any more. Returns what it was.
    pub(crate) fn take_presence(&self) -> Option<Presence> {
        lock(&self.state).dealings.as_mut()?.presence.take()
    }

    /// Somebody looks at the device, or not (XEP-0352).
    pub(crate) fn set_active(&self, active: bool) {
        let mut state = lock(&self.state);
        if !active {
            state.dealings.get_or_insert_default().client_state.inactive = true;
        } else if let Some(dealings) = &mut state.dealings {
            dealings.client_state.inactive = false;
            state.release();
        }
    }

    /// Asks for the end of the line, after what waits has been written. The first reason stays.
    pub(crate) fn close(self: &Arc<Self>, reason: Reason) {
        self.close_now(&mut lock(&self.state), reason);
    }

    fn close_now(self: &Arc<Self>, state: &mut State, reason: Reason) {
        state.closing.get_or_insert(reason);
        if matches!(state.hold, Hold::Parked(_)) {
            self.wheel.orphan(Arc::clone(self));
        }
        if let Some(waker) = &state.waker {
            waker.wake_by_ref();
        }
    }

    pub(crate) fn closing(&self) -> Option<Reason> {
        lock(&self.state).closing
    }

    /// A stream serves the line from now on, unless a newer one does.
    pub(crate) fn begin(&self, attachment: Attachment, mut stream: Stream) {
        stream.logged_in();
        let mut state = lock(&self.state);
        if state.attachment == attachment && matches!(state.hold, Hold::Coming) {
            state.hold = Hold::Stream(stream);
            state.heard_at = self.wheel.now();
            state.probed_at = None;
            self.arm(&mut state);
        }
    }

    /// Writes what waits, and reads into `scratch.heard` unless the line is closing or `share` is spent. For the owner, who is
    /// woken when there is more to do, and whose share says whether the client has said something since: bytes alone are no
    /// sign of life, they may be of an element that never ends.
    pub(crate) fn poll(
        &self,
        attachment: Attachment,
        share: &Share,
        cx: &mut Context<'_>,
        scratch: &mut Scratch,
    ) -> Poll<Turn> {
        let state = &mut *lock(&self.state);
        if state.attachment != attachment || !matches!(state.hold, Hold::Stream(_)) {
            return Poll::Ready(Turn::LetGo);
        }
        if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            state.waker = Some(cx.waker().clone());
        }
        if let Some(reason) = state.failed {
            return Poll::Ready(Turn::End(reason));
        }
        let now = self.wheel.now();
        if share.stanzas() > 0 {
            state.heard_at = now;
            state.probed_at = None;
        }
        let written = state.poll_write(cx, scratch, now);
        if state.closing.is_some() {
            let _ = state.closing_at.get_or_insert(now);
        }
        self.arm(state);
        match (written, state.closing) {
            (Poll::Ready(Err(reason)), _) | (Poll::Ready(Ok(())), Some(reason)) => {
                return Poll::Ready(Turn::End(reason));
            }
            (Poll::Pending, Some(_)) => return Poll::Pending,
            _ => {}
        }
        if share.is_spent() {
            return Poll::Ready(Turn::Yield);
        }
        let Hold::Stream(stream) = &mut state.hold else { return Poll::Ready(Turn::LetGo) };
        let heard = ready!(stream.poll_hear(cx, scratch));
        Poll::Ready(heard.map_or_else(Turn::End, |()| Turn::Listen))
    }

    /// Has these bytes heard again, before what is still to come.
    pub(crate) fn unread(&self, attachment: Attachment, bytes: &[u8]) {
        let mut state = lock(&self.state);
        if state.attachment == attachment
            && let Hold::Stream(stream) = &mut state.hold
        {
            stream.unread(bytes);
        }
    }

    /// What is due, now that the wheel has come to the line. Whoever fails is told.
    pub(crate) fn come_up(&self) -> Due {
        let state = &mut *lock(&self.state);
        let now = self.wheel.now();
        if state.armed_at > now {
            // It was armed anew since, for earlier or because of another stream.
            return Due::Nothing;
        }
        state.armed_at = Tick::NEVER;
        let due = state.due(&self.wheel, now);
        self.arm(state);
        due
    }

    /// True while a stream serves the line, which is told if its time is up: for a line that the wheel can't come to any more.
    pub(crate) fn is_leaving(&self) -> bool {
        let state = &mut *lock(&self.state);
        state.due(&self.wheel, self.wheel.now());
        matches!(state.hold, Hold::Stream(_) | Hold::Coming)
    }

    /// Has the wheel come by when something is due, unless it comes before.
    fn arm(&self, state: &mut State) {
        let at = state.due_at(&self.wheel);
        if at < state.armed_at {
            state.armed_at = self.wheel.arm(self.slot(), at);
        }
    }

    /// Ends the line if no newer stream has taken it over, and returns for which reason: the first one stays. It can't be
    /// resumed from then on.
    pub(crate) fn give_up(&self, attachment: Attachment, reason: Reason) -> Option<Reason> {
        let mut state = lock(&self.state);
        (state.attachment == attachment).then(|| *state.closing.get_or_insert(reason))
    }

    /// Takes the stream out, with the form of its last words, and with what it still has to say if `words` are given; unless a
    /// newer stream serves the line.
    pub(crate) fn take_stream(&self, attachment: Attachment, words: Option<&mut Vec<u8>>) -> Option<(Stream, Form)> {
        let mut state = lock(&self.state);
        if state.attachment != attachment || !matches!(state.hold, Hold::Stream(_)) {
            return None;
        }
        if let Some(words) = words {
            while !state.outbox.is_empty() {
                // It fills no buffer beyond what goes out in one write.
                let mut piece = Vec::new();
                state.outbox.take(&mut piece);
                words.append(&mut piece);
            }
        }
        let form = state.outbox.form();
        match state.rest_as(Hold::Gone) {
            Hold::Stream(stream) => Some((stream, form)),
            _ => None,
        }
    }

    /// The form of what is written next.
    pub(crate) fn form(&self) -> Form {
        lock(&self.state).outbox.form()
    }

    /// True if the stream is in XML and may go on in slim.
    pub(crate) fn may_switch(&self) -> bool {
        let state = lock(&self.state);
        let may_be_slim = matches!(&state.hold, Hold::Stream(stream) if stream.may_be_slim());
        state.outbox.form() == Form::Xml && may_be_slim
    }

    /// The line waits to be resumed from now on, unless a newer stream has it already. Given back if it is closing.
    pub(crate) fn park(&self, attachment: Attachment, parked: Parked) -> Result<(), Parked> {
        let mut state = lock(&self.state);
        if state.attachment != attachment {
            return Ok(());
        }
        if state.closing.is_some() {
            return Err(parked);
        }
        state.rest_as(Hold::Parked(parked));
        self.arm(&mut state);
        Ok(())
    }

    /// Ends a line that waits to be resumed. Returns what it held, and for which reason it ends: the first one stays.
    pub(crate) fn unpark(&self, reason: Reason) -> Option<(Parked, Reason)> {
        let mut state = lock(&self.state);
        if !matches!(state.hold, Hold::Parked(_)) {
            return None;
        }
        let reason = *state.closing.get_or_insert(reason);
        match state.rest_as(Hold::Gone) {
            Hold::Parked(parked) => Some((parked, reason)),
            _ => None,
        }
    }

    /// Takes what waits to be written.
    #[cfg(test)]
    pub(crate) fn take_waiting(&self) -> String {
        let mut waiting = Vec::new();
        lock(&self.state).outbox.take(&mut waiting);
        String::from_utf8(waiting).expect("text")
    }

    /// The stanzas that the client never acknowledged, as XML, of a line whose stream has ended for good and that counted them;
    /// payloads are not among them: the middle tier knows what has arrived.
    pub(crate) fn take_unacknowledged(&self) -> Vec<Arc<[u8]>> {
        let mut state = lock(&self.state);
        state.release();
        let stanza = |frame| if let Frame::Stanza(text) = frame { Some(text) } else { None };
        state.outbox.take_unacknowledged().filter_map(stanza).collect()
    }

    /// Drops whatever the line holds without a word, as a crash would.
    pub(crate) fn cut_off(&self) {
        let mut state = lock(&self.state);
        let held = state.rest_as(Hold::Gone);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
        drop(state);
        drop(held);
    }

    /// Turns stream management on. Returns false if it is on already.
    pub(crate) fn enable(&self, enabled: &str, resume_id: Option<Arc<str>>) -> bool {
        let mut state = lock(&self.state);
        if state.received.is_some() {
            return false;
        }
        state.received = Some(Box::new(Received { resume_id, ..Received::default() }));
        if state.outbox.push(Frame::Enabled(enabled.as_bytes().into())).is_err() {
            state.closing.get_or_insert(Reason::OutboxFull);
        }
        true
    }

    /// By what a lost stream can be resumed; `None` if it can't.
    pub(crate) fn resume_id(&self) -> Option<Arc<str>> {
        lock(&self.state).received.as_ref()?.resume_id.clone()
    }

    /// The client has handled so many stanzas.
    pub(crate) fn acknowledge(self: &Arc<Self>, handled: u32) -> Result<(), AckTooHigh> {
        let ask = lock(&self.state).outbox.acknowledge(handled)?;
        if ask {
            let _ = self.put(Frame::AckRequest);
        }
        Ok(())
    }

    /// Counts a stanza from the client. One that is `open` counts as handled only after [`Line::handled_one`] with the
    /// returned ticket; `None` while nothing is counted.
    pub(crate) fn received(&self, open: bool) -> Option<Ticket> {
        let mut state = lock(&self.state);
        let received = state.received.as_mut()?;
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
        let mut state = lock(&self.state);
        let Some(received) = &mut state.received else { return };
        if let Some(position) = received.open.iter().position(|(open, _)| *open == ticket) {
            received.open.remove(position);
        }
    }

    /// How many stanzas from the client are handled: the crash of this process loses none of them.
    pub(crate) fn handled(&self) -> u32 {
        lock(&self.state).received.as_ref().map_or(0, |received| received.handled())
    }

    /// A new stream takes the line over; it has to [`Line::begin`]. The older one, if it still lives, is returned, to be
    /// told. `answer` says what is written first, given `<resumed/>`.
    pub(crate) fn resume(
        &self,
        login: Login,
        handled: u32,
        answer: impl FnOnce(&str) -> String,
    ) -> Result<(Attachment, Option<(Stream, Form)>), ResumeError> {
        let mut state = lock(&self.state);
        let form = state.outbox.form();
        let State { received, outbox, closing, .. } = &mut *state;
        let may_resume = closing.is_none() && login.account == self.place.account;
        let Some(received) = received.as_mut().filter(|_| may_resume) else { return Err(ResumeError::NotFound) };
        let Some(id) = &received.resume_id else { return Err(ResumeError::NotFound) };
        // What the client is told not to be handled it sends again.
        let count = received.handled();
        let resumed = answer(&format!("<resumed xmlns='{}' h='{count}' previd='{id}'/>", crate::negotiate::NS_SM));
        outbox.resume(handled, resumed.as_bytes()).map_err(|AckTooHigh| ResumeError::AckTooHigh)?;
        received.count = count;
        received.open.clear();
        state.issued_at_ms = login.issued_at_ms;
        state.attachment.0 = state.attachment.0.wrapping_add(1);
        state.failed = None;
        if let Some(dealings) = &mut state.dealings {
            // A stream begins active, a resumed one too (XEP-0352 §4.2).
            dealings.client_state.inactive = false;
            state.release();
        }
        let older = match state.rest_as(Hold::Coming) {
            Hold::Stream(stream) => Some((stream, form)),
            _ => None,
        };
        if let Some(owner) = state.waker.take() {
            owner.wake();
        }
        Ok((state.attachment, older))
    }
}

impl State {
    /// Writes what waits until the socket takes no more.
    fn poll_write(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch, now: Tick) -> Poll<Result<(), Reason>> {
        let Hold::Stream(stream) = &mut self.hold else { return Poll::Ready(Ok(())) };
        let Scratch { said, sealed, .. } = scratch;
        let written = loop {
            said.clear();
            if stream.is_all_said() {
                if self.outbox.is_empty() {
                    break Poll::Ready(Ok(()));
                }
                self.outbox.take(said);
            }
            match stream.poll_say(cx, said, sealed) {
                Poll::Ready(Ok(())) => {}
                other => break other,
            }
        };
        let progress = stream.took_bytes();
        self.stalled_at = match written {
            Poll::Pending if progress => Some(now),
            Poll::Pending => self.stalled_at.or(Some(now)),
            Poll::Ready(_) => None,
        };
        written
    }

    /// What was held back goes into the outbox. None of it is worth the end of the line, so what has no room is dropped.
    fn release(&mut self) {
        let Some(dealings) = &mut self.dealings else { return };
        if dealings.client_state.held_bytes() > 0 {
            for frame in dealings.client_state.release() {
                if self.outbox.has_room_for_others(&frame, 0) {
                    let _ = self.outbox.push(frame);
                }
            }
        }
    }

    /// The stream is beyond help: its owner ends it.
    fn fail(&mut self, reason: Reason) {
        self.failed.get_or_insert(reason);
        if let Some(owner) = &self.waker {
            owner.wake_by_ref();
        }
    }

    /// When something is due next, as things are.
    fn due_at(&self, wheel: &Wheel) -> Tick {
        match &self.hold {
            Hold::Stream(_) => {
                let silence = match self.probed_at {
                    Some(at) => at.after(wheel.patience.probe),
                    None => self.heard_at.after(wheel.patience.idle),
                };
                let writing = [self.stalled_at, self.closing_at].into_iter().flatten();
                writing.map(|at| at.after(wheel.patience.write)).fold(silence, Tick::min)
            }
            Hold::Parked(parked) => parked.until,
            Hold::Coming | Hold::Gone => Tick::NEVER,
        }
    }

    fn due(&mut self, wheel: &Wheel, now: Tick) -> Due {
        let patience = &wheel.patience;
        let over = |since: Option<Tick>, time| since.is_some_and(|since: Tick| since.after(time) <= now);
        match &self.hold {
            Hold::Stream(_) => {}
            Hold::Parked(parked) if parked.until <= now => return Due::Expired,
            _ => return Due::Nothing,
        }
        if over(self.closing_at, patience.write) {
            self.fail(self.closing.unwrap_or(Reason::WriteTime));
        } else if over(self.stalled_at, patience.write) {
            self.fail(Reason::WriteTime);
        } else if over(self.probed_at, patience.probe) {
            self.fail(Reason::Idle);
        } else if self.probed_at.is_none() && over(Some(self.heard_at), patience.idle) {
            self.probed_at = Some(now);
            return Due::Probe;
        }
        Due::Nothing
    }

    /// Who serves the line changes; what was due because of the one before is no more.
    fn rest_as(&mut self, hold: Hold) -> Hold {
        self.stalled_at = None;
        self.closing_at = None;
        self.probed_at = None;
        std::mem::replace(&mut self.hold, hold)
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
        let wheel = Arc::new(Wheel::new(&crate::config::Limits::default()));
        Line::new(LOGIN, Epoch(1), "r", 1024, Work::default(), &wheel)
    }

    #[test]
    fn a_full_outbox_closes_the_line_after_what_is_in_it_has_been_written() {
        let (line, _) = line();
        line.put(Frame::stanza("a")).expect("room");
        assert_eq!(line.put(Frame::stanza("x".repeat(1024))), Err(Refused::Full));
        assert_eq!(line.put(Frame::stanza("b")), Err(Refused::Closing));
        assert_eq!(line.take_waiting(), "a");
        assert_eq!(line.closing(), Some(Reason::OutboxFull));
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
        line.resume(LOGIN, 0, str::to_owned).expect("a stream to resume");
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
        assert_eq!(line.resume(LOGIN, 0, str::to_owned).err(), Some(ResumeError::NotFound), "nothing was enabled");
        line.enable("+", Some("id".into()));
        line.put(Frame::stanza("a")).expect("room");
        assert_eq!(line.take_waiting(), "+a<r xmlns='urn:xmpp:sm:3'/>");
        line.received(true);
        let stranger = Login { account: AccountId(2), issued_at_ms: 1 };
        assert_eq!(line.resume(stranger, 0, str::to_owned).err(), Some(ResumeError::NotFound));
        assert_eq!(line.resume(LOGIN, 7, str::to_owned).err(), Some(ResumeError::AckTooHigh));
        let (newer, _) = line.resume(LOGIN, 0, str::to_owned).expect("a stream to resume");
        assert_eq!(line.give_up(older, Reason::Lost), None);
        assert_ne!(older, newer);
        let text = line.take_waiting();
        assert!(text.starts_with("<resumed xmlns='urn:xmpp:sm:3' h='0' previd='id'/>a"), "{text}");
        line.close(Reason::Conflict);
        assert_eq!(line.resume(LOGIN, 0, str::to_owned).err(), Some(ResumeError::NotFound));
    }
}
