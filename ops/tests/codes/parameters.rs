//! Every parameter of the API with values at its limit and beyond.

use idl::clock::{Clock as _, SystemClock};
use serde_json::{Value, json};

use crate::harness::http::{FORM, encoded, escaped};
use crate::limits::Limit;
use crate::place::{NAME, PACKAGE, Place};

const BAD_REQUEST: i64 = 10008;
const MISSING: i64 = 10016;
const BAD_VALUE: i64 = 10017;
const PAYLOAD: i64 = 65003;
const TITLE: i64 = 65004;
const DESCRIPTION: i64 = 65005;
const TARGETS: i64 = 65006;
const TOPIC: i64 = 65007;
const EXTRA: i64 = 65008;
const TIME_TO_LIVE: i64 = 65009;
const EXPRESSION: i64 = 70014;

const MINUTE_MS: u64 = 60_000;
const DAY_MS: u64 = 24 * 60 * MINUTE_MS;
const WEEK_MS: u64 = 7 * DAY_MS;
/// Anywhere a callback may lead; nobody listens there.
const CALLBACK: &str = "http://127.0.0.1:9/receipts";

fn x(length: usize) -> String {
    "x".repeat(length)
}

/// A text of characters that are not one byte each.
fn u(length: usize) -> String {
    "ü".repeat(length)
}

/// So many values, of which only the first is somebody's.
fn list(first: &str, count: usize) -> String {
    std::iter::once(first.to_owned())
        .chain((1..count).map(|number| format!("nobody{number}")))
        .collect::<Vec<_>>()
        .join(",")
}

/// A parameter of a send, whose message is short and for one device.
fn send<'a>(place: &'a Place, parameter: &'static str) -> Limit<'a> {
    send_beside(place, parameter, &[])
}

/// The same beside other parameters.
fn send_beside<'a>(place: &'a Place, parameter: &'static str, beside: &'static [(&str, &str)]) -> Limit<'a> {
    Limit::new(parameter, move |value| {
        let mut form = vec![(parameter, value)];
        if parameter != "payload" {
            form.push(("payload", "p"));
        }
        form.extend(beside.iter().filter(|(name, _)| *name != parameter));
        place.send(&form)
    })
}

/// A send whose parameters are made of the value. The name is that of what is over its limit.
fn send_made<'a>(
    place: &'a Place,
    parameter: &'static str,
    make: impl Fn(&str) -> Vec<(String, String)> + 'a,
) -> Limit<'a> {
    Limit::new(parameter, move |value| {
        let made = make(value);
        let mut form: Vec<(&str, &str)> = made.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        form.push(("payload", "p"));
        place.send(&form)
    })
}

