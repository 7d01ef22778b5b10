//! Faults of the roles and of the engines below them, each under a stream of sends. Devices are on both fronts, sends go
//! through both processes that serve HTTPS, and the independent judge reads afterwards what was sent, answered and called
//! back: nothing accepted is lost, nothing comes twice, order per registration stays.

#[path = "harness/harness.rs"]
#[expect(clippy::allow_attributes, reason = "each test file uses a part of the harness")]
#[allow(dead_code, reason = "each test file uses a part of the harness")]
mod harness;
#[path = "harness/history.rs"]
#[expect(clippy::allow_attributes, reason = "each test file uses a part of it")]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod history;

#[path = "faults/away.rs"]
mod away;
#[path = "faults/engines.rs"]
mod engines;
#[path = "faults/processes.rs"]
mod processes;
#[path = "faults/releases.rs"]
mod releases;
#[path = "faults/stream.rs"]
mod stream;
