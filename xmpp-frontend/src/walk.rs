//! Broadcasts on their way over the index, in chunks, so that single sends overtake them; and the slow ones among them, which
//! ordinary broadcasts overtake too.

use std::collections::VecDeque;
use std::iter::Peekable;
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
/// Broadcasts that were taken in, those under way included. They are taken in as they come: whom one is for is decided then,
/// and a cancellation behind it is seen.
const WALKS_MAX: usize = 64;
/// Broadcasts that are under way at one time: a connection may get all of them in one write.
const TOGETHER_MAX: usize = 16;

/// Broadcasts on their way round the slots of a hub. One that comes begins where the walk is and has been to all once the
/// walk is there again. So who is reached by several gets them in one write, also when they came one after the other, and
/// each connection gets them in the order in which they came.
#[derive(Default)]
pub(crate) struct Walk {
    /// Under way, in that order.
    parts: Vec<Part>,
    /// Taken in, and not under way yet.
    waiting: VecDeque<(Arc<Recent>, RoaringBitmap)>,
    /// The slots before this one have been reached in this round.
    at: u32,
}

/// One broadcast of a walk.
struct Part {
    recent: Arc<Recent>,
    /// Its slots from where the walk is.
    ahead: Peekable<roaring::bitmap::IntoIter>,
    /// Its slots of the next round: those that the walk had passed when it began.
    behind: RoaringBitmap,
    /// How many there are of both.
    left: u64,
}

impl Part {
    fn new(recent: Arc<Recent>, mut slots: RoaringBitmap, at: u32) -> Self {
        let left = slots.len();
        let mut behind = slots.clone();
        slots.remove_range(..at);
        behind.remove_range(at..);
        Self { recent, ahead: slots.into_iter().peekable(), behind, left }
    }
}

impl Walk {
    /// Takes a broadcast in that is for these slots.
    pub(crate) fn join(&mut self, recent: Arc<Recent>, slots: RoaringBitmap) {
        self.waiting.push_back((recent, slots));
        self.begin_waiting();
    }

    fn begin_waiting(&mut self) {
        while self.parts.len() < TOGETHER_MAX
            && let Some((recent, slots)) = self.waiting.pop_front()
        {
            self.parts.push(Part::new(recent, slots, self.at));
        }
    }

    /// The next slot; a new round begins behind the last one.
    pub(crate) fn next(&mut self) -> Option<u32> {
        loop {
            if let Some(slot) = self.parts.iter_mut().filter_map(|part| part.ahead.peek().copied()).min() {
                self.at = slot.saturating_add(1);
                return Some(slot);
            }
            self.at = 0;
            let mut begun = false;
            for part in &mut self.parts {
                begun |= !part.behind.is_empty();
                part.ahead = std::mem::take(&mut part.behind).into_iter().peekable();
            }
            if !begun {
                return None;
            }
        }
    }

    /// What is for that slot, which [`Walk::next`] gave: it is reached.
    pub(crate) fn reach(&mut self, slot: u32) -> impl Iterator<Item = &Arc<Recent>> {
        self.parts.iter_mut().filter_map(move |part| {
            part.ahead.next_if_eq(&slot)?;
            part.left -= 1;
            Some(&part.recent)
        })
    }

    /// Lets those go that have been to all, and begins with as many of those that wait. Returns how many went.
    pub(crate) fn let_go(&mut self) -> usize {
        let before = self.parts.len();
        self.parts.retain(|part| part.left > 0);
        let gone = before - self.parts.len();
        self.begin_waiting();
        gone
    }

    /// Goes on without some of the broadcasts. Returns true if there were any.
    pub(crate) fn leave_out(&mut self, which: impl Fn(&Recent) -> bool) -> bool {
        let before = self.len();
        self.parts.retain(|part| !which(&part.recent));
        self.waiting.retain(|(recent, _)| !which(recent));
        self.len() < before
    }

    /// How many broadcasts there are.
    pub(crate) fn len(&self) -> usize {
        self.parts.len() + self.waiting.len()
    }

    /// How often somebody is still to be reached.
    fn left(&self) -> u64 {
        let waiting = self.waiting.iter().map(|(_, slots)| slots.len());
        self.parts.iter().map(|part| part.left).chain(waiting).sum()
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
        shared.spawn(walk_on(Arc::clone(&shared), Arc::clone(hub), news));
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

/// Walks the broadcasts of one hub, which are taken in as they come. A chunk of the paced ones goes behind each that ends, or
/// every tick.
async fn walk_on(shared: Arc<Shared>, hub: Arc<Hub>, mut news: mpsc::Receiver<News>) {
    let chunk_max = shared.config.limits.broadcast_chunk_max;
    let rate = Rate::of(&shared.config.limits, shared.hubs.each().count());
    let mut walk = Walk::default();
    let mut next_at = Instant::now();
    let mut told = 0;
    let mut pacing = Pacing::Done;
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let left = i64::try_from(walk.left()).unwrap_or(i64::MAX);
        shared.metrics.broadcast_slots.inc_by(left - std::mem::replace(&mut told, left));
        tokio::select! {
            biased;
            heard = news.recv(), if walk.len() < WALKS_MAX => match heard {
                Some(News::Broadcast(received)) => hub.broadcast(&received, &mut walk, shared.clock.now_ms()),
                Some(News::Cancelled(cancelled)) => hub.cancel(&cancelled, &mut walk),
                None => return,
            },
            () = rate.turn(next_at), if walk.len() > 0 => {
                let now_ms = shared.clock.now_ms();
                let chunk_max = rate.chunk(chunk_max);
                next_at = Instant::now() + rate.pause(chunk_max);
                for _ in 0..hub.walk(&mut walk, chunk_max, now_ms) {
                    pacing = hub.pace(chunk_max, now_ms);
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
