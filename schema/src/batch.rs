//! Writes of several domain stores as one.
//!
//! Each domain store adds methods of its own to [`Batch`]. Mutations take effect in the order in which they were added;
//! those on one row together, and with the embedded backend all of them together. So add truth first and index second, and
//! last what says that it is done.

use crate::sorted::{Mutation, SortedStore, StoreError};

/// What is to be written.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Batch(pub(crate) Vec<Mutation>);

impl Batch {
    /// True if there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds another after all that is here.
    pub fn append(&mut self, mut later: Self) {
        if self.0.is_empty() {
            self.0 = later.0;
        } else {
            self.0.append(&mut later.0);
        }
    }

    /// Writes it, durably when `Ok`. An empty batch costs nothing; writing it twice leaves what writing it once leaves.
    pub async fn write(self, store: &dyn SortedStore) -> Result<(), StoreError> {
        if self.0.is_empty() { Ok(()) } else { store.write(self.0).await }
    }
}
