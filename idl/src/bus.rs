//! The bus: how the tiers reach each other.
//!
//! Three things travel: requests to the middle tier, with one reply each, in a lane and within a deadline; batches to
//! one front; events to every front. A bus may lose, repeat or delay anything at any moment. What must not be lost is
//! in a store before it is handed to the bus, and every receiver tolerates repeats. [`InProcess`] is the backend for
//! one process.

mod in_process;
mod ownership;

use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

pub use self::in_process::{InProcess, Limits};
pub use self::ownership::{Changes, Hold, Owner, Ownership, Term};
use crate::contract::bus as wire;
use crate::error::{Code, Failure};
use crate::ids::{FrontId, MessageId, Partition, Shard};

/// Priority class of work. Under load the lower lanes shed first and never delay the higher ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Single sends and commands.
    High,
    /// Batches.
    Normal,
    /// Broadcasts.
    Low,
}

impl Lane {
    /// All lanes, highest first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// The lane's name in metrics and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }
}

macro_rules! requests {
    ($($(#[$doc:meta])* $name:ident($body:ty);)*) => {
        /// What the middle tier can be asked. Each variant's struct is described in `idl/thrift/bus.thrift`.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Request {
            $($(#[$doc])* $name($body),)*
        }

        impl Request {
            /// The request's name in metrics and traces.
            pub const fn name(&self) -> &'static str {
                match self { $(Self::$name(_) => stringify!($name)),* }
            }
        }
    };
}

/// Most messages that one request stops.
pub const REVOCATIONS_MAX: u32 = 1000;

impl Request {
    /// How many ids in a row the request needs: the one that the bus stamps it with, and those after it.
    pub fn ids(&self) -> u32 {
        let Self::App(call) = self else { return 1 };
        match &call.request {
            wire::AppRequest::SendMany(many) => u32::try_from(many.sends.len()).unwrap_or(u32::MAX).max(1),
            // Each message that is taken back gets a revocation with an id of its own.
            wire::AppRequest::Stop(_) => REVOCATIONS_MAX,
            _ => 1,
        }
    }
}

requests! {
    /// Makes a device account → [`Reply::Account`].
    CreateAccount(wire::CreateAccount);
    /// Renews an account's token → [`Reply::Account`].
    RenewToken(wire::RenewToken);
    /// Does what an app server asks for → [`Reply::App`], also where that failed for the caller's own fault.
    App(Box<wire::AppCall>);
    /// Sends what a schedule is due to send → [`Reply::Done`].
    FireSchedule(wire::FireSchedule);
    /// Makes an application → [`Reply::Apps`] with the secret.
    CreateApp(wire::CreateApp);
    /// Lists applications → [`Reply::Apps`].
    ListApps(wire::ListApps);
    /// Gives an application a new secret → [`Reply::Apps`] with the secret.
    RotateSecret(wire::RotateSecret);
    /// Limits what an application may send → [`Reply::Apps`].
    SetAppLimits(wire::SetAppLimits);
    /// Tells, or makes anew, the secret that signs an application's receipts → [`Reply::Apps`] with it.
    WebhookSecret(wire::WebhookSecret);
    /// Revokes an account's tokens → [`Reply::Done`].
    RevokeTokens(wire::RevokeTokens);
    /// Claims an account's route → [`Reply::Connected`].
    Connect(wire::Connect);
    /// Gives a route back → [`Reply::Done`].
    Disconnect(wire::Disconnect);
    /// Opens a channel → [`Reply::Channel`].
    OpenChannel(wire::OpenChannel);
    /// Carries a channel payload up → [`Reply::Channel`].
    ChannelUp(wire::ChannelUp);
    /// Which tokens are in force → [`Reply::TokenTimes`].
    TokenTimes(wire::TokenTimes);
    /// A front's sign of life → [`Reply::Leased`].
    FrontLease(wire::FrontLease);
    /// Between middles, to an owner: mailboxes were written to → [`Reply::Done`].
    Stored(wire::Stored);
    /// Between middles, to an owner: where a message is → [`Reply::Located`].
    Locate(wire::Locate);
    /// Between middles, to an owner: registrations change → [`Reply::Done`].
    ChangeTopics(wire::ChangeTopics);
    /// Between middles, to an owner: receipts wait → [`Reply::Done`].
    ReceiptsWait(wire::ReceiptsWait);
    /// To every other middle: an application changed → [`Reply::Done`].
    AppChanged(wire::AppChanged);
    /// To every other middle: a broadcast was stopped → [`Reply::Done`].
    BroadcastStopped(wire::BroadcastStopped);
    /// To every other middle: judge soon → [`Reply::Done`].
    JudgeSoon(wire::JudgeSoon);
    /// To every other middle: what was counted and not written → [`Reply::Unwritten`].
    Unwritten(wire::Unwritten);
    /// To every other middle: before which id all receipts are written → [`Reply::Settled`].
    AskSettled(wire::AskSettled);
}

/// What the middle tier answers when nothing failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// It is done.
    Done,
    /// An account and its token.
    Account(wire::AccountGranted),
    /// What an app server asked for, or why it was refused, with its rate.
    App(Box<wire::AppReply>),
    /// Applications.
    Apps(wire::Apps),
    /// A route was claimed.
    Connected(wire::Connected),
    /// A channel answered.
    Channel(wire::ChannelReply),
    /// Issue times of tokens.
    TokenTimes(wire::TokenTimesReply),
    /// A lease was renewed.
    Leased(wire::Leased),
    /// Where a message is.
    Located(wire::Located),
    /// What was counted and not written.
    Unwritten(wire::UnwrittenCounts),
    /// Before which id all receipts are written.
    Settled(wire::SettledBefore),
}

/// An event for every front.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrontEvent {
    /// Find the audience in your index and write to it.
    Broadcast(wire::Broadcast),
    /// Write this broadcast to nobody from now on.
    CancelBroadcast(wire::CancelBroadcast),
    /// End this account's connections and refuse its old tokens.
    TokenRevoked(wire::TokenRevoked),
}

