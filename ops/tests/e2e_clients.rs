//! Clients that others wrote, unchanged, against the real binary: server SDKs of Mi Push that npm and PyPI have send and ask,
//! XMPP clients of six makes are the devices. They are in `ops/tests/clients/`.

#[path = "harness/harness.rs"]
#[expect(clippy::allow_attributes, reason = "each test file uses a part of the harness")]
#[allow(dead_code, reason = "each test file uses a part of the harness")]
mod harness;

#[path = "clients/driver.rs"]
mod driver;
#[path = "clients/go_sendxmpp.rs"]
mod go_sendxmpp;
#[path = "clients/guest.rs"]
mod guest;
#[path = "clients/payloads.rs"]
mod payloads;
#[path = "clients/profanity.rs"]
mod profanity;
#[path = "clients/program.rs"]
mod program;
#[path = "harness/proxy.rs"]
mod proxy;
#[path = "clients/push_xiaomi.rs"]
mod push_xiaomi;
#[path = "clients/receipts.rs"]
mod receipts;
#[path = "clients/sessions.rs"]
mod sessions;
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
