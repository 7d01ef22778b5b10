//! One change at a time for an account: what reads a registration, decides and writes it back takes a turn first.

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
}
