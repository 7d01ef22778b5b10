//! What this process writes to Redis: requests, letters and acknowledgements, gathered while the pipeline before is under
//! way, so that batches grow with the load and nobody waits for a timer.
//!
//! A request is written at most once: if the connection breaks, it may have happened, and its caller waits for the answer
//! until the deadline. Answers and acknowledgements are written again, for as long as somebody waits.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{Pipeline, Value};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use super::connection::{self, Speaker, away};
use super::entries::{EntryId, GROUP, Slot};
use super::{ProcessId, Shared, lock};
use crate::error::{Code, Failure};

const REQUESTS_A_FLUSH_MAX: usize = 512;
const LETTERS_A_FLUSH_MAX: usize = 1024;
const LETTERS_AN_ENTRY_MAX: usize = 64;
const ACKS_A_FLUSH_MAX: usize = 4096;
const BYTES_A_FLUSH_MAX: usize = 1 << 20;
const BYTES_AN_ENTRY_MAX: usize = 256 << 10;
/// How long acknowledgements are gathered, and how many at most.
const ACKS_WAIT: Duration = Duration::from_millis(10);
const ACKS_WAITING_MAX: usize = 256;
/// How old what is known of a lane's length may be, while it is written to and while it is full.
const LENGTH_AGE_MAX: Duration = Duration::from_millis(100);
const FULL_AGE_MAX: Duration = Duration::from_millis(20);
/// A connection to which nothing was written for so long is asked whether it is there.
const IDLE_MAX: Duration = Duration::from_millis(250);
/// How long the inbox of a process that is gone is kept.
const INBOX_TTL: Duration = Duration::from_mins(1);
const INBOX_TOUCH_EVERY: Duration = Duration::from_secs(1);

/// A request to be written.
pub(super) struct OutRequest {
    pub(super) slot: Slot,
    pub(super) call: i64,
    pub(super) bytes: Vec<u8>,
}

/// A letter to be written.
pub(super) struct OutLetter {
    pub(super) to: ProcessId,
    pub(super) bytes: Vec<u8>,
    /// When nobody waits for it any more.
    pub(super) deadline: Instant,
    /// The call that waits for an answer to it; `None` for an answer, which is written again if the connection breaks.
    pub(super) call: Option<i64>,
}

/// A request that is done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ack {
    pub(super) slot: Slot,
    pub(super) entry: EntryId,
    /// True if it was counted as under way.
    pub(super) counted: bool,
}

#[derive(Default)]
struct Queue {
    requests: VecDeque<OutRequest>,
    letters: VecDeque<OutLetter>,
    acks: VecDeque<Ack>,
    acks_due: Option<Instant>,
    lengths: Vec<Slot>,
    /// Why nothing can be written.
    down: Option<String>,
}

/// What waits to be written.
pub(super) struct Outbox {
    queue: Mutex<Queue>,
    poke: Notify,
    outgoing_max: usize,
    /// Letters without which a caller times out; only reached if Redis is away while work goes on.
    letters_max: usize,
}

impl Outbox {
    pub(super) fn new(outgoing_max: usize) -> Self {
        Self { queue: Mutex::default(), poke: Notify::new(), outgoing_max, letters_max: outgoing_max.saturating_mul(4) }
    }

    /// Fails at once if Redis is away or too much waits.
    pub(super) fn request(&self, request: OutRequest) -> Result<(), Failure> {
        {
            let mut queue = lock(&self.queue);
            if let Some(reason) = &queue.down {
                return Err(away(reason));
            }
            if queue.requests.len() >= self.outgoing_max {
                return Err(Failure::new(Code::Busy, "too many requests wait to be sent; try again"));
            }
            queue.requests.push_back(request);
        }
        self.poke.notify_one();
        Ok(())
    }

    /// A letter that asks for an answer. Fails at once if Redis is away or too much waits.
    pub(super) fn letter(&self, letter: OutLetter) -> Result<(), Failure> {
        {
            let mut queue = lock(&self.queue);
            if let Some(reason) = &queue.down {
                return Err(away(reason));
            }
            if queue.letters.len() >= self.outgoing_max {
                return Err(Failure::new(Code::Busy, "too many letters wait to be sent; try again"));
            }
            queue.letters.push_back(letter);
        }
        self.poke.notify_one();
        Ok(())
    }

