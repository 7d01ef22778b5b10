//! Whatever comes in broken is answered with what was wrong, and nobody else suffers: after each case an honest device and
//! an honest sender on the same server go on as before. All over real sockets against the real binary.

#[path = "harness/harness.rs"]
#[expect(clippy::allow_attributes, reason = "each test file uses a part of the harness")]
#[allow(dead_code, reason = "each test file uses a part of the harness")]
mod harness;

#[path = "bad_input/api.rs"]
mod api;
#[path = "bad_input/channels.rs"]
mod channels;
#[path = "bad_input/disk.rs"]
mod disk;
#[path = "bad_input/limits.rs"]
mod limits;
#[path = "bad_input/login.rs"]
mod login;
#[path = "bad_input/peer.rs"]
mod peer;
#[path = "bad_input/request.rs"]
mod request;
#[path = "bad_input/tower.rs"]
mod tower;
#[path = "bad_input/xml.rs"]
mod xml;
