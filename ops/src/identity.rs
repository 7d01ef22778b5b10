//! Who this server is: its certificate, from its own CA or from elsewhere, and the keys that its tiers share.

mod certificate;
mod own_ca;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use idl::clock::Entropy;
use idl::token::KeyRing;
use serde::{Deserialize, Serialize};

pub use self::certificate::{LiveCertificate, Reloaded, ServerCertificate};
use crate::data_folder::{DataFolder, read_json, write_json};

/// The keys that the tiers share.
pub struct ServerKeys {
    /// Makes and proves the tokens of device accounts.
    pub tokens: KeyRing,
    /// Derives registration ids.
    pub regid: ring::hmac::Key,
}

#[derive(Serialize, Deserialize)]
struct StoredKeys {
    /// Newest first.
    token_keys: Vec<StoredKey>,
    regid_key: String,
}

#[derive(Serialize, Deserialize)]
struct StoredKey {
    number: u32,
    key: String,
}

impl ServerKeys {
    /// Reads the keys, or makes them at the first start. Without them every account and registration would be lost, so
    /// a damaged file is an error and is never replaced.
    pub fn load_or_make(folder: &DataFolder, entropy: &dyn Entropy) -> Result<Self> {
        let path = folder.keys();
        let stored = if let Some(stored) = read_json::<StoredKeys>(&path)? {
            stored
        } else {
            let fresh = || {
                let mut key = [0; 32];
                entropy.fill(&mut key);
                STANDARD.encode(key)
            };
            let token_keys = vec![StoredKey { number: 1, key: fresh() }];
            let made = StoredKeys { token_keys, regid_key: fresh() };
            write_json(&path, &made)?;
            made
        };
        let damaged = || format!("{} is damaged; restore it from a backup", path.display());
        let read = |text: &str| -> Result<[u8; 32]> {
            STANDARD.decode(text).ok().and_then(|bytes| bytes.try_into().ok()).with_context(damaged)
        };
        let mut keys = Vec::new();
        for StoredKey { number, key } in &stored.token_keys {
            keys.push((*number, read(key)?));
        }
        if keys.is_empty() {
            bail!(damaged());
        }
        let regid = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &read(&stored.regid_key)?);
        Ok(Self { tokens: KeyRing::new(&keys), regid })
    }
}

#[cfg(test)]
mod tests {
    use idl::clock::SystemEntropy;

    use super::*;

    #[test]
    fn keys_are_made_once_and_a_damaged_file_is_never_replaced() {
        let temp = tempfile::tempdir().expect("a folder");
        let folder = DataFolder::at(temp.path());
        let account = idl::ids::AccountId(1);
        let token = ServerKeys::load_or_make(&folder, &SystemEntropy).expect("makes").tokens.issue(account, 5);
        let again = ServerKeys::load_or_make(&folder, &SystemEntropy).expect("reads");
        assert_eq!(again.tokens.prove(account, &token), Ok(5));
        std::fs::write(folder.keys(), "{").expect("damages");
        let error = ServerKeys::load_or_make(&folder, &SystemEntropy).err().expect("damaged");
        assert!(error.to_string().contains("keys.json is damaged"), "{error}");
        assert_eq!(std::fs::read(folder.keys()).expect("is there"), b"{");
    }
}