pub(crate) fn of_a_message(place: &Place) -> Vec<Limit<'_>> {
    let mut limits = vec![
        send(place, "payload").takes(x(4096)).takes(u(2048)).refuses(x(4097), PAYLOAD).refuses(u(2049), PAYLOAD),
        send(place, "title").takes(u(49)).refuses(u(50), TITLE),
        send(place, "description").takes(u(127)).refuses(u(128), DESCRIPTION),
        send(place, "pass_through").takes("0").takes("1").refuses("2", BAD_VALUE).refuses("-1", BAD_VALUE),
        send(place, "notify_type").takes("-1").takes("7").refuses("8", BAD_VALUE).refuses("-2", BAD_VALUE),
        send(place, "notify_id")
            .takes(i64::MAX.to_string())
            .takes(i64::MIN.to_string())
            .refuses("9223372036854775808", BAD_VALUE)
            .refuses("one", BAD_VALUE),
        send(place, "time_to_live")
            .takes("1")
            .takes("1209600000")
            .refuses("1209600001", TIME_TO_LIVE)
            .refuses("0", TIME_TO_LIVE),
        send(place, "collapse_key").takes(u(32)).refuses(x(65), BAD_VALUE),
        send(place, "dry_run").takes("0").takes("1").refuses("2", BAD_VALUE),
        send_beside(place, "extra.notify_effect", &[("extra.web_uri", "https://www.example.com/")])
            .takes("1")
            .takes("3")
            .refuses("4", BAD_VALUE),
        send_made(place, "extra.intent_uri", |_| pairs(&[("extra.notify_effect", "2")])).refuses("", MISSING),
        send_made(place, "extra.web_uri", |_| pairs(&[("extra.notify_effect", "3")])).refuses("", MISSING),
        send(place, "extra.notify_foreground").takes("0").takes("1").refuses("2", BAD_VALUE),
        send(place, "extra.connpt").takes("wifi").refuses("4g", BAD_VALUE),
        send(place, "extra.jobkey")
            .takes("0123456789_aZ-456789")
            .refuses(x(21), BAD_VALUE)
            .refuses("a b", BAD_VALUE)
            .refuses("ü", BAD_VALUE),
        send(place, "extra.flow_control")
            .takes("1")
            .takes("100000")
            .refuses("100001", BAD_VALUE)
            .refuses("0", BAD_VALUE),
        send(place, "extra.only_send_once").takes("0").takes("1").refuses("2", BAD_VALUE),
        send(place, "extra.callback")
            .takes(format!("{CALLBACK}?{}", x(2048 - CALLBACK.len() - 1)))
            .refuses(format!("{CALLBACK}?{}", x(2048 - CALLBACK.len())), BAD_VALUE)
            .refuses("ftp://127.0.0.1/", BAD_VALUE)
            .refuses("receipts", BAD_VALUE)
            .refuses("http://10.0.0.1/receipts", BAD_VALUE),
        send_beside(place, "extra.callback.param", &[("extra.callback", CALLBACK)]).takes(u(32)).refuses(x(65), EXTRA),
        send_beside(place, "extra.callback.type", &[("extra.callback", CALLBACK)])
            .takes("1267")
            .takes("16")
            .refuses("1268", BAD_VALUE)
            .refuses("4", BAD_VALUE)
            .refuses("0", BAD_VALUE),
    ];
    for parameter in ["extra.sound_uri", "extra.ticker", "extra.intent_uri", "extra.web_uri", "extra.channel_id"] {
        limits.push(send(place, parameter).takes(u(1024)).refuses(u(1025), EXTRA));
    }
    for parameter in [
        "extra.locale",
        "extra.locale_not_in",
        "extra.model",
        "extra.model_not_in",
        "extra.app_version",
        "extra.app_version_not_in",
    ] {
        limits.push(
            send(place, parameter)
                .takes(list("x", 100))
                .takes(x(128))
                .refuses(list("x", 101), BAD_VALUE)
                .refuses(x(129), BAD_VALUE),
        );
    }
    limits.extend(of_many_extras(place));
    limits
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// So many pairs with names behind this prefix.
fn numbered(prefix: &str, count: &str) -> Vec<(String, String)> {
    let count: usize = count.parse().expect("a number");
    (0..count).map(|number| (format!("{prefix}n{number}"), "v".to_owned())).collect()
}

fn of_many_extras(place: &Place) -> Vec<Limit<'_>> {
    let total = |chars: &str| {
        let chars: usize = chars.parse().expect("a number");
        // Names and values count together.
        vec![
            ("extra.ab".to_owned(), u(chars - 4)),
            ("extra.cd".to_owned(), String::new()),
            ("extra.e".to_owned(), x(1)),
        ]
    };
    vec![
        send_made(place, "extra.*", |count| numbered("extra.", count)).takes("10").refuses("11", EXTRA),
        send_made(place, "extra.*", total).takes("1024").refuses("1025", EXTRA),
    ]
}

