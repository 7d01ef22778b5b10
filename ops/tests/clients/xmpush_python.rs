//! PyPI's `xmpush-python`: every call that it has. Its GETs carry a query that is written as Python writes bytes: `b'a=1&b=2'`.

use std::collections::BTreeSet;

use idl::clock::{Clock as _, SystemClock};
use serde_json::{Value, json};

use crate::driver::{Driver, Through, assert_ok, id_in, texts};
use crate::harness::clients;
use crate::harness::terminal::TerminalDevice;
use crate::town::Town;

/// What asks a server of Xiaomi's that has no part in the send API.
const ELSEWHERE: &[&str] = &["APITools.fetch_ack_info", "APITools.fetch_click_info", "APITools.fetch_invalid_reg_id"];

const NOT_FOUND: i64 = 70011;

/// A message for the demo application, without which the package makes none.
fn simple(town: &Town, payload: &str) -> Value {
    json!({ "message": [
        ["restricted_package_name", town.server.demo().package],
        ["title", "title"],
        ["description", "description"],
        ["payload", payload],
    ] })
}

/// With further setters.
fn with(mut message: Value, setters: &[Value]) -> Value {
    message["message"].as_array_mut().expect("a list").extend_from_slice(setters);
    message
}

/// What is refused comes again and again, with pauses that grow, unless the package is told otherwise.
fn refused(sdk: &mut Driver, call: &str, arguments: Value, code: i64) {
    let failed = sdk.attempt_named(call, arguments, json!({ "retry_times": 1 }));
    let failed = failed.err().unwrap_or_else(|| panic!("{call} was not refused")).text();
    assert!(failed.contains(&format!("code:[{code}]")), "{call}: {failed}");
}

#[test]
fn every_call_of_xmpush_python_does_what_it_says() {
    let Some(command) = clients::xmpush_python() else { return };
    let town = Town::start();
    let mut sdk = Driver::start(command, &town.server, Through::Tls);
    counts(&town, &mut sdk);
    sends_whole_messages(&town, &mut sdk);
    sends_to_every_target(&town, &mut sdk);
    subscribes(&town, &mut sdk);
    asks_for_names(&town, &mut sdk);
    asks_who_is_there(&town, &mut sdk);
    traces(&town, &mut sdk);
    schedules(&town, &mut sdk);
    deletes_broadcasts(&town, &mut sdk);
    takes_what_is_invalid(&town, &mut sdk);
    sdk.has_made_every_call_but(ELSEWHERE);
}

/// Nothing else has been sent yet.
fn counts(town: &Town, sdk: &mut Driver) {
    let first = id_in(&sdk.call("APISender.send", json!([simple(town, "counted"), town.clock.regid()])));
    let last = id_in(&sdk.call("APISender.broadcast", json!([simple(town, "counted, too"), "bells"])));
    let mut day = |id: &str| {
        let status = sdk.call("APITools.query_message_status", json!([id]));
        let created = status["data"]["data"]["create_time"].as_str().unwrap_or_else(|| panic!("no time: {status}"));
        created.chars().take(10).filter(char::is_ascii_digit).collect::<String>()
    };
    let asked = json!([day(&first), day(&last), town.server.demo().package]);
    sdk.call_until("APITools.query_stat_data", &asked, |reply| {
        assert_ok(reply);
        let days = reply["data"]["data"].as_array().unwrap_or_else(|| panic!("no days: {reply}"));
        let sum = |name: &str| days.iter().filter_map(|day| day[name].as_i64()).sum::<i64>();
        (sum("single_recipients"), sum("broadcast_recipients"), sum("received")) == (1, 2, 3)
    });
}

