//! The send paths: targets, parameters, lanes and replies.

use axum::body::Body;
use axum::http::Request as HttpRequest;
use idl::audience::Audience;
use idl::bus::{Lane, Request};
use idl::contract::bus as wire;
use idl::contract::message::{self as wire_message, Notification};
use idl::error::{Code, Failure};
use idl::ids::{RegId, Shard};
use serde_json::json;

use crate::middle::{Api, NOW_MS, answered, refused, request, secret_sha256};
use campanile_http_frontend::Limits;

/// Every target parameter at once, as SDKs leave old ones in.
const ALL_TARGETS: &str = "registration_id=r1&alias=a1&user_account=u1&topic=t1&topics=t2;$;t3&topic_op=EXCEPT";

fn values(kind: i32, value: &str) -> wire::Target {
    wire::Target { kind, values: Some(vec![value.to_owned()]), audience: None, segment: None }
}

fn audience(audience: &Audience) -> wire::Target {
    wire::Target { kind: 4, values: None, audience: Some(audience.to_wire()), segment: None }
}

fn topic(name: &str) -> Audience {
    Audience::Topic(name.parse().expect("a topic"))
}

#[tokio::test]
async fn the_path_alone_chooses_the_target() {
    let api = Api::new();
    for (paths, target, lane) in [
        (&["/v2/message/regid", "/v3/message/regid", "/v4/message/regid"][..], values(1, "r1"), Lane::High),
        (&["/v2/message/alias", "/v3/message/alias"], values(2, "a1"), Lane::High),
        (&["/v2/message/user_account"], values(3, "u1"), Lane::High),
        (&["/v2/message/topic", "/v3/message/topic"], audience(&topic("t1")), Lane::Low),
        (
            &["/v2/message/multi_topic", "/v3/message/multi_topic"],
            audience(&topic("t2").and(topic("t3").not())),
            Lane::Low,
        ),
        (&["/v2/message/all", "/v3/message/all"], audience(&Audience::Everyone), Lane::Low),
    ] {
        for path in paths {
            let answer = api.post(path, &format!("payload=p&{ALL_TARGETS}")).await;
            assert_eq!((answer.status.as_u16(), answer.code()), (200, 0), "{path}: {answer:?}");
            let asked = api.asked();
            assert_eq!(asked.len(), 1, "{path}");
            assert_eq!(asked[0].lane, lane, "{path}");
            let Request::App(call) = &asked[0].request else { panic!("{path}: {asked:?}") };
            let wire::AppRequest::Send(send) = &call.request else { panic!("{path}: {asked:?}") };
            assert_eq!(send.target, target, "{path}");
            assert_eq!(call.secret_sha256, secret_sha256());
        }
    }
}

#[tokio::test]
async fn without_its_own_target_a_path_names_the_parameter_that_is_missing() {
    let api = Api::new();
    for (path, parameter) in [
        ("/v3/message/regid", "registration_id"),
        ("/v3/message/alias", "alias"),
        ("/v2/message/user_account", "user_account"),
        ("/v3/message/topic", "topic"),
        ("/v3/message/multi_topic", "topics"),
    ] {
        let others: Vec<_> = ALL_TARGETS.split('&').filter(|pair| pair.split('=').next() != Some(parameter)).collect();
        let form = format!("payload=p&{parameter}=&{}", others.join("&"));
        api.post(path, &form).await.refused(Code::Missing, 200, &format!("the parameter {parameter} is missing"));
    }
    assert!(api.asked().is_empty());
}

