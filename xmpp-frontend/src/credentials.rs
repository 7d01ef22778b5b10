//! Who may log in: tokens prove themselves, so that a storm of reconnects reads no storage.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use idl::clock::SharedClock;
use idl::ids::AccountId;
use idl::token::KeyRing;
use ring::digest;
use tokio::sync::Semaphore;

use crate::fast::{self, Attempt, Proved, Token};
use crate::lock;
use crate::metrics::Metrics;
use crate::middle::Middle;
use crate::revoked::Revoked;
use crate::sasl::{Failure, Login, Mechanism, Plain};
use crate::scram::{Check, Keys};

/// Stands for an account that has no token, so that its login costs what any other costs.
const NO_TOKEN: &str = "cpt1.0.0.";

/// Proves logins.
pub(crate) struct Credentials {
    ring: KeyRing,
    pub(crate) revoked: Revoked,
    derived: Mutex<Derived>,
    derivations: Semaphore,
    clock: SharedClock,
    metrics: Arc<Metrics>,
}

impl Credentials {
    pub(crate) fn new(
        ring: KeyRing,
        derivations_max: usize,
        keys_max: usize,
        clock: SharedClock,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            ring,
            revoked: Revoked::default(),
            derived: Mutex::new(Derived { keys: HashMap::new(), order: VecDeque::new(), max: keys_max }),
            derivations: Semaphore::new(derivations_max),
            clock,
            metrics,
        }
    }

    /// Proves a PLAIN login: one keyed hash, no storage and no bus.
    pub(crate) fn prove_plain(&self, plain: &Plain) -> Result<Login, Failure> {
        let proved = plain.username.account.and_then(|account| {
            let issued_at_ms = self.ring.prove(account, &plain.token).ok()?;
            Some(Login { account, issued_at_ms })
        });
        let login = proved.filter(|login| !self.revoked.covers(*login)).ok_or(Failure::NotAuthorized);
        self.count(Mechanism::Plain, login.as_ref().err());
        login
    }

    /// Proves a login with a token of FAST: a few keyed hashes, no storage and no bus.
    ///
    /// Such a login counts as of the revocation that the token knows of, so that any later one ends its connection, as it
    /// ends the token.
    pub(crate) fn prove_fast(&self, attempt: &Attempt<'_>) -> Result<(Login, Proved), Failure> {
        let proved = attempt.username.account.and_then(|account| {
            let issued_at_ms = self.revoked.before(account);
            let proved = attempt.prove(&self.ring, issued_at_ms, self.clock.now_ms())?;
            Some((Login { account, issued_at_ms }, proved))
        });
        let proved = proved.ok_or(Failure::NotAuthorized);
        self.count(Mechanism::Fast(attempt.mechanism), proved.as_ref().err());
        proved
    }

    /// A token of FAST for who has just logged in. Fails if that login was revoked meanwhile: its successor must not
    /// outlive it.
    pub(crate) fn issue_fast(&self, login: Login, client: &str, mechanism: fast::Mechanism) -> Result<Token, Failure> {
        let revoked_before_ms = self.revoked.before(login.account);
        if login.issued_at_ms < revoked_before_ms {
            return Err(Failure::NotAuthorized);
        }
        Ok(Token::issue(&self.ring, login.account, client, mechanism, revoked_before_ms, self.clock.now_ms()))
    }

    fn count(&self, mechanism: Mechanism, failure: Option<&Failure>) {
        self.metrics.login(mechanism.name(), failure.map_or("ok", |failure| failure.name()));
    }

    /// The SCRAM salt of a user name, whether or not there is such an account.
    pub(crate) fn salt(&self, username: &str) -> [u8; 16] {
        self.ring.scram_salt(username)
    }

    /// Proves a SCRAM login against each token that the account may hold, and returns the server's final message.
    ///
    /// A name that is no account's takes the same way to the same failure. If the middle tier can't say which tokens
    /// are in force, that is a temporary failure.
    pub(crate) async fn prove_scram(&self, check: Check, middle: &Middle) -> Result<(Login, String), Failure> {
        let mechanism = check.mechanism;
        let proved = self.try_scram(check, middle).await;
        self.count(mechanism, proved.as_ref().err());
        proved
    }

    async fn try_scram(&self, check: Check, middle: &Middle) -> Result<(Login, String), Failure> {
        let salt = self.salt(&check.username.local);
        let candidates = match check.username.account {
            Some(account) => self.candidates(account, middle).await?,
            None => Vec::new(),
        };
        if candidates.is_empty() {
            self.keys(NO_TOKEN.to_owned(), salt).await?;
            return Err(Failure::NotAuthorized);
        }
        for (login, token) in candidates {
            if let Some(last) = self.keys(token, salt).await?.verify(&check) {
                return Ok((login, last));
            }
        }
        Err(Failure::NotAuthorized)
    }

    async fn candidates(&self, account: AccountId, middle: &Middle) -> Result<Vec<(Login, String)>, Failure> {
        let times = middle.token_times(account).await.map_err(|_| Failure::Temporary)?;
        let logins = times.into_iter().map(|issued_at_ms| Login { account, issued_at_ms });
        let in_force = logins.filter(|login| !self.revoked.covers(*login));
        let tokens =
            |login: Login| self.ring.candidates(account, login.issued_at_ms).into_iter().map(move |t| (login, t));
        Ok(in_force.flat_map(tokens).collect())
    }

    /// The keys of a token: remembered, or derived on a thread of its own, a bounded number at one time.
    async fn keys(&self, token: String, salt: [u8; 16]) -> Result<Keys, Failure> {
        let digest = digest::digest(&digest::SHA256, &[&salt, token.as_bytes()].concat());
        let name = *digest.as_ref().first_chunk().ok_or(Failure::Temporary)?;
        if let Some(keys) = lock(&self.derived).keys.get(&name) {
            return Ok(*keys);
        }
        if self.derivations.available_permits() == 0 {
            self.metrics.limit("scram_derivations_max");
        }
        let permit = self.derivations.acquire().await.map_err(|_| Failure::Temporary)?;
        self.metrics.scram_derivations.inc();
        let keys =
            tokio::task::spawn_blocking(move || Keys::derive(&token, &salt)).await.map_err(|_| Failure::Temporary)?;
        drop(permit);
        lock(&self.derived).remember(name, keys);
        Ok(keys)
    }
}

/// Derived keys by half the digest of salt and token; the oldest go first.
struct Derived {
    keys: HashMap<[u8; 16], Keys>,
    order: VecDeque<[u8; 16]>,
    max: usize,
}

impl Derived {
    fn remember(&mut self, name: [u8; 16], keys: Keys) {
        if self.max == 0 {
            return;
        }
        if self.keys.insert(name, keys).is_none() {
            self.order.push_back(name);
        }
        while self.order.len() > self.max {
            if let Some(oldest) = self.order.pop_front() {
                self.keys.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembered_keys_are_bounded() {
        let mut derived = Derived { keys: HashMap::new(), order: VecDeque::new(), max: 3 };
        let keys = Keys::derive("token", b"salt");
        for name in 0..10 {
            derived.remember([name; 16], keys);
            derived.remember([name; 16], keys);
        }
        assert_eq!(derived.keys.len(), 3);
        assert_eq!(derived.order.len(), 3);
        assert!(derived.keys.contains_key(&[9; 16]) && !derived.keys.contains_key(&[6; 16]));
    }
}
