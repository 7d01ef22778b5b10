//! `campanile serve`: runs the server and says how to try it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use serde::Serialize;

use super::{Settings, check_config};
use crate::admin::App;
use crate::config::DataPath;
use crate::lifecycle::{self, Orders};
use crate::socket::Run;
use crate::telemetry;
use crate::wiring::{self, Ready};

/// What is left when the server has ended may take this long.
const LEFTOVERS_MAX: Duration = Duration::from_secs(1);

/// The topic of the commands that are printed.
const DEMO_TOPIC: &str = "news";

/// Run the server.
#[derive(Args, Default)]
pub(super) struct Serve {
    /// Which tiers to run: all, front, middle or http [default: all]
    #[arg(long)]
    role: Option<String>,
}

impl Serve {
    /// Serves until a signal or `campanile ctl drain`.
    pub(super) fn run(self, settings: &Settings) -> Result<()> {
        let role = self.role.as_deref().map(|role| ("--role", "role", role));
        let config = settings.load(role.as_slice())?;
        check_config::check_files(&config)?;
        telemetry::install_logs(&config.log)?;
        telemetry::log_panics();
        lifecycle::raise_file_limit();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the runtime can't be started")?;
        let served = runtime.block_on(async {
            let orders = Orders::default();
            lifecycle::watch_signals(orders.clone())?;
            wiring::serve(config, orders, |ready| {
                // Nobody may be reading; the server serves all the same.
                let _ = settings.say(&announcement(ready), &welcome(ready, &this_program()));
            })
            .await
        });
        runtime.shutdown_timeout(LEFTOVERS_MAX);
        served
    }
}

/// What a machine reads.
#[derive(Serialize)]
struct Announcement<'a> {
    event: &'a str,
    data: &'a Path,
    #[serde(flatten)]
    run: &'a Run,
    #[serde(skip_serializing_if = "Option::is_none")]
    demo: Option<&'a App>,
}

fn announcement(ready: &Ready) -> Announcement<'_> {
    Announcement { event: "ready", data: ready.folder.path(), run: &ready.run, demo: ready.demo.as_ref() }
}

/// What a person reads first.
fn welcome(ready: &Ready, program: &str) -> String {
    let run = &ready.run;
    let mut lines = vec![format!("Campanile {} is ready.", run.version), String::new()];
    for (key, address) in &run.listeners {
        lines.push(format!("  {key:<17} {address}"));
    }
    if let Some(ca) = &run.ca {
        lines.push(format!("  {:<17} {}", "CA", shown(ca)));
    }
    let (Some(https), Some(demo)) = (run.https(), &ready.demo) else { return lines.join("\n") };
    let data = match ready.folder.path() {
        path if path == DataPath::default().0 => String::new(),
        path => format!(" --data {}", quoted(&shown(path))),
    };
    let app = &demo.app;
    lines.push(String::new());
    lines.push("In a second terminal, in this folder, be a device:".to_owned());
    lines.push(format!("\n  {program} device{data} --app {app} --topic {DEMO_TOPIC}\n"));
    lines.push("In a third one, send to it:".to_owned());
    if let (Some(ca), Some(secret)) = (&run.ca, &demo.secret) {
        lines.push(format!(
            "\n  curl --cacert {} -H 'Authorization: key={secret}' -d topic={DEMO_TOPIC} -d payload='Hello from curl' \
             {https}/v3/message/topic\n",
            quoted(&shown(ca))
        ));
    }
    lines.push(format!("  {program} send{data} --app {app} --topic {DEMO_TOPIC} 'Hello from the tower'\n"));
    lines.join("\n")
}

/// How this program was called, so that it can be called again from the same folder.
fn this_program() -> String {
    let called = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    if called.components().count() == 1 && !called.as_os_str().is_empty() {
        // Found through PATH.
        return quoted(&called.display().to_string());
    }
    std::env::current_exe().map_or_else(|_| "campanile".to_owned(), |path| quoted(&shown(&path)))
}

/// A path as seen from the working folder.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    match path.strip_prefix(&here) {
        // A bare name would be looked up in PATH.
        Ok(below) if below.components().count() == 1 => format!("./{}", below.display()),
        Ok(below) => below.display().to_string(),
        Err(_) => path.display().to_string(),
    }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+:@%,=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::DEMO_APP;
    use crate::config::Config;
    use crate::data_folder::DataFolder;

    #[test]
    fn a_first_start_says_what_the_readme_shows() {
        let readme = include_str!("../../../README.md");
        let secret = readme.split("key=").nth(1).and_then(|rest| rest.split('\'').next()).expect("a secret");
        let listeners = Config::default().listeners();
        let run = Run {
            pid: 1,
            role: "all".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            listeners: listeners.into_iter().map(|(key, address)| (key.to_owned(), address)).collect(),
            ca: Some(std::env::current_dir().expect("a folder").join("campanile-data/tls/ca.pem")),
        };
        let demo = App {
            app: DEMO_APP.to_owned(),
            package: DEMO_APP.to_owned(),
            app_key: "key".to_owned(),
            secret: Some(secret.to_owned()),
            webhook_secret: None,
            sends_per_second_max: 0,
            sends_per_day_max: 0,
            created_at_ms: 1,
        };
        let ready = Ready { run, folder: DataFolder::at(&DataPath::default().0), demo: Some(demo) };
        let said = welcome(&ready, "target/release/campanile");
        assert!(readme.contains(said.trim_end()), "README.md does not show what is said:\n{said}");
    }

    #[test]
    fn a_path_with_a_space_survives_the_shell() {
        assert_eq!(quoted("target/release/campanile"), "target/release/campanile");
        assert_eq!(quoted("/a b/it's"), r"'/a b/it'\''s'");
    }
}
