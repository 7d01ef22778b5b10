//! The front: it holds the connections of devices and knows no payload.
//!
//! A connection is admitted (`listener`), negotiated (`negotiate`, driven by `login`) and becomes a *line* (`line`): a
//! bound resource that `connection` serves for as long as its stream lives, and that waits for resumption afterwards.
//! A `hub` knows a share of the lines, the index over them and the recent broadcasts; `channels` hands on what clients say: to
//! the middle tier, which is reached over the bus alone, or to `components`, where others serve a channel. What clients say to each
//! other goes through `routing` and `presence`.

mod announce;
mod caps;
mod channels;
mod client_state;
mod close;
mod components;
mod config;
mod connection;
mod credentials;
mod drain;
mod fast;
mod form;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod generations;
mod hub;
mod hubs;
mod index;
mod intake;
mod line;
mod listener;
mod login;
mod metrics;
mod middle;
mod negotiate;
mod outbox;
mod paced;
mod presence;
mod proxy;
mod revoked;
mod ring;
mod routing;
mod sasl;
mod scram;
mod scratch;
#[cfg(feature = "simulation")]
pub mod simulated;
mod socket;
mod stanza;
mod stream;
mod tls;
mod walk;
mod websocket;
mod wheel;
mod xmpp_io;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use idl::bus::{Bus, FrontInbox};
use idl::clock::{SharedClock, SharedEntropy};
use idl::contract::bus::TokenRevoked;
use idl::ids::{FrontId, Generation, Partition};
use idl::token::KeyRing;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::components::Components;
pub use crate::config::{Config, Limits, Listener, Network, ServedChannel};
use crate::credentials::Credentials;
use crate::hubs::Hubs;
use crate::listener::{Admissions, Listeners};
use crate::metrics::Metrics;
use crate::middle::Middle;
use crate::proxy::Proxies;
use crate::socket::Socket;
use crate::tls::Tls;
use crate::websocket::Translator;
pub use crate::websocket::{Message, Messages};

/// What a front needs, by name.
pub struct Dependencies {
    /// To the middle tier.
    pub bus: Arc<dyn Bus>,
    /// What the middle tier sends to this front.
    pub inbox: FrontInbox,
    /// This front in this life; a front that starts again takes another.
    pub front: FrontId,
    /// Proves tokens.
    pub keys: KeyRing,
    /// For direct TLS and STARTTLS.
    pub tls: Arc<rustls::ServerConfig>,
    /// Wall time.
    pub clock: SharedClock,
    /// Randomness.
    pub entropy: SharedEntropy,
}

/// How a byte stream that is handed to an [`Acceptor`] is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// Begins with a TLS handshake.
    DirectTls,
    /// Begins in the clear and must switch to TLS.
    StartTls,
    /// Stays in the clear: PLAIN is not offered.
    Plain,
    /// Nobody can listen, such as a pipe within the process: counts as TLS.
    Trusted,
}

/// A front that is built and not yet bound. Dropping it ends whatever its acceptors wait for.
pub struct Front {
    shared: Arc<Shared>,
    inbox: FrontInbox,
    life: Life,
}

/// A front whose ports are known.
pub struct BoundFront {
    front: Front,
    listeners: Listeners,
    addresses: Addresses,
}

/// The bound address of each listener.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Addresses {
    /// See [`Config::starttls`].
    pub starttls: Option<SocketAddr>,
    /// See [`Config::tls`].
    pub tls: Option<SocketAddr>,
    /// See [`Config::plain`].
    pub plain: Option<SocketAddr>,
    /// See [`Config::component`].
    pub component: Option<SocketAddr>,
}

/// Takes established byte streams. Clones serve the same front.
#[derive(Clone)]
pub struct Acceptor {
    shared: Arc<Shared>,
}

/// What all parts of the front share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) domain: Arc<str>,
    pub(crate) hubs: Hubs,
    pub(crate) middle: Middle,
    pub(crate) components: Components,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) admissions: Arc<Admissions>,
    pub(crate) proxies: Proxies,
    pub(crate) tls: Tls,
    pub(crate) clock: SharedClock,
    pub(crate) entropy: SharedEntropy,
    pub(crate) metrics: Arc<Metrics>,
    /// Wakes the announcing of lines.
    pub(crate) announce: Notify,
    phase: watch::Sender<Phase>,
    /// Cancelled when no new connection is taken and the others are being ended.
    pub(crate) draining: CancellationToken,
    /// Cancelled when everything must end at once.
    pub(crate) stop: CancellationToken,
    tasks: OnceLock<TaskTracker>,
    /// Connections and what is still to be handed on for them: what draining waits for.
    pub(crate) connections: TaskTracker,
}

