//! Applications: who may send, and the operator's requests about them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use idl::bus::{Reply, Request};
use idl::contract::bus as wire;
use idl::error::{Code, Failure};
use idl::ids::AppId;
use ring::digest;
use schema::catalog::{App, Catalog};
use schema::sorted::StoreError;
use tokio::time::Instant;

use crate::{Shared, others};

/// How long an application is remembered that other middles may change.
const KEPT: Duration = Duration::from_secs(30);

/// Applications, remembered: there are few and every send asks for one.
pub(crate) struct Apps {
    catalog: Arc<dyn Catalog>,
    known: Mutex<Known>,
    /// How long one is remembered where other middles may change it: should it not be learnt that they did, it is for so
    /// long that what they changed is not in force here.
    kept: Option<Duration>,
}

#[derive(Default)]
struct Known {
    /// Grows whenever something is forgotten: what was read before that must not be remembered after it.
    forgotten: u64,
    by_id: HashMap<AppId, Remembered>,
    by_secret: HashMap<[u8; 32], Remembered>,
}

struct Remembered {
    app: Arc<App>,
    until: Option<Instant>,
}

impl Remembered {
    fn fresh(&self) -> Option<Arc<App>> {
        self.until.is_none_or(|until| Instant::now() < until).then(|| Arc::clone(&self.app))
    }
}

