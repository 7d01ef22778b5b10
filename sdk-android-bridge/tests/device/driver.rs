//! The tokio driver: over streams in memory with a paused clock, and over TCP with TLS.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use campanile_sdk_android_bridge::driver::tls::{Endpoint, TlsConnector, TlsMode};
use campanile_sdk_android_bridge::driver::{Device, DeviceEvent, DeviceHandle};
use campanile_sdk_android_bridge::{Command, Config, Core, OfflineReason, Push, Saved};
use idl::ids::{MessageId, RegId};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

use crate::server::{DOMAIN, Server, Slim, Steady};
use crate::world::{app_config, config, demo};

type Down = mpsc::Sender<Option<Vec<u8>>>;

/// The test's server behind streams: at most one connection at a time.
#[derive(Clone)]
struct Network {
    server: Arc<Mutex<Server>>,
    /// Bytes to send on the current connection; `None` cuts it.
    down: Arc<Mutex<Option<Down>>>,
}

impl Network {
    fn new() -> Self {
        Self { server: Arc::new(Mutex::new(Server::new())), down: Arc::default() }
    }

    fn server(&self) -> MutexGuard<'_, Server> {
        self.server.lock().expect("no test panicked")
    }

    fn connect(&self) -> DuplexStream {
        let (device, server) = tokio::io::duplex(64 * 1024);
        self.serve(server);
        device
    }

    fn serve<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(&self, mut stream: S) {
        let (sender, mut down) = mpsc::channel(64);
        *self.down.lock().expect("no test panicked") = Some(sender);
        self.server().connected();
        let server = Arc::clone(&self.server);
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            loop {
                let out = tokio::select! {
                    read = stream.read(&mut buffer) => match read {
                        Ok(0) | Err(_) => return,
                        Ok(length) => server.lock().expect("no test panicked").receive(&buffer[..length]),
                    },
                    down = down.recv() => match down {
                        Some(Some(bytes)) => bytes,
                        _ => return,
                    },
                };
                if stream.write_all(&out).await.and(stream.flush().await).is_err() {
                    return;
                }
            }
        });
    }

    async fn send(&self, bytes: Option<Vec<u8>>) {
        let down = self.down.lock().expect("no test panicked").clone().expect("a connection");
        down.send(bytes).await.expect("the connection lives");
    }

    async fn deliver(&self, id: u128, text: &str) {
        let bytes = self.server().deliver(&demo(), MessageId(id), text);
        self.send(Some(bytes)).await;
    }

    async fn cut(&self) {
        self.send(None).await;
    }

    fn device(&self, config: Config, saved: Saved) -> DeviceHandle {
        let core = Core::new(config, vec![app_config(demo())], saved, Arc::new(Steady::new(1)));
        let network = self.clone();
        Device::spawn(core, move || {
            let network = network.clone();
            async move { Ok(network.connect()) }
        })
    }
}

/// The next event that is no `Save`.
async fn next(device: &mut DeviceHandle) -> DeviceEvent {
    loop {
        match device.events.recv().await.expect("the device runs") {
            DeviceEvent::Save(_) => {}
            event => return event,
        }
    }
}

async fn next_push(device: &mut DeviceHandle) -> Push {
    match next(device).await {
        DeviceEvent::Push(push) => *push,
        other => panic!("{other:?} instead of a push"),
    }
}

fn ready() -> DeviceEvent {
    DeviceEvent::Ready { app: demo(), regid: RegId([1; 24]) }
}

#[tokio::test(start_paused = true)]
async fn slim_frames_come_through_a_few_bytes_at_a_time_and_over_a_cut() {
    let network = Network::new();
    network.server().manners.manageable = true;
    network.server().manners.slim = Slim::Agreed;
    let core = Core::new(config(), vec![app_config(demo())], Saved::default(), Arc::new(Steady::new(1)));
    let narrow = network.clone();
    let mut device = Device::spawn(core, move || {
        let (device, server) = tokio::io::duplex(7);
        narrow.serve(server);
        async move { Ok(device) }
    });
    assert_eq!(next(&mut device).await, ready());
    for (id, text) in [(1, "one"), (2, "two")] {
        network.deliver(id, text).await;
        let push = next_push(&mut device).await;
        assert_eq!(push.notification.payload.as_deref(), Some(text));
        device.handled(&push.app, push.id);
        tokio::time::sleep(Duration::from_secs(1)).await;
        network.cut().await;
        assert_eq!(next(&mut device).await, DeviceEvent::Offline { reason: OfflineReason::ConnectionLost });
        assert_eq!(next(&mut device).await, ready());
    }
    network.deliver(3, "three").await;
    let push = next_push(&mut device).await;
    device.handled(&push.app, push.id);
    device.stop().await;
    // The paused clock moves when the server has taken the last bytes out of the pipe.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let server = network.server();
    assert_eq!(server.acked(), [MessageId(1), MessageId(2), MessageId(3)]);
    assert!(server.is_slim() && server.closed && server.resumptions == 2);
}

