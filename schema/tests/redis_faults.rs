//! A Redis that is killed, wiped, paused, full, guarded: each case has a server of its own.

#![expect(clippy::unwrap_used, reason = "in a test a failure is a panic; clippy knows tests by their attribute alone")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use campanile_schema::cache::redis::{RedisCache, RedisLimits, RedisOptions, RedisState};
use campanile_schema::cache::{Cache, Claim, Forgotten, Grant, Known, Quota, Route, Want};
use campanile_schema::sorted::StoreError;
use idl::clock::SystemEntropy;
use idl::ids::{AccountId, AppId, Epoch, FrontId, Generation};
use servers::Redis;
use tokio::sync::broadcast::Receiver;
use tokio::time::{Instant, sleep, timeout};

const A: AccountId = AccountId(1);
/// More than anything takes on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server of one's own, unless Redis is not installed.
fn server(args: &[&str]) -> Option<Redis> {
    servers::redis()?;
    Some(Redis::start_with(args).unwrap())
}

fn options(server: &Redis) -> RedisOptions {
    RedisOptions { url: server.url(), ..RedisOptions::default() }
}

fn start(options: RedisOptions) -> RedisCache {
    RedisCache::start(options, Arc::new(SystemEntropy)).unwrap()
}

fn route(front: u128, epoch: u128) -> Route {
    Route { front: FrontId(front), epoch: Epoch(epoch) }
}

fn app() -> AppId {
    "com.example.demo".parse().unwrap()
}

/// Waits until a look says so.
async fn until(what: &str, mut look: impl AsyncFnMut() -> bool) {
    let seen = async {
        while !look().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, seen).await.unwrap_or_else(|_| panic!("it never came: {what}"));
}

async fn until_up(cache: &RedisCache) {
    until("a connection", async || cache.state() == RedisState::Up).await;
}

async fn until_down(cache: &RedisCache) -> String {
    until("a try that failed", async || matches!(cache.state(), RedisState::Down(_))).await;
    match cache.state() {
        RedisState::Down(reason) => reason,
        other => panic!("{other:?}"),
    }
}

/// Waits for an answer, whatever comes before it.
async fn answered(cache: &RedisCache) -> Generation {
    let mut answer = None;
    until("an answer", async || {
        answer = cache.generation().await.ok();
        answer.is_some()
    })
    .await;
    answer.unwrap()
}

async fn all(forgotten: &mut Receiver<Forgotten>) {
    while timeout(PATIENCE, forgotten.recv()).await.expect("something is heard").unwrap() != Forgotten::All {}
}

/// One of each kind of call.
async fn every_call(cache: &RedisCache) -> Vec<Result<(), StoreError>> {
    let (app, key) = (app(), vec![b"key".to_vec()]);
    let quota = Quota { per_second_max: 10, per_day_max: 10 };
    let want = Want { app: &app, quota, messages: 1, owe: false, day: 20_270_115, sent_before: Some(0) };
    vec![
        cache.claim(A, "push", route(1, 10)).await.map(drop),
        cache.route(A, "push").await.map(drop),
        cache.release(A, "push", Epoch(1)).await.map(drop),
        cache.renew_lease(FrontId(1)).await,
        cache.front_lives(FrontId(1)).await.map(drop),
        cache.fronts().await.map(drop),
        cache.connected(&[A]).await.map(drop),
        cache.take(want).await.map(drop),
        cache.refund(&app, 20_270_115, 1).await,
        cache.forget_quota(&app).await,
        cache.keep(vec![(b"other".to_vec(), Known::Absent)]).await,
        cache.forget(&key).await,
        cache.records(&key).await.map(drop),
        cache.generation().await.map(drop),
        cache.sweep_routes().await.map(drop),
        cache.wipe().await.map(drop),
    ]
}

