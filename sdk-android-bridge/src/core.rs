//! The device as a state machine: events in, actions out, no clock and no socket.
//!
//! Every call of [`Core::handle`] brings the time with it, in milliseconds of any clock that never goes back; after each,
//! [`Core::poll`] is called until it gives `None`, and [`Core::handle`] again with [`Event::Timer`] when
//! [`Core::next_timer_ms`] is reached.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;

use idl::channel::{PUSH, Payload};
use idl::clock::SharedEntropy;
use idl::contract::push::{Clicked, FromDevice};
use idl::error::{Code, Failure};
use idl::ids::{AppId, MessageId, RegId};
use idl::slim;
use idl::wire;
use idl::xml::{Limits, StreamReader};

use crate::acks::Acks;
use crate::commands::{Command, Commands, Times};
use crate::config::{AppConfig, Config};
use crate::form::{Form, Said};
use crate::heartbeat::{Due, Heartbeat};
use crate::inbox::{Inbox, Push};
use crate::login::{Credentials, Login};
use crate::reason::OfflineReason;
use crate::reconnect::{Reconnect, millis};
use crate::resume::StreamManagement;
use crate::saved::{Saved, SavedApp};

mod apps;
mod stream;

/// Most apps that a device registers: what `Hello` may hold.
const APPS_MAX: usize = 256;
/// Most clicks that wait for a connection; the oldest go first.
const NOTES_MAX: usize = 32;
/// Elements inside each other that a server may send.
const DEPTH_MAX: usize = 16;

const PING_ID: &str = "ping";
const NS_PING: &str = "urn:xmpp:ping";

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
    /// The server takes a push back that the app has had: its notification should go, if no other has replaced it. Told once,
    /// and a second time only if the device is killed before it is saved.
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
    /// The server was asked for slim frames.
    Switching(Established),
    Opening,
    Open,
    LoggedOut,
}

/// How a stream came to have a resource.
#[derive(Debug, Clone, Copy)]
enum Established {
    /// It is new: its channel is to be opened.
    Bound {
        /// The server offers XEP-0198.
        manageable: bool,
    },
    /// It is an earlier one, its channel open.
    Resumed,
}

/// An established connection.
struct Link {
    form: Form,
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
    /// Clicks that wait for a connection, or were lost with one.
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
            Event::Refused { app, id } => self.refused(&app, id),
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
        if mem::take(&mut self.unsaved) {
            // Before anything is sent, but after what the application is told: if it is killed in between, it hears again of
            // what it is to take back, and not never.
            self.actions.retain(|action| *action != Action::Save);
            let sends = |action: &Action| matches!(action, Action::Connect | Action::Send(_) | Action::Disconnect);
            let at = self.actions.iter().position(sends).unwrap_or(self.actions.len());
            self.actions.insert(at, Action::Save);
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
            Phase::Connecting | Phase::LoggingIn(_) | Phase::Switching(_) | Phase::Opening => Some(self.deadline_ms),
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
            form: Form::xml(self.reader()),
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
            Phase::LoggingIn(_) | Phase::Switching(_) | Phase::Opening | Phase::Open => {
                self.gone(OfflineReason::ConnectionLost);
            }
        }
    }

    fn stop(&mut self) {
        if matches!(self.phase, Phase::Open) {
            self.send_acks();
        }
        let connected = self.link.is_some();
        if connected {
            self.transmit(Said::End(None));
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
        if !reason.may_resume() {
            self.transmit(Said::End(reason.condition()));
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
            let earlier = self.resumable.take();
            self.stream_over(earlier);
        }
        if let Some(management) = link.and_then(|link| link.management) {
            let open = matches!(self.phase, Phase::Open | Phase::Switching(Established::Resumed));
            if reason.may_resume() && open && management.resumable().is_some() {
                self.resumable = Some(management);
            } else {
                self.stream_over(Some(management));
            }
        }
        self.ready.clear();
        let delay_ms = self.reconnect.delay_ms(&self.config.backoff, reason.ending(), open_ms, self.entropy.as_ref());
        self.phase = Phase::Waiting { until_ms: self.now_ms.saturating_add(delay_ms) };
        self.actions.push_back(Action::Offline { reason });
    }

    fn logged_out(&mut self, reason: String) {
        self.transmit(Said::End(None));
        self.actions.push_back(Action::Disconnect);
        self.link = None;
        let earlier = self.resumable.take();
        self.stream_over(earlier);
        self.phase = Phase::LoggedOut;
        self.actions.push_back(Action::LoggedOut { reason });
    }

    /// Whatever has become due.
    fn tick(&mut self) {
        match self.phase {
            Phase::Waiting { until_ms } if until_ms <= self.now_ms => self.connect(),
            Phase::Connecting | Phase::LoggingIn(_) | Phase::Switching(_) | Phase::Opening
                if self.deadline_ms <= self.now_ms =>
            {
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
            Some(Due::Ask) => {
                let (slim, management) = (link.form.is_slim(), link.management.as_ref());
                let waiting = management.is_some_and(StreamManagement::is_waiting);
                if management.is_some_and(StreamManagement::is_enabled) && (waiting || !slim) {
                    self.transmit(Said::CountRequest);
                } else if slim {
                    self.send(&slim::PING);
                } else {
                    let ping = format!("<iq type='get' id='{PING_ID}'><ping xmlns='{NS_PING}'/></iq>");
                    self.send_stanza(Said::Element(ping));
                }
            }
        }
    }

    // ---------------------------------------------------------------------------------------------------------- sending

    /// Sends a payload on the push channel.
    fn say(&mut self, message: &FromDevice) {
        self.send_stanza(Said::Payload(Payload { number: PUSH, bytes: wire::encode(message) }));
    }

    fn send_stanza(&mut self, stanza: Said) {
        let ask = self
            .link
            .as_mut()
            .and_then(|link| link.management.as_mut())
            .is_some_and(|management| management.sent(&stanza));
        self.transmit(stanza);
        if ask {
            self.transmit(Said::CountRequest);
        }
    }

    /// Says it in the form of the stream.
    fn transmit(&mut self, said: Said) {
        let mut out = Vec::new();
        if let Some(link) = &mut self.link {
            link.form.say(said, &mut out);
        }
        self.send(&out);
    }

    /// What is sent one after another leaves in one write.
    fn send(&mut self, bytes: &[u8]) {
        match self.actions.back_mut() {
            _ if bytes.is_empty() => {}
            Some(Action::Send(before)) => before.extend_from_slice(bytes),
            _ => self.actions.push_back(Action::Send(bytes.to_vec())),
        }
    }

    fn limits(&self) -> Limits {
        Limits { stanza_bytes_max: self.config.stanza_bytes_max, depth_max: DEPTH_MAX }
    }

    fn reader(&self) -> StreamReader {
        StreamReader::new(self.limits())
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
