//! Requests come in: one reader for each lane, on a connection of its own, over the streams of all partitions that this
//! middle owns. It reads no more than the lane's queue has place for, so a middle that is behind leaves the rest in Redis.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{RedisError, Script, Value};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::connection;
use super::courier::RequestCourier;
use super::entries::{self, Entry, EntryId, GROUP, Slot, entries, streams, text};
use super::outbox::Ack;
use super::{Shared, letters};
use crate::bus::{Answer, Incoming, Lane, Term};
use crate::ids::Partition;

/// How long a read waits for something to come: as long as it takes at most until a new partition is read.
const BLOCK: Duration = Duration::from_millis(200);
/// Most entries of one stream in one read.
const COUNT_MAX: usize = 64;
/// Partitions that are taken over at one time.
const TAKEN_OVER_MAX: usize = 16;
/// How often it is looked for what was left behind, and how much waits.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often consumers that are gone are taken out of the groups.
const FORGET_EVERY: Duration = Duration::from_mins(5);
/// How long a consumer has done nothing when it is gone for sure.
const GONE_AFTER: Duration = Duration::from_mins(10);

/// Takes consumers out of a group that have nothing pending and did nothing for so long, but for the one that asks. In one
/// step, since what is pending goes with its consumer.
static FORGET: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local gone = 0
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local is = {}
  for i = 1, #consumer, 2 do is[consumer[i]] = consumer[i + 1] end
  if is.name ~= ARGV[2] and is.pending == 0 and is.idle > tonumber(ARGV[3]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], is.name)
    gone = gone + 1
  end
end
return gone
",
    )
});

/// How far a partition is taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// What others have not acknowledged is claimed, from this entry on, before anything new is read.
    Claiming {
        from: EntryId,
        made: bool,
    },
    Live,
}

const FRESH: Stage = Stage::Claiming { from: EntryId { ms: 0, seq: 0 }, made: false };

/// Why a read ended.
enum Trouble {
    Broken(String),
    /// A stream or its group is not there any more.
    Vanished,
}

