//! A fake middle tier that keeps what it was asked, and a caller of the router.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request as HttpRequest, StatusCode};
use campanile_http_frontend::{Config, Dependencies, Endpoint, EndpointTls, Http, Limits, WebSockets};
use idl::bus::{Bus, Call, FrontEvent, InProcess, Reply, Request};
use idl::clock::{Clock, SystemEntropy};
use idl::contract::bus as wire;
use idl::error::Failure;
use idl::ids::FrontId;
use prometheus_client::registry::Registry;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio::time::Instant;
use tower_service::Service as _;

/// The wall time of all tests, in milliseconds.
pub(crate) const NOW_MS: u64 = 1_700_000_000_000;

/// The tier over a fake middle.
pub(crate) struct Api {
    pub(crate) router: Router,
    pub(crate) registry: Registry,
    asked: Arc<Mutex<Vec<Call>>>,
}

/// An answer, read.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) envelope: Value,
}

impl Answer {
    pub(crate) fn code(&self) -> i64 {
        self.envelope["code"].as_i64().expect("a code")
    }

    pub(crate) fn description(&self) -> &str {
        self.envelope["description"].as_str().expect("a description")
    }

    pub(crate) fn data(&self) -> &Value {
        &self.envelope["data"]
    }

    /// Asserts success.
    #[track_caller]
    pub(crate) fn accepted(&self) -> &Value {
        assert_eq!((self.status.as_u16(), self.code()), (200, 0), "{self:?}");
        assert_eq!(self.envelope["result"], "ok");
        self.data()
    }

    /// Asserts code, HTTP status and that the description holds `words`.
    #[track_caller]
    pub(crate) fn refused(&self, code: idl::error::Code, status: u16, words: &str) {
        assert_eq!(self.code(), i64::from(code.number()), "{self:?}");
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert!(self.description().contains(words), "{words:?} is not in {:?}", self.description());
        assert_eq!(self.envelope["result"], "error");
        assert_eq!(self.envelope["reason"], code.reason());
        assert_eq!(self.data(), &serde_json::json!({}));
    }
}

impl Api {
    /// With a middle that accepts everything.
    pub(crate) fn new() -> Self {
        Self::with(Limits::default(), |request| Some(Ok(accept(request))))
    }

    /// With a middle that answers by a script; `None` is silence.
    pub(crate) fn with(
        limits: Limits,
        script: impl Fn(&Request) -> Option<Result<Reply, Failure>> + Send + Sync + 'static,
    ) -> Self {
        let (http, registry, asked) = build(config(limits), self_signed().0, script);
        Self { router: http.router(), registry, asked }
    }

    /// Asks with the secret `s3cret` and no body.
    pub(crate) async fn ask(&self, method: &str, path: &str) -> Answer {
        let builder = HttpRequest::builder().method(method).uri(path).header("authorization", "key=s3cret");
        self.call(builder.body(Body::empty()).expect("a request")).await
    }

    /// Sends JSON with the secret `s3cret`.
    pub(crate) async fn json(&self, method: &str, path: &str, body: &Value) -> Answer {
        let builder = HttpRequest::builder().method(method).uri(path).header("authorization", "key=s3cret");
        let builder = builder.header("content-type", "application/json");
        self.call(builder.body(Body::from(body.to_string())).expect("a request")).await
    }

    /// Posts a form with the secret `s3cret`.
    pub(crate) async fn post(&self, path: &str, form: &str) -> Answer {
        self.call(request(path).body(Body::from(form.to_owned())).expect("a request")).await
    }

