//! Buses for tests, in one process and on a real Redis, and a middle that answers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use campanile_idl::bus::redis::{ProcessId, RedisBus, RedisOptions};
use campanile_idl::bus::{
    Bus, Call, FrontInbox, Hold, InProcess, Incoming, Lane, Limits, MiddleInbox, Ownership, Reply, Request,
};
use campanile_idl::clock::{SystemClock, SystemEntropy};
use campanile_idl::contract::bus as wire;
use campanile_idl::error::Failure;
use campanile_idl::ids::{FrontId, Partition, Shard};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long anything may take on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(30);
pub(crate) const FRONT: FrontId = FrontId(77);

/// A producer's end, a middle and a front: one bus, or three.
pub(crate) struct World {
    pub(crate) producer: Arc<dyn Bus>,
    /// The bus as the middle has it.
    pub(crate) at_middle: Arc<dyn Bus>,
    pub(crate) middle: MiddleInbox,
    pub(crate) front: FrontInbox,
}

/// How much may wait.
#[derive(Clone, Copy)]
pub(crate) struct Room {
    pub(crate) lane: usize,
    pub(crate) front: usize,
}

pub(crate) const ROOMY: Room = Room { lane: 1024, front: 64 };

/// Everything in one process.
#[expect(clippy::unused_async, reason = "as with the other backend")]
pub(crate) async fn in_process(room: Room) -> Option<World> {
    let limits = Limits { lane_max: room.lane, batches_max: room.front, events_max: room.front };
    let bus = Arc::new(InProcess::new(limits, Arc::new(SystemClock), Arc::new(SystemEntropy)));
    let (middle, front) = (bus.attach_middle(), bus.attach_front(FRONT));
    Some(World { producer: bus.clone(), at_middle: bus, middle, front })
}

/// Three ends of a bus on Redis, once all of them know each other.
pub(crate) async fn on_redis(room: Room) -> Option<World> {
    let options = RedisOptions {
        lane_max: room.lane,
        batches_max: room.front,
        events_max: room.front,
        ..options(&servers::redis()?.url())
    };
    let (producer, middle, front) = (end(&options).await, end(&options).await, end(&options).await);
    let front_inbox = front.attach_front(FRONT);
    let middle_inbox = middle.attach_middle();
    owns_all(&[middle_inbox.ownership()]).await;
    wait_for("all know each other", || {
        [&producer, &middle, &front].iter().all(|bus| bus.metrics().middles.value() + bus.metrics().fronts.value() == 2)
    })
    .await;
    // The front's end lives as long as its inbox.
    let front_inbox = keep(front_inbox, front);
    Some(World { producer, at_middle: middle, middle: middle_inbox, front: front_inbox })
}

/// Ends of buses that live as long as the test process: their inboxes are what a test drops.
fn keep(inbox: FrontInbox, bus: Arc<RedisBus>) -> FrontInbox {
    static KEPT: Mutex<Vec<Arc<RedisBus>>> = Mutex::new(Vec::new());
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).push(bus);
    inbox
}

/// Options with a prefix that no other test has.
pub(crate) fn options(url: &str) -> RedisOptions {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let prefix = format!("bus-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    RedisOptions { url: url.to_owned(), prefix, ..RedisOptions::default() }
}

/// One process's end.
pub(crate) async fn end(options: &RedisOptions) -> Arc<RedisBus> {
    let process = ProcessId::random(&SystemEntropy);
    let connected = RedisBus::connect(options.clone(), process, Arc::new(SystemClock), Arc::new(SystemEntropy));
    connected.await.expect("Redis is there")
}

/// Waits until a condition holds, and says which did not.
pub(crate) async fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let give_up_at = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < give_up_at, "not within {LONG:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until these middles own all partitions, each partition one of them.
pub(crate) async fn owns_all(middles: &[&Ownership]) {
    let owners = |partition| middles.iter().filter(|middle| matches!(middle.hold(partition), Hold::Owned(_))).count();
    wait_for("each partition has one owner", || Partition::all().all(|partition| owners(partition) == 1)).await;
}

pub(crate) fn call(lane: Lane, shard: u16, patience: Duration) -> Call {
    let request = Request::RevokeTokens(wire::RevokeTokens { account: shard.to_string() });
    Call { lane, shard: Shard(shard), deadline: Instant::now() + patience, request }
}

/// What a middle was given, in order.
pub(crate) type Log = Arc<Mutex<Vec<Seen>>>;

/// A request as a middle saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) id: u128,
    pub(crate) lane: Lane,
    pub(crate) partition: Option<usize>,
    pub(crate) request: Request,
}

impl Seen {
    pub(crate) fn of(incoming: &Incoming) -> Self {
        Self {
            id: incoming.id.0,
            lane: incoming.lane,
            partition: incoming.partition.map(Partition::number),
            request: incoming.request.clone(),
        }
    }
}

pub(crate) fn seen(log: &Log) -> Vec<Seen> {
    log.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// A middle that notes each request and answers as told, and gives away at once what it is to give away.
pub(crate) fn serve(
    mut inbox: MiddleInbox,
    answer: impl Fn(&Incoming) -> Option<Result<Reply, Failure>> + Send + 'static,
) -> (JoinHandle<()>, Log) {
    let log = Log::default();
    let mut ownership = inbox.ownership().clone();
    let noted = Arc::clone(&log);
    let serving = tokio::spawn(async move {
        loop {
            tokio::select! {
                incoming = inbox.next() => {
                    let Some(incoming) = incoming else { break };
                    noted.lock().unwrap_or_else(PoisonError::into_inner).push(Seen::of(&incoming));
                    if let Some(result) = answer(&incoming) {
                        incoming.answer.send(result);
                    }
                }
                changes = ownership.changed() => {
                    for partition in changes.leaving {
                        ownership.left(partition);
                    }
                }
            }
        }
    });
    (serving, log)
}

/// A middle that answers everything with "done".
pub(crate) fn serve_all(inbox: MiddleInbox) -> (JoinHandle<()>, Log) {
    serve(inbox, |_| Some(Ok(Reply::Done)))
}
