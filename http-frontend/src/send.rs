//! Sends: from Mi Push's parameters to one bus call.
//!
//! What is checked here is what one can see in the request alone: that parameters are there, have values that they can
//! have and keep to their limits. Which registrations, packages and secrets exist, the middle tier knows.

use idl::audience::Audience as Expression;
use idl::bus::Lane;
use idl::contract::bus as wire;
use idl::contract::message::Notification;
use idl::error::{Code, Failure};
use idl::ids::{RegId, Shard, TopicName};
use idl::message::{PAYLOAD_BYTES_MAX, TTL_MS_MAX};
use serde_json::{Map, Value};

use crate::Shared;
use crate::auth::SecretDigest;
use crate::call::{self, unexpected};
use crate::params::{Params, bad_value, missing, shown};
use crate::reply::Done;
use crate::request::Received;
use crate::topics::{parse_topic, topic};

/// Most regids, aliases or user accounts in one request.
pub(crate) const TARGETS_MAX: usize = 1000;
/// Most topics in one expression.
const TOPICS_MAX: usize = 5;
/// Most packages that a message is restricted to.
const PACKAGES_MAX: usize = 20;
/// A title has fewer characters.
const TITLE_CHARS_BELOW: usize = 50;
/// A description has fewer characters.
const DESCRIPTION_CHARS_BELOW: usize = 128;
/// Most extras of the app's own.
const EXTRAS_MAX: usize = 10;
/// Most characters in the names and values of the app's own extras together, and in the value of any other.
const EXTRA_CHARS_MAX: usize = 1024;
/// Longest `extra.callback.param`.
const CALLBACK_PARAM_BYTES_MAX: usize = 64;
/// Longest `extra.jobkey`.
const JOB_KEY_CHARS_MAX: usize = 20;

/// Extras that mean something to Mi Push; all others are the app's own.
const KNOWN_EXTRAS: &[&str] = &[
    "app_version",
    "app_version_not_in",
    "callback",
    "callback.param",
    "callback.type",
    "channel_id",
    "connpt",
    "flow_control",
    "intent_uri",
    "jobkey",
    "locale",
    "locale_not_in",
    "model",
    "model_not_in",
    "notify_effect",
    "notify_foreground",
    "only_send_once",
    "sound_uri",
    "ticker",
    "web_uri",
];

/// Whom a path sends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    Regids,
    Aliases,
    UserAccounts,
    Topic,
    Topics,
    Everyone,
}

/// How many packages a path takes in `restricted_package_name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packages {
    One,
    Several,
}

impl Audience {
    /// The number of [`wire::Target::kind`].
    pub(crate) fn kind(self) -> i32 {
        match self {
            Self::Regids => 1,
            Self::Aliases => 2,
            Self::UserAccounts => 3,
            Self::Topic | Self::Topics | Self::Everyone => 4,
        }
    }

    /// The parameters that hold the targets, and what one of them is called.
    fn parameters(self) -> (&'static [&'static str], &'static str) {
        match self {
            Self::Regids => (&["registration_id"], "registration id"),
            Self::Aliases => (&["alias", "aliases"], "alias"),
            Self::UserAccounts => (&["user_account"], "user account"),
            Self::Topic | Self::Topics | Self::Everyone => (&[], ""),
        }
    }

    /// The member of `data` that names the targets which are no registration of the app.
    fn bad_member(self) -> Option<&'static str> {
        match self {
            Self::Regids => Some("bad_regids"),
            Self::Aliases => Some("bad_aliases"),
            Self::UserAccounts => Some("bad_user_accounts"),
            Self::Topic | Self::Topics | Self::Everyone => None,
        }
    }
}

