//! Many messages in one request.

use campanile_http_frontend::Limits;
use idl::bus::{Lane, Request};
use idl::contract::bus as wire;
use idl::error::{Code, Failure};
use serde_json::{Value, json};

use crate::middle::{Api, NOW_MS, answered, message_id};

const REGIDS: &str = "/v2/multi_messages/regids";

/// Sends these elements as a form.
async fn send(api: &Api, path: &str, messages: &Value) -> crate::middle::Answer {
    let text = messages.to_string();
    let encoded = percent_encoding::utf8_percent_encode(&text, percent_encoding::NON_ALPHANUMERIC);
    api.post(path, &format!("messages={encoded}&time_to_send=0")).await
}

fn sends(api: &Api) -> Vec<wire::Send> {
    match api.one_ask() {
        wire::AppRequest::SendMany(many) => many.sends,
        other => panic!("{other:?} are no sends"),
    }
}

#[tokio::test]
async fn each_message_goes_to_its_target_as_its_path_says() {
    let api = Api::new();
    let messages = json!([
        {"target": "a", "message": {"payload": "one", "notify_id": 7, "notify_type": -1, "time_to_live": "1000",
            "extra": {"k": "v", "0": 4, "flow_control": 5, "jobkey": "j"}, "restricted_package_name": "p", "title": null}},
        {"target": 17, "message": {"description": "two", "extra": []}},
    ]);
    for (path, kind, bad) in [
        (REGIDS, 1, "bad_regids"),
        ("/v2/multi_messages/aliases", 2, "bad_aliases"),
        ("/v2/multi_messages/user_accounts", 3, "bad_user_accounts"),
    ] {
        let answer = send(&api, path, &messages).await;
        let expected = json!({"id": message_id(0), "ids": [message_id(0), message_id(1)], "errors": [], bad: ""});
        assert_eq!(answer.accepted(), &expected, "{path}");
        let asked = api.asked();
        assert_eq!(asked[0].lane, Lane::Normal);
        let Request::App(call) = &asked[0].request else { panic!("{asked:?}") };
        let wire::AppRequest::SendMany(many) = &call.request else { panic!("{call:?}") };
        let [one, two] = many.sends.as_slice() else { panic!("{many:?}") };
        assert_eq!((one.target.kind, one.target.values.as_deref()), (kind, Some(["a".to_owned()].as_slice())));
        assert_eq!(two.target.values.as_deref(), Some(["17".to_owned()].as_slice()));
        assert_eq!(one.notification.alias_name.as_deref(), (kind == 2).then_some("a"));
        assert_eq!(one.notification.user_account.as_deref(), (kind == 3).then_some("a"));
        assert_eq!((one.ttl_ms, one.notification.notify_id, one.flow_control), (1000, Some(7), Some(5)));
        let extra = [("0", "4"), ("jobkey", "j"), ("k", "v")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(one.notification.extra, Some(extra.into()));
        assert_eq!(one.packages, Some(vec!["p".to_owned()]));
        assert_eq!((two.notification.description.as_deref(), &two.notification.extra), (Some("two"), &None));
    }
}

#[tokio::test]
async fn json_says_the_same_as_a_form() {
    let api = Api::new();
    let messages = json!([{"target": "a", "message": {"payload": "p", "extra": {"k": "v"}}}]);
    send(&api, REGIDS, &messages).await.accepted();
    let form = sends(&api);
    api.json("POST", REGIDS, &json!({"messages": messages, "time_to_send": 0})).await.accepted();
    assert_eq!(sends(&api), form);
    api.json("POST", REGIDS, &json!({"messages": messages.to_string()})).await.accepted();
    assert_eq!(sends(&api), form);
}

#[tokio::test]
async fn a_time_of_the_whole_request_is_that_of_messages_that_have_none() {
    let api = Api::new();
    let later = i64::try_from(NOW_MS).expect("a time") + 5000;
    let messages = json!([
        {"target": "a", "message": {"payload": "p"}},
        {"target": "b", "message": {"payload": "p", "time_to_send": 0}},
        {"target": "c", "message": {"payload": "p", "time_to_send": later + 1}},
        {"target": "d", "message": {"payload": "p", "local_time": "2026-12-01T09:00"}},
    ]);
    api.json("POST", REGIDS, &json!({"messages": messages, "time_to_send": later})).await.accepted();
    let times: Vec<_> = sends(&api).iter().map(|send| send.send_at_ms).collect();
    assert_eq!(times, [Some(later), Some(later), Some(later + 1), None]);
}

#[tokio::test]
async fn what_is_wrong_with_one_message_refuses_that_one_alone() {
    let api = Api::with(Limits::default(), |request| {
        let Request::App(call) = request else { panic!("{request:?}") };
        let wire::AppRequest::SendMany(many) = &call.request else { panic!("{call:?}") };
        assert_eq!(many.sends.len(), 3);
        let ok = wire::Status { code: 0, description: None };
        let accepted = |id: Option<&str>, bad: &[&str]| wire::Accepted {
            id: id.map(str::to_owned),
            bad_targets: Some(bad.iter().map(|bad| (*bad).to_owned()).collect()),
            audience: None,
            due_ms: None,
        };
        Some(Ok(answered(wire::AppAnswer::AcceptedMany(wire::AcceptedMany {
            accepted: vec![accepted(None, &["a"]), accepted(Some("01A"), &[]), accepted(Some("01B"), &["e"])],
            statuses: vec![Failure::new(Code::SendFailed, "a is nobody").to_status(), ok.clone(), ok.clone()],
        }))))
    });
    let messages = json!([
        {"target": "a", "message": {"payload": "p"}},
        {"target": "b", "message": {"payload": "x".repeat(4097)}},
        {"target": "c", "message": {"payload": "p"}},
        {"message": {"payload": "p"}},
        {"target": "e", "message": {"payload": "p"}},
        7,
    ]);
    let answer = api.json("POST", REGIDS, &json!({"messages": messages})).await;
    let data = answer.accepted();
    assert_eq!(data["id"], "01A");
    assert_eq!(data["ids"], json!([null, null, "01A", null, "01B", null]));
    assert_eq!(data["bad_regids"], "a,e");
    let errors = data["errors"].as_array().expect("errors");
    let codes: Vec<_> = errors.iter().map(|error| (&error["index"], &error["code"])).collect();
    let expected = [(0, 20301), (1, 65003), (3, 10016), (5, 10017)].map(|(index, code)| (json!(index), json!(code)));
    assert!(codes.iter().zip(&expected).all(|(found, right)| *found.0 == right.0 && *found.1 == right.1), "{codes:?}");
    assert_eq!(codes.len(), expected.len());
    assert_eq!(errors[0]["description"], "messages[0]: a is nobody");
    assert_eq!(errors[1]["description"], "messages[1]: the parameter payload has 4097 bytes: expected at most 4096");
}

#[tokio::test]
async fn a_request_none_of_whose_messages_is_right_fails_as_the_first_did() {
    let api = Api::new();
    // What xiaomipush 2.0.1 makes of its own builder.
    let arrays = json!([{"target": "a", "message": {"payload": [null], "title": [null], "extra": []}}]);
    let answer = send(&api, REGIDS, &arrays).await;
    assert_eq!((answer.status.as_u16(), answer.code()), (200, 10017), "{answer:?}");
    assert!(answer.description().starts_with("messages[0]: the parameter payload is an array"), "{answer:?}");
    assert_eq!(answer.data()["errors"][0]["index"], 0);
    for (messages, code, words) in [
        (
            json!([{"target": "a", "message": {"pass_through": 2, "payload": "p"}}]),
            10017,
            "messages[0]: the parameter pass_through",
        ),
        (json!([{"target": "", "message": {"payload": "p"}}]), 10016, "messages[0]: it has no target"),
        (json!([{"target": "a"}]), 10017, "messages[0]: it is an object without an object named message"),
        (json!([{"target": ["a"], "message": {}}]), 10017, "neither a text nor a number"),
        (json!([{"target": "a", "message": {"extra": ["x"]}}]), 10017, "the parameter extra is an array"),
        (json!([{"target": "a", "message": {"extra": {"k": {}}}}]), 10017, "the parameter extra.k is an object"),
        (json!([{"target": "a", "message": {"restricted_package_name": "a,b", "payload": "p"}}]), 10017, "one package"),
        (json!([{"target": "a", "message": {}}]), 10016, "the parameter payload is missing"),
    ] {
        let answer = send(&api, REGIDS, &messages).await;
        assert_eq!((answer.status.as_u16(), answer.code()), (200, code), "{answer:?}");
        assert!(answer.description().contains(words), "{words}: {answer:?}");
    }
    assert!(api.asked().is_empty());
}

#[tokio::test]
async fn what_is_no_array_of_1_to_1000_messages_is_refused_as_a_whole() {
    let api = Api::new();
    let one = json!({"target": "a", "message": {"payload": "p"}});
    api.json("POST", REGIDS, &json!({"messages": vec![one.clone(); 1000]})).await.accepted();
    assert_eq!(sends(&api).len(), 1000);
    let many = api.json("POST", REGIDS, &json!({"messages": vec![one; 1001]})).await;
    many.refused(Code::TooManyTargets, 200, "an array of 1001");
    for (form, code, words) in [
        ("", Code::Missing, "the parameter messages is missing"),
        ("messages=[]", Code::Missing, "the parameter messages is missing"),
        ("messages=[", Code::BadValue, "not valid JSON"),
        ("messages={}", Code::BadValue, "JSON, but no array"),
    ] {
        api.post(REGIDS, form).await.refused(code, 200, words);
    }
    assert!(api.asked().is_empty());
}

#[tokio::test]
async fn a_dry_run_of_many_counts_them_together() {
    let api = Api::new();
    let messages = json!([{"target": "a", "message": {"payload": "p"}}, {"target": "b", "message": {"payload": "p"}}]);
    let answer = api.json("POST", REGIDS, &json!({"messages": messages, "dry_run": 1})).await;
    let data = answer.accepted();
    assert_eq!(data["audience"], json!({"registrations": 6, "online": 2, "method": "exact"}));
    assert_eq!((&data["ids"], data.get("id")), (&json!([null, null]), None));
    assert!(sends(&api).iter().all(|send| send.dry_run == Some(true)));
}