/// A connection beside the cache's.
async fn beside(server: &Redis) -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(server.url()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

async fn command(server: &Redis, words: &[&str]) {
    let mut command = redis::cmd(words[0]);
    for word in &words[1..] {
        command.arg(*word);
    }
    command.query_async::<redis::Value>(&mut beside(server).await).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_server_is_gone_calls_fail_at_once_and_when_it_is_back_they_work() {
    let Some(mut server) = server(&[]) else { return };
    let cache = start(options(&server));
    let first = cache.generation().await.unwrap();
    cache.claim(A, "push", route(1, 10)).await.unwrap();
    server.kill();
    let reason = until_down(&cache).await;
    assert!(reason.contains(&format!("127.0.0.1:{}", server.port())), "{reason}");
    let began = Instant::now();
    for (at, outcome) in every_call(&cache).await.into_iter().enumerate() {
        assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "call {at}: {outcome:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    server.restart();
    let second = answered(&cache).await;
    assert_ne!(second, first, "a server that starts again may have lost the last writes");
    assert_eq!(cache.claim(A, "push", route(2, 20)).await.map(|claim| matches!(claim, Claim::Won { .. })), Ok(true));
    assert_eq!(cache.metrics().reconnects(), 1);
    let other = start(options(&server));
    assert_eq!(other.generation().await.unwrap(), second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_may_be_started_before_its_server() {
    let Some(mut server) = server(&[]) else { return };
    server.kill();
    let cache = start(options(&server));
    until_down(&cache).await;
    assert!(matches!(cache.renew_lease(FrontId(1)).await, Err(StoreError::Unavailable(_))));
    server.restart();
    until_up(&cache).await;
    cache.renew_lease(FrontId(1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flushing_everything_begins_a_new_generation_in_all_processes() {
    let Some(server) = server(&[]) else { return };
    let (one, other) = (start(options(&server)), start(options(&server)));
    let first = one.generation().await.unwrap();
    assert_eq!(other.generation().await.unwrap(), first);
    one.claim(A, "push", route(1, 10)).await.unwrap();
    command(&server, &["FLUSHALL"]).await;
    let flushed = Instant::now();
    until("a new generation", async || one.generation().await.unwrap() != first).await;
    let age_max = RedisLimits::default().generation_age_max;
    assert!(flushed.elapsed() < age_max + Duration::from_secs(5), "{:?}", flushed.elapsed());
    let second = one.generation().await.unwrap();
    until("the same one", async || other.generation().await.unwrap() == second).await;
    assert_eq!(one.route(A, "push").await.unwrap(), None);
    assert_eq!(one.claim(A, "push", route(1, 10)).await.unwrap(), Claim::Won { previous: None });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_server_costs_one_time_limit_and_then_calls_fail_at_once() {
    let Some(server) = server(&[]) else { return };
    let response_timeout = Duration::from_secs(1);
    let cache = start(RedisOptions { response_timeout, ..options(&server) });
    let generation = cache.generation().await.unwrap();
    let mut forgotten = cache.forgotten();
    server.pause();
    let began = Instant::now();
    assert_eq!(cache.claim(A, "push", route(1, 10)).await, Err(StoreError::TimedOut), "it may have happened");
    assert!(began.elapsed() < response_timeout + Duration::from_secs(1), "{:?}", began.elapsed());
    // Those who come while the next connection is tried wait for it, but no longer than for an answer; and all of them
    // together no longer than one.
    let began = Instant::now();
    let calls = (0..50).map(|_| cache.generation());
    for outcome in futures(calls).await {
        assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "{outcome:?}");
    }
    assert!(began.elapsed() < 2 * response_timeout + Duration::from_secs(1), "{:?}", began.elapsed());
    let reason = until_down(&cache).await;
    assert!(reason.contains("did not answer within"), "{reason}");
    let began = Instant::now();
    for outcome in every_call(&cache).await {
        assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "{outcome:?}");
    }
    assert!(began.elapsed() < response_timeout, "{:?}", began.elapsed());
    server.resume();
    let resumed = Instant::now();
    assert_eq!(answered(&cache).await, generation, "nothing was lost");
    assert!(resumed.elapsed() < Duration::from_secs(10), "{:?}", resumed.elapsed());
    assert!(cache.metrics().timeouts() >= 1);
    all(&mut forgotten).await;
}

/// The outcomes of futures that run together.
async fn futures<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut futures: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        for (future, outcome) in &mut futures {
            if outcome.is_none()
                && let std::task::Poll::Ready(ready) = future.as_mut().poll(context)
            {
                *outcome = Some(ready);
            }
        }
        if futures.iter().all(|(_, outcome)| outcome.is_some()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    futures.into_iter().filter_map(|(_, outcome)| outcome).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_paused_while_nobody_asks_is_noticed() {
    let Some(server) = server(&[]) else { return };
    let cache = start(options(&server));
    until_up(&cache).await;
    server.pause();
    until_down(&cache).await;
    server.resume();
    until_up(&cache).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_subscription_is_told_and_made_anew() {
    let Some(server) = server(&[]) else { return };
    let (one, other) = (start(options(&server)), start(options(&server)));
    let mut heard = other.forgotten();
    until("both subscriptions", async || one.metrics().forgotten_all() > 0 && other.metrics().forgotten_all() > 0)
        .await;
    while heard.try_recv().is_ok() {}
    command(&server, &["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    all(&mut heard).await;
    all(&mut heard).await;
    one.forget(&[b"key".to_vec()]).await.unwrap();
    let told = timeout(PATIENCE, heard.recv()).await.unwrap().unwrap();
    assert_eq!(told, Forgotten::Keys(vec![b"key".to_vec()]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_that_the_server_forgot_are_given_to_it_again() {
    let Some(server) = server(&[]) else { return };
    let cache = start(options(&server));
    cache.claim(A, "push", route(1, 10)).await.unwrap();
    command(&server, &["SCRIPT", "FLUSH"]).await;
    assert_eq!(cache.claim(A, "push", route(1, 10)).await.unwrap(), Claim::Won { previous: Some(route(1, 10)) });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_front_whose_lease_comes_back_between_two_looks_of_a_sweep_keeps_its_routes() {
    let Some(server) = server(&[]) else { return };
    let limits = RedisLimits { lease: Duration::from_secs(2), ..RedisLimits::default() };
    let cache = start(RedisOptions { limits, ..options(&server) });
    cache.claim(A, "push", route(1, 10)).await.unwrap();
    cache.claim(A, "desk", route(2, 10)).await.unwrap();
    let before = cache.metrics().commands();
    let renewed = async {
        // The first look asks for keys, what they hold and who lives; what comes behind that comes too late for it.
        until("the first look", async || cache.metrics().commands() >= before + 3).await;
        cache.renew_lease(FrontId(1)).await.unwrap();
        // Again in time for the second look.
        until("the second look", async || {
            cache.renew_lease(FrontId(1)).await.unwrap();
            cache.route(A, "desk").await.unwrap().is_none()
        })
        .await;
    };
    let (swept, ()) = tokio::join!(cache.sweep_routes(), renewed);
    assert_eq!(swept.unwrap(), 1, "front 2 never had a lease");
    assert_eq!(cache.route(A, "push").await.unwrap(), Some(route(1, 10)));
}

/// The rule as the options document it.
fn documented_rule() -> String {
    let source = include_str!("../src/cache/redis/options.rs");
    let rule = source.lines().find_map(|line| line.strip_prefix("/// user campanile ")).unwrap();
    rule.replace("PASSWORD", "pass:word@/")
}

fn as_user(server: &Redis, password: &str) -> RedisOptions {
    let url = format!("redis://campanile:{password}@127.0.0.1:{}", server.port());
    RedisOptions { url, ..RedisOptions::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_the_documented_rights_and_no_others_is_enough() {
    let Some(server) = server(&[]) else { return };
    let rule = documented_rule();
    let words: Vec<_> = ["ACL", "SETUSER", "campanile"].into_iter().chain(rule.split_whitespace()).collect();
    command(&server, &words).await;
    let limits = RedisLimits { lease: Duration::from_millis(100), resources_max: 1, ..RedisLimits::default() };
    let encoded = as_user(&server, "pass%3Aword%40%2F");
    let cache = start(RedisOptions { limits, ..encoded.clone() });
    let mut forgotten = cache.forgotten();
    for (at, outcome) in every_call(&cache).await.into_iter().enumerate() {
        assert_eq!(outcome, Ok(()), "call {at}");
    }
    // With a route to sweep, a full account, and leases that ended.
    cache.claim(A, "push", route(1, 10)).await.unwrap();
    assert_eq!(cache.claim(A, "desk", route(1, 11)).await.unwrap(), Claim::Won { previous: None });
    assert_eq!(cache.sweep_routes().await.unwrap(), 1);
    all(&mut forgotten).await;
    let elsewhere = start(RedisOptions { prefix: "elsewhere".to_owned(), ..encoded });
    let refused = elsewhere.claim(A, "push", route(1, 10)).await.unwrap_err().to_string();
    assert!(refused.contains("NOPERM") || refused.contains("permission"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_named_and_not_quoted() {
    let Some(server) = server(&[]) else { return };
    command(&server, &["ACL", "SETUSER", "campanile", "on", ">right", "allkeys", "allcommands"]).await;
    let options = as_user(&server, "wrongsecret");
    assert!(!format!("{options:?}").contains("wrongsecret"));
    let cache = start(options);
    let reason = until_down(&cache).await;
    assert!(reason.contains("WRONGPASS") || reason.contains("password"), "{reason}");
    let error = cache.renew_lease(FrontId(1)).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)));
    for text in [reason, error.to_string(), format!("{error:?}")] {
        assert!(text.contains("127.0.0.1") && !text.contains("secret"), "{text}");
    }
    // The password is set right, or the user is made: nobody need start anything again.
    command(&server, &["ACL", "SETUSER", "campanile", "on", ">wrongsecret", "allchannels"]).await;
    until_up(&cache).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_refuses_claims_and_keeps_its_routes() {
    let Some(server) = server(&["--maxmemory", "100mb", "--maxmemory-policy", "volatile-lru"]) else { return };
    let cache = start(options(&server));
    cache.claim(A, "push", route(1, 10)).await.unwrap();
    cache.renew_lease(FrontId(1)).await.unwrap();
    cache.keep(vec![(b"key".to_vec(), Known::Absent)]).await.unwrap();
    command(&server, &["CONFIG", "SET", "maxmemory", "1"]).await;
    let refused = cache.claim(AccountId(2), "push", route(1, 11)).await.unwrap_err();
    assert!(matches!(&refused, StoreError::Unavailable(text) if text.contains("memory")), "{refused}");
    assert_eq!(cache.route(A, "push").await.unwrap(), Some(route(1, 10)));
    assert_eq!(cache.connected(&[A]).await.unwrap(), [true]);
    assert_eq!(cache.records(&[b"key".to_vec()]).await.unwrap(), [None], "records make room");
    assert!(cache.release(A, "push", Epoch(10)).await.unwrap(), "what makes room works");
    command(&server, &["CONFIG", "SET", "maxmemory", "100mb"]).await;
    cache.claim(AccountId(2), "push", route(1, 11)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_the_authority_that_is_named_is_trusted_and_no_other() {
    if servers::redis().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let [ca, other_ca] = ["ca.pem", "other.pem"].map(path);
    let (certificate, key) = (path("server.pem"), path("server.key"));
    let authority = write_authority(Path::new(&ca));
    write_authority(Path::new(&other_ca));
    let pair = rcgen::KeyPair::generate().unwrap();
    let issued = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&pair, &authority).unwrap();
    std::fs::write(&certificate, issued.pem()).unwrap();
    std::fs::write(&key, pair.serialize_pem()).unwrap();
    let args = ["--tls-cert-file", &certificate, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
    let server = Redis::start_with(&args).unwrap();
    assert!(server.url().starts_with("rediss://"));
    let cache = start(RedisOptions { ca_file: Some(ca.into()), ..options(&server) });
    cache.claim(A, "push", route(1, 10)).await.unwrap();
    for outcome in every_call(&cache).await {
        assert_eq!(outcome, Ok(()));
    }
    let deceived = start(RedisOptions { ca_file: Some(other_ca.into()), ..options(&server) });
    let reason = until_down(&deceived).await;
    assert!(reason.contains("certificate"), "{reason}");
}

fn write_authority(file: &Path) -> rcgen::Issuer<'static, rcgen::KeyPair> {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    std::fs::write(file, params.self_signed(&key).unwrap().pem()).unwrap();
    rcgen::Issuer::new(params, key)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_call_keeps_to_keys_that_a_cluster_keeps_together() {
    // One server that serves all slots refuses what touches two of them, as a cluster of many does.
    let Some(server) = server(&["--cluster-enabled", "yes"]) else { return };
    command(&server, &["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).await;
    let cache = start(options(&server));
    until("a cluster that works", async || cache.claim(A, "push", route(1, 10)).await.is_ok()).await;
    let keys: Vec<_> = (0..100_u8).map(|key| vec![key]).collect();
    cache.keep(keys.iter().map(|key| (key.clone(), Known::Present(key.clone()))).collect()).await.unwrap();
    let known = cache.records(&keys).await.unwrap();
    assert!(known.iter().zip(&keys).all(|(known, key)| *known == Some(Known::Present(key.clone()))));
    for (at, outcome) in every_call(&cache).await.into_iter().enumerate() {
        assert_eq!(outcome, Ok(()), "call {at}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_taken_outlives_the_process_that_took_it() {
    let Some(server) = server(&[]) else { return };
    let (app, quota) = (app(), Quota { per_second_max: 0, per_day_max: 10 });
    let want = Want { app: &app, quota, messages: 10, owe: false, day: 20_270_115, sent_before: Some(0) };
    {
        let cache = start(options(&server));
        assert!(matches!(cache.take(want).await.unwrap(), Grant::Taken(_)));
    }
    let cache = start(options(&server));
    assert!(matches!(cache.take(want).await.unwrap(), Grant::DailyQuota(_)));
}
