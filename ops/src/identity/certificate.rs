//! The server's certificate, and how it is replaced while the server runs.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use anyhow::{Context as _, Result, bail};
use idl::clock::{Clock, SharedClock};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::own_ca::{OwnCa, names_of};
use super::tickets::Tickets;
use crate::config::Config;
use crate::data_folder::DataFolder;

/// A certificate with its chain and key, checked to belong together.
#[derive(Debug, Clone)]
pub struct ServerCertificate {
    certified: Arc<CertifiedKey>,
    /// When it ends, in ms since the epoch.
    pub not_after_ms: u64,
    /// The CA that clients must trust, if it is the instance's own.
    pub ca: Option<PathBuf>,
}

impl ServerCertificate {
    /// The certificate of `tls.certificate`, or one of the instance's own CA, made anew when the names of the server
    /// have changed or its end is near.
    pub fn load_or_make(config: &Config, folder: &DataFolder, clock: &dyn Clock) -> Result<Self> {
        if config.tls.certificate.as_os_str().is_empty() {
            let names = names_of(config);
            let (certificate, key) = OwnCa { folder }.certificate(&names, clock)?;
            let ca = std::path::absolute(folder.ca()).context("the working folder is gone")?;
            Ok(Self { ca: Some(ca), ..Self::read(&certificate, &key)? })
        } else {
            Self::read(&config.tls.certificate, &config.tls.key)
        }
    }

    /// From PEM files. Names the file that can't be used.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self> {
        let fail = |what: &str, path: &Path| format!("{what} {} can't be used", path.display());
        let chain = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .with_context(|| fail("tls.certificate", certificate))?;
        let Some(own) = chain.first() else {
            bail!("tls.certificate {} holds no certificate in PEM form", certificate.display());
        };
        let (_, parsed) =
            x509_parser::parse_x509_certificate(own).with_context(|| fail("tls.certificate", certificate))?;
        let not_after_s = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let private = PrivateKeyDer::from_pem_file(key).with_context(|| fail("tls.key", key))?;
        let certified = CertifiedKey::from_der(chain, private, &provider()).with_context(|| {
            format!("tls.certificate {} and tls.key {} can't be used together", certificate.display(), key.display())
        })?;
        Ok(Self { certified: Arc::new(certified), not_after_ms: not_after_s.saturating_mul(1000), ca: None })
    }

    fn has_ended(&self, clock: &dyn Clock) -> bool {
        self.not_after_ms < clock.now_ms()
    }
}

fn provider() -> CryptoProvider {
    rustls::crypto::ring::default_provider()
}

/// What a reload did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reloaded {
    /// New handshakes get another certificate than before.
    Replaced,
    /// It was the same one.
    Unchanged,
}

impl Reloaded {
    /// As it is called in metrics and answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Replaced => "replaced",
            Self::Unchanged => "unchanged",
        }
    }
}

/// The certificate that handshakes get. It can be replaced while the server runs; what is connected goes on.
pub struct LiveCertificate {
    config: Config,
    folder: DataFolder,
    clock: SharedClock,
    current: Arc<Current>,
    /// One reload at a time, else an older certificate could win over a newer one.
    reloading: Mutex<()>,
    metrics: Metrics,
}

/// What rustls asks at each handshake.
#[derive(Debug)]
struct Current(RwLock<ServerCertificate>);

impl Current {
    fn get(&self) -> ServerCertificate {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, certificate: ServerCertificate) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = certificate;
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).certified))
    }
}

impl LiveCertificate {
    /// Loads the certificate for the first time; see [`ServerCertificate::load_or_make`].
    pub fn load(config: &Config, folder: &DataFolder, clock: &SharedClock, registry: &mut Registry) -> Result<Self> {
        let certificate = ServerCertificate::load_or_make(config, folder, clock.as_ref())?;
        if certificate.has_ended(clock.as_ref()) {
            tracing::error!("tls.certificate has ended: clients will refuse it; replace it and send SIGHUP");
        }
        let metrics = Metrics::register(registry);
        metrics.expires_ms.set(certificate.not_after_ms);
        let current = Arc::new(Current(RwLock::new(certificate)));
        Ok(Self {
            config: config.clone(),
            folder: folder.clone(),
            clock: Arc::clone(clock),
            current,
            reloading: Mutex::default(),
            metrics,
        })
    }

