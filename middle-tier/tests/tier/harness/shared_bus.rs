//! A bus in memory that several middles share. It gives each partition to one of them, as the test says.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use idl::bus::{
    Answer, Bus, Call, FrontEvent, FrontInbox, Hold, InProcess, Incoming, Lane, Limits, MiddleInbox, Owner, Ownership,
    Reply, Request, Term,
};
use idl::clock::{SharedClock, SystemEntropy};
use idl::contract::bus::{FrontBatch, FrontBatchReply};
use idl::error::{Code, Failure};
use idl::ids::{FrontId, MessageId, Partition};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};

/// The bus.
pub(crate) struct SharedBus {
    clock: SharedClock,
    /// Carries what goes to fronts.
    fronts: InProcess,
    last: Mutex<MessageId>,
    middles: Mutex<Vec<End>>,
    /// Which middle gets the requests of a partition; `None` while it changes hands.
    routes: watch::Sender<[Option<usize>; Partition::COUNT]>,
    holds: Mutex<Holds>,
    /// Kinds of requests that get lost.
    lost: Mutex<BTreeSet<&'static str>>,
}

struct End {
    lanes: [mpsc::Sender<Incoming>; 3],
    owner: Arc<tokio::sync::Mutex<Owner>>,
}

struct Holds {
    /// Who has which partition.
    of: Vec<[Hold; Partition::COUNT]>,
    terms: u128,
    /// How often each middle got what another had not given away.
    orphaned: Vec<u64>,
}

/// One middle's end of it.
pub(crate) struct MiddleBus {
    bus: Arc<SharedBus>,
    number: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn timed_out(name: &str) -> Failure {
    Failure::new(Code::TimedOut, format!("{name} did not answer in time"))
}

impl SharedBus {
    pub(crate) fn new(clock: SharedClock) -> Arc<Self> {
        Arc::new(Self {
            fronts: InProcess::new(Limits::default(), Arc::clone(&clock), Arc::new(SystemEntropy)),
            clock,
            last: Mutex::new(MessageId::MIN),
            middles: Mutex::default(),
            routes: watch::Sender::new([None; Partition::COUNT]),
            holds: Mutex::new(Holds { of: Vec::new(), terms: 0, orphaned: Vec::new() }),
            lost: Mutex::default(),
        })
    }

    pub(crate) fn attach_front(&self, front: FrontId) -> FrontInbox {
        self.fronts.attach_front(front)
    }

    /// A further middle, which has nothing at first.
    pub(crate) fn attach_middle(self: &Arc<Self>) -> (MiddleInbox, MiddleBus) {
        let (lanes, receivers): (Vec<_>, Vec<_>) = (0..3).map(|_| mpsc::channel(1024)).unzip();
        let (owner, ownership) = Ownership::shared();
        let mut middles = lock(&self.middles);
        let lanes = <[_; 3]>::try_from(lanes).expect("three lanes");
        middles.push(End { lanes, owner: Arc::new(tokio::sync::Mutex::new(owner)) });
        lock(&self.holds).of.push([Hold::No; Partition::COUNT]);
        lock(&self.holds).orphaned.push(0);
        let inbox = MiddleInbox::new(<[_; 3]>::try_from(receivers).expect("three lanes"), ownership);
        (inbox, MiddleBus { bus: Arc::clone(self), number: middles.len() - 1 })
    }

    /// Who has a partition.
    pub(crate) fn owner_of(&self, partition: Partition) -> Option<usize> {
        self.routes.borrow()[partition.number()]
    }

    /// Gives partitions to a middle at once: whoever had them has lost them.
    pub(crate) async fn give(&self, partitions: &[Partition], to: usize) {
        let orphaned = partitions
            .iter()
            .any(|partition| lock(&self.holds).of.iter().any(|of| matches!(of[partition.number()], Hold::Owned(_))));
        lock(&self.holds).orphaned[to] += u64::from(orphaned);
        for partition in partitions {
            self.hold(*partition, Some(to));
        }
        self.tell().await;
        self.route(partitions, Some(to));
    }

    /// The same in peace: whoever has them finishes first.
    pub(crate) async fn hand_over(&self, partitions: &[Partition], to: usize) {
        self.route(partitions, None);
        let mut leaving = BTreeSet::new();
        for partition in partitions {
            let mut holds = lock(&self.holds);
            for (number, of) in holds.of.iter_mut().enumerate() {
                if let Hold::Owned(term) = of[partition.number()] {
                    of[partition.number()] = Hold::Leaving(term);
                    leaving.insert((number, *partition));
                }
            }
        }
        self.tell().await;
        while let Some((number, _)) = leaving.first().copied() {
            let owner = Arc::clone(&lock(&self.middles)[number].owner);
            let left = owner.lock().await.left().await.expect("the middle runs");
            assert!(leaving.remove(&(number, left)), "{left:?} was to be given away");
        }
        self.give(partitions, to).await;
    }

