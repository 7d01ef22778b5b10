//! The device as a state machine: events in, actions out, no clock and no socket.
//!
//! Every call of [`Core::handle`] brings the time with it, in milliseconds of any clock that never goes back; after each,
//! [`Core::poll`] is called until it gives `None`, and [`Core::handle`] again with [`Event::Timer`] when
//! [`Core::next_timer_ms`] is reached.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;

use idl::channel::{PUSH, Payload};
use idl::clock::SharedEntropy;
use idl::contract::bus::Status;
use idl::contract::push::{self, Clicked, Deliver, FromDevice, Hello, Register, Registered, Report, ToDevice};
use idl::error::{Code, Failure};
use idl::ids::{AppId, MessageId, RegId};
use idl::seal::{AgreementKey, registration_proof};
use idl::wire;
use idl::xml::{self, Event as XmlEvent, Limits, NS_CLIENT, StreamReader};
use minidom::Element;
use ring::digest;

use crate::acks::Acks;
use crate::commands::{Asker, Command, Commands, Head, Item, Times};
use crate::config::{AppConfig, Config};
use crate::heartbeat::{Due, Heartbeat};
use crate::inbox::{self, Delivery, Inbox, Push};
use crate::login::{self, Credentials, Login, LoginError, Step};
use crate::reason::{OfflineReason, ProtocolFault};
use crate::reconnect::{Reconnect, millis};
use crate::resume::{self, StreamManagement};
use crate::saved::{Saved, SavedApp};

/// Most apps that a device registers: what `Hello` may hold.
const APPS_MAX: usize = 256;
/// Most clicks that wait for a connection; the oldest go first.
const NOTES_MAX: usize = 256;
/// Elements inside each other that a server may send.
const DEPTH_MAX: usize = 16;

const OPEN_ID: &str = "open";
const PING_ID: &str = "ping";
const NS_PING: &str = "urn:xmpp:ping";
const NS_STANZAS: &str = "urn:ietf:params:xml:ns:xmpp-stanzas";
const NS_STREAMS: &str = "urn:ietf:params:xml:ns:xmpp-streams";

/// What happened.
pub enum Event<'a> {
    /// Begin, or try again at once instead of waiting (the network is back).
    Start,
    /// The secure stream that [`Action::Connect`] asked for is there.
    Connected,
    /// Bytes from the server.
    Received(&'a [u8]),
    /// The connection broke, or did not come about.
    Disconnected,
    /// The time of [`Core::next_timer_ms`] has come.
    Timer,
    /// An app asks for something; the answer carries the ticket.
    Command {
        /// The caller's number for it.
        ticket: u64,
        /// Which app.
        app: AppId,
        /// What.
        command: Command,
    },
    /// The app has the push for good. Only now may it be acknowledged. Of an unknown id it is ignored.
    Handled {
        /// Which app.
        app: AppId,
        /// Which push.
        id: MessageId,
    },
    /// The app could not take the push. It is reported and comes again when the channel is opened next.
    Refused {
        /// Which app.
        app: AppId,
        /// Which push.
        id: MessageId,
    },
    /// The user tapped the notification.
    Clicked {
        /// Which app.
        app: AppId,
        /// Which push.
        id: MessageId,
    },
    /// Acknowledge what can be acknowledged and end the stream.
    Stop,
    /// A new token for the account; after [`Action::LoggedOut`] it logs in with it.
    TokenRenewed(String),
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Open a secure stream to the server; then [`Event::Connected`] or [`Event::Disconnected`].
    Connect,
    /// Send these bytes.
    Send(Vec<u8>),
    /// Send what is left, then close the connection or give up connecting. [`Event::Disconnected`] is not expected.
    Disconnect,
    /// Hand this to its app, then [`Event::Handled`] or [`Event::Refused`].
    Push(Box<Push>),
    /// A command has ended.
    CommandDone {
        /// The number that came with it.
        ticket: u64,
        /// How it ended. [`Code::TimedOut`] means that it may have happened.
        result: Result<(), Failure>,
    },
    /// The app is registered and the channel is open.
    Ready {
        /// Which app.
        app: AppId,
        /// Its registration.
        regid: RegId,
    },
    /// The app could not be registered; it is tried again with the next connection.
    RegisterFailed {
        /// Which app.
        app: AppId,
        /// Why.
        failure: Failure,
    },
    /// The server takes a push back: a notification that is shown should go.
    Revoked {
        /// Which app.
        app: AppId,
        /// Which push.
        id: MessageId,
    },
    /// The app's registration is gone, with its names and topics. It is made anew: [`Action::Ready`] brings another id.
    Invalidated {
        /// Which app.
        app: AppId,
    },
    /// There is no connection. The device comes back by itself, but after [`OfflineReason::Stopped`].
    Offline {
        /// Why.
        reason: OfflineReason,
    },
    /// The token is refused: a new one is needed ([`Event::TokenRenewed`]), or a new account.
    LoggedOut {
        /// The server's word for it.
        reason: String,
    },
    /// [`Core::saved`] has changed and must be kept. Comes before whatever is sent because of the change.
    Save,
}

