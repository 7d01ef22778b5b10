//! Client state (XEP-0352): what is held back from a device at which nobody looks. No I/O.

use std::collections::VecDeque;

use idl::xml::NS_CLIENT;
use minidom::Element;

use crate::form::Frame;

/// Namespace of client state.
pub(crate) const NS: &str = "urn:xmpp:csi:0";
/// Namespace of chat states (XEP-0085).
const NS_CHAT_STATES: &str = "http://jabber.org/protocol/chatstates";

/// Stanzas that are held back for one device; over it they are said, as with the next urgent one.
const HELD_MAX: usize = 64;
const HELD_BYTES_MAX: usize = 16 * 1024;

/// Whether a stanza from another connection can wait until the device is looked at again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Haste {
    /// It is said at once.
    Urgent,
    /// It can wait. Of those with the same subject the newest is enough.
    Waits(Option<Subject>),
}

/// What a stanza is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    /// The presence of that full JID.
    Presence(Box<str>),
    /// What that full JID does in a chat.
    ChatState(Box<str>),
}

impl Haste {
    /// That of a message from a full JID. What is not known to be unimportant is urgent: a message without a body may be
    /// encrypted, or a call.
    pub(crate) fn of_message(message: &Element, from: &str) -> Self {
        let is_chat_state = |child: &Element| child.has_ns(NS_CHAT_STATES);
        let says_nothing_else = || {
            message.children().any(is_chat_state)
                && message.children().all(|child| is_chat_state(child) || child.is("thread", NS_CLIENT))
        };
        match message.attr("type") {
            Some("error") => Self::Urgent,
            _ if says_nothing_else() => Self::Waits(Some(Subject::ChatState(from.into()))),
            Some("headline") => Self::Waits(None),
            _ => Self::Urgent,
        }
    }
}

/// What is known of one device. A stream begins active (XEP-0352 §4.2).
#[derive(Default)]
pub(crate) struct ClientState {
    pub(crate) inactive: bool,
    held: VecDeque<(Option<Subject>, Frame)>,
    held_bytes: usize,
}

impl ClientState {
    /// Takes a stanza that can be held back. Given back if it has to be said now, behind all that is held.
    pub(crate) fn hold(&mut self, frame: Frame, haste: Haste) -> Option<Frame> {
        let Haste::Waits(subject) = haste else { return Some(frame) };
        if !self.inactive {
            return Some(frame);
        }
        let older = self.held.iter().position(|(held, _)| held.is_some() && *held == subject);
        if let Some((_, older)) = older.and_then(|position| self.held.remove(position)) {
            self.held_bytes -= older.weight();
        }
        if self.held.len() >= HELD_MAX || self.held_bytes + frame.weight() > HELD_BYTES_MAX {
            return Some(frame);
        }
        self.held_bytes += frame.weight();
        self.held.push_back((subject, frame));
        None
    }

    /// About how many bytes are held back.
    pub(crate) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Gives up all that is held back, in the order in which it came.
    pub(crate) fn release(&mut self) -> impl Iterator<Item = Frame> + use<> {
        self.held_bytes = 0;
        std::mem::take(&mut self.held).into_iter().map(|(_, frame)| frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presence(state: &mut ClientState, from: &str, text: &str) -> Option<Frame> {
        state.hold(Frame::stanza(text), Haste::Waits(Some(Subject::Presence(from.into()))))
    }

    fn released(state: &mut ClientState) -> String {
        let mut text = Vec::new();
        for frame in state.release() {
            frame.write(&mut crate::form::Form::Xml, &mut text);
        }
        String::from_utf8(text).expect("text")
    }

    #[test]
    fn of_one_subject_the_newest_is_held_and_all_come_in_order() {
        let mut state = ClientState { inactive: true, ..ClientState::default() };
        for (from, text) in [("a", "1"), ("b", "2"), ("a", "3")] {
            assert!(presence(&mut state, from, text).is_none());
        }
        assert!(state.hold(Frame::stanza("4"), Haste::Waits(None)).is_none());
        assert!(state.hold(Frame::stanza("5"), Haste::Waits(None)).is_none());
        assert!(state.hold(Frame::stanza("6"), Haste::Urgent).is_some());
        assert_eq!(released(&mut state), "2345");
        assert_eq!((released(&mut state).as_str(), state.held_bytes()), ("", 0));
    }

    #[test]
    fn an_active_device_has_nothing_held_back_and_an_inactive_one_so_much() {
        let mut state = ClientState::default();
        assert!(presence(&mut state, "a", "1").is_some());
        state.inactive = true;
        for number in 0..HELD_MAX {
            assert!(presence(&mut state, &number.to_string(), "1").is_none());
        }
        assert!(presence(&mut state, "one more", "1").is_some());
        assert!(presence(&mut state, "0", "another").is_none(), "it takes the place of an older one");
        released(&mut state);
        assert!(presence(&mut state, "a", &"x".repeat(HELD_BYTES_MAX + 1)).is_some());
    }

    #[test]
    fn chat_states_and_headlines_can_wait_and_what_is_unknown_can_not() {
        let haste = |text: &str| {
            let text = text.replacen("<message", "<message xmlns='jabber:client'", 1);
            Haste::of_message(&text.parse().expect("a message"), "a")
        };
        let typing = "<composing xmlns='http://jabber.org/protocol/chatstates'/>";
        let state = Haste::Waits(Some(Subject::ChatState("a".into())));
        assert_eq!(haste(&format!("<message type='chat'>{typing}<thread>1</thread></message>")), state);
        assert_eq!(haste(&format!("<message>{typing}<body>hi</body></message>")), Haste::Urgent);
        assert_eq!(haste(&format!("<message type='error'>{typing}</message>")), Haste::Urgent);
        assert_eq!(haste("<message type='headline'><body>news</body></message>"), Haste::Waits(None));
        assert_eq!(haste("<message><encrypted xmlns='x'/></message>"), Haste::Urgent);
        assert_eq!(haste("<message/>"), Haste::Urgent);
    }
}
