//! The middle tier with stores in memory, a front that the test plays, and a clock that the test moves.

mod asking;
mod gate;
mod several;
mod shared_bus;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use campanile_middle_tier::poster::{Post, PostError, Poster};
use campanile_middle_tier::{Config, Dependencies, Middle};
use idl::audience::Audience;
use idl::bus::{Bus, Call, FrontEvent, FrontInbox, InProcess, Limits, MiddleInbox, Reply, Request};
use idl::channel;
use idl::clock::{Clock, SystemEntropy};
use idl::contract::bus::{
    Accepted, AppAnswer, AppCall, AppReply, AppRequest, ChangeTopic, ChannelReply, ChannelUp, Connect, CreateAccount,
    CreateApp, Disconnect, FrontBatchReply, FrontItem, FrontLease, OpenChannel, Send, Target,
};
use idl::contract::message::Notification;
use idl::contract::push::{
    Ack, AppAck, Clicked, FromDevice, Hello, Register, Result as CommandResult, Revoke, ToDevice,
};
use idl::error::Failure;
use idl::ids::{AccountId, AppId, FrontId, MessageId, RegId, Shard};
use idl::seal::{AgreementKey, registration_proof};
use idl::token::KeyRing;
use idl::wire::{decode_trusted, encode};
use prometheus_client::registry::Registry;
use ring::{digest, hmac};
use schema::cache::Cache;
use schema::cache::in_process::{CacheLimits, InProcessCache};
use schema::catalog::sqlite::SqliteCatalog;
use schema::sorted::memory::MemoryStore;
use schema::sorted::{RowScan, SortedStore, Table};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

pub(crate) use self::asking::*;
pub(crate) use self::gate::{Fault, Gate};
pub(crate) use self::several::{A, B, Several, partition_of};

pub(crate) const APP: &str = "com.example.demo";
pub(crate) const FRONT: FrontId = FrontId(1);

/// When the clock of a test begins.
pub(crate) const START_MS: u64 = 1_800_000_000_000;

/// A clock that stands until it is moved, or goes with the runtime's besides.
pub(crate) struct TestClock {
    at_ms: AtomicU64,
    goes_since: Option<Instant>,
}

impl Clock for TestClock {
    fn now_ms(&self) -> u64 {
        let gone = self.goes_since.map_or(Duration::ZERO, |since| since.elapsed());
        self.at_ms.load(Ordering::SeqCst) + u64::try_from(gone.as_millis()).expect("a test is short")
    }
}

/// Receives what is posted to callback URLs.
#[derive(Default)]
pub(crate) struct Posts {
    /// What was received, in order.
    pub(crate) received: Mutex<Vec<Post>>,
    /// While true, nobody answers.
    pub(crate) down: AtomicBool,
    /// A URL at which nobody answers.
    pub(crate) dead: Mutex<Option<String>>,
}

#[async_trait::async_trait]
impl Poster for Posts {
    fn check(&self, url: &str) -> Result<(), PostError> {
        if url.starts_with("https://") { Ok(()) } else { Err(PostError::Refused(format!("{url} is not https"))) }
    }

    async fn post(&self, post: Post) -> Result<(), PostError> {
        let dead = self.dead.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if self.down.load(Ordering::SeqCst) || dead.as_ref() == Some(&post.url) {
            return Err(PostError::Unreachable("nobody answers".into()));
        }
        self.received.lock().unwrap_or_else(PoisonError::into_inner).push(post);
        Ok(())
    }
}

/// A running middle tier with one application.
pub(crate) struct Tier {
    pub(crate) bus: Arc<dyn Bus>,
    /// The same, where the tier is one middle.
    whole: Option<Arc<InProcess>>,
    pub(crate) store: Arc<Gate>,
    pub(crate) catalog: Arc<SqliteCatalog>,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) front: FrontInbox,
    /// What was posted to callback URLs.
    pub(crate) posts: Arc<Posts>,
    pub(crate) secret: String,
    pub(crate) app_key: String,
    /// What the front answers when it is asked how many of its connections an audience has.
    pub(crate) online: AtomicI64,
    config: Config,
    registry: Registry,
    drain: CancellationToken,
    serving: JoinHandle<()>,
}

