//! What a connection costs as there are more and more of them: several fronts, a middle and a process with the API on Redis,
//! MariaDB and HBase, measured by `campanile bench growth`; bound connections first, then, in processes that were started
//! anew, registered ones with broadcasts.
//!
//! `cargo bench -p campanile --bench growth [-- FRONTS STEPS…]`; without numbers 9 fronts, and 10,000, 50,000 and 150,000
//! connections. All of it is on this machine. Prints tables; asserts nothing about them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use servers::{Cluster, ClusterOptions, Engines, HBase, MariaDb, Redis, Role};

const BINARY: &str = env!("CARGO_BIN_EXE_campanile");
/// Broadcasts at each step, each to all connections.
const BROADCASTS: u32 = 3;

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|argument| argument.parse().ok());
    let fronts: usize = numbers.next().unwrap_or(9);
    let mut steps: Vec<usize> = numbers.collect();
    if steps.is_empty() {
        steps = vec![10_000, 50_000, 150_000];
    }
    let (redis, mariadb, hbase) = (
        Redis::start().expect("Redis starts"),
        MariaDb::start().expect("MariaDB starts"),
        HBase::start().expect("HBase starts"),
    );
    let settings = [
        ("http.plain", "127.0.0.1:0"),
        ("xmpp.starttls", ""),
        ("telemetry.listen", ""),
        ("log.level", "warn"),
        ("limits.xmpp_connections_max", "1000000"),
        ("limits.xmpp_connections_per_address_max", "1000000"),
        // Devices of a benchmark come from few addresses.
        ("limits.http_accounts_per_address_per_minute", "0"),
    ];
    let options = ClusterOptions {
        settings: settings.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec(),
        middles: 1,
        fronts,
        https: 1,
        regions: 8,
        ..ClusterOptions::of(BINARY)
    };
    let engines = Engines { redis: &redis, mariadb: &mariadb, hbase: &hbase };
    let mut cluster = Cluster::start(engines, options).expect("the roles start");
    let http = cluster.of(Role::Http)[0].to_owned();
    let made = cluster.run(&http, &["--json", "app", "create", "com.example.demo"]).expect("the binary runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    // Where commands look for it.
    fs::write(cluster.data(&http).join("demo.json"), &made.stdout).expect("writes");
    let folder = tempfile::tempdir().expect("a folder");
    let accounts = folder.path().join("accounts.json");

    println!("== bound connections, TLS");
    measure(&cluster, &steps, 0, &accounts);
    // Memory that was given back would hide what is taken.
    cluster.restart_all();
    println!("== registered, channel open, TLS; {BROADCASTS} broadcasts to all at each step, acknowledged");
    measure(&cluster, &steps, BROADCASTS, &accounts);
    // The streams of 150,000 devices may take longer to end than a drain may (`limits.drain_ms_max`).
    for (name, code) in cluster.stop_all() {
        println!("{name} ended with exit code {code}");
    }
}

fn measure(cluster: &Cluster, steps: &[usize], broadcasts: u32, accounts: &Path) {
    let mut command = Command::new(BINARY);
    command.arg("--data").arg(cluster.data(cluster.of(Role::Http)[0]));
    command.args(["bench", "growth", "--running", "--markdown"]);
    command.arg("--broadcasts").arg(broadcasts.to_string()).arg("--accounts").arg(accounts);
    for front in cluster.of(Role::Front) {
        command.arg("--front").arg(cluster.data(front));
    }
    for other in [Role::Middle, Role::Http].into_iter().flat_map(|role| cluster.of(role)) {
        command.arg("--pid").arg(cluster.pid(other).to_string());
    }
    for step in steps {
        command.arg("--step").arg(step.to_string());
    }
    let status = command.stdin(Stdio::null()).status().expect("the binary runs");
    assert!(status.success(), "{status}");
}