fn sends_whole_messages(town: &Town, sdk: &mut Driver) {
    let message = with(
        simple(town, "你好 & <ding>"),
        &[
            json!(["notify_type", 3]),
            json!(["time_to_live", 3_600_000]),
            json!(["pass_through", 1]),
            json!(["notify_id", 4_294_967_297_u64]),
            json!(["collapse_key", "own"]),
            json!(["extra", { "own": "value", "ticker": "rolling" }]),
            json!(["extra_element", "jobkey", "dong"]),
            json!(["enable_flow_control"]),
            json!(["message_dict"]),
        ],
    );
    let id = id_in(&sdk.call("APISender.send", json!([message, town.clock.regid()])));
    let push = town.reached(&[&town.clock], "你好 & <ding>");
    let expected = json!({
        "id": id,
        "title": "title",
        "description": "description",
        "notify_type": 3,
        "pass_through": true,
        "notify_id": 4_294_967_297_u64,
        "job_key": "dong",
    });
    for (member, value) in expected.as_object().expect("an object") {
        assert_eq!(&push[member], value, "{member} of {push}");
    }
    assert_eq!((&push["extra"]["own"], &push["extra"]["ticker"]), (&json!("value"), &json!("rolling")), "{push}");

    // For another kind of device, and with two packages, of which it sends the last alone.
    let package = town.server.demo().package;
    let message = with(
        simple(town, "for another kind"),
        &[
            json!(["restricted_package_names", ["com.example.another", package]]),
            json!(["aps_element", "own", "value"]),
            json!(["aps_title", "t"]),
            json!(["aps_subtitle", "s"]),
            json!(["aps_body", "b"]),
            json!(["aps_mutable_content", "1"]),
            json!(["badge", 4]),
            json!(["category", "c"]),
            json!(["sound_url", "default"]),
            json!(["apns_only"]),
            json!(["connection_only"]),
            json!(["message_dict_ios"]),
        ],
    );
    id_in(&sdk.call("APISender.broadcast_all", json!([message])));
    let push = town.reached(&[&town.clock, &town.tower], "for another kind");
    assert_eq!(push["extra"]["badge"], "4", "{push}");
}

fn sends_to_every_target(town: &Town, sdk: &mut Driver) {
    let both = [&town.clock, &town.tower];
    for (call, target, whom) in [
        ("send", json!(town.regids().join(",")), &both[..]),
        // Of a list the package sends the last alone.
        ("send", json!(town.regids()), &both[1..]),
        ("send_to_alias", json!("clock"), &both[..1]),
        ("send_to_alias", json!("clock,tower"), &both[..]),
        ("send_to_user_account", json!("keeper"), &both[1..]),
        ("broadcast", json!("chimes"), &both[1..]),
    ] {
        let payload = format!("{call} {target}");
        id_in(&sdk.call(&format!("APISender.{call}"), json!([simple(town, &payload), target])));
        town.reached(whom, &payload);
    }
    id_in(&sdk.call("APISender.broadcast_all", json!([simple(town, "to all")])));
    town.reached(&both, "to all");
    for (op, payload, whom) in [
        ("UNION", "bells or chimes", &both[..]),
        ("INTERSECTION", "bells and chimes", &both[1..]),
        ("EXCEPT", "bells without chimes", &both[..1]),
    ] {
        let message = simple(town, payload);
        id_in(&sdk.call("APISender.multi_broadcast", json!([message, ["bells", "chimes"], op])));
        town.reached(whom, payload);
    }
    // The package leaves the targets of the sends before in the message: the path decides.
    id_in(&sdk.call("APISender.send", json!([simple(town, "twice"), town.clock.regid()])));
    town.clock.wait_for_push("twice");
    id_in(&sdk.call("APISender.send_to_alias", json!([{ "message": null }, "tower"])));
    town.reached(&both, "twice");
}

fn subscribes(town: &Town, sdk: &mut Driver) {
    let send = |sdk: &mut Driver, payload: &str| {
        id_in(&sdk.call("APISender.broadcast", json!([simple(town, payload), "news"])));
    };
    let [clock, tower] = town.regids();
    let options = json!({ "restricted_package_name": town.server.demo().package, "category": "a category" });
    assert_ok(&sdk.call_named("APISubscribe.subscribe_topic", json!([[clock, tower], "news"]), options.clone()));
    assert_ok(&sdk.call("APISubscribe.unsubscribe_topic", json!([tower, "news"])));
    send(sdk, "news for the clock");
    town.reached(&[&town.clock], "news for the clock");
    // It calls aliases alias here, too.
    assert_ok(&sdk.call("APISubscribe.subscribe_topic_alias", json!([["clock", "tower"], "news"])));
    assert_ok(&sdk.call_named("APISubscribe.unsubscribe_topic_alias", json!(["clock", "news"]), options));
    send(sdk, "news for the tower");
    town.reached(&[&town.tower], "news for the tower");
    assert_ok(&sdk.call("APISubscribe.unsubscribe_topic", json!([tower, "news"])));
}

