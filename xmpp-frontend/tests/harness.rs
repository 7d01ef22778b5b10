//! A front, a middle tier that does as it is told, and a client that can be read.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use campanile_xmpp_frontend::{Acceptor, Addresses, Config, Dependencies, Front, Limits, Security, ServedChannel};
use idl::bus::{Bus, FrontEvent, InProcess, Incoming, Limits as BusLimits, Reply, Request};
use idl::channel::Payload;
use idl::clock::{Clock, SharedClock, SystemEntropy};
use idl::contract::bus as wire;
use idl::error::{Code, Failure};
use idl::ids::{AccountId, Epoch, FrontId, Generation, MessageId, Partition, Shard};
use idl::token::KeyRing;
use idl::xml::{Event, Limits as XmlLimits, StreamReader};
use minidom::Element;
use prometheus_client::registry::Registry;
use ring::digest;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The domain that the front serves.
pub(crate) const DOMAIN: &str = "example.org";
/// When the tests' tokens were issued, and what the clock says when a world begins.
pub(crate) const NOW_MS: u64 = 1_700_000_000_000;
/// The app of the tests' broadcasts.
pub(crate) const APP: &str = "com.example.demo";
/// The service of channel 7, and what it proves to know.
pub(crate) const SERVICE: &str = "rooms.example.org";
pub(crate) const SERVICE_SECRET: &str = "a secret of the rooms";
/// No answer of a front takes this long.
const PATIENCE: Duration = Duration::from_mins(1);

/// A clock that goes with the runtime's time, which most tests pause.
struct Running(Instant);

impl Clock for Running {
    fn now_ms(&self) -> u64 {
        NOW_MS + u64::try_from(self.0.elapsed().as_millis()).expect("tests end")
    }
}

pub(crate) fn keys() -> KeyRing {
    KeyRing::new(&[(1, [7; 32])])
}

pub(crate) fn account(number: u128) -> AccountId {
    AccountId(number)
}

/// The token that an account was given.
pub(crate) fn token(account: AccountId) -> String {
    keys().issue(account, NOW_MS)
}

