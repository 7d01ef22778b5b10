//! The whole path in one thread, without sockets: the tiers on the in-process bus, stores in memory, devices over pipes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use axum::http::Request as HttpRequest;
use http_frontend::Http;
use idl::bus::{Bus, Call, InProcess, Limits, MiddleInbox, Reply, Request};
use idl::clock::{SharedClock, SharedEntropy};
use idl::contract::bus::{CreateAccount, CreateApp};
use idl::ids::{AccountId, AppId, FrontId, Generation, RegId, Shard};
use idl::token::KeyRing;
use middle_tier::Middle;
use middle_tier::poster::{Post, PostError, Poster};
use prometheus_client::registry::Registry;
use ring::hmac;
use schema::cache::in_process::{CacheLimits, InProcessCache};
use schema::sorted::SortedStore;
use schema::sorted::memory::MemoryStore;
use sdk_android_bridge::driver::{Device, DeviceControl, DeviceEvent, DeviceHandle};
use sdk_android_bridge::{AppConfig, Backoff, Command, Config as DeviceConfig, Core, Saved};
use tokio::io::{DuplexStream, copy_bidirectional, duplex};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;
use xmpp_frontend::{Acceptor, Front, Security};

use crate::breaks::{Break, CursorMover, HastyStore};
use crate::catalog::MemoryCatalog;
use crate::dice::{Dice, SimClock};
use crate::faults::{FaultyBus, FaultyStore, Weather, give_twice};
use crate::history::{History, Target};

pub(crate) const DEVICES: usize = 5;
pub(crate) const TOPICS: usize = 3;
const FRONTS: usize = 2;
const APP: &str = "com.example.demo";

/// Everything that runs.
pub(crate) struct World {
    pub(crate) dice: Dice,
    pub(crate) weather: Weather,
    pub(crate) history: History,
    broken: Break,
    clock: SharedClock,
    bus: Arc<InProcess>,
    faulty: Arc<dyn Bus>,
    store: Arc<dyn SortedStore>,
    hasty: Option<Arc<HastyStore>>,
    catalog: Arc<MemoryCatalog>,
    cache: Arc<InProcessCache>,
    keys: KeyRing,
    tls: Arc<rustls::ServerConfig>,
    router: axum::Router,
    secret: String,
    middle: Option<Tier>,
    fronts: Fronts,
    devices: Vec<SimDevice>,
}

/// Which fronts run now; devices connect to one of them.
type Fronts = Arc<Mutex<Vec<Option<(Acceptor, JoinHandle<()>)>>>>;

/// No callbacks in this world.
struct NoPosts;

#[async_trait]
impl Poster for NoPosts {
    fn check(&self, _: &str) -> Result<(), PostError> {
        Ok(())
    }

    async fn post(&self, _: Post) -> Result<(), PostError> {
        Err(PostError::Unreachable("there is nobody".into()))
    }
}

/// A middle tier that runs.
struct Tier {
    drain: CancellationToken,
    doubling: JoinHandle<()>,
    serving: JoinHandle<()>,
}

struct SimDevice {
    account: AccountId,
    token: String,
    app_key: String,
    online: Arc<AtomicBool>,
    link: Arc<Mutex<Option<watch::Sender<Link>>>>,
    state: Arc<Mutex<DeviceState>>,
    running: Option<Running>,
    rebirth: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct DeviceState {
    regid: Option<RegId>,
    /// Of the process that runs now.
    control: Option<DeviceControl>,
}

struct Running {
    control: DeviceControl,
    stop: CancellationToken,
    task: JoinHandle<Saved>,
}

/// What the network does to a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Link {
    Whole,
    /// Nothing passes and neither side is told.
    Frozen,
    Cut,
}

fn app() -> AppId {
    APP.parse().expect("an app id")
}

