//! The public HTTPS API: what Mi Push's server SDKs call, Campanile's own beside it, and accounts for devices.
//!
//! A request goes one way: `server` accepts the connection, `request` sheds, reads the body and measures, `routes` says what
//! the path means, `params` turns what came into named parameters, and the file for it (`send`, `topics`, `names`, `stop`, …)
//! makes one question of them. `call` carries that to the middle tier, and `reply` puts the answer into the envelope. What a
//! parameter may hold is in one table, `vocabulary`; from it and the table of routes `openapi` makes the document that
//! describes the API, and `docs` the page to read it. This crate stores nothing and decides nothing about messages: it
//! reaches the middle tier through the bus alone.

mod auth;
mod call;
mod devices;
mod docs;
mod messages;
mod metrics;
mod names;
mod openapi;
mod pages;
mod parameter;
mod params;
mod quotas;
mod rate;
mod registrations;
mod reply;
mod request;
mod routes;
mod saved;
mod schedules;
mod send;
mod server;
mod statistics;
mod stop;
mod topics;
mod vocabulary;
mod websocket;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use idl::bus::Bus;
use idl::clock::SharedClock;
use prometheus_client::registry::Registry;
use serde::Serialize;
use tokio::sync::Semaphore;

use crate::docs::Documents;
use crate::metrics::Metrics;
use crate::quotas::Quotas;
use crate::rate::AddressRate;
use crate::reply::Traces;
use crate::routes::Routes;
pub use crate::server::{Addresses, BoundHttp};
pub use crate::websocket::{Received, WebSocket, WebSockets};

/// How the tier is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where HTTPS is served; port 0 takes any free one.
    pub https: Option<SocketAddr>,
    /// Where plain HTTP is served, for clients that can't use the instance's own CA.
    pub plain: Option<SocketAddr>,
    /// Lets the plain listener bind an address that isn't loopback.
    pub allow_plain_remote: bool,
    /// Where devices connect, as told to them with their account; [`BoundHttp::set_endpoints`] replaces them.
    pub endpoints: Vec<Endpoint>,
    /// The domain of device accounts: an account's address is `<id>@<domain>`.
    pub domain: String,
    /// What may be asked of this tier.
    pub limits: Limits,
}

/// Where devices connect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// How TLS begins there.
    pub tls: EndpointTls,
}

/// How TLS begins on an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointTls {
    /// With the first byte (XEP-0368).
    Direct,
    /// After `<starttls/>` (RFC 6120 §5).
    StartTls,
}

/// What may be asked of this tier. Each limit has a counter that tells when it was hit.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Longest request body; a longer one is answered with HTTP 413.
    pub body_bytes_max: usize,
    /// Bytes of all bodies that are held at once; a request beyond is shed as busy.
    pub bodies_bytes_max: usize,
    /// Requests under way at once; one beyond is shed as busy.
    pub requests_max: usize,
    /// Connections open at once; one beyond is closed at once.
    pub connections_max: usize,
    /// Connections open at once from one address (IPv6: from one /64); 0 means no such limit.
    pub connections_per_address_max: usize,
    /// TLS handshakes under way at once; further ones wait, within [`Limits::handshake_time_max`].
    pub handshakes_max: usize,
    /// From the TCP connection to the end of the TLS handshake.
    pub handshake_time_max: Duration,
    /// From a connection's start, or its last answer, to the end of the next request's header. An idle connection is
    /// closed after that time.
    pub header_time_max: Duration,
    /// From the end of a request's header to its answer: reading the body and the bus call. It is the deadline given
    /// to the bus.
    pub request_time_max: Duration,
    /// How long a connection may take to end after the drain began.
    pub drain_time_max: Duration,
    /// New or renewed device accounts for one address (IPv6: for one /64) in a minute; 0 means no such limit.
    pub accounts_per_address_per_minute: u32,
    /// Addresses whose rates are remembered; beyond that number, those that are new share one rate.
    pub addresses_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // A thousand messages of the longest payload.
            body_bytes_max: 8 << 20,
            bodies_bytes_max: 128 << 20,
            requests_max: 8192,
            connections_max: 16_384,
            connections_per_address_max: 4096,
            handshakes_max: 256,
            handshake_time_max: Duration::from_secs(10),
            header_time_max: Duration::from_mins(1),
            request_time_max: Duration::from_secs(10),
            drain_time_max: Duration::from_secs(10),
            accounts_per_address_per_minute: 60,
            addresses_max: 65_536,
        }
    }
}