/// Accepts one message. Answered with success it is stored durably; answered with [`Code::TimedOut`] it may be.
pub(crate) async fn handle(
    shared: &Shared,
    to: Audience,
    packages_taken: Packages,
    received: &Received,
) -> Result<Done, Failure> {
    let secret = SecretDigest::from_headers(&received.headers)?;
    let params = &received.params;
    let mut notification = notification(params)?;
    let (target, lane) = target(to, params, &mut notification)?;
    refuse_schedule(params, shared.clock.now_ms())?;
    let whose = shard(to, target.values.as_deref().unwrap_or_default(), &secret);
    let info = match (to, &target.values) {
        (Audience::Topic | Audience::Topics, _) => "accepted for the topic's subscribers".to_owned(),
        (_, None) => "accepted for every registration".to_owned(),
        (_, Some(values)) => format!("accepted for {} of kind {}", values.len(), to.parameters().1),
    };
    let send = wire::Send {
        ttl_ms: time_to_live(params)?,
        packages: packages(packages_taken, params)?,
        target,
        notification,
        filter: None,
        send_at_ms: None,
        local_time: None,
        repeat: None,
        spread_ms: None,
        flow_control: None,
        only_once: None,
        collapse_key: None,
        callback: None,
        template_name: None,
        variables: None,
        dry_run: None,
    };
    let request = wire::AppRequest::Send(send);
    let wire::AppAnswer::Accepted(accepted) = call::ask(shared, received, secret, lane, whose, request).await? else {
        return Err(unexpected("Send"));
    };
    let mut data = bad_targets(to, accepted.bad_targets);
    data.extend(accepted.id.map(|id| ("id".to_owned(), Value::String(id))));
    Ok(Done { data, info })
}

/// The regids, aliases or user accounts of a request: at least one and at most 1,000, each once. Whether they are valid
/// the middle says, and names the bad ones.
pub(crate) fn targets(to: Audience, params: &Params) -> Result<Vec<String>, Failure> {
    let (names, what) = to.parameters();
    let mut values: Vec<String> = Vec::new();
    for name in names {
        values.extend(params.list(name));
    }
    if to == Audience::Regids {
        // Space around a comma is never part of a regid; of an alias it may be.
        values = values.iter().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty()).collect();
    }
    let mut seen = std::collections::HashSet::new();
    values.retain(|value| seen.insert(value.clone()));
    let parameter = names.first().copied().unwrap_or_default();
    match values.len() {
        0 => Err(missing(parameter, &format!("1 to {TARGETS_MAX} values of kind {what}"))),
        1..=TARGETS_MAX => Ok(values),
        count => Err(Failure::new(
            Code::TooManyTargets,
            format!("the parameter {parameter} holds {count} values: expected at most {TARGETS_MAX} in one request"),
        )),
    }
}

/// Whose work it is: that of the single target's account where the target says it, so that sends to one registration keep
/// their order, else that of the app.
pub(crate) fn shard(to: Audience, values: &[String], secret: &SecretDigest) -> Shard {
    match values {
        [regid] if to == Audience::Regids => {
            regid.parse::<RegId>().map_or_else(|_| secret.shard(), Shard::of_registration)
        }
        _ => secret.shard(),
    }
}

/// The member of `data` that names bad targets, joined by commas; an empty text where there are none.
pub(crate) fn bad_targets(to: Audience, bad: Option<Vec<String>>) -> Map<String, Value> {
    let bad = bad.unwrap_or_default().join(",");
    to.bad_member().map(|member| (member.to_owned(), Value::String(bad))).into_iter().collect()
}

/// The parameter `restricted_package_name`; absent means all packages of the app.
pub(crate) fn packages(taken: Packages, params: &Params) -> Result<Option<Vec<String>>, Failure> {
    const NAME: &str = "restricted_package_name";
    let packages: Vec<String> = params.list(NAME).iter().map(|package| package.trim().to_owned()).collect();
    let most = match taken {
        Packages::One => 1,
        Packages::Several => PACKAGES_MAX,
    };
    if packages.len() > most {
        let expected = match taken {
            Packages::One => "one package on this path; /v3 and /v4 take several".to_owned(),
            Packages::Several => format!("at most {PACKAGES_MAX}"),
        };
        return Err(bad_value(NAME, &format!("a list of {} packages", packages.len()), &expected));
    }
    Ok((!packages.is_empty()).then_some(packages))
}

