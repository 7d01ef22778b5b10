//! `campanile device`: a device on the terminal.
//!
//! It makes an account over HTTPS, connects, registers one app and prints each push as a line of JSON. With `--state` it
//! keeps what a device must keep, so that after a restart it is the same device and no push is printed twice.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use clap::Args;
use idl::clock::{Entropy as _, SystemEntropy};
use idl::ids::{AccountId, AppId, RegId};
use rustls_pki_types::ServerName;
use sdk_android_bridge::driver::tls::{Endpoint, TlsConnector, TlsMode};
use sdk_android_bridge::driver::{Device as SdkDevice, DeviceControl, DeviceEvent, DeviceHandle};
use sdk_android_bridge::{AppConfig, Command, Config as DeviceConfig, Core, Failure, Push, Saved};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use super::server::{Found, Server};
use super::{Settings, Usage, say_json, small_runtime};
use crate::admin::{App, Ask};
use crate::api::{self, Account};
use crate::config::Config;
use crate::data_folder::{DataFolder, read_json, write_json};
use crate::socket::ask_server;

/// Be a device: register an app, print what it gets.
#[derive(Args)]
pub(super) struct Device {
    /// The application to register
    #[arg(long)]
    app: String,
    /// Its key [default: asked of the server of the data folder]
    #[arg(long)]
    app_key: Option<String>,
    /// Its package name [default: that of the application, or its id]
    #[arg(long)]
    package: Option<String>,
    /// An alias to set; may be repeated
    #[arg(long)]
    alias: Vec<String>,
    /// A topic to subscribe to; may be repeated
    #[arg(long)]
    topic: Vec<String>,
    /// A user account to set; may be repeated
    #[arg(long)]
    user_account: Vec<String>,
    /// An attribute to register with, such as app_version=3.2; may be repeated [default: platform, this system's name]
    #[arg(long, value_name = "NAME=VALUE")]
    attribute: Vec<String>,
    /// Report a click on each push that is printed
    #[arg(long)]
    click_all: bool,
    /// File that keeps the device over restarts; made if absent
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    #[command(flatten)]
    server: Server,
}

/// What `--state` keeps. It holds secrets.
#[derive(Serialize, Deserialize)]
struct State {
    app: String,
    account: Account,
    /// [`Saved`], in base 64.
    saved: String,
}

impl Device {
    /// Runs until a signal.
    pub(super) fn run(self, settings: &Settings) -> Result<()> {
        let config = settings.load(&[])?;
        let commands = self.commands()?;
        let app: AppId = parse("--app", &self.app)?;
        let found = self.server.find(&config)?;
        let attributes = attributes(&self.attribute)?;
        let known = self.known_app(&config, &app, attributes)?;
        let state = self.state(&found)?;
        let keeper = Keeper { path: self.state, state };
        let core = keeper.core(known)?;
        let connector = connector(&keeper.state.account, &found)?;
        small_runtime()?.block_on(async {
            let handle = SdkDevice::spawn(core, connector);
            Session { settings, app, commands, click_all: self.click_all, keeper, regid: None }.run(handle).await
        })
    }

    /// What is asked of the server once the app is registered.
    fn commands(&self) -> Result<Vec<Command>> {
        let mut commands = Vec::new();
        for alias in &self.alias {
            commands.push(Command::SetAlias(parse("--alias", alias)?));
        }
        for account in &self.user_account {
            commands.push(Command::SetUserAccount(parse("--user-account", account)?));
        }
        for topic in &self.topic {
            commands.push(Command::Subscribe(parse("--topic", topic)?));
        }
        Ok(commands)
    }

    /// The application with its key: as told, or as the server on this machine knows it.
    fn known_app(&self, config: &Config, app: &AppId, attributes: BTreeMap<String, String>) -> Result<AppConfig> {
        let (app_key, package) = if let Some(key) = &self.app_key {
            (key.clone(), None)
        } else {
            let folder = DataFolder::at(config.data());
            let listed = ask_server(&folder, &Ask::AppList)?
                .ok_or_else(|| Usage("the app key is needed: give --app-key".to_owned()))?;
            let apps: Vec<App> =
                serde_json::from_value(listed["apps"].clone()).context("the server's answer can't be read")?;
            let known = apps
                .into_iter()
                .find(|known| known.app == app.as_str())
                .ok_or_else(|| anyhow!("there is no application {app}; make it with campanile app create {app}"))?;
            (known.app_key, Some(known.package))
        };
        let package = self.package.clone().or(package).unwrap_or_else(|| app.to_string());
        Ok(AppConfig { app: app.clone(), package, app_key, attributes })
    }

