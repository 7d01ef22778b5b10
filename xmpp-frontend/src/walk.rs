//! Broadcasts on their way over the index, in chunks, so that single sends overtake them; and the slow ones among them, which
//! ordinary broadcasts overtake too.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use idl::bus::{FrontEvent, IncomingBatch};
use idl::contract::bus::CancelBroadcast;
use roaring::RoaringBitmap;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::Shared;
use crate::config::Limits;
use crate::hub::Hub;
use crate::hub::broadcasts::Received;
use crate::ring::Recent;

/// How often it is looked whose moment has come.
const TICK: Duration = Duration::from_millis(100);
/// Broadcasts that were taken in, the one under way included. They are taken in as they come, also while another is under
/// way: whom one is for is decided then, and a cancellation behind it is seen.
const WALKS_MAX: usize = 64;
/// Broadcasts that are walked together.
const TOGETHER_MAX: usize = 16;

/// Broadcasts that are written in one go, and the slots that are still to be reached.
pub(crate) struct Walk {
    /// In the order in which each connection gets them.
    parts: Vec<Part>,
    slots: roaring::bitmap::IntoIter,
    /// How many slots are left.
    left: u64,
}

struct Part {
    recent: Arc<Recent>,
    slots: RoaringBitmap,
}

impl Walk {
    pub(crate) fn new(recent: Arc<Recent>, slots: RoaringBitmap) -> Self {
        Self { left: slots.len(), slots: slots.clone().into_iter(), parts: vec![Part { recent, slots }] }
    }

    /// One walk for all that have not begun: who is reached by several gets them in one write.
    fn merge(walks: impl IntoIterator<Item = Self>) -> Self {
        let parts: Vec<_> = walks.into_iter().flat_map(|walk| walk.parts).collect();
        let slots = parts.iter().fold(RoaringBitmap::new(), |all, part| all | &part.slots);
        Self { left: slots.len(), slots: slots.into_iter(), parts }
    }

    /// The next slot.
    pub(crate) fn next(&mut self) -> Option<u32> {
        let slot = self.slots.next();
        self.left -= u64::from(slot.is_some());
        slot
    }

    /// What is for that slot.
    pub(crate) fn at(&self, slot: u32) -> impl Iterator<Item = &Arc<Recent>> {
        self.parts.iter().filter(move |part| part.slots.contains(slot)).map(|part| &part.recent)
    }

    /// Goes on without some of the broadcasts. Returns true if there were any.
    pub(crate) fn leave_out(&mut self, which: impl Fn(&Recent) -> bool) -> bool {
        let before = self.parts.len();
        self.parts.retain(|part| !which(&part.recent));
        self.parts.len() < before
    }

    /// True if nothing is left to write.
    pub(crate) fn is_over(&self) -> bool {
        self.left == 0 || self.parts.is_empty()
    }
}

/// What is left to do for paced broadcasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pacing {
    /// Nobody waits for one.
    Done,
    /// Nobody's moment has come.
    Waiting,
    /// There may be more whose moment has come.
    Behind,
}

/// How fast a hub may write broadcasts: connections in a second; 0 for as fast as can be.
#[derive(Clone, Copy)]
struct Rate(usize);

impl Rate {
    /// The share of one of so many hubs.
    fn of(limits: &Limits, hubs: usize) -> Self {
        Self(limits.broadcast_writes_per_second_max.div_ceil(hubs))
    }

    /// A chunk of up to that many, or what is written in a tenth of a second.
    fn chunk(self, max: usize) -> usize {
        if self.0 == 0 { max } else { max.min(self.0.div_ceil(10)) }
    }

    /// How long after the beginning of a chunk the next one begins.
    fn pause(self, chunk: usize) -> Duration {
        let (chunk, rate) = (u64::try_from(chunk).unwrap_or(u64::MAX), u64::try_from(self.0).unwrap_or(u64::MAX));
        chunk.saturating_mul(1_000_000).checked_div(rate).map(Duration::from_micros).unwrap_or_default()
    }

    /// Waits until that moment, and in any case until others have had their turn.
    async fn turn(self, at: Instant) {
        tokio::task::yield_now().await;
        if self.0 > 0 {
            sleep_until(at).await;
        }
    }
}

