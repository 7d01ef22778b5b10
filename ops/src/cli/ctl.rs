//! `campanile ctl`: the running server, and how commands reach it.

use std::fmt::Write as _;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use idl::ids::Partition;
use serde_json::Value;

use super::{Settings, small_runtime};
use crate::admin::Ask;
use crate::config::{BusKind, Config};
use crate::data_folder::DataFolder;
use crate::identity::Reloaded;
use crate::socket::ask_server;
use crate::wiring;

/// How often and how far apart a server is tried that owns the folder but doesn't answer yet, or not any more.
const TRIES: u32 = 50;
const BETWEEN_TRIES: Duration = Duration::from_millis(100);

/// Speak to the running server.
#[derive(Args)]
pub(super) struct Ctl {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Show how the server is
    Status,
    /// Read the certificate again, as SIGHUP does
    Reload,
    /// End the server as SIGTERM does
    Drain,
    /// Make all tokens of an account worthless and end its connections
    RevokeTokens {
        /// The account's id, with or without @domain
        account: String,
    },
}

impl Ctl {
    /// Asks the running server.
    pub(super) fn run(self, settings: &Settings) -> Result<()> {
        let config = settings.load(&[])?;
        match self.verb {
            Verb::Status => {
                let status = ask_running(&config, &Ask::Status)?;
                settings.say(&status, &words_of(&status))
            }
            Verb::Reload => {
                let reloaded = ask_running(&config, &Ask::Reload)?;
                let words = if reloaded["certificate"] == Reloaded::Replaced.name() {
                    "new connections get the new certificate"
                } else {
                    "the certificate is the same as before"
                };
                settings.say(&reloaded, words)
            }
            Verb::Drain => settings.say(&ask_running(&config, &Ask::Drain)?, "draining"),
            Verb::RevokeTokens { account } => {
                let words = format!("the tokens of {account} that were issued before now are worthless");
                settings.say(&ask(&config, &Ask::RevokeTokens { account })?, &words)
            }
        }
    }
}

/// Asks the server of the data folder; without one, opens the store itself, where that is in the folder.
pub(super) fn ask(config: &Config, ask: &Ask) -> Result<Value> {
    let folder = DataFolder::at(config.data());
    for tries_left in (0..TRIES).rev() {
        if let Some(answer) = ask_server(&folder, ask)? {
            return Ok(answer);
        }
        if config.bus.kind != BusKind::InProcess {
            bail!(
                "no server runs on the data folder {}; with bus.kind = \"{}\" any process of the installation can be \
                 asked: give the data folder of one that runs here with --data",
                folder.path().display(),
                config.bus.kind.name()
            );
        }
        folder.create()?;
        match folder.own() {
            Ok(owned) => return small_runtime()?.block_on(wiring::without_server(config, &owned, ask.clone())),
            Err(error) if tries_left == 0 => return Err(error),
            // It is starting or ending: soon it answers, or gives the folder back.
            Err(_) => sleep(BETWEEN_TRIES),
        }
    }
    unreachable!("the last try returns")
}

fn ask_running(config: &Config, ask: &Ask) -> Result<Value> {
    let folder = DataFolder::at(config.data());
    ask_server(&folder, ask)?.with_context(|| none_running(&folder))
}

/// What to say where a running server is needed.
pub(super) fn none_running(folder: &DataFolder) -> String {
    if folder.is_owned() {
        return format!(
            "the server on the data folder {} does not answer: it is starting or ending, or waits for an engine; its log \
             and /ready say for which",
            folder.path().display()
        );
    }
    format!("no server runs on the data folder {}; start one with campanile serve", folder.path().display())
}

fn words_of(status: &Value) -> String {
    let text = |name: &str| status[name].as_str().unwrap_or_default().to_owned();
    let mut words = format!(
        "{}: campanile {} with role {} in process {}, up for {} s",
        text("state"),
        text("version"),
        text("role"),
        status["pid"],
        status["uptime_s"]
    );
    if let Some(partitions) = status["partitions"].as_array() {
        let _ = write!(words, ", with {} of {} partitions", partitions.len(), Partition::COUNT);
    }
    for (engine, state) in status["engines"].as_object().into_iter().flatten() {
        let _ = write!(words, "\n  {engine:<16} {}", state.as_str().unwrap_or_default());
    }
    for (key, address) in status["listeners"].as_object().into_iter().flatten() {
        let _ = write!(words, "\n  {key:<16} {}", address.as_str().unwrap_or_default());
    }
    words
}
