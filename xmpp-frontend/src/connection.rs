//! One connection, from its first byte to its end, and, with XEP-0198, the time during which its stream may be resumed.
//!
//! Until a resource is bound a task negotiates in comfort. Then it ends, and a small one takes over that holds nothing but
//! the line: the stream's owner. Buffers and a parser are borrowed from the thread while there is something to handle.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use idl::channel::Payload;
use idl::slim;
use idl::xml::{Event, Limits, StreamReader};
use tokio::task::yield_now;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use crate::close::Reason;
use crate::form::{Form, Frame};
use crate::hub::Hub;
use crate::intake::{self, Intake, Share};
use crate::line::{Attachment, Due, Line, Parked, Turn};
use crate::listener::Admission;
use crate::login::{Outcome, Talk, negotiator, stanza_limits};
use crate::negotiate::{Negotiator, Protection, enabled, random_hex, sm_failed};
use crate::scratch::{self, Scratch};
use crate::socket::Socket;
use crate::stanza::{self, Heard, ReplyTo, Request, Speaker, Trouble};
use crate::stream::Stream;
use crate::wheel::TICK;
use crate::{Security, Shared, channels, presence, routing};

/// Negotiates a connection that was let in, until `deadline`, and has it served once a resource is bound.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    socket: Socket,
    security: Security,
    admission: Admission,
    deadline: Instant,
) {
    let protection = match security {
        Security::StartTls => Protection::MustStartTls,
        Security::Plain => Protection::Clear,
        Security::DirectTls | Security::Trusted => Protection::Secured,
    };
    let mut stream = Stream::new(socket, admission);
    let mut negotiator = negotiator(&shared, protection, stream.may_be_slim());
    if security == Security::DirectTls
        && let Err(reason) = secure(&shared, &mut stream, &mut negotiator, deadline).await
    {
        return shared.metrics.ended(reason);
    }
    loop {
        match Talk::new(Arc::clone(&shared), stream, negotiator, deadline).run().await {
            Outcome::StartTls(taken, negotiating) => (stream, negotiator) = (taken, *negotiating),
            Outcome::Bound(line, attachment, reader) => {
                // Serves the resource for as long as its stream lives, or until another stream takes it over.
                let reading = reader.map_or(Reading::Xml, Reading::HalfXml);
                let intake = Intake::new(shared.hubs.with(&line).wheel.now());
                let owner = Owner { shared: Arc::clone(&shared), line, attachment, reading, intake, leaving: None };
                return shared.spawn_owner(owner);
            }
            Outcome::Ended => return,
        }
        if let Err(reason) = secure(&shared, &mut stream, &mut negotiator, deadline).await {
            return shared.metrics.ended(reason);
        }
    }
}

/// Does the TLS handshake.
async fn secure(
    shared: &Shared,
    stream: &mut Stream,
    negotiator: &mut Negotiator,
    deadline: Instant,
) -> Result<(), Reason> {
    tokio::select! {
        biased;
        () = shared.draining.cancelled() => Err(Reason::Shutdown),
        secured = timeout_at(deadline, stream.secure(&shared.tls)) => {
            negotiator.tls_started(secured.unwrap_or(Err(Reason::LoginTime))?);
            Ok(())
        }
    }
}

/// Tells a stream that it has ended because another one resumed it.
pub(crate) fn dismiss(shared: &Arc<Shared>, stream: Stream, form: Form) {
    let reason = Reason::Resumed;
    shared.metrics.ended(reason);
    let mut words = Vec::new();
    form.write_end(reason, &mut words);
    let time_max = shared.config.limits.write_time_max;
    shared.spawn_connection(async move { stream.close(&words, time_max).await });
}

/// The task of a bound stream.
struct Owner {
    shared: Arc<Shared>,
    line: Arc<Line>,
    attachment: Attachment,
    reading: Reading,
    intake: Intake,
    leaving: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// Where a stream is read. Between elements and frames it holds no memory of its own.
enum Reading {
    /// In XML, between elements: any reader inside a usual stream will do.
    Xml,
    /// In XML, inside an element, or where the stream declares namespaces of its own.
    HalfXml(Box<StreamReader>),
    Slim(slim::Reader),
}

impl Reading {
    /// True within an element or a frame.
    fn is_half(&self) -> bool {
        match self {
            Self::Xml => false,
            Self::HalfXml(reader) => !reader.is_between_elements(),
            Self::Slim(reader) => !reader.is_between_frames(),
        }
    }
}

impl Future for Owner {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.leaving.is_none() {
            let Some(reason) = ready!(scratch::with(|scratch| self.poll_live(cx, scratch))) else {
                return Poll::Ready(());
            };
            let stop = self.shared.stop.clone();
            let leave = leave(Arc::clone(&self.shared), Arc::clone(&self.line), self.attachment, reason);
            self.leaving = Some(Box::pin(async move {
                stop.run_until_cancelled_owned(leave).await;
            }));
        }
        self.leaving.as_mut().map_or(Poll::Ready(()), |leaving| leaving.as_mut().poll(cx))
    }
}

