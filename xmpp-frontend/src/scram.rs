//! SCRAM-SHA-256, the server's side (RFC 5802, RFC 7677), without I/O. Channel binding is not offered.
//!
//! The password is an account's token. Its salt comes from the key ring, so that the first answer needs no look-up and is
//! the same for accounts that do not exist.

use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::{digest, hmac, pbkdf2};
use subtle::ConstantTimeEq as _;

use crate::sasl::{Failure, Username};

/// Iterations of PBKDF2: the least that RFC 7677 §4 allows. Tokens are random, so more would protect nothing.
pub(crate) const ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).expect("not zero");

/// An exchange whose first two messages have been said.
#[derive(Debug)]
pub(crate) struct Exchange {
    username: Username,
    gs2_header: String,
    client_first_bare: String,
    server_first: String,
    nonce: String,
}

/// A proof to be checked against the account's keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) username: Username,
    auth_message: String,
    proof: [u8; 32],
}

/// What a token derives to under its account's salt.
#[derive(Clone, Copy)]
pub(crate) struct Keys {
    stored: [u8; 32],
    server: [u8; 32],
}

impl Exchange {
    /// Reads the client's first message and answers it. `server_nonce` must be printable and hold no comma.
    pub(crate) fn begin(
        message: &[u8],
        domain: &str,
        server_nonce: &str,
        salt: impl FnOnce(&str) -> [u8; 16],
    ) -> Result<Self, Failure> {
        let message = std::str::from_utf8(message).map_err(|_| Failure::MalformedRequest)?;
        let mut parts = message.splitn(3, ',');
        let (Some(flag), Some(authzid), Some(bare)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(Failure::MalformedRequest);
        };
        // `p=` asks for channel binding, which takes a mechanism that is not offered.
        if !matches!(flag, "n" | "y") {
            return Err(Failure::MalformedRequest);
        }
        let mut attributes = bare.split(',');
        let name = attributes.next().and_then(|text| text.strip_prefix("n=")).ok_or(Failure::MalformedRequest)?;
        let nonce = attributes.next().and_then(|text| text.strip_prefix("r=")).ok_or(Failure::MalformedRequest)?;
        if nonce.is_empty() || !nonce.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Failure::MalformedRequest);
        }
        let username = Username::parse(&unescape(name)?, domain);
        let authzid = match authzid.strip_prefix("a=") {
            Some(authzid) => unescape(authzid)?,
            None if authzid.is_empty() => String::new(),
            None => return Err(Failure::MalformedRequest),
        };
        if !username.may_act_as(&authzid, domain) {
            return Err(Failure::InvalidAuthzid);
        }
        let nonce = format!("{nonce}{server_nonce}");
        let server_first = format!("r={nonce},s={},i={ITERATIONS}", STANDARD.encode(salt(&username.local)));
        let gs2_header = message[..message.len() - bare.len()].to_owned();
        Ok(Self { username, gs2_header, client_first_bare: bare.to_owned(), server_first, nonce })
    }

    /// The challenge for the client.
    pub(crate) fn server_first(&self) -> &str {
        &self.server_first
    }

    /// Reads the client's final message.
    pub(crate) fn finish(self, message: &[u8]) -> Result<Check, Failure> {
        let message = std::str::from_utf8(message).map_err(|_| Failure::MalformedRequest)?;
        let (without_proof, proof) = message.rsplit_once(",p=").ok_or(Failure::MalformedRequest)?;
        let mut attributes = without_proof.split(',');
        let binding = attributes.next().and_then(|text| text.strip_prefix("c=")).ok_or(Failure::MalformedRequest)?;
        let nonce = attributes.next().and_then(|text| text.strip_prefix("r=")).ok_or(Failure::MalformedRequest)?;
        let binding = STANDARD.decode(binding).map_err(|_| Failure::MalformedRequest)?;
        if binding != self.gs2_header.as_bytes() || nonce != self.nonce {
            return Err(Failure::NotAuthorized);
        }
        let proof = STANDARD.decode(proof).map_err(|_| Failure::MalformedRequest)?;
        let proof = proof.try_into().map_err(|_| Failure::MalformedRequest)?;
        let auth_message = format!("{},{},{without_proof}", self.client_first_bare, self.server_first);
        Ok(Check { username: self.username, auth_message, proof })
    }
}

