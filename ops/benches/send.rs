//! What sending costs: single sends accepted per second over HTTP/2 and HTTP/1.1, sends to 1,000 registrations, the dry run
//! over a large topic. Everything is durable: an answer means that it is on disk.
//!
//! `cargo bench -p campanile --bench send [-- REQUESTS MEMBERS]`. The client is nghttp2's `h2load` (Debian:
//! nghttp2-client), on the same machine. Prints figures; asserts nothing about them.

#[path = "../tests/harness/harness.rs"]
#[expect(clippy::allow_attributes, reason = "each user takes a part of the harness")]
#[allow(dead_code, reason = "each user takes a part of the harness")]
mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::sync::Arc;

use harness::server::Server;
use idl::clock::{SystemClock, SystemEntropy};
use idl::ids::{AccountId, AppId, MessageId, RegId, TopicName};
use ring::hmac;
use schema::registrations::{Cursor, Registration, Registrations};
use schema::sorted::embedded::{EmbeddedOptions, EmbeddedStore};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Registrations that single sends go to; a mailbox holds 1,000 messages.
const REGISTRATIONS: usize = 4000;
/// The topic that all registrations are subscribed to.
const TOPIC: &str = "large";
/// Writes under way while registrations are made.
const WRITES: usize = 2048;
const FORM: &str = "content-type: application/x-www-form-urlencoded";
const BODY: &str = "payload=0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789&\
                    title=hello&description=world&pass_through=0&notify_type=-1";

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|argument| argument.parse().ok());
    let requests: usize = numbers.next().unwrap_or(400_000);
    let members: usize = numbers.next().unwrap_or(1_000_000);
    let mut server = Server::start_with(&[("http.plain", "127.0.0.1:0"), ("log.level", "warn")]);
    let demo = server.demo();
    let secret = demo.secret.clone().expect("the demo's secret is kept");
    assert!(server.stop().success());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let app: AppId = demo.app.parse().expect("an app id");
    let regids = runtime.block_on(populate(&server, &app, REGISTRATIONS + 1000));
    server.restart();

    let folder = server.data().to_owned();
    let body = folder.join("body");
    fs::write(&body, BODY).expect("writes");
    let authorization = format!("authorization: key={secret}");
    let plain = format!("http://{}", server.address("http.plain"));
    let tls = format!("https://localhost:{}", server.address("http.https").port());
    let load = |server: &Server,
                name: &str,
                base: &str,
                arguments: &[&str],
                requests: usize,
                weight: usize,
                paths: &[String]| {
        let uris = folder.join("uris");
        let mut text = String::new();
        for path in paths {
            let _ = writeln!(text, "{base}{path}");
        }
        fs::write(&uris, text).expect("writes");
        let cpu = cpu_seconds(server);
        let mut command = Command::new("h2load");
        command.args(["-n", &requests.to_string(), "-H", &authorization, "-H", FORM, "-i"]).arg(&uris);
        let output = command.args(arguments).output().expect("h2load runs; Debian has it in nghttp2-client");
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        let spent = cpu_seconds(server) - cpu;
        let line = |start: &str| output.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
        let finished = line("finished in");
        let rate: f64 = finished
            .split(", ")
            .find_map(|part| part.strip_suffix(" req/s"))
            .and_then(|rate| rate.parse().ok())
            .unwrap_or_else(|| panic!("{output}"));
        #[expect(clippy::cast_precision_loss, reason = "figures for people")]
        let (each, rate) = (spent / (requests * weight) as f64 * 1e6, rate * weight as f64);
        println!(
            "{name}: {rate:.0}/s, {each:.1} µs of the server's CPU each; {}; {}",
            line("status codes"),
            line("time for request")
        );
    };
    let with = |regid: &RegId| format!("/v3/message/regid?registration_id={regid}");
    let singles: Vec<String> = regids.iter().take(REGISTRATIONS).map(with).collect();
    let body_of = body.to_string_lossy().into_owned();
    let many = ["-d", &body_of, "-c", "4", "-m", "100", "-t", "1"];
    load(&server, "single sends, HTTP/2", &plain, &many, requests, 1, &singles);
    load(&server, "single sends, HTTP/2 with TLS", &tls, &many, requests, 1, &singles);
    load(
        &server,
        "single sends, HTTP/1.1 keep-alive",
        &plain,
        &["--h1", "-d", &body_of, "-c", "128", "-t", "1"],
        requests,
        1,
        &singles,
    );
    load(
        &server,
        "single sends, HTTP/1.1 keep-alive with TLS",
        &tls,
        &["--h1", "-d", &body_of, "-c", "128", "-t", "1"],
        requests,
        1,
        &singles,
    );

    let list: Vec<String> = regids.iter().skip(REGISTRATIONS).take(1000).map(ToString::to_string).collect();
    let large = folder.join("large");
    fs::write(&large, format!("{BODY}&registration_id={}", list.join(","))).expect("writes");
    let large_of = large.to_string_lossy().into_owned();
    let path = ["/v3/message/regid".to_owned()];
    load(
        &server,
        "registrations in sends to 1,000",
        &plain,
        &["-d", &large_of, "-c", "4", "-m", "4", "-t", "1"],
        800,
        1000,
        &path,
    );

    assert!(server.stop().success());
    let started = Instant::now();
    let more = runtime.block_on(populate(&server, &app, members.saturating_sub(regids.len())));
    println!("{} registrations made in {:.1} s", more.len(), started.elapsed().as_secs_f64());
    server.restart();
    let dry = [("topic", TOPIC), ("payload", "x"), ("dry_run", "1")];
    for _ in 0..3 {
        let started = Instant::now();
        let answer = server.post("/v3/message/topic", &dry);
        println!("dry run: {:.3} s: {}", started.elapsed().as_secs_f64(), answer.data["audience"]);
    }
}

