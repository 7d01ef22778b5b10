//! Overload and slowness: each limit answers with its code and counts.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use campanile_http_frontend::Limits;
use idl::error::Code;

use crate::middle::{Api, accept, request};

/// A body that comes in pieces of 100 bytes, and never ends if it is `open`. Its length isn't known, unless it was
/// `announced`.
struct Pieces {
    left: usize,
    open: bool,
    announced: bool,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        match self.left {
            0 if self.open => Poll::Pending,
            0 => Poll::Ready(None),
            _ => {
                self.left -= 1;
                Poll::Ready(Some(Ok(hyper::body::Frame::data(Bytes::from_static(&[b'x'; 100])))))
            }
        }
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        let mut hint = hyper::body::SizeHint::new();
        if self.announced {
            hint.set_lower(self.left as u64 * 100);
        }
        hint
    }
}

fn hit(api: &Api, limit: &str) -> bool {
    api.metrics().contains(&format!(r#"campanile_http_limit_hits_total{{limit="{limit}"}} 1"#))
}

#[tokio::test(start_paused = true)]
async fn a_body_over_its_limit_is_413_in_the_envelope_whether_its_length_is_known_or_not() {
    let limits = || Limits { body_bytes_max: 1000, ..Limits::default() };
    let known = Api::with(limits(), |request| Some(Ok(accept(request))));
    let answer = known.post("/v2/message/all", &format!("payload={}", "x".repeat(993))).await;
    answer.refused(Code::BadRequest, 413, "longer than 1000 bytes");
    assert!(hit(&known, "body_bytes_max"));
    let at_limit = known.post("/v2/message/all", &format!("payload={}", "x".repeat(992))).await;
    assert_eq!(at_limit.code(), 0);
    let unknown = Api::with(limits(), |request| Some(Ok(accept(request))));
    let body = Body::new(Pieces { left: 11, open: true, announced: false });
    let answer = unknown.call(request("/v2/message/all").body(body).expect("a request")).await;
    answer.refused(Code::BadRequest, 413, "longer than 1000 bytes");
    assert!(hit(&unknown, "body_bytes_max"));
    let waiting = request("/v2/message/all").header("expect", "100-continue");
    let body = Body::new(Pieces { left: 11, open: true, announced: true });
    let started = tokio::time::Instant::now();
    let answer = unknown.call(waiting.body(body).expect("a request")).await;
    answer.refused(Code::BadRequest, 413, "longer than 1000 bytes");
    assert!(started.elapsed().is_zero(), "who waits for 100 Continue is answered at once");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_end_in_time_is_given_up() {
    let limits = Limits { request_time_max: Duration::from_secs(3), ..Limits::default() };
    let api = Api::with(limits, |request| Some(Ok(accept(request))));
    let body = Body::new(Pieces { left: 1, open: true, announced: false });
    let answer = api.call(request("/v2/message/all").body(body).expect("a request")).await;
    answer.refused(Code::BadRequest, 408, "did not arrive within 3 s");
    assert!(hit(&api, "request_time_max"));
}

#[tokio::test(start_paused = true)]
async fn a_silent_middle_is_a_timeout_that_says_it_may_have_happened() {
    let api = Api::with(Limits::default(), |_| None);
    let started = tokio::time::Instant::now();
    let answer = api.post("/v2/message/all", "payload=p").await;
    answer.refused(Code::TimedOut, 504, "it may have happened");
    assert_eq!(started.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_request_beyond_those_under_way_is_shed_as_busy() {
    let limits = Limits { requests_max: 1, ..Limits::default() };
    let api = Api::with(limits, |_| None);
    let waiting = api.post("/v2/message/all", "payload=p");
    let shed = async {
        // The first request is waiting for the middle once it has asked.
        while api.metrics().contains("campanile_http_requests_in_flight 0") {
            tokio::task::yield_now().await;
        }
        api.post("/v2/message/all", "payload=p").await
    };
    let (waited, shed) = tokio::join!(waiting, shed);
    shed.refused(Code::Busy, 503, "try again");
    assert_eq!(shed.headers["retry-after"], "1");
    assert_eq!(waited.code(), i64::from(Code::TimedOut.number()));
    assert!(hit(&api, "requests_max"));
    assert!(api.metrics().contains("campanile_http_requests_in_flight 0"));
}

#[tokio::test(start_paused = true)]
async fn bodies_beyond_what_may_be_held_at_once_are_shed_and_give_back_what_they_held() {
    let limits = Limits { bodies_bytes_max: 500, ..Limits::default() };
    let api = Api::with(limits, |request| Some(Ok(accept(request))));
    let body = Body::new(Pieces { left: 6, open: false, announced: false });
    let answer = api.call(request("/v2/message/all").body(body).expect("a request")).await;
    answer.refused(Code::Busy, 503, "too many request bodies");
    assert!(hit(&api, "bodies_bytes_max"));
    for _ in 0..3 {
        let form = format!("payload={}", "x".repeat(490));
        assert_eq!(api.post("/v2/message/all", &form).await.code(), 0);
    }
}

#[tokio::test]
async fn a_request_that_is_dropped_gives_back_its_place() {
    let limits = Limits { requests_max: 1, ..Limits::default() };
    let api = Api::with(limits, |request| Some(Ok(accept(request))));
    let body = Body::new(Pieces { left: 0, open: true, announced: false });
    let call = api.call(request("/v2/message/all").body(body).expect("a request"));
    assert!(tokio::time::timeout(Duration::ZERO, call).await.is_err());
    assert_eq!(api.post("/v2/message/all", "payload=p").await.code(), 0);
}
