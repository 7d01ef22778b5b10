//! The app's own seals, inside TLS: neither the PushService nor another app can read or forge what an app gets.
//!
//! - **Single deliveries** are sealed for one registration: AES-256-GCM under a key that app and server agree on at
//!   registration (X25519, mixed with the app key by HKDF-SHA256, so that whoever carries the exchange but lacks the app
//!   key can't take part in it).
//! - **Broadcasts** are sealed once for all: AES-256-GCM under an app-wide key, followed by an Ed25519 signature, since
//!   every device of the app holds that key and must not be able to speak as the server.
//!
//! The nonce of a delivery is the last 12 bytes of its message id: under one key an id stands for one plaintext, so a
//! delivery that is sealed again is the same bytes, and the id's 80 bits of randomness keep nonces apart.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf;
use ring::hmac;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use thiserror::Error;
use x25519_dalek::{PublicKey, StaticSecret};

use crate::clock::Entropy;
use crate::ids::{AccountId, AppId, MessageId};

/// Bytes that the seal of a single delivery adds.
pub const SINGLE_OVERHEAD_BYTES: usize = 16;
/// Bytes that the seal of a broadcast adds.
pub const BROADCAST_OVERHEAD_BYTES: usize = 16 + SIGNATURE_BYTES;

const SIGNATURE_BYTES: usize = 64;

/// Why a seal did not open or an agreement did not come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SealError {
    /// Fewer bytes than the seal itself has.
    #[error("the sealed bytes are cut")]
    Short,
    /// The bytes were not sealed with this key, for this app and this message.
    #[error("the seal does not open")]
    DoesNotOpen,
    /// The broadcast's signature is not the server's.
    #[error("the signature is not the server's")]
    BadSignature,
    /// The other side's public key is of no use (a point of small order).
    #[error("the public key is not usable")]
    BadPublicKey,
}

/// An X25519 key pair for agreeing on a seal key.
pub struct AgreementKey(StaticSecret);

impl AgreementKey {
    /// From 32 secret bytes, random or stored.
    pub fn from_bytes(secret: [u8; 32]) -> Self {
        Self(StaticSecret::from(secret))
    }

    /// A new one.
    pub fn random(entropy: &dyn Entropy) -> Self {
        let mut secret = [0; 32];
        entropy.fill(&mut secret);
        Self::from_bytes(secret)
    }

    /// The half that is shown.
    pub fn public(&self) -> [u8; 32] {
        PublicKey::from(&self.0).to_bytes()
    }

    /// Agrees on a registration's seal key with the device's public key; for the server.
    pub fn agree_as_server(&self, device_public: &[u8; 32], app_key: &str) -> Result<[u8; 32], SealError> {
        self.agree(device_public, app_key, device_public, &self.public())
    }

    /// Agrees on a registration's seal key with the server's public key; for the app on the device.
    pub fn agree_as_device(&self, server_public: &[u8; 32], app_key: &str) -> Result<[u8; 32], SealError> {
        self.agree(server_public, app_key, &self.public(), server_public)
    }

    fn agree(
        &self,
        peer: &[u8; 32],
        app_key: &str,
        device_public: &[u8; 32],
        server_public: &[u8; 32],
    ) -> Result<[u8; 32], SealError> {
        let shared = self.0.diffie_hellman(&PublicKey::from(*peer));
        if !shared.was_contributory() {
            return Err(SealError::BadPublicKey);
        }
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, app_key.as_bytes());
        let info: [&[u8]; 3] = [b"campanile seal 1", device_public, server_public];
        let mut key = [0; 32];
        salt.extract(shared.as_bytes())
            .expand(&info, hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut key))
            .expect("32 bytes are what HKDF-SHA256 gives");
        Ok(key)
    }
}

/// The proof that whoever registers holds the app key: an HMAC over what is registered.
pub fn registration_proof(app_key: &str, account: AccountId, app: &AppId, public_key: &[u8]) -> [u8; 32] {
    let tag = hmac::sign(&proof_key(app_key), &proof_text(account, app, public_key));
    let mut proof = [0; 32];
    proof.copy_from_slice(tag.as_ref());
    proof
}

/// Checks a [`registration_proof`] in constant time.
pub fn verify_registration_proof(
    app_key: &str,
    account: AccountId,
    app: &AppId,
    public_key: &[u8],
    proof: &[u8],
) -> bool {
    hmac::verify(&proof_key(app_key), &proof_text(account, app, public_key), proof).is_ok()
}