/// Where the connection is.
#[derive(Debug)]
enum Phase {
    /// Not started, or stopped.
    Idle,
    Waiting {
        until_ms: u64,
    },
    Connecting,
    LoggingIn(Login),
    Opening,
    Open,
    LoggedOut,
}

/// An established connection.
struct Link {
    reader: StreamReader,
    heartbeat: Heartbeat,
    management: Option<StreamManagement>,
    opened_at_ms: Option<u64>,
}

/// The device.
pub struct Core {
    config: Config,
    apps: BTreeMap<AppId, AppConfig>,
    saved: Saved,
    entropy: SharedEntropy,
    now_ms: u64,
    phase: Phase,
    /// When the phase must be over, for those that lead to an open channel.
    deadline_ms: u64,
    link: Option<Link>,
    /// The stream of the last connection, if the server may still hold it.
    resumable: Option<StreamManagement>,
    reconnect: Reconnect,
    commands: Commands,
    inbox: Inbox,
    acks: Acks,
    /// Clicks that wait for a connection.
    notes: VecDeque<FromDevice>,
    /// Apps that were announced as ready on this connection.
    ready: BTreeSet<AppId>,
    /// Apps that registered again on this stream because a seal did not open.
    refreshed: BTreeSet<AppId>,
    actions: VecDeque<Action>,
    unsaved: bool,
}

impl Core {
    /// A device with these apps and what it kept from its last run ([`Saved::default`] for a new one). Apps beyond 256 and
    /// repetitions are left out.
    pub fn new(config: Config, apps: Vec<AppConfig>, saved: Saved, entropy: SharedEntropy) -> Self {
        let apps: BTreeMap<_, _> = apps.into_iter().take(APPS_MAX).map(|app| (app.app.clone(), app)).collect();
        let mut core = Self {
            config,
            apps: BTreeMap::new(),
            saved,
            entropy,
            now_ms: 0,
            phase: Phase::Idle,
            deadline_ms: 0,
            link: None,
            resumable: None,
            reconnect: Reconnect::default(),
            commands: Commands::default(),
            inbox: Inbox::default(),
            acks: Acks::default(),
            notes: VecDeque::new(),
            ready: BTreeSet::new(),
            refreshed: BTreeSet::new(),
            actions: VecDeque::new(),
            unsaved: false,
        };
        for (id, app) in &apps {
            if !core.saved.apps.contains_key(id) {
                let mut secret = [0; 32];
                core.entropy.fill(&mut secret);
                core.saved.apps.insert(id.clone(), SavedApp::new(secret));
                core.unsaved = true;
            }
            if let Some(saved) = core.saved.apps.get_mut(id)
                && !core.inbox.learn_keys(id, &app.app_key, saved)
            {
                saved.forget_registration();
            }
        }
        core.apps = apps;
        core
    }

