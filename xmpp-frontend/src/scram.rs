//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, the server's side (RFC 5802, RFC 7677), without I/O. The binding of PLUS is
//! `tls-exporter` (RFC 9266).
//!
//! The password is an account's token. Its salt comes from the key ring, so that the first answer needs no look-up and is
//! the same for accounts that do not exist.

use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::{digest, hmac, pbkdf2};
use subtle::ConstantTimeEq as _;

use crate::sasl::{Failure, Mechanism, Username};

/// Iterations of PBKDF2: the least that RFC 7677 §4 allows. Tokens are random, so more would protect nothing.
pub(crate) const ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).expect("not zero");

/// The channel binding that we know (RFC 9266).
pub(crate) const BINDING: &str = "tls-exporter";
/// What [`BINDING`] says of a connection.
pub(crate) type Exporter = [u8; 32];

/// What an exchange has to do with the TLS below it (RFC 5802 §6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Binding {
    /// SCRAM-SHA-256, where PLUS is not to be had.
    Impossible,
    /// SCRAM-SHA-256, where PLUS was offered. A client that would have used it was not shown the offer: someone between
    /// us has taken it away.
    Declined,
    /// SCRAM-SHA-256-PLUS, over that TLS.
    Required(Exporter),
}

impl Binding {
    fn mechanism(self) -> Mechanism {
        match self {
            Self::Impossible | Self::Declined => Mechanism::Scram,
            Self::Required(_) => Mechanism::ScramPlus,
        }
    }

    /// What the client must show of the TLS below, if its flag is one that we can go on with.
    fn meet(self, flag: &str) -> Option<Vec<u8>> {
        match (self, flag.strip_prefix("p="), flag) {
            (Self::Required(exporter), Some(BINDING), _) => Some(exporter.to_vec()),
            (Self::Impossible, None, "n" | "y") | (Self::Declined, None, "n") => Some(Vec::new()),
            _ => None,
        }
    }
}

/// An exchange whose first two messages have been said.
#[derive(Debug)]
pub(crate) struct Exchange {
    username: Username,
    mechanism: Mechanism,
    /// The GS2 header, and what the channel binding says.
    binding: Vec<u8>,
    client_first_bare: String,
    server_first: String,
    nonce: String,
}

/// A proof to be checked against the account's keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) username: Username,
    pub(crate) mechanism: Mechanism,
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
        binding: Binding,
        salt: impl FnOnce(&str) -> [u8; 16],
    ) -> Result<Self, Failure> {
        let message = std::str::from_utf8(message).map_err(|_| Failure::MalformedRequest)?;
        let mut parts = message.splitn(3, ',');
        let (Some(flag), Some(authzid), Some(bare)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(Failure::MalformedRequest);
        };
        let shown = binding.meet(flag).ok_or(Failure::MalformedRequest)?;
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
        let gs2_header = &message[..message.len() - bare.len()];
        Ok(Self {
            username,
            mechanism: binding.mechanism(),
            binding: [gs2_header.as_bytes(), &shown].concat(),
            client_first_bare: bare.to_owned(),
            server_first,
            nonce,
        })
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
        if !bool::from(binding.ct_eq(&self.binding)) || nonce != self.nonce {
            return Err(Failure::NotAuthorized);
        }
        let proof = STANDARD.decode(proof).map_err(|_| Failure::MalformedRequest)?;
        let proof = proof.try_into().map_err(|_| Failure::MalformedRequest)?;
        let auth_message = format!("{},{},{without_proof}", self.client_first_bare, self.server_first);
        Ok(Check { username: self.username, mechanism: self.mechanism, auth_message, proof })
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

/// What a client shows that knows the token: the proof over both sides' words.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn client_proof(token: &str, salt: &[u8], auth_message: &str) -> [u8; 32] {
    let mut salted = [0; 32];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ITERATIONS, salt, token.as_bytes(), &mut salted);
    let client = sign(&salted, b"Client Key");
    let stored = digest::digest(&digest::SHA256, &client);
    let signature = sign(stored.as_ref(), auth_message.as_bytes());
    std::array::from_fn(|at| client[at] ^ signature[at])
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
        begin_with(Binding::Impossible, message)
    }

    fn begin_with(binding: Binding, message: &[u8]) -> Result<Exchange, Failure> {
        Exchange::begin(message, "example.org", SERVER_NONCE, binding, |_| salt())
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

    #[test]
    fn who_would_have_bound_the_channel_and_was_not_offered_it_is_refused() {
        let flags: [(&[u8], [bool; 3]); 6] = [
            (b"n,,n=user,r=abc", [true, true, false]),
            (b"y,,n=user,r=abc", [true, false, false]),
            (b"p=tls-exporter,,n=user,r=abc", [false, false, true]),
            (b"p=tls-unique,,n=user,r=abc", [false, false, false]),
            (b"p=,,n=user,r=abc", [false, false, false]),
            (b"p,,n=user,r=abc", [false, false, false]),
        ];
        let bindings = [Binding::Impossible, Binding::Declined, Binding::Required([5; 32])];
        for (message, expected) in flags {
            let begun = bindings.map(|binding| begin_with(binding, message).map(|_| ()));
            let expected = expected.map(|goes_on| if goes_on { Ok(()) } else { Err(Failure::MalformedRequest) });
            assert_eq!(begun, expected, "{}", String::from_utf8_lossy(message));
        }
    }

    #[test]
    fn a_bound_exchange_holds_over_the_same_tls_alone() {
        let prove = |shown: &[u8]| {
            let first = b"p=tls-exporter,,n=user,r=abc";
            let exchange = begin_with(Binding::Required([5; 32]), first).expect("a first message");
            let binding = STANDARD.encode([b"p=tls-exporter,,".as_slice(), shown].concat());
            let without_proof = format!("c={binding},r={}", exchange.nonce);
            let auth_message = format!("n=user,r=abc,{},{without_proof}", exchange.server_first());
            let proof = STANDARD.encode(client_proof("pencil", &salt(), &auth_message));
            exchange.finish(format!("{without_proof},p={proof}").as_bytes())
        };
        let check = prove(&[5; 32]).expect("a proof");
        assert_eq!(check.mechanism, Mechanism::ScramPlus);
        assert!(Keys::derive("pencil", &salt()).verify(&check).is_some());
        for another in [[6; 32].as_slice(), &[], &[5; 31]] {
            assert_eq!(prove(another).err(), Some(Failure::NotAuthorized));
        }
    }
}