    /// The device that was kept, or a new one with an account of its own.
    fn state(&self, found: &Found) -> Result<State> {
        if let Some(path) = &self.state
            && let Some(state) = read_json::<State>(path)?
        {
            if state.app != self.app {
                bail!("{} keeps a device with the app {}; give another file to --state", path.display(), state.app);
            }
            return Ok(state);
        }
        let mut identity = [0; 24];
        SystemEntropy.fill(&mut identity);
        let account = found.api()?.create_account(&URL_SAFE_NO_PAD.encode(identity), "campanile device")?;
        let state = State { app: self.app.clone(), account, saved: STANDARD.encode(Saved::default().to_bytes()) };
        if let Some(path) = &self.state {
            write_json(path, &state)?;
        }
        Ok(state)
    }
}

struct Keeper {
    path: Option<PathBuf>,
    state: State,
}

impl Keeper {
    fn core(&self, app: AppConfig) -> Result<Core> {
        let damaged = || "the device's state is damaged; begin anew with another --state".to_owned();
        let saved = STANDARD.decode(&self.state.saved).with_context(damaged)?;
        let saved = Saved::from_bytes(&saved).with_context(damaged)?;
        let (id, domain) = identity(&self.state.account)?;
        let config = DeviceConfig::new(domain, id, self.state.account.token.clone());
        Ok(Core::new(config, vec![app], saved, Arc::new(SystemEntropy)))
    }

    fn keep(&mut self, saved: &[u8]) -> Result<()> {
        self.state.saved = STANDARD.encode(saved);
        self.path.as_ref().map_or(Ok(()), |path| write_json(path, &self.state))
    }
}

/// The account's id and domain.
fn identity(account: &Account) -> Result<(AccountId, &str)> {
    let (id, domain) = account.jid.split_once('@').context("the server gave an account without a domain")?;
    Ok((id.parse().context("the server gave an account that is none")?, domain))
}

fn connector(account: &Account, found: &Found) -> Result<TlsConnector> {
    let (_, domain) = identity(account)?;
    let endpoints: Vec<Endpoint> = account
        .endpoints
        .iter()
        .map(|endpoint| Endpoint {
            host: endpoint.host.clone(),
            port: endpoint.port,
            tls: if endpoint.tls == "starttls" { TlsMode::StartTls } else { TlsMode::Direct },
        })
        .collect();
    if endpoints.is_empty() {
        bail!("the server has no listener for devices (xmpp.tls or xmpp.starttls)");
    }
    let name = ServerName::try_from(domain.to_owned()).context("the server's domain is no name")?;
    Ok(TlsConnector::new(endpoints, domain, name, api::device_tls(found.ca.as_deref())?))
}

/// The device while it runs.
struct Session<'a> {
    settings: &'a Settings,
    app: AppId,
    commands: Vec<Command>,
    /// Each push that is printed is told to be clicked on.
    click_all: bool,
    keeper: Keeper,
    /// The registration that the commands were given for.
    regid: Option<RegId>,
}

type Commanding = JoinHandle<Result<RegId, Failure>>;

impl Session<'_> {
    async fn run(mut self, mut device: DeviceHandle) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be watched")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be watched")?;
        let control = device.control();
        let mut commanding: Option<Commanding> = None;
        loop {
            let done = async {
                match &mut commanding {
                    Some(task) => task.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                event = device.events.recv() => {
                    let Some(event) = event else { bail!("the device ended by itself") };
                    if let Some(task) = self.take(event, &control).await? {
                        commanding = Some(task);
                    }
                }
                done = done => {
                    commanding = None;
                    match done.context("the device crashed")? {
                        Ok(regid) => {
                            self.regid = Some(regid);
                            self.say_ready(regid)?;
                        }
                        Err(failure) => bail!("the server refused what was asked for {}: {failure}", self.app),
                    }
                }
            }
        }
        let saved = device.stop().await;
        self.keeper.keep(&saved.to_bytes())
    }

    /// Takes one event. Gives a task when names and topics are to be set.
    async fn take(&mut self, event: DeviceEvent, control: &DeviceControl) -> Result<Option<Commanding>> {
        match event {
            DeviceEvent::Push(push) => {
                say_json(&line_of(&push))?;
                control.handled(&push.app, push.id);
                if self.click_all {
                    control.clicked(push.app, push.id).await;
                }
            }
            DeviceEvent::Ready { regid, .. } if self.regid == Some(regid) => self.say_ready(regid)?,
            DeviceEvent::Ready { regid, .. } => {
                let (app, commands, control) = (self.app.clone(), self.commands.clone(), control.clone());
                return Ok(Some(tokio::spawn(async move {
                    for command in commands {
                        control.command(app.clone(), command).await?;
                    }
                    Ok(regid)
                })));
            }
            DeviceEvent::RegisterFailed { failure, .. } => bail!("{} could not be registered: {failure}", self.app),
            DeviceEvent::Revoked { id, .. } => {
                let line = Line::Revoked { app: self.app.as_str(), id: id.to_string() };
                self.settings.say(&line, &format!("taken back: {id}"))?;
            }
            DeviceEvent::Invalidated { .. } => {
                let line = Line::Invalidated { app: self.app.as_str() };
                self.settings.say(&line, "the registration is gone; registering anew")?;
            }
            DeviceEvent::Offline { reason } => {
                let line = Line::Offline { reason: reason.to_string() };
                self.settings.say(&line, &format!("offline: {reason}; coming back"))?;
            }
            DeviceEvent::LoggedOut { reason } => {
                bail!("the server no longer accepts the device's token ({reason}); begin anew with another --state")
            }
            DeviceEvent::Save(saved) => self.keeper.keep(&saved)?,
        }
        Ok(None)
    }

    fn say_ready(&self, regid: RegId) -> Result<()> {
        let account = &self.keeper.state.account.jid;
        let line = Line::Ready { account, app: self.app.as_str(), regid: regid.to_string() };
        self.settings.say(&line, &format!("ready: registration {regid} of {} on {account}", self.app))
    }
}

