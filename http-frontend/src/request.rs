//! What happens to every request, whatever its path: it is counted, shed when there are too many, read within its time
//! and size, and answered in the envelope.

use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::Response;
use idl::error::{Code, Failure};
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, timeout_at};

use crate::Shared;
use crate::metrics::{Held, Limit};
use crate::params::{BodyFormat, Params};
use crate::reply::{Done, Manner, Refusal, envelope};
use crate::routes::Route;

/// How much of a body that is too long is read after the limit, so that its sender gets to read the answer.
const DISCARDED_BYTES_MAX: usize = 16 << 20;

/// Where a request came from, as the accept loop saw it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// A request that was read.
pub(crate) struct Received {
    pub(crate) headers: HeaderMap,
    pub(crate) params: Params,
    /// When the caller has waited long enough; also the bus's deadline.
    pub(crate) deadline: Instant,
}

/// Serves one request on a path of the table.
pub(crate) async fn serve(shared: Arc<Shared>, route: Route, request: Request) -> Response {
    let started = Instant::now();
    let manner = route.what.manner();
    let trace_id = shared.traces.next();
    let _in_flight = Held::new(&shared.metrics.in_flight);
    let outcome = handle(&shared, route, request, started + shared.limits.request_time_max).await;
    finish(&shared, route.path, manner, &trace_id, started, outcome)
}

/// Answers a request on a path that isn't in the table.
pub(crate) fn unknown(shared: &Shared, request: &Request) -> Response {
    let started = Instant::now();
    let path = request.uri().path();
    let manner = Manner::of_unknown(path);
    let shown: String = path.chars().take(100).collect();
    let description = format!("the path {shown:?} is not served by this version");
    let outcome = Err(Failure::new(Code::Illegal, description).into());
    finish(shared, "unknown", manner, &shared.traces.next(), started, outcome)
}

fn finish(
    shared: &Shared,
    path: &'static str,
    manner: Manner,
    trace_id: &str,
    started: Instant,
    outcome: Result<Done, Refusal>,
) -> Response {
    let code = outcome.as_ref().map_or_else(|refusal| refusal.failure.code.number(), |_| 0);
    shared.metrics.answered(path, code, started.elapsed());
    match &outcome {
        // A fault of ours is worth an operator's look; the rest is between the caller and the table of codes.
        Err(refusal) if matches!(refusal.failure.code, Code::System | Code::StoreUnavailable | Code::TimedOut) => {
            tracing::warn!(trace_id, path, code, reason = %refusal.failure.description, "request failed");
        }
        _ => tracing::debug!(trace_id, path, code, "request answered"),
    }
    envelope(manner, trace_id, outcome)
}

async fn handle(shared: &Shared, route: Route, request: Request, deadline: Instant) -> Result<Done, Refusal> {
    if request.method() != Method::POST {
        let description = format!("{} takes POST, not {}", route.path, request.method());
        return Err(Failure::new(Code::Illegal, description).into());
    }
    let Ok(_place) = shared.requests.try_acquire() else {
        shared.metrics.hit(Limit::requests_max);
        return Err(Failure::new(Code::Busy, "too many requests are under way; try again").into());
    };
    // Unspecified where there is no connection: in tests of the router.
    let address = request.extensions().get::<Peer>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0.ip());
    route.what.admit(shared, address)?;
    let (parts, body) = request.into_parts();
    let mut bodies = shared.bodies.try_acquire_many(0).ok();
    let mut body = Announced { body, waits: parts.headers.contains_key(header::EXPECT) };
    let body = timeout_at(deadline, read(shared, &mut body, &mut bodies, deadline)).await.unwrap_or_else(|_| {
        shared.metrics.hit(Limit::request_time_max);
        let seconds = shared.limits.request_time_max.as_secs_f64();
        let description = format!("the body did not arrive within {seconds} s; nothing was done");
        Err(Refusal::with_status(StatusCode::REQUEST_TIMEOUT, Code::BadRequest, description))
    })?;
    let params = Params::read(parts.uri.query(), BodyFormat::from_headers(&parts.headers), &body)?;
    drop((body, bodies));
    let received = Received { headers: parts.headers, params, deadline };
    route.what.handle(shared, received).await
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
) -> Result<Vec<u8>, Refusal> {
    let limit = shared.limits.body_bytes_max;
    let mut bytes = Vec::new();
    let mut too_large = body.body.size_hint().lower() > limit as u64;
    while !too_large {
        let Some(data) = body.next().await? else { return Ok(bytes) };
        too_large = bytes.len() + data.len() > limit;
        let more = u32::try_from(data.len()).ok().and_then(|length| shared.bodies.try_acquire_many(length).ok());
        let (Some(held), Some(more)) = (held.as_mut(), more) else {
            shared.metrics.hit(Limit::bodies_bytes_max);
            return Err(Failure::new(Code::Busy, "too many request bodies are being read; try again").into());
        };
        held.merge(more);
        bytes.extend_from_slice(&data);
    }
    shared.metrics.hit(Limit::body_bytes_max);
    drop((bytes, held.take()));
    if !body.waits {
        body.discard(deadline).await;
    }
    let description = format!("the request's body is longer than {limit} bytes; send fewer targets in one request");
    Err(Refusal::with_status(StatusCode::PAYLOAD_TOO_LARGE, Code::BadRequest, description))
}
