//! The bus on Redis Streams: for tiers in processes of their own.
//!
//! *Requests.* The work of the middle tier is cut into 64 partitions by shard, and each has a stream for each lane,
//! `<prefix>:{pNN}:<lane>`, read through a consumer group. One middle at a time owns a partition, by a lease in Redis, and
//! reads it alone ([`leases`], [`reader`]): so all that concerns an account is in one process and in order, which a group
//! with several readers would not give. A group it is nevertheless, because what was read and not answered stays pending: the
//! next owner claims it (`XAUTOCLAIM`) before it reads anything new. A request that no middle survives ends in
//! `<prefix>:{pNN}:dead`. A request's id is made of that of its entry, so it is the same at every delivery. What is answered
//! is acknowledged and deleted, so the length of a stream is its backlog, by which producers shed.
//!
//! *Letters.* All else goes to one process: answers, batches and events for a front, questions to other middles. Each process
//! has one stream for that, `<prefix>:{in:<process>}:in`, which it reads alone ([`inbox`]). Several letters for one process
//! share an entry. A broadcast is one letter a front. Each letter but an answer is answered, if only with "taken", so the
//! sender learns what did not arrive.
//!
//! *Members.* Each process says once a second that it lives and learns of all others in the same round trip ([`beats`],
//! [`members`]). All times are Redis's.
//!
//! *What is written* is gathered while the pipeline before is under way ([`outbox`]): the batches grow with the load. Readers
//! that block have connections of their own: one for the inbox, and one for each lane of a middle.
//!
//! *When Redis is away* requests fail at once, those under way at their deadline at the latest, leases end by this process's
//! own clock, and all of it begins again by itself. When Redis has lost everything, streams, groups and leases are made anew;
//! each partition has another term then, so sessions are begun anew. Redis's copy of a lease is only as good as its
//! persistence: a Redis that comes back with older leases may let a partition have two owners for as long as its copy is old.
//!
//! Nothing here is unbounded: see [`RedisOptions`]. What was read and not yet answered is bounded by what the middle takes
//! and `read_max` for each lane; answers wait for at most that many.
//!
//! Keys are laid out for a cluster, but a reader reads the streams of many partitions in one call, which a cluster refuses:
//! this backend is for one Redis, or one with replicas behind one address.

mod beats;
mod calls;
mod connection;
mod courier;
mod entries;
mod inbox;
mod leases;
mod letters;
mod members;
mod metrics;
mod options;
mod outbox;
mod reader;

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout_at};

use self::connection::{Dialer, Seldom, SharedDialer, Status, away};
use self::entries::{EntryId, Keys, Slot};
use self::inbox::Fronts;
use self::leases::{InHand, Leases};
use self::letters::Return;
use self::members::Members;
pub use self::metrics::{Count, RedisBusMetrics};
pub use self::options::RedisOptions;
use self::outbox::{Lanes, OutLetter, OutRequest, Outbox};
use self::reader::Reader;
use super::{Bus, Call, FrontEvent, FrontInbox, Incoming, Lane, MiddleInbox, Ownership, Reply, Request, timed_out};
use crate::clock::{Entropy, SharedClock, SharedEntropy};
use crate::contract::bus as wire;
use crate::error::{Code, Failure};
use crate::ids::FrontId;

/// How old what is known of the fronts may be before one counts as gone.
const FRONTS_AGE_MAX: Duration = Duration::from_millis(100);
/// How long is waited before a letter that found no place is sent again, at least.
const NO_PLACE_WAIT: Duration = Duration::from_millis(20);

/// One process in one life, on the bus. Random: a process that starts again is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId(pub u128);

impl ProcessId {
    /// A new one.
    pub fn random(entropy: &dyn Entropy) -> Self {
        let mut bytes = [0; 16];
        entropy.fill(&mut bytes);
        Self(u128::from_be_bytes(bytes))
    }

    pub(super) fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for ProcessId {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        u128::from_str_radix(text, 16).map(Self)
    }
}

/// One process's end of the bus on Redis. Dropping it ends its connections and tasks at once, as if the process had been
/// killed: what its middle had not answered is taken over when its lease has run out.
pub struct RedisBus {
    shared: Arc<Shared>,
    tasks: Mutex<JoinSet<()>>,
    readers: Mutex<Vec<AbortHandle>>,
}

