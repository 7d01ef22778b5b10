//! A Redis that refuses, dies, forgets or stands still.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use campanile_idl::bus::redis::{ProcessId, RedisBus, RedisOptions};
use campanile_idl::bus::{Bus, Lane, Ownership, Reply, Request};
use campanile_idl::clock::{SystemClock, SystemEntropy};
use campanile_idl::contract::bus as wire;
use campanile_idl::error::Failure;
use campanile_idl::ids::Partition;
use redis::aio::MultiplexedConnection;
use servers::Redis;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::harness::{FRONT, LONG, call, end, options, owns_all, serve_all, wait_for};

/// How long a request of the load waits.
const PATIENCE: Duration = Duration::from_secs(4);
/// What a request may take longer than its patience, on a busy machine.
const MARGIN: Duration = Duration::from_secs(3);

/// A Redis that a test may harm, with a middle that serves, a front and a producer.
struct Harmed {
    redis: Redis,
    producer: Arc<RedisBus>,
    middle: Arc<RedisBus>,
    ownership: Ownership,
    _front: Arc<RedisBus>,
    _serving: JoinHandle<()>,
    delivered: Arc<AtomicUsize>,
}

async fn harmed(lease: Duration) -> Option<Harmed> {
    servers::redis()?;
    let redis = Redis::start().expect("Redis starts");
    let options = RedisOptions { middle_lease: lease, ..options(&redis.url()) };
    let (producer, middle, front) = (end(&options).await, end(&options).await, end(&options).await);
    let inbox = middle.attach_middle();
    let ownership = inbox.ownership().clone();
    owns_all(&[&ownership]).await;
    let (serving, _) = serve_all(inbox);
    let mut front_inbox = front.attach_front(FRONT);
    let delivered = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&delivered);
    tokio::spawn(async move {
        while let Some(incoming) = front_inbox.batches.recv().await {
            counted.fetch_add(1, Ordering::Relaxed);
            incoming.answer.send(Ok(wire::FrontBatchReply { gone: None, online: None }));
        }
    });
    let known = || producer.metrics().middles.value() == 1 && middle.metrics().fronts.value() == 1;
    wait_for("all know each other", known).await;
    Some(Harmed { redis, producer, middle, ownership, _front: front, _serving: serving, delivered })
}

/// What became of a load.
#[derive(Default)]
struct Outcome {
    answered: AtomicUsize,
    stop: AtomicBool,
}

impl Harmed {
    /// Requests all the time. Each is answered or fails with a code that may be retried, and none later than its deadline.
    fn load(&self) -> (Arc<Outcome>, Vec<JoinHandle<()>>) {
        let outcome = Arc::new(Outcome::default());
        let one = |number: u16| {
            let (producer, outcome) = (Arc::clone(&self.producer), Arc::clone(&outcome));
            tokio::spawn(async move {
                let mut shard = number;
                while !outcome.stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    match producer.request(call(Lane::ALL[usize::from(shard % 3)], shard, PATIENCE)).await {
                        Ok(_) => {
                            outcome.answered.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(failure) => {
                            assert!(failure.code.retryable(), "{failure}");
                            tokio::time::sleep(Duration::from_millis(2)).await;
                        }
                    }
                    assert!(begun.elapsed() < PATIENCE + MARGIN, "it hung for {:?}", begun.elapsed());
                    shard = shard.wrapping_add(17);
                }
            })
        };
        let tasks = (0..8).map(one).collect();
        (outcome, tasks)
    }

