//! One change at a time for an account, a key, a schedule: what reads, decides and writes back takes a turn first.

use idl::ids::AccountId;
use tokio::sync::{Mutex, MutexGuard};

const STRIPES: usize = 1024;

/// Turns, striped: two accounts may share a stripe and then wait for each other, never wrongly proceed.
pub(crate) struct Turns(Box<[Mutex<()>]>);

impl Default for Turns {
    fn default() -> Self {
        Self((0..STRIPES).map(|_| Mutex::new(())).collect())
    }
}

impl Turns {
    /// Waits for the account's turn, which lasts until the guard is dropped. First come, first served.
    pub(crate) async fn take(&self, account: AccountId) -> MutexGuard<'_, ()> {
        let stripe = usize::try_from(account.0 % STRIPES as u128).unwrap_or(0);
        self.0[stripe].lock().await
    }

    /// Waits for the turn of whatever the text names.
    pub(crate) async fn take_text(&self, text: &str) -> MutexGuard<'_, ()> {
        let hash = text
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        self.take(AccountId(u128::from(hash))).await
    }
}