fn proof_key(app_key: &str) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, app_key.as_bytes())
}

fn proof_text(account: AccountId, app: &AppId, public_key: &[u8]) -> Vec<u8> {
    let account = account.to_string();
    let parts: [&[u8]; 4] = [b"campanile register 1", account.as_bytes(), app.as_str().as_bytes(), public_key];
    let mut text = Vec::new();
    for part in parts {
        text.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        text.extend_from_slice(part);
    }
    text
}

/// Seals what one registration gets.
pub struct SingleSeal(LessSafeKey);

impl SingleSeal {
    /// From the key that was agreed on.
    pub fn new(key: &[u8; 32]) -> Self {
        Self(aes(key))
    }

    /// Seals a delivery. The same arguments give the same bytes.
    pub fn seal(&self, app: &AppId, id: MessageId, plaintext: &[u8]) -> Vec<u8> {
        seal(&self.0, nonce_of(id), &context(b"campanile single 1", app, id), plaintext)
    }

    /// Opens a delivery.
    pub fn open(&self, app: &AppId, id: MessageId, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        open(&self.0, nonce_of(id), &context(b"campanile single 1", app, id), sealed)
    }

    /// Seals the app's keys for handing over at registration, under a random nonce that goes before them.
    pub fn seal_keys(&self, app: &AppId, entropy: &dyn Entropy, plaintext: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE_LEN];
        entropy.fill(&mut nonce);
        let mut sealed = nonce.to_vec();
        sealed.extend(seal(&self.0, nonce, &context(b"campanile keys 1", app, MessageId::MIN), plaintext));
        sealed
    }

    /// Opens what [`SingleSeal::seal_keys`] made.
    pub fn open_keys(&self, app: &AppId, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(SealError::Short)?;
        open(&self.0, *nonce, &context(b"campanile keys 1", app, MessageId::MIN), sealed)
    }
}

/// The server's half of the seal of broadcasts.
pub struct BroadcastSealer {
    key: LessSafeKey,
    signer: Ed25519KeyPair,
}

impl BroadcastSealer {
    /// From the app-wide key and the seed of the signing key.
    pub fn new(key: &[u8; 32], signing_seed: &[u8; 32]) -> Self {
        let signer = Ed25519KeyPair::from_seed_unchecked(signing_seed).expect("any 32 bytes are an Ed25519 seed");
        Self { key: aes(key), signer }
    }

    /// The public key that proves the broadcasts.
    pub fn verify_key(&self) -> [u8; 32] {
        let mut key = [0; 32];
        key.copy_from_slice(self.signer.public_key().as_ref());
        key
    }

    /// Seals and signs a broadcast. The same arguments give the same bytes.
    pub fn seal(&self, app: &AppId, id: MessageId, plaintext: &[u8]) -> Vec<u8> {
        let context = context(b"campanile broadcast 1", app, id);
        let mut sealed = seal(&self.key, nonce_of(id), &context, plaintext);
        let signature = self.signer.sign(&[context.as_slice(), &sealed].concat());
        sealed.extend_from_slice(signature.as_ref());
        sealed
    }
}

/// The device's half of the seal of broadcasts.
pub struct BroadcastOpener {
    key: LessSafeKey,
    verify_key: [u8; 32],
}

impl BroadcastOpener {
    /// From the keys that were handed over at registration.
    pub fn new(key: &[u8; 32], verify_key: [u8; 32]) -> Self {
        Self { key: aes(key), verify_key }
    }

    /// Checks the signature, then opens.
    pub fn open(&self, app: &AppId, id: MessageId, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (sealed, signature) = sealed.split_last_chunk::<SIGNATURE_BYTES>().ok_or(SealError::Short)?;
        let context = context(b"campanile broadcast 1", app, id);
        UnparsedPublicKey::new(&ED25519, self.verify_key)
            .verify(&[context.as_slice(), sealed].concat(), signature)
            .map_err(|_| SealError::BadSignature)?;
        open(&self.key, nonce_of(id), &context, sealed)
    }
}

fn aes(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("AES-256 takes 32 bytes"))
}

fn nonce_of(id: MessageId) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    nonce.copy_from_slice(&id.to_bytes()[16 - NONCE_LEN..]);
    nonce
}

fn context(purpose: &[u8], app: &AppId, id: MessageId) -> Vec<u8> {
    [purpose, b"\0", app.as_str().as_bytes(), b"\0", &id.to_bytes()].concat()
}

