//! A tokio task around [`Core`]: it owns the connection and the timers, and nothing else.
//!
//! Time comes from tokio, so that a test that pauses it owns it. All queues are bounded: what an application does not take
//! from [`DeviceHandle::events`] makes the task stop reading from the server, which then holds messages back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::{Future, pending};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use idl::error::{Code, Failure};
use idl::ids::{AppId, MessageId, RegId};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, warn};

use crate::commands::Command;
use crate::core::{Action, Core, Event};
use crate::inbox::Push;
use crate::reason::OfflineReason;
use crate::reconnect::millis;
use crate::saved::Saved;

pub mod tls;

/// Events that wait for the application, in the channel and again in the task, before reading stops.
const EVENTS_MAX: usize = 64;
/// Requests that wait for the task.
const REQUESTS_MAX: usize = 64;
/// Bytes that wait for the server before reading stops.
const UNSENT_BYTES_MAX: usize = 64 * 1024;
/// Bytes read at once.
const READ_BYTES: usize = 8 * 1024;
/// How long the last bytes may take when a connection is closed.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(1);

/// Opens connections. Any closure that returns a stream will do:
/// `|| async { Ok(in_memory_stream()) }`.
pub trait Connector: Send + Sync + 'static {
    /// What it opens: a secure stream, on which XMPP can begin.
    type Stream: AsyncRead + AsyncWrite + Send + 'static;

    /// Opens one. Dropped when it takes longer than `Config::login_time_max`.
    fn connect(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl<F, Fut, S> Connector for F
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = io::Result<S>> + Send,
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    type Stream = S;

    fn connect(&self) -> impl Future<Output = io::Result<S>> + Send {
        self()
    }
}

/// What a device tells its application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceEvent {
    /// For an app; answer with [`DeviceControl::handled`] or [`DeviceControl::refused`].
    Push(Box<Push>),
    /// An app is registered and reachable.
    Ready {
        /// Which app.
        app: AppId,
        /// Its registration.
        regid: RegId,
    },
    /// An app could not be registered.
    RegisterFailed {
        /// Which app.
        app: AppId,
        /// Why.
        failure: Failure,
    },
    /// A push that the app has had is taken back: its notification should go, if no other has replaced it.
    Revoked {
        /// Which app.
        app: AppId,
        /// Which push.
        id: MessageId,
    },
    /// An app's registration is gone; a new one is being made.
    Invalidated {
        /// Which app.
        app: AppId,
    },
    /// There is no connection; the device comes back by itself.
    Offline {
        /// Why.
        reason: OfflineReason,
    },
    /// The token is refused: see [`DeviceControl::renew_token`].
    LoggedOut {
        /// The server's word for it.
        reason: String,
    },
    /// [`Saved::to_bytes`], to be kept. Only the newest counts.
    Save(Vec<u8>),
}

/// A device that runs as a tokio task.
#[derive(Debug)]
pub struct Device;

impl Device {
    /// Starts the task. It ends with [`DeviceHandle::stop`], or when the handle and all its controls are dropped.
    pub fn spawn<C: Connector>(core: Core, connector: C) -> DeviceHandle {
        let (events_in, events) = mpsc::channel(EVENTS_MAX);
        let (requests, requests_out) = mpsc::channel(REQUESTS_MAX);
        let shared = Arc::new(Shared::default());
        let task = Task {
            core,
            started: Instant::now(),
            shared: Arc::clone(&shared),
            waiting: BTreeMap::new(),
            ticket: 0,
            backlog: VecDeque::new(),
        };
        let task = tokio::spawn(task.run(connector, requests_out, events_in));
        DeviceHandle { events, control: DeviceControl { requests, shared }, task }
    }
}

/// The application's end of a running device.
#[derive(Debug)]
pub struct DeviceHandle {
    /// What happens, in order. Not taking from it holds the server back.
    pub events: mpsc::Receiver<DeviceEvent>,
    control: DeviceControl,
    task: JoinHandle<Saved>,
}

