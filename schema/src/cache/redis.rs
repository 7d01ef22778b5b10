//! The cache in Redis, shared by all processes.
//!
//! - **Routes** have no time to live: one must not be dropped while its front lives, and connections last for days. Those of
//!   fronts that are gone are replaced when the account connects again; what is left over is removed by a sweep
//!   (`redis/sweep.rs`).
//! - **Leases and quotas** are counted by the server's own clock, so that the processes' clocks may be apart.
//! - **The generation** ends with the data and with the server's process: one that starts again may have lost the last
//!   writes. Each process asks for it at most every half a second, and at once after it has connected again.
//! - **Records** lie here for a minute, so that what one middle has read the others need not. Whoever changes one forgets it
//!   here, which leaves a tombstone, and then tells the other processes.
//!
//! Every call fails within the time for a response, and at once while there is no connection; nothing needs to be done for
//! it to work again. What several keys take part in is no transaction: each script touches keys of one slot, so that the
//! layout (`redis/keys.rs`) suits a cluster; the client here speaks to one server.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use idl::clock::{SharedClock, SharedEntropy, SystemClock};
use idl::ids::{AccountId, AppId, Epoch, FrontId, Generation};
use redis::{Script, ScriptInvocation, Value};
use tokio::sync::{Mutex, broadcast};
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub use self::connection::RedisState;
use self::connection::{Connection, Dialer, Effect};
use self::forgotten::Speaker;
use self::keys::Keys;
pub use self::metrics::RedisMetrics;
pub use self::options::{RedisLimits, RedisOptions};
use super::in_process::new_generation;
use super::{Cache, Claim, Forgotten, Grant, Known, Left, Route, Want};
use crate::sorted::StoreError;

mod connection;
mod forgotten;
mod keys;
mod metrics;
mod options;
mod sweep;

macro_rules! scripts {
    ($($name:ident = $file:literal;)+) => {
        $(static $name: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!(concat!("redis/", $file))));)+
    };
}

scripts! {
    CLAIM = "claim.lua";
    RELEASE = "release.lua";
    PRUNE = "prune.lua";
    RENEW = "renew.lua";
    FRONTS = "fronts.lua";
    GENERATION = "generation.lua";
    TAKE = "take.lua";
    REFUND = "refund.lua";
}

/// Accounts, or keys, that one turn to the server asks for.
const TURN_MAX: usize = 1000;
/// What other processes forgot and a listener has not heard yet; one that is slower forgets everything.
const FORGOTTEN_MAX: usize = 1024;
/// Up to here a number of Lua counts each one.
const COUNT_MAX: u64 = 1 << 53;

/// The cache in Redis. Dropping it ends its connections.
pub struct RedisCache {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

/// What the calls and the tasks of one cache share.
struct Shared {
    connection: Connection,
    keys: Keys,
    limits: RedisLimits,
    /// In place of the server's.
    clock: Option<SharedClock>,
    entropy: SharedEntropy,
    speaker: Speaker,
    generation: Mutex<Option<Asked>>,
    forgotten: broadcast::Sender<Forgotten>,
    metrics: Arc<RedisMetrics>,
}

/// What was answered when the generation was asked for.
struct Asked {
    at: Instant,
    /// And the number of the connection that answered.
    answer: Result<(Generation, u64), StoreError>,
}

impl Drop for RedisCache {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl RedisCache {
    /// Begins to connect and returns at once; [`state`](Self::state) tells how it goes. Fails only when the options can't be
    /// used. Call it in a Tokio runtime.
    pub fn start(options: RedisOptions, entropy: SharedEntropy) -> Result<Self, StoreError> {
        let options = Arc::new(options);
        let dialer = Dialer::new(Arc::clone(&options), Arc::clone(&entropy))?;
        let metrics = Arc::new(RedisMetrics::default());
        let forgotten = broadcast::Sender::new(FORGOTTEN_MAX);
        let mut speaker = [0; 16];
        entropy.fill(&mut speaker);
        let keys = Keys::new(&options.prefix);
        let listening =
            forgotten::listen(dialer.clone(), keys.forgotten(), speaker, forgotten.clone(), Arc::clone(&metrics));
        let shared = Arc::new(Shared {
            connection: Connection::start(dialer, Arc::clone(&metrics)),
            keys,
            limits: options.limits,
            clock: options.clock.clone(),
            entropy,
            speaker,
            generation: Mutex::new(None),
            forgotten,
            metrics,
        });
        let tasks = vec![tokio::spawn(listening), tokio::spawn(sweep::now_and_then(Arc::clone(&shared)))];
        Ok(Self { shared, tasks })
    }

