//! The seals make of fixed inputs what another implementation made of them, and open what it sealed.
//!
//! `seal_vectors.json` comes from `ops/tests/clients/slixmpp/seal_vectors.py`, which shares no code with `idl::seal`: it
//! is Python's `cryptography`, over OpenSSL.

use campanile_idl::clock::Entropy;
use campanile_idl::ids::{AccountId, AppId, MessageId};
use campanile_idl::seal::{
    AgreementKey, BroadcastOpener, BroadcastSealer, SealError, SingleSeal, registration_proof,
    verify_registration_proof,
};
use serde_json::Value;

struct Vectors(Value);

impl Vectors {
    fn read() -> Self {
        Self(serde_json::from_str(include_str!("seal_vectors.json")).expect("JSON"))
    }

    fn text(&self, name: &str) -> &str {
        self.0[name].as_str().unwrap_or_else(|| panic!("{name} is there"))
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        bytes(&self.0[name])
    }

    fn key(&self, name: &str) -> [u8; 32] {
        self.bytes(name).try_into().expect("32 bytes")
    }

    fn app(&self) -> AppId {
        self.text("app").parse().expect("an app id")
    }

    fn message(&self) -> MessageId {
        MessageId::from_bytes(&self.bytes("message")).expect("a message id")
    }

    fn cases(&self) -> &[Value] {
        let cases = self.0["cases"].as_array().expect("cases");
        assert!(!cases.is_empty());
        cases
    }
}

fn bytes(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().expect("hexadecimal text");
    assert!(hex.len().is_multiple_of(2));
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal")).collect()
}

/// Randomness that is always the same.
struct Fixed(Vec<u8>);

impl Entropy for Fixed {
    fn fill(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.0);
    }
}

#[test]
fn both_sides_agree_on_the_key_of_the_vectors() {
    let vectors = Vectors::read();
    let app_key = vectors.text("app_key");
    let device = AgreementKey::from_bytes(vectors.key("device_secret"));
    let server = AgreementKey::from_bytes(vectors.key("server_secret"));
    assert_eq!(device.public(), vectors.key("device_public"));
    assert_eq!(server.public(), vectors.key("server_public"));
    assert_eq!(device.agree_as_device(&server.public(), app_key), Ok(vectors.key("seal_key")));
    assert_eq!(server.agree_as_server(&device.public(), app_key), Ok(vectors.key("seal_key")));
}

#[test]
fn the_proof_of_registration_is_that_of_the_vectors() {
    let vectors = Vectors::read();
    let account: AccountId = vectors.text("account").parse().expect("an account id");
    let (app_key, app, public) = (vectors.text("app_key"), vectors.app(), vectors.bytes("device_public"));
    let proof = registration_proof(app_key, account, &app, &public);
    assert_eq!(proof.as_slice(), vectors.bytes("proof"));
    assert!(verify_registration_proof(app_key, account, &app, &public, &vectors.bytes("proof")));
}

#[test]
fn single_deliveries_and_keys_are_sealed_as_in_the_vectors() {
    let vectors = Vectors::read();
    let (app, message) = (vectors.app(), vectors.message());
    let seal = SingleSeal::new(&vectors.key("seal_key"));
    for case in vectors.cases() {
        let (plaintext, single, keys) = (bytes(&case["plaintext"]), bytes(&case["single"]), bytes(&case["keys"]));
        assert_eq!(seal.seal(&app, message, &plaintext), single);
        assert_eq!(seal.open(&app, message, &single), Ok(plaintext.clone()));
        assert_eq!(seal.seal_keys(&app, &Fixed(vectors.bytes("keys_nonce")), &plaintext), keys);
        assert_eq!(seal.open_keys(&app, &keys), Ok(plaintext));
    }
}

#[test]
fn broadcasts_are_sealed_and_signed_as_in_the_vectors() {
    let vectors = Vectors::read();
    let (app, message) = (vectors.app(), vectors.message());
    let key = vectors.key("broadcast_key");
    let sealer = BroadcastSealer::new(&key, &vectors.key("signing_seed"));
    assert_eq!(sealer.verify_key(), vectors.key("verify_key"));
    let opener = BroadcastOpener::new(&key, vectors.key("verify_key"));
    for case in vectors.cases() {
        let (plaintext, mut sealed) = (bytes(&case["plaintext"]), bytes(&case["broadcast"]));
        assert_eq!(sealer.seal(&app, message, &plaintext), sealed);
        assert_eq!(opener.open(&app, message, &sealed), Ok(plaintext));
        sealed[0] ^= 1;
        assert_eq!(opener.open(&app, message, &sealed), Err(SealError::BadSignature));
    }
}
