//! Who lives, and whose the partitions are, as Redis has it: two small hashes that every process writes its signs of life to,
//! by one script that says what it found. All times are Redis's, so no two clocks are compared.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use ::redis::{Script, ScriptInvocation, Value};
use ring::digest;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

use super::entries::text;
use super::{ProcessId, lock};
use crate::bus::Term;
use crate::ids::{FrontId, Partition};

/// How long it is kept that somebody is gone.
const GONE_KEPT_MS: u64 = 60_000;
/// How close together signs of life may follow each other when they are asked for.
pub(super) const BEATS_APART: Duration = Duration::from_millis(10);

/// Writes the sender's signs of life, renews, claims and releases partitions, and answers the time and both hashes.
///
/// Arguments: how long members live and partitions are kept; how many members, then each as name and address; how many that
/// are gone; how many partitions to renew, to claim, to release, each list as pairs of partition and `process|term`.
static BEAT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local place = 0
local function take() place = place + 1; return ARGV[place] end
local function at(ms) return string.format('%.0f', ms) end
local member_until, owner_until = at(now + tonumber(take())), at(now + tonumber(take()))
local kept = tonumber(take())
for _ = 1, tonumber(take()) do
  local name = take()
  redis.call('HSET', KEYS[1], name, member_until .. '|' .. take())
end
for _ = 1, tonumber(take()) do redis.call('HSET', KEYS[1], take(), '0|' .. at(now)) end
for _ = 1, tonumber(take()) do
  local partition, owner = take(), take()
  local found = redis.call('HGET', KEYS[2], partition)
  if found and string.sub(found, 1, #owner + 1) == owner .. '|' then
    redis.call('HSET', KEYS[2], partition, owner .. '|' .. owner_until)
  end
end
for _ = 1, tonumber(take()) do
  local partition, owner = take(), take()
  local found = redis.call('HGET', KEYS[2], partition)
  if not found or tonumber(string.match(found, '(%d+)$') or '0') < now then
    redis.call('HSET', KEYS[2], partition, owner .. '|' .. owner_until)
  end
end
for _ = 1, tonumber(take()) do
  local partition, owner = take(), take()
  local found = redis.call('HGET', KEYS[2], partition)
  if found and string.sub(found, 1, #owner + 1) == owner .. '|' then redis.call('HDEL', KEYS[2], partition) end
end
local members = redis.call('HGETALL', KEYS[1])
for i = 1, #members, 2 do
  local last, address = string.match(members[i + 1], '^(%d+)|(.*)$')
  last = tonumber(last or '0')
  if last == 0 then last = tonumber(address or '0') or 0 end
  if last + kept < now then redis.call('HDEL', KEYS[1], members[i]) end
end
return {at(now), members, redis.call('HGETALL', KEYS[2])}
",
    )
});

/// What one sign of life says.
#[derive(Debug, Default)]
pub(super) struct Beat {
    pub(super) middle: bool,
    pub(super) fronts: Vec<FrontId>,
    /// Members of this process that are no more: a middle that goes, fronts.
    pub(super) middle_gone: bool,
    pub(super) fronts_gone: Vec<FrontId>,
    pub(super) renew: Vec<(Partition, Term)>,
    pub(super) claim: Vec<(Partition, Term)>,
    pub(super) release: Vec<(Partition, Term)>,
}

impl Beat {
    pub(super) fn invocation(
        &self,
        process: ProcessId,
        lease: Duration,
        members: &str,
        owners: &str,
    ) -> ScriptInvocation<'static> {
        let mut call = BEAT.prepare_invoke();
        let lease = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
        call.key(members).key(owners).arg(lease).arg(lease).arg(GONE_KEPT_MS);
        call.arg(usize::from(self.middle) + self.fronts.len());
        if self.middle {
            call.arg(format!("m:{process}")).arg("");
        }
        for front in &self.fronts {
            call.arg(format!("f:{front}")).arg(process.to_string());
        }
        call.arg(usize::from(self.middle_gone) + self.fronts_gone.len());
        if self.middle_gone {
            call.arg(format!("m:{process}"));
        }
        for front in &self.fronts_gone {
            call.arg(format!("f:{front}"));
        }
        for list in [&self.renew, &self.claim, &self.release] {
            call.arg(list.len());
            for (partition, term) in list {
                call.arg(partition.number()).arg(format!("{process}|{:032x}", term.0));
            }
        }
        call
    }
}

