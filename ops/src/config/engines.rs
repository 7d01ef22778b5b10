//! The engines of an installation of several processes: where they are.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use schema::cache::redis::RedisOptions;
use schema::catalog::mysql::MysqlOptions;

use super::urls::{self, MysqlUrl, RedisUrl, Secret};
use super::values::{Compression, Prefix, Transport};

/// `[hbase]`
#[derive(Debug, Clone, Default)]
pub struct Hbase {
    /// Thrift gateways.
    pub gateways: Vec<Gateway>,
    /// How they frame what is said to them.
    pub transport: Transport,
    /// What the names of tables begin with.
    pub prefix: Prefix,
    /// How tables that are made are compressed.
    pub compression: Compression,
}

/// `[mysql]`
#[derive(Debug, Clone, Default)]
pub struct Mysql {
    /// Where it is.
    pub url: MysqlUrl,
    /// The password, where it is not in the URL.
    pub password: Secret,
    /// A file with it.
    pub password_file: PathBuf,
    /// CAs that its certificate may come from; with it TLS is demanded.
    pub ca: PathBuf,
}

/// `[redis]`
#[derive(Debug, Clone, Default)]
pub struct Redis {
    /// Where it is.
    pub url: RedisUrl,
    /// The password, where it is not in the URL.
    pub password: Secret,
    /// A file with it.
    pub password_file: PathBuf,
    /// CAs that its certificate may come from.
    pub ca: PathBuf,
    /// What the names of keys begin with.
    pub prefix: Prefix,
}

impl Mysql {
    /// The URL with the password.
    pub fn url(&self) -> Result<String, String> {
        Ok(self.url.reveal(urls::password("mysql", &self.password, &self.password_file)?.as_deref()))
    }

    /// Refuses what does not go together.
    pub(super) fn check(&self) -> Result<(), String> {
        urls::one_password("mysql", self.url.has_password(), &self.password, &self.password_file)
    }
}

impl Redis {
    /// The URL with the password.
    pub fn url(&self) -> Result<String, String> {
        Ok(self.url.reveal(urls::password("redis", &self.password, &self.password_file)?.as_deref()))
    }

    /// Refuses what does not go together.
    pub(super) fn check(&self) -> Result<(), String> {
        urls::one_password("redis", self.url.has_password(), &self.password, &self.password_file)
    }
}

/// `[limits]` of MySQL.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_field_names, reason = "limits end in what they are")]
pub struct MysqlLimits {
    /// Connections of this process.
    pub connections_max: usize,
    /// Waiting for a connection.
    pub connect_time_max: Duration,
    /// One statement.
    pub statement_time_max: Duration,
    /// One call, with all its statements and tries.
    pub call_time_max: Duration,
}

impl Default for MysqlLimits {
    fn default() -> Self {
        let MysqlOptions { connections_max, connect_timeout, statement_timeout, call_timeout, .. } =
            MysqlOptions::default();
        Self {
            connections_max,
            connect_time_max: connect_timeout,
            statement_time_max: statement_timeout,
            call_time_max: call_timeout,
        }
    }
}

/// `[limits]` of the cache on Redis, and of the way there.
#[derive(Debug, Clone, Copy)]
pub struct RedisLimits {
    /// One try to connect.
    pub connect_time_max: Duration,
    /// One call.
    pub response_time_max: Duration,
    /// Between two tries to connect.
    pub retry_pause_max: Duration,
    /// Routes of one account.
    pub resources_max: usize,
    /// How long a record is kept.
    pub record_time: Duration,
    /// How long it is kept that there is none.
    pub absent_time: Duration,
    /// How long nothing is kept of a record that changed.
    pub tombstone_time: Duration,
    /// Largest record that is kept.
    pub record_bytes_max: usize,
    /// How old what is known of the generation may be.
    pub generation_age_max: Duration,
    /// Between two sweeps of routes.
    pub sweep_interval: Duration,
}

impl Default for RedisLimits {
    fn default() -> Self {
        let RedisOptions { connect_timeout, response_timeout, retry_pause_max, limits, .. } = RedisOptions::default();
        Self {
            connect_time_max: connect_timeout,
            response_time_max: response_timeout,
            retry_pause_max,
            resources_max: limits.resources_max,
            record_time: limits.record_ttl,
            absent_time: limits.absent_ttl,
            tombstone_time: limits.tombstone_ttl,
            record_bytes_max: limits.record_bytes_max,
            generation_age_max: limits.generation_age_max,
            sweep_interval: limits.sweep_every,
        }
    }
}

/// `[limits]` of the bus on Redis Streams.
#[derive(Debug, Clone, Copy)]
pub struct StreamLimits {
    /// Requests read of one lane and not begun with.
    pub read_max: usize,
    /// What waits in this process to be written to Redis.
    pub outgoing_max: usize,
    /// Entries of a process's own stream.
    pub inbox_max: usize,
    /// How long a process counts as living after it said so.
    pub lease: Duration,
    /// How long a middle may take to give a partition away.
    pub leaving_time_max: Duration,
    /// How many times a request is given to a middle.
    pub tries_max: u32,
    /// Dead letters of one partition.
    pub dead_max: usize,
}

impl Default for StreamLimits {
    fn default() -> Self {
        let idl::bus::redis::RedisOptions {
            read_max,
            outgoing_max,
            inbox_max,
            middle_lease,
            leaving_max,
            tries_max,
            dead_max,
            ..
        } = idl::bus::redis::RedisOptions::default();
        Self {
            read_max,
            outgoing_max,
            inbox_max,
            lease: middle_lease,
            leaving_time_max: leaving_max,
            tries_max,
            dead_max,
        }
    }
}

/// Where a Thrift gateway is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl Gateway {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (host, port) = host_and_port(text)?;
        Some(Self { host, port })
    }
}

impl fmt::Display for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_host(f, &self.host)?;
        write!(f, ":{}", self.port)
    }
}

/// A host, an IPv6 address in brackets, and a port that is not 0.
pub(super) fn host_and_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse::<std::net::Ipv6Addr>().ok()?.to_string(),
        None => host.to_owned(),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.' || c == ':' || c == '_';
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let valid = !host.is_empty() && host.len() <= 253 && host.chars().all(plain);
    (valid && (!host.contains(':') || text.starts_with('['))).then_some((host, port))
}

pub(super) fn write_host(f: &mut impl fmt::Write, host: &str) -> fmt::Result {
    if host.contains(':') { write!(f, "[{host}]") } else { f.write_str(host) }
}