    /// The certificate in use.
    pub fn current(&self) -> ServerCertificate {
        self.current.get()
    }

    /// TLS as a server with whatever certificate is in use at each handshake, offering these protocols (ALPN). Sessions that
    /// clients keep outlive a certificate.
    pub fn tls(&self, protocols: &[&[u8]], tickets: Arc<Tickets>) -> Result<Arc<ServerConfig>> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&self.current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        config.ticketer = tickets;
        // A client uses each once and gets the next with it.
        config.send_tls13_tickets = 1;
        Ok(Arc::new(config))
    }

    /// Reads the files again. One that can't be used is logged, and the certificate of before stays.
    pub async fn reload(self: &Arc<Self>) -> Result<Reloaded> {
        let live = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || live.reload_now()).await;
        let result = read.context("reading the certificate broke off").and_then(|result| result);
        let result = result.context("the certificate stays as it was");
        match &result {
            Ok(reloaded) => {
                self.metrics.count(reloaded.name());
                tracing::info!(certificate = reloaded.name(), "certificate reloaded");
            }
            Err(error) => {
                self.metrics.count(FAILED);
                tracing::error!("{error:#}; mend it, then send SIGHUP or run campanile ctl reload");
            }
        }
        result
    }

    /// Reloads whenever it is told to, until `drain` is cancelled.
    pub async fn watch(self: Arc<Self>, reload: Arc<Notify>, drain: CancellationToken) {
        loop {
            tokio::select! {
                () = drain.cancelled() => return,
                // What came of it is logged and counted.
                () = reload.notified() => drop(self.reload().await),
            }
        }
    }

    fn reload_now(&self) -> Result<Reloaded> {
        let _turn = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = ServerCertificate::load_or_make(&self.config, &self.folder, self.clock.as_ref())?;
        let before = self.current.get();
        if fresh.certified.cert == before.certified.cert {
            return Ok(Reloaded::Unchanged);
        }
        // Every client would refuse it, so the other one can't be worse.
        if fresh.has_ended(self.clock.as_ref()) {
            bail!("tls.certificate {} has ended already", self.config.tls.certificate.display());
        }
        self.metrics.expires_ms.set(fresh.not_after_ms);
        self.current.set(fresh);
        Ok(Reloaded::Replaced)
    }
}

const FAILED: &str = "failed";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabels {
    result: &'static str,
}

struct Metrics {
    reloads: Family<ReloadLabels, Counter>,
    expires_ms: Gauge<u64, AtomicU64>,
}