impl Owner {
    /// Ready when the stream has to end, or, with `None`, is another's.
    fn poll_live(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<Option<Reason>> {
        let mut share = Share::default();
        loop {
            match ready!(self.line.poll(self.attachment, &share, cx, scratch)) {
                Turn::Listen => {
                    if let Err(reason) = self.listen(&mut share, scratch) {
                        return Poll::Ready(Some(reason));
                    }
                }
                Turn::Yield => {
                    // Polled again once all that can go on have been, and the runtime has looked at its sockets.
                    ready!(pin!(yield_now()).poll(cx));
                    share = Share::default();
                }
                Turn::End(reason) => return Poll::Ready(Some(reason)),
                Turn::LetGo => return Poll::Ready(None),
            }
        }
    }

    /// Acts on what was heard, until the share is spent; the rest is heard again.
    fn listen(&mut self, share: &mut Share, scratch: &mut Scratch) -> Result<(), Reason> {
        let heard = std::mem::take(&mut scratch.heard);
        let mut unread = heard.as_slice();
        let spoken = share.stanzas();
        let now = self.shared.hubs.with(&self.line).wheel.now();
        self.intake.bytes(heard.len(), now, &self.shared.config.limits)?;
        // A client that asks for slim goes on in it with the next byte.
        while !unread.is_empty() && !share.is_spent() {
            match std::mem::replace(&mut self.reading, Reading::Xml) {
                Reading::Xml => {
                    let reader = scratch.take_reader();
                    let reader = reader.unwrap_or_else(|| StreamReader::inside(stanza_limits(&self.shared, true)));
                    self.listen_to_xml(reader, &mut unread, share, scratch)?;
                }
                Reading::HalfXml(reader) => self.listen_to_xml(*reader, &mut unread, share, scratch)?,
                Reading::Slim(reader) => self.listen_to_slim(reader, &mut unread, share)?,
            }
        }
        share.bytes(heard.len() - unread.len());
        if !unread.is_empty() {
            self.intake.unheard(unread.len());
            self.line.unread(self.attachment, unread);
        }
        scratch.heard = heard;
        scratch.heard.clear();
        let has_spoken = share.stanzas() > spoken;
        self.intake.heard_all(has_spoken, self.reading.is_half(), now, &self.shared.config.limits)
    }

    fn listen_to_xml(
        &mut self,
        mut reader: StreamReader,
        unread: &mut &[u8],
        share: &mut Share,
        scratch: &mut Scratch,
    ) -> Result<(), Reason> {
        let ear = Ear::of(&self.shared, &self.line);
        while !share.is_spent()
            && let Some(event) = reader.read(unread).map_err(|error| Reason::from(&error))?
        {
            share.stanza();
            if !intake::is_asked_for(&event) {
                self.intake.stanza(&self.shared.config.limits)?;
            }
            if ear.hear(event)? == Next::Slim {
                self.reading = Reading::Slim(slim::Reader::new());
                return Ok(());
            }
        }
        if reader.is_like_inside() {
            scratch.keep_reader(reader);
        } else {
            self.reading = Reading::HalfXml(Box::new(reader));
        }
        Ok(())
    }

    fn listen_to_slim(
        &mut self,
        mut reader: slim::Reader,
        unread: &mut &[u8],
        share: &mut Share,
    ) -> Result<(), Reason> {
        let ear = Ear::of(&self.shared, &self.line);
        let limits = stanza_limits(&self.shared, true);
        while !share.is_spent()
            && let Some(frame) = reader.read(unread, limits.stanza_bytes_max).map_err(|error| Reason::from(&error))?
        {
            share.stanza();
            if !matches!(frame, slim::Frame::Ack(_) | slim::Frame::Pong) {
                self.intake.stanza(&self.shared.config.limits)?;
            }
            ear.hear_frame(frame, limits)?;
        }
        self.reading = Reading::Slim(reader);
        Ok(())
    }
}

/// Ends a stream, and its line too if it can't be resumed.
async fn leave(shared: Arc<Shared>, line: Arc<Line>, attachment: Attachment, reason: Reason) {
    shared.metrics.ended(reason);
    tracing::debug!(account = %line.account(), reason = reason.label(), "a stream ended");
    let may_resume = reason.may_resume() && line.resume_id().is_some();
    // Unless a newer stream has the line.
    let ended = if may_resume { None } else { line.give_up(attachment, reason) };
    if let Some(reason) = ended {
        forget(&shared, &line, reason);
    }
    let mut words = Vec::new();
    // Answers to what was said before the end.
    let stream = line.take_stream(attachment, (!may_resume).then_some(&mut words));
    match stream {
        Some((stream, _)) if reason == Reason::WriteTime => stream.abort(),
        Some((stream, form)) if reason != Reason::Lost => {
            form.write_end(reason, &mut words);
            stream.close(&words, shared.config.limits.write_time_max).await;
        }
        _ => {}
    }
    if may_resume {
        wait_for_resumption(&shared, &line, attachment);
    } else if ended.is_some() {
        routing::hand_back(&shared, &line);
    }
}

/// Lets a line go for good.
fn forget(shared: &Arc<Shared>, line: &Arc<Line>, reason: Reason) {
    shared.hubs.with(line).detach(line);
    shared.components.left(line);
    presence::gone(shared, line);
    // Whoever took the route over has it; else it is given back.
    if reason != Reason::Conflict {
        channels::disconnect(shared, line);
    }
}

/// Keeps a line whose stream is lost until another stream takes it over, it must end, or its time is up.
fn wait_for_resumption(shared: &Arc<Shared>, line: &Arc<Line>, attachment: Attachment) {
    let reason = if let Some(place) = shared.admissions.keep_resumable() {
        let until = shared.hubs.with(line).wheel.now().after(shared.config.limits.resume_time_max);
        let parked = Parked { until, place, token: shared.connections.token() };
        if line.park(attachment, parked).is_ok() {
            return;
        }
        Reason::NotResumed
    } else {
        shared.metrics.limit("resumable_max");
        Reason::NotResumed
    };
    if let Some(reason) = line.give_up(attachment, reason) {
        shared.metrics.ended(reason);
        forget(shared, line, reason);
        routing::hand_back(shared, line);
    }
}

/// Ends a line that waited for its resumption, if it still does.
fn expire(shared: &Arc<Shared>, line: &Arc<Line>) {
    if let Some((parked, reason)) = line.unpark(Reason::NotResumed) {
        shared.metrics.ended(reason);
        forget(shared, line, reason);
        routing::hand_back(shared, line);
        let Parked { place, token, .. } = parked;
        drop((place, token));
    }
}

/// Turns a hub's wheel and does what comes up.
pub(crate) async fn keep_time(shared: Arc<Shared>, hub: Arc<Hub>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    // The first comes at once.
    ticks.tick().await;
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                for line in hub.wheel.advance().into_iter().filter_map(|slot| hub.line(slot)) {
                    match line.come_up() {
                        Due::Nothing => {}
                        Due::Probe => Ear::of(&shared, &line).probe(),
                        Due::Expired => expire(&shared, &line),
                    }
                }
                hub.wheel.tend_leaving();
            }
            () = hub.wheel.orphaned.notified() => {
                for line in hub.wheel.take_orphans() {
                    expire(&shared, &line);
                }
            }
        }
    }
}

