//! A device and a server joined in memory, with a clock that the test turns.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use campanile_sdk_android_bridge::{Action, AppConfig, Command, Config, Core, Event, Failure, OfflineReason, Saved};
use idl::contract::message::Notification;
use idl::contract::push::Revoke;
use idl::ids::{AppId, MessageId, RegId};

use crate::server::{ACCOUNT, APP_KEY, DOMAIN, Server, Slim, Steady, TOKEN};

pub(crate) fn demo() -> AppId {
    "com.example.demo".parse().expect("an app id")
}

pub(crate) fn other() -> AppId {
    "com.example.other".parse().expect("an app id")
}

pub(crate) fn app_config(app: AppId) -> AppConfig {
    AppConfig {
        package: app.to_string(),
        app,
        app_key: APP_KEY.to_owned(),
        attributes: BTreeMap::from([("platform".to_owned(), "android".to_owned())]),
    }
}

pub(crate) fn config() -> Config {
    Config { heartbeat: Duration::from_mins(1), ..Config::new(DOMAIN, ACCOUNT, TOKEN) }
}

pub(crate) struct World {
    pub(crate) core: Core,
    pub(crate) server: Server,
    pub(crate) now_ms: u64,
    /// The server can be reached.
    pub(crate) reachable: bool,
    pub(crate) connected: bool,
    /// The bytes of the last [`Action::Save`].
    pub(crate) kept: Vec<u8>,
    /// What the device told the application, in order.
    pub(crate) told: Vec<Action>,
    /// When it tried to connect.
    pub(crate) attempts_ms: Vec<u64>,
    /// Both directions, as the doc shows them.
    pub(crate) wire: Vec<(&'static str, Vec<u8>)>,
    /// Handles each push at once.
    pub(crate) obliging: bool,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(config(), vec![app_config(demo())], Saved::default(), 1)
    }

    pub(crate) fn with(config: Config, apps: Vec<AppConfig>, saved: Saved, seed: u64) -> Self {
        Self {
            core: Core::new(config, apps, saved, Arc::new(Steady::new(seed))),
            server: Server::new(),
            now_ms: 0,
            reachable: true,
            connected: false,
            kept: Vec::new(),
            told: Vec::new(),
            attempts_ms: Vec::new(),
            wire: Vec::new(),
            obliging: true,
        }
    }

    /// A device that is registered and online.
    pub(crate) fn online() -> Self {
        let mut world = Self::new();
        world.start();
        world
    }

    /// The same at a server with stream management that offers slim frames.
    pub(crate) fn slim() -> Self {
        let mut world = Self::new();
        world.server.manners.manageable = true;
        world.server.manners.slim = Slim::Agreed;
        world.start();
        world
    }

    pub(crate) fn start(&mut self) {
        self.event(Event::Start);
    }

    pub(crate) fn event(&mut self, event: Event<'_>) {
        self.core.handle(self.now_ms, event);
        self.settle();
    }

