//! The command line: what can be said, and how an end is reported.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage or configuration. An error is one line on stderr, with the way out.

mod app;
mod bench;
mod check_config;
mod ctl;
mod device;
mod keys;
mod migrate;
mod send;
mod serve;
mod server;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use thiserror::Error;

use crate::config::{self, Config, ConfigError, Sources};

/// One XMPP connection to each device, many channels on it; the first is push.
#[derive(Parser)]
#[command(name = "campanile", version, about, long_about = None)]
struct Arguments {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Heading of the flags that every command takes.
const EVERYWHERE: &str = "With every command";

/// What every command takes.
#[derive(Args)]
struct Settings {
    /// File of settings (TOML); see docs/configuration.md
    #[arg(long, global = true, value_name = "FILE", help_heading = EVERYWHERE)]
    config: Option<PathBuf>,
    /// Data folder [default: ./campanile-data]
    #[arg(long, global = true, value_name = "DIR", help_heading = EVERYWHERE)]
    data: Option<String>,
    /// Any setting, such as --set xmpp.tls=127.0.0.1:5223
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", help_heading = EVERYWHERE)]
    set: Vec<String>,
    /// Print one JSON object per line
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server (also without any command)
    Serve(serve::Serve),
    /// Be a device: register an app, print what it gets
    Device(device::Device),
    /// Send a message, as an app server would
    Send(send::Send),
    /// Make and list applications, limit what they send, renew their secrets
    App(app::AppCommand),
    /// Speak to the running server
    Ctl(ctl::Ctl),
    /// Make or update the tables in HBase and the database in MySQL
    Migrate(migrate::Migrate),
    /// Make the keys that the processes of an installation share
    Keys(keys::Keys),
    /// Check the settings and show what would be in force
    CheckConfig,
    /// Measure what a server costs, from outside its process
    Bench(bench::Bench),
}

/// What was said can't be done as it was said: exit code 2.
#[derive(Debug, Error)]
#[error("{0}")]
struct Usage(String);

/// Runs the command that this process was started with.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage_of(&error),
    };
    let Arguments { settings, command } = arguments;
    let done = match command.unwrap_or_else(|| Command::Serve(serve::Serve::default())) {
        Command::Serve(command) => command.run(&settings),
        Command::Device(command) => command.run(&settings),
        Command::Send(command) => command.run(&settings),
        Command::App(command) => command.run(&settings),
        Command::Ctl(command) => command.run(&settings),
        Command::Migrate(command) => command.run(&settings),
        Command::Keys(command) => command.run(&settings),
        Command::CheckConfig => check_config::run(&settings),
        Command::Bench(command) => command.run(&settings),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

fn report(error: &anyhow::Error) -> ExitCode {
    if error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
        // Whoever read our output has had enough, as `head` does.
        return ExitCode::SUCCESS;
    }
    eprintln!("campanile: {}", one_line(&format!("{error:#}")));
    let usage = error.is::<Usage>() || error.is::<ConfigError>();
    ExitCode::from(if usage { 2 } else { 1 })
}

/// clap's own errors have several lines; ours has one.
fn usage_of(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(2)
        }
        _ => {
            let text = error.render().to_string();
            let said = text.split("\n\nUsage:").next().unwrap_or_default().trim_start_matches("error: ");
            eprintln!("campanile: {}; see campanile --help", one_line(&said.replace("\n\n  tip:", "; tip:")));
            ExitCode::from(2)
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Settings {
    /// All settings; `flags` are those of the command itself.
    fn load(&self, flags: &[(&str, &str, &str)]) -> Result<Config> {
        let mut said: Vec<_> = flags
            .iter()
            .map(|(flag, key, value)| ((*flag).to_owned(), (*key).to_owned(), (*value).to_owned()))
            .collect();
        for set in &self.set {
            let (key, value) =
                set.split_once('=').with_context(|| Usage(format!("--set {set} must be --set KEY=VALUE")))?;
            // Without the value, which may be a secret.
            said.push((format!("--set {key}"), key.to_owned(), value.to_owned()));
        }
        if let Some(data) = &self.data {
            said.push(("--data".to_owned(), "data".to_owned(), data.clone()));
        }
        let sources = Sources { file: self.config.clone(), environment: config::environment(), flags: said };
        Ok(Config::load(&sources)?)
    }

    /// Says something on stdout: the value as one line of JSON, or the words for people.
    fn say(&self, value: &impl Serialize, words: &str) -> Result<()> {
        if self.json { say_json(value) } else { say_line(words) }
    }
}

/// One line of JSON on stdout.
fn say_json(value: &impl Serialize) -> Result<()> {
    say_line(&serde_json::to_string(value)?)
}

fn say_line(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}

/// A runtime for a command that does one thing at a time.
fn small_runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime can't be started")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn wrong_usage_and_configuration_are_told_apart_from_failure() {
        let code = |error: anyhow::Error| format!("{:?}", report(&error));
        let two = format!("{:?}", ExitCode::from(2));
        assert_eq!(code(Usage("no such thing".to_owned()).into()), two);
        assert_eq!(code(anyhow::anyhow!("deep down").context(Usage("no such thing".to_owned()))), two);
        assert_eq!(code(anyhow::anyhow!("it failed")), format!("{:?}", ExitCode::from(1)));
    }
}
