//! What an app of the device is remembered to have had, each within a bound: message ids, job keys, notifications that are
//! shown. What is oldest leaves first; what comes again is still wanted, and becomes the newest.

use std::collections::{BTreeMap, VecDeque};

use idl::ids::MessageId;

/// Most job keys that are remembered for an app.
pub(crate) const JOB_KEYS_MAX: usize = 256;
/// Longest job key that is remembered, in bytes; the server takes none that is over 20. Messages with a longer one are not
/// taken for duplicates of each other.
pub(crate) const JOB_KEY_BYTES_MAX: usize = 64;
/// Most notifications of an app that are remembered to be shown.
pub(crate) const SHOWN_MAX: usize = 64;

/// Ids that need not be handed to the app (again).
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Window {
    /// Oldest first.
    order: VecDeque<MessageId>,
    /// Whether the app has the message and nobody took it back. False also for a revocation's own id.
    members: BTreeMap<MessageId, bool>,
}

impl Window {
    pub(crate) fn contains(&self, id: MessageId) -> bool {
        self.members.contains_key(&id)
    }

    /// True if the app has the message, as far as the window goes back, and nobody took it back.
    pub(crate) fn has(&self, id: MessageId) -> bool {
        self.members.get(&id) == Some(&true)
    }

    /// The app has it; one that was taken back or kept from the app before stays so.
    pub(crate) fn insert(&mut self, id: MessageId, seen_max: usize) {
        self.put(id, true, seen_max);
    }

    /// The app is not to have it, or no longer.
    pub(crate) fn withhold(&mut self, id: MessageId, seen_max: usize) {
        self.put(id, false, seen_max);
    }

    fn put(&mut self, id: MessageId, has: bool, seen_max: usize) {
        if let Some(had) = self.members.get_mut(&id) {
            *had &= has;
            self.order.retain(|known| *known != id);
        } else {
            self.members.insert(id, has);
        }
        self.order.push_back(id);
        while self.order.len() > seen_max.max(1) {
            if let Some(oldest) = self.order.pop_front() {
                self.members.remove(&oldest);
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    /// Oldest first, with [`Window::has`].
    pub(crate) fn iter(&self) -> impl Iterator<Item = (MessageId, bool)> {
        self.order.iter().map(|id| (*id, self.has(*id)))
    }
}

/// The first message with each job key.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct JobKeys {
    /// Oldest first.
    firsts: VecDeque<(String, MessageId)>,
}

impl JobKeys {
    /// True if another message with this key was handed over.
    pub(crate) fn is_taken(&self, key: &str, id: MessageId) -> bool {
        self.firsts.iter().any(|(known, first)| known == key && *first != id)
    }

    /// The message with this key is handed over.
    pub(crate) fn take(&mut self, key: &str, id: MessageId) {
        if key.len() > JOB_KEY_BYTES_MAX {
            return;
        }
        self.firsts.retain(|(known, _)| known != key);
        self.firsts.push_back((key.to_owned(), id));
        if self.firsts.len() > JOB_KEYS_MAX {
            self.firsts.pop_front();
        }
    }

    /// The app could not take the message: another may come in its place. True if it had a key.
    pub(crate) fn free(&mut self, id: MessageId) -> bool {
        let before = self.firsts.len();
        self.firsts.retain(|(_, first)| *first != id);
        self.firsts.len() < before
    }

    pub(crate) fn len(&self) -> usize {
        self.firsts.len()
    }

    /// Oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, MessageId)> {
        self.firsts.iter().map(|(key, first)| (key.as_str(), *first))
    }
}

/// Which message is shown under which `notify_id`.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Shown {
    /// Oldest first.
    notifications: VecDeque<Notified>,
}

/// A notification that is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Notified {
    pub(crate) notify_id: i64,
    pub(crate) id: MessageId,
    /// What it replaced, so that it says the same when it comes again.
    pub(crate) replaced: Option<MessageId>,
}

impl Shown {
    /// Shows a message; returns the one that it replaces.
    pub(crate) fn show(&mut self, notify_id: i64, id: MessageId) -> Option<MessageId> {
        let at = self.notifications.iter().position(|shown| shown.notify_id == notify_id);
        let before = at.and_then(|at| self.notifications.remove(at));
        let replaced = before.and_then(|before| if before.id == id { before.replaced } else { Some(before.id) });
        self.restore(Notified { notify_id, id, replaced });
        replaced
    }

    /// Puts back what was saved, as the newest.
    pub(crate) fn restore(&mut self, notified: Notified) {
        self.notifications.push_back(notified);
        if self.notifications.len() > SHOWN_MAX {
            self.notifications.pop_front();
        }
    }

