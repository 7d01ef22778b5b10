//! SCRAM-SHA-256, the client's side (RFC 5802, RFC 7677), without channel binding: what a listener without TLS asks for.

use std::num::NonZeroU32;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use idl::clock::{Entropy as _, SystemEntropy};
use ring::{digest, hmac, pbkdf2};

/// More iterations than this are refused: they would be the client's time, not the server's.
const ITERATIONS_MAX: u32 = 100_000;

/// An exchange whose first message was made.
pub(super) struct Scram {
    bare: String,
    nonce: String,
}

impl Scram {
    /// For a user, whose name needs no escaping, with a nonce of its own.
    pub(super) fn new(user: &str) -> Self {
        let mut nonce = [0; 18];
        SystemEntropy.fill(&mut nonce);
        Self::with_nonce(user, STANDARD.encode(nonce))
    }

    fn with_nonce(user: &str, nonce: String) -> Self {
        Self { bare: format!("n={user},r={nonce}"), nonce }
    }

    /// The first message.
    pub(super) fn first(&self) -> String {
        format!("n,,{}", self.bare)
    }

    /// The second message, to the server's first.
    pub(super) fn last(&self, server_first: &str, password: &str) -> Result<String> {
        let attribute = |name: &str| server_first.split(',').find_map(|part| part.strip_prefix(name));
        let nonce = attribute("r=").context("the server's first message has no nonce")?;
        if !nonce.starts_with(&self.nonce) {
            bail!("the server's nonce does not begin with ours");
        }
        let salt = STANDARD.decode(attribute("s=").context("the server's first message has no salt")?)?;
        let iterations: u32 = attribute("i=").context("the server's first message has no iterations")?.parse()?;
        let iterations = NonZeroU32::new(iterations.min(ITERATIONS_MAX)).context("no iterations")?;
        let mut salted = [0; digest::SHA256_OUTPUT_LEN];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, &salt, password.as_bytes(), &mut salted);
        let client = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &salted), b"Client Key");
        let stored = digest::digest(&digest::SHA256, client.as_ref());
        let without_proof = format!("c=biws,r={nonce}");
        let message = format!("{},{server_first},{without_proof}", self.bare);
        let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, stored.as_ref()), message.as_bytes());
        let proof: Vec<u8> = client.as_ref().iter().zip(signature.as_ref()).map(|(key, sign)| key ^ sign).collect();
        Ok(format!("{without_proof},p={}", STANDARD.encode(proof)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_7677_holds() {
        let scram = Scram::with_nonce("user", "rOprNGfwEbeRWgbNEkqO".to_owned());
        assert_eq!(scram.first(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let first = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        assert_eq!(
            scram.last(first, "pencil").expect("an answer"),
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert!(scram.last("r=another,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", "pencil").is_err());
    }
}
