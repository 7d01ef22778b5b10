//! The house rules that a compiler can't see: who may import whom, what files are called and how long they are, what
//! must not be written into them, and that documents point at things that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_metadata::{DependencyKind, MetadataCommand, Package};

/// The crate table of ARCHITECTURE.md: folder, what it may use of ours, and packages that it must never name.
const CRATES: &[(&str, &[&str], &[&str])] = &[
    ("idl", &[], &["axum", "hyper", "ureq", "fjall", "rusqlite", "mysql_async", "hbase-thrift"]),
    ("schema", &["idl"], &["axum", "hyper", "minidom", "rxml"]),
    (
        "middle-tier",
        &["idl", "schema"],
        &["axum", "hyper", "minidom", "rxml", "fjall", "rusqlite", "moka", "redis", "mysql_async", "hbase-thrift"],
    ),
    ("xmpp-frontend", &["idl"], &["fjall", "rusqlite", "redis", "mysql_async", "hbase-thrift"]),
    ("http-frontend", &["idl"], &["fjall", "rusqlite", "redis", "mysql_async", "hbase-thrift", "minidom"]),
    ("sdk-android-bridge", &["idl"], &["axum", "hyper", "fjall", "rusqlite", "prometheus-client"]),
    ("ops/servers", &[], &["tokio", "redis", "mysql_async", "hbase-thrift"]),
    ("ops", &["idl", "schema", "middle-tier", "xmpp-frontend", "http-frontend", "sdk-android-bridge"], &[]),
];

const LINES_MAX: usize = 900;
const MAIN_LINES_MAX: usize = 80;

/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["common", "utils", "util", "helpers", "helper", "types", "manager", "misc", "mod"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is around ops").to_owned()
}

/// Every file of the tree, as a path from its root; what is built or fetched is left out.
fn files() -> Vec<PathBuf> {
    const NOT_OURS: &[&str] =
        &["target", "node_modules", "campanile-data", ".git", "__pycache__", "proptest-regressions"];
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a folder of the tree").map(|entry| entry.expect("an entry")) {
            let path = entry.path();
            if NOT_OURS.iter().any(|name| entry.file_name() == *name) {
                continue;
            }
            if entry.file_type().expect("a type").is_dir() {
                walk(&path, found);
            } else {
                found.push(path);
            }
        }
    }
    let (root, mut found) = (root(), Vec::new());
    walk(&root, &mut found);
    found.iter().map(|path| path.strip_prefix(&root).expect("below the root").to_owned()).collect()
}

fn sources() -> Vec<(PathBuf, String)> {
    files()
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter(|path| !path.starts_with("idl/src/gen"))
        .map(|path| (path.clone(), text(&path)))
        .collect()
}

fn documents() -> Vec<(PathBuf, String)> {
    let is_document = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "md");
    files().into_iter().filter(is_document).map(|path| (path.clone(), text(&path))).collect()
}

/// A file as text; what is not text counts as empty.
fn text(path: &Path) -> String {
    String::from_utf8(fs::read(root().join(path)).expect("a file of the tree")).unwrap_or_default()
}

/// Every package by its folder, as a path from the root.
fn packages() -> BTreeMap<String, Package> {
    let metadata = MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .expect("cargo knows the workspace");
    let folder = |package: &Package| {
        let folder = package.manifest_path.parent().and_then(|folder| folder.strip_prefix(root()).ok());
        folder.expect("a package is in a folder below the root").to_string()
    };
    metadata.packages.into_iter().map(|package| (folder(&package), package)).collect()
}

#[test]
fn each_crate_imports_what_the_table_allows_and_nothing_it_must_not_know() {
    let packages = packages();
    let folders: BTreeSet<_> = packages.keys().map(String::as_str).collect();
    assert_eq!(folders, CRATES.iter().map(|(folder, ..)| *folder).collect(), "a crate is not in the table");
    for (folder, may, must_not) in CRATES {
        let package = &packages[*folder];
        for dependency in
            package.dependencies.iter().filter(|dependency| dependency.kind != DependencyKind::Development)
        {
            let ours = packages.iter().find(|(_, other)| other.name.as_str() == dependency.name);
            if let Some((other, _)) = ours {
                assert!(may.contains(&other.as_str()), "{folder} must not import {other}");
            }
            assert!(!must_not.contains(&dependency.name.as_str()), "{folder} must not name {}", dependency.name);
        }
    }
}