fn seal(key: &LessSafeKey, nonce: [u8; NONCE_LEN], context: &[u8], plaintext: &[u8]) -> Vec<u8> {
    let mut bytes = plaintext.to_vec();
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context), &mut bytes)
        .expect("a message is far below AES-GCM's limit");
    bytes
}

fn open(key: &LessSafeKey, nonce: [u8; NONCE_LEN], context: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
    let mut bytes = sealed.to_vec();
    let plaintext = key
        .open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(context), &mut bytes)
        .map_err(|_| SealError::DoesNotOpen)?;
    let length = plaintext.len();
    bytes.truncate(length);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemEntropy;

    fn app() -> AppId {
        "com.example.demo".parse().expect("an app id")
    }

    const ID: MessageId = MessageId(0x0192_3456_789a_bcde_f012_3456_789a_bcde);

    #[test]
    fn both_sides_agree_and_a_carrier_without_the_app_key_does_not() {
        let server = AgreementKey::random(&SystemEntropy);
        let device = AgreementKey::random(&SystemEntropy);
        let key = server.agree_as_server(&device.public(), "app key").expect("agrees");
        assert_eq!(device.agree_as_device(&server.public(), "app key"), Ok(key));
        assert_ne!(device.agree_as_device(&server.public(), "another"), Ok(key));
        assert_eq!(server.agree_as_server(&[0; 32], "app key"), Err(SealError::BadPublicKey));
    }

    #[test]
    fn a_single_seal_opens_for_its_app_and_message_alone() {
        let seal = SingleSeal::new(&[3; 32]);
        let sealed = seal.seal(&app(), ID, b"hello");
        assert_eq!(sealed.len(), 5 + SINGLE_OVERHEAD_BYTES);
        assert_eq!(seal.open(&app(), ID, &sealed).as_deref(), Ok(b"hello".as_slice()));
        assert_eq!(seal.open(&app(), MessageId(1), &sealed), Err(SealError::DoesNotOpen));
        let other = "com.example.other".parse().expect("an app id");
        assert_eq!(seal.open(&other, ID, &sealed), Err(SealError::DoesNotOpen));
        assert_eq!(SingleSeal::new(&[4; 32]).open(&app(), ID, &sealed), Err(SealError::DoesNotOpen));
        assert_eq!(seal.open(&app(), ID, &[]), Err(SealError::DoesNotOpen));
    }

    #[test]
    fn a_device_that_holds_the_broadcast_key_cannot_speak_as_the_server() {
        let sealer = BroadcastSealer::new(&[5; 32], &[6; 32]);
        let opener = BroadcastOpener::new(&[5; 32], sealer.verify_key());
        let sealed = sealer.seal(&app(), ID, b"to all");
        assert_eq!(sealed.len(), 6 + BROADCAST_OVERHEAD_BYTES);
        assert_eq!(opener.open(&app(), ID, &sealed).as_deref(), Ok(b"to all".as_slice()));
        let forged = BroadcastSealer::new(&[5; 32], &[7; 32]).seal(&app(), ID, b"to all");
        assert_eq!(opener.open(&app(), ID, &forged), Err(SealError::BadSignature));
        assert_eq!(opener.open(&app(), MessageId(1), &sealed), Err(SealError::BadSignature));
        assert_eq!(opener.open(&app(), ID, b"short"), Err(SealError::Short));
    }

    #[test]
    fn keys_are_handed_over_under_the_registrations_seal() {
        let seal = SingleSeal::new(&[3; 32]);
        let sealed = seal.seal_keys(&app(), &SystemEntropy, b"keys");
        assert_eq!(seal.open_keys(&app(), &sealed).as_deref(), Ok(b"keys".as_slice()));
        assert_eq!(seal.open_keys(&app(), b"short"), Err(SealError::Short));
        assert_eq!(seal.open(&app(), MessageId::MIN, &sealed), Err(SealError::DoesNotOpen));
    }

    #[test]
    fn a_proof_holds_for_what_was_registered_alone() {
        let proof = registration_proof("app key", AccountId(1), &app(), &[9; 32]);
        assert!(verify_registration_proof("app key", AccountId(1), &app(), &[9; 32], &proof));
        assert!(!verify_registration_proof("other", AccountId(1), &app(), &[9; 32], &proof));
        assert!(!verify_registration_proof("app key", AccountId(2), &app(), &[9; 32], &proof));
        assert!(!verify_registration_proof("app key", AccountId(1), &app(), &[8; 32], &proof));
    }
}
