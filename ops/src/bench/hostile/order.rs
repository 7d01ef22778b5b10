//! What the bench says to the process of hostile peers, and what it answers: a line of JSON each.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::attack::Attack;

/// Whom to attack.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct AttackOrder {
    /// Its listener with TLS.
    pub(super) to: SocketAddr,
    /// The CA of its certificate.
    pub(super) ca: PathBuf,
    /// The domain, and the name in the certificate.
    pub(super) domain: String,
    /// File with the devices, whose accounts attackers have.
    pub(super) devices: PathBuf,
    /// The first of them.
    pub(super) from: usize,
    /// For how long they come again.
    pub(super) for_ms: u64,
}

/// What became of the peers of one kind.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Fate {
    /// The kind.
    pub(super) attack: Attack,
    /// Connections on which the attack began.
    pub(super) began: u64,
    /// Of these, how many the server ended.
    pub(super) cut: u64,
    /// Of these, how many left by themselves, as a kind may.
    pub(super) left: u64,
    /// Connections on which it could not begin, and why the last one couldn't.
    pub(super) failed: u64,
    /// See `failed`.
    pub(super) failure: Option<String>,
    /// Milliseconds from the attack's beginning to the server's cut, in no order.
    pub(super) after_ms: Vec<u64>,
    /// What the server said of why, and how often.
    pub(super) said: BTreeMap<String, u64>,
}

impl Fate {
    /// Nothing has become of them yet.
    pub(super) fn new(attack: Attack) -> Self {
        Self {
            attack,
            began: 0,
            cut: 0,
            left: 0,
            failed: 0,
            failure: None,
            after_ms: Vec::new(),
            said: BTreeMap::new(),
        }
    }

    /// Adds those of another.
    pub(super) fn add(&mut self, other: Self) {
        self.began += other.began;
        self.cut += other.cut;
        self.left += other.left;
        self.failed += other.failed;
        self.failure = other.failure.or(self.failure.take());
        self.after_ms.extend(other.after_ms);
        for (words, times) in other.said {
            *self.said.entry(words).or_default() += times;
        }
    }
}
