//! Each code that an app server or a device can be answered with over HTTP, and what provokes it.

use std::io::Write as _;
use std::net::TcpStream;

use idl::clock::{Clock as _, SystemClock};
use idl::error::Code;
use idl::ids::RegId;
use schema::sorted::{Mutation, Put, Table};
use serde_json::json;

use crate::harness::http::{Answer, FORM, Http, PLAIN};
use crate::harness::server::Server;
use crate::harness::wait_for;
use crate::place::{NAME, Place};

/// What provokes a code.
#[derive(Clone, Copy)]
enum By {
    /// Requests to a server as it is.
    Plain(fn(&Place) -> Vec<Answer>),
    /// A server of its own.
    Own(fn() -> Vec<Answer>),
}

/// Each code that can occur over HTTP.
static PROVOKED: &[(Code, By)] = &[
    (Code::System, By::Own(damaged_row)),
    (Code::Busy, By::Own(too_much_at_once)),
    (Code::BadRequest, By::Plain(unreadable_body)),
    (Code::Illegal, By::Plain(unknown_path)),
    (Code::Missing, By::Plain(|place| vec![place.send(&[]), place.send_to_audience(&[])])),
    (Code::BadValue, By::Plain(|place| vec![place.send(BAD_VALUE), place.send_to_audience(BAD_VALUE)])),
    (Code::TooFrequent, By::Own(too_many_accounts)),
    (Code::SendFailed, By::Plain(no_target)),
    (Code::Unauthorized, By::Plain(wrong_secret)),
    (Code::PackageMismatch, By::Plain(|place| vec![place.send(OTHER_PACKAGE), place.send_to_audience(OTHER_PACKAGE)])),
    (Code::PayloadTooLong, By::Plain(|place| too_long(place, "payload", 4097))),
    (Code::TitleTooLong, By::Plain(|place| too_long(place, "title", 50))),
    (Code::DescriptionTooLong, By::Plain(|place| too_long(place, "description", 128))),
    (Code::TooManyTargets, By::Plain(too_many_targets)),
    (Code::BadTopic, By::Plain(|place| vec![place.http.post("/v3/message/topic", &long_topic(&"x".repeat(129)))])),
    (Code::BadExtra, By::Plain(|place| too_long(place, "extra.own", 1025))),
    (Code::BadTimeToLive, By::Plain(|place| vec![place.send(NO_TIME), place.send_to_audience(NO_TIME)])),
    (Code::UnknownRegistration, By::Plain(unknown_registration)),
    (Code::BadProof, By::Plain(wrong_token)),
    (Code::LimitReached, By::Own(full_mailbox)),
    (Code::TimedOut, By::Own(no_time)),
    (Code::StoreUnavailable, By::Own(full_disk)),
    (Code::KeyReused, By::Plain(reused_key)),
    (Code::NotFound, By::Plain(unknown_names)),
    (Code::WrongState, By::Plain(schedule_that_is_done)),
    (Code::MissingVariables, By::Plain(missing_variables)),
    (Code::BadExpression, By::Plain(bad_expression)),
    (Code::DailyQuota, By::Own(over_the_day)),
    (Code::RateLimited, By::Own(over_the_second)),
];

/// The codes that [`PROVOKED`] has.
pub(crate) fn codes() -> impl Iterator<Item = Code> {
    PROVOKED.iter().map(|(code, _)| *code)
}

const TEXT: (&str, &str) = ("payload", "refused");
const BAD_VALUE: &[(&str, &str)] = &[TEXT, ("pass_through", "2")];
const OTHER_PACKAGE: &[(&str, &str)] = &[TEXT, ("restricted_package_name", "com.example.other")];
const NO_TIME: &[(&str, &str)] = &[TEXT, ("time_to_live", "0")];

#[test]
fn each_code_that_can_occur_is_provoked_and_comes_in_its_envelope() {
    let place = Place::with(&[]);
    for (code, by) in PROVOKED {
        let answers = match by {
            By::Plain(provoke) => provoke(&place),
            By::Own(provoke) => provoke(),
        };
        assert!(!answers.is_empty(), "{code:?}");
        for answer in answers {
            refuses(&answer, *code);
        }
    }
    // Whatever was refused has reached nobody.
    let id = place.send(&[("payload", "the last")]).id();
    assert_eq!(place.device.wait_for_push("the last")["id"], id);
    let accepted = ["/v3/message/alias", "/campanile/v1/messages", "scheduled", "the last"];
    assert_eq!(place.device.payloads(), accepted);
}

