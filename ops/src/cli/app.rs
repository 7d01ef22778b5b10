//! `campanile app`: applications.

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use serde_json::Value;

use super::{Settings, ctl};
use crate::admin::{App, Ask};

/// Make and list applications, renew their secrets.
#[derive(Args)]
pub(super) struct AppCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make an application and print its key and secret
    Create {
        /// Its id, such as com.example.shop
        app: String,
        /// Its package name [default: the id]
        #[arg(long)]
        package: Option<String>,
    },
    /// List all applications
    List,
    /// Give an application a new secret; the old one stops at once
    RotateSecret {
        /// Its id
        app: String,
    },
}

impl AppCommand {
    /// Asks the running server, or opens the store itself.
    pub(super) fn run(self, settings: &Settings) -> Result<()> {
        let config = settings.load(&[])?;
        match self.verb {
            Verb::Create { app, package } => show(settings, &ctl::ask(&config, &Ask::AppCreate { app, package })?),
            Verb::RotateSecret { app } => show(settings, &ctl::ask(&config, &Ask::AppRotateSecret { app })?),
            Verb::List => {
                let mut apps = ctl::ask(&config, &Ask::AppList)?;
                let apps: Vec<Value> = apps["apps"].as_array_mut().map(std::mem::take).unwrap_or_default();
                if apps.is_empty() && !settings.json {
                    return settings.say(&Value::Null, "no applications; make one with campanile app create");
                }
                apps.iter().try_for_each(|app| show(settings, app))
            }
        }
    }
}

fn show(settings: &Settings, value: &Value) -> Result<()> {
    let app: App = serde_json::from_value(value.clone()).context("the server's answer can't be read")?;
    let secret = app.secret.as_ref().map_or_else(String::new, |secret| {
        format!("\n  secret   {secret}  (authorises app servers; it is not shown again)")
    });
    let words =
        format!("{}\n  package  {}\n  app key  {}  (ships in the app){secret}", app.app, app.package, app.app_key);
    settings.say(value, &words)
}