    /// An answer, and the acknowledgement of what it answers, which is written after it. False if the answer was dropped
    /// because far too many wait.
    pub(super) fn answer(&self, letter: OutLetter, ack: Option<Ack>) -> bool {
        let kept = {
            let mut queue = lock(&self.queue);
            let kept = queue.letters.len() < self.letters_max;
            if kept {
                queue.letters.push_back(letter);
            }
            if let Some(ack) = ack {
                queue.ack(ack);
            }
            kept
        };
        self.poke.notify_one();
        kept
    }

    pub(super) fn ack(&self, ack: Ack) {
        lock(&self.queue).ack(ack);
        self.poke.notify_one();
    }

    fn length(&self, slot: Slot) {
        lock(&self.queue).lengths.push(slot);
        self.poke.notify_one();
    }

    fn take(&self) -> Batch {
        let mut queue = lock(&self.queue);
        let mut batch = Batch { lengths: std::mem::take(&mut queue.lengths), ..Batch::default() };
        let mut bytes = 0;
        while batch.requests.len() < REQUESTS_A_FLUSH_MAX && bytes < BYTES_A_FLUSH_MAX {
            let Some(request) = queue.requests.pop_front() else { break };
            bytes += request.bytes.len();
            batch.requests.push(request);
        }
        let mut bytes = 0;
        while batch.letters.len() < LETTERS_A_FLUSH_MAX && bytes < BYTES_A_FLUSH_MAX {
            let Some(letter) = queue.letters.pop_front() else { break };
            bytes += letter.bytes.len();
            batch.letters.push(letter);
        }
        let due = queue.acks_due.is_some_and(|due| due <= Instant::now());
        if due || queue.acks.len() >= ACKS_WAITING_MAX {
            let count = queue.acks.len().min(ACKS_A_FLUSH_MAX);
            batch.acks = queue.acks.drain(..count).collect();
            if queue.acks.is_empty() {
                queue.acks_due = None;
            }
        }
        batch
    }

    fn acks_due(&self) -> Option<Instant> {
        lock(&self.queue).acks_due
    }

    /// Nothing can be written from now on. What was not written has not happened.
    fn close(&self, shared: &Shared, reason: &str) {
        let mut queue = lock(&self.queue);
        queue.down = Some(reason.to_owned());
        let requests = std::mem::take(&mut queue.requests);
        let now = Instant::now();
        let letters = std::mem::take(&mut queue.letters);
        let (answers, asking): (VecDeque<_>, VecDeque<_>) =
            letters.into_iter().partition(|letter| letter.call.is_none() && letter.deadline > now);
        queue.letters = answers;
        drop(queue);
        for request in requests {
            shared.lanes.less(request.slot);
            shared.calls.end(request.call, Err(away(reason)));
        }
        for call in asking.into_iter().filter_map(|letter| letter.call) {
            shared.calls.end(call, Err(away(reason)));
        }
    }

    fn open(&self) {
        lock(&self.queue).down = None;
    }

    /// What was written, perhaps, and may be written again.
    fn again(&self, batch: Batch) {
        let mut queue = lock(&self.queue);
        for letter in batch.letters.into_iter().rev().filter(|letter| letter.call.is_none()) {
            queue.letters.push_front(letter);
        }
        for ack in batch.acks.into_iter().rev() {
            queue.acks.push_front(ack);
            queue.acks_due.get_or_insert_with(Instant::now);
        }
    }
}

impl Queue {
    fn ack(&mut self, ack: Ack) {
        self.acks.push_back(ack);
        self.acks_due.get_or_insert_with(|| Instant::now() + ACKS_WAIT);
    }
}

#[derive(Default)]
struct Batch {
    requests: Vec<OutRequest>,
    letters: Vec<OutLetter>,
    acks: Vec<Ack>,
    lengths: Vec<Slot>,
}

/// What a command of a pipeline was for.
enum Sent {
    Request(usize),
    /// The places of its letters.
    Letters(Vec<usize>),
    Length(Slot),
    Other,
}

/// Writes what is in the outbox, for as long as the bus lives.
pub(super) async fn flush(shared: Arc<Shared>, first: MultiplexedConnection) {
    let mut link = Some(first);
    let mut failed = 0;
    loop {
        let reason = if let Some(connection) = &mut link {
            let reason = flush_until_broken(&shared, connection).await;
            link = None;
            reason
        } else {
            match shared.dialer.dial(shared.options.response_timeout).await {
                Ok(connection) => {
                    link = Some(connection);
                    failed = 0;
                    shared.metrics.reconnects.add(1);
                    shared.outbox.open();
                    shared.status.works(Speaker::Flusher);
                    tracing::info!(server = %shared.dialer.server, "the bus is connected to Redis again");
                    continue;
                }
                Err(reason) => reason,
            }
        };
        if shared.status.fails(Speaker::Flusher, &reason) {
            tracing::warn!(%reason, "the bus can't carry anything");
        }
        shared.outbox.close(&shared, &reason);
        sleep(shared.dialer.pause(failed)).await;
        failed += 1;
    }
}

