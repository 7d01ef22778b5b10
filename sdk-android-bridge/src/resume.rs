//! XEP-0198 stream management: which stanzas the server has, and how a stream goes on over a new connection.

use std::collections::VecDeque;

use idl::contract::push::FromDevice;
use minidom::Element;

use crate::form::Said;
use crate::reason::ProtocolFault;

/// Namespace of stream management.
pub(crate) const NS: &str = "urn:xmpp:sm:3";
/// Switches stream management on.
pub(crate) const ENABLE: &str = "<enable xmlns='urn:xmpp:sm:3' resume='true'/>";

/// The server is asked for its count when this many stanzas wait for it.
const ASK_AT: usize = 16;
/// Beyond these the stream is no longer resumable: the device keeps no more for a server that does not answer.
const KEPT_MAX: usize = 256;
pub(crate) const KEPT_BYTES_MAX: usize = 256 * 1024;

/// The counts of one stream, which may live over several connections.
#[derive(Debug, Default)]
pub(crate) struct StreamManagement {
    /// The server's name for the stream; `None` until it has answered, or if it can't resume.
    id: Option<String>,
    /// True once the server confirmed it.
    enabled: bool,
    /// Stanzas received since then.
    received: u32,
    /// Stanzas that the server has.
    acknowledged: u32,
    /// Stanzas that it may not have.
    kept: VecDeque<Kept>,
    kept_bytes: usize,
    asked: bool,
    /// The stream can't be resumed: nothing is kept.
    given_up: bool,
}

#[derive(Debug)]
struct Kept {
    stanza: Said,
    /// What it says, if that is to be said again on another stream.
    note: Option<FromDevice>,
}

impl StreamManagement {
    /// Keeps a stanza that is sent. True if the server should now be asked for its count.
    pub(crate) fn sent(&mut self, stanza: &Said) -> bool {
        self.keep(stanza, None) && self.asks(ASK_AT)
    }

    /// Keeps a stanza that is said again on another stream if this one ends before the server has it. So that it is seldom
    /// said twice, the server is asked at once.
    pub(crate) fn sent_note(&mut self, stanza: &Said, note: FromDevice) -> bool {
        self.keep(stanza, Some(note)) && self.asks(1)
    }

    /// The stream is over: the notes that the server may not have.
    pub(crate) fn into_notes(self) -> impl Iterator<Item = FromDevice> {
        self.kept.into_iter().filter_map(|kept| kept.note)
    }

    /// False if nothing is kept any more.
    fn keep(&mut self, stanza: &Said, note: Option<FromDevice>) -> bool {
        if self.given_up {
            return false;
        }
        self.kept.push_back(Kept { stanza: stanza.clone(), note });
        self.kept_bytes += stanza.bytes();
        if self.kept.len() > KEPT_MAX || self.kept_bytes > KEPT_BYTES_MAX {
            self.give_up();
        }
        !self.given_up
    }

    fn asks(&mut self, ask_at: usize) -> bool {
        let ask = self.enabled && !self.asked && self.kept.len() >= ask_at;
        self.asked |= ask;
        ask
    }

    /// Counts a stanza of the server.
    pub(crate) fn received(&mut self) {
        if self.enabled {
            self.received = self.received.wrapping_add(1);
        }
    }

    /// The server's `<enabled/>`.
    pub(crate) fn enabled(&mut self, element: &Element) {
        self.enabled = true;
        let resumable = matches!(element.attr("resume"), Some("true" | "1"));
        self.id = element.attr("id").filter(|id| resumable && id.len() <= 1024).map(str::to_owned);
        if self.id.is_none() {
            self.give_up();
        }
    }

    /// True once the server confirmed stream management.
    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// What to resume with: the stream's id and our count.
    pub(crate) fn resumable(&self) -> Option<(&str, u32)> {
        Some((self.id.as_deref()?, self.received))
    }

    /// The answer to the server's request for our count.
    pub(crate) fn answer(&self) -> Said {
        Said::Count(self.received)
    }

    /// True if there are stanzas that the server may not have.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.kept.is_empty()
    }

    /// The server has `handled` of our stanzas: they need not be kept.
    pub(crate) fn acknowledge(&mut self, handled: u32) -> Result<(), ProtocolFault> {
        if self.given_up {
            return Ok(());
        }
        let newly = handled.wrapping_sub(self.acknowledged);
        if usize::try_from(newly).map_or(true, |newly| newly > self.kept.len()) {
            return Err(ProtocolFault::AckCount);
        }
        for _ in 0..newly {
            self.drop_oldest();
        }
        self.asked = false;
        Ok(())
    }

    /// The stream goes on: what the server does not have, in order, to be sent again.
    pub(crate) fn resumed(&mut self, handled: u32) -> Result<Vec<Said>, ProtocolFault> {
        self.acknowledge(handled)?;
        Ok(self.kept.iter().map(|kept| kept.stanza.clone()).collect())
    }

    fn give_up(&mut self) {
        self.given_up = true;
        self.id = None;
        self.kept.clear();
        self.kept_bytes = 0;
    }

    fn drop_oldest(&mut self) {
        if let Some(kept) = self.kept.pop_front() {
            self.kept_bytes -= kept.stanza.bytes();
            self.acknowledged = self.acknowledged.wrapping_add(1);
        }
    }
}

/// The count in `<a/>` or `<resumed/>`.
pub(crate) fn handled(element: &Element) -> Option<u32> {
    element.attr("h")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(text: &str) -> Element {
        text.parse().expect("well-formed XML")
    }

    fn stanza(text: &str) -> Said {
        Said::Element(text.to_owned())
    }

    fn enabled() -> StreamManagement {
        let mut management = StreamManagement::default();
        management.sent(&stanza("<open/>"));
        management.enabled(&element("<enabled xmlns='urn:xmpp:sm:3' id='x' resume='true'/>"));
        management
    }

    #[test]
    fn what_the_server_lacks_is_sent_again_in_order() {
        let mut management = enabled();
        management.sent(&stanza("<a/>"));
        management.sent(&stanza("<b/>"));
        assert_eq!(management.acknowledge(1), Ok(()));
        management.received();
        assert_eq!(management.resumable(), Some(("x", 1)));
        assert_eq!(management.resumed(2), Ok(vec![stanza("<b/>")]));
        assert_eq!(management.resumed(1), Err(ProtocolFault::AckCount), "a count does not go back");
    }

    #[test]
    fn a_count_of_stanzas_never_sent_is_a_fault() {
        assert_eq!(enabled().acknowledge(2), Err(ProtocolFault::AckCount));
        assert_eq!(enabled().acknowledge(u32::MAX), Err(ProtocolFault::AckCount));
    }

    #[test]
    fn a_server_that_never_answers_costs_bounded_memory_and_is_not_resumed() {
        let mut management = enabled();
        let asked = (0..1000).filter(|_| management.sent(&stanza("<a/>"))).count();
        assert_eq!(asked, 1, "it is asked once, not again before it answered");
        assert!(management.kept.len() <= KEPT_MAX);
        assert_eq!(management.resumable(), None);
        assert_eq!(management.acknowledge(10), Ok(()), "its late answer is no fault");
    }

    #[test]
    fn a_server_that_does_not_resume_is_not_asked_to() {
        let mut management = StreamManagement::default();
        management.enabled(&element("<enabled xmlns='urn:xmpp:sm:3'/>"));
        assert!(management.is_enabled() && management.resumable().is_none());
    }
}
