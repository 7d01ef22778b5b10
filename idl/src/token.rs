//! Tokens of device accounts. A token proves itself, so that a storm of reconnects reads no storage: a keyed hash over
//! account id and issue time, under a key ring that fronts and middles share.
//!
//! Text form: `cpt1.<key number>.<issue time in ms>.<hash in URL-safe base 64>`.
//!
//! A token for coming back ([`Reconnect`]) proves itself too, but is never shown again: its client shows a hash made with
//! it. So it is found by making it anew from what it was issued for. Text form: `cpf1.<hash in URL-safe base 64>`.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use thiserror::Error;

use crate::ids::AccountId;

/// Why a token is not accepted. None of them says what would have been right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TokenError {
    /// It has not the form of a token.
    #[error("the token is not of the form cpt1.<key>.<time>.<hash>")]
    Malformed,
    /// Its key has left the ring.
    #[error("the token was made with a key that is no longer in use")]
    UnknownKey,
    /// Its hash is not that account's.
    #[error("the token is not this account's")]
    Mismatch,
}

/// What a token for coming back (XEP-0484) was issued for. The same of each gives the same token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reconnect<'a> {
    /// Whose it is.
    pub account: AccountId,
    /// What the client calls itself, so that each client of an account has a token of its own.
    pub client: &'a str,
    /// The SASL mechanism that it is good for.
    pub mechanism: &'a str,
    /// When it was issued: the number of a period of time.
    pub period: u64,
    /// Which revocation of the account's tokens was in force; 0 if there was none. A newer one makes another token.
    pub revoked_before_ms: u64,
}

impl Reconnect<'_> {
    fn signed(&self) -> Vec<u8> {
        let Self { account, client, mechanism, period, revoked_before_ms } = self;
        let numbers = [period.to_be_bytes(), revoked_before_ms.to_be_bytes()].concat();
        [
            b"campanile reconnect 1".as_slice(),
            &account.to_bytes(),
            &numbers,
            mechanism.as_bytes(),
            &[0],
            client.as_bytes(),
        ]
        .concat()
    }
}

/// The keys that make and prove tokens. The first makes new ones; all prove.
#[derive(Clone)]
pub struct KeyRing {
    keys: Vec<(u32, hmac::Key)>,
}

impl KeyRing {
    /// A ring of numbered keys of 32 bytes, the newest first. Panics on an empty ring: nothing could be proved by it.
    pub fn new(keys: &[(u32, [u8; 32])]) -> Self {
        assert!(!keys.is_empty(), "a key ring has at least one key");
        Self { keys: keys.iter().map(|(number, key)| (*number, hmac::Key::new(hmac::HMAC_SHA256, key))).collect() }
    }

    /// The token of an account, issued at `issued_at_ms`. The same arguments give the same token.
    pub fn issue(&self, account: AccountId, issued_at_ms: u64) -> String {
        let (number, key) = &self.keys[0];
        format_token(*number, issued_at_ms, key, account)
    }

    /// Proves a token and returns when it was issued. Takes the same time wherever a wrong hash differs.
    pub fn prove(&self, account: AccountId, token: &str) -> Result<u64, TokenError> {
        let mut parts = token.split('.');
        let (Some("cpt1"), Some(number), Some(issued), Some(hash), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Malformed);
        };
        let number: u32 = number.parse().map_err(|_| TokenError::Malformed)?;
        let issued_at_ms: u64 = issued.parse().map_err(|_| TokenError::Malformed)?;
        let hash = URL_SAFE_NO_PAD.decode(hash).map_err(|_| TokenError::Malformed)?;
        let (_, key) = self.keys.iter().find(|(known, _)| *known == number).ok_or(TokenError::UnknownKey)?;
        hmac::verify(key, &signed(account, issued_at_ms), &hash).map_err(|_| TokenError::Mismatch)?;
        Ok(issued_at_ms)
    }

    /// The tokens that were issued to an account at that time, one for each key of the ring: what a SCRAM login with
    /// one of them is checked against.
    pub fn candidates(&self, account: AccountId, issued_at_ms: u64) -> Vec<String> {
        self.keys.iter().map(|(number, key)| format_token(*number, issued_at_ms, key, account)).collect()
    }

    /// A token for coming back, made with the newest key.
    pub fn issue_reconnect(&self, reconnect: &Reconnect<'_>) -> String {
        let (_, key) = &self.keys[0];
        format_reconnect(key, reconnect)
    }

    /// The tokens that were issued for that, one for each key of the ring, the newest first.
    pub fn reconnect_candidates(&self, reconnect: &Reconnect<'_>) -> impl Iterator<Item = String> {
        self.keys.iter().map(|(_, key)| format_reconnect(key, reconnect))
    }

    /// The salt of an account's SCRAM keys: always the same for one account, existing or not, and not to be guessed.
    pub fn scram_salt(&self, account: &str) -> [u8; 16] {
        let (_, key) = self.keys.last().expect("a key ring has at least one key");
        let tag = hmac::sign(key, format!("campanile scram salt 1 {account}").as_bytes());
        let mut salt = [0; 16];
        salt.copy_from_slice(&tag.as_ref()[..16]);
        salt
    }
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|(number, _)| number)).finish()
    }
}

