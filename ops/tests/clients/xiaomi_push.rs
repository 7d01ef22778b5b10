//! npm's `xiaomi-push`: every call that it has.

use idl::clock::{Clock as _, SystemClock};
use serde_json::{Value, json};

use crate::driver::{Driver, Through, assert_ok, id_in, texts};
use crate::harness::clients;
use crate::town::Town;

/// A message that all setters have made.
fn whole(payload: &str, package: &str) -> Value {
    json!({ "message": [
        ["title", "title"],
        ["description", "description"],
        ["payload", payload],
        ["passThrough", 1],
        ["notifyType", -1],
        ["notifyId", 4_294_967_297_u64],
        ["timeToLive", 3_600_000],
        ["restrictedPackageName", package],
        ["enableFlowControl", 1],
        ["extra", "own", "value"],
        ["extra", "jobkey", "dong"],
        ["apsProperFields", "title", "for another kind of device"],
        ["set", "collapse_key", "own"],
    ] })
}

fn simple(payload: &str) -> Value {
    json!({ "message": [["title", "title"], ["description", "description"], ["payload", payload]] })
}

#[test]
fn every_call_of_xiaomi_push_does_what_it_says() {
    let Some(command) = clients::npm("xiaomi-push") else { return };
    let town = Town::start();
    let mut sdk = Driver::start(command, &town.server, Through::Tls);
    counts(&town, &mut sdk);
    sends_whole_messages(&town, &mut sdk);
    sends_to_every_target(&town, &mut sdk);
    sends_later(&town, &mut sdk);
    subscribes(&town, &mut sdk);
    asks_for_names(&town, &mut sdk);
    traces(&town, &mut sdk);
    takes_invalid_regids(&town, &mut sdk);
    // They give what the setters have set, and ask nobody.
    sdk.has_made_every_call_but(&["Message.getData", "Message.toString"]);
}

fn sends_whole_messages(town: &Town, sdk: &mut Driver) {
    let package = town.server.demo().package;
    let message = whole("你好 & <ding>", &package);
    let id = id_in(&sdk.call("Notification.send", json!([town.clock.regid(), message])));
    let push = town.reached(&[&town.clock], "你好 & <ding>");
    assert_eq!(push["id"], id.as_str(), "the id in the reply is the message's");
    let expected = json!({
        "title": "title",
        "description": "description",
        "pass_through": true,
        "notify_type": -1,
        "notify_id": 4_294_967_297_u64,
        "job_key": "dong",
    });
    for (member, value) in expected.as_object().expect("an object") {
        assert_eq!(&push[member], value, "{member} of {push}");
    }
    assert_eq!(push["extra"]["own"], "value", "{push}");
}

fn sends_to_every_target(town: &Town, sdk: &mut Driver) {
    let both = [&town.clock, &town.tower];
    let reply = sdk.call("Notification.sendToRegid", json!([town.regids(), simple("by regids")]));
    assert_eq!(reply["data"]["bad_regids"], "", "{reply}");
    town.reached(&both, "by regids");

    let reply = sdk.call("Notification.sendToRegid", json!([[town.clock.regid(), "nobody"], simple("to one of two")]));
    assert_eq!(reply["data"]["bad_regids"], "nobody", "{reply}");
    town.reached(&[&town.clock], "to one of two");

    // The package leaves the targets of the send before in the message: the path decides.
    id_in(&sdk.call("Notification.sendToRegid", json!([town.clock.regid(), simple("twice")])));
    town.clock.wait_for_push("twice");
    id_in(&sdk.call("Notification.sendToAlias", json!(["tower", { "message": null }])));
    town.reached(&both, "twice");

    let push_of = |sdk: &mut Driver, call: &str, target: Value, payload: &str| {
        id_in(&sdk.call(call, json!([target, simple(payload)])))
    };
    push_of(sdk, "Notification.sendToAlias", json!("clock"), "by alias");
    assert_eq!(town.reached(&[&town.clock], "by alias")["alias"], "clock");
    push_of(sdk, "Notification.sendToAlias", json!(["clock", "tower"]), "by aliases");
    town.reached(&both, "by aliases");
    push_of(sdk, "Notification.sendToUserAccount", json!("keeper"), "by account");
    assert_eq!(town.reached(&[&town.tower], "by account")["user_account"], "keeper");
    push_of(sdk, "Notification.sendToTopic", json!("chimes"), "by topic");
    assert_eq!(town.reached(&[&town.tower], "by topic")["topic"], "chimes");
    id_in(&sdk.call("Notification.sendToAll", json!([simple("to all")])));
    town.reached(&both, "to all");

    // The package knows the path for several topics and has no function for it; its `request` is open to all.
    for (op, payload, whom) in [
        ("UNION", "bells or chimes", both.as_slice()),
        ("INTERSECTION", "bells and chimes", &[&town.tower]),
        ("EXCEPT", "bells without chimes", &[&town.clock]),
    ] {
        let form =
            json!({ "topics": "bells;$;chimes", "topic_op": op, "payload": payload, "title": "t", "description": "d" });
        id_in(&sdk.call("Notification.request", json!(["multitopic", form])));
        town.reached(whom, payload);
    }
}