/// What is printed, as JSON. What a sender left out is left out.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Line<'a> {
    Ready { account: &'a str, app: &'a str, regid: String },
    Push(PushLine<'a>),
    Revoked { app: &'a str, id: String },
    Invalidated { app: &'a str },
    Offline { reason: String },
}

/// A push by the names of the send API.
#[derive(Serialize)]
struct PushLine<'a> {
    id: String,
    app: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pass_through: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    notify_type: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    notify_id: Option<i64>,
    /// The push that was shown under the same `notify_id` until now.
    #[serde(skip_serializing_if = "Option::is_none")]
    replaces: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    extra: Option<&'a BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alias: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_account: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    job_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted_at_ms: Option<i64>,
    broadcast: bool,
}

fn line_of(push: &Push) -> Line<'_> {
    let notification = &push.notification;
    Line::Push(PushLine {
        id: push.id.to_string(),
        app: push.app.as_str(),
        payload: notification.payload.as_deref(),
        title: notification.title.as_deref(),
        description: notification.description.as_deref(),
        pass_through: notification.pass_through,
        notify_type: notification.notify_type,
        notify_id: notification.notify_id,
        replaces: push.replaces.map(|id| id.to_string()),
        extra: notification.extra.as_ref(),
        topic: notification.topic.as_deref(),
        alias: notification.alias_name.as_deref(),
        user_account: notification.user_account.as_deref(),
        job_key: notification.job_key.as_deref(),
        accepted_at_ms: notification.accepted_at_ms,
        broadcast: push.broadcast,
    })
}

/// What the app registers with: as told, and which system this is if that was not told.
fn attributes(told: &[String]) -> Result<BTreeMap<String, String>> {
    let mut attributes = BTreeMap::from([("platform".to_owned(), std::env::consts::OS.to_owned())]);
    for attribute in told {
        let (name, value) = attribute
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| Usage(format!("--attribute {attribute:?} is not NAME=VALUE, such as app_version=3.2")))?;
        attributes.insert(name.to_owned(), value.to_owned());
    }
    Ok(attributes)
}

fn parse<T>(flag: &str, text: &str) -> Result<T>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error| Usage(format!("{flag}: {error}")).into())
}

#[cfg(test)]
mod tests {
    use idl::contract::message::Notification;
    use idl::ids::MessageId;

    use super::*;

    #[test]
    fn attributes_are_names_with_values_and_may_name_another_platform() {
        let told = ["app_version=3.2", "platform=android", "model=a=b", "region="].map(str::to_owned);
        let attributes = attributes(&told).expect("attributes");
        let expected = [("app_version", "3.2"), ("model", "a=b"), ("platform", "android"), ("region", "")];
        let found: Vec<_> = attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(found, expected);
        assert_eq!(super::attributes(&[]).expect("attributes")["platform"], std::env::consts::OS);
    }

    #[test]
    fn an_attribute_without_a_name_or_a_value_is_wrong_usage() {
        for told in ["app_version", "=3.2", ""] {
            let error = attributes(&[told.to_owned()]).expect_err(told);
            assert!(error.is::<Usage>() && error.to_string().contains("NAME=VALUE"), "{error}");
        }
    }

    #[test]
    fn a_push_is_printed_with_what_it_replaces_and_without_what_it_has_not() {
        let mut notification =
            Notification::new(None, None, None, None, None, Some(1 << 40), None, None, None, None, None, None);
        notification.job_key = Some("job".to_owned());
        let app = "com.example.demo".parse().expect("an app id");
        let push = Push { id: MessageId(2), app, notification, broadcast: false, replaces: Some(MessageId(1)) };
        let line = serde_json::to_value(line_of(&push)).expect("JSON");
        let expected = serde_json::json!({
            "event": "push", "id": MessageId(2).to_string(), "app": "com.example.demo", "notify_id": 1_u64 << 40,
            "replaces": MessageId(1).to_string(), "job_key": "job", "broadcast": false,
        });
        assert_eq!(line, expected);
    }
}