fn format_token(number: u32, issued_at_ms: u64, key: &hmac::Key, account: AccountId) -> String {
    let tag = hmac::sign(key, &signed(account, issued_at_ms));
    format!("cpt1.{number}.{issued_at_ms}.{}", URL_SAFE_NO_PAD.encode(tag))
}

fn format_reconnect(key: &hmac::Key, reconnect: &Reconnect<'_>) -> String {
    format!("cpf1.{}", URL_SAFE_NO_PAD.encode(hmac::sign(key, &reconnect.signed())))
}

fn signed(account: AccountId, issued_at_ms: u64) -> Vec<u8> {
    [b"campanile token 1".as_slice(), &account.to_bytes(), &issued_at_ms.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNT: AccountId = AccountId(7);

    #[test]
    fn a_token_proves_itself_and_says_when_it_was_issued() {
        let ring = KeyRing::new(&[(1, [1; 32])]);
        let token = ring.issue(ACCOUNT, 1234);
        assert_eq!(ring.prove(ACCOUNT, &token), Ok(1234));
        assert!(ring.candidates(ACCOUNT, 1234).contains(&token));
    }

    #[test]
    fn another_account_time_or_key_does_not_pass() {
        let ring = KeyRing::new(&[(1, [1; 32])]);
        let token = ring.issue(ACCOUNT, 1234);
        assert_eq!(ring.prove(AccountId(8), &token), Err(TokenError::Mismatch));
        assert_eq!(ring.prove(ACCOUNT, &token.replace("1234", "1235")), Err(TokenError::Mismatch));
        assert_eq!(KeyRing::new(&[(1, [2; 32])]).prove(ACCOUNT, &token), Err(TokenError::Mismatch));
        assert_eq!(KeyRing::new(&[(2, [1; 32])]).prove(ACCOUNT, &token), Err(TokenError::UnknownKey));
    }

    #[test]
    fn a_token_outlives_a_rotation_while_its_key_stays_in_the_ring() {
        let token = KeyRing::new(&[(1, [1; 32])]).issue(ACCOUNT, 5);
        assert_eq!(KeyRing::new(&[(2, [2; 32]), (1, [1; 32])]).prove(ACCOUNT, &token), Ok(5));
    }

    #[test]
    fn what_is_no_token_is_malformed() {
        let ring = KeyRing::new(&[(1, [1; 32])]);
        for text in ["", "cpt1", "cpt1.1.5", "cpt1.1.5.!", "cpt2.1.5.AAAA", "cpt1.x.5.AAAA", "cpt1.1.5.AAAA.x"] {
            assert_eq!(ring.prove(ACCOUNT, text), Err(TokenError::Malformed), "{text:?}");
        }
    }

    #[test]
    fn a_token_for_coming_back_is_of_all_that_it_was_issued_for() {
        let of =
            Reconnect { account: ACCOUNT, client: "c", mechanism: "HT-SHA-256-NONE", period: 3, revoked_before_ms: 0 };
        let ring = KeyRing::new(&[(2, [2; 32]), (1, [1; 32])]);
        let token = ring.issue_reconnect(&of);
        assert_eq!(token, ring.issue_reconnect(&of));
        let others = [
            Reconnect { account: AccountId(8), ..of },
            Reconnect { client: "d", ..of },
            Reconnect { mechanism: "HT-SHA-256-EXPR", ..of },
            Reconnect { period: 4, ..of },
            Reconnect { revoked_before_ms: 1, ..of },
            Reconnect { mechanism: "HT-SHA-256-NON", client: "Ec", ..of },
        ];
        for other in others {
            assert_ne!(ring.issue_reconnect(&other), token, "{other:?}");
        }
        let older = KeyRing::new(&[(1, [1; 32])]).issue_reconnect(&of);
        assert_eq!(ring.reconnect_candidates(&of).collect::<Vec<_>>(), [token, older]);
    }
}