/// Who has a partition, until when by Redis's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owned {
    pub(super) process: ProcessId,
    pub(super) term: Term,
    pub(super) until: u64,
}

/// What Redis said of everybody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct View {
    /// Milliseconds, by Redis's clock, and when that was here.
    now: u64,
    taken: Option<Instant>,
    middles: BTreeMap<ProcessId, u64>,
    fronts: BTreeMap<FrontId, (ProcessId, u64)>,
    owners: Vec<Option<Owned>>,
}

impl View {
    /// From what the script answered. Fields that can't be read are left out.
    fn read(value: &Value, taken: Instant) -> Option<Self> {
        let Value::Array(parts) = value else { return None };
        let [now, Value::Array(members), Value::Array(owners)] = parts.as_slice() else { return None };
        let now = text(now)?.parse().ok()?;
        let mut view = Self { now, taken: Some(taken), owners: vec![None; Partition::COUNT], ..Self::default() };
        for (name, value) in pairs(members) {
            let Some((until, address)) = value.split_once('|') else { continue };
            let Ok(until) = until.parse() else { continue };
            if let Some(process) = name.strip_prefix("m:").and_then(|name| name.parse().ok()) {
                view.middles.insert(process, until);
            } else if let Some(front) = name.strip_prefix("f:").and_then(|name| name.parse().ok()) {
                view.fronts.insert(front, (address.parse().unwrap_or(ProcessId(0)), until));
            }
        }
        for (name, value) in pairs(owners) {
            let partition = name.parse().ok().and_then(Partition::new);
            if let (Some(partition), Some(owned)) = (partition, owned(value)) {
                view.owners[partition.number()] = Some(owned);
            }
        }
        Some(view)
    }

    /// Redis may have lost everything: who lived a moment ago and has not said that it goes is believed to live until its
    /// lease ends.
    fn keep_living(&mut self, before: &Self) {
        for (process, until) in &before.middles {
            if *until > self.now {
                self.middles.entry(*process).or_insert(*until);
            }
        }
        for (front, (process, until)) in &before.fronts {
            if *until > self.now {
                self.fronts.entry(*front).or_insert((*process, *until));
            }
        }
    }

