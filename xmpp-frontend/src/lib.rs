//! The front: it holds the connections of devices and knows no payload.
//!
//! It speaks XMPP to devices and asks the middle tier over the bus.

mod config;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use idl::bus::{Bus, FrontInbox};
use idl::clock::{SharedClock, SharedEntropy};
use idl::ids::FrontId;
use idl::token::KeyRing;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use crate::config::{Config, Limits, Listener};

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

/// A front that is built and not yet bound.
pub struct Front {
    config: Config,
    dependencies: Dependencies,
}

/// A front whose ports are known.
pub struct BoundFront {
    front: Front,
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
}

/// Takes established byte streams.
#[derive(Clone)]
pub struct Acceptor {}

impl Front {
    /// Builds the front. Nothing runs until [`BoundFront::serve`].
    pub fn build(config: Config, dependencies: Dependencies, _registry: &mut Registry) -> Self {
        Self { config, dependencies }
    }

    /// Binds the listeners.
    pub async fn bind(self) -> io::Result<BoundFront> {
        tokio::task::yield_now().await;
        Ok(BoundFront { front: self, addresses: Addresses::default() })
    }

    /// Hands byte streams to this front.
    pub fn acceptor(&self) -> Acceptor {
        Acceptor {}
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

    /// True while the front serves and the middle tier answers it. See also [`Acceptor::is_ready`], which lives on
    /// while the front serves.
    pub fn is_ready(&self) -> bool {
        self.acceptor().is_ready()
    }

    /// Serves until `drain` is cancelled and the connections have ended. Dropping the future ends all at once, as a
    /// crash would.
    pub async fn serve(self, drain: CancellationToken, _tasks: TaskTracker) {
        let _ = (self.front.config, self.front.dependencies);
        drain.cancelled().await;
    }
}

impl Acceptor {
    /// Hands an established byte stream to the front, which holds the connection from then on. Waits until the front
    /// serves; once it drains, the stream is dropped.
    pub async fn accept<S>(&self, stream: S, _peer: IpAddr, _security: Security)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        tokio::task::yield_now().await;
        drop(stream);
    }

    /// True while the front serves and the middle tier answers it.
    pub fn is_ready(&self) -> bool {
        false
    }
}
