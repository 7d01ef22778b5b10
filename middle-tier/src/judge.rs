//! Judgement: does a stored broadcast concern a registration? Decided from stored membership alone.

use std::collections::{BTreeMap, BTreeSet};

use idl::audience::{Audience, Comparison, Evaluate};
use idl::ids::{Alias, MessageId, TopicName, UserAccount};
use idl::message::Message;
use schema::profiles::Profile;
use schema::registrations::Registration;

/// True if the broadcast waits for the registration: it is for it, and not only for who was connected.
pub(crate) fn concerns(message: &Message, registration: &Registration) -> bool {
    !message.handling.only_once && is_for(message, registration)
}

/// True if the broadcast is for the registration: it was accepted after the registration was made, and its audience
/// holds with the topics that were subscribed to before it was accepted.
pub(crate) fn is_for(message: &Message, registration: &Registration) -> bool {
    // Taking back concerns whom the message that is taken back concerned.
    let at = message.handling.revokes.unwrap_or(message.id);
    message.id > registration.created_at
        && message
            .audience
            .as_ref()
            .is_some_and(|audience| audience.evaluate(&Membership { facts: registration.into(), at }))
}

/// True if an expression holds for a registration as it is now.
pub(crate) fn holds<'a>(audience: &Audience, registration: impl Into<Facts<'a>>) -> bool {
    audience.evaluate(&Membership { facts: registration.into(), at: MessageId::MAX })
}

/// What expressions ask of a registration.
pub(crate) struct Facts<'a> {
    attributes: &'a BTreeMap<String, String>,
    aliases: &'a BTreeSet<Alias>,
    user_accounts: &'a BTreeSet<UserAccount>,
    topics: &'a BTreeMap<TopicName, MessageId>,
}

impl<'a> From<&'a Registration> for Facts<'a> {
    fn from(registration: &'a Registration) -> Self {
        let Registration { attributes, aliases, user_accounts, topics, .. } = registration;
        Self { attributes, aliases, user_accounts, topics }
    }
}

impl<'a> From<&'a Profile> for Facts<'a> {
    fn from(profile: &'a Profile) -> Self {
        let Profile { attributes, aliases, user_accounts, topics, .. } = profile;
        Self { attributes, aliases, user_accounts, topics }
    }
}

/// A registration's membership as it counts for a message.
struct Membership<'a> {
    facts: Facts<'a>,
    at: MessageId,
}

impl Evaluate for Membership<'_> {
    type Set = bool;

    fn everyone(&self) -> bool {
        true
    }

    fn topic(&self, topic: &TopicName) -> bool {
        self.facts.topics.get(topic).is_some_and(|since| *since < self.at)
    }

    fn alias(&self, alias: &Alias) -> bool {
        self.facts.aliases.contains(alias)
    }

    fn user_account(&self, user_account: &UserAccount) -> bool {
        self.facts.user_accounts.contains(user_account)
    }

    fn attribute(&self, comparison: &Comparison) -> bool {
        self.facts.attributes.get(comparison.attribute()).is_some_and(|value| comparison.holds(value))
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
