//! Listening, and which connections are let in.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

use crate::close::Reason;
use crate::config::{Config, Limits};
use crate::metrics::Metrics;
use crate::socket::Socket;
use crate::{Addresses, Security, Shared, connection, lock};

/// After an error such as "too many open files" accepting pauses, so that it doesn't spin.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);
/// How long the reason for a refusal may take to be written.
const REFUSAL_TIME_MAX: Duration = Duration::from_secs(1);
/// Refusals being written at one time; beyond that connections are just dropped.
const REFUSALS_MAX: usize = 64;

/// The bound listeners.
pub(crate) struct Listeners(Vec<(TcpListener, Security)>);

impl Listeners {
    pub(crate) async fn bind(config: &Config) -> io::Result<(Self, Addresses)> {
        if let Some(plain) = config.plain.filter(|plain| !plain.ip().is_loopback() && !config.allow_plain_remote) {
            let text = format!("plain listener {plain} is not on loopback; set allow_plain_remote to allow that");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let mut listeners = Vec::new();
        let mut bind = async |address: Option<SocketAddr>, security| -> io::Result<Option<SocketAddr>> {
            let Some(address) = address else { return Ok(None) };
            let listener = TcpListener::bind(address)
                .await
                .map_err(|error| io::Error::new(error.kind(), format!("listening on {address}: {error}")))?;
            let bound = listener.local_addr()?;
            listeners.push((listener, security));
            Ok(Some(bound))
        };
        let addresses = Addresses {
            starttls: bind(config.starttls, Security::StartTls).await?,
            tls: bind(config.tls, Security::DirectTls).await?,
            plain: bind(config.plain, Security::Plain).await?,
        };
        Ok((Self(listeners), addresses))
    }

    /// Accepts until the front drains.
    pub(crate) fn serve(self, shared: &Arc<Shared>) {
        for (listener, security) in self.0 {
            shared.spawn(accept(Arc::clone(shared), listener, security));
        }
    }
}

async fn accept(shared: Arc<Shared>, listener: TcpListener, security: Security) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.draining.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                // Small frames must not wait for each other; without it the connection merely is slower.
                let _ = stream.set_nodelay(true);
                take(&shared, Socket::Tcp(stream), peer.ip(), security);
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection");
                sleep(PAUSE_AFTER_ERROR).await;
            }
        }
    }
}

/// Lets a connection in, or tells it why not where that is possible.
pub(crate) fn take(shared: &Arc<Shared>, mut socket: Socket, peer: IpAddr, security: Security) {
    match shared.admissions.admit(peer) {
        Ok(admission) => {
            shared.spawn_connection(connection::serve(Arc::clone(shared), socket, security, admission));
        }
        Err(reason) => {
            tracing::debug!(reason = reason.label(), "a connection was refused");
            shared.metrics.ended(reason);
            if security == Security::DirectTls {
                // There is no stream to say it on.
                return;
            }
            let Some(turn) = shared.admissions.refuse() else { return };
            let mut words = Vec::new();
            let header = idl::xml::Header {
                from: Some(shared.config.domain.clone()),
                version: Some("1.0".to_owned()),
                ..idl::xml::Header::default()
            };
            idl::xml::write_header(&mut words, &header);
            reason.write(&mut words);
            shared.spawn(async move {
                let say = async {
                    socket.write_all(&words).await?;
                    socket.shutdown().await
                };
                // Whether the refused client hears it is not our concern.
                let _ = timeout(REFUSAL_TIME_MAX, say).await;
                drop(turn);
            });
        }
    }
}

/// Counts the connections that were let in.
pub(crate) struct Admissions {
    counts: Arc<Mutex<Counts>>,
    connections_max: usize,
    per_address_max: usize,
    handshakes_max: usize,
    resumable_max: usize,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Counts {
    connections: usize,
    handshakes: usize,
    refusals: usize,
    resumable: usize,
    addresses: HashMap<IpAddr, usize>,
}

/// A connection's place, given back when dropped.
pub(crate) struct Admission {
    counts: Arc<Mutex<Counts>>,
    address: IpAddr,
    handshaking: bool,
    metrics: Arc<Metrics>,
}

/// The place of a lost stream that may be resumed, given back when dropped.
pub(crate) struct Resumable {
    counts: Arc<Mutex<Counts>>,
    metrics: Arc<Metrics>,
}

/// The turn of a refusal, given back when dropped.
pub(crate) struct Refusal(Arc<Mutex<Counts>>);

impl Admissions {
    pub(crate) fn new(limits: &Limits, metrics: Arc<Metrics>) -> Self {
        Self {
            counts: Arc::default(),
            connections_max: limits.connections_max,
            per_address_max: limits.connections_per_address_max,
            handshakes_max: limits.handshakes_max,
            resumable_max: limits.resumable_max,
            metrics,
        }
    }