    pub(crate) async fn call(&self, request: HttpRequest<Body>) -> Answer {
        let response = self.router.clone().call(request).await.expect("infallible");
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 20).await.expect("a body");
        assert_eq!(parts.headers["content-type"], "application/json");
        Answer { status: parts.status, headers: parts.headers, envelope: serde_json::from_slice(&bytes).expect("JSON") }
    }

    /// The HTTP status alone.
    pub(crate) async fn status(&self, request: HttpRequest<Body>) -> StatusCode {
        self.router.clone().call(request).await.expect("infallible").status()
    }

    /// The body, where it is JSON but no envelope.
    pub(crate) async fn json_of(&self, request: HttpRequest<Body>) -> Value {
        let response = self.router.clone().call(request).await.expect("infallible");
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 22).await.expect("a body");
        serde_json::from_slice(&bytes).expect("JSON")
    }

    /// What the middle was asked since the last time.
    pub(crate) fn asked(&self) -> Vec<Call> {
        std::mem::take(&mut *self.asked.lock().expect("not poisoned"))
    }

    /// The one call of an app server that the middle was asked for.
    #[track_caller]
    pub(crate) fn one_call(&self) -> wire::AppCall {
        let mut asked = self.asked();
        assert_eq!(asked.len(), 1, "{asked:?}");
        match asked.pop().map(|call| call.request) {
            Some(Request::App(call)) => *call,
            other => panic!("{other:?} is no call of an app server"),
        }
    }

    /// What the middle was asked for in its one call.
    #[track_caller]
    pub(crate) fn one_ask(&self) -> wire::AppRequest {
        self.one_call().request
    }

    /// The one send that the middle was asked for.
    #[track_caller]
    pub(crate) fn one_send(&self) -> wire::Send {
        match self.one_ask() {
            wire::AppRequest::Send(send) => send,
            other => panic!("{other:?} is no send"),
        }
    }

    /// All metrics as text.
    pub(crate) fn metrics(&self) -> String {
        metrics(&self.registry)
    }
}

pub(crate) fn metrics(registry: &Registry) -> String {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).expect("encodes");
    text
}

/// A POST with the secret `s3cret` and the type of a form.
pub(crate) fn request(path: &str) -> axum::http::request::Builder {
    HttpRequest::post(path)
        .header("authorization", "key=s3cret")
        .header("content-type", "application/x-www-form-urlencoded; charset=UTF-8")
}

pub(crate) fn config(limits: Limits) -> Config {
    let any_port = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    Config {
        https: any_port,
        plain: any_port,
        allow_plain_remote: false,
        endpoints: vec![Endpoint { host: "front.example".into(), port: 5223, tls: EndpointTls::Direct }],
        domain: "push.example".into(),
        limits,
    }
}

type Asked = Arc<Mutex<Vec<Call>>>;

pub(crate) fn build(
    config: Config,
    tls: Arc<rustls::ServerConfig>,
    script: impl Fn(&Request) -> Option<Result<Reply, Failure>> + Send + Sync + 'static,
) -> (Http, Registry, Asked) {
    build_with(config, tls, None, script)
}

pub(crate) fn build_with(
    config: Config,
    tls: Arc<rustls::ServerConfig>,
    websockets: Option<Arc<dyn WebSockets>>,
    script: impl Fn(&Request) -> Option<Result<Reply, Failure>> + Send + Sync + 'static,
) -> (Http, Registry, Asked) {
    let clock = Arc::new(Stopped);
    let bus = InProcess::new(idl::bus::Limits::default(), clock.clone(), Arc::new(SystemEntropy));
    let mut inbox = bus.attach_middle();
    tokio::spawn(async move {
        let mut unanswered = Vec::new();
        while let Some(incoming) = inbox.next().await {
            match script(&incoming.request) {
                Some(result) => incoming.answer.send(result),
                None => unanswered.push(incoming.answer),
            }
        }
    });
    let asked = Asked::default();
    let bus = Arc::new(Watched { bus, asked: Arc::clone(&asked) });
    let mut registry = Registry::default();
    (Http::build(config, Dependencies { bus, tls, clock, websockets }, &mut registry), registry, asked)
}

/// The digest of the secret `s3cret`.
pub(crate) fn secret_sha256() -> Vec<u8> {
    ring::digest::digest(&ring::digest::SHA256, b"s3cret").as_ref().to_vec()
}

/// The answer to an app server, as the middle gives it.
pub(crate) fn answered(answer: wire::AppAnswer) -> Reply {
    let status = wire::Status { code: 0, description: None };
    Reply::App(Box::new(wire::AppReply { status, answer: Some(answer), rate: None, replayed: None }))
}

/// The refusal of an app server's request, as the middle gives it.
pub(crate) fn refused(failure: &Failure) -> Reply {
    Reply::App(Box::new(wire::AppReply { status: failure.to_status(), answer: None, rate: None, replayed: None }))
}

/// Accepts everything.
pub(crate) fn accept(request: &Request) -> Reply {
    match request {
        Request::App(call) => answered(answer(&call.request)),
        Request::CreateAccount(_) => {
            Reply::Account(wire::AccountGranted { account: "0".repeat(26), token: "t0ken".into() })
        }
        Request::RenewToken(renew) => {
            Reply::Account(wire::AccountGranted { account: renew.account.clone(), token: "newer".into() })
        }
        other => panic!("the HTTP tier asks no {}", other.name()),
    }
}

