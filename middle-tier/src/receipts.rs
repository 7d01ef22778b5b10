//! Receipts: what an app server is told of its messages, posted to callback URLs and kept for reading again.
//!
//! Whoever writes a receipt draws its id from [`InFlight`], writes it together with what it tells of, and pokes its URL. The
//! job posts about once a second to each URL that has something waiting ([`job`]); which one when, and how one that is down
//! is kept from holding up the others, is `queue`; what goes into a post is `post`. A receipt waits in the store until a post
//! of it was answered, so none is lost by a crash, and one may be posted twice.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use idl::ids::{AppId, MessageId};
use schema::receipts::UrlKey;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::ids::Ids;
pub(crate) use self::ids::InFlight;
pub(crate) use self::job::run;
use self::queue::{Poked, Queue};
use crate::{Config, Shared};

mod ids;
mod job;
mod post;
mod queue;
mod shown;
#[cfg(test)]
mod tests;

/// How long it is tried to post a receipt, in milliseconds.
pub(crate) const POSTING_MS: u64 = 24 * 3600 * 1000;

/// Receipts on their way.
pub(crate) struct Receipts {
    ids: Arc<Ids>,
    queue: Mutex<Queue>,
    /// Something may have become due earlier.
    changed: Notify,
    /// A URL with something waiting was forgotten for want of room.
    forgotten: Notify,
}

/// Nothing on its way yet; [`run`] finds what an earlier life left.
pub(crate) fn new() -> Receipts {
    // The job sets the limits that are configured when it begins.
    let Config { receipt_posts_max, receipt_urls_max, .. } = Config::default();
    Receipts {
        ids: Arc::default(),
        queue: Mutex::new(Queue::new(receipt_posts_max, receipt_urls_max)),
        changed: Notify::new(),
        forgotten: Notify::new(),
    }
}

impl Receipts {
    /// Begins to write receipts: draw their ids from what this returns, and keep it until they are written.
    pub(crate) fn begin(&self) -> InFlight {
        InFlight::new(Arc::clone(&self.ids))
    }

    /// Readers ask for receipts before this id: all of those are written. It never goes back.
    pub(crate) fn settled(&self, shared: &Shared) -> MessageId {
        self.ids.settled(shared.clock.now_ms())
    }

    /// A receipt was written for the URL: the job looks at it within about a second, or when it is due after a failure.
    pub(crate) fn poke(&self, app: &AppId, url: &str) {
        let poked = self.queue().poke(&UrlKey::new(app, url), app, url, Instant::now());
        if matches!(poked, Poked::Replaced | Poked::Refused) {
            self.forgotten.notify_one();
        }
        if matches!(poked, Poked::Added | Poked::Replaced) {
            self.changed.notify_one();
        }
    }

    /// The store has something for the URL; `false` if there is no room for it.
    fn found(&self, key: &UrlKey, app: &AppId, url: &str) -> bool {
        let had_room = self.queue().found(key, app, url, Instant::now());
        if had_room {
            self.changed.notify_one();
        }
        had_room
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