impl DeviceHandle {
    /// A control that can be cloned and used elsewhere while events are taken here.
    pub fn control(&self) -> DeviceControl {
        self.control.clone()
    }

    /// [`DeviceControl::command`]. Events should be taken meanwhile if many are expected.
    pub async fn command(&self, app: AppId, command: Command) -> Result<(), Failure> {
        self.control.command(app, command).await
    }

    /// [`DeviceControl::handled`].
    pub fn handled(&self, app: &AppId, id: MessageId) {
        self.control.handled(app, id);
    }

    /// Sends the acknowledgements that wait, ends the stream and returns what must be kept. Events that were not taken
    /// are dropped: their pushes are not acknowledged.
    pub async fn stop(self) -> Saved {
        // An error means that the task has ended already.
        let _ = self.control.requests.send(Request::Stop).await;
        drop(self.events);
        match self.task.await {
            Ok(saved) => saved,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Ends the task where it stands, as if the process had been killed: nothing is sent any more. What must be kept is
    /// what the last [`DeviceEvent::Save`] held.
    pub fn kill(self) {
        self.task.abort();
    }
}

/// Says things to a running device. Clones say them to the same one.
#[derive(Debug, Clone)]
pub struct DeviceControl {
    requests: mpsc::Sender<Request>,
    shared: Arc<Shared>,
}

impl DeviceControl {
    /// Asks for something and waits for the result, which comes within `Config::command_time_max`.
    pub async fn command(&self, app: AppId, command: Command) -> Result<(), Failure> {
        let (answer, result) = oneshot::channel();
        if self.requests.send(Request::Command { app, command, answer }).await.is_err() {
            return Err(ended());
        }
        result.await.unwrap_or_else(|_| Err(ended()))
    }

    /// The app has the push for good: it is acknowledged. Repeating it does nothing.
    pub fn handled(&self, app: &AppId, id: MessageId) {
        self.shared.settle(app, id, true);
    }

    /// The app could not take the push: it is reported, and comes again when the channel is opened next.
    pub fn refused(&self, app: &AppId, id: MessageId) {
        self.shared.settle(app, id, false);
    }

    /// The user tapped the notification.
    pub async fn clicked(&self, app: AppId, id: MessageId) {
        let _ = self.requests.send(Request::Clicked { app, id }).await;
    }

    /// A new token for the account, for now and for every login to come.
    pub async fn renew_token(&self, token: String) {
        let _ = self.requests.send(Request::TokenRenewed(token)).await;
    }

    /// The network is back: a device that waits to reconnect does so now.
    pub async fn reconnect_now(&self) {
        let _ = self.requests.send(Request::Start).await;
    }
}

enum Request {
    Command { app: AppId, command: Command, answer: oneshot::Sender<Result<(), Failure>> },
    Clicked { app: AppId, id: MessageId },
    TokenRenewed(String),
    Start,
    Stop,
}

/// What the application said of pushes. Bounded, since only pushes that it holds are taken.
#[derive(Debug, Default)]
struct Shared {
    settled: Mutex<Settled>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Settled {
    held: BTreeSet<(AppId, MessageId)>,
    /// true: handled; false: refused.
    done: Vec<(AppId, MessageId, bool)>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Settled> {
        // Nothing panics while holding it, and a half-done change can't be seen.
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, app: &AppId, id: MessageId, handled: bool) {
        let push = (app.clone(), id);
        let mut settled = self.lock();
        if settled.held.remove(&push) {
            settled.done.push((push.0, push.1, handled));
            drop(settled);
            self.changed.notify_one();
        }
    }
}

struct Connection<S> {
    read: ReadHalf<S>,
    outgoing: Outgoing<S>,
}

struct Outgoing<S> {
    write: WriteHalf<S>,
    /// Bytes that wait to be written.
    unsent: Vec<u8>,
    /// Bytes were written since the last flush.
    unflushed: bool,
}

struct Task {
    core: Core,
    started: Instant,
    shared: Arc<Shared>,
    waiting: BTreeMap<u64, oneshot::Sender<Result<(), Failure>>>,
    ticket: u64,
    /// Events that the application's channel had no room for.
    backlog: VecDeque<DeviceEvent>,
}

type Connecting<'a, S> = Pin<Box<dyn Future<Output = io::Result<S>> + Send + 'a>>;

impl Task {
    async fn run<C: Connector>(
        mut self,
        connector: C,
        mut requests: mpsc::Receiver<Request>,
        events: mpsc::Sender<DeviceEvent>,
    ) -> Saved {
        let shared = Arc::clone(&self.shared);
        let mut connecting: Option<Connecting<'_, C::Stream>> = None;
        let mut connection: Option<Connection<C::Stream>> = None;
        let mut buffer = vec![0; READ_BYTES];
        self.handle(Event::Start);
        loop {
            while let Some(action) = self.core.poll() {
                match action {
                    Action::Connect => connecting = Some(Box::pin(connector.connect())),
                    Action::Send(bytes) => {
                        if let Some(connection) = &mut connection {
                            connection.outgoing.unsent.extend_from_slice(&bytes);
                        }
                    }
                    Action::Disconnect => {
                        connecting = None;
                        if let Some(connection) = connection.take() {
                            close(connection).await;
                        }
                    }
                    Action::CommandDone { ticket, result } => {
                        if let Some(answer) = self.waiting.remove(&ticket) {
                            // Whoever asked may have stopped waiting.
                            let _ = answer.send(result);
                        }
                    }
                    Action::Offline { reason: OfflineReason::Stopped } => return self.core.saved().clone(),
                    told => self.tell(told),
                }
            }
            let timer = self.core.next_timer_ms().map(|at_ms| self.started + Duration::from_millis(at_ms));
            let unsent = connection.as_ref().map_or(0, |connection| connection.outgoing.unsent.len());
            let reads = self.backlog.len() < EVENTS_MAX && unsent < UNSENT_BYTES_MAX;
            let (read, write) = match &mut connection {
                Some(Connection { read, outgoing }) => (Some(read), Some(outgoing)),
                None => (None, None),
            };
            tokio::select! {
                // Time first, so that a busy connection can't starve it; then what makes room, then what takes it.
                biased;
                () = wait_until(timer) => self.handle(Event::Timer),
                permit = events.reserve(), if !self.backlog.is_empty() => match permit {
                    Ok(permit) => if let Some(event) = self.backlog.pop_front() {
                        permit.send(event);
                    },
                    // Nobody listens any more; `stop` may be about to come.
                    Err(_) => self.backlog.clear(),
                },
                () = shared.changed.notified() => self.settle(),
                written = write_some(write) => if let Err(error) = written {
                    debug!(%error, "the connection can't be written");
                    connection = None;
                    self.handle(Event::Disconnected);
                },
                request = requests.recv() => {
                    let stop = matches!(request, None | Some(Request::Stop));
                    if stop {
                        self.settle();
                    }
                    self.request(request.unwrap_or(Request::Stop));
                },
                connected = connect_or_wait(&mut connecting) => {
                    connecting = None;
                    match connected {
                        Ok(stream) => {
                            let (read, write) = tokio::io::split(stream);
                            let outgoing = Outgoing { write, unsent: Vec::new(), unflushed: false };
                            connection = Some(Connection { read, outgoing });
                            self.handle(Event::Connected);
                        }
                        Err(error) => {
                            debug!(%error, "no connection came about");
                            self.handle(Event::Disconnected);
                        }
                    }
                },
                received = read_some(read, &mut buffer), if reads => match received {
                    Ok(0) => {
                        connection = None;
                        self.handle(Event::Disconnected);
                    }
                    Ok(length) => self.handle(Event::Received(&buffer[..length])),
                    Err(error) => {
                        debug!(%error, "the connection can't be read");
                        connection = None;
                        self.handle(Event::Disconnected);
                    }
                },
            }
        }
    }

    fn handle(&mut self, event: Event<'_>) {
        let now_ms = millis(self.started.elapsed());
        self.core.handle(now_ms, event);
    }

    fn request(&mut self, request: Request) {
        let event = match request {
            Request::Command { app, command, answer } => {
                self.ticket += 1;
                self.waiting.insert(self.ticket, answer);
                Event::Command { ticket: self.ticket, app, command }
            }
            Request::Clicked { app, id } => Event::Clicked { app, id },
            Request::TokenRenewed(token) => Event::TokenRenewed(token),
            Request::Start => Event::Start,
            Request::Stop => Event::Stop,
        };
        self.handle(event);
    }

    /// Passes on what the application said of its pushes.
    fn settle(&mut self) {
        let done = std::mem::take(&mut self.shared.lock().done);
        for (app, id, handled) in done {
            self.handle(if handled { Event::Handled { app, id } } else { Event::Refused { app, id } });
        }
    }

    /// Puts an event where the application finds it.
    fn tell(&mut self, action: Action) {
        let event = match action {
            Action::Push(push) => {
                self.shared.lock().held.insert((push.app.clone(), push.id));
                DeviceEvent::Push(push)
            }
            Action::Ready { app, regid } => DeviceEvent::Ready { app, regid },
            Action::RegisterFailed { app, failure } => {
                warn!(%app, code = failure.code.number(), "the app could not be registered");
                DeviceEvent::RegisterFailed { app, failure }
            }
            Action::Revoked { app, id } => DeviceEvent::Revoked { app, id },
            Action::Invalidated { app } => DeviceEvent::Invalidated { app },
            Action::Offline { reason } => {
                debug!(%reason, "offline");
                DeviceEvent::Offline { reason }
            }
            Action::LoggedOut { reason } => {
                warn!(%reason, "the token is refused");
                DeviceEvent::LoggedOut { reason }
            }
            Action::Save => {
                // Only the newest counts: one that still waits is out of date.
                self.backlog.retain(|event| !matches!(event, DeviceEvent::Save(_)));
                DeviceEvent::Save(self.core.saved().to_bytes())
            }
            Action::Connect | Action::Send(_) | Action::Disconnect | Action::CommandDone { .. } => return,
        };
        self.backlog.push_back(event);
    }
}

/// Writes what is left and closes, for as long as that may take.
async fn close<S: AsyncRead + AsyncWrite>(connection: Connection<S>) {
    let mut outgoing = connection.outgoing;
    let closing = async {
        outgoing.write.write_all(&outgoing.unsent).await?;
        outgoing.write.shutdown().await
    };
    // The connection is given up either way.
    let _ = timeout(CLOSE_TIME_MAX, closing).await;
}

async fn wait_until(timer: Option<Instant>) {
    match timer {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

async fn connect_or_wait<S>(connecting: &mut Option<Connecting<'_, S>>) -> io::Result<S> {
    match connecting {
        Some(connecting) => connecting.await,
        None => pending().await,
    }
}

/// Writes and flushes. Cancelling it loses nothing: what was written is taken off at once.
async fn write_some<S: AsyncWrite>(outgoing: Option<&mut Outgoing<S>>) -> io::Result<()> {
    let Some(outgoing) = outgoing else { return pending().await };
    if outgoing.unsent.is_empty() && !outgoing.unflushed {
        return pending().await;
    }
    while !outgoing.unsent.is_empty() {
        let written = outgoing.write.write(&outgoing.unsent).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        outgoing.unflushed = true;
        outgoing.unsent.drain(..written);
    }
    outgoing.write.flush().await?;
    outgoing.unflushed = false;
    Ok(())
}

async fn read_some<S: AsyncRead>(read: Option<&mut ReadHalf<S>>, buffer: &mut [u8]) -> io::Result<usize> {
    match read {
        Some(read) => read.read(buffer).await,
        None => pending().await,
    }
}

fn ended() -> Failure {
    Failure::new(Code::TimedOut, "The device has ended: it may have happened.")
}