/// The id of a message that the fake middle doesn't know.
pub(crate) const UNKNOWN: &str = "01ZZZZZZZZZZZZZZZZZZZZZZZZ";

/// The id that the fake middle gives to the n-th message of a request.
pub(crate) fn message_id(n: usize) -> String {
    format!("01HF7YAT0000000000000000{n:02}")
}

/// An answer of the kind that belongs to the request.
fn answer(request: &wire::AppRequest) -> wire::AppAnswer {
    use wire::AppRequest as Ask;
    match request {
        Ask::Send(send) => wire::AppAnswer::Accepted(accepted(send, 0)),
        Ask::SendMany(many) => wire::AppAnswer::AcceptedMany(wire::AcceptedMany {
            accepted: many.sends.iter().enumerate().map(|(n, send)| accepted(send, n)).collect(),
            statuses: vec![wire::Status { code: 0, description: None }; many.sends.len()],
        }),
        Ask::ChangeTopic(_) => wire::AppAnswer::TopicChanged(wire::TopicChanged { bad_targets: None }),
        Ask::NamesOf(_) | Ask::RegidsOf(_) | Ask::TakeInvalid(_) => {
            wire::AppAnswer::Texts(wire::Texts { texts: vec!["x".into(), "y".into()] })
        }
        Ask::Online(asked) => {
            let state = |(n, regid): (usize, &String)| wire::OnlineState {
                regid: regid.clone(),
                known: regid != "bad",
                online: n == 0,
                last_seen_ms: (n > 0).then_some(5),
            };
            wire::AppAnswer::Online(wire::OnlineStates { states: asked.regids.iter().enumerate().map(state).collect() })
        }
        Ask::Counters(asked) => wire::AppAnswer::Days(wire::Days { days: vec![day(&asked.first_day)] }),
        Ask::MessageStatus(_) => {
            wire::AppAnswer::Messages(wire::MessageStates { messages: vec![message(2), message(1)] })
        }
        Ask::Messages(_) => wire::AppAnswer::Messages(wire::MessageStates { messages: vec![message(3)] }),
        Ask::Stop(stop) => {
            let names = stop.names.iter().filter_map(|name| name.id.clone().or_else(|| name.job_key.clone()));
            let (unknown, found) = names.partition(|name| name == "unknown" || name == UNKNOWN);
            wire::AppAnswer::Stopped(wire::Stopped { found, unknown })
        }
        Ask::Trace(_) => wire::AppAnswer::Traced(wire::Traced {
            steps: vec![
                wire::TraceStep { what: "accepted".into(), at_ms: Some(1), front: None, reason: None },
                wire::TraceStep { what: "dispatched".into(), at_ms: None, front: Some("f".into()), reason: None },
                wire::TraceStep { what: "dropped".into(), at_ms: Some(3), front: None, reason: Some("expired".into()) },
            ],
        }),
        Ask::Schedule(name) => wire::AppAnswer::Schedule(schedule(name.id.as_deref().unwrap_or("by key"))),
        Ask::ChangeSchedule(change) => wire::AppAnswer::Schedule(schedule(&change.id)),
        Ask::Schedules(_) => wire::AppAnswer::Schedules(wire::ScheduleStates {
            schedules: vec![schedule("s1")],
            next_after: Some("s1".into()),
        }),
        Ask::DeleteSchedule(wire::MessageName { id, .. }) => changed(id.as_deref()),
        Ask::PutSegment(segment) => changed(Some(&segment.name)),
        Ask::PutTemplate(template) => changed(Some(&template.name)),
        Ask::DeleteSegment(name) | Ask::DeleteTemplate(name) => changed(Some(&name.name)),
        Ask::Recall(_) => changed(None),
        Ask::Segment(name) => wire::AppAnswer::Segment(segment(&name.name)),
        Ask::Segments(_) => {
            wire::AppAnswer::Segments(wire::Segments { segments: vec![segment("a"), segment("b")], next_after: None })
        }
        Ask::Template(name) => wire::AppAnswer::Template(template(&name.name)),
        Ask::Templates(_) => {
            wire::AppAnswer::Templates(wire::Templates { templates: vec![template("a")], next_after: Some("a".into()) })
        }
        Ask::Receipts(_) => wire::AppAnswer::Receipts(wire::Receipts {
            receipts: vec![wire::Receipt {
                id: "r1".into(),
                message: message_id(0),
                kind: 1,
                target: "alice".into(),
                at_ms: 9,
                param: Some("p".into()),
                job_key: None,
                regid: Some("reg".into()),
            }],
            next_after: "r1".into(),
        }),
        Ask::Registration(name) => wire::AppAnswer::Registration(wire::RegistrationState {
            regid: name.name.clone(),
            online: true,
            last_seen_ms: Some(4),
            enabled: true,
            attributes: [("platform".to_owned(), "android".to_owned())].into(),
            aliases: vec!["alice".into()],
            user_accounts: vec![],
            topics: vec!["news".into()],
            mailbox_length: 2,
            created_at_ms: 1,
        }),
    }
}