    /// Lets a connection in if no limit is against it.
    pub(crate) fn admit(&self, peer: IpAddr) -> Result<Admission, Reason> {
        let address = network(peer);
        let mut counts = lock(&self.counts);
        if counts.connections >= self.connections_max {
            return Err(Reason::Connections);
        }
        if counts.handshakes >= self.handshakes_max {
            return Err(Reason::Handshakes);
        }
        if counts.addresses.get(&address).is_some_and(|count| *count >= self.per_address_max) {
            return Err(Reason::ConnectionsPerAddress);
        }
        counts.connections += 1;
        counts.handshakes += 1;
        *counts.addresses.entry(address).or_default() += 1;
        self.metrics.connections.inc();
        let (counts, metrics) = (Arc::clone(&self.counts), Arc::clone(&self.metrics));
        Ok(Admission { counts, address, handshaking: true, metrics })
    }

    /// A place for a lost stream that may be resumed, if there is one.
    pub(crate) fn keep_resumable(&self) -> Option<Resumable> {
        let mut counts = lock(&self.counts);
        if counts.resumable >= self.resumable_max {
            return None;
        }
        counts.resumable += 1;
        self.metrics.resumable.inc();
        Some(Resumable { counts: Arc::clone(&self.counts), metrics: Arc::clone(&self.metrics) })
    }

    fn refuse(&self) -> Option<Refusal> {
        let mut counts = lock(&self.counts);
        if counts.refusals >= REFUSALS_MAX {
            return None;
        }
        counts.refusals += 1;
        Some(Refusal(Arc::clone(&self.counts)))
    }
}

impl Admission {
    /// The connection is logged in: its handshake is over.
    pub(crate) fn logged_in(&mut self) {
        if std::mem::replace(&mut self.handshaking, false) {
            lock(&self.counts).handshakes -= 1;
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.logged_in();
        self.metrics.connections.dec();
        let mut counts = lock(&self.counts);
        counts.connections -= 1;
        if let Some(count) = counts.addresses.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.addresses.remove(&self.address);
            }
        }
    }
}

impl Drop for Resumable {
    fn drop(&mut self) {
        lock(&self.counts).resumable -= 1;
        self.metrics.resumable.dec();
    }
}

impl Drop for Refusal {
    fn drop(&mut self) {
        lock(&self.0).refusals -= 1;
    }
}

/// What counts as one address: an IPv4 address, or the /64 that one site has in IPv6.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) if address.is_loopback() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) & !u128::from(u64::MAX)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admissions(limits: &Limits) -> Admissions {
        let mut registry = prometheus_client::registry::Registry::default();
        Admissions::new(limits, Arc::new(Metrics::register(&mut registry)))
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn each_limit_refuses_with_its_own_reason_and_a_place_given_back_is_free() {
        let limits =
            Limits { connections_max: 3, connections_per_address_max: 2, handshakes_max: 2, ..Limits::default() };
        let admissions = admissions(&limits);
        let (one, two) = (address("192.0.2.1"), address("192.0.2.2"));
        let mut first = admissions.admit(one).expect("room");
        let mut second = admissions.admit(one).expect("room");
        assert_eq!(admissions.admit(two).err(), Some(Reason::Handshakes));
        first.logged_in();
        second.logged_in();
        assert_eq!(admissions.admit(one).err(), Some(Reason::ConnectionsPerAddress));
        let third = admissions.admit(two).expect("room");
        assert_eq!(admissions.admit(two).err(), Some(Reason::Connections));
        drop(third);
        drop(second);
        assert!(admissions.admit(one).is_ok());
        drop(first);
        assert!(lock(&admissions.counts).addresses.is_empty());
    }

    #[test]
    fn a_site_of_ipv6_counts_as_one_address() {
        assert_eq!(network(address("2001:db8::1")), network(address("2001:db8::2")));
        assert_ne!(network(address("2001:db8::1")), network(address("2001:db8:0:1::1")));
        assert_eq!(network(address("::ffff:192.0.2.1")), address("192.0.2.1"));
    }
}
