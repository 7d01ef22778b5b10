//! Each parameter of a message: what reaches the middle, its limit, and what is refused beyond it.

use std::collections::BTreeSet;

use idl::audience::{Audience, Comparison, Test};
use idl::contract::bus as wire;
use idl::contract::message::Callback;
use idl::error::Code;
use serde_json::json;

use crate::middle::{Api, NOW_MS};

const SEND: &str = "/v3/message/regid";

/// A parameter, a form that keeps to its limit, one that goes beyond, and the code of that.
type Case = (&'static str, String, String, Code);

fn x(count: usize) -> String {
    "x".repeat(count)
}

fn list(count: usize) -> String {
    (0..count).map(|n| n.to_string()).collect::<Vec<_>>().join(",")
}

fn cases() -> Vec<Case> {
    let case = |name, good: &str, bad: &str, code| (name, good.to_owned(), bad.to_owned(), code);
    let ahead = |ms: u64| format!("time_to_send={}", NOW_MS + ms);
    let repeat = "repeat=0+9+*+*+*&time_zone=UTC";
    let own = |count: usize| (0..count).map(|n| format!("extra.k{n}=v")).collect::<Vec<_>>().join("&");
    let variables = |count: usize| (0..count).map(|n| format!("var.v{n}=t")).collect::<Vec<_>>().join("&");
    let mut cases = vec![
        ("payload", format!("payload={}", x(4096)), format!("payload={}", x(4097)), Code::PayloadTooLong),
        ("title", format!("title={}", "%C3%A4".repeat(49)), format!("title={}", x(50)), Code::TitleTooLong),
        (
            "description",
            format!("description={}", "%C3%A4".repeat(127)),
            format!("description={}", x(128)),
            Code::DescriptionTooLong,
        ),
        case("pass_through", "payload=p&pass_through=1", "payload=p&pass_through=2", Code::BadValue),
        case("notify_type", "payload=p&notify_type=7", "payload=p&notify_type=8", Code::BadValue),
        case("notify_type", "payload=p&notify_type=-1", "payload=p&notify_type=-2", Code::BadValue),
        case(
            "notify_id",
            "title=t&notify_id=9223372036854775807",
            "title=t&notify_id=9223372036854775808",
            Code::BadValue,
        ),
        case("time_to_live", "payload=p&time_to_live=1", "payload=p&time_to_live=0", Code::BadTimeToLive),
        case(
            "time_to_live",
            "payload=p&time_to_live=1209600000",
            "payload=p&time_to_live=1209600001",
            Code::BadTimeToLive,
        ),
        (
            "collapse_key",
            format!("title=t&collapse_key={}", x(64)),
            format!("title=t&collapse_key={}", x(65)),
            Code::BadValue,
        ),
        (
            "time_to_send",
            format!("title=t&{}", ahead(604_800_000)),
            format!("title=t&{}", ahead(604_800_001)),
            Code::BadValue,
        ),
        case(
            "local_time",
            "title=t&local_time=2026-12-01T23:59:59",
            "title=t&local_time=2026-12-01T24:00",
            Code::BadValue,
        ),
        (
            "repeat",
            format!("title=t&time_zone=UTC&repeat=0+9+*+*+{}", x(120)),
            format!("title=t&time_zone=UTC&repeat=0+9+*+*+{}", x(121)),
            Code::BadValue,
        ),
        case(
            "time_zone",
            "title=t&repeat=0+9+*+*+*&time_zone=Asia/Shanghai",
            "title=t&repeat=0+9+*+*+*&time_zone=Asia",
            Code::BadValue,
        ),
        (
            "repeat_until",
            format!("title=t&{repeat}&repeat_until={}", NOW_MS + 1),
            format!("title=t&{repeat}&repeat_until={NOW_MS}"),
            Code::BadValue,
        ),
        case("spread_ms", "title=t&spread_ms=86400000", "title=t&spread_ms=86400001", Code::BadValue),
        case("spread_ms", "title=t&spread_ms=0", "title=t&spread_ms=-1", Code::BadValue),
        case("dry_run", "title=t&dry_run=1", "title=t&dry_run=2", Code::BadValue),
        ("template", format!("template={}", x(64)), format!("template={}", x(65)), Code::BadValue),
        ("var.*", format!("template=t&{}", variables(64)), format!("template=t&{}", variables(65)), Code::BadValue),
        ("var.*", format!("template=t&var.v={}", x(4096)), format!("template=t&var.v={}", x(4097)), Code::BadValue),
        ("var.*", format!("template=t&var.{}=t", x(64)), format!("template=t&var.{}=t", x(65)), Code::BadValue),
        case("var.*", "template=t&var.v=t", "payload=p&var.v=t", Code::Missing),
        case(
            "extra.notify_foreground",
            "title=t&extra.notify_foreground=0",
            "title=t&extra.notify_foreground=2",
            Code::BadValue,
        ),
        case("extra.notify_effect", "title=t&extra.notify_effect=1", "title=t&extra.notify_effect=4", Code::BadValue),
        case(
            "extra.notify_effect",
            "title=t&extra.notify_effect=2&extra.intent_uri=u",
            "title=t&extra.notify_effect=2&extra.web_uri=u",
            Code::Missing,
        ),
        case(
            "extra.notify_effect",
            "title=t&extra.notify_effect=3&extra.web_uri=u",
            "title=t&extra.notify_effect=3&extra.intent_uri=u",
            Code::Missing,
        ),
        case("extra.connpt", "title=t&extra.connpt=wifi", "title=t&extra.connpt=5g", Code::BadValue),
        (
            "extra.jobkey",
            format!("title=t&extra.jobkey={}", x(20)),
            format!("title=t&extra.jobkey={}", x(21)),
            Code::BadValue,
        ),
        case("extra.flow_control", "title=t&extra.flow_control=1", "title=t&extra.flow_control=0", Code::BadValue),
        case(
            "extra.flow_control",
            "title=t&extra.flow_control=100000",
            "title=t&extra.flow_control=100001",
            Code::BadValue,
        ),
        case(
            "extra.only_send_once",
            "title=t&extra.only_send_once=1",
            "title=t&extra.only_send_once=yes",
            Code::BadValue,
        ),
        (
            "extra.callback",
            format!("title=t&extra.callback=https://a/{}", x(2048 - 10)),
            format!("title=t&extra.callback=https://a/{}", x(2048 - 9)),
            Code::BadValue,
        ),
        case("extra.callback", "title=t&extra.callback=http://a", "title=t&extra.callback=file:///a", Code::BadValue),
        (
            "extra.callback.param",
            format!("title=t&extra.callback.param={}", x(64)),
            format!("title=t&extra.callback.param={}", x(65)),
            Code::BadExtra,
        ),
        case(
            "extra.callback.type",
            "title=t&extra.callback.type=1267",
            "title=t&extra.callback.type=1268",
            Code::BadValue,
        ),
        case("extra.callback.type", "title=t&extra.callback.type=1", "title=t&extra.callback.type=4", Code::BadValue),
        ("extra.*", format!("title=t&{}", own(10)), format!("title=t&{}", own(11)), Code::BadExtra),
        ("extra.*", format!("title=t&extra.k={}", x(1023)), format!("title=t&extra.k={}", x(1024)), Code::BadExtra),
    ];
    for name in ["sound_uri", "ticker", "intent_uri", "web_uri", "channel_id"] {
        let extra = |count| format!("title=t&extra.{name}={}", x(count));
        cases.push((leaked(name), extra(1024), extra(1025), Code::BadExtra));
    }
    for name in ["locale", "locale_not_in", "model", "model_not_in", "app_version", "app_version_not_in"] {
        let values = |values: String| format!("title=t&extra.{name}={values}");
        cases.push((leaked(name), values(list(100)), values(list(101)), Code::BadValue));
        cases.push((leaked(name), values(x(128)), values(x(129)), Code::BadValue));
    }
    cases
}

/// The name of an extra as the document has it.
fn leaked(name: &str) -> &'static str {
    format!("extra.{name}").leak()
}

