//! What is said between a front and the service of a channel (XEP-0114). Pure functions.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use idl::channel::{NS, Payload};
use idl::ids::AccountId;
use idl::xml::{NS_STREAM, escape_attribute};
use minidom::Element;
use ring::digest;
use subtle::ConstantTimeEq as _;

use crate::stanza::{NS_STANZAS, ReplyTo, Request, Trouble};

/// Namespace of stanzas between a component and its server.
pub(super) const NS_COMPONENT: &str = "jabber:component:accept";
const NS_PING: &str = "urn:xmpp:ping";
/// Of a service's error, this much of its text reaches the device.
const TEXT_CHARS_MAX: usize = 256;

/// RFC 6120 §8.3.2 and §8.3.3: what an error may say.
const KINDS: [&str; 5] = ["auth", "cancel", "continue", "modify", "wait"];
const CONDITIONS: [&str; 22] = [
    "bad-request",
    "conflict",
    "feature-not-implemented",
    "forbidden",
    "gone",
    "internal-server-error",
    "item-not-found",
    "jid-malformed",
    "not-acceptable",
    "not-allowed",
    "not-authorized",
    "policy-violation",
    "recipient-unavailable",
    "redirect",
    "registration-required",
    "remote-server-not-found",
    "remote-server-timeout",
    "resource-constraint",
    "service-unavailable",
    "subscription-required",
    "undefined-condition",
    "unexpected-request",
];

/// For whom a service's stanza is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Recipient {
    pub(super) account: AccountId,
    /// `None` for all its connections.
    pub(super) resource: Option<Box<str>>,
}

/// What a service said.
#[derive(Debug, PartialEq)]
pub(super) enum Said {
    /// Nothing is to be done.
    Nothing,
    /// An answer to the opening of that id.
    Answer(u64, Result<(), Trouble>),
    /// A payload for devices.
    Down(Recipient, Payload),
    /// What is wrong with a message of a device.
    Refused(Recipient, Option<String>, Trouble),
    /// Say this back.
    Reply(String),
    /// The stanza is refused.
    Wrong(Trouble),
    /// No stanza at all.
    Unknown,
}

/// Who the service is.
pub(super) struct Service<'a> {
    pub(super) name: &'a str,
    pub(super) number: u32,
    /// The domain of the devices.
    pub(super) domain: &'a str,
}

impl Service<'_> {
    /// What an element means, coming from this service.
    pub(super) fn hear(&self, element: &Element) -> Said {
        if !element.has_ns(NS_COMPONENT) || !matches!(element.name(), "iq" | "message" | "presence") {
            return Said::Unknown;
        }
        let kind = element.attr("type");
        let answered = match element.name() {
            "iq" => matches!(kind, Some("result" | "error")),
            // A front keeps no presence of services.
            "presence" => return Said::Nothing,
            _ => kind == Some("error"),
        };
        if !element.attr("from").is_some_and(|from| self.is_own(from)) {
            // An error must not be answered by an error (RFC 6120 §8.3.1).
            return if answered {
                Said::Nothing
            } else {
                let text = format!("'from' must be an address of {}", self.name);
                wrong("modify", "not-allowed", text)
            };
        }
        match element.name() {
            "iq" if answered => answer(element),
            "iq" => self.iq(element),
            _ => self.message(element, answered),
        }
    }

    fn is_own(&self, from: &str) -> bool {
        let bare = from.split_once('/').map_or(from, |(bare, _)| bare);
        bare.split_once('@').map_or(bare, |(_, domain)| domain).eq_ignore_ascii_case(self.name)
    }

    fn iq(&self, element: &Element) -> Said {
        let is_ping = element.attr("type") == Some("get") && element.has_child("ping", NS_PING);
        if is_ping && element.attr("to").is_none_or(|to| to.eq_ignore_ascii_case(self.domain)) {
            return Said::Reply(ReplyTo::of(element).result(element.attr("from").unwrap_or(self.name), ""));
        }
        wrong("cancel", "service-unavailable", "")
    }

    fn message(&self, element: &Element, is_error: bool) -> Said {
        let Some(to) = element.attr("to").and_then(|to| self.recipient(to)) else {
            return if is_error {
                Said::Nothing
            } else {
                wrong("cancel", "item-not-found", "there is no such account here")
            };
        };
        if is_error {
            return Said::Refused(to, element.attr("id").map(str::to_owned), trouble(element));
        }
        match Payload::from_message(element) {
            Some(Ok(payload)) if payload.number == self.number => Said::Down(to, payload),
            Some(Ok(_)) => wrong("cancel", "not-allowed", format!("your channel is {} and no other", self.number)),
            Some(Err(invalid)) => wrong("modify", "bad-request", invalid.to_string()),
            None => wrong("cancel", "service-unavailable", ""),
        }
    }

    fn recipient(&self, to: &str) -> Option<Recipient> {
        let (bare, resource) = to.split_once('/').map_or((to, None), |(bare, resource)| (bare, Some(resource)));
        let (account, domain) = bare.split_once('@')?;
        let ours = domain.eq_ignore_ascii_case(self.domain);
        Some(Recipient { account: account.parse().ok().filter(|_| ours)?, resource: resource.map(Into::into) })
    }
}

fn answer(element: &Element) -> Said {
    // Others than openings are answers to pings.
    let id = element.attr("id").and_then(|id| id.strip_prefix("open-")).and_then(|id| id.parse().ok());
    match (id, element.attr("type")) {
        (Some(id), Some("result")) => Said::Answer(id, Ok(())),
        (Some(id), _) => Said::Answer(id, Err(trouble(element))),
        (None, _) => Said::Nothing,
    }
}

