//! Requests that nobody means well with: whatever comes, the answer is an envelope.

use axum::body::Body;
use axum::http::{HeaderValue, Request as HttpRequest};
use proptest::prelude::*;
use tokio::runtime::Builder;

use crate::middle::Api;

const PATHS: &[&str] = &[
    "/v2/message/regid",
    "/v3/message/alias",
    "/v3/message/multi_topic",
    "/v2/multi_messages/regids",
    "/v2/topic/subscribe",
    "/v1/regid/presence",
    "/v1/stats/message/counters",
    "/v1/trace/messages/status",
    "/v2/schedule_job/exist",
    "/v1/message/topic/revoke",
    "/v2/message/revoke",
    "/campanile/v1/messages",
    "/campanile/v1/messages/01KBD2ZQ8M3YV6T4N0R7HXW5PC/trace",
    "/campanile/v1/segments/x",
    "/campanile/v1/templates/x",
    "/campanile/v1/schedules/01KBD2ZQ8M3YV6T4N0R7HXW5PC",
    "/campanile/v1/receipts",
    "/device/v1/account",
    "/device/v1/token",
    "/nowhere",
];

/// Parameters that are read as something else than text.
const NAMES: &[&str] = &[
    "registration_id",
    "alias",
    "topic",
    "topics",
    "topic_op",
    "payload",
    "notify_id",
    "notify_type",
    "time_to_live",
    "time_to_send",
    "local_time",
    "repeat",
    "time_zone",
    "repeat_until",
    "spread_ms",
    "dry_run",
    "template",
    "var.v",
    "extra.k",
    "extra.locale",
    "extra.callback",
    "extra.callback.type",
    "extra.flow_control",
    "messages",
    "audience",
    "segment",
    "expression",
    "start_date",
    "end_date",
    "begin_time",
    "end_time",
    "job_id",
    "msg_id",
    "limit",
    "since",
    "after",
];

fn values() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ -~]{0,12}",
        "-?[0-9]{1,20}",
        "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}",
        "(topic|alias)\\(\"[a-z]\"\\)( and| or)? ?(not )?(all)?",
        "\\[\\{\"target\":\"a\",\"message\":\\{\"[a-z_]{1,12}\":[0-9]{1,3}\\}\\}\\]",
        any::<String>(),
    ]
}

fn requests() -> impl Strategy<Value = (usize, &'static str, Option<&'static str>, Vec<u8>, Vec<u8>)> {
    let method = prop_oneof![Just("GET"), Just("POST"), Just("PUT"), Just("PATCH"), Just("DELETE"), Just("HEAD")];
    let kind = prop_oneof![
        Just(None),
        Just(Some("application/json")),
        Just(Some("application/x-www-form-urlencoded")),
        Just(Some("multipart/form-data")),
    ];
    let form = proptest::collection::vec((0..NAMES.len(), values()), 0..8).prop_map(|pairs| {
        let encoded = pairs.iter().map(|(name, value)| {
            let value = percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC);
            format!("{}={value}", NAMES.get(*name).copied().unwrap_or_default())
        });
        encoded.collect::<Vec<_>>().join("&").into_bytes()
    });
    let json = proptest::collection::vec((0..NAMES.len(), values()), 0..8).prop_map(|pairs| {
        let members = pairs.into_iter().map(|(name, value)| {
            let value = serde_json::from_str(&value).unwrap_or(serde_json::Value::String(value));
            (NAMES.get(name).copied().unwrap_or_default().to_owned(), value)
        });
        serde_json::Value::Object(members.collect()).to_string().into_bytes()
    });
    let body = prop_oneof![form, json, proptest::collection::vec(any::<u8>(), 0..100)];
    let header = proptest::collection::vec(prop_oneof![0x20u8..=0x7e, 0x80u8..=0xff], 0..70);
    (0..PATHS.len(), method, kind, body, header)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn whatever_comes_is_answered_in_the_envelope((path, method, kind, body, header) in requests()) {
        let path = PATHS.get(path).copied().unwrap_or_default();
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let api = Api::new();
            let mut builder = HttpRequest::builder().method(method).uri(path).header("authorization", "key=s3cret");
            if let Some(kind) = kind {
                builder = builder.header("content-type", kind);
            }
            if let Ok(key) = HeaderValue::from_bytes(&header) {
                builder = builder.header("idempotency-key", key);
            }
            let status = if method == "HEAD" {
                api.status(builder.body(Body::from(body)).expect("a request")).await
            } else {
                let answer = api.call(builder.body(Body::from(body)).expect("a request")).await;
                assert_eq!(answer.envelope.as_object().map(serde_json::Map::len), Some(7));
                assert_eq!(answer.envelope["result"] == "ok", answer.code() == 0);
                answer.status
            };
            assert!(!status.is_server_error(), "{method} {path}: {status}");
        });
    }

    #[test]
    fn whatever_the_path_it_is_answered(path in "/[ -~]{0,40}", query in "[ -~]{0,40}") {
        let uri = format!("{path}?{query}");
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            for method in ["GET", "POST"] {
                let Ok(request) = HttpRequest::builder().method(method).uri(&uri).body(Body::empty()) else { return };
                let status = Api::new().status(request).await;
                assert!(!status.is_server_error(), "{method} {uri}: {status}");
            }
        });
    }
}