#[test]
fn devices_and_idl_need_no_runtime_of_the_servers() {
    let packages = packages();
    let bridge = &packages["sdk-android-bridge"];
    let idl = bridge.dependencies.iter().find(|dependency| dependency.name == "campanile-idl").expect("it uses idl");
    assert!(!idl.features.iter().any(|feature| feature == "bus"), "the device side must not use the bus");
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--package", "campanile-idl", "--edges", "normal", "--prefix", "none", "--locked", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).expect("cargo writes UTF-8");
    assert!(tree.starts_with("campanile-idl"), "{tree}");
    assert!(!tree.lines().any(|line| line.starts_with("tokio ")), "idl without the bus pulls in tokio:\n{tree}");
}

#[test]
fn every_crate_keeps_the_lints_of_the_workspace() {
    for folder in packages().keys() {
        let manifest = text(&Path::new(folder).join("Cargo.toml"));
        assert!(manifest.contains("[lints]\nworkspace = true\n"), "{folder}/Cargo.toml has lints of its own");
    }
}

#[test]
fn files_have_names_that_say_something_and_lengths_that_can_be_read() {
    for (path, source) in sources() {
        let shown = path.display();
        for part in path.with_extension("").components() {
            let name = part.as_os_str().to_string_lossy();
            assert!(!EMPTY_NAMES.contains(&name.as_ref()), "{shown}: the name {name} says nothing");
        }
        let lines = source.lines().count();
        assert!(lines <= LINES_MAX, "{shown} has {lines} lines; more than {LINES_MAX} are too many");
    }
    let main = text(Path::new("ops/src/main.rs")).lines().count();
    assert!(main <= MAIN_LINES_MAX, "ops/src/main.rs has {main} lines; {MAIN_LINES_MAX} are enough");
}

#[test]
fn no_source_leaves_work_undone_or_tests_unrun() {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("to", "do!("), concat!("unimpl", "emented!(")];
    for (path, source) in sources() {
        for word in words {
            assert!(!source.contains(word), "{}: {word}", path.display());
        }
        assert!(!source.contains(concat!("#[ign", "ore")), "{}: a test is not run", path.display());
    }
}

#[test]
fn nothing_of_the_machine_it_was_written_on_is_in_the_tree() {
    let places = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];
    for path in files() {
        let text = text(&path);
        for place in places {
            assert!(!text.contains(place), "{} names {place}", path.display());
        }
    }
}

#[test]
fn locked_packages_come_from_the_public_registries() {
    for path in files() {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let (marker, registry) = match name.as_str() {
            "Cargo.lock" => ("source = \"", "registry+https://github.com/rust-lang/crates.io-index"),
            "package-lock.json" => ("\"resolved\": \"", "https://registry.npmjs.org/"),
            _ => continue,
        };
        for line in text(&path).lines() {
            if let Some((_, source)) = line.split_once(marker) {
                assert!(source.starts_with(registry), "{}: {line}", path.display());
            }
        }
    }
}

#[test]
fn links_in_documents_lead_somewhere() {
    for (path, document) in documents() {
        let folder = path.parent().expect("a document is in a folder");
        for link in document.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            assert!(
                root().join(folder).join(target).exists(),
                "{} links to {target}, which is not there",
                path.display()
            );
        }
    }
}

#[test]
fn files_that_documents_name_exist() {
    let folders: BTreeSet<_> = CRATES.iter().map(|(folder, ..)| *folder).chain(["docs", ".ci", ".config"]).collect();
    for (path, document) in documents() {
        // What is between back ticks, outside blocks of code.
        let prose: String = document.split("```").step_by(2).collect();
        for word in prose.split('`').skip(1).step_by(2) {
            let named = word.split([' ', ':', '#']).next().unwrap_or_default().trim_end_matches('/');
            let plain = !named.contains(['*', '{', '<', '…', '$']);
            let first = named.split('/').next().unwrap_or_default();
            if plain && named.contains('/') && folders.contains(first) {
                assert!(root().join(named).exists(), "{} names {named}, which is not there", path.display());
            }
        }
    }
}

#[test]
fn the_crate_table_of_the_architecture_is_the_one_that_is_held() {
    let document = text(Path::new("ARCHITECTURE.md"));
    for (folder, may, _) in CRATES.iter().filter(|(folder, ..)| *folder != "ops") {
        let row = document.lines().find(|line| line.starts_with(&format!("| `{folder}/` |")));
        let row = row.unwrap_or_else(|| panic!("{folder} is not in the code map"));
        let last = row.trim_end_matches(" |").rsplit('|').next().unwrap_or_default().replace("(no bus)", "");
        let said: BTreeSet<_> = last.split(',').map(str::trim).filter(|word| *word != "nothing").collect();
        assert_eq!(said, may.iter().copied().collect(), "{folder}: the code map and the table differ");
    }
}
