//! What holds on every path: the envelope, authorisation, methods and unknown paths, metrics.

use axum::body::Body;
use axum::http::Request as HttpRequest;
use idl::error::Code;
use serde_json::json;

use crate::middle::{Api, request};

#[tokio::test]
async fn the_envelope_always_has_all_its_members() {
    let api = Api::new();
    let mut trace_ids = Vec::new();
    for (path, form) in [
        ("/v2/message/all", "payload=p"),
        ("/v2/message/all", ""),
        ("/device/v1/account", "device=d"),
        ("/device/v1/account", ""),
        ("/nowhere", ""),
    ] {
        let answer = api.post(path, form).await;
        let members = answer.envelope.as_object().expect("an object");
        let names: Vec<_> = members.keys().map(String::as_str).collect();
        assert_eq!(names, ["code", "data", "description", "info", "reason", "result", "trace_id"]);
        assert!(members["code"].is_i64() && members["data"].is_object(), "{answer:?}");
        assert_eq!(members["result"] == "ok", members["code"] == 0);
        trace_ids.push(members["trace_id"].as_str().expect("a text").to_owned());
    }
    trace_ids.sort();
    trace_ids.dedup();
    assert_eq!(trace_ids.len(), 5, "each request has its own trace id");
}

#[tokio::test]
async fn a_send_without_its_secret_is_refused() {
    let api = Api::new();
    for path in ["/v2/message/regid", "/v3/message/all", "/v2/topic/subscribe", "/v2/topic/unsubscribe/alias"] {
        let bare = HttpRequest::post(path).body(Body::from("payload=p")).expect("a request");
        let answer = api.call(bare).await;
        answer.refused(Code::Unauthorized, 200, "the header Authorization is missing");
        assert_eq!(answer.envelope["reason"], "Invalid application secret.");
        let upper =
            HttpRequest::post(path).header("authorization", "Key=s3cret").body(Body::empty()).expect("a request");
        api.call(upper).await.refused(Code::Unauthorized, 200, "'key='");
    }
    assert!(api.asked().is_empty());
}

#[tokio::test]
async fn a_path_that_is_not_served_is_an_illegal_request_in_the_manner_of_its_neighbours() {
    let api = Api::new();
    for (path, status) in [
        ("/v2/multi_messages/regids", 200),
        ("/v4/message/alias", 200),
        ("/v2/message/regid/", 200),
        ("/v1/stats/message/counters", 200),
        ("/device/v1/other", 404),
        ("/campanile/v1/messages", 404),
        ("/", 404),
    ] {
        api.post(path, "payload=p").await.refused(Code::Illegal, status, &format!("the path {path:?} is not served"));
    }
    assert!(api.asked().is_empty());
}

#[tokio::test]
async fn another_method_than_post_is_an_illegal_request() {
    let api = Api::new();
    for (path, status) in [("/v2/message/regid", 200), ("/v2/topic/subscribe", 200), ("/device/v1/account", 404)] {
        for method in ["GET", "PUT", "DELETE", "OPTIONS"] {
            let http = HttpRequest::builder().method(method).uri(path).body(Body::empty()).expect("a request");
            api.call(http).await.refused(Code::Illegal, status, &format!("{path} takes POST, not {method}"));
        }
    }
}

#[tokio::test]
async fn a_body_that_cannot_be_read_is_named() {
    let api = Api::new();
    let typed = |kind: &str, body: &'static str| {
        let builder = HttpRequest::post("/v2/message/all").header("authorization", "key=s3cret");
        builder.header("content-type", kind).body(Body::from(body)).expect("a request")
    };
    for (http, words) in [
        (typed("multipart/form-data; boundary=x", "--x--"), "multipart/form-data"),
        (typed("application/json", "payload=p"), "not valid JSON"),
        (typed("application/json", "[1]"), "not an object"),
        (typed("application/x-www-form-urlencoded", "payload=%FF"), r#"the parameter "payload" in the body"#),
    ] {
        api.call(http).await.refused(Code::BadRequest, 200, words);
    }
    let packed =
        request("/v2/message/all").header("content-encoding", "gzip").body(Body::from("x")).expect("a request");
    api.call(packed).await.refused(Code::BadRequest, 200, "gzip");
}

#[tokio::test]
async fn metrics_tell_paths_and_codes() {
    let api = Api::new();
    api.post("/v2/message/all", "payload=p").await;
    api.post("/v2/message/all", "").await;
    api.post("/v9/x", "").await;
    let metrics = api.metrics();
    for line in [
        r#"campanile_http_requests_total{path="/v2/message/all",code="0"} 1"#,
        r#"campanile_http_requests_total{path="/v2/message/all",code="10016"} 1"#,
        r#"campanile_http_requests_total{path="unknown",code="10012"} 1"#,
        r#"campanile_http_request_seconds_count{path="/v2/message/all"} 2"#,
        "campanile_http_requests_in_flight 0",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn an_answer_of_another_kind_is_a_fault_of_ours() {
    let limits = campanile_http_frontend::Limits::default();
    let api = Api::with(limits, |_| Some(Ok(idl::bus::Reply::Done)));
    for (path, form) in [
        ("/v2/message/all", "payload=p"),
        ("/v2/topic/subscribe", "topic=t&registration_id=r"),
        ("/device/v1/account", "device=d"),
    ] {
        api.post(path, form).await.refused(Code::System, 503, "another kind of reply");
    }
    assert_eq!(json!({}), *api.post("/v2/message/all", "payload=p").await.data());
}
