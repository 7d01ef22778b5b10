//! What a handshake of TLS 1.3 leaves behind: the secrets from which later keys are made (RFC 8446 §7.2), and what only the
//! two ends know, for channel binding (RFC 9266).
//!
//! rustls tells these to a key log alone, so each handshake has a key log of its own. The alternative, rustls' own state of
//! the connection, would be kept for as long as that lives, with all that it holds.

use std::sync::{Mutex, PoisonError};

use ring::aead::NONCE_LEN;
use ring::digest;
use ring::hkdf::{self, HKDF_SHA256, HKDF_SHA384, KeyType, Prk};
use rustls::KeyLog;
use zeroize::Zeroize as _;

/// The longest hash of the suites of TLS 1.3.
const HASH_MAX: usize = 48;
/// RFC 9266 §2.
const CHANNEL_BINDING: &[u8] = b"EXPORTER-Channel-Binding";

/// A secret as long as the suite's hash.
#[derive(Clone)]
pub(super) struct Secret {
    bytes: [u8; HASH_MAX],
    length: u8,
}

/// Keeps the secrets of one handshake.
#[derive(Default)]
pub(super) struct Secrets(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    client: Option<Secret>,
    server: Option<Secret>,
    exporter: Option<Secret>,
}

impl Kept {
    fn place(&mut self, label: &str) -> Option<&mut Option<Secret>> {
        match label {
            "CLIENT_TRAFFIC_SECRET_0" => Some(&mut self.client),
            "SERVER_TRAFFIC_SECRET_0" => Some(&mut self.server),
            "EXPORTER_SECRET" => Some(&mut self.exporter),
            _ => None,
        }
    }
}

impl KeyLog for Secrets {
    fn will_log(&self, label: &str) -> bool {
        Kept::default().place(label).is_some()
    }

    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        if let Some(place) = self.0.lock().unwrap_or_else(PoisonError::into_inner).place(label) {
            *place = Secret::new(secret);
        }
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets")
    }
}

impl Secrets {
    /// The value of `tls-exporter` (RFC 9266), if the session is of TLS 1.3.
    pub(super) fn channel_binding(&self) -> Option<[u8; 32]> {
        let secret = self.0.lock().unwrap_or_else(PoisonError::into_inner).exporter.take()?;
        // RFC 8446 §7.5, with an empty context.
        let of_nothing = digest::digest(secret.hash(), b"");
        let derived = secret.derive(CHANNEL_BINDING, of_nothing.as_ref())?;
        let mut exported = [0; 32];
        derived.expand(b"exporter", of_nothing.as_ref(), &mut exported)?;
        Some(exported)
    }

    /// What the keys of each direction are made from, the client's first; `None` before TLS 1.3.
    pub(super) fn traffic(&self) -> Option<(Secret, Secret)> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Some((kept.client.take()?, kept.server.take()?))
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

impl Secret {
    fn new(secret: &[u8]) -> Option<Self> {
        if !matches!(secret.len(), 32 | 48) {
            return None;
        }
        let mut bytes = [0; HASH_MAX];
        bytes.get_mut(..secret.len())?.copy_from_slice(secret);
        Some(Self { bytes, length: u8::try_from(secret.len()).ok()? })
    }

    /// The secret after this one (RFC 8446 §7.2).
    pub(super) fn next(&self) -> Option<Self> {
        self.derive(b"traffic upd", b"")
    }

    /// The key, of that many bytes, and the IV of its records (RFC 8446 §7.3).
    pub(super) fn keys(&self, key_bytes: usize) -> Option<([u8; 32], [u8; NONCE_LEN])> {
        let (mut key, mut iv) = ([0; 32], [0; NONCE_LEN]);
        self.expand(b"key", b"", key.get_mut(..key_bytes)?)?;
        self.expand(b"iv", b"", &mut iv)?;
        Some((key, iv))
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }

    fn hash(&self) -> &'static digest::Algorithm {
        if self.length == 48 { &digest::SHA384 } else { &digest::SHA256 }
    }

    /// A secret of the same length.
    fn derive(&self, label: &[u8], context: &[u8]) -> Option<Self> {
        let mut derived = Self { bytes: [0; HASH_MAX], length: self.length };
        self.expand(label, context, derived.bytes.get_mut(..usize::from(self.length))?)?;
        Some(derived)
    }

    /// RFC 8446 §7.1, `HKDF-Expand-Label`.
    fn expand(&self, label: &[u8], context: &[u8], out: &mut [u8]) -> Option<()> {
        const PREFIX: &[u8] = b"tls13 ";
        let algorithm: hkdf::Algorithm = if self.length == 48 { HKDF_SHA384 } else { HKDF_SHA256 };
        let length = u16::try_from(out.len()).ok()?.to_be_bytes();
        let label_length = [u8::try_from(PREFIX.len() + label.len()).ok()?];
        let context_length = [u8::try_from(context.len()).ok()?];
        let info = [&length[..], &label_length, PREFIX, label, &context_length, context];
        let secret = Prk::new_less_safe(algorithm, self.bytes());
        secret.expand(&info, Length(out.len())).and_then(|okm| okm.fill(out)).ok()
    }
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}