#[tokio::test]
async fn each_parameter_of_a_message_is_taken_at_its_limit_and_refused_beyond() {
    let api = Api::new();
    for (name, good, bad, code) in cases() {
        let answer = api.post(SEND, &format!("registration_id=r&{good}")).await;
        assert_eq!(answer.code(), 0, "{name}: {answer:?}");
        assert_eq!(api.asked().len(), 1);
        let answer = api.post(SEND, &format!("registration_id=r&{bad}")).await;
        assert_eq!((answer.status.as_u16(), answer.code()), (200, i64::from(code.number())), "{name}: {answer:?}");
        assert!(
            answer.description().contains(name.trim_end_matches('*')) || code == Code::Missing,
            "{name}: {answer:?}"
        );
        assert!(answer.description().contains("expected "), "{name}: {answer:?}");
        assert!(api.asked().is_empty());
    }
}

#[tokio::test]
async fn every_parameter_that_the_document_lists_has_its_limit_tested() {
    let api = Api::new();
    let http = axum::http::Request::get("/openapi.json").body(axum::body::Body::empty()).expect("a request");
    let document = api.json_of(http).await;
    let message = &document["components"]["schemas"]["Message"];
    let mut listed: BTreeSet<&str> =
        message["properties"].as_object().expect("parameters").keys().map(String::as_str).collect();
    listed.extend(
        message["x-patterns"].as_array().expect("patterns").iter().filter_map(|pattern| pattern["name"].as_str()),
    );
    let tested: BTreeSet<&str> = cases().iter().map(|(name, ..)| *name).collect();
    assert_eq!(listed, tested);
}

