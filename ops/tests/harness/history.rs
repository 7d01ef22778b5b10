//! A stream of sends, what was answered to each, what apps were called back with, and an independent judge of all that.
//!
//! The judge knows what was promised (design §8) and nothing of the code: it reads what senders and apps wrote down.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::harness::app_server::{Answer, AppServer};

/// A sender that got no acceptance tries the next send this much later: the server may be starting.
const AFTER_A_FAILURE: Duration = Duration::from_millis(10);

/// Where sends go.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Path of the API.
    pub(crate) path: &'static str,
    /// The parameter that names the target, and the name.
    pub(crate) parameter: (&'static str, String),
    /// Parameters that go with each send.
    pub(crate) more: Vec<(&'static str, String)>,
    /// The devices that it means.
    pub(crate) devices: BTreeSet<usize>,
    /// What one sender sends to it must arrive in that order: so it is for registrations, not for broadcasts.
    pub(crate) ordered: bool,
}

/// One send. Its payload is unlike every other's.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    /// Who sent it: one sender's sends are one after the other.
    pub(crate) sender: usize,
    pub(crate) target: Target,
    pub(crate) payload: String,
    /// What came of it; `None` while it is under way.
    pub(crate) answer: Option<Answer>,
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Violation {
    /// Answered with code 0, and an app that it was for was not called back.
    Lost { payload: String, device: usize },
    /// An app was called back more than once.
    Repeated { payload: String, device: usize, times: usize },
    /// An app was called back with what was never sent to it.
    Misdirected { payload: String, device: usize },
    /// One sender sent `first` to the registration and then, after its answer, `second`.
    Reordered { first: String, second: String, device: usize },
}

/// All sends of a test. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct History(Arc<Mutex<Vec<Sent>>>);

/// Threads that send as often as they are allowed to, until they are told to stop. Dropping it tells them.
///
/// They are allowed a number of sends and not a time, so that a slow machine does not make more of them: a device knows
/// its last 1,000 messages again, and a test must stay below that.
pub(crate) struct Senders {
    pub(crate) history: History,
    allowance: Arc<Allowance>,
    threads: Vec<JoinHandle<()>>,
}

/// How many sends may still be made; `None`: never again.
struct Allowance {
    left: Mutex<Option<usize>>,
    changed: Condvar,
    /// How many were allowed in all.
    total: AtomicUsize,
}

/// Sends are allowed at a rate as long as this lives.
pub(crate) struct Flow {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Target {
    /// One registration.
    pub(crate) fn regid(regid: &str, device: usize) -> Self {
        Self::single("/v3/message/regid", ("registration_id", regid.to_owned()), [device].into())
    }

    /// Several registrations in one request.
    pub(crate) fn regids(regids: &[String]) -> Self {
        Self::single("/v3/message/regid", ("registration_id", regids.join(",")), (0..regids.len()).collect())
    }

    /// An alias that these devices have.
    pub(crate) fn alias(alias: &str, devices: BTreeSet<usize>) -> Self {
        Self::single("/v3/message/alias", ("alias", alias.to_owned()), devices)
    }

    /// A topic that these devices are subscribed to.
    pub(crate) fn topic(topic: &str, devices: BTreeSet<usize>) -> Self {
        let single = Self::single("/v3/message/topic", ("topic", topic.to_owned()), devices);
        Self { ordered: false, ..single }
    }

    fn single(path: &'static str, parameter: (&'static str, String), devices: BTreeSet<usize>) -> Self {
        Self { path, parameter, more: Vec::new(), devices, ordered: true }
    }

    /// With a parameter more.
    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.more.push((name, value.to_owned()));
        self
    }
}

impl History {
    fn sends(&self) -> MutexGuard<'_, Vec<Sent>> {
        // Nothing panics while holding it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of it, as it is now.
    pub(crate) fn all(&self) -> Vec<Sent> {
        self.sends().clone()
    }

