//! `campanile app`: applications, what they may send, and their secrets.

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use serde_json::Value;

use super::{Settings, ctl};
use crate::admin::{App, Ask};

/// Make and list applications, limit what they send, renew their secrets.
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
    /// Limit what an application may send; what is left out stays as it is
    #[command(group(clap::ArgGroup::new("limit").required(true).multiple(true)))]
    Limits {
        /// Its id
        app: String,
        /// Messages in a second; 0: no limit
        #[arg(long, value_name = "N", group = "limit")]
        per_second: Option<u32>,
        /// Messages in a day; 0: no limit
        #[arg(long, value_name = "N", group = "limit", value_parser = clap::value_parser!(u64).range(..=PER_DAY_MAX))]
        per_day: Option<u64>,
    },
    /// Print the secret that signs an application's receipts
    WebhookSecret {
        /// Its id
        app: String,
        /// Make a new one first; the old one signs nothing more
        #[arg(long)]
        rotate: bool,
    },
}

/// What the catalog can hold.
const PER_DAY_MAX: u64 = i64::MAX.unsigned_abs();

impl AppCommand {
    /// Asks the running server, or opens the store itself.
    pub(super) fn run(self, settings: &Settings) -> Result<()> {
        let config = settings.load(&[])?;
        match self.verb {
            Verb::Create { app, package } => show(settings, &ctl::ask(&config, &Ask::AppCreate { app, package })?),
            Verb::RotateSecret { app } => show(settings, &ctl::ask(&config, &Ask::AppRotateSecret { app })?),
            Verb::Limits { app, per_second, per_day } => {
                show(settings, &ctl::ask(&config, &Ask::AppLimits { app, per_second, per_day })?)
            }
            Verb::WebhookSecret { app, rotate } => {
                show(settings, &ctl::ask(&config, &Ask::AppWebhookSecret { app, rotate })?)
            }
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
    settings.say(value, &words_of(&app))
}

fn words_of(app: &App) -> String {
    let sends = match (app.sends_per_second_max, app.sends_per_day_max) {
        (0, 0) => "without a limit".to_owned(),
        (second, 0) => format!("at most {second} a second"),
        (0, day) => format!("at most {day} a day"),
        (second, day) => format!("at most {second} a second and {day} a day"),
    };
    let mut lines = vec![
        app.app.clone(),
        format!("  package         {}", app.package),
        format!("  app key         {}  (ships in the app)", app.app_key),
        format!("  sends           {sends}"),
    ];
    if let Some(secret) = &app.secret {
        lines.push(format!("  secret          {secret}  (authorises app servers; it is not shown again)"));
    }
    if let Some(secret) = &app.webhook_secret {
        lines.push(format!("  webhook secret  {secret}  (app servers prove receipts with it)"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_application_is_shown_with_its_limits_and_what_secrets_were_asked_for() {
        let app = App {
            app: "com.example.shop".to_owned(),
            package: "com.example.shop".to_owned(),
            app_key: "key".to_owned(),
            secret: None,
            webhook_secret: None,
            sends_per_second_max: 0,
            sends_per_day_max: 0,
            created_at_ms: 1,
        };
        assert!(words_of(&app).ends_with("\n  sends           without a limit"), "{}", words_of(&app));
        let limited = App { sends_per_second_max: 50, ..app.clone() };
        assert!(words_of(&limited).ends_with("at most 50 a second"), "{}", words_of(&limited));
        let limited = App { sends_per_day_max: 9, webhook_secret: Some("whsec_x".to_owned()), ..app };
        assert!(words_of(&limited).contains("at most 9 a day\n"), "{}", words_of(&limited));
        assert!(words_of(&limited).contains("webhook secret  whsec_x"), "{}", words_of(&limited));
    }
}
