//! How to reach Redis, and how much may wait there and here.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// How to reach Redis, and how much may wait.
///
/// The user needs these rights and no others (`campanile` is the prefix of keys; a cache on the same server needs its own):
///
/// ```text
/// user campanile on >PASSWORD ~campanile:* -@all +hello +auth +select +ping +time +script|load +evalsha +hget +hset +hdel +hgetall +xadd +xlen +xdel +xtrim +xack +xread +xreadgroup +xgroup +xautoclaim +xpending +xinfo +pexpire
/// ```
#[derive(Clone)]
pub struct RedisOptions {
    /// `redis://user:password@host:port/db`, or `rediss://…` for TLS. Redis 7 or newer.
    pub url: String,
    /// Begins each key, so that installations may share a server: 1 to 64 of A-Z a-z 0-9 . _ -
    pub prefix: String,
    /// With TLS: the certificates, PEM, of the authorities to trust in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// For one try to connect, with TLS and login.
    pub connect_timeout: Duration,
    /// For one answer of Redis; then the connection counts as lost.
    pub response_timeout: Duration,
    /// Longest pause between two tries to connect. The first is a sixteenth of it.
    pub retry_pause_max: Duration,
    /// Requests waiting in one lane of one partition; beyond, requests are shed with [`crate::error::Code::Busy`]. Known to
    /// within what is sent in a tenth of a second; at four times as many Redis itself drops the oldest.
    pub lane_max: usize,
    /// Requests that a middle has read of one lane and not begun with.
    pub read_max: usize,
    /// Requests, and letters to other processes, that wait here to be written to Redis.
    pub outgoing_max: usize,
    /// Entries of letters kept in a process's stream: at about that number Redis drops the oldest. An entry has at most 64
    /// letters and about 256 KiB.
    pub inbox_max: usize,
    /// Batches waiting for each front of this process.
    pub batches_max: usize,
    /// Events waiting for each front of this process.
    pub events_max: usize,
    /// How long a middle keeps its partitions, and any process counts as living, without a sign of life. Signs are given
    /// five times as often, at least each second.
    pub middle_lease: Duration,
    /// How long a middle may take to finish what it has of a partition that it is to give away.
    pub leaving_max: Duration,
    /// How many times a request is handed to a middle. One that no middle survived is put into the stream of dead letters.
    pub tries_max: u32,
    /// Dead letters kept of each partition.
    pub dead_max: usize,
}

impl Default for RedisOptions {
    /// On this machine without TLS and login; 2 s to connect, 1 s to answer, at most 1 s between tries; 8,192 requests in a
    /// partition's lane, 1,024 of them read; 16,384 to be written; 65,536 entries in an inbox, 1,024 batches and events;
    /// leases of 5 s, 10 s to finish; 5 tries, 1,000 dead letters.
    fn default() -> Self {
        Self {
            url: "redis://127.0.0.1:6379".to_owned(),
            prefix: "campanile".to_owned(),
            ca_file: None,
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(1),
            retry_pause_max: Duration::from_secs(1),
            lane_max: 8192,
            read_max: 1024,
            outgoing_max: 16_384,
            inbox_max: 65_536,
            batches_max: 1024,
            events_max: 1024,
            middle_lease: Duration::from_secs(5),
            leaving_max: Duration::from_secs(10),
            tries_max: 5,
            dead_max: 1000,
        }
    }
}

impl RedisOptions {
    /// Why these can't be used; `None` if they can.
    pub(super) fn fault(&self) -> Option<String> {
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if self.prefix.is_empty() || self.prefix.len() > 64 || !self.prefix.chars().all(valid) {
            let expected = "1 to 64 characters of A-Z a-z 0-9 . _ - were expected";
            return Some(format!("the prefix {:?} is not valid: {expected}", self.prefix));
        }
        let counts = [
            ("lane_max", self.lane_max),
            ("read_max", self.read_max),
            ("outgoing_max", self.outgoing_max),
            ("inbox_max", self.inbox_max),
            ("batches_max", self.batches_max),
            ("events_max", self.events_max),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Some(format!("{name} is 0; at least 1 was expected"));
        }
        let shortest = Duration::from_millis(200);
        (self.middle_lease < shortest).then(|| {
            format!("a lease of {:?} is too short to be renewed; at least {shortest:?} was expected", self.middle_lease)
        })
    }

    /// How often a process says that it lives.
    pub(super) fn beat_every(&self) -> Duration {
        (self.middle_lease / 5).min(Duration::from_secs(1))
    }
}

impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOptions")
            .field("url", &redacted(&self.url))
            .field("prefix", &self.prefix)
            .field("ca_file", &self.ca_file)
            .field("connect_timeout", &self.connect_timeout)
            .field("response_timeout", &self.response_timeout)
            .field("retry_pause_max", &self.retry_pause_max)
            .field("lane_max", &self.lane_max)
            .field("read_max", &self.read_max)
            .field("outgoing_max", &self.outgoing_max)
            .field("inbox_max", &self.inbox_max)
            .field("batches_max", &self.batches_max)
            .field("events_max", &self.events_max)
            .field("middle_lease", &self.middle_lease)
            .field("leaving_max", &self.leaving_max)
            .field("tries_max", &self.tries_max)
            .field("dead_max", &self.dead_max)
            .finish()
    }
}

/// A URL without what may be a password: in front of the last `@`, and behind a `?`.
fn redacted(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    match rest.rsplit_once('@') {
        Some((login, server)) => {
            let user = login.split_once(':').map_or("", |(user, _)| user);
            format!("{scheme}://{user}:…@{}", server.split('?').next().unwrap_or_default())
        }
        None => format!("{scheme}://{}", rest.split('?').next().unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_printed() {
        for url in ["redis://anna:se@cret@host:1/0", "rediss://:sec?ret@host", "redis://host/?password=secret"] {
            let options = RedisOptions { url: url.to_owned(), ..RedisOptions::default() };
            let text = format!("{options:?}");
            assert!(!text.contains("cret") && !text.contains("sec?") && text.contains("host"), "{text}");
        }
    }

    #[test]
    fn options_that_can_not_work_are_refused_with_what_would_be_right() {
        assert_eq!(RedisOptions::default().fault(), None);
        let fault = RedisOptions { prefix: "a:{b}".to_owned(), ..RedisOptions::default() }.fault();
        assert!(fault.expect("not valid").contains("1 to 64 characters"));
        assert!(RedisOptions { read_max: 0, ..RedisOptions::default() }.fault().is_some());
        let short = RedisOptions { middle_lease: Duration::from_millis(20), ..RedisOptions::default() };
        assert!(short.fault().is_some());
    }
}