    /// Takes an event. `now_ms` that goes back is taken for the last one.
    pub fn handle(&mut self, now_ms: u64, event: Event<'_>) {
        self.now_ms = self.now_ms.max(now_ms);
        match event {
            Event::Start => self.start(),
            Event::Connected => self.connected(),
            Event::Received(bytes) => self.received(bytes),
            Event::Disconnected => self.disconnected(),
            Event::Timer => {}
            Event::Command { ticket, app, command } => self.command(ticket, &app, command),
            Event::Handled { app, id } => self.handled(&app, id),
            Event::Refused { app, id } => {
                if self.inbox.done(&app, id).is_some() && matches!(self.phase, Phase::Open) {
                    self.report(&app, id, inbox::REPORT_REFUSED);
                }
            }
            Event::Clicked { app, id } => {
                let message = id.to_bytes().to_vec();
                self.note(FromDevice {
                    request: None,
                    clicked: Some(Clicked { app: app.to_string(), message }),
                    ..FromDevice::default()
                });
            }
            Event::Stop => self.stop(),
            Event::TokenRenewed(token) => {
                self.config.token = token;
                if matches!(self.phase, Phase::LoggedOut) {
                    self.connect();
                }
            }
        }
        self.tick();
        if mem::take(&mut self.unsaved) && !self.actions.contains(&Action::Save) {
            self.actions.push_front(Action::Save);
        }
    }