pub(super) struct Reader {
    shared: Arc<Shared>,
    lane: Lane,
    queue: mpsc::Sender<Incoming>,
    stages: HashMap<Partition, (Term, Stage)>,
    by_key: HashMap<Vec<u8>, Partition>,
    turn: usize,
    looked_at: Instant,
    forgot_at: Option<Instant>,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, lane: Lane, queue: mpsc::Sender<Incoming>) -> Self {
        let key = |partition| shared.keys.requests(Slot { partition, lane }).as_bytes().to_vec();
        let by_key = Partition::all().map(|partition| (key(partition), partition)).collect();
        Self {
            shared,
            lane,
            queue,
            stages: HashMap::new(),
            by_key,
            turn: 0,
            looked_at: Instant::now(),
            forgot_at: None,
        }
    }

    /// Reads until the middle's inbox is gone.
    pub(super) async fn run(mut self) {
        let mut failed = 0;
        while !self.queue.is_closed() {
            let reason = match self.shared.dialer.dial(BLOCK + self.shared.options.response_timeout).await {
                Ok(connection) => {
                    failed = 0;
                    match self.read(connection).await {
                        Some(reason) => reason,
                        None => break,
                    }
                }
                Err(reason) => reason,
            };
            tracing::debug!(lane = self.lane.name(), %reason, "requests can't be read");
            // What was answered and got lost on its way is pending.
            self.stages.clear();
            self.shared.leases.honour(self.lane, self.shared.leases.readable().0);
            sleep(self.shared.dialer.pause(failed)).await;
            failed += 1;
        }
        self.shared.leases.honour(self.lane, u64::MAX);
    }

    /// `None` once the inbox is gone.
    async fn read(&mut self, mut connection: MultiplexedConnection) -> Option<String> {
        let mut changed = self.shared.leases.changed.subscribe();
        loop {
            if self.queue.is_closed() {
                return None;
            }
            changed.borrow_and_update();
            self.follow();
            self.acknowledge_overdue();
            if self.stages.is_empty() {
                let _ = timeout(LOOK_EVERY, changed.changed()).await;
                continue;
            }
            if self.queue.capacity() == 0 {
                tokio::select! {
                    place = self.queue.reserve() => drop(place),
                    _ = changed.changed() => {}
                }
                continue;
            }
            let outcome = match self.take_over(&mut connection).await {
                Ok(()) => self.read_new(&mut connection).await,
                Err(trouble) => Err(trouble),
            };
            let outcome = match outcome {
                Ok(()) if self.looked_at.elapsed() >= LOOK_EVERY => self.look(&mut connection).await,
                other => other,
            };
            match outcome {
                Ok(()) => {}
                Err(Trouble::Broken(reason)) => return Some(reason),
                Err(Trouble::Vanished) => {
                    for (_, stage) in self.stages.values_mut() {
                        *stage = FRESH;
                    }
                    // Then the leases may be gone too.
                    self.shared.members.poke.notify_one();
                }
            }
        }
    }

    /// Takes up what is readable now. Nothing is under way at this moment.
    fn follow(&mut self) {
        let (version, readable) = self.shared.leases.readable();
        let mut stages = HashMap::with_capacity(readable.len());
        for (partition, term) in readable {
            let known = self.stages.get(&partition).filter(|(known, _)| *known == term);
            stages.insert(partition, known.copied().unwrap_or((term, FRESH)));
        }
        self.stages = stages;
        for partition in self.shared.leases.to_reclaim(self.lane) {
            self.claim_again(partition);
        }
        self.shared.leases.honour(self.lane, version);
    }

    fn claim_again(&mut self, partition: Partition) {
        if let Some((_, stage)) = self.stages.get_mut(&partition)
            && *stage == Stage::Live
        {
            *stage = FRESH;
        }
    }

    fn slot(&self, partition: Partition) -> Slot {
        Slot { partition, lane: self.lane }
    }

    /// Claims what owners before have left, in order.
    async fn take_over(&mut self, connection: &mut MultiplexedConnection) -> Result<(), Trouble> {
        let claiming = self.stages.iter().filter_map(|(partition, (_, stage))| match stage {
            Stage::Claiming { from, made } => Some((*partition, *from, *made)),
            Stage::Live => None,
        });
        let mut claiming: Vec<_> = claiming.collect();
        claiming.sort_unstable_by_key(|(partition, ..)| *partition);
        let room = self.queue.capacity();
        claiming.truncate(TAKEN_OVER_MAX.min(room));
        if claiming.is_empty() {
            return Ok(());
        }
        let count = (room / claiming.len()).clamp(1, COUNT_MAX);
        let consumer = self.shared.process.to_string();
        let mut pipe = ::redis::pipe();
        for (partition, from, made) in &claiming {
            let key = self.shared.keys.requests(self.slot(*partition));
            if !made {
                pipe.cmd("XGROUP").arg("CREATE").arg(key).arg(GROUP).arg("0").arg("MKSTREAM");
            }
            pipe.cmd("XAUTOCLAIM").arg(key).arg(GROUP).arg(&consumer).arg(0).arg(from.to_string());
            pipe.arg("COUNT").arg(count);
        }
        let mut values = self.send(connection, &pipe).await?.into_iter();
        for (partition, _, made) in claiming {
            if !made {
                // That it exists is well.
                let _ = values.next();
            }
            let value = values.next().unwrap_or(Value::Nil);
            self.check(&value)?;
            let Value::Array(parts) = value else { continue };
            let mut parts = parts.into_iter();
            let next = parts.next().as_ref().and_then(text).and_then(|id| id.parse::<EntryId>().ok());
            let next = next.filter(|next| next.ms > 0 || next.seq > 0);
            let claimed = entries(parts.next().unwrap_or(Value::Nil));
            self.claimed(connection, partition, claimed).await?;
            if let Some((_, stage)) = self.stages.get_mut(&partition) {
                *stage = next.map_or(Stage::Live, |from| Stage::Claiming { from, made: true });
            }
        }
        Ok(())
    }

    /// Hands over what was claimed, but for what was tried too often.
    async fn claimed(
        &mut self,
        connection: &mut MultiplexedConnection,
        partition: Partition,
        claimed: Vec<Entry>,
    ) -> Result<(), Trouble> {
        let (Some(first), Some(last)) = (claimed.first(), claimed.last()) else { return Ok(()) };
        let slot = self.slot(partition);
        let key = self.shared.keys.requests(slot);
        let mut pipe = ::redis::pipe();
        pipe.cmd("XPENDING").arg(key).arg(GROUP).arg(first.id.to_string()).arg(last.id.to_string());
        pipe.arg(COUNT_MAX * 16).arg(self.shared.process.to_string());
        let tries = self.send(connection, &pipe).await?.pop().unwrap_or(Value::Nil);
        self.check(&tries)?;
        let tries = tries_of(tries);
        for entry in claimed {
            if tries.get(&entry.id).is_some_and(|tries| *tries > i64::from(self.shared.options.tries_max)) {
                self.bury(connection, slot, entry).await?;
            } else if self.hand_over(slot, entry).await {
                self.shared.metrics.redelivered.add(1);
            }
        }
        Ok(())
    }

    /// Puts a request that nobody survived where an operator finds it.
    async fn bury(&mut self, connection: &mut MultiplexedConnection, slot: Slot, entry: Entry) -> Result<(), Trouble> {
        if !self.shared.in_hand.take(slot, entry.id) {
            return Ok(());
        }
        let mut pipe = ::redis::pipe();
        pipe.cmd("XADD").arg(self.shared.keys.dead(slot.partition)).arg("MAXLEN").arg("~");
        pipe.arg(self.shared.options.dead_max).arg("*").arg("lane").arg(slot.lane.name());
        pipe.arg("entry").arg(entry.id.to_string()).arg("e").arg(entry.values.first().cloned().unwrap_or_default());
        let buried = match self.send(connection, &pipe).await {
            Ok(values) => values.first().is_some_and(|value| connection::refusal(value).is_none()),
            Err(trouble) => {
                self.shared.in_hand.leave(slot, entry.id);
                return Err(trouble);
            }
        };
        if !buried {
            self.shared.in_hand.leave(slot, entry.id);
            return Ok(());
        }
        let request = entry.values.first().and_then(|bytes| letters::received(bytes).ok());
        let name = request.and_then(|received| received.request.ok()).map_or("unreadable", |request| request.name());
        let (lane, partition, id) = (slot.lane.name(), slot.partition.number(), entry.id);
        tracing::error!(request = name, lane, partition, %id, "no middle survived a request: it is with the dead letters");
        self.shared.metrics.dead_letters.add(1);
        self.shared.outbox.ack(Ack { slot, entry: entry.id, counted: true });
        Ok(())
    }

    async fn read_new(&mut self, connection: &mut MultiplexedConnection) -> Result<(), Trouble> {
        let live = self.stages.iter().filter(|(_, (_, stage))| *stage == Stage::Live);
        let mut live: Vec<_> = live.map(|(partition, _)| *partition).collect();
        if live.is_empty() {
            return Ok(());
        }
        live.sort_unstable();
        // Each read begins with another partition, for the case that there isn't place for all.
        self.turn = self.turn.wrapping_add(1);
        let middle = self.turn % live.len();
        live.rotate_left(middle);
        let room = self.queue.capacity().max(1);
        let all_live = live.len() == self.stages.len();
        live.truncate(room);
        let count = (room / live.len()).clamp(1, COUNT_MAX);
        let mut pipe = ::redis::pipe();
        pipe.cmd("XREADGROUP").arg("GROUP").arg(GROUP).arg(self.shared.process.to_string()).arg("COUNT").arg(count);
        if all_live {
            pipe.arg("BLOCK").arg(u64::try_from(BLOCK.as_millis()).unwrap_or(200));
        }
        pipe.arg("STREAMS");
        for partition in &live {
            pipe.arg(self.shared.keys.requests(self.slot(*partition)));
        }
        for _ in &live {
            pipe.arg(">");
        }
        let value = self.send(connection, &pipe).await?.pop().unwrap_or(Value::Nil);
        self.check(&value)?;
        for (key, entries) in streams(value) {
            let Some(partition) = self.by_key.get(&key).copied() else { continue };
            for entry in entries {
                self.hand_over(self.slot(partition), entry).await;
            }
        }
        Ok(())
    }

    /// Gives one request to the middle; false if it is not to have it.
    async fn hand_over(&self, slot: Slot, entry: Entry) -> bool {
        let shared = &self.shared;
        let Some((term, _)) = self.stages.get(&slot.partition) else { return false };
        // Also after the process stood still: what is another's now is left to that one.
        if !shared.leases.may_hand_over(slot.partition, *term) || !shared.in_hand.take(slot, entry.id) {
            return false;
        }
        let ack = Ack { slot, entry: entry.id, counted: true };
        let received = match letters::received(entry.values.first().map(Vec::as_slice).unwrap_or_default()) {
            Ok(received) => received,
            Err(error) => {
                shared.undecodable(&error.to_string());
                shared.outbox.ack(ack);
                return false;
            }
        };
        let Some(deadline) = shared.deadline(entry.id, received.back.patience) else {
            shared.metrics.expired.add(1);
            shared.outbox.ack(ack);
            return false;
        };
        let courier = RequestCourier::new(Arc::clone(shared), ack, *term, received.back, deadline);
        let request = match received.request {
            Ok(request) => request,
            Err(error) => {
                shared.undecodable(&error.to_string());
                Answer::away(courier).send(Err(letters::not_known(&error)));
                return false;
            }
        };
        let id = entry.id.message_id(entries::stream_number(slot), received.mark);
        let (lane, partition, answer) = (slot.lane, Some(slot.partition), Answer::away(courier));
        shared.metrics.requests_received.add(1);
        // There was place when it was read; questions share the high lane, so it may have been taken since.
        self.queue.send(Incoming { id, lane, partition, deadline, request, answer }).await.is_ok()
    }

    /// Looks for what somebody who was the owner before read too late, and how much waits.
    async fn look(&mut self, connection: &mut MultiplexedConnection) -> Result<(), Trouble> {
        self.looked_at = Instant::now();
        let partitions: Vec<_> = self.stages.keys().copied().collect();
        let mut pipe = ::redis::pipe();
        for partition in &partitions {
            let key = self.shared.keys.requests(self.slot(*partition));
            pipe.cmd("XLEN").arg(key).cmd("XPENDING").arg(key).arg(GROUP);
        }
        let values = self.send(connection, &pipe).await?;
        let mut waiting = 0;
        for (partition, values) in partitions.into_iter().zip(values.chunks_exact(2)) {
            self.check(&values[1])?;
            if let Value::Int(length) = &values[0] {
                waiting += u64::try_from(*length).unwrap_or(0);
            }
            if self.others_have_some(&values[1]) {
                self.claim_again(partition);
            }
        }
        self.shared.metrics.lag[self.lane as usize].set(waiting);
        if self.forgot_at.is_none_or(|at| at.elapsed() >= FORGET_EVERY) {
            self.forgot_at = Some(Instant::now());
            self.forget(connection, GONE_AFTER).await?;
        }
        Ok(())
    }

    /// Takes consumers that are gone out of the groups: each middle that ever lived was one.
    async fn forget(&self, connection: &mut MultiplexedConnection, gone_after: Duration) -> Result<(), Trouble> {
        let me = self.shared.process.to_string();
        let idle_ms = u64::try_from(gone_after.as_millis()).unwrap_or(u64::MAX);
        for partition in self.stages.keys() {
            let mut call = FORGET.key(self.shared.keys.requests(self.slot(*partition)));
            let forgotten = call.arg(GROUP).arg(&me).arg(idle_ms).invoke_async::<i64>(connection).await;
            if let Err(error) = forgotten {
                let reason = self.shared.dialer.said(&error);
                if error.is_io_error() || error.is_timeout() {
                    return Err(Trouble::Broken(reason));
                }
                // Such as that the stream has vanished: nothing hangs on it.
                tracing::debug!(%reason, "consumers that are gone could not be looked for");
            }
        }
        Ok(())
    }

    /// Whether the summary of what is pending names another consumer.
    fn others_have_some(&self, summary: &Value) -> bool {
        let Value::Array(parts) = summary else { return false };
        let Some(Value::Array(consumers)) = parts.get(3) else { return false };
        let me = self.shared.process.to_string();
        consumers.iter().any(|consumer| {
            let Value::Array(pair) = consumer else { return false };
            pair.first().and_then(text).is_some_and(|name| name != me)
        })
    }

    fn acknowledge_overdue(&self) {
        for ack in self.shared.in_hand.overdue(self.lane, &self.shared.leases) {
            self.shared.outbox.ack(ack);
        }
    }

    async fn send(
        &self,
        connection: &mut MultiplexedConnection,
        pipe: &::redis::Pipeline,
    ) -> Result<Vec<Value>, Trouble> {
        let broken = |error: RedisError| Trouble::Broken(self.shared.dialer.said(&error));
        connection::send(connection, pipe).await.map_err(broken)
    }

    fn check(&self, value: &Value) -> Result<(), Trouble> {
        match connection::refusal(value) {
            None => Ok(()),
            Some((error, _)) if matches!(error.code(), Some("NOGROUP" | "UNBLOCKED")) => Err(Trouble::Vanished),
            Some((error, _)) => {
                let reason = self.shared.dialer.said(&error);
                if self.shared.seldom.now() {
                    tracing::warn!(%reason, "Redis refused to give requests");
                }
                Err(Trouble::Broken(reason))
            }
        }
    }
}

/// How many times each entry has been delivered, from `XPENDING`.
fn tries_of(value: Value) -> HashMap<EntryId, i64> {
    let Value::Array(items) = value else { return HashMap::new() };
    let one = |item| {
        let Value::Array(parts) = item else { return None };
        let [id, _, _, Value::Int(tries)] = parts.as_slice() else { return None };
        Some((text(id)?.parse().ok()?, *tries))
    };
    items.into_iter().filter_map(one).collect()
}
