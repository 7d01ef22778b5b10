//! The job that posts receipts: looks at one URL after another, and after a restart at all that have something waiting.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use idl::error::Failure;
use idl::ids::{AppId, MessageId};
use schema::batch::Batch;
use schema::receipts::{Receipt, UrlKey};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::post::gather;
use super::queue::{FAILURES_MAX, Look, Looked, Memory, Next, back_off};
use super::shown::shown;
use super::{POSTING_MS, partition_of};
use crate::Shared;
use crate::poster::PostError;

/// All URLs in the store are gone through once in this time, whatever was forgotten.
const SCAN_INTERVAL: Duration = Duration::from_mins(5);
/// URLs read from the store in one step.
const SCAN_PAGE: usize = 256;
/// How long the scan waits where there is no room for what it found, or the store can't be read.
const SCAN_REST: Duration = Duration::from_secs(1);
/// What is being posted when the tier ends has so long to arrive; what did not is posted again after the start.
pub(super) const DRAIN: Duration = Duration::from_secs(5);
/// A receiver that wants no more (410 Gone) is asked again at the longest step, and with it any receipt given up in time.
const GONE: u16 = 410;

/// Posts receipts until `drain` is cancelled.
pub(crate) async fn run(shared: Arc<Shared>, drain: CancellationToken) {
    shared.receipts.queue().limit(shared.config.receipt_posts_max, shared.config.receipt_urls_max);
    let mut posts = JoinSet::new();
    let mut under_way: HashMap<Id, UrlKey> = HashMap::new();
    let scanning = scan(&shared);
    tokio::pin!(scanning);
    loop {
        let wake = start(&shared, &mut posts, &mut under_way);
        tokio::select! {
            biased;
            () = drain.cancelled() => break,
            Some(ended) = posts.join_next_with_id() => finish(&shared, &mut under_way, ended),
            () = shared.receipts.changed.notified() => {}
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            () = &mut scanning => {}
        }
    }
    let ended = async { while posts.join_next().await.is_some() {} };
    if timeout(DRAIN, ended).await.is_err() {
        tracing::warn!(posts = posts.len(), "posts of receipts were broken off; they are repeated after the start");
    }
}

/// Starts all looks that are due and says when to come again.
fn start(shared: &Arc<Shared>, posts: &mut JoinSet<Looked>, under_way: &mut HashMap<Id, UrlKey>) -> Option<Instant> {
    let mut queue = shared.receipts.queue();
    let now = Instant::now();
    while let Some(next) = queue.start(now) {
        let (key, shared) = (next.key.clone(), Arc::clone(shared));
        let task = posts.spawn(async move { look(&shared, &next).await });
        under_way.insert(task.id(), key);
    }
    shared.metrics.receipt_urls.set(i64::try_from(queue.len()).unwrap_or(i64::MAX));
    shared.metrics.ran("receipts", shared.clock.now_ms());
    queue.next_due()
}

fn finish(shared: &Shared, under_way: &mut HashMap<Id, UrlKey>, ended: Result<(Id, Looked), JoinError>) {
    let (id, looked) = ended.unwrap_or_else(|error| {
        // It panicked, which was reported when it did; the URL must not be stuck for it.
        let (wait, memory) = (back_off(FAILURES_MAX, shared.entropy.as_ref()), Memory::default());
        (error.id(), Looked::Failed { memory, wait, receiver: true })
    });
    if let Some(key) = under_way.remove(&id) {
        shared.receipts.queue().finish(&key, looked, Instant::now());
        shared.receipts.finished.notify_waiters();
    }
}

async fn look(shared: &Shared, look: &Look) -> Looked {
    if !posts_to(shared, &look.app, &look.url) {
        return Looked::Nothing;
    }
    post(shared, look).await.unwrap_or_else(|failure| {
        tracing::warn!(app = %look.app, url = shown(&look.url), %failure, "receipts could not be looked at; they are tried again");
        let failures = look.memory.failures.saturating_add(1);
        let wait = back_off(failures, shared.entropy.as_ref());
        Looked::Failed { memory: Memory { failures, ..look.memory }, wait, receiver: false }
    })
}

/// True if it is up to this middle to post to the URL.
fn posts_to(shared: &Shared, app: &AppId, url: &str) -> bool {
    shared.partitions.is_whole() || shared.partitions.keeps(partition_of(app, url))
}

