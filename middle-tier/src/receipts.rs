//! Receipts: what an app server is told of its messages, posted to callback URLs and kept for reading again.
//!
//! Whoever writes a receipt draws its id from [`InFlight`], writes it together with what it tells of, and pokes its URL. The
//! job posts about once a second to each URL that has something waiting ([`job`]); which one when, and how one that is down
//! is kept from holding up the others, is `queue`; what goes into a post is `post`. A receipt waits in the store until a post
//! of it was answered, so none is lost by a crash, and one may be posted twice.

//!
//! Each URL belongs to a partition, whose owner posts to it; others tell it when they have written something ([`elsewhere`]).
//! Readers stop before what any middle may still be writing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use idl::bus::Reply;
use idl::contract::bus as wire;
use idl::error::Failure;
use idl::ids::{AppId, MessageId, Partition, Shard};
use ring::digest;
use schema::receipts::UrlKey;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use self::elsewhere::Elsewhere;
pub(crate) use self::elsewhere::run as tell_owners;
use self::ids::Ids;
pub(crate) use self::ids::InFlight;
pub(crate) use self::job::run;
use self::queue::{Poked, Queue};
use crate::apps::parse;
use crate::{Config, Shared};

mod elsewhere;
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
    /// A URL with something waiting may be unknown here: forgotten for want of room, or another's until now.
    forgotten: Notify,
    /// A look at a URL is over.
    finished: Notify,
    elsewhere: Elsewhere,
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
        finished: Notify::new(),
        elsewhere: Elsewhere::default(),
    }
}

/// Whose work it is to post to a URL.
fn partition_of(app: &AppId, url: &str) -> Partition {
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(app.as_str().as_bytes());
    // No app id has such a byte.
    hash.update(&[0]);
    hash.update(url.as_bytes());
    let hash = hash.finish();
    let head = hash.as_ref().first_chunk().copied().unwrap_or_default();
    Shard(u16::from_be_bytes(head)).into()
}

impl Receipts {
    /// Begins to write receipts: draw their ids from what this returns, and keep it until they are written.
    pub(crate) fn begin(&self) -> InFlight {
        InFlight::new(Arc::clone(&self.ids))
    }

    /// Readers ask for receipts before this id: all of those are written, whoever writes them. It never goes back.
    pub(crate) async fn settled(&self, shared: &Shared) -> MessageId {
        let here = self.ids.settled(shared.clock.now_ms());
        if shared.partitions.is_whole() { here } else { self.elsewhere.settled(shared, here).await }
    }

    /// Another middle asks before which id all of this one's receipts are written.
    pub(crate) fn settled_here(&self, shared: &Shared) -> Reply {
        Reply::Settled(wire::SettledBefore { id: self.ids.settled(shared.clock.now_ms()).to_bytes().to_vec() })
    }

    /// A receipt was written for the URL: whoever posts to it looks at it within about a second, or when it is due after a
    /// failure.
    pub(crate) fn poke(&self, shared: &Shared, app: &AppId, url: &str) {
        if shared.partitions.is_whole() || shared.partitions.has(partition_of(app, url)) {
            self.poke_here(app, url);
        } else {
            self.elsewhere.poke(app, url);
        }
    }

    /// Another middle wrote a receipt for a URL.
    pub(crate) fn poked(&self, request: &wire::ReceiptsWait) -> Result<Reply, Failure> {
        self.poke_here(&parse(&request.app)?, &request.url);
        Ok(Reply::Done)
    }

    fn poke_here(&self, app: &AppId, url: &str) {
        let poked = self.queue().poke(&UrlKey::new(app, url), app, url, Instant::now());
        if matches!(poked, Poked::Replaced | Poked::Refused) {
            self.forgotten.notify_one();
        }
        if matches!(poked, Poked::Added | Poked::Replaced) {
            self.changed.notify_one();
        }
    }

    /// Looks soon for URLs that have something waiting and are not known here.
    pub(crate) fn look_everywhere(&self) {
        self.forgotten.notify_one();
    }

    /// Posts no more to URLs of a partition, and waits for the posts that are under way.
    pub(crate) async fn leave(&self, partition: Partition) {
        let over = async {
            loop {
                let finished = self.finished.notified();
                {
                    let mut queue = self.queue();
                    queue.forget_of(&[partition]);
                    if !queue.is_running(partition) {
                        return;
                    }
                }
                finished.await;
            }
        };
        if timeout(job::DRAIN, over).await.is_err() {
            tracing::warn!(partition = partition.number(), "posts of receipts may be repeated by another middle");
        }
    }

    /// Forgets the URLs of partitions that are another's.
    pub(crate) fn forget_of(&self, partitions: &[Partition]) {
        self.queue().forget_of(partitions);
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