/// The answer must be a refusal with this code, as its path's manner has it.
fn refuses(answer: &Answer, code: Code) {
    assert_eq!(answer.code(), i64::from(code.number()), "{code:?}: {answer:?}");
    let (body, by_table) = (&answer.body, code.http_status());
    // Mi Push's paths: errors are HTTP 200, 5xx means that a later try may help.
    let of_mi_push = answer.path.starts_with("/v");
    let status = if of_mi_push && code != Code::KeyReused && by_table < 500 { 200 } else { by_table };
    assert_eq!(answer.status, status, "{code:?}: {answer:?}");
    assert_eq!((&body["result"], &body["reason"]), (&"error".into(), &code.reason().into()), "{answer:?}");
    assert!(
        answer.description().len() > 20 && (answer.description() != code.reason() || code == Code::Unauthorized),
        "{code:?}: {answer:?}"
    );
    assert!(body["data"].is_object() && body["trace_id"].as_str().is_some_and(|id| !id.is_empty()), "{answer:?}");
    let retry_after = answer.header("retry-after").parse::<u64>().ok();
    assert_eq!(retry_after.is_some_and(|seconds| seconds > 0), code.retryable(), "{code:?}: {answer:?}");
    assert!(answer.header("content-type").starts_with("application/json"), "{answer:?}");
}

#[test]
fn a_success_is_code_0_in_the_same_envelope() {
    let place = Place::with(&[]);
    for answer in [place.send(&[("payload", "one")]), place.send_to_audience(&[("payload", "two")])] {
        let (body, data) = (&answer.body, answer.data());
        assert_eq!((&body["result"], &body["reason"]), (&"ok".into(), &"".into()), "{answer:?}");
        assert!(data.is_object() && body["trace_id"].as_str().is_some_and(|id| !id.is_empty()), "{answer:?}");
    }
    let named = place.http.post("/v3/message/alias", &[("alias", "honest,nobody"), ("payload", "three")]);
    assert_eq!(named.data()["bad_aliases"], "nobody");
}

// ------------------------------------------------------------------------------------------------- of one's own making

fn unreadable_body(place: &Place) -> Vec<Answer> {
    let json = |path: &str, body: &[u8]| place.http.call("POST", path, &[("content-type", "application/json")], body);
    vec![json("/v3/message/alias", b"{"), json("/campanile/v1/messages", b"[]")]
}

fn unknown_path(place: &Place) -> Vec<Answer> {
    ["/v2/message/nobody", "/campanile/v1/nothing", "/nowhere"].map(|path| place.http.post(path, &[TEXT])).into()
}

fn no_target(place: &Place) -> Vec<Answer> {
    let form = |name| vec![(name, "nobody"), TEXT];
    let paths = [("regid", "registration_id"), ("alias", "alias"), ("user_account", "user_account")];
    paths.map(|(path, name)| place.http.post(&format!("/v2/message/{path}"), &form(name))).into()
}

fn wrong_secret(place: &Place) -> Vec<Answer> {
    let asked = |path: &str, authorization: &str| {
        place.http.call(
            "POST",
            path,
            &[("authorization", authorization), ("content-type", FORM)],
            b"audience=all&payload=refused",
        )
    };
    let paths = ["/v3/message/all", "/campanile/v1/messages"];
    let wrong = format!("key={}", "x".repeat(43));
    paths.iter().flat_map(|path| ["", &*wrong, "Bearer x"].map(|authorization| asked(path, authorization))).collect()
}

fn too_long(place: &Place, parameter: &str, length: usize) -> Vec<Answer> {
    let text = "x".repeat(length);
    let form = if parameter == TEXT.0 { vec![(parameter, &*text)] } else { vec![TEXT, (parameter, &text)] };
    vec![place.send(&form), place.send_to_audience(&form)]
}

fn long_topic(topic: &str) -> [(&str, &str); 2] {
    [TEXT, ("topic", topic)]
}

fn too_many_targets(place: &Place) -> Vec<Answer> {
    let many = (0..1001).map(|number| number.to_string()).collect::<Vec<_>>().join(",");
    let messages = json!({"messages": vec![json!({"target": NAME, "message": {"payload": "refused"}}); 1001]});
    vec![
        place.http.post("/v3/message/regid", &[TEXT, ("registration_id", &many)]),
        place.http.post("/v2/topic/subscribe/alias", &[("topic", NAME), ("aliases", &many)]),
        place.http.json("POST", "/v2/multi_messages/aliases", &messages),
        place.http.post("/v1/message/switch/stop_by_id", &[("msg_ids", &many)]),
    ]
}

/// An id in the form of a registration's that is nobody's.
fn nobodys() -> String {
    RegId([7; 24]).to_string()
}

fn unknown_registration(place: &Place) -> Vec<Answer> {
    let regid = nobodys();
    vec![
        place.http.get(&format!("/campanile/v1/registrations/{regid}"), &[]),
        place.http.get("/v1/topic/all", &[("registration_id", &regid)]),
    ]
}

