//! What a front costs, measured from outside its process: memory of an idle TLS connection, CPU of a broadcast.
//!
//! `cargo bench -p campanile --bench front [-- CONNECTIONS BROADCASTS]`. Devices run in this process, over real TLS on
//! loopback; figures are of the server's process alone, from `/proc`. Prints figures; asserts nothing about them.

#[path = "../tests/harness/harness.rs"]
#[expect(clippy::allow_attributes, reason = "each user takes a part of the harness")]
#[allow(dead_code, reason = "each user takes a part of the harness")]
mod harness;

use std::fs;

use harness::fleet::Fleet;
use harness::server::Server;

/// Clock ticks of `/proc/<pid>/stat` in a second: 100 on every Linux that we know.
const TICKS_PER_SECOND: f64 = 100.0;

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|argument| argument.parse().ok());
    let connections: usize = numbers.next().unwrap_or(2000);
    let broadcasts: usize = numbers.next().unwrap_or(20);
    let server = Server::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let mut fleet = Fleet::new(&server, connections + 1);
    runtime.block_on(async {
        // One device first, so that what is allocated once is not counted.
        fleet.connect(0..1).await;
        let (rss, cpu) = (rss_bytes(&server), cpu_seconds(&server));
        fleet.connect(1..connections + 1).await;
        let (rss_idle, cpu_idle) = (rss_bytes(&server), cpu_seconds(&server));
        #[expect(clippy::cast_precision_loss, reason = "figures for people")]
        let (bytes, logins) = (rss_idle.saturating_sub(rss) as f64, connections as f64);
        println!("{connections} idle TLS connections: {:.1} KB of RSS each", bytes / logins / 1024.0);
        println!("login and registration: {:.0} µs of CPU each", (cpu_idle - cpu) / logins * 1e6);
        for number in 0..broadcasts {
            let payload = format!("{number:0>100}");
            server.send("/v3/message/all", &[("payload", &payload)]);
        }
        fleet.wait_for_count(0..connections + 1, broadcasts).await;
        #[expect(clippy::cast_precision_loss, reason = "figures for people")]
        let deliveries = ((connections + 1) * broadcasts) as f64;
        let cost = (cpu_seconds(&server) - cpu_idle) / deliveries * 1e6;
        println!("{broadcasts} broadcasts of 100 bytes: {cost:.1} µs of CPU for each delivery, with its ack");
        fleet.stop(0..connections + 1).await;
    });
}

fn rss_bytes(server: &Server) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{}/statm", server.pid())).expect("the server runs");
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).expect("statm has pages");
    pages * 4096
}

fn cpu_seconds(server: &Server) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", server.pid())).expect("the server runs");
    let (_, after_name) = stat.rsplit_once(')').expect("stat names the process");
    let ticks = |field: usize| -> f64 {
        after_name.split_whitespace().nth(field).and_then(|ticks| ticks.parse().ok()).expect("stat has ticks")
    };
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
}