    /// The next thing to do; `None` until another event.
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Event::Timer`] is due, on the clock of [`Core::handle`]. May have passed.
    pub fn next_timer_ms(&self) -> Option<u64> {
        let open = matches!(self.phase, Phase::Open);
        let phase = match &self.phase {
            Phase::Idle | Phase::LoggedOut | Phase::Open => None,
            Phase::Waiting { until_ms } => Some(*until_ms),
            Phase::Connecting | Phase::LoggingIn(_) | Phase::Opening => Some(self.deadline_ms),
        };
        let heartbeat = self.link.as_ref().filter(|_| open).map(|link| link.heartbeat.next_ms());
        let acks = if open { self.acks_due_ms() } else { None };
        [phase, heartbeat, acks, self.commands.next_ms(open, &self.times())].into_iter().flatten().min()
    }

    /// What must survive a restart.
    pub fn saved(&self) -> &Saved {
        &self.saved
    }

    // ------------------------------------------------------------------------------------------------- the connection

    fn start(&mut self) {
        if matches!(self.phase, Phase::Idle | Phase::Waiting { .. }) {
            self.connect();
        }
    }

    fn connect(&mut self) {
        self.phase = Phase::Connecting;
        self.deadline_ms = self.now_ms.saturating_add(millis(self.config.login_time_max));
        self.actions.push_back(Action::Connect);
    }

    fn connected(&mut self) {
        if !matches!(self.phase, Phase::Connecting) {
            return;
        }
        self.link = Some(Link {
            reader: self.reader(),
            heartbeat: Heartbeat::new(millis(self.config.heartbeat), self.now_ms),
            management: None,
            opened_at_ms: None,
        });
        self.phase = Phase::LoggingIn(Login::default());
        let mut out = Vec::new();
        Login::header(self.credentials(), &mut out);
        self.send(&out);
    }

    fn disconnected(&mut self) {
        match self.phase {
            Phase::Idle | Phase::Waiting { .. } | Phase::LoggedOut => {}
            Phase::Connecting => self.gone(OfflineReason::ConnectFailed),
            Phase::LoggingIn(_) | Phase::Opening | Phase::Open => self.gone(OfflineReason::ConnectionLost),
        }
    }

    fn stop(&mut self) {
        if matches!(self.phase, Phase::Open) {
            self.send_acks();
        }
        let connected = self.link.is_some();
        if connected {
            let mut out = Vec::new();
            xml::write_footer(&mut out);
            self.send(&out);
        }
        if connected || matches!(self.phase, Phase::Connecting) {
            self.actions.push_back(Action::Disconnect);
        }
        for item in self.commands.take_everything() {
            self.done(&item, Err(Failure::new(Code::TimedOut, "The device was stopped: it may have happened.")));
        }
        self.link = None;
        self.resumable = None;
        self.ready.clear();
        self.phase = Phase::Idle;
        self.actions.push_back(Action::Offline { reason: OfflineReason::Stopped });
    }

    /// Ends the connection from this side.
    fn lose(&mut self, reason: OfflineReason) {
        if self.link.is_some() {
            let mut out = Vec::new();
            if let Some(condition) = reason.condition() {
                let error = format!("<stream:error><{condition} xmlns='{NS_STREAMS}'/></stream:error>");
                out.extend_from_slice(error.as_bytes());
            }
            if !reason.may_resume() {
                xml::write_footer(&mut out);
            }
            self.send(&out);
        }
        self.actions.push_back(Action::Disconnect);
        self.gone(reason);
    }

    /// The connection is no more: waits, then tries again.
    fn gone(&mut self, reason: OfflineReason) {
        let link = self.link.take();
        let open_ms = link
            .as_ref()
            .and_then(|link| link.opened_at_ms)
            .map_or(0, |opened_at_ms| self.now_ms.saturating_sub(opened_at_ms).max(1));
        if !reason.may_resume() {
            self.resumable = None;
        } else if matches!(self.phase, Phase::Open) {
            self.resumable =
                link.and_then(|link| link.management).filter(|management| management.resumable().is_some());
        }
        self.ready.clear();
        let delay_ms = self.reconnect.delay_ms(&self.config.backoff, reason.ending(), open_ms, self.entropy.as_ref());
        self.phase = Phase::Waiting { until_ms: self.now_ms.saturating_add(delay_ms) };
        self.actions.push_back(Action::Offline { reason });
    }

    fn logged_out(&mut self, reason: String) {
        let mut out = Vec::new();
        xml::write_footer(&mut out);
        self.send(&out);
        self.actions.push_back(Action::Disconnect);
        self.link = None;
        self.resumable = None;
        self.phase = Phase::LoggedOut;
        self.actions.push_back(Action::LoggedOut { reason });
    }

    /// Whatever has become due.
    fn tick(&mut self) {
        match self.phase {
            Phase::Waiting { until_ms } if until_ms <= self.now_ms => self.connect(),
            Phase::Connecting | Phase::LoggingIn(_) | Phase::Opening if self.deadline_ms <= self.now_ms => {
                self.lose(OfflineReason::LoginTimedOut);
            }
            Phase::Open => self.beat(),
            _ => {}
        }
        if matches!(self.phase, Phase::Open) && self.acks_due_ms().is_some_and(|due_ms| due_ms <= self.now_ms) {
            self.send_acks();
        }
        for (item, failure) in self.commands.expire(self.now_ms, &self.times()) {
            self.done(&item, Err(failure));
        }
        for app in self.commands.apps() {
            self.send_commands(&app);
        }
    }

    fn beat(&mut self) {
        let Some(link) = &mut self.link else { return };
        match link.heartbeat.due(self.now_ms) {
            None => {}
            Some(Due::Dead) => self.lose(OfflineReason::HeartbeatTimedOut),
            Some(Due::Ask) if link.management.as_ref().is_some_and(StreamManagement::is_enabled) => {
                self.send(resume::REQUEST);
            }
            Some(Due::Ask) => {
                self.send_stanza(format!("<iq type='get' id='{PING_ID}'><ping xmlns='{NS_PING}'/></iq>").as_bytes());
            }
        }
    }

    // --------------------------------------------------------------------------------------------- what the server says

    fn received(&mut self, mut bytes: &[u8]) {
        if let Some(link) = &mut self.link
            && !bytes.is_empty()
        {
            link.heartbeat.received(self.now_ms);
        }
        // The link may go, or its reader change, with every element.
        while let Some(link) = &mut self.link {
            let element = match link.reader.read(&mut bytes) {
                Ok(None) => return,
                Ok(Some(XmlEvent::Opened(_))) => continue,
                Ok(Some(XmlEvent::Element(element))) => element,
                Ok(Some(XmlEvent::Closed)) => return self.lose(OfflineReason::StreamClosed),
                Err(error) => return self.lose(error.into()),
            };
            if let Some(reason) = login::stream_error(&element) {
                return self.lose(reason);
            }
            let taken = match self.phase {
                Phase::LoggingIn(login) => self.login(login, &element),
                _ => self.established(&element),
            };
            if let Err(reason) = taken {
                return self.lose(reason);
            }
        }
    }

    fn login(&mut self, mut login: Login, element: &Element) -> Result<(), OfflineReason> {
        let mut out = Vec::new();
        let step = login.element(element, self.credentials(), &mut out);
        self.phase = Phase::LoggingIn(login);
        self.send(&out);
        match step {
            Ok(Step::Wait) => {}
            Ok(Step::Restart) => {
                let reader = self.reader();
                if let Some(link) = &mut self.link {
                    link.reader = reader;
                }
            }
            Ok(Step::Bound { manageable }) => self.bound(manageable),
            Ok(Step::Resumed { handled }) => self.resumed(handled)?,
            Err(LoginError::TokenRefused(reason)) => self.logged_out(reason),
            Err(LoginError::Offline(reason)) => return Err(reason),
        }
        Ok(())
    }

    /// A new stream has a resource: opens the channel.
    fn bound(&mut self, manageable: bool) {
        self.resumable = None;
        self.commands.new_stream();
        self.inbox.new_stream();
        self.refreshed.clear();
        self.phase = Phase::Opening;
        if manageable {
            if let Some(link) = &mut self.link {
                link.management = Some(StreamManagement::default());
            }
            // The channel is opened without waiting for the answer: if it is no, nothing needs to be undone.
            self.send(resume::ENABLE);
        }
        let registrations = self.apps.keys().filter_map(|app| Some(self.saved.regid(app)?.to_string())).collect();
        let hello = wire::encode(&Hello { registrations: Some(registrations) });
        self.send_stanza(&Payload { number: PUSH, bytes: hello }.to_open(OPEN_ID));
    }

    /// The earlier stream goes on, its channel open.
    fn resumed(&mut self, handled: u32) -> Result<(), OfflineReason> {
        let mut management = self.resumable.take().unwrap_or_default();
        let missing = management.resumed(handled)?;
        self.send(&missing);
        if let Some(link) = &mut self.link {
            link.management = Some(management);
        }
        self.open();
        Ok(())
    }

    /// The channel is open.
    fn open(&mut self) {
        self.phase = Phase::Open;
        let now_ms = self.now_ms;
        if let Some(link) = &mut self.link {
            link.opened_at_ms = Some(now_ms);
        }
        let apps: Vec<AppId> = self.apps.keys().cloned().collect();
        for app in apps {
            let profile = self.profile(&app);
            let Some(saved) = self.saved.apps.get(&app) else { continue };
            if saved.unregistered {
                continue;
            }
            let current = saved.registration.map(|registration| (registration.regid, registration.profile));
            if let Some((regid, _)) = current {
                self.announce(&app, regid);
            }
            if current.is_none_or(|(_, registered)| registered != profile) {
                self.commands.register(&app, now_ms);
            }
        }
        self.send_acks();
        for note in mem::take(&mut self.notes) {
            self.say(&note);
        }
    }

    fn established(&mut self, element: &Element) -> Result<(), OfflineReason> {
        let Some(link) = &mut self.link else { return Ok(()) };
        if let Some(management) = &mut link.management {
            management.received(element);
        }
        if element.ns() == resume::NS {
            return self.manage(element);
        }
        if element.ns() != NS_CLIENT {
            return Err(login::unexpected(element));
        }
        match element.name() {
            "iq" => self.iq(element),
            // An error is a stanza of ours that came back: what it carries is not from the server.
            "message" if element.attr("type") == Some("error") => Ok(()),
            "message" => match Payload::from_message(element) {
                Some(Ok(payload)) if payload.number == PUSH => self.payload(&payload.bytes),
                Some(Err(error)) => Err(ProtocolFault::Channel(error).into()),
                _ => Ok(()),
            },
            "presence" => Ok(()),
            _ => Err(login::unexpected(element)),
        }
    }

    fn manage(&mut self, element: &Element) -> Result<(), OfflineReason> {
        let Some(link) = &mut self.link else { return Ok(()) };
        let Some(management) = &mut link.management else { return Err(login::unexpected(element)) };
        match element.name() {
            "enabled" => management.enabled(element),
            "failed" => link.management = None,
            "a" => {
                let handled = resume::handled(element).ok_or_else(|| login::unexpected(element))?;
                management.acknowledge(handled)?;
            }
            "r" => {
                let answer = management.answer();
                self.send(&answer);
            }
            _ => return Err(login::unexpected(element)),
        }
        Ok(())
    }

    fn iq(&mut self, iq: &Element) -> Result<(), OfflineReason> {
        match iq.attr("type") {
            Some("result") if iq.attr("id") == Some(OPEN_ID) && matches!(self.phase, Phase::Opening) => {
                self.open();
                Ok(())
            }
            Some("error") if iq.attr("id") == Some(OPEN_ID) && matches!(self.phase, Phase::Opening) => {
                Err(OfflineReason::ChannelRefused(login::stanza_condition(iq)))
            }
            Some("get" | "set") => {
                let attribute = |theirs, ours| {
                    let value = xml::escape_attribute(iq.attr(theirs)?);
                    Some(format!(" {ours}='{value}'"))
                };
                let head = attribute("id", "id").unwrap_or_default() + &attribute("from", "to").unwrap_or_default();
                let answer = if iq.has_child("ping", NS_PING) {
                    format!("<iq type='result'{head}/>")
                } else {
                    let error = format!("<service-unavailable xmlns='{NS_STANZAS}'/>");
                    format!("<iq type='error'{head}><error type='cancel'>{error}</error></iq>")
                };
                self.send_stanza(answer.as_bytes());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn payload(&mut self, bytes: &[u8]) -> Result<(), OfflineReason> {
        let payload: ToDevice = wire::decode_trusted(bytes).map_err(ProtocolFault::Payload)?;
        match payload {
            ToDevice { result: Some(result), deliver: None, revoke: None, invalidated: None } => {
                self.result(result);
                Ok(())
            }
            ToDevice { result: None, deliver: Some(deliver), revoke: None, invalidated: None } => {
                self.deliver(&deliver)
            }
            ToDevice { result: None, deliver: None, revoke: Some(revoke), invalidated: None } => {
                let id = MessageId::from_bytes(&revoke.message).map_err(|_| ProtocolFault::MessageId)?;
                let app: AppId = revoke.app.parse().map_err(|_| ProtocolFault::AppId)?;
                if self.apps.contains_key(&app) {
                    self.actions.push_back(Action::Revoked { app, id });
                }
                Ok(())
            }
            ToDevice { result: None, deliver: None, revoke: None, invalidated: Some(invalidated) } => {
                let app = self
                    .apps
                    .keys()
                    .find(|app| self.saved.regid(app).is_some_and(|regid| regid.to_string() == invalidated.regid));
                if let Some(app) = app.cloned() {
                    self.invalidate(&app);
                }
                Ok(())
            }
            // Something that a later server says and this build does not know.
            ToDevice { result: None, deliver: None, revoke: None, invalidated: None } => Ok(()),
            _ => Err(ProtocolFault::NotOne.into()),
        }
    }

    // ------------------------------------------------------------------------------------------------------- deliveries

    fn deliver(&mut self, deliver: &Deliver) -> Result<(), OfflineReason> {
        match self.inbox.deliver(deliver, &self.saved.apps, self.config.unhandled_max)? {
            Delivery::Push(push) => self.actions.push_back(Action::Push(push)),
            Delivery::Seen { app, id, broadcast } => {
                if let Some(saved) = self.saved.apps.get_mut(&app) {
                    saved.seen.insert(id, self.config.seen_max);
                }
                self.acks.add(&app, id, broadcast, self.now_ms);
            }
            Delivery::Known => {}
            Delivery::Report { app, id, reason } => {
                self.report(&app, id, reason);
                // The keys may have changed; registering again brings the current ones.
                if reason == inbox::REPORT_SEAL && self.refreshed.insert(app.clone()) {
                    self.commands.register(&app, self.now_ms);
                }
            }
            Delivery::Full => return Err(OfflineReason::TooManyUnhandled),
        }
        Ok(())
    }

    fn handled(&mut self, app: &AppId, id: MessageId) {
        let Some(broadcast) = self.inbox.done(app, id) else { return };
        let Some(saved) = self.saved.apps.get_mut(app) else { return };
        saved.seen.insert(id, self.config.seen_max);
        self.unsaved = true;
        if saved.registration.is_some() {
            self.acks.add(app, id, broadcast, self.now_ms);
        }
    }

    fn report(&mut self, app: &AppId, id: MessageId, reason: i32) {
        let report = Report { app: app.to_string(), message: id.to_bytes().to_vec(), reason };
        self.say(&FromDevice { request: None, report: Some(report), ..FromDevice::default() });
    }

    /// Says it now, or when there is a connection.
    fn note(&mut self, note: FromDevice) {
        if matches!(self.phase, Phase::Open) {
            return self.say(&note);
        }
        if self.notes.len() >= NOTES_MAX {
            self.notes.pop_front();
        }
        self.notes.push_back(note);
    }

    fn acks_due_ms(&self) -> Option<u64> {
        self.acks.due_ms(millis(self.config.ack_delay), self.config.ack_batch_max)
    }

    fn send_acks(&mut self) {
        for ack in self.acks.take() {
            self.say(&FromDevice { request: None, ack: Some(ack), ..FromDevice::default() });
        }
    }

    // --------------------------------------------------------------------------------------------------------- commands

    fn command(&mut self, ticket: u64, app: &AppId, command: Command) {
        let refused = if !self.apps.contains_key(app) {
            Some(Failure::new(Code::UnknownApp, format!("{app} is not one of this device's applications")))
        } else if matches!(self.phase, Phase::Idle) {
            Some(Failure::new(Code::TimedOut, "The device is not started."))
        } else {
            self.commands.push(app, ticket, command, self.now_ms, &self.times()).err()
        };
        if let Some(failure) = refused {
            self.actions.push_back(Action::CommandDone { ticket, result: Err(failure) });
        }
    }

    /// Ends what needs no sending at the head of an app's queue, and sends the first that does.
    fn send_commands(&mut self, app: &AppId) {
        let open = matches!(self.phase, Phase::Open);
        while let Head::Ready(command) = self.commands.head(app, self.now_ms) {
            let Some(saved) = self.saved.apps.get(app) else { return };
            let (registered, unregistered) = (saved.registration.is_some(), saved.unregistered);
            if command.is_cached(saved) {
                self.end(app, &Ok(()));
            } else if !open {
                return;
            } else if registered || matches!(command, Command::Register | Command::Unregister) {
                let command = command.clone();
                let request = self.commands.send_head(app, self.now_ms);
                if let Some(message) = command.to_wire(app, request).or_else(|| self.registration(app, request)) {
                    self.say(&message);
                }
                return;
            } else if unregistered {
                let what = format!("{app} was unregistered: register it first");
                self.end(app, &Err(Failure::new(Code::UnknownRegistration, what)));
            } else {
                self.commands.register(app, self.now_ms);
            }
        }
    }

    fn registration(&self, app: &AppId, request: i32) -> Option<FromDevice> {
        let config = self.apps.get(app)?;
        let public_key = AgreementKey::from_bytes(self.saved.apps.get(app)?.secret).public();
        let proof = registration_proof(&config.app_key, self.config.account, app, &public_key);
        let register = Register {
            app: app.to_string(),
            package_name: config.package.clone(),
            public_key: public_key.to_vec(),
            proof: proof.to_vec(),
            attributes: (!config.attributes.is_empty()).then(|| config.attributes.clone()),
        };
        Some(FromDevice { request: Some(request), register_app: Some(register), ..FromDevice::default() })
    }

    /// Digest of what an app registers with, but for its key.
    fn profile(&self, app: &AppId) -> [u8; 32] {
        let mut text = Vec::new();
        if let Some(config) = self.apps.get(app) {
            let attributes = config.attributes.iter().flat_map(|(name, value)| [name, value]);
            for part in [&config.package].into_iter().chain(attributes) {
                text.extend_from_slice(&(part.len() as u64).to_be_bytes());
                text.extend_from_slice(part.as_bytes());
            }
        }
        let mut profile = [0; 32];
        profile.copy_from_slice(digest::digest(&digest::SHA256, &text).as_ref());
        profile
    }

    fn result(&mut self, result: push::Result) {
        // An answer that nobody waits for came too late.
        let Some((app, command)) = self.commands.app_of(result.request) else { return };
        let (app, command) = (app.clone(), command.clone());
        if result.code == 0 {
            if command == Command::Register {
                return self.registered(&app, result.registered.as_ref());
            }
            if let Some(saved) = self.saved.apps.get_mut(&app) {
                self.unsaved |= command.remember(saved);
            }
            if command == Command::Unregister {
                self.inbox.forget_keys(&app);
                self.acks.forget(&app);
                self.ready.remove(&app);
            }
            return self.end(&app, &Ok(()));
        }
        let failure = Failure::from_status(Status { code: result.code, description: result.description });
        let unknown =
            failure.code == Code::UnknownRegistration && !matches!(command, Command::Register | Command::Unregister);
        if failure.code.retryable() || failure.code == Code::Superseded || unknown {
            let times = self.times();
            self.commands.retry_head(&app, failure, self.now_ms, &times, self.entropy.as_ref());
            if unknown {
                self.invalidate(&app);
            }
        } else if command == Command::Register {
            self.register_failed(&app, failure);
        } else {
            self.end(&app, &Err(failure));
        }
    }

    fn registered(&mut self, app: &AppId, registered: Option<&Registered>) {
        let profile = self.profile(app);
        let (Some(config), Some(saved)) = (self.apps.get(app), self.saved.apps.get_mut(app)) else { return };
        let registration =
            registered.and_then(|answer| inbox::open_registered(app, &config.app_key, saved.secret, profile, answer));
        let Some(registration) = registration else {
            let failure = Failure::new(Code::BadProof, "The server's answer was not made with this app key.");
            return self.register_failed(app, failure);
        };
        if saved.registration.is_some_and(|old| old.regid != registration.regid) {
            saved.forget_registration();
            self.ready.remove(app);
        }
        saved.registration = Some(registration);
        saved.unregistered = false;
        self.inbox.learn_keys(app, &config.app_key, saved);
        self.unsaved = true;
        self.announce(app, registration.regid);
        self.end(app, &Ok(()));
    }

    /// The server says no for good. What waits for the registration fails with it.
    fn register_failed(&mut self, app: &AppId, failure: Failure) {
        let registered = self.saved.regid(app).is_some();
        let waiting =
            if registered { self.commands.pop(app).into_iter().collect() } else { self.commands.take_all(app) };
        for item in waiting {
            self.done(&item, Err(failure.clone()));
        }
        self.actions.push_back(Action::RegisterFailed { app: app.clone(), failure });
    }

    /// The server does not know the registration.
    fn invalidate(&mut self, app: &AppId) {
        let Some(saved) = self.saved.apps.get_mut(app) else { return };
        if saved.registration.is_some() {
            saved.forget_registration();
            self.unsaved = true;
            self.actions.push_back(Action::Invalidated { app: app.clone() });
        }
        self.inbox.forget_keys(app);
        self.acks.forget(app);
        self.ready.remove(app);
        self.commands.register(app, self.now_ms);
    }

    fn announce(&mut self, app: &AppId, regid: RegId) {
        if self.ready.insert(app.clone()) {
            self.actions.push_back(Action::Ready { app: app.clone(), regid });
        }
    }

    /// The head of an app's queue is over.
    fn end(&mut self, app: &AppId, result: &Result<(), Failure>) {
        if let Some(item) = self.commands.pop(app) {
            self.done(&item, result.clone());
        }
    }

    fn done(&mut self, item: &Item, result: Result<(), Failure>) {
        if let Asker::App(ticket) = item.asker {
            self.actions.push_back(Action::CommandDone { ticket, result });
        }
    }

    // ---------------------------------------------------------------------------------------------------------- sending

    /// Sends a payload on the push channel.
    fn say(&mut self, message: &FromDevice) {
        self.send_stanza(&Payload { number: PUSH, bytes: wire::encode(message) }.to_message());
    }

    fn send_stanza(&mut self, stanza: &[u8]) {
        let ask = self
            .link
            .as_mut()
            .and_then(|link| link.management.as_mut())
            .is_some_and(|management| management.sent(stanza));
        self.send(stanza);
        if ask {
            self.send(resume::REQUEST);
        }
    }

    /// What is sent one after another leaves in one write.
    fn send(&mut self, bytes: &[u8]) {
        match self.actions.back_mut() {
            _ if bytes.is_empty() => {}
            Some(Action::Send(before)) => before.extend_from_slice(bytes),
            _ => self.actions.push_back(Action::Send(bytes.to_vec())),
        }
    }

    fn reader(&self) -> StreamReader {
        StreamReader::new(Limits { stanza_bytes_max: self.config.stanza_bytes_max, depth_max: DEPTH_MAX })
    }

    fn credentials(&self) -> Credentials<'_> {
        Credentials {
            domain: &self.config.domain,
            account: self.config.account,
            token: &self.config.token,
            resource: &self.config.resource,
            resume: self.resumable.as_ref().and_then(StreamManagement::resumable),
        }
    }

    fn times(&self) -> Times {
        Times { command_ms_max: millis(self.config.command_time_max), backoff: self.config.backoff }
    }
}