    /// The message that is shown under the id.
    pub(crate) fn under(&self, notify_id: i64) -> Option<MessageId> {
        self.notifications.iter().find(|shown| shown.notify_id == notify_id).map(|shown| shown.id)
    }

    /// True if the message is shown.
    pub(crate) fn shows(&self, id: MessageId) -> bool {
        self.notifications.iter().any(|shown| shown.id == id)
    }

    /// The message is no longer shown: it was taken back.
    pub(crate) fn free(&mut self, id: MessageId) {
        self.notifications.retain_mut(|shown| {
            shown.replaced.take_if(|replaced| *replaced == id);
            shown.id != id
        });
    }

    /// The app could not show the message: what it would have replaced still stands there. True if it was to be shown.
    pub(crate) fn refused(&mut self, id: MessageId) -> bool {
        let mut found = false;
        self.notifications.retain_mut(|shown| {
            if shown.id != id {
                return true;
            }
            found = true;
            let before = shown.replaced.take();
            shown.id = before.unwrap_or(id);
            before.is_some()
        });
        found
    }

    pub(crate) fn len(&self) -> usize {
        self.notifications.len()
    }

    /// Oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Notified> {
        self.notifications.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_keeps_the_newest_and_what_came_again() {
        let mut window = Window::default();
        for id in [1, 2, 3, 1, 4] {
            window.insert(MessageId(id), 3);
        }
        assert!(!window.contains(MessageId(2)), "the oldest left");
        assert!([1, 3, 4].iter().all(|id| window.contains(MessageId(*id))));
        assert_eq!((window.len(), window.members.len()), (3, 3));
    }

    #[test]
    fn what_was_taken_back_is_not_had_again() {
        let mut window = Window::default();
        window.insert(MessageId(1), 3);
        assert!(window.has(MessageId(1)));
        window.withhold(MessageId(1), 3);
        window.insert(MessageId(1), 3);
        assert!(window.contains(MessageId(1)) && !window.has(MessageId(1)));
        assert!(!window.has(MessageId(2)), "it never came");
    }

    #[test]
    fn the_first_message_with_a_job_key_keeps_it() {
        let mut keys = JobKeys::default();
        keys.take("a", MessageId(1));
        assert!(keys.is_taken("a", MessageId(2)));
        assert!(!keys.is_taken("a", MessageId(1)), "it may come again itself");
        assert!(!keys.is_taken("b", MessageId(2)));
        keys.free(MessageId(1));
        assert!(!keys.is_taken("a", MessageId(2)));
    }

    #[test]
    fn job_keys_are_bounded_in_number_and_length() {
        let mut keys = JobKeys::default();
        for id in 0..1000 {
            keys.take(&id.to_string(), MessageId(id));
        }
        assert_eq!(keys.len(), JOB_KEYS_MAX);
        assert!(keys.is_taken("744", MessageId(0)) && !keys.is_taken("743", MessageId(0)));
        keys.take(&"x".repeat(JOB_KEY_BYTES_MAX + 1), MessageId(1000));
        assert!(keys.is_taken("744", MessageId(0)), "one that is too long takes no place");
    }

    #[test]
    fn a_notification_replaces_the_one_before_it_and_says_so_again() {
        let mut shown = Shown::default();
        assert_eq!(shown.show(7, MessageId(1)), None);
        assert_eq!(shown.show(7, MessageId(2)), Some(MessageId(1)));
        assert_eq!(shown.show(7, MessageId(2)), Some(MessageId(1)));
        assert_eq!(shown.show(8, MessageId(3)), None);
        assert_eq!(shown.under(7), Some(MessageId(2)));
    }

    #[test]
    fn what_was_taken_back_or_refused_is_not_replaced() {
        let mut shown = Shown::default();
        shown.show(7, MessageId(1));
        shown.show(7, MessageId(2));
        shown.refused(MessageId(2));
        assert_eq!(shown.under(7), Some(MessageId(1)), "it still stands there");
        shown.show(7, MessageId(2));
        shown.free(MessageId(1));
        assert_eq!(shown.show(7, MessageId(2)), None);
        shown.free(MessageId(2));
        assert_eq!((shown.under(7), shown.len()), (None, 0));
        shown.show(7, MessageId(3));
        shown.refused(MessageId(3));
        assert_eq!(shown.len(), 0);
    }

    #[test]
    fn shown_notifications_are_bounded_and_one_that_is_replaced_stays_longer() {
        let mut shown = Shown::default();
        for notify_id in 0..64 {
            shown.show(notify_id, MessageId(1));
        }
        shown.show(0, MessageId(2));
        shown.show(100, MessageId(3));
        assert_eq!((shown.len(), shown.under(1), shown.under(0)), (SHOWN_MAX, None, Some(MessageId(2))));
    }
}