/// What a service's error says, as far as RFC 6120 knows it.
fn trouble(element: &Element) -> Trouble {
    let known = |known: &[&'static str], said: &str| known.iter().find(|known| **known == said).copied();
    let error = element.get_child("error", NS_COMPONENT);
    let kind = error.and_then(|error| known(&KINDS, error.attr("type")?)).unwrap_or("cancel");
    let children = || error.into_iter().flat_map(Element::children).filter(|child| child.has_ns(NS_STANZAS));
    let condition = children().find_map(|child| known(&CONDITIONS, child.name())).unwrap_or("undefined-condition");
    let text = children().find(|child| child.name() == "text").map(Element::text).unwrap_or_default();
    Trouble::new(kind, condition, text.chars().take(TEXT_CHARS_MAX).collect::<String>())
}

/// Tells a service that a device opens its channel.
pub(super) fn open(id: u64, from: &str, to: &str, number: u32, payload: &[u8]) -> String {
    let (from, payload) = (escape_attribute(from), STANDARD.encode(payload));
    format!(
        "<iq type='set' id='open-{id}' from='{from}' to='{to}'><open xmlns='{NS}' number='{number}'>{payload}</open></iq>"
    )
}

/// Hands a service what a device says on its channel.
pub(super) fn message(from: &str, to: &str, request: &Request) -> String {
    let (from, Payload { number, bytes }) = (escape_attribute(from), &request.payload);
    let id = request.reply.id().map(|id| format!(" id='{}'", escape_attribute(id))).unwrap_or_default();
    let payload = STANDARD.encode(bytes);
    format!(
        "<message{id} from='{from}' to='{to}'><channel xmlns='{NS}' number='{number}'>{payload}</channel></message>"
    )
}

/// Tells a service that a device has gone.
pub(super) fn gone(from: &str, to: &str) -> String {
    format!("<presence type='unavailable' from='{}' to='{to}'/>", escape_attribute(from))
}

/// Asks a service for a sign of life (XEP-0199).
pub(super) fn ping(domain: &str, to: &str) -> String {
    format!("<iq type='get' id='ping' from='{domain}' to='{to}'><ping xmlns='{NS_PING}'/></iq>")
}

/// The error that answers a service's stanza.
pub(super) fn error(element: &Element, trouble: &Trouble) -> String {
    ReplyTo::of(element).error(element.attr("from"), trouble)
}

fn wrong(kind: &'static str, condition: &'static str, text: impl Into<String>) -> Said {
    Said::Wrong(Trouble::new(kind, condition, text))
}

/// The opening tag of a front's stream.
pub(super) fn header(from: &str, id: &str) -> String {
    let from = escape_attribute(from);
    format!(
        "<?xml version='1.0'?><stream:stream xmlns='{NS_COMPONENT}' xmlns:stream='{NS_STREAM}' from='{from}' id='{id}'>"
    )
}

/// True if a handshake proves the secret (XEP-0114 §3): the digest of the stream's id and the secret, in hexadecimal.
pub(super) fn proves(handshake: &str, id: &str, secret: &str) -> bool {
    // SHA-1 is what the protocol has; it is no worse here than a secret in the clear, which loopback would bear.
    let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, format!("{id}{secret}").as_bytes());
    let mut expected = String::new();
    for byte in digest.as_ref() {
        // Writing to a string can't fail.
        let _ = write!(expected, "{byte:02x}");
    }
    bool::from(expected.as_bytes().ct_eq(handshake.trim().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_is_the_digest_of_id_and_secret_and_of_nothing_else() {
        // Computed with coreutils: printf %s 3BF96D32test | sha1sum
        let digest = "aaee83c26aeeafcbabeabfcbcd50df997e0a2a1e";
        assert!(proves(digest, "3BF96D32", "test"));
        assert!(proves(&format!("\n{digest}\n"), "3BF96D32", "test"));
        for (digest, id, secret) in [
            (digest, "3BF96D32", "tests"),
            (digest, "3BF96D33", "test"),
            ("", "3BF96D32", "test"),
            (&digest[1..], "3BF96D32", "test"),
        ] {
            assert!(!proves(digest, id, secret), "{digest} {id} {secret}");
        }
    }

    #[test]
    fn an_address_that_only_ends_like_the_service_is_not_its_own() {
        let service = Service { name: "rooms.example.org", number: 7, domain: "example.org" };
        for own in ["rooms.example.org", "rooms.example.org/x@y", "lobby@rooms.example.org/a", "Rooms.Example.org"] {
            assert!(service.is_own(own), "{own}");
        }
        for other in [
            "",
            "example.org",
            "xrooms.example.org",
            "rooms.example.org@example.org",
            "a@example.org/rooms.example.org",
        ] {
            assert!(!service.is_own(other), "{other}");
        }
    }

    #[test]
    fn an_error_that_no_standard_knows_is_told_as_one_that_it_does() {
        let said = |error: &str| {
            let text = format!("<iq xmlns='{NS_COMPONENT}' type='error' id='open-1' from='s'>{error}</iq>");
            answer(&text.parse().expect("an element"))
        };
        let undefined = Said::Answer(1, Err(Trouble::new("cancel", "undefined-condition", "")));
        assert_eq!(said(""), undefined);
        assert_eq!(said("<error type='x'><y xmlns='z'/></error>"), undefined);
        let long = format!("<text xmlns='{NS_STANZAS}'>{}</text>", "ü".repeat(1000));
        let known = said(&format!("<error type='auth'>{long}<forbidden xmlns='{NS_STANZAS}'/></error>"));
        assert_eq!(known, Said::Answer(1, Err(Trouble::new("auth", "forbidden", "ü".repeat(TEXT_CHARS_MAX)))));
    }
}
