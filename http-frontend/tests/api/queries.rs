//! What Mi Push's SDKs ask: names, presence, validity, feedback, counters, traces.

use campanile_http_frontend::Limits;
use idl::bus::Lane;
use idl::contract::bus as wire;
use idl::error::Code;
use idl::ids::{RegId, Shard};
use serde_json::json;

use crate::middle::{Api, answered, message};

#[tokio::test]
async fn names_of_a_registration_are_a_list() {
    let api = Api::new();
    for (path, kind) in [("/v1/alias/all", 1), ("/v1/account/all", 2), ("/v1/topic/all", 3)] {
        let query = format!("{path}?registration_id=r1&restricted_package_name=com.example.demo");
        assert_eq!(api.ask("GET", &query).await.accepted(), &json!({"list": ["x", "y"]}), "{path}");
        let asked = wire::NamesOf { regid: "r1".into(), kind };
        assert_eq!(api.one_ask(), wire::AppRequest::NamesOf(asked.clone()));
        api.post(path, "registration_id=r1").await.accepted();
        assert_eq!(api.one_ask(), wire::AppRequest::NamesOf(asked), "a POST is the same question");
        api.ask("GET", path).await.refused(Code::Missing, 200, "the parameter registration_id is missing");
    }
}

#[tokio::test]
async fn an_empty_list_is_there_all_the_same() {
    let nobody =
        Api::with(Limits::default(), |_| Some(Ok(answered(wire::AppAnswer::Texts(wire::Texts { texts: vec![] })))));
    let answer = nobody.ask("GET", "/v1/alias/all?registration_id=r1").await;
    assert_eq!(answer.accepted(), &json!({"list": []}));
}

#[tokio::test]
async fn a_query_as_the_python_client_writes_it_is_understood() {
    let api = Api::new();
    let query = "/v1/regid/presence?b'restricted_package_name=p&registration_id=a%2Cb'";
    api.ask("GET", query).await.accepted();
    assert_eq!(api.one_ask(), wire::AppRequest::Online(wire::OnlineOf { regids: vec!["a".into(), "b".into()] }));
    let answer = api.ask("GET", "/v1/feedback/fetch_invalid_regids?b''").await;
    assert_eq!(answer.accepted(), &json!({"list": ["x", "y"]}));
}

#[tokio::test]
async fn registrations_of_a_user_account_are_a_list() {
    let api = Api::new();
    let answer = api.ask("GET", "/v1/useraccount/get_regids_by_useraccount?user_account=a%40b").await;
    assert_eq!(answer.accepted(), &json!({"list": ["x", "y"]}));
    assert_eq!(api.one_ask(), wire::AppRequest::RegidsOf(wire::RegidsOf { user_account: "a@b".into() }));
}

#[tokio::test]
async fn presence_tells_each_registration_that_is_known_and_names_the_others() {
    let api = Api::new();
    for path in ["/v1/regid/presence", "/v2/regid/presence"] {
        let answer = api.ask("GET", &format!("{path}?registration_id=a,bad,b")).await;
        let expected = json!({
            "list": [
                {"registration_id": "a", "online": true, "last_seen": null},
                {"registration_id": "b", "online": false, "last_seen": 5},
            ],
            "bad_regids": "bad",
        });
        assert_eq!(answer.accepted(), &expected);
        assert_eq!(api.asked()[0].lane, Lane::Normal);
        let one = api.ask("GET", &format!("{path}?registration_id=a")).await;
        let data = one.accepted();
        assert_eq!(
            (&data["registration_id"], &data["online"], &data["last_seen"]),
            (&json!("a"), &json!(true), &json!(null))
        );
        assert_eq!(data["list"].as_array().map(Vec::len), Some(1));
        let none = api.ask("GET", &format!("{path}?registration_id=bad")).await;
        assert_eq!(none.accepted(), &json!({"list": [], "bad_regids": "bad"}));
        api.asked();
    }
    let regid = RegId([9; 24]);
    api.ask("GET", &format!("/v2/regid/presence?registration_id={regid}")).await.accepted();
    let asked = api.asked();
    assert_eq!((asked[0].lane, asked[0].shard), (Lane::High, Shard::of_registration(regid)));
}

#[tokio::test]
async fn validation_tells_good_from_bad() {
    let api = Api::new();
    let form = "registration_ids=a&registration_ids=bad&registration_ids=b,c";
    let answer = api.post("/v1/validation/regids", form).await;
    assert_eq!(answer.accepted(), &json!({"list": ["a", "b", "c"], "bad_regids": "bad"}));
}

#[tokio::test]
async fn feedback_consumes_targets_of_its_kind() {
    let api = Api::new();
    for (path, kind) in [("/v1/feedback/fetch_invalid_regids", 1), ("/v1/feedback/fetch_invalid_aliases", 2)] {
        assert_eq!(api.ask("GET", path).await.accepted(), &json!({"list": ["x", "y"]}));
        assert_eq!(api.one_ask(), wire::AppRequest::TakeInvalid(wire::TakeInvalid { kind }));
    }
}

