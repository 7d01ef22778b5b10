//! Fast reconnects (XEP-0484): a login by one message, the client's half of SASL HT (draft-schmaus-kitten-sasl-ht), with a
//! token that the client got at an earlier login. Without I/O.
//!
//! Nothing is stored. The token of a client is a keyed hash of what it was issued for ([`Reconnect`]), so a front makes
//! those anew that the client may have, and tries each. A revocation of the account's tokens is part of what is hashed: no
//! token of before is found again. Three things that XEP-0484 asks for take storage and are not done: a token that was
//! used does not end those before it, one token can't be invalidated alone, and a `count` is not looked at, for which
//! early data of TLS must never be accepted.

use idl::ids::AccountId;
use idl::token::{KeyRing, Reconnect};
use jiff::Timestamp;
use ring::hmac;

use crate::sasl::{Failure, Username};
use crate::scram::Exporter;

/// Namespace of XEP-0484.
pub(crate) const NS: &str = "urn:xmpp:fast:0";

/// Tokens that are issued in the same period are the same.
const PERIOD_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// A token is good for the rest of its period and this many more.
const PERIODS_MORE: u64 = 3;

/// An HT mechanism with SHA-256, by what it says of the TLS below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mechanism {
    /// The proof is bound to this TLS connection (RFC 9266).
    Exporter,
    /// The proof is good on any connection.
    Unbound,
}

impl Mechanism {
    /// Those that can be had over a channel, the better one first.
    pub(crate) fn over(exporter: Option<Exporter>) -> &'static [Self] {
        if exporter.is_some() { &[Self::Exporter, Self::Unbound] } else { &[Self::Unbound] }
    }

    /// Its name in SASL.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Exporter => "HT-SHA-256-EXPR",
            Self::Unbound => "HT-SHA-256-NONE",
        }
    }

    /// What both sides hash behind their word.
    fn binding(self, exporter: Option<Exporter>) -> Vec<u8> {
        match self {
            Self::Exporter => exporter.map(Vec::from).unwrap_or_default(),
            Self::Unbound => Vec::new(),
        }
    }
}

/// A login with a token.
#[derive(Debug)]
pub(crate) struct Attempt<'a> {
    pub(crate) mechanism: Mechanism,
    pub(crate) username: Username,
    /// What the client calls itself.
    pub(crate) client: &'a str,
    proof: Vec<u8>,
    binding: Vec<u8>,
}

/// A login with a token that held.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Proved {
    /// Our half: it proves to the client that we know the token too.
    pub(crate) answer: Vec<u8>,
    /// The token is of an earlier period: the client should get a new one.
    pub(crate) ageing: bool,
}

/// A token for a client.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token {
    secret: String,
    expires_at_ms: u64,
}

impl<'a> Attempt<'a> {
    /// Reads the client's message: user name, NUL, proof.
    pub(crate) fn parse(
        message: &[u8],
        mechanism: Mechanism,
        client: &'a str,
        exporter: Option<Exporter>,
        domain: &str,
    ) -> Result<Self, Failure> {
        let mut parts = message.splitn(2, |byte| *byte == 0);
        let (Some(name), Some(proof)) = (parts.next(), parts.next()) else { return Err(Failure::MalformedRequest) };
        let name = std::str::from_utf8(name).map_err(|_| Failure::MalformedRequest)?;
        if name.is_empty() || proof.is_empty() {
            return Err(Failure::MalformedRequest);
        }
        let (username, binding) = (Username::parse(name, domain), mechanism.binding(exporter));
        Ok(Self { mechanism, username, client, proof: proof.to_vec(), binding })
    }

    /// Tries each token that the client may have, where that revocation is in force. Compares in constant time.
    pub(crate) fn prove(&self, ring: &KeyRing, revoked_before_ms: u64, now_ms: u64) -> Option<Proved> {
        let account = self.username.account?;
        let now = now_ms / PERIOD_MS;
        (now.saturating_sub(PERIODS_MORE)..=now).rev().find_map(|period| {
            let of = reconnect(account, self.client, self.mechanism, period, revoked_before_ms);
            let key =
                ring.reconnect_candidates(&of).map(|token| hmac::Key::new(hmac::HMAC_SHA256, token.as_bytes())).find(
                    |key| hmac::verify(key, &[b"Initiator", self.binding.as_slice()].concat(), &self.proof).is_ok(),
                )?;
            let answer = hmac::sign(&key, &[b"Responder", self.binding.as_slice()].concat());
            Some(Proved { answer: answer.as_ref().to_vec(), ageing: period < now })
        })
    }
}

impl Token {
    /// The token of a client, with the newest key.
    pub(crate) fn issue(
        ring: &KeyRing,
        account: AccountId,
        client: &str,
        mechanism: Mechanism,
        revoked_before_ms: u64,
        now_ms: u64,
    ) -> Self {
        let period = now_ms / PERIOD_MS;
        let secret = ring.issue_reconnect(&reconnect(account, client, mechanism, period, revoked_before_ms));
        Self { secret, expires_at_ms: (period + PERIODS_MORE + 1).saturating_mul(PERIOD_MS) }
    }