fn asks_for_names(town: &Town, sdk: &mut Driver) {
    let (package, tower) = (town.server.demo().package, town.tower.regid());
    for (what, expected) in
        [("aliases", ["tower"].as_slice()), ("topics", &["bells", "chimes"]), ("user_accounts", &["keeper"])]
    {
        let reply = sdk.call(&format!("APITools.query_device_{what}"), json!([package, tower]));
        assert_ok(&reply);
        assert_eq!(texts(&reply["data"]["list"]), expected.iter().copied().collect(), "{what}");
    }
    refused(sdk, "APITools.query_device_aliases", json!([package, "not a regid"]), 70001);
}

fn asks_who_is_there(town: &Town, sdk: &mut Driver) {
    let package = town.server.demo().package;
    let [clock, tower] = town.regids();
    let device = TerminalDevice::start(&town.server, &[]);
    let away = device.regid();
    device.stop();
    let online = |reply: &Value| {
        assert_ok(reply);
        let list = reply["data"]["list"].as_array().unwrap_or_else(|| panic!("no list: {reply}")).iter();
        let state = |state: &Value| (state["registration_id"].as_str().map(str::to_owned), state["online"].as_bool());
        list.map(state).collect::<Vec<_>>()
    };
    let there = |regid: &String, there| (Some(regid.clone()), Some(there));
    // Of a list it asks by the path for one, too.
    let expected = [there(&clock, true), there(&away, false), there(&tower, true)];
    let asked = json!([package, [clock, away, tower]]);
    sdk.call_until("APITools.query_device_presence", &asked, |reply| online(reply) == expected);
    let reply = sdk.call("APITools.query_device_presence", json!([package, clock]));
    assert_eq!(online(&reply), [there(&clock, true)]);

    let gone = town.unregistered("somebody else");
    let valid = sdk.call("APITools.validate_reg_ids", json!([format!("{clock},{away},{gone},nobody")]));
    assert_ok(&valid);
    assert_eq!(valid["data"]["list"], json!([clock, away]), "{valid}");
}

fn traces(town: &Town, sdk: &mut Driver) {
    let begin_ms = SystemClock.now_ms();
    let message = |payload: &str| with(simple(town, payload), &[json!(["extra_element", "jobkey", "traced"])]);
    let first = id_in(&sdk.call("APISender.send", json!([message("traced by its id"), town.clock.regid()])));
    let status = sdk.call_until("APITools.query_message_status", &json!([first]), |reply| {
        assert_ok(reply);
        reply["data"]["data"]["delivered"] == 1
    });
    assert_eq!(status["data"]["data"]["id"], first.as_str(), "{status}");
    let second = id_in(&sdk.call("APISender.send", json!([message("traced by its key"), town.tower.regid()])));
    sdk.call_until("APITools.query_message_group_status", &json!(["traced"]), |reply| {
        assert_ok(reply);
        reply["data"]["data"]["delivered"] == 2
    });
    let asked = json!([begin_ms, SystemClock.now_ms() + 1]);
    let reply = sdk.call("APITools.query_message_status_time_range", asked);
    assert_ok(&reply);
    let all = reply["data"]["data"].as_array().unwrap_or_else(|| panic!("no messages: {reply}"));
    let ids: Vec<_> = all.iter().filter_map(|status| status["id"].as_str()).collect();
    assert_eq!(ids, [second.as_str(), first.as_str()], "the newest first");
    refused(sdk, "APITools.query_message_status", json!(["not an id"]), 10017);
}

fn schedules(town: &Town, sdk: &mut Driver) {
    let hour_ms = SystemClock.now_ms() + 3_600_000;
    let later = |payload: &str, key: &str| {
        with(simple(town, payload), &[json!(["time_to_send", hour_ms]), json!(["extra_element", "jobkey", key])])
    };
    let by_id = id_in(&sdk.call("APISender.send", json!([later("in an hour", "one"), town.clock.regid()])));
    let by_key = id_in(&sdk.call("APISender.broadcast", json!([later("in an hour, too", "two"), "bells"])));
    for id in [&by_id, &by_key] {
        assert_ok(&sdk.call("APITools.check_schedule_job_exist", json!([id])));
    }
    assert_ok(&sdk.call("APITools.delete_schedule_job", json!([by_id])));
    assert_ok(&sdk.call("APITools.delete_schedule_job_key", json!(["two"])));
    for (call, name) in [
        ("check_schedule_job_exist", by_id.as_str()),
        ("check_schedule_job_exist", &by_key),
        ("delete_schedule_job", &by_id),
        ("delete_schedule_job_key", "two"),
    ] {
        // They were deleted.
        refused(sdk, &format!("APITools.{call}"), json!([name]), NOT_FOUND);
    }
}

