//! What one connection may say after login: so many stanzas and bytes in a second, no stanza that never ends, and no more in
//! one turn than the others can wait for.
//!
//! A window of a second begins with what is said first in it. It is measured on the hub's wheel, so that a connection has no
//! timer for it; whoever says nothing costs nothing.

use std::time::Duration;

use idl::xml::Event;

use crate::close::Reason;
use crate::config::Limits;
use crate::negotiate::NS_SM;
use crate::wheel::{TICK, Tick};

/// With the tick that [`Tick::after`] adds to be sure, a second.
const WINDOW: Duration = Duration::from_secs(1).saturating_sub(TICK);

/// Stanzas of one connection that a thread acts on before it turns to others: at some microseconds each, a fraction of a
/// millisecond.
const STANZAS_IN_A_TURN: u32 = 32;
/// The same for bytes. What one read brings is parsed whole, so it may be twice as much.
const BYTES_IN_A_TURN: usize = 16 * 1024;

/// What one connection has had of a thread in one turn.
///
/// A thread that works for one connection works for no other, and looks at no socket: without an end to a turn, everybody would
/// wait for who says much at once.
#[derive(Debug, Default)]
pub(crate) struct Share {
    stanzas: u32,
    bytes: usize,
}

impl Share {
    /// A stanza, or what else has an end, was acted on.
    pub(crate) fn stanza(&mut self) {
        self.stanzas += 1;
    }

    pub(crate) fn bytes(&mut self, count: usize) {
        self.bytes += count;
    }

    /// Whole stanzas so far.
    pub(crate) fn stanzas(&self) -> u32 {
        self.stanzas
    }

    /// True once it is the turn of others.
    pub(crate) fn is_spent(&self) -> bool {
        self.stanzas >= STANZAS_IN_A_TURN || self.bytes >= BYTES_IN_A_TURN
    }
}

/// What was heard of one stream lately.
#[derive(Debug)]
pub(crate) struct Intake {
    /// When the window ends.
    until: Tick,
    stanzas: u32,
    bytes: u32,
    /// When the stanza that is half heard must have its end.
    whole_by: Tick,
}

impl Intake {
    /// Of a stream that begins.
    pub(crate) fn new(now: Tick) -> Self {
        Self { until: now, stanzas: 0, bytes: 0, whole_by: Tick::NEVER }
    }

    /// So many bytes were heard.
    pub(crate) fn bytes(&mut self, count: usize, now: Tick, limits: &Limits) -> Result<(), Reason> {
        if now >= self.until {
            (self.until, self.stanzas, self.bytes) = (now.after(WINDOW), 0, 0);
        }
        self.bytes = self.bytes.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        if over(self.bytes, limits.bytes_in_per_second_max) { Err(Reason::ByteRate) } else { Ok(()) }
    }

    /// So many of the bytes that were counted last are for another turn, which counts them again.
    pub(crate) fn unheard(&mut self, count: usize) {
        self.bytes = self.bytes.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
    }

    /// A stanza, or what else is worked on, was heard.
    pub(crate) fn stanza(&mut self, limits: &Limits) -> Result<(), Reason> {
        self.stanzas = self.stanzas.saturating_add(1);
        if over(self.stanzas, limits.stanzas_in_per_second_max) { Err(Reason::StanzaRate) } else { Ok(()) }
    }

    /// All bytes were read; `has_spoken` if a stanza had its end in them, and `is_half` if they end within one.
    ///
    /// Who feeds a stanza bit by bit is found out by the bit that comes too late. Who stops within one is silent, which is
    /// the wheel's concern.
    pub(crate) fn heard_all(
        &mut self,
        has_spoken: bool,
        is_half: bool,
        now: Tick,
        limits: &Limits,
    ) -> Result<(), Reason> {
        if !is_half {
            self.whole_by = Tick::NEVER;
        } else if has_spoken || self.whole_by == Tick::NEVER {
            self.whole_by = now.after(limits.stanza_time_max);
        } else if now >= self.whole_by {
            return Err(Reason::StanzaTime);
        }
        Ok(())
    }
}

/// True for what a client says only because it was asked to: how often that is is ours.
pub(crate) fn is_asked_for(event: &Event) -> bool {
    matches!(event, Event::Element(element) if element.is("a", NS_SM))
}

/// 0 is no limit.
fn over(count: u32, max: usize) -> bool {
    max > 0 && usize::try_from(count).is_ok_and(|count| count > max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wheel::Wheel;

    fn limits() -> Limits {
        Limits {
            stanzas_in_per_second_max: 3,
            bytes_in_per_second_max: 100,
            stanza_time_max: Duration::from_secs(2),
            ..Limits::default()
        }
    }

    fn pass(wheel: &Wheel, ticks: usize) -> Tick {
        for _ in 0..ticks {
            wheel.advance();
        }
        wheel.now()
    }

    #[test]
    fn a_second_has_room_for_so_much_and_the_next_one_for_as_much_again() {
        let (limits, wheel) = (limits(), Wheel::new(&limits()));
        let mut intake = Intake::new(wheel.now());
        for now in [wheel.now(), pass(&wheel, 4)] {
            assert_eq!(intake.bytes(100, now, &limits), Ok(()));
            for _ in 0..3 {
                assert_eq!(intake.stanza(&limits), Ok(()));
            }
        }
        let now = pass(&wheel, 3);
        assert_eq!(intake.stanza(&limits), Err(Reason::StanzaRate));
        assert_eq!(intake.bytes(1, now, &limits), Err(Reason::ByteRate));
    }

    #[test]
    fn without_a_limit_nothing_is_too_much() {
        let limits = Limits { stanzas_in_per_second_max: 0, bytes_in_per_second_max: 0, ..limits() };
        let wheel = Wheel::new(&limits);
        let mut intake = Intake::new(wheel.now());
        for _ in 0..2000 {
            assert_eq!(intake.bytes(usize::MAX, wheel.now(), &limits), Ok(()));
            assert_eq!(intake.stanza(&limits), Ok(()));
        }
    }

    #[test]
    fn a_stanza_that_is_fed_bit_by_bit_is_found_out_by_the_bit_that_is_late() {
        let (limits, wheel) = (limits(), Wheel::new(&limits()));
        let mut intake = Intake::new(wheel.now());
        assert_eq!(intake.heard_all(false, true, wheel.now(), &limits), Ok(()));
        assert_eq!(intake.heard_all(false, true, pass(&wheel, 8), &limits), Ok(()));
        assert_eq!(intake.heard_all(false, true, pass(&wheel, 1), &limits), Err(Reason::StanzaTime));
    }

    #[test]
    fn many_stanzas_behind_each_other_are_no_long_one() {
        let (limits, wheel) = (limits(), Wheel::new(&limits()));
        let mut intake = Intake::new(wheel.now());
        for _ in 0..10 {
            assert_eq!(intake.heard_all(true, true, pass(&wheel, 8), &limits), Ok(()));
        }
        assert_eq!(intake.heard_all(true, false, pass(&wheel, 8), &limits), Ok(()));
        assert_eq!(intake.heard_all(false, true, pass(&wheel, 80), &limits), Ok(()));
    }
}
