//! The job, on stores in memory, with receivers that the test plays and time that moves when nobody has anything to do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use idl::bus::{InProcess, Limits};
use idl::clock::{Clock, SystemEntropy};
use idl::token::KeyRing;
use prometheus_client::registry::Registry;
use ring::hmac;
use schema::batch::Batch;
use schema::cache::in_process::{CacheLimits, InProcessCache};
use schema::catalog::App;
use schema::catalog::sqlite::SqliteCatalog;
use schema::receipts::Receipt;
use schema::sorted::memory::MemoryStore;
use schema::sorted::{Mutation, Put, Row, RowRead, RowScan, SortedStore, StoreError};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::poster::{Post, PostError, Poster};
use crate::{Dependencies, Middle};

const START_MS: u64 = 1_800_000_000_000;
const URL: &str = "https://example.com/receipts";
const OTHER: &str = "https://other.example.com/receipts";
const KEEP_MS: u64 = 7 * 24 * 3600 * 1000;

/// A clock that goes with the runtime's.
struct Wall(Instant);

impl Clock for Wall {
    fn now_ms(&self) -> u64 {
        START_MS + u64::try_from(self.0.elapsed().as_millis()).expect("a test is short")
    }
}

/// How long a receiver takes, and its answer; `None`: the post panics.
type Behaviour = (Duration, Option<Result<(), PostError>>);

/// What receivers do.
#[derive(Default)]
struct Receivers {
    /// By URL; one that isn't here takes everything at once.
    behaviour: Mutex<BTreeMap<String, Behaviour>>,
    /// When what came where.
    came: Mutex<Vec<(Duration, Post)>>,
    start: Mutex<Option<Instant>>,
}

impl Receivers {
    fn behave(&self, url: &str, time: Duration, answer: impl Into<Option<Result<(), PostError>>>) {
        self.behaviour.lock().expect("no panic").insert(url.to_owned(), (time, answer.into()));
    }

    /// The times of all posts to a URL, in milliseconds since the test began.
    fn times(&self, url: &str) -> Vec<u128> {
        let came = self.came.lock().expect("no panic");
        came.iter().filter(|(_, post)| post.url == url).map(|(at, _)| at.as_millis()).collect()
    }

    fn posts(&self, url: &str) -> Vec<Post> {
        let came = self.came.lock().expect("no panic");
        came.iter().filter(|(_, post)| post.url == url).map(|(_, post)| post.clone()).collect()
    }
}

#[async_trait]
impl Poster for Receivers {
    fn check(&self, _: &str) -> Result<(), PostError> {
        Ok(())
    }

    async fn post(&self, post: Post) -> Result<(), PostError> {
        let start = self.start.lock().expect("no panic").expect("it has begun");
        let behaviour = self.behaviour.lock().expect("no panic").get(&post.url).cloned();
        self.came.lock().expect("no panic").push((start.elapsed(), post));
        let Some((time, answer)) = behaviour else { return Ok(()) };
        sleep(time).await;
        answer.expect("a post that panics")
    }
}

/// A store that can be made to refuse writes.
struct Store {
    inner: MemoryStore,
    refuses: AtomicBool,
}

#[async_trait]
impl SortedStore for Store {
    async fn write(&self, batch: Vec<Mutation>) -> Result<(), StoreError> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("full".to_owned()));
        }
        self.inner.write(batch).await
    }

    async fn read(&self, rows: Vec<RowRead>) -> Result<Vec<Row>, StoreError> {
        self.inner.read(rows).await
    }

    async fn scan(&self, scan: RowScan) -> Result<Vec<Row>, StoreError> {
        self.inner.scan(scan).await
    }

    async fn put_if_absent(&self, put: Put) -> Result<bool, StoreError> {
        self.inner.put_if_absent(put).await
    }
}

/// Stores and receivers, which outlive the tiers on them.
struct Town {
    clock: Arc<Wall>,
    store: Arc<Store>,
    catalog: Arc<SqliteCatalog>,
    receivers: Arc<Receivers>,
}

/// One life of the tier, with its job running.
struct Life {
    shared: Arc<Shared>,
    drain: CancellationToken,
    job: JoinHandle<()>,
    registry: Registry,
}

fn app(name: &str) -> AppId {
    name.parse().expect("an app id")
}

fn secret(name: &str) -> [u8; 32] {
    let mut secret = [7; 32];
    secret[..name.len()].copy_from_slice(name.as_bytes());
    secret
}