/// Where a front is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    NotServing,
    /// Serving, but the middle tier has not answered yet, so it is unknown which tokens are revoked.
    Starting,
    Ready,
    /// The middle tier doesn't answer.
    CutOff,
    Ended,
}

/// Ends everything when dropped, as a crash would.
struct Life(Arc<Shared>);

impl Drop for Life {
    fn drop(&mut self) {
        self.0.draining.cancel();
        self.0.stop.cancel();
        for line in self.0.hubs.lines() {
            line.cut_off();
        }
        self.0.phase.send_replace(Phase::Ended);
    }
}

impl Front {
    /// Builds the front. Nothing runs until [`BoundFront::serve`].
    pub fn build(config: Config, dependencies: Dependencies, registry: &mut Registry) -> Self {
        let Dependencies { bus, inbox, front, keys, tls, clock, entropy } = dependencies;
        let metrics = Arc::new(Metrics::register(registry));
        let limits = &config.limits;
        let credentials = Credentials::new(
            keys,
            limits.scram_derivations_max,
            limits.scram_keys_max,
            Arc::clone(&clock),
            Arc::clone(&metrics),
        );
        let middle = Middle {
            bus,
            front,
            entropy: Arc::clone(&entropy),
            request_time_max: limits.bus_time_max,
            metrics: Arc::clone(&metrics),
        };
        let shared = Arc::new(Shared {
            domain: config.domain.as_str().into(),
            hubs: Hubs::new(limits, &metrics),
            middle,
            components: Components::new(&config, &metrics),
            credentials: Arc::new(credentials),
            admissions: Admissions::new(limits, Arc::clone(&metrics)),
            proxies: Proxies::new(&config.proxy_from),
            tls: Tls::new(&tls),
            clock,
            entropy,
            metrics,
            announce: Notify::new(),
            phase: watch::Sender::new(Phase::NotServing),
            draining: CancellationToken::new(),
            stop: CancellationToken::new(),
            tasks: OnceLock::new(),
            connections: TaskTracker::new(),
            config,
        });
        Self { inbox, life: Life(Arc::clone(&shared)), shared }
    }

    /// Binds the listeners. Fails if an address can't be bound, or if `plain` or `component` is not on loopback and
    /// `allow_plain_remote` is not set.
    #[expect(clippy::unused_async, reason = "listening needs the runtime, in which a future is sure to be")]
    pub async fn bind(self) -> io::Result<BoundFront> {
        let (listeners, addresses) = Listeners::bind(&self.shared.config)?;
        Ok(BoundFront { front: self, listeners, addresses })
    }

    /// Hands byte streams to this front.
    pub fn acceptor(&self) -> Acceptor {
        Acceptor { shared: Arc::clone(&self.shared) }
    }
}

impl BoundFront {
    /// Where the listeners are bound.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Hands byte streams to this front.
    pub fn acceptor(&self) -> Acceptor {
        self.front.acceptor()
    }

    /// True while the front serves and the middle tier answers it. [`Acceptor::is_ready`] tells the same after
    /// [`BoundFront::serve`] has taken the front.
    pub fn is_ready(&self) -> bool {
        self.acceptor().is_ready()
    }

    /// Serves until `drain` is cancelled: then no connection is taken any more, those that are there end in waves with
    /// `system-shutdown`, their routes are given back, and the future ends. All tasks are spawned on `tasks`.
    ///
    /// Dropping the future ends everything at once, as a crash would: nobody is told anything.
    pub fn serve(self, drain: CancellationToken, tasks: TaskTracker) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        // In a box, so that what it awaits is compiled with this crate and not with everyone who calls it.
        Box::pin(self.run(drain, tasks))
    }

    async fn run(self, drain: CancellationToken, tasks: TaskTracker) {
        let Self { front: Front { shared, inbox, life }, listeners, .. } = self;
        if shared.tasks.set(tasks).is_err() {
            return;
        }
        shared.phase.send_replace(Phase::Starting);
        let FrontInbox { batches, events } = inbox;
        for hub in shared.hubs.each() {
            shared.spawn(connection::keep_time(Arc::clone(&shared), Arc::clone(hub)));
        }
        shared.spawn(walk::serve_batches(Arc::clone(&shared), batches));
        shared.spawn(walk::serve_events(Arc::clone(&shared), events));
        shared.spawn(announce::keep_lease(Arc::clone(&shared)));
        shared.spawn(announce::announce(Arc::clone(&shared)));
        listeners.serve(&shared);
        drain.cancelled().await;
        drain::drain(&shared).await;
        drop(life);
    }
}

