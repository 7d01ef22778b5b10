//! What an operator sets for a front: where it listens and how much it bears.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

pub use crate::proxy::Network;

/// Where a listener listens: port 0 takes any free port, `None` means there is no such listener.
pub type Listener = Option<SocketAddr>;

/// How a front listens, and its limits.
#[derive(Debug, Clone)]
pub struct Config {
    /// The XMPP domain that accounts are in; what a client's stream must be `to`.
    pub domain: String,
    /// Connections begin in the clear and must switch to TLS before anything else (usually port 5222).
    pub starttls: Listener,
    /// Connections begin with TLS (usually port 5223).
    pub tls: Listener,
    /// Connections without TLS, where only SCRAM is offered. Refused on an address that isn't loopback.
    pub plain: Listener,
    /// Services of channels connect here (XEP-0114), without TLS. Refused on an address that isn't loopback.
    pub component: Listener,
    /// Lets `plain` and `component` listen on any address.
    pub allow_plain_remote: bool,
    /// Other processes may listen on the same ports (`SO_REUSEPORT`); the kernel spreads new connections over all. Not where
    /// the port is 0: that one is this process's own.
    pub reuse_port: bool,
    /// Where connections come from that a load balancer passes on: they must begin with a header of the PROXY protocol,
    /// version 2, and count as those of the address in it. Whoever is elsewhere may send none.
    pub proxy_from: Vec<Network>,
    /// Channels that are served by others. No number and no name comes twice, and none is that of push.
    pub channels: Vec<ServedChannel>,
    /// How much the front bears.
    pub limits: Limits,
}

impl Default for Config {
    /// A front for `localhost` without listeners.
    fn default() -> Self {
        Self {
            domain: "localhost".to_owned(),
            starttls: None,
            tls: None,
            plain: None,
            component: None,
            allow_plain_remote: false,
            reuse_port: false,
            proxy_from: Vec::new(),
            channels: Vec::new(),
            limits: Limits::default(),
        }
    }
}

/// A channel that a component serves.
#[derive(Clone, PartialEq, Eq)]
pub struct ServedChannel {
    /// The channel.
    pub number: u16,
    /// The component's domain, by which it is known to the front and the front's errors; devices never see it.
    pub name: String,
    /// What it proves to know.
    pub secret: String,
}

impl fmt::Debug for ServedChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, name, secret: _ } = self;
        f.debug_struct("ServedChannel").field("number", number).field("name", name).finish_non_exhaustive()
    }
}

