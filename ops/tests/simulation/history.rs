//! What happened, as the outside saw it: sends and their answers, changes of membership and theirs, and the apps'
//! callbacks. The checkers read nothing else.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Whom a send was for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    /// These devices, by registration, alias or user account.
    Devices(Vec<usize>),
    /// Every device.
    Everyone,
    /// Those with one of the topics.
    Union(Vec<usize>),
    /// Those with all of the topics.
    Intersection(Vec<usize>),
    /// Those with the first topic and none of the others.
    Except(Vec<usize>),
}

/// One send, numbered by its place in the history's list; the number is its payload.
#[derive(Debug, Clone)]
pub(crate) struct Send {
    pub(crate) target: Target,
    pub(crate) started: usize,
    /// When it was answered, and whether with "ok". `None`: no answer.
    pub(crate) answered: Option<(usize, bool)>,
    /// Sent with so short a life that it may expire before it can be delivered.
    pub(crate) short_lived: bool,
}

/// One change of membership.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) device: usize,
    pub(crate) topic: usize,
    pub(crate) subscribe: bool,
    pub(crate) started: usize,
    pub(crate) answered: Option<(usize, bool)>,
}

/// Push switched on or off by a device.
#[derive(Debug, Clone)]
pub(crate) struct Switch {
    pub(crate) device: usize,
    pub(crate) on: bool,
    pub(crate) started: usize,
    pub(crate) answered: Option<(usize, bool)>,
}

/// A device ended its registration and made another, with its alias and user account and without topics.
#[derive(Debug, Clone)]
pub(crate) struct Rebirth {
    pub(crate) device: usize,
    pub(crate) started: usize,
    pub(crate) over: Option<usize>,
}

/// All of it. `usize` times are places in one order of events.
#[derive(Debug, Default)]
pub(crate) struct Events {
    now: usize,
    pub(crate) sends: Vec<Send>,
    pub(crate) changes: Vec<Change>,
    pub(crate) switches: Vec<Switch>,
    pub(crate) rebirths: Vec<Rebirth>,
    /// (device, send) → when its callback ran.
    pub(crate) callbacks: BTreeMap<(usize, usize), Vec<usize>>,
}

/// A shared history.
#[derive(Clone, Default)]
pub(crate) struct History(Arc<Mutex<Events>>);

impl History {
    pub(crate) fn events(&self) -> MutexGuard<'_, Events> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn send_starts(&self, target: Target, short_lived: bool) -> usize {
        let mut events = self.events();
        let started = events.tick();
        events.sends.push(Send { target, started, answered: None, short_lived });
        events.sends.len() - 1
    }

    pub(crate) fn send_answered(&self, send: usize, ok: bool) {
        let mut events = self.events();
        let now = events.tick();
        events.sends[send].answered = Some((now, ok));
    }

    pub(crate) fn change_starts(&self, device: usize, topic: usize, subscribe: bool) -> usize {
        let mut events = self.events();
        let started = events.tick();
        events.changes.push(Change { device, topic, subscribe, started, answered: None });
        events.changes.len() - 1
    }

    pub(crate) fn change_answered(&self, change: usize, ok: bool) {
        let mut events = self.events();
        let now = events.tick();
        events.changes[change].answered = Some((now, ok));
    }

    pub(crate) fn switch_starts(&self, device: usize, on: bool) -> usize {
        let mut events = self.events();
        let started = events.tick();
        events.switches.push(Switch { device, on, started, answered: None });
        events.switches.len() - 1
    }

    pub(crate) fn switch_answered(&self, switch: usize, ok: bool) {
        let mut events = self.events();
        let now = events.tick();
        events.switches[switch].answered = Some((now, ok));
    }

    pub(crate) fn rebirth_starts(&self, device: usize) -> usize {
        let mut events = self.events();
        let started = events.tick();
        events.rebirths.push(Rebirth { device, started, over: None });
        events.rebirths.len() - 1
    }

    pub(crate) fn rebirth_over(&self, rebirth: usize) {
        let mut events = self.events();
        let now = events.tick();
        events.rebirths[rebirth].over = Some(now);
    }

    pub(crate) fn callback(&self, device: usize, send: usize) {
        let mut events = self.events();
        let now = events.tick();
        events.callbacks.entry((device, send)).or_default().push(now);
    }
}

impl Events {
    fn tick(&mut self) -> usize {
        self.now += 1;
        self.now
    }
}
