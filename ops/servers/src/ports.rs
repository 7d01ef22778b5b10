//! Ports for servers that must come back on the port that they had.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::{Ipv4Addr, TcpListener};

use anyhow::Context;

/// Below what systems hand out for port 0 and for outgoing connections (Linux: from 32768): while a server is down, nobody
/// is given its port by chance.
const CANDIDATES: std::ops::Range<u16> = 12_000..32_000;

/// A port of loopback that nobody listens on, taken at random, since other processes look for one at the same time.
pub(crate) fn free() -> anyhow::Result<u16> {
    let count = CANDIDATES.end - CANDIDATES.start;
    (0..200)
        .map(|_| {
            let random = RandomState::new().build_hasher().finish() % u64::from(count);
            CANDIDATES.start + u16::try_from(random).unwrap_or(0)
        })
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .context("no free port was found between 12000 and 32000")
}