    /// Requests of this kind get lost until they are not any more.
    pub(crate) fn lose(&self, name: &'static str, lost: bool) {
        if lost {
            lock(&self.lost).insert(name)
        } else {
            lock(&self.lost).remove(name)
        };
    }

    /// Asks one middle, whatever it has.
    pub(crate) async fn ask_at(&self, number: usize, request: Request, deadline: Instant) -> Result<Reply, Failure> {
        let name = request.name();
        if lock(&self.lost).contains(name) {
            tokio::time::sleep_until(deadline).await;
            return Err(timed_out(name));
        }
        let (answer, answered) = Answer::channel();
        let id = self.next_id(request.ids());
        let incoming = Incoming { id, lane: Lane::High, partition: None, deadline, request, answer };
        let lane = lock(&self.middles)[number].lanes[0].clone();
        lane.send(incoming).await.map_err(|_| Failure::new(Code::System, "the middle is gone"))?;
        match timeout_at(deadline, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(timed_out(name)),
        }
    }

    fn hold(&self, partition: Partition, to: Option<usize>) {
        let mut holds = lock(&self.holds);
        holds.terms += 1;
        let term = Term(holds.terms);
        for (number, of) in holds.of.iter_mut().enumerate() {
            of[partition.number()] = if Some(number) == to { Hold::Owned(term) } else { Hold::No };
        }
    }

    /// Tells every middle what it has.
    async fn tell(&self) {
        let (of, terms, orphaned) = {
            let holds = lock(&self.holds);
            let mut terms = [None; Partition::COUNT];
            for partition in Partition::all() {
                terms[partition.number()] = holds.of.iter().find_map(|of| of[partition.number()].term());
            }
            (holds.of.clone(), terms, holds.orphaned.clone())
        };
        for (number, (holds, orphaned)) in of.into_iter().zip(orphaned).enumerate() {
            let owner = Arc::clone(&lock(&self.middles)[number].owner);
            owner.lock().await.set(holds, terms, orphaned);
        }
    }

    fn route(&self, partitions: &[Partition], to: Option<usize>) {
        self.routes.send_modify(|routes| {
            for partition in partitions {
                routes[partition.number()] = to;
            }
        });
    }

    fn next_id(&self, count: u32) -> MessageId {
        let mut last = lock(&self.last);
        let first = MessageId((MessageId::at(self.clock.now_ms()).0 + 1).max(last.0 + 1));
        *last = MessageId(first.0 + u128::from(count.max(1) - 1));
        first
    }
}

#[async_trait]
impl Bus for SharedBus {
    async fn request(&self, call: Call) -> Result<Reply, Failure> {
        let Call { lane, shard, deadline, request } = call;
        let (name, partition) = (request.name(), Partition::from(shard));
        let id = self.next_id(request.ids());
        let mut routes = self.routes.subscribe();
        let carried = async {
            loop {
                let to = routes.borrow_and_update()[partition.number()];
                if let Some(number) = to.filter(|_| !lock(&self.lost).contains(name)) {
                    let (answer, answered) = Answer::channel();
                    let partition = Some(partition);
                    let incoming = Incoming { id, lane, partition, deadline, request: request.clone(), answer };
                    let lane = lock(&self.middles)[number].lanes[lane as usize].clone();
                    if lane.send(incoming).await.is_ok()
                        && let Ok(result) = answered.await
                    {
                        return result;
                    }
                }
                // Whoever gets the partition next gets the request.
                if routes.changed().await.is_err() {
                    return Err(timed_out(name));
                }
            }
        };
        timeout_at(deadline, carried).await.unwrap_or_else(|_| Err(timed_out(name)))
    }

    async fn deliver(&self, front: FrontId, batch: FrontBatch, deadline: Instant) -> Result<FrontBatchReply, Failure> {
        self.fronts.deliver(front, batch, deadline).await
    }

    async fn publish(&self, event: FrontEvent, deadline: Instant) -> Result<(), Failure> {
        self.fronts.publish(event, deadline).await
    }
}

#[async_trait]
impl Bus for MiddleBus {
    async fn request(&self, call: Call) -> Result<Reply, Failure> {
        self.bus.request(call).await
    }

    async fn deliver(&self, front: FrontId, batch: FrontBatch, deadline: Instant) -> Result<FrontBatchReply, Failure> {
        self.bus.deliver(front, batch, deadline).await
    }

    async fn publish(&self, event: FrontEvent, deadline: Instant) -> Result<(), Failure> {
        self.bus.publish(event, deadline).await
    }

    async fn ask_others(&self, request: Request, deadline: Instant) -> Vec<Result<Reply, Failure>> {
        let all = lock(&self.bus.middles).len();
        let mut answers = Vec::new();
        for number in (0..all).filter(|number| *number != self.number) {
            answers.push(self.bus.ask_at(number, request.clone(), deadline).await);
        }
        answers
    }
}
