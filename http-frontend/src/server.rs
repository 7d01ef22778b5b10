//! Listeners and connections: TCP, TLS, HTTP/1.1 and HTTP/2, within limits, until the drain.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::{HandshakeResult, Held, Limit};
use crate::rate::Neighbourhood;
use crate::request::{Peer, respond};
use crate::{Config, Endpoint, Shared, websocket};

/// Requests that one HTTP/2 connection may have under way.
const STREAMS_MAX: u32 = 256;
/// Longest header of a request, in bytes.
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// How long accepting rests after the system refused, for example because no file descriptors are left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The tier with its listeners bound.
pub struct BoundHttp {
    shared: Arc<Shared>,
    https: Option<TcpListener>,
    plain: Option<TcpListener>,
    addresses: Addresses,
    tls: TlsAcceptor,
}

/// Where the listeners are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// HTTPS.
    pub https: Option<SocketAddr>,
    /// Plain HTTP.
    pub plain: Option<SocketAddr>,
}

impl BoundHttp {
    pub(crate) async fn bind(shared: Arc<Shared>, config: &Config, tls: &rustls::ServerConfig) -> io::Result<Self> {
        if let Some(address) = config.plain
            && !address.ip().to_canonical().is_loopback()
            && !config.allow_plain_remote
        {
            let message = format!(
                "the plain HTTP listener on {address} could be reached by others, who could read app secrets: bind it to \
                 127.0.0.1, or set allow_plain_remote"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let https = listen(config.https, "HTTPS").await?;
        let plain = listen(config.plain, "plain HTTP").await?;
        let address = |listener: &Option<TcpListener>| listener.as_ref().map(TcpListener::local_addr).transpose();
        let addresses = Addresses { https: address(&https)?, plain: address(&plain)? };
        let mut tls = tls.clone();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { shared, https, plain, addresses, tls: TlsAcceptor::from(Arc::new(tls)) })
    }

    /// The addresses that are bound, with the ports that port 0 became.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Tells devices from now on to connect here: ports may be known only once the front has bound.
    pub fn set_endpoints(&self, endpoints: Vec<Endpoint>) {
        self.shared.set_endpoints(endpoints);
    }

    /// Serves until `drain` is cancelled, then stops accepting and returns. Connections run on `tasks`: they finish what
    /// they have begun, and end within [`crate::Limits::drain_time_max`].
    pub fn serve(self, drain: CancellationToken, tasks: TaskTracker) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        // In a box, so that what it awaits is compiled with this crate and not with everyone who calls it.
        Box::pin(self.run(drain, tasks))
    }

    async fn run(self, drain: CancellationToken, tasks: TaskTracker) {
        let limits = &self.shared.limits;
        let server = Arc::new(Server {
            connections: Arc::new(Semaphore::new(limits.connections_max.min(Semaphore::MAX_PERMITS))),
            handshakes: Semaphore::new(limits.handshakes_max.min(Semaphore::MAX_PERMITS)),
            addresses: Arc::default(),
            shared: self.shared,
            tls: self.tls,
            drain,
            tasks,
        });
        tokio::join!(server.accept(self.https, true), server.accept(self.plain, false));
    }
}

async fn listen(address: Option<SocketAddr>, what: &str) -> io::Result<Option<TcpListener>> {
    let Some(address) = address else { return Ok(None) };
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) => Err(io::Error::new(error.kind(), format!("{what} can't listen on {address}: {error}"))),
    }
}