impl Keys {
    /// Derives the keys: thousands of hashes, so not on a thread that serves connections.
    pub(crate) fn derive(token: &str, salt: &[u8]) -> Self {
        let mut salted = [0; 32];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ITERATIONS, salt, token.as_bytes(), &mut salted);
        let client = sign(&salted, b"Client Key");
        let mut stored = [0; 32];
        stored.copy_from_slice(digest::digest(&digest::SHA256, &client).as_ref());
        Self { stored, server: sign(&salted, b"Server Key") }
    }

    /// The server's final message if the proof holds. Takes the same time wherever a wrong proof differs.
    pub(crate) fn verify(&self, check: &Check) -> Option<String> {
        let signature = sign(&self.stored, check.auth_message.as_bytes());
        let mut client = check.proof;
        for (byte, signed) in client.iter_mut().zip(signature) {
            *byte ^= signed;
        }
        let stored = digest::digest(&digest::SHA256, &client);
        let holds = bool::from(stored.as_ref().ct_eq(&self.stored));
        holds.then(|| format!("v={}", STANDARD.encode(sign(&self.server, check.auth_message.as_bytes()))))
    }
}

fn sign(key: &[u8], message: &[u8]) -> [u8; 32] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(tag.as_ref());
    bytes
}

/// `=2C` is a comma and `=3D` an equals sign; any other `=` is an error (RFC 5802 §5.1).
fn unescape(name: &str) -> Result<String, Failure> {
    let mut parts = name.split('=');
    let mut unescaped = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        if let Some(rest) = part.strip_prefix("2C") {
            unescaped.push(',');
            unescaped.push_str(rest);
        } else if let Some(rest) = part.strip_prefix("3D") {
            unescaped.push('=');
            unescaped.push_str(rest);
        } else {
            return Err(Failure::MalformedRequest);
        }
    }
    if unescaped.is_empty() { Err(Failure::MalformedRequest) } else { Ok(unescaped) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 7677 §3.
    const CLIENT_FIRST: &[u8] = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const CLIENT_FINAL: &[u8] = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                                  p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

    fn salt() -> [u8; 16] {
        STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").expect("base 64").try_into().expect("16 bytes")
    }

    fn begin(message: &[u8]) -> Result<Exchange, Failure> {
        Exchange::begin(message, "example.org", SERVER_NONCE, |_| salt())
    }

    #[test]
    fn the_example_of_rfc_7677_holds() {
        let exchange = begin(CLIENT_FIRST).expect("a first message");
        assert_eq!(
            exchange.server_first(),
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
        );
        let check = exchange.finish(CLIENT_FINAL).expect("a final message");
        let last = Keys::derive("pencil", &salt()).verify(&check);
        assert_eq!(last.as_deref(), Some("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="));
        assert_eq!(Keys::derive("pencils", &salt()).verify(&check), None);
    }

    #[test]
    fn a_first_message_that_is_none_is_refused() {
        let texts: [&[u8]; 9] = [
            b"",
            b"n,,",
            b"n,,r=abc",
            b"n,,n=,r=abc",
            b"n,,n=user,r=",
            b"p=tls-unique,,n=user,r=abc",
            b"n,,m=ext,n=user,r=abc",
            b"n,,n=us=er,r=abc",
            b"n,,n=\xff,r=abc",
        ];
        for text in texts {
            assert_eq!(begin(text).err(), Some(Failure::MalformedRequest), "{text:?}");
        }
        assert_eq!(begin(b"n,a=other,n=user,r=abc").err(), Some(Failure::InvalidAuthzid));
        assert!(begin(b"y,,n=us=2Cer=3D,r=abc").is_ok());
    }

    #[test]
    fn another_nonce_or_binding_is_not_authorized() {
        let finish = |text: &[u8]| begin(CLIENT_FIRST).expect("a first message").finish(text).err();
        assert_eq!(finish(b"c=biws,r=other,p=AAAA"), Some(Failure::NotAuthorized));
        let binding = String::from_utf8_lossy(CLIENT_FINAL).replace("biws", "eSws");
        assert_eq!(finish(binding.as_bytes()), Some(Failure::NotAuthorized));
        assert_eq!(finish(b"c=biws"), Some(Failure::MalformedRequest));
        let short = String::from_utf8_lossy(CLIENT_FINAL).replace("dHzb", "");
        assert_eq!(finish(short.as_bytes()), Some(Failure::MalformedRequest));
    }
}