/// The form of what comes next.
#[derive(PartialEq, Eq)]
enum Next {
    Same,
    Slim,
}

/// Acts on what a client says.
struct Ear<'a> {
    shared: &'a Arc<Shared>,
    line: &'a Arc<Line>,
    bare: String,
}

impl<'a> Ear<'a> {
    fn of(shared: &'a Arc<Shared>, line: &'a Arc<Line>) -> Self {
        Self { shared, line, bare: format!("{}@{}", line.account(), shared.config.domain) }
    }

    fn hear_frame(&self, frame: slim::Frame<'_>, limits: Limits) -> Result<(), Reason> {
        let Self { shared, line, .. } = self;
        match frame {
            slim::Frame::Ping => self.say(Frame::Pong),
            slim::Frame::Pong => {}
            slim::Frame::Payload { number, bytes } => {
                shared.metrics.stanzas_in.inc();
                let request = Request::bare(Payload { number, bytes: bytes.into_owned() });
                channels::up(shared, line, request).map_err(|_| Reason::ChannelQueueFull)?;
            }
            slim::Frame::Stanza(text) => {
                let element = slim::element(&text, limits).map_err(|error| Reason::from(&error))?;
                self.hear(Event::Element(element))?;
            }
            slim::Frame::AckRequest => self.say(Frame::Ack(line.handled())),
            slim::Frame::Ack(handled) => line.acknowledge(handled).map_err(|_| Reason::AckTooHigh)?,
            slim::Frame::End(_) => return Err(Reason::ClosedByClient),
        }
        Ok(())
    }

