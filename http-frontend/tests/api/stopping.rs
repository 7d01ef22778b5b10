//! Schedules, stops and recalls as Mi Push's SDKs ask for them.

use idl::audience::Audience;
use idl::bus::Lane;
use idl::contract::bus as wire;
use idl::error::Code;
use serde_json::json;

use crate::middle::Api;

fn id(id: &str) -> wire::MessageName {
    wire::MessageName { id: Some(id.to_owned()), job_key: None }
}

fn key(key: &str) -> wire::MessageName {
    wire::MessageName { id: None, job_key: Some(key.to_owned()) }
}

#[tokio::test]
async fn a_schedule_is_asked_for_and_deleted_by_id_or_by_key() {
    let api = Api::new();
    for (path, form, expected) in [
        ("/v2/schedule_job/exist", "job_id=s1", wire::AppRequest::Schedule(id("s1"))),
        ("/v2/schedule_job/query", "job_id=s1", wire::AppRequest::Schedule(id("s1"))),
        ("/v2/schedule_job/delete", "job_id=s1", wire::AppRequest::DeleteSchedule(id("s1"))),
        ("/v3/schedule_job/delete", "jobkey=k1", wire::AppRequest::DeleteSchedule(key("k1"))),
        ("/v3/schedule_job/delete", "job_key=k1", wire::AppRequest::DeleteSchedule(key("k1"))),
        ("/v2/schedule_job/delete", "job_id=s1&jobkey=k1", wire::AppRequest::DeleteSchedule(id("s1"))),
    ] {
        api.post(path, form).await.accepted();
        assert_eq!(api.one_ask(), expected, "{path} {form}");
        api.post(path, "").await.refused(Code::Missing, 200, "the parameter job_id is missing");
    }
    let data = api.post("/v2/schedule_job/query", "job_id=s1").await;
    let expected = json!({
        "id": "s1", "job_key": null, "state": "waiting", "created_at_ms": 1, "due_ms": 2, "local_time": null,
        "repeat": "0 9 * * *", "time_zone": "UTC", "repeat_until": 3, "fired": 4, "last_message": "01HF7YAT000000000000000000",
    });
    assert_eq!(data.accepted(), &expected);
    assert_eq!(api.post("/v2/schedule_job/exist", "job_id=s1").await.accepted(), &json!({}));
}

#[tokio::test]
async fn a_schedule_that_is_over_or_unknown_does_not_exist() {
    let api = Api::new();
    api.post("/v2/schedule_job/exist", "job_id=over").await.refused(Code::NotFound, 200, "carried out");
    api.post("/v2/schedule_job/delete", "job_id=unknown").await.refused(Code::NotFound, 200, "");
}

#[tokio::test]
async fn messages_are_stopped_by_ids_or_keys() {
    let api = Api::new();
    for (path, form, names, recall) in [
        ("/v2/message/delete", "id=m1", vec![id("m1")], false),
        ("/v1/message/switch/stop_by_id", "msg_ids=m1&msg_ids=m2,m3", vec![id("m1"), id("m2"), id("m3")], false),
        ("/v1/message/switch/stop_by_jobkey", "job_keys=k1&job_keys=k2", vec![key("k1"), key("k2")], false),
        ("/v2/message/revoke", "msg_id=m1", vec![id("m1")], true),
        ("/v2/message/revoke", "msg_id=&job_key=k1&restricted_package_name=p", vec![key("k1")], true),
        ("/v2/message/revoke", "msg_id=m1&job_key=k1", vec![id("m1"), key("k1")], true),
    ] {
        api.post(path, form).await.accepted();
        assert_eq!(api.one_ask(), wire::AppRequest::Stop(wire::Stop { names, recall }), "{path} {form}");
        api.post(path, "").await.refused(Code::Missing, 200, "is missing");
    }
    let many = |count: usize| (0..count).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    let path = "/v1/message/switch/stop_by_id";
    api.post(path, &format!("msg_ids={}", many(1000))).await.accepted();
    api.post(path, &format!("msg_ids={}", many(1001))).await.refused(Code::TooManyTargets, 200, "a list of 1001");
    let both = format!("msg_ids={}&job_keys={}", many(501), many(500));
    api.post("/v2/message/revoke", &both).await.refused(Code::TooManyTargets, 200, "a list of 1001");
}

#[tokio::test]
async fn what_was_stopped_and_what_is_unknown_is_told() {
    let api = Api::new();
    let path = "/v1/message/switch/stop_by_id";
    let answer = api.post(path, "msg_ids=m1,unknown").await;
    assert_eq!(answer.accepted(), &json!({"found": ["m1"], "unknown": ["unknown"]}));
    api.post(path, "msg_ids=unknown").await.refused(Code::NotFound, 200, "unknown");
}

#[tokio::test]
async fn a_notification_is_taken_back_from_targets_by_its_notify_id() {
    let api = Api::new();
    let target = |kind, values: &[&str]| wire::Target {
        kind,
        values: Some(values.iter().map(|value| (*value).to_owned()).collect()),
        audience: None,
        segment: None,
    };
    let topic = |name: &str| Audience::Topic(name.parse().expect("a topic"));
    let expression =
        |audience: &Audience| wire::Target { kind: 4, values: None, audience: Some(audience.to_wire()), segment: None };
    for (path, form, expected, lane) in [
        ("regid", "registration_ids=r1,r2", target(1, &["r1", "r2"]), Lane::Normal),
        ("regid", "registration_id=r1", target(1, &["r1"]), Lane::High),
        ("alias", "aliases=a1", target(2, &["a1"]), Lane::High),
        ("user_account", "user_accounts=u1,u2", target(3, &["u1", "u2"]), Lane::Normal),
        ("topic", "topic=t1", expression(&topic("t1")), Lane::Low),
        (
            "multi_topic",
            "topics=t1&topics=t2&topic_op=INTERSECTION",
            expression(&topic("t1").and(topic("t2"))),
            Lane::Low,
        ),
    ] {
        let path = format!("/v1/message/{path}/revoke");
        let answer = api.post(&path, &format!("{form}&notify_id=4294967297&restricted_package_name=p,q")).await;
        assert_eq!(answer.accepted(), &json!({}), "{path}");
        let asked = api.asked();
        assert_eq!(asked[0].lane, lane, "{path}");
        let idl::bus::Request::App(call) = &asked[0].request else { panic!("{asked:?}") };
        let packages = Some(vec!["p".to_owned(), "q".to_owned()]);
        let recall = wire::Recall { target: expected, notify_id: 4_294_967_297, packages };
        assert_eq!(call.request, wire::AppRequest::Recall(recall), "{path}");
        api.post(&path, form).await.refused(Code::Missing, 200, "the parameter notify_id is missing");
        api.post(&path, "notify_id=1").await.refused(Code::Missing, 200, "is missing");
        api.post(&path, &format!("{form}&notify_id=x")).await.refused(Code::BadValue, 200, "the parameter notify_id");
        assert!(api.asked().is_empty());
        api.post(&path, "msg_id=m1").await.accepted();
        let stop = wire::Stop { names: vec![id("m1")], recall: true };
        assert_eq!(api.one_ask(), wire::AppRequest::Stop(stop), "a message is named more precisely than a notify_id");
    }
}