/// What all tasks of this end have in common.
struct Shared {
    options: RedisOptions,
    process: ProcessId,
    clock: SharedClock,
    entropy: SharedEntropy,
    dialer: SharedDialer,
    keys: Keys,
    status: Status,
    seldom: Seldom,
    metrics: Arc<RedisBusMetrics>,
    outbox: Outbox,
    lanes: Lanes,
    calls: calls::Calls,
    members: Members,
    leases: Leases,
    in_hand: InHand,
    fronts: Fronts,
    /// Where questions of other middles go.
    questions: Mutex<Option<mpsc::Sender<Incoming>>>,
}

impl RedisBus {
    /// Connects. Fails at once if Redis is not there, refuses the login, or can't be used, and says which.
    pub async fn connect(
        options: RedisOptions,
        process: ProcessId,
        clock: SharedClock,
        entropy: SharedEntropy,
    ) -> Result<Arc<Self>, Failure> {
        let dialer = Arc::new(Dialer::new(&options, Arc::clone(&entropy))?);
        let mut first_call = [0; 8];
        entropy.fill(&mut first_call);
        let shared = Arc::new(Shared {
            keys: Keys::new(&options.prefix),
            status: Status::default(),
            seldom: Seldom::default(),
            metrics: Arc::default(),
            outbox: Outbox::new(options.outgoing_max),
            lanes: Lanes::new(options.lane_max),
            calls: calls::Calls::new(u64::from_be_bytes(first_call)),
            members: Members::new(),
            leases: Leases::new(process, options.middle_lease, options.leaving_max, Arc::clone(&entropy)),
            in_hand: InHand::new(),
            fronts: Fronts::default(),
            questions: Mutex::default(),
            options,
            process,
            clock,
            entropy,
            dialer,
        });
        let unusable = |reason: String| Failure::new(Code::System, format!("the bus can't be used: {reason}"));
        let response_timeout = shared.options.response_timeout;
        let for_requests = shared.dialer.dial(response_timeout).await.map_err(unusable)?;
        let mut for_beats = shared.dialer.dial(response_timeout).await.map_err(unusable)?;
        beats::beat(&shared, &mut for_beats).await.map_err(unusable)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(outbox::flush(Arc::clone(&shared), for_requests));
        tasks.spawn(beats::keep(Arc::clone(&shared), for_beats));
        tasks.spawn(inbox::read(Arc::clone(&shared)));
        Ok(Arc::new(Self { shared, tasks: Mutex::new(tasks), readers: Mutex::default() }))
    }

    /// Makes this process a middle, which from now on takes its share of the partitions. Once in the life of a bus.
    pub fn attach_middle(&self) -> MiddleInbox {
        let (owner, ownership) = Ownership::shared();
        let owner = Arc::new(owner);
        self.shared.leases.attach(Arc::clone(&owner));
        self.shared.members.middle_here.store(true, Ordering::Relaxed);
        let mut tasks = lock(&self.tasks);
        let mut readers = lock(&self.readers);
        let queues = Lane::ALL.map(|lane| {
            let (queue, requests) = mpsc::channel(self.shared.options.read_max);
            if lane == Lane::High {
                *lock(&self.shared.questions) = Some(queue.clone());
            }
            readers.push(tasks.spawn(Reader::new(Arc::clone(&self.shared), lane, queue).run()));
            requests
        });
        tasks.spawn(beats::watch_over(Arc::clone(&self.shared), owner));
        self.shared.members.poke.notify_one();
        MiddleInbox::new(queues, ownership)
    }

    /// Makes this process a front. It is detached when its inbox is dropped.
    pub fn attach_front(&self, front: FrontId) -> FrontInbox {
        let options = &self.shared.options;
        let inbox = self.shared.fronts.attach(front, options.batches_max, options.events_max);
        self.shared.members.poke.notify_one();
        inbox
    }

