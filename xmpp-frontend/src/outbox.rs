//! What waits to be written to one connection, and, with stream management (XEP-0198), what was written and not yet
//! acknowledged. No I/O.
//!
//! It outlives the stream: a resumed stream takes it over, and what the client has not acknowledged is written again.

use std::collections::VecDeque;

use crate::form::{Form, Frame};

/// What a frame costs beyond its bytes, so that many small ones meet the limit too.
const FRAME_OVERHEAD_BYTES: usize = 64;
/// About this much goes out in one write.
const WRITE_BYTES: usize = 32 * 1024;

/// The frame would go over the limit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// The client acknowledged more than was sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct AckTooHigh;

/// The frames of one connection.
#[derive(Debug)]
pub(crate) struct Outbox {
    bytes_max: usize,
    /// Of the waiting and the unacknowledged together.
    bytes: usize,
    waiting: VecDeque<Frame>,
    /// Once stream management is on: what was written and is kept until it is acknowledged.
    written: Option<Box<Written>>,
    form: Form,
}

/// Stanzas that were written since they are counted.
#[derive(Debug, Default)]
struct Written {
    unacked: VecDeque<Frame>,
    /// How many the client has acknowledged, modulo 2³².
    acked: u32,
    /// The client was asked for an acknowledgement.
    asked: bool,
}

impl Outbox {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: 0, waiting: VecDeque::new(), written: None, form: Form::default() }
    }

    /// The form of what is written next.
    pub(crate) fn form(&self) -> Form {
        self.form
    }

    /// Puts a frame behind the others.
    pub(crate) fn push(&mut self, frame: Frame) -> Result<(), Full> {
        let cost = cost(&frame);
        if self.bytes + cost > self.bytes_max {
            return Err(Full);
        }
        self.bytes += cost;
        self.waiting.push_back(frame);
        Ok(())
    }

    /// True if a frame of another connection's has room, with `held_bytes` that wait elsewhere: such frames take no more
    /// than half of the outbox, so that nobody fills it for the others.
    pub(crate) fn has_room_for_others(&self, frame: &Frame, held_bytes: usize) -> bool {
        self.bytes + held_bytes + cost(frame) <= self.bytes_max / 2
    }

    /// True if nothing waits to be written.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Moves what goes out in one write to `out`, with a request for acknowledgement behind it where one is due.
    pub(crate) fn take(&mut self, out: &mut Vec<u8>) {
        let mut counted = false;
        while out.len() < WRITE_BYTES {
            let Some(frame) = self.waiting.pop_front() else { break };
            frame.write(&mut self.form, out);
            if matches!(frame, Frame::Enabled(_)) {
                self.written.get_or_insert_default();
            }
            match &mut self.written {
                Some(written) if frame.is_stanza() => {
                    written.unacked.push_back(frame);
                    counted = true;
                }
                _ => self.bytes -= cost(&frame),
            }
        }
        if let Some(written) = self.written.as_mut().filter(|written| counted && !written.asked) {
            Frame::AckRequest.write(&mut self.form, out);
            written.asked = true;
        }
        if self.waiting.is_empty() {
            // An idle connection holds no room for frames.
            self.waiting = VecDeque::new();
        }
    }

    /// The client has handled `handled` stanzas. Returns true if it should be asked again: more was written since it was
    /// asked.
    pub(crate) fn acknowledge(&mut self, handled: u32) -> Result<bool, AckTooHigh> {
        let Some(written) = &mut self.written else {
            return if handled == 0 { Ok(false) } else { Err(AckTooHigh) };
        };
        let newly = usize::try_from(handled.wrapping_sub(written.acked)).unwrap_or(usize::MAX);
        if newly > written.unacked.len() {
            return Err(AckTooHigh);
        }
        for frame in written.unacked.drain(..newly) {
            self.bytes -= cost(&frame);
        }
        if written.unacked.is_empty() {
            written.unacked = VecDeque::new();
        }
        written.acked = handled;
        // Asking again only after progress: a client that repeats itself isn't asked for ever.
        written.asked = newly > 0 && !written.unacked.is_empty();
        Ok(written.asked)
    }

    /// What the client has not acknowledged, and what was never written, once the stream can't be resumed any more. Nothing
    /// where nothing was counted: nobody knows what has arrived then.
    pub(crate) fn take_unacknowledged(&mut self) -> impl Iterator<Item = Frame> + use<> {
        let taken = self.written.take().map(|written| (written.unacked, std::mem::take(&mut self.waiting)));
        taken.into_iter().flat_map(|(unacked, waiting)| unacked.into_iter().chain(waiting))
    }

    /// The stream is resumed, in XML: what was not acknowledged comes first, behind `resumed`. What isn't counted is not
    /// repeated.
    pub(crate) fn resume(&mut self, handled: u32, resumed: &[u8]) -> Result<(), AckTooHigh> {
        self.acknowledge(handled)?;
        let again = self.written.as_mut().map(|written| {
            written.asked = false;
            std::mem::take(&mut written.unacked)
        });
        let waiting = std::mem::take(&mut self.waiting);
        let stanzas = waiting.into_iter().filter(Frame::is_stanza);
        self.form = Form::Xml;
        self.waiting = std::iter::once(Frame::other(resumed)).chain(again.unwrap_or_default()).chain(stanzas).collect();
        self.bytes = self.waiting.iter().map(cost).sum();
        Ok(())
    }
}

