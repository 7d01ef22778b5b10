//! What a front with millions of connections takes: the index alone, and hubs whose lines have everything but a socket, TLS
//! and the task that reads. Memory for each slot, walks of broadcasts, and single sends in the midst of them.
//!
//! `cargo bench -p campanile-xmpp-frontend --features simulation --bench slots [-- SLOTS…]`; without numbers 1, 2 and 5
//! million. Each part is a process of its own, since memory that was given back would hide what is taken. Prints tables;
//! asserts nothing about them.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use campanile_xmpp_frontend::simulated::SimulatedIndex;
use campanile_xmpp_frontend::{Acceptor, Config, Dependencies, Front, Limits};
use idl::audience::Audience;
use idl::bus::{Bus, FrontEvent, InProcess, Limits as BusLimits};
use idl::clock::{SharedClock, SystemClock, SystemEntropy};
use idl::contract::bus as wire;
use idl::ids::{AccountId, AppId, Epoch, FrontId, MessageId};
use idl::token::KeyRing;
use prometheus_client::registry::Registry;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const APP: &str = "com.example.demo";
/// The topics of half of all slots, and of one in a hundred.
const HALF: &str = "half";
const HUNDREDTH: &str = "hundredth";
/// What a delivery of a text of 100 bytes has.
const PAYLOAD_BYTES: usize = 168;
const PATIENCE: Duration = Duration::from_mins(5);
/// Between two single sends, and how many are made at rest.
const SEND_INTERVAL: Duration = Duration::from_millis(2);
const SENDS_AT_REST: usize = 500;
/// Clock ticks of `/proc/<pid>/stat` in a second: 100 on every Linux that we know.
const TICKS_PER_SECOND: f64 = 100.0;
/// What is said to the process of a part before its sizes.
const PARTS: [&str; 3] = ["index", "aliases", "lines"];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let mut sizes: Vec<usize> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    if sizes.is_empty() {
        sizes = vec![1_000_000, 2_000_000, 5_000_000];
    }
    match arguments.first().map(String::as_str) {
        Some("index") => index(&sizes, false),
        Some("aliases") => index(&sizes, true),
        Some("lines") => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
            runtime.block_on(lines(&sizes));
        }
        _ => {
            let itself = std::env::current_exe().expect("this program");
            for part in PARTS {
                let sizes = sizes.iter().map(ToString::to_string);
                let status = Command::new(&itself).arg(part).args(sizes).status().expect("this program runs again");
                assert!(status.success(), "{part}: {status}");
            }
        }
    }
}

/// What the index has of a slot: two attributes, with 2 and 20 values, and topics of half and of one in a hundred.
fn entry(number: usize, alias: bool) -> wire::IndexEntry {
    let topics = [(2, HALF), (100, HUNDREDTH)].into_iter().filter(|(of, _)| number.is_multiple_of(*of));
    let attributes = BTreeMap::from([
        ("platform".to_owned(), if number.is_multiple_of(3) { "ios" } else { "android" }.to_owned()),
        ("version".to_owned(), format!("4.{}", number % 20)),
    ]);
    wire::IndexEntry {
        app: APP.to_owned(),
        version: 1,
        removed: None,
        topics: Some(topics.map(|(_, topic)| topic.to_owned()).collect()),
        attributes: Some(attributes),
        aliases: alias.then(|| vec![format!("user-{number}")]),
        user_accounts: None,
    }
}

