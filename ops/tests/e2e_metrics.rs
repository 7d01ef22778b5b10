//! What an operator relies on: each metric is in docs/operating.md and nothing else is, alerts ask for metrics that there are,
//! and the examples of settings are valid.

#[path = "harness/harness.rs"]
#[expect(clippy::allow_attributes, reason = "each test file uses a part of the harness")]
#[allow(dead_code, reason = "each test file uses a part of the harness")]
mod harness;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use harness::server::{Server, campanile, text};
use rcgen::{CertificateParams, KeyPair};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is around ops").to_owned()
}

fn file(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What is in double quotes in front of this place's next `"`, where `before` ends the text.
fn literals_after(source: &str, before: &str) -> Vec<String> {
    let found = source.match_indices(before).filter_map(|(at, _)| {
        let rest = source[at + before.len()..].trim_start().strip_prefix('"')?;
        rest.split_once('"').map(|(literal, _)| literal.to_owned())
    });
    found.collect()
}

/// A name as it is on the page, from what it is registered with: libraries put a kind behind some.
fn page_name(name: &str) -> String {
    if name == "campanile_build" { "campanile_build_info".to_owned() } else { name.to_owned() }
}

/// Every metric, from where it is registered. Pages don't show those whose labels were never used, nor those of engines that
/// are not there.
fn registered() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    // Names behind a prefix that the whole file has.
    for (path, calls) in [
        ("middle-tier/src/metrics.rs", &["registry.register(", "counter("][..]),
        ("xmpp-frontend/src/metrics.rs", &["registry.register(", "gauge(", "counter("]),
        ("ops/src/identity/certificate.rs", &["registry.register("]),
    ] {
        let source = file(path);
        let prefix = literals_after(&source, "sub_registry_with_prefix(");
        let [prefix] = &prefix[..] else { panic!("{path} has prefixes {prefix:?}") };
        let behind: Vec<_> = calls.iter().flat_map(|call| literals_after(&source, call)).collect();
        assert!(behind.len() > 1, "{path} registers {behind:?}");
        names.extend(behind.into_iter().map(|name| format!("{prefix}_{name}")));
    }
    let http = literals_after(&file("http-frontend/src/metrics.rs"), "name(");
    names.extend(http.into_iter().map(|name| format!("campanile_http_{name}")));
    // Whole names.
    for path in ["ops/src/telemetry.rs", "ops/src/telemetry/figures.rs", "middle-tier/src/near.rs"] {
        let source = file(path);
        let code = source.split("#[cfg(test)]").next().unwrap_or_default();
        let literals = code.split('"').skip(1).step_by(2);
        let is_name = |literal: &&str| {
            let known = literal.starts_with("campanile_") || literal.starts_with("process_");
            known && literal.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        };
        names.extend(literals.filter(is_name).map(page_name));
    }
    names
}

/// Every metric that has a row in the document.
fn documented() -> BTreeSet<String> {
    let document = file("docs/operating.md");
    let (_, metrics) = document.split_once("\n## Metrics\n").expect("a section on metrics");
    let (metrics, _) = metrics.split_once("\n## ").expect("more after it");
    let rows = metrics.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let mut names = BTreeSet::new();
    for (name, _) in rows {
        assert!(names.insert(name.to_owned()), "docs/operating.md tells of {name} twice");
    }
    names
}

#[test]
fn every_metric_is_in_the_operators_document_and_nothing_else_is() {
    let (registered, documented) = (registered(), documented());
    let missing: Vec<_> = registered.difference(&documented).collect();
    assert!(missing.is_empty(), "docs/operating.md does not tell of {missing:?}");
    let gone: Vec<_> = documented.difference(&registered).collect();
    assert!(gone.is_empty(), "docs/operating.md tells of {gone:?}, which nothing registers");
}

#[test]
fn what_a_server_shows_is_in_the_operators_document() {
    let server = Server::start();
    let (status, page) = server.telemetry("/metrics");
    assert_eq!(status, 200, "{page}");
    let shown: BTreeSet<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, _)| page_name(name))
        .collect();
    assert!(shown.len() > 20, "{page}");
    let documented = documented();
    let missing: Vec<_> = shown.difference(&documented).collect();
    assert!(missing.is_empty(), "docs/operating.md does not tell of {missing:?}");
}

#[test]
fn alerts_ask_for_metrics_that_there_are_and_each_is_explained() {
    let (rules, documented) = (file("ops/alerts/campanile.yml"), documented());
    let words = rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let names: BTreeSet<_> = words.filter(|word| word.starts_with("campanile_")).collect();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        let base = ["_total", "_bucket", ""].into_iter().find_map(|end| {
            let base = name.strip_suffix(end)?;
            documented.contains(base).then_some(base)
        });
        assert!(base.is_some(), "an alert asks for {name}, which docs/operating.md does not tell of");
    }
    let document = file("docs/operating.md");
    let (_, alerts) = document.split_once("\n## Alerts\n").expect("a section on alerts");
    let (alerts, _) = alerts.split_once("\n## ").expect("more after it");
    let cells = alerts.lines().filter_map(|line| line.strip_prefix("| `")).filter_map(|row| row.split(" |").next());
    let explained: BTreeSet<_> = cells.flat_map(|cell| cell.split(['`', ','])).map(str::trim).collect();
    let explained: BTreeSet<_> = explained.into_iter().filter(|word| !word.is_empty()).collect();
    let ruled: BTreeSet<_> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).map(str::trim).collect();
    assert_eq!(explained, ruled, "docs/operating.md and ops/alerts/campanile.yml have different alerts");
}

#[test]
fn the_examples_of_settings_are_valid() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = |name: &str| folder.path().join(name);
    for name in ["keys.json", "redis-password", "mysql-password"] {
        fs::write(here(name), "secret\n").expect("writes");
    }
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["push.example.com".to_owned()]).expect("a name");
    let certificate = params.self_signed(&key).expect("a certificate");
    for (name, pem) in
        [("tls.pem", certificate.pem()), ("tls.key", key.serialize_pem()), ("engines-ca.pem", certificate.pem())]
    {
        fs::write(here(name), pem).expect("writes");
    }
    for role in ["middle", "front", "http"] {
        let example = file(&format!("ops/examples/{role}.toml"));
        let settings = example.replace("/etc/campanile", &folder.path().display().to_string());
        fs::write(here("settings.toml"), settings).expect("writes");
        let output =
            campanile().arg("check-config").arg("--config").arg(here("settings.toml")).output().expect("it runs");
        assert!(output.status.success(), "{role}: {}", text(&output.stderr));
        assert!(text(&output.stdout).contains(&format!("role = \"{role}\"")), "{role}");
    }
}

#[test]
fn the_example_for_redis_allows_what_bus_and_cache_say_that_they_need() {
    let example = file("ops/examples/redis.conf");
    let rules = |text: &str| -> BTreeSet<String> {
        let line = text.lines().map(|line| line.trim_start_matches("///").trim());
        let line = line.into_iter().find(|line| line.starts_with("user campanile ")).expect("a rule for the user");
        line.split(' ').filter(|word| word.starts_with('+')).map(str::to_owned).collect()
    };
    let allowed = rules(&example);
    let needed: BTreeSet<_> = ["schema/src/cache/redis/options.rs", "idl/src/bus/redis/options.rs"]
        .into_iter()
        .flat_map(|path| rules(&file(path)))
        .collect();
    assert_eq!(allowed, needed);
}