    /// Ends the middle in order: gives all partitions away, each once the middle has left it, and then ends its inbox. The
    /// others take over at once. Takes as long as the middle does, or until `leaving_max` has passed.
    pub async fn detach(&self) {
        let options = &self.shared.options;
        let give_up_at = Instant::now() + options.leaving_max + 2 * options.response_timeout;
        let mut changed = self.shared.leases.changed.subscribe();
        self.shared.leases.detach();
        self.shared.members.middle_here.store(false, Ordering::Relaxed);
        // Also where it owns nothing it is to be told that this middle goes.
        let mut told = self.shared.members.refresh(give_up_at).await;
        while self.shared.leases.count() > 0 && Instant::now() < give_up_at {
            changed.borrow_and_update();
            if self.shared.leases.count() > 0 {
                let _ = timeout_at(give_up_at, changed.changed()).await;
            }
            told = true;
        }
        if !told {
            tracing::warn!(
                "nobody could be told that this middle goes: its partitions are taken over when its lease ends"
            );
        }
        *lock(&self.shared.questions) = None;
        for reader in lock(&self.readers).drain(..) {
            reader.abort();
        }
    }

    /// What this end counts.
    pub fn metrics(&self) -> Arc<RedisBusMetrics> {
        Arc::clone(&self.shared.metrics)
    }
}

#[async_trait]
impl Bus for RedisBus {
    async fn request(&self, call: Call) -> Result<Reply, Failure> {
        let shared = &self.shared;
        shared.status.usable()?;
        if !shared.members.has_middle() {
            shared.members.poke.notify_one();
            return Err(Failure::new(Code::System, "no middle tier is running; try again"));
        }
        let Call { lane, shard, deadline, request } = call;
        let name = request.name();
        let patience = deadline.saturating_duration_since(Instant::now());
        if patience.is_zero() {
            return Err(timed_out(name));
        }
        let slot = Slot { partition: shard.into(), lane };
        let mut open = shared.calls.open();
        let back = Return { to: shared.process, call: open.number, patience };
        let bytes = letters::request(&request, back, shared.chance());
        fits(&bytes)?;
        let sent = shared.lanes.admit(slot, &shared.outbox).and_then(|()| {
            let written = shared.outbox.request(OutRequest { slot, call: open.number, bytes });
            written.inspect_err(|_| shared.lanes.less(slot))
        });
        if let Err(failure) = sent {
            shared.metrics.shed.add(usize::from(failure.code == Code::Busy));
            return Err(failure);
        }
        match open.answer(deadline, name).await {
            Ok(letter) => {
                shared.lanes.less(slot);
                letters::into_reply(letter)
            }
            Err(failure) => {
                shared.metrics.timeouts.add(usize::from(failure.code == Code::TimedOut));
                Err(failure)
            }
        }
    }

    async fn deliver(
        &self,
        front: FrontId,
        batch: wire::FrontBatch,
        deadline: Instant,
    ) -> Result<wire::FrontBatchReply, Failure> {
        let shared = &self.shared;
        shared.status.usable()?;
        let mut process = shared.members.with(|view| view.front(front));
        if process.is_none() && shared.members.with(members::View::age) > FRONTS_AGE_MAX {
            shared.members.refresh(shared.soon(deadline)).await;
            process = shared.members.with(|view| view.front(front));
        }
        let no_front = || Failure::new(Code::System, format!("front {front} is not running"));
        let process = process.ok_or_else(no_front)?;
        let letter = shared.ask(process, deadline, "the front", |back| letters::batch(front, &batch, back)).await?;
        letters::into_batch_reply(letter)
    }

    async fn publish(&self, event: FrontEvent, deadline: Instant) -> Result<(), Failure> {
        let shared = &self.shared;
        shared.status.usable()?;
        // A front that began a moment ago has connections too.
        if !shared.members.refresh(shared.soon(deadline)).await {
            return Err(away("Redis did not say which fronts are running"));
        }
        let event = Arc::new(event);
        let mut asking = JoinSet::new();
        for (front, process) in shared.members.with(members::View::fronts) {
            let (shared, event) = (Arc::clone(shared), Arc::clone(&event));
            asking.spawn(async move {
                shared.ask(process, deadline, "a front", |back| letters::event(front, &event, back)).await
            });
        }
        let (mut missed, mut why) = (0, None);
        while let Some(answered) = asking.join_next().await {
            let failure = match answered {
                Ok(Ok(letter)) => letter.failure.map(Failure::from_status),
                Ok(Err(failure)) => Some(failure),
                Err(_) => Some(timed_out("a front")),
            };
            missed += usize::from(failure.is_some());
            why = why.or(failure);
        }
        match why {
            None => Ok(()),
            Some(why) => Err(Failure::new(why.code, format!("{missed} fronts missed an event: {}", why.description))),
        }
    }