pub(crate) fn of_times(place: &Place) -> Vec<Limit<'_>> {
    let now_ms = SystemClock.now_ms();
    let in_utc = |ms: u64| local_time(now_ms + ms);
    let shanghai = &[("time_zone", "Asia/Shanghai")];
    let nine = &[("repeat", "0 9 * * *"), ("time_zone", "UTC")];
    // Spaces between fields count.
    let cron = |bytes: usize| format!("0{}9 * * *", " ".repeat(bytes - 8));
    vec![
        send(place, "time_to_send")
            .takes("0")
            .takes("-1")
            .takes((now_ms + WEEK_MS - MINUTE_MS).to_string())
            .refuses((now_ms + WEEK_MS + 10 * MINUTE_MS).to_string(), BAD_VALUE)
            .refuses("later", BAD_VALUE),
        send(place, "local_time")
            .takes(in_utc(WEEK_MS - DAY_MS))
            .takes(&in_utc(DAY_MS)[..16])
            .refuses(in_utc(WEEK_MS + 10 * MINUTE_MS), BAD_VALUE)
            .refuses("2020-12-01T09:00", BAD_VALUE)
            .refuses("2026-12-01", BAD_VALUE),
        send_beside(place, "repeat", shanghai)
            .takes("0 9 * * 1-5")
            .takes(cron(128))
            .refuses(cron(129), BAD_VALUE)
            .refuses("0 9 * *", BAD_VALUE)
            .refuses("0 9 * * * *", BAD_VALUE)
            .refuses("60 9 * * *", BAD_VALUE),
        send_beside(place, "time_zone", nine)
            .takes("America/Argentina/ComodRivadavia")
            .refuses("Mars/Olympus", BAD_VALUE)
            .refuses(x(65), BAD_VALUE)
            .refuses("", MISSING),
        send_beside(place, "repeat_until", nine)
            .takes((now_ms + 30 * DAY_MS).to_string())
            .takes("2099-12-31T00:00")
            .refuses((now_ms - 1).to_string(), BAD_VALUE)
            .refuses("soon", BAD_VALUE),
        send(place, "spread_ms").takes("0").takes("86400000").refuses("86400001", BAD_VALUE).refuses("-1", BAD_VALUE),
    ]
}

/// A moment as a clock in UTC shows it.
fn local_time(ms: u64) -> String {
    let (days, of_day) = (ms / DAY_MS, ms % DAY_MS / 1000);
    // Years that begin in March, so that a leap day is the last of one; 400 of them have always as many days.
    let since_march = days + 719_468;
    let (era, of_era) = (since_march / 146_097, since_march % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", of_day / 3600, of_day / 60 % 60, of_day % 60)
}

#[test]
fn a_moment_is_written_as_a_clock_shows_it() {
    for (ms, expected) in [
        (0, "1970-01-01T00:00:00"),
        (951_782_400_000, "2000-02-29T00:00:00"),
        (1_796_115_600_000, "2026-12-01T09:00:00"),
        (1_798_761_599_000, "2026-12-31T23:59:59"),
    ] {
        assert_eq!(local_time(ms), expected);
    }
}

/// A parameter of this path beside others, posted as a form.
fn post<'a>(
    place: &'a Place,
    path: &'static str,
    parameter: &'static str,
    beside: &'static [(&'static str, &'static str)],
) -> Limit<'a> {
    Limit::new(parameter, move |value| place.http.post(path, &[&[(parameter, value)], beside].concat()))
}

/// A parameter of this path beside others, in the query.
fn get<'a>(
    place: &'a Place,
    path: &'static str,
    parameter: &'static str,
    beside: &'static [(&'static str, &'static str)],
) -> Limit<'a> {
    Limit::new(parameter, move |value| place.http.get(path, &[&[(parameter, value)], beside].concat()))
}

const TEXT: &[(&str, &str)] = &[("payload", "p")];
const TO_TOPIC: &[(&str, &str)] = &[("topic", NAME)];

