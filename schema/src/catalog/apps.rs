//! Registered applications: their keys and what each may send.

use std::fmt;

use async_trait::async_trait;
use idl::ids::AppId;

use crate::sorted::StoreError;

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
    /// Signs the receipts that its servers get.
    pub webhook_secret: [u8; 32],
    /// How many messages it may send in a second; 0 is no limit.
    pub sends_per_second_max: u32,
    /// How many messages it may send in a day; 0 is no limit.
    pub sends_per_day_max: u64,
    /// When it was made, in milliseconds since the epoch.
    pub created_at_ms: u64,
}

impl fmt::Debug for App {
    /// Without keys and secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App")
            .field("app", &self.app)
            .field("package", &self.package)
            .field("sends_per_second_max", &self.sends_per_second_max)
            .field("sends_per_day_max", &self.sends_per_day_max)
            .field("created_at_ms", &self.created_at_ms)
            .finish_non_exhaustive()
    }
}

/// Applications.
#[async_trait]
pub trait Apps: Send + Sync + 'static {
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

    /// Sets what an application may send in a second and in a day, 0 for no limit: `false` if there is no such application.
    async fn set_app_limits(&self, id: &AppId, per_second: u32, per_day: u64) -> Result<bool, StoreError>;

    /// Gives an application a new secret for signing receipts: `false` if there is no such application.
    async fn set_webhook_secret(&self, id: &AppId, secret: [u8; 32]) -> Result<bool, StoreError>;
}