impl Metrics {
    fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("campanile_certificate");
        let reloads = Family::default();
        registry.register("reloads", "How often the certificate was read again, by what came of it", reloads.clone());
        let expires_ms = Gauge::default();
        registry.register("expires_ms", "When the certificate in use ends, in ms since the epoch", expires_ms.clone());
        let metrics = Self { reloads, expires_ms };
        // There from the start, so that the first failure is seen as a rise.
        for result in [Reloaded::Replaced.name(), Reloaded::Unchanged.name(), FAILED] {
            drop(metrics.reloads.get_or_create(&ReloadLabels { result }));
        }
        metrics
    }

    fn count(&self, result: &'static str) {
        self.reloads.get_or_create(&ReloadLabels { result }).inc();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::{Read as _, Write as _};
    use std::sync::atomic::Ordering;

    use idl::clock::{SharedEntropy, SystemClock, SystemEntropy};
    use rustls::version::{TLS12, TLS13};
    use rustls::{
        ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConnection, SupportedProtocolVersion,
    };

    use super::*;
    use crate::identity::TicketKeys;

    const DAY_MS: u64 = 24 * 60 * 60 * 1000;

    struct At(AtomicU64);

    impl Clock for At {
        fn now_ms(&self) -> u64 {
            self.0.load(Ordering::SeqCst)
        }
    }

    fn live(config: &Config, folder: &DataFolder, clock: &SharedClock) -> (Arc<LiveCertificate>, Registry) {
        let mut registry = Registry::default();
        let live = LiveCertificate::load(config, folder, clock, &mut registry).expect("loads");
        (Arc::new(live), registry)
    }

    fn metric(registry: &Registry, name: &str) -> String {
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, registry).expect("encodes");
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
        line.unwrap_or_else(|| panic!("no {name} in {page}"))
    }

    /// A certificate of a CA of its own, as files of the operator.
    fn files(folder: &Path, clock: &SharedClock) -> Config {
        let made = DataFolder::at(&folder.join("elsewhere"));
        made.create().expect("a folder");
        let names = BTreeSet::from(["localhost".to_owned()]);
        let _ = std::fs::remove_file(made.tls().join("server.json"));
        let (certificate, key) = OwnCa { folder: &made }.certificate(&names, clock.as_ref()).expect("makes");
        let mut config = Config::default();
        config.tls.certificate = folder.join("certificate.pem");
        config.tls.key = folder.join("key.pem");
        std::fs::copy(certificate, &config.tls.certificate).expect("copies");
        std::fs::copy(key, &config.tls.key).expect("copies");
        config
    }

    fn tickets(key: u8) -> Arc<Tickets> {
        let (clock, entropy): (SharedClock, SharedEntropy) = (Arc::new(SystemClock), Arc::new(SystemEntropy));
        Tickets::new(&TicketKeys::of(&[(1, [key; 32])]), &clock, &entropy)
    }

    /// A client that trusts the instance's CA, of these versions and protocols.
    fn client(
        folder: &DataFolder,
        versions: &[&'static SupportedProtocolVersion],
        protocols: &[&str],
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(folder.ca()).expect("a CA")).expect("a root");
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    /// Connects the two, with a word from the server, which tickets come before.
    fn shake_hands(client: &Arc<ClientConfig>, server: Arc<ServerConfig>) -> Result<ServerConnection, rustls::Error> {
        let name = "localhost".try_into().expect("a name");
        let mut client = ClientConnection::new(Arc::clone(client), name)?;
        let mut server = ServerConnection::new(server)?;
        server.writer().write_all(b"hello").expect("buffers");
        while client.wants_write() || server.wants_write() {
            let (mut there, mut back) = (Vec::new(), Vec::new());
            while client.wants_write() {
                client.write_tls(&mut there).expect("writes");
            }
            server.read_tls(&mut there.as_slice()).expect("reads");
            server.process_new_packets()?;
            while server.wants_write() {
                server.write_tls(&mut back).expect("writes");
            }
            client.read_tls(&mut back.as_slice()).expect("reads");
            client.process_new_packets()?;
        }
        let mut heard = [0; 5];
        client.reader().read_exact(&mut heard).expect("hears");
        assert_eq!(&heard, b"hello");
        Ok(server)
    }

    #[test]
    fn a_session_is_resumed_by_whoever_has_the_keys_and_outlives_a_certificate() {
        let temp = tempfile::tempdir().expect("a folder");
        let clock: SharedClock = Arc::new(SystemClock);
        let [folder, elsewhere] = ["one", "two"].map(|name| DataFolder::at(&temp.path().join(name)));
        for folder in [&folder, &elsewhere] {
            folder.create().expect("a folder");
        }
        let (one, _) = live(&Config::default(), &folder, &clock);
        let (other, _) = live(&Config::default(), &elsewhere, &clock);
        let client = client(&folder, &[&TLS13], &[]);
        let xmpp = &[&b"xmpp-client"[..]];
        // Each resumption brings the ticket of the next. Only in a whole handshake the client sees the certificate.
        for (server, kind) in [
            (one.tls(xmpp, tickets(1)), HandshakeKind::Full),
            (one.tls(xmpp, tickets(1)), HandshakeKind::Resumed),
            (one.tls(&[], tickets(1)), HandshakeKind::Resumed),
            (other.tls(xmpp, tickets(1)), HandshakeKind::Resumed),
            (one.tls(xmpp, tickets(2)), HandshakeKind::Full),
            (one.tls(xmpp, tickets(2)), HandshakeKind::Resumed),
        ] {
            let server = server.expect("a server");
            assert_eq!(server.max_early_data_size, 0);
            assert_eq!(shake_hands(&client, server).expect("connects").handshake_kind(), Some(kind));
        }
        let stranger = other.tls(xmpp, tickets(3)).expect("a server");
        let error = shake_hands(&client, stranger).expect_err("another CA");
        assert!(matches!(error, rustls::Error::InvalidCertificate(_)), "{error}");
    }

    #[test]
    fn clients_of_tls_1_2_are_served_without_tickets() {
        let temp = tempfile::tempdir().expect("a folder");
        let folder = DataFolder::at(temp.path());
        let (live, _) = live(&Config::default(), &folder, &(Arc::new(SystemClock) as SharedClock));
        let client = client(&folder, &[&TLS12], &[]);
        for _ in 0..2 {
            let server = live.tls(&[], tickets(1)).expect("a server");
            let agreed = shake_hands(&client, server).expect("connects");
            assert_eq!(agreed.handshake_kind(), Some(HandshakeKind::Full));
        }
    }

    #[test]
    fn who_names_a_protocol_must_name_one_that_is_spoken() {
        let temp = tempfile::tempdir().expect("a folder");
        let folder = DataFolder::at(temp.path());
        let (live, _) = live(&Config::default(), &folder, &(Arc::new(SystemClock) as SharedClock));
        let connect = |offered: &[&str]| {
            let server = live.tls(&[b"xmpp-client"], tickets(1)).expect("a server");
            shake_hands(&client(&folder, &[&TLS13], offered), server)
        };
        assert_eq!(connect(&["h2", "xmpp-client"]).expect("connects").alpn_protocol(), Some(&b"xmpp-client"[..]));
        assert_eq!(connect(&[]).expect("connects").alpn_protocol(), None);
        assert_eq!(connect(&["h2"]).err(), Some(rustls::Error::NoApplicationProtocol));
    }

    #[tokio::test]
    async fn files_are_read_again_and_what_can_not_be_used_changes_nothing() {
        let temp = tempfile::tempdir().expect("a folder");
        let folder = DataFolder::at(&temp.path().join("data"));
        let time = Arc::new(At(AtomicU64::new(1_800_000_000_000)));
        let clock: SharedClock = Arc::clone(&time) as SharedClock;
        let config = files(temp.path(), &clock);
        let (live, registry) = live(&config, &folder, &clock);
        let first = live.current();
        assert_eq!(first.not_after_ms, 1_800_000_000_000 + 730 * DAY_MS);
        assert_eq!(metric(&registry, "campanile_certificate_expires_ms"), first.not_after_ms.to_string());
        assert_eq!(live.reload().await.expect("the same files"), Reloaded::Unchanged);

        time.0.fetch_add(DAY_MS, Ordering::SeqCst);
        files(temp.path(), &clock);
        assert_eq!(live.reload().await.expect("other files"), Reloaded::Replaced);
        let second = live.current();
        assert_eq!(second.not_after_ms, first.not_after_ms + DAY_MS);
        assert_ne!(second.certified.cert, first.certified.cert);
        assert_eq!(metric(&registry, "campanile_certificate_expires_ms"), second.not_after_ms.to_string());

        let whole = std::fs::read(&config.tls.certificate).expect("is there");
        for broken in [&b""[..], b"no PEM", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&config.tls.certificate, broken).expect("writes");
            let error = format!("{:#}", live.reload().await.expect_err("broken"));
            assert!(error.starts_with("the certificate stays as it was: tls.certificate"), "{error}");
            assert_eq!(live.current().certified.cert, second.certified.cert);
        }
        // Half of an exchange: the new certificate is there, its key is not yet.
        let other = files(temp.path(), &clock);
        std::fs::write(&other.tls.certificate, &whole).expect("writes");
        let error = format!("{:#}", live.reload().await.expect_err("they don't belong together"));
        assert!(error.contains("can't be used together"), "{error}");

        // One that has ended is of no use.
        files(temp.path(), &clock);
        time.0.fetch_add(731 * DAY_MS, Ordering::SeqCst);
        let error = format!("{:#}", live.reload().await.expect_err("ended"));
        assert!(error.contains("certificate.pem has ended already"), "{error}");
        assert_eq!(live.current().certified.cert, second.certified.cert);
        for (result, times) in [("replaced", "1"), ("unchanged", "1"), ("failed", "5")] {
            let name = format!("campanile_certificate_reloads_total{{result=\"{result}\"}}");
            assert_eq!(metric(&registry, &name), times, "{result}");
        }
    }

    #[tokio::test]
    async fn the_instances_own_certificate_is_made_anew_when_its_end_is_near() {
        let temp = tempfile::tempdir().expect("a folder");
        let folder = DataFolder::at(temp.path());
        let time = Arc::new(At(AtomicU64::new(1_800_000_000_000)));
        let clock: SharedClock = Arc::clone(&time) as SharedClock;
        let (live, _) = live(&Config::default(), &folder, &clock);
        let (first, ca) = (live.current(), std::fs::read(folder.ca()).expect("is there"));
        time.0.fetch_add(600 * DAY_MS, Ordering::SeqCst);
        assert_eq!(live.reload().await.expect("keeps"), Reloaded::Unchanged);
        time.0.fetch_add(41 * DAY_MS, Ordering::SeqCst);
        assert_eq!(live.reload().await.expect("renews"), Reloaded::Replaced);
        assert_eq!(live.current().not_after_ms, first.not_after_ms + 641 * DAY_MS);
        assert_eq!(std::fs::read(folder.ca()).expect("is there"), ca);
        assert_eq!(live.current().ca, first.ca);
    }

    #[tokio::test]
    async fn it_reloads_whenever_it_is_told_also_before_it_watched() {
        let temp = tempfile::tempdir().expect("a folder");
        let clock: SharedClock = Arc::new(SystemClock);
        let config = files(temp.path(), &clock);
        let (live, _) = live(&config, &DataFolder::at(temp.path()), &clock);
        let first = live.current();
        let (reload, drain) = (Arc::new(Notify::new()), CancellationToken::new());
        files(temp.path(), &clock);
        reload.notify_one();
        let watching = tokio::spawn(Arc::clone(&live).watch(reload, drain.clone()));
        while live.current().certified.cert == first.certified.cert {
            tokio::task::yield_now().await;
        }
        drain.cancel();
        watching.await.expect("ends");
    }

    #[test]
    fn what_can_not_be_used_as_a_certificate_is_named() {
        let temp = tempfile::tempdir().expect("a folder");
        let folder = DataFolder::at(temp.path());
        let names = BTreeSet::from(["localhost".to_owned()]);
        let (certificate, key) = OwnCa { folder: &folder }.certificate(&names, &SystemClock).expect("makes");
        let missing = temp.path().join("missing.pem");
        let fault = |certificate: &Path, key: &Path| {
            format!("{:#}", ServerCertificate::read(certificate, key).expect_err("can't be used"))
        };
        assert!(fault(&missing, &key).contains("missing.pem can't be used"), "{}", fault(&missing, &key));
        assert!(fault(&certificate, &missing).contains("tls.key"), "{}", fault(&certificate, &missing));
        assert!(fault(&key, &key).contains("holds no certificate"), "{}", fault(&key, &key));
        let other = folder.tls().join("ca.key");
        assert!(fault(&certificate, &other).contains("can't be used together"), "{}", fault(&certificate, &other));
    }
}
