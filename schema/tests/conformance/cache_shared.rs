//! What several processes see of one cache in Redis.

use std::sync::Arc;
use std::time::Duration;

use idl::clock::SystemEntropy;
use idl::ids::{AccountId, Epoch, FrontId};
use schema::cache::redis::{RedisCache, RedisLimits, RedisOptions, RedisState};
use schema::cache::{Cache, Claim, Forgotten, Grant, Known, Quota, Route, Want};
use schema::sorted::StoreError;
use tokio::sync::broadcast::Receiver;
use tokio::time::{Instant, sleep, timeout};

use crate::world::{RedisProcesses, START_MS, app};

cases! { $ cache_shared:
    routes_leases_and_quotas_are_the_same_in_all_processes,
    what_one_process_kept_the_other_knows,
    what_was_kept_first_stays,
    a_slow_reader_puts_nothing_back_that_was_forgotten,
    what_is_known_and_what_was_forgotten_are_kept_for_a_bounded_time,
    a_record_that_is_too_large_is_not_kept,
    what_one_process_forgets_the_others_hear,
    many_keys_that_are_forgotten_are_all_heard,
    the_others_hear_of_a_wipe,
    a_generation_is_the_same_in_all_processes_and_its_end_is_noticed,
    wiping_leaves_alone_what_others_keep_under_the_same_prefix,
    an_account_has_so_many_routes_and_those_of_fronts_that_are_gone_make_room,
    a_sweep_removes_the_routes_of_fronts_that_are_gone_and_no_others,
    one_process_of_all_sweeps_by_itself,
    leases_and_quotas_follow_the_servers_clock,
    what_cannot_be_read_is_an_error_and_no_panic,
    options_that_cannot_be_used_are_refused_without_quoting_a_password,
}

const A: AccountId = AccountId(1);

fn route(front: u128, epoch: u128) -> Route {
    Route { front: FrontId(front), epoch: Epoch(epoch) }
}

fn start(options: RedisOptions) -> RedisCache {
    RedisCache::start(options, Arc::new(SystemEntropy)).unwrap()
}

async fn records(cache: &RedisCache, key: &[u8]) -> Option<Known> {
    cache.records(&[key.to_vec()]).await.unwrap().remove(0)
}

async fn keep(cache: &RedisCache, key: &[u8], known: Known) {
    cache.keep(vec![(key.to_vec(), known)]).await.unwrap();
}

fn present(text: &str) -> Known {
    Known::Present(text.as_bytes().to_vec())
}

/// Waits until nothing is known of a record.
async fn gone(cache: &RedisCache, key: &[u8]) {
    let gone = async {
        while records(cache, key).await.is_some() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(30), gone).await.expect("it is known for a bounded time");
}

/// A receiver that has heard that the subscription began.
async fn listening(cache: &RedisCache) -> Receiver<Forgotten> {
    let mut forgotten = cache.forgotten();
    // The cache may have subscribed already: then it is heard by what another process says.
    let heard = async {
        while cache.metrics().forgotten_all() == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(30), heard).await.expect("the subscription begins");
    while forgotten.try_recv().is_ok() {}
    forgotten
}

async fn hear(forgotten: &mut Receiver<Forgotten>) -> Forgotten {
    timeout(Duration::from_secs(30), forgotten.recv()).await.expect("something is heard").unwrap()
}

