//! Applications in SQLite.

use async_trait::async_trait;
use idl::ids::AppId;
use rusqlite::{Row, params};
use subtle::ConstantTimeEq as _;

use super::{SqliteCatalog, all, change, decode_app_id, failed, from_number, one, to_number};
use crate::catalog::{App, Apps};
use crate::sorted::StoreError;

const APP: &str = "SELECT id, package, app_key, secret_sha256, agreement_secret, broadcast_key, signing_seed, \
                   webhook_secret, sends_per_second_max, sends_per_day_max, created_at_ms FROM app";

#[async_trait]
impl Apps for SqliteCatalog {
    async fn create_app(&self, app: App) -> Result<bool, StoreError> {
        self.write(move |connection| {
            let insert = "INSERT INTO app (id, package, app_key, secret_sha256, agreement_secret, broadcast_key, \
                          signing_seed, webhook_secret, sends_per_second_max, sends_per_day_max, created_at_ms) \
                          VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) ON CONFLICT (id) DO NOTHING";
            let values = params![
                app.app.as_str(),
                app.package,
                app.app_key,
                app.secret_sha256,
                app.agreement_secret,
                app.broadcast_key,
                app.signing_seed,
                app.webhook_secret,
                app.sends_per_second_max,
                to_number(app.sends_per_day_max),
                to_number(app.created_at_ms)
            ];
            change(connection, insert, values).map(|rows| rows == 1)
        })
        .await
    }

    async fn app(&self, id: &AppId) -> Result<Option<App>, StoreError> {
        self.read(|connection| one(connection, &format!("{APP} WHERE id = ?1"), params![id.as_str()], decode))
    }

    async fn app_by_secret(&self, sha256: &[u8; 32]) -> Result<Option<App>, StoreError> {
        let select = format!("{APP} WHERE secret_sha256 = ?1");
        let app = self.read(|connection| one(connection, &select, params![sha256], decode))?;
        Ok(app.filter(|app| bool::from(app.secret_sha256.ct_eq(sha256))))
    }

    async fn apps(&self) -> Result<Vec<App>, StoreError> {
        self.read(|connection| all(connection, &format!("{APP} ORDER BY id"), [], decode))
    }

    async fn set_secret(&self, id: &AppId, sha256: [u8; 32]) -> Result<bool, StoreError> {
        let id = id.clone();
        self.write(move |connection| {
            let update = "UPDATE app SET secret_sha256 = ?2 WHERE id = ?1";
            change(connection, update, params![id.as_str(), sha256]).map(|rows| rows == 1)
        })
        .await
    }

    async fn set_app_limits(&self, id: &AppId, per_second: u32, per_day: u64) -> Result<bool, StoreError> {
        let id = id.clone();
        self.write(move |connection| {
            let update = "UPDATE app SET sends_per_second_max = ?2, sends_per_day_max = ?3 WHERE id = ?1";
            change(connection, update, params![id.as_str(), per_second, to_number(per_day)]).map(|rows| rows == 1)
        })
        .await
    }

    async fn set_webhook_secret(&self, id: &AppId, secret: [u8; 32]) -> Result<bool, StoreError> {
        let id = id.clone();
        self.write(move |connection| {
            let update = "UPDATE app SET webhook_secret = ?2 WHERE id = ?1";
            change(connection, update, params![id.as_str(), secret]).map(|rows| rows == 1)
        })
        .await
    }
}

fn decode(row: &Row<'_>) -> Result<App, StoreError> {
    Ok(App {
        app: decode_app_id(row, 0, "app")?,
        package: row.get(1).map_err(failed)?,
        app_key: row.get(2).map_err(failed)?,
        secret_sha256: row.get(3).map_err(failed)?,
        agreement_secret: row.get(4).map_err(failed)?,
        broadcast_key: row.get(5).map_err(failed)?,
        signing_seed: row.get(6).map_err(failed)?,
        webhook_secret: row.get(7).map_err(failed)?,
        sends_per_second_max: row.get(8).map_err(failed)?,
        sends_per_day_max: from_number(row.get(9).map_err(failed)?),
        created_at_ms: from_number(row.get(10).map_err(failed)?),
    })
}