fn deletes_broadcasts(town: &Town, sdk: &mut Driver) {
    let state = town.server.data().join("away").to_string_lossy().into_owned();
    let away = ["--topic", "bells", "--state", &state];
    TerminalDevice::start(&town.server, &away).stop();
    let id = id_in(&sdk.call("APISender.broadcast", json!([simple(town, "regretted"), "bells"])));
    town.reached(&[&town.clock, &town.tower], "regretted");
    assert_ok(&sdk.call("APITools.delete_topic", json!([id])));
    // Who has it keeps it; who was away does not get it any more.
    let away = TerminalDevice::start(&town.server, &away);
    id_in(&sdk.call("APISender.broadcast", json!([simple(town, "not regretted"), "bells"])));
    away.wait_for_push("not regretted");
    assert!(!away.payloads().contains(&"regretted".to_owned()), "{:?}", away.payloads());
    assert!(town.clock.events("revoked").is_empty());
    refused(sdk, "APITools.delete_topic", json!(["not an id"]), NOT_FOUND);
}

fn takes_what_is_invalid(town: &Town, sdk: &mut Driver) {
    let take = |sdk: &mut Driver, call: &str| {
        let reply = sdk.call(&format!("APITools.{call}"), json!([]));
        assert_ok(&reply);
        texts(&reply["data"]["list"]).into_iter().map(str::to_owned).collect::<BTreeSet<_>>()
    };
    // What the calls before have left.
    for call in ["query_invalid_reg_ids", "query_invalid_aliases"] {
        take(sdk, call);
        assert_eq!(take(sdk, call), BTreeSet::new(), "reading consumes");
    }
    let gone = town.unregistered("gone").to_string();
    refused(sdk, "APISender.send", json!([simple(town, "x"), gone]), 20301);
    refused(sdk, "APISender.send_to_alias", json!([simple(town, "x"), "gone"]), 20301);
    for (call, target) in [("query_invalid_reg_ids", gone.as_str()), ("query_invalid_aliases", "gone")] {
        assert_eq!(take(sdk, call), BTreeSet::from([target.to_owned()]), "{call}");
        assert_eq!(take(sdk, call), BTreeSet::new(), "reading consumes");
    }
}

#[test]
fn xmpush_python_sends_and_asks_over_the_plain_listener() {
    let Some(command) = clients::xmpush_python() else { return };
    let town = Town::start();
    let mut sdk = Driver::start(command, &town.server, Through::Plain);
    id_in(&sdk.call("APISender.send_to_alias", json!([simple(&town, "plain"), "clock"])));
    town.reached(&[&town.clock], "plain");
    let asked = json!([town.server.demo().package, town.clock.regid()]);
    assert_eq!(sdk.call("APITools.query_device_aliases", asked)["data"]["list"], json!(["clock"]));
}

#[test]
fn xmpush_python_hears_why_a_call_was_refused() {
    let (Some(command), Some(stranger)) = (clients::xmpush_python(), clients::xmpush_python()) else { return };
    let town = Town::start();
    let mut sdk = Driver::start(command, &town.server, Through::Tls);
    refused(&mut sdk, "APISender.send_to_alias", json!([simple(&town, "x"), "nobody"]), 20301);
    let foreign = with(simple(&town, "x"), &[json!(["restricted_package_name", "com.example.another"])]);
    refused(&mut sdk, "APISender.broadcast", json!([foreign, "bells"]), 22022);
    for call in ELSEWHERE {
        let arguments = json!([town.server.demo().package]);
        let failed = sdk.attempt_named(call, arguments, json!({ "retry_times": 1 }));
        let failed = failed.err().unwrap_or_else(|| panic!("{call} was not refused")).text();
        assert!(failed.contains("Not Found"), "{call}: {failed}");
    }
    let mut sdk = Driver::start_with_secret(stranger, &town.server, Through::Tls, "of another application");
    refused(&mut sdk, "APISender.broadcast", json!([simple(&town, "forged"), "bells"]), 21301);
    refused(&mut sdk, "APITools.query_invalid_reg_ids", json!([]), 21301);
    town.reached(&[], "forged");
}
