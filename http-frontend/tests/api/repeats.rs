//! Requests that come again, and how often they may come: idempotency keys and rates.

use axum::body::Body;
use axum::http::Request as HttpRequest;
use campanile_http_frontend::Limits;
use idl::bus::{Reply, Request};
use idl::contract::bus as wire;
use idl::error::{Code, Failure};

use crate::middle::{Answer, Api, message_id, request};

async fn post(api: &Api, path: &str, key: &[u8], form: &str) -> Answer {
    let builder = request(path).header("idempotency-key", axum::http::HeaderValue::from_bytes(key).expect("a header"));
    api.call(builder.body(Body::from(form.to_owned())).expect("a request")).await
}

#[tokio::test]
async fn a_send_carries_its_key_and_what_was_asked_under_it() {
    let api = Api::new();
    let mut prints = Vec::new();
    for (path, form) in [
        ("/v3/message/regid", "registration_id=a,b&payload=p"),
        ("/v3/message/regid", "payload=p&registration_id=a,b&title="),
        ("/v3/message/regid", "payload=q&registration_id=a,b"),
        ("/v4/message/regid", "registration_id=a,b&payload=p"),
    ] {
        post(&api, path, b"k-1", form).await.accepted();
        let call = api.one_call();
        assert_eq!(call.idempotency_key.as_deref(), Some("k-1"));
        prints.push(call.fingerprint.expect("a fingerprint"));
    }
    assert_eq!(prints[0], prints[1], "the order of parameters doesn't matter");
    assert_ne!(prints[0], prints[2]);
    assert_ne!(prints[0], prints[3]);
    assert!(prints.iter().all(|print| print.len() == 32));
    for (path, form) in [
        ("/v2/message/all", "payload=p"),
        ("/v2/multi_messages/regids", r#"messages=[{"target":"a","message":{"payload":"p"}}]"#),
        ("/campanile/v1/messages", "audience=all&payload=p"),
    ] {
        post(&api, path, b"k", form).await.accepted();
        assert_eq!(api.one_call().idempotency_key.as_deref(), Some("k"), "{path}");
    }
    post(&api, "/v2/topic/subscribe", b"k", "topic=t&registration_id=r").await.accepted();
    assert_eq!(api.one_call().idempotency_key, None, "what is no send needs none");
}

#[tokio::test]
async fn a_key_that_is_none_is_refused() {
    let api = Api::new();
    for key in [&b""[..], b" ", b"a b", b"\xc3\xa4", &[b'x'; 65]] {
        let answer = post(&api, "/v2/message/all", key, "payload=p").await;
        answer.refused(Code::BadValue, 200, "1 to 64 visible ASCII characters");
    }
    post(&api, "/v2/message/all", &[b'x'; 64], "payload=p").await.accepted();
    let twice = request("/v2/message/all").header("idempotency-key", "a").header("idempotency-key", "b");
    let answer = api.call(twice.body(Body::from("payload=p")).expect("a request")).await;
    answer.refused(Code::BadValue, 200, "given more than once");
}

fn reply(status: wire::Status, rate: Option<wire::Rate>, replayed: bool) -> Reply {
    let accepted = wire::Accepted { id: Some(message_id(0)), bad_targets: None, audience: None, due_ms: None };
    let answer = (status.code == 0).then_some(wire::AppAnswer::Accepted(accepted));
    Reply::App(Box::new(wire::AppReply { status, answer, rate, replayed: replayed.then_some(true) }))
}

fn ok() -> wire::Status {
    wire::Status { code: 0, description: None }
}

#[tokio::test]
async fn an_answer_that_was_given_before_says_so() {
    let api = Api::with(Limits::default(), |_| Some(Ok(reply(ok(), None, true))));
    let answer = post(&api, "/v2/message/all", b"k", "payload=p").await;
    answer.accepted();
    assert_eq!(answer.headers["idempotent-replayed"], "true");
    let first = Api::new().post("/v2/message/all", "payload=p").await;
    assert!(!first.headers.contains_key("idempotent-replayed"));
}

#[tokio::test]
async fn a_key_that_was_used_for_another_request_is_422_on_every_path() {
    let api =
        Api::with(Limits::default(), |_| Some(Ok(reply(Failure::from(Code::KeyReused).to_status(), None, false))));
    post(&api, "/v2/message/all", b"k", "payload=p").await.refused(Code::KeyReused, 422, "");
    post(&api, "/campanile/v1/messages", b"k", "audience=all&payload=p").await.refused(Code::KeyReused, 422, "");
}

#[tokio::test]
async fn replies_tell_what_the_app_may_still_send() {
    let rate = |per_second_max, per_day_max| wire::Rate {
        per_second_max,
        per_second_left: 99,
        per_day_max,
        per_day_left: 4999,
        day_ends_in_ms: 50_400_000,
        retry_after_ms: None,
    };
    for (rate, policy, left) in [
        (
            rate(100, 5000),
            Some(r#""second";q=100;w=1, "day";q=5000;w=86400"#),
            r#""second";r=99;t=1, "day";r=4999;t=50400"#,
        ),
        (rate(100, 0), Some(r#""second";q=100;w=1"#), r#""second";r=99;t=1"#),
        (rate(0, 5000), Some(r#""day";q=5000;w=86400"#), r#""day";r=4999;t=50400"#),
        (rate(0, 0), None, ""),
    ] {
        for status in [ok(), Failure::from(Code::SendFailed).to_status()] {
            let (rate, status) = (rate.clone(), status.clone());
            let api = Api::with(Limits::default(), move |_| Some(Ok(reply(status.clone(), Some(rate.clone()), false))));
            let answer = api.post("/v2/message/all", "payload=p").await;
            assert_eq!(answer.headers.get("ratelimit-policy").and_then(|value| value.to_str().ok()), policy);
            assert_eq!(answer.headers.get("ratelimit").is_some(), policy.is_some());
            assert!(answer.headers.get("ratelimit").is_none_or(|value| value == left), "{answer:?}");
        }
    }
}

#[tokio::test]
async fn what_is_refused_before_the_middle_has_the_rate_that_the_secret_was_last_answered() {
    let rate = wire::Rate {
        per_second_max: 0,
        per_second_left: 0,
        per_day_max: 50,
        per_day_left: 49,
        day_ends_in_ms: 50_400_000,
        retry_after_ms: None,
    };
    let api = Api::with(Limits::default(), move |_| Some(Ok(reply(ok(), Some(rate.clone()), false))));
    let refusals = [
        ("POST", "/v2/message/all", Code::Missing),
        ("GET", "/v2/message/all", Code::Illegal),
        ("PUT", "/campanile/v1/messages", Code::Illegal),
        ("POST", "/v2/message/none", Code::Illegal),
    ];
    for (method, path, code) in refusals {
        let answer = api.ask(method, path).await;
        assert_eq!(
            (answer.code(), answer.headers.contains_key("ratelimit")),
            (i64::from(code.number()), false),
            "{path}"
        );
    }
    api.post("/v2/message/all", "payload=p").await.accepted();
    for (method, path, code) in refusals {
        let answer = api.ask(method, path).await;
        assert_eq!(answer.code(), i64::from(code.number()), "{path}");
        assert_eq!(answer.headers["ratelimit-policy"], r#""day";q=50;w=86400"#, "{path}");
        let left = answer.headers["ratelimit"].to_str().expect("text");
        assert!(left.starts_with(r#""day";r=49;t="#), "{left}");
    }
    // Another secret is told nothing of it, and neither is who has none.
    for secret in [Some("key=other"), None] {
        let builder = HttpRequest::post("/v2/message/all");
        let builder = secret.into_iter().fold(builder, |builder, secret| builder.header("authorization", secret));
        let answer = api.call(builder.body(Body::empty()).expect("a request")).await;
        assert!(!answer.headers.contains_key("ratelimit"), "{answer:?}");
    }
}

#[tokio::test]
async fn who_sends_too_much_is_told_when_to_come_back() {
    for (code, retry_after_ms, expected) in [
        (Code::RateLimited, Some(1001), "2"),
        (Code::RateLimited, Some(0), "1"),
        (Code::RateLimited, None, "1"),
        (Code::DailyQuota, Some(60_000), "60"),
        (Code::DailyQuota, None, "3600"),
    ] {
        let api = Api::with(Limits::default(), move |_| {
            let rate = wire::Rate {
                per_second_max: 1,
                per_second_left: 0,
                per_day_max: 1,
                per_day_left: 0,
                day_ends_in_ms: 3_600_000,
                retry_after_ms,
            };
            Some(Ok(reply(Failure::from(code).to_status(), Some(rate), false)))
        });
        let answer = api.post("/v2/message/all", "payload=p").await;
        answer.refused(code, 200, "");
        assert_eq!(answer.headers["retry-after"], expected, "{code:?}");
        let answer = api.post("/campanile/v1/messages", "payload=p&audience=all").await;
        answer.refused(code, 429, "");
        assert_eq!(answer.headers["retry-after"], expected, "{code:?}");
    }
}

#[tokio::test]
async fn what_the_bus_itself_refuses_has_no_rate() {
    let api = Api::with(Limits::default(), |request| {
        assert!(matches!(request, Request::App(_)));
        Some(Err(Failure::from(Code::Busy)))
    });
    let answer = api.post("/v2/message/all", "payload=p").await;
    answer.refused(Code::Busy, 503, "");
    assert_eq!(answer.headers["retry-after"], "1");
    assert!(!answer.headers.contains_key("ratelimit"));
}
