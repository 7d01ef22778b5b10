//! Debian's `profanity`: a person at a terminal, which tmux is.

use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use campanile_ops::api::Account;
use tempfile::TempDir;

use crate::guest::Door;
use crate::harness::server::{Server, text};
use crate::harness::{clients, wait_for};

/// What [`Screen::shows`] waits for, and what there was instead.
struct Awaited<'a> {
    what: &'a str,
    last: &'a RefCell<String>,
}

impl fmt::Display for Awaited<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} on the screen, which shows\n{}", self.what, self.last.borrow())
    }
}

/// Profanity in a terminal of its own. Dropping it ends both.
struct Screen {
    folder: TempDir,
}

impl Screen {
    /// A first start; `None` where the client is absent.
    fn start(ca: &Path) -> Option<Self> {
        let mut tmux = clients::profanity()?;
        let screen = Self { folder: tempfile::tempdir().expect("a folder") };
        let home = screen.folder.path();
        for (name, path) in [("XDG_CONFIG_HOME", "config"), ("XDG_DATA_HOME", "data"), ("XDG_CACHE_HOME", "cache")] {
            tmux.env(name, home.join(path));
        }
        tmux.env("HOME", home).env("SSL_CERT_FILE", ca).env("LANG", "C.UTF-8").env("TERM", "screen").env_remove("TMUX");
        tmux.arg("-S").arg(screen.socket()).args(["-f", "/dev/null", "new-session", "-d", "-x", "140", "-y", "80"]);
        let started = tmux.arg("profanity").output().expect("tmux runs");
        assert!(started.status.success(), "{}", text(&started.stderr));
        screen.shows("Type '/help' to show complete help.");
        Some(screen)
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("tmux")
    }

    fn tmux(&self, arguments: &[&str]) -> (bool, String) {
        let output = Command::new("tmux").arg("-S").arg(self.socket()).args(arguments).output().expect("tmux runs");
        (output.status.success(), text(&output.stdout))
    }

    /// Types a line.
    fn types(&self, line: &str) {
        for keys in [&["send-keys", "-l", line][..], &["send-keys", "Enter"]] {
            assert!(self.tmux(keys).0, "the terminal is there");
        }
    }

    fn text(&self) -> String {
        self.tmux(&["capture-pane", "-p"]).1
    }

    /// Waits until the screen shows this.
    fn shows(&self, what: &str) {
        let last = RefCell::new(String::new());
        wait_for(Awaited { what, last: &last }, || {
            last.replace(self.text());
            last.borrow().contains(what).then_some(())
        });
    }

    /// Connects as that account with STARTTLS that it insists on.
    fn connects(&self, server: &Server, account: &Account) {
        let address = server.address(Door::StartTls.listener());
        let (host, port) = (address.ip(), address.port());
        self.types(&format!("/connect {} server {host} port {port} tls force", account.jid));
    }

    /// Waits until the program, and with it the terminal, has ended.
    fn ends(&self) {
        wait_for("profanity ends", || (!self.tmux(&["has-session"]).0).then_some(()));
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

fn account(server: &Server) -> Account {
    server.api().create_account("a device of another make", "profanity").expect("an account")
}

#[test]
fn profanity_logs_in_pings_asks_what_is_here_and_quits() {
    let server = Server::start();
    let Some(screen) = Screen::start(&server.ca()) else { return };
    let account = account(&server);
    screen.connects(&server, &account);
    screen.shows("Enter password:");
    screen.types(&account.token);
    screen.shows("logged in successfully");
    screen.types("/disco info");
    screen.shows("urn:campanile:channel:1");
    // It pings no server that it does not know to answer. It asked for that as it logged in, and has been answered by now.
    screen.types("/ping");
    screen.shows("Ping response from server");
    let absent = self::account(&server).jid;
    screen.types(&format!("/msg {absent} is anybody there?"));
    screen.shows(&format!("Error from {absent}: service-unavailable"));
    screen.types("/quit");
    screen.ends();
    wait_for("its stream has ended", || (server.metric("campanile_front_connections") < 1.0).then_some(()));
}

#[test]
fn profanity_reports_a_wrong_token() {
    let server = Server::start();
    let Some(screen) = Screen::start(&server.ca()) else { return };
    let stranger = account(&server);
    screen.connects(&server, &stranger);
    screen.shows("Enter password:");
    screen.types(&account(&server).token);
    screen.shows("Login failed.");
}

#[test]
fn profanity_verifies_the_certificate() {
    let (server, another) = (Server::start(), Server::start());
    let Some(screen) = Screen::start(&another.ca()) else { return };
    let account = account(&server);
    screen.connects(&server, &account);
    screen.shows("Enter password:");
    screen.types(&account.token);
    screen.shows("TLS certificate verification failed");
}
