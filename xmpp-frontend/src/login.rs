//! Drives a negotiation: does what [`Negotiator`] asks for, within the time that a login may take.

use std::sync::Arc;

use idl::error::{Code, Failure};
use idl::ids::Shard;
use idl::xml::{Limits, StreamReader};
use tokio::time::{Instant, timeout_at};

use crate::channels::Work;
use crate::close::Reason;
use crate::form::Frame;
use crate::line::{Attachment, Line, ResumeError};
use crate::middle::Patience;
use crate::negotiate::{Bind, Negotiator, Protection, Resume, Step, enabled};
use crate::stream::Stream;
use crate::xmpp_io::Incoming;
use crate::{Shared, connection};

/// A connection that is being negotiated.
pub(crate) struct Talk {
    shared: Arc<Shared>,
    incoming: Incoming,
    negotiator: Negotiator,
    deadline: Instant,
}

/// What became of a negotiation.
pub(crate) enum Outcome {
    /// TLS comes next, on these bytes.
    StartTls(Stream, Box<Negotiator>),
    /// A resource is bound or resumed, and the stream is the line's. With the reader, if it can't be any other.
    Bound(Arc<Line>, Attachment, Option<Box<StreamReader>>),
    /// The stream has ended and its last words are said.
    Ended,
}

enum Agreed {
    StartTls,
    Bound(Arc<Line>, Attachment),
}

/// The negotiation of a new connection.
pub(crate) fn negotiator(shared: &Shared, protection: Protection, may_be_slim: bool) -> Negotiator {
    Negotiator::new(
        Arc::clone(&shared.domain),
        Arc::clone(&shared.credentials),
        Arc::clone(&shared.entropy),
        protection,
        &shared.config.limits,
        may_be_slim,
    )
}

impl Talk {
    pub(crate) fn new(shared: Arc<Shared>, stream: Stream, negotiator: Negotiator, deadline: Instant) -> Self {
        let incoming = Incoming::new(stream, stanza_limits(&shared, false));
        Self { shared, incoming, negotiator, deadline }
    }

    /// Negotiates until TLS comes next, a resource is bound, or the stream ends.
    pub(crate) async fn run(mut self) -> Outcome {
        let draining = self.shared.draining.clone();
        let agreed = tokio::select! {
            biased;
            () = draining.cancelled() => Err(Reason::Shutdown),
            agreed = timeout_at(self.deadline, self.negotiate()) => agreed.unwrap_or(Err(Reason::LoginTime)),
        };
        let reason = match agreed {
            Ok(Agreed::Bound(line, attachment)) => {
                self.incoming.set_limits(stanza_limits(&self.shared, true));
                let (stream, reader) = self.incoming.into_parts();
                line.begin(attachment, stream);
                return Outcome::Bound(line, attachment, reader);
            }
            Ok(Agreed::StartTls) if self.incoming.has_unread() => Reason::BytesBeforeTls,
            Ok(Agreed::StartTls) => return Outcome::StartTls(self.incoming.into_stream(), Box::new(self.negotiator)),
            Err(reason) => reason,
        };
        tracing::debug!(reason = reason.label(), "a stream ended before login");
        self.shared.metrics.ended(reason);
        if reason != Reason::Lost {
            let mut words = Vec::new();
            self.negotiator.end(reason, &mut words);
            self.incoming.into_stream().close(&words, self.shared.config.limits.write_time_max).await;
        }
        Outcome::Ended
    }