/// A front, and what surrounds it.
pub(crate) struct World {
    pub(crate) bus: Arc<InProcess>,
    pub(crate) front: FrontId,
    pub(crate) middle: Middle,
    pub(crate) acceptor: Acceptor,
    pub(crate) addresses: Addresses,
    pub(crate) drain: CancellationToken,
    pub(crate) tasks: TaskTracker,
    pub(crate) serving: JoinHandle<()>,
    pub(crate) registry: Registry,
    began: Instant,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(Limits::default()).await
    }

    pub(crate) async fn with(limits: Limits) -> Self {
        let rooms = ServedChannel { number: 7, name: SERVICE.to_owned(), secret: SERVICE_SECRET.to_owned() };
        let config = Config { domain: DOMAIN.to_owned(), channels: vec![rooms], limits, ..Config::default() };
        Self::build(config, crate::tls::server_config()).await
    }

    /// In one hub, unless the limits say otherwise, so that limits hold as they are.
    pub(crate) async fn build(mut config: Config, tls: Arc<rustls::ServerConfig>) -> Self {
        config.limits.hubs = config.limits.hubs.max(1);
        let clock = Arc::new(Running(Instant::now()));
        let began = clock.0;
        let bus = Arc::new(InProcess::new(BusLimits::default(), Arc::clone(&clock) as _, Arc::new(SystemEntropy)));
        let middle = Middle::start(&bus);
        let front = FrontId(1);
        let dependencies = Dependencies {
            bus: Arc::clone(&bus) as Arc<dyn Bus>,
            inbox: bus.attach_front(front),
            front,
            keys: keys(),
            tls,
            clock,
            entropy: Arc::new(SystemEntropy),
        };
        let mut registry = Registry::default();
        let bound = Front::build(config, dependencies, &mut registry).bind().await.expect("listeners");
        let (addresses, acceptor) = (bound.addresses(), bound.acceptor());
        let (drain, tasks) = (CancellationToken::new(), TaskTracker::new());
        let serving = tokio::spawn(bound.serve(drain.clone(), tasks.clone()));
        Self { bus, front, middle, acceptor, addresses, drain, tasks, serving, registry, began }
    }

    /// A byte stream to the front.
    pub(crate) async fn connect(&self, security: Security) -> Client<DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(16 * 1024);
        self.acceptor.accept(theirs, IpAddr::V4(Ipv4Addr::LOCALHOST), security).await;
        Client::new(ours)
    }

    /// A byte stream to the front, of a channel's service.
    pub(crate) async fn connect_component(&self) -> Client<DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(16 * 1024);
        self.acceptor.accept_component(theirs).await;
        Client::new(ours)
    }

    /// The service of channel 7.
    pub(crate) async fn service(&self) -> Client<DuplexStream> {
        let mut service = self.connect_component().await;
        service.send(COMPONENT_HEADER).await;
        let Some(Event::Opened(header)) = service.next().await else { panic!("a header") };
        let proof = handshake(&header.id.expect("an id"), SERVICE_SECRET);
        service.send(&format!("<handshake>{proof}</handshake>")).await;
        assert_eq!(service.element().await.name(), "handshake");
        service
    }

    /// A client that is logged in with a bound resource.
    pub(crate) async fn login(&self, account: AccountId, resource: &str) -> Client<DuplexStream> {
        let mut client = self.connect(Security::Trusted).await;
        client.log_in(account, resource).await;
        client
    }

    /// A client with the push channel open, whose registration of [`APP`] has these topics.
    pub(crate) async fn subscriber(&self, account: AccountId, topics: &[&str]) -> Client<DuplexStream> {
        self.registered(account, entry(1, topics)).await
    }

    /// A client with the push channel open, whose registration is that.
    pub(crate) async fn registered(&self, account: AccountId, entry: wire::IndexEntry) -> Client<DuplexStream> {
        self.middle.set_index(account, vec![entry]);
        let mut client = self.login(account, "r").await;
        client.open_channel().await;
        client
    }

    /// Publishes a broadcast, to everyone or to a topic.
    pub(crate) async fn broadcast(&self, topic: Option<&str>, payload: &[u8]) {
        self.publish(broadcast(topic, payload, self.now_ms() + 1000)).await;
    }

    pub(crate) async fn publish(&self, broadcast: wire::Broadcast) {
        self.bus.publish(FrontEvent::Broadcast(broadcast), Instant::now() + PATIENCE).await.expect("published");
    }

    /// Stops a broadcast.
    pub(crate) async fn cancel(&self, id: MessageId) {
        let cancelled = wire::CancelBroadcast { id: id.to_bytes().to_vec(), app: APP.to_owned() };
        let event = FrontEvent::CancelBroadcast(cancelled);
        self.bus.publish(event, Instant::now() + PATIENCE).await.expect("published");
    }

    /// The clock that the front goes by.
    pub(crate) fn clock(&self) -> SharedClock {
        Arc::new(Running(self.began))
    }

    /// What the clock says.
    pub(crate) fn now_ms(&self) -> u64 {
        self.clock().now_ms()
    }

    /// How many connections have a registration of [`APP`] in the audience.
    pub(crate) async fn count(&self, audience: idl::contract::message::Audience) -> Option<i64> {
        let count = Some(wire::CountOnline { app: APP.to_owned(), audience });
        let batch = wire::FrontBatch { items: vec![], count };
        self.bus.deliver(self.front, batch, Instant::now() + PATIENCE).await.expect("delivered").online
    }

    /// Hands the front a batch and returns the numbers of the items that found no connection.
    pub(crate) async fn deliver(&self, items: Vec<wire::FrontItem>) -> Vec<i32> {
        let batch = wire::FrontBatch { items, count: None };
        let reply = self.bus.deliver(self.front, batch, Instant::now() + PATIENCE).await.expect("delivered");
        reply.gone.unwrap_or_default()
    }

    /// The value of a metric, given by its line up to the value.
    pub(crate) fn metric(&self, line: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("metrics");
        let found = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' ')?.parse().ok());
        found.unwrap_or(0)
    }
}

/// Waits until nothing is left to do: time is paused, and goes on only then.
pub(crate) async fn settled() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// A broadcast of [`APP`].
pub(crate) fn broadcast(topic: Option<&str>, payload: &[u8], expires_at_ms: u64) -> wire::Broadcast {
    use idl::audience::Audience;
    let audience = topic.map_or(Audience::Everyone, |topic| Audience::Topic(topic.parse().expect("a topic")));
    wire::Broadcast {
        id: vec![0; 16],
        app: APP.to_owned(),
        audience: audience.to_wire(),
        payload: payload.to_vec(),
        expires_at_ms: i64::try_from(expires_at_ms).expect("a time"),
        channel: 5,
        spread_ms: None,
        local_time_ms: None,
    }
}

/// An index entry for [`APP`].
pub(crate) fn entry(version: i64, topics: &[&str]) -> wire::IndexEntry {
    wire::IndexEntry {
        app: APP.to_owned(),
        version,
        removed: None,
        topics: Some(topics.iter().map(|topic| (*topic).to_owned()).collect()),
        attributes: None,
        aliases: None,
        user_accounts: None,
    }
}