impl World {
    /// Builds the world in good weather: every device is registered and has its alias and user account.
    pub(crate) async fn build(seed: u64, broken: Break) -> Self {
        let dice = Dice::new(seed);
        let weather = Weather::default();
        let history = History::default();
        let clock: SharedClock = Arc::new(SimClock::start());
        let entropy: SharedEntropy = Arc::new(dice.clone());
        let bus = Arc::new(InProcess::new(Limits::default(), Arc::clone(&clock), Arc::clone(&entropy)));
        let memory: Arc<dyn SortedStore> = Arc::new(MemoryStore::new(Arc::clone(&clock)));
        let hasty = (broken == Break::AckBeforeDurable).then(|| Arc::new(HastyStore::new(Arc::clone(&memory))));
        let inner = hasty.clone().map_or_else(|| Arc::clone(&memory), |hasty| hasty as Arc<dyn SortedStore>);
        let store: Arc<dyn SortedStore> = Arc::new(FaultyStore { inner, dice: dice.clone(), weather: weather.clone() });
        let faulty: Arc<dyn Bus> =
            Arc::new(FaultyBus { inner: Arc::clone(&bus), dice: dice.clone(), weather: weather.clone() });
        let faulty = if broken == Break::CursorMovedByLiveDelivery {
            Arc::new(CursorMover::new(faulty, memory)) as Arc<dyn Bus>
        } else {
            faulty
        };
        let cache = Arc::new(InProcessCache::new(Arc::clone(&clock), Arc::clone(&entropy), CacheLimits::default()));
        let tls = server_config();
        let http = Http::build(
            http_frontend::Config {
                https: None,
                plain: None,
                allow_plain_remote: false,
                endpoints: Vec::new(),
                domain: "localhost".into(),
                limits: http_frontend::Limits::default(),
            },
            http_frontend::Dependencies {
                bus: Arc::clone(&faulty),
                tls: Arc::clone(&tls),
                clock: Arc::clone(&clock),
                websockets: None,
            },
            &mut Registry::default(),
        );
        let mut world = Self {
            dice,
            weather,
            history,
            broken,
            clock,
            bus,
            faulty,
            store,
            hasty,
            catalog: Arc::new(MemoryCatalog::default()),
            cache,
            keys: KeyRing::new(&[(1, [1; 32])]),
            tls,
            router: http.router(),
            secret: String::new(),
            middle: None,
            fronts: Arc::new(Mutex::new((0..FRONTS).map(|_| None).collect())),
            devices: Vec::new(),
        };
        world.start_middle();
        for place in 0..FRONTS {
            world.start_front(place).await;
        }
        world.populate().await;
        world
    }

    /// Virtual time since the world began.
    pub(crate) fn elapsed(&self) -> Duration {
        Duration::from_millis(self.clock.now_ms() - 1_800_000_000_000)
    }

    async fn ask(&self, request: Request) -> Reply {
        let call = Call::high(Shard(0), Duration::from_secs(10), request);
        self.bus.request(call).await.expect("the middle answers in good weather")
    }

    async fn populate(&mut self) {
        let Reply::Apps(apps) = self.ask(Request::CreateApp(CreateApp { app: APP.into(), package_name: None })).await
        else {
            panic!("an app was expected");
        };
        let made = &apps.apps[0];
        self.secret = made.secret.clone().expect("a new app has a secret");
        for number in 0..DEVICES {
            let request = CreateAccount { device: format!("device {number}"), model: None, platform: None };
            let Reply::Account(granted) = self.ask(Request::CreateAccount(request)).await else {
                panic!("an account was expected");
            };
            self.devices.push(SimDevice {
                account: granted.account.parse().expect("an account id"),
                token: granted.token,
                app_key: made.app_key.clone(),
                online: Arc::new(AtomicBool::new(true)),
                link: Arc::default(),
                state: Arc::default(),
                running: None,
                rebirth: None,
            });
            self.start_device(number, Saved::default());
        }
        for number in 0..DEVICES {
            let control = self.control(number);
            let alias = Command::SetAlias(alias(number).parse().expect("an alias"));
            control.command(app(), alias).await.expect("good weather");
            let account = Command::SetUserAccount(user_account(number).parse().expect("a user account"));
            control.command(app(), account).await.expect("good weather");
        }
    }

