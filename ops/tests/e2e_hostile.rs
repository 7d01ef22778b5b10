//! Hostile peers among 10,000 honest connections: each is cut by the limit that is there for it, and no honest device loses a
//! connection or a message. How long messages take meanwhile is printed, and is a benchmark: `campanile bench hostile`.

#[path = "harness/harness.rs"]
#[expect(clippy::allow_attributes, reason = "each test file uses a part of the harness")]
#[allow(dead_code, reason = "each test file uses a part of the harness")]
mod harness;

use harness::server::{campanile, text};
use serde_json::Value;

const HONEST: u64 = 10_000;
/// Messages in a second, few enough for a build without optimisation on a busy machine.
const RATE: &str = "100";

/// Limits that only some of a kind meet, where another is there for the rest.
const SHARED: [&str; 6] = [
    "login_time_max",
    "handshakes_per_address_max",
    "stanzas_in_per_second_max",
    "channel_queue_max",
    "write_time_max",
    "bytes_in_per_second_max",
];

/// What the bench found.
struct Findings(Vec<Value>);

impl Findings {
    fn of(arguments: &[&str]) -> Self {
        let output =
            campanile().args(["--json", "bench", "hostile"]).args(arguments).output().expect("the binary runs");
        let lines = text(&output.stdout);
        // Shown if the test fails.
        println!("{lines}");
        assert!(output.status.success(), "{}", text(&output.stderr));
        Self(lines.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect())
    }

    fn value(&self, name: &str) -> f64 {
        let figure = self.0.iter().find(|figure| figure["figure"] == name);
        figure.and_then(|figure| figure["value"].as_f64()).unwrap_or_else(|| panic!("no {name}"))
    }

    fn each(&self, prefix: &str) -> Vec<&Value> {
        let is_one = |figure: &&Value| figure["figure"].as_str().is_some_and(|name| name.starts_with(prefix));
        self.0.iter().filter(is_one).collect()
    }
}

fn whole(figure: &Value) -> u64 {
    let value = figure["value"].as_f64().expect("a number");
    format!("{value:.0}").parse().expect("a whole number")
}

fn is_of_a_kind(figure: &Value) -> bool {
    figure["figure"].as_str().is_some_and(|name| name.ends_with(": cut"))
}

#[test]
fn hostile_peers_are_cut_by_their_limits_and_10_000_honest_devices_lose_nothing() {
    let connections = HONEST.to_string();
    let found = Findings::of(&["--tls", "--connections", &connections, "--rate", RATE, "--seconds", "5"]);

    for loss in ["honest devices: messages that did not arrive", "honest devices: connections lost"] {
        assert_eq!(found.each(loss).into_iter().map(whole).collect::<Vec<_>>(), [0], "{loss}");
    }
    for when in ["before", "beside an attack", "under attack", "after"] {
        println!("{when}: p99 {} ms", found.value(&format!("single message, {when}: p99")));
    }

    let kinds: Vec<_> = found.each("hostile, ").into_iter().filter(|figure| is_of_a_kind(figure)).collect();
    assert_eq!(kinds.len(), 18);
    for kind in kinds {
        assert!(whole(kind) > 0, "some came: {kind}");
        assert_eq!(Some(whole(kind)), kind["n"].as_u64(), "each is cut: {kind}");
    }

    // The server says itself why it ended a stream.
    let limits = found.each("hostile, ended by ");
    assert_eq!(limits.len(), 11);
    for limit in limits {
        assert!(whole(limit) > 0, "it was hit: {limit}");
        let name = limit["figure"].as_str().expect("a name");
        // Some kinds may meet one of two limits, and a login may take too long on a machine that is busy.
        if !SHARED.iter().any(|shared| name.ends_with(shared)) {
            assert_eq!(Some(whole(limit)), limit["n"].as_u64(), "its own peers and no others: {limit}");
        }
    }
    // Who leaves after a failed login says so, or does not.
    let otherwise = found.each("hostile, ended otherwise");
    let notes = otherwise.first().and_then(|figure| figure["notes"].as_str()).expect("notes");
    for reason in notes.split(", ").filter(|reason| !reason.is_empty()) {
        assert!(reason.ends_with(" as lost"), "{notes}");
    }

    let (grown, allowed) =
        (found.value("hostile, memory of the server"), found.value("hostile, memory that limits allow"));
    assert!(grown < allowed, "{grown} MB where limits allow {allowed} MB");
}