pub(crate) fn of_targets(place: &Place) -> Vec<Limit<'_>> {
    let regid = &place.regid;
    let many_topics = |count: usize| (0..count).map(|number| format!("t{number}")).collect::<Vec<_>>().join(";$;");
    let mut limits = Vec::new();
    for path in ["/v2/message/regid", "/v3/message/regid", "/v4/message/regid", "/v1/validation/regids"] {
        limits.push(
            post(place, path, "registration_id", TEXT)
                .takes(list(regid, 1000))
                .takes(format!("{},", list(regid, 1000)))
                .refuses(list(regid, 1001), TARGETS)
                .refuses(",", MISSING),
        );
    }
    for path in ["/v2/topic/subscribe", "/v2/topic/unsubscribe"] {
        limits.push(
            post(place, path, "registration_id", TO_TOPIC).takes(list(regid, 1000)).refuses(list(regid, 1001), TARGETS),
        );
        limits.push(
            Limit::new("topic", move |value| {
                place.http.post(path, &[("registration_id", regid.as_str()), ("topic", value)])
            })
            .takes(u(64))
            .refuses(x(129), TOPIC),
        );
        limits.push(
            Limit::new("category", move |value| {
                place.http.post(path, &[("registration_id", regid.as_str()), ("topic", NAME), ("category", value)])
            })
            .takes(u(128))
            .refuses(u(129), BAD_VALUE),
        );
    }
    for path in ["/v2/topic/subscribe/alias", "/v2/topic/unsubscribe/alias"] {
        limits.push(
            post(place, path, "aliases", TO_TOPIC)
                .named("alias")
                .takes(list(NAME, 1000))
                .refuses(list(NAME, 1001), TARGETS),
        );
    }
    for path in ["/v2/message/alias", "/v3/message/alias"] {
        limits.push(post(place, path, "alias", TEXT).takes(list(NAME, 1000)).refuses(list(NAME, 1001), TARGETS));
    }
    limits.push(
        post(place, "/v2/message/user_account", "user_account", TEXT)
            .takes(list(NAME, 1000))
            .refuses(list(NAME, 1001), TARGETS),
    );
    for path in ["/v2/message/topic", "/v3/message/topic"] {
        limits.push(post(place, path, "topic", TEXT).takes(x(128)).refuses(x(129), TOPIC).refuses("a\u{7}", TOPIC));
    }
    for path in ["/v2/message/multi_topic", "/v3/message/multi_topic"] {
        limits.push(
            post(place, path, "topics", &[("payload", "p"), ("topic_op", "UNION")])
                .takes(many_topics(5))
                .takes(x(128))
                .refuses(many_topics(6), TOPIC)
                .refuses(x(129), TOPIC)
                .refuses("", MISSING),
        );
        let mut ops = post(place, path, "topic_op", &[("payload", "p"), ("topics", "a;$;b")]);
        for op in ["UNION", "INTERSECTION", "EXCEPT"] {
            ops = ops.takes(op);
        }
        limits.push(ops.refuses("XOR", BAD_VALUE).refuses("", MISSING));
    }
    let package = |path| post(place, path, "restricted_package_name", TEXT);
    limits.push(package("/v2/message/all").takes(PACKAGE).refuses(format!("{PACKAGE},com.example.b"), BAD_VALUE));
    limits.push(package("/v3/message/all").takes(list(PACKAGE, 20)).refuses(list(PACKAGE, 21), BAD_VALUE));
    limits.extend(of_many_messages(place));
    limits.extend(of_expressions(place));
    limits
}

fn of_many_messages(place: &Place) -> Vec<Limit<'_>> {
    let messages = |target: &str, count: usize| {
        let one = json!({"target": target, "message": {"payload": "p", "time_to_live": 60_000}});
        Value::from(vec![one; count]).to_string()
    };
    let of = |path, target: &str| {
        post(place, path, "messages", &[("dry_run", "1")])
            .takes(messages(target, 1000))
            .refuses(messages(target, 1001), TARGETS)
            .refuses("[]", MISSING)
            .refuses("{}", BAD_VALUE)
            .refuses("[", BAD_VALUE)
            .refuses("[1]", BAD_VALUE)
            .refuses(json!([{"target": target, "message": {"payload": x(4097)}}]).to_string(), PAYLOAD)
    };
    vec![
        of("/v2/multi_messages/regids", &place.regid),
        of("/v2/multi_messages/aliases", NAME),
        of("/v2/multi_messages/user_accounts", NAME),
    ]
}

fn of_expressions(place: &Place) -> Vec<Limit<'_>> {
    let long = |bytes: usize| format!("topic(\"honest\"){}", " ".repeat(bytes - 15));
    // Each term is a step, and so is each `and` after the first.
    let steps = |terms: usize| vec!["all"; terms].join(" and ");
    vec![
        post(place, "/campanile/v1/messages", "audience", TEXT)
            .takes(long(4096))
            .takes(steps(32))
            .refuses(long(4097), EXPRESSION)
            .refuses(steps(65), EXPRESSION)
            .refuses("topic(", EXPRESSION)
            .refuses("", MISSING),
        Limit::new("segment", |name| {
            // Where the name is none, nothing is kept under it.
            let path = format!("/campanile/v1/segments/{}", escaped(name));
            place.http.json("PUT", &path, &json!({"expression": "topic(\"honest\")"}));
            place.http.post("/campanile/v1/messages", &[("segment", name), ("payload", "p")])
        })
        .takes(x(64))
        .takes("aZ09._-")
        .refuses(x(65), BAD_VALUE)
        .refuses("a b", BAD_VALUE),
    ]
}