/// The target and its lane; single targets and topics are also told to the app.
fn target(to: Audience, params: &Params, notification: &mut Notification) -> Result<(wire::Target, Lane), Failure> {
    let expression = match to {
        Audience::Regids | Audience::Aliases | Audience::UserAccounts => {
            let values = targets(to, params)?;
            if let [value] = values.as_slice() {
                match to {
                    Audience::Aliases => notification.alias_name = Some(value.clone()),
                    Audience::UserAccounts => notification.user_account = Some(value.clone()),
                    _ => {}
                }
            }
            let lane = if values.len() == 1 { Lane::High } else { Lane::Normal };
            return Ok((wire::Target { kind: to.kind(), values: Some(values), audience: None, segment: None }, lane));
        }
        Audience::Topic => {
            let topic = topic(params)?;
            notification.topic = Some(topic.to_string());
            Expression::Topic(topic)
        }
        Audience::Topics => topics(params)?,
        Audience::Everyone => Expression::Everyone,
    };
    let audience = Some(expression.to_wire());
    Ok((wire::Target { kind: to.kind(), values: None, audience, segment: None }, Lane::Low))
}

/// The parameters `topics` and `topic_op`.
fn topics(params: &Params) -> Result<Expression, Failure> {
    const EXPECTED_OP: &str = "UNION, INTERSECTION or EXCEPT (the first topic minus the others)";
    let names = params.split("topics", ";$;");
    if names.len() > TOPICS_MAX {
        let description = format!(
            "the parameter topics holds {} topics: expected at most {TOPICS_MAX}, joined by ';$;'",
            names.len()
        );
        return Err(Failure::new(Code::BadTopic, description));
    }
    let topics = names.iter().map(|name| parse_topic("topics", name)).collect::<Result<Vec<TopicName>, _>>()?;
    let mut topics = topics.into_iter().map(Expression::Topic);
    let first = topics.next().ok_or_else(|| missing("topics", "1 to 5 topics, joined by ';$;'"))?;
    let op = params.text("topic_op")?;
    if op.is_none() && topics.len() == 0 {
        return Ok(first);
    }
    let combine = match op.ok_or_else(|| missing("topic_op", EXPECTED_OP))? {
        "UNION" => Expression::or,
        "INTERSECTION" => Expression::and,
        "EXCEPT" => |rest: Expression, other: Expression| rest.and(other.not()),
        other => return Err(bad_value("topic_op", &shown(other), EXPECTED_OP)),
    };
    Ok(topics.fold(first, combine))
}

/// What the app gets.
fn notification(params: &Params) -> Result<Notification, Failure> {
    let payload = params.text("payload")?;
    if let Some(payload) = payload.filter(|payload| payload.len() > PAYLOAD_BYTES_MAX) {
        return Err(Failure::new(
            Code::PayloadTooLong,
            format!("the parameter payload has {} bytes: expected at most {PAYLOAD_BYTES_MAX}", payload.len()),
        ));
    }
    let title = below(params, "title", TITLE_CHARS_BELOW, Code::TitleTooLong)?;
    let description = below(params, "description", DESCRIPTION_CHARS_BELOW, Code::DescriptionTooLong)?;
    if payload.is_none() && title.is_none() && description.is_none() {
        return Err(missing("payload", "a payload, or a title and a description"));
    }
    let (extra, job_key) = extras(params)?;
    Ok(Notification {
        payload: payload.map(str::to_owned),
        title,
        description,
        pass_through: pass_through(params)?,
        notify_type: notify_type(params)?,
        notify_id: params.integer("notify_id", "a whole number of at most 64 bits")?,
        extra,
        job_key,
        // Named one by one: the generated `default()` holds empty texts, which would travel.
        topic: None,
        alias_name: None,
        user_account: None,
        accepted_at_ms: None,
    })
}

fn below(params: &Params, name: &str, chars_below: usize, code: Code) -> Result<Option<String>, Failure> {
    let Some(text) = params.text(name)? else { return Ok(None) };
    let chars = text.chars().count();
    if chars >= chars_below {
        let description = format!("the parameter {name} has {chars} characters: expected fewer than {chars_below}");
        return Err(Failure::new(code, description));
    }
    Ok(Some(text.to_owned()))
}