    async fn negotiate(&mut self) -> Result<Agreed, Reason> {
        self.shared.revocations_known().await;
        let mut out = Vec::new();
        loop {
            let event = self.incoming.next().await?;
            let mut step = self.negotiator.handle(event, &mut out);
            if let Step::CheckScram(check) = step {
                let proved = self.shared.credentials.prove_scram(check, &self.shared.middle).await;
                step = self.negotiator.scram_checked(proved, &mut out);
            }
            if self.negotiator.has_failed() && self.incoming.login_failed().is_err() && step == Step::Read {
                step = Step::End(Reason::FailedLogins);
            }
            if let Step::Resume(resume) = step {
                if let Some(agreed) = self.resume(&resume)? {
                    return Ok(agreed);
                }
                step = self.negotiator.not_resumed(resume, &mut out);
            }
            match step {
                Step::Read | Step::CheckScram(_) | Step::Resume(_) => {}
                Step::LoggedIn => self.incoming.set_limits(stanza_limits(&self.shared, true)),
                Step::Restart => {
                    self.incoming.restart(stanza_limits(&self.shared, self.negotiator.is_logged_in()));
                }
                Step::StartTls => {
                    self.incoming.write(&mut out).await?;
                    return Ok(Agreed::StartTls);
                }
                Step::Bind(bind) => return self.bind(bind).await,
                Step::End(reason) => {
                    self.incoming.write(&mut out).await?;
                    return Err(reason);
                }
            }
            self.incoming.write(&mut out).await?;
        }
    }

    async fn bind(&mut self, bind: Bind) -> Result<Agreed, Reason> {
        let shared = &self.shared;
        let Bind { login, ref resource, enable, inactive, .. } = bind;
        // Each try claims the route with a newer epoch; the last one counts.
        let patience = Patience::For(shared.config.limits.channel_retry_time_max);
        let connected = shared.middle.connect(login.account, resource, None, patience).await;
        let connected = connected.map_err(|failure| not_connected(&failure))?;
        shared.learn([(Shard::of_account(login.account).into(), connected.generation)]);
        let bytes_max = shared.config.limits.outbox_bytes_max;
        let work = Work::new(connected.generation);
        let (line, attachment) =
            Line::new(login, connected.epoch, resource, bytes_max, work, &shared.hubs.of(login.account).wheel);
        let managed = enable.map(|resume| enabled(&shared.config.limits, &shared.entropy, resume));
        let answer = bind.answer(&shared.domain, managed.as_ref().map(|(enabled, _)| enabled.as_str()));
        // Before anyone else can put something into the outbox.
        match &managed {
            Some((_, id)) => _ = line.enable(&answer, id.clone()),
            None => line.put(Frame::other(answer)).map_err(|_| Reason::OutboxFull)?,
        }
        if inactive {
            line.set_active(false);
        }
        shared.hubs.with(&line).attach(&line)?;
        if let Some((_, Some(id))) = managed {
            shared.hubs.with(&line).allow_resuming(&line, id);
        }
        self.check(&line);
        Ok(Agreed::Bound(line, attachment))
    }

    fn resume(&self, resume: &Resume) -> Result<Option<Agreed>, Reason> {
        let Some(line) = self.shared.hubs.of(resume.login.account).resumable(&resume.previous) else { return Ok(None) };
        let answer = |resumed: &str| resume.answer(&self.shared.domain, &line.resource, resumed);
        match line.resume(resume.login, resume.handled, answer) {
            Ok((attachment, older)) => {
                self.shared.metrics.resumed.inc();
                if let Some((older, form)) = older {
                    connection::dismiss(&self.shared, older, form);
                }
                self.check(&line);
                Ok(Some(Agreed::Bound(line, attachment)))
            }
            Err(ResumeError::NotFound) => Ok(None),
            Err(ResumeError::AckTooHigh) => Err(Reason::AckTooHigh),
        }
    }

    /// What may have happened while the line was not yet where those who end lines look.
    fn check(&self, line: &Arc<Line>) {
        if self.shared.credentials.revoked.covers(line.login()) {
            line.close(Reason::Revoked);
        }
        if self.shared.draining.is_cancelled() {
            line.close(Reason::Shutdown);
        }
    }
}

pub(crate) fn stanza_limits(shared: &Shared, logged_in: bool) -> Limits {
    let limits = &shared.config.limits;
    let stanza_bytes_max = if logged_in { limits.stanza_bytes_max } else { limits.stanza_bytes_max_before_login };
    Limits { stanza_bytes_max, depth_max: limits.stanza_depth_max }
}

fn not_connected(failure: &Failure) -> Reason {
    tracing::debug!(%failure, "a route was not claimed");
    match failure.code {
        Code::UnknownAccount => Reason::Revoked,
        Code::Superseded => Reason::Conflict,
        code if code.retryable() && code != Code::System => Reason::MiddleBusy,
        _ => Reason::MiddleFailed,
    }
}