impl Apps {
    /// `alone`: nobody else changes them.
    pub(crate) fn new(catalog: Arc<dyn Catalog>, alone: bool) -> Self {
        Self { catalog, known: Mutex::default(), kept: (!alone).then_some(KEPT) }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers what was read when so much had been forgotten; the caller has it all the same.
    fn remember(&self, app: App, forgotten: u64) -> Arc<App> {
        let app = Arc::new(app);
        let mut known = self.known();
        if known.forgotten != forgotten {
            return app;
        }
        let until = self.kept.map(|kept| Instant::now() + kept);
        let remembered = || Remembered { app: Arc::clone(&app), until };
        // Under an older secret than this one nobody finds it any more.
        let before = known.by_id.insert(app.app.clone(), remembered());
        if let Some(before) = before.filter(|before| before.app.secret_sha256 != app.secret_sha256) {
            known.by_secret.remove(&before.app.secret_sha256);
        }
        known.by_secret.insert(app.secret_sha256, remembered());
        app
    }

    /// The application with that id.
    pub(crate) async fn by_id(&self, id: &AppId) -> Result<Arc<App>, Failure> {
        let forgotten = {
            let known = self.known();
            if let Some(app) = known.by_id.get(id).and_then(Remembered::fresh) {
                return Ok(app);
            }
            known.forgotten
        };
        let unknown = || Failure::new(Code::UnknownApp, format!("there is no application {id}"));
        let app = self.catalog.app(id).await?.ok_or_else(unknown)?;
        Ok(self.remember(app, forgotten))
    }

    /// The application whose secret has that digest. A digest is as random as the secret, so how long a look-up of it
    /// takes tells nothing about any secret.
    pub(crate) async fn by_secret(&self, sha256: &[u8]) -> Result<Arc<App>, Failure> {
        let sha256 = <[u8; 32]>::try_from(sha256).map_err(|_| Failure::from(Code::Unauthorized))?;
        let forgotten = {
            let known = self.known();
            if let Some(app) = known.by_secret.get(&sha256).and_then(Remembered::fresh) {
                return Ok(app);
            }
            known.forgotten
        };
        let app = self.catalog.app_by_secret(&sha256).await?.ok_or_else(|| Failure::from(Code::Unauthorized))?;
        Ok(self.remember(app, forgotten))
    }

    fn forget(&self, id: &AppId) {
        let mut known = self.known();
        known.forgotten += 1;
        known.by_id.remove(id);
        known.by_secret.retain(|_, known| known.app.app != *id);
    }
}

/// Makes an application with fresh keys.
pub(crate) async fn create(shared: &Shared, request: wire::CreateApp) -> Result<Reply, Failure> {
    let id: AppId = parse(&request.app)?;
    let package = request.package_name.filter(|package| !package.is_empty()).unwrap_or_else(|| id.to_string());
    if package.len() > AppId::BYTES_MAX {
        return Err(Failure::new(Code::BadValue, "a package name has at most 100 bytes"));
    }
    let random = || {
        let mut bytes = [0; 32];
        shared.entropy.fill(&mut bytes);
        bytes
    };
    let secret = URL_SAFE_NO_PAD.encode(random());
    let app = App {
        app: id.clone(),
        package,
        app_key: URL_SAFE_NO_PAD.encode(random()),
        secret_sha256: sha256(&secret),
        agreement_secret: random(),
        broadcast_key: random(),
        signing_seed: random(),
        webhook_secret: random(),
        sends_per_second_max: 0,
        sends_per_day_max: 0,
        created_at_ms: shared.clock.now_ms(),
    };
    if !shared.catalog.create_app(app.clone()).await? {
        return Err(Failure::new(Code::Exists, format!("there is an application {id} already")));
    }
    tell_others(shared, &id).await;
    tracing::info!(app = %id, "application created");
    let shown = wire::App { webhook_secret: Some(shown_webhook_secret(&app)), ..shown(&app, Some(secret)) };
    Ok(Reply::Apps(wire::Apps { apps: vec![shown] }))
}

/// Lists applications.
pub(crate) async fn list(shared: &Shared) -> Result<Reply, Failure> {
    let apps = shared.catalog.apps().await?.iter().map(|app| shown(app, None)).collect();
    Ok(Reply::Apps(wire::Apps { apps }))
}

/// Gives an application a new secret; the old one stops at once.
pub(crate) async fn rotate_secret(shared: &Shared, request: wire::RotateSecret) -> Result<Reply, Failure> {
    let id: AppId = parse(&request.app)?;
    let mut bytes = [0; 32];
    shared.entropy.fill(&mut bytes);
    let secret = URL_SAFE_NO_PAD.encode(bytes);
    let app = changed(shared, &id, shared.catalog.set_secret(&id, sha256(&secret)).await).await?;
    tracing::info!(app = %id, "application secret rotated");
    Ok(Reply::Apps(wire::Apps { apps: vec![shown(&app, Some(secret))] }))
}

/// Limits what an application may send. In force at once.
pub(crate) async fn set_limits(shared: &Shared, request: wire::SetAppLimits) -> Result<Reply, Failure> {
    let id: AppId = parse(&request.app)?;
    let wrong = |time: &str, max: u64| {
        Failure::new(Code::BadValue, format!("a limit of sends in a {time} is from 1 to {max}, or 0 for none"))
    };
    let per_second = u32::try_from(request.sends_per_second_max).map_err(|_| wrong("second", u32::MAX.into()))?;
    let per_day = u64::try_from(request.sends_per_day_max).map_err(|_| wrong("day", i64::MAX.unsigned_abs()))?;
    let app = changed(shared, &id, shared.catalog.set_app_limits(&id, per_second, per_day).await).await?;
    shared.cache.forget_quota(&id).await?;
    tracing::info!(app = %id, per_second, per_day, "application limits set");
    Ok(Reply::Apps(wire::Apps { apps: vec![shown(&app, None)] }))
}

/// Tells the secret that signs an application's receipts, or makes a new one.
pub(crate) async fn webhook_secret(shared: &Shared, request: wire::WebhookSecret) -> Result<Reply, Failure> {
    let id: AppId = parse(&request.app)?;
    let app = if request.rotate {
        let mut secret = [0; 32];
        shared.entropy.fill(&mut secret);
        let app = changed(shared, &id, shared.catalog.set_webhook_secret(&id, secret).await).await?;
        tracing::info!(app = %id, "webhook secret rotated");
        app
    } else {
        shared.apps.by_id(&id).await?
    };
    let shown = wire::App { webhook_secret: Some(shown_webhook_secret(&app)), ..shown(&app, None) };
    Ok(Reply::Apps(wire::Apps { apps: vec![shown] }))
}

/// An application as it is after a change of its record, if it exists. What was known of it is forgotten, here and by all
/// other middles, also where the change failed: it may have happened.
async fn changed(shared: &Shared, id: &AppId, change: Result<bool, StoreError>) -> Result<Arc<App>, Failure> {
    shared.apps.forget(id);
    tell_others(shared, id).await;
    change?;
    shared.apps.by_id(id).await
}

/// One that does not answer forgets it by itself.
async fn tell_others(shared: &Shared, id: &AppId) {
    others::ask(shared, Request::AppChanged(wire::AppChanged { app: id.to_string() })).await;
}

/// Another middle changed an application.
pub(crate) fn changed_elsewhere(shared: &Shared, request: &wire::AppChanged) -> Result<Reply, Failure> {
    shared.apps.forget(&parse(&request.app)?);
    Ok(Reply::Done)
}

/// As the Standard Webhooks specification writes secrets.
fn shown_webhook_secret(app: &App) -> String {
    format!("whsec_{}", STANDARD.encode(app.webhook_secret))
}

pub(crate) fn parse<T: std::str::FromStr<Err = idl::ids::InvalidId>>(text: &str) -> Result<T, Failure> {
    text.parse().map_err(|error: idl::ids::InvalidId| Failure::new(Code::BadValue, error.to_string()))
}

fn shown(app: &App, secret: Option<String>) -> wire::App {
    wire::App {
        app: app.app.to_string(),
        package_name: app.package.clone(),
        app_key: app.app_key.clone(),
        secret,
        created_at_ms: i64::try_from(app.created_at_ms).unwrap_or(i64::MAX),
        webhook_secret: None,
        sends_per_second_max: Some(i64::from(app.sends_per_second_max)),
        sends_per_day_max: Some(i64::try_from(app.sends_per_day_max).unwrap_or(i64::MAX)),
    }
}

fn sha256(secret: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, secret.as_bytes()).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use schema::catalog::sqlite::SqliteCatalog;

    use super::*;

    fn app(secret: &str) -> App {
        App {
            app: "com.example.demo".parse().expect("an app id"),
            package: "com.example.demo".into(),
            app_key: "key".into(),
            secret_sha256: sha256(secret),
            agreement_secret: [0; 32],
            broadcast_key: [0; 32],
            signing_seed: [0; 32],
            webhook_secret: [0; 32],
            sends_per_second_max: 0,
            sends_per_day_max: 0,
            created_at_ms: 0,
        }
    }

    #[tokio::test]
    async fn an_app_that_was_read_before_its_secret_was_rotated_is_not_remembered_after() {
        let apps = Apps::new(Arc::new(SqliteCatalog::in_memory().expect("SQLite in memory")), true);
        let read_at = apps.known().forgotten;
        // Meanwhile the secret is rotated; then the reader comes to remember what it read.
        apps.forget(&app("old").app);
        apps.remember(app("old"), read_at);
        let failure = apps.by_secret(&sha256("old")).await.expect_err("the old secret is worth nothing");
        assert_eq!(failure.code, Code::Unauthorized);
    }
}
