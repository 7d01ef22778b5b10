//! Whether the server is still there: when nothing was received for a while it is asked, and must answer in time.

/// What is due now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// Ask the server.
    Ask,
    /// It was asked and did not answer.
    Dead,
}

/// The heartbeat of one connection. All times are in milliseconds.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    silence_max: u64,
    answer_max: u64,
    received_at: u64,
    asked_at: Option<u64>,
}

/// Longest wait for an answer.
const ANSWER_MS_MAX: u64 = 30_000;

impl Heartbeat {
    /// Asks after `silence_max_ms` of silence and waits for an answer as long, at most 30 s.
    pub(crate) fn new(silence_max_ms: u64, now_ms: u64) -> Self {
        let silence_max_ms = silence_max_ms.max(1);
        Self {
            silence_max: silence_max_ms,
            answer_max: silence_max_ms.min(ANSWER_MS_MAX),
            received_at: now_ms,
            asked_at: None,
        }
    }

    /// Anything at all came: it lives.
    pub(crate) fn received(&mut self, now_ms: u64) {
        self.received_at = now_ms;
        self.asked_at = None;
    }

    /// When [`Heartbeat::due`] is worth calling.
    pub(crate) fn next_ms(&self) -> u64 {
        match self.asked_at {
            Some(asked_at) => asked_at.saturating_add(self.answer_max),
            None => self.received_at.saturating_add(self.silence_max),
        }
    }

    /// What is due. Having been asked to ask, it counts from now: a device that slept through the time is not cut off
    /// before the server had a chance to answer.
    pub(crate) fn due(&mut self, now_ms: u64) -> Option<Due> {
        if now_ms < self.next_ms() {
            return None;
        }
        if self.asked_at.is_some() {
            return Some(Due::Dead);
        }
        self.asked_at = Some(now_ms);
        Some(Due::Ask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_asked_about_and_then_ends_the_connection() {
        let mut heartbeat = Heartbeat::new(60_000, 0);
        assert_eq!(heartbeat.due(59_999), None);
        assert_eq!(heartbeat.due(60_000), Some(Due::Ask));
        assert_eq!(heartbeat.due(60_001), None);
        assert_eq!(heartbeat.due(90_000), Some(Due::Dead));
    }

    #[test]
    fn an_answer_starts_the_count_again() {
        let mut heartbeat = Heartbeat::new(60_000, 0);
        assert_eq!(heartbeat.due(60_000), Some(Due::Ask));
        heartbeat.received(60_100);
        assert_eq!(heartbeat.next_ms(), 120_100);
        assert_eq!(heartbeat.due(120_000), None);
    }

    #[test]
    fn a_device_that_slept_asks_before_it_gives_up() {
        let mut heartbeat = Heartbeat::new(60_000, 0);
        assert_eq!(heartbeat.due(10_000_000), Some(Due::Ask));
        assert_eq!(heartbeat.due(10_000_001), None);
    }
}
