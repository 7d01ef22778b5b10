//! Clients that others wrote, unchanged, against the real binary: npm's `xiaomi-push` sends, PyPI's slixmpp is the device.
//! They are in `ops/tests/clients/`.

#[path = "harness/harness.rs"]
#[expect(clippy::allow_attributes, reason = "each test file uses a part of the harness")]
#[allow(dead_code, reason = "each test file uses a part of the harness")]
mod harness;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, spawn};

use campanile_ops::api::Account;
use harness::clients;
use harness::server::Server;
use harness::terminal::TerminalDevice;
use harness::wait_for;
use serde_json::Value;

const PLAIN: (&str, &str) = ("http.plain", "127.0.0.1:0");

/// A client's program, which prints a line of JSON for each event. Dropping it kills it.
struct Program {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Program {
    fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the client's program runs");
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let stdout: Box<dyn Read + Send> = Box::new(child.stdout.take().expect("it is piped"));
        let stderr: Box<dyn Read + Send> = Box::new(child.stderr.take().expect("it is piped"));
        let keep = |stream| {
            let kept = Arc::clone(&lines);
            spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    kept.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                }
            })
        };
        let readers = vec![keep(stdout), keep(stderr)];
        Self { child, lines, readers }
    }

    /// Everything that it has printed, on either stream.
    fn said(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What it has printed of one event.
    fn events(&self, event: &str) -> Vec<Value> {
        let lines = self.said();
        let parsed = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        parsed.filter(|line| line["event"] == event).collect()
    }

    /// Waits for an event, unless the program ends without it.
    fn wait_for_event(&mut self, event: &str) -> Value {
        wait_for(format!("the client's {event:?}"), || {
            let ended = self.child.try_wait().expect("a child can be waited for");
            let found = self.events(event).pop();
            assert!(found.is_some() || ended.is_none(), "the client ended with {ended:?}: {:#?}", self.said());
            found
        })
    }

    /// Waits for its end and for all that it printed.
    fn end(&mut self) -> ExitStatus {
        let status = wait_for("the client ends", || self.child.try_wait().expect("a child can be waited for"));
        for reader in self.readers.drain(..) {
            reader.join().expect("a reader doesn't panic");
        }
        status
    }

    /// Waits for its end, which must be success.
    fn succeed(&mut self) {
        let status = self.end();
        assert!(status.success(), "the client ended with {status}: {:#?}", self.said());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How xiaomi-push reaches the server.
#[derive(Clone, Copy)]
enum Through {
    Tls,
    Plain,
}

/// `send.js` as the demo application's server, with these targets.
fn sender(mut command: Command, server: &Server, through: Through, arguments: &[&str]) -> Program {
    let demo = server.demo();
    let ca = server.ca();
    let listener = match through {
        Through::Tls => "http.https",
        Through::Plain => PLAIN.0,
    };
    let port = server.address(listener).port().to_string();
    command.args(["--port", &port, "--secret", &demo.secret.expect("the demo's secret is kept")]);
    command.args(["--package", &demo.package]).args(arguments);
    match through {
        // With the variable set already the script needs no second process, which nobody would end.
        Through::Tls => command.args(["--host", "localhost", "--ca"]).arg(&ca).env("NODE_EXTRA_CA_CERTS", &ca),
        Through::Plain => command.args(["--host", "127.0.0.1", "--plain"]),
    };
    Program::start(&mut command)
}

/// `receive.py` as a device of that account, with these arguments.
fn receiver(mut command: Command, server: &Server, account: &Account, arguments: &[&str]) -> Program {
    let demo = server.demo();
    let address = server.address("xmpp.starttls");
    command.args(["--host", &address.ip().to_string(), "--port", &address.port().to_string(), "--ca"]);
    command.arg(server.ca()).args(["--jid", &account.jid, "--token", &account.token, "--app", &demo.app]);
    command.args(["--app-key", &demo.app_key, "--package", &demo.package]).args(arguments);
    Program::start(&mut command)
}

fn account(server: &Server) -> Account {
    server.api().create_account("a device of another make", "slixmpp").expect("an account")
}

/// What `send.js` says of a send that was accepted.
fn accepted(sender: &Program, by: &str) -> Value {
    let sent = sender.events("sent").into_iter().find(|sent| sent["by"] == by);
    let reply = sent.unwrap_or_else(|| panic!("nothing was sent by {by}: {:#?}", sender.said()))["reply"].clone();
    assert_eq!((&reply["result"], &reply["code"]), (&Value::from("ok"), &Value::from(0)), "{reply}");
    assert!(reply["data"]["id"].as_str().is_some_and(|id| !id.is_empty()), "{reply}");
    reply
}

/// What every message of `send.js` carries besides its payload.
fn assert_whole(notification: &Value) {
    let expected = serde_json::json!({
        "title": "title",
        "description": "description",
        "pass_through": true,
        "notify_type": -1,
        "notify_id": 4_294_967_297_u64,
    });
    for (member, value) in expected.as_object().expect("an object") {
        assert_eq!(&notification[member], value, "{member} of {notification}");
    }
    assert_eq!(notification["extra"]["own"], "value", "{notification}");
}

fn xiaomi_push_sends(through: Through) {
    let Some(xiaomi_push) = clients::xiaomi_push() else { return };
    let server = Server::start_with(&[PLAIN]);
    let device = TerminalDevice::start(&server, &["--alias", "clock", "--topic", "bells"]);
    let targets = ["--regid", &device.regid(), "--alias", "clock", "--topic", "bells", "--payload", "你好 & <ding>"];
    let mut sender = sender(xiaomi_push, &server, through, &targets);
    sender.succeed();
    for by in ["regid", "alias", "topic"] {
        let id = accepted(&sender, by)["data"]["id"].clone();
        let push = device.wait_for_push(&format!("你好 & <ding> by {by}"));
        assert_eq!(push["id"], id, "the id in the reply is the message's");
    }
    assert_eq!(device.payloads().len(), 3, "{:?}", device.payloads());
}

#[test]
fn xiaomi_push_sends_by_regid_alias_and_topic_over_tls() {
    xiaomi_push_sends(Through::Tls);
}

#[test]
fn xiaomi_push_sends_by_regid_alias_and_topic_over_the_plain_listener() {
    xiaomi_push_sends(Through::Plain);
}

#[test]
fn xiaomi_push_hears_why_a_send_was_refused() {
    let Some(xiaomi_push) = clients::xiaomi_push() else { return };
    let server = Server::start();
    let mut sender = sender(xiaomi_push, &server, Through::Tls, &["--alias", "nobody", "--topic", "bells"]);
    sender.end();
    let refused = sender.said().into_iter().find(|line| line.contains("20301"));
    assert!(refused.is_some_and(|line| line.contains("none of the 1 targets")), "{:#?}", sender.said());
    accepted(&sender, "topic");
}

#[test]
fn slixmpp_receives_unsealed_what_xiaomi_push_sends_by_regid_alias_and_topic() {
    let (Some(slixmpp), Some(xiaomi_push)) = (clients::slixmpp(), clients::xiaomi_push()) else { return };
    let server = Server::start();
    let arguments = ["--alias", "clock", "--topic", "bells", "--count", "3"];
    let mut device = receiver(slixmpp, &server, &account(&server), &arguments);
    let ready = device.wait_for_event("ready");
    assert_eq!(ready["mechanism"], "SCRAM-SHA-256", "{ready}");
    assert!(ready["tls"].as_str().is_some_and(|version| version.starts_with("TLS")), "{ready}");
    let regid = ready["regid"].as_str().expect("a registration");

    let targets = ["--regid", regid, "--alias", "clock", "--topic", "bells", "--payload", "dong"];
    let mut sender = sender(xiaomi_push, &server, Through::Tls, &targets);
    sender.succeed();
    device.succeed();

    let pushes = device.events("push");
    let of = |by: &str| {
        let payload = format!("dong by {by}");
        let push = pushes.iter().find(|push| push["payload"] == payload.as_str());
        push.unwrap_or_else(|| panic!("no {payload:?}: {:#?}", device.said()))
    };
    for by in ["regid", "alias", "topic"] {
        let push = of(by);
        assert_eq!(push["id"], accepted(&sender, by)["data"]["id"], "{push}");
        assert_eq!((&push["app"], &push["broadcast"]), (&Value::from("com.example.demo"), &Value::from(by == "topic")));
        assert_whole(&push["notification"]);
    }
    assert_eq!(of("alias")["notification"]["alias_name"], "clock");
    assert_eq!(of("topic")["notification"]["topic"], "bells");
    assert_eq!(pushes.len(), 3, "{pushes:#?}");
}

#[test]
fn slixmpp_comes_back_to_what_it_missed_and_to_nothing_that_it_has_acknowledged() {
    let (Some(first), Some(second)) = (clients::slixmpp(), clients::slixmpp()) else { return };
    let server = Server::start();
    let account = account(&server);
    let mut device = receiver(first, &server, &account, &["--topic", "bells", "--count", "2"]);
    let regid = device.wait_for_event("ready")["regid"].as_str().expect("a registration").to_owned();
    server.send("/v3/message/regid", &[("registration_id", &regid), ("payload", "single")]);
    server.send("/v3/message/topic", &[("topic", "bells"), ("payload", "broadcast")]);
    device.succeed();

    server.send("/v3/message/regid", &[("registration_id", &regid), ("payload", "single, missed")]);
    server.send("/v3/message/topic", &[("topic", "bells"), ("payload", "broadcast, missed")]);
    let mut device = receiver(second, &server, &account, &["--count", "2"]);
    assert_eq!(device.wait_for_event("ready")["regid"], regid.as_str(), "an app on an account is registered once");
    device.succeed();
    let pushes = device.events("push");
    let payloads: BTreeSet<_> = pushes.iter().filter_map(|push| push["payload"].as_str()).collect();
    assert_eq!(payloads, BTreeSet::from(["single, missed", "broadcast, missed"]));
}

#[test]
fn slixmpp_is_refused_with_the_token_of_another_account() {
    let Some(slixmpp) = clients::slixmpp() else { return };
    let server = Server::start();
    let stranger = Account { token: account(&server).token, ..account(&server) };
    let mut device = receiver(slixmpp, &server, &stranger, &[]);
    assert_eq!(device.end().code(), Some(1), "{:#?}", device.said());
    let failed = device.events("failed").pop().expect("it says why");
    assert_eq!(failed["reason"], "the server refused the login", "{failed}");
}