/// Makes one post of what waits for a URL, if anything does.
async fn post(shared: &Shared, look: &Look) -> Result<Looked, Failure> {
    let (config, log) = (&shared.config, &shared.receipt_log);
    // Whatever is written later has a later id: so a repeat, which stops where the first try did, has what that had.
    let settled = shared.receipts.settled(shared).await;
    let limit = config.receipts_per_post_max.max(1);
    let mut pending = log.pending(&look.app, &look.url, look.memory.after, limit).await?;
    let mut more = pending.len() >= limit;
    let written = pending.partition_point(|receipt| receipt.id < settled);
    let unsettled = written < pending.len();
    pending.truncate(written);
    if let Some(last) = look.memory.last {
        let repeated = pending.partition_point(|receipt| receipt.id <= last);
        // All of it may have been given up.
        if repeated > 0 {
            more |= repeated < pending.len();
            pending.truncate(repeated);
        }
    }
    let Some(last) = pending.last().map(|receipt| receipt.id) else {
        return Ok(if unsettled { Looked::Unsettled } else { Looked::Nothing });
    };
    let gathered = gather(pending, config.receipt_post_bytes_max);
    let app = shared.apps.by_id(&look.app).await?;
    let post = gathered.to_post(&look.url, &app.webhook_secret, shared.clock.now_ms());
    let posted = timeout(config.receipt_post_time_max, shared.poster.post(post)).await;
    let posted = posted.unwrap_or_else(|_| Err(PostError::Unreachable("no answer in time".to_owned())));
    if let Err(error) = posted {
        return failed(shared, look, Memory { last: Some(last), ..look.memory }, &error).await;
    }
    shared.metrics.receipts_posted.inc_by(gathered.taken.len() as u64);
    if let Err(failure) = remove(shared, &gathered.taken).await {
        // The receiver knows the repeat by its id.
        tracing::warn!(app = %look.app, url = shown(&look.url), %failure, "receipts that were posted are posted again");
        let failures = look.memory.failures.saturating_add(1);
        let wait = back_off(failures, shared.entropy.as_ref());
        let memory = Memory { last: Some(last), failures, ..look.memory };
        return Ok(Looked::Failed { memory, wait, receiver: false });
    }
    let next = match gathered.first_left {
        _ if more || gathered.full => Next::Now,
        Some(_) => Next::Soon,
        None if unsettled => Next::Soon,
        None => Next::Poked,
    };
    let after = gathered.first_left.map_or(Some(last), |left| left.0.checked_sub(1).map(MessageId));
    Ok(Looked::Posted { memory: Memory { after, last: None, failures: 0 }, next })
}

async fn failed(shared: &Shared, look: &Look, memory: Memory, error: &PostError) -> Result<Looked, Failure> {
    shared.metrics.receipt_post_failures.inc();
    let gone = *error == PostError::Status(GONE);
    let failures = if gone { FAILURES_MAX } else { memory.failures.saturating_add(1) };
    let wait = back_off(failures, shared.entropy.as_ref());
    tracing::debug!(app = %look.app, url = shown(&look.url), %error, failures, ?wait, "receipts could not be posted");
    give_up(shared, look, wait).await?;
    Ok(Looked::Failed { memory: Memory { failures, ..memory }, wait, receiver: true })
}

/// Gives up what will have waited too long when the URL is tried again.
async fn give_up(shared: &Shared, look: &Look, wait: Duration) -> Result<(), Failure> {
    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    let next_ms = shared.clock.now_ms().saturating_add(wait_ms);
    let limit = shared.config.receipts_per_post_max.max(1);
    loop {
        let mut pending = shared.receipt_log.pending(&look.app, &look.url, None, limit).await?;
        let all = pending.len() < limit;
        let old = pending.iter().take_while(|receipt| receipt.at_ms.saturating_add(POSTING_MS) <= next_ms).count();
        let whole = old == pending.len();
        pending.truncate(old);
        if !pending.is_empty() {
            remove(shared, &pending).await?;
            shared.metrics.receipts_given_up.inc_by(old as u64);
            tracing::warn!(app = %look.app, url = shown(&look.url), receipts = old, "receipts were given up after a day");
        }
        if all || !whole {
            return Ok(());
        }
    }
}

async fn remove(shared: &Shared, receipts: &[Receipt]) -> Result<(), Failure> {
    let mut batch = Batch::default();
    for receipt in receipts {
        batch.receipt_posted(receipt);
    }
    Ok(batch.write(shared.store.as_ref()).await?)
}

/// Finds the URLs in the store that have something waiting and nobody has told of: those of an earlier life, and those that
/// there was no room for. Never ends.
async fn scan(shared: &Arc<Shared>) {
    loop {
        let rest = match scan_once(shared).await {
            Ok(()) => SCAN_INTERVAL,
            Err(failure) => {
                tracing::warn!(%failure, "the callback URLs could not be read; they are tried again");
                SCAN_REST
            }
        };
        tokio::select! {
            () = sleep(rest) => {}
            () = shared.receipts.forgotten.notified() => sleep(SCAN_REST).await,
        }
    }
}

async fn scan_once(shared: &Arc<Shared>) -> Result<(), Failure> {
    let mut after = None;
    loop {
        let urls = shared.receipt_log.urls(after, SCAN_PAGE).await?;
        after = urls.last().map(|(key, ..)| key.clone());
        let whole = urls.len() < SCAN_PAGE;
        for (key, app, url) in urls {
            if !posts_to(shared, &app, &url) || shared.receipts.queue().knows(&key) {
                continue;
            }
            let waits = !shared.receipt_log.pending(&app, &url, None, 1).await?.is_empty();
            while waits && posts_to(shared, &app, &url) && !shared.receipts.found(&key, &app, &url) {
                sleep(SCAN_REST).await;
            }
        }
        if whole {
            return Ok(());
        }
    }
}