    /// How many sends were accepted.
    pub(crate) fn accepted(&self) -> usize {
        self.sends().iter().filter(|sent| sent.is_accepted()).count()
    }

    /// How many sends were tried, and are not under way any more.
    pub(crate) fn tried(&self) -> usize {
        self.sends().iter().filter(|sent| sent.answer.is_some()).count()
    }

    /// How many callbacks the accepted sends must lead to at a device, at least.
    pub(crate) fn deliveries(&self, device: usize) -> usize {
        let concerns = |sent: &&Sent| sent.is_accepted() && sent.target.devices.contains(&device);
        self.sends().iter().filter(concerns).count()
    }

    /// Sends once and writes it down.
    pub(crate) fn send(&self, as_server: &AppServer, sender: usize, target: &Target) -> Answer {
        let (number, payload) = {
            let mut sends = self.sends();
            let payload = format!("{sender}:{}", sends.len());
            sends.push(Sent { sender, target: target.clone(), payload: payload.clone(), answer: None });
            (sends.len() - 1, payload)
        };
        let (name, value) = &target.parameter;
        let more = target.more.iter().map(|(name, value)| (*name, value.as_str()));
        let form: Vec<_> = [(*name, value.as_str()), ("payload", &payload)].into_iter().chain(more).collect();
        let answer = as_server.try_send(target.path, &form);
        if let Some(sent) = self.sends().get_mut(number) {
            sent.answer = Some(answer);
        }
        answer
    }
}

impl Sent {
    fn is_accepted(&self) -> bool {
        matches!(self.answer, Some(Answer::Accepted(_)))
    }
}

impl Allowance {
    fn left(&self) -> MutexGuard<'_, Option<usize>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a send to be allowed; `false` if none will be.
    fn take(&self) -> bool {
        let none = |left: &mut Option<usize>| *left == Some(0);
        let mut left = self.changed.wait_while(self.left(), none).unwrap_or_else(PoisonError::into_inner);
        let Some(left) = left.as_mut() else { return false };
        *left -= 1;
        true
    }

    fn add(&self, sends: usize) {
        self.total.fetch_add(sends, Ordering::SeqCst);
        self.change(|left| Some(left + sends));
    }

    fn change(&self, with: impl FnOnce(usize) -> Option<usize>) {
        let mut left = self.left();
        *left = left.and_then(with);
        drop(left);
        self.changed.notify_all();
    }
}

impl Senders {
    /// One thread for each plan: it sends to the plan's targets in turn, one send after the other's answer.
    pub(crate) fn start(app_server: &AppServer, plans: Vec<Vec<Target>>) -> Self {
        Self::start_through(std::slice::from_ref(app_server), plans)
    }

    /// The same with several ways to send, which the plans take in turn. One plan keeps to one way.
    pub(crate) fn start_through(app_servers: &[AppServer], plans: Vec<Vec<Target>>) -> Self {
        let history = History::default();
        let (left, changed, total) = (Mutex::new(Some(0)), Condvar::new(), AtomicUsize::new(0));
        let allowance = Arc::new(Allowance { left, changed, total });
        let threads = plans.into_iter().enumerate().map(|(sender, plan)| {
            let app_server = app_servers[sender % app_servers.len()].clone();
            let (history, allowance) = (history.clone(), Arc::clone(&allowance));
            thread::spawn(move || {
                for target in plan.iter().cycle() {
                    if !allowance.take() {
                        return;
                    }
                    if !matches!(history.send(&app_server, sender, target), Answer::Accepted(_)) {
                        thread::sleep(AFTER_A_FAILURE);
                    }
                }
            })
        });
        let threads = threads.collect();
        Self { history, allowance, threads }
    }

    /// Allows so many more sends to be tried, by all of them together.
    pub(crate) fn allow(&mut self, sends: usize) {
        self.allowance.add(sends);
    }

