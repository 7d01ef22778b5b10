//! What is answered while an engine is away.

use std::time::Duration;

use idl::error::Code;

use crate::harness::http::{Answer, Http};
use crate::harness::wait_for;
use crate::stream::{Stream, now};

/// `limits.http_request_ms_max` as it is by itself, and what a busy machine may add.
const ANSWER_MAX: Duration = Duration::from_secs(10 + 3);

/// A request that needs an engine.
pub(crate) type Asking = fn(&Http, regid: &str) -> Answer;

/// What is sent to a registration.
pub(crate) fn send(http: &Http, regid: &str) -> Answer {
    http.post("/v3/message/regid", &[("registration_id", regid), ("payload", "mark while something is away")])
}

/// What is sent to a topic.
pub(crate) fn broadcast(http: &Http, _: &str) -> Answer {
    http.post("/v3/message/topic", &[("topic", "nobody"), ("payload", "mark while something is away")])
}

/// A list out of the catalog.
pub(crate) fn schedules(http: &Http, _: &str) -> Answer {
    http.get("/campanile/v1/schedules", &[])
}

/// Shows that each of these requests is answered within its deadline with a code that says "try again", and that each of
/// these processes says which engine is away.
pub(crate) fn check(stream: &Stream, engine: &str, asking: &[Asking], not_ready: &[&str]) {
    let http = Http::of(&stream.server);
    for ask in asking {
        let begun = now();
        let answer = ask(&http, stream.regid(0));
        let took = begun.elapsed();
        assert!(took < ANSWER_MAX, "{engine} is away: {took:?} for {answer:?}");
        let code = i32::try_from(answer.code()).ok().and_then(Code::from_number);
        let code = code.unwrap_or_else(|| panic!("{engine} is away: {answer:?}"));
        assert!(code.retryable(), "{engine} is away: {answer:?}");
        assert!(matches!(answer.status, 429 | 503 | 504), "{engine} is away: {answer:?}");
        println!("        {engine} is away: {} in {} ms: {}", answer.code(), took.as_millis(), answer.description());
    }
    for process in not_ready {
        let says = wait_for(format!("{process} is not ready without {engine}"), || {
            let (status, page) = stream.server.telemetry_of(process, "/ready");
            (status == 503).then_some(page)
        });
        assert!(says.contains(engine), "{process}: {says}");
        assert_eq!(stream.server.telemetry_of(process, "/live").0, 200, "{process} must not be restarted for that");
    }
}

/// Waits until every process says that it is ready, without anybody having done anything to it.
pub(crate) fn recovered(stream: &Stream) {
    for process in stream.server.cluster().names() {
        wait_for(format!("{process} is ready again"), || {
            (stream.server.telemetry_of(process, "/ready").0 == 200).then_some(())
        });
    }
}
