//! Which tokens are worthless although they prove themselves.

use std::collections::HashMap;
use std::sync::Mutex;

use idl::contract::bus as wire;
use idl::ids::AccountId;
use tokio::time::Instant;

use crate::lock;
use crate::sasl::Login;

/// The revocations in force. The middle tier lists all of them with every lease and tells new ones at once; one that a
/// lease no longer lists is forgotten, so this holds no more than the middle does.
#[derive(Default)]
pub(crate) struct Revoked {
    accounts: Mutex<HashMap<AccountId, Revocation>>,
}

struct Revocation {
    issued_before_ms: u64,
    learned_at: Instant,
}

impl Revoked {
    /// Takes one revocation. Returns it if it can be read; repeating it is harmless.
    pub(crate) fn learn(&self, revoked: &wire::TokenRevoked) -> Option<(AccountId, u64)> {
        let account = revoked.account.parse().ok()?;
        let issued_before_ms = u64::try_from(revoked.issued_before_ms).ok()?;
        let mut accounts = lock(&self.accounts);
        let known = accounts.entry(account).or_insert(Revocation { issued_before_ms: 0, learned_at: Instant::now() });
        known.issued_before_ms = known.issued_before_ms.max(issued_before_ms);
        Some((account, issued_before_ms))
    }

    /// Forgets what was learned before `asked_at` and is not listed by the answer to what was asked then.
    pub(crate) fn keep(&self, listed: &[(AccountId, u64)], asked_at: Instant) {
        let listed: std::collections::HashSet<_> = listed.iter().map(|(account, _)| *account).collect();
        lock(&self.accounts)
            .retain(|account, revocation| revocation.learned_at >= asked_at || listed.contains(account));
    }

    /// True if that login's token is worthless.
    pub(crate) fn covers(&self, login: Login) -> bool {
        login.issued_at_ms < self.before(login.account)
    }

    /// Tokens of that account are worthless if they were issued before this moment, in ms; 0 if none are.
    pub(crate) fn before(&self, account: AccountId) -> u64 {
        lock(&self.accounts).get(&account).map_or(0, |revocation| revocation.issued_before_ms)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn revocation(account: AccountId, issued_before_ms: i64) -> wire::TokenRevoked {
        wire::TokenRevoked { account: account.to_string(), issued_before_ms }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_issued_before_is_worthless_and_a_later_one_is_not() {
        let revoked = Revoked::default();
        let login = |issued_at_ms| Login { account: AccountId(1), issued_at_ms };
        assert!(!revoked.covers(login(5)));
        revoked.learn(&revocation(AccountId(1), 10));
        revoked.learn(&revocation(AccountId(1), 7));
        assert!(revoked.covers(login(9)));
        assert!(!revoked.covers(login(10)));
        assert_eq!(revoked.learn(&wire::TokenRevoked { account: "?".into(), issued_before_ms: 1 }), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_lease_no_longer_lists_is_forgotten_unless_it_is_newer_than_the_lease() {
        let revoked = Revoked::default();
        let login = |account| Login { account: AccountId(account), issued_at_ms: 1 };
        revoked.learn(&revocation(AccountId(1), 10));
        revoked.learn(&revocation(AccountId(2), 10));
        tokio::time::advance(Duration::from_secs(1)).await;
        let asked_at = Instant::now();
        revoked.learn(&revocation(AccountId(3), 10));
        revoked.keep(&[(AccountId(2), 10)], asked_at);
        assert!(!revoked.covers(login(1)));
        assert!(revoked.covers(login(2)));
        assert!(revoked.covers(login(3)));
    }
}