fn pass_through(params: &Params) -> Result<Option<bool>, Failure> {
    match params.text("pass_through")? {
        None | Some("0") => Ok(None),
        Some("1") => Ok(Some(true)),
        Some(other) => {
            Err(bad_value("pass_through", &shown(other), "0 (show a notification) or 1 (hand it to the app)"))
        }
    }
}

fn notify_type(params: &Params) -> Result<Option<i32>, Failure> {
    const EXPECTED: &str = "-1 (all), or the sum of 1 (sound), 2 (vibrate) and 4 (lights)";
    let Some(number) = params.integer("notify_type", EXPECTED)? else { return Ok(None) };
    match i32::try_from(number) {
        Ok(bits @ -1..=7) => Ok(Some(bits)),
        _ => Err(bad_value("notify_type", &number.to_string(), EXPECTED)),
    }
}

type Extras = std::collections::BTreeMap<String, String>;

/// The parameters named `extra.…`, as they are, and the job key among them.
fn extras(params: &Params) -> Result<(Option<Extras>, Option<String>), Failure> {
    let extras = params.with_prefix("extra.")?;
    let own = || extras.iter().filter(|(name, _)| KNOWN_EXTRAS.binary_search(name).is_err());
    let over = |found: String| Err(Failure::new(Code::BadExtra, found));
    if own().count() > EXTRAS_MAX {
        return over(format!(
            "the parameters extra.* hold {} pairs of the app's own: expected at most {EXTRAS_MAX}",
            own().count()
        ));
    }
    let chars: usize = own().map(|(name, value)| name.chars().count() + value.chars().count()).sum();
    if chars > EXTRA_CHARS_MAX {
        return over(format!(
            "the parameters extra.* of the app's own have {chars} characters: expected at most {EXTRA_CHARS_MAX}, names \
             and values together"
        ));
    }
    for (name, value) in &extras {
        let chars = value.chars().count();
        if chars > EXTRA_CHARS_MAX {
            return over(format!(
                "the parameter extra.{name} has {chars} characters: expected at most {EXTRA_CHARS_MAX}"
            ));
        }
    }
    if let Some(param) = extras.get("callback.param").filter(|param| param.len() > CALLBACK_PARAM_BYTES_MAX) {
        return over(format!(
            "the parameter extra.callback.param has {} bytes: expected at most {CALLBACK_PARAM_BYTES_MAX}",
            param.len()
        ));
    }
    let job_key = extras.get("jobkey").copied();
    let fits = |key: &&str| {
        key.len() <= JOB_KEY_CHARS_MAX && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
    };
    if let Some(key) = job_key.filter(|key| !fits(key)) {
        return Err(bad_value("extra.jobkey", &shown(key), "at most 20 characters of 0-9 A-Z a-z _ -"));
    }
    let owned = |(name, value): (&&str, &&str)| ((*name).to_owned(), (*value).to_owned());
    let extra: Extras = extras.iter().map(owned).collect();
    Ok(((!extra.is_empty()).then_some(extra), job_key.map(str::to_owned)))
}

/// The parameter `time_to_live` in milliseconds: two weeks when absent.
fn time_to_live(params: &Params) -> Result<i64, Failure> {
    const MAX: i64 = TTL_MS_MAX.cast_signed();
    let Some(text) = params.text("time_to_live")? else { return Ok(MAX) };
    match text.trim().parse::<i64>() {
        Ok(ms @ 1..=MAX) => Ok(ms),
        _ => Err(Failure::new(
            Code::BadTimeToLive,
            format!(
                "the parameter time_to_live is {}: expected a whole number of milliseconds from 1 to {MAX} (two weeks)",
                shown(text)
            ),
        )),
    }
}