#[tokio::test(start_paused = true)]
async fn a_push_comes_through_and_is_acknowledged_when_it_is_handled() {
    let network = Network::new();
    let mut device = network.device(config(), Saved::default());
    assert_eq!(next(&mut device).await, ready());
    network.deliver(1, "one").await;
    let push = next_push(&mut device).await;
    assert_eq!(push.notification.payload.as_deref(), Some("one"));
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert_eq!(network.server().acked(), []);
    device.handled(&push.app, push.id);
    device.handled(&push.app, push.id);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(network.server().acked(), [MessageId(1)]);
}

#[tokio::test(start_paused = true)]
async fn a_command_is_answered_and_a_stopped_device_says_what_must_be_kept() {
    let network = Network::new();
    let mut device = network.device(config(), Saved::default());
    assert_eq!(next(&mut device).await, ready());
    let alias = Command::SetAlias("a".parse().expect("an alias"));
    assert_eq!(device.command(demo(), alias).await, Ok(()));
    network.deliver(1, "one").await;
    let push = next_push(&mut device).await;
    device.handled(&push.app, push.id);
    let control = device.control();
    let saved = device.stop().await;
    assert!(saved.has_seen(&demo(), MessageId(1)));
    assert_eq!(network.server().acked(), [MessageId(1)], "the ack left before the stream ended");
    assert!(network.server().closed);
    let late = control.command(demo(), Command::SetEnabled(true)).await;
    assert!(late.is_err(), "a device that has ended says so");
}

