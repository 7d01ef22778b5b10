//! Judgement: does a stored broadcast concern a registration? Decided from stored membership alone.

use idl::audience::Evaluate;
use idl::ids::{MessageId, TopicName};
use idl::message::Message;
use schema::registrations::Registration;

/// True if the broadcast is for the registration: it was accepted after the registration was made, and its audience
/// holds with the topics that were subscribed to before it was accepted.
pub(crate) fn concerns(message: &Message, registration: &Registration) -> bool {
    message.id > registration.created_at
        && message
            .audience
            .as_ref()
            .is_some_and(|audience| audience.evaluate(&Membership { registration, at: message.id }))
}

/// A registration's membership as it counts for a message.
struct Membership<'a> {
    registration: &'a Registration,
    at: MessageId,
}

impl Evaluate for Membership<'_> {
    type Set = bool;

    fn everyone(&self) -> bool {
        true
    }

    fn topic(&self, topic: &TopicName) -> bool {
        self.registration.topics.get(topic).is_some_and(|since| *since < self.at)
    }

    fn and(&self, a: bool, b: bool) -> bool {
        a && b
    }

    fn or(&self, a: bool, b: bool) -> bool {
        a || b
    }

    fn not(&self, a: bool) -> bool {
        !a
    }
}
