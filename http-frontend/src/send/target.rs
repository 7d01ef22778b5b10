//! Whom a path sends to, and the parameters that say it.

use idl::audience::Audience;
use idl::bus::Lane;
use idl::contract::bus as wire;
use idl::error::{Code, Failure};
use idl::ids::{InvalidId, RegId, Shard, TopicName};

use crate::auth::SecretDigest;
use crate::parameter::Parameter;
use crate::params::{Params, missing};
use crate::vocabulary::{
    ALIASES, PACKAGE, PACKAGES, REGISTRATION_IDS, TOPIC, TOPIC_OP, TOPICS, TOPICS_MAX, USER_ACCOUNTS,
};

/// Whom a path concerns. The path alone says it; other targets among the parameters are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum To {
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

/// A target, read.
pub(crate) struct Target {
    pub(crate) wire: wire::Target,
    pub(crate) lane: Lane,
    /// The one topic, alias or user account: the app is told it.
    pub(crate) topic: Option<String>,
    pub(crate) alias: Option<String>,
    pub(crate) user_account: Option<String>,
}

impl To {
    /// The number of [`wire::Target::kind`].
    pub(crate) fn kind(self) -> i32 {
        match self {
            Self::Regids => 1,
            Self::Aliases => 2,
            Self::UserAccounts => 3,
            Self::Topic | Self::Topics | Self::Everyone => 4,
        }
    }

    /// The parameter that holds the targets.
    pub(crate) fn parameter(self) -> Option<&'static Parameter> {
        match self {
            Self::Regids => Some(&REGISTRATION_IDS),
            Self::Aliases => Some(&ALIASES),
            Self::UserAccounts => Some(&USER_ACCOUNTS),
            Self::Topic => Some(&TOPIC),
            Self::Topics => Some(&TOPICS),
            Self::Everyone => None,
        }
    }

    /// The member of `data` that names the targets which are no registration of the app.
    pub(crate) fn bad_member(self) -> Option<&'static str> {
        match self {
            Self::Regids => Some("bad_regids"),
            Self::Aliases => Some("bad_aliases"),
            Self::UserAccounts => Some("bad_user_accounts"),
            Self::Topic | Self::Topics | Self::Everyone => None,
        }
    }

    /// The member of `data` that names bad targets, joined by commas; an empty text where there are none.
    pub(crate) fn bad(self, bad: Option<Vec<String>>) -> Option<(&'static str, String)> {
        Some((self.bad_member()?, bad.unwrap_or_default().join(",")))
    }

    /// What Mi Push calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Regids => "REGID",
            Self::Aliases => "ALIAS",
            Self::UserAccounts => "USER_ACCOUNT",
            Self::Topic => "TOPIC",
            Self::Topics => "MULTI_TOPIC",
            Self::Everyone => "ALL",
        }
    }

    /// Reads the targets: where they are a list, at least one and at most 1,000, each once. Whether they are valid the middle
    /// says, and names the bad ones.
    pub(crate) fn read(self, params: &Params<'_>) -> Result<Target, Failure> {
        let audience = match self {
            Self::Regids => return Ok(self.of(REGISTRATION_IDS.required_list(params)?)),
            Self::Aliases => return Ok(self.of(ALIASES.required_list(params)?)),
            Self::UserAccounts => return Ok(self.of(USER_ACCOUNTS.required_list(params)?)),
            Self::Topic => {
                let topic = topic(params)?;
                let name = Some(topic.to_string());
                return Ok(Target { topic: name, ..Target::broadcast(&Audience::Topic(topic)) });
            }
            Self::Topics => topics(params)?,
            Self::Everyone => Audience::Everyone,
        };
        Ok(Target::broadcast(&audience))
    }

    /// Of targets that are listed.
    pub(crate) fn of(self, values: Vec<String>) -> Target {
        let one = |to: Self| match values.as_slice() {
            [value] if to == self => Some(value.clone()),
            _ => None,
        };
        let lane = if values.len() == 1 { Lane::High } else { Lane::Normal };
        let (alias, user_account) = (one(Self::Aliases), one(Self::UserAccounts));
        let wire = wire::Target { kind: self.kind(), values: Some(values), audience: None, segment: None };
        Target { wire, lane, topic: None, alias, user_account }
    }
}

impl Target {
    /// Everyone for whom the expression holds.
    pub(crate) fn broadcast(audience: &Audience) -> Self {
        let audience = Some(audience.to_wire());
        let wire = wire::Target { kind: 4, values: None, audience, segment: None };
        Self { wire, lane: Lane::Low, topic: None, alias: None, user_account: None }
    }

    /// Everyone in a saved expression.
    pub(crate) fn segment(name: &str) -> Self {
        let wire = wire::Target { kind: 5, values: None, audience: None, segment: Some(name.to_owned()) };
        Self { wire, lane: Lane::Low, topic: None, alias: None, user_account: None }
    }

    /// Whose work it is: that of the single target's account where the target says it, so that sends to one registration
    /// keep their order, else that of the app.
    pub(crate) fn shard(&self, secret: SecretDigest) -> Shard {
        match (self.wire.kind, self.wire.values.as_deref()) {
            (1, Some([regid])) => regid.parse::<RegId>().map_or_else(|_| secret.shard(), Shard::of_registration),
            _ => secret.shard(),
        }
    }
}

impl Packages {
    /// The parameter that holds them.
    pub(crate) fn parameter(self) -> &'static Parameter {
        match self {
            Self::One => &PACKAGE,
            Self::Several => &PACKAGES,
        }
    }

    /// The packages; `None` means all of the app's.
    pub(crate) fn read(self, params: &Params<'_>) -> Result<Option<Vec<String>>, Failure> {
        let packages = self.parameter().list(params)?;
        Ok((!packages.is_empty()).then_some(packages))
    }
}

