//! Segments: audience expressions that an application saved under a name.

use async_trait::async_trait;
use idl::ids::AppId;

use super::Stored;
use crate::sorted::StoreError;

/// An audience expression under a name. Names are one application's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Whose it is.
    pub app: AppId,
    /// Its name; never empty.
    pub name: String,
    /// The expression as it was written.
    pub expression: String,
    /// When it was stored, in milliseconds since the epoch.
    pub changed_at_ms: u64,
}

/// Saved audience expressions.
#[async_trait]
pub trait Segments: Send + Sync + 'static {
    /// Stores a segment, in the place of the one of that name if there is one. An application has `max` at most: one more
    /// is refused as [`Stored::Full`]; one that takes a place never is. An empty name is refused as
    /// [`StoreError::Unavailable`].
    async fn put_segment(&self, segment: Segment, max: usize) -> Result<Stored, StoreError>;

    /// The application's segment of that name.
    async fn segment(&self, app: &AppId, name: &str) -> Result<Option<Segment>, StoreError>;

    /// The application's segments whose names come after `after`, or all, in the order of their names, `limit` at most.
    async fn segments(&self, app: &AppId, after: Option<&str>, limit: usize) -> Result<Vec<Segment>, StoreError>;

    /// Removes a segment: `false` if there is none of that name.
    async fn delete_segment(&self, app: &AppId, name: &str) -> Result<bool, StoreError>;
}
