//! One connection, from its first byte to its end, and, with XEP-0198, the time during which its stream may be resumed.

use std::sync::Arc;

use idl::xml::Event;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::close::Reason;
use crate::line::{Attachment, Due, Line};
use crate::listener::Admission;
use crate::login::{Outcome, Talk, negotiator};
use crate::negotiate::{NS_SM, Negotiator, Protection, random_hex, sm_failed};
use crate::outbox::Frame;
use crate::stanza::{self, Heard, Speaker};
use crate::xmpp_io::{Incoming, Outgoing};
use crate::{Security, Shared, channels};

/// Serves a connection that was let in.
pub(crate) async fn serve<S>(shared: Arc<Shared>, stream: S, security: Security, admission: Admission)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let deadline = Instant::now() + shared.config.limits.login_time_max;
    let protection = match security {
        Security::StartTls => Protection::MustStartTls,
        Security::Plain => Protection::Clear,
        Security::DirectTls | Security::Trusted => Protection::Secured,
    };
    let negotiator = negotiator(&shared, protection);
    if security == Security::DirectTls {
        return secure(shared, stream, negotiator, deadline, admission).await;
    }
    match Talk::new(Arc::clone(&shared), stream, negotiator, deadline).run().await {
        Outcome::StartTls(stream, negotiator) => secure(shared, stream, *negotiator, deadline, admission).await,
        Outcome::Bound(line, attachment, incoming) => live(&shared, &line, attachment, *incoming, admission).await,
        Outcome::Ended => {}
    }
}

/// Does the TLS handshake and negotiates the stream inside.
async fn secure<S>(shared: Arc<Shared>, stream: S, mut negotiator: Negotiator, deadline: Instant, admission: Admission)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let draining = shared.draining.clone();
    let stream = tokio::select! {
        biased;
        () = draining.cancelled() => return shared.metrics.ended(Reason::Shutdown),
        stream = timeout_at(deadline, shared.tls.accept(stream)) => match stream {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a TLS handshake failed");
                return shared.metrics.ended(Reason::TlsFailed);
            }
            Err(_) => return shared.metrics.ended(Reason::LoginTime),
        },
    };
    negotiator.tls_started();
    let talk = Talk::new(Arc::clone(&shared), stream, negotiator, deadline);
    if let Outcome::Bound(line, attachment, incoming) = talk.run().await {
        live(&shared, &line, attachment, *incoming, admission).await;
    }
}

/// Serves a bound resource for as long as it lives, or until another stream takes it over.
async fn live<S>(
    shared: &Arc<Shared>,
    line: &Arc<Line>,
    attachment: Attachment,
    incoming: Incoming<S>,
    mut admission: Admission,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    admission.logged_in();
    let (mut incoming, mut outgoing) = incoming.split(shared.config.limits.write_time_max);
    let reason = converse(shared, line, &attachment, &mut incoming, &mut outgoing).await;
    shared.metrics.ended(reason);
    tracing::debug!(account = %line.account(), reason = reason.label(), "a stream ended");
    let may_resume = reason.may_resume() && line.resume_id().is_some();
    if !may_resume {
        end(shared, line, &attachment, reason);
    }
    if !matches!(reason, Reason::Lost | Reason::WriteTime) {
        if !may_resume {
            // Answers to what was said before the end.
            while line.due(&attachment, outgoing.buffer()) == Due::Write {}
        }
        reason.write(outgoing.buffer());
        outgoing.close(&mut incoming).await;
    }
    drop((incoming, outgoing, admission));
    if may_resume && let Some(reason) = wait_for_resumption(shared, line, &attachment).await {
        end(shared, line, &attachment, reason);
    }
}

/// Ends a line for good, unless a newer stream has taken it over: then the line is that stream's.
fn end(shared: &Arc<Shared>, line: &Arc<Line>, attachment: &Attachment, reason: Reason) {
    if let Some(reason) = line.give_up(attachment, reason) {
        shared.hub.detach(line);
        // Whoever took the route over has it; else it is given back.
        if reason != Reason::Conflict {
            channels::disconnect(shared, line);
        }
    }
}

/// Waits until another stream takes the line over (`None`), it must end, or its time is up.
async fn wait_for_resumption(shared: &Shared, line: &Line, attachment: &Attachment) -> Option<Reason> {
    let Some(place) = shared.admissions.keep_resumable() else {
        shared.metrics.limit("resumable_max");
        return Some(Reason::NotResumed);
    };
    let expired = sleep(shared.config.limits.resume_time_max);
    tokio::pin!(expired);
    let end = loop {
        if !line.is_held_by(attachment) {
            break None;
        }
        if let Some(reason) = line.closing() {
            break Some(reason);
        }
        tokio::select! {
            () = &mut expired => break Some(Reason::NotResumed),
            () = attachment.wake.notified() => {}
        }
    };
    drop(place);
    if let Some(reason) = end {
        shared.metrics.ended(reason);
    }
    end
}