    /// How the connection is.
    pub fn state(&self) -> RedisState {
        self.shared.connection.state()
    }

    /// What it has done.
    pub fn metrics(&self) -> &Arc<RedisMetrics> {
        &self.shared.metrics
    }

    /// Removes the routes of fronts that had no lease at two looks, a whole lease apart, and returns how many. A task does
    /// it now and then, in one process of all.
    pub async fn sweep_routes(&self) -> Result<u64, StoreError> {
        self.shared.sweep_routes().await
    }
}

impl Shared {
    async fn run<T: redis::FromRedisValue>(&self, effect: Effect, call: ScriptInvocation<'_>) -> Result<T, StoreError> {
        self.connection.call(effect, async move |mut link| call.invoke_async(&mut link.connection).await).await
    }

    async fn pipe<T: redis::FromRedisValue>(&self, effect: Effect, pipe: redis::Pipeline) -> Result<T, StoreError> {
        self.connection.call(effect, async move |mut link| pipe.query_async(&mut link.connection).await).await
    }

    /// The time for a script; empty where it is to ask the server's clock.
    fn now(&self) -> String {
        self.clock.as_ref().map(|clock| clock.now_ms().to_string()).unwrap_or_default()
    }

    async fn fronts(&self) -> Result<Vec<FrontId>, StoreError> {
        let mut call = FRONTS.prepare_invoke();
        call.key(self.keys.leases()).arg(self.now());
        let fronts: Vec<String> = self.run(Effect::Reads, call).await?;
        let mut fronts = fronts.iter().map(|front| parsed(front)).collect::<Result<Vec<_>, _>>()?;
        fronts.sort_unstable();
        Ok(fronts)
    }

    /// The generation; the new one that is given here if there is none, or in any case.
    /// And the number of the connection that answered.
    async fn ask_generation(&self, begin: bool) -> Result<(Generation, u64), StoreError> {
        // Its time only helps a reader of it.
        let clock = self.clock.clone().unwrap_or_else(|| Arc::new(SystemClock));
        let candidate = new_generation(&clock, &self.entropy).to_string();
        let key = self.keys.generation();
        let begin = u8::from(begin);
        let (answer, connection): (String, u64) = self
            .connection
            .call(Effect::Writes, async move |mut link| {
                let mut call = GENERATION.prepare_invoke();
                call.key(key).arg(candidate).arg(&*link.run).arg(begin);
                Ok((call.invoke_async(&mut link.connection).await?, link.number))
            })
            .await?;
        Ok((parsed(&answer)?, connection))
    }
}

#[async_trait]
impl Cache for RedisCache {
    async fn claim(&self, account: AccountId, resource: &str, route: Route) -> Result<Claim, StoreError> {
        let shared = &*self.shared;
        let key = shared.keys.routes(account);
        let mut pruned = false;
        loop {
            let mut call = CLAIM.prepare_invoke();
            let (front, epoch) = (route.front.to_string(), route.epoch.to_string());
            call.key(&key).arg(resource).arg(front).arg(epoch).arg(shared.limits.resources_max);
            let (outcome, held): (u8, Option<String>) = match shared.run(Effect::Writes, call).await? {
                Answer::Pair(outcome, held) => (outcome, held),
                Answer::One(outcome) => (outcome, None),
            };
            match (outcome, held) {
                (1, previous) => {
                    return Ok(Claim::Won { previous: previous.as_deref().map(route_of).transpose()? });
                }
                (0, Some(current)) => return Ok(Claim::Lost { current: route_of(&current)? }),
                // No room: those of fronts that are gone make some.
                _ if !pruned && shared.prune(&key).await? > 0 => pruned = true,
                _ => {
                    return Err(StoreError::Unavailable(format!(
                        "the cache holds {} routes of the account, its most",
                        shared.limits.resources_max
                    )));
                }
            }
        }
    }

