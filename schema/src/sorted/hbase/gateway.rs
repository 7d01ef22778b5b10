//! The gateways: connections, retries, and which of them are left alone for a while.
//!
//! Every thread has one connection at a time, kept while it works. It is dropped after any error but a typed exception of
//! HBase's, because what comes next on it would be unknown.
//!
//! **Breakers.** A gateway that fails several times in a row is left alone: its breaker is open, and whoever would use it
//! goes to another, or is told at once when there is none. A thread for each gateway tries it again after a back-off with
//! jitter, by reading from HBase through it, and closes the breaker when that works; callers never probe. It also asks a
//! gateway that nobody has used for a while, so that what [`HbaseStore::state`](super::HbaseStore::state) says is fresh and
//! recovery needs nobody.

use std::io;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hbase_thrift::hbase::{AlreadyExists, IOError, IllegalArgument, THbaseSyncClient as _};
use idl::clock::SharedEntropy;
use tokio::time::Instant;

use super::wire::{self, Client, Deadline};
use super::{GatewayState, HbaseMetrics, HbaseOptions, tables};

/// A gateway that nobody asked anything for so long is asked by us.
const PROBE_EVERY: Duration = Duration::from_secs(2);
const BACK_OFF_MIN: Duration = Duration::from_millis(200);
const BACK_OFF_MAX: Duration = Duration::from_secs(5);
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(20);
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(500);
/// What an operator reads of an error.
const REASON_CHARS_MAX: usize = 300;

/// Why a call was not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CallError {
    /// HBase said no; `lasting` if it would say so again.
    Refused { reason: String, lasting: bool },
    /// The answer is larger than we read.
    TooLarge(String),
    /// The connection failed in the middle: the call may have happened.
    Lost(String),
    /// No gateway was reached: nothing happened.
    Unreached(String),
}

impl CallError {
    pub(super) fn reason(&self) -> &str {
        match self {
            Self::Refused { reason, .. } | Self::TooLarge(reason) | Self::Lost(reason) | Self::Unreached(reason) => {
                reason
            }
        }
    }

    pub(super) fn is_lasting(&self) -> bool {
        matches!(self, Self::Refused { lasting: true, .. })
    }
}

/// Why an operation failed in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) error: CallError,
    /// Whether any attempt may have reached HBase.
    pub(super) sent: bool,
}

/// The gateways and what is known of them. Shared by all threads of a store.
pub(super) struct Gateways {
    options: HbaseOptions,
    entropy: SharedEntropy,
    metrics: Arc<HbaseMetrics>,
    all: Vec<Gateway>,
    closed: AtomicBool,
}

struct Gateway {
    address: String,
    open: AtomicBool,
    breaker: Mutex<Breaker>,
    /// Rings when the breaker opens and when the store is closed.
    bell: Condvar,
}

#[derive(Default)]
struct Breaker {
    /// In a row.
    failures: u32,
    /// Openings in a row.
    openings: u32,
    probe_at: Option<Instant>,
    last_success: Option<Instant>,
    last_failure: Option<(Instant, String)>,
}

impl Gateway {
    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }
}

impl Gateways {
    pub(super) fn new(options: HbaseOptions, entropy: SharedEntropy, metrics: Arc<HbaseMetrics>) -> Arc<Self> {
        let gateway = |address: &String| Gateway {
            address: address.clone(),
            open: AtomicBool::new(false),
            breaker: Mutex::default(),
            bell: Condvar::new(),
        };
        let all = options.gateways.iter().map(gateway).collect();
        Arc::new(Self { options, entropy, metrics, all, closed: AtomicBool::new(false) })
    }

    pub(super) fn options(&self) -> &HbaseOptions {
        &self.options
    }

    pub(super) fn metrics(&self) -> &HbaseMetrics {
        &self.metrics
    }