    /// Redis's clock as it is now.
    pub(super) fn now_ms(&self) -> u64 {
        let since = self.taken.map_or(Duration::ZERO, |taken| taken.elapsed());
        self.now.saturating_add(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// How long it is until, or since, a moment of Redis's clock.
    pub(super) fn left(&self, at_ms: u64) -> Option<Duration> {
        at_ms.checked_sub(self.now_ms()).filter(|left| *left > 0).map(Duration::from_millis)
    }

    pub(super) fn age(&self) -> Duration {
        self.taken.map_or(Duration::MAX, |taken| taken.elapsed())
    }

    pub(super) fn middles(&self) -> Vec<ProcessId> {
        let now = self.now_ms();
        self.middles.iter().filter(|(_, until)| **until > now).map(|(process, _)| *process).collect()
    }

    pub(super) fn fronts(&self) -> Vec<(FrontId, ProcessId)> {
        let now = self.now_ms();
        let living = self.fronts.iter().filter(|(_, (_, until))| *until > now);
        living.map(|(front, (process, _))| (*front, *process)).collect()
    }

    pub(super) fn front(&self, front: FrontId) -> Option<ProcessId> {
        let (process, until) = self.fronts.get(&front)?;
        (*until > self.now_ms()).then_some(*process)
    }

    pub(super) fn owner(&self, partition: Partition) -> Option<Owned> {
        *self.owners.get(partition.number())?
    }

    /// True if nobody has it, or its lease has run out.
    pub(super) fn is_free(&self, partition: Partition) -> bool {
        self.owner(partition).is_none_or(|owned| owned.until < self.now_ms())
    }
}

fn pairs(values: &[Value]) -> impl Iterator<Item = (&str, &str)> {
    values.chunks_exact(2).filter_map(|pair| Some((text(&pair[0])?, text(&pair[1])?)))
}

fn owned(value: &str) -> Option<Owned> {
    let mut parts = value.split('|');
    let process = parts.next()?.parse().ok()?;
    let term = Term(u128::from_str_radix(parts.next()?, 16).ok()?);
    Some(Owned { process, term, until: parts.next()?.parse().ok()? })
}

/// Which of these middles should have a partition: the one whose hash with it is the greatest. One that comes or goes moves
/// only the partitions that it gets or had.
pub(super) fn wanted(partition: Partition, middles: &[ProcessId]) -> Option<ProcessId> {
    let hash = |process: &ProcessId| {
        let mut bytes = [0; 17];
        bytes[..16].copy_from_slice(&process.to_bytes());
        bytes[16] = u8::try_from(partition.number()).unwrap_or(u8::MAX);
        digest::digest(&digest::SHA256, &bytes).as_ref().to_vec()
    };
    middles.iter().copied().max_by_key(hash)
}

/// What this process knows of all, as of its last sign of life.
pub(super) struct Members {
    view: Mutex<View>,
    begun: AtomicU64,
    done: watch::Sender<u64>,
    pub(super) poke: Notify,
    /// This process has a middle, whether Redis knows it yet or not.
    pub(super) middle_here: std::sync::atomic::AtomicBool,
}

impl Members {
    pub(super) fn new() -> Self {
        Self {
            view: Mutex::default(),
            begun: AtomicU64::new(0),
            done: watch::Sender::new(0),
            poke: Notify::new(),
            middle_here: std::sync::atomic::AtomicBool::new(false),
        }
    }

    pub(super) fn view(&self) -> View {
        lock(&self.view).clone()
    }

    /// Asks what is known without copying all of it.
    pub(super) fn with<T>(&self, ask: impl FnOnce(&View) -> T) -> T {
        ask(&lock(&self.view))
    }

    pub(super) fn has_middle(&self) -> bool {
        self.middle_here.load(Ordering::Relaxed)
            || self.with(|view| {
                let now = view.now_ms();
                view.middles.values().any(|until| *until > now)
            })
    }

    /// A sign of life is about to be given; its number.
    pub(super) fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// It was answered.
    pub(super) fn learn(&self, number: u64, value: &Value, sent_at: Instant) -> Option<View> {
        let answered_at = Instant::now();
        let mut view = View::read(value, sent_at + answered_at.duration_since(sent_at) / 2)?;
        let mut known = lock(&self.view);
        view.keep_living(&known);
        known.clone_from(&view);
        drop(known);
        self.done.send_replace(number);
        Some(view)
    }

    /// Waits for what Redis says from now on. False if it has said nothing by then.
    pub(super) async fn refresh(&self, until: Instant) -> bool {
        let number = self.begun.load(Ordering::SeqCst) + 1;
        let mut done = self.done.subscribe();
        self.poke.notify_one();
        matches!(timeout_at(until, done.wait_for(|done| *done >= number)).await, Ok(Ok(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[tokio::test]
    async fn who_is_missing_after_a_loss_lives_until_its_lease_ends_and_who_said_goodbye_does_not() {
        let (here, there) = (ProcessId(1), ProcessId(2));
        let members = |list: &[String]| Value::Array(list.iter().map(|text| bulk(text)).collect());
        let before = [format!("m:{here}"), "2000|".into(), format!("m:{there}"), "2000|".into()];
        let read = |now: &str, list: &[String]| {
            let value = Value::Array(vec![bulk(now), members(list), Value::Array(vec![])]);
            View::read(&value, Instant::now()).expect("what the script answers")
        };
        let before = read("1000", &before);
        assert_eq!(before.middles(), [here, there]);
        let mut after = read("1100", &[format!("m:{there}"), "0|1050".into()]);
        after.keep_living(&before);
        assert_eq!(after.middles(), [here]);
        let mut late = read("2100", &[]);
        late.keep_living(&before);
        assert!(late.middles().is_empty());
    }

    #[test]
    fn a_middle_that_comes_takes_its_share_and_moves_nothing_between_the_others() {
        let middles: Vec<_> = (1..=4).map(|number| ProcessId(number << 64)).collect();
        let mut moved = 0;
        for partition in Partition::all() {
            let (three, four) = (wanted(partition, &middles[..3]), wanted(partition, &middles));
            if three != four {
                assert_eq!(four, Some(middles[3]));
                moved += 1;
            }
        }
        assert!((4..=32).contains(&moved), "{moved} of 64 moved");
        assert_eq!(wanted(Partition::new(0).expect("there is one"), &[]), None);
    }
}
