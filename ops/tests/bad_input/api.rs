//! Requests to the HTTPS API that must be refused, and what of them must be done nevertheless.

use serde_json::Value;

use crate::harness::terminal::TerminalDevice;
use crate::peer::account;
use crate::request::{FORM, PLAIN, authorization, post, post_as_demo, raw};
use crate::tower::Tower;

const SEND: &str = "/v3/message/alias";

/// Path, form, code, and what the description names.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], i64, &'a str);

#[test]
fn a_caller_without_the_secret_is_refused_and_sends_nothing() {
    let tower = Tower::start_with(&[PLAIN]);
    let secret = tower.server.demo().secret.expect("the demo's secret is kept");
    let wrong = "x".repeat(secret.len());
    let cases = [
        (vec![], "Authorization is missing"),
        (vec![format!("authorization: key={wrong}")], "secret"),
        (vec![format!("authorization: key={}", secret.to_lowercase().repeat(2))], "secret"),
        (vec![format!("authorization: {secret}")], "'key='"),
        (vec![format!("authorization: Bearer {secret}")], "'key='"),
        (vec!["authorization: key=".to_owned()], "is empty"),
        (vec![format!("authorization: key={}", "x".repeat(1000))], "1000 bytes"),
        (vec![authorization(&tower.server), format!("authorization: key={wrong}")], "more than once"),
    ];
    let body = "alias=honest&topic=honest&payload=forged";
    for path in [SEND, "/v3/message/all", "/v3/message/topic", "/v2/topic/subscribe/alias"] {
        for (headers, named) in &cases {
            let answer = post(&tower.server, path, headers, body.as_bytes());
            answer.refuses(200, 21301, named, &format!("{path} with {headers:?}"));
            assert_eq!(answer.body["reason"], "Invalid application secret.");
            assert!(!answer.body.to_string().contains(&wrong), "a secret is never repeated: {answer:?}");
        }
        tower.goes_on_after(path);
    }
}

#[test]
fn a_secret_reaches_the_registrations_of_its_own_application_alone() {
    let tower = Tower::start();
    let made = tower.server.json(&["app", "create", "com.example.stranger"]);
    let secret = made[0]["secret"].as_str().expect("a secret");
    let send =
        |path: &str, form: &[(&str, &str)]| tower.server.api().post(path, Some(secret), form).expect("the API answers");
    let refused = send("/v3/message/regid", &[("registration_id", &tower.regid), ("payload", "forged")]);
    assert_eq!(refused.code, 20301, "{refused:?}");
    assert_eq!(send(SEND, &[("alias", "honest"), ("payload", "forged")]).code, 20301);
    assert_eq!(send("/v3/message/topic", &[("topic", "honest"), ("payload", "forged")]).code, 0);
    assert_eq!(send("/v3/message/all", &[("payload", "forged")]).code, 0);
    tower.goes_on_after("the sends of another application");
}

#[test]
fn unknown_targets_among_good_ones_are_listed_and_the_rest_is_sent() {
    let tower = Tower::start();
    let unknown = "A".repeat(tower.regid.len());
    let list = format!("nonsense,{},{unknown},", tower.regid);
    let sent = tower.server.post("/v3/message/regid", &[("registration_id", &list), ("payload", "to regids")]);
    assert_eq!((sent.code, &sent.data["bad_regids"]), (0, &Value::from(format!("nonsense,{unknown}"))), "{sent:?}");
    tower.expect_push("to regids");
    let sent = tower.server.post(SEND, &[("alias", "nobody,honest"), ("payload", "to aliases")]);
    assert_eq!((sent.code, &sent.data["bad_aliases"]), (0, &Value::from("nobody")), "{sent:?}");
    tower.expect_push("to aliases");
    let changed = tower.server.post("/v2/topic/subscribe", &[("registration_id", &list), ("topic", "later")]);
    assert_eq!(changed.data["bad_regids"], format!("nonsense,{unknown}"), "{changed:?}");
    tower.server.send("/v3/message/topic", &[("topic", "later"), ("payload", "to the topic")]);
    tower.expect_push("to the topic");
    let refused = tower.server.post("/v3/message/regid", &[("registration_id", &unknown), ("payload", "to nobody")]);
    assert_eq!(refused.code, 20301, "{refused:?}");
    assert!(refused.description.contains("none of the 1 targets"), "{refused:?}");
    tower.goes_on_after("unknown targets");
}

