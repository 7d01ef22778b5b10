//! Who is subscribed to a topic. A topic has no upper bound, so each member is a row of its own.
//!
//! Table `topic_members`. Row: a spread of app and topic (2 bytes) · app id, escaped · topic, escaped · registration id, 24
//! bytes (which begins with the account's shard, so the members of one large topic are spread too). One cell `m`, empty. The
//! registration's own row is the truth; a row here may point at one that is gone or no longer subscribed. Written by
//! [`crate::registrations`].
//!
//! An app's registrations are the members of a topic without a name, which no topic is: each has one such row for as long as
//! it exists. Their rows start with one spread, but go on with the shard, so they are spread as those of a large topic are.

use std::sync::Arc;

use idl::ids::{AppId, RegId, TopicName};

use crate::keys::{self, Key};
use crate::names;
use crate::sorted::{SortedStore, StoreError, Table};

const TABLE: Table = Table::TopicMembers;
/// Stands for every registration of an app. Never the name of a topic, which has a character at least.
const EVERYONE: &str = "";

/// The index from topics to registrations.
#[derive(Clone)]
pub struct TopicMembers {
    store: Arc<dyn SortedStore>,
}

impl TopicMembers {
    /// On a sorted store.
    pub fn new(store: Arc<dyn SortedStore>) -> Self {
        Self { store }
    }

    /// Registrations that are or were subscribed, in order of their ids: at most `limit`, those after `after`. Fewer than
    /// `limit` means there are no more. Check each against the registration itself.
    pub async fn members(
        &self,
        app: &AppId,
        topic: &TopicName,
        after: Option<RegId>,
        limit: usize,
    ) -> Result<Vec<RegId>, StoreError> {
        names::members(self.store.as_ref(), TABLE, prefix(app, topic.as_str()), after, limit).await
    }

    /// Registrations that an app has or had, in order of their ids: at most `limit`, those after `after`. Fewer than `limit`
    /// means there are no more. Check each against the registration itself.
    pub async fn everyone(&self, app: &AppId, after: Option<RegId>, limit: usize) -> Result<Vec<RegId>, StoreError> {
        names::members(self.store.as_ref(), TABLE, prefix(app, EVERYONE), after, limit).await
    }
}

/// The row that says that a registration is one of its app's.
pub(crate) fn everyone_row(app: &AppId, regid: RegId) -> Vec<u8> {
    Key::new().fixed(&prefix(app, EVERYONE)).fixed(&regid.0).build()
}

/// The row that says that a registration is subscribed to a topic.
pub(crate) fn row(app: &AppId, topic: &TopicName, regid: RegId) -> Vec<u8> {
    Key::new().fixed(&prefix(app, topic.as_str())).fixed(&regid.0).build()
}

fn prefix(app: &AppId, topic: &str) -> Vec<u8> {
    let (app, topic) = (app.as_str().as_bytes(), topic.as_bytes());
    Key::new().fixed(&keys::spread(&[app, topic])).escaped(app).escaped(topic).build()
}