    fn control(&self, device: usize) -> DeviceControl {
        self.devices[device].running.as_ref().expect("it runs").control.clone()
    }

    // ------------------------------------------------------------------------------------------------------- the tiers

    pub(crate) fn start_middle(&mut self) {
        if self.middle.is_some() {
            return;
        }
        let (lanes, receivers): (Vec<_>, Vec<_>) = (0..3).map(|_| mpsc::channel(1024)).unzip();
        let lanes = <[_; 3]>::try_from(lanes).expect("three lanes");
        let attached = self.bus.attach_middle();
        let ownership = attached.ownership().clone();
        let inbox = MiddleInbox::new(<[_; 3]>::try_from(receivers).expect("three lanes"), ownership);
        let doubling = tokio::spawn(give_twice(attached, lanes, self.dice.clone(), self.weather.clone()));
        let middle = Middle::build(
            middle_tier::Config { check_interval: Duration::from_mins(1), ..middle_tier::Config::default() },
            middle_tier::Dependencies {
                bus: Arc::clone(&self.faulty),
                inbox,
                sorted: Arc::clone(&self.store),
                catalog: Arc::clone(&self.catalog) as Arc<dyn schema::catalog::Catalog>,
                cache: Arc::clone(&self.cache) as Arc<dyn schema::cache::Cache>,
                poster: Arc::new(NoPosts),
                keys: self.keys.clone(),
                regid_key: hmac::Key::new(hmac::HMAC_SHA256, &[2; 32]),
                clock: Arc::clone(&self.clock),
                entropy: Arc::new(self.dice.clone()),
            },
            &mut Registry::default(),
        );
        let drain = CancellationToken::new();
        let serving = tokio::spawn(middle.serve(drain.clone()));
        self.middle = Some(Tier { drain, doubling, serving });
    }

    /// As an operator would: it finishes what it has begun.
    pub(crate) async fn drain_middle(&mut self) {
        let Some(Tier { drain, doubling, serving }) = self.middle.take() else { return };
        drain.cancel();
        serving.await.expect("the middle drains");
        doubling.abort();
    }

    /// As kill -9 would: in the middle of everything.
    pub(crate) fn kill_middle(&mut self) {
        if let Some(Tier { doubling, serving, .. }) = self.middle.take() {
            doubling.abort();
            serving.abort();
        }
        if let Some(hasty) = &self.hasty {
            hasty.crash();
        }
    }

    pub(crate) async fn start_front(&self, place: usize) {
        if self.fronts.lock().unwrap_or_else(PoisonError::into_inner)[place].is_some() {
            return;
        }
        let id = FrontId(u128::from(self.dice.next()));
        let front = Front::build(
            xmpp_frontend::Config { domain: "localhost".into(), ..xmpp_frontend::Config::default() },
            xmpp_frontend::Dependencies {
                bus: Arc::clone(&self.faulty),
                inbox: self.bus.attach_front(id),
                front: id,
                keys: self.keys.clone(),
                tls: Arc::clone(&self.tls),
                clock: Arc::clone(&self.clock),
                entropy: Arc::new(self.dice.clone()),
            },
            &mut Registry::default(),
        );
        let acceptor = front.acceptor();
        let bound = front.bind().await.expect("nothing to bind");
        let serving = tokio::spawn(bound.serve(CancellationToken::new(), TaskTracker::new()));
        self.fronts.lock().unwrap_or_else(PoisonError::into_inner)[place] = Some((acceptor, serving));
    }

    pub(crate) fn kill_front(&self, place: usize) {
        if let Some((_, serving)) = self.fronts.lock().unwrap_or_else(PoisonError::into_inner)[place].take() {
            serving.abort();
        }
    }

    /// The bus and the cache forget everything.
    pub(crate) async fn wipe_cache(&self) {
        use schema::cache::Cache as _;
        let _: Generation = self.cache.wipe().await.expect("memory");
    }