/// How much a front bears. Each limit that is hit is counted by a metric that names it.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections of all addresses, whether logged in or not. Over it: `resource-constraint`.
    pub connections_max: usize,
    /// Connections of one IPv4 address or one IPv6 /64. Over it: `policy-violation`.
    pub connections_per_address_max: usize,
    /// Connections that are not logged in yet. Over it: `resource-constraint`.
    pub handshakes_max: usize,
    /// Of these, how many may be of one IPv4 address or one IPv6 /64, so that nobody takes them all. Over it:
    /// `policy-violation`.
    pub handshakes_per_address_max: usize,
    /// Connections that the kernel keeps for each listener until they are taken; it has a limit of its own
    /// (`net.core.somaxconn`). Over it the kernel lets clients try again for a while.
    pub accept_queue_max: u32,
    /// From the first byte to a bound resource: TLS, SASL and bind together, and the header of a load balancer before.
    /// Over it: `connection-timeout`.
    pub login_time_max: Duration,
    /// Failed SASL exchanges on one connection. At the last one the stream ends with `policy-violation`.
    pub login_attempts_max: u32,
    /// Failed SASL exchanges of one IPv4 address or one IPv6 /64 in a minute, without those of connections that logged in
    /// after all. Over it connections of that address are refused with `policy-violation` until the minute is over. 0: no such
    /// limit.
    pub failed_logins_per_address_per_minute_max: usize,
    /// Bytes of one stanza before login. Over it: `policy-violation`.
    pub stanza_bytes_max_before_login: usize,
    /// Bytes of one stanza after login. Over it: `policy-violation`.
    pub stanza_bytes_max: usize,
    /// From the first byte of a stanza after login to its last. Over it, with the next byte that comes: `policy-violation`.
    pub stanza_time_max: Duration,
    /// Elements inside each other in one stanza. Over it: `policy-violation`.
    pub stanza_depth_max: usize,
    /// Bytes that wait to be written to one connection, or, with XEP-0198, to be acknowledged by it. Over it the
    /// connection ends: whatever had to reach it is stored and comes again.
    pub outbox_bytes_max: usize,
    /// Stanzas, and whatever else has to be answered or worked on, that one connection may send in a second. Over it:
    /// `policy-violation`. 0: no such limit.
    pub stanzas_in_per_second_max: usize,
    /// Bytes that one connection may send in a second, white space included. Over it: `policy-violation`. 0: no such limit.
    pub bytes_in_per_second_max: usize,
    /// Stanzas a second that one connection may have delivered to others; each receiver counts. Over it they are refused with
    /// `resource-constraint`.
    pub stanzas_per_second_max: usize,
    /// Channel requests of one connection that wait for the middle tier. Over it: `policy-violation`.
    pub channel_queue_max: usize,
    /// Bytes of payload in those requests. Over it: `policy-violation`.
    pub channel_queue_bytes_max: usize,
    /// How long one request to the middle tier may take before it is tried again.
    pub bus_time_max: Duration,
    /// How long a channel request is tried in all before the stream ends, so that the device comes back and tries anew.
    pub channel_retry_time_max: Duration,
    /// A connection that says nothing for this long is asked for a sign of life.
    pub idle_time_max: Duration,
    /// How long that sign of life may take before the connection counts as lost.
    pub probe_time_max: Duration,
    /// How long a write may make no progress, and how long the last words to a connection may take.
    pub write_time_max: Duration,
    /// How long a lost stream may be resumed (XEP-0198).
    pub resume_time_max: Duration,
    /// Lost streams that are kept for resumption. Over it a stream that is lost ends for good.
    pub resumable_max: usize,
    /// PBKDF2 derivations at one time, which are the dearest part of a SCRAM login. The others wait.
    pub scram_derivations_max: usize,
    /// Derived SCRAM keys that are remembered; over it the oldest are forgotten and derived again when needed.
    pub scram_keys_max: usize,
    /// Broadcasts that are remembered for connections whose channel is being opened. If more than that arrive while
    /// one opening is under way, the channel is opened again.
    pub recent_broadcasts_max: usize,
    /// Parts that the connections are divided into by account, each with a lock, a timer and a walk over its broadcasts of its
    /// own. 0: one for each core.
    pub hubs: usize,
    /// Connections written to in one go during a broadcast; after each go single sends take precedence.
    pub broadcast_chunk_max: usize,
    /// Connections written to in a second during broadcasts, by all hubs together, so that devices that come to life by a
    /// broadcast don't all do so at once. 0: no such limit.
    pub broadcast_writes_per_second_max: usize,
    /// Broadcasts at one time that reach each of their audience at a moment of its own. One more is left to the middle's
    /// judgements, which are slower.
    pub paced_broadcasts_max: usize,
    /// Connections that wait for their moments in all those broadcasts together, at 8 to 16 bytes each. Over it they are left
    /// to the middle's judgements.
    pub paced_slots_max: usize,
    /// Connections announced to the middle at one time after it lost its memory, and to the service of a channel after it
    /// came anew.
    pub announcements_max: usize,
    /// Connections of channel services, logged in or not. One more is closed.
    pub component_connections_max: usize,
    /// From the first byte of a channel's service to its proof of the secret. Over it: `connection-timeout`.
    pub component_login_time_max: Duration,
    /// Stanzas that wait to be written to one service. Over it devices get `resource-constraint`.
    pub component_queue_max: usize,
    /// Bytes of these. Over it devices get `resource-constraint`.
    pub component_queue_bytes_max: usize,
    /// Of these, how many may be one connection's. Over it that one gets `resource-constraint`.
    pub component_queue_per_device_max: usize,
    /// Openings that one service has not answered. Over it devices get `resource-constraint`.
    pub component_opens_max: usize,
    /// Bytes that a channel of others is opened with; they are kept for as long as it is open. Over it:
    /// `policy-violation`.
    pub component_open_bytes_max: usize,
    /// How long a service may take to answer an opening. Over it the device gets `remote-server-timeout`.
    pub component_answer_time_max: Duration,
    /// A service that says nothing for this long is asked for a sign of life, which may take `probe_time_max`.
    pub component_idle_time_max: Duration,
    /// Draining ends the connections in waves over this time, so that they come back spread over it.
    pub reconnect_spread: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 100_000,
            connections_per_address_max: 8192,
            handshakes_max: 4096,
            handshakes_per_address_max: 1024,
            accept_queue_max: 4096,
            login_time_max: Duration::from_secs(30),
            login_attempts_max: 3,
            failed_logins_per_address_per_minute_max: 600,
            stanza_bytes_max_before_login: 8 * 1024,
            stanza_bytes_max: 64 * 1024,
            stanza_time_max: Duration::from_mins(1),
            stanza_depth_max: 32,
            outbox_bytes_max: 4 * 1024 * 1024,
            stanzas_in_per_second_max: 1000,
            bytes_in_per_second_max: 1024 * 1024,
            stanzas_per_second_max: 100,
            channel_queue_max: 128,
            channel_queue_bytes_max: 512 * 1024,
            bus_time_max: Duration::from_secs(5),
            channel_retry_time_max: Duration::from_secs(20),
            idle_time_max: Duration::from_mins(15),
            probe_time_max: Duration::from_secs(30),
            write_time_max: Duration::from_secs(30),
            resume_time_max: Duration::from_mins(5),
            resumable_max: 100_000,
            scram_derivations_max: 2,
            scram_keys_max: 10_000,
            recent_broadcasts_max: 1024,
            hubs: 0,
            broadcast_chunk_max: 256,
            broadcast_writes_per_second_max: 0,
            paced_broadcasts_max: 64,
            paced_slots_max: 4_000_000,
            announcements_max: 64,
            component_connections_max: 16,
            component_login_time_max: Duration::from_secs(10),
            component_queue_max: 4096,
            component_queue_bytes_max: 4 * 1024 * 1024,
            component_queue_per_device_max: 64,
            component_opens_max: 1024,
            component_open_bytes_max: 4096,
            component_answer_time_max: Duration::from_secs(10),
            component_idle_time_max: Duration::from_mins(1),
            reconnect_spread: Duration::from_secs(5),
        }
    }
}
