//! The envelope that every answer comes in, and which HTTP status goes with a code.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use idl::contract::bus::{AudienceCount, Rate};
use idl::error::{Code, Failure};
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

/// Quotas of an app.
pub(crate) const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// What is left of the quotas.
pub(crate) const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// `true` where an answer was given before.
pub(crate) const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// Room for the envelope of a send.
const ENVELOPE_BYTES: usize = 384;

/// How a later try is advised where the failure itself says no time.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Whose conventions a path follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Mi Push's: business errors travel with HTTP 200, and 5xx means "try again". Its server SDKs try again on nothing
    /// else, and several don't read the body of another status. So [`Code::TooFrequent`] is HTTP 200 here too.
    MiPush,
    /// Campanile's own: the HTTP status of the error table.
    Campanile,
}

impl Manner {
    /// The manner of a path, also of one that isn't served: Mi Push's paths begin with a version.
    pub(crate) fn of(path: &str) -> Self {
        let first = path.split('/').nth(1).unwrap_or_default();
        if matches!(first, "v1" | "v2" | "v3" | "v4" | "v5") { Self::MiPush } else { Self::Campanile }
    }

    /// The status that goes with a code.
    pub(crate) fn status(self, code: Code) -> StatusCode {
        let status = StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        match self {
            // A client that knows of idempotency keys knows this status.
            Self::MiPush if code == Code::KeyReused => status,
            Self::MiPush if !status.is_server_error() || !code.retryable() => StatusCode::OK,
            Self::MiPush | Self::Campanile => status,
        }
    }
}

/// What a request brought about.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) data: Data,
    /// One sentence for people.
    pub(crate) info: Cow<'static, str>,
}

impl Done {
    /// With these members of `data`, and nothing to say about them.
    pub(crate) fn with(members: impl IntoIterator<Item = (&'static str, Value)>) -> Self {
        let members = members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Self { data: Data::Members(members), info: Cow::Borrowed("") }
    }
}

/// What `data` holds.
#[derive(Debug, Default)]
pub(crate) enum Data {
    #[default]
    Nothing,
    /// Of a send: by far the most common, so no map is made of it.
    Sent(Sent),
    Members(Map<String, Value>),
}

/// What a send is answered.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    /// Absent for a dry run.
    pub(crate) id: Option<String>,
    /// The member that names bad targets, and those, joined by commas.
    pub(crate) bad: Option<(&'static str, String)>,
    pub(crate) audience: Option<AudienceCount>,
    pub(crate) due_ms: Option<i64>,
}

impl Serialize for Data {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Sent { id, bad, audience, due_ms } = match self {
            Self::Nothing => return serializer.serialize_map(Some(0))?.end(),
            Self::Members(members) => return members.serialize(serializer),
            Self::Sent(sent) => sent,
        };
        let mut map = serializer.serialize_map(None)?;
        if let Some(id) = id {
            map.serialize_entry("id", id)?;
        }
        if let Some((member, targets)) = bad {
            map.serialize_entry(member, targets)?;
        }
        if let Some(count) = audience {
            map.serialize_entry("audience", &audience_count(count))?;
        }
        if let Some(due_ms) = due_ms {
            map.serialize_entry("due_ms", due_ms)?;
        }
        map.end()
    }
}

/// How many registrations a dry run counted.
pub(crate) fn audience_count(count: &AudienceCount) -> Value {
    json!({"registrations": count.registrations, "online": count.online, "method": count.how})
}

/// Why a request was refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) failure: Failure,
    /// Where HTTP has a status of its own for it, whatever the manner.
    pub(crate) status: Option<StatusCode>,
    pub(crate) retry_after: Option<Duration>,
    /// Where the method was wrong: those that would be right.
    pub(crate) allow: Option<String>,
    /// The members of `data`.
    pub(crate) data: Map<String, Value>,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self { failure, status: None, retry_after: None, allow: None, data: Map::new() }
    }
}