#[tokio::test(start_paused = true)]
async fn a_cut_connection_comes_back_and_a_killed_device_keeps_what_it_saved() {
    let network = Network::new();
    let mut device = network.device(config(), Saved::default());
    assert_eq!(next(&mut device).await, ready());
    network.cut().await;
    assert_eq!(next(&mut device).await, DeviceEvent::Offline { reason: OfflineReason::ConnectionLost });
    assert_eq!(next(&mut device).await, ready());
    network.deliver(1, "one").await;
    let push = next_push(&mut device).await;
    device.handled(&push.app, push.id);
    let Some(DeviceEvent::Save(saved)) = device.events.recv().await else { panic!("the handled push is saved") };
    device.kill();
    let mut device = network.device(config(), Saved::from_bytes(&saved).expect("saved state"));
    assert_eq!(next(&mut device).await, ready());
    network.deliver(1, "one").await;
    network.deliver(2, "two").await;
    assert_eq!(next_push(&mut device).await.notification.payload.as_deref(), Some("two"));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_falls_silent_is_left_in_time() {
    let network = Network::new();
    let mut device = network.device(config(), Saved::default());
    assert_eq!(next(&mut device).await, ready());
    network.server().manners.deaf = true;
    let since = Instant::now();
    assert_eq!(next(&mut device).await, DeviceEvent::Offline { reason: OfflineReason::HeartbeatTimedOut });
    assert!(since.elapsed() <= Duration::from_secs(91), "{:?}", since.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_application_that_takes_no_events_can_still_give_commands() {
    let network = Network::new();
    let device = network.device(Config { heartbeat: Duration::from_hours(1), ..config() }, Saved::default());
    while network.server().registrations.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for id in 0..60 {
        network.deliver(id, "x").await;
    }
    let result = timeout(Duration::from_mins(2), device.command(demo(), Command::SetEnabled(true))).await;
    assert_eq!(result, Ok(Ok(())));
    // Far more than there is room for: the device stops reading, and what it holds stays bounded.
    for id in 60..1000 {
        let bytes = network.server().deliver(&demo(), MessageId(id), "x");
        let down = network.down.lock().expect("no test panicked").clone().expect("a connection");
        if timeout(Duration::from_secs(1), down.send(Some(bytes))).await.is_err() {
            break;
        }
    }
    let result = timeout(Duration::from_mins(2), device.command(demo(), Command::SetEnabled(true))).await;
    assert!(result.is_ok(), "it ends, if only because its time is over");
    let mut device = device;
    let mut pushes = 0;
    while let Ok(event) = timeout(Duration::from_secs(5), next(&mut device)).await {
        if let DeviceEvent::Push(push) = event {
            assert_eq!(push.id, MessageId(pushes), "in order");
            pushes += 1;
        }
    }
    assert!(pushes > 60);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_does_not_come_about_is_given_up_in_time() {
    let core = Core::new(config(), vec![app_config(demo())], Saved::default(), Arc::new(Steady::new(1)));
    let mut device = Device::spawn(core, std::future::pending::<io::Result<DuplexStream>>);
    let since = Instant::now();
    assert_eq!(next(&mut device).await, DeviceEvent::Offline { reason: OfflineReason::LoginTimedOut });
    assert_eq!(since.elapsed().as_secs(), config().login_time_max.as_secs());
    device.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_refused_can_be_replaced() {
    let network = Network::new();
    network.server().token = "another".to_owned();
    let mut device = network.device(config(), Saved::default());
    assert_eq!(next(&mut device).await, DeviceEvent::LoggedOut { reason: "not-authorized".to_owned() });
    device.control().renew_token("another".to_owned()).await;
    assert_eq!(next(&mut device).await, ready());
}

/// A certificate for the domain, and both sides' configuration.
fn tls() -> (TlsAcceptor, Arc<rustls::ClientConfig>) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let made = rcgen::generate_simple_self_signed(vec![DOMAIN.to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let certificate = made.cert.der().clone();
    let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![certificate.clone()], key))
        .expect("a server's configuration");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).expect("a root");
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("protocol versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    (TlsAcceptor::from(Arc::new(server)), Arc::new(client))
}

/// A device that connects over TCP to a server which first says these plain bytes, answered by anything.
async fn over_tls(mode: TlsMode, plain: Vec<&'static str>) -> DeviceEvent {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (acceptor, client) = tls();
    let network = Network::new();
    let serving = network.clone();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut buffer = [0; 4096];
        for said in plain {
            let length = stream.read(&mut buffer).await.expect("bytes");
            assert!(length > 0, "the device asks before it is answered");
            stream.write_all(said.as_bytes()).await.expect("written");
        }
        if let Ok(stream) = acceptor.accept(stream).await {
            serving.serve(stream);
        }
    });
    let endpoint = Endpoint { host: "127.0.0.1".to_owned(), port, tls: mode };
    let name = ServerName::try_from(DOMAIN).expect("a name");
    let connector = TlsConnector::new(vec![endpoint], DOMAIN, name, client);
    let core = Core::new(config(), vec![app_config(demo())], Saved::default(), Arc::new(Steady::new(1)));
    let mut device = Device::spawn(core, connector);
    let event = next(&mut device).await;
    device.stop().await;
    event
}

const HEADER: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
                      xmlns:stream='http://etherx.jabber.org/streams' id='1' version='1.0'><stream:features>\
                      <starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'><required/></starttls></stream:features>";
const PROCEED: &str = "<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";

#[tokio::test]
async fn direct_tls_connects() {
    assert_eq!(over_tls(TlsMode::Direct, vec![]).await, ready());
}

#[tokio::test]
async fn starttls_connects() {
    assert_eq!(over_tls(TlsMode::StartTls, vec![HEADER, PROCEED]).await, ready());
}

#[tokio::test]
async fn a_server_without_starttls_or_with_bytes_before_tls_is_not_used() {
    let failed = DeviceEvent::Offline { reason: OfflineReason::ConnectFailed };
    let plain = "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>\
                 <stream:features/>";
    assert_eq!(over_tls(TlsMode::StartTls, vec![plain]).await, failed);
    let injected = "<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/><stream:features/>";
    assert_eq!(over_tls(TlsMode::StartTls, vec![HEADER, injected]).await, failed);
    let failure = "<failure xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";
    assert_eq!(over_tls(TlsMode::StartTls, vec![HEADER, failure]).await, failed);
}
