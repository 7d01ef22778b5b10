//! `campanile check-config`: whether the settings are valid, and what would be in force.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use super::{Settings, Usage};
use crate::callbacks::CallbackClient;
use crate::config::{Config, KEYS};
use crate::identity::ServerCertificate;
use crate::telemetry;

/// Shows the settings.
pub(super) fn run(settings: &Settings) -> Result<()> {
    let config = settings.load(&[])?;
    check_files(&config)?;
    let mut words = String::from("# The configuration is valid. In force:\n");
    let mut values = Map::new();
    for key in KEYS {
        let shown = key.show(&config);
        let _ = writeln!(words, "{} = {shown}", key.name);
        // What TOML shows of our types is JSON, too.
        values.insert(key.name.to_owned(), serde_json::from_str(&shown).unwrap_or(Value::String(shown)));
    }
    settings.say(&json!({ "valid": true, "settings": values }), words.trim_end())
}

/// What can only be seen with the files that the settings name.
pub(super) fn check_files(config: &Config) -> Result<()> {
    telemetry::filter(&config.log.level).map_err(|error| Usage(format!("{error:#}")))?;
    if !config.tls.certificate.as_os_str().is_empty() {
        ServerCertificate::read(&config.tls.certificate, &config.tls.key)
            .map(drop)
            .map_err(|error| Usage(format!("{error:#}")))
            .context("configuration")?;
    }
    for password in [config.mysql.url(), config.redis.url()] {
        password.map(drop).map_err(Usage).context("configuration")?;
    }
    CallbackClient::new(&config.callbacks, config.limits.callbacks)
        .map(drop)
        .map_err(|error| Usage(format!("{error:#}")))
        .context("configuration")?;
    Ok(())
}