    pub(super) fn entropy(&self) -> &SharedEntropy {
        &self.entropy
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn state(&self) -> Vec<GatewayState> {
        let now = Instant::now();
        let state = |gateway: &Gateway| {
            let breaker = gateway.breaker();
            GatewayState {
                address: gateway.address.clone(),
                open: gateway.is_open(),
                last_success: breaker.last_success.map(|at| now.saturating_duration_since(at)),
                last_failure: breaker.last_failure.clone().map(|(at, why)| (now.saturating_duration_since(at), why)),
            }
        };
        self.all.iter().map(state).collect()
    }

    pub(super) fn is_any_closed(&self) -> bool {
        self.all.iter().any(|gateway| !gateway.is_open())
    }

    fn succeeded(&self, place: usize) {
        let Some(gateway) = self.all.get(place) else { return };
        let mut breaker = gateway.breaker();
        (breaker.failures, breaker.openings, breaker.probe_at) = (0, 0, None);
        breaker.last_success = Some(Instant::now());
        if gateway.open.swap(false, Ordering::Relaxed) {
            tracing::info!(gateway = gateway.address, "the HBase gateway answers again");
        }
    }

    fn failed(&self, place: usize, reason: &str, counts: bool) {
        let Some(gateway) = self.all.get(place) else { return };
        let mut breaker = gateway.breaker();
        let now = Instant::now();
        breaker.last_failure = Some((now, reason.to_owned()));
        if !counts {
            return;
        }
        breaker.failures = breaker.failures.saturating_add(1);
        // While it is open only the probe may say how it goes on; calls that were under way say nothing new.
        if breaker.failures < self.options.breaker_failures.max(1) || gateway.is_open() {
            return;
        }
        self.open(gateway, &mut breaker, now);
        tracing::warn!(gateway = gateway.address, reason, "the HBase gateway fails and is left alone for a while");
        gateway.bell.notify_all();
    }

    fn open(&self, gateway: &Gateway, breaker: &mut Breaker, now: Instant) {
        let back_off = BACK_OFF_MIN.saturating_mul(1 << breaker.openings.min(10)).min(BACK_OFF_MAX);
        breaker.openings = breaker.openings.saturating_add(1);
        breaker.probe_at = Some(now + self.jittered(back_off));
        if !gateway.open.swap(true, Ordering::Relaxed) {
            self.metrics.breakers_opened.add(1);
        }
    }

    /// Between half of it and all.
    fn jittered(&self, time: Duration) -> Duration {
        let half = time / 2;
        let micros = u64::try_from(half.as_micros()).unwrap_or(u64::MAX);
        half + Duration::from_micros(self.entropy.below(micros.saturating_add(1)))
    }

    /// Watches one gateway until the store is closed. Runs on a thread of its own.
    pub(super) fn watch(self: &Arc<Self>, place: usize) {
        let Some(gateway) = self.all.get(place) else { return };
        let begun = Instant::now();
        loop {
            let mut breaker = gateway.breaker();
            loop {
                if self.closed.load(Ordering::Relaxed) {
                    return;
                }
                let now = Instant::now();
                let asked = [breaker.last_success, breaker.last_failure.as_ref().map(|(at, _)| *at)];
                let due = breaker
                    .probe_at
                    .unwrap_or_else(|| asked.into_iter().flatten().max().unwrap_or(begun) + PROBE_EVERY);
                let left = due.saturating_duration_since(now);
                if left.is_zero() {
                    break;
                }
                breaker = gateway.bell.wait_timeout(breaker, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            drop(breaker);
            let probed = self.probe(place);
            match probed {
                Ok(()) => self.succeeded(place),
                Err(error) => {
                    self.failed(place, error.reason(), true);
                    let mut breaker = gateway.breaker();
                    if gateway.is_open() && breaker.probe_at.is_none_or(|at| at <= Instant::now()) {
                        self.open(gateway, &mut breaker, Instant::now());
                    }
                }
            }
        }
    }

    /// Reads from HBase through this gateway, on a connection for this alone.
    fn probe(&self, place: usize) -> Result<(), CallError> {
        let mut connection = self.connect(place)?;
        connection.deadline.set(Instant::now() + self.options.read_timeout);
        let (table, row) = (tables::meta(&self.options.prefix), tables::VERSION_ROW.to_vec());
        match connection.client.get_row(table, row, super::cells::Attributes::new()).map_err(call_error) {
            // It is HBase that says so: it is there. What opens the store says what is missing.
            Err(error) if error.is_lasting() => Ok(()),
            answer => answer.map(drop),
        }
    }

    fn connect(&self, place: usize) -> Result<Connection, CallError> {
        let gateway = self.all.get(place).ok_or_else(|| CallError::Unreached("no such gateway".to_owned()))?;
        let address = gateway.address.as_str();
        let unreached = |error: io::Error| CallError::Unreached(format!("{address}: {error}"));
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for at in address.to_socket_addrs().map_err(unreached)? {
            match TcpStream::connect_timeout(&at, self.options.connect_timeout) {
                Ok(socket) => {
                    let (client, deadline) =
                        wire::client(socket, self.options.transport, self.options.response_bytes_max)
                            .map_err(unreached)?;
                    return Ok(Connection { place, client, deadline, used: None });
                }
                Err(error) => last = error,
            }
        }
        Err(unreached(last))
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        for gateway in &self.all {
            // Under the lock, or a watcher that is about to wait would miss it.
            let _breaker = gateway.breaker();
            gateway.bell.notify_all();
        }
    }
}

struct Connection {
    place: usize,
    client: Client,
    deadline: Deadline,
    /// When it last answered.
    used: Option<Instant>,
}

/// One thread's way to HBase.
pub(super) struct Link {
    gateways: Arc<Gateways>,
    connection: Option<Connection>,
    /// The gateway to begin with.
    place: usize,
}

impl Link {
    /// `place` spreads the threads over the gateways.
    pub(super) fn new(gateways: Arc<Gateways>, place: usize) -> Self {
        Self { gateways, connection: None, place }
    }

    /// Calls, and again on another connection while that may help and time is left. `call` must be safe to repeat.
    pub(super) fn retry<T>(
        &mut self,
        until: Instant,
        mut call: impl FnMut(&mut Client) -> thrift017::Result<T>,
    ) -> Result<T, Failed> {
        let mut sent = false;
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            let error = match self.once(until, &mut call) {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            sent |= !matches!(error, CallError::Unreached(_));
            let hopeless = error.is_lasting()
                || matches!(error, CallError::TooLarge(_))
                || (matches!(error, CallError::Unreached(_)) && !self.gateways.is_any_closed());
            // The first attempt elsewhere is made at once.
            let first = pause == RETRY_PAUSE_MIN;
            let wait = if first { Duration::ZERO } else { self.gateways.jittered(pause) };
            if hopeless || Instant::now() + wait >= until {
                return Err(Failed { error, sent });
            }
            self.gateways.metrics.retries.add(1);
            std::thread::sleep(wait);
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }

    /// Calls once.
    fn once<T>(
        &mut self,
        until: Instant,
        call: impl FnOnce(&mut Client) -> thrift017::Result<T>,
    ) -> Result<T, CallError> {
        let connection = match self.connection.take().filter(|connection| self.fits(connection)) {
            Some(connection) => connection,
            None => self.connect()?,
        };
        let answer = self.on(connection, until, call);
        // What HBase can't do through one gateway, it may through another.
        if matches!(answer, Err(CallError::Refused { lasting: false, .. })) && self.gateways.len() > 1 {
            self.connection = None;
        }
        answer
    }

    /// Calls once, on the connection of the call before, or not at all: for what lives in one gateway.
    pub(super) fn again<T>(
        &mut self,
        until: Instant,
        call: impl FnOnce(&mut Client) -> thrift017::Result<T>,
    ) -> Result<T, CallError> {
        let connection = self.connection.take().ok_or_else(|| CallError::Lost(ENDED.to_owned()))?;
        self.on(connection, until, call)
    }

    fn on<T>(
        &mut self,
        mut connection: Connection,
        until: Instant,
        call: impl FnOnce(&mut Client) -> thrift017::Result<T>,
    ) -> Result<T, CallError> {
        let place = connection.place;
        let now = Instant::now();
        connection.deadline.set(until.min(now + self.gateways.options.read_timeout));
        let answer = call(&mut connection.client).map_err(call_error);
        match &answer {
            Ok(_) => self.gateways.succeeded(place),
            Err(CallError::Refused { lasting: true, .. } | CallError::TooLarge(_)) => {}
            Err(error) => {
                // A connection that was good and has ended says little: the gateway may have been started anew.
                let ended = matches!(error, CallError::Lost(reason) if reason.starts_with(ENDED));
                self.gateways.failed(place, error.reason(), !(ended && connection.used.is_some()));
                if !ended {
                    self.place = place + 1;
                }
            }
        }
        if matches!(answer, Ok(_) | Err(CallError::Refused { .. })) {
            connection.used = Some(now);
            self.connection = Some(connection);
        }
        answer
    }

    fn fits(&self, connection: &Connection) -> bool {
        let idle = connection.used.is_some_and(|at| at.elapsed() >= self.gateways.options.idle_max);
        let open = self.gateways.all.get(connection.place).is_none_or(Gateway::is_open);
        !idle && !open
    }

    fn connect(&mut self) -> Result<Connection, CallError> {
        let mut last = None;
        for step in 0..self.gateways.len() {
            let place = (self.place + step) % self.gateways.len();
            if self.gateways.all.get(place).is_none_or(Gateway::is_open) {
                continue;
            }
            match self.gateways.connect(place) {
                Ok(connection) => {
                    self.place = place;
                    self.gateways.metrics.connections.add(1);
                    return Ok(connection);
                }
                Err(error) => {
                    self.gateways.failed(place, error.reason(), true);
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| CallError::Unreached(self.gateways.why_none())))
    }
}

impl Gateways {
    /// Why no gateway is used.
    fn why_none(&self) -> String {
        let reasons = self.all.iter().filter_map(|gateway| {
            let breaker = gateway.breaker();
            breaker.last_failure.as_ref().map(|(_, reason)| reason.clone())
        });
        let reasons: Vec<_> = reasons.collect();
        if reasons.is_empty() { "no HBase gateway is configured".to_owned() } else { reasons.join("; ") }
    }
}

/// How the reason starts when the connection was ended by the other side.
const ENDED: &str = "the connection ended";

/// What an error of the Thrift library means.
fn call_error(error: thrift017::Error) -> CallError {
    use thrift017::TransportErrorKind as Kind;
    if wire::is_too_large(&error) {
        return CallError::TooLarge(error.to_string());
    }
    match error {
        thrift017::Error::User(error) => {
            if let Some(error) = error.downcast_ref::<IOError>() {
                let reason = first_line(error.message.as_deref());
                // Its `can_retry` is true even for malformed input.
                let lasting = LASTING.iter().any(|name| reason.contains(name));
                CallError::Refused { reason, lasting }
            } else if let Some(error) = error.downcast_ref::<IllegalArgument>() {
                CallError::Refused { reason: first_line(error.message.as_deref()), lasting: true }
            } else if let Some(error) = error.downcast_ref::<AlreadyExists>() {
                CallError::Refused { reason: first_line(error.message.as_deref()), lasting: true }
            } else {
                CallError::Lost(first_line(Some(&error.to_string())))
            }
        }
        thrift017::Error::Transport(error) => {
            let timed_out = error.kind == Kind::TimedOut || error.message.contains("in time");
            let text = first_line(Some(&error.message));
            CallError::Lost(if timed_out { text } else { format!("{ENDED}: {text}") })
        }
        error => CallError::Lost(first_line(Some(&error.to_string()))),
    }
}

/// Exceptions that come again however often one asks.
const LASTING: [&str; 7] = [
    "TableNotFoundException",
    "TableNotEnabledException",
    "TableExistsException",
    "NoSuchColumnFamilyException",
    "AccessDeniedException",
    "IllegalArgumentException",
    "DoNotRetryIOException",
];

/// The gateway sends whole stack traces.
fn first_line(message: Option<&str>) -> String {
    let line = message.unwrap_or_default().lines().next().unwrap_or_default();
    if line.is_empty() { "HBase gave no reason".to_owned() } else { line.chars().take(REASON_CHARS_MAX).collect() }
}