/// A message that is to be sent later must not go out now. A time that has come means now.
fn refuse_schedule(params: &Params, now_ms: u64) -> Result<(), Failure> {
    const EXPECTED: &str = "milliseconds since 1970 that have passed, or none: this version serves no scheduled sends";
    match params.integer("time_to_send", EXPECTED)? {
        Some(ms) if u64::try_from(ms).is_ok_and(|ms| ms > now_ms) => {
            Err(bad_value("time_to_send", &format!("{ms}, which lies in the future"), EXPECTED))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::params::BodyFormat;

    fn form(text: &str) -> Params {
        Params::read(None, BodyFormat::Form, text.as_bytes()).expect("a form")
    }

    fn expression(text: &str) -> Result<Expression, Code> {
        topics(&form(text)).map_err(|failure| failure.code)
    }

    fn topic(name: &str) -> Expression {
        Expression::Topic(name.parse().expect("a topic"))
    }

    #[test]
    fn the_known_extras_are_sorted_for_their_search() {
        assert!(KNOWN_EXTRAS.is_sorted());
    }

    #[test]
    fn topic_operators_become_expressions() {
        let (a, b, c) = (topic("a"), topic("b"), topic("c"));
        let all = "topics=a;$;b;$;c";
        assert_eq!(expression(&format!("{all}&topic_op=UNION")), Ok(a.clone().or(b.clone()).or(c.clone())));
        assert_eq!(expression(&format!("{all}&topic_op=INTERSECTION")), Ok(a.clone().and(b.clone()).and(c.clone())));
        assert_eq!(expression(&format!("{all}&topic_op=EXCEPT")), Ok(a.clone().and(b.not()).and(c.not())));
        assert_eq!(expression("topics=a"), Ok(a));
        assert_eq!(expression("topics=a,b"), Ok(topic("a,b")), "a comma belongs to the topic's name");
    }

    #[test]
    fn a_topic_expression_that_is_none_is_refused() {
        assert_eq!(expression("topic_op=UNION"), Err(Code::Missing));
        assert_eq!(expression("topics=a;$;b"), Err(Code::Missing));
        assert_eq!(expression("topics=a;$;b&topic_op=union"), Err(Code::BadValue));
        assert_eq!(expression("topics=1;$;2;$;3;$;4;$;5;$;6&topic_op=UNION"), Err(Code::BadTopic));
        assert_eq!(expression(&format!("topics={}", "x".repeat(129))), Err(Code::BadTopic));
    }

    #[test]
    fn limits_hold_at_their_edge_and_break_one_beyond() {
        let check = |text: String| notification(&form(&text)).map(|_| ()).map_err(|failure| failure.code);
        let x = |count| "x".repeat(count);
        let own = |count| (0..count).map(|n| format!("&extra.k{n}=v")).collect::<Vec<_>>().concat();
        for (good, bad, code) in [
            (format!("payload={}", x(4096)), format!("payload={}", x(4097)), Code::PayloadTooLong),
            (format!("title={}", "ä".repeat(49)), format!("title={}", x(50)), Code::TitleTooLong),
            (format!("description={}", "ä".repeat(127)), format!("description={}", x(128)), Code::DescriptionTooLong),
            (format!("title=t{}", own(10)), format!("title=t{}", own(11)), Code::BadExtra),
            (format!("title=t&extra.k={}", x(1023)), format!("title=t&extra.k={}", x(1024)), Code::BadExtra),
            (format!("title=t&extra.ticker={}", x(1024)), format!("title=t&extra.ticker={}", x(1025)), Code::BadExtra),
            (
                format!("title=t&extra.callback.param={}", x(64)),
                format!("title=t&extra.callback.param={}", x(65)),
                Code::BadExtra,
            ),
            (format!("title=t&extra.jobkey={}", x(20)), format!("title=t&extra.jobkey={}", x(21)), Code::BadValue),
            ("title=t&notify_type=7".into(), "title=t&notify_type=8".into(), Code::BadValue),
            ("title=t&notify_type=-1".into(), "title=t&notify_type=-2".into(), Code::BadValue),
            ("title=t&pass_through=1".into(), "title=t&pass_through=2".into(), Code::BadValue),
            ("title=t&notify_id=4294967297".into(), "title=t&notify_id=x".into(), Code::BadValue),
            ("description=d".into(), "pass_through=1".into(), Code::Missing),
        ] {
            assert_eq!(check(good.clone()), Ok(()), "{good}");
            assert_eq!(check(bad.clone()), Err(code), "{bad}");
        }
    }

    #[test]
    fn extras_that_mi_push_knows_do_not_count_as_the_apps_own() {
        let known = KNOWN_EXTRAS.iter().map(|name| format!("&extra.{name}=1")).collect::<Vec<_>>().concat();
        let own = (0..10).map(|n| format!("&extra.k{n}=v")).collect::<Vec<_>>().concat();
        let made = notification(&form(&format!("title=t{known}{own}"))).expect("within the limits");
        assert_eq!(made.extra.map(|extra| extra.len()), Some(KNOWN_EXTRAS.len() + 10));
        assert_eq!(made.job_key.as_deref(), Some("1"));
    }

    #[test]
    fn a_time_to_live_is_from_1_ms_to_two_weeks() {
        let check = |text: &str| time_to_live(&form(text)).map_err(|failure| failure.code);
        assert_eq!(check(""), Ok(1_209_600_000));
        assert_eq!(check("time_to_live=1"), Ok(1));
        assert_eq!(check("time_to_live=1209600000"), Ok(1_209_600_000));
        for bad in ["0", "-1", "1209600001", "1.5", "soon", "99999999999999999999"] {
            assert_eq!(check(&format!("time_to_live={bad}")), Err(Code::BadTimeToLive), "{bad}");
        }
    }

    #[test]
    fn a_send_for_later_is_refused_and_one_whose_time_has_come_is_not() {
        let check = |text: &str| refuse_schedule(&form(text), 1000).map_err(|failure| failure.code);
        for good in ["", "time_to_send=1000", "time_to_send=0", "time_to_send=-1"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in ["time_to_send=1001", "time_to_send=soon"] {
            assert_eq!(check(bad), Err(Code::BadValue), "{bad}");
        }
    }

    #[test]
    fn targets_are_counted_once_each() {
        let check = |to, text: &str| targets(to, &form(text)).map_err(|failure| failure.code);
        assert_eq!(
            check(Audience::Regids, "registration_id=a, b,a,&registration_id=b"),
            Ok(vec!["a".into(), "b".into()])
        );
        assert_eq!(check(Audience::Aliases, "alias=a&aliases=b, c,a"), Ok(vec!["a".into(), "b".into(), " c".into()]));
        assert_eq!(check(Audience::UserAccounts, "user_account=,"), Err(Code::Missing));
        let many = |count| (0..count).map(|n| format!("{n},")).collect::<Vec<_>>().concat();
        assert_eq!(check(Audience::Regids, &format!("registration_id={}", many(1000))).map(|all| all.len()), Ok(1000));
        assert_eq!(check(Audience::Regids, &format!("registration_id={}", many(1001))), Err(Code::TooManyTargets));
    }

    #[test]
    fn packages_are_one_on_v2_and_a_list_on_v3() {
        let check = |taken, text: &str| packages(taken, &form(text)).map_err(|failure| failure.code);
        let list = "restricted_package_name=a,b,";
        assert_eq!(check(Packages::Several, list), Ok(Some(vec!["a".into(), "b".into()])));
        assert_eq!(check(Packages::One, list), Err(Code::BadValue));
        assert_eq!(check(Packages::One, "restricted_package_name=a,"), Ok(Some(vec!["a".into()])));
        assert_eq!(check(Packages::One, ""), Ok(None));
        let many = (0..21).map(|n| format!("p{n},")).collect::<Vec<_>>().concat();
        assert_eq!(check(Packages::Several, &format!("restricted_package_name={many}")), Err(Code::BadValue));
    }

    proptest! {
        #[test]
        fn no_parameters_make_a_send_panic(values in proptest::collection::vec("[^&=]{0,12}|-?[0-9]{1,20}", 9)) {
            let names = [
                "payload", "notify_type", "notify_id", "time_to_live", "time_to_send", "topics", "topic_op", "alias", "extra.k",
            ];
            let pairs: Vec<_> = names.iter().zip(&values).map(|(name, value)| format!("{name}={value}")).collect();
            if let Ok(params) = Params::read(None, BodyFormat::Form, pairs.join("&").as_bytes()) {
                let _ = (notification(&params), topics(&params), targets(Audience::Aliases, &params));
                let _ = (time_to_live(&params), refuse_schedule(&params, 0), packages(Packages::One, &params));
            }
        }
    }
}