fn sends_later(town: &Town, sdk: &mut Driver) {
    let due_ms = SystemClock.now_ms() + 1_500;
    let mut message = simple("later");
    message["message"].as_array_mut().expect("a list").push(json!(["timeToSend", due_ms]));
    id_in(&sdk.call("Notification.send", json!([town.clock.regid(), message])));
    town.settle();
    let early = town.clock.payloads().contains(&"later".to_owned()) && SystemClock.now_ms() < due_ms;
    assert!(!early, "it came before its time");
    town.reached(&[&town.clock], "later");
    assert!(SystemClock.now_ms() >= due_ms, "it came before its time");
}

fn subscribes(town: &Town, sdk: &mut Driver) {
    let send = |sdk: &mut Driver, payload: &str| {
        id_in(&sdk.call("Notification.sendToTopic", json!(["news", simple(payload)])))
    };
    let [clock, tower] = town.regids();
    // Without a category, with an empty one and with one.
    assert_ok(&sdk.call("Subscription.subscribeTopic", json!([[clock, tower], "news", null])));
    send(sdk, "news for both");
    town.reached(&[&town.clock, &town.tower], "news for both");
    assert_ok(&sdk.call("Subscription.unsubscribeTopic", json!([clock, "news"])));
    send(sdk, "news for the tower");
    town.reached(&[&town.tower], "news for the tower");
    assert_ok(&sdk.call("Subscription.subscribeTopicByAlias", json!([["clock", "tower"], "news", "a category"])));
    assert_ok(&sdk.call("Subscription.unsubscribeTopicByAlias", json!(["tower", "news", "a category"])));
    send(sdk, "news for the clock");
    town.reached(&[&town.clock], "news for the clock");
    let form = json!({ "aliases": "clock", "topic": "news" });
    assert_ok(&sdk.call("Subscription.request", json!(["unsubscribeAlias", form])));
    let none = send(sdk, "news for nobody");
    town.reached(&[], "news for nobody");
    assert!(!none.is_empty());
}

fn asks_for_names(town: &Town, sdk: &mut Driver) {
    let aliases = sdk.call("Stats.getAliasesOf", json!([town.clock.regid()]));
    assert_ok(&aliases);
    assert_eq!(texts(&aliases["data"]["list"]), ["clock"].into());
    let topics = sdk.call("Stats.getTopicsOf", json!([town.tower.regid()]));
    assert_ok(&topics);
    assert_eq!(texts(&topics["data"]["list"]), ["bells", "chimes"].into());
}

/// Nothing else has been sent yet.
fn counts(town: &Town, sdk: &mut Driver) {
    let first = id_in(&sdk.call("Notification.send", json!([town.regids(), simple("counted by regid")])));
    id_in(&sdk.call("Notification.sendToAlias", json!(["clock", simple("counted by alias")])));
    id_in(&sdk.call("Notification.sendToUserAccount", json!(["keeper", simple("counted by account")])));
    let last = id_in(&sdk.call("Notification.sendToTopic", json!(["bells", simple("counted by topic")])));
    let days = json!([day_of(sdk, &first), day_of(sdk, &last)]);
    let expected = [
        ("regid_recipients", 2),
        ("alias_recipients", 1),
        ("useraccount_recipients", 1),
        ("single_recipients", 4),
        ("broadcast_recipients", 2),
        ("received", 6),
        ("click", 0),
    ];
    sdk.call_until("Stats.getStats", &days, |reply| expected.iter().all(|(name, count)| sum(reply, name) == *count));
}

/// One counter over all days of an answer.
fn sum(reply: &Value, counter: &str) -> i64 {
    assert_ok(reply);
    let days = reply["data"]["data"].as_array().unwrap_or_else(|| panic!("no days: {reply}"));
    days.iter().map(|day| day[counter].as_i64().unwrap_or_else(|| panic!("no {counter}: {day}"))).sum()
}

/// The day of a message as `yyyyMMdd`, by the server's clock.
fn day_of(sdk: &mut Driver, id: &str) -> String {
    let status = sdk.call("Tracer.getMessageStatus", json!([id]));
    let created = status["data"]["data"]["create_time"].as_str().unwrap_or_else(|| panic!("no time: {status}"));
    created.chars().take(10).filter(char::is_ascii_digit).collect()
}

