//! Listening, and which connections are let in.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::close::Reason;
use crate::config::{Config, Limits};
use crate::metrics::Metrics;
use crate::proxy::ReadError;
use crate::socket::Socket;
use crate::{Addresses, Security, Shared, components, connection, lock, proxy};

/// After an error such as "too many open files" accepting pauses, so that it doesn't spin.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);
/// How long the reason for a refusal may take to be written.
const REFUSAL_TIME_MAX: Duration = Duration::from_secs(1);
/// Refusals being written at one time; beyond that connections are just dropped.
const REFUSALS_MAX: usize = 64;
/// For how long failed logins count.
const FAILED_LOGINS_TIME: Duration = Duration::from_mins(1);
/// Addresses whose failed logins are counted at one time.
const FAILED_LOGINS_ADDRESSES_MAX: usize = 1 << 16;

/// The bound listeners.
pub(crate) struct Listeners(Vec<(TcpListener, For)>);

/// Whom a listener is for.
#[derive(Clone, Copy)]
enum For {
    Devices(Security),
    /// Services of channels.
    Components,
}

impl Listeners {
    pub(crate) fn bind(config: &Config) -> io::Result<(Self, Addresses)> {
        for (name, plain) in [("plain", config.plain), ("component", config.component)] {
            if let Some(plain) = plain.filter(|plain| !plain.ip().is_loopback() && !config.allow_plain_remote) {
                let text = format!("{name} listener {plain} is not on loopback; set allow_plain_remote to allow that");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
        }
        let mut listeners = Vec::new();
        let mut bind = |address: Option<SocketAddr>, whom| -> io::Result<Option<SocketAddr>> {
            let Some(address) = address else { return Ok(None) };
            let listener = listen(address, config)
                .map_err(|error| io::Error::new(error.kind(), format!("listening on {address}: {error}")))?;
            let bound = listener.local_addr()?;
            listeners.push((listener, whom));
            Ok(Some(bound))
        };
        let addresses = Addresses {
            starttls: bind(config.starttls, For::Devices(Security::StartTls))?,
            tls: bind(config.tls, For::Devices(Security::DirectTls))?,
            plain: bind(config.plain, For::Devices(Security::Plain))?,
            component: bind(config.component, For::Components)?,
        };
        Ok((Self(listeners), addresses))
    }

    /// Accepts until the front drains.
    pub(crate) fn serve(self, shared: &Arc<Shared>) {
        for (listener, whom) in self.0 {
            // Draining waits for what is taken last.
            shared.spawn_connection(accept(Arc::clone(shared), listener, whom));
        }
    }
}

fn listen(address: SocketAddr, config: &Config) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Connections of before don't keep a process that starts again from listening.
    socket.set_reuseaddr(true)?;
    // A port that the kernel chooses would be one that another process has.
    if config.reuse_port && address.port() != 0 {
        socket.set_reuseport(true)?;
    }
    socket.bind(address)?;
    socket.listen(config.limits.accept_queue_max)
}

async fn accept(shared: Arc<Shared>, listener: TcpListener, whom: For) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.draining.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => take_tcp(&shared, stream, peer.ip(), whom),
            Err(error) => {
                tracing::warn!(%error, "accepting a connection");
                tokio::select! {
                    () = shared.draining.cancelled() => break,
                    () = sleep(PAUSE_AFTER_ERROR) => {}
                }
            }
        }
    }
    if let Err(error) = take_queued(&shared, listener, whom) {
        tracing::debug!(%error, "accepting the last connections");
    }
}