    /// Bytes from the server reach the device.
    pub(crate) fn down(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.wire.push(("S", bytes.to_vec()));
            self.core.handle(self.now_ms, Event::Received(bytes));
        }
        self.settle();
    }

    pub(crate) fn deliver(&mut self, app: &AppId, id: u128, text: &str) {
        let bytes = self.server.deliver(app, MessageId(id), text);
        self.down(&bytes);
    }

    pub(crate) fn broadcast(&mut self, app: &AppId, id: u128, text: &str) {
        let bytes = self.server.broadcast(app, MessageId(id), text);
        self.down(&bytes);
    }

    pub(crate) fn notify(&mut self, id: u128, notification: &Notification) {
        let bytes = self.server.notify(&demo(), MessageId(id), notification);
        self.down(&bytes);
    }

    pub(crate) fn revoke(&mut self, revoke: Revoke) {
        let bytes = self.server.revoke(revoke);
        self.down(&bytes);
    }

    pub(crate) fn handled(&mut self, app: &AppId, id: u128) {
        self.event(Event::Handled { app: app.clone(), id: MessageId(id) });
    }

    pub(crate) fn command(&mut self, ticket: u64, command: Command) {
        self.event(Event::Command { ticket, app: demo(), command });
    }

    /// Turns the clock, stopping at each timer on the way.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end_ms = self.now_ms + u64::try_from(time.as_millis()).expect("a time");
        let mut timers = 0;
        while let Some(at_ms) = self.core.next_timer_ms().filter(|at_ms| *at_ms <= end_ms) {
            timers += 1;
            assert!(timers < 10_000, "the timers do not come to rest");
            self.now_ms = self.now_ms.max(at_ms);
            self.event(Event::Timer);
        }
        self.now_ms = end_ms;
        self.event(Event::Timer);
    }

    /// The connection breaks.
    pub(crate) fn cut(&mut self) {
        self.connected = false;
        self.event(Event::Disconnected);
    }

    /// The connection breaks and the device comes back.
    pub(crate) fn cut_and_return(&mut self) {
        self.cut();
        self.event(Event::Start);
    }

    /// The device is killed and starts again with what it kept, at another server process that knows what this one did.
    pub(crate) fn restart(&mut self, config: Config) {
        let saved = Saved::from_bytes(&self.kept).expect("saved state");
        self.core = Core::new(config, vec![app_config(demo())], saved, Arc::new(Steady::new(99)));
        self.connected = false;
        self.now_ms = 0;
        self.start();
    }

    fn settle(&mut self) {
        while let Some(action) = self.core.poll() {
            match action {
                Action::Connect => {
                    self.attempts_ms.push(self.now_ms);
                    self.connected = self.reachable;
                    let event = if self.reachable { Event::Connected } else { Event::Disconnected };
                    if self.reachable {
                        self.server.connected();
                    }
                    self.core.handle(self.now_ms, event);
                }
                Action::Send(bytes) => {
                    assert!(self.connected, "bytes are sent without a connection");
                    self.wire.push(("C", bytes.clone()));
                    let answer = self.server.receive(&bytes);
                    if !answer.is_empty() {
                        self.wire.push(("S", answer.clone()));
                        self.core.handle(self.now_ms, Event::Received(&answer));
                    }
                }
                Action::Disconnect => self.connected = false,
                Action::Save => self.kept = self.core.saved().to_bytes(),
                told => {
                    if let (Action::Push(push), true) = (&told, self.obliging) {
                        let handled = Event::Handled { app: push.app.clone(), id: push.id };
                        self.core.handle(self.now_ms, handled);
                    }
                    self.told.push(told);
                }
            }
        }
    }

    /// The bytes that went last, either way.
    pub(crate) fn last_bytes(&self) -> &[u8] {
        self.wire.last().map_or(&[], |(_, bytes)| bytes)
    }

    /// The texts of the pushes, in order.
    pub(crate) fn pushed(&self) -> Vec<String> {
        let pushes = self.told.iter().filter_map(|told| match told {
            Action::Push(push) => push.notification.payload.clone(),
            _ => None,
        });
        pushes.collect()
    }

    /// The pushes, in order: the id, and what it replaces.
    pub(crate) fn replaced(&self) -> Vec<(u128, Option<u128>)> {
        let pushes = self.told.iter().filter_map(|told| match told {
            Action::Push(push) => Some((push.id.0, push.replaces.map(|id| id.0))),
            _ => None,
        });
        pushes.collect()
    }

    /// What was taken back, in order.
    pub(crate) fn revoked(&self) -> Vec<u128> {
        let revoked = self.told.iter().filter_map(|told| match told {
            Action::Revoked { id, .. } => Some(id.0),
            _ => None,
        });
        revoked.collect()
    }

    pub(crate) fn results(&self) -> Vec<(u64, Result<(), Failure>)> {
        let results = self.told.iter().filter_map(|told| match told {
            Action::CommandDone { ticket, result } => Some((*ticket, result.clone())),
            _ => None,
        });
        results.collect()
    }

    pub(crate) fn offline(&self) -> Vec<OfflineReason> {
        let reasons = self.told.iter().filter_map(|told| match told {
            Action::Offline { reason } => Some(reason.clone()),
            _ => None,
        });
        reasons.collect()
    }

    pub(crate) fn ready(&self) -> Vec<RegId> {
        let ready = self.told.iter().filter_map(|told| match told {
            Action::Ready { regid, .. } => Some(*regid),
            _ => None,
        });
        ready.collect()
    }
}
