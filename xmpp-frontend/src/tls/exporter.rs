//! The secret of a session that both ends can prove without showing it (RFC 8446 §7.5), for channel binding.
//!
//! rustls tells it to a key log alone once the handshake is done without buffers, so each handshake has a key log of its own.

use std::sync::{Mutex, PoisonError};

use ring::hkdf::{HKDF_SHA256, HKDF_SHA384, KeyType, Prk};
use rustls::KeyLog;

const EXPORTER_SECRET: &str = "EXPORTER_SECRET";
/// RFC 9266 §2.
const LABEL: &[u8] = b"EXPORTER-Channel-Binding";

/// Keeps the exporter's secret of one handshake.
#[derive(Default)]
pub(super) struct Exporter(Mutex<Option<Secret>>);

struct Secret {
    bytes: [u8; 48],
    length: usize,
}

impl KeyLog for Exporter {
    fn will_log(&self, label: &str) -> bool {
        label == EXPORTER_SECRET
    }

    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        if label == EXPORTER_SECRET
            && let Some(bytes) = secret.first_chunk::<32>()
        {
            let mut kept = Secret { bytes: [0; 48], length: secret.len().min(48) };
            kept.bytes[..32].copy_from_slice(bytes);
            if let Some(secret) = secret.get(..kept.length) {
                kept.bytes[..kept.length].copy_from_slice(secret);
            }
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        }
    }
}

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Exporter")
    }
}

impl Exporter {
    /// The value of `tls-exporter` (RFC 9266), if the session is of TLS 1.3.
    pub(super) fn channel_binding(&self) -> Option<[u8; 32]> {
        let secret = self.0.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        match secret.length {
            32 => export(HKDF_SHA256, &ring::digest::SHA256, secret.bytes.get(..32)?),
            48 => export(HKDF_SHA384, &ring::digest::SHA384, &secret.bytes),
            _ => None,
        }
    }
}

/// RFC 8446 §7.5 with an empty context.
fn export(hkdf: ring::hkdf::Algorithm, hash: &'static ring::digest::Algorithm, secret: &[u8]) -> Option<[u8; 32]> {
    let of_nothing = ring::digest::digest(hash, b"");
    let mut derived = [0; 48];
    let derived = derived.get_mut(..hash.output_len())?;
    expand_label(&Prk::new_less_safe(hkdf, secret), LABEL, of_nothing.as_ref(), derived)?;
    let mut exported = [0; 32];
    expand_label(&Prk::new_less_safe(hkdf, derived), b"exporter", of_nothing.as_ref(), &mut exported)?;
    Some(exported)
}

/// RFC 8446 §7.1, `HKDF-Expand-Label`.
fn expand_label(secret: &Prk, label: &[u8], context: &[u8], out: &mut [u8]) -> Option<()> {
    const PREFIX: &[u8] = b"tls13 ";
    let length = u16::try_from(out.len()).ok()?.to_be_bytes();
    let label_length = [u8::try_from(PREFIX.len() + label.len()).ok()?];
    let context_length = [u8::try_from(context.len()).ok()?];
    let info = [&length[..], &label_length, PREFIX, label, &context_length, context];
    secret.expand(&info, Length(out.len())).and_then(|okm| okm.fill(out)).ok()
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}