async fn command(options: &RedisOptions, command: &redis::Cmd) {
    let client = redis::Client::open(&*options.url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    command.query_async::<redis::Value>(&mut connection).await.unwrap();
}

pub(crate) async fn routes_leases_and_quotas_are_the_same_in_all_processes(world: RedisProcesses) {
    let RedisProcesses { one, other, .. } = world;
    one.claim(A, "push", route(1, 10)).await.unwrap();
    assert_eq!(other.claim(A, "push", route(2, 20)).await.unwrap(), Claim::Won { previous: Some(route(1, 10)) });
    assert_eq!(one.claim(A, "push", route(1, 15)).await.unwrap(), Claim::Lost { current: route(2, 20) });
    one.renew_lease(FrontId(1)).await.unwrap();
    other.renew_lease(FrontId(2)).await.unwrap();
    assert_eq!(one.fronts().await.unwrap(), [FrontId(1), FrontId(2)]);
    let (app, quota) = (app("demo"), Quota { per_second_max: 5, per_day_max: 0 });
    let want = Want { app: &app, quota, messages: 5, owe: false, day: 1, sent_before: None };
    assert!(matches!(one.take(want).await.unwrap(), Grant::Taken(_)));
    assert!(matches!(other.take(want).await.unwrap(), Grant::RateLimited(_)));
    assert_eq!(one.state(), RedisState::Up);
}

pub(crate) async fn what_one_process_kept_the_other_knows(world: RedisProcesses) {
    let RedisProcesses { one, other, .. } = world;
    keep(&one, b"a", present("record")).await;
    keep(&one, b"b", Known::Absent).await;
    keep(&one, b"", present("")).await;
    let keys = [&b"b"[..], b"none", b"a", b"", b"a"].map(<[u8]>::to_vec);
    let known = [Some(Known::Absent), None, Some(present("record")), Some(present("")), Some(present("record"))];
    assert_eq!(other.records(&keys).await.unwrap(), known);
    let metrics = other.metrics();
    assert_eq!((metrics.hits(), metrics.negative_hits(), metrics.misses(), metrics.tombstones()), (3, 1, 1, 0));
}

pub(crate) async fn what_was_kept_first_stays(world: RedisProcesses) {
    let RedisProcesses { one, other, .. } = world;
    keep(&one, b"a", present("first")).await;
    keep(&other, b"a", present("second")).await;
    assert_eq!(records(&one, b"a").await, Some(present("first")));
    assert_eq!((one.metrics().keeps_refused(), other.metrics().keeps_refused()), (0, 1));
}

pub(crate) async fn a_slow_reader_puts_nothing_back_that_was_forgotten(world: RedisProcesses) {
    let RedisProcesses { one, other, .. } = world;
    keep(&one, b"a", present("old")).await;
    other.forget(&[b"a".to_vec(), b"b".to_vec()]).await.unwrap();
    keep(&one, b"a", present("old")).await;
    keep(&one, b"b", Known::Absent).await;
    assert_eq!(one.records(&[b"a".to_vec(), b"b".to_vec()]).await.unwrap(), [None, None]);
    assert_eq!((one.metrics().keeps_refused(), one.metrics().tombstones()), (2, 2));
}

pub(crate) async fn what_is_known_and_what_was_forgotten_are_kept_for_a_bounded_time(world: RedisProcesses) {
    let brief = Duration::from_millis(200);
    let limits = RedisLimits { record_ttl: brief, absent_ttl: brief, tombstone_ttl: brief, ..world.options.limits };
    let cache = start(RedisOptions { limits, ..world.options });
    keep(&cache, b"a", present("record")).await;
    gone(&cache, b"a").await;
    keep(&cache, b"b", Known::Absent).await;
    gone(&cache, b"b").await;
    cache.forget(&[b"c".to_vec()]).await.unwrap();
    let kept = async {
        while records(&cache, b"c").await.is_none() {
            keep(&cache, b"c", present("new")).await;
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(30), kept).await.expect("a tombstone goes");
}

pub(crate) async fn a_record_that_is_too_large_is_not_kept(world: RedisProcesses) {
    let most = world.options.limits.record_bytes_max;
    keep(&world.one, b"most", Known::Present(vec![1; most])).await;
    keep(&world.one, b"more", Known::Present(vec![1; most + 1])).await;
    assert_eq!(records(&world.one, b"most").await, Some(Known::Present(vec![1; most])));
    assert_eq!(records(&world.one, b"more").await, None);
}

pub(crate) async fn what_one_process_forgets_the_others_hear(world: RedisProcesses) {
    let RedisProcesses { one, other, .. } = world;
    let (mut at_one, mut at_other) = (listening(&one).await, listening(&other).await);
    let (first, second) = (vec![b"a".to_vec(), vec![0, 255]], vec![b"b".to_vec()]);
    one.forget(&first).await.unwrap();
    assert_eq!(hear(&mut at_other).await, Forgotten::Keys(first));
    other.forget(&second).await.unwrap();
    assert_eq!(hear(&mut at_one).await, Forgotten::Keys(second), "and not what it forgot itself");
    assert_eq!((one.metrics().forgotten(), other.metrics().forgotten()), (1, 1));
}

pub(crate) async fn many_keys_that_are_forgotten_are_all_heard(world: RedisProcesses) {
    let mut heard = listening(&world.other).await;
    let keys: Vec<_> = (0..2500_u32).map(|key| key.to_be_bytes().to_vec()).collect();
    world.one.forget(&keys).await.unwrap();
    let mut told = Vec::new();
    while told.len() < keys.len() {
        match hear(&mut heard).await {
            Forgotten::Keys(keys) => told.extend(keys),
            Forgotten::All => panic!("the subscription was lost"),
        }
    }
    assert_eq!(told, keys);
    keep(&world.one, &keys[2499], Known::Absent).await;
    assert_eq!(records(&world.one, &keys[2499]).await, None);
}

pub(crate) async fn the_others_hear_of_a_wipe(world: RedisProcesses) {
    let mut heard = listening(&world.other).await;
    keep(&world.one, b"a", present("record")).await;
    world.one.wipe().await.unwrap();
    assert_eq!(hear(&mut heard).await, Forgotten::All);
    assert_eq!(records(&world.other, b"a").await, None);
}

pub(crate) async fn a_generation_is_the_same_in_all_processes_and_its_end_is_noticed(world: RedisProcesses) {
    let RedisProcesses { one, other, options, .. } = world;
    let first = one.generation().await.unwrap();
    assert_eq!(other.generation().await.unwrap(), first);
    let second = one.wipe().await.unwrap();
    assert_ne!(second, first);
    let wiped = Instant::now();
    while other.generation().await.unwrap() != second {
        assert!(wiped.elapsed() < Duration::from_secs(30));
        sleep(Duration::from_millis(10)).await;
    }
    assert!(wiped.elapsed() < options.limits.generation_age_max + Duration::from_secs(5));
    let commands = one.metrics().commands();
    let asked = (0..100).map(|_| one.generation());
    for answer in asked {
        assert_eq!(answer.await.unwrap(), second);
    }
    assert!(one.metrics().commands() - commands < 50, "a process asks now and then");
}

pub(crate) async fn wiping_leaves_alone_what_others_keep_under_the_same_prefix(world: RedisProcesses) {
    let stream = format!("{}:{{s01}}:requests", world.options.prefix);
    command(&world.options, redis::cmd("SET").arg(&stream).arg("1")).await;
    world.one.claim(A, "push", route(1, 1)).await.unwrap();
    world.one.wipe().await.unwrap();
    assert_eq!(world.one.route(A, "push").await.unwrap(), None);
    // It fails if there is no such key.
    command(&world.options, redis::cmd("RENAME").arg(&stream).arg(&stream)).await;
}

pub(crate) async fn an_account_has_so_many_routes_and_those_of_fronts_that_are_gone_make_room(world: RedisProcesses) {
    let cache = &world.one;
    cache.renew_lease(FrontId(1)).await.unwrap();
    for resource in ["a", "b", "c"] {
        cache.claim(A, resource, route(1, 10)).await.unwrap();
    }
    cache.claim(A, "d", route(2, 10)).await.unwrap();
    assert_eq!(cache.claim(A, "e", route(1, 10)).await.unwrap(), Claim::Won { previous: None }, "front 2 has no lease");
    assert_eq!(cache.route(A, "d").await.unwrap(), None);
    assert!(matches!(cache.claim(A, "f", route(1, 10)).await, Err(StoreError::Unavailable(_))));
    assert_eq!(cache.claim(A, "a", route(1, 11)).await.unwrap(), Claim::Won { previous: Some(route(1, 10)) });
    assert_eq!(cache.route(A, "b").await.unwrap(), Some(route(1, 10)));
}

pub(crate) async fn a_sweep_removes_the_routes_of_fronts_that_are_gone_and_no_others(world: RedisProcesses) {
    let cache = &world.one;
    cache.renew_lease(FrontId(1)).await.unwrap();
    cache.renew_lease(FrontId(2)).await.unwrap();
    for account in 0..1200 {
        cache.claim(AccountId(account), "push", route(1 + account % 3, 10)).await.unwrap();
        cache.claim(AccountId(account), "desk", route(1, 10)).await.unwrap();
    }
    assert_eq!(cache.sweep_routes().await.unwrap(), 400, "front 3 never had a lease");
    assert_eq!(cache.route(AccountId(2), "push").await.unwrap(), None);
    assert_eq!(cache.route(AccountId(2), "desk").await.unwrap(), Some(route(1, 10)));
    assert_eq!(cache.sweep_routes().await.unwrap(), 0);
    assert_eq!(cache.metrics().routes_swept(), 400);
    world.clock.set(START_MS + 300);
    assert_eq!(cache.sweep_routes().await.unwrap(), 2000, "both leases ended");
}

pub(crate) async fn one_process_of_all_sweeps_by_itself(world: RedisProcesses) {
    let limits = RedisLimits { sweep_every: Duration::from_millis(200), ..world.options.limits };
    let options = RedisOptions { limits, ..world.options };
    let (one, other) = (start(options.clone()), start(options));
    one.claim(A, "push", route(1, 10)).await.unwrap();
    let swept = async {
        while one.metrics().routes_swept() + other.metrics().routes_swept() == 0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(30), swept).await.expect("a sweep comes");
    assert_eq!(one.route(A, "push").await.unwrap(), None);
}

pub(crate) async fn leases_and_quotas_follow_the_servers_clock(world: RedisProcesses) {
    let cache = start(RedisOptions { clock: None, ..world.options });
    cache.renew_lease(FrontId(1)).await.unwrap();
    let (app, quota) = (app("demo"), Quota { per_second_max: 100, per_day_max: 0 });
    let all = Want { app: &app, quota, messages: 100, owe: false, day: 1, sent_before: None };
    assert!(matches!(cache.take(all).await.unwrap(), Grant::Taken(_)));
    let passed = async {
        while !matches!(cache.take(all).await.unwrap(), Grant::Taken(_)) {
            sleep(Duration::from_millis(20)).await;
        }
        while cache.front_lives(FrontId(1)).await.unwrap() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(30), passed).await.expect("its time passes");
    assert_eq!(cache.fronts().await.unwrap(), []);
}

pub(crate) async fn what_cannot_be_read_is_an_error_and_no_panic(world: RedisProcesses) {
    let (cache, options) = (&world.one, &world.options);
    cache.claim(A, "push", route(1, 10)).await.unwrap();
    let key = {
        let client = redis::Client::open(&*options.url).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let pattern = format!("{}:*route*", options.prefix);
        let keys: Vec<String> = redis::cmd("KEYS").arg(pattern).query_async(&mut connection).await.unwrap();
        keys[0].clone()
    };
    command(options, redis::cmd("HSET").arg(&key).arg("push").arg("nonsense")).await;
    assert!(matches!(cache.route(A, "push").await, Err(StoreError::Corrupt(_))));
    assert!(matches!(cache.connected(&[A]).await, Err(StoreError::Corrupt(_))));
    assert!(matches!(cache.claim(A, "push", route(1, 11)).await, Err(StoreError::Corrupt(_))));
    assert_eq!(cache.route(A, "push").await.unwrap(), Some(route(1, 11)), "a claim replaces it");
    command(options, redis::cmd("DEL").arg(&key)).await;
    command(options, redis::cmd("SET").arg(&key).arg("another kind")).await;
    assert!(matches!(cache.route(A, "push").await, Err(StoreError::Unavailable(_))));
    assert_eq!(cache.generation().await.unwrap(), world.other.generation().await.unwrap(), "the rest goes on");
}

pub(crate) async fn options_that_cannot_be_used_are_refused_without_quoting_a_password(world: RedisProcesses) {
    let with = |change: fn(&mut RedisOptions)| {
        let mut options = world.options.clone();
        change(&mut options);
        match RedisCache::start(options, Arc::new(SystemEntropy)) {
            Ok(_) => panic!("it was started"),
            Err(error) => error.to_string(),
        }
    };
    let text = with(|options| "two words".clone_into(&mut options.prefix));
    assert!(text.contains("two words") && text.contains("1 to 64 characters"), "{text}");
    let text = with(|options| "redis://anna:secret@host:port".clone_into(&mut options.url));
    assert!(text.contains("redis://user:password@host:port") && !text.contains("secret"), "{text}");
    let text = with(|options| "mysql://anna:secret@host".clone_into(&mut options.url));
    assert!(!text.contains("secret"), "{text}");
    let text = with(|options| options.ca_file = Some("/no/such/file".into()));
    assert!(text.contains("/no/such/file"), "{text}");
    let text = with(|options| options.key_file = Some("/no/such/file".into()));
    assert!(text.contains("go together"), "{text}");
}
