//! Several middles on one Redis: who has what, and what becomes of it when one comes, goes or dies.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use campanile_idl::bus::redis::{RedisBus, RedisOptions};
use campanile_idl::bus::{Bus, Hold, Incoming, Lane, MiddleInbox, Ownership, Reply, Request};
use campanile_idl::contract::bus as wire;
use campanile_idl::error::Failure;
use campanile_idl::ids::Partition;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::harness::{LONG, Log, call, end, options, owns_all, seen, serve, serve_all, wait_for};

/// Leases short enough for a test, long enough for a busy machine.
fn sharing() -> Option<RedisOptions> {
    Some(RedisOptions { middle_lease: Duration::from_secs(3), ..options(&servers::redis()?.url()) })
}

/// A process with a middle.
async fn middle(options: &RedisOptions) -> (Arc<RedisBus>, MiddleInbox, Ownership) {
    let bus = end(options).await;
    let inbox = bus.attach_middle();
    let ownership = inbox.ownership().clone();
    (bus, inbox, ownership)
}

fn count(ownership: &Ownership) -> usize {
    Partition::all().filter(|partition| matches!(ownership.hold(*partition), Hold::Owned(_))).count()
}

fn shard_of(partition: Partition) -> u16 {
    u16::try_from(partition.number()).expect("small")
}

type Load = Vec<JoinHandle<(usize, Vec<Failure>)>>;

/// Requests of all partitions, some at a time, until it is told to stop; how many were answered, and what failed.
fn load(producer: &Arc<RedisBus>, stop: &Arc<AtomicBool>) -> Load {
    let one = |number: u16| {
        let (producer, stop) = (Arc::clone(producer), Arc::clone(stop));
        tokio::spawn(async move {
            let (mut answered, mut failures) = (0, Vec::new());
            let mut shard = number;
            while !stop.load(Ordering::Relaxed) {
                match producer.request(call(Lane::ALL[usize::from(shard % 3)], shard, LONG)).await {
                    Ok(_) => answered += 1,
                    Err(failure) => failures.push(failure),
                }
                shard = shard.wrapping_add(17);
            }
            (answered, failures)
        })
    };
    (0..16).map(one).collect()
}