impl Town {
    async fn new() -> Self {
        let clock = Arc::new(Wall(Instant::now()));
        let town = Self {
            store: Arc::new(Store { inner: MemoryStore::new(clock.clone()), refuses: AtomicBool::new(false) }),
            clock,
            catalog: Arc::new(SqliteCatalog::in_memory().expect("SQLite in memory")),
            receivers: Arc::default(),
        };
        *town.receivers.start.lock().expect("no panic") = Some(Instant::now());
        for name in ["demo", "other"] {
            let made = App {
                app: app(name),
                package: name.to_owned(),
                app_key: "key".to_owned(),
                secret_sha256: secret(name),
                agreement_secret: [0; 32],
                broadcast_key: [0; 32],
                signing_seed: [0; 32],
                webhook_secret: secret(name),
                sends_per_second_max: 0,
                sends_per_day_max: 0,
                created_at_ms: 0,
            };
            assert!(schema::catalog::Apps::create_app(town.catalog.as_ref(), made).await.expect("stored"));
        }
        town
    }

    fn live(&self, config: Config) -> Life {
        let entropy = Arc::new(SystemEntropy);
        let bus = Arc::new(InProcess::new(Limits::default(), self.clock.clone(), entropy.clone()));
        let dependencies = Dependencies {
            inbox: bus.attach_middle(),
            bus,
            sorted: self.store.clone(),
            catalog: self.catalog.clone(),
            cache: Arc::new(InProcessCache::new(self.clock.clone(), entropy.clone(), CacheLimits::default())),
            poster: self.receivers.clone(),
            keys: KeyRing::new(&[(1, [1; 32])]),
            regid_key: hmac::Key::new(hmac::HMAC_SHA256, &[2; 32]),
            clock: self.clock.clone(),
            entropy,
        };
        let mut registry = Registry::default();
        let shared = Middle::build(config, dependencies, &mut registry).shared;
        let drain = CancellationToken::new();
        let job = tokio::spawn(run(Arc::clone(&shared), drain.clone()));
        Life { shared, drain, job, registry }
    }

    async fn waiting(&self, url: &str) -> usize {
        let log = schema::receipts::Receipts::new(self.store.clone());
        log.pending(&app("demo"), url, None, usize::MAX).await.expect("read").len()
    }
}

impl Life {
    fn receipt(&self, in_flight: &mut InFlight, name: &str, url: &str) -> Receipt {
        let id = in_flight.next(&self.shared);
        Receipt {
            id,
            app: app(name),
            message: id,
            kind: 1,
            target: "anna".to_owned(),
            regid: None,
            at_ms: self.shared.clock.now_ms(),
            url: Some(url.to_owned()),
            param: None,
            job_key: None,
            error_code: None,
        }
    }

    async fn put(&self, receipt: &Receipt) {
        let (mut batch, now_ms) = (Batch::default(), self.shared.clock.now_ms());
        batch.receipts(std::slice::from_ref(receipt), now_ms + KEEP_MS, now_ms + POSTING_MS);
        batch.write(self.shared.store.as_ref()).await.expect("written");
    }

    /// Writes receipts as whoever makes them does.
    async fn write(&self, name: &str, url: &str, count: usize) {
        for _ in 0..count {
            let mut in_flight = self.shared.receipts.begin();
            let receipt = self.receipt(&mut in_flight, name, url);
            self.put(&receipt).await;
            drop(in_flight);
            self.shared.receipts.poke(&self.shared, &receipt.app, url);
        }
    }

    /// Ends as a process that is killed.
    async fn crash(self) {
        self.job.abort();
        assert!(self.job.await.expect_err("aborted").is_cancelled());
    }

    fn metric(&self, name: &str) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("text");
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("campanile_middle_{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).to_owned()
    }
}

fn header<'a>(post: &'a Post, name: &str) -> &'a str {
    &post.headers.iter().find(|(found, _)| *found == name).unwrap_or_else(|| panic!("no {name}")).1
}

/// How many messages a post tells of; in these tests each has one receipt.
fn messages(post: &Post) -> usize {
    let body = std::str::from_utf8(&post.body).expect("text");
    body.matches("barStatus").count()
}

fn down() -> Result<(), PostError> {
    Err(PostError::Status(503))
}

