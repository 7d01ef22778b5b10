//! A server under test, whichever it is.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::time::Instant;

use super::order::{AppOnDevice, Connect, Form, Kind, Way};
use super::process::{Kept, Processes};

/// Logins at one time: enough to keep two cores busy.
pub(super) const LOGINS_AT_ONCE: usize = 32;
/// How long a start may take.
pub(super) const START_TIME_MAX: Duration = Duration::from_mins(1);

/// A server that is installed and has its accounts.
pub(super) trait Server {
    /// Which.
    fn kind(&self) -> Kind;

    /// Its version, as its package or itself says.
    fn version(&self) -> String;

    /// A new process with nothing but the accounts: what earlier runs left in its memory or store is not there.
    fn start(&self) -> Result<Box<dyn Running>>;

    /// The file with its devices.
    fn devices(&self) -> &Path;

    /// What its devices register for, where there is such a thing.
    fn app(&self) -> Option<AppOnDevice> {
        None
    }

    /// True if devices acknowledge what they get, where they are told to.
    fn acknowledges(&self) -> bool {
        self.app().is_some()
    }

    /// How broadcasts are made, for the notes of figures.
    fn broadcasts_by(&self) -> &'static str;
}

/// A server that runs. It ends when this is dropped.
pub(super) trait Running {
    /// Its processes.
    fn processes(&self) -> &Processes;

    /// Where devices connect.
    fn addresses(&self) -> &Addresses;

    /// Sends so many broadcasts at once, each to all devices, and returns when they are accepted. `None`: a connection
    /// of the protocol has to.
    fn broadcast(&self, at_once: u64) -> Option<Result<()>>;

    /// Its way for single messages.
    fn way(&self) -> Option<Way>;

    /// Where it tells its metrics, if it does.
    fn telemetry(&self) -> Option<SocketAddr> {
        None
    }
}

/// Where devices connect.
#[derive(Debug, Clone)]
pub(super) struct Addresses {
    /// Without TLS.
    pub(super) plain: Option<SocketAddr>,
    /// With TLS from the first byte.
    pub(super) tls: Option<SocketAddr>,
    /// The CA of its certificate.
    pub(super) ca: PathBuf,
    /// The name in the certificate, and the XMPP domain.
    pub(super) domain: String,
}

/// With TLS or without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    /// Bytes as they are, on loopback.
    Plain,
    /// TLS 1.3.
    Tls,
}

impl Transport {
    /// As figures have it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Tls => "tls",
        }
    }
}

/// Connections of the first `count` devices that stay and do nothing but be there; runs change what they need.
pub(super) fn connect(
    server: &dyn Server,
    running: &dyn Running,
    transport: Transport,
    count: usize,
) -> Result<Connect> {
    let addresses = running.addresses();
    let (to, ca) = match transport {
        Transport::Plain => (addresses.plain, None),
        Transport::Tls => (addresses.tls, Some(addresses.ca.clone())),
    };
    let to = to.with_context(|| format!("the server has no listener for {}", transport.name()))?;
    Ok(connect_at(server, running, (to, ca), count))
}

/// The same at another address than the server's own, with TLS if there is a CA.
pub(super) fn connect_at(
    server: &dyn Server,
    running: &dyn Running,
    (to, ca): (SocketAddr, Option<PathBuf>),
    count: usize,
) -> Connect {
    Connect {
        kind: server.kind(),
        form: Form::Xml,
        to,
        ca,
        domain: running.addresses().domain.clone(),
        devices: server.devices().to_owned(),
        from: 0,
        count,
        different: count,
        at_once: LOGINS_AT_ONCE,
        app: None,
        acks: false,
        tickets: false,
        stay: true,
    }
}

/// Ports that nobody listens on at this moment, for servers that can't say which they took.
pub(super) fn free_ports<const N: usize>() -> Result<[SocketAddr; N]> {
    let mut addresses = [SocketAddr::from(([127, 0, 0, 1], 0)); N];
    let mut held = Vec::new();
    for address in &mut addresses {
        let listener = std::net::TcpListener::bind(*address).context("no port is free")?;
        *address = listener.local_addr()?;
        held.push(listener);
    }
    Ok(addresses)
}

/// Waits until a peer listens there; an error with what it wrote if it ends before.
pub(super) fn wait_for_port(address: SocketAddr, child: &mut Kept, output: &Path) -> Result<()> {
    let started = Instant::now();
    while std::net::TcpStream::connect(address).is_err() {
        if !child.is_running() || started.elapsed() > START_TIME_MAX {
            let said = std::fs::read_to_string(output).unwrap_or_default();
            bail!("it did not get ready: {said}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
