//! npm's `push-xiaomi`: every call that it has.

use serde_json::{Value, json};

use crate::driver::{Driver, Through, id_in};
use crate::harness::clients;
use crate::receipts::{self, Receipts};
use crate::town::Town;

/// What is pushed; the package calls a description content.
fn notice(regids: &[String], payload: &str) -> Value {
    json!({ "list": regids, "title": "title", "content": "description", "payload": payload, "sleep": 0 })
}

fn with_path(path: &str) -> Value {
    json!({ "options": { "pushUrl": path } })
}

#[test]
fn every_call_of_push_xiaomi_does_what_it_says() {
    let Some(command) = clients::npm("push-xiaomi") else { return };
    let town = Town::start();
    let mut sdk = Driver::start(command, &town.server, Through::Tls);
    pushes(&town, &mut sdk);
    counts_bad_regids(&town, &mut sdk);
    queries(&town, &mut sdk);
    // It waits, and asks nobody.
    sdk.has_made_every_call_but(&["sleep"]);
}

fn pushes(town: &Town, sdk: &mut Driver) {
    let (both, regids) = ([&town.clock, &town.tower], town.regids());
    let mut whole = notice(&regids[..1], "你好 & <ding>");
    whole["extra.notify_effect"] = json!("2");
    whole["extra.intent_uri"] = json!("intent:#Intent;end");
    whole["notify_type"] = json!(3);
    whole["pass_through"] = json!(1);
    let pushed = sdk.call("push", json!([whole]));
    let push = town.reached(&both[..1], "你好 & <ding>");
    assert_eq!(push["id"], id_in(&pushed["replies"][0]).as_str(), "{pushed}");
    let expected = json!({ "title": "title", "description": "description", "notify_type": 3, "pass_through": true });
    for (member, value) in expected.as_object().expect("an object") {
        assert_eq!(&push[member], value, "{member} of {push}");
    }
    assert_eq!(push["extra"]["notify_effect"], "2", "{push}");
    assert_eq!(push["extra"]["intent_uri"], "intent:#Intent;end", "{push}");
    let notify_id = push["notify_id"].as_i64().unwrap_or_default();
    assert!(notify_id > i64::from(u32::MAX), "it is the time in milliseconds: {push}");

    // What is not given the package sends empty, which is as good as absent.
    let pushed = sdk.call("push", json!([notice(&regids, "plain"), with_path("/v2/message/regid")]));
    assert_eq!(pushed["summary"]["success_total"], 2, "{pushed}");
    let push = town.reached(&both, "plain");
    assert_ne!(push["pass_through"], true, "{push}");
    assert_eq!(push["notify_type"], -1, "{push}");
    for extra in ["notify_effect", "intent_uri", "callback", "callback.type"] {
        assert!(push["extra"][extra].is_null(), "{push}");
    }

    // A list in parts: a request and a message for each.
    let options = json!({ "options": { "maxLength": 1, "pushUrl": "/v4/message/regid" } });
    let pushed = sdk.call("push", json!([notice(&regids, "in parts"), options]));
    assert_eq!((&pushed["summary"]["group"], &pushed["summary"]["success_total"]), (&json!(2), &json!(2)), "{pushed}");
    assert_eq!(pushed["summary"]["traceIdList"].as_array().map(Vec::len), Some(2), "{pushed}");
    town.reached(&both, "in parts");

    // The path decides whom it is for.
    sdk.call("push", json!([notice(&regids[..1], "to all"), with_path("/v3/message/all")]));
    town.reached(&both, "to all");
}

fn counts_bad_regids(town: &Town, sdk: &mut Driver) {
    let summary = |pushed: &Value| {
        let summary = &pushed["summary"];
        (summary["success_total"].as_i64(), summary["fail_total"].as_i64())
    };
    let regids = [town.clock.regid(), "nobody".to_owned(), "nobody either".to_owned()];
    let pushed = sdk.call("push", json!([notice(&regids, "to one of three")]));
    assert_eq!(summary(&pushed), (Some(1), Some(2)), "{pushed}");
    town.reached(&[&town.clock], "to one of three");
    let pushed = sdk.call("push", json!([notice(&regids[1..], "to nobody")]));
    assert_eq!(summary(&pushed), (Some(0), Some(2)), "{pushed}");
    assert_eq!(pushed["replies"][0]["code"], 20301, "{pushed}");

    let pushed = sdk.call("push", json!([notice(&regids[..1], "x"), with_path("/v3/message/nowhere")]));
    assert_eq!(pushed["replies"][0]["code"], 10012, "what isn't there is answered in the envelope too: {pushed}");
    assert_eq!(pushed["failures"], json!([]), "{pushed}");
    let forged = json!({ "options": { "appSecret": "of another application" } });
    let pushed = sdk.call("push", json!([notice(&regids[..1], "forged"), forged]));
    assert_eq!(pushed["replies"][0]["code"], 21301, "{pushed}");
    town.reached(&[], "forged");
}

fn queries(town: &Town, sdk: &mut Driver) {
    let id = |sdk: &mut Driver, regids: &[String], payload: &str| {
        id_in(&sdk.call("push", json!([notice(regids, payload)]))["replies"][0])
    };
    let ids = [id(sdk, &town.regids(), "queried"), id(sdk, &[town.tower.regid()], "queried too")];
    let asked = json!([{ "msg_id": ids }]);
    let status = sdk.call_until("query", &asked, |status| status["delivered"] == 3);
    assert_eq!(status["click"], 0, "{status}");
    // One that is unknown takes nothing from the others.
    let status = sdk.call("query", json!([{ "msg_id": [ids[0], "not an id"] }]));
    assert_eq!(status["delivered"], 2, "{status}");
}

#[test]
fn push_xiaomi_sends_and_queries_over_the_plain_listener() {
    let Some(command) = clients::npm("push-xiaomi") else { return };
    let town = Town::start();
    let mut sdk = Driver::start(command, &town.server, Through::Plain);
    let pushed = sdk.call("push", json!([notice(&town.regids(), "plain")]));
    town.reached(&[&town.clock, &town.tower], "plain");
    let asked = json!([{ "msg_id": pushed["summary"]["traceIdList"] }]);
    sdk.call_until("query", &asked, |status| status["delivered"] == 2);
}

#[test]
fn push_xiaomi_has_its_callback_told_of_the_delivery() {
    let Some(command) = clients::npm("push-xiaomi") else { return };
    let town = Town::start_with(&[receipts::ALLOWED]);
    let receipts = Receipts::listen();
    let mut sdk = Driver::start(command, &town.server, Through::Tls);
    let mut notice = notice(&[town.clock.regid()], "with a callback");
    notice["extra.callback"] = json!(receipts.url);
    notice["extra.callback.type"] = json!("1");
    let id = id_in(&sdk.call("push", json!([notice]))["replies"][0]);
    let push = town.reached(&[&town.clock], "with a callback");
    assert!(push["extra"]["callback"].is_null(), "the address is not the device's business: {push}");
    let receipt = receipts.of(&id);
    assert_eq!((&receipt["type"], &receipt["targets"]), (&json!(1), &json!(town.clock.regid())), "{receipt}");
    assert!(receipt["timestamp"].as_u64().is_some_and(|at| at > 0), "{receipt}");
}
