//! The bus of one process: channels of tokio, bounded.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use ulid::Ulid;

use super::{
    Answer, Bus, Call, FrontEvent, FrontInbox, Incoming, IncomingBatch, MiddleInbox, Ownership, Reply, Term, timed_out,
};
use crate::clock::{SharedClock, SharedEntropy};
use crate::contract::bus as wire;
use crate::error::{Code, Failure};
use crate::ids::{FrontId, MessageId};

/// How much may wait.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Requests waiting in each lane of the middle.
    pub lane_max: usize,
    /// Batches waiting for each front.
    pub batches_max: usize,
    /// Events waiting for each front.
    pub events_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { lane_max: 8192, batches_max: 1024, events_max: 1024 }
    }
}

/// A bus whose tiers are in one process. One middle at a time: attaching another takes the place of the one before.
pub struct InProcess {
    limits: Limits,
    ids: Ids,
    middle: Mutex<Option<[mpsc::Sender<Incoming>; 3]>>,
    fronts: Mutex<BTreeMap<FrontId, FrontSenders>>,
}

#[derive(Clone)]
struct FrontSenders {
    batches: mpsc::Sender<IncomingBatch>,
    events: mpsc::Sender<FrontEvent>,
}

impl InProcess {
    /// A bus that stamps ids from this clock and randomness.
    pub fn new(limits: Limits, clock: SharedClock, entropy: SharedEntropy) -> Self {
        Self {
            limits,
            ids: Ids { clock, entropy, last: Mutex::new(MessageId::MIN) },
            middle: Mutex::default(),
            fronts: Mutex::default(),
        }
    }

    /// Makes the caller the middle tier.
    pub fn attach_middle(&self) -> MiddleInbox {
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..3).map(|_| mpsc::channel(self.limits.lane_max)).unzip();
        let three = "three lanes were made";
        *lock(&self.middle) = Some(senders.try_into().expect(three));
        let mut term = [0; 16];
        self.ids.entropy.fill(&mut term);
        let ownership = Ownership::whole(Term(u128::from_be_bytes(term)));
        MiddleInbox::new(<[_; 3]>::try_from(receivers).expect(three), ownership)
    }

    /// Makes the caller a front. It is detached when its inbox is dropped.
    pub fn attach_front(&self, front: FrontId) -> FrontInbox {
        let (batches_in, batches) = mpsc::channel(self.limits.batches_max);
        let (events_in, events) = mpsc::channel(self.limits.events_max);
        lock(&self.fronts).insert(front, FrontSenders { batches: batches_in, events: events_in });
        FrontInbox { batches, events }
    }
}

#[async_trait]
impl Bus for InProcess {
    async fn request(&self, call: Call) -> Result<Reply, Failure> {
        let no_middle = || Failure::new(Code::System, "no middle tier is running; try again");
        let lane = call.lane;
        let sender = lock(&self.middle).as_ref().map(|lanes| lanes[lane as usize].clone()).ok_or_else(no_middle)?;
        let place = sender.try_reserve().map_err(|error| match error {
            mpsc::error::TrySendError::Full(()) => {
                Failure::new(Code::Busy, format!("the {} lane is full; try again", lane.name()))
            }
            mpsc::error::TrySendError::Closed(()) => no_middle(),
        })?;
        let (answer, answered) = Answer::channel();
        let name = call.request.name();
        place.send(Incoming {
            id: self.ids.next(call.request.ids()),
            lane,
            partition: Some(call.shard.into()),
            deadline: call.deadline,
            request: call.request,
            answer,
        });
        match timeout_at(call.deadline, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(timed_out(name)),
        }
    }

    async fn deliver(
        &self,
        front: FrontId,
        batch: wire::FrontBatch,
        deadline: Instant,
    ) -> Result<wire::FrontBatchReply, Failure> {
        let no_front = || Failure::new(Code::System, format!("front {front} is not running"));
        let sender = lock(&self.fronts).get(&front).map(|front| front.batches.clone()).ok_or_else(no_front)?;
        let (answer, answered) = Answer::channel();
        match timeout_at(deadline, sender.send(IncomingBatch { batch, answer })).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => {
                lock(&self.fronts).remove(&front);
                return Err(no_front());
            }
            Err(_) => return Err(Failure::new(Code::Busy, format!("front {front} has a full queue"))),
        }
        match timeout_at(deadline, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(timed_out("the front")),
        }
    }

    async fn publish(&self, event: FrontEvent, deadline: Instant) -> Result<(), Failure> {
        let fronts: Vec<_> = lock(&self.fronts).iter().map(|(id, front)| (*id, front.events.clone())).collect();
        let mut missed = 0;
        for (id, events) in fronts {
            match timeout_at(deadline, events.send(event.clone())).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => {
                    lock(&self.fronts).remove(&id);
                }
                Err(_) => missed += 1,
            }
        }
        if missed == 0 {
            Ok(())
        } else {
            Err(Failure::new(Code::Busy, format!("{missed} fronts have full queues and missed an event")))
        }
    }
}

/// A monotonic generator of ULIDs: later calls get greater ids, whatever the clock does.
struct Ids {
    clock: SharedClock,
    entropy: SharedEntropy,
    last: Mutex<MessageId>,
}

impl Ids {
    /// The first of so many ids in a row.
    fn next(&self, count: u32) -> MessageId {
        let mut random = [0; 16];
        self.entropy.fill(&mut random[6..]);
        // The highest random bit stays 0, so that counting up within a millisecond never reaches into the time.
        random[6] &= 0x7f;
        let fresh = MessageId(Ulid::from_parts(self.clock.now_ms(), u128::from_be_bytes(random)).0);
        let mut last = lock(&self.last);
        let first = if fresh > *last { fresh } else { MessageId(last.0 + 1) };
        *last = MessageId(first.0 + u128::from(count.max(1) - 1));
        first
    }
}

/// The values behind these locks are whole at every moment, so a panic elsewhere leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::bus::{Lane, Request};
    use crate::clock::{SystemClock, SystemEntropy};
    use crate::ids::Shard;

    // What every bus does is tested in `tests/bus`.

    fn bus() -> InProcess {
        InProcess::new(Limits::default(), Arc::new(SystemClock), Arc::new(SystemEntropy))
    }

    fn call(lane: Lane) -> Call {
        let deadline = Instant::now() + Duration::from_secs(5);
        Call { lane, shard: Shard(0), deadline, request: Request::ListApps(wire::ListApps {}) }
    }

    #[tokio::test]
    async fn without_a_middle_a_request_fails_at_once_with_a_retryable_code() {
        let failure = bus().request(call(Lane::High)).await.expect_err("nobody is there");
        assert!(failure.code.retryable());
    }

    #[tokio::test]
    async fn a_front_that_is_gone_is_forgotten() {
        let bus = bus();
        let front = FrontId(1);
        drop(bus.attach_front(front));
        let deadline = Instant::now() + Duration::from_secs(5);
        let failure =
            bus.deliver(front, wire::FrontBatch { items: vec![], count: None }, deadline).await.expect_err("gone");
        assert_eq!(failure.code, Code::System);
        assert!(lock(&bus.fronts).is_empty());
    }

    #[test]
    fn ids_grow_when_the_clock_stands_still() {
        struct Stopped;
        impl crate::clock::Clock for Stopped {
            fn now_ms(&self) -> u64 {
                1
            }
        }
        let bus = InProcess::new(Limits::default(), Arc::new(Stopped), Arc::new(SystemEntropy));
        let ids: Vec<_> = (0..100).map(|_| bus.ids.next(1)).collect();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
