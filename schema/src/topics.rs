//! Who is subscribed to a topic. A topic has no upper bound, so each member is a row of its own.
//!
//! Table `topic_members`. Row: a spread of app and topic (2 bytes) · app id, escaped · topic, escaped · registration id, 24
//! bytes (which begins with the account's shard, so the members of one large topic are spread too). One cell `m`, empty. The
//! registration's own row is the truth; a row here may point at one that is gone or no longer subscribed. Written by
//! [`crate::registrations`].

use std::sync::Arc;

use idl::ids::{AppId, RegId, TopicName};

use crate::keys::{self, Key};
use crate::names;
use crate::sorted::{SortedStore, StoreError, Table};

const TABLE: Table = Table::TopicMembers;

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
        names::members(self.store.as_ref(), TABLE, prefix(app, topic), after, limit).await
    }
}

/// The row that says that a registration is subscribed to a topic.
pub(crate) fn row(app: &AppId, topic: &TopicName, regid: RegId) -> Vec<u8> {
    Key::new().fixed(&prefix(app, topic)).fixed(&regid.0).build()
}

fn prefix(app: &AppId, topic: &TopicName) -> Vec<u8> {
    let (app, topic) = (app.as_str().as_bytes(), topic.as_str().as_bytes());
    Key::new().fixed(&keys::spread(&[app, topic])).escaped(app).escaped(topic).build()
}
