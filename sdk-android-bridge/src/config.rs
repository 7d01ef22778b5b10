//! What a device is told once: who it is, which apps it has, and its limits.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use idl::ids::{AccountId, AppId};

use crate::reconnect::Backoff;

/// Who the device is and how it behaves.
#[derive(Clone, PartialEq, Eq)]
pub struct Config {
    /// The server's XMPP domain.
    pub domain: String,
    /// The resource to bind. A newer login with the same account and resource ends the older one.
    pub resource: String,
    /// The device's account, made over HTTPS.
    pub account: AccountId,
    /// The account's token.
    pub token: String,
    /// After this silence the server is asked whether it lives.
    pub heartbeat: Duration,
    /// Longest time from the attempt to connect to the opened channel.
    pub login_time_max: Duration,
    /// Longest time from a command to its result. Without an answer it is sent again after a third of it.
    pub command_time_max: Duration,
    /// An acknowledgement waits this long for others.
    pub ack_delay: Duration,
    /// When this many wait, they leave at once.
    pub ack_batch_max: usize,
    /// Waits between attempts to connect.
    pub backoff: Backoff,
    /// Ids of messages and revocations in an app's duplicate window. Must be well above what can come again: the server's
    /// window of unacknowledged deliveries and the broadcasts between two of its judgements.
    pub seen_max: usize,
    /// Pushes that an app may have without saying what became of them. One more, and the device disconnects; they
    /// come again.
    pub unhandled_max: usize,
    /// Largest stanza or slim frame that the server may send, in bytes.
    pub stanza_bytes_max: usize,
    /// Speak slim frames instead of XML where the server offers them.
    pub slim: bool,
}

impl Config {
    /// A device with the usual limits and the resource `push`.
    pub fn new(domain: impl Into<String>, account: AccountId, token: impl Into<String>) -> Self {
        Self {
            domain: domain.into(),
            resource: "push".to_owned(),
            account,
            token: token.into(),
            heartbeat: Duration::from_mins(4),
            login_time_max: Duration::from_secs(30),
            command_time_max: Duration::from_mins(1),
            ack_delay: Duration::from_millis(200),
            ack_batch_max: 64,
            backoff: Backoff::default(),
            seen_max: 1000,
            unhandled_max: 1000,
            stanza_bytes_max: 64 * 1024,
            slim: true,
        }
    }
}

impl fmt::Debug for Config {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("domain", &self.domain)
            .field("resource", &self.resource)
            .field("account", &self.account)
            .field("heartbeat", &self.heartbeat)
            .field("backoff", &self.backoff)
            .finish_non_exhaustive()
    }
}

/// One app on the device. At most 256 apps take part (the server's limit for one device).
#[derive(Clone, PartialEq, Eq)]
pub struct AppConfig {
    /// The application's id.
    pub app: AppId,
    /// Its package name.
    pub package: String,
    /// The key that ships in the app.
    pub app_key: String,
    /// platform, `app_version`, locale, model, region, … When they change, the app registers again.
    pub attributes: BTreeMap<String, String>,
}

impl fmt::Debug for AppConfig {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppConfig")
            .field("app", &self.app)
            .field("package", &self.package)
            .field("attributes", &self.attributes)
            .finish_non_exhaustive()
    }
}