    async fn ask_others(&self, request: Request, deadline: Instant) -> Vec<Result<Reply, Failure>> {
        let shared = &self.shared;
        // Who can't be asked must not be taken for nobody.
        if let Err(failure) = shared.status.usable() {
            return vec![Err(failure)];
        }
        if !shared.members.refresh(shared.soon(deadline)).await {
            return vec![Err(away("Redis did not say which middles are running"))];
        }
        let request = Arc::new(request);
        let mut asking = JoinSet::new();
        let mut others = shared.members.with(members::View::middles);
        others.retain(|process| *process != shared.process);
        for process in others {
            let (shared, request) = (Arc::clone(shared), Arc::clone(&request));
            asking.spawn(async move {
                let question = |back| letters::question(&request, back);
                shared.ask(process, deadline, request.name(), question).await.and_then(letters::into_reply)
            });
        }
        let mut answers = Vec::with_capacity(asking.len());
        while let Some(answered) = asking.join_next().await {
            answers.push(answered.unwrap_or_else(|_| Err(timed_out("another middle"))));
        }
        answers
    }

    fn trouble(&self) -> Option<String> {
        self.shared.status.trouble()
    }
}

impl Shared {
    /// Sends a letter and waits for the answer; again while there is no place for it.
    async fn ask(
        &self,
        to: ProcessId,
        deadline: Instant,
        who: &str,
        letter: impl Fn(Return) -> Vec<u8>,
    ) -> Result<wire::Letter, Failure> {
        let mut wait = NO_PLACE_WAIT;
        loop {
            let patience = deadline.saturating_duration_since(Instant::now());
            if patience.is_zero() {
                return Err(Failure::new(Code::Busy, format!("{who} has a full queue")));
            }
            let mut open = self.calls.open();
            let bytes = letter(Return { to: self.process, call: open.number, patience });
            fits(&bytes)?;
            self.outbox.letter(OutLetter { to, bytes, deadline, call: Some(open.number) })?;
            let answer = open.answer(deadline, who).await.inspect_err(|failure| {
                self.metrics.timeouts.add(usize::from(failure.code == Code::TimedOut));
            })?;
            if answer.no_place != Some(true) {
                return Ok(answer);
            }
            let jitter = self.entropy.below(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
            sleep((wait + Duration::from_millis(jitter)).min(deadline.saturating_duration_since(Instant::now()))).await;
            wait = (wait * 2).min(NO_PLACE_WAIT * 16);
        }
    }

    /// When the one who sent an entry stops waiting; `None` if that is past.
    fn deadline(&self, entry: EntryId, patience: Duration) -> Option<Instant> {
        let at = entry.ms.saturating_add(u64::try_from(patience.as_millis()).unwrap_or(u64::MAX));
        self.members.with(|view| view.left(at)).map(|left| Instant::now() + left)
    }

    fn soon(&self, deadline: Instant) -> Instant {
        deadline.min(Instant::now() + self.options.response_timeout)
    }

    /// 20 random bits.
    fn chance(&self) -> u32 {
        u32::try_from(self.entropy.below(1 << 20)).unwrap_or(0)
    }

    fn undecodable(&self, why: &str) {
        self.metrics.undecodable.add(1);
        if self.seldom.now() {
            tracing::warn!(why, "something on the bus can't be read");
        }
    }
}

fn fits(bytes: &[u8]) -> Result<(), Failure> {
    if bytes.len() <= letters::BYTES_MAX {
        return Ok(());
    }
    let text = format!("{} bytes are over the limit of {} of the bus", bytes.len(), letters::BYTES_MAX);
    Err(Failure::new(Code::BadValue, text))
}

/// The values behind these locks are whole at every moment, so a panic elsewhere leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
