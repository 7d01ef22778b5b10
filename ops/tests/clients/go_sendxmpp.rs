//! Debian's `go-sendxmpp`: a command that sends one message.

use std::io::Write as _;
use std::path::Path;
use std::process::{Output, Stdio};

use campanile_ops::api::Account;

use crate::guest::Door;
use crate::harness::clients;
use crate::harness::server::{Server, text};

/// Sends a message to that address, with whatever the server says on stderr; `None` where the client is absent.
fn send(server: &Server, door: Door, account: &Account, to: &str) -> Option<Output> {
    send_trusting(&server.ca(), server, door, account, to)
}

fn send_trusting(ca: &Path, server: &Server, door: Door, account: &Account, to: &str) -> Option<Output> {
    let mut command = clients::go_sendxmpp()?;
    let home = tempfile::tempdir().expect("a folder");
    let at = format!("--jserver=localhost:{}", server.address(door.listener()).port());
    command.env("HOME", home.path()).env("SSL_CERT_FILE", ca);
    if matches!(door, Door::Direct) {
        command.arg("--tls");
    }
    command.args(["--debug", &at, "--username", &account.jid, "--password", &account.token, to]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it runs");
    child.stdin.take().expect("it is piped").write_all(b"is anybody there?\n").expect("it reads");
    Some(child.wait_with_output().expect("it ends"))
}

fn account(server: &Server) -> Account {
    server.api().create_account("a device of another make", "go-sendxmpp").expect("an account")
}

#[test]
fn go_sendxmpp_logs_in_and_sees_that_nobody_is_there() {
    let server = Server::start();
    let (account, absent) = (account(&server), account(&server).jid);
    for &door in Door::TCP {
        let Some(sent) = send(&server, door, &account, &absent) else { return };
        let said = text(&sent.stderr);
        assert!(sent.status.success(), "{said}");
        let refusal = format!("from='{absent}'");
        let refusal = said.lines().find(|line| line.contains("type='error'") && line.contains(&refusal));
        assert!(refusal.is_some_and(|line| line.contains("<service-unavailable ")), "{said}");
    }
}

#[test]
fn go_sendxmpp_reports_a_wrong_token() {
    let server = Server::start();
    let stranger = Account { token: account(&server).token, ..account(&server) };
    let Some(sent) = send(&server, Door::Direct, &stranger, &stranger.jid) else { return };
    assert_eq!(sent.status.code(), Some(1));
    assert!(text(&sent.stderr).contains("auth failure: not-authorized"), "{}", text(&sent.stderr));
}

#[test]
fn go_sendxmpp_verifies_the_certificate() {
    let (server, another) = (Server::start(), Server::start());
    let account = account(&server);
    let Some(sent) = send_trusting(&another.ca(), &server, Door::Direct, &account, &account.jid) else { return };
    assert_eq!(sent.status.code(), Some(1));
    assert!(text(&sent.stderr).contains("certificate signed by unknown authority"), "{}", text(&sent.stderr));
}
