//! A service's connection, from its first byte to its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use idl::xml::{Event, Limits, StreamReader, escape_attribute};
use minidom::Element;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf, split};
use tokio::task::yield_now;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::desk::Link;
use super::spoken::{self, NS_COMPONENT, Recipient, Said, Service};
use super::{Component, Components};
use crate::Shared;
use crate::close::Reason;
use crate::form::Frame;
use crate::intake::Share;
use crate::line::Line;
use crate::login::stanza_limits;
use crate::negotiate::random_hex;
use crate::routing::full_jid;
use crate::socket::Socket;
use crate::stanza::Trouble;

/// How often it is looked what a service has not answered, and whether it is silent.
const TICK: Duration = Duration::from_secs(1);
/// A wrong proof keeps its place among the connections for so long: guessing takes time.
const PAUSE_AFTER_REFUSAL: Duration = Duration::from_secs(1);
/// How long last words may take.
const LAST_WORDS_TIME_MAX: Duration = Duration::from_secs(1);
const READ_BYTES: usize = 16 * 1024;

/// The place of a connection, given back when dropped.
struct Place<'a>(&'a Components);

impl<'a> Place<'a> {
    fn take(components: &'a Components, max: usize) -> Option<Self> {
        let place = Self(components);
        // Dropping the place gives back what was taken here, whether it was too many or not.
        (components.connections.fetch_add(1, Ordering::Relaxed) < max).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Takes a connection of a service.
pub(crate) fn take(shared: &Arc<Shared>, socket: Socket) {
    let serving = serve(Arc::clone(shared), socket);
    shared.spawn(shared.components.tasks.track_future(serving));
}

async fn serve(shared: Arc<Shared>, mut socket: Socket) {
    let limits = &shared.config.limits;
    let Some(_place) = Place::take(&shared.components, limits.component_connections_max) else {
        return shared.metrics.ended(Reason::ComponentConnections);
    };
    let mut incoming = Incoming::new(stanza_limits(&shared, false));
    let mut greeted = false;
    let reason = tokio::select! {
        biased;
        () = shared.components.ending.cancelled() => Reason::Shutdown,
        agreed = timeout(limits.component_login_time_max, log_in(&shared, &mut socket, &mut incoming, &mut greeted)) => {
            match agreed.unwrap_or(Err(Reason::ComponentLoginTime)) {
                Ok(component) => return converse(&shared, &component, socket, incoming).await,
                Err(reason) => reason,
            }
        }
    };
    tracing::info!(reason = reason.label(), "a component was not let in");
    shared.metrics.ended(reason);
    if reason == Reason::ComponentRefused {
        shared.metrics.login("component", "failure");
        sleep(PAUSE_AFTER_REFUSAL).await;
    }
    let mut words = Vec::new();
    if !greeted {
        words.extend_from_slice(spoken::header(&shared.config.domain, &random_hex(&shared.entropy)).as_bytes());
    }
    say_last(&mut socket, words, reason).await;
}

/// XEP-0114 §3.
async fn log_in(
    shared: &Shared,
    socket: &mut Socket,
    incoming: &mut Incoming,
    greeted: &mut bool,
) -> Result<Arc<Component>, Reason> {
    let Event::Opened(header) = incoming.next(socket).await? else { return Err(Reason::BadFormat) };
    let name = header.to.ok_or(Reason::ImproperAddressing)?;
    let component = shared.components.named(&name).ok_or(Reason::HostUnknown)?;
    let id = random_hex(&shared.entropy);
    *greeted = true;
    say(socket, spoken::header(&component.name, &id).as_bytes()).await?;
    let proved = match incoming.next(socket).await? {
        Event::Element(element) if element.is("handshake", NS_COMPONENT) => {
            spoken::proves(&element.text(), &id, &component.secret)
        }
        Event::Element(_) => return Err(Reason::NotLoggedIn),
        Event::Closed => return Err(Reason::ClosedByClient),
        Event::Opened(_) => return Err(Reason::BadFormat),
    };
    if !proved {
        return Err(Reason::ComponentRefused);
    }
    say(socket, b"<handshake/>").await?;
    shared.metrics.login("component", "success");
    Ok(Arc::clone(component))
}

/// Serves a connection that is logged in.
async fn converse(shared: &Arc<Shared>, component: &Arc<Component>, socket: Socket, mut incoming: Incoming) {
    incoming.reader.set_limits(stanza_limits(shared, true));
    let (link, replaced) = component.attach(shared);
    tracing::info!(channel = component.number, component = component.name, "the service of a channel is here");
    let talk = Talk { shared, component, link, heard: AtomicBool::new(true), writing: AtomicBool::new(false) };
    let (mut read, mut write) = split(socket);
    let reason = talk.run(&mut read, &mut write, incoming, &replaced).await;
    component.detach(shared, link);
    tracing::info!(channel = component.number, reason = reason.label(), "the service of a channel has gone");
    shared.metrics.ended(reason);
    // Nothing can be said behind half a stanza.
    if !talk.writing.load(Ordering::Relaxed) {
        let mut socket = read.unsplit(write);
        say_last(&mut socket, Vec::new(), reason).await;
    }
}

/// A service and its connection.
struct Talk<'a> {
    shared: &'a Arc<Shared>,
    component: &'a Component,
    link: Link,
    /// It has said something since that was looked at.
    heard: AtomicBool,
    /// A write is under way.
    writing: AtomicBool,
}

impl Talk<'_> {
    /// Goes on until the connection has to end.
    async fn run<S: AsyncRead + AsyncWrite>(
        &self,
        read: &mut ReadHalf<S>,
        write: &mut WriteHalf<S>,
        mut incoming: Incoming,
        replaced: &CancellationToken,
    ) -> Reason {
        let ended = tokio::select! {
            biased;
            () = replaced.cancelled() => Err(Reason::ComponentReplaced),
            () = self.shared.components.ending.cancelled() => Err(Reason::Shutdown),
            ended = self.write(write) => ended,
            ended = self.listen(read, &mut incoming) => ended,
            ended = self.keep_time() => ended,
        };
        ended.err().unwrap_or(Reason::Lost)
    }