#[test]
fn a_parameter_that_is_missing_or_over_its_limit_is_named() {
    let tower = Tower::start();
    let long = |length: usize| "x".repeat(length);
    let (topic, topics) = (long(129), ["a", "b", "c", "d", "e", "f"].join(";$;"));
    let (payload, title, description) = (long(4097), long(50), long(128));
    let (extra, regids) = (long(1025), (0..1001).map(|n| n.to_string()).collect::<Vec<_>>().join(","));
    let to = ("alias", "honest");
    let text = ("payload", "refused");
    let topic_send = "/v3/message/topic";
    let multi = "/v3/message/multi_topic";
    let cases: &[Case<'_>] = &[
        (SEND, &[to], 10016, "payload"),
        (SEND, &[text], 10016, "alias"),
        (SEND, &[text, ("alias", ",")], 10016, "alias"),
        (topic_send, &[text], 10016, "topic"),
        (topic_send, &[text, ("topic", &topic)], 65007, "the parameter topic holds a 129-byte name"),
        (topic_send, &[text, ("topic", "a\u{7}")], 65007, "topic"),
        ("/v2/topic/subscribe", &[("registration_id", &tower.regid), ("topic", &topic)], 65007, "129-byte"),
        ("/v2/topic/unsubscribe/alias", &[("aliases", "honest"), ("topic", &topic)], 65007, "129-byte"),
        ("/v2/topic/subscribe", &[("topic", "topic")], 10016, "registration_id"),
        (multi, &[text, ("topics", &topics), ("topic_op", "UNION")], 65007, "6 topics"),
        (multi, &[text, ("topics", &topic), ("topic_op", "UNION")], 65007, "topics"),
        (multi, &[text, ("topics", "a;$;b"), ("topic_op", "XOR")], 10017, "topic_op"),
        (multi, &[text, ("topics", "a;$;b")], 10016, "topic_op"),
        ("/v3/message/regid", &[text, ("registration_id", &regids)], 65006, "1001"),
        (SEND, &[to, text, ("time_to_live", "0")], 65009, "time_to_live"),
        (SEND, &[to, text, ("time_to_live", "-1")], 65009, "time_to_live"),
        (SEND, &[to, text, ("time_to_live", "1209600001")], 65009, "time_to_live"),
        (SEND, &[to, text, ("time_to_live", "soon")], 65009, "time_to_live"),
        (SEND, &[to, text, ("time_to_live", "99999999999999999999")], 65009, "time_to_live"),
        (SEND, &[to, text, ("time_to_send", "99999999999999")], 10017, "time_to_send"),
        (SEND, &[to, text, ("time_to_send", "later")], 10017, "time_to_send"),
        (SEND, &[to, ("payload", &payload)], 65003, "4097 bytes"),
        (SEND, &[to, text, ("title", &title)], 65004, "title"),
        (SEND, &[to, text, ("description", &description)], 65005, "description"),
        (SEND, &[to, text, ("extra.own", &extra)], 65008, "extra"),
        (SEND, &[to, text, ("extra.jobkey", "not a key")], 10017, "extra.jobkey"),
        (SEND, &[to, text, ("pass_through", "2")], 10017, "pass_through"),
        (SEND, &[to, text, ("notify_type", "8")], 10017, "notify_type"),
        (SEND, &[to, text, ("notify_id", "one")], 10017, "notify_id"),
        (SEND, &[to, text, ("payload", "another")], 10017, "payload"),
        (SEND, &[to, text, ("restricted_package_name", "com.example.other")], 22022, "com.example.other"),
        ("/v2/message/alias", &[to, text, ("restricted_package_name", "a,b")], 10017, "restricted_package_name"),
    ];
    for (path, form, code, named) in cases {
        let refused = tower.server.post(path, form);
        let case: String = format!("{path} {form:?}").chars().take(200).collect();
        assert_eq!(refused.code, *code, "{case}: {refused:?}");
        assert!(refused.description.contains(named), "{case}: {named:?} is not in {refused:?}");
        tower.goes_on_after(&case);
    }
}