    /// Allows so many more sends now and every time that this has passed, until what is returned is dropped. So sends go on
    /// through an outage, however soon it lets each of them fail.
    pub(crate) fn flow(&self, sends: usize, every: Duration) -> Flow {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let (allowance, stopped) = (Arc::clone(&self.allowance), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let (stopped, changed) = &*stopped;
            let mut stop = stopped.lock().unwrap_or_else(PoisonError::into_inner);
            while !*stop {
                allowance.add(sends);
                stop = changed.wait_timeout(stop, every).unwrap_or_else(PoisonError::into_inner).0;
            }
        });
        Flow { stop, thread: Some(thread) }
    }

    /// Takes away what was allowed and not used: during an outage senders can't keep up.
    pub(crate) fn halt(&self) {
        let total = &self.allowance.total;
        self.allowance.change(|left| {
            total.fetch_sub(left, Ordering::SeqCst);
            Some(0)
        });
    }

    /// True when every send that was allowed has been accepted.
    pub(crate) fn are_done(&self) -> bool {
        self.history.accepted() == self.allowance.total.load(Ordering::SeqCst)
    }

    /// True when every send that was allowed has been tried, whatever came of it.
    pub(crate) fn are_idle(&self) -> bool {
        self.history.tried() == self.allowance.total.load(Ordering::SeqCst)
    }

    /// Stops them, waits for the last answers and returns what they did.
    pub(crate) fn stop(mut self) -> History {
        self.allowance.change(|_| None);
        for thread in self.threads.drain(..) {
            thread.join().expect("a sender does not panic");
        }
        self.history.clone()
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Senders {
    fn drop(&mut self) {
        self.allowance.change(|_| None);
    }
}

/// Everything that is wrong. `callbacks` are the payloads with which each device's app was called back, in order; nothing
/// may be under way any more.
pub(crate) fn judge(sends: &[Sent], callbacks: &[Vec<String>]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let by_payload: BTreeMap<&str, &Sent> = sends.iter().map(|sent| (sent.payload.as_str(), sent)).collect();
    for (device, callbacks) in callbacks.iter().enumerate() {
        let mut times: BTreeMap<&str, usize> = BTreeMap::new();
        for payload in callbacks {
            *times.entry(payload).or_default() += 1;
        }
        for (payload, times) in &times {
            let payload = (*payload).to_owned();
            if !by_payload.get(payload.as_str()).is_some_and(|sent| sent.target.devices.contains(&device)) {
                violations.push(Violation::Misdirected { payload, device });
            } else if *times > 1 {
                violations.push(Violation::Repeated { payload, device, times: *times });
            }
        }
        let must_arrive = |sent: &&Sent| sent.is_accepted() && sent.target.devices.contains(&device);
        for sent in sends.iter().filter(must_arrive).filter(|sent| !times.contains_key(sent.payload.as_str())) {
            violations.push(Violation::Lost { payload: sent.payload.clone(), device });
        }
        violations.extend(reordered(device, sends, callbacks));
    }
    violations
}

/// Accepted sends that one sender made to the device's registration, and that arrived the other way round. Each is compared
/// with the one that came before it, which finds some pair wherever there is any.
fn reordered(device: usize, sends: &[Sent], callbacks: &[String]) -> Vec<Violation> {
    let mut first_at: BTreeMap<&str, usize> = BTreeMap::new();
    for (at, payload) in callbacks.iter().enumerate() {
        first_at.entry(payload).or_insert(at);
    }
    let mut last: BTreeMap<usize, (&Sent, usize)> = BTreeMap::new();
    let mut violations = Vec::new();
    // A sender's sends are in the history in the order in which it made them.
    for sent in sends.iter().filter(|sent| sent.target.ordered && sent.is_accepted()) {
        let Some(at) = first_at.get(sent.payload.as_str()) else { continue };
        if let Some((earlier, earlier_at)) = last.insert(sent.sender, (sent, *at))
            && *at < earlier_at
        {
            let (first, second) = (earlier.payload.clone(), sent.payload.clone());
            violations.push(Violation::Reordered { first, second, device });
        }
    }
    violations
}