/// What the tier needs from others.
pub struct Dependencies {
    /// The way to the middle tier.
    pub bus: Arc<dyn Bus>,
    /// Certificate and key. Its list of application protocols is replaced by `h2` and `http/1.1`.
    pub tls: Arc<rustls::ServerConfig>,
    /// Wall time.
    pub clock: SharedClock,
    /// Who takes XMPP over WebSocket; `None` where no device connections are held.
    pub websockets: Option<Arc<dyn WebSockets>>,
}

/// The tier, built but not yet bound.
pub struct Http {
    shared: Arc<Shared>,
    config: Config,
    tls: Arc<rustls::ServerConfig>,
}

impl Http {
    /// Builds the tier and registers its metrics, named `campanile_http_…`.
    pub fn build(config: Config, dependencies: Dependencies, registry: &mut Registry) -> Self {
        let Dependencies { bus, tls, clock, websockets } = dependencies;
        let limits = config.limits.clone();
        let metrics = Metrics::register(registry);
        let shared = Shared {
            traces: Traces::new(clock.now_ms()),
            routes: Routes::new(),
            quotas: Quotas::default(),
            documents: OnceLock::new(),
            websockets,
            bus,
            clock,
            domain: config.domain.clone(),
            endpoints: RwLock::new(config.endpoints.clone()),
            account_rate: AddressRate::per_minute(
                limits.accounts_per_address_per_minute,
                limits.addresses_max,
                metrics.clone(),
            ),
            metrics,
            requests: Semaphore::new(limits.requests_max.min(Semaphore::MAX_PERMITS)),
            bodies: Semaphore::new(limits.bodies_bytes_max.min(Semaphore::MAX_PERMITS)),
            limits,
        };
        Self { shared: Arc::new(shared), config, tls }
    }

    /// The paths and their handlers, for tests that need no sockets. Without a peer address all requests share one rate.
    pub fn router(&self) -> axum::Router {
        let shared = Arc::clone(&self.shared);
        axum::Router::new().fallback(move |request| request::respond(Arc::clone(&shared), request))
    }

    /// Binds the listeners. Fails where an address can't be bound, and with [`io::ErrorKind::InvalidInput`] for a plain
    /// listener that others could reach, unless [`Config::allow_plain_remote`] is set.
    pub async fn bind(self) -> io::Result<BoundHttp> {
        BoundHttp::bind(self.shared, &self.config, &self.tls).await
    }
}

/// What all requests share.
struct Shared {
    bus: Arc<dyn Bus>,
    clock: SharedClock,
    limits: Limits,
    domain: String,
    endpoints: RwLock<Vec<Endpoint>>,
    metrics: Metrics,
    account_rate: AddressRate,
    quotas: Quotas,
    requests: Semaphore,
    bodies: Semaphore,
    traces: Traces,
    routes: Routes,
    /// Made when somebody first asks for them.
    documents: OnceLock<Documents>,
    websockets: Option<Arc<dyn WebSockets>>,
}

impl Shared {
    fn endpoints(&self) -> Vec<Endpoint> {
        self.endpoints.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_endpoints(&self, endpoints: Vec<Endpoint>) {
        *self.endpoints.write().unwrap_or_else(PoisonError::into_inner) = endpoints;
    }
}
