//! npm's `xiaomipush`: every call that it has. It speaks TLS alone, sends its bodies in chunks, and repeats at once what was
//! refused.

use idl::clock::{Clock as _, SystemClock};
use serde_json::{Value, json};

use crate::driver::{Driver, Through, id_in};
use crate::harness::clients;
use crate::harness::terminal::TerminalDevice;
use crate::town::Town;

const MISSING: i64 = 10016;
const NOT_FOUND: i64 = 70011;

fn simple(payload: &str) -> Value {
    json!({ "builder": [["Title", "title"], ["Description", "description"], ["Payload", payload]] })
}

/// What the package's messages for another kind of device are like: a description and extras, nothing else.
fn bare(description: &str) -> Value {
    json!({ "ios": [["Description", description], ["Badge", "4"], ["SoundUrl", "a sound"], ["Extra", "own", "value"]] })
}

/// The id of what was accepted, of the package's `Result`.
fn accepted(result: &Value) -> String {
    assert_eq!(result["errorCode"], 0, "{result}");
    id_in(&result["data"])
}

fn refused(result: &Value, code: i64) {
    assert_eq!((&result["errorCode"], &result["data"]["result"]), (&json!(code), &json!("error")), "{result}");
}

/// The pushes without a payload that a device has got, by their descriptions.
fn described(device: &TerminalDevice, description: &str) -> Vec<Value> {
    device.events("push").into_iter().filter(|push| push["description"] == description).collect()
}

#[test]
fn every_call_of_xiaomipush_does_what_it_says() {
    let Some(command) = clients::npm("xiaomipush") else { return };
    let town = Town::start();
    let mut sdk = Driver::start(command, &town.server, Through::Tls);
    pushes_in_one_step(&town, &mut sdk);
    sends_whole_messages(&town, &mut sdk);
    sends_to_every_target(&town, &mut sdk);
    sends_many_at_once(&town, &mut sdk);
    schedules(&town, &mut sdk);
    posts_to_the_other_addresses(&town, &mut sdk);
    // The first asks nobody, the second is below the one that is called, and the others are called by the driver itself.
    sdk.has_made_every_call_but(&["HttpBase.setDebug", "HttpBase.postReq", "Builder.Build", "IOSBuilder.Build"]);
}

fn pushes_in_one_step(town: &Town, sdk: &mut Driver) {
    assert_eq!(sdk.call("MiHelper.pushToAndroid", json!(["ringer", "title", "你好 & <ding>"])), 0);
    let push = town.reached(&[&town.clock], "你好 & <ding>");
    let expected = json!({ "title": "title", "description": "title", "notify_type": -1 });
    for (member, value) in expected.as_object().expect("an object") {
        assert_eq!(&push[member], value, "{member} of {push}");
    }
    assert_ne!(push["pass_through"], true, "{push}");
    // An array becomes a parameter that is repeated.
    assert_eq!(sdk.call("MiHelper.pushToAndroid", json!([["ringer", "keeper"], "title", "to two accounts"])), 0);
    town.reached(&[&town.clock, &town.tower], "to two accounts");
    assert_eq!(sdk.call("MiHelper.pushToAndroid", json!(["nobody", "title", "x"])), 20301);

    assert_eq!(sdk.call("MiHelper.pushToIos", json!(["keeper", "for another kind", "in an extra"])), 0);
    town.settle();
    let pushes = described(&town.tower, "for another kind");
    assert_eq!(pushes.len(), 1, "{pushes:?}");
    assert_eq!(pushes[0]["extra"]["payload"], "in an extra", "{pushes:?}");
}

fn sends_whole_messages(town: &Town, sdk: &mut Driver) {
    // It leaves nothing of the package names but the commas between them.
    let message = json!({ "builder": [
        ["Title", "title"],
        ["Description", "description"],
        ["Payload", "whole"],
        ["PassThrough", 1],
        ["NotifyType", 2],
        ["RestrictedPackageNames", ["com.example.one", "com.example.two"]],
        ["TimeToLive", 3_600_000],
        ["NotifyId", 4_294_967_297_u64],
        ["Extra", "own", "it never sends these"],
    ] });
    let id = accepted(&sdk.call("Sender.sendToIds", json!([message, town.regids()])));
    let push = town.reached(&[&town.clock, &town.tower], "whole");
    let expected = json!({
        "id": id,
        "title": "title",
        "description": "description",
        "pass_through": true,
        "notify_type": 2,
        "notify_id": 4_294_967_297_u64,
    });
    for (member, value) in expected.as_object().expect("an object") {
        assert_eq!(&push[member], value, "{member} of {push}");
    }

    let bare =
        json!({ "ios": [["Description", "all of the other kind"], ["timeToLive", 60_000], ["Extra", "own", "value"]] });
    accepted(&sdk.call("Sender.sendToAlias", json!([bare, "clock"])));
    town.settle();
    let pushes = described(&town.clock, "all of the other kind");
    assert_eq!(pushes.len(), 1, "{pushes:?}");
    assert_eq!(pushes[0]["extra"]["own"], "value", "{pushes:?}");
}