    /// All partitions are served, and batches reach the front.
    async fn serves_all(&self) {
        let give_up_at = Instant::now() + LONG;
        for partition in Partition::all() {
            let shard = u16::try_from(partition.number()).expect("small");
            loop {
                match self.producer.request(call(Lane::High, shard, PATIENCE)).await {
                    Ok(reply) => break assert_eq!(reply, Reply::Done),
                    Err(failure) => assert!(Instant::now() < give_up_at, "partition {shard}: {failure}"),
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        let before = self.delivered.load(Ordering::Relaxed);
        while let Err(failure) = self.deliver().await {
            assert!(Instant::now() < give_up_at, "{failure}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(self.delivered.load(Ordering::Relaxed) > before);
        wait_for("all is well", || self.producer.trouble().is_none() && self.middle.trouble().is_none()).await;
    }

    async fn deliver(&self) -> Result<wire::FrontBatchReply, Failure> {
        let batch = wire::FrontBatch { items: vec![], count: None };
        self.middle.deliver(FRONT, batch, Instant::now() + PATIENCE).await
    }
}

async fn answers_more(outcome: &Outcome, what: &str) {
    let before = outcome.answered.load(Ordering::Relaxed);
    wait_for(what, || outcome.answered.load(Ordering::Relaxed) > before + 200).await;
}

async fn end_of(outcome: &Outcome, tasks: Vec<JoinHandle<()>>) {
    outcome.stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.expect("every request ended as it should");
    }
}

async fn raw(redis: &Redis) -> MultiplexedConnection {
    let client = redis::Client::open(redis.url()).expect("a client");
    client.get_multiplexed_async_connection().await.expect("Redis is there")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_forgets_everything_under_load_and_service_goes_on_by_itself() {
    let Some(harmed) = harmed(Duration::from_secs(5)).await else { return };
    let (outcome, tasks) = harmed.load();
    answers_more(&outcome, "requests are answered before").await;
    let terms: Vec<_> = Partition::all().map(|partition| harmed.ownership.term(partition)).collect();
    let mut connection = raw(&harmed.redis).await;
    for _ in 0..3 {
        redis::cmd("FLUSHALL").exec_async(&mut connection).await.expect("all is forgotten");
        answers_more(&outcome, "requests are answered after").await;
    }
    wait_for("each partition has another term", || {
        Partition::all().zip(&terms).all(|(partition, before)| {
            harmed.ownership.hold(partition).term().is_some() && harmed.ownership.term(partition) != *before
        })
    })
    .await;
    harmed.serves_all().await;
    end_of(&outcome, tasks).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_killed_and_starts_again_and_meanwhile_requests_fail_at_once() {
    let Some(mut harmed) = harmed(Duration::from_secs(5)).await else { return };
    let (outcome, tasks) = harmed.load();
    answers_more(&outcome, "requests are answered before").await;
    harmed.redis.kill();
    wait_for("it is known", || harmed.producer.trouble().is_some() && harmed.middle.trouble().is_some()).await;
    let begun = Instant::now();
    for _ in 0..10 {
        let failure = harmed.producer.request(call(Lane::High, 1, PATIENCE)).await.expect_err("Redis is away");
        assert!(failure.code.retryable());
    }
    harmed.deliver().await.expect_err("Redis is away");
    let judge = Request::JudgeSoon(wire::JudgeSoon::default());
    let others = harmed.middle.ask_others(judge, Instant::now() + PATIENCE).await;
    assert!(matches!(others.as_slice(), [Err(_)]), "who can't be asked is not taken for nobody: {others:?}");
    assert!(begun.elapsed() < PATIENCE / 2, "all that fails at once: {:?}", begun.elapsed());
    harmed.redis.restart();
    answers_more(&outcome, "requests are answered after").await;
    harmed.serves_all().await;
    end_of(&outcome, tasks).await;
    assert!(harmed.producer.metrics().reconnects.value() >= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_stands_still_for_less_than_a_lease_and_no_partition_changes_hands() {
    let Some(harmed) = harmed(Duration::from_secs(30)).await else { return };
    let (outcome, tasks) = harmed.load();
    answers_more(&outcome, "requests are answered before").await;
    let terms: Vec<_> = Partition::all().map(|partition| harmed.ownership.hold(partition)).collect();
    harmed.redis.pause();
    let paused_at = Instant::now();
    wait_for("it is known", || harmed.producer.trouble().is_some()).await;
    tokio::time::sleep_until(paused_at + Duration::from_secs(3)).await;
    harmed.redis.resume();
    answers_more(&outcome, "requests are answered after").await;
    harmed.serves_all().await;
    end_of(&outcome, tasks).await;
    assert!(Partition::all().zip(&terms).all(|(partition, before)| harmed.ownership.hold(partition) == *before));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_stands_still_for_longer_than_a_lease_and_the_middle_stops_in_time_and_begins_anew() {
    let Some(harmed) = harmed(Duration::from_secs(1)).await else { return };
    let (outcome, tasks) = harmed.load();
    answers_more(&outcome, "requests are answered before").await;
    harmed.redis.pause();
    wait_for("the middle has nothing any more", || {
        Partition::all().all(|partition| harmed.ownership.hold(partition).term().is_none())
    })
    .await;
    harmed.redis.resume();
    answers_more(&outcome, "requests are answered after").await;
    owns_all(&[&harmed.ownership]).await;
    harmed.serves_all().await;
    end_of(&outcome, tasks).await;
}

async fn refused(options: RedisOptions) -> Failure {
    let process = ProcessId::random(&SystemEntropy);
    let begun = Instant::now();
    let connected = RedisBus::connect(options, process, Arc::new(SystemClock), Arc::new(SystemEntropy)).await;
    assert!(begun.elapsed() < LONG / 2);
    connected.err().expect("it is refused")
}

#[tokio::test]
async fn a_wrong_password_is_named_and_not_shown() {
    if servers::redis().is_none() {
        return;
    }
    let redis = Redis::start_with(&["--requirepass", "right"]).expect("Redis starts");
    let url = redis.url().replace("redis://", "redis://default:as-wrong-as-can-be@");
    let failure = refused(options(&url)).await;
    let text = failure.to_string().to_lowercase();
    assert!(text.contains("password") && !text.contains("as-wrong-as-can-be"), "{text}");
    let url = redis.url().replace("redis://", "redis://default:right@");
    assert_eq!(end(&options(&url)).await.trouble(), None);
}

#[tokio::test]
async fn a_redis_that_is_not_there_is_named_at_once() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    drop(listener);
    let failure = refused(options(&format!("redis://127.0.0.1:{port}"))).await;
    assert!(failure.to_string().contains(&port.to_string()), "{failure}");
}

#[tokio::test]
async fn the_rights_that_are_documented_are_enough() {
    if servers::redis().is_none() {
        return;
    }
    let redis = Redis::start().expect("Redis starts");
    let source = include_str!("../../src/bus/redis/options.rs");
    let rights = source.lines().find_map(|line| line.strip_prefix("/// user campanile on >PASSWORD ")).expect("rights");
    let prefix = options("").prefix;
    let mut connection = raw(&redis).await;
    let mut set = redis::cmd("ACL");
    set.arg("SETUSER").arg("campanile").arg("on").arg(">secret");
    for right in rights.split(' ') {
        set.arg(right.replace("campanile", &prefix));
    }
    set.exec_async(&mut connection).await.expect("a user");
    let url = redis.url().replace("redis://", "redis://campanile:secret@");
    let options = RedisOptions { prefix, ..options(&url) };
    let (producer, middle) = (end(&options).await, end(&options).await);
    let inbox = middle.attach_middle();
    owns_all(&[inbox.ownership()]).await;
    let (_serving, _) = serve_all(inbox);
    wait_for("the producer knows the middle", || producer.metrics().middles.value() == 1).await;
    assert_eq!(producer.request(call(Lane::High, 1, LONG)).await, Ok(Reply::Done));
    wait_for("it was looked for what waits", || middle.metrics().flushes.value() >= 2).await;
    let log: Vec<redis::Value> =
        redis::cmd("ACL").arg("LOG").query_async(&mut connection).await.expect("what was denied");
    assert_eq!(log, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_was_idle_while_redis_was_away_finds_its_connection_anew_before_it_needs_it() {
    let Some(mut harmed) = harmed(Duration::from_secs(1)).await else { return };
    harmed.redis.kill();
    harmed.redis.restart();
    // Nobody asked it for anything meanwhile.
    let is_new = || harmed.producer.metrics().reconnects.value() >= 1 && harmed.producer.trouble().is_none();
    wait_for("the connection that writes is new", is_new).await;
    harmed.serves_all().await;
}