/// Makes registrations in the store of a server that does not run, as devices would have made them.
async fn populate(server: &Server, app: &AppId, count: usize) -> Vec<RegId> {
    let options = EmbeddedOptions { memtable_bytes: 64 << 20, ..EmbeddedOptions::default() };
    let store = EmbeddedStore::open(&server.folder().store(), Arc::new(SystemClock), options).expect("the store opens");
    let registrations = Registrations::new(Arc::new(store));
    let key = hmac::Key::new(hmac::HMAC_SHA256, &[1; 32]);
    let topic: TopicName = TOPIC.parse().expect("a topic");
    let mut writes = JoinSet::new();
    let mut regids = Vec::with_capacity(count);
    for _ in 0..count {
        let account = AccountId::random(&SystemEntropy);
        let regid = RegId::derive(&key, account, "bench", app, 1);
        regids.push(regid);
        let registration = Registration {
            regid,
            account,
            app: app.clone(),
            device_public: [1; 32],
            seal_key: [2; 32],
            enabled: true,
            attributes: BTreeMap::new(),
            aliases: BTreeSet::new(),
            user_accounts: BTreeSet::new(),
            topics: BTreeMap::from([(topic.clone(), MessageId(1))]),
            version: 1,
            created_at: MessageId(1),
            cursor: Cursor { judged_to: MessageId(1), acked: Vec::new() },
            last_seen_ms: None,
            recent: Vec::new(),
        };
        if writes.len() >= WRITES {
            writes.join_next().await;
        }
        let registrations = registrations.clone();
        writes.spawn(async move { registrations.create(&registration).await.expect("it is written") });
    }
    while writes.join_next().await.is_some() {}
    regids
}

fn cpu_seconds(server: &Server) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", server.pid())).expect("the server runs");
    let (_, after_name) = stat.rsplit_once(')').expect("stat names the process");
    let ticks = |field: usize| -> f64 {
        after_name.split_whitespace().nth(field).and_then(|ticks| ticks.parse().ok()).expect("stat has ticks")
    };
    // Clock ticks are 100 a second on every Linux that we know.
    (ticks(11) + ticks(12)) / 100.0
}