    fn hear(&self, event: Event) -> Result<Next, Reason> {
        let Self { shared, line, .. } = self;
        let element = match event {
            Event::Element(element) => element,
            Event::Closed => return Err(Reason::ClosedByClient),
            Event::Opened(_) => return Err(Reason::BadFormat),
        };
        shared.metrics.stanzas_in.inc();
        let speaker = Speaker { domain: &shared.config.domain, bare: &self.bare, resource: &line.resource };
        let heard = stanza::hear(&element, &speaker);
        // Channel requests count themselves: they are handled later.
        if stanza::is_stanza(&element) && !matches!(heard, Heard::Open(_) | Heard::Up(_)) {
            line.received(false);
        }
        match heard {
            Heard::Nothing => {}
            Heard::Answer(answer) => self.say(Frame::stanza(answer)),
            Heard::Route(to) => {
                let reply = ReplyTo::of(&element);
                self.refuse(&reply, routing::route(shared, line, element, &to));
            }
            Heard::Presence(addressee) => {
                let reply = ReplyTo::of(&element);
                self.refuse(&reply, presence::hear(shared, line, element, &addressee));
            }
            Heard::ClientState { active } => line.set_active(active),
            Heard::Open(request) => channels::open(shared, line, request).map_err(|_| Reason::ChannelQueueFull)?,
            Heard::Up(request) => channels::up(shared, line, request).map_err(|_| Reason::ChannelQueueFull)?,
            Heard::Enable { resume } => self.enable(resume),
            Heard::ResumeTooLate => self.say(Frame::other(sm_failed("unexpected-request"))),
            Heard::AckRequest => self.say(Frame::Ack(line.handled())),
            Heard::Ack(handled) => line.acknowledge(handled).map_err(|_| Reason::AckTooHigh)?,
            Heard::Slim if line.may_switch() => {
                self.say(Frame::Switch);
                return Ok(Next::Slim);
            }
            Heard::Slim => self.say(Frame::other(slim::FAILURE)),
            Heard::End(reason) => return Err(reason),
        }
        Ok(Next::Same)
    }

    fn refuse(&self, reply: &ReplyTo, outcome: Result<(), Trouble>) {
        if let Err(trouble) = outcome {
            let me = routing::full_jid(self.shared, self.line);
            self.say(Frame::stanza(reply.error(Some(&me), &trouble)));
        }
    }

    fn enable(&self, resume: bool) {
        let (enabled, id) = enabled(&self.shared.config.limits, &self.shared.entropy, resume);
        if !self.line.enable(&enabled, id.clone()) {
            return self.say(Frame::other(sm_failed("unexpected-request")));
        }
        if let Some(id) = id {
            self.shared.hubs.with(self.line).allow_resuming(self.line, id);
        }
    }

    /// Asks for a sign of life (XEP-0199, or its like in slim).
    fn probe(&self) {
        let Self { shared, line, bare } = self;
        if line.form() == Form::Slim {
            self.say(Frame::Ping);
            return line.flush();
        }
        let (id, domain) = (random_hex(&shared.entropy), &shared.config.domain);
        let to = idl::xml::escape_attribute(&format!("{bare}/{}", line.resource));
        let ping = format!("<iq type='get' id='{id}' from='{domain}' to='{to}'><ping xmlns='urn:xmpp:ping'/></iq>");
        self.say(Frame::stanza(ping));
        self.line.flush();
    }

    /// Written when everything that was heard has been acted on.
    fn say(&self, frame: Frame) {
        // A line that takes no more is closing, which its stream is about to see.
        let _ = self.line.put(frame);
    }
}
