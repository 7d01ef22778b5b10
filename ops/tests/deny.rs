//! Holds `deny.toml` over the locked dependencies: licenses, bans and sources, in the way of cargo-deny. A test, because
//! cargo-deny itself would be compiled for minutes on every fresh machine; who has it can run it on the same file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_metadata::{Metadata, MetadataCommand};
use toml::{Table, Value};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is around ops").to_owned()
}

fn rules() -> Table {
    let text = std::fs::read_to_string(root().join("deny.toml")).expect("deny.toml is there");
    text.parse().expect("deny.toml is TOML")
}

fn strings(rules: &Table, section: &str, key: &str) -> BTreeSet<String> {
    let list = rules[section].get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |entry: &Value| match entry {
        Value::Table(table) => table["crate"].as_str().map(str::to_owned),
        other => other.as_str().map(str::to_owned),
    };
    list.iter().map(|entry| text(entry).expect("a string, or a table with crate = \"…\"")).collect()
}

/// What is locked for this machine's kind.
fn locked() -> Metadata {
    let version = Command::new("rustc").arg("-vV").output().expect("rustc runs").stdout;
    let version = String::from_utf8(version).expect("rustc writes UTF-8");
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).expect("rustc names its host");
    let options = ["--locked", "--offline", "--filter-platform", host].map(str::to_owned);
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .other_options(options.to_vec())
        .exec()
        .expect("the lock file is whole and what it names has been fetched")
}

#[test]
fn every_license_is_one_we_allow() {
    let allowed = strings(&rules(), "licenses", "allow");
    for package in &locked().packages {
        let license = package.license.clone().unwrap_or_default();
        assert!(allows(&license, &allowed), "{} {} has the license {license:?}", package.name, package.version);
    }
}

#[test]
fn an_expression_is_allowed_as_spdx_means_it() {
    let allowed = BTreeSet::from(["MIT".to_owned(), "ISC".to_owned(), "Apache-2.0 WITH LLVM-exception".to_owned()]);
    for yes in [
        "MIT",
        "MIT OR GPL-2.0",
        "MIT/GPL-2.0",
        "MIT AND ISC",
        "(GPL-2.0 OR MIT) AND ISC",
        "Apache-2.0 WITH LLVM-exception",
    ] {
        assert!(allows(yes, &allowed), "{yes}");
    }
    for no in ["", "GPL-2.0", "MIT AND GPL-2.0", "Apache-2.0", "(MIT OR ISC) AND GPL-2.0", "MIT OR (", "MIT ISC"] {
        assert!(!allows(no, &allowed), "{no}");
    }
}

#[test]
fn nothing_is_there_twice_but_what_we_know_of() {
    let rules = rules();
    let skipped = strings(&rules, "bans", "skip");
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in &locked().packages {
        versions.entry(package.name.to_string()).or_default().push(package.version.to_string());
    }
    let mut needed = BTreeSet::new();
    for (name, versions) in versions.iter().filter(|(_, versions)| versions.len() > 1) {
        let known: Vec<_> =
            versions.iter().map(|version| format!("{name}@{version}")).filter(|id| skipped.contains(id)).collect();
        assert!(known.len() + 1 >= versions.len(), "{name} is there in versions {}", versions.join(", "));
        needed.extend(known);
    }
    assert_eq!(needed, skipped, "deny.toml skips what is not there twice any more");
    let denied = strings(&rules, "bans", "deny");
    for name in versions.keys() {
        assert!(!denied.contains(name), "{name} is banned by deny.toml");
    }
}

#[test]
fn everything_comes_from_the_public_registry_or_from_here() {
    let allowed = strings(&rules(), "sources", "allow-registry");
    for package in &locked().packages {
        if let Some(source) = &package.source {
            let registry = source.repr.strip_prefix("registry+").unwrap_or(&source.repr);
            assert!(allowed.contains(registry), "{} {} comes from {source}", package.name, package.version);
        }
    }
}

/// Whether an SPDX expression can be satisfied with the allowed licenses. `AND` binds stronger than `OR`.
fn allows(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    any_of(&mut rest, allowed) == Some(true) && rest.is_empty()
}

fn any_of(words: &mut &[&str], allowed: &BTreeSet<String>) -> Option<bool> {
    let mut result = all_of(words, allowed)?;
    while let ["OR", rest @ ..] = *words {
        *words = rest;
        result |= all_of(words, allowed)?;
    }
    Some(result)
}

fn all_of(words: &mut &[&str], allowed: &BTreeSet<String>) -> Option<bool> {
    let mut result = one(words, allowed)?;
    while let ["AND", rest @ ..] = *words {
        *words = rest;
        result &= one(words, allowed)?;
    }
    Some(result)
}

fn one(words: &mut &[&str], allowed: &BTreeSet<String>) -> Option<bool> {
    match *words {
        ["(", rest @ ..] => {
            *words = rest;
            let result = any_of(words, allowed)?;
            *words = words.strip_prefix(&[")"])?;
            Some(result)
        }
        [license, "WITH", exception, rest @ ..] => {
            *words = rest;
            Some(allowed.contains(&format!("{license} WITH {exception}")))
        }
        [license, rest @ ..] if !matches!(*license, ")" | "OR" | "AND" | "WITH") => {
            *words = rest;
            Some(allowed.contains(*license))
        }
        _ => None,
    }
}
