//! Templates: texts with variables that an application saved under a name.

use std::collections::BTreeMap;

use async_trait::async_trait;
use idl::ids::AppId;

use super::Stored;
use crate::sorted::StoreError;

/// What a message says where the send itself says nothing. Names are one application's own. Variables are stored as they
/// are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Whose it is.
    pub app: AppId,
    /// Its name; never empty.
    pub name: String,
    /// The notification's title.
    pub title: Option<String>,
    /// The notification's text.
    pub description: Option<String>,
    /// What the app gets.
    pub payload: Option<String>,
    /// Extras by name.
    pub extra: BTreeMap<String, String>,
    /// When it was stored, in milliseconds since the epoch.
    pub changed_at_ms: u64,
}

/// Saved texts with variables.
#[async_trait]
pub trait Templates: Send + Sync + 'static {
    /// Stores a template, in the place of the one of that name if there is one: nothing of the old one stays. An
    /// application has `max` at most: one more is refused as [`Stored::Full`]; one that takes a place never is. An empty
    /// name is refused as [`StoreError::Unavailable`].
    async fn put_template(&self, template: Template, max: usize) -> Result<Stored, StoreError>;

    /// The application's template of that name.
    async fn template(&self, app: &AppId, name: &str) -> Result<Option<Template>, StoreError>;

    /// The application's templates whose names come after `after`, or all, in the order of their names, `limit` at most.
    async fn templates(&self, app: &AppId, after: Option<&str>, limit: usize) -> Result<Vec<Template>, StoreError>;

    /// Removes a template: `false` if there is none of that name.
    async fn delete_template(&self, app: &AppId, name: &str) -> Result<bool, StoreError>;
}