#[tokio::test(start_paused = true)]
async fn receipts_of_a_second_are_one_signed_post() {
    let town = Town::new().await;
    let life = town.live(Config::default());
    life.write("demo", URL, 3).await;
    sleep(Duration::from_millis(500)).await;
    life.write("demo", URL, 2).await;
    assert!(town.receivers.posts(URL).is_empty());
    sleep(Duration::from_mins(1)).await;
    assert_eq!(town.receivers.times(URL), [1000]);
    let [post] = town.receivers.posts(URL).try_into().expect("one");
    assert_eq!((messages(&post), town.waiting(URL).await), (5, 0));
    let signed = format!("{}.{}.", header(&post, "webhook-id"), header(&post, "webhook-timestamp"));
    let key = hmac::Key::new(hmac::HMAC_SHA256, &secret("demo"));
    let tag = hmac::sign(&key, &[signed.as_bytes(), &post.body].concat());
    let expected = format!("v1,{}", STANDARD.encode(tag));
    assert_eq!(header(&post, "webhook-signature"), expected);
    assert_eq!(header(&post, "webhook-timestamp"), ((START_MS + 1000) / 1000).to_string());
    assert_eq!(life.metric("receipts_posted_total"), "5");
    assert_eq!(life.metric("receipt_urls"), "0");
}

#[tokio::test(start_paused = true)]
async fn a_url_gets_a_post_a_second_and_those_of_two_apps_are_apart() {
    let town = Town::new().await;
    let life = town.live(Config::default());
    for _ in 0..30 {
        life.write("demo", URL, 1).await;
        sleep(Duration::from_millis(100)).await;
    }
    life.write("other", URL, 1).await;
    sleep(Duration::from_mins(1)).await;
    let posts = town.receivers.posts(URL);
    let times = town.receivers.times(URL);
    assert!((4..=5).contains(&times.len()), "{times:?}");
    assert_eq!(posts.iter().map(messages).sum::<usize>(), 31);
    assert_eq!(messages(posts.last().expect("one")), 1, "another app has another secret");
}

