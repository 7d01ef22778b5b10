//! Campanile's own paths.

use idl::audience::Audience;
use idl::bus::Lane;
use idl::contract::bus as wire;
use idl::error::Code;
use idl::ids::{RegId, Shard};
use serde_json::{Value, json};

use crate::middle::{Api, NOW_MS, UNKNOWN, message_id};

const MESSAGES: &str = "/campanile/v1/messages";
const ID: &str = "01KBD2ZQ8M3YV6T4N0R7HXW5PC";

#[tokio::test]
async fn a_message_goes_to_an_expression_or_to_a_segment() {
    let api = Api::new();
    let text = r#"topic("a") and not topic("b") and app_version >= "3.2""#;
    let audience: Audience = text.parse().expect("an expression");
    let body = json!({"audience": text, "payload": "p", "extra": {"k": "v"}, "restricted_package_name": ["p", "q"]});
    let answer = api.json("POST", MESSAGES, &body).await;
    assert_eq!(answer.accepted(), &json!({"id": message_id(0)}));
    let asked = api.asked();
    assert_eq!(asked[0].lane, Lane::Low);
    let idl::bus::Request::App(call) = &asked[0].request else { panic!("{asked:?}") };
    let wire::AppRequest::Send(send) = &call.request else { panic!("{call:?}") };
    let expected = wire::Target { kind: 4, values: None, audience: Some(audience.to_wire()), segment: None };
    assert_eq!(send.target, expected);
    assert_eq!(send.packages.as_deref(), Some(["p".to_owned(), "q".to_owned()].as_slice()));
    api.post(MESSAGES, "segment=readers.2&payload=p").await.accepted();
    let expected = wire::Target { kind: 5, values: None, audience: None, segment: Some("readers.2".into()) };
    assert_eq!(api.one_send().target, expected);
}

#[tokio::test]
async fn an_audience_that_cannot_be_read_is_refused_with_its_place() {
    let api = Api::new();
    for (body, code, status, words) in [
        (json!({"audience": "platform == \"android\"", "payload": "p"}), Code::BadExpression, 422, "line 1, column 10"),
        (json!({"audience": "x".repeat(4097), "payload": "p"}), Code::BadExpression, 422, "4097 bytes"),
        (json!({"payload": "p"}), Code::Missing, 400, "the parameter audience is missing"),
        (json!({"audience": "all", "segment": "s", "payload": "p"}), Code::BadValue, 400, "given beside segment"),
        (json!({"segment": "a b", "payload": "p"}), Code::BadValue, 400, "the parameter segment"),
        (json!({"audience": "all"}), Code::Missing, 400, "the parameter payload is missing"),
        (json!({"audience": "all", "payload": "x".repeat(4097)}), Code::PayloadTooLong, 422, "4097 bytes"),
    ] {
        api.json("POST", MESSAGES, &body).await.refused(code, status, words);
    }
    assert!(api.asked().is_empty());
}

#[tokio::test]
async fn own_paths_answer_with_the_status_of_the_table() {
    let api = Api::new();
    let bare = axum::http::Request::get("/campanile/v1/segments").body(axum::body::Body::empty()).expect("a request");
    api.call(bare).await.refused(Code::Unauthorized, 401, "Authorization is missing");
    api.ask("GET", "/campanile/v1/nothing").await.refused(Code::Illegal, 404, "is not served");
    for (path, what) in [("segments/unknown", "segment"), ("templates/unknown", "template")] {
        let answer = api.ask("DELETE", &format!("/campanile/v1/{path}")).await;
        answer.refused(Code::NotFound, 404, &format!("there is no {what} of that name"));
    }
    api.ask("GET", "/campanile/v1/segments?limit=0").await.refused(Code::BadValue, 400, "from 1 to 100");
}

#[tokio::test]
async fn a_message_is_shown_traced_and_recalled() {
    let api = Api::new();
    let shown = api.ask("GET", &format!("{MESSAGES}/{ID}")).await;
    let expected = json!({
        "id": "01M2", "target": "registration_id", "state": "sending", "created_at_ms": 2000, "time_to_live": 3_600_000,
        "resolved": 7, "resolved_method": "exact", "delivered": 4, "clicked": 1, "invalid_targets": 2, "dropped": 2,
        "job_key": "k", "topic": null, "due_ms": null, "messages": [],
    });
    assert_eq!(shown.accepted(), &expected);
    let named = wire::MessageName { id: Some(ID.into()), job_key: None };
    assert_eq!(api.one_ask(), wire::AppRequest::MessageStatus(named.clone()));
    let regid = RegId([9; 24]);
    let traced = api.ask("GET", &format!("{MESSAGES}/{ID}/trace?registration_id={regid}")).await;
    let steps = json!([
        {"what": "accepted", "at_ms": 1},
        {"what": "dispatched", "front": "f"},
        {"what": "dropped", "at_ms": 3, "reason": "expired"},
    ]);
    assert_eq!(traced.accepted(), &json!({"id": ID, "registration_id": regid.to_string(), "steps": steps}));
    let asked = api.asked();
    assert_eq!(asked[0].shard, Shard::of_registration(regid));
    let missing = api.ask("GET", &format!("{MESSAGES}/{ID}/trace")).await;
    missing.refused(Code::Missing, 400, "the parameter registration_id is missing");
    api.ask("DELETE", &format!("{MESSAGES}/{ID}")).await.accepted();
    let stop = wire::Stop { names: vec![named], recall: true };
    assert_eq!(api.one_ask(), wire::AppRequest::Stop(stop));
    api.ask("DELETE", &format!("{MESSAGES}/{UNKNOWN}")).await.refused(Code::NotFound, 404, UNKNOWN);
    api.ask("GET", &format!("{MESSAGES}/a%20b")).await.refused(Code::BadValue, 400, "the id of a message");
}

