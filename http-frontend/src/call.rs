//! What an app server asks for, on its way to the middle tier and back.

use axum::http::{HeaderMap, HeaderName};
use idl::bus::{Bus, Call, Lane, Reply, Request};
use idl::contract::bus as wire;
use idl::error::{Code, Failure};
use idl::ids::{RegId, Shard};
use ring::digest;
use tokio::time::Instant;

use crate::auth::SecretDigest;
use crate::params::{Params, shown};
use crate::reply::{Done, Outcome, Refusal};

/// A request with the same key as an earlier one of the same app is answered as that was, and does nothing.
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Longest idempotency key, in characters.
pub(crate) const IDEMPOTENCY_KEY_CHARS_MAX: usize = 64;

/// A request on behalf of an app, read.
pub(crate) struct Received<'a> {
    pub(crate) params: Params<'a>,
    /// What stands in the path where the table has a name in braces; empty where it has none.
    pub(crate) argument: &'a str,
    pub(crate) secret: SecretDigest,
    /// Wall time, in milliseconds since the epoch.
    pub(crate) now_ms: u64,
}

/// What the middle tier is asked, and what is made of its answer. It holds nothing of the request as it came.
pub(crate) struct Ask {
    lane: Lane,
    shard: Shard,
    call: Box<wire::AppCall>,
    tell: Tell,
}

/// Makes a reply of the middle's answer; `None` for an answer of another kind, which is a fault of ours.
pub(crate) type Tell = Box<dyn FnOnce(wire::AppAnswer) -> Option<Result<Done, Refusal>> + Send>;

/// A [`Tell`] for one kind of answer.
macro_rules! tell {
    ($kind:ident($answer:pat) => $result:expr) => {
        Box::new(move |answer| match answer {
            idl::contract::bus::AppAnswer::$kind($answer) => Some($result),
            _ => None,
        })
    };
}
pub(crate) use tell;

impl Ask {
    /// A question on behalf of the app whose secret came with the request.
    pub(crate) fn new(
        received: &Received<'_>,
        lane: Lane,
        shard: Shard,
        request: wire::AppRequest,
        tell: Tell,
    ) -> Self {
        let secret_sha256 = received.secret.to_vec();
        let call = Box::new(wire::AppCall { secret_sha256, request, idempotency_key: None, fingerprint: None });
        Self { lane, shard, call, tell }
    }

    /// A question that concerns no registration in particular.
    pub(crate) fn of_app(received: &Received<'_>, lane: Lane, request: wire::AppRequest, tell: Tell) -> Self {
        Self::new(received, lane, received.secret.shard(), request, tell)
    }

    /// A question about one registration: it is the work of its account's shard, if the text is a registration id.
    pub(crate) fn of_registration(received: &Received<'_>, regid: &str, request: wire::AppRequest, tell: Tell) -> Self {
        let shard =
            regid.parse().map_or_else(|_| received.secret.shard(), |regid: RegId| Shard::of_registration(regid));
        Self::new(received, Lane::High, shard, request, tell)
    }

    /// The same, carried out once for this key.
    #[must_use]
    pub(crate) fn once(mut self, idempotency: Idempotency) -> Self {
        self.call.idempotency_key = Some(idempotency.key);
        self.call.fingerprint = Some(idempotency.fingerprint);
        self
    }

    /// Asks the middle tier.
    pub(crate) async fn carry(self, bus: &dyn Bus, deadline: Instant) -> Outcome {
        let Self { lane, shard, call, tell } = self;
        let reply = match bus.request(Call { lane, shard, deadline, request: Request::App(call) }).await {
            Ok(Reply::App(reply)) => reply,
            Ok(_) => return unexpected("App").into(),
            Err(failure) => return failure.into(),
        };
        let wire::AppReply { status, answer, rate, replayed } = *reply;
        let unknown = status.code == Code::Unauthorized.number();
        let result = match status.code {
            0 => answer.and_then(tell).unwrap_or_else(|| Err(unexpected("App").into())),
            _ => Err(Failure::from_status(status).into()),
        };
        Outcome { result, answered: rate.is_some() || unknown, rate, replayed: replayed == Some(true) }
    }
}

/// The middle answered something else than was asked: a fault of ours.
pub(crate) fn unexpected(request: &str) -> Failure {
    Failure::new(Code::System, format!("the middle tier answered {request} with another kind of reply"))
}

/// A key under which a request is carried out once, and what was asked under it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Idempotency {
    key: String,
    /// SHA-256 over path and parameters.
    fingerprint: Vec<u8>,
}

impl Idempotency {
    /// Reads the header `Idempotency-Key`. Parameters in another order are the same request.
    pub(crate) fn read(headers: &HeaderMap, path: &str, params: &Params<'_>) -> Result<Option<Self>, Failure> {
        let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
        let wrong = |found: &str| {
            let expected = format!("expected 1 to {IDEMPOTENCY_KEY_CHARS_MAX} visible ASCII characters, once");
            Err(Failure::new(Code::BadValue, format!("the header Idempotency-Key is {found}: {expected}")))
        };
        if headers.get_all(IDEMPOTENCY_KEY).iter().nth(1).is_some() {
            return wrong("given more than once");
        }
        let text = String::from_utf8_lossy(value.as_bytes());
        let key = text.trim_ascii();
        if !(1..=IDEMPOTENCY_KEY_CHARS_MAX).contains(&key.len()) || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return wrong(&shown(key));
        }
        let mut hash = digest::Context::new(&digest::SHA256);
        hash.update(path.as_bytes());
        hash.update(&[0]);
        params.canonical(|bytes| hash.update(bytes));
        Ok(Some(Self { key: key.to_owned(), fingerprint: hash.finish().as_ref().to_vec() }))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;
    use crate::params::BodyFormat;

    fn read(key: &[u8], path: &str, form: &str) -> Result<Option<Idempotency>, Code> {
        let headers =
            HeaderMap::from_iter([(IDEMPOTENCY_KEY, HeaderValue::from_bytes(key).expect("a header's value"))]);
        let params = Params::read(None, &BodyFormat::Form, form.as_bytes()).expect("a form");
        Idempotency::read(&headers, path, &params).map_err(|failure| failure.code)
    }

    #[test]
    fn a_key_is_1_to_64_visible_characters() {
        for good in [&b"k"[..], b"8f14e45f-ceea-4671", b"!~", &[b'x'; 64]] {
            let read = read(good, "/", "").expect("a key").expect("given");
            assert_eq!(read.key.as_bytes(), good);
        }
        for bad in [&b""[..], b" ", b"a b", b"a\tb", b"\xc3\xa4", b"\xff", &[b'x'; 65]] {
            assert_eq!(read(bad, "/", ""), Err(Code::BadValue), "{bad:?}");
        }
        let none = Idempotency::read(&HeaderMap::new(), "/", &Params::default());
        assert_eq!(none, Ok(None));
    }

    #[test]
    fn the_fingerprint_tells_requests_apart_but_not_orders_of_parameters() {
        let print = |path, form| read(b"k", path, form).expect("a key").expect("given").fingerprint;
        let first = print("/a", "x=1&y=2&l=a&l=b");
        assert_eq!(first.len(), 32);
        assert_eq!(first, print("/a", "l=a&y=2&l=b&x=1&z="));
        for other in ["x=1&y=2&l=b&l=a", "x=1&y=2&l=a", "x=1&y=2&l=a&l=b&m=c", "x=12&l=a&l=b", "x=2&y=1&l=a&l=b"] {
            assert_ne!(first, print("/a", other), "{other}");
        }
        assert_ne!(first, print("/b", "x=1&y=2&l=a&l=b"));
    }
}