fn cost(frame: &Frame) -> usize {
    frame.weight() + FRAME_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASK: &str = "<r xmlns='urn:xmpp:sm:3'/>";

    fn taken(outbox: &mut Outbox) -> String {
        let mut out = Vec::new();
        outbox.take(&mut out);
        String::from_utf8(out).expect("text")
    }

    fn push(outbox: &mut Outbox, text: &str) {
        outbox.push(Frame::stanza(text)).expect("room");
    }

    fn enabled() -> Outbox {
        let mut outbox = Outbox::new(4096);
        push(&mut outbox, "a");
        outbox.push(Frame::Enabled("+".as_bytes().into())).expect("room");
        push(&mut outbox, "b");
        push(&mut outbox, "c");
        outbox
    }

    #[test]
    fn several_frames_leave_in_one_write_in_order() {
        let mut outbox = Outbox::new(4096);
        for text in ["a", "b", "c"] {
            push(&mut outbox, text);
        }
        assert_eq!(taken(&mut outbox), "abc");
        assert!(outbox.is_empty());
        assert_eq!(outbox.bytes, 0);
    }

    #[test]
    fn a_frame_over_the_limit_is_refused() {
        let mut outbox = Outbox::new(2 * FRAME_OVERHEAD_BYTES + 10);
        push(&mut outbox, "12345");
        push(&mut outbox, "67890");
        assert_eq!(outbox.push(Frame::stanza("x")), Err(Full));
        taken(&mut outbox);
        push(&mut outbox, "x");
    }

    #[test]
    fn stanzas_are_counted_from_enabled_on_and_kept_until_acknowledged() {
        let mut outbox = enabled();
        assert_eq!(taken(&mut outbox), format!("a+bc{ASK}"));
        push(&mut outbox, "d");
        assert_eq!(taken(&mut outbox), "d", "one question at a time");
        assert_eq!(outbox.acknowledge(4), Err(AckTooHigh));
        assert_eq!(outbox.acknowledge(2), Ok(true));
        assert_eq!(outbox.acknowledge(2), Ok(false));
        assert_eq!(outbox.acknowledge(3), Ok(false));
        assert_eq!(outbox.bytes, 0);
    }

    #[test]
    fn what_was_not_acknowledged_comes_again_before_what_waits() {
        let mut outbox = enabled();
        taken(&mut outbox);
        push(&mut outbox, "d");
        outbox.push(Frame::other("<a/>")).expect("room");
        outbox.resume(1, b"!").expect("a count that was sent");
        assert_eq!(taken(&mut outbox), format!("!cd{ASK}"));
        assert_eq!(outbox.acknowledge(3), Ok(false));
        assert_eq!(outbox.bytes, 0);
        assert_eq!(outbox.resume(9, b"!"), Err(AckTooHigh));
    }

    #[test]
    fn what_is_unacknowledged_counts_against_the_limit() {
        let mut outbox = Outbox::new(3 * FRAME_OVERHEAD_BYTES + 3);
        outbox.push(Frame::Enabled("+".as_bytes().into())).expect("room");
        push(&mut outbox, "a");
        push(&mut outbox, "b");
        taken(&mut outbox);
        push(&mut outbox, "c");
        assert_eq!(outbox.push(Frame::stanza("d")), Err(Full));
        assert_eq!(outbox.acknowledge(1), Ok(true));
        push(&mut outbox, "d");
    }

    #[test]
    fn behind_a_switch_all_is_in_slim_and_after_a_resumption_in_xml_again() {
        let mut outbox = enabled();
        outbox.push(Frame::Switch).expect("room");
        outbox.push(Frame::payload(5, b"hi".to_vec())).expect("room");
        outbox.push(Frame::Ack(7)).expect("room");
        let mut out = Vec::new();
        outbox.take(&mut out);
        let slim = b"a+bc<slim xmlns='urn:campanile:slim:1'/>\x04\x02\x05hi\x02\x05\x07\x01\x04";
        assert_eq!(out, slim, "{}", String::from_utf8_lossy(&out));
        outbox.resume(2, b"!").expect("a count that was sent");
        let channel = "<channel xmlns='urn:campanile:channel:1' number='5'>aGk=</channel>";
        assert_eq!(taken(&mut outbox), format!("!<message>{channel}</message>{ASK}"));
    }

    #[test]
    fn counts_wrap_at_two_to_the_thirty_second() {
        let mut outbox = enabled();
        taken(&mut outbox);
        outbox.written.as_mut().expect("they are counted").acked = u32::MAX;
        assert_eq!(outbox.acknowledge(0), Ok(true));
        assert_eq!(outbox.acknowledge(1), Ok(false));
    }
}
