//! The bus: how the tiers reach each other.
//!
//! Three things travel: requests to the middle tier, with one reply each, in a lane and within a deadline; batches to
//! one front; events to every front. A bus may lose, repeat or delay anything at any moment. What must not be lost is
//! in a store before it is handed to the bus, and every receiver tolerates repeats. [`InProcess`] is the backend for
//! one process, [`redis`] the one for many (feature `redis`).

mod check;
mod coding;
mod in_process;
mod ownership;
#[cfg(feature = "redis")]
pub mod redis;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

pub use self::check::check;
pub use self::coding::Unreadable;
pub use self::in_process::{InProcess, Limits};
pub use self::ownership::{Changes, Hold, Owner, Ownership, Term};
use crate::contract::bus as wire;
use crate::error::{Code, Failure};
use crate::ids::{FrontId, MessageId, Partition, Shard};
use crate::wire::{decode_trusted, encode};

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

/// Makes an enum of what travels on the bus, each variant with the number that it has there. A number is never given to
/// another variant, also after its own is gone: processes of two releases work together.
macro_rules! numbered {
    ($(#[$top:meta])* $enum:ident { $($(#[$doc:meta])* $name:ident = $number:literal $(($body:ty))?;)* }) => {
        $(#[$top])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $enum {
            $($(#[$doc])* $name$(($body))?,)*
        }

        impl $enum {
            /// The name in metrics and traces.
            pub const fn name(&self) -> &'static str {
                match self { $(numbered!(@any $name $($body)?) => stringify!($name)),* }
            }

            /// The number that it has between processes.
            pub const fn number(&self) -> i32 {
                match self { $(numbered!(@any $name $($body)?) => $number),* }
            }

            /// What travels beside the number.
            pub fn to_bytes(&self) -> Vec<u8> {
                match self { $(numbered!(@body body $name $($body)?) => numbered!(@write body $($body)?)),* }
            }

            /// From what came from another process, which may be of another release.
            pub fn from_bytes(number: i32, bytes: &[u8]) -> Result<Self, Unreadable> {
                match number {
                    $($number => numbered!(@read bytes $name $($body)?),)*
                    _ => Err(Unreadable::Unknown { what: stringify!($enum), number }),
                }
            }
        }
    };
    (@any $name:ident $body:ty) => { Self::$name(_) };
    (@any $name:ident) => { Self::$name };
    (@body $to:ident $name:ident $body:ty) => { Self::$name($to) };
    (@body $to:ident $name:ident) => { Self::$name };
    (@write $from:ident $body:ty) => { encode::<$body>($from) };
    (@write $from:ident) => { Vec::new() };
    (@read $bytes:ident $name:ident $body:ty) => { Ok(Self::$name(decode_trusted::<$body>($bytes)?)) };
    (@read $bytes:ident $name:ident) => { Ok(Self::$name) };
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

numbered! {
    /// What the middle tier can be asked. Each variant's struct is described in `idl/thrift/bus.thrift`.
    Request {
        /// Makes a device account → [`Reply::Account`].
        CreateAccount = 1 (wire::CreateAccount);
        /// Renews an account's token → [`Reply::Account`].
        RenewToken = 2 (wire::RenewToken);
        /// Does what an app server asks for → [`Reply::App`], also where that failed for the caller's own fault.
        App = 3 (Box<wire::AppCall>);
        /// Sends what a schedule is due to send → [`Reply::Done`].
        FireSchedule = 4 (wire::FireSchedule);
        /// Makes an application → [`Reply::Apps`] with the secret.
        CreateApp = 5 (wire::CreateApp);
        /// Lists applications → [`Reply::Apps`].
        ListApps = 6 (wire::ListApps);
        /// Gives an application a new secret → [`Reply::Apps`] with the secret.
        RotateSecret = 7 (wire::RotateSecret);
        /// Limits what an application may send → [`Reply::Apps`].
        SetAppLimits = 8 (wire::SetAppLimits);
        /// Tells, or makes anew, the secret that signs an application's receipts → [`Reply::Apps`] with it.
        WebhookSecret = 9 (wire::WebhookSecret);
        /// Revokes an account's tokens → [`Reply::Done`].
        RevokeTokens = 10 (wire::RevokeTokens);
        /// Claims an account's route → [`Reply::Connected`].
        Connect = 11 (wire::Connect);
        /// Gives a route back → [`Reply::Done`].
        Disconnect = 12 (wire::Disconnect);
        /// Opens a channel → [`Reply::Channel`].
        OpenChannel = 13 (wire::OpenChannel);
        /// Carries a channel payload up → [`Reply::Channel`].
        ChannelUp = 14 (wire::ChannelUp);
        /// Which tokens are in force → [`Reply::TokenTimes`].
        TokenTimes = 15 (wire::TokenTimes);
        /// A front's sign of life → [`Reply::Leased`].
        FrontLease = 16 (wire::FrontLease);
        /// Between middles, to an owner: mailboxes were written to → [`Reply::Done`].
        Stored = 17 (wire::Stored);
        /// Between middles, to an owner: where a message is → [`Reply::Located`].
        Locate = 18 (wire::Locate);
        /// Between middles, to an owner: registrations change → [`Reply::Done`].
        ChangeTopics = 19 (wire::ChangeTopics);
        /// Between middles, to an owner: receipts wait → [`Reply::Done`].
        ReceiptsWait = 20 (wire::ReceiptsWait);
        /// To every other middle: an application changed → [`Reply::Done`].
        AppChanged = 21 (wire::AppChanged);
        /// To every other middle: a broadcast was stopped → [`Reply::Done`].
        BroadcastStopped = 22 (wire::BroadcastStopped);
        /// To every other middle: judge soon → [`Reply::Done`].
        JudgeSoon = 23 (wire::JudgeSoon);
        /// To every other middle: what was counted and not written → [`Reply::Unwritten`].
        Unwritten = 24 (wire::Unwritten);
        /// To every other middle: before which id all receipts are written → [`Reply::Settled`].
        AskSettled = 25 (wire::AskSettled);
    }
}

numbered! {
    /// What the middle tier answers when nothing failed.
    Reply {
        /// It is done.
        Done = 1;
        /// An account and its token.
        Account = 2 (wire::AccountGranted);
        /// What an app server asked for, or why it was refused, with its rate.
        App = 3 (Box<wire::AppReply>);
        /// Applications.
        Apps = 4 (wire::Apps);
        /// A route was claimed.
        Connected = 5 (wire::Connected);
        /// A channel answered.
        Channel = 6 (wire::ChannelReply);
        /// Issue times of tokens.
        TokenTimes = 7 (wire::TokenTimesReply);
        /// A lease was renewed.
        Leased = 8 (wire::Leased);
        /// Where a message is.
        Located = 9 (wire::Located);
        /// What was counted and not written.
        Unwritten = 10 (wire::UnwrittenCounts);
        /// Before which id all receipts are written.
        Settled = 11 (wire::SettledBefore);
    }
}

numbered! {
    /// An event for every front.
    FrontEvent {
        /// Find the audience in your index and write to it.
        Broadcast = 1 (wire::Broadcast);
        /// Write this broadcast to nobody from now on.
        CancelBroadcast = 2 (wire::CancelBroadcast);
        /// End this account's connections and refuse its old tokens.
        TokenRevoked = 3 (wire::TokenRevoked);
    }
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
    /// Stamped by the bus when it took the request: unique, the same when the request comes again, and later requests of
    /// its partition and lane get greater ids. A message accepted by this request has this id, several have this one and
    /// those after it, [`Request::ids`] in all.
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
pub struct Answer<T>(Way<T>);

enum Way<T> {
    /// To a task of this process.
    Here(oneshot::Sender<Result<T, Failure>>),
    /// Out of this process.
    Away(Away<T>),
}

/// A courier that says when it was dropped without an answer.
struct Away<T>(Option<Box<dyn Courier<T>>>);

impl<T> Away<T> {
    fn carry(mut self, result: Result<T, Failure>) {
        if let Some(courier) = self.0.take() {
            courier.carry(Some(result));
        }
    }
}

impl<T> Drop for Away<T> {
    fn drop(&mut self) {
        if let Some(courier) = self.0.take() {
            courier.carry(None);
        }
    }
}

/// Brings an answer out of the process; for backends of the bus.
pub trait Courier<T>: Send + Sync {
    /// Takes the answer on its way, or notes that there is none. Called once, and must not block.
    fn carry(self: Box<Self>, answer: Option<Result<T, Failure>>);

    /// True once nobody waits for the answer any more.
    fn is_abandoned(&self) -> bool;
}

impl<T> Answer<T> {
    /// An answer and the place where it arrives; for backends of the bus.
    pub fn channel() -> (Self, oneshot::Receiver<Result<T, Failure>>) {
        let (sender, receiver) = oneshot::channel();
        (Self(Way::Here(sender)), receiver)
    }

    /// An answer that leaves the process; for backends of the bus.
    pub fn away(courier: impl Courier<T> + 'static) -> Self {
        Self(Way::Away(Away(Some(Box::new(courier)))))
    }

    /// Answers. If the caller has stopped waiting, the answer is dropped.
    pub fn send(self, result: Result<T, Failure>) {
        match self.0 {
            Way::Here(sender) => {
                let _ = sender.send(result);
            }
            Way::Away(away) => away.carry(result),
        }
    }

    /// True once nobody waits for the answer any more.
    pub fn is_abandoned(&self) -> bool {
        match &self.0 {
            Way::Here(sender) => sender.is_closed(),
            Way::Away(away) => away.0.as_ref().is_none_or(|courier| courier.is_abandoned()),
        }
    }
}

impl<T> fmt::Debug for Answer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("is_abandoned", &self.is_abandoned()).finish()
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

    /// How many requests wait here.
    pub fn waiting(&self) -> usize {
        self.lanes.iter().map(mpsc::Receiver::len).sum()
    }

    /// Which partitions are this middle's.
    pub fn ownership(&self) -> &Ownership {
        &self.ownership
    }

    /// The next request; `None` once the bus is gone. Of 21 turns the high lane goes first in 16, the normal lane in
    /// 4 and the low lane in one, so that low never starves and never delays high for long. What is of a partition that
    /// is not this middle's any more, or is to be given away, is left to the next owner. Dropping the future loses
    /// nothing.
    pub async fn next(&mut self) -> Option<Incoming> {
        loop {
            let incoming = self.any().await?;
            let is_ours = |partition| matches!(self.ownership.hold(partition), Hold::Owned(_));
            if incoming.partition.is_none_or(is_ours) {
                return Some(incoming);
            }
        }
    }

    async fn any(&mut self) -> Option<Incoming> {
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