/// Reads and writes a bound stream until it ends, and returns why.
async fn converse<R, W>(
    shared: &Arc<Shared>,
    line: &Arc<Line>,
    attachment: &Attachment,
    incoming: &mut Incoming<R>,
    outgoing: &mut Outgoing<W>,
) -> Reason
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let limits = &shared.config.limits;
    let ear = Ear { shared, line, bare: format!("{}@{}", line.account(), shared.config.domain) };
    let idle = sleep(limits.idle_time_max);
    tokio::pin!(idle);
    let mut probed = false;
    // Once the line closes, how long what still waits may take to be written.
    let mut last_words_at: Option<Instant> = None;
    loop {
        if outgoing.is_idle()
            && let Due::Close(reason) = line.due(attachment, outgoing.buffer())
        {
            return reason;
        }
        if last_words_at.is_none() && line.closing().is_some() {
            last_words_at = Some(Instant::now() + limits.write_time_max);
        }
        tokio::select! {
            biased;
            written = outgoing.drive(), if !outgoing.is_idle() => {
                if let Err(reason) = written {
                    return reason;
                }
            }
            () = attachment.wake.notified() => {}
            () = sleep_until(last_words_at.unwrap_or_else(Instant::now)), if last_words_at.is_some() => {
                return line.closing().unwrap_or(Reason::WriteTime);
            }
            event = incoming.next(), if last_words_at.is_none() => {
                idle.as_mut().reset(Instant::now() + limits.idle_time_max);
                probed = false;
                if let Err(reason) = event.and_then(|event| ear.hear(event)) {
                    return reason;
                }
            }
            () = &mut idle => {
                if std::mem::replace(&mut probed, true) {
                    return Reason::Idle;
                }
                ear.probe();
                idle.as_mut().reset(Instant::now() + limits.probe_time_max);
            }
        }
    }
}

/// Acts on what a client says.
struct Ear<'a> {
    shared: &'a Arc<Shared>,
    line: &'a Arc<Line>,
    bare: String,
}

impl Ear<'_> {
    fn hear(&self, event: Event) -> Result<(), Reason> {
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
            Heard::Open(request) => channels::open(shared, line, request).map_err(|_| Reason::ChannelQueueFull)?,
            Heard::Up(request) => channels::up(shared, line, request).map_err(|_| Reason::ChannelQueueFull)?,
            Heard::Enable { resume } => self.enable(resume),
            Heard::ResumeTooLate => self.say(Frame::other(sm_failed("unexpected-request"))),
            Heard::AckRequest => self.say(Frame::other(format!("<a xmlns='{NS_SM}' h='{}'/>", line.handled()))),
            Heard::Ack(handled) => line.acknowledge(handled).map_err(|_| Reason::AckTooHigh)?,
            Heard::End(reason) => return Err(reason),
        }
        Ok(())
    }

    fn enable(&self, resume: bool) {
        let limits = &self.shared.config.limits;
        let (enabled, id) = if resume && !limits.resume_time_max.is_zero() && limits.resumable_max > 0 {
            let id: Arc<str> = random_hex(&self.shared.entropy).into();
            let max = limits.resume_time_max.as_secs();
            (format!("<enabled xmlns='{NS_SM}' id='{id}' resume='true' max='{max}'/>"), Some(id))
        } else {
            (format!("<enabled xmlns='{NS_SM}'/>"), None)
        };
        if !self.line.enable(&enabled, id.clone()) {
            return self.say(Frame::other(sm_failed("unexpected-request")));
        }
        if let Some(id) = id {
            self.shared.hub.allow_resuming(self.line, id);
        }
    }

    /// Asks for a sign of life (XEP-0199).
    fn probe(&self) {
        let Self { shared, line, bare } = self;
        let (id, domain) = (random_hex(&shared.entropy), &shared.config.domain);
        let to = idl::xml::escape_attribute(&format!("{bare}/{}", line.resource));
        let ping = format!("<iq type='get' id='{id}' from='{domain}' to='{to}'><ping xmlns='urn:xmpp:ping'/></iq>");
        self.say(Frame::stanza(ping));
    }

    fn say(&self, frame: Frame) {
        // A line that takes no more is closing, which its stream is about to see.
        let _ = self.line.push(frame);
    }
}
