//! That a server is gone, with its files, soon after its starter was killed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

/// Has another process start the server, kills that process, and waits for the server to follow.
pub(crate) fn never(name: &str) {
    let mut starter = Command::new(env!("CARGO_BIN_EXE_campanile-servers"))
        .arg(name)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the starter starts");
    let mut line = String::new();
    BufReader::new(starter.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
    let parts: Vec<_> = line.trim_end().split('\t').collect();
    let [_, _, pid, log] = parts[..] else { panic!("where it is, not {line:?}") };
    let (process, folder) = (Path::new("/proc").join(pid), Path::new(log).parent().expect("a folder"));
    assert!(process.exists() && folder.exists(), "{line}");
    // SIGKILL: it can't clear up.
    starter.kill().expect("it can be killed");
    starter.wait().expect("it ends");
    let gone = (0..1000).any(|_| {
        thread::sleep(Duration::from_millis(10));
        !process.exists() && !folder.exists()
    });
    assert!(gone, "{name} or its files outlived its starter: {line}");
}
