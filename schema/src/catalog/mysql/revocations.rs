//! Revocations in MySQL.

use async_trait::async_trait;
use idl::ids::AccountId;

use super::{Found, MysqlCatalog, to_number};
use crate::catalog::Revocations;
use crate::sorted::StoreError;

#[async_trait]
impl Revocations for MysqlCatalog {
    async fn revoke_tokens(&self, account: AccountId, issued_before_ms: u64) -> Result<(), StoreError> {
        let upsert = "INSERT INTO token_revocation (account, issued_before_ms) VALUES (?, ?) \
                      ON DUPLICATE KEY UPDATE issued_before_ms = greatest(issued_before_ms, ?)";
        let before = to_number(issued_before_ms);
        self.change_rows(upsert, vec![account.to_bytes().into(), before.into(), before.into()]).await.map(drop)
    }

    async fn revocations(&self, since_ms: u64) -> Result<Vec<(AccountId, u64)>, StoreError> {
        let select = "SELECT account, issued_before_ms FROM token_revocation WHERE issued_before_ms >= ? \
                      ORDER BY issued_before_ms, account";
        self.all("token_revocation", select, vec![to_number(since_ms).into()], decode).await
    }
}

fn decode(row: &mut Found) -> Result<(AccountId, u64), StoreError> {
    Ok((AccountId(row.id(0)?), row.number(1)?))
}
