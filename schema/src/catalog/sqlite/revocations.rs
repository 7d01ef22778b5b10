//! Revocations in SQLite.

use async_trait::async_trait;
use idl::ids::AccountId;
use rusqlite::{Row, params};

use super::{SqliteCatalog, all, change, failed, from_number, to_number};
use crate::catalog::Revocations;
use crate::sorted::StoreError;

#[async_trait]
impl Revocations for SqliteCatalog {
    async fn revoke_tokens(&self, account: AccountId, issued_before_ms: u64) -> Result<(), StoreError> {
        self.write(move |connection| {
            let upsert = "INSERT INTO token_revocation (account, issued_before_ms) VALUES (?1, ?2) \
                          ON CONFLICT (account) DO UPDATE SET issued_before_ms = excluded.issued_before_ms \
                          WHERE excluded.issued_before_ms > token_revocation.issued_before_ms";
            change(connection, upsert, params![account.to_bytes(), to_number(issued_before_ms)])?;
            Ok(())
        })
        .await
    }

    async fn revocations(&self, since_ms: u64) -> Result<Vec<(AccountId, u64)>, StoreError> {
        let select = "SELECT account, issued_before_ms FROM token_revocation WHERE issued_before_ms >= ?1 \
                      ORDER BY issued_before_ms, account";
        self.read(|connection| all(connection, select, params![to_number(since_ms)], decode))
    }
}

fn decode(row: &Row<'_>) -> Result<(AccountId, u64), StoreError> {
    let account = AccountId(u128::from_be_bytes(row.get(0).map_err(failed)?));
    Ok((account, from_number(row.get(1).map_err(failed)?)))
}