#[tokio::test(start_paused = true)]
async fn a_backlog_goes_out_in_large_posts_one_after_another() {
    let town = Town::new().await;
    let life = town.live(Config { receipts_per_post_max: 100, ..Config::default() });
    life.write("demo", URL, 250).await;
    sleep(Duration::from_mins(1)).await;
    assert_eq!(town.receivers.posts(URL).iter().map(messages).collect::<Vec<_>>(), [100, 100, 50]);
    assert_eq!(town.receivers.times(URL), [1000; 3]);
    assert_eq!(town.waiting(URL).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_second_kind_for_a_message_comes_a_second_later() {
    let town = Town::new().await;
    let life = town.live(Config::default());
    let mut in_flight = life.shared.receipts.begin();
    let first = life.receipt(&mut in_flight, "demo", URL);
    let second = Receipt { kind: 2, message: first.message, ..life.receipt(&mut in_flight, "demo", URL) };
    life.put(&first).await;
    life.put(&second).await;
    drop(in_flight);
    life.shared.receipts.poke(&life.shared, &first.app, URL);
    sleep(Duration::from_mins(1)).await;
    assert_eq!(town.receivers.times(URL), [1000, 2000]);
}

#[tokio::test(start_paused = true)]
async fn a_url_that_is_down_waits_longer_each_time_and_holds_up_nobody() {
    let town = Town::new().await;
    let life = town.live(Config::default());
    town.receivers.behave(URL, Duration::ZERO, down());
    for _ in 0..60 {
        life.write("demo", URL, 1).await;
        life.write("demo", OTHER, 1).await;
        sleep(Duration::from_secs(1)).await;
    }
    let times = town.receivers.times(URL);
    let waits: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(waits.len() >= 5, "{waits:?}");
    for (wait, longest) in waits.iter().zip([1000, 2000, 4000, 8000, 16_000, 32_000]) {
        assert!((longest * 3 / 4..=longest + 1).contains(wait), "{waits:?}");
    }
    assert!(town.receivers.times(OTHER).len() > 25);
    assert_eq!(life.metric("receipt_post_failures_total"), times.len().to_string());
    town.receivers.behave(URL, Duration::ZERO, Ok(()));
    // The seventh wait is the longest there can be by now.
    sleep(Duration::from_secs(65)).await;
    assert_eq!((town.waiting(URL).await, town.waiting(OTHER).await), (0, 0));
    assert_eq!(life.metric("receipts_posted_total"), "120");
}

#[tokio::test(start_paused = true)]
async fn what_failed_is_repeated_as_it_was() {
    let town = Town::new().await;
    let life = town.live(Config::default());
    // It arrives, but the answer does not.
    town.receivers.behave(URL, Duration::ZERO, Err(PostError::Unreachable("cut".into())));
    life.write("demo", URL, 2).await;
    sleep(Duration::from_millis(1500)).await;
    town.receivers.behave(URL, Duration::ZERO, Ok(()));
    life.write("demo", URL, 3).await;
    sleep(Duration::from_mins(1)).await;
    let posts = town.receivers.posts(URL);
    assert_eq!(posts.iter().map(messages).collect::<Vec<_>>(), [2, 2, 3]);
    assert_eq!(header(&posts[0], "webhook-id"), header(&posts[1], "webhook-id"));
    assert_eq!(posts[0].body, posts[1].body);
    assert_ne!(header(&posts[1], "webhook-id"), header(&posts[2], "webhook-id"));
    assert_eq!(town.waiting(URL).await, 0);
}

#[tokio::test(start_paused = true)]
async fn what_was_posted_and_could_not_be_removed_comes_again_under_its_id() {
    let town = Town::new().await;
    let life = town.live(Config::default());
    life.write("demo", URL, 2).await;
    town.store.refuses.store(true, Ordering::SeqCst);
    sleep(Duration::from_millis(1500)).await;
    town.store.refuses.store(false, Ordering::SeqCst);
    life.write("demo", URL, 1).await;
    sleep(Duration::from_mins(1)).await;
    let posts = town.receivers.posts(URL);
    assert_eq!(posts.iter().map(messages).collect::<Vec<_>>(), [2, 2, 1]);
    assert_eq!(header(&posts[0], "webhook-id"), header(&posts[1], "webhook-id"));
    assert_eq!(town.waiting(URL).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_post_that_panics_is_tried_again() {
    let town = Town::new().await;
    let life = town.live(Config::default());
    town.receivers.behave(URL, Duration::ZERO, None);
    life.write("demo", URL, 1).await;
    sleep(Duration::from_secs(5)).await;
    town.receivers.behave(URL, Duration::ZERO, Ok(()));
    sleep(Duration::from_mins(10)).await;
    assert_eq!((town.receivers.posts(URL).len(), town.waiting(URL).await), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_life_left_is_posted_after_the_start() {
    let town = Town::new().await;
    let life = town.live(Config::default());
    town.receivers.behave(URL, Duration::ZERO, down());
    life.write("demo", URL, 2).await;
    sleep(Duration::from_secs(10)).await;
    life.write("demo", OTHER, 1).await;
    life.crash().await;
    sleep(Duration::from_secs(1)).await;
    town.receivers.behave(URL, Duration::ZERO, Ok(()));
    let _life = town.live(Config::default());
    sleep(Duration::from_millis(10)).await;
    assert_eq!((town.waiting(URL).await, town.waiting(OTHER).await), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn receipts_that_nobody_told_of_are_found_in_time() {
    let town = Town::new().await;
    let life = town.live(Config::default());
    sleep(Duration::from_secs(1)).await;
    let mut in_flight = life.shared.receipts.begin();
    let receipt = life.receipt(&mut in_flight, "demo", URL);
    life.put(&receipt).await;
    drop(in_flight);
    sleep(Duration::from_mins(5)).await;
    assert_eq!((town.receivers.posts(URL).len(), town.waiting(URL).await), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_took_within_a_day_is_given_up_and_counted() {
    let town = Town::new().await;
    let life = town.live(Config { receipts_per_post_max: 2, ..Config::default() });
    town.receivers.behave(URL, Duration::ZERO, down());
    life.write("demo", URL, 5).await;
    sleep(Duration::from_hours(12)).await;
    life.write("demo", URL, 1).await;
    sleep(Duration::from_hours(13)).await;
    assert_eq!(life.metric("receipts_given_up_total"), "5");
    assert_eq!(town.waiting(URL).await, 1);
    let last = *town.receivers.times(URL).last().expect("some");
    assert!(last > Duration::from_hours(24).as_millis(), "the later one is still tried");
    sleep(Duration::from_hours(12)).await;
    assert_eq!(life.metric("receipts_given_up_total"), "6");
    assert_eq!((town.waiting(URL).await, life.metric("receipt_urls")), (0, "0".to_owned()));
    let posts = town.receivers.posts(URL).len();
    sleep(Duration::from_hours(2)).await;
    assert_eq!(town.receivers.posts(URL).len(), posts);
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_is_gone_is_asked_again_after_the_longest_wait() {
    let town = Town::new().await;
    let life = town.live(Config::default());
    town.receivers.behave(URL, Duration::ZERO, Err(PostError::Status(410)));
    life.write("demo", URL, 1).await;
    sleep(Duration::from_mins(7)).await;
    assert_eq!(town.receivers.times(URL), [1000]);
    sleep(Duration::from_mins(4)).await;
    assert_eq!(town.receivers.times(URL).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_never_answers_is_cut_off_and_holds_up_nobody() {
    let town = Town::new().await;
    let life = town.live(Config { receipt_posts_max: 8, ..Config::default() });
    town.receivers.behave(URL, Duration::from_hours(1), Ok(()));
    life.write("demo", URL, 1).await;
    for _ in 0..30 {
        life.write("demo", OTHER, 1).await;
        sleep(Duration::from_millis(900)).await;
        assert!(town.waiting(OTHER).await <= 2, "each is posted within two seconds");
    }
    let times = town.receivers.times(URL);
    let wait = times.get(1).expect("a second try") - times[0];
    assert!((15_750..=16_001).contains(&wait), "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn what_comes_after_a_receipt_that_is_being_written_waits_for_it() {
    let town = Town::new().await;
    let life = town.live(Config::default());
    let mut in_flight = life.shared.receipts.begin();
    let first = life.receipt(&mut in_flight, "demo", URL);
    life.write("demo", URL, 1).await;
    sleep(Duration::from_millis(5500)).await;
    assert!(town.receivers.posts(URL).is_empty());
    life.put(&first).await;
    drop(in_flight);
    life.shared.receipts.poke(&life.shared, &first.app, URL);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(town.receivers.posts(URL).iter().map(messages).collect::<Vec<_>>(), [2]);
}

#[tokio::test(start_paused = true)]
async fn a_receipt_that_another_held_up_goes_out_although_nobody_tells_of_it_again() {
    let town = Town::new().await;
    let life = town.live(Config::default());
    life.write("demo", URL, 1).await;
    let mut elsewhere = life.shared.receipts.begin();
    let _ = life.receipt(&mut elsewhere, "demo", OTHER);
    life.write("demo", URL, 1).await;
    sleep(Duration::from_millis(2500)).await;
    assert_eq!(town.receivers.posts(URL).iter().map(messages).collect::<Vec<_>>(), [1]);
    // What was to be written elsewhere could not be.
    drop(elsewhere);
    sleep(Duration::from_secs(1)).await;
    assert_eq!((town.receivers.posts(URL).len(), town.waiting(URL).await), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn urls_beyond_what_is_remembered_are_posted_to_all_the_same() {
    let town = Town::new().await;
    let life = town.live(Config { receipt_urls_max: 3, receipt_posts_max: 2, ..Config::default() });
    town.receivers.behave(URL, Duration::ZERO, down());
    life.write("demo", URL, 1).await;
    sleep(Duration::from_secs(5)).await;
    let urls: BTreeSet<String> = (0..20).map(|number| format!("https://example.com/{number}")).collect();
    for url in &urls {
        life.write("demo", url, 1).await;
    }
    sleep(Duration::from_mins(1)).await;
    for url in &urls {
        assert_eq!((town.receivers.posts(url).len(), town.waiting(url).await), (1, 0), "{url}");
    }
    town.receivers.behave(URL, Duration::ZERO, Ok(()));
    sleep(Duration::from_mins(10)).await;
    assert_eq!(town.waiting(URL).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_posts_under_way_but_not_for_ever() {
    for (time, left) in [(4, 0), (10, 1)] {
        let town = Town::new().await;
        let life = town.live(Config::default());
        town.receivers.behave(URL, Duration::from_secs(time), Ok(()));
        life.write("demo", URL, 1).await;
        sleep(Duration::from_millis(1500)).await;
        let begun = Instant::now();
        life.drain.cancel();
        life.job.await.expect("it ends");
        assert!(begun.elapsed() <= Duration::from_secs(5));
        assert_eq!(town.waiting(URL).await, left, "{time} s");
    }
}