    /// The element that hands it to the client.
    pub(crate) fn element(&self) -> String {
        let Self { secret, expires_at_ms } = self;
        let expiry = i64::try_from(*expires_at_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
        format!("<token xmlns='{NS}' token='{secret}' expiry='{}'/>", expiry.unwrap_or(Timestamp::MAX))
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("expires_at_ms", &self.expires_at_ms).finish_non_exhaustive()
    }
}

fn reconnect(
    account: AccountId,
    client: &str,
    mechanism: Mechanism,
    period: u64,
    revoked_before_ms: u64,
) -> Reconnect<'_> {
    Reconnect { account, client, mechanism: mechanism.name(), period, revoked_before_ms }
}

/// A client's message.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn client_message(username: &str, token: &str, binding: &[u8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, token.as_bytes());
    let proof = hmac::sign(&key, &[b"Initiator", binding].concat());
    [username.as_bytes(), &[0], proof.as_ref()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNT: AccountId = AccountId(7);
    const EXPORTER: Exporter = [5; 32];
    const NOW_MS: u64 = 100 * PERIOD_MS + 5;

    fn ring() -> KeyRing {
        KeyRing::new(&[(2, [2; 32]), (1, [1; 32])])
    }

    fn token(ring: &KeyRing, mechanism: Mechanism) -> Token {
        Token::issue(ring, ACCOUNT, "client", mechanism, 0, NOW_MS)
    }

    /// Tries a token over TLS with [`EXPORTER`].
    fn try_it(token: &Token, shown: &[u8], mechanism: Mechanism, client: &str, now: (u64, u64)) -> Option<Proved> {
        let message = client_message(&ACCOUNT.to_string(), &token.secret, shown);
        let attempt = Attempt::parse(&message, mechanism, client, Some(EXPORTER), "example.org").expect("a message");
        attempt.prove(&ring(), now.0, now.1)
    }

    #[test]
    fn a_token_logs_its_client_in_over_the_tls_it_is_shown_on() {
        let bound = token(&ring(), Mechanism::Exporter);
        let proved = try_it(&bound, &EXPORTER, Mechanism::Exporter, "client", (0, NOW_MS)).expect("it holds");
        let key = hmac::Key::new(hmac::HMAC_SHA256, bound.secret.as_bytes());
        assert!(hmac::verify(&key, &[b"Responder", EXPORTER.as_slice()].concat(), &proved.answer).is_ok());
        assert!(!proved.ageing);
        let elsewhere = try_it(&bound, &[6; 32], Mechanism::Exporter, "client", (0, NOW_MS));
        assert_eq!(elsewhere, None, "another TLS connection");
        assert_eq!(try_it(&bound, &EXPORTER, Mechanism::Exporter, "other", (0, NOW_MS)), None, "another client");
        assert_eq!(try_it(&bound, &[], Mechanism::Unbound, "client", (0, NOW_MS)), None, "another mechanism");
        let unbound = token(&ring(), Mechanism::Unbound);
        assert!(try_it(&unbound, &[], Mechanism::Unbound, "client", (0, NOW_MS)).is_some());
    }

    #[test]
    fn a_token_is_good_until_it_says_and_is_to_be_renewed_before() {
        let token = token(&ring(), Mechanism::Unbound);
        let at = |now_ms| try_it(&token, &[], Mechanism::Unbound, "client", (0, now_ms)).map(|proved| proved.ageing);
        let expires_at_ms = token.expires_at_ms;
        assert_eq!(expires_at_ms, 104 * PERIOD_MS);
        assert_eq!(at(101 * PERIOD_MS - 1), Some(false));
        assert_eq!(at(101 * PERIOD_MS), Some(true));
        assert_eq!(at(expires_at_ms - 1), Some(true));
        assert_eq!(at(expires_at_ms), None);
        assert_eq!(at(0), None);
    }

    #[test]
    fn a_revocation_ends_it_and_a_rotation_of_keys_does_not() {
        let token = token(&ring(), Mechanism::Unbound);
        assert_eq!(try_it(&token, &[], Mechanism::Unbound, "client", (1, NOW_MS)), None);
        let older = KeyRing::new(&[(1, [1; 32])]);
        let token = self::token(&older, Mechanism::Unbound);
        assert!(try_it(&token, &[], Mechanism::Unbound, "client", (0, NOW_MS)).is_some());
        let token = self::token(&KeyRing::new(&[(3, [3; 32])]), Mechanism::Unbound);
        assert_eq!(try_it(&token, &[], Mechanism::Unbound, "client", (0, NOW_MS)), None);
    }

    #[test]
    fn what_is_no_message_is_malformed_and_a_short_proof_proves_nothing() {
        let parse = |message: &[u8]| Attempt::parse(message, Mechanism::Unbound, "client", None, "example.org");
        for message in [b"".as_slice(), b"name", b"name\0", b"\0proof", b"\xff\0proof"] {
            assert_eq!(parse(message).err(), Some(Failure::MalformedRequest), "{message:?}");
        }
        let short = parse(format!("{ACCOUNT}\0x").as_bytes()).expect("a message");
        assert_eq!(short.prove(&ring(), 0, NOW_MS), None);
        let nobody = parse(b"nobody\0x").expect("a message");
        assert_eq!(nobody.prove(&ring(), 0, NOW_MS), None);
    }

    #[test]
    fn a_token_is_handed_over_with_its_expiry_and_never_shown_in_logs() {
        let token = token(&ring(), Mechanism::Unbound);
        let element: minidom::Element = token.element().parse().expect("an element");
        assert_eq!(element.attr("token"), Some(token.secret.as_str()));
        assert_eq!(element.attr("expiry"), Some("1971-12-30T00:00:00Z"));
        assert!(!format!("{token:?}").contains(&token.secret));
    }
}