async fn flush_until_broken(shared: &Shared, connection: &mut MultiplexedConnection) -> String {
    let mut touched: HashMap<ProcessId, Instant> = HashMap::new();
    loop {
        let batch = shared.outbox.take();
        if batch.requests.is_empty() && batch.letters.is_empty() && batch.acks.is_empty() && batch.lengths.is_empty() {
            let woken = shared.outbox.poke.notified();
            let idle = Instant::now() + IDLE_MAX;
            let due = shared.outbox.acks_due();
            if timeout_at(due.unwrap_or(idle), woken).await.is_err() && due.is_none() {
                // A connection that broke while nobody wrote says so now, and not to the next request.
                let mut ping = ::redis::pipe();
                ping.cmd("PING");
                if let Err(error) = connection::send(connection, &ping).await {
                    return shared.dialer.said(&error);
                }
            }
            continue;
        }
        let (pipe, sent) = pipeline(shared, &batch, &mut touched);
        shared.metrics.flushes.add(1);
        match connection::send(connection, &pipe).await {
            Ok(values) => {
                if let Some(reason) = settle(shared, &batch, sent, &values) {
                    return reason;
                }
            }
            Err(error) => {
                shared.outbox.again(batch);
                return shared.dialer.said(&error);
            }
        }
    }
}

fn pipeline(shared: &Shared, batch: &Batch, touched: &mut HashMap<ProcessId, Instant>) -> (Pipeline, Vec<Sent>) {
    let options = &shared.options;
    let now = Instant::now();
    let (mut pipe, mut sent) = (::redis::pipe(), Vec::new());
    let mut lengths = batch.lengths.clone();
    for (place, request) in batch.requests.iter().enumerate() {
        // Far above what is shed at: a bound for what is known too late.
        pipe.cmd("XADD").arg(shared.keys.requests(request.slot)).arg("MAXLEN").arg("~");
        pipe.arg(options.lane_max.saturating_mul(4)).arg("*").arg("e").arg(request.bytes.as_slice());
        sent.push(Sent::Request(place));
        if shared.lanes.is_older(request.slot, LENGTH_AGE_MAX) {
            lengths.push(request.slot);
        }
    }
    let mut by_process: HashMap<ProcessId, Vec<usize>> = HashMap::new();
    for (place, letter) in batch.letters.iter().enumerate() {
        by_process.entry(letter.to).or_default().push(place);
    }
    for (process, places) in by_process {
        let key = shared.keys.inbox(process);
        let mut places = places.into_iter().peekable();
        while places.peek().is_some() {
            pipe.cmd("XADD").arg(&key).arg("MAXLEN").arg("~").arg(options.inbox_max).arg("*");
            let (mut bytes, mut inside) = (0, Vec::new());
            while let Some(place) =
                places.next_if(|_| inside.len() < LETTERS_AN_ENTRY_MAX && bytes < BYTES_AN_ENTRY_MAX)
            {
                let letter = &batch.letters[place];
                pipe.arg("l").arg(letter.bytes.as_slice());
                bytes += letter.bytes.len();
                inside.push(place);
            }
            sent.push(Sent::Letters(inside));
        }
        // The inbox goes by itself once its process and those who write to it are gone.
        let at = touched.get(&process);
        if at.is_none_or(|at| now.duration_since(*at) >= INBOX_TOUCH_EVERY) {
            touched.retain(|_, at| now.duration_since(*at) < INBOX_TTL);
            touched.insert(process, now);
            pipe.cmd("PEXPIRE").arg(&key).arg(INBOX_TTL.as_secs() * 1000);
            sent.push(Sent::Other);
        }
    }
    let mut by_slot: HashMap<usize, Vec<&Ack>> = HashMap::new();
    for ack in &batch.acks {
        by_slot.entry(ack.slot.index()).or_default().push(ack);
    }
    for acks in by_slot.values() {
        let key = shared.keys.requests(acks[0].slot);
        pipe.cmd("XACK").arg(key).arg(GROUP);
        for ack in acks {
            pipe.arg(ack.entry.to_string());
        }
        pipe.cmd("XDEL").arg(key);
        for ack in acks {
            pipe.arg(ack.entry.to_string());
        }
        sent.extend([Sent::Other, Sent::Other]);
    }
    lengths.sort_unstable_by_key(|slot| slot.index());
    lengths.dedup();
    for slot in lengths {
        pipe.cmd("XLEN").arg(shared.keys.requests(slot));
        sent.push(Sent::Length(slot));
    }
    (pipe, sent)
}