fn audiences() -> [(&'static str, Audience); 3] {
    let topic = |name: &str| Audience::Topic(name.parse().expect("a topic"));
    [("all", Audience::Everyone), ("half", topic(HALF)), ("1 %", topic(HUNDREDTH))]
}

/// The index and its memberships, with nothing else.
fn index(sizes: &[usize], aliases: bool) {
    let with = if aliases { ", each with an alias of its own" } else { "" };
    println!("\nthe index alone{with}\n");
    println!("| slots | bytes for each | added in a second | audience of all | of half | of 1 % |");
    println!("| --- | --- | --- | --- | --- | --- |");
    let app: AppId = APP.parse().expect("an app id");
    let (mut simulated, before) = (SimulatedIndex::default(), memory());
    let mut there = 0;
    for size in sizes {
        let started = Instant::now();
        for number in there..*size {
            simulated.add(&[entry(number, aliases)]);
        }
        let rate = float(size - there) / started.elapsed().as_secs_f64();
        there = *size;
        let each = (memory() - before) / float(there);
        let times = audiences().map(|(_, audience)| {
            let started = Instant::now();
            let count = simulated.count(&app, &audience);
            format!("{:.0} µs ({count})", started.elapsed().as_secs_f64() * 1e6)
        });
        println!("| {there} | {each:.0} | {rate:.0} | {} |", times.join(" | "));
    }
}

/// A front without listeners, and who sends to it.
struct World {
    bus: Arc<InProcess>,
    front: FrontId,
    acceptor: Acceptor,
    clock: SharedClock,
    /// How many there are in each of the [`audiences`].
    counts: [u64; 3],
    /// Some of those that are connected.
    sample: Vec<AccountId>,
    order: u128,
}

/// Single sends that were timed, in microseconds.
type Times = Vec<f64>;

async fn lines(sizes: &[usize]) {
    println!("\nhubs with lines, one hub for each core\n");
    println!("| slots | bytes for each | added in a second | single send at rest: p50, p99, max |");
    println!("| --- | --- | --- | --- |");
    let mut world = World::new(sizes.iter().copied().max().unwrap_or(0));
    let (mut there, mut walks) = (0, Vec::new());
    // What is made once.
    world.add(0..1000);
    let before = memory();
    for size in sizes {
        let started = Instant::now();
        // In the same proportions, beside those who are there.
        world.add(there..*size);
        let rate = float(size - there) / started.elapsed().as_secs_f64();
        there = *size;
        let each = (memory() - before) / float(there);
        let mut at_rest = Vec::new();
        for _ in 0..SENDS_AT_REST {
            at_rest.push(world.send().await);
            sleep(SEND_INTERVAL).await;
        }
        println!("| {there} | {each:.0} | {rate:.0} | {} |", shown(at_rest));
        for ((name, audience), count) in audiences().into_iter().zip(world.counts) {
            walks.push(world.walk(there, name, &audience, count, 1).await);
        }
        walks.push(world.walk(there, "all, 10 at once", &Audience::Everyone, world.counts[0], 10).await);
    }
    println!("\n| slots | broadcast to | deliveries | time | CPU for each | single sends meanwhile: p50, p99, max |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for row in walks {
        println!("{row}");
    }
}

impl World {
    /// It is serving once a task of the runtime has had its turn.
    fn new(connections_max: usize) -> Self {
        let (clock, entropy): (SharedClock, _) = (Arc::new(SystemClock), Arc::new(SystemEntropy));
        let bus = Arc::new(InProcess::new(BusLimits::default(), Arc::clone(&clock), entropy.clone()));
        let front = FrontId(1);
        let room = connections_max + 2000;
        let limits = Limits {
            connections_max: room,
            connections_per_address_max: room,
            // Nobody answers when asked for a sign of life.
            idle_time_max: Duration::from_hours(2),
            ..Limits::default()
        };
        let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::server::ResolvesServerCertUsingSni::new()));
        let dependencies = Dependencies {
            bus: Arc::clone(&bus) as Arc<dyn Bus>,
            inbox: bus.attach_front(front),
            front,
            keys: KeyRing::new(&[(1, [7; 32])]),
            tls: Arc::new(tls),
            clock: Arc::clone(&clock),
            entropy,
        };
        let built = Front::build(Config { limits, ..Config::default() }, dependencies, &mut Registry::default());
        let acceptor = built.acceptor();
        tokio::spawn(async move {
            let bound = built.bind().await.expect("nothing to bind");
            bound.serve(CancellationToken::new(), TaskTracker::new()).await;
        });
        Self { bus, front, acceptor, clock, counts: [0; 3], sample: Vec::new(), order: 0 }
    }

    /// Adds a line for each number.
    fn add(&mut self, numbers: std::ops::Range<usize>) {
        for number in numbers {
            let account = AccountId::random(&SystemEntropy);
            if number.is_multiple_of(997) {
                self.sample.push(account);
            }
            for (count, of) in self.counts.iter_mut().zip([1, 2, 100]) {
                *count += u64::from(number.is_multiple_of(of));
            }
            assert_eq!(self.acceptor.simulate_streams([account], &[entry(number, false)]), 1);
        }
    }

    /// How long a single send to somebody takes, from handing it over to its being written.
    async fn send(&mut self) -> f64 {
        self.order += 1;
        let account = self.sample[usize::try_from(self.order).expect("few") * 7919 % self.sample.len()];
        let item = wire::FrontItem {
            account: account.to_string(),
            epoch: Epoch(account.0).to_bytes().to_vec(),
            index: None,
            channel: Some(5),
            payloads: Some(vec![vec![b'x'; PAYLOAD_BYTES]]),
            conflict: None,
            order: Some(self.order.to_be_bytes().to_vec()),
        };
        let batch = wire::FrontBatch { items: vec![item], count: None };
        let started = Instant::now();
        let reply = self.bus.deliver(self.front, batch, started + PATIENCE).await.expect("delivered");
        assert_eq!(reply.gone, None);
        started.elapsed().as_secs_f64() * 1e6
    }

    /// Broadcasts to so many, and sends single messages until all were reached. Returns a row of the table.
    async fn walk(&mut self, slots: usize, name: &str, audience: &Audience, count: u64, at_once: u64) -> String {
        let now_ms = self.clock.now_ms();
        let (before, cpu, started) = (self.acceptor.broadcast_deliveries(), cpu_seconds(), Instant::now());
        for _ in 0..at_once {
            self.order += 1;
            let broadcast = wire::Broadcast {
                id: MessageId(u128::from(now_ms) << 80 | self.order).to_bytes().to_vec(),
                app: APP.to_owned(),
                audience: audience.to_wire(),
                payload: vec![b'x'; PAYLOAD_BYTES],
                expires_at_ms: i64::try_from(now_ms).expect("a time") + 3_600_000,
                channel: 5,
                spread_ms: None,
                local_time_ms: None,
            };
            self.bus.publish(FrontEvent::Broadcast(broadcast), started + PATIENCE).await.expect("published");
        }
        let (is_over, deliveries) = (Arc::new(AtomicBool::new(false)), count * at_once);
        let end = tokio::spawn(reached(self.acceptor.clone(), before + deliveries, Arc::clone(&is_over)));
        let mut sends = Vec::new();
        while !is_over.load(Ordering::Relaxed) {
            let took = self.send().await;
            // One that began before the end.
            if !is_over.load(Ordering::Relaxed) {
                sends.push(took);
            }
            sleep(SEND_INTERVAL).await;
        }
        let time = end.await.expect("it ends") - started;
        let cpu = (cpu_seconds() - cpu) / float(usize::try_from(deliveries).expect("few"));
        format!(
            "| {slots} | {name} | {deliveries} | {:.3} s | {:.2} µs | {} |",
            time.as_secs_f64(),
            cpu * 1e6,
            shown(sends)
        )
    }
}

