//! How to reach Redis, and how much the cache keeps there.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use idl::clock::SharedClock;

/// How to reach Redis.
///
/// The user needs these rights and no others (`campanile` is the prefix of keys; a bus on the same server needs its own):
///
/// ```text
/// user campanile on >PASSWORD ~campanile:* &campanile:* -@all +hello +auth +ping +info +time +scan +script|load +evalsha +get +set +del +mget +pexpire +hget +hset +hmget +hgetall +hkeys +hvals +hdel +hlen +hincrby +zadd +zscore +zcard +zrangebyscore +zremrangebyscore +publish +subscribe
/// ```
#[derive(Clone)]
pub struct RedisOptions {
    /// `redis://user:password@host:port/db`, or `rediss://…` for TLS. Redis 6 or newer.
    pub url: String,
    /// Begins each key, so that installations may share a server: 1 to 64 of A-Z a-z 0-9 . _ -
    pub prefix: String,
    /// With TLS: the certificates, PEM, of the authorities to trust in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// With TLS: a client certificate and its chain, PEM.
    pub certificate_file: Option<PathBuf>,
    /// With TLS: the client certificate's private key, PEM.
    pub key_file: Option<PathBuf>,
    /// For one try to connect, with TLS and login.
    pub connect_timeout: Duration,
    /// For one call, which then fails. The connection is replaced, and calls fail at once until there is a new one.
    pub response_timeout: Duration,
    /// Longest pause between two tries to connect. The first is a sixteenth of it.
    pub retry_pause_max: Duration,
    /// How much the cache keeps, and for how long.
    pub limits: RedisLimits,
    /// Tells the time of leases and quotas in place of the server's own clock, which is the same for all processes: for
    /// tests that move time.
    pub clock: Option<SharedClock>,
}

impl Default for RedisOptions {
    /// On this machine without TLS and login; 2 s to connect, 1 s to answer, at most 1 s between tries.
    fn default() -> Self {
        Self {
            url: "redis://127.0.0.1:6379".to_owned(),
            prefix: "campanile".to_owned(),
            ca_file: None,
            certificate_file: None,
            key_file: None,
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(1),
            retry_pause_max: Duration::from_secs(1),
            limits: RedisLimits::default(),
            clock: None,
        }
    }
}

impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOptions")
            .field("url", &redacted(&self.url))
            .field("prefix", &self.prefix)
            .field("ca_file", &self.ca_file)
            .field("certificate_file", &self.certificate_file)
            .field("key_file", &self.key_file)
            .field("connect_timeout", &self.connect_timeout)
            .field("response_timeout", &self.response_timeout)
            .field("retry_pause_max", &self.retry_pause_max)
            .field("limits", &self.limits)
            .field("clock", &self.clock.as_ref().map(|_| "set"))
            .finish()
    }
}

/// A URL without what may be a password: in front of the last `@`, and behind a `?`.
fn redacted(url: &str) -> String {
    let url = url.split('?').next().unwrap_or_default();
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    match rest.rsplit_once('@') {
        Some((login, server)) => {
            let user = login.split_once(':').map_or("", |(user, _)| user);
            format!("{scheme}://{user}:…@{server}")
        }
        None => format!("{scheme}://{rest}"),
    }
}

/// How much the cache keeps in Redis, and for how long. What it holds in all is bounded by Redis's `maxmemory`; routes and
/// leases have no time to live, so a policy that evicts must be a `volatile` one, which takes records, or `noeviction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RedisLimits {
    /// Most fronts with a lease.
    pub fronts_max: usize,
    /// Most routes of one account.
    pub resources_max: usize,
    /// How long a front lives after it said so.
    pub lease: Duration,
    /// How long a record is kept.
    pub record_ttl: Duration,
    /// How long it is kept that the store has none.
    pub absent_ttl: Duration,
    /// How long nothing is kept of a record after it was forgotten.
    pub tombstone_ttl: Duration,
    /// Largest record that is kept.
    pub record_bytes_max: usize,
    /// How old the generation may be that a process answers with.
    pub generation_age_max: Duration,
    /// How often the routes of fronts that are gone are looked for, by one process of all.
    pub sweep_every: Duration,
}

impl Default for RedisLimits {
    /// 1,024 fronts, 100 routes an account, leases of 15 s; records of up to 64 KiB for 60 s, none for 10 s, forgotten for
    /// 10 s; a generation is half a second old at most; a sweep an hour.
    fn default() -> Self {
        Self {
            fronts_max: 1024,
            resources_max: 100,
            lease: Duration::from_secs(15),
            record_ttl: Duration::from_mins(1),
            absent_ttl: Duration::from_secs(10),
            tombstone_ttl: Duration::from_secs(10),
            record_bytes_max: 64 << 10,
            generation_age_max: Duration::from_millis(500),
            sweep_every: Duration::from_hours(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_printed() {
        for url in ["redis://anna:se@cret@host:1/0", "rediss://:secret@host", "redis://host/?password=secret"] {
            let options = RedisOptions { url: url.to_owned(), ..RedisOptions::default() };
            let text = format!("{options:?}");
            assert!(!text.contains("cret") && text.contains("host"), "{text}");
        }
    }
}