#[tokio::test]
async fn every_parameter_reaches_the_middle() {
    let api = Api::new();
    let form = "alias=a1&payload=%7B%22k%22%3A%22%E4%BD%A0%22%7D&title=T&description=D+d&pass_through=1&notify_type=-1\
                &notify_id=4294967297&time_to_live=60000&time_to_send=1&restricted_package_name=com.example.demo,\
                &extra.sound_uri=s&extra.own=1&extra.jobkey=job_1-A&extra.callback=http%3A%2F%2Fc&collapse_key=c&unknown=x";
    assert_eq!(api.post("/v2/message/alias", form).await.code(), 0);
    let send = api.one_send();
    assert_eq!(send.ttl_ms, 60_000);
    assert_eq!(send.packages, Some(vec!["com.example.demo".to_owned()]));
    let made = send.notification;
    assert_eq!(made.payload.as_deref(), Some(r#"{"k":"你"}"#));
    assert_eq!(made.title.as_deref(), Some("T"));
    assert_eq!(made.description.as_deref(), Some("D d"));
    assert_eq!(made.pass_through, Some(true));
    assert_eq!(made.notify_type, Some(-1));
    assert_eq!(made.notify_id, Some(4_294_967_297));
    assert_eq!(made.alias_name.as_deref(), Some("a1"));
    assert_eq!(made.job_key.as_deref(), Some("job_1-A"));
    let extra = [("sound_uri", "s"), ("own", "1"), ("jobkey", "job_1-A")];
    assert_eq!(send.collapse_key.as_deref(), Some("c"));
    let callback = wire_message::Callback { url: Some("http://c".into()), param: None, types: 3 };
    assert_eq!(send.callback, Some(callback));
    assert_eq!(send.send_at_ms, None, "its time has come");
    assert_eq!(made.extra, Some(extra.map(|(name, value)| (name.to_owned(), value.to_owned())).into()));
}

#[tokio::test]
async fn what_is_not_said_is_left_to_its_default() {
    let api = Api::new();
    assert_eq!(api.post("/v3/message/topic", "topic=t1&payload=p&title=&pass_through=0").await.code(), 0);
    let send = api.one_send();
    assert_eq!(send.ttl_ms, 14 * 24 * 3600 * 1000);
    assert_eq!(send.packages, None);
    let topic = Some("t1".to_owned());
    let expected = Notification::new("p".to_owned(), None, None, None, None, None, None, topic, None, None, None, None);
    assert_eq!(send.notification, expected);
}

#[tokio::test]
async fn a_batch_is_one_call_in_the_normal_lane_without_repeats() {
    let api = Api::new();
    let form = "payload=p&registration_id=r1,r2,&registration_id=r2&registration_id=r3";
    assert_eq!(api.post("/v2/message/regid", form).await.code(), 0);
    let asked = api.asked();
    assert_eq!(asked[0].lane, Lane::Normal);
    let Request::App(call) = &asked[0].request else { panic!("{asked:?}") };
    let wire::AppRequest::Send(send) = &call.request else { panic!("{asked:?}") };
    assert_eq!(send.target.values.as_deref(), Some(["r1", "r2", "r3"].map(str::to_owned).as_slice()));
    assert_eq!(send.notification.alias_name, None);
}

#[tokio::test]
async fn a_single_regid_goes_to_the_shard_of_its_account_and_the_rest_to_that_of_the_app() {
    let api = Api::new();
    let regid = RegId([9; 24]);
    api.post("/v2/message/regid", &format!("payload=p&registration_id={regid}")).await;
    assert_eq!(api.asked()[0].shard, Shard::of_registration(regid));
    let digest = ring::digest::digest(&ring::digest::SHA256, b"s3cret");
    let app = Shard(u16::from_be_bytes([digest.as_ref()[0], digest.as_ref()[1]]));
    for (path, form) in [
        ("/v2/message/regid", format!("payload=p&registration_id={regid},x")),
        ("/v2/message/regid", "payload=p&registration_id=not-one".into()),
        ("/v2/message/alias", "payload=p&alias=a".into()),
        ("/v2/message/all", "payload=p".into()),
    ] {
        api.post(path, &form).await;
        assert_eq!(api.asked()[0].shard, app, "{path} {form}");
    }
}

#[tokio::test]
async fn a_success_names_the_message_and_the_bad_targets() {
    let bad = |bad: &'static [&'static str]| {
        Api::with(Limits::default(), move |_| {
            let bad = bad.iter().map(|target| (*target).to_owned()).collect();
            let id = Some("01M".into());
            let accepted = wire::Accepted { id, bad_targets: Some(bad), audience: None, due_ms: None };
            Some(Ok(answered(wire::AppAnswer::Accepted(accepted))))
        })
    };
    let form = "payload=p&registration_id=r1,r2&alias=a1,a2&user_account=u1,u2&topic=t";
    for (path, member) in [
        ("/v2/message/regid", "bad_regids"),
        ("/v2/message/alias", "bad_aliases"),
        ("/v2/message/user_account", "bad_user_accounts"),
    ] {
        assert_eq!(bad(&["x", "y"]).post(path, form).await.data(), &json!({"id": "01M", member: "x,y"}));
        assert_eq!(bad(&[]).post(path, form).await.data(), &json!({"id": "01M", member: ""}));
    }
    assert_eq!(bad(&[]).post("/v2/message/topic", form).await.data(), &json!({"id": "01M"}));
}

#[tokio::test]
async fn a_value_that_cannot_be_is_refused_before_the_middle_is_asked() {
    let api = Api::new();
    let x = |count| "x".repeat(count);
    for (parameters, code, words) in [
        (format!("payload={}", x(4097)), Code::PayloadTooLong, "the parameter payload has 4097 bytes"),
        (format!("title={}", x(50)), Code::TitleTooLong, "the parameter title has 50 characters"),
        (format!("description={}", x(128)), Code::DescriptionTooLong, "the parameter description has 128 characters"),
        (format!("payload=p&extra.k={}", x(1024)), Code::BadExtra, "1025 characters"),
        ("payload=p&time_to_live=0".into(), Code::BadTimeToLive, r#"the parameter time_to_live is "0""#),
        ("payload=p&time_to_live=-5".into(), Code::BadTimeToLive, "from 1 to 1209600000 (two weeks)"),
        ("payload=p&time_to_live=1209600001".into(), Code::BadTimeToLive, "(two weeks)"),
        ("payload=p&time_to_live=soon".into(), Code::BadTimeToLive, r#""soon""#),
        ("payload=p&pass_through=yes".into(), Code::BadValue, r#"the parameter pass_through is "yes""#),
        ("payload=p&notify_type=9".into(), Code::BadValue, r#"the parameter notify_type is "9""#),
        ("payload=p&notify_id=one".into(), Code::BadValue, r#"the parameter notify_id is "one""#),
        ("payload=p&extra.jobkey=%21".into(), Code::BadValue, "the parameter extra.jobkey"),
        ("payload=p&title=a&title=b".into(), Code::BadValue, r#"given as "a" and as "b""#),
        ("payload=p&restricted_package_name=a,b".into(), Code::BadValue, "one package on this path"),
        ("pass_through=1".into(), Code::Missing, "the parameter payload is missing"),
        (format!("payload=p&time_to_send={}", NOW_MS + 604_800_001), Code::BadValue, "at most 7 days ahead"),
    ] {
        let answer = api.post("/v2/message/regid", &format!("registration_id=r1&{parameters}")).await;
        answer.refused(code, 200, words);
    }
    let many: Vec<_> = (0..1001).map(|n| n.to_string()).collect();
    let form = format!("payload=p&registration_id={}", many.join(","));
    api.post("/v2/message/regid", &form).await.refused(Code::TooManyTargets, 200, "a list of 1001");
    let long = format!("payload=p&topic={}", x(129));
    api.post("/v2/message/topic", &long).await.refused(Code::BadTopic, 200, "1 to 128 bytes");
    let six = "payload=p&topic_op=UNION&topics=1;$;2;$;3;$;4;$;5;$;6";
    api.post("/v2/message/multi_topic", six).await.refused(Code::BadTopic, 200, "holds 6 topics");
    let no_op = "payload=p&topics=1;$;2";
    api.post("/v2/message/multi_topic", no_op).await.refused(Code::Missing, 200, "UNION, INTERSECTION or EXCEPT");
    assert!(api.asked().is_empty());
}

#[tokio::test]
async fn every_failure_of_the_middle_keeps_its_code_and_only_retryable_ones_are_5xx() {
    for code in Code::ALL {
        let failure = || Failure::new(*code, "what was wrong");
        for api in [
            Api::with(Limits::default(), move |_| Some(Err(failure()))),
            Api::with(Limits::default(), move |_| Some(Ok(refused(&failure())))),
        ] {
            let answer = api.post("/v2/message/all", "payload=p").await;
            let status = match code.http_status() {
                status @ (503 | 504) => status,
                _ if *code == Code::KeyReused => 422,
                _ => 200,
            };
            answer.refused(*code, status, "what was wrong");
            assert_eq!(answer.headers.contains_key("retry-after"), code.retryable(), "{code:?}");
            let answer = api.post("/campanile/v1/messages", "payload=p&audience=all").await;
            answer.refused(*code, code.http_status(), "what was wrong");
        }
    }
}

#[tokio::test]
async fn a_json_body_says_the_same_as_a_form() {
    let api = Api::new();
    let body = json!({
        "alias": ["one, and the same", "b"],
        "payload": "p",
        "notify_id": 4_294_967_297_u64,
        "time_to_live": 1000,
        "extra": {"own": "1", "number": 2},
        "title": null,
    });
    api.json("POST", "/v3/message/alias", &body).await.accepted();
    let send = api.one_send();
    assert_eq!(send.target.values, Some(vec!["one, and the same".to_owned(), "b".to_owned()]));
    assert_eq!(send.ttl_ms, 1000);
    assert_eq!(send.notification.notify_id, Some(4_294_967_297));
    let extra = [("number", "2"), ("own", "1")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(send.notification.extra, Some(extra.into()));
}

#[tokio::test]
async fn parameters_may_come_in_the_query_of_a_post() {
    let api = Api::new();
    let uri = "/v2/message/regid?registration_id=r1&payload=from+query";
    let http = HttpRequest::post(uri).header("authorization", "key=s3cret").body(Body::empty()).expect("a request");
    assert_eq!(api.call(http).await.code(), 0);
    assert_eq!(api.one_send().notification.payload.as_deref(), Some("from query"));
    let both = request(uri).body(Body::from("payload=from+body")).expect("a request");
    assert_eq!(api.call(both).await.code(), 0);
    assert_eq!(api.one_send().notification.payload.as_deref(), Some("from body"));
}

#[tokio::test]
async fn what_published_clients_send_is_taken_as_they_send_it() {
    let api = Api::new();
    for (path, form, accepted) in [
        // xiaomipush: an iOS message has neither title nor package, and extras named by digits; a package list of commas alone.
        (
            "/v2/message/user_account",
            "description=d&extra.0=4&extra.payload=pay&extra.default=default&user_account=u&user_account=v",
            true,
        ),
        ("/v3/message/regid", "payload=p&restricted_package_name=,,&registration_id=a,b,", true),
        ("/v3/message/multi_topic", "payload=p&topics=x&topic_op=UNION", true),
        ("/v3/message/regid", "payload=p&refgistration_id=a", false),
        // push-xiaomi: empty extras, and a notify_id of 13 digits.
        (
            "/v3/message/regid",
            "extra.notify_effect=&extra.intent_uri=&extra.callback=&extra.callback.type=&payload=&registration_id=a&title=t&\
             description=d&notify_id=1700000000000&notify_type=-1&pass_through=0",
            true,
        ),
        // xiaomi-push and xmpush-python: targets of earlier sends, and what is for other makers' devices.
        (
            "/v2/message/topic",
            "title=t&registration_id=r&alias=a&topics=t1&topic=t2&aps_proper_fields.badge=1&category=&extra.flow_control=1",
            true,
        ),
    ] {
        let answer = api.post(path, form).await;
        if accepted {
            answer.accepted();
            assert_eq!(api.asked().len(), 1, "{form}");
        } else {
            answer.refused(Code::Missing, 200, "the parameter registration_id is missing");
        }
    }
}