/// Waits until there are so many deliveries, and returns when that was.
async fn reached(acceptor: Acceptor, deliveries: u64, is_over: Arc<AtomicBool>) -> Instant {
    let started = Instant::now();
    while acceptor.broadcast_deliveries() < deliveries {
        assert!(started.elapsed() < PATIENCE, "{} of {deliveries}", acceptor.broadcast_deliveries());
        sleep(Duration::from_millis(1)).await;
    }
    is_over.store(true, Ordering::Relaxed);
    Instant::now()
}

/// Quantiles for people.
fn shown(mut times: Times) -> String {
    times.sort_unstable_by(f64::total_cmp);
    let at = |hundredths: usize| times.get((times.len().saturating_sub(1)) * hundredths / 100).copied();
    let micros = |time: Option<f64>| time.map_or_else(|| "–".to_owned(), |time| format!("{time:.0}"));
    format!("{}, {}, {} µs (n={})", micros(at(50)), micros(at(99)), micros(at(100)), times.len())
}

/// What of this process is in RAM, in bytes.
fn memory() -> f64 {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").expect("a process can read its own");
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).expect("it is there");
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kilobytes * 1024.0
}

/// CPU time that this process has taken.
fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").expect("a process can read its own");
    let (_, after_name) = stat.rsplit_once(')').expect("a name");
    let ticks = |field: usize| -> f64 {
        after_name.split_whitespace().nth(field).and_then(|ticks| ticks.parse().ok()).expect("a number")
    };
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn float(number: usize) -> f64 {
    number as f64
}