fn sends_to_every_target(town: &Town, sdk: &mut Driver) {
    let both = [&town.clock, &town.tower];
    for (call, target, whom) in [
        ("sendToIds", json!([town.clock.regid()]), &both[..1]),
        ("sendToAlias", json!("tower"), &both[1..]),
        ("sendToAliases", json!(["clock", "tower"]), &both[..]),
        ("sendToUserAccount", json!("ringer"), &both[..1]),
        ("sendToUserAccounts", json!(["ringer", "keeper"]), &both[..]),
        ("broadcast", json!("chimes"), &both[1..]),
    ] {
        let payload = format!("{call} {target}");
        accepted(&sdk.call(&format!("Sender.{call}"), json!([simple(&payload), target])));
        town.reached(whom, &payload);
    }
    accepted(&sdk.call("Sender.broadcastAll", json!([simple("to all")])));
    town.reached(&both, "to all");
    // With more than one topic it sends to the first of them.
    accepted(&sdk.call("Sender.multiTopicBroadcast", json!([simple("one topic"), ["chimes"], "UNION"])));
    town.reached(&both[1..], "one topic");
    accepted(&sdk.call("Sender.multiTopicBroadcast", json!([simple("first topic"), ["chimes", "bells"], "UNION"])));
    town.reached(&both[1..], "first topic");

    // The package leaves the targets of the sends before in the message: the path decides.
    accepted(&sdk.call("Sender.sendToAlias", json!([simple("twice"), "clock"])));
    town.clock.wait_for_push("twice");
    accepted(&sdk.call("Sender.sendToUserAccount", json!([{ "builder": null }, "keeper"])));
    town.reached(&both, "twice");

    // It misspells the parameter of this one, so that no server could know whom it means.
    refused(&sdk.call("Sender.send", json!([simple("misspelt"), town.clock.regid()])), MISSING);
    town.reached(&[], "misspelt");
}

fn sends_many_at_once(town: &Town, sdk: &mut Driver) {
    let [clock, tower] = town.regids();
    let many = json!({ "targeted": [[clock, bare("to the clock")], [tower, bare("to the tower")]] });
    accepted(&sdk.call("Sender.multiSend", json!([many, 1])));
    // It does not export the numbers of the kinds, so that none at all means aliases and every other means regids.
    let many = json!({ "targeted": [["tower", bare("to the alias")]] });
    accepted(&sdk.call("Sender.multiSend", json!([many, null])));
    town.settle();
    for (device, other, description) in [
        (&town.clock, &town.tower, "to the clock"),
        (&town.tower, &town.clock, "to the tower"),
        (&town.tower, &town.clock, "to the alias"),
    ] {
        let pushes = described(device, description);
        assert_eq!(pushes.len(), 1, "{description}: {pushes:?}");
        let extra = json!({ "own": "value", "0": "4", "default": "a sound" });
        assert_eq!(pushes[0]["extra"], extra, "{pushes:?}");
        assert!(described(other, description).is_empty(), "{description}");
    }
    // Of the messages that its other builder makes it sends arrays of nothing.
    let many = json!({ "targeted": [[town.clock.regid(), simple("broken")]] });
    let result = sdk.call("Sender.multiSend", json!([many, 1]));
    refused(&result, 10017);
    town.reached(&[], "broken");
}

