//! A fake middle tier that keeps what it was asked, and a caller of the router.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request as HttpRequest, StatusCode};
use campanile_http_frontend::{Config, Dependencies, Endpoint, EndpointTls, Http, Limits};
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

    /// What the middle was asked since the last time.
    pub(crate) fn asked(&self) -> Vec<Call> {
        std::mem::take(&mut *self.asked.lock().expect("not poisoned"))
    }

    /// The one send that the middle was asked for.
    #[track_caller]
    pub(crate) fn one_send(&self) -> wire::Send {
        let mut asked = self.asked();
        assert_eq!(asked.len(), 1, "{asked:?}");
        match asked.pop().map(|call| call.request) {
            Some(Request::Send(send)) => send,
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
    (Http::build(config, Dependencies { bus, tls, clock }, &mut registry), registry, asked)
}

/// Accepts everything.
pub(crate) fn accept(request: &Request) -> Reply {
    match request {
        Request::Send(_) => {
            Reply::Accepted(wire::Accepted { id: "01HF7YAT00000000000000000M".into(), bad_targets: None })
        }
        Request::ChangeTopic(_) => Reply::TopicChanged(wire::TopicChanged { bad_targets: None }),
        Request::CreateAccount(_) => {
            Reply::Account(wire::AccountGranted { account: "0".repeat(26), token: "t0ken".into() })
        }
        Request::RenewToken(renew) => {
            Reply::Account(wire::AccountGranted { account: renew.account.clone(), token: "newer".into() })
        }
        other => panic!("the HTTP tier asks no {}", other.name()),
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
