//! What an operator can ask for, whether it comes through the socket of a running server or from a command that opened
//! the store itself.

use std::sync::Arc;
use std::time::Duration;

use idl::bus::{Bus, Call, Reply, Request};
use idl::contract::bus as wire;
use idl::error::{Code, Failure};
use idl::ids::Shard;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::data_folder::{DataFolder, read_json, write_json};

/// The application that every first start makes.
pub const DEMO_APP: &str = "com.example.demo";

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// One request. On the socket: one line of JSON, named by `do`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Ask {
    /// Makes an application.
    AppCreate {
        /// Its id.
        app: String,
        /// Its package name, where it is not the id.
        package: Option<String>,
    },
    /// Lists all applications.
    AppList,
    /// Gives an application a new secret; the old one stops at once.
    AppRotateSecret {
        /// Its id.
        app: String,
    },
    /// Sets what an application may send; what is left out stays as it is.
    AppLimits {
        /// Its id.
        app: String,
        /// Messages in a second; 0: no limit.
        per_second: Option<u32>,
        /// Messages in a day; 0: no limit.
        per_day: Option<u64>,
    },
    /// Tells the secret that signs an application's receipts.
    AppWebhookSecret {
        /// Its id.
        app: String,
        /// Makes a new one first; the old one signs nothing more.
        rotate: bool,
    },
    /// Makes all tokens of an account worthless that were issued before now, and ends its connections.
    RevokeTokens {
        /// The account's id, with or without `@domain`.
        account: String,
    },
    /// What the server says of itself.
    Status,
    /// Reads the certificate again, as SIGHUP does.
    Reload,
    /// Ends the server as SIGTERM does.
    Drain,
}

/// An application, as it is shown and as `demo.json` keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    /// Its id.
    pub app: String,
    /// Its package name.
    pub package: String,
    /// Ships in the app.
    pub app_key: String,
    /// Authorises servers; there only when it was just made.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub secret: Option<String>,
    /// Signs its receipts, as Standard Webhooks writes it; there only when it was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub webhook_secret: Option<String>,
    /// Messages that it may send in a second; 0: no limit.
    #[serde(default)]
    pub sends_per_second_max: i64,
    /// Messages that it may send in a day; 0: no limit.
    #[serde(default)]
    pub sends_per_day_max: i64,
    /// When it was made.
    pub created_at_ms: i64,
}

impl From<wire::App> for App {
    fn from(app: wire::App) -> Self {
        Self {
            app: app.app,
            package: app.package_name,
            app_key: app.app_key,
            secret: app.secret,
            webhook_secret: app.webhook_secret,
            sends_per_second_max: app.sends_per_second_max.unwrap_or(0),
            sends_per_day_max: app.sends_per_day_max.unwrap_or(0),
            created_at_ms: app.created_at_ms,
        }
    }
}

/// Answers what needs the middle tier. [`Ask::Status`], [`Ask::Reload`] and [`Ask::Drain`] concern a process; its
/// socket answers them.
#[derive(Clone)]
pub struct Admin {
    bus: Arc<dyn Bus>,
    folder: DataFolder,
}

impl Admin {
    /// Asks over this bus; keeps the demo application in this folder.
    pub fn new(bus: Arc<dyn Bus>, folder: DataFolder) -> Self {
        Self { bus, folder }
    }

    /// Does what is asked and says what came of it.
    pub async fn perform(&self, ask: Ask) -> Result<Value, Failure> {
        match ask {
            Ask::AppCreate { app, package } => {
                let request = Request::CreateApp(wire::CreateApp { app, package_name: package });
                self.one_app(request).await.map(|app| json!(app))
            }
            Ask::AppList => self.apps(Request::ListApps(wire::ListApps {})).await.map(|apps| json!({ "apps": apps })),
            Ask::AppRotateSecret { app } => self.change(Request::RotateSecret(wire::RotateSecret { app })).await,
            Ask::AppLimits { app, per_second, per_day } => {
                let request = self.limits(app, per_second, per_day).await?;
                self.change(Request::SetAppLimits(request)).await
            }
            Ask::AppWebhookSecret { app, rotate } => {
                self.change(Request::WebhookSecret(wire::WebhookSecret { app, rotate })).await
            }
            Ask::RevokeTokens { account } => {
                let account = account.split_once('@').map_or(account.as_str(), |(id, _)| id).to_owned();
                match self.ask(Request::RevokeTokens(wire::RevokeTokens { account: account.clone() })).await? {
                    Reply::Done => Ok(json!({ "revoked": account })),
                    other => Err(unexpected(&other)),
                }
            }
            Ask::Status | Ask::Reload | Ask::Drain => {
                Err(Failure::new(Code::Illegal, "no server is running on this data folder"))
            }
        }
    }

