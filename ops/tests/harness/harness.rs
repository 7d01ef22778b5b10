//! What end-to-end tests stand on: the real binary as one process or by its roles on free ports, devices on the terminal and devices in
//! this process, all over real TLS.
//!
//! A test file takes it in with
//!
//! ```text
//! #[path = "harness/harness.rs"]
//! #[expect(clippy::allow_attributes, reason = "each test file uses a part of the harness")]
//! #[allow(dead_code, reason = "each test file uses a part of the harness")]
//! mod harness;
//! ```

pub(crate) mod app_server;
pub(crate) mod clients;
pub(crate) mod fleet;
pub(crate) mod http;
mod one_process;
pub(crate) mod receiver;
pub(crate) mod roles;
pub(crate) mod server;
pub(crate) mod terminal;

use std::fmt::Display;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long anything that will happen may take on a busy machine with two cores.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// Looks again and again until there is something; panics with what was awaited after [`PATIENCE`].
pub(crate) fn wait_for<T>(what: impl Display, look: impl FnMut() -> Option<T>) -> T {
    wait_until(PATIENCE, what, look)
}

/// [`wait_for`] with a time of its own.
pub(crate) fn wait_until<T>(patience: Duration, what: impl Display, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(now() < deadline, "{what}: not within {} s", patience.as_secs());
        sleep(Duration::from_millis(10));
    }
}

/// The same for async tests: other tasks go on meanwhile.
pub(crate) async fn eventually<T>(what: impl Display, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(now() < deadline, "{what}: not within {} s", PATIENCE.as_secs());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[expect(clippy::disallowed_methods, reason = "these tests run against real processes in real time")]
fn now() -> Instant {
    Instant::now()
}