fn wrong_token(place: &Place) -> Vec<Answer> {
    let made = place.http.post("/device/v1/account", &[("device", "mine")]);
    let account = made.data()["jid"].as_str().expect("an address").to_owned();
    vec![place.http.post("/device/v1/token", &[("account", &account), ("token", "nonsense")])]
}

fn reused_key(place: &Place) -> Vec<Answer> {
    let send = |path: &str, payload: &str| {
        let body = format!("alias={NAME}&audience=all&payload={payload}");
        place.http.call("POST", path, &[("idempotency-key", path), ("content-type", FORM)], body.as_bytes())
    };
    let paths = ["/v3/message/alias", "/campanile/v1/messages"];
    paths
        .map(|path| {
            let first = send(path, path).id();
            let again = send(path, path);
            assert_eq!((&again.id(), again.header("idempotent-replayed")), (&first, "true"), "{again:?}");
            place.device.wait_for_push(path);
            send(path, "another")
        })
        .into()
}

fn unknown_names(place: &Place) -> Vec<Answer> {
    let id = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    let own = ["messages", "schedules", "segments", "templates"].map(|kind| format!("/campanile/v1/{kind}/{id}"));
    let mut answers: Vec<_> = own.iter().map(|path| place.http.get(path, &[])).collect();
    answers.extend(own.iter().map(|path| place.http.call("DELETE", path, &[], b"")));
    answers.extend([
        place.http.get("/v1/trace/message/status", &[("msg_id", id)]),
        place.http.get("/v1/trace/message/status", &[("job_key", "nobodys")]),
        place.http.post("/v2/schedule_job/exist", &[("job_id", id)]),
        place.http.post("/v2/schedule_job/delete", &[("job_id", id)]),
        place.http.post("/v3/schedule_job/delete", &[("jobkey", "nobodys")]),
        place.http.post("/v2/message/revoke", &[("msg_id", id)]),
        place.http.post("/v1/message/switch/stop_by_id", &[("msg_ids", id)]),
        place.send(&[("template", "nobodys")]),
        place.http.post("/campanile/v1/messages", &[("segment", "nobodys"), TEXT]),
    ]);
    answers
}

fn schedule_that_is_done(place: &Place) -> Vec<Answer> {
    let due = (SystemClock.now_ms() + 200).to_string();
    let id = place.send(&[("payload", "scheduled"), ("time_to_send", &due)]).id();
    let path = format!("/campanile/v1/schedules/{id}");
    wait_for("the schedule is done", || (place.http.get(&path, &[]).data()["state"] == "done").then_some(()));
    place.device.wait_for_push("scheduled");
    let later = (SystemClock.now_ms() + 60_000).to_string();
    vec![
        place.http.call("DELETE", &path, &[], b""),
        place.http.json("PATCH", &path, &json!({"time_to_send": later})),
        place.http.post("/v2/schedule_job/delete", &[("job_id", &id)]),
    ]
}

fn missing_variables(place: &Place) -> Vec<Answer> {
    let template = json!({"title": "{{team}}", "payload": "{{player}} scored for {{team}}"});
    place.http.json("PUT", "/campanile/v1/templates/goal", &template).data();
    let form = [("template", "goal"), ("var.player", "Ada")];
    let answers = vec![place.send(&form), place.send_to_audience(&form)];
    assert!(answers.iter().all(|answer| answer.description().contains("team")), "{answers:?}");
    answers
}

fn bad_expression(place: &Place) -> Vec<Answer> {
    let audience = "topic(\"honest\") and";
    let send = place.http.post("/campanile/v1/messages", &[TEXT, ("audience", audience)]);
    assert!(send.description().contains("column"), "{send:?}");
    vec![send, place.http.json("PUT", "/campanile/v1/segments/wrong", &json!({"expression": audience}))]
}

// ------------------------------------------------------------------------------------------------------ of the server's

/// A store that can't be read.
fn damaged_row() -> Vec<Answer> {
    let mut place = Place::with(&[]);
    place.send(&[("payload", "before")]).data();
    place.device.wait_for_push("before");
    assert!(place.server.stop().success());
    let regid: RegId = place.regid.parse().expect("a registration id");
    {
        let base = Put {
            table: Table::Registrations,
            row: regid.0.to_vec(),
            cell: b"b".to_vec(),
            value: vec![0xff],
            expires_at_ms: None,
        };
        let written = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let write = async { place.server.sorted().await.write(vec![Mutation::Put(base)]).await };
        written.block_on(write).expect("it writes");
    }
    place.server.restart();
    let send = place.http.post("/v3/message/regid", &[TEXT, ("registration_id", &place.regid)]);
    vec![send, place.http.get(&format!("/campanile/v1/registrations/{}", place.regid), &[])]
}

