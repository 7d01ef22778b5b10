//! Tokens of accounts that are worth nothing any more.

use async_trait::async_trait;
use idl::ids::AccountId;

use crate::sorted::StoreError;

/// Revocations of accounts' tokens.
#[async_trait]
pub trait Revocations: Send + Sync + 'static {
    /// Makes an account's tokens that were issued before this moment worthless. Never moves backwards: an earlier moment
    /// than the one in force changes nothing.
    async fn revoke_tokens(&self, account: AccountId, issued_before_ms: u64) -> Result<(), StoreError>;

    /// Revocations of tokens issued before a moment at or after `since_ms`, in the order of that moment. A token is older
    /// than what revokes it, so 0 asks for all.
    async fn revocations(&self, since_ms: u64) -> Result<Vec<(AccountId, u64)>, StoreError>;
}