/// Payloads for a connection.
pub(crate) fn item(account: AccountId, epoch: Epoch, payloads: &[&[u8]]) -> wire::FrontItem {
    wire::FrontItem {
        account: account.to_string(),
        epoch: epoch.to_bytes().to_vec(),
        index: None,
        channel: Some(5),
        payloads: Some(payloads.iter().map(|payload| payload.to_vec()).collect()),
        conflict: None,
        order: None,
    }
}

/// The middle tier of the tests.
#[derive(Clone)]
pub(crate) struct Middle(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    generation: Generation,
    /// Partitions whose memory is another's.
    moved: BTreeMap<Partition, Generation>,
    revoked: Vec<wire::TokenRevoked>,
    index: HashMap<AccountId, Vec<wire::IndexEntry>>,
    /// What was asked, leases left out.
    asked: Vec<Request>,
    epochs: BTreeMap<(AccountId, String), Epoch>,
    failures: HashMap<&'static str, VecDeque<Failure>>,
    /// Requests of these names wait until they are let go.
    held: HashMap<&'static str, Vec<Incoming>>,
    hold: Vec<&'static str>,
}

impl Middle {
    fn start(bus: &Arc<InProcess>) -> Self {
        let state = State {
            generation: Generation(1),
            moved: BTreeMap::new(),
            revoked: Vec::new(),
            index: HashMap::new(),
            asked: Vec::new(),
            epochs: BTreeMap::new(),
            failures: HashMap::new(),
            held: HashMap::new(),
            hold: Vec::new(),
        };
        let middle = Self(Arc::new(Inner { state: Mutex::new(state), changed: Notify::new() }));
        let mut inbox = bus.attach_middle();
        let serving = middle.clone();
        tokio::spawn(async move {
            while let Some(incoming) = inbox.next().await {
                serving.take(incoming);
                serving.0.changed.notify_waiters();
            }
        });
        middle
    }