#[test]
fn a_message_that_has_expired_is_not_delivered() {
    let tower = Tower::start();
    let state = tower.server.data().join("sleeper.json");
    let state = state.to_str().expect("a path");
    let arguments = ["--alias", "sleeper", "--topic", "sleepers", "--state", state];
    TerminalDevice::start(&tower.server, &arguments).stop();
    for (path, name, value) in [(SEND, "alias", "sleeper"), ("/v3/message/topic", "topic", "sleepers")] {
        tower.server.send(path, &[(name, value), ("payload", "expired"), ("time_to_live", "1")]);
        tower.server.send(path, &[(name, value), ("payload", value)]);
    }
    let sleeper = TerminalDevice::start(&tower.server, &arguments);
    sleeper.wait_for_push("sleeper");
    sleeper.wait_for_push("sleepers");
    assert_eq!(sleeper.payloads().len(), 2, "{:?}", sleeper.payloads());
    tower.goes_on_after("an expired message");
}

#[test]
fn a_body_that_can_not_be_read_is_refused_with_why() {
    let tower = Tower::start_with(&[PLAIN]);
    let json = "application/json";
    let cases: &[(&str, &[u8], i64, &str)] = &[
        (json, b"{", 10008, "JSON: EOF while parsing an object at line 1"),
        (json, b"{\"alias\": \"honest\", payload: 1}", 10008, "line 1 column"),
        (json, b"\xff\xfe", 10008, "JSON"),
        (json, b"[]", 10008, "not an object"),
        (json, b"{\"alias\": {\"honest\": 1}}", 10017, "alias"),
        (json, b"{\"alias\": \"honest\", \"payload\": [[\"p\"]]}", 10017, "payload"),
        (json, b"{\"alias\": \"honest\", \"payload\": \"p\", \"extra\": {\"own\": {}}}", 10017, "extra.own"),
        (FORM, b"alias=honest&payload=%FF", 10008, "payload"),
        (FORM, b"alias=honest&payload=\xc3", 10008, "payload"),
        (FORM, b"alias=honest&%ff=1", 10008, "name"),
        ("multipart/form-data; boundary=x", b"--x--", 10008, "multipart/form-data"),
        ("text/plain", b"alias=honest&payload=refused", 10008, "text/plain"),
        ("application/json", &[b'['; 10_000], 10008, "JSON"),
    ];
    for (content_type, body, code, named) in cases {
        let case: String = String::from_utf8_lossy(body).chars().take(100).collect();
        post_as_demo(&tower.server, SEND, content_type, body).refuses(200, *code, named, &case);
        tower.goes_on_after(&case);
    }
    let packed = [authorization(&tower.server), "content-encoding: gzip".to_owned()];
    post(&tower.server, SEND, &packed, b"\x1f\x8b").refuses(200, 10008, "gzip", "a packed body");
    post_as_demo(&tower.server, &format!("{SEND}?payload=%FF"), FORM, b"alias=honest")
        .refuses(200, 10008, "query", "a query");
    // Forms are read as browsers read them: a percent sign that encodes nothing is itself.
    let sent = post_as_demo(&tower.server, SEND, FORM, b"alias=honest&payload=100% or 100%zz");
    assert_eq!((sent.status, &sent.body["code"]), (200, &Value::from(0)), "{sent:?}");
    tower.expect_push("100% or 100%zz");
    tower.goes_on_after("bodies that can't be read");
}

#[test]
fn a_body_over_its_limit_is_refused_with_the_limit_however_it_comes() {
    let tower = Tower::start_with(&[PLAIN]);
    let body = format!("alias=honest&payload={}", "x".repeat(8 << 20));
    post_as_demo(&tower.server, SEND, FORM, body.as_bytes()).refuses(413, 10008, "8388608 bytes", "a long body");
    tower.goes_on_after("a long body");
    let head = format!(
        "POST {SEND} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{}\r\ntransfer-encoding: chunked\r\n\r\n",
        authorization(&tower.server)
    );
    let chunks = format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    raw(&tower.server, chunks.as_bytes()).refuses(413, 10008, "8388608 bytes", "a long body in chunks");
    tower.goes_on_after("a long body in chunks");
    let refused = tower.server.post(SEND, &[("alias", "honest"), ("payload", &body)]);
    assert_eq!(refused.code, 10008, "over TLS: {refused:?}");
    tower.goes_on_after("a long body over TLS");
}

