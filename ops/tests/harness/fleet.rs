//! Devices in this process, over real TLS to the server: thousands of them where a test needs that.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use campanile_ops::api::{self, Account, Api};
use campanile_ops::lifecycle::raise_file_limit;
use idl::clock::{Entropy as _, SystemEntropy};
use idl::ids::{AppId, MessageId, RegId};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use sdk_android_bridge::driver::tls::{Endpoint, TlsConnector, TlsMode};
use sdk_android_bridge::driver::{Device, DeviceControl, DeviceEvent, DeviceHandle};
use sdk_android_bridge::{AppConfig, Backoff, Command, Config, Core, Failure, Saved};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::eventually;
use super::server::Server;

/// Logins at one time: more would only wait for each other.
const LOGINS_MAX: usize = 64;
/// Accounts made at one time: their writes share a commit.
const ACCOUNTS_MAX: usize = 8;

/// What an app on a device was called back with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Received {
    /// The message.
    pub(crate) id: MessageId,
    /// Its payload.
    pub(crate) payload: String,
    /// True if it was sent to many at once.
    pub(crate) broadcast: bool,
}

/// A device of the demo application in this process. It keeps what a device must keep in memory, so it can be cut off,
/// killed and started again like a phone.
pub(crate) struct InProcessDevice {
    account: Account,
    app: AppConfig,
    tls: Arc<ClientConfig>,
    told: Arc<Mutex<Told>>,
    configure: fn(&mut Config),
    running: Option<Running>,
}

/// A device that runs.
struct Running {
    control: DeviceControl,
    task: JoinHandle<DeviceHandle>,
    end: Arc<Notify>,
}

/// What the device has told its app.
#[derive(Default)]
struct Told {
    regid: Option<RegId>,
    online: bool,
    received: Vec<Received>,
    offline: Vec<String>,
    saved: Vec<u8>,
}

impl InProcessDevice {
    /// A device with an account of its own, not connected yet. Blocks for one HTTPS request.
    pub(crate) fn new(server: &Server) -> Self {
        Self::of(&server.api(), &app_of(server), &api::device_tls(Some(&server.ca())).expect("the CA is usable"))
    }

    fn of(api: &Api, app: &AppConfig, tls: &Arc<ClientConfig>) -> Self {
        let mut identity = [0; 16];
        SystemEntropy.fill(&mut identity);
        let account =
            api.create_account(&format!("{:032x}", u128::from_be_bytes(identity)), "test").expect("an account");
        let told = Told { saved: Saved::default().to_bytes(), ..Told::default() };
        let (tls, told) = (Arc::clone(tls), Arc::new(Mutex::new(told)));
        Self { account, app: app.clone(), tls, told, configure: |_| {}, running: None }
    }

    /// Another device with the same account and what this one keeps, not connected yet: a copy of the phone.
    pub(crate) fn copy(&self) -> Self {
        let told = Told { saved: self.told().saved.clone(), ..Told::default() };
        Self {
            account: self.account.clone(),
            app: self.app.clone(),
            tls: Arc::clone(&self.tls),
            told: Arc::new(Mutex::new(told)),
            configure: self.configure,
            running: None,
        }
    }

    /// From its next start on it connects to that port of this machine, where TLS begins with the first byte.
    pub(crate) fn go_through(&mut self, port: u16) {
        let endpoint = api::Endpoint { host: "127.0.0.1".to_owned(), port, tls: "direct".to_owned() };
        self.account.endpoints = vec![endpoint];
    }

    /// From its next start on it tries that port of this machine first, and what else it was told of after it.
    pub(crate) fn begin_with(&mut self, port: u16) {
        let endpoints = &mut self.account.endpoints;
        if let Some(at) = endpoints.iter().position(|endpoint| endpoint.port == port) {
            endpoints.rotate_left(at);
        } else {
            let direct = "direct".to_owned();
            endpoints.insert(0, api::Endpoint { host: "127.0.0.1".to_owned(), port, tls: direct });
        }
    }

    /// From its next start on it behaves like that.
    pub(crate) fn configure(&mut self, with: fn(&mut Config)) {
        self.configure = with;
    }

    /// Begins to connect; a device that runs goes on.
    pub(crate) fn start(&mut self) {
        if self.running.is_some() {
            return;
        }
        let handle = Device::spawn(self.core(), self.connector());
        let (control, end) = (handle.control(), Arc::new(Notify::new()));
        let task = tokio::spawn(take_events(handle, Arc::clone(&self.told), Arc::clone(&end)));
        self.running = Some(Running { control, task, end });
    }