    // ----------------------------------------------------------------------------------------------------- the devices

    fn start_device(&mut self, number: usize, saved: Saved) {
        let device = &mut self.devices[number];
        let config = DeviceConfig {
            backoff: Backoff { first: Duration::from_millis(500), max: Duration::from_secs(10) },
            heartbeat: Duration::from_secs(20),
            seen_max: if self.broken == Break::NoDuplicateWindow { 0 } else { 1000 },
            ..DeviceConfig::new("localhost", device.account, device.token.clone())
        };
        let app =
            AppConfig { app: app(), package: APP.into(), app_key: device.app_key.clone(), attributes: BTreeMap::new() };
        let core = Core::new(config, vec![app], saved, Arc::new(self.dice.clone()));
        let (fronts, dice) = (Arc::clone(&self.fronts), self.dice.clone());
        let (online, link) = (Arc::clone(&device.online), Arc::clone(&device.link));
        let handle = Device::spawn(core, move || {
            connect(Arc::clone(&fronts), dice.clone(), Arc::clone(&online), Arc::clone(&link))
        });
        let stop = CancellationToken::new();
        let control = handle.control();
        device.state.lock().unwrap_or_else(PoisonError::into_inner).control = Some(control.clone());
        let task = tokio::spawn(run_app(number, handle, self.history.clone(), Arc::clone(&device.state), stop.clone()));
        device.running = Some(Running { control, stop, task });
    }

    /// The device's process ends and begins again with what it has kept.
    pub(crate) async fn restart_device(&mut self, number: usize) {
        let Some(running) = self.devices[number].running.take() else { return };
        running.stop.cancel();
        let saved = running.task.await.expect("the device's task runs");
        self.start_device(number, saved);
    }

    pub(crate) fn set_online(&self, number: usize, online: bool) {
        self.devices[number].online.store(online, Ordering::SeqCst);
        if !online {
            self.change_link(number, Link::Cut);
        }
    }

    pub(crate) fn cut(&self, number: usize) {
        self.change_link(number, Link::Cut);
    }

    /// The connection is dead and nobody knows: its front is a zombie for this device.
    pub(crate) fn freeze(&self, number: usize) {
        self.change_link(number, Link::Frozen);
    }

    fn change_link(&self, number: usize, link: Link) {
        if let Some(order) = &*self.devices[number].link.lock().unwrap_or_else(PoisonError::into_inner) {
            order.send_replace(link);
        }
    }

    pub(crate) async fn change_by_device(&self, device: usize, topic: usize, subscribe: bool) {
        let change = self.history.change_starts(device, topic, subscribe);
        let name = topic_name(topic).parse().expect("a topic");
        let command = if subscribe { Command::Subscribe(name) } else { Command::Unsubscribe(name) };
        let result = self.control(device).command(app(), command).await;
        self.history.change_answered(change, result.is_ok());
    }

    pub(crate) async fn change_by_server(&self, device: usize, topic: usize, subscribe: bool) {
        let Some(regid) = self.regid(device) else { return };
        let change = self.history.change_starts(device, topic, subscribe);
        let path = if subscribe { "/v2/topic/subscribe" } else { "/v2/topic/unsubscribe" };
        let ok = self.post(path, format!("registration_id={regid}&topic={}", topic_name(topic))).await;
        self.history.change_answered(change, ok);
    }

    pub(crate) async fn switch(&self, device: usize, on: bool) -> bool {
        let switch = self.history.switch_starts(device, on);
        let ok = self.control(device).command(app(), Command::SetEnabled(on)).await.is_ok();
        self.history.switch_answered(switch, ok);
        ok
    }

    /// Whether the device's registration is being replaced now.
    pub(crate) fn is_in_rebirth(&self, device: usize) -> bool {
        self.devices[device].rebirth.as_ref().is_some_and(|rebirth| !rebirth.is_finished())
    }