/// Serves the batches of the middle tier, until the bus is gone.
pub(crate) async fn serve_batches(shared: Arc<Shared>, mut batches: mpsc::Receiver<IncomingBatch>) {
    while let Some(incoming) = batches.recv().await {
        let reply = shared.hubs.deliver(incoming.batch);
        incoming.answer.send(Ok(reply));
    }
}

/// What each hub is told.
#[derive(Clone)]
enum News {
    Broadcast(Arc<Received>),
    Cancelled(Arc<CancelBroadcast>),
}

/// Serves the events of the middle tier, until the bus is gone.
pub(crate) async fn serve_events(shared: Arc<Shared>, mut events: mpsc::Receiver<FrontEvent>) {
    let mut walkers = Vec::new();
    for hub in shared.hubs.each() {
        let (tell, news) = mpsc::channel(1);
        shared.spawn(walk(Arc::clone(&shared), Arc::clone(hub), news));
        walkers.push(tell);
    }
    while let Some(event) = events.recv().await {
        let news = match event {
            FrontEvent::Broadcast(broadcast) => {
                shared.metrics.broadcasts.inc();
                let Some(received) = Received::read(&broadcast) else { continue };
                News::Broadcast(Arc::new(received))
            }
            FrontEvent::CancelBroadcast(cancelled) => News::Cancelled(Arc::new(cancelled)),
            FrontEvent::TokenRevoked(revoked) => {
                shared.revoke(&revoked);
                continue;
            }
        };
        for walker in &walkers {
            if walker.send(news.clone()).await.is_err() {
                return;
            }
        }
    }
}

/// Walks the broadcasts of one hub. They are taken in as they come, also while others are under way; those that wait when a
/// walk ends are walked together, up to a number, so that who is reached by several gets them in one write. A chunk of the paced ones goes
/// behind each walk, or every tick.
async fn walk(shared: Arc<Shared>, hub: Arc<Hub>, mut news: mpsc::Receiver<News>) {
    let chunk_max = shared.config.limits.broadcast_chunk_max;
    let rate = Rate::of(&shared.config.limits, shared.hubs.each().count());
    let mut walks: VecDeque<Walk> = VecDeque::new();
    let mut next_at = Instant::now();
    let mut told = 0;
    let mut pacing = Pacing::Done;
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let waiting: usize = walks.iter().map(|walk| walk.parts.len()).sum();
        let left = walks.iter().map(|walk| i64::try_from(walk.left).unwrap_or(i64::MAX)).sum();
        shared.metrics.broadcast_slots.inc_by(left - std::mem::replace(&mut told, left));
        tokio::select! {
            biased;
            heard = news.recv(), if waiting < WALKS_MAX => match heard {
                Some(News::Broadcast(received)) => walks.extend(hub.broadcast(&received, shared.clock.now_ms())),
                Some(News::Cancelled(cancelled)) => hub.cancel(&cancelled, &mut walks),
                None => return,
            },
            () = rate.turn(next_at), if !walks.is_empty() => {
                let now_ms = shared.clock.now_ms();
                let chunk_max = rate.chunk(chunk_max);
                next_at = Instant::now() + rate.pause(chunk_max);
                if walks.front_mut().is_some_and(|walk| !hub.walk(walk, chunk_max, now_ms)) {
                    walks.pop_front();
                    pacing = hub.pace(chunk_max, now_ms);
                    // While moments have passed, it is the turn of the paced ones behind each broadcast.
                    let together = if pacing == Pacing::Behind { 1 } else { walks.len().min(TOGETHER_MAX) };
                    if together > 1 {
                        let walk = Walk::merge(walks.drain(..together));
                        walks.push_front(walk);
                    }
                }
            }
            () = tokio::task::yield_now(), if pacing == Pacing::Behind => {
                pacing = hub.pace(chunk_max, shared.clock.now_ms());
            }
            // Somebody waits whose connection came while nobody did.
            () = hub.paced.notified(), if pacing == Pacing::Done => pacing = Pacing::Waiting,
            _ = ticks.tick(), if pacing == Pacing::Waiting => pacing = hub.pace(chunk_max, shared.clock.now_ms()),
        }
    }
}