    /// Waits until it is registered and reachable.
    pub(crate) async fn ready(&self) -> RegId {
        eventually("the device is ready", || {
            let told = self.told();
            told.regid.filter(|_| told.online)
        })
        .await
    }

    /// [`InProcessDevice::start`] and [`InProcessDevice::ready`].
    pub(crate) async fn connect(&mut self) -> RegId {
        self.start();
        self.ready().await
    }

    /// Asks the server for something; see [`Command`].
    pub(crate) async fn command(&self, command: Command) -> Result<(), Failure> {
        let running = self.running.as_ref().expect("it runs");
        running.control.command(self.app.app.clone(), command).await
    }

    /// Sets an alias and waits until it is in force.
    pub(crate) async fn alias(&self, alias: &str) {
        self.command(Command::SetAlias(alias.parse().expect("an alias"))).await.expect("the alias is set");
    }

    /// Sets a user account and waits until it is in force.
    pub(crate) async fn user_account(&self, name: &str) {
        let name = name.parse().expect("a user account");
        self.command(Command::SetUserAccount(name)).await.expect("the user account is set");
    }

    /// Subscribes to a topic and waits until it counts.
    pub(crate) async fn subscribe(&self, topic: &str) {
        self.command(Command::Subscribe(topic.parse().expect("a topic"))).await.expect("it is subscribed");
    }

    /// Ends a subscription and waits until it has ended.
    pub(crate) async fn unsubscribe(&self, topic: &str) {
        self.command(Command::Unsubscribe(topic.parse().expect("a topic"))).await.expect("it is unsubscribed");
    }

    /// Ends the connection as a device does that is turned off: acknowledgements leave first.
    pub(crate) async fn stop(&mut self) {
        if let Some(Running { task, end, .. }) = self.running.take() {
            end.notify_one();
            let saved = task.await.expect("it runs").stop().await;
            let mut told = self.told();
            told.saved = saved.to_bytes();
            told.online = false;
        }
    }

    /// Ends the connection as a device does that loses its power: nothing leaves any more, and what it keeps is what it
    /// last wrote.
    pub(crate) async fn kill(&mut self) {
        if let Some(Running { task, end, .. }) = self.running.take() {
            end.notify_one();
            task.await.expect("it runs").kill();
            self.told().online = false;
        }
    }

    /// What its app was called back with, in order.
    pub(crate) fn received(&self) -> Vec<Received> {
        self.told().received.clone()
    }

    /// How often its app was called back.
    pub(crate) fn received_count(&self) -> usize {
        self.told().received.len()
    }

    /// The payloads of all callbacks, in order.
    pub(crate) fn payloads(&self) -> Vec<String> {
        self.told().received.iter().map(|received| received.payload.clone()).collect()
    }

    /// Waits until its app was called back with this payload.
    pub(crate) async fn wait_for_push(&self, payload: &str) {
        let there = || self.told().received.iter().any(|received| received.payload == payload).then_some(());
        eventually(format!("a push {payload:?}"), there).await;
    }

    /// True while it is registered and reachable, as far as it knows.
    pub(crate) fn is_online(&self) -> bool {
        self.told().online
    }

    /// True if what it last wrote says that its app had this message.
    pub(crate) fn has_saved(&self, id: MessageId) -> bool {
        Saved::from_bytes(&self.told().saved).expect("what was saved").has_seen(&self.app.app, id)
    }

    /// Why it was offline, each time.
    pub(crate) fn offline_reasons(&self) -> Vec<String> {
        self.told().offline.clone()
    }

    /// Its account, `<id>@<domain>`.
    pub(crate) fn jid(&self) -> &str {
        &self.account.jid
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        lock(&self.told)
    }

    fn core(&self) -> Core {
        let (id, domain) = self.account.jid.split_once('@').expect("an address");
        let mut config = Config::new(domain, id.parse().expect("an account"), self.account.token.clone());
        // A test waits for whoever comes back.
        config.backoff = Backoff { first: Duration::from_millis(50), max: Duration::from_millis(500) };
        (self.configure)(&mut config);
        let saved = Saved::from_bytes(&self.told().saved).expect("what was saved");
        Core::new(config, vec![self.app.clone()], saved, Arc::new(SystemEntropy))
    }