/// A device that the test plays: its account and what the middle told it.
#[derive(Debug, Clone)]
pub(crate) struct Device {
    pub(crate) account: AccountId,
    pub(crate) epoch: Vec<u8>,
    pub(crate) regid: RegId,
    /// With which the app opens what is sealed for it.
    pub(crate) server_key: [u8; 32],
}

impl Tier {
    pub(crate) async fn start() -> Self {
        Self::start_with(Config::default()).await
    }

    /// With a clock that stands.
    pub(crate) async fn start_with(config: Config) -> Self {
        Self::begin(config, None).await
    }

    /// With a clock that goes with the runtime's, which the test pauses: so jobs do their work while the test sleeps.
    pub(crate) async fn timed() -> Self {
        Self::timed_with(Config::default()).await
    }

    pub(crate) async fn timed_with(config: Config) -> Self {
        Self::begin(config, Some(Instant::now())).await
    }

    async fn begin(config: Config, goes_since: Option<Instant>) -> Self {
        let clock = Arc::new(TestClock { at_ms: AtomicU64::new(START_MS), goes_since });
        let bus = Arc::new(InProcess::new(Limits::default(), clock.clone(), Arc::new(SystemEntropy)));
        let front = bus.attach_front(FRONT);
        let mut tier = Self { whole: Some(bus.clone()), ..Self::without_middle(config, clock, bus, front) };
        tier.serve();
        (tier.secret, tier.app_key) = tier.create_app(APP).await;
        tier
    }

    fn without_middle(config: Config, clock: Arc<TestClock>, bus: Arc<dyn Bus>, front: FrontInbox) -> Self {
        Self {
            front,
            bus,
            whole: None,
            store: Gate::new(MemoryStore::new(clock.clone())),
            catalog: Arc::new(SqliteCatalog::in_memory().expect("SQLite in memory")),
            clock,
            posts: Arc::default(),
            secret: String::new(),
            app_key: String::new(),
            online: AtomicI64::new(0),
            config,
            registry: Registry::default(),
            drain: CancellationToken::new(),
            serving: tokio::spawn(async {}),
        }
    }

    /// A new life of the tier, on what is stored.
    fn serve(&mut self) {
        let bus = self.whole.clone().expect("it is one middle");
        let cache = InProcessCache::new(self.clock.clone(), Arc::new(SystemEntropy), CacheLimits::default());
        let dependencies = self.dependencies(self.bus.clone(), bus.attach_middle(), Arc::new(cache));
        self.registry = Registry::default();
        self.drain = CancellationToken::new();
        let middle = Middle::build(self.config.clone(), dependencies, &mut self.registry);
        self.serving = tokio::spawn(middle.serve(self.drain.clone()));
    }

    fn dependencies(&self, bus: Arc<dyn Bus>, inbox: MiddleInbox, cache: Arc<dyn Cache>) -> Dependencies {
        Dependencies {
            bus,
            inbox,
            sorted: self.store.clone(),
            catalog: self.catalog.clone(),
            poster: self.posts.clone(),
            cache,
            keys: KeyRing::new(&[(1, [1; 32])]),
            regid_key: hmac::Key::new(hmac::HMAC_SHA256, &[2; 32]),
            clock: self.clock.clone(),
            entropy: Arc::new(SystemEntropy),
        }
    }

    /// The tier ends as in a crash, in the middle of everything, and a new one begins.
    pub(crate) async fn crash(&mut self) {
        self.end().await;
        self.serve();
    }

    /// The tier ends as in a crash; [`Tier::crash`] begins a new one.
    pub(crate) async fn end(&mut self) {
        self.serving.abort();
        let ended = (&mut self.serving).await;
        assert!(ended.is_err_and(|ended| ended.is_cancelled()), "it served until it was cut off");
        self.store.open();
        // What it was doing is dropped.
        tokio::task::yield_now().await;
        self.serving = tokio::spawn(std::future::pending());
    }

    /// The tier ends in peace and a new one begins.
    pub(crate) async fn restart(&mut self) {
        self.drain.cancel();
        (&mut self.serving).await.expect("it ends");
        self.serve();
    }

