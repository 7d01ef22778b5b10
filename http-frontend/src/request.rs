//! What happens to every request, whatever its path: it is counted, shed when there are too many, read within its time
//! and size, and answered in the envelope.

use std::borrow::Cow;
use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use idl::error::{Code, Failure};
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, timeout_at};

use crate::auth::SecretDigest;
use crate::call::{Ask, Idempotency, Received};
use crate::devices::DeviceAsk;
use crate::metrics::{Held, Limit};
use crate::params::{BodyFormat, Params, unwrapped};
use crate::reply::{Manner, Outcome, Refusal, envelope};
use crate::routes::{Route, What, Whose};
use crate::{Shared, devices, docs, websocket};

/// How much of a body that is too long is read after the limit, so that its sender gets to read the answer.
const DISCARDED_BYTES_MAX: usize = 16 << 20;

/// Where a request came from, as the accept loop saw it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// Serves one request.
pub(crate) async fn respond(shared: Arc<Shared>, request: Request) -> Response {
    let is_head = request.method() == Method::HEAD;
    let response = serve(&shared, request).await;
    if is_head { without_body(response) } else { response }
}

async fn serve(shared: &Shared, mut request: Request) -> Response {
    let started = Instant::now();
    if let Some((path, response)) = websocket::answer(shared.websockets.as_ref(), &mut request) {
        shared.metrics.answered(path, 0, started.elapsed());
        return response;
    }
    let trace_id = shared.traces.next();
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    let Some((route, argument)) = shared.routes.find(path) else {
        let shown: String = path.chars().take(100).collect();
        let failure = Failure::new(Code::Illegal, format!("the path {shown:?} is not served by this version"));
        let outcome = with_last_rate(shared, &parts.headers, failure.into());
        return finish(shared, "unknown", Manner::of(path), &trace_id, started, outcome);
    };
    let Some(what) = route.operation(&parts.method) else {
        if parts.method == Method::OPTIONS {
            return allowed(route);
        }
        let outcome = with_last_rate(shared, &parts.headers, wrong_method(route, &parts.method).into());
        return finish(shared, route.path, route.manner(), &trace_id, started, outcome);
    };
    if let Some(page) = docs::page(shared, what) {
        shared.metrics.answered(route.path, 0, started.elapsed());
        return page;
    }
    let _in_flight = Held::new(&shared.metrics.in_flight);
    let deadline = started + shared.limits.request_time_max;
    let outcome = handle(shared, Routed { route, what, argument }, &parts, body, deadline).await;
    let outcome = with_last_rate(shared, &parts.headers, outcome);
    finish(shared, route.path, route.manner(), &trace_id, started, outcome)
}

/// What is refused without the middle tier's word has the rate that the same secret was last answered.
fn with_last_rate(shared: &Shared, headers: &HeaderMap, mut outcome: Outcome) -> Outcome {
    if outcome.result.is_err() && !outcome.answered {
        let secret = SecretDigest::from_headers(headers).ok();
        outcome.rate = secret.and_then(|secret| shared.quotas.last(secret, Instant::now()));
    }
    outcome
}

/// Where a request goes.
struct Routed<'p> {
    route: &'static Route,
    what: What,
    argument: Cow<'p, str>,
}

fn wrong_method(route: &Route, method: &Method) -> Refusal {
    let allow = route.allow();
    let shown: String = method.as_str().chars().take(32).collect();
    let verbs: Vec<&str> = route.operations().map(|(verb, _)| verb.name()).collect();
    let description = format!("{} takes {}, not {shown}", route.path, verbs.join(" or "));
    let status = match route.manner() {
        Manner::MiPush => None,
        Manner::Campanile => Some(StatusCode::METHOD_NOT_ALLOWED),
    };
    Refusal { status, allow: Some(allow), ..Refusal::from(Failure::new(Code::Illegal, description)) }
}

/// The answer to OPTIONS (RFC 9110 §9.3.7).
fn allowed(route: &Route) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    if let Ok(allow) = HeaderValue::try_from(route.allow()) {
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
}