fn accepted(send: &wire::Send, n: usize) -> wire::Accepted {
    let dry = send.dry_run == Some(true);
    wire::Accepted {
        id: (!dry).then(|| message_id(n)),
        bad_targets: None,
        audience: dry.then(|| wire::AudienceCount { registrations: 3, online: 1, how: "exact".into() }),
        due_ms: send.send_at_ms,
    }
}

fn changed(name: Option<&str>) -> wire::AppAnswer {
    wire::AppAnswer::Changed(wire::Changed { existed: !matches!(name, Some("unknown" | UNKNOWN)) })
}

/// A message that was accepted at `n` s.
pub(crate) fn message(n: i64) -> wire::MessageState {
    wire::MessageState {
        id: format!("01M{n}"),
        kind: 1,
        state: "sending".into(),
        created_at_ms: n * 1000,
        ttl_ms: 3_600_000,
        resolved: 7,
        how_resolved: "exact".into(),
        delivered: 4,
        clicked: 1,
        invalid_targets: n,
        job_key: Some("k".into()),
        topic: None,
        due_ms: None,
        messages: None,
        dropped: Some(2),
    }
}

fn day(day: &str) -> wire::DayCounters {
    wire::DayCounters {
        day: day.to_owned(),
        alias_recipients: 1,
        user_account_recipients: 2,
        regid_recipients: 3,
        single_recipients: 6,
        broadcast_recipients: 5,
        delivered: 7,
        clicked: 8,
        messages: 9,
    }
}

fn schedule(id: &str) -> wire::ScheduleState {
    wire::ScheduleState {
        id: id.to_owned(),
        job_key: None,
        created_at_ms: 1,
        due_ms: 2,
        local_time: None,
        repeat: Some(wire::Repeat { cron: "0 9 * * *".into(), time_zone: "UTC".into(), until_ms: Some(3) }),
        state: if id == "over" { "done".into() } else { "waiting".into() },
        fired: 4,
        last_message: Some(message_id(0)),
    }
}

fn segment(name: &str) -> wire::Segment {
    wire::Segment { name: name.to_owned(), expression: "all".into(), changed_at_ms: Some(6) }
}

fn template(name: &str) -> wire::Template {
    wire::Template {
        name: name.to_owned(),
        title: Some("{{t}}".into()),
        description: None,
        payload: Some("p".into()),
        extra: None,
        changed_at_ms: Some(6),
    }
}

/// A server's TLS configuration for `localhost`, and its certificate.
pub(crate) fn self_signed() -> (Arc<rustls::ServerConfig>, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let certificate = made.cert.der().clone();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .expect("a key");
    (Arc::new(config), certificate)
}

/// A clock that always says [`NOW_MS`].
pub(crate) struct Stopped;

impl Clock for Stopped {
    fn now_ms(&self) -> u64 {
        NOW_MS
    }
}

/// The in-process bus, keeping what it was asked: the shard is seen by the bus alone.
struct Watched {
    bus: InProcess,
    asked: Asked,
}

#[async_trait]
impl Bus for Watched {
    async fn request(&self, call: Call) -> Result<Reply, Failure> {
        assert!(call.deadline > Instant::now() && call.deadline <= Instant::now() + Duration::from_mins(1));
        self.asked.lock().expect("not poisoned").push(call.clone());
        self.bus.request(call).await
    }

    async fn deliver(
        &self,
        front: FrontId,
        batch: wire::FrontBatch,
        deadline: Instant,
    ) -> Result<wire::FrontBatchReply, Failure> {
        self.bus.deliver(front, batch, deadline).await
    }

    async fn publish(&self, event: FrontEvent, deadline: Instant) -> Result<(), Failure> {
        self.bus.publish(event, deadline).await
    }
}