pub(crate) fn of_what_is_kept(place: &Place) -> Vec<Limit<'_>> {
    let put = |kind: &'static str, body: Value| {
        Limit::new("name", move |name| place.http.json("PUT", &format!("/campanile/v1/{kind}/{name}"), &body))
            .takes(x(64))
            .takes("aZ09._-")
            .refuses(x(65), BAD_VALUE)
            .refuses("a%20b", BAD_VALUE)
            .refuses("%C3%BC", BAD_VALUE)
    };
    let of_template = |member: &'static str| {
        Limit::new(member, move |value| {
            place.http.json("PUT", "/campanile/v1/templates/text", &json!({ member: value }))
        })
    };
    let extras = |count: &str| {
        let extra: Value = numbered("", count).into_iter().map(|(name, value)| (name, Value::from(value))).collect();
        place.http.json("PUT", "/campanile/v1/templates/extras", &json!({"payload": "p", "extra": extra}))
    };
    let templated = |parameter, make: fn(&str) -> Vec<(String, String)>| {
        Limit::new(parameter, move |value| {
            let path = "/campanile/v1/templates/plain";
            place.http.json("PUT", path, &json!({"payload": "p"})).data();
            let made = make(value);
            let made = made.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            place.send(&made.chain([("template", "plain")]).collect::<Vec<_>>())
        })
    };
    let mut limits = vec![
        put("segments", json!({"expression": "all"})),
        put("templates", json!({"payload": "p"})),
        Limit::new("expression", |text| {
            place.http.json("PUT", "/campanile/v1/segments/long", &json!({"expression": text}))
        })
        .takes(format!("all{}", " ".repeat(4093)))
        .refuses(format!("all{}", " ".repeat(4094)), EXPRESSION)
        .refuses("", MISSING),
        of_template("payload").takes(x(8192)).refuses(x(8193), PAYLOAD),
        of_template("title").takes(u(512)).refuses(u(513), TITLE),
        of_template("description").takes(u(512)).refuses(u(513), DESCRIPTION),
        Limit::new("extra.*", extras).takes("32").refuses("33", EXTRA),
        Limit::new("template", |name| {
            let path = format!("/campanile/v1/templates/{}", escaped(name));
            place.http.json("PUT", &path, &json!({"payload": "p"}));
            place.send(&[("template", name)])
        })
        .takes(x(64))
        .refuses(x(65), BAD_VALUE)
        .refuses("a b", BAD_VALUE),
        templated("var.*", |count| numbered("var.", count)).takes("64").refuses("65", BAD_VALUE),
        templated("var.*", |name| vec![(format!("var.{name}"), "v".to_owned())]).takes(x(64)).refuses(x(65), BAD_VALUE),
        templated("var.*", |text| vec![("var.v".to_owned(), text.to_owned())])
            .takes(x(4096))
            .refuses(x(4097), BAD_VALUE),
    ];
    for path in
        ["/campanile/v1/segments", "/campanile/v1/templates", "/campanile/v1/schedules", "/campanile/v1/receipts"]
    {
        limits.push(
            get(place, path, "limit", &[]).takes("1").takes("100").refuses("101", BAD_VALUE).refuses("0", BAD_VALUE),
        );
    }
    for path in ["/campanile/v1/segments", "/campanile/v1/templates"] {
        limits.push(get(place, path, "after", &[]).takes(x(64)).refuses(x(257), BAD_VALUE));
    }
    limits.push(get(place, "/campanile/v1/schedules", "after", &[]).takes(ID).refuses(x(257), BAD_VALUE));
    limits.push(get(place, "/campanile/v1/receipts", "since", &[]).takes(ID).refuses(x(257), BAD_VALUE));
    limits
}

/// An id in the form of a message's that is none's.
const ID: &str = "01ARZ3NDEKTSV4RRFFQ69G5FAV";