/// Stops it. All requests were answered: how many.
async fn end_of(load: Load, stop: &AtomicBool) -> usize {
    stop.store(true, Ordering::Relaxed);
    let mut all = 0;
    for task in load {
        let (answered, failures) = task.await.expect("runs");
        assert_eq!(failures, [], "after {answered} requests");
        all += answered;
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_middles_share_all_partitions_and_each_request_is_served_once() {
    let Some(options) = sharing() else { return };
    let producer = end(&options).await;
    let (one_bus, one, one_has) = middle(&options).await;
    owns_all(&[&one_has]).await;
    let (_one, one_log) = serve_all(one);
    let stop = Arc::new(AtomicBool::new(false));
    wait_for("the producer knows the middle", || producer.metrics().middles.value() == 1).await;
    let load = load(&producer, &stop);
    let (two_bus, two, two_has) = middle(&options).await;
    let (_two, two_log) = serve_all(two);
    wait_for("the second gets its share", || count(&two_has) > 16 && count(&one_has) + count(&two_has) == 64).await;
    owns_all(&[&one_has, &two_has]).await;
    wait_for("the second serves", || seen(&two_log).len() > 100).await;
    let answered = end_of(load, &stop).await;
    let ids: BTreeSet<_> = seen(&one_log).iter().chain(&seen(&two_log)).map(|seen| seen.id).collect();
    assert_eq!(ids.len(), answered);
    assert_eq!(seen(&one_log).len() + seen(&two_log).len(), answered, "given away in order, nothing is served twice");
    wait_for("each knows the terms of the other", || {
        Partition::all()
            .all(|partition| one_has.term(partition).is_some() && one_has.term(partition) == two_has.term(partition))
    })
    .await;
    assert_eq!(one_bus.metrics().partitions_lost.value() + two_bus.metrics().partitions_lost.value(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_middle_that_detaches_gives_all_away_at_once_and_no_request_is_lost() {
    let Some(options) = sharing() else { return };
    let options = RedisOptions { middle_lease: Duration::from_secs(20), ..options };
    let producer = end(&options).await;
    let (_one_bus, one, one_has) = middle(&options).await;
    let (two_bus, two, two_has) = middle(&options).await;
    let ((_one, one_log), (_two, two_log)) = (serve_all(one), serve_all(two));
    wait_for("both have some", || count(&one_has) > 8 && count(&two_has) > 8).await;
    owns_all(&[&one_has, &two_has]).await;
    wait_for("the producer knows both", || producer.metrics().middles.value() == 2).await;
    let stop = Arc::new(AtomicBool::new(false));
    let load = load(&producer, &stop);
    wait_for("both serve", || seen(&one_log).len() > 100 && seen(&two_log).len() > 100).await;
    let begun = Instant::now();
    two_bus.detach().await;
    owns_all(&[&one_has]).await;
    assert!(!one_has.clone().changed().await.orphaned, "all was given away in peace");
    assert!(begun.elapsed() < options.middle_lease / 2, "nobody waited for a lease to end: {:?}", begun.elapsed());
    let served = seen(&one_log).len();
    wait_for("the first serves on", || seen(&one_log).len() > served + 100).await;
    let answered = end_of(load, &stop).await;
    assert_eq!(seen(&one_log).len() + seen(&two_log).len(), answered, "nothing was served twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_middle_had_is_the_others_within_its_lease_and_keeps_its_ids() {
    let Some(options) = sharing() else { return };
    let producer = end(&options).await;
    let (_one_bus, one, one_has) = middle(&options).await;
    let (two_bus, mut two, two_has) = middle(&options).await;
    let (_one, one_log) = serve_all(one);
    wait_for("both have some", || count(&one_has) > 8 && count(&two_has) > 8).await;
    owns_all(&[&one_has, &two_has]).await;
    let shards: Vec<_> = Partition::all().filter(|partition| two_has.hold(*partition).term().is_some()).collect();
    let mut waiting = Vec::new();
    for partition in &shards {
        for lane in Lane::ALL {
            let (producer, shard) = (Arc::clone(&producer), shard_of(*partition));
            waiting.push(tokio::spawn(async move { producer.request(call(lane, shard, LONG)).await }));
        }
    }
    let mut held: Vec<Incoming> = Vec::new();
    while held.len() < waiting.len() {
        held.push(two.next().await.expect("a request"));
    }
    let ids: BTreeSet<_> = held.iter().map(|incoming| incoming.id.0).collect();
    let killed_at = Instant::now();
    drop(two_bus);
    owns_all(&[&one_has]).await;
    let taken = killed_at.elapsed();
    assert!(one_has.clone().changed().await.orphaned, "the other gave nothing away");
    for waiting in waiting {
        assert_eq!(waiting.await.expect("runs"), Ok(Reply::Done));
    }
    let again: BTreeSet<_> = seen(&one_log).iter().map(|seen| seen.id).collect();
    assert_eq!(again, ids, "each came again, under the same id");
    assert!(taken < options.middle_lease * 2, "it took {taken:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_middle_asks_every_other_one_and_no_more() {
    let Some(options) = sharing() else { return };
    let (bus, one, _) = middle(&options).await;
    let (two_bus, two, _) = middle(&options).await;
    let (three_bus, three, _) = middle(&options).await;
    let answer = |name: &'static str| {
        move |_: &Incoming| Some(Ok(Reply::Settled(wire::SettledBefore { id: name.as_bytes().to_vec() })))
    };
    let (_one, one_log) = serve(one, answer("one"));
    let ((_two, two_log), (_three, three_log)) = (serve(two, answer("two")), serve(three, answer("three")));
    let all = [&bus, &two_bus, &three_bus];
    wait_for("all know all", || all.iter().all(|bus| bus.metrics().middles.value() == 3)).await;
    let asked = Request::AskSettled(wire::AskSettled {});
    let answers = bus.ask_others(asked.clone(), Instant::now() + LONG).await;
    let names = answers.into_iter().map(|answer| match answer {
        Ok(Reply::Settled(settled)) => String::from_utf8(settled.id).expect("a name"),
        other => panic!("{other:?}"),
    });
    assert_eq!(names.collect::<BTreeSet<_>>(), ["two", "three"].map(String::from).into());
    assert_eq!(seen(&one_log), []);
    for log in [two_log, three_log] {
        let log = seen(&log);
        assert_eq!(log.len(), 1);
        assert_eq!((log[0].partition, &log[0].request), (None, &asked));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_no_middle_survives_ends_with_the_dead_letters() {
    let Some(options) = sharing() else { return };
    let options = RedisOptions { middle_lease: Duration::from_secs(1), tries_max: 2, ..options };
    let producer = end(&options).await;
    let mut waiting = None;
    for _ in 0..2 {
        let (bus, mut inbox, has) = middle(&options).await;
        owns_all(&[&has]).await;
        wait_for("the producer knows a middle", || producer.metrics().middles.value() > 0).await;
        waiting.get_or_insert_with(|| {
            let producer = Arc::clone(&producer);
            tokio::spawn(async move { producer.request(call(Lane::High, 9, LONG * 4)).await })
        });
        let incoming = inbox.next().await.expect("the request");
        drop(bus);
        drop(incoming);
    }
    let (bus, inbox, _) = middle(&options).await;
    let (_serving, log) = serve_all(inbox);
    wait_for("it is buried", || bus.metrics().dead_letters.value() == 1).await;
    assert_eq!(producer.request(call(Lane::High, 9, LONG)).await, Ok(Reply::Done), "the next one is served");
    assert_eq!(seen(&log).len(), 1);
    let client = redis::Client::open(options.url.as_str()).expect("a client");
    let mut connection = client.get_multiplexed_async_connection().await.expect("Redis is there");
    let dead = format!("{}:{{p09}}:dead", options.prefix);
    let kept: usize = redis::cmd("XLEN").arg(dead).query_async(&mut connection).await.expect("a length");
    assert_eq!(kept, 1);
    waiting.expect("it was sent").abort();
}

/// A middle whose process can be made to stand still, as by SIGSTOP: a runtime of its own, with one thread.
struct Frozen {
    freeze: std::sync::mpsc::Sender<Duration>,
    ownership: Ownership,
    log: Log,
}

impl Frozen {
    async fn start(options: RedisOptions) -> Self {
        let (started, has_started) = tokio::sync::oneshot::channel();
        let (freeze, frozen) = std::sync::mpsc::channel::<Duration>();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let (bus, inbox, ownership) = middle(&options).await;
                let (_serving, log) = serve_all(inbox);
                let _ = started.send((ownership, log));
                loop {
                    match frozen.try_recv() {
                        Ok(time) => std::thread::sleep(time),
                        Err(std::sync::mpsc::TryRecvError::Empty) => tokio::time::sleep(Duration::from_millis(1)).await,
                        Err(std::sync::mpsc::TryRecvError::Disconnected) => break,
                    }
                }
                drop(bus);
            });
        });
        let (ownership, log) = has_started.await.expect("it starts");
        Self { freeze, ownership, log }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_middle_that_stood_still_finds_that_it_has_lost_and_touches_nothing_of_it() {
    let Some(options) = sharing() else { return };
    let producer = end(&options).await;
    let frozen = Frozen::start(options.clone()).await;
    let (_bus, inbox, has) = middle(&options).await;
    let (_serving, log) = serve_all(inbox);
    wait_for("both have some", || count(&frozen.ownership) > 8 && count(&has) > 8).await;
    owns_all(&[&frozen.ownership, &has]).await;
    let its: Vec<_> = Partition::all().filter(|partition| frozen.ownership.hold(*partition).term().is_some()).collect();
    let terms: Vec<_> = its.iter().map(|partition| frozen.ownership.hold(*partition)).collect();
    frozen.freeze.send(options.middle_lease * 3).expect("it runs");
    // It can't say that it lost, but the other has all.
    owns_all(&[&has]).await;
    let mut waiting = Vec::new();
    for partition in &its {
        let (producer, shard) = (Arc::clone(&producer), shard_of(*partition));
        waiting.push(tokio::spawn(async move { producer.request(call(Lane::High, shard, LONG)).await }));
    }
    for waiting in waiting {
        assert_eq!(waiting.await.expect("runs"), Ok(Reply::Done));
    }
    assert_eq!(seen(&log).len(), its.len());
    assert_eq!(seen(&frozen.log), []);
    wait_for("what comes back is of another term", || {
        let shared = count(&frozen.ownership) > 8 && count(&frozen.ownership) + count(&has) == Partition::COUNT;
        shared && its.iter().zip(&terms).all(|(partition, before)| frozen.ownership.hold(*partition) != *before)
    })
    .await;
}
