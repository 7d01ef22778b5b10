//! PyPI's slixmpp: an XMPP client that knows nothing of Campanile is a device.

use std::collections::BTreeSet;
use std::process::Command;

use campanile_ops::api::Account;
use serde_json::{Value, json};

use crate::driver::{Driver, Through, id_in};
use crate::harness::clients;
use crate::harness::server::Server;
use crate::program::Program;

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

/// What is sent with every payload, as `xiaomi-push` takes it.
fn message(payload: &str) -> Value {
    json!({ "message": [
        ["title", "title"],
        ["description", "description"],
        ["payload", payload],
        ["passThrough", 1],
        ["notifyType", -1],
        ["notifyId", 4_294_967_297_u64],
        ["extra", "own", "value"],
    ] })
}

/// Fails unless it is a [`message`], besides its payload.
fn assert_whole(notification: &Value) {
    let expected = json!({
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

#[test]
fn slixmpp_receives_unsealed_what_xiaomi_push_sends_by_regid_alias_and_topic() {
    let (Some(slixmpp), Some(xiaomi_push)) = (clients::slixmpp(), clients::npm("xiaomi-push")) else { return };
    let server = Server::start();
    let arguments = ["--alias", "clock", "--topic", "bells", "--count", "3"];
    let mut device = receiver(slixmpp, &server, &account(&server), &arguments);
    let ready = device.wait_for_event(&["ready"], 0);
    assert_eq!(ready["mechanism"], "SCRAM-SHA-256", "{ready}");
    assert!(ready["tls"].as_str().is_some_and(|version| version.starts_with("TLS")), "{ready}");
    let regid = ready["regid"].as_str().expect("a registration");

    let mut sender = Driver::start(xiaomi_push, &server, Through::Tls);
    let mut send = |call: &str, target: &str, payload: &str| {
        id_in(&sender.call(&format!("Notification.{call}"), json!([target, message(payload)])))
    };
    let sent = [
        ("regid", send("sendToRegid", regid, "dong by regid")),
        ("alias", send("sendToAlias", "clock", "dong by alias")),
        ("topic", send("sendToTopic", "bells", "dong by topic")),
    ];
    device.succeed();

    let pushes = device.events(&["push"]);
    let of = |by: &str| {
        let payload = format!("dong by {by}");
        let push = pushes.iter().find(|push| push["payload"] == payload.as_str());
        push.unwrap_or_else(|| panic!("no {payload:?}: {:#?}", device.said()))
    };
    for (by, id) in sent {
        let push = of(by);
        assert_eq!(push["id"], id.as_str(), "{push}");
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
    let regid = device.wait_for_event(&["ready"], 0)["regid"].as_str().expect("a registration").to_owned();
    server.send("/v3/message/regid", &[("registration_id", &regid), ("payload", "single")]);
    server.send("/v3/message/topic", &[("topic", "bells"), ("payload", "broadcast")]);
    device.succeed();

    server.send("/v3/message/regid", &[("registration_id", &regid), ("payload", "single, missed")]);
    server.send("/v3/message/topic", &[("topic", "bells"), ("payload", "broadcast, missed")]);
    let mut device = receiver(second, &server, &account, &["--count", "2"]);
    assert_eq!(
        device.wait_for_event(&["ready"], 0)["regid"],
        regid.as_str(),
        "an app on an account is registered once"
    );
    device.succeed();
    let pushes = device.events(&["push"]);
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
    let failed = device.events(&["failed"]).pop().expect("it says why");
    assert_eq!(failed["reason"], "the server refused the login", "{failed}");
}
