//! Applications in MySQL.

use async_trait::async_trait;
use idl::ids::AppId;
use mysql_async::Value;
use subtle::ConstantTimeEq as _;

use super::{Change, Failure, Found, MysqlCatalog, Work, to_number};
use crate::catalog::{App, Apps};
use crate::sorted::StoreError;

const APP: &str = "SELECT id, package, app_key, secret_sha256, agreement_secret, broadcast_key, signing_seed, \
                   webhook_secret, sends_per_second_max, sends_per_day_max, created_at_ms FROM app";
const INSERT: &str = "INSERT INTO app (id, package, app_key, secret_sha256, agreement_secret, broadcast_key, \
                      signing_seed, webhook_secret, sends_per_second_max, sends_per_day_max, created_at_ms) \
                      VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";

#[async_trait]
impl Apps for MysqlCatalog {
    async fn create_app(&self, app: App) -> Result<bool, StoreError> {
        self.change(&Create(app)).await
    }

    async fn app(&self, id: &AppId) -> Result<Option<App>, StoreError> {
        self.one("app", &format!("{APP} WHERE id = ?"), vec![id.as_str().into()], decode).await
    }

    async fn app_by_secret(&self, sha256: &[u8; 32]) -> Result<Option<App>, StoreError> {
        let select = format!("{APP} WHERE secret_sha256 = ?");
        let app = self.one("app", &select, vec![sha256.into()], decode).await?;
        Ok(app.filter(|app| bool::from(app.secret_sha256.ct_eq(sha256))))
    }

    async fn apps(&self) -> Result<Vec<App>, StoreError> {
        self.all("app", &format!("{APP} ORDER BY id"), Vec::new(), decode).await
    }

    async fn set_secret(&self, id: &AppId, sha256: [u8; 32]) -> Result<bool, StoreError> {
        let update = "UPDATE app SET secret_sha256 = ? WHERE id = ?";
        Ok(self.change_rows(update, vec![sha256.into(), id.as_str().into()]).await? == 1)
    }

    async fn set_app_limits(&self, id: &AppId, per_second: u32, per_day: u64) -> Result<bool, StoreError> {
        let update = "UPDATE app SET sends_per_second_max = ?, sends_per_day_max = ? WHERE id = ?";
        let values = vec![per_second.into(), to_number(per_day).into(), id.as_str().into()];
        Ok(self.change_rows(update, values).await? == 1)
    }

    async fn set_webhook_secret(&self, id: &AppId, secret: [u8; 32]) -> Result<bool, StoreError> {
        let update = "UPDATE app SET webhook_secret = ? WHERE id = ?";
        Ok(self.change_rows(update, vec![secret.into(), id.as_str().into()]).await? == 1)
    }
}

struct Create(App);

#[async_trait]
impl Change for Create {
    type Answer = bool;

    async fn make(&self, work: &mut Work<'_>) -> Result<bool, Failure> {
        match work.run(INSERT, values(&self.0)).await {
            Ok(_) => Ok(true),
            // Its id or its secret.
            Err(Failure::Taken) => {
                let id = vec![self.0.app.as_str().into()];
                let same = work.find("app", "SELECT 1 FROM app WHERE id = ?", id, |_| Ok(())).await?;
                if same.is_empty() { Err(Failure::Taken) } else { Ok(false) }
            }
            Err(failure) => Err(failure),
        }
    }
}

fn values(app: &App) -> Vec<Value> {
    vec![
        app.app.as_str().into(),
        app.package.as_str().into(),
        app.app_key.as_str().into(),
        app.secret_sha256.into(),
        app.agreement_secret.into(),
        app.broadcast_key.into(),
        app.signing_seed.into(),
        app.webhook_secret.into(),
        app.sends_per_second_max.into(),
        to_number(app.sends_per_day_max).into(),
        to_number(app.created_at_ms).into(),
    ]
}

fn decode(row: &mut Found) -> Result<App, StoreError> {
    Ok(App {
        app: row.app_id(0)?,
        package: row.take(1)?,
        app_key: row.take(2)?,
        secret_sha256: row.take(3)?,
        agreement_secret: row.take(4)?,
        broadcast_key: row.take(5)?,
        signing_seed: row.take(6)?,
        webhook_secret: row.take(7)?,
        sends_per_second_max: row.take(8)?,
        sends_per_day_max: row.number(9)?,
        created_at_ms: row.number(10)?,
    })
}