/// A request with what the bus needs to carry it.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its priority.
    pub lane: Lane,
    /// Whose work it is.
    pub shard: Shard,
    /// When the caller stops waiting; the middle doesn't begin later.
    pub deadline: Instant,
    /// The request.
    pub request: Request,
}

impl Call {
    /// A call in the high lane that waits for at most `patience`.
    pub fn high(shard: Shard, patience: Duration, request: Request) -> Self {
        Self { lane: Lane::High, shard, deadline: Instant::now() + patience, request }
    }
}

/// The bus as its users see it.
#[async_trait]
pub trait Bus: Send + Sync + 'static {
    /// Asks the middle tier.
    ///
    /// Fails with [`Code::Busy`] when the lane is full (nothing happened), with [`Code::TimedOut`] when the deadline
    /// passed (it may have happened), with [`Code::System`] when no middle is there, else with the middle's own failure.
    async fn request(&self, call: Call) -> Result<Reply, Failure>;

    /// Hands one front a batch and waits until it is applied: index entries are in force and payloads are written or in
    /// the connections' outboxes. Failures as in [`Bus::request`].
    async fn deliver(
        &self,
        front: FrontId,
        batch: wire::FrontBatch,
        deadline: Instant,
    ) -> Result<wire::FrontBatchReply, Failure>;

    /// Tells every front. Waits while a front's queue is full, until the deadline; then that front misses the event
    /// and the call fails.
    async fn publish(&self, event: FrontEvent, deadline: Instant) -> Result<(), Failure>;

    /// Asks every other middle that runs, and says what each answered: for middles. Empty where the caller is the only one.
    async fn ask_others(&self, request: Request, deadline: Instant) -> Vec<Result<Reply, Failure>> {
        let _ = (request, deadline);
        Vec::new()
    }

    /// Why nothing can be carried at this moment; `None` while all is well.
    fn trouble(&self) -> Option<String> {
        None
    }
}