impl Acceptor {
    /// Hands an established byte stream to the front, which holds the connection from then on. Waits until the front
    /// serves; once it drains or has ended, the stream is dropped.
    pub async fn accept<S>(&self, stream: S, peer: IpAddr, security: Security)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.hand_over(|shared| listener::take(shared, Socket::Other(Box::new(stream)), peer, security)).await;
    }

    /// Hands the byte stream of a channel's service to the front, as [`Acceptor::accept`] does with a device's.
    pub async fn accept_component<S>(&self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.hand_over(|shared| components::take(shared, Socket::Other(Box::new(stream)))).await;
    }

    /// Hands an established WebSocket with the subprotocol `xmpp` (RFC 7395) to the front, as [`Acceptor::accept`] does with
    /// byte streams. `security` is [`Security::Trusted`] where TLS is below it, and else [`Security::Plain`].
    pub async fn accept_websocket(&self, messages: impl Messages, peer: IpAddr, security: Security) {
        let limits = login::stanza_limits(&self.shared, true);
        let translator = Translator::new(messages, limits, self.shared.config.limits.outbox_bytes_max);
        self.hand_over(|shared| {
            listener::take(shared, Socket::Xml(Box::new(translator)), peer, security);
        })
        .await;
    }

    /// Waits until the front serves; once it drains or has ended nothing is done.
    async fn hand_over(&self, take: impl FnOnce(&Arc<Shared>)) {
        let mut phase = self.shared.phase.subscribe();
        let serving = phase.wait_for(|phase| *phase != Phase::NotServing).await;
        if serving.is_ok_and(|phase| *phase != Phase::Ended) && !self.shared.draining.is_cancelled() {
            take(&self.shared);
        }
    }

    /// The longest message that a WebSocket may carry to the front.
    pub fn message_bytes_max(&self) -> usize {
        self.shared.config.limits.stanza_bytes_max
    }

    /// True while the front serves, does not drain, and the middle tier answers it.
    pub fn is_ready(&self) -> bool {
        *self.shared.phase.borrow() == Phase::Ready && !self.shared.draining.is_cancelled()
    }
}

/// Runs a task until it ends or `stop` is cancelled. The task is boxed: each layer around it that takes it by value would have
/// room for it twice, and four times its memory is much where there is one for each connection.
fn until(stop: CancellationToken, task: impl Future<Output = ()> + Send + 'static) -> impl Future<Output = ()> + Send {
    let task = Box::pin(task);
    async move {
        stop.run_until_cancelled_owned(task).await;
    }
}

impl Shared {
    /// Runs a task until it ends or everything must end.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        // Before the front serves there is nothing that could want a task.
        if let Some(tasks) = self.tasks.get() {
            tasks.spawn(until(self.stop.clone(), task));
        }
    }

    /// Runs a task that draining waits for.
    pub(crate) fn spawn_connection(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn(self.connections.track_future(task));
    }

    /// Runs the task that owns a stream. It holds nothing but that, so what makes it end at once is that its line is cut off.
    pub(crate) fn spawn_owner(&self, owner: impl Future<Output = ()> + Send + 'static) {
        if let Some(tasks) = self.tasks.get() {
            tasks.spawn(self.connections.track_future(owner));
        }
    }

    /// Learns the generations that a reply of the middle tier carried.
    pub(crate) fn learn(&self, generations: impl IntoIterator<Item = (Partition, Generation)>) {
        let changed = self.hubs.learn(generations);
        if changed > 0 {
            tracing::info!(partitions = changed, "the middle tier's memory is another: announcing connections anew");
            self.announce.notify_one();
        }
    }

    /// Refuses the account's older tokens from now on and ends what was opened with them.
    pub(crate) fn revoke(&self, revoked: &TokenRevoked) -> Option<(idl::ids::AccountId, u64)> {
        let (account, issued_before_ms) = self.credentials.revoked.learn(revoked)?;
        self.hubs.of(account).revoke(account, issued_before_ms);
        Some((account, issued_before_ms))
    }

    /// The middle tier has answered a lease, or not.
    pub(crate) fn leased(&self, answered: bool) {
        self.phase.send_if_modified(|phase| {
            let next = match (*phase, answered) {
                (Phase::Ended | Phase::NotServing, _) => return false,
                (Phase::Starting, false) => Phase::Starting,
                (_, true) => Phase::Ready,
                (_, false) => Phase::CutOff,
            };
            std::mem::replace(phase, next) != next
        });
    }

    /// Waits until it is known which tokens are revoked.
    pub(crate) async fn revocations_known(&self) {
        let mut phase = self.phase.subscribe();
        // The sender lives as long as `self`.
        let _ = phase.wait_for(|phase| !matches!(phase, Phase::NotServing | Phase::Starting)).await;
    }
}

/// What is behind the locks of this crate is whole at every moment, so a panic elsewhere leaves nothing half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
