//! A catalog in memory: SQLite has a thread of its own, which a paused clock can't wait for.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use idl::ids::{AccountId, AppId};
use schema::StoreError;
use schema::catalog::{App, Catalog};

#[derive(Default)]
pub(crate) struct MemoryCatalog(Mutex<State>);

#[derive(Default)]
struct State {
    apps: BTreeMap<AppId, App>,
    revocations: BTreeMap<AccountId, u64>,
}

impl MemoryCatalog {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Catalog for MemoryCatalog {
    async fn create_app(&self, app: App) -> Result<bool, StoreError> {
        let mut state = self.state();
        let is_new = !state.apps.contains_key(&app.app);
        if is_new {
            state.apps.insert(app.app.clone(), app);
        }
        Ok(is_new)
    }

    async fn app(&self, id: &AppId) -> Result<Option<App>, StoreError> {
        Ok(self.state().apps.get(id).cloned())
    }

    async fn app_by_secret(&self, sha256: &[u8; 32]) -> Result<Option<App>, StoreError> {
        Ok(self.state().apps.values().find(|app| app.secret_sha256 == *sha256).cloned())
    }

    async fn apps(&self) -> Result<Vec<App>, StoreError> {
        Ok(self.state().apps.values().cloned().collect())
    }

    async fn set_secret(&self, id: &AppId, sha256: [u8; 32]) -> Result<bool, StoreError> {
        let mut state = self.state();
        let app = state.apps.get_mut(id);
        Ok(app.map(|app| app.secret_sha256 = sha256).is_some())
    }

    async fn revoke_tokens(&self, account: AccountId, issued_before_ms: u64) -> Result<(), StoreError> {
        let mut state = self.state();
        let before = state.revocations.entry(account).or_default();
        *before = issued_before_ms.max(*before);
        Ok(())
    }

    async fn revocations(&self, _since_ms: u64) -> Result<Vec<(AccountId, u64)>, StoreError> {
        Ok(self.state().revocations.iter().map(|(account, before)| (*account, *before)).collect())
    }
}
