//! The envelope that every answer comes in, and which HTTP status goes with a code.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use idl::error::{Code, Failure};
use serde::Serialize;
use serde_json::{Map, Value};

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
    /// The manner of a path that isn't served: Mi Push's paths begin with a version.
    pub(crate) fn of_unknown(path: &str) -> Self {
        let first = path.split('/').nth(1).unwrap_or_default();
        if matches!(first, "v1" | "v2" | "v3" | "v4" | "v5") { Self::MiPush } else { Self::Campanile }
    }

    fn status(self, code: Code) -> StatusCode {
        let status = StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        match self {
            Self::MiPush if !status.is_server_error() || !code.retryable() => StatusCode::OK,
            Self::MiPush | Self::Campanile => status,
        }
    }
}

/// What a request brought about.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// The members of `data`.
    pub(crate) data: Map<String, Value>,
    /// One sentence for people.
    pub(crate) info: String,
}

/// Why a request was refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) failure: Failure,
    /// Where HTTP has a status of its own for it, whatever the manner.
    pub(crate) status: Option<StatusCode>,
    pub(crate) retry_after: Option<Duration>,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self { failure, status: None, retry_after: None }
    }
}

impl Refusal {
    /// A refusal that HTTP itself has a status for.
    pub(crate) fn with_status(status: StatusCode, code: Code, description: impl Into<String>) -> Self {
        Self { failure: Failure::new(code, description), status: Some(status), retry_after: None }
    }
}

/// Puts the outcome into the envelope. All members are always there, `data` is always an object.
pub(crate) fn envelope(manner: Manner, trace_id: &str, outcome: Result<Done, Refusal>) -> Response {
    match outcome {
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
            respond(StatusCode::OK, &envelope, None)
        }
        Err(Refusal { failure, status, retry_after }) => {
            let envelope = Envelope {
                result: "error",
                code: failure.code.number(),
                description: &failure.description,
                info: "",
                reason: failure.code.reason(),
                trace_id,
                data: &Map::new(),
            };
            let retry_after = failure.code.retryable().then(|| retry_after.unwrap_or(RETRY_AFTER));
            respond(status.unwrap_or_else(|| manner.status(failure.code)), &envelope, retry_after)
        }
    }
}

#[derive(Serialize)]
struct Envelope<'a> {
    result: &'a str,
    code: i32,
    description: &'a str,
    info: &'a str,
    reason: &'a str,
    trace_id: &'a str,
    data: &'a Map<String, Value>,
}

fn respond(status: StatusCode, envelope: &Envelope<'_>, retry_after: Option<Duration>) -> Response {
    let body = serde_json::to_vec(envelope).unwrap_or_default();
    let mut response = (status, Body::from(body)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(time) = retry_after {
        // RFC 9110 §10.2.3 knows whole seconds; rounded up, so that the next try isn't too early again.
        let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    }
    response
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
            assert!(status == 200 || (status >= 500 && code.retryable()), "{code:?}: {status}");
        }
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
    fn an_unknown_path_has_the_manner_of_its_neighbours() {
        assert_eq!(Manner::of_unknown("/v2/multi_messages/regids"), Manner::MiPush);
        assert_eq!(Manner::of_unknown("/v1/stats/message/counters"), Manner::MiPush);
        assert_eq!(Manner::of_unknown("/device/v1/nothing"), Manner::Campanile);
        assert_eq!(Manner::of_unknown("/"), Manner::Campanile);
        assert_eq!(Manner::of_unknown(""), Manner::Campanile);
    }

    #[test]
    fn trace_ids_differ() {
        let traces = Traces::new(1);
        assert_ne!(traces.next(), traces.next());
    }
}