    fn state<T>(&self, with: impl FnOnce(&mut State) -> T) -> T {
        with(&mut self.0.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What the account's registrations are, from the next opening of the channel on.
    pub(crate) fn set_index(&self, account: AccountId, entries: Vec<wire::IndexEntry>) {
        self.state(|state| state.index.insert(account, entries));
    }

    /// Another life of the middle's memory.
    pub(crate) fn set_generation(&self, generation: u128) {
        self.state(|state| state.generation = Generation(generation));
    }

    /// What is remembered of an account's partition is in another life.
    pub(crate) fn move_partition(&self, account: AccountId, generation: u128) {
        let partition = Shard::of_account(account).into();
        self.state(|state| state.moved.insert(partition, Generation(generation)));
    }

    pub(crate) fn set_revoked(&self, revoked: Vec<wire::TokenRevoked>) {
        self.state(|state| state.revoked = revoked);
    }

    /// The next request of that name fails.
    pub(crate) fn fail(&self, request: &'static str, code: Code) {
        let failure = Failure::new(code, format!("told to fail with {code:?}"));
        self.state(|state| state.failures.entry(request).or_default().push_back(failure));
    }

    /// Requests of that name wait.
    pub(crate) fn hold(&self, request: &'static str) {
        self.state(|state| state.hold.push(request));
    }

    /// Answers the requests that wait, and holds no more of them.
    pub(crate) fn let_go(&self, request: &'static str) {
        let held = self.state(|state| {
            state.hold.retain(|name| *name != request);
            state.held.remove(request).unwrap_or_default()
        });
        for incoming in held {
            self.answer(incoming);
        }
    }

    /// The epoch of the newest connection.
    pub(crate) fn epoch(&self, account: AccountId, resource: &str) -> Epoch {
        self.state(|state| state.epochs.get(&(account, resource.to_owned())).copied()).expect("a connection")
    }

    /// All requests so far, leases left out.
    pub(crate) fn asked(&self) -> Vec<Request> {
        self.state(|state| state.asked.clone())
    }

    /// Waits until as many requests of that name have come.
    pub(crate) async fn wait_for(&self, request: &'static str, count: usize) {
        let come = async {
            loop {
                let changed = self.0.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if self.asked().iter().filter(|asked| asked.name() == request).count() >= count {
                    return;
                }
                changed.await;
            }
        };
        timeout(PATIENCE, come).await.unwrap_or_else(|_| panic!("{count} {request} did not come: {:?}", self.asked()));
    }

    fn take(&self, incoming: Incoming) {
        let name = incoming.request.name();
        let failure = self.state(|state| {
            if name != "FrontLease" {
                state.asked.push(incoming.request.clone());
            }
            state.failures.get_mut(name).and_then(VecDeque::pop_front)
        });
        if let Some(failure) = failure {
            return incoming.answer.send(Err(failure));
        }
        if self.state(|state| state.hold.contains(&name)) {
            return self.state(|state| state.held.entry(name).or_default().push(incoming));
        }
        self.answer(incoming);
    }

    fn answer(&self, incoming: Incoming) {
        let reply = self.state(|state| state.reply(incoming.id.0, &incoming.request));
        incoming.answer.send(Ok(reply));
    }
}

impl State {
    fn reply(&mut self, id: u128, request: &Request) -> Reply {
        let of = |partition: &Partition| self.moved.get(partition).unwrap_or(&self.generation).to_bytes().to_vec();
        let account = match request {
            Request::Connect(connect) => connect.account.parse().ok(),
            Request::OpenChannel(open) => open.account.parse().ok(),
            Request::ChannelUp(up) => up.account.parse().ok(),
            _ => None,
        };
        let generation = account
            .map_or(self.generation.to_bytes().to_vec(), |account: AccountId| of(&Shard::of_account(account).into()));
        let generations = (!self.moved.is_empty()).then(|| Partition::all().map(|partition| of(&partition)).collect());
        let channel = |index, payloads, reopen| {
            Reply::Channel(wire::ChannelReply { index, payloads, generation: generation.clone(), reopen })
        };
        match request {
            Request::FrontLease(_) => {
                Reply::Leased(wire::Leased { generation, revoked: self.revoked.clone(), generations })
            }
            Request::Connect(connect) => {
                let epoch = connect.epoch.clone().unwrap_or_else(|| Epoch(id).to_bytes().to_vec());
                let account: AccountId = connect.account.parse().expect("an account");
                let name = (account, connect.resource.clone());
                self.epochs.insert(name, Epoch::from_bytes(&epoch).expect("an epoch"));
                Reply::Connected(wire::Connected { epoch, generation })
            }
            Request::OpenChannel(open) => {
                let account: AccountId = open.account.parse().expect("an account");
                channel(self.index.get(&account).cloned(), None, None)
            }
            // The tests' service answers with what it got, backwards; `topic:` changes the topics, `reopen:` what the
            // channel is opened with anew.
            Request::ChannelUp(up) => {
                let text = String::from_utf8_lossy(&up.payload);
                let index = text.strip_prefix("topic:").map(|topic| vec![entry(2, &[topic])]);
                let reopen = text.strip_prefix("reopen:").map(|payload| payload.as_bytes().to_vec());
                channel(index, Some(vec![up.payload.iter().rev().copied().collect()]), reopen)
            }
            // Accounts up to 99 exist.
            Request::TokenTimes(times) => {
                let known = times.account.parse().is_ok_and(|AccountId(number)| number < 100);
                let issued_at_ms = if known { vec![i64::try_from(NOW_MS).expect("a time")] } else { vec![] };
                Reply::TokenTimes(wire::TokenTimesReply { issued_at_ms })
            }
            Request::Disconnect(_) => Reply::Done,
            other => panic!("a front does not ask {}", other.name()),
        }
    }
}

/// A client's end of a connection.
pub(crate) struct Client<S> {
    stream: S,
    reader: StreamReader,
    unread: Vec<u8>,
}

const XML_LIMITS: XmlLimits = XmlLimits { stanza_bytes_max: 1 << 20, depth_max: 32 };
/// The header that clients send.
pub(crate) const HEADER: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
                                 xmlns:stream='http://etherx.jabber.org/streams' to='example.org' version='1.0'>";

/// The header that services of channel 7 send.
pub(crate) const COMPONENT_HEADER: &str = "<stream:stream xmlns='jabber:component:accept' \
                                           xmlns:stream='http://etherx.jabber.org/streams' to='rooms.example.org'>";

/// What proves a service's secret (XEP-0114 §3).
pub(crate) fn handshake(id: &str, secret: &str) -> String {
    let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, format!("{id}{secret}").as_bytes());
    digest.as_ref().iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, reader: StreamReader::new(XML_LIMITS), unread: Vec::new() }
    }

    pub(crate) fn into_inner(self) -> S {
        self.stream
    }

    pub(crate) fn stream_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Sends text. A front that has closed already does not mind.
    pub(crate) async fn send(&mut self, text: &str) {
        let _ = self.stream.write_all(text.as_bytes()).await;
        let _ = self.stream.flush().await;
    }

    /// Begins a new stream.
    pub(crate) fn restart(&mut self) {
        self.reader = StreamReader::new(XML_LIMITS);
    }

    /// What the front says next; `None` once it has closed the connection.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        timeout(PATIENCE, self.read()).await.expect("the front says something in time")
    }

    async fn read(&mut self) -> Option<Event> {
        loop {
            let mut unread = self.unread.as_slice();
            let event = self.reader.read(&mut unread).expect("well-formed XML from the front");
            let taken = self.unread.len() - unread.len();
            self.unread.drain(..taken);
            if event.is_some() {
                return event;
            }
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece).await {
                Ok(count) if count > 0 => self.unread.extend_from_slice(&piece[..count]),
                _ => return None,
            }
        }
    }

    /// The next element.
    pub(crate) async fn element(&mut self) -> Element {
        match self.next().await {
            Some(Event::Element(element)) => element,
            other => panic!("an element was expected, not {other:?}"),
        }
    }

    /// The next payload of the push channel.
    pub(crate) async fn payload(&mut self) -> Vec<u8> {
        timeout(PATIENCE, self.payload_at_last()).await.expect("the front says something in time")
    }

    /// The next payload of the push channel, however long it takes.
    pub(crate) async fn payload_at_last(&mut self) -> Vec<u8> {
        let Some(Event::Element(element)) = self.read().await else { panic!("the front has closed the connection") };
        match Payload::from_message(&element) {
            Some(Ok(payload)) => payload.bytes,
            other => panic!("a payload was expected, not {other:?} in {element:?}"),
        }
    }

    /// The condition of the stream error that comes next; after it the stream must end.
    pub(crate) async fn stream_error(&mut self) -> String {
        let error = self.element().await;
        assert_eq!(error.name(), "error", "{error:?}");
        let condition = error.children().next().expect("a condition").name().to_owned();
        assert_eq!(self.next().await, Some(Event::Closed));
        assert_eq!(self.next().await, None);
        condition
    }

    /// Nothing but the answer to a ping comes next: whatever was to come has come.
    pub(crate) async fn nothing_more(&mut self) {
        self.send("<iq type='get' id='quiet'><ping xmlns='urn:xmpp:ping'/></iq>").await;
        let element = self.element().await;
        assert_eq!(element.attr("id"), Some("quiet"), "nothing was expected, not {element:?}");
    }

    /// Opens a stream up to its features.
    pub(crate) async fn open_stream(&mut self) -> Element {
        self.restart();
        self.send(HEADER).await;
        assert!(matches!(self.next().await, Some(Event::Opened(_))));
        self.element().await
    }

    pub(crate) async fn authenticate(&mut self, account: AccountId) {
        self.open_stream().await;
        self.show_token(account).await;
    }

    /// Logs in on a stream that is open, and opens the next one.
    pub(crate) async fn show_token(&mut self, account: AccountId) {
        let plain = STANDARD.encode(format!("\0{account}\0{}", token(account)));
        self.send(&format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{plain}</auth>")).await;
        let answer = self.element().await;
        assert_eq!(answer.name(), "success", "{answer:?}");
        self.open_stream().await;
    }

    pub(crate) async fn log_in(&mut self, account: AccountId, resource: &str) {
        self.authenticate(account).await;
        self.bind(resource).await;
    }

    pub(crate) async fn bind(&mut self, resource: &str) {
        self.send(&format!(
            "<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>\
             <resource>{resource}</resource></bind></iq>"
        ))
        .await;
        let bound = self.element().await;
        assert_eq!(bound.attr("type"), Some("result"), "{bound:?}");
    }

    pub(crate) async fn ask_to_open(&mut self) {
        self.send("<iq type='set' id='o'><open xmlns='urn:campanile:channel:1' number='5'>aGVsbG8=</open></iq>").await;
    }

    pub(crate) async fn open_channel(&mut self) {
        self.ask_to_open().await;
        let opened = self.element().await;
        assert_eq!((opened.attr("id"), opened.attr("type")), (Some("o"), Some("result")), "{opened:?}");
    }

    /// Sends a payload up the push channel.
    pub(crate) async fn up(&mut self, payload: &[u8]) {
        let payload = Payload { number: 5, bytes: payload.to_vec() };
        self.send(&String::from_utf8(payload.to_message()).expect("text")).await;
    }

    /// Turns stream management on and returns the id to resume with.
    pub(crate) async fn enable(&mut self) -> String {
        self.send("<enable xmlns='urn:xmpp:sm:3' resume='true'/>").await;
        let enabled = self.element().await;
        assert_eq!(enabled.name(), "enabled", "{enabled:?}");
        enabled.attr("id").expect("an id").to_owned()
    }
}