#[tokio::test]
async fn segments_are_kept_under_names() {
    let api = Api::new();
    let path = "/campanile/v1/segments/android-readers";
    let put = api.json("PUT", path, &json!({"expression": r#"platform = "android""#})).await;
    assert_eq!(put.accepted(), &json!({"replaced": true}));
    let segment = wire::Segment {
        name: "android-readers".into(),
        expression: r#"platform = "android""#.into(),
        changed_at_ms: None,
    };
    assert_eq!(api.one_ask(), wire::AppRequest::PutSegment(segment));
    let shown = api.ask("GET", path).await;
    let expected = json!({"name": "android-readers", "expression": "all", "changed_at_ms": 6});
    assert_eq!(shown.accepted(), &expected);
    assert_eq!(api.one_ask(), wire::AppRequest::Segment(wire::Name { name: "android-readers".into() }));
    assert_eq!(api.ask("DELETE", path).await.accepted(), &json!({}));
    assert_eq!(api.one_ask(), wire::AppRequest::DeleteSegment(wire::Name { name: "android-readers".into() }));
    api.json("PUT", path, &json!({"expression": "platform"})).await.refused(Code::BadExpression, 422, "line 1, column");
    api.json("PUT", path, &json!({})).await.refused(Code::Missing, 400, "the parameter expression is missing");
}

#[tokio::test]
async fn names_in_paths_are_checked() {
    let api = Api::new();
    let long = "x".repeat(65);
    for kind in ["segments", "templates"] {
        for method in ["GET", "PUT", "DELETE"] {
            for name in ["a%20b", "%C3%A4", "%FF", "a%2Fb", "a;b", &long] {
                let path = format!("/campanile/v1/{kind}/{name}");
                let body = json!({"expression": "all", "payload": "p"});
                let answer = api.json(method, &path, &body).await;
                answer.refused(Code::BadValue, 400, "1 to 64 characters of A-Z a-z 0-9 . _ -");
            }
            let path = format!("/campanile/v1/{kind}/{}", "x".repeat(64));
            api.json(method, &path, &json!({"expression": "all", "payload": "p"})).await.accepted();
        }
    }
    for path in ["registrations/a.b", "schedules/%00", &format!("messages/{long}"), "messages/01M", "registrations/x"] {
        api.ask("GET", &format!("/campanile/v1/{path}")).await.refused(Code::BadValue, 400, "expected");
    }
}

#[tokio::test]
async fn templates_are_kept_under_names() {
    let api = Api::new();
    let path = "/campanile/v1/templates/goal";
    let body = json!({"title": "{{team}}: goal!", "payload": "{{player}}", "extra": {"sound_uri": "goal"}});
    assert_eq!(api.json("PUT", path, &body).await.accepted(), &json!({"replaced": true}));
    let template = wire::Template {
        name: "goal".into(),
        title: Some("{{team}}: goal!".into()),
        description: None,
        payload: Some("{{player}}".into()),
        extra: Some([("sound_uri".to_owned(), "goal".to_owned())].into()),
        changed_at_ms: None,
    };
    assert_eq!(api.one_ask(), wire::AppRequest::PutTemplate(template));
    let shown = api.ask("GET", path).await;
    let expected =
        json!({"name": "goal", "title": "{{t}}", "description": null, "payload": "p", "extra": {}, "changed_at_ms": 6});
    assert_eq!(shown.accepted(), &expected);
    assert_eq!(api.one_ask(), wire::AppRequest::Template(wire::Name { name: "goal".into() }));
    api.ask("DELETE", path).await.accepted();
    assert_eq!(api.one_ask(), wire::AppRequest::DeleteTemplate(wire::Name { name: "goal".into() }));
    let extras = |count: usize| (0..count).map(|n| (format!("k{n}"), json!("v"))).collect::<serde_json::Map<_, _>>();
    api.json("PUT", path, &json!({"extra": extras(32)})).await.accepted();
    for (body, code, status, words) in [
        (json!({}), Code::Missing, 400, "a payload, title, description or extra"),
        (json!({"title": "x".repeat(513)}), Code::TitleTooLong, 422, "at most 512"),
        (json!({"description": "x".repeat(513)}), Code::DescriptionTooLong, 422, "at most 512"),
        (json!({"payload": "x".repeat(8193)}), Code::PayloadTooLong, 422, "at most 8192"),
        (json!({"extra": extras(33)}), Code::BadExtra, 422, "at most 32 extras"),
        (json!({"extra": {"k": "x".repeat(1024)}}), Code::BadExtra, 422, "at most 1024 characters"),
    ] {
        api.json("PUT", path, &body).await.refused(code, status, words);
    }
}

#[tokio::test]
async fn lists_come_in_pages() {
    let api = Api::new();
    for (path, next, after, request) in [
        ("segments", Value::Null, "a b", wire::AppRequest::Segments as fn(wire::Page) -> wire::AppRequest),
        ("templates", json!("a"), "a b", wire::AppRequest::Templates),
        ("schedules", json!("s1"), ID, wire::AppRequest::Schedules),
    ] {
        let path = format!("/campanile/v1/{path}");
        let answer = api.ask("GET", &path).await;
        assert_eq!(answer.accepted()["next"], next, "{path}");
        assert!(answer.data()["list"][0].is_object(), "{path}");
        assert_eq!(api.one_ask(), request(wire::Page { after: None, limit: 100 }));
        api.ask("GET", &format!("{path}?after={}&limit=7", after.replace(' ', "%20"))).await.accepted();
        assert_eq!(api.one_ask(), request(wire::Page { after: Some(after.into()), limit: 7 }));
        for (limit, code) in [("0", Code::BadValue), ("101", Code::BadValue), ("x", Code::BadValue)] {
            api.ask("GET", &format!("{path}?limit={limit}")).await.refused(code, 400, "from 1 to 100");
        }
    }
    let answer = api.ask("GET", "/campanile/v1/schedules?after=android-readers").await;
    answer.refused(Code::BadValue, 400, "the parameter after is");
}

#[tokio::test]
async fn a_schedule_is_shown_changed_and_deleted() {
    let api = Api::new();
    let path = &format!("/campanile/v1/schedules/{ID}");
    assert_eq!(api.ask("GET", path).await.accepted()["id"], ID);
    let named = wire::MessageName { id: Some(ID.into()), job_key: None };
    assert_eq!(api.one_ask(), wire::AppRequest::Schedule(named.clone()));
    let later = i64::try_from(NOW_MS).expect("a time") + 1000;
    let nothing = wire::ChangeSchedule { id: ID.into(), send_at_ms: None, local_time: None, repeat: None };
    for (body, expected) in [
        (json!({"time_to_send": later}), wire::ChangeSchedule { send_at_ms: Some(later), ..nothing.clone() }),
        (
            json!({"local_time": "2026-12-01T09:00"}),
            wire::ChangeSchedule { local_time: Some("2026-12-01T09:00".into()), ..nothing.clone() },
        ),
        (
            json!({"repeat": "0 9 * * 1-5", "time_zone": "Asia/Shanghai", "repeat_until": later}),
            wire::ChangeSchedule {
                repeat: Some(wire::Repeat {
                    cron: "0 9 * * 1-5".into(),
                    time_zone: "Asia/Shanghai".into(),
                    until_ms: Some(later),
                }),
                ..nothing.clone()
            },
        ),
    ] {
        assert_eq!(api.json("PATCH", path, &body).await.accepted()["id"], ID);
        assert_eq!(api.one_ask(), wire::AppRequest::ChangeSchedule(expected));
    }
    for body in [json!({}), json!({"time_to_send": 0})] {
        api.json("PATCH", path, &body).await.refused(Code::Missing, 400, "the parameter time_to_send is missing");
    }
    assert_eq!(api.ask("DELETE", path).await.accepted(), &json!({}));
    assert_eq!(api.one_ask(), wire::AppRequest::DeleteSchedule(named));
    api.ask("DELETE", &format!("/campanile/v1/schedules/{UNKNOWN}")).await.refused(Code::NotFound, 404, "");
}

#[tokio::test]
async fn receipts_come_in_order_and_say_where_to_go_on() {
    let api = Api::new();
    let answer = api.ask("GET", "/campanile/v1/receipts?since=r0&limit=1").await;
    let receipt = json!({
        "id": "r1", "message": message_id(0), "type": 1, "target": "alice", "timestamp": 9, "param": "p", "job_key": null,
        "registration_id": "reg",
    });
    assert_eq!(answer.accepted(), &json!({"list": [receipt], "next": "r1"}));
    assert_eq!(api.one_ask(), wire::AppRequest::Receipts(wire::Page { after: Some("r0".into()), limit: 1 }));
}

#[tokio::test]
async fn a_registration_is_shown_as_it_stands() {
    let api = Api::new();
    let regid = RegId([9; 24]);
    let answer = api.ask("GET", &format!("/campanile/v1/registrations/{regid}")).await;
    let expected = json!({
        "registration_id": regid.to_string(), "online": true, "last_seen": 4, "enabled": true, "created_at_ms": 1,
        "attributes": {"platform": "android"}, "aliases": ["alice"], "user_accounts": [], "topics": ["news"],
        "mailbox_length": 2,
    });
    assert_eq!(answer.accepted(), &expected);
    let asked = api.asked();
    assert_eq!((asked[0].lane, asked[0].shard), (Lane::High, Shard::of_registration(regid)));
}