#[test]
fn a_path_that_is_not_served_is_named() {
    let tower = Tower::start_with(&[PLAIN]);
    let ask = |method: &str, path: &str| {
        let request =
            format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        raw(&tower.server, request.as_bytes())
    };
    ask("POST", "/v2/message/nobody").refuses(200, 10012, "/v2/message/nobody", "a path like Mi Push's");
    ask("POST", "/nowhere").refuses(404, 10012, "/nowhere", "a path like nobody's");
    ask("POST", "/device/v1/nothing").refuses(404, 10012, "/device/v1/nothing", "a path like a device's");
    ask("POST", "/v3/message/alias/").refuses(200, 10012, "/v3/message/alias/", "a path with more behind it");
    ask("POST", "/../../etc/passwd").refuses(404, 10012, "/../../etc/passwd", "a path that climbs");
    ask("GET", SEND).refuses(200, 10012, "POST, not GET", "another method");
    ask("DELETE", "/device/v1/account").refuses(405, 10012, "POST, not DELETE", "another method");
    tower.goes_on_after("paths that aren't served");
}

#[test]
fn what_is_no_http_is_refused_and_closed() {
    let tower = Tower::start_with(&[PLAIN]);
    let long = format!("GET / HTTP/1.1\r\nconnection: close\r\nx: {}\r\n\r\n", "x".repeat(100_000));
    let cases: &[(&[u8], u16)] = &[
        (b"<stream:stream/>\r\n\r\n", 400),
        (b"POST /v3/message/all HTTP/1.1\r\nhost: localhost\r\ncontent-length: many\r\n\r\n", 400),
        (b"POST /v3/message/all HTTP/1.1\r\nno header\r\n\r\n", 400),
        (b"POST /v3/message/all HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\nxyz\r\n", 200),
        (long.as_bytes(), 431),
    ];
    for (request, status) in cases {
        let case: String = String::from_utf8_lossy(request).chars().take(100).collect();
        let answer = raw(&tower.server, request);
        assert_eq!(answer.status, *status, "{case}: {answer:?}");
        tower.goes_on_after(&case);
    }
}

#[test]
fn a_device_account_is_not_made_or_renewed_from_nonsense() {
    let tower = Tower::start_with(&[PLAIN]);
    let (mine, others) = (account(&tower.server), account(&tower.server));
    let long = "x".repeat(129);
    let stranger = format!("{}@elsewhere.example.com", mine.jid.split('@').next().expect("an id"));
    let cases = [
        ("account", String::new(), 400, 10016, "device"),
        ("account", format!("device={long}"), 400, 10017, "device"),
        ("account", "device=%00".to_owned(), 400, 10017, "device"),
        ("account", format!("device=d&model={long}"), 400, 10017, "model"),
        ("token", format!("account={}", mine.jid), 400, 10016, "token"),
        ("token", format!("token={}", mine.token), 400, 10016, "account"),
        ("token", format!("account=nobody&token={}", mine.token), 400, 10017, "account"),
        ("token", format!("account={stranger}&token={}", mine.token), 400, 10017, "account"),
        ("token", format!("account={}&token={}", mine.jid, others.token), 401, 70002, "token"),
        ("token", format!("account={}&token=nonsense", mine.jid), 401, 70002, "token"),
        ("token", format!("account={}&token={}", mine.jid, "x".repeat(513)), 400, 10017, "513 bytes"),
    ];
    for (path, body, status, code, named) in cases {
        let answer =
            post(&tower.server, &format!("/device/v1/{path}"), &[format!("content-type: {FORM}")], body.as_bytes());
        answer.refuses(status, code, named, &body);
    }
    tower.goes_on_after("device accounts that were refused");
}