    /// The device ends its registration and makes another, however long that takes.
    pub(crate) fn start_rebirth(&mut self, number: usize) {
        let rebirth = self.history.rebirth_starts(number);
        let device = &mut self.devices[number];
        let (history, state) = (self.history.clone(), Arc::clone(&device.state));
        device.rebirth = Some(tokio::spawn(async move {
            let commands = [
                Command::Unregister,
                Command::Register,
                Command::SetAlias(alias(number).parse().expect("an alias")),
                Command::SetUserAccount(user_account(number).parse().expect("a user account")),
            ];
            for command in commands {
                loop {
                    let control = state.lock().unwrap_or_else(PoisonError::into_inner).control.clone();
                    let control = control.expect("a device was started");
                    match control.command(app(), command.clone()).await {
                        Ok(()) => break,
                        Err(failure) => tracing::info!(device = number, ?command, %failure, "not yet"),
                    }
                    sleep(Duration::from_secs(1)).await;
                }
            }
            history.rebirth_over(rebirth);
        }));
    }

    fn regid(&self, device: usize) -> Option<RegId> {
        self.devices[device].state.lock().unwrap_or_else(PoisonError::into_inner).regid
    }

    // ------------------------------------------------------------------------------------------------- the app's server

    /// Starts a send of the kind that the dice show; the future is the rest of it.
    pub(crate) fn send(&self) -> impl Future<Output = ()> + use<> {
        let dice = &self.dice;
        let device = dice.below(DEVICES);
        let topics = || {
            let first = dice.below(TOPICS);
            vec![first, (first + 1) % TOPICS]
        };
        let names = |topics: &[usize]| topics.iter().map(|topic| topic_name(*topic)).collect::<Vec<_>>().join(";$;");
        let (target, path, to) = match dice.below(10) {
            0..=2 if self.regid(device).is_some() => {
                let regid = self.regid(device).expect("it is there");
                (Target::Devices(vec![device]), "/v3/message/regid", format!("registration_id={regid}"))
            }
            0..=3 => (Target::Devices(vec![device]), "/v3/message/alias", format!("alias={}", alias(device))),
            4 => {
                let devices = (0..DEVICES).filter(|number| user_account(*number) == user_account(device)).collect();
                let to = format!("user_account={}", user_account(device));
                (Target::Devices(devices), "/v2/message/user_account", to)
            }
            5 => (Target::Everyone, "/v3/message/all", String::new()),
            6..=7 => {
                let topic = dice.below(TOPICS);
                (Target::Union(vec![topic]), "/v3/message/topic", format!("topic={}", topic_name(topic)))
            }
            8 if dice.chance(500) => {
                let topics = topics();
                let to = format!("topics={}&topic_op=INTERSECTION", names(&topics));
                (Target::Intersection(topics), "/v3/message/multi_topic", to)
            }
            8 => {
                let topics = topics();
                let to = format!("topics={}&topic_op=EXCEPT", names(&topics));
                (Target::Except(topics), "/v3/message/multi_topic", to)
            }
            _ => {
                let topics = topics();
                let to = format!("topics={}&topic_op=UNION", names(&topics));
                (Target::Union(topics), "/v3/message/multi_topic", to)
            }
        };
        let short_lived = dice.chance(50);
        let number = self.history.send_starts(target, short_lived);
        let ttl = if short_lived { "&time_to_live=5000" } else { "" };
        let body = format!("payload={number}&{to}{ttl}");
        let (history, posting) = (self.history.clone(), self.post(path, body.clone()));
        tracing::info!(number, body, "send");
        async move {
            let ok = posting.await;
            tracing::info!(number, ok, "send answered");
            history.send_answered(number, ok);
        }
    }

