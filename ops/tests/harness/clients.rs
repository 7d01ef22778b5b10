//! Clients that others wrote, as `ops/test` installs them. Where one is absent a test says so and passes, unless `CI` or
//! `DEMAND_ALL_TESTS=1` demands it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use campanile_ops::config::variable;

/// The folder `ops/tests/clients`.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

/// Node with that package of npm, ready for the arguments of its `drive.js`; `None` where it is absent and may be.
pub(crate) fn npm(package: &str) -> Option<Command> {
    let folder = folder().join(package);
    let there = runs("node", "--version") && folder.join("node_modules").join(package).exists();
    present(there, &format!("npm's {package}")).then(|| {
        let mut command = Command::new("node");
        command.arg(folder.join("drive.js"));
        command
    })
}

/// Python with PyPI's slixmpp, ready for the arguments of `receive.py`; `None` where it is absent and may be.
pub(crate) fn slixmpp() -> Option<Command> {
    let python = python("slixmpp");
    let there = python.exists() && runs("thrift", "--version");
    present(there, "PyPI's slixmpp with the Thrift compiler").then(|| {
        let mut command = Command::new(python);
        command.arg(folder().join("slixmpp/receive.py"));
        command
    })
}

/// An XMPP client, ready for the arguments of its session script: `slixmpp`, `nbxmpp`, `xmpp-client` or `tokio-xmpp`; `None`
/// where it is absent and may be.
pub(crate) fn session(client: &str) -> Option<Command> {
    let folder = folder().join(client);
    let (there, program, script) = match client {
        "slixmpp" | "nbxmpp" => {
            let python = python(client);
            (python.exists(), python, Some("session.py"))
        }
        "xmpp-client" => {
            let there = runs("node", "--version") && folder.join("node_modules/@xmpp/client").exists();
            (there, "node".into(), Some("session.js"))
        }
        "tokio-xmpp" => {
            let built = target().join("tokio-xmpp/debug/campanile-client-tokio-xmpp");
            (built.exists(), built, None)
        }
        other => panic!("there is no {other}"),
    };
    present(there, client).then(|| {
        let mut command = Command::new(program);
        command.args(script.map(|script| folder.join(script)));
        command
    })
}

/// Debian's go-sendxmpp; `None` where it is absent and may be.
pub(crate) fn go_sendxmpp() -> Option<Command> {
    present(runs("go-sendxmpp", "--version"), "go-sendxmpp").then(|| Command::new("go-sendxmpp"))
}

/// tmux, for Debian's profanity; `None` where either is absent and may be.
pub(crate) fn profanity() -> Option<Command> {
    let there = runs("profanity", "--version") && runs("tmux", "-V");
    present(there, "profanity with tmux").then(|| Command::new("tmux"))
}

/// Python with PyPI's xmpush-python, ready for the arguments of `drive.py`; `None` where it is absent and may be.
pub(crate) fn xmpush_python() -> Option<Command> {
    let python = python("xmpush");
    present(python.exists(), "PyPI's xmpush-python").then(|| {
        let mut command = Command::new(python);
        command.arg(folder().join("xmpush-python/drive.py"));
        command
    })
}

/// PyPI's schemathesis; `None` where it is absent and may be.
pub(crate) fn schemathesis() -> Option<Command> {
    let python = python("schemathesis");
    present(python.exists(), "PyPI's schemathesis").then(|| {
        let mut command = Command::new(python);
        command.args(["-m", "schemathesis.cli"]);
        command
    })
}

/// The Python of a client's own, in the target folder.
fn python(name: &str) -> PathBuf {
    target().join(name).join("bin/python")
}

fn target() -> &'static Path {
    // Beside the folder that cargo gives to tests.
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it is in the target folder")
}

/// curl; `None` where it is absent and may be.
pub(crate) fn curl() -> Option<Command> {
    present(runs("curl", "--version"), "curl").then(|| Command::new("curl"))
}

/// Whether the test must not do without anything.
pub(crate) fn demanded() -> bool {
    ["CI", "DEMAND_ALL_TESTS"]
        .into_iter()
        .any(|name| variable(name).is_some_and(|value| !value.is_empty() && value != "0"))
}

fn present(there: bool, what: &str) -> bool {
    assert!(there || !demanded(), "{what} is not installed; ops/test installs it");
    if !there {
        eprintln!("skipped: {what} is not installed; ops/test installs it");
    }
    there
}

fn runs(program: &str, argument: &str) -> bool {
    let quiet =
        Command::new(program).arg(argument).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    quiet.is_ok_and(|status| status.success())
}
