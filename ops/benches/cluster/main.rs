//! What it costs to run each role as a process of its own, on HBase, MySQL and Redis, beside one process on the embedded
//! stores: sends accepted per second, from accepting to the device, CPU for each delivery by process, a broadcast to a
//! million members of two fronts, and a storm of reconnects.
//!
//! `cargo bench -p campanile --bench cluster [-- REQUESTS DEVICES MEMBERS]`. Engines and processes are started here, on this
//! machine; the client is nghttp2's `h2load` (Debian: nghttp2-client). Prints figures; asserts nothing about them.

mod devices;
mod installation;
mod million;

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use devices::Devices;
use installation::{Cpu, Installation};
use servers::{Cluster, ClusterOptions, Engines, HBase, MariaDb, Redis};
use tokio::time::{Instant, sleep};

const FORM: &str = "content-type: application/x-www-form-urlencoded";
const BODY: &str = "payload=0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789&\
                    title=hello&description=world&pass_through=0&notify_type=-1";
/// Registrations that single sends go to; a mailbox holds 1,000 messages.
const REGISTRATIONS: usize = 1000;
/// Broadcasts that all devices get.
const BROADCASTS: usize = 10;
/// How long sends are measured at one rate.
const STEADY_SECONDS: usize = 10;

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|argument| argument.parse().ok());
    let requests: usize = numbers.next().unwrap_or(60_000);
    let devices: usize = numbers.next().unwrap_or(1000);
    let members: usize = numbers.next().unwrap_or(1_000_000);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");

    let alone = Installation::alone();
    println!("== one process, embedded stores");
    runtime.block_on(measure(&alone, requests, devices));
    drop(alone);

    let (redis, mariadb, hbase) = (
        Redis::start().expect("Redis starts"),
        MariaDb::start().expect("MariaDB starts"),
        HBase::start().expect("HBase starts"),
    );
    let options = ClusterOptions {
        settings: installation::settings(),
        regions: 8,
        ..ClusterOptions::of(env!("CARGO_BIN_EXE_campanile"))
    };
    let engines = Engines { redis: &redis, mariadb: &mariadb, hbase: &hbase };
    let cluster = Cluster::start(engines, options).expect("the roles start");
    let mut installation = Installation::of_roles(cluster, engines);
    println!("== two fronts, two middles, two HTTP frontends on HBase, MySQL and Redis");
    runtime.block_on(async {
        measure(&installation, requests, devices).await;
        storm(&mut installation, devices).await;
        million::broadcast(&installation, &redis, members).await;
    });
    assert!(installation.stop(), "each process ends well");
}

/// What both wirings are measured by.
async fn measure(installation: &Installation, requests: usize, count: usize) {
    let regids = devices::register(installation, REGISTRATIONS.min(requests)).await;
    accepted(installation, &regids, requests);

    let mut devices = Devices::connect(installation, count).await;
    let (before, started) = (installation.cpu(), Instant::now());
    for number in 0..BROADCASTS {
        installation.send("/v3/message/all", &[("payload", &format!("{number:0>100}"))]).await;
    }
    devices.wait_for(count * BROADCASTS).await;
    let spent = installation.cpu().since(&before);
    each("a broadcast's delivery, acknowledged", &spent, count * BROADCASTS, started);

    let (before, started) = (installation.cpu(), Instant::now());
    let singles = 20 * count;
    devices.single_sends(installation, singles, 64).await;
    let spent = installation.cpu().since(&before);
    each("a single send to a connected device, delivered and acknowledged", &spent, singles, started);

    for per_second in [100, 1000] {
        let sends = per_second * STEADY_SECONDS;
        devices.forget_times();
        devices.at_a_rate(installation, sends, per_second).await;
        println!("from the request to the device's app at {per_second} single sends a second: {}", devices.times());
    }
    devices.stop().await;
}

/// Single sends per second over HTTP/2, to every HTTP frontend at once.
fn accepted(installation: &Installation, regids: &[String], requests: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let body = folder.path().join("body");
    fs::write(&body, BODY).expect("writes");
    let authorization = format!("authorization: key={}", installation.secret());
    let (before, started) = (installation.cpu(), Instant::now());
    let bases = installation.plain();
    let share = requests / bases.len();
    let running: Vec<_> = bases
        .iter()
        .enumerate()
        .map(|(number, base)| {
            let uris = folder.path().join(format!("uris-{number}"));
            let with = |regid: &String| format!("http://{base}/v3/message/regid?registration_id={regid}\n");
            fs::write(&uris, regids.iter().map(with).collect::<String>()).expect("writes");
            let mut command = Command::new("h2load");
            command.args(["-n", &share.to_string(), "-c", "8", "-m", "50", "-t", "1"]);
            command.args(["-H", &authorization, "-H", FORM]).arg("-d").arg(&body).arg("-i").arg(&uris);
            command.stdout(Stdio::piped()).spawn().expect("h2load runs; Debian has it in nghttp2-client")
        })
        .collect();
    for client in running {
        let output = client.wait_with_output().expect("h2load ends");
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        for line in
            output.lines().filter(|line| line.starts_with("status codes") || line.starts_with("time for request"))
        {
            println!("  {line}");
        }
    }
    let spent = installation.cpu().since(&before);
    each("a single send accepted over HTTP/2, durable", &spent, share * bases.len(), started);
}

/// All devices of one front come back to the other at once.
async fn storm(installation: &mut Installation, count: usize) {
    let devices = Devices::connect(installation, count).await;
    sleep(Duration::from_secs(3)).await;
    let figures_before = installation.figures(STORM_FIGURES);
    let (killed, started) = (devices.online(), Instant::now());
    installation.kill("front-1");
    // Of those that still run.
    let cpu_before = installation.cpu();
    devices.wait_for_reconnects().await;
    let seconds = started.elapsed().as_secs_f64();
    let returned = devices.reconnects();
    let spent = installation.cpu().since(&cpu_before);
    let figures = installation.figures(STORM_FIGURES);
    println!("a front was killed: {returned} of {killed} devices came back within {seconds:.1} s; {}", spent.shares());
    for (name, after) in figures {
        let read = after - figures_before.get(name).copied().unwrap_or(0.0);
        println!("  {name}: {read:.0}");
    }
    installation.restart("front-1");
    devices.stop().await;
}

const STORM_FIGURES: &[&str] = &[
    "campanile_hbase_reads_total",
    "campanile_hbase_read_calls_total",
    "campanile_hbase_rows_asked_total",
    "campanile_hbase_scans_total",
    "campanile_mysql_statements_total",
];

fn each(what: &str, spent: &Cpu, count: usize, started: Instant) {
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let count = count as f64;
    let (seconds, ours) = (started.elapsed().as_secs_f64(), spent.ours() / count * 1e6);
    println!("{what}: {:.0}/s; our processes' CPU {ours:.1} µs each; {}", count / seconds, spent.shares());
}

/// Figures by name.
type Figures = BTreeMap<&'static str, f64>;
