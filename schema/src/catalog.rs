//! The catalog: what is small and filtered richly.

use std::fmt;

use async_trait::async_trait;
use idl::ids::{AccountId, AppId};

use crate::sorted::StoreError;

pub mod sqlite;

/// A registered application.
#[derive(Clone, PartialEq, Eq)]
pub struct App {
    /// Its id, named by its operator.
    pub app: AppId,
    /// The package that ships it.
    pub package: String,
    /// Ships in the app; shows that a registration comes from it.
    pub app_key: String,
    /// SHA-256 of the app secret, which authorises servers.
    pub secret_sha256: [u8; 32],
    /// The server's X25519 secret for this app.
    pub agreement_secret: [u8; 32],
    /// The AES-256 key that seals the app's broadcasts.
    pub broadcast_key: [u8; 32],
    /// The Ed25519 seed that signs the app's broadcasts.
    pub signing_seed: [u8; 32],
    /// When it was made, in milliseconds since the epoch.
    pub created_at_ms: u64,
}

impl fmt::Debug for App {
    /// Without keys and secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App")
            .field("app", &self.app)
            .field("package", &self.package)
            .field("created_at_ms", &self.created_at_ms)
            .finish_non_exhaustive()
    }
}

/// What is small: applications and revocations. Every change is durable when `Ok`.
#[async_trait]
pub trait Catalog: Send + Sync + 'static {
    /// Makes an application: `false` if one with that id exists, which stays as it is. A secret names one application: one
    /// that another has is refused as [`StoreError::Unavailable`], so draw another.
    async fn create_app(&self, app: App) -> Result<bool, StoreError>;

    /// The application with that id.
    async fn app(&self, id: &AppId) -> Result<Option<App>, StoreError>;

    /// The application whose secret has that SHA-256. The digest is compared in constant time after it was looked up.
    async fn app_by_secret(&self, sha256: &[u8; 32]) -> Result<Option<App>, StoreError>;

    /// All applications, in the order of their ids.
    async fn apps(&self) -> Result<Vec<App>, StoreError>;

    /// Gives an application a new secret, the old one stops at once: `false` if there is no such application.
    async fn set_secret(&self, id: &AppId, sha256: [u8; 32]) -> Result<bool, StoreError>;

    /// Makes an account's tokens that were issued before this moment worthless. Never moves backwards: an earlier moment
    /// than the one in force changes nothing.
    async fn revoke_tokens(&self, account: AccountId, issued_before_ms: u64) -> Result<(), StoreError>;

    /// Revocations of tokens issued before a moment at or after `since_ms`, in the order of that moment. A token is older
    /// than what revokes it, so 0 asks for all.
    async fn revocations(&self, since_ms: u64) -> Result<Vec<(AccountId, u64)>, StoreError>;
}