    /// The demo application with its secret; `None` if there are applications, but not that one with a secret we know.
    /// Made when there is no application at all.
    pub async fn demo(&self) -> anyhow::Result<Option<App>> {
        let apps = self.apps(Request::ListApps(wire::ListApps {})).await?;
        if apps.is_empty() {
            let request = wire::CreateApp { app: DEMO_APP.to_owned(), package_name: None };
            let app = self.one_app(Request::CreateApp(request)).await?;
            write_json(&self.folder.demo(), &app)?;
            return Ok(Some(app));
        }
        let there = apps.iter().any(|app| app.app == DEMO_APP);
        Ok(read_json::<App>(&self.folder.demo())?.filter(|_| there))
    }

    /// Does something about one application and shows what it is then.
    async fn change(&self, request: Request) -> Result<Value, Failure> {
        let app = self.one_app(request).await?;
        // The commands that every start prints must go on working.
        if app.app == DEMO_APP {
            self.keep_demo(&app).map_err(|error| Failure::new(Code::StoreUnavailable, format!("{error:#}")))?;
        }
        Ok(json!(app))
    }

    /// Keeps what is new of the demo application beside the secrets that were known.
    fn keep_demo(&self, app: &App) -> anyhow::Result<()> {
        let Some(known) = read_json::<App>(&self.folder.demo())? else { return Ok(()) };
        let kept = App {
            secret: app.secret.clone().or(known.secret.clone()),
            webhook_secret: app.webhook_secret.clone().or(known.webhook_secret.clone()),
            ..app.clone()
        };
        if kept == known { Ok(()) } else { write_json(&self.folder.demo(), &kept) }
    }

    /// The limits that an application is to have, with those that stay.
    async fn limits(
        &self,
        app: String,
        per_second: Option<u32>,
        per_day: Option<u64>,
    ) -> Result<wire::SetAppLimits, Failure> {
        let (per_second, per_day) =
            (per_second.map(i64::from), per_day.map(|max| i64::try_from(max).unwrap_or(i64::MAX)));
        let (sends_per_second_max, sends_per_day_max) = match (per_second, per_day) {
            (Some(per_second), Some(per_day)) => (per_second, per_day),
            (per_second, per_day) => {
                let apps = self.apps(Request::ListApps(wire::ListApps {})).await?;
                let none = || Failure::new(Code::UnknownApp, format!("there is no application {app}"));
                let known = apps.iter().find(|known| known.app == app).ok_or_else(none)?;
                (per_second.unwrap_or(known.sends_per_second_max), per_day.unwrap_or(known.sends_per_day_max))
            }
        };
        Ok(wire::SetAppLimits { app, sends_per_second_max, sends_per_day_max })
    }

    async fn one_app(&self, request: Request) -> Result<App, Failure> {
        let nothing = || Failure::new(Code::System, "the middle tier answered without an application");
        self.apps(request).await?.into_iter().next().ok_or_else(nothing)
    }

    async fn apps(&self, request: Request) -> Result<Vec<App>, Failure> {
        match self.ask(request).await? {
            Reply::Apps(apps) => Ok(apps.apps.into_iter().map(App::from).collect()),
            other => Err(unexpected(&other)),
        }
    }

    async fn ask(&self, request: Request) -> Result<Reply, Failure> {
        self.bus.request(Call::high(Shard(0), PATIENCE, request)).await
    }
}

fn unexpected(reply: &Reply) -> Failure {
    let name: String = format!("{reply:?}").chars().take_while(|c| c.is_alphanumeric()).collect();
    Failure::new(Code::System, format!("the middle tier answered with {name}, which was not asked for"))
}