    fn connector(&self) -> TlsConnector {
        let (_, domain) = self.account.jid.split_once('@').expect("an address");
        let endpoint = |endpoint: &api::Endpoint| Endpoint {
            // The certificate is for the domain; the server of a test is always here.
            host: "127.0.0.1".to_owned(),
            port: endpoint.port,
            tls: if endpoint.tls == "direct" { TlsMode::Direct } else { TlsMode::StartTls },
        };
        let name = ServerName::try_from(domain.to_owned()).expect("a name");
        TlsConnector::new(self.account.endpoints.iter().map(endpoint).collect(), domain, name, Arc::clone(&self.tls))
    }
}

/// Many devices.
pub(crate) struct Fleet {
    /// The devices, in the order in which they were made.
    pub(crate) devices: Vec<InProcessDevice>,
}

impl Fleet {
    /// Makes as many devices with accounts of their own, not connected yet. Blocks for as many HTTPS requests.
    pub(crate) fn new(server: &Server, count: usize) -> Self {
        // Each connection is a file here, too.
        raise_file_limit();
        let (api, app) = (server.api(), app_of(server));
        let tls = api::device_tls(Some(&server.ca())).expect("the CA is usable");
        let make = |count| (0..count).map(|_| InProcessDevice::of(&api, &app, &tls)).collect::<Vec<_>>();
        let makers = count.clamp(1, ACCOUNTS_MAX);
        let devices = thread::scope(|scope| {
            let shares = (0..makers).map(|maker| (count + maker) / makers);
            let makers: Vec<_> = shares
                .map(|share| {
                    scope.spawn({
                        let make = &make;
                        move || make(share)
                    })
                })
                .collect();
            makers.into_iter().flat_map(|maker| maker.join().expect("the accounts are made")).collect()
        });
        Self { devices }
    }

    /// Connects those of these places that are not, a bounded number at a time, and waits until all are ready.
    pub(crate) async fn connect(&mut self, places: std::ops::Range<usize>) {
        let devices = &mut self.devices[places];
        for wave in devices.chunks_mut(LOGINS_MAX) {
            wave.iter_mut().for_each(InProcessDevice::start);
            for device in wave {
                device.ready().await;
            }
        }
    }

    /// The registrations of these places, in their order, once they are ready.
    pub(crate) async fn regids(&self, places: std::ops::Range<usize>) -> Vec<String> {
        let mut regids = Vec::new();
        for device in &self.devices[places] {
            regids.push(device.ready().await.to_string());
        }
        regids
    }

    /// Stops those of these places that run.
    pub(crate) async fn stop(&mut self, places: std::ops::Range<usize>) {
        for device in &mut self.devices[places] {
            device.stop().await;
        }
    }

    /// Waits until each device of these places was called back as often as that, at least.
    pub(crate) async fn wait_for_count(&self, places: std::ops::Range<usize>, count: usize) {
        let devices = &self.devices[places];
        let waiting = || devices.iter().filter(|device| device.received_count() < count).count();
        eventually(format!("every device has {count} pushes"), || (waiting() == 0).then_some(())).await;
    }
}

fn app_of(server: &Server) -> AppConfig {
    let demo = server.demo();
    let app: AppId = demo.app.parse().expect("an application id");
    let attributes = BTreeMap::from([("platform".to_owned(), "test".to_owned())]);
    AppConfig { app, package: demo.package, app_key: demo.app_key, attributes }
}

/// The app on the device: it takes what it is told, until `end`.
async fn take_events(mut handle: DeviceHandle, told: Arc<Mutex<Told>>, end: Arc<Notify>) -> DeviceHandle {
    loop {
        let event = tokio::select! {
            () = end.notified() => return handle,
            event = handle.events.recv() => event,
        };
        let Some(event) = event else { return handle };
        let mut told = lock(&told);
        match event {
            DeviceEvent::Push(push) => {
                let payload = push.notification.payload.clone().unwrap_or_default();
                told.received.push(Received { id: push.id, payload, broadcast: push.broadcast });
                handle.handled(&push.app, push.id);
            }
            DeviceEvent::Ready { regid, .. } => (told.regid, told.online) = (Some(regid), true),
            DeviceEvent::Offline { reason } => {
                told.online = false;
                told.offline.push(reason.to_string());
            }
            DeviceEvent::LoggedOut { reason } => {
                told.online = false;
                told.offline.push(format!("logged out: {reason}"));
            }
            DeviceEvent::Invalidated { .. } => told.regid = None,
            DeviceEvent::Save(saved) => told.saved = saved,
            DeviceEvent::RegisterFailed { failure, .. } => told.offline.push(format!("not registered: {failure}")),
            DeviceEvent::Revoked { .. } => {}
        }
    }
}

/// Nothing panics while holding it.
fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}