    async fn listen(&self, read: &mut (impl AsyncRead + Unpin), incoming: &mut Incoming) -> Result<(), Reason> {
        loop {
            incoming.fill(read).await?;
            self.heard.store(true, Ordering::Relaxed);
            let mut share = Share::default();
            while let Some(event) = incoming.read()? {
                match event {
                    Event::Element(element) => self.hear(&element)?,
                    Event::Closed => return Err(Reason::ClosedByClient),
                    Event::Opened(_) => return Err(Reason::BadFormat),
                }
                share.stanza();
                if share.is_spent() {
                    yield_now().await;
                    share = Share::default();
                }
            }
            // One that never pauses must not keep the others of this thread from their turns either.
            yield_now().await;
        }
    }

    /// Writes what waits, and what comes to wait.
    async fn write(&self, write: &mut (impl AsyncWrite + Unpin)) -> Result<(), Reason> {
        let time_max = self.shared.config.limits.write_time_max;
        loop {
            let Some(bytes) = self.component.change(|desk| desk.take(self.link, Instant::now())) else {
                return Err(Reason::ComponentReplaced);
            };
            if bytes.is_empty() {
                self.component.wake.notified().await;
                continue;
            }
            self.writing.store(true, Ordering::Relaxed);
            let written = timeout(time_max, say(write, &bytes)).await;
            written.unwrap_or(Err(Reason::WriteTime))?;
            self.writing.store(false, Ordering::Relaxed);
        }
    }