#[tokio::test]
async fn counters_are_told_by_day_in_the_documented_names() {
    let api = Api::new();
    let path = "/v1/stats/message/counters";
    let answer =
        api.ask("GET", &format!("{path}?start_date=20261201&end_date=20261231&restricted_package_name=p")).await;
    let expected = json!({
        "date": "20261201",
        "alias_recipients": 1,
        "useraccount_recipients": 2,
        "regid_recipients": 3,
        "single_recipients": 6,
        "broadcast_recipients": 5,
        "received": 7,
        "click": 8,
        "messages": 9,
    });
    assert_eq!(answer.accepted(), &json!({"data": [expected]}));
    let asked = wire::Counters { first_day: "20261201".into(), last_day: "20261231".into() };
    assert_eq!(api.one_ask(), wire::AppRequest::Counters(asked));
    for (query, code, words) in [
        ("start_date=20261201", Code::Missing, "the parameter end_date is missing"),
        ("end_date=20261201", Code::Missing, "the parameter start_date is missing"),
        ("start_date=2026-12-1&end_date=20261201", Code::BadValue, "a day as yyyyMMdd"),
        ("start_date=20260230&end_date=20260301", Code::BadValue, "the parameter start_date"),
        ("start_date=20261202&end_date=20261201", Code::BadValue, "not before it"),
        ("start_date=20261201&end_date=20270101", Code::BadValue, "at most 31 days"),
    ] {
        api.ask("GET", &format!("{path}?{query}")).await.refused(code, 200, words);
    }
    assert!(api.asked().is_empty());
}

#[tokio::test]
async fn a_message_is_traced_by_its_id_in_mi_pushs_words() {
    let api = Api::new();
    let path = "/v1/trace/message/status";
    let answer = api.ask("GET", &format!("{path}?msg_id=01M2&job_key=ignored")).await;
    let data = &answer.accepted()["data"];
    for (member, expected) in [
        ("id", json!("01M2")),
        ("create_time", json!("1970-01-01 00:00:02")),
        ("create_timestamp", json!(2000)),
        ("time_to_live", json!("3600s")),
        ("msg_type", json!("Common")),
        ("resolved", json!(7)),
        ("delivered", json!(4)),
        ("delivery_rate", json!("57%")),
        ("click", json!(1)),
        ("click_rate", json!("25%")),
        ("invalid_target", json!(2)),
        ("app_not_register", json!(0)),
        ("state", json!("sending")),
    ] {
        assert_eq!(data[member], expected, "{member}");
    }
    let named = wire::MessageName { id: Some("01M2".into()), job_key: None };
    assert_eq!(api.one_ask(), wire::AppRequest::MessageStatus(named));
    api.ask("GET", path).await.refused(Code::Missing, 200, "the parameter msg_id is missing");
}

#[tokio::test]
async fn a_job_key_stands_for_all_its_messages_together() {
    let api = Api::new();
    let answer = api.ask("GET", "/v1/trace/message/status?job_key=k").await;
    let data = answer.accepted();
    assert_eq!((&data["data"]["id"], &data["data"]["job_key"]), (&json!("01M2"), &json!("k")));
    for (member, sum) in [("resolved", 14), ("delivered", 8), ("click", 2), ("invalid_target", 3), ("dropped", 4)] {
        assert_eq!(data["data"][member], sum, "{member}");
    }
    assert_eq!(data["data"]["delivery_rate"], "57%");
    let ids: Vec<_> = data["messages"].as_array().expect("a list").iter().map(|message| &message["id"]).collect();
    assert_eq!(ids, ["01M2", "01M1"]);
    let named = wire::MessageName { id: None, job_key: Some("k".into()) };
    assert_eq!(api.one_ask(), wire::AppRequest::MessageStatus(named));
}

#[tokio::test]
async fn a_message_that_nobody_knows_is_not_found() {
    let api = Api::with(Limits::default(), |_| {
        Some(Ok(answered(wire::AppAnswer::Messages(wire::MessageStates { messages: vec![] }))))
    });
    api.ask("GET", "/v1/trace/message/status?msg_id=x").await.refused(Code::NotFound, 200, "");
    api.ask("GET", "/campanile/v1/messages/01KBD2ZQ8M3YV6T4N0R7HXW5PC").await.refused(Code::NotFound, 404, "");
}

#[tokio::test]
async fn the_messages_of_a_time_are_a_list() {
    let api = Api::new();
    let path = "/v1/trace/messages/status";
    let answer = api.ask("GET", &format!("{path}?begin_time=1000&end_time=4000")).await;
    assert_eq!(answer.accepted()["data"][0]["id"], "01M3");
    let asked = wire::Messages { begin_ms: 1000, end_ms: 4000, limit: 100 };
    assert_eq!(api.one_ask(), wire::AppRequest::Messages(asked));
    for (query, code, words) in [
        ("end_time=1", Code::Missing, "the parameter begin_time is missing"),
        ("begin_time=1", Code::Missing, "the parameter end_time is missing"),
        ("begin_time=2&end_time=1", Code::BadValue, "not before begin_time"),
        ("begin_time=-1&end_time=1", Code::BadValue, "the parameter begin_time"),
        ("begin_time=yesterday&end_time=1", Code::BadValue, r#"is "yesterday""#),
    ] {
        api.ask("GET", &format!("{path}?{query}")).await.refused(code, 200, words);
    }
}

#[tokio::test]
async fn each_kind_of_target_has_its_message_type() {
    for (kind, name) in [(1, "Common"), (2, "Alias"), (3, "UserAccount"), (4, "Topic")] {
        let api = Api::with(Limits::default(), move |_| {
            let messages = vec![wire::MessageState { kind, ..message(1) }];
            Some(Ok(answered(wire::AppAnswer::Messages(wire::MessageStates { messages }))))
        });
        let answer = api.ask("GET", "/v1/trace/message/status?msg_id=x").await;
        assert_eq!(answer.accepted()["data"]["msg_type"], name);
    }
}
