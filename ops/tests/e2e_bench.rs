//! `campanile bench`: that it measures what it says, not how fast anything is.

#[path = "harness/harness.rs"]
#[expect(clippy::allow_attributes, reason = "each test file uses a part of the harness")]
#[allow(dead_code, reason = "each test file uses a part of the harness")]
mod harness;

use std::collections::BTreeMap;
use std::fs;

use harness::server::{Server, campanile, text};
use serde_json::Value;

/// Figures by what they are of.
type Figures = BTreeMap<String, Value>;

fn bench(arguments: &[&str]) -> Figures {
    figures(&[&["--json", "bench"], arguments, &["--server", "campanile"]].concat())
}

fn figures(arguments: &[&str]) -> Figures {
    let output = campanile().args(arguments).output().expect("the binary runs");
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    let lines = text(&output.stdout);
    let figures = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"));
    figures.map(|figure| (figure["figure"].as_str().expect("a name").to_owned(), figure)).collect()
}

fn value(figures: &Figures, name: &str) -> f64 {
    let figure = figures.get(name).unwrap_or_else(|| panic!("no {name} among {:?}", figures.keys()));
    figure["value"].as_f64().unwrap_or_else(|| panic!("{figure}"))
}

#[test]
fn every_figure_over_tls_is_there_and_counts_what_was_asked_for() {
    let figures = bench(&[
        "all",
        "--tls",
        "--connections",
        "4",
        "--logins",
        "6",
        "--broadcasts",
        "20",
        "--rate",
        "40",
        "--seconds",
        "1",
        "--messages",
        "10",
    ]);
    for (name, figure) in &figures {
        assert_eq!((&figure["server"], &figure["transport"]), (&"campanile".into(), &"tls".into()), "{name}");
        assert!(figure["unit"].is_string() && figure["n"].as_u64() > Some(0), "{figure}");
    }
    for name in [
        "idle connection, bound",
        "idle connection, channel open, registered",
        "idle connection, channel open, registered, slim",
    ] {
        // Of so few connections it may even be below zero, but not megabytes.
        assert!(value(&figures, name).abs() < 4096.0, "{name}");
        assert_eq!(figures[name]["n"], 4, "{name}");
    }
    for name in ["login, full handshake: rate", "login, session ticket: rate"] {
        assert!(value(&figures, name) > 0.0, "{name}");
        assert_eq!(figures[name]["n"], 6, "{name}");
    }
    for acks in ["", ", acknowledged", ", slim", ", acknowledged, slim"] {
        for way in ["one at a time", "10 at once"] {
            let name = format!("broadcast, {way}{acks}: rate");
            assert!(value(&figures, &name) > 0.0, "{name}");
            assert_eq!(figures[&name]["n"], 20 * 4, "{name}");
        }
    }
    let (half, most) = (value(&figures, "single message at 40/s: p50"), value(&figures, "single message at 40/s: max"));
    assert!(0.0 < half && half <= most, "{half} ms, at most {most} ms");
    let notes = figures["single message at 40/s: p50"]["notes"].as_str().expect("notes");
    assert!(notes.contains("40 of 40 arrived"), "{notes}");
    for name in ["single message of 100 bytes", "broadcast of 100 bytes"] {
        // The payload, its seal and its place in the stream.
        let (xml, slim) = (format!("{name}: on the wire"), format!("{name}, slim: on the wire"));
        let (xml, slim) = (value(&figures, &xml), value(&figures, &slim));
        assert!((130.0..1000.0).contains(&slim) && slim < xml, "{name}: {xml} bytes, in slim {slim}");
    }
}

#[test]
fn a_message_takes_about_as_many_bytes_as_the_protocols_document_says() {
    let figures = bench(&["wire", "--tls", "--connections", "1", "--messages", "10"]);
    // `docs/protocol.md` §12, "What it costs": 194 and 327 bytes for the app `com.example.demo`. What a notification says
    // of itself beside its text makes a byte or two, which base 64 rounds up.
    for (form, said) in [(", slim", 194.0), ("", 327.0)] {
        let bytes = value(&figures, &format!("single message of 100 bytes{form}: on the wire"));
        assert!((said - 4.0..=said + 4.0).contains(&bytes), "{bytes} bytes{form}, {said} by the document");
    }
    let ack = |form: &str| value(&figures, &format!("acknowledging a single message{form}: on the wire"));
    assert!(0.0 < ack(", slim") && ack(", slim") < ack(""), "{figures:?}");
}

#[test]
fn without_tls_a_message_takes_fewer_bytes_than_with_it() {
    let bytes = |transport: &str| {
        let figures = bench(&["wire", transport, "--connections", "1", "--messages", "10"]);
        value(&figures, "single message of 100 bytes: on the wire")
    };
    // A record of TLS 1.3 has a header of 5 bytes, a tag of 16 and a byte for its type (RFC 8446 §5.2).
    let (plain, tls) = (bytes("--plain"), bytes("--tls"));
    assert!(plain + 22.0 <= tls, "{plain} bytes, with TLS {tls}");
}

#[test]
fn growth_tells_what_each_of_more_and_more_connections_costs() {
    let server = Server::start_with(&[
        ("http.plain", "127.0.0.1:0"),
        ("limits.http_accounts_per_address_per_minute", "0"),
        ("log.level", "warn"),
    ]);
    let (folder, accounts) = (server.data().display().to_string(), server.data().join("accounts.json"));
    let growth = |broadcasts: &str| {
        let accounts = accounts.to_str().expect("text");
        let more = ["--step", "5", "--step", "9", "--broadcasts", broadcasts, "--accounts", accounts];
        let arguments = ["--json", "--data", &folder, "bench", "growth", "--running", "--front", &folder];
        figures(&[&arguments[..], &more[..]].concat())
    };
    let bound = growth("0");
    let kept = fs::read(&accounts).expect("accounts are kept");
    let registered = growth("2");
    assert_eq!(fs::read(&accounts).expect("accounts are kept"), kept, "the same serve again");
    for (connections, figures) in [("5", &bound), ("9", &bound), ("5", &registered), ("9", &registered)] {
        assert!(value(figures, &format!("{connections} connections: logins of this step: rate")) > 0.0);
        // Of so few connections it may even be below zero, but not megabytes.
        let each = value(figures, &format!("{connections} connections: memory of the fronts for each"));
        assert!(each.abs() < 4096.0, "{each} KB");
    }
    assert!(!bound.contains_key("9 connections: broadcast: rate"), "who is only bound gets none");
    assert!(value(&registered, "9 connections: broadcast: rate") > 0.0);
}

#[test]
fn a_figure_that_nobody_asked_for_is_a_wrong_usage() {
    for wrong in [
        &["bench", "speed"][..],
        &["bench", "idle", "--connections", "0"],
        &["bench", "--pid", "1"],
        &["bench", "growth"],
    ] {
        let output = campanile().args(wrong).output().expect("the binary runs");
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {}", text(&output.stderr));
    }
}