/// Takes the connections that wait in the kernel, which would reset them, and closes the listener. They are told to come
/// again, like all others. What comes between the last look and the closing is still reset, unless the kernel moves it to
/// another process that has the port (`net.ipv4.tcp_migrate_req`).
fn take_queued(shared: &Arc<Shared>, listener: TcpListener, whom: For) -> io::Result<()> {
    // Whether there are any the kernel alone knows: the runtime may not have heard of them yet.
    let listener = listener.into_std()?;
    // As many as there can be, and not those who go on coming meanwhile.
    for _ in 0..shared.config.limits.accept_queue_max {
        let (stream, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            // One that was given up while it waited.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        stream.set_nonblocking(true)?;
        take_tcp(shared, TcpStream::from_std(stream)?, peer.ip(), whom);
    }
    Ok(())
}

/// Lets a connection in, whoever has passed it on.
fn take_tcp(shared: &Arc<Shared>, stream: TcpStream, peer: IpAddr, whom: For) {
    // Small frames must not wait for each other; without it the connection merely is slower.
    let _ = stream.set_nodelay(true);
    let For::Devices(security) = whom else { return components::take(shared, Socket::Tcp(stream)) };
    if shared.proxies.has(peer) {
        take_proxied(shared, stream, peer, security);
    } else {
        take(shared, Socket::Tcp(stream), peer, security);
    }
}

/// Lets a connection in, or tells it why not where that is possible.
pub(crate) fn take(shared: &Arc<Shared>, socket: Socket, peer: IpAddr, security: Security) {
    let deadline = login_deadline(shared);
    match shared.admissions.admit(peer) {
        Ok(admission) => {
            shared.spawn_connection(connection::serve(Arc::clone(shared), socket, security, admission, deadline));
        }
        Err(reason) => refuse(shared, socket, security, reason),
    }
}

/// The same for a connection that a load balancer passes on: it counts from now on, and as that of an address once the
/// balancer has said which.
fn take_proxied(shared: &Arc<Shared>, mut stream: TcpStream, proxy: IpAddr, security: Security) {
    let deadline = login_deadline(shared);
    let mut admission = match shared.admissions.admit_before_its_address() {
        Ok(admission) => admission,
        Err(reason) => return refuse(shared, Socket::Tcp(stream), security, reason),
    };
    let of_task = Arc::clone(shared);
    shared.spawn_connection(async move {
        let shared = of_task;
        let read = tokio::select! {
            biased;
            () = shared.draining.cancelled() => Err(Reason::Shutdown),
            read = timeout_at(deadline, proxy::read(&mut stream)) => match read {
                Ok(Ok(from)) => Ok(from),
                Ok(Err(ReadError::Lost(_))) => Err(Reason::Lost),
                Ok(Err(ReadError::Header(error))) => {
                    shared.proxies.complain(proxy, &error);
                    Err(Reason::ProxyHeader)
                }
                Err(_) => Err(Reason::LoginTime),
            },
        };
        match read.and_then(|from| admission.locate(from.unwrap_or(proxy))) {
            Ok(()) => connection::serve(shared, Socket::Tcp(stream), security, admission, deadline).await,
            Err(reason) => refuse(&shared, Socket::Tcp(stream), security, reason),
        }
    });
}

fn login_deadline(shared: &Shared) -> Instant {
    Instant::now() + shared.config.limits.login_time_max
}

fn refuse(shared: &Arc<Shared>, mut socket: Socket, security: Security, reason: Reason) {
    tracing::debug!(reason = reason.label(), "a connection was refused");
    shared.metrics.ended(reason);
    if security == Security::DirectTls || reason.condition().is_none() {
        // There is no stream to say it on, or nothing to say.
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

/// Counts the connections that were let in.
pub(crate) struct Admissions {
    counts: Mutex<Counts>,
    connections_max: usize,
    of_address_max: OfAddress,
    handshakes_max: usize,
    resumable_max: usize,
    metrics: Arc<Metrics>,
}

/// How much one address may have.
#[derive(Clone, Copy)]
struct OfAddress {
    connections: usize,
    handshakes: usize,
    failed_logins: usize,
}

#[derive(Default)]
struct Counts {
    connections: usize,
    handshakes: usize,
    refusals: usize,
    resumable: usize,
    addresses: HashMap<IpAddr, Present>,
    failed_logins: FailedLogins,
}

/// Of one address.
#[derive(Debug, Default, PartialEq, Eq)]
struct Present {
    connections: usize,
    handshakes: usize,
}

/// Logins that failed in this minute, by address.
#[derive(Default)]
struct FailedLogins {
    minute: Option<Instant>,
    of: HashMap<IpAddr, usize>,
}

impl FailedLogins {
    /// Those of one address.
    fn count(&mut self, address: IpAddr) -> usize {
        if self.minute.is_some_and(|began| began.elapsed() >= FAILED_LOGINS_TIME) {
            *self = Self::default();
        }
        self.of.get(&address).copied().unwrap_or(0)
    }

    /// One more. Returns how many there are; of an address beyond what is remembered, 0.
    fn add(&mut self, address: IpAddr) -> usize {
        let count = self.count(address) + 1;
        if count == 1 && self.of.len() >= FAILED_LOGINS_ADDRESSES_MAX {
            return 0;
        }
        self.minute.get_or_insert_with(Instant::now);
        self.of.insert(address, count);
        count
    }

    /// So many were followed by one that did not fail.
    fn forgive(&mut self, address: IpAddr, count: usize) {
        if let Some(counted) = self.of.get_mut(&address) {
            *counted = counted.saturating_sub(count);
        }
    }
}

/// A connection's place, given back when dropped.
pub(crate) struct Admission {
    among: Arc<Admissions>,
    /// What it counts as, once that is known.
    address: Option<IpAddr>,
    handshaking: bool,
    /// Logins that failed on it and count.
    failed_logins: u16,
}

/// The place of a lost stream that may be resumed, given back when dropped.
pub(crate) struct Resumable(Arc<Admissions>);

/// The turn of a refusal, given back when dropped.
pub(crate) struct Refusal(Arc<Admissions>);

impl Admissions {
    pub(crate) fn new(limits: &Limits, metrics: Arc<Metrics>) -> Arc<Self> {
        let of_address_max = OfAddress {
            connections: limits.connections_per_address_max,
            handshakes: limits.handshakes_per_address_max,
            failed_logins: limits.failed_logins_per_address_per_minute_max,
        };
        Arc::new(Self {
            counts: Mutex::default(),
            connections_max: limits.connections_max,
            of_address_max,
            handshakes_max: limits.handshakes_max,
            resumable_max: limits.resumable_max,
            metrics,
        })
    }

    /// Lets a connection in if no limit is against it.
    pub(crate) fn admit(self: &Arc<Self>, peer: IpAddr) -> Result<Admission, Reason> {
        let mut admission = self.admit_before_its_address()?;
        admission.locate(peer)?;
        Ok(admission)
    }

    /// Lets a connection in whose address is still to be told, see [`Admission::locate`].
    fn admit_before_its_address(self: &Arc<Self>) -> Result<Admission, Reason> {
        let mut counts = lock(&self.counts);
        if counts.connections >= self.connections_max {
            return Err(Reason::Connections);
        }
        if counts.handshakes >= self.handshakes_max {
            return Err(Reason::Handshakes);
        }
        counts.connections += 1;
        counts.handshakes += 1;
        self.metrics.connections.inc();
        Ok(Admission { among: Arc::clone(self), address: None, handshaking: true, failed_logins: 0 })
    }

    /// A place for a lost stream that may be resumed, if there is one.
    pub(crate) fn keep_resumable(self: &Arc<Self>) -> Option<Resumable> {
        let mut counts = lock(&self.counts);
        if counts.resumable >= self.resumable_max {
            return None;
        }
        counts.resumable += 1;
        self.metrics.resumable.inc();
        Some(Resumable(Arc::clone(self)))
    }

    fn refuse(self: &Arc<Self>) -> Option<Refusal> {
        let mut counts = lock(&self.counts);
        if counts.refusals >= REFUSALS_MAX {
            return None;
        }
        counts.refusals += 1;
        Some(Refusal(Arc::clone(self)))
    }
}

impl Admission {
    /// Counts the connection as one of that address, if its limit is not against it. Done once.
    fn locate(&mut self, peer: IpAddr) -> Result<(), Reason> {
        let address = network(peer);
        let mut counts = lock(&self.among.counts);
        let max = self.among.of_address_max;
        if max.failed_logins > 0 && counts.failed_logins.count(address) >= max.failed_logins {
            return Err(Reason::FailedLogins);
        }
        if counts.addresses.get(&address).is_some_and(|present| present.connections >= max.connections) {
            return Err(Reason::ConnectionsPerAddress);
        }
        if counts.addresses.get(&address).is_some_and(|present| present.handshakes >= max.handshakes) {
            return Err(Reason::HandshakesPerAddress);
        }
        let present = counts.addresses.entry(address).or_default();
        present.connections += 1;
        present.handshakes += 1;
        self.address = Some(address);
        Ok(())
    }

    /// A login failed. An error if too many of this address did.
    pub(crate) fn login_failed(&mut self) -> Result<(), Reason> {
        let (Some(address), max @ 1..) = (self.address, self.among.of_address_max.failed_logins) else { return Ok(()) };
        self.failed_logins = self.failed_logins.saturating_add(1);
        if lock(&self.among.counts).failed_logins.add(address) > max { Err(Reason::FailedLogins) } else { Ok(()) }
    }

    /// The connection is logged in: its handshake is over.
    pub(crate) fn logged_in(&mut self) {
        self.negotiated(true);
    }

    fn negotiated(&mut self, logged_in: bool) {
        if std::mem::replace(&mut self.handshaking, false) {
            let counts = &mut *lock(&self.among.counts);
            counts.handshakes -= 1;
            let Some(address) = self.address else { return };
            if let Some(present) = counts.addresses.get_mut(&address) {
                present.handshakes -= 1;
            }
            if logged_in && self.failed_logins > 0 {
                counts.failed_logins.forgive(address, self.failed_logins.into());
            }
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.negotiated(false);
        self.among.metrics.connections.dec();
        let mut counts = lock(&self.among.counts);
        counts.connections -= 1;
        if let Some(address) = self.address
            && let Some(present) = counts.addresses.get_mut(&address)
        {
            present.connections -= 1;
            if present.connections == 0 {
                counts.addresses.remove(&address);
            }
        }
    }
}

impl Drop for Resumable {
    fn drop(&mut self) {
        lock(&self.0.counts).resumable -= 1;
        self.0.metrics.resumable.dec();
    }
}

impl Drop for Refusal {
    fn drop(&mut self) {
        lock(&self.0.counts).refusals -= 1;
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

    fn admissions(limits: &Limits) -> Arc<Admissions> {
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
    fn a_connection_whose_address_comes_later_counts_before_it_and_as_that_address_afterwards() {
        let limits = Limits { connections_per_address_max: 1, handshakes_max: 2, ..Limits::default() };
        let admissions = admissions(&limits);
        let mut first = admissions.admit_before_its_address().expect("room");
        let mut second = admissions.admit_before_its_address().expect("room");
        assert_eq!(admissions.admit_before_its_address().err(), Some(Reason::Handshakes));
        assert_eq!(first.locate(address("192.0.2.1")), Ok(()));
        assert_eq!(second.locate(address("192.0.2.1")), Err(Reason::ConnectionsPerAddress));
        drop(second);
        assert_eq!(admissions.admit(address("192.0.2.1")).err(), Some(Reason::ConnectionsPerAddress));
        let present = Present { connections: 1, handshakes: 1 };
        assert_eq!(lock(&admissions.counts).addresses, HashMap::from([(address("192.0.2.1"), present)]));
        drop(first);
        let counts = lock(&admissions.counts);
        assert_eq!((counts.connections, counts.handshakes, counts.addresses.len()), (0, 0, 0));
    }

    #[test]
    fn one_address_does_not_take_all_handshakes() {
        let limits = Limits { handshakes_max: 3, handshakes_per_address_max: 2, ..Limits::default() };
        let admissions = admissions(&limits);
        let mut first = admissions.admit(address("192.0.2.1")).expect("room");
        let _second = admissions.admit(address("192.0.2.1")).expect("room");
        assert_eq!(admissions.admit(address("192.0.2.1")).err(), Some(Reason::HandshakesPerAddress));
        assert!(admissions.admit(address("192.0.2.2")).is_ok());
        first.logged_in();
        assert!(admissions.admit(address("192.0.2.1")).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_whose_logins_fail_is_refused_until_the_minute_is_over() {
        let limits = Limits { failed_logins_per_address_per_minute_max: 3, ..Limits::default() };
        let admissions = admissions(&limits);
        let (bad, good) = (address("192.0.2.1"), address("192.0.2.2"));
        let mut forgiven = admissions.admit(bad).expect("room");
        assert_eq!(forgiven.login_failed(), Ok(()));
        forgiven.logged_in();
        let (mut first, mut second) = (admissions.admit(bad).expect("room"), admissions.admit(bad).expect("room"));
        assert_eq!([first.login_failed(), second.login_failed(), first.login_failed()], [Ok(()), Ok(()), Ok(())]);
        assert_eq!(admissions.admit(bad).err(), Some(Reason::FailedLogins));
        assert_eq!(second.login_failed(), Err(Reason::FailedLogins), "one that was let in before");
        assert!(admissions.admit(good).is_ok());
        sleep(FAILED_LOGINS_TIME).await;
        assert!(admissions.admit(bad).is_ok());
    }

    #[test]
    fn addresses_with_failed_logins_are_bounded() {
        let mut failed = FailedLogins::default();
        for number in 0..2 * FAILED_LOGINS_ADDRESSES_MAX {
            failed.add(IpAddr::V4(u32::try_from(number).expect("a small number").into()));
        }
        assert_eq!(failed.of.len(), FAILED_LOGINS_ADDRESSES_MAX);
    }

    #[test]
    fn a_site_of_ipv6_counts_as_one_address() {
        assert_eq!(network(address("2001:db8::1")), network(address("2001:db8::2")));
        assert_ne!(network(address("2001:db8::1")), network(address("2001:db8:0:1::1")));
        assert_eq!(network(address("::ffff:192.0.2.1")), address("192.0.2.1"));
    }
}
