//! What holds on every path: the envelope, authorisation, methods and unknown paths, metrics.

use axum::body::{Body, HttpBody as _};
use axum::http::Request as HttpRequest;
use idl::error::Code;
use serde_json::json;
use tower_service::Service as _;

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
        ("/v2/multi_messages/topics", 200),
        ("/v4/message/alias", 200),
        ("/v2/message/regid/", 200),
        ("/v1/stats", 200),
        ("/device/v1/other", 404),
        ("/campanile/v1/messages/", 404),
        ("/campanile/v1/messages/a/b", 404),
        ("/msg/ack/info", 404),
    ] {
        api.post(path, "payload=p").await.refused(Code::Illegal, status, &format!("the path {path:?} is not served"));
    }
    assert!(api.asked().is_empty());
}

#[tokio::test]
async fn another_method_is_an_illegal_request_that_names_those_that_are_allowed() {
    let api = Api::new();
    for (path, status, takes, allow, methods) in [
        ("/v2/message/regid", 200, "POST", "POST, OPTIONS", &["GET", "PUT", "PATCH", "DELETE", "TRACE", "BREW"][..]),
        ("/v1/alias/all", 200, "GET or POST", "GET, POST, HEAD, OPTIONS", &["PUT", "DELETE"]),
        ("/device/v1/account", 405, "POST", "POST, OPTIONS", &["GET", "PUT", "DELETE"]),
        ("/campanile/v1/messages", 405, "POST", "POST, OPTIONS", &["GET", "PUT", "DELETE"]),
        (
            "/campanile/v1/segments/x",
            405,
            "GET or PUT or DELETE",
            "GET, PUT, DELETE, HEAD, OPTIONS",
            &["POST", "PATCH", "TRACE"],
        ),
        ("/openapi.json", 405, "GET", "GET, HEAD, OPTIONS", &["POST"]),
    ] {
        for method in methods {
            let answer = api.ask(method, path).await;
            answer.refused(Code::Illegal, status, &format!(" takes {takes}, not {method}"));
            assert_eq!(answer.headers["allow"], allow);
        }
    }
    assert!(api.asked().is_empty());
}

#[tokio::test]
async fn options_tell_what_is_allowed_and_head_is_a_get_without_a_body() {
    let api = Api::new();
    let call = |method: &str, path: &str| {
        let builder = HttpRequest::builder().method(method).uri(path).header("authorization", "key=s3cret");
        api.router.clone().call(builder.body(Body::empty()).expect("a request"))
    };
    let options = call("OPTIONS", "/campanile/v1/segments/x").await.expect("infallible");
    assert_eq!(options.status(), 204);
    assert_eq!(options.headers()["allow"], "GET, PUT, DELETE, HEAD, OPTIONS");
    for path in ["/campanile/v1/segments/x", "/docs", "/v1/alias/all?registration_id=r"] {
        let get = call("GET", path).await.expect("infallible");
        let length = get.body().size_hint().exact().expect("a length");
        let head = call("HEAD", path).await.expect("infallible");
        assert_eq!(head.status(), get.status());
        assert_eq!(head.headers()["content-type"], get.headers()["content-type"]);
        assert_eq!(head.headers()["content-length"], length.to_string());
        assert_eq!(head.body().size_hint().exact(), Some(0));
    }
}

#[tokio::test]
async fn head_takes_nothing_where_reading_consumes() {
    let api = Api::new();
    for path in ["/v1/feedback/fetch_invalid_regids", "/v1/feedback/fetch_invalid_aliases"] {
        let builder = HttpRequest::builder().method("HEAD").uri(path).header("authorization", "key=s3cret");
        let head = api.router.clone().call(builder.body(Body::empty()).expect("a request")).await.expect("infallible");
        assert_eq!(head.status(), 200, "{path}");
        assert_eq!(head.headers()["allow"], "GET, POST, OPTIONS");
        assert_eq!(head.body().size_hint().exact(), Some(0));
        assert!(api.asked().is_empty(), "{path}");
        api.ask("GET", path).await.accepted();
        assert_eq!(api.asked().len(), 1);
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
