//! Waiting for something outside this process, which does not tell when it has happened.

use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(10);

/// Looks again and again until there is something, for at most so long; `None` if there never was.
pub(crate) fn until<T>(limit: Duration, mut look: impl FnMut() -> ControlFlow<T>) -> Option<T> {
    let begun = now();
    loop {
        if let ControlFlow::Break(found) = look() {
            return Some(found);
        }
        if begun.elapsed() >= limit {
            return None;
        }
        thread::sleep(PAUSE);
    }
}

/// Real time, since it is other processes that are waited for.
#[expect(clippy::disallowed_methods, reason = "processes do not live by a paused clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