    async fn keep_time(&self) -> Result<(), Reason> {
        let limits = &self.shared.config.limits;
        let (mut heard_at, mut probed) = (Instant::now(), false);
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = ticks.tick().await;
            let tell = self.component.change(|desk| desk.expire(self.link, now));
            self.component.tell(self.shared, tell);
            if self.heard.swap(false, Ordering::Relaxed) {
                (heard_at, probed) = (now, false);
            }
            let silence = now.saturating_duration_since(heard_at);
            if silence >= limits.component_idle_time_max + limits.probe_time_max {
                return Err(Reason::Idle);
            }
            if silence >= limits.component_idle_time_max && !std::mem::replace(&mut probed, true) {
                self.answer(spoken::ping(&self.shared.config.domain, &self.component.name));
            }
        }
    }

    fn hear(&self, element: &Element) -> Result<(), Reason> {
        let Component { number, name, .. } = self.component;
        let service = Service { name, number: *number, domain: &self.shared.config.domain };
        match service.hear(element) {
            Said::Nothing => {}
            Said::Answer(id, answer) => {
                let tell = self.component.change(|desk| desk.answered(self.link, id, answer, Instant::now()));
                self.component.tell(self.shared, tell);
            }
            Said::Down(to, payload) => {
                let lines = self.receivers(&to);
                let frame = Frame::payload(payload.number, payload.bytes);
                let taken = lines.iter().filter(|line| line.offer(frame.clone()).is_ok()).count();
                let metrics = &self.component.metrics;
                metrics.channel_payloads_down.get_or_create(&self.component.label()).inc_by(taken as u64);
                let trouble = if lines.is_empty() {
                    let text = format!("nobody there has channel {number} open");
                    Some(Trouble::new("cancel", "recipient-unavailable", text))
                } else {
                    let text = "too much waits for that connection";
                    (taken == 0).then(|| Trouble::new("wait", "resource-constraint", text))
                };
                if let Some(trouble) = trouble {
                    metrics.refused_on(*number, trouble.condition());
                    self.answer(spoken::error(element, &trouble));
                }
            }
            Said::Refused(to, id, trouble) => {
                for line in self.receivers(&to) {
                    self.pass_on(&line, id.as_deref(), &trouble);
                }
            }
            Said::Reply(answer) => self.answer(answer),
            Said::Wrong(trouble) => {
                self.component.metrics.refused_on(*number, trouble.condition());
                self.answer(spoken::error(element, &trouble));
            }
            Said::Unknown => return Err(Reason::UnsupportedStanzaType),
        }
        Ok(())
    }

    fn receivers(&self, to: &Recipient) -> Vec<Arc<Line>> {
        self.component.change(|desk| desk.receivers(self.link, to))
    }

    /// Tells a device what its service finds wrong with a message.
    fn pass_on(&self, line: &Arc<Line>, id: Option<&str>, trouble: &Trouble) {
        let id = id.map(|id| format!(" id='{}'", escape_attribute(id))).unwrap_or_default();
        let to = escape_attribute(&full_jid(self.shared, line));
        let error = format!("<message type='error'{id} to='{to}'>{}</message>", trouble.element());
        // A device that takes no more has other worries.
        let _ = line.offer(Frame::stanza(error));
    }

    fn answer(&self, stanza: String) {
        // Whoever does not read gets no answers either.
        if let Err(refusal) = self.component.change(|desk| desk.answer(self.link, stanza)) {
            self.component.refused(refusal);
        }
    }
}

/// What a service says, read.
struct Incoming {
    reader: StreamReader,
    bytes: Vec<u8>,
    /// How much of these has been read.
    read: usize,
}

impl Incoming {
    fn new(limits: Limits) -> Self {
        Self { reader: StreamReader::new(limits), bytes: Vec::new(), read: 0 }
    }

    /// The next header, element or end.
    async fn next(&mut self, socket: &mut (impl AsyncRead + Unpin)) -> Result<Event, Reason> {
        loop {
            if let Some(event) = self.read()? {
                return Ok(event);
            }
            self.fill(socket).await?;
        }
    }

    /// What is next of what has come, if that is whole.
    fn read(&mut self) -> Result<Option<Event>, Reason> {
        let mut unread = self.bytes.get(self.read..).unwrap_or_default();
        let event = self.reader.read(&mut unread).map_err(|error| Reason::from(&error))?;
        self.read = self.bytes.len() - unread.len();
        Ok(event)
    }

    /// Waits for more, unless there is some that was not looked at. The end of the bytes is [`Reason::Lost`].
    async fn fill(&mut self, socket: &mut (impl AsyncRead + Unpin)) -> Result<(), Reason> {
        if self.read < self.bytes.len() {
            return Ok(());
        }
        self.read = 0;
        self.bytes.clear();
        self.bytes.reserve(READ_BYTES);
        match socket.read_buf(&mut self.bytes).await {
            Ok(count) if count > 0 => Ok(()),
            _ => Err(Reason::Lost),
        }
    }
}

async fn say(socket: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), Reason> {
    socket.write_all(bytes).await.map_err(|_| Reason::Lost)?;
    socket.flush().await.map_err(|_| Reason::Lost)
}

async fn say_last(socket: &mut (impl AsyncWrite + Unpin), mut words: Vec<u8>, reason: Reason) {
    if reason == Reason::Lost {
        return;
    }
    reason.write(&mut words);
    let say = async {
        socket.write_all(&words).await?;
        socket.shutdown().await
    };
    // Whether a service that is leaving hears why is not our concern.
    let _ = timeout(LAST_WORDS_TIME_MAX, say).await;
}