    /// Posts a form; true if it was answered with code 0.
    fn post(&self, path: &str, body: String) -> impl Future<Output = bool> + use<> {
        let request = HttpRequest::post(path)
            .header("authorization", format!("key={}", self.secret))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Body::from(body))
            .expect("a request");
        let mut router = self.router.clone();
        async move {
            let response = router.call(request).await.expect("a router answers");
            let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.expect("a body");
            let reply: serde_json::Value = serde_json::from_slice(&bytes).expect("replies are JSON");
            reply["code"] == 0
        }
    }

    /// Good weather, everything runs, everybody is online.
    pub(crate) async fn calm(&mut self) {
        self.weather.turn(false);
        self.start_middle();
        for place in 0..FRONTS {
            self.start_front(place).await;
        }
        for number in 0..DEVICES {
            self.set_online(number, true);
        }
        for number in 0..DEVICES {
            if let Some(rebirth) = self.devices[number].rebirth.take() {
                rebirth.await.expect("it ends");
            }
            while !self.switch(number, true).await {}
        }
        sleep(Duration::from_mins(15)).await;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.kill_middle();
        for place in 0..FRONTS {
            self.kill_front(place);
        }
    }
}

/// What the app on a device does: takes each push, once, and says so.
async fn run_app(
    number: usize,
    mut handle: DeviceHandle,
    history: History,
    state: Arc<Mutex<DeviceState>>,
    stop: CancellationToken,
) -> Saved {
    loop {
        let event = tokio::select! {
            biased;
            () = stop.cancelled() => return handle.stop().await,
            event = handle.events.recv() => event,
        };
        match event {
            Some(DeviceEvent::Push(push)) => {
                let payload = push.notification.payload.as_deref().expect("sends have payloads");
                tracing::info!(device = number, payload, id = %push.id, "callback");
                history.callback(number, payload.parse().expect("payloads are numbers"));
                handle.handled(&push.app, push.id);
            }
            Some(DeviceEvent::Ready { regid, .. }) => {
                state.lock().unwrap_or_else(PoisonError::into_inner).regid = Some(regid);
            }
            Some(DeviceEvent::LoggedOut { reason }) => panic!("device {number} was logged out: {reason}"),
            Some(DeviceEvent::RegisterFailed { failure, .. }) => panic!("device {number} is refused: {failure}"),
            Some(_) => {}
            None => return handle.stop().await,
        }
    }
}

/// A pipe to one of the fronts, with the network's hand on it.
async fn connect(
    fronts: Fronts,
    dice: Dice,
    online: Arc<AtomicBool>,
    link: Arc<Mutex<Option<watch::Sender<Link>>>>,
) -> std::io::Result<DuplexStream> {
    let refused = || std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
    if !online.load(Ordering::SeqCst) {
        return Err(refused());
    }
    let place = dice.below(FRONTS);
    let acceptor = fronts.lock().unwrap_or_else(PoisonError::into_inner)[place]
        .as_ref()
        .map(|(acceptor, _)| acceptor.clone())
        .ok_or_else(refused)?;
    let (device_end, mut near) = duplex(64 * 1024);
    let (mut far, front_end) = duplex(64 * 1024);
    let (order, mut orders) = watch::channel(Link::Whole);
    *link.lock().unwrap_or_else(PoisonError::into_inner) = Some(order);
    tokio::spawn(async move {
        tokio::select! {
            biased;
            changed = orders.changed() => {
                if changed.is_ok() && *orders.borrow() == Link::Frozen {
                    // The ends stay open until the network gives up on them.
                    sleep(Duration::from_mins(3)).await;
                }
            }
            _ = copy_bidirectional(&mut near, &mut far) => {}
        }
    });
    acceptor.accept(front_end, IpAddr::V4(Ipv4Addr::LOCALHOST), Security::Trusted).await;
    Ok(device_end)
}

fn alias(device: usize) -> String {
    format!("alias-{device}")
}

/// Two devices share each user account.
fn user_account(device: usize) -> String {
    format!("user-{}", device / 2)
}

fn topic_name(topic: usize) -> String {
    format!("topic-{topic}")
}

/// A front wants a TLS configuration; nothing in here uses it.
fn server_config() -> Arc<rustls::ServerConfig> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring knows TLS")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a certificate and its key");
    Arc::new(config)
}
