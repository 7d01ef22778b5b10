//! Who this server is: its certificate, from its own CA or from elsewhere, and the keys that its tiers share.

mod certificate;
mod own_ca;
mod tickets;

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use idl::clock::Entropy;
use idl::token::KeyRing;
use serde::{Deserialize, Serialize};

pub use self::certificate::{LiveCertificate, Reloaded, ServerCertificate};
pub use self::tickets::{TicketKeys, Tickets};
use crate::config::Config;
use crate::data_folder::{DataFolder, read_json, write_json};

/// The keys that the tiers share.
pub struct ServerKeys {
    /// Makes and proves the tokens of device accounts.
    pub tokens: KeyRing,
    /// Keeps sessions of TLS at clients.
    pub tickets: TicketKeys,
    /// Derives registration ids; fronts do without it.
    pub regid: Option<ring::hmac::Key>,
}

#[derive(Serialize, Deserialize)]
struct StoredKeys {
    /// Newest first.
    token_keys: Vec<StoredKey>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    regid_key: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct StoredKey {
    number: u32,
    key: String,
}

impl ServerKeys {
    /// The keys of `identity.keys`, or of the data folder, where they are made at the first start.
    pub fn of(config: &Config, folder: &DataFolder, entropy: &dyn Entropy) -> Result<Self> {
        let shared = &config.identity.keys;
        if shared.as_os_str().is_empty() {
            return Self::load_or_make(folder, entropy);
        }
        let keys = Self::load(shared)?;
        if config.role.has_middle() && keys.regid.is_none() {
            bail!(
                "identity.keys {} has what fronts need; a middle needs the file that campanile keys make made",
                shared.display()
            );
        }
        Ok(keys)
    }

    /// Reads the keys, or makes them at the first start. Without them every account and registration would be lost, so
    /// a damaged file is an error and is never replaced.
    pub fn load_or_make(folder: &DataFolder, entropy: &dyn Entropy) -> Result<Self> {
        let path = folder.keys();
        if !path.exists() {
            make_keys(&path, entropy)?;
        }
        Self::load(&path)
    }

    /// Reads a file of keys.
    pub fn load(path: &Path) -> Result<Self> {
        let stored = read_keys(path)?;
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
        let regid = match &stored.regid_key {
            Some(key) => Some(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &read(key)?)),
            None => None,
        };
        Ok(Self { tokens: KeyRing::new(&keys), tickets: TicketKeys::of(&keys), regid })
    }
}

/// Makes a file of fresh keys. There must be none.
pub fn make_keys(path: &Path, entropy: &dyn Entropy) -> Result<()> {
    let fresh = || {
        let mut key = [0; 32];
        entropy.fill(&mut key);
        STANDARD.encode(key)
    };
    let token_keys = vec![StoredKey { number: 1, key: fresh() }];
    write_new(path, &StoredKeys { token_keys, regid_key: Some(fresh()) })
}

/// Copies of a file of keys what fronts need.
pub fn copy_keys_for_fronts(from: &Path, to: &Path) -> Result<()> {
    write_new(to, &StoredKeys { regid_key: None, ..read_keys(from)? })
}

fn read_keys(path: &Path) -> Result<StoredKeys> {
    read_json(path)?.with_context(|| format!("there are no keys in {}; campanile keys make makes them", path.display()))
}

/// Keys that are replaced can't be had back.
fn write_new(path: &Path, keys: &StoredKeys) -> Result<()> {
    if path.exists() {
        bail!("there is a file {} already; keys are never replaced: give another name", path.display());
    }
    write_json(path, keys)
}

#[cfg(test)]
mod tests {
    use idl::clock::SystemEntropy;

    use super::*;
    use crate::config::Role;

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

    #[test]
    fn shared_keys_are_never_replaced_and_fronts_get_no_more_than_they_need() {
        let temp = tempfile::tempdir().expect("a folder");
        let (whole, for_fronts) = (temp.path().join("keys.json"), temp.path().join("front.json"));
        make_keys(&whole, &SystemEntropy).expect("makes");
        assert!(make_keys(&whole, &SystemEntropy).expect_err("is there").to_string().contains("never replaced"));
        copy_keys_for_fronts(&whole, &for_fronts).expect("copies");
        let folder = DataFolder::at(temp.path());
        let of = |role, keys: &Path| {
            let mut config = Config { role, ..Config::default() };
            keys.clone_into(&mut config.identity.keys);
            ServerKeys::of(&config, &folder, &SystemEntropy)
        };
        let account = idl::ids::AccountId(1);
        let token = of(Role::Middle, &whole).expect("reads").tokens.issue(account, 5);
        let front = of(Role::Front, &for_fronts).expect("reads");
        assert_eq!(front.tokens.prove(account, &token), Ok(5));
        assert!(front.regid.is_none());
        let error = of(Role::Middle, &for_fronts).err().expect("too little").to_string();
        assert!(error.contains("a middle needs the file that campanile keys make made"), "{error}");
        let error = of(Role::Front, &temp.path().join("none.json")).err().expect("no file").to_string();
        assert!(error.contains("campanile keys make makes them"), "{error}");
    }
}