fn schedules(town: &Town, sdk: &mut Driver) {
    let hour_ms = SystemClock.now_ms() + 3_600_000;
    let later = |payload: &str, due_ms: u64| {
        let mut message = simple(payload);
        message["builder"].as_array_mut().expect("a list").push(json!(["TimeToSend", due_ms]));
        message
    };
    let id = accepted(&sdk.call("Sender.sendToAlias", json!([later("in an hour", hour_ms), "clock"])));
    let code = |sdk: &mut Driver, call: &str, id: &str| {
        let result = sdk.call(&format!("Sender.{call}"), json!([id]));
        result["errorCode"].as_i64().unwrap_or_else(|| panic!("no code: {result}"))
    };
    assert_eq!(code(sdk, "checkScheduleJobExist", &id), 0);
    assert_eq!(code(sdk, "deleteScheduleJob", &id), 0);
    assert_eq!(code(sdk, "checkScheduleJobExist", &id), NOT_FOUND);
    assert_eq!(code(sdk, "deleteScheduleJob", &id), NOT_FOUND);

    // For another kind of device, too.
    let message = json!({ "ios": [["Description", "in an hour, too"], ["timeToSend", hour_ms]] });
    let id = accepted(&sdk.call("Sender.sendToUserAccount", json!([message, "keeper"])));
    assert_eq!(code(sdk, "checkScheduleJobExist", &id), 0);
    assert_eq!(code(sdk, "deleteScheduleJob", &id), 0);

    // Many at once and later.
    let many = json!({ "targeted": [[town.clock.regid(), bare("many, in an hour")]] });
    accepted(&sdk.call("Sender.multiSendAtTime", json!([many, 1, hour_ms])));
    let soon_ms = SystemClock.now_ms() + 1_000;
    let many = json!({ "targeted": [[town.clock.regid(), bare("many, soon")]] });
    accepted(&sdk.call("Sender.multiSendAtTime", json!([many, 1, soon_ms])));
    accepted(&sdk.call("Sender.sendToAlias", json!([later("soon", soon_ms), "clock"])));
    town.reached(&[&town.clock], "soon");
    assert!(SystemClock.now_ms() >= soon_ms, "it came before its time");
    crate::harness::wait_for("many, soon", || described(&town.clock, "many, soon").pop());
    for device in [&town.clock, &town.tower] {
        for never in ["in an hour, too", "many, in an hour"] {
            assert!(described(device, never).is_empty(), "{never}");
        }
        assert!(!device.payloads().contains(&"in an hour".to_owned()));
    }
}

/// The package knows addresses that it has no function for; what posts is open to all.
fn posts_to_the_other_addresses(town: &Town, sdk: &mut Driver) {
    let [clock, tower] = town.regids();
    let post = |sdk: &mut Driver, address: &str, fields: Value| {
        let result = sdk.call("HttpBase.postResult", json!([{ "constant": address }, fields, 1]));
        assert_eq!(result["errorCode"], 0, "{address}: {result}");
        result["data"]["data"].clone()
    };
    post(sdk, "subscribe_url", json!({ "registration_id": [clock, tower], "topic": "news" }));
    post(sdk, "unsubscribe_url", json!({ "registration_id": tower, "topic": "news" }));
    accepted(&sdk.call("Sender.broadcast", json!([simple("news for the clock"), "news"])));
    town.reached(&[&town.clock], "news for the clock");
    post(sdk, "subscribe_alias_url", json!({ "aliases": "clock,tower,", "topic": "news" }));
    post(sdk, "unsubscribe_alias_url", json!({ "aliases": "clock", "topic": "news" }));
    accepted(&sdk.call("Sender.broadcast", json!([simple("news for the tower"), "news"])));
    town.reached(&[&town.tower], "news for the tower");

    let many =
        json!([{ "target": "keeper", "message": { "payload": "many by account", "title": "t", "description": "d" } }]);
    post(sdk, "multi_messages_user_accounts_url", json!({ "messages": many.to_string() }));
    town.reached(&[&town.tower], "many by account");
    let valid = post(sdk, "validation_regids_url", json!({ "registration_ids": [clock, "nobody"] }));
    assert_eq!(valid["list"], json!([clock]), "{valid}");
}

#[test]
fn xiaomipush_hears_why_a_send_was_refused() {
    let (Some(command), Some(stranger)) = (clients::npm("xiaomipush"), clients::npm("xiaomipush")) else { return };
    let town = Town::start();
    let mut sdk = Driver::start(command, &town.server, Through::Tls);
    let long = json!({ "builder": [["Title", "x".repeat(50)], ["Payload", "long"]] });
    refused(&sdk.call("Sender.broadcast", json!([long, "bells"])), 65004);
    refused(&sdk.call("Sender.sendToAliases", json!([simple("x"), ["nobody", "nobody either"]])), 20301);
    refused(&sdk.call("Sender.multiTopicBroadcast", json!([simple("x"), [], "UNION"])), MISSING);
    let never = json!({ "builder": [["Payload", "never"], ["TimeToSend", SystemClock.now_ms() + 8 * 24 * 3_600_000]] });
    refused(&sdk.call("Sender.broadcastAll", json!([never])), 10017);

    let mut sdk = Driver::start_with_secret(stranger, &town.server, Through::Tls, "of another application");
    refused(&sdk.call("Sender.broadcastAll", json!([simple("forged")])), 21301);
    assert_eq!(sdk.call("MiHelper.pushToAndroid", json!(["ringer", "title", "forged"])), 21301);
    refused(&sdk.call("Sender.checkScheduleJobExist", json!(["01"])), 21301);
    town.reached(&[], "forged");
}
