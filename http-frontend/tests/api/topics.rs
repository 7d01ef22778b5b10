//! Topic membership on behalf of an app server.

use campanile_http_frontend::Limits;
use idl::bus::{Lane, Request};
use idl::contract::bus as wire;
use idl::error::Code;
use idl::ids::{RegId, Shard};
use serde_json::json;

use crate::middle::{Api, answered, secret_sha256};

#[tokio::test]
async fn each_path_subscribes_or_unsubscribes_by_its_own_names() {
    let api = Api::new();
    let form = "topic=t1&registration_id=r1,r2&aliases=a1&alias=a2&restricted_package_name=com.example.demo&category=c";
    for (path, subscribe, kind, values) in [
        ("/v2/topic/subscribe", true, 1, ["r1", "r2"]),
        ("/v2/topic/subscribe/alias", true, 2, ["a2", "a1"]),
        ("/v2/topic/unsubscribe", false, 1, ["r1", "r2"]),
        ("/v2/topic/unsubscribe/alias", false, 2, ["a2", "a1"]),
    ] {
        let answer = api.post(path, form).await;
        assert_eq!((answer.status.as_u16(), answer.code()), (200, 0), "{path}: {answer:?}");
        let asked = api.asked();
        assert_eq!(asked[0].lane, Lane::Normal);
        let expected = wire::ChangeTopic {
            topic: "t1".into(),
            subscribe,
            kind,
            values: values.map(str::to_owned).to_vec(),
            packages: Some(vec!["com.example.demo".to_owned()]),
        };
        let Request::App(call) = &asked[0].request else { panic!("{path}: {asked:?}") };
        assert_eq!(call.request, wire::AppRequest::ChangeTopic(expected), "{path}");
        assert_eq!(call.secret_sha256, secret_sha256());
        assert_eq!((&call.idempotency_key, &call.fingerprint), (&None, &None));
    }
}

#[tokio::test]
async fn one_registration_is_a_command_in_the_high_lane_and_the_shard_of_its_account() {
    let api = Api::new();
    let regid = RegId([9; 24]);
    assert_eq!(api.post("/v2/topic/subscribe", &format!("topic=t&registration_id={regid}")).await.code(), 0);
    let asked = api.asked();
    assert_eq!((asked[0].lane, asked[0].shard), (Lane::High, Shard::of_registration(regid)));
}

#[tokio::test]
async fn bad_targets_are_named() {
    let api = Api::with(Limits::default(), |_| {
        let bad_targets = Some(vec!["x".into(), "y".into()]);
        Some(Ok(answered(wire::AppAnswer::TopicChanged(wire::TopicChanged { bad_targets }))))
    });
    let answer = api.post("/v2/topic/subscribe", "topic=t&registration_id=x,y,z").await;
    assert_eq!(answer.data(), &json!({"bad_regids": "x,y"}));
    let answer = api.post("/v2/topic/unsubscribe/alias", "topic=t&aliases=x,y,z").await;
    assert_eq!(answer.data(), &json!({"bad_aliases": "x,y"}));
}

#[tokio::test]
async fn what_is_missing_or_wrong_is_named() {
    let api = Api::new();
    let path = "/v2/topic/subscribe";
    api.post(path, "registration_id=r").await.refused(Code::Missing, 200, "the parameter topic is missing");
    api.post(path, "topic=t&aliases=a").await.refused(Code::Missing, 200, "the parameter registration_id is missing");
    let long = format!("registration_id=r&topic={}", "ä".repeat(65));
    api.post(path, &long).await.refused(Code::BadTopic, 200, "130-byte name");
    let category = |count: usize| format!("registration_id=r&topic=t&category={}", "x".repeat(count));
    api.post(path, &category(129)).await.refused(Code::BadValue, 200, "the parameter category has 129 characters");
    let path = "/v2/topic/unsubscribe/alias";
    api.post(path, "topic=t&registration_id=r").await.refused(Code::Missing, 200, "the parameter alias is missing");
    assert!(api.asked().is_empty());
    api.post("/v2/topic/subscribe", &category(128)).await.accepted();
}