struct Server {
    shared: Arc<Shared>,
    tls: TlsAcceptor,
    connections: Arc<Semaphore>,
    handshakes: Semaphore,
    addresses: Arc<Mutex<HashMap<Neighbourhood, usize>>>,
    drain: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    async fn accept(self: &Arc<Self>, listener: Option<TcpListener>, tls: bool) {
        let Some(listener) = listener else { return };
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.drain.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let Some(place) = self.place(peer.ip()) else { continue };
                    let server = Arc::clone(self);
                    self.tasks.spawn(async move { server.connection(stream, peer, tls, place).await });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection can't be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// A connection's place within the limits; `None` closes it.
    fn place(&self, address: IpAddr) -> Option<Place> {
        let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() else {
            self.shared.metrics.hit(Limit::connections_max);
            return None;
        };
        let neighbourhood = Neighbourhood::from(address);
        let mut addresses = lock(&self.addresses);
        let count = addresses.entry(neighbourhood).or_insert(0);
        let limit = self.shared.limits.connections_per_address_max;
        if limit > 0 && *count >= limit {
            self.shared.metrics.hit(Limit::connections_per_address_max);
            return None;
        }
        *count += 1;
        drop(addresses);
        let counted = Held::new(&self.shared.metrics.connections);
        Some(Place { _permit: permit, _counted: counted, addresses: Arc::clone(&self.addresses), neighbourhood })
    }

    async fn connection(&self, stream: TcpStream, peer: SocketAddr, tls: bool, _place: Place) {
        // Replies are small and written at once: waiting for more to send only delays them.
        let _ = stream.set_nodelay(true);
        if !tls {
            return self.http(stream, peer, false).await;
        }
        let handshake = async {
            if self.handshakes.available_permits() == 0 {
                self.shared.metrics.hit(Limit::handshakes_max);
            }
            // The semaphore is never closed, so this waits for a place and can't fail.
            let _turn = self.handshakes.acquire().await;
            self.tls.accept(stream).await
        };
        let result = tokio::select! {
            biased;
            () = self.drain.cancelled() => return,
            result = timeout(self.shared.limits.handshake_time_max, handshake) => result,
        };
        match result {
            Ok(Ok(stream)) => {
                self.shared.metrics.handshake(HandshakeResult::ok);
                self.http(stream, peer, true).await;
            }
            Ok(Err(error)) => {
                self.shared.metrics.handshake(HandshakeResult::failed);
                tracing::debug!(%peer, %error, "TLS handshake failed");
            }
            Err(_) => self.shared.metrics.handshake(HandshakeResult::timed_out),
        }
    }

    async fn http<S>(&self, stream: S, peer: SocketAddr, is_secure: bool)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let limits = &self.shared.limits;
        let activity = Arc::new(Activity::new());
        let service = {
            let (shared, activity) = (Arc::clone(&self.shared), Arc::clone(&activity));
            let connection = websocket::Connection { is_secure, tasks: self.tasks.clone() };
            service_fn(move |request: Request<Incoming>| {
                let (shared, begun) = (Arc::clone(&shared), Begun::new(&activity));
                let mut request = request.map(Body::new);
                request.extensions_mut().insert(Peer(peer));
                request.extensions_mut().insert(connection.clone());
                async move {
                    let response = respond(shared, request).await;
                    drop(begun);
                    Ok::<_, Infallible>(response)
                }
            })
        };
        let mut builder = auto::Builder::new(OnTracker(self.tasks.clone()));
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_time_max)
            .max_buf_size(HEADER_BYTES_MAX as usize + 8192);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEADER_BYTES_MAX);
        let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
        let mut deadline = activity.idle_deadline(limits.header_time_max);
        let mut closing = None;
        loop {
            tokio::select! {
                biased;
                result = connection.as_mut() => {
                    if let Err(error) = result {
                        if error.downcast_ref().is_some_and(hyper::Error::is_timeout) {
                            self.shared.metrics.hit(Limit::header_time_max);
                        }
                        tracing::debug!(%peer, error, "HTTP connection ended");
                    }
                    return;
                }
                () = self.drain.cancelled(), if closing.is_none() => {
                    connection.as_mut().graceful_shutdown();
                    deadline = Instant::now() + limits.drain_time_max;
                    closing = Some(Limit::drain_time_max);
                }
                () = sleep_until(deadline) => {
                    if let Some(limit) = closing {
                        // Neither did the peer close nor could the last bytes be written.
                        return self.shared.metrics.hit(limit);
                    }
                    deadline = activity.idle_deadline(limits.header_time_max);
                    if deadline <= Instant::now() {
                        connection.as_mut().graceful_shutdown();
                        deadline = Instant::now() + limits.drain_time_max;
                        closing = Some(Limit::header_time_max);
                    }
                }
            }
        }
    }
}

/// What a connection takes of the limits; given back when it is dropped.
struct Place {
    _permit: OwnedSemaphorePermit,
    _counted: Held,
    addresses: Arc<Mutex<HashMap<Neighbourhood, usize>>>,
    neighbourhood: Neighbourhood,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut addresses = lock(&self.addresses);
        if let Some(count) = addresses.get_mut(&self.neighbourhood) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&self.neighbourhood);
            }
        }
    }
}

/// Whether a connection has requests under way, and since when not. Hyper's own header timeout covers neither HTTP/2 nor
/// the bytes that tell the two versions apart.
struct Activity {
    started: Instant,
    under_way: AtomicUsize,
    idle_since_ms: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self { started: Instant::now(), under_way: AtomicUsize::new(0), idle_since_ms: AtomicU64::new(0) }
    }

    /// When the connection will have been idle for `idle_max`, if nothing begins until then.
    fn idle_deadline(&self, idle_max: Duration) -> Instant {
        if self.under_way.load(Ordering::Acquire) > 0 {
            return Instant::now() + idle_max;
        }
        self.started + Duration::from_millis(self.idle_since_ms.load(Ordering::Acquire)) + idle_max
    }
}

/// A request that is under way, until it is dropped.
struct Begun(Arc<Activity>);

impl Begun {
    fn new(activity: &Arc<Activity>) -> Self {
        activity.under_way.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(activity))
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let now = u64::try_from(self.0.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.idle_since_ms.store(now, Ordering::Release);
        self.0.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Runs the streams of HTTP/2 connections on the tier's tracker.
#[derive(Clone)]
struct OnTracker(TaskTracker);

impl<F> hyper::rt::Executor<F> for OnTracker
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

/// The count is whole at every moment, so a panic elsewhere leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