/// The parameter `topic`.
pub(crate) fn topic(params: &Params<'_>) -> Result<TopicName, Failure> {
    let name = params.text(TOPIC.name)?.ok_or_else(|| TOPIC.missing())?;
    parse_topic(TOPIC.name, name)
}

/// The parameters `topics` and `topic_op`.
fn topics(params: &Params<'_>) -> Result<Audience, Failure> {
    let mut names: Vec<&str> = Vec::new();
    for name in params.split(TOPICS.name, ";$;")? {
        if !names.contains(&name) {
            names.push(name);
        }
        // Counting on is of no use, and costs the more the more there are.
        if names.len() > MANY {
            break;
        }
    }
    if names.len() > TOPICS_MAX {
        let count = if names.len() > MANY { format!("more than {MANY}") } else { names.len().to_string() };
        let description =
            format!("the parameter topics holds {count} topics: expected at most {TOPICS_MAX}, joined by ';$;'");
        return Err(Failure::new(Code::BadTopic, description));
    }
    let topics = names.iter().map(|name| parse_topic(TOPICS.name, name)).collect::<Result<Vec<TopicName>, _>>()?;
    let mut topics = topics.into_iter().map(Audience::Topic);
    let first = topics.next().ok_or_else(|| TOPICS.missing())?;
    let op = TOPIC_OP.text(params)?;
    if op.is_none() && topics.len() == 0 {
        return Ok(first);
    }
    let combine = match op.ok_or_else(|| TOPIC_OP.missing())? {
        "UNION" => Audience::or,
        "INTERSECTION" => Audience::and,
        _ => |rest: Audience, other: Audience| rest.and(other.not()),
    };
    Ok(topics.fold(first, combine))
}

/// A topic's name that came in the parameter `parameter`.
fn parse_topic(parameter: &str, name: &str) -> Result<TopicName, Failure> {
    if name.is_empty() {
        return Err(missing(parameter, "the name of a topic"));
    }
    name.parse().map_err(|invalid: InvalidId| {
        let bytes = name.len();
        Failure::new(Code::BadTopic, format!("the parameter {parameter} holds a {bytes}-byte name: {invalid}"))
    })
}

/// As many topics are counted for the error that says there are too many.
const MANY: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::BodyFormat;

    fn form(text: &str) -> Params<'_> {
        Params::read(None, &BodyFormat::Form, text.as_bytes()).expect("a form")
    }

    fn expression(text: &str) -> Result<Audience, Code> {
        topics(&form(text)).map_err(|failure| failure.code)
    }

    fn topic(name: &str) -> Audience {
        Audience::Topic(name.parse().expect("a topic"))
    }

    #[test]
    fn topic_operators_become_expressions() {
        let (a, b, c) = (topic("a"), topic("b"), topic("c"));
        for all in ["topics=a;$;b;$;c", "topics=a&topics=b&topics=c&topics=a"] {
            assert_eq!(expression(&format!("{all}&topic_op=UNION")), Ok(a.clone().or(b.clone()).or(c.clone())));
            let intersection = a.clone().and(b.clone()).and(c.clone());
            assert_eq!(expression(&format!("{all}&topic_op=INTERSECTION")), Ok(intersection));
            let except = a.clone().and(b.clone().not()).and(c.clone().not());
            assert_eq!(expression(&format!("{all}&topic_op=EXCEPT")), Ok(except));
        }
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
        let many: Vec<_> = (0..4000).map(|n| n.to_string()).collect();
        let failure = topics(&form(&format!("topics={}", many.join(";$;")))).expect_err("too many");
        assert!(failure.description.contains("holds more than 100 topics"), "{failure}");
    }

    #[test]
    fn targets_are_counted_once_each() {
        let check = |to: To, text: &str| {
            let target = to.read(&form(text)).map_err(|failure| failure.code)?;
            Ok::<_, Code>(target.wire.values.expect("a list"))
        };
        assert_eq!(check(To::Regids, "registration_id=a,b,a&alias=c"), Ok(vec!["a".into(), "b".into()]));
        assert_eq!(check(To::Aliases, "alias=a&aliases=b"), Ok(vec!["a".into(), "b".into()]));
        assert_eq!(check(To::UserAccounts, "user_account=,"), Err(Code::Missing));
        let many = |count| (0..count).map(|n| format!("{n},")).collect::<Vec<_>>().concat();
        assert_eq!(check(To::Regids, &format!("registration_id={}", many(1000))).map(|all| all.len()), Ok(1000));
        assert_eq!(check(To::Regids, &format!("registration_id={}", many(1001))), Err(Code::TooManyTargets));
    }

    #[test]
    fn packages_are_one_on_v2_and_a_list_on_v3() {
        let check = |taken: Packages, text: &str| taken.read(&form(text)).map_err(|failure| failure.code);
        let list = "restricted_package_name=a,b,";
        assert_eq!(check(Packages::Several, list), Ok(Some(vec!["a".into(), "b".into()])));
        assert_eq!(check(Packages::One, list), Err(Code::BadValue));
        assert_eq!(check(Packages::One, "restricted_package_name=a,"), Ok(Some(vec!["a".into()])));
        assert_eq!(check(Packages::One, "restricted_package_name=,,"), Ok(None));
        assert_eq!(check(Packages::One, ""), Ok(None));
        let many = (0..21).map(|n| format!("p{n},")).collect::<Vec<_>>().concat();
        assert_eq!(check(Packages::Several, &format!("restricted_package_name={many}")), Err(Code::BadValue));
    }
}
