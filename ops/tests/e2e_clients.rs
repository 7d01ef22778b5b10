//! Clients that others wrote, unchanged, against the real binary: server SDKs of Mi Push that npm and PyPI have send and ask,
//! PyPI's slixmpp is the device. They are in `ops/tests/clients/`.

#[path = "harness/harness.rs"]
#[expect(clippy::allow_attributes, reason = "each test file uses a part of the harness")]
#[allow(dead_code, reason = "each test file uses a part of the harness")]
mod harness;

#[path = "clients/driver.rs"]
mod driver;
#[path = "clients/program.rs"]
mod program;
#[path = "clients/push_xiaomi.rs"]
mod push_xiaomi;
#[path = "clients/receipts.rs"]
mod receipts;
#[path = "clients/slixmpp.rs"]
mod slixmpp;
#[path = "clients/town.rs"]
mod town;
#[path = "clients/xiaomi_push.rs"]
mod xiaomi_push;
#[path = "clients/xiaomipush.rs"]
mod xiaomipush;
#[path = "clients/xmpush_python.rs"]
mod xmpush_python;