/// The answer to HEAD (RFC 9110 §9.3.2): as to GET, without the body, but with its length.
fn without_body(response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    if let Some(length) = body.size_hint().exact() {
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    Response::from_parts(parts, Body::empty())
}

fn finish(
    shared: &Shared,
    path: &'static str,
    manner: Manner,
    trace_id: &str,
    started: Instant,
    outcome: Outcome,
) -> Response {
    let code = outcome.result.as_ref().map_or_else(|refusal| refusal.failure.code.number(), |_| 0);
    shared.metrics.answered(path, code, started.elapsed());
    match &outcome.result {
        // A fault of ours is worth an operator's look; the rest is between the caller and the table of codes.
        Err(refusal) if matches!(refusal.failure.code, Code::System | Code::StoreUnavailable | Code::TimedOut) => {
            tracing::warn!(trace_id, path, code, reason = %refusal.failure.description, "request failed");
        }
        _ => tracing::debug!(trace_id, path, code, "request answered"),
    }
    envelope(manner, trace_id, outcome)
}

/// Reads a request and does what it asks for.
async fn handle(shared: &Shared, routed: Routed<'_>, parts: &Parts, body: Body, deadline: Instant) -> Outcome {
    let Ok(_place) = shared.requests.try_acquire() else {
        shared.metrics.hit(Limit::requests_max);
        return Failure::new(Code::Busy, "too many requests are under way; try again").into();
    };
    let prepared = match prepare(shared, &routed, parts, body, deadline).await {
        Ok(prepared) => prepared,
        Err(refusal) => return refusal.into(),
    };
    match prepared {
        Prepared::App(secret, ask) => {
            let outcome = ask.carry(&*shared.bus, deadline).await;
            if outcome.answered {
                shared.quotas.answered(secret, outcome.rate.as_ref(), Instant::now());
            }
            outcome
        }
        Prepared::Device(ask) => ask.carry(shared, deadline).await.map_err(Refusal::from).into(),
    }
}

/// A request that was read: nothing of it as it came is held while the middle tier is asked.
enum Prepared {
    App(SecretDigest, Ask),
    Device(DeviceAsk),
}

async fn prepare(
    shared: &Shared,
    routed: &Routed<'_>,
    parts: &Parts,
    body: Body,
    deadline: Instant,
) -> Result<Prepared, Refusal> {
    if routed.what.whose() == Whose::Device {
        // Unspecified where there is no connection: in tests without sockets.
        let address = parts.extensions.get::<Peer>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0.ip());
        devices::admit(shared, address)?;
    }
    let mut bodies = shared.bodies.try_acquire_many(0).ok();
    let mut body = Announced { body, waits: parts.headers.contains_key(header::EXPECT) };
    let body = timeout_at(deadline, read(shared, &mut body, &mut bodies, deadline)).await.unwrap_or_else(|_| {
        shared.metrics.hit(Limit::request_time_max);
        let seconds = shared.limits.request_time_max.as_secs_f64();
        let description = format!("the body did not arrive within {seconds} s; nothing was done");
        Err(Refusal::with_status(StatusCode::REQUEST_TIMEOUT, Code::BadRequest, description))
    })?;
    let format = BodyFormat::from_headers(&parts.headers);
    let query = match (parts.uri.query(), routed.route.manner()) {
        (Some(query), Manner::MiPush) => Some(unwrapped(query)),
        (query, _) => query,
    };
    if routed.what.whose() == Whose::Device {
        let params = Params::read(query, &format, &body)?;
        return Ok(Prepared::Device(DeviceAsk::read(shared, routed.what, &params)?));
    }
    let secret = SecretDigest::from_headers(&parts.headers)?;
    let params = Params::read(query, &format, &body)?;
    let idempotency =
        if routed.what.sends() { Idempotency::read(&parts.headers, routed.route.path, &params)? } else { None };
    let received = Received { params, argument: &routed.argument, secret, now_ms: shared.clock.now_ms() };
    let ask = routed.what.ask(&received).ok_or_else(|| Failure::from(Code::NotServed))??;
    let ask = match idempotency {
        Some(idempotency) => ask.once(idempotency),
        None => ask,
    };
    Ok(Prepared::App(secret, ask))
}

/// A body, and whether its sender waits for `100 Continue` before sending it (RFC 9110 §10.1.1), which hyper sends when
/// the body is first asked for.
struct Announced {
    body: Body,
    waits: bool,
}

impl Announced {
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        self.waits = false;
        while let Some(frame) = poll_fn(|context| Pin::new(&mut self.body).poll_frame(context)).await {
            let frame = frame.map_err(|error| {
                Failure::new(Code::BadRequest, format!("the request's body can't be read: {error}"))
            })?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// Reads on without keeping anything: a sender who is cut off while it sends may never see the answer.
    async fn discard(&mut self, deadline: Instant) {
        let mut discarded = 0;
        let discard = async {
            while let Ok(Some(data)) = self.next().await {
                discarded += data.len();
                if discarded > DISCARDED_BYTES_MAX {
                    break;
                }
            }
        };
        // Whether it ended in time or not, the answer is the same.
        let _ = timeout_at(deadline, discard).await;
    }
}

/// Reads the whole body. What is held of all bodies is counted in `held`, as it comes and not as it is announced, so that
/// slow senders hold little.
async fn read<'a>(
    shared: &'a Shared,
    body: &mut Announced,
    held: &mut Option<SemaphorePermit<'a>>,
    deadline: Instant,
) -> Result<Bytes, Refusal> {
    let limit = shared.limits.body_bytes_max;
    // Most bodies come in one piece, which needs no copy.
    let (mut piece, mut pieces) = (Bytes::new(), Vec::new());
    let mut too_large = body.body.size_hint().lower() > limit as u64;
    while !too_large {
        let Some(data) = body.next().await? else { return Ok(if pieces.is_empty() { piece } else { pieces.into() }) };
        too_large = piece.len() + pieces.len() + data.len() > limit;
        let more = u32::try_from(data.len()).ok().and_then(|length| shared.bodies.try_acquire_many(length).ok());
        let (Some(held), Some(more)) = (held.as_mut(), more) else {
            shared.metrics.hit(Limit::bodies_bytes_max);
            return Err(Failure::new(Code::Busy, "too many request bodies are being read; try again").into());
        };
        held.merge(more);
        if piece.is_empty() && pieces.is_empty() {
            piece = data;
        } else {
            pieces.extend_from_slice(&std::mem::take(&mut piece));
            pieces.extend_from_slice(&data);
        }
    }
    shared.metrics.hit(Limit::body_bytes_max);
    drop((piece, pieces, held.take()));
    if !body.waits {
        body.discard(deadline).await;
    }
    let description = format!("the request's body is longer than {limit} bytes; send fewer targets in one request");
    Err(Refusal::with_status(StatusCode::PAYLOAD_TOO_LARGE, Code::BadRequest, description))
}