    /// Makes an application and gives its secret and its app key.
    pub(crate) async fn create_app(&self, app: &str) -> (String, String) {
        let create = CreateApp { app: app.into(), package_name: None };
        let Ok(Reply::Apps(apps)) = self.ask(Request::CreateApp(create)).await else {
            panic!("an app was expected");
        };
        (apps.apps[0].secret.clone().expect("a new app has a secret"), apps.apps[0].app_key.clone())
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.clock.at_ms.fetch_add(u64::try_from(by.as_millis()).expect("fits"), Ordering::SeqCst);
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    pub(crate) async fn ask(&self, request: Request) -> Result<Reply, Failure> {
        self.bus.request(Call::high(shard_of(&request), Duration::from_secs(10), request)).await
    }

    // ----------------------------------------------------------------------------------------------------- as a device

    pub(crate) async fn account(&self) -> (AccountId, String) {
        let request = CreateAccount { device: "digest".into(), model: None, platform: None };
        let Ok(Reply::Account(granted)) = self.ask(Request::CreateAccount(request)).await else {
            panic!("an account was expected");
        };
        (granted.account.parse().expect("an account id"), granted.token)
    }

    pub(crate) async fn connect(&self, account: AccountId) -> Result<Vec<u8>, Failure> {
        let connect =
            Connect { account: account.to_string(), resource: "push".into(), front: FRONT.to_string(), epoch: None };
        match self.ask(Request::Connect(connect)).await? {
            Reply::Connected(connected) => Ok(connected.epoch),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn open(
        &self,
        account: AccountId,
        epoch: &[u8],
        regids: &[String],
    ) -> Result<ChannelReply, Failure> {
        let hello = Hello { registrations: Some(regids.to_vec()) };
        let open = OpenChannel {
            account: account.to_string(),
            front: FRONT.to_string(),
            epoch: epoch.to_vec(),
            channel: i32::try_from(channel::PUSH).expect("fits"),
            payload: Some(encode(&hello)),
        };
        match self.ask(Request::OpenChannel(open)).await? {
            Reply::Channel(reply) => Ok(reply),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn up(&self, account: AccountId, epoch: &[u8], payload: Vec<u8>) -> Result<ChannelReply, Failure> {
        let up = ChannelUp {
            account: account.to_string(),
            front: FRONT.to_string(),
            epoch: epoch.to_vec(),
            channel: i32::try_from(channel::PUSH).expect("fits"),
            payload,
        };
        match self.ask(Request::ChannelUp(up)).await? {
            Reply::Channel(reply) => Ok(reply),
            other => panic!("{other:?}"),
        }
    }

    /// Sends a command and returns its result.
    pub(crate) async fn command(&self, device: &Device, command: FromDevice) -> CommandResult {
        let command = FromDevice { request: Some(7), ..command };
        let reply = self.up(device.account, &device.epoch, encode(&command)).await.expect("the middle answers");
        result_of(&reply)
    }

    pub(crate) fn register(&self, account: AccountId) -> Register {
        register(APP, &self.app_key, account)
    }

    /// A device that is registered and has the channel open.
    pub(crate) async fn device(&self) -> Device {
        self.device_with(&[]).await
    }

    /// One with attributes.
    pub(crate) async fn device_with(&self, attributes: &[(&str, &str)]) -> Device {
        let (account, _) = self.account().await;
        self.device_of(account, attributes).await
    }

    /// One on this account.
    pub(crate) async fn device_of(&self, account: AccountId, attributes: &[(&str, &str)]) -> Device {
        let epoch = self.connect(account).await.expect("it connects");
        self.open(account, &epoch, &[]).await.expect("it opens");
        let mut device = Device { account, epoch, regid: RegId([0; 24]), server_key: [0; 32] };
        let attributes: BTreeMap<_, _> =
            attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let register = Register { attributes: Some(attributes), ..self.register(account) };
        let result = self.command(&device, FromDevice { register_app: Some(register), ..FromDevice::default() }).await;
        let registered = result.registered.expect("it registers");
        device.regid = registered.regid.parse().expect("a regid");
        device.server_key.copy_from_slice(&registered.server_key);
        device
    }

    /// The device goes away.
    pub(crate) async fn disconnect(&self, device: &Device) {
        let disconnect = Disconnect {
            account: device.account.to_string(),
            resource: "push".into(),
            front: FRONT.to_string(),
            epoch: device.epoch.clone(),
        };
        assert_eq!(self.ask(Request::Disconnect(disconnect)).await, Ok(Reply::Done));
        // Its session judges once more and writes how far it is.
        self.tick().await;
    }

    /// Time goes on by so little that nothing becomes due; where the clock stands, it does not.
    async fn tick(&self) {
        if self.clock.goes_since.is_some() {
            sleep(Duration::from_millis(2)).await;
        } else {
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
        }
    }

    /// The user taps on the notification.
    pub(crate) async fn click(&self, device: &Device, message: MessageId) {
        self.try_click(device, message).await.expect("the middle answers");
    }

    pub(crate) async fn try_click(&self, device: &Device, message: MessageId) -> Result<ChannelReply, Failure> {
        let clicked = Clicked { app: APP.into(), message: message.to_bytes().to_vec() };
        let command = FromDevice { clicked: Some(clicked), ..FromDevice::default() };
        self.up(device.account, &device.epoch, encode(&command)).await
    }

    /// The device loses its connection and comes back.
    pub(crate) async fn reconnect(&self, device: &mut Device) -> ChannelReply {
        // What was broadcast within the same millisecond its front would give it.
        self.tick().await;
        device.epoch = self.connect(device.account).await.expect("it connects");
        self.open(device.account, &device.epoch, &[device.regid.to_string()]).await.expect("it opens")
    }

    pub(crate) async fn ack(&self, device: &Device, messages: &[MessageId], broadcasts: &[MessageId]) {
        self.try_ack(device, messages, broadcasts).await.expect("the middle answers");
    }

    pub(crate) async fn try_ack(
        &self,
        device: &Device,
        messages: &[MessageId],
        broadcasts: &[MessageId],
    ) -> Result<ChannelReply, Failure> {
        let join = |ids: &[MessageId]| Some(ids.iter().flat_map(|id| id.to_bytes()).collect::<Vec<u8>>());
        let app = AppAck { app: APP.into(), messages: join(messages), broadcasts: join(broadcasts) };
        let ack = FromDevice { ack: Some(Ack { apps: vec![app] }), ..FromDevice::default() };
        self.up(device.account, &device.epoch, encode(&ack)).await
    }

    // ------------------------------------------------------------------------------------------------------ as a front

    /// The front says that it lives.
    pub(crate) async fn lease(&self) {
        let leased = self.ask(Request::FrontLease(FrontLease { front: FRONT.to_string() })).await;
        assert!(matches!(leased, Ok(Reply::Leased(_))), "{leased:?}");
    }

    /// The next item that the middle hands to the front.
    pub(crate) async fn item(&mut self) -> FrontItem {
        let mut incoming = tokio::time::timeout(Duration::from_secs(10), self.front.batches.recv())
            .await
            .expect("a batch within 10 s")
            .expect("the bus is there");
        let item = incoming.batch.items.remove(0);
        incoming.answer.send(Ok(FrontBatchReply { gone: None, online: None }));
        item
    }

    /// Plays the front for so long, and gives the payloads that it was handed, in order.
    pub(crate) async fn during(&mut self, time: Duration) -> Vec<ToDevice> {
        self.while_doing(sleep(time)).await.1
    }

    /// Plays the front while something is done, which may wait for it, and gives what came of that and the payloads.
    pub(crate) async fn while_doing<T>(&mut self, doing: impl Future<Output = T>) -> (T, Vec<ToDevice>) {
        let mut payloads = Vec::new();
        tokio::pin!(doing);
        loop {
            let incoming = tokio::select! {
                biased;
                incoming = self.front.batches.recv() => incoming.expect("the bus is there"),
                done = &mut doing => return (done, payloads),
            };
            let items = incoming.batch.items.iter();
            payloads.extend(items.flat_map(|item| item.payloads.iter().flatten()).map(|payload| to_device(payload)));
            let online = incoming.batch.count.map(|_| self.online.load(Ordering::SeqCst));
            incoming.answer.send(Ok(FrontBatchReply { gone: None, online }));
        }
    }

    /// All events that wait for the front.
    pub(crate) fn events(&mut self) -> Vec<FrontEvent> {
        std::iter::from_fn(|| self.front.events.try_recv().ok()).collect()
    }

    /// The ids of the next deliveries, which come in one or more batches.
    pub(crate) async fn deliveries(&mut self, count: usize) -> Vec<MessageId> {
        let mut ids = Vec::new();
        while ids.len() < count {
            let item = self.item().await;
            ids.extend(item.payloads.unwrap_or_default().iter().filter_map(|payload| delivery(payload)));
        }
        ids
    }

    pub(crate) async fn broadcast_event(&mut self) -> idl::contract::bus::Broadcast {
        match tokio::time::timeout(Duration::from_secs(10), self.front.events.recv()).await {
            Ok(Some(FrontEvent::Broadcast(broadcast))) => broadcast,
            other => panic!("{other:?}"),
        }
    }

    // --------------------------------------------------------------------------------------------------- as app server

    /// A request of the app's server.
    pub(crate) fn call(&self, request: AppRequest) -> AppCall {
        AppCall { secret_sha256: sha256(&self.secret), request, idempotency_key: None, fingerprint: None }
    }

    /// Asks as the app's server, and gives the whole reply. The future borrows nothing, so that the test can do something
    /// meanwhile.
    pub(crate) fn reply(
        &self,
        call: AppCall,
    ) -> impl Future<Output = Result<AppReply, Failure>> + std::marker::Send + use<> {
        let bus = Arc::clone(&self.bus);
        async move {
            let request = Request::App(Box::new(call));
            match bus.request(Call::high(shard_of(&request), Duration::from_secs(10), request)).await? {
                Reply::App(reply) => Ok(*reply),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Asks as the app's server.
    pub(crate) fn app(
        &self,
        request: AppRequest,
    ) -> impl Future<Output = Result<AppAnswer, Failure>> + std::marker::Send + use<> {
        let reply = self.reply(self.call(request));
        async move {
            let reply = reply.await?;
            if reply.status.code == 0 {
                Ok(reply.answer.expect("an answer comes with success"))
            } else {
                Err(Failure::from_status(reply.status))
            }
        }
    }

    /// Sends, and gives all that was answered.
    pub(crate) async fn accepted(&self, send: Send) -> Result<Accepted, Failure> {
        match self.app(AppRequest::Send(send)).await? {
            AppAnswer::Accepted(accepted) => Ok(accepted),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn send(&self, send: Send) -> Result<(MessageId, Vec<String>), Failure> {
        let accepted = self.accepted(send).await?;
        let id = accepted.id.expect("what was accepted has an id");
        Ok((id.parse().expect("a message id"), accepted.bad_targets.unwrap_or_default()))
    }

    /// An app server's change of a device's topic. The future borrows nothing, so that the test can play the front
    /// meanwhile: the middle waits until the front's index follows.
    pub(crate) fn change_topic(
        &self,
        device: &Device,
        topic: &str,
        subscribe: bool,
    ) -> impl Future<Output = Result<(), Failure>> + use<> {
        let change = ChangeTopic {
            topic: topic.into(),
            subscribe,
            kind: 1,
            values: vec![device.regid.to_string()],
            packages: None,
        };
        let changed = self.app(AppRequest::ChangeTopic(change));
        async move { changed.await.map(drop) }
    }

    /// What a counter has counted.
    pub(crate) fn counted(&self, name: &str) -> u64 {
        counted(&self.registry, name)
    }

    /// How many rows a table holds.
    pub(crate) async fn rows(&self, table: Table) -> usize {
        let scan = RowScan { table, from: Vec::new(), to: None, rows_max: 100_000 };
        self.store.scan(scan).await.expect("memory").len()
    }

    /// How many cells a table holds.
    pub(crate) async fn cells(&self, table: Table) -> usize {
        let scan = RowScan { table, from: Vec::new(), to: None, rows_max: 100_000 };
        self.store.scan(scan).await.expect("memory").iter().map(|row| row.cells.len()).sum()
    }
}

fn counted(registry: &Registry, name: &str) -> u64 {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).expect("metrics are text");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// Whose work a request is, as fronts and HTTP frontends say it.
fn shard_of(request: &Request) -> Shard {
    let of = |account: &str| Shard::of_account(account.parse().expect("an account"));
    match request {
        Request::Connect(request) => of(&request.account),
        Request::Disconnect(request) => of(&request.account),
        Request::OpenChannel(request) => of(&request.account),
        Request::ChannelUp(request) => of(&request.account),
        Request::App(call) => match &call.request {
            AppRequest::Send(Send { target: Target { kind: 1, values: Some(regids), .. }, .. })
                if regids.len() == 1 =>
            {
                regids[0].parse().map_or_else(|_| shard_of_secret(&call.secret_sha256), Shard::of_registration)
            }
            _ => shard_of_secret(&call.secret_sha256),
        },
        _ => Shard(0),
    }
}

fn shard_of_secret(sha256: &[u8]) -> Shard {
    Shard(u16::from_be_bytes([sha256[0], sha256[1]]))
}

/// A send, to be changed as a test needs it.
pub(crate) fn send_to(target: Target) -> Send {
    Send {
        target,
        notification: notification("hello"),
        ttl_ms: 60_000,
        packages: None,
        filter: None,
        send_at_ms: None,
        local_time: None,
        repeat: None,
        spread_ms: None,
        flow_control: None,
        only_once: None,
        collapse_key: None,
        callback: None,
        template_name: None,
        variables: None,
        dry_run: None,
    }
}

pub(crate) fn regids(targets: &[String]) -> Target {
    Target { kind: 1, values: Some(targets.to_vec()), audience: None, segment: None }
}

pub(crate) fn aliases(targets: &[&str]) -> Target {
    Target { kind: 2, values: Some(targets.iter().map(ToString::to_string).collect()), audience: None, segment: None }
}

pub(crate) fn audience(audience: &Audience) -> Target {
    Target { kind: 4, values: None, audience: Some(audience.to_wire()), segment: None }
}

pub(crate) fn topic(name: &str) -> Audience {
    Audience::Topic(name.parse().expect("a topic"))
}

/// The result in a reply.
pub(crate) fn result_of(reply: &ChannelReply) -> CommandResult {
    let payloads = reply.payloads.as_deref().unwrap_or_default();
    let result = payloads.iter().find_map(|payload| to_device(payload).result);
    result.unwrap_or_else(|| panic!("no result in {reply:?}"))
}

pub(crate) fn to_device(payload: &[u8]) -> ToDevice {
    decode_trusted(payload).expect("a ToDevice")
}

fn delivery(payload: &[u8]) -> Option<MessageId> {
    delivered(&to_device(payload))
}

fn delivered(payload: &ToDevice) -> Option<MessageId> {
    payload.deliver.as_ref().map(|deliver| MessageId::from_bytes(&deliver.id).expect("an id"))
}

/// The messages that are delivered in what a front was handed.
pub(crate) fn deliveries(payloads: &[ToDevice]) -> Vec<MessageId> {
    payloads.iter().filter_map(delivered).collect()
}

/// What is taken back in what a front was handed.
pub(crate) fn revocations(payloads: &[ToDevice]) -> Vec<Revoke> {
    payloads.iter().filter_map(|payload| payload.revoke.clone()).collect()
}

/// A registration for an app on an account.
pub(crate) fn register(app: &str, app_key: &str, account: AccountId) -> Register {
    let public = AgreementKey::from_bytes([5; 32]).public();
    let id: AppId = app.parse().expect("an app id");
    Register {
        app: app.into(),
        package_name: app.into(),
        public_key: public.to_vec(),
        proof: registration_proof(app_key, account, &id, &public).to_vec(),
        attributes: None,
    }
}

fn sha256(secret: &str) -> Vec<u8> {
    digest::digest(&digest::SHA256, secret.as_bytes()).as_ref().to_vec()
}

/// A notification with nothing but a payload. Thrift's `default()` would fill in empty texts, which mean something.
pub(crate) fn notification(payload: &str) -> Notification {
    Notification {
        payload: Some(payload.into()),
        title: None,
        description: None,
        pass_through: None,
        notify_type: None,
        notify_id: None,
        extra: None,
        topic: None,
        alias_name: None,
        user_account: None,
        job_key: None,
        accepted_at_ms: None,
    }
}