impl Refusal {
    /// A refusal that HTTP itself has a status for.
    pub(crate) fn with_status(status: StatusCode, code: Code, description: impl Into<String>) -> Self {
        Self { status: Some(status), ..Self::from(Failure::new(code, description)) }
    }
}

/// How a request went.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) result: Result<Done, Refusal>,
    /// How much the app may still send, where that is known.
    pub(crate) rate: Option<Rate>,
    /// This is the first answer to an idempotency key, again.
    pub(crate) replayed: bool,
    /// The middle tier has said what the rate is, or that the secret is nobody's.
    pub(crate) answered: bool,
}

impl From<Result<Done, Refusal>> for Outcome {
    fn from(result: Result<Done, Refusal>) -> Self {
        Self { result, rate: None, replayed: false, answered: false }
    }
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        Self::from(Err(refusal))
    }
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        Self::from(Refusal::from(failure))
    }
}

/// Puts the outcome into the envelope. All members are always there, `data` is always an object.
pub(crate) fn envelope(manner: Manner, trace_id: &str, outcome: Outcome) -> Response {
    let Outcome { result, rate, replayed, answered: _ } = outcome;
    let mut response = match result {
        Ok(Done { data, info }) => {
            let envelope = Envelope {
                result: "ok",
                code: 0,
                description: "success",
                info: &info,
                reason: "",
                trace_id,
                data: &data,
            };
            respond(StatusCode::OK, &envelope)
        }
        Err(Refusal { failure, status, retry_after, allow, data }) => {
            let envelope = Envelope {
                result: "error",
                code: failure.code.number(),
                description: &failure.description,
                info: "",
                reason: failure.code.reason(),
                trace_id,
                data: &Data::Members(data),
            };
            let mut response = respond(status.unwrap_or_else(|| manner.status(failure.code)), &envelope);
            let headers = response.headers_mut();
            if let Some(allow) = allow.and_then(|allow| HeaderValue::try_from(allow).ok()) {
                headers.insert(header::ALLOW, allow);
            }
            if failure.code.retryable() {
                let time = retry_after.or_else(|| rate.as_ref().and_then(|rate| until(failure.code, rate)));
                headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds(time.unwrap_or(RETRY_AFTER)).max(1)));
            }
            response
        }
    };
    let headers = response.headers_mut();
    if let Some((policy, left)) = rate.and_then(|rate| rate_headers(&rate)) {
        headers.insert(RATE_LIMIT_POLICY, policy);
        headers.insert(RATE_LIMIT, left);
    }
    if replayed {
        headers.insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    }
    response
}

#[derive(Serialize)]
struct Envelope<'a> {
    result: &'a str,
    code: i32,
    description: &'a str,
    info: &'a str,
    reason: &'a str,
    trace_id: &'a str,
    data: &'a Data,
}