/// A request as the middle gets it.
#[derive(Debug)]
pub struct Incoming {
    /// Stamped by the bus when it took the request: unique, and later requests get greater ids. A message accepted by
    /// this request has this id, several have this one and those after it, [`Request::ids`] in all.
    pub id: MessageId,
    /// Its lane.
    pub lane: Lane,
    /// Whose work it is; `None` for what every middle is asked. By the time it is carried out another middle may own the
    /// partition: then it is left unanswered and the bus gives it to that one.
    pub partition: Option<Partition>,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// The request.
    pub request: Request,
    /// Where the answer goes.
    pub answer: Answer<Reply>,
}

/// A batch as a front gets it.
#[derive(Debug)]
pub struct IncomingBatch {
    /// The work.
    pub batch: wire::FrontBatch,
    /// Where the answer goes.
    pub answer: Answer<wire::FrontBatchReply>,
}

/// Takes one answer. Dropping it unanswered tells the caller that it timed out, or, where requests outlive a middle, leaves
/// the request to the next owner of its partition.
#[derive(Debug)]
pub struct Answer<T>(oneshot::Sender<Result<T, Failure>>);

impl<T> Answer<T> {
    /// An answer and the place where it arrives; for backends of the bus.
    pub fn channel() -> (Self, oneshot::Receiver<Result<T, Failure>>) {
        let (sender, receiver) = oneshot::channel();
        (Self(sender), receiver)
    }

    /// Answers. If the caller has stopped waiting, the answer is dropped.
    pub fn send(self, result: Result<T, Failure>) {
        let _ = self.0.send(result);
    }

    /// True once nobody waits for the answer any more.
    pub fn is_abandoned(&self) -> bool {
        self.0.is_closed()
    }
}

/// The middle's end of the bus: one bounded queue a lane.
#[derive(Debug)]
pub struct MiddleInbox {
    lanes: [mpsc::Receiver<Incoming>; 3],
    turn: u32,
    ownership: Ownership,
}

impl MiddleInbox {
    /// An inbox over one queue for each lane, highest first; for backends of the bus.
    pub fn new(lanes: [mpsc::Receiver<Incoming>; 3], ownership: Ownership) -> Self {
        Self { lanes, turn: 0, ownership }
    }

    /// Which partitions are this middle's.
    pub fn ownership(&self) -> &Ownership {
        &self.ownership
    }

    /// The next request; `None` once the bus is gone. Of 21 turns the high lane goes first in 16, the normal lane in
    /// 4 and the low lane in one, so that low never starves and never delays high for long. Dropping the future loses
    /// nothing.
    pub async fn next(&mut self) -> Option<Incoming> {
        self.turn = (self.turn + 1) % 21;
        let first = match self.turn {
            0 => Lane::Low,
            turn if turn % 5 == 0 => Lane::Normal,
            _ => Lane::High,
        };
        if let Ok(incoming) = self.lanes[first as usize].try_recv() {
            return Some(incoming);
        }
        let [high, normal, low] = &mut self.lanes;
        tokio::select! {
            biased;
            Some(incoming) = high.recv() => Some(incoming),
            Some(incoming) = normal.recv() => Some(incoming),
            Some(incoming) = low.recv() => Some(incoming),
            else => None,
        }
    }
}

/// A front's end of the bus. Batches and events have queues of their own, so that single sends overtake broadcasts.
#[derive(Debug)]
pub struct FrontInbox {
    /// Batches for this front's connections.
    pub batches: mpsc::Receiver<IncomingBatch>,
    /// Events for every front.
    pub events: mpsc::Receiver<FrontEvent>,
}

pub(crate) fn timed_out(what: &str) -> Failure {
    Failure::new(Code::TimedOut, format!("{what} did not answer in time: it may have happened"))
}
