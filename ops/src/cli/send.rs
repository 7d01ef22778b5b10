//! `campanile send`: a message, as an app server would send it.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::server::Server;
use super::{Settings, Usage};
use crate::admin::App;
use crate::config::{self, Config, SECRET_VARIABLE};
use crate::data_folder::{DataFolder, read_json};

/// Send a message, as an app server would.
#[derive(Args)]
pub(super) struct Send {
    /// The sending application
    #[arg(long)]
    app: String,
    #[command(flatten)]
    target: Target,
    /// The payload: text or data for the app, at most 4,096 bytes
    text: String,
    /// Title of a notification to show
    #[arg(long)]
    title: Option<String>,
    /// Second line of the notification
    #[arg(long)]
    description: Option<String>,
    /// How long it may be delivered, in milliseconds [default: two weeks]
    #[arg(long, value_name = "MS")]
    time_to_live: Option<u64>,
    /// The app secret [default: CAMPANILE_APP_SECRET; for the demo application, that of the data folder]
    #[arg(long)]
    secret: Option<String>,
    #[command(flatten)]
    server: Server,
}

/// Whom it is for.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Target {
    /// To the subscribers of a topic
    #[arg(long)]
    topic: Option<String>,
    /// To the registrations with this alias; may be repeated
    #[arg(long)]
    alias: Vec<String>,
    /// To this registration; may be repeated
    #[arg(long)]
    regid: Vec<String>,
    /// To the registrations of this user; may be repeated
    #[arg(long)]
    user_account: Vec<String>,
    /// To every registration of the application
    #[arg(long)]
    all: bool,
}

impl Target {
    /// The path, and the targets under their parameter's name.
    fn request(&self) -> (&'static str, Vec<(&'static str, &str)>) {
        fn many<'a>(name: &'static str, values: &'a [String]) -> Vec<(&'static str, &'a str)> {
            values.iter().map(|value| (name, value.as_str())).collect()
        }
        if let Some(topic) = &self.topic {
            ("/v3/message/topic", vec![("topic", topic.as_str())])
        } else if !self.alias.is_empty() {
            ("/v3/message/alias", many("alias", &self.alias))
        } else if !self.regid.is_empty() {
            ("/v3/message/regid", many("registration_id", &self.regid))
        } else if !self.user_account.is_empty() {
            ("/v2/message/user_account", many("user_account", &self.user_account))
        } else {
            ("/v3/message/all", Vec::new())
        }
    }
}

impl Send {
    /// Sends. Done means that the server has stored the message durably.
    pub(super) fn run(self, settings: &Settings) -> Result<()> {
        let config = settings.load(&[])?;
        let secret = self.secret(&config)?;
        let api = self.server.find(&config)?.api()?;
        let (path, mut form) = self.target.request();
        let time_to_live = self.time_to_live.map(|ms| ms.to_string());
        form.push(("payload", &self.text));
        let optional = [("title", &self.title), ("description", &self.description), ("time_to_live", &time_to_live)];
        form.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?))));
        let envelope = api.post(path, Some(&secret), &form)?;
        if envelope.code != 0 {
            bail!("the server did not accept the message: {} (code {})", envelope.description, envelope.code);
        }
        let id = envelope.data["id"].as_str().unwrap_or_default();
        let bad: Vec<(&String, &str)> = envelope
            .data
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| Some((name, value.as_str()?)))
            .filter(|(name, value)| name.starts_with("bad_") && !value.is_empty())
            .collect();
        let mut words = format!("accepted as {id}");
        for (name, value) in bad {
            let _ = write!(words, "; {name}: {value}");
        }
        settings.say(&Line { event: "accepted", data: &envelope.data }, &words)
    }

    fn secret(&self, config: &Config) -> Result<String> {
        if let Some(secret) = self.secret.clone().or_else(|| config::variable(SECRET_VARIABLE)) {
            return Ok(secret);
        }
        let demo: Option<App> = read_json(&DataFolder::at(config.data()).demo()).unwrap_or_default();
        match demo.filter(|demo| demo.app == self.app).and_then(|demo| demo.secret) {
            Some(secret) => Ok(secret),
            None => {
                Err(Usage(format!("the secret of {} is needed: give --secret or set {SECRET_VARIABLE}", self.app))
                    .into())
            }
        }
    }
}

/// What a machine reads: the id, and which targets were not known.
#[derive(Serialize)]
struct Line<'a> {
    event: &'a str,
    #[serde(flatten)]
    data: &'a Value,
}