pub(crate) fn of_questions(place: &Place) -> Vec<Limit<'_>> {
    let sent = place.send(&[("payload", "p"), ("extra.jobkey", "job_key-0123456789_a"), ("notify_id", "7")]).id();
    let later = (SystemClock.now_ms() + DAY_MS).to_string();
    let schedule =
        |job_key: &str| place.send(&[("payload", "p"), ("time_to_send", &later), ("extra.jobkey", job_key)]).id();
    let due = schedule("stays");
    schedule("later");
    let day_31 = &[("start_date", "20261201")];
    let mut limits = vec![
        get(place, "/v1/stats/message/counters", "end_date", day_31)
            .takes("20261231")
            .refuses("20270101", BAD_VALUE)
            .refuses("20261130", BAD_VALUE)
            .refuses("2026121", BAD_VALUE),
        get(place, "/v1/stats/message/counters", "start_date", &[("end_date", "20261231")])
            .takes("20261201")
            .refuses("20261301", BAD_VALUE)
            .refuses("2026-12-01", BAD_VALUE)
            .refuses("", MISSING),
        get(place, "/v1/trace/message/status", "msg_id", &[])
            .takes(&sent)
            .refuses(x(65), BAD_VALUE)
            .refuses("", MISSING),
        get(place, "/v1/trace/message/status", "job_key", &[])
            .takes("job_key-0123456789_a")
            .refuses(x(21), BAD_VALUE)
            .refuses("a b", BAD_VALUE),
        get(place, "/v1/trace/messages/status", "begin_time", &[("end_time", "253402300799999")])
            .takes("0")
            .refuses("-1", BAD_VALUE)
            .refuses("", MISSING),
        get(place, "/v1/trace/messages/status", "end_time", &[("begin_time", "1")])
            .takes("253402300799999")
            .refuses("253402300800000", BAD_VALUE)
            .refuses("0", BAD_VALUE),
        get(place, "/v1/useraccount/get_regids_by_useraccount", "user_account", &[])
            .takes(NAME)
            .takes(x(128))
            .refuses(x(129), BAD_VALUE)
            .refuses("", MISSING),
        get(place, "/v2/schedule_job/exist", "job_id", &[]).takes(&due).refuses(x(65), BAD_VALUE).refuses("", MISSING),
        get(place, "/v2/schedule_job/query", "job_id", &[]).takes(&due).refuses(x(65), BAD_VALUE),
        post(place, "/v2/schedule_job/delete", "job_id", &[]).takes(schedule("goes")).refuses(x(65), BAD_VALUE),
        post(place, "/v3/schedule_job/delete", "jobkey", &[]).takes("later").refuses("a b", BAD_VALUE),
        post(place, "/v2/message/revoke", "msg_id", &[]).takes(&sent).refuses(list(&sent, 1001), TARGETS),
        post(place, "/v2/message/delete", "id", &[]).takes(&sent).refuses(x(65), BAD_VALUE).refuses("", MISSING),
        post(place, "/v1/message/switch/stop_by_id", "msg_ids", &[])
            .takes(&sent)
            .refuses(list(&sent, 1001), TARGETS)
            .refuses("", MISSING),
        post(place, "/v1/message/switch/stop_by_jobkey", "job_keys", &[])
            .takes("job_key-0123456789_a")
            .refuses(list("a", 1001), TARGETS)
            .refuses("", MISSING),
    ];
    for path in ["/v1/alias/all", "/v1/topic/all", "/v1/account/all"] {
        limits.push(
            get(place, path, "registration_id", &[]).takes(&place.regid).refuses(x(65), BAD_VALUE).refuses("", MISSING),
        );
    }
    for path in ["/v1/regid/presence", "/v2/regid/presence"] {
        limits.push(
            get(place, path, "registration_id", &[])
                .takes(list(&place.regid, 300))
                .refuses((0..1001).map(|number| number.to_string()).collect::<Vec<_>>().join(","), TARGETS),
        );
    }
    limits.extend(of_recalls(place));
    limits.extend(in_paths(place, sent, due));
    limits
}

