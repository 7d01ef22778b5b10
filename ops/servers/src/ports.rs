//! Ports for servers that must come back on the port that they had.

use std::collections::BTreeSet;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;

/// Below what systems hand out for port 0 and for outgoing connections (Linux: from 32768): while a server is down, nobody
/// is given its port by chance.
const CANDIDATES: std::ops::Range<u16> = 12_000..32_000;

/// What this process has taken: the server may not listen yet, or be down for a while.
static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port of loopback that nobody listens on, taken at random, since other processes look for one at the same time.
pub(crate) fn free() -> anyhow::Result<u16> {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let port = (0..1000)
        .map(|_| random())
        .find(|port| !taken.contains(port) && TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .with_context(|| format!("no free port was found in {CANDIDATES:?}"))?;
    taken.insert(port);
    Ok(port)
}

fn random() -> u16 {
    let count = CANDIDATES.end - CANDIDATES.start;
    let offset = RandomState::new().build_hasher().finish() % u64::from(count);
    CANDIDATES.start + u16::try_from(offset).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{CANDIDATES, free};

    #[test]
    fn no_port_is_given_out_twice() {
        let ports: std::collections::BTreeSet<_> = (0..300).map(|_| free().expect("there are many")).collect();
        assert_eq!(ports.len(), 300);
        assert!(ports.iter().all(|port| CANDIDATES.contains(port)));
    }
}