#[tokio::test]
async fn targets_and_packages_have_their_limits() {
    let api = Api::new();
    let topics = |count: usize| (0..count).map(|n| n.to_string()).collect::<Vec<_>>().join(";$;");
    for (path, good, bad, code) in [
        (
            SEND,
            format!("registration_id={}", list(1000)),
            format!("registration_id={}", list(1001)),
            Code::TooManyTargets,
        ),
        ("/v3/message/alias", format!("alias={}", list(1000)), format!("alias={}", list(1001)), Code::TooManyTargets),
        (
            "/v2/message/user_account",
            format!("user_account={}", list(1000)),
            format!("user_account={}", list(1001)),
            Code::TooManyTargets,
        ),
        ("/v3/message/topic", format!("topic={}", x(128)), format!("topic={}", x(129)), Code::BadTopic),
        (
            "/v3/message/multi_topic",
            format!("topic_op=UNION&topics={}", topics(5)),
            format!("topic_op=UNION&topics={}", topics(6)),
            Code::BadTopic,
        ),
        (
            "/v3/message/all",
            format!("restricted_package_name={}", list(20)),
            format!("restricted_package_name={}", list(21)),
            Code::BadValue,
        ),
        ("/v2/message/all", "restricted_package_name=a,".into(), "restricted_package_name=a,b".into(), Code::BadValue),
        (
            "/v2/topic/subscribe",
            "topic=t&registration_id=r".into(),
            format!("topic=t&registration_id={}", list(1001)),
            Code::TooManyTargets,
        ),
        (
            "/v1/validation/regids",
            format!("registration_id={}", list(1000)),
            format!("registration_id={}", list(1001)),
            Code::TooManyTargets,
        ),
        ("/v1/alias/all", format!("registration_id={}", x(64)), format!("registration_id={}", x(65)), Code::BadValue),
        (
            "/v1/useraccount/get_regids_by_useraccount",
            format!("user_account={}", x(128)),
            format!("user_account={}", x(129)),
            Code::BadValue,
        ),
        ("/v1/trace/message/status", format!("msg_id={}", x(64)), format!("msg_id={}", x(65)), Code::BadValue),
        ("/v1/trace/message/status", format!("job_key={}", x(20)), format!("job_key={}", x(21)), Code::BadValue),
        ("/v2/schedule_job/exist", format!("job_id={}", x(64)), format!("job_id={}", x(65)), Code::BadValue),
        ("/v3/schedule_job/delete", format!("jobkey={}", x(20)), format!("jobkey={}", x(21)), Code::BadValue),
        ("/v2/message/delete", format!("id={}", x(64)), format!("id={}", x(65)), Code::BadValue),
        (
            "/v1/message/switch/stop_by_jobkey",
            format!("job_keys={}", list(1000)),
            format!("job_keys={}", list(1001)),
            Code::TooManyTargets,
        ),
    ] {
        let answer = api.post(path, &format!("payload=p&{good}")).await;
        assert_eq!(answer.code(), 0, "{path} {good}: {answer:?}");
        api.asked();
        let answer = api.post(path, &format!("payload=p&{bad}")).await;
        assert_eq!(answer.code(), i64::from(code.number()), "{path}: {answer:?}");
        assert!(api.asked().is_empty());
    }
}

#[tokio::test]
async fn what_the_server_acts_on_reaches_the_middle_and_not_the_device() {
    let api = Api::new();
    let form = "registration_id=r&payload=p&extra.flow_control=50&extra.only_send_once=1&extra.callback=https://a/b&\
                extra.callback.param=p1&extra.callback.type=1025&extra.locale=zh_CN,en&extra.model_not_in=m1&extra.own=1&\
                extra.connpt=wifi&extra.channel_id=c&spread_ms=60000";
    api.post(SEND, form).await.accepted();
    let send = api.one_send();
    let device = [("own", "1"), ("connpt", "wifi"), ("channel_id", "c")];
    assert_eq!(send.notification.extra, Some(device.map(|(name, value)| (name.to_owned(), value.to_owned())).into()));
    assert_eq!((send.flow_control, send.only_once, send.spread_ms), (Some(50), Some(true), Some(60_000)));
    let callback = Callback { url: Some("https://a/b".into()), param: Some("p1".into()), types: 1025 };
    assert_eq!(send.callback, Some(callback));
    let one_of = |attribute: &str, values: &[&str]| {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        Audience::Attribute(Comparison::new(attribute, Test::In(values)).expect("a comparison"))
    };
    let filter = one_of("locale", &["zh_CN", "en"]).and(one_of("model", &["m1"]).not());
    assert_eq!(send.filter, Some(filter.to_wire()));
}