fn of_recalls(place: &Place) -> Vec<Limit<'_>> {
    let seven = &[("notify_id", "7")];
    let recall = |path, parameter| post(place, path, parameter, seven);
    vec![
        recall("/v1/message/regid/revoke", "registration_ids")
            .named("registration_id")
            .takes(&place.regid)
            .refuses(list("a", 1001), TARGETS),
        recall("/v1/message/alias/revoke", "aliases").named("alias").takes(NAME).refuses(list("a", 1001), TARGETS),
        recall("/v1/message/user_account/revoke", "user_accounts")
            .named("user_account")
            .takes(NAME)
            .refuses(list("a", 1001), TARGETS),
        recall("/v1/message/topic/revoke", "topic").takes(NAME).refuses(x(129), TOPIC),
        recall("/v1/message/multi_topic/revoke", "topics").takes(NAME).refuses("1;$;2;$;3;$;4;$;5;$;6", TOPIC),
        post(place, "/v1/message/alias/revoke", "notify_id", &[("aliases", NAME)])
            .takes("7")
            .refuses("9223372036854775808", BAD_VALUE)
            .refuses("", MISSING),
    ]
}

/// Names in paths.
fn in_paths(place: &Place, sent: String, due: String) -> Vec<Limit<'_>> {
    let at = |parameter, begin: &'static str, end: &'static str| {
        Limit::new(parameter, move |value| place.http.get(&format!("/campanile/v1/{begin}/{value}{end}"), &[]))
    };
    let regid = place.regid.clone();
    let of_trace = format!("{sent}/trace?registration_id={regid}");
    vec![
        at("id", "messages", "").takes(sent).refuses(x(65), BAD_VALUE).refuses("a%20b", BAD_VALUE),
        at("id", "messages", "").takes(of_trace).refuses(format!("{}/trace?registration_id=x", x(65)), BAD_VALUE),
        at("id", "schedules", "").takes(due).refuses(x(65), BAD_VALUE),
        at("regid", "registrations", "").takes(regid).refuses(x(65), BAD_VALUE).refuses("a%20b", BAD_VALUE),
    ]
}

pub(crate) fn everywhere(place: &Place) -> Vec<Limit<'_>> {
    let keyed = |path: &'static str| {
        Limit::new("Idempotency-Key", move |key| {
            let headers = [("content-type", FORM), ("idempotency-key", key)];
            place.http.call("POST", path, &headers, b"alias=honest&audience=all&payload=p&dry_run=1")
        })
        .takes(format!("{:~>64}", path.len()))
        .refuses(x(65), BAD_VALUE)
        .refuses("a b", BAD_VALUE)
    };
    let made = place.http.post("/device/v1/account", &[("device", "limits")]);
    let granted = |member: &str| made.data()[member].as_str().expect("it is granted").to_owned();
    let (account, token) = (granted("jid"), granted("token"));
    let (same_account, same_token) = (account.clone(), token.clone());
    let renew = move |account: &str, token: &str| {
        place.http.post("/device/v1/token", &[("account", account), ("token", token)])
    };
    let device = &[("device", "limits")];
    let body = |values: usize| {
        let form: Vec<_> = (0..values - 2).map(|_| ("ignored", "x")).chain([("payload", "p")]).collect();
        encoded(&[&[("alias", NAME)], &*form].concat())
    };
    vec![
        keyed("/v3/message/alias"),
        keyed("/campanile/v1/messages"),
        post(place, "/device/v1/account", "device", &[]).takes(u(128)).refuses(u(129), BAD_VALUE).refuses("", MISSING),
        post(place, "/device/v1/account", "model", device).takes(u(128)).refuses(u(129), BAD_VALUE),
        post(place, "/device/v1/account", "platform", device).takes(u(128)).refuses(u(129), BAD_VALUE),
        Limit::new("account", move |account| renew(account, &same_token)).takes(account).refuses(x(257), BAD_VALUE),
        Limit::new("token", move |token| renew(&same_account, token)).takes(token).refuses(x(513), BAD_VALUE),
        Limit::new("values", move |body| {
            place.http.call("POST", "/v3/message/alias", &[("content-type", FORM)], body.as_bytes())
        })
        .takes(body(5000))
        .refuses(body(5001), BAD_REQUEST),
    ]
}
