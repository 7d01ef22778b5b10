//! What must be installed, and whether a test may do without it.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Where a program is. Servers are often in a folder that only the superuser's search path has.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let script = r#"PATH=$PATH:/usr/sbin:/usr/local/sbin; command -v "$1""#;
    let output = Command::new("sh").args(["-c", script, "find", name]).stdin(Stdio::null()).output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim_end());
    (output.status.success() && path.is_absolute()).then_some(path)
}

/// A variable of the environment, unless it is empty.
pub(crate) fn variable(name: &str) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "whoever runs the tests says so in the environment")]
    let value = std::env::var(name);
    value.ok().filter(|value| !value.is_empty())
}

/// False, and said aloud, if something is missing; panics if whoever runs the tests demands all of them.
pub(crate) fn present(missing: Option<&str>, package: &str) -> bool {
    let Some(missing) = missing else { return true };
    let demanded = ["CI", "DEMAND_ALL_TESTS"].into_iter().filter_map(variable).any(|value| value != "0");
    assert!(!demanded, "{missing} is not installed: ops/test installs it, from {package}");
    eprintln!("skipped: {missing} is not installed; ops/test installs it, from {package}");
    false
}