fn traces(town: &Town, sdk: &mut Driver) {
    let begin_ms = SystemClock.now_ms();
    let message = |payload: &str| {
        let mut message = simple(payload);
        let set = message["message"].as_array_mut().expect("a list");
        set.extend([json!(["extra", "jobkey", "traced"]), json!(["timeToLive", 3_600_000])]);
        message
    };
    let id = id_in(&sdk.call("Notification.send", json!([town.clock.regid(), message("traced by its id")])));
    let status = sdk.call_until("Tracer.getMessageStatus", &json!([id]), |reply| {
        assert_ok(reply);
        reply["data"]["data"]["delivered"] == 1
    });
    let status = &status["data"]["data"];
    let expected = json!({
        "id": id,
        "resolved": 1,
        "delivered": 1,
        "click": 0,
        "invalid_target": 0,
        "app_not_register": 0,
        "delivery_rate": "100%",
        "click_rate": "0%",
        "time_to_live": "3600s",
        "msg_type": "Common",
    });
    for (member, value) in expected.as_object().expect("an object") {
        assert_eq!(&status[member], value, "{member} of {status}");
    }
    assert!(status["create_timestamp"].as_u64().is_some_and(|at| at >= begin_ms), "{status}");

    // Another one with the same job key, to another device: to the same it would be dropped.
    let second = id_in(&sdk.call("Notification.send", json!([town.tower.regid(), message("traced by its key")])));
    let group = sdk.call_until("Tracer.getMessageGroupStatus", &json!(["traced"]), |reply| {
        assert_ok(reply);
        reply["data"]["data"]["delivered"] == 2
    });
    assert_eq!(group["data"]["data"]["resolved"], 2, "{group}");

    let all = sdk.call("Tracer.getMessagesStatus", json!([begin_ms, SystemClock.now_ms() + 1]));
    assert_ok(&all);
    let all = all["data"]["data"].as_array().unwrap_or_else(|| panic!("no messages: {all}"));
    let ids: Vec<_> = all.iter().filter_map(|status| status["id"].as_str()).collect();
    assert_eq!(ids, [second.as_str(), id.as_str()], "the newest first");
}

fn takes_invalid_regids(town: &Town, sdk: &mut Driver) {
    assert_eq!(sdk.call("Feedback.getInvalidRegIds", json!([])), json!([]), "nobody has unregistered yet");
    let gone = town.unregistered("gone").to_string();
    let failed = sdk.attempt("Notification.send", json!([gone, simple("to nobody")])).expect_err("nobody is there");
    assert!(failed.text().contains("20301"), "{}", failed.text());
    assert_eq!(sdk.call("Feedback.start", json!([])), json!([gone]), "it asks every second");
    sdk.call("Feedback.cancel", json!([]));
    assert_eq!(sdk.call("Feedback.request", json!([])), json!([]), "reading consumes");
}

#[test]
fn xiaomi_push_sends_over_the_plain_listener() {
    let Some(command) = clients::npm("xiaomi-push") else { return };
    let town = Town::start();
    let mut sdk = Driver::start(command, &town.server, Through::Plain);
    for (call, target) in [
        ("sendToRegid", town.clock.regid()),
        ("sendToAlias", "clock".to_owned()),
        ("sendToUserAccount", "ringer".to_owned()),
    ] {
        let id = id_in(&sdk.call(&format!("Notification.{call}"), json!([target, simple(call)])));
        assert_eq!(town.reached(&[&town.clock], call)["id"], id.as_str());
    }
}

#[test]
fn xiaomi_push_hears_why_a_send_was_refused() {
    let (Some(command), Some(stranger)) = (clients::npm("xiaomi-push"), clients::npm("xiaomi-push")) else { return };
    let town = Town::start();
    let mut sdk = Driver::start(command, &town.server, Through::Tls);
    let mut refused = |call: &str, with: Value, said: &[&str]| {
        let failed = sdk.attempt(call, with).expect_err("it is refused");
        for said in said {
            assert!(failed.text().contains(said), "no {said:?} in {}", failed.text());
        }
    };
    refused("Notification.sendToAlias", json!(["nobody", simple("x")]), &["20301", "none of the 1 targets"]);
    let long = json!({ "message": [["title", "x".repeat(50)], ["payload", "x"]] });
    refused("Notification.sendToTopic", json!(["bells", long]), &["65004", "title"]);
    let foreign = json!({ "message": [["payload", "x"], ["restrictedPackageName", "com.example.another"]] });
    refused("Notification.sendToTopic", json!(["bells", foreign]), &["22022"]);
    refused("Tracer.getMessageStatus", json!(["not an id"]), &["10017"]);
    refused("Stats.getStats", json!(["20261301", "20261302"]), &["10017", "start_date"]);

    let mut sdk = Driver::start_with_secret(stranger, &town.server, Through::Tls, "of another application");
    for (call, with) in [
        ("Notification.sendToTopic", json!(["bells", simple("forged")])),
        ("Subscription.subscribeTopic", json!([town.clock.regid(), "forged"])),
        ("Stats.getAliasesOf", json!([town.clock.regid()])),
        ("Tracer.getMessagesStatus", json!([0, 1])),
        ("Feedback.request", json!([])),
    ] {
        let failed = sdk.attempt(call, with).expect_err("it is refused").text();
        assert!(failed.contains("21301") && failed.contains("Invalid application secret."), "{call}: {failed}");
    }
    town.reached(&[], "forged");
}