fn respond(status: StatusCode, envelope: &Envelope<'_>) -> Response {
    let mut body = Vec::with_capacity(ENVELOPE_BYTES);
    // Writing texts and numbers to memory can't fail.
    let _ = serde_json::to_writer(&mut body, envelope);
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// When a refused send may succeed.
fn until(code: Code, rate: &Rate) -> Option<Duration> {
    let ms = match (code, rate.retry_after_ms) {
        (Code::RateLimited | Code::DailyQuota, Some(ms)) => ms,
        (Code::DailyQuota, None) => rate.day_ends_in_ms,
        _ => return None,
    };
    u64::try_from(ms).ok().map(Duration::from_millis)
}

/// The headers `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10 §3 and §4), for each limit that
/// there is.
fn rate_headers(rate: &Rate) -> Option<(HeaderValue, HeaderValue)> {
    let (mut policy, mut left) = (String::new(), String::new());
    let day_ends = seconds(Duration::from_millis(u64::try_from(rate.day_ends_in_ms).unwrap_or(0)));
    for (name, max, now_left, window, reset) in [
        ("second", rate.per_second_max, rate.per_second_left, 1, 1),
        ("day", rate.per_day_max, rate.per_day_left, 86_400, day_ends),
    ] {
        if max <= 0 {
            continue;
        }
        let comma = if policy.is_empty() { "" } else { ", " };
        // Writing to a text can't fail.
        let _ = write!(policy, "{comma}\"{name}\";q={max};w={window}");
        let _ = write!(left, "{comma}\"{name}\";r={};t={reset}", now_left.max(0));
    }
    if policy.is_empty() {
        return None;
    }
    Some((HeaderValue::try_from(policy).ok()?, HeaderValue::try_from(left).ok()?))
}

/// Whole seconds, rounded up: RFC 9110 §10.2.3 knows no others, and a try that is too early is in vain.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// Makes a trace id for each request: it is in the envelope and in the log.
#[derive(Debug)]
pub(crate) struct Traces {
    process: String,
    next: AtomicU32,
}

impl Traces {
    /// Ids are told apart by the start of this process, its number and a counter.
    pub(crate) fn new(started_at_ms: u64) -> Self {
        Self { process: format!("{started_at_ms:x}-{:x}", std::process::id()), next: AtomicU32::new(0) }
    }

    pub(crate) fn next(&self) -> String {
        format!("{}-{:08x}", self.process, self.next.fetch_add(1, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_mi_push_paths_only_what_is_worth_a_retry_leaves_http_200() {
        for code in Code::ALL {
            let status = Manner::MiPush.status(*code).as_u16();
            let expected = *code == Code::KeyReused || status == 200 || (status >= 500 && code.retryable());
            assert!(expected, "{code:?}: {status}");
        }
        assert_eq!(Manner::MiPush.status(Code::KeyReused), StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(Manner::MiPush.status(Code::Busy), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(Manner::MiPush.status(Code::TimedOut), StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(Manner::MiPush.status(Code::TooFrequent), StatusCode::OK);
        assert_eq!(Manner::MiPush.status(Code::NotServed), StatusCode::OK);
    }

    #[test]
    fn on_our_own_paths_the_status_is_that_of_the_table() {
        for code in Code::ALL {
            assert_eq!(Manner::Campanile.status(*code).as_u16(), code.http_status());
        }
    }

    #[test]
    fn a_path_has_the_manner_of_its_neighbours() {
        assert_eq!(Manner::of("/v2/message/none"), Manner::MiPush);
        assert_eq!(Manner::of("/v1/stats/message/counters"), Manner::MiPush);
        assert_eq!(Manner::of("/device/v1/nothing"), Manner::Campanile);
        assert_eq!(Manner::of("/"), Manner::Campanile);
        assert_eq!(Manner::of(""), Manner::Campanile);
    }

    #[test]
    fn rate_headers_name_the_limits_that_there_are() {
        let rate = |per_second_max, per_day_max| Rate {
            per_second_max,
            per_second_left: per_second_max - 1,
            per_day_max,
            per_day_left: -1,
            day_ends_in_ms: 3_600_001,
            retry_after_ms: None,
        };
        let texts = |rate: &Rate| {
            let (policy, left) = rate_headers(rate)?;
            Some((policy.to_str().expect("text").to_owned(), left.to_str().expect("text").to_owned()))
        };
        let both = texts(&rate(100, 5000)).expect("limits");
        assert_eq!(both.0, r#""second";q=100;w=1, "day";q=5000;w=86400"#);
        assert_eq!(both.1, r#""second";r=99;t=1, "day";r=0;t=3601"#);
        let day = texts(&rate(0, 7)).expect("a limit");
        assert_eq!(day, (r#""day";q=7;w=86400"#.to_owned(), r#""day";r=0;t=3601"#.to_owned()));
        assert_eq!(texts(&rate(0, 0)), None);
    }

    #[test]
    fn trace_ids_differ() {
        let traces = Traces::new(1);
        assert_ne!(traces.next(), traces.next());
    }
}
