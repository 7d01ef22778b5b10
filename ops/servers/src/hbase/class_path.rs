//! Where HBase's jars and the launcher are; `ops/hbase/build` makes them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use crate::programs;

/// The workspace, as it was when this was compiled.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The folder that cargo builds in: it marks it, and we run in it; else what it would take.
fn target() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let marked = program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists());
    let named = || root().join(programs::variable("CARGO_TARGET_DIR").unwrap_or_else(|| "target".to_owned()));
    marked.map_or_else(named, Path::to_owned)
}

/// What is missing, if the class path is not there and can't be made.
pub(super) fn missing() -> Option<&'static str> {
    let made = target().join("hbase");
    let is_made = made.join(".jars").exists() && made.join(".launcher").exists();
    let needed: &[_] = if is_made { &["java"] } else { &["java", "javac", "mvn"] };
    let absent = needed.iter().copied().find(|name| programs::find(name).is_none());
    if absent.is_some() || is_made {
        return absent;
    }
    // Who has these programs may still have no network.
    let error = build().err()?;
    eprintln!("{error:#}");
    Some("the class path of HBase")
}

/// A class path that begins with this folder. What is absent or outdated is made first, which takes a minute once; two
/// processes that find it so do it once.
pub(super) fn class_path(first: &Path) -> anyhow::Result<OsString> {
    build()?;
    let made = target().join("hbase");
    let mut class_path = first.as_os_str().to_owned();
    for part in ["classes", "jars/*"] {
        class_path.push(":");
        class_path.push(made.join(part));
    }
    Ok(class_path)
}

fn build() -> anyhow::Result<()> {
    let output = Command::new(root().join("ops/hbase/build"))
        .env("CARGO_TARGET_DIR", target())
        .stdin(Stdio::null())
        .output()
        .context("running ops/hbase/build")?;
    ensure!(
        output.status.success(),
        "ops/hbase/build failed:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