#[tokio::test]
async fn receipts_are_wanted_as_soon_as_one_of_their_extras_is_there() {
    let api = Api::new();
    for (form, expected) in [
        ("extra.callback=http://a", Some((Some("http://a"), None, 3))),
        ("extra.callback=http://a&extra.callback.type=16", Some((Some("http://a"), None, 16))),
        ("extra.callback.type=1", Some((None, None, 1))),
        ("extra.callback.param=p", Some((None, Some("p"), 3))),
        ("extra.callback=&extra.callback.type=&extra.notify_effect=&extra.intent_uri=", None),
    ] {
        api.post(SEND, &format!("registration_id=r&payload=p&{form}")).await.accepted();
        let expected = expected.map(|(url, param, types): (Option<&str>, Option<&str>, i32)| Callback {
            url: url.map(str::to_owned),
            param: param.map(str::to_owned),
            types,
        });
        assert_eq!(api.one_send().callback, expected, "{form}");
    }
}

#[tokio::test]
async fn times_repetitions_and_templates_reach_the_middle() {
    let api = Api::new();
    let later = i64::try_from(NOW_MS).expect("a time") + 1;
    api.post(SEND, &format!("registration_id=r&payload=p&time_to_send={later}")).await.accepted();
    assert_eq!(api.one_send().send_at_ms, Some(later));
    api.post(SEND, "registration_id=r&payload=p&local_time=2026-12-01T09:00").await.accepted();
    assert_eq!(api.one_send().local_time.as_deref(), Some("2026-12-01T09:00"));
    let form = "registration_id=r&payload=p&repeat=0+9+*+*+1-5&time_zone=Asia/Shanghai&repeat_until=2026-12-01T09:00";
    api.post(SEND, form).await.accepted();
    let repeat = wire::Repeat {
        cron: "0 9 * * 1-5".into(),
        time_zone: "Asia/Shanghai".into(),
        until_ms: Some(1_796_086_800_000),
    };
    assert_eq!(api.one_send().repeat, Some(repeat));
    api.post(SEND, "registration_id=r&template=goal&var.player=Alice&var.minute=88").await.accepted();
    let send = api.one_send();
    assert_eq!(send.template_name.as_deref(), Some("goal"));
    let variables = [("player", "Alice"), ("minute", "88")].map(|(name, text)| (name.to_owned(), text.to_owned()));
    assert_eq!(send.variables, Some(variables.into()));
    assert_eq!(send.notification.payload, None, "the template says it");
}

#[tokio::test]
async fn a_dry_run_is_answered_with_the_audience_and_without_an_id() {
    let api = Api::new();
    let answer = api.post("/v3/message/topic", "topic=t&payload=p&dry_run=1").await;
    let count = json!({"registrations": 3, "online": 1, "method": "exact"});
    assert_eq!(answer.accepted(), &json!({"audience": count}));
    assert_eq!(api.one_send().dry_run, Some(true));
}

#[tokio::test]
async fn json_has_objects_for_extras_and_variables() {
    let api = Api::new();
    let later = i64::try_from(NOW_MS).expect("a time") + 1;
    let form = format!(
        "registration_id=r1,r2&title=t&pass_through=1&notify_type=3&time_to_send={later}&dry_run=1&template=g&var.a=1&var.b=x&\
         extra.k=v&extra.flow_control=7&extra.locale=en,de&spread_ms=5&restricted_package_name=p,q"
    );
    api.post(SEND, &form).await.accepted();
    let expected = api.one_send();
    for body in [
        json!({
            "registration_id": ["r1", "r2"], "title": "t", "pass_through": true, "notify_type": 3, "time_to_send": later,
            "dry_run": 1, "template": "g", "var": {"a": 1, "b": "x"}, "spread_ms": 5, "restricted_package_name": ["p", "q"],
            "extra": {"k": "v", "flow_control": 7, "locale": ["en", "de"]},
        }),
        json!({
            "registration_id": "r1,r2", "title": "t", "pass_through": "1", "notify_type": "3", "time_to_send": later.to_string(),
            "dry_run": true, "template": "g", "var.a": "1", "var": {"b": "x"}, "spread_ms": "5", "restricted_package_name": "p,q",
            "extra.k": "v", "extra.flow_control": "7", "extra": {"locale": "en,de"},
        }),
    ] {
        api.json("POST", SEND, &body).await.accepted();
        assert_eq!(api.one_send(), expected);
    }
}