fn too_much_at_once() -> Vec<Answer> {
    // Room for short bodies alone.
    let place = Place::with(&[("limits.http_bodies_bytes_max", "500")]);
    place.send(&[("payload", "short")]).data();
    let long = [("payload", &*"x".repeat(1000))];
    let mut answers = vec![place.send(&long), place.send_to_audience(&long)];
    drop(place);
    // One request at a time, of which one does not get on.
    let place = Place::with(&[("limits.http_requests_max", "1")]);
    let mut half = TcpStream::connect(place.server.address(PLAIN.0)).expect("it listens");
    half.write_all(b"POST /v3/message/all HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\nhalf")
        .expect("it reads");
    wait_for("it is under way", || (place.server.metric("campanile_http_requests_in_flight") > 0.0).then_some(()));
    answers.push(place.send(&[TEXT]));
    drop(half);
    answers
}

fn too_many_accounts() -> Vec<Answer> {
    let server = Server::start_with(&[PLAIN, ("limits.http_accounts_per_address_per_minute", "1")]);
    let http = Http::of(&server);
    http.post("/device/v1/account", &[("device", "first")]).data();
    vec![http.post("/device/v1/account", &[("device", "second")])]
}

fn full_mailbox() -> Vec<Answer> {
    let place = Place::with(&[("limits.middle_mailbox_max", "1"), ("limits.middle_segments_max", "1")]);
    let Place { server, http, device, regid } = place;
    device.stop();
    let send = || http.post("/v3/message/regid", &[("registration_id", &regid), ("payload", "waits")]);
    send().data();
    let refused = send();
    assert!(refused.description().contains("mailbox"), "{refused:?}");
    let segment =
        |name: &str| http.json("PUT", &format!("/campanile/v1/segments/{name}"), &json!({"expression": "all"}));
    segment("first").data();
    let second = segment("second");
    drop(server);
    vec![refused, second]
}

/// Requests that take longer than they may: as many at one time as it takes.
fn no_time() -> Vec<Answer> {
    let place = Place::with(&[("limits.http_request_ms_max", "150")]);
    let message = json!({"target": NAME, "message": {"payload": "x".repeat(500), "time_to_live": 1000}});
    let messages = json!({"messages": vec![message; 1000]});
    let send = || place.http.json("POST", "/v2/multi_messages/aliases", &messages);
    let timed_out = wait_for("a request's time runs out", || {
        let answers: Vec<Answer> = std::thread::scope(|scope| {
            let sends = [(); 8].map(|()| scope.spawn(send));
            sends.into_iter().map(|send| send.join().expect("it is answered")).collect()
        });
        // Where its body has not arrived by then, it is another failure.
        answers.into_iter().find(|answer| answer.code() == i64::from(Code::TimedOut.number()))
    });
    vec![timed_out]
}

fn full_disk() -> Vec<Answer> {
    let settings = [PLAIN, ("limits.store_free_bytes_min", "0")];
    let place = Place::on(Server::start_on_a_disk_that_fills(&settings));
    place.send(&[("payload", "before")]).data();
    place.device.wait_for_push("before");
    place.server.limit_files_to(Some(1));
    let segment = place.http.json("PUT", "/campanile/v1/segments/none", &json!({"expression": "all"}));
    vec![place.send(&[TEXT]), place.send_to_audience(&[TEXT]), segment]
}

/// An application that may send so much, and a send of its server's.
fn limited(arguments: &[&str]) -> impl Fn(&str) -> Answer {
    let server = Server::start_with(&[PLAIN]);
    let made = server.json(&["app", "create", "com.example.limited"]);
    let http = Http::of(&server).with_secret(made[0]["secret"].as_str().expect("a secret"));
    server.json(&[&["app", "limits", "com.example.limited"], arguments].concat());
    move |path| {
        let _alive = &server;
        http.post(path, &[("audience", "all"), ("payload", "limited")])
    }
}

fn over_the_day() -> Vec<Answer> {
    let send = limited(&["--per-day", "2"]);
    send("/v3/message/all").data();
    let last = send("/campanile/v1/messages");
    last.data();
    assert_eq!(last.header("ratelimit-policy"), "\"day\";q=2;w=86400", "{last:?}");
    assert!(last.header("ratelimit").starts_with("\"day\";r=0;t="), "{last:?}");
    vec![send("/v3/message/all"), send("/campanile/v1/messages")]
}

fn over_the_second() -> Vec<Answer> {
    let send = limited(&["--per-second", "1"]);
    ["/v3/message/all", "/campanile/v1/messages"]
        .map(|path| {
            // Two in one second, as soon as they are.
            wait_for("too many in a second", || {
                let answer = send(path);
                assert_eq!(answer.header("ratelimit-policy"), "\"second\";q=1;w=1", "{answer:?}");
                (answer.code() != 0).then_some(answer)
            })
        })
        .into()
}