    async fn route(&self, account: AccountId, resource: &str) -> Result<Option<Route>, StoreError> {
        let mut pipe = redis::pipe();
        pipe.hget(self.shared.keys.routes(account), resource);
        let (held,): (Option<String>,) = self.shared.pipe(Effect::Reads, pipe).await?;
        held.as_deref().map(route_of).transpose()
    }

    async fn release(&self, account: AccountId, resource: &str, epoch: Epoch) -> Result<bool, StoreError> {
        let mut call = RELEASE.prepare_invoke();
        call.key(self.shared.keys.routes(account)).arg(resource).arg(epoch.to_string());
        self.shared.run(Effect::Writes, call).await
    }

    async fn renew_lease(&self, front: FrontId) -> Result<(), StoreError> {
        let (shared, limits) = (&self.shared, self.shared.limits);
        let mut call = RENEW.prepare_invoke();
        call.key(shared.keys.leases()).arg(shared.now()).arg(front.to_string());
        call.arg(ms(limits.lease)).arg(limits.fronts_max);
        if shared.run(Effect::Writes, call).await? {
            return Ok(());
        }
        let text = format!("the cache holds leases of {} fronts, its most", limits.fronts_max);
        Err(StoreError::Unavailable(text))
    }

    async fn front_lives(&self, front: FrontId) -> Result<bool, StoreError> {
        Ok(self.shared.fronts().await?.binary_search(&front).is_ok())
    }

    async fn fronts(&self) -> Result<Vec<FrontId>, StoreError> {
        self.shared.fronts().await
    }

    async fn connected(&self, accounts: &[AccountId]) -> Result<Vec<bool>, StoreError> {
        let shared = &*self.shared;
        if accounts.is_empty() {
            return Ok(Vec::new());
        }
        let routes = async {
            let mut routes = Vec::with_capacity(accounts.len());
            for accounts in accounts.chunks(TURN_MAX) {
                let mut pipe = redis::pipe();
                for account in accounts {
                    pipe.hvals(shared.keys.routes(*account));
                }
                let turn: Vec<Vec<String>> = shared.pipe(Effect::Reads, pipe).await?;
                routes.extend(turn);
            }
            Ok(routes)
        };
        let (fronts, routes) = tokio::try_join!(shared.fronts(), routes)?;
        let lives = |held: &String| Ok(fronts.binary_search(&route_of(held)?.front).is_ok());
        routes.iter().map(|held| held.iter().try_fold(false, |any, held| Ok(any || lives(held)?))).collect()
    }

    async fn take(&self, want: Want<'_>) -> Result<Grant, StoreError> {
        let (shared, quota) = (&*self.shared, want.quota);
        if quota.per_second_max == 0 && quota.per_day_max == 0 {
            return Ok(Grant::Taken(Left { second_left: 0.0, day_sent: 0, wait_ms: 0 }));
        }
        let mut call = TAKE.prepare_invoke();
        call.key(shared.keys.quota(want.app)).key(shared.keys.sent(want.app));
        call.arg(shared.now()).arg(quota.per_second_max).arg(quota.per_day_max.min(COUNT_MAX));
        call.arg(want.messages.min(COUNT_MAX)).arg(u8::from(want.owe)).arg(want.day);
        call.arg(want.sent_before.map(|sent| sent.min(COUNT_MAX).to_string()).unwrap_or_default());
        let answer: Vec<String> = shared.run(Effect::Writes, call).await?;
        let [outcome, left, sent] = &answer[..] else { return Ok(Grant::Unknown) };
        let unread = |what: &str| StoreError::Corrupt(format!("the quota of {}: {what:?} is no number", want.app));
        let left = Left::of(
            left.parse().map_err(|_| unread(left))?,
            f64::from(quota.per_second_max),
            sent.parse().map_err(|_| unread(sent))?,
        );
        Ok(match &outcome[..] {
            "taken" => Grant::Taken(left),
            "second" => Grant::RateLimited(left),
            _ => Grant::DailyQuota(left),
        })
    }