/// Acts on what Redis answered. A reason means that another connection is to be tried.
fn settle(shared: &Shared, batch: &Batch, sent: Vec<Sent>, values: &[Value]) -> Option<String> {
    let mut broken = None;
    for (sent, value) in sent.into_iter().zip(values) {
        let refused = connection::refusal(value).map(|(error, elsewhere)| {
            let reason = shared.dialer.said(&error);
            if elsewhere {
                broken = Some(reason.clone());
            } else if shared.seldom.now() {
                tracing::warn!(%reason, "Redis refused what the bus wrote");
            }
            away(&reason)
        });
        match (sent, refused) {
            (Sent::Request(place), Some(failure)) => {
                let request = &batch.requests[place];
                shared.lanes.less(request.slot);
                shared.calls.end(request.call, Err(failure));
            }
            (Sent::Letters(places), Some(failure)) => {
                for place in places {
                    match batch.letters[place].call {
                        Some(call) => {
                            shared.calls.end(call, Err(failure.clone()));
                        }
                        None => shared.metrics.answers_lost.add(1),
                    }
                }
            }
            (Sent::Length(slot), None) => {
                if let Value::Int(length) = value {
                    shared.lanes.learned(slot, usize::try_from(*length).unwrap_or(0));
                }
            }
            (_, _) => {}
        }
    }
    let asking = batch.letters.iter().filter(|letter| letter.call.is_some()).count();
    shared.metrics.requests_sent.add(batch.requests.len());
    shared.metrics.letters_sent.add(asking);
    shared.metrics.answers_sent.add(batch.letters.len() - asking);
    for ack in &batch.acks {
        shared.in_hand.acknowledged(*ack);
    }
    broken
}

/// How many requests wait in each lane of each partition, as far as is known: what Redis said last, what was sent since, less
/// what was answered since.
pub(super) struct Lanes {
    base: Instant,
    lane_max: usize,
    known: Vec<Known>,
}

#[derive(Default)]
struct Known {
    waiting: AtomicUsize,
    /// Microseconds since `base`, plus one; 0 for never.
    learned_at: AtomicU64,
}

impl Lanes {
    pub(super) fn new(lane_max: usize) -> Self {
        let known = std::iter::repeat_with(Known::default).take(Slot::COUNT).collect();
        Self { base: Instant::now(), lane_max, known }
    }

    /// Counts one more, or says that the lane is full, and asks Redis whether it still is.
    pub(super) fn admit(&self, slot: Slot, outbox: &Outbox) -> Result<(), Failure> {
        let known = &self.known[slot.index()];
        if known.waiting.load(Ordering::Relaxed) < self.lane_max {
            known.waiting.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        if self.is_older(slot, FULL_AGE_MAX) {
            // Until the answer is there others need not ask.
            known.learned_at.store(self.now(), Ordering::Relaxed);
            outbox.length(slot);
        }
        let (lane, partition) = (slot.lane.name(), slot.partition.number());
        Err(Failure::new(Code::Busy, format!("the {lane} lane of partition {partition} is full; try again")))
    }

    pub(super) fn less(&self, slot: Slot) {
        let waiting = &self.known[slot.index()].waiting;
        let _ = waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1));
    }

    fn learned(&self, slot: Slot, length: usize) {
        let known = &self.known[slot.index()];
        known.waiting.store(length, Ordering::Relaxed);
        known.learned_at.store(self.now(), Ordering::Relaxed);
    }

    fn is_older(&self, slot: Slot, age: Duration) -> bool {
        let at = self.known[slot.index()].learned_at.load(Ordering::Relaxed);
        at == 0 || self.now().saturating_sub(at) >= u64::try_from(age.as_micros()).unwrap_or(u64::MAX)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.base.elapsed().as_micros()).unwrap_or(u64::MAX).saturating_add(1)
    }
}