    async fn refund(&self, app: &AppId, day: u32, messages: u64) -> Result<(), StoreError> {
        if messages == 0 {
            return Ok(());
        }
        let mut call = REFUND.prepare_invoke();
        call.key(self.shared.keys.sent(app)).arg(day).arg(messages.min(COUNT_MAX));
        self.shared.run::<Value>(Effect::Writes, call).await.map(drop)
    }

    async fn forget_quota(&self, app: &AppId) -> Result<(), StoreError> {
        let mut pipe = redis::pipe();
        pipe.del(&[self.shared.keys.quota(app), self.shared.keys.sent(app)]);
        self.shared.pipe::<Value>(Effect::Writes, pipe).await.map(drop)
    }

    async fn records(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Known>>, StoreError> {
        let shared = &*self.shared;
        let mut known = Vec::with_capacity(keys.len());
        for keys in keys.chunks(TURN_MAX) {
            known.extend(shared.records(keys).await?);
        }
        Ok(known)
    }

    async fn keep(&self, records: Vec<(Vec<u8>, Known)>) -> Result<(), StoreError> {
        let shared = &*self.shared;
        let (record_ms, absent_ms) = (ms(shared.limits.record_ttl), ms(shared.limits.absent_ttl));
        for records in records.chunks(TURN_MAX) {
            let mut pipe = redis::pipe();
            for (key, known) in records {
                let (value, kept_ms) = match known {
                    Known::Absent => (vec![b'A'], absent_ms),
                    Known::Present(record) if record.len() > shared.limits.record_bytes_max => continue,
                    Known::Present(record) => ([b"P", &record[..]].concat(), record_ms),
                };
                let (_, name) = shared.keys.record(key);
                pipe.cmd("SET").arg(name).arg(value).arg("NX").arg("PX").arg(kept_ms);
            }
            if pipe.is_empty() {
                continue;
            }
            let kept: Vec<Option<String>> = shared.pipe(Effect::Writes, pipe).await?;
            shared.metrics.keeps_refused.add(kept.iter().filter(|kept| kept.is_none()).count() as u64);
        }
        Ok(())
    }

    async fn forget(&self, keys: &[Vec<u8>]) -> Result<(), StoreError> {
        let shared = &*self.shared;
        for keys in keys.chunks(TURN_MAX) {
            let mut pipe = redis::pipe();
            for key in keys {
                let (_, name) = shared.keys.record(key);
                pipe.cmd("SET").arg(name).arg("T").arg("PX").arg(ms(shared.limits.tombstone_ttl)).ignore();
            }
            // Behind the tombstones: who hears of it and reads again does not find what was.
            for message in forgotten::encode(keys, &shared.speaker) {
                pipe.publish(shared.keys.forgotten(), message).ignore();
            }
            shared.pipe::<()>(Effect::Writes, pipe).await?;
        }
        Ok(())
    }

    fn forgotten(&self) -> broadcast::Receiver<Forgotten> {
        self.shared.forgotten.subscribe()
    }

    /// May be as old as [`RedisLimits::generation_age_max`]; never of an earlier connection.
    async fn generation(&self) -> Result<Generation, StoreError> {
        let (shared, began) = (&*self.shared, Instant::now());
        // Whoever waits here gets the answer of who asks, also when it is an error: else they would wait one by one.
        let mut asked = shared.generation.lock().await;
        if let Some(asked) = &*asked {
            let fresh = asked.answer.as_ref().is_ok_and(|(_, connection)| {
                shared.connection.number() == Some(*connection) && asked.at.elapsed() < shared.limits.generation_age_max
            });
            if fresh || asked.at > began {
                return asked.answer.clone().map(|(generation, _)| generation);
            }
        }
        let at = Instant::now();
        let answer = shared.ask_generation(false).await;
        // A generation is as old as the question; an error is for all who came before it.
        let at = if answer.is_ok() { at } else { Instant::now() };
        *asked = Some(Asked { at, answer: answer.clone() });
        answer.map(|(generation, _)| generation)
    }

    async fn wipe(&self) -> Result<Generation, StoreError> {
        let shared = &*self.shared;
        shared.delete_everything().await?;
        let mut asked = shared.generation.lock().await;
        *asked = None;
        let (generation, _) = shared.ask_generation(true).await?;
        let mut pipe = redis::pipe();
        pipe.publish(shared.keys.forgotten(), forgotten::everything(&shared.speaker));
        shared.pipe::<Value>(Effect::Writes, pipe).await?;
        Ok(generation)
    }
}

impl Shared {
    /// One turn to the server, with one command for all records of a tag.
    async fn records(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Known>>, StoreError> {
        let mut names: Vec<_> = keys.iter().map(|key| self.keys.record(key)).enumerate().collect();
        names.sort_by_key(|(_, (tag, _))| *tag);
        let mut pipe = redis::pipe();
        for names in names.chunk_by(|(_, (one, _)), (_, (other, _))| one == other) {
            pipe.mget(names.iter().map(|(_, (_, name))| name).collect::<Vec<_>>());
        }
        let answers: Vec<Vec<Option<Vec<u8>>>> = self.pipe(Effect::Reads, pipe).await?;
        let mut known = vec![None; keys.len()];
        let (mut hits, mut absent, mut tombstones) = (0, 0, 0);
        for ((at, _), value) in names.iter().zip(answers.into_iter().flatten()) {
            known[*at] = value.and_then(|mut value| match value.first() {
                Some(b'P') => {
                    hits += 1;
                    value.remove(0);
                    Some(Known::Present(value))
                }
                Some(b'A') => {
                    absent += 1;
                    Some(Known::Absent)
                }
                Some(b'T') => {
                    tombstones += 1;
                    None
                }
                _ => None,
            });
        }
        let metrics = &self.metrics;
        metrics.hits.add(hits);
        metrics.negative_hits.add(absent);
        metrics.tombstones.add(tombstones);
        metrics.misses.add((keys.len() as u64).saturating_sub(hits + absent));
        Ok(known)
    }
}

/// What a claim is answered with.
enum Answer {
    One(u8),
    Pair(u8, Option<String>),
}

impl redis::FromRedisValue for Answer {
    fn from_redis_value(value: Value) -> Result<Self, redis::ParsingError> {
        if let Value::Array(values) = &value
            && let [Value::Int(outcome)] = values[..]
        {
            return Ok(Self::One(u8::try_from(outcome).unwrap_or(u8::MAX)));
        }
        redis::from_redis_value(value).map(|(outcome, held)| Self::Pair(outcome, held))
    }
}

/// A route from what is kept: `front|epoch`.
fn route_of(held: &str) -> Result<Route, StoreError> {
    let (front, epoch) = held.split_once('|').unwrap_or((held, ""));
    Ok(Route { front: parsed(front)?, epoch: parsed(epoch)? })
}

fn parsed<T: std::str::FromStr<Err = idl::ids::InvalidId>>(text: &str) -> Result<T, StoreError> {
    text.parse().map_err(|error: idl::ids::InvalidId| StoreError::Corrupt(format!("the cache in Redis: {error}")))
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
