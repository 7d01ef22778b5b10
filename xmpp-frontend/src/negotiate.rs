//! From the first byte to a bound resource (RFC 6120 §4–7), without I/O: elements in, bytes and [`Step`]s out.
//!
//! There are two ways. The older one is SASL, a new stream, and then binding or resuming. The newer one (XEP-0388) asks for
//! all of it at once and has no new stream. What takes time (TLS, the keys of SCRAM, claiming the route, resuming a stream)
//! is asked for as a step; whoever drives the negotiation does it and comes back.

#[cfg(any(test, feature = "fuzzing"))]
mod check;
mod features;
mod sasl2;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use idl::clock::SharedEntropy;
use idl::ids::AccountId;
use idl::slim;
use idl::xml::{Event, Header, NS_CLIENT, escape_attribute, write_header};
use minidom::Element;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::check::check;
use crate::close::Reason;
use crate::config::Limits;
use crate::credentials::Credentials;
use crate::fast::Attempt;
use crate::sasl::{self, Failure, Login, Mechanism, Plain, Profile, Username};
use crate::scram::{Binding, Check, Exchange, Exporter};
use crate::stanza;
use features::{Announced, Offer};
use sasl2::{Request, Success, Wish};

/// Namespace of STARTTLS.
const NS_TLS: &str = "urn:ietf:params:xml:ns:xmpp-tls";
/// Namespace of resource binding.
const NS_BIND: &str = "urn:ietf:params:xml:ns:xmpp-bind";
/// Namespace of stream management (XEP-0198).
pub(crate) const NS_SM: &str = "urn:xmpp:sm:3";

/// How the stream is protected while it is negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protection {
    /// In the clear; TLS must come first.
    MustStartTls,
    /// In the clear and staying so: PLAIN and what else shows tokens is not offered.
    Clear,
    /// By TLS, or by being within the process.
    Secured,
}

/// What the driver does next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Write what there is and read on.
    Read,
    /// Write, hand the bytes below to TLS, then call [`Negotiator::tls_started`] and begin a new stream.
    StartTls,
    /// Write and begin a new stream on the same bytes.
    Restart,
    /// Check this proof and call [`Negotiator::scram_checked`].
    CheckScram(Check),
    /// Write and read on, on the same stream, with the limits of one that is logged in.
    LoggedIn,
    /// Bind this resource and write [`Bind::answer`]. With it the negotiation is over, and the limits are those of a
    /// stream that is logged in.
    Bind(Bind),
    /// Resume that stream. If it is there, write [`Resume::answer`] before what it repeats, and the negotiation is over,
    /// as with a resource; else call [`Negotiator::not_resumed`].
    Resume(Resume),
    /// Write [`Negotiator::end`] and close.
    End(Reason),
}

/// A resource to be bound.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Bind {
    pub(crate) login: Login,
    pub(crate) resource: String,
    /// Stream management is to be turned on at once: whether the client wants to be able to resume.
    pub(crate) enable: Option<bool>,
    /// Nobody looks at the device (XEP-0352).
    pub(crate) inactive: bool,
    answer: Answer,
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// To the IQ with this id.
    Iq(String),
    /// Within the answer to the login.
    Success(Box<Success>),
}

impl Bind {
    /// What tells the client that the resource is bound. `enabled` is `<enabled/>` if [`Bind::enable`] asked for it: what
    /// comes behind these words is counted.
    pub(crate) fn answer(&self, domain: &str, enabled: Option<&str>) -> String {
        match &self.answer {
            Answer::Success(success) => success.bound(domain, &self.resource, enabled),
            Answer::Iq(iq) => {
                let jid = format!("{}@{domain}/{}", self.login.account, self.resource);
                let (iq, jid) = (escape_attribute(iq), escape_attribute(&jid));
                format!("<iq type='result' id='{iq}'><bind xmlns='{NS_BIND}'><jid>{jid}</jid></bind></iq>")
            }
        }
    }
}

/// A stream to be resumed (XEP-0198 §5).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Resume {
    pub(crate) login: Login,
    pub(crate) previous: String,
    /// How many stanzas the client has handled.
    pub(crate) handled: u32,
    /// The answer to the login, if it asked for this.
    success: Option<Box<Success>>,
}

impl Resume {
    /// What tells the client that the stream is resumed, which is that of this resource: `<resumed/>`, which is given, and
    /// what belongs around it.
    pub(crate) fn answer(&self, domain: &str, resource: &str, resumed: &str) -> String {
        match &self.success {
            Some(success) => success.resumed(domain, resource, resumed),
            None => resumed.to_owned(),
        }
    }
}

/// Which stream a client wants to resume. A request that can't be read names none.
#[derive(Debug, Default)]
struct Previous {
    id: String,
    handled: u32,
}

impl Previous {
    fn read(resume: &Element) -> Self {
        let handled = resume.attr("h").and_then(|h| h.parse().ok());
        let named = resume.attr("previd").zip(handled);
        named.map_or_else(Self::default, |(id, handled)| Self { id: id.to_owned(), handled })
    }
}

/// The negotiation of one connection.
pub(crate) struct Negotiator {
    domain: Arc<str>,
    credentials: Arc<Credentials>,
    entropy: SharedEntropy,
    protection: Protection,
    exporter: Option<Exporter>,
    announced: Announced,
    attempts_left: u32,
    /// A login failed since [`Negotiator::has_failed`] was asked, and not for a reason of ours.
    failed: bool,
    header_written: bool,
    /// Who the client says it is before it has proved it.
    from: Option<String>,
    stage: Stage,
}

enum Stage {
    /// The client may log in.
    LoggedOut,
    /// The client has chosen a mechanism and said nothing yet (RFC 6120 §6.4.2).
    Chosen(Mechanism, Asked),
    /// The client has had its SCRAM challenge.
    Challenged(Exchange, Asked),
    /// The client's proof is being checked.
    Checking(Asked),
    /// The client may bind or resume.
    LoggedIn(Login),
}

/// How a login was asked for.
enum Asked {
    Sasl,
    Sasl2(Box<Request>),
}

impl Asked {
    fn profile(&self) -> Profile {
        match self {
            Self::Sasl => Profile::Sasl,
            Self::Sasl2(_) => Profile::Sasl2,
        }
    }
}

impl Negotiator {
    pub(crate) fn new(
        domain: Arc<str>,
        credentials: Arc<Credentials>,
        entropy: SharedEntropy,
        protection: Protection,
        limits: &Limits,
        may_be_slim: bool,
    ) -> Self {
        Self {
            domain,
            credentials,
            entropy,
            protection,
            exporter: None,
            announced: Announced::of(limits, may_be_slim),
            attempts_left: limits.login_attempts_max.max(1),
            failed: false,
            header_written: false,
            from: None,
            stage: Stage::LoggedOut,
        }
    }

    /// True once SASL has succeeded: the larger limits hold from the next element on.
    pub(crate) fn is_logged_in(&self) -> bool {
        matches!(self.stage, Stage::LoggedIn(_))
    }

    /// True if a login failed since this was asked last, and not because we could not tell.
    pub(crate) fn has_failed(&mut self) -> bool {
        std::mem::take(&mut self.failed)
    }

    /// Takes what the client said. What is to be written is appended to `out`.
    pub(crate) fn handle(&mut self, event: Event, out: &mut Vec<u8>) -> Step {
        match event {
            Event::Opened(header) => self.opened(header, out),
            Event::Closed => Step::End(Reason::ClosedByClient),
            Event::Element(element) if self.protection == Protection::MustStartTls => self.before_tls(&element, out),
            Event::Element(element) => match std::mem::replace(&mut self.stage, Stage::LoggedOut) {
                Stage::LoggedIn(login) => {
                    self.stage = Stage::LoggedIn(login);
                    self.logged_in(login, &element, out)
                }
                stage => self.log_in(stage, &element, out),
            },
        }
    }

    /// TLS is established. The exporter (RFC 9266: the label `EXPORTER-Channel-Binding`, an empty context) binds logins to
    /// it; `None` where it can't be relied on, as before TLS 1.3.
    pub(crate) fn tls_started(&mut self, exporter: Option<Exporter>) {
        self.protection = Protection::Secured;
        self.exporter = exporter;
        self.header_written = false;
    }

    /// The proof of a [`Step::CheckScram`] was checked.
    pub(crate) fn scram_checked(&mut self, proved: Result<(Login, String), Failure>, out: &mut Vec<u8>) -> Step {
        let Stage::Checking(asked) = std::mem::replace(&mut self.stage, Stage::LoggedOut) else {
            return Step::End(Reason::NotLoggedIn);
        };
        let profile = asked.profile();
        let step = proved.and_then(|(login, last)| self.succeed(login, Some(last.into_bytes()), asked, out));
        step.unwrap_or_else(|failure| self.fail(profile, failure, out))
    }

    /// The stream of a [`Step::Resume`] is not there: something else may be bound.
    pub(crate) fn not_resumed(&mut self, resume: Resume, out: &mut Vec<u8>) -> Step {
        let Some(mut success) = resume.success else {
            out.extend_from_slice(sm_failed("item-not-found").as_bytes());
            return Step::Read;
        };
        success.not_resumed = true;
        self.answer(resume.login, success, out)
    }

    /// The last words. A stream header goes before them if none was written (RFC 6120 §4.9.1.1).
    pub(crate) fn end(&mut self, reason: Reason, out: &mut Vec<u8>) {
        if !self.header_written {
            if reason.condition().is_none() {
                return;
            }
            self.write_header(out);
        }
        reason.write(out);
    }

    fn opened(&mut self, header: Header, out: &mut Vec<u8>) -> Step {
        self.write_header(out);
        let Some(to) = header.to.as_deref() else { return Step::End(Reason::ImproperAddressing) };
        if !to.eq_ignore_ascii_case(&self.domain) {
            return Step::End(Reason::HostUnknown);
        }
        let major = header.version.as_deref().and_then(|version| version.split('.').next()?.parse::<u32>().ok());
        if major.is_none_or(|major| major < 1) {
            return Step::End(Reason::UnsupportedVersion);
        }
        self.from = header.from;
        let features = match (self.protection, &self.stage) {
            (Protection::MustStartTls, _) => format!("<starttls xmlns='{NS_TLS}'><required/></starttls>"),
            (_, Stage::LoggedIn(_)) => features::unbound(),
            _ => self.offer().features(),
        };
        let limits = self.announced.features(self.is_logged_in());
        out.extend_from_slice(features::write(&format!("{features}{limits}")).as_bytes());
        Step::Read
    }

    fn offer(&self) -> Offer {
        Offer::over(self.protection, self.exporter)
    }

    fn before_tls(&mut self, element: &Element, out: &mut Vec<u8>) -> Step {
        if element.is("starttls", NS_TLS) {
            out.extend_from_slice(format!("<proceed xmlns='{NS_TLS}'/>").as_bytes());
            return Step::StartTls;
        }
        match Profile::of(element) {
            Some(profile) => self.fail(profile, Failure::EncryptionRequired, out),
            None => Step::End(Reason::NotLoggedIn),
        }
    }

    fn log_in(&mut self, stage: Stage, element: &Element, out: &mut Vec<u8>) -> Step {
        if element.is("starttls", NS_TLS) {
            out.extend_from_slice(format!("<failure xmlns='{NS_TLS}'/>").as_bytes());
            return Step::End(Reason::TlsUnavailable);
        }
        let Some(profile) = Profile::of(element) else { return Step::End(Reason::NotLoggedIn) };
        let step = self.exchange(stage, profile, element, out);
        step.unwrap_or_else(|failure| self.fail(profile, failure, out))
    }

    fn exchange(
        &mut self,
        stage: Stage,
        profile: Profile,
        element: &Element,
        out: &mut Vec<u8>,
    ) -> Result<Step, Failure> {
        match (profile, element.name(), stage) {
            (Profile::Sasl, "auth", _) => {
                let first = Some(element.text()).filter(|text| !text.trim().is_empty());
                self.choose(element, Asked::Sasl, first, out)
            }
            (Profile::Sasl2, "authenticate", _) => {
                let first = element.get_child("initial-response", sasl::NS_SASL2).map(Element::text);
                let request = Request::read(element, self.offer());
                self.choose(element, Asked::Sasl2(Box::new(request)), first, out)
            }
            (_, "response", Stage::Chosen(mechanism, asked)) if asked.profile() == profile => {
                self.begin(mechanism, asked, &profile.decode(&element.text())?, out)
            }
            (_, "response", Stage::Challenged(exchange, asked)) if asked.profile() == profile => {
                let check = exchange.finish(&profile.decode(&element.text())?)?;
                self.stage = Stage::Checking(asked);
                Ok(Step::CheckScram(check))
            }
            (_, "abort", _) => Err(Failure::Aborted),
            _ => Err(Failure::MalformedRequest),
        }
    }

    fn choose(
        &mut self,
        element: &Element,
        asked: Asked,
        first: Option<String>,
        out: &mut Vec<u8>,
    ) -> Result<Step, Failure> {
        let profile = asked.profile();
        let mechanism = self.offer().find(profile, element.attr("mechanism").unwrap_or_default())?;
        if let Some(first) = first {
            return self.begin(mechanism, asked, &profile.decode(&first)?, out);
        }
        // All mechanisms let the client speak first: ask it to (RFC 6120 §6.4.2).
        profile.write(out, "challenge", "");
        self.stage = Stage::Chosen(mechanism, asked);
        Ok(Step::Read)
    }

    fn begin(
        &mut self,
        mechanism: Mechanism,
        asked: Asked,
        message: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Step, Failure> {
        let binding = match (mechanism, self.exporter) {
            (Mechanism::Plain, _) => {
                let login = self.credentials.prove_plain(&Plain::parse(message, &self.domain)?)?;
                return self.succeed(login, None, asked, out);
            }
            (Mechanism::Fast(mechanism), exporter) => {
                let Asked::Sasl2(mut request) = asked else { return Err(Failure::InvalidMechanism) };
                let (Some(fast), Some(client)) = (request.fast, &request.client) else {
                    return Err(Failure::MalformedRequest);
                };
                let attempt = Attempt::parse(message, mechanism, client, exporter, &self.domain)?;
                let (login, proved) = self.credentials.prove_fast(&attempt)?;
                if fast.invalidate {
                    // Nothing here could keep the token from being used again, so nobody is told that it is invalid.
                    return Err(Failure::NotAuthorized);
                }
                if proved.ageing {
                    request.token.get_or_insert(mechanism);
                }
                return self.succeed(login, Some(proved.answer), Asked::Sasl2(request), out);
            }
            (Mechanism::ScramPlus, Some(exporter)) => Binding::Required(exporter),
            (Mechanism::ScramPlus, None) => return Err(Failure::InvalidMechanism),
            (Mechanism::Scram, Some(_)) => Binding::Declined,
            (Mechanism::Scram, None) => Binding::Impossible,
        };
        let nonce = self.random_hex();
        let exchange = Exchange::begin(message, &self.domain, &nonce, binding, |name| self.credentials.salt(name))?;
        asked.profile().write(out, "challenge", exchange.server_first());
        self.stage = Stage::Challenged(exchange, asked);
        Ok(Step::Read)
    }

    /// The client has proved who it is; `data` are the mechanism's last words.
    fn succeed(
        &mut self,
        login: Login,
        data: Option<Vec<u8>>,
        asked: Asked,
        out: &mut Vec<u8>,
    ) -> Result<Step, Failure> {
        let request = match asked {
            Asked::Sasl2(request) => *request,
            Asked::Sasl => {
                match data {
                    Some(data) => Profile::Sasl.write(out, "success", data),
                    None => out.extend_from_slice(format!("<success xmlns='{}'/>", sasl::NS).as_bytes()),
                }
                self.stage = Stage::LoggedIn(login);
                self.header_written = false;
                return Ok(Step::Restart);
            }
        };
        if !self.is_as_it_says(login.account) {
            return Err(Failure::InvalidAuthzid);
        }
        let Request { client, resume, bind, token, fast: _ } = request;
        let client = client.as_deref();
        let token = token.zip(client).map(|(mechanism, client)| self.credentials.issue_fast(login, client, mechanism));
        let success = Box::new(Success {
            account: login.account,
            data,
            token: token.transpose()?,
            bind: bind.map(|wish| (wish.resource(login.account, client, &self.entropy), wish)),
            not_resumed: false,
            limits: self.announced.features(true),
        });
        self.stage = Stage::LoggedIn(login);
        Ok(match resume {
            Some(Previous { id: previous, handled }) => {
                Step::Resume(Resume { login, previous, handled, success: Some(success) })
            }
            None => self.answer(login, success, out),
        })
    }

    /// Goes on with what a login asked for besides resuming.
    fn answer(&mut self, login: Login, mut success: Box<Success>, out: &mut Vec<u8>) -> Step {
        if let Some((resource, wish)) = success.bind.take() {
            let Wish { enable, inactive, .. } = wish;
            return Step::Bind(Bind { login, resource, enable, inactive, answer: Answer::Success(success) });
        }
        out.extend_from_slice(success.unbound(&self.domain).as_bytes());
        Step::LoggedIn
    }

    /// False if the header of the stream said that it is from another (XEP-0388 §2.3).
    fn is_as_it_says(&self, account: AccountId) -> bool {
        self.from.as_deref().is_none_or(|from| {
            let bare = from.split_once('/').map_or(from, |(bare, _)| bare);
            Username::parse(bare, &self.domain).account == Some(account)
        })
    }

    fn fail(&mut self, profile: Profile, failure: Failure, out: &mut Vec<u8>) -> Step {
        self.stage = Stage::LoggedOut;
        self.failed |= failure != Failure::Temporary;
        profile.write_failure(out, failure);
        self.attempts_left = self.attempts_left.saturating_sub(1);
        if self.attempts_left == 0 { Step::End(Reason::LoginAttempts) } else { Step::Read }
    }

    fn logged_in(&mut self, login: Login, element: &Element, out: &mut Vec<u8>) -> Step {
        if element.is("resume", NS_SM) {
            let Previous { id: previous, handled } = Previous::read(element);
            return Step::Resume(Resume { login, previous, handled, success: None });
        }
        if element.is("resume", NS_CLIENT) {
            // Some clients forget its namespace, and bind only when they have heard that they can't resume.
            out.extend_from_slice(sm_failed("item-not-found").as_bytes());
            return Step::Read;
        }
        if element.has_ns(NS_SM) {
            // Before a resource is bound there is nothing to count.
            out.extend_from_slice(sm_failed("unexpected-request").as_bytes());
            return Step::Read;
        }
        if element.is("slim", slim::NS) {
            // Before a resource is bound there is nothing to be said in it.
            out.extend_from_slice(slim::FAILURE.as_bytes());
            return Step::Read;
        }
        let bind = element.get_child("bind", NS_BIND).filter(|_| element.is("iq", NS_CLIENT));
        let (Some(bind), Some("set"), Some(iq)) = (bind, element.attr("type"), element.attr("id")) else {
            return Step::End(Reason::NotLoggedIn);
        };
        let wanted = bind.get_child("resource", NS_BIND).map(Element::text).filter(|wanted| !wanted.is_empty());
        let resource = match wanted.as_deref().map(jid::ResourcePart::new) {
            None => self.random_hex(),
            Some(Ok(resource)) => resource.as_str().to_owned(),
            Some(Err(_)) => {
                let text = "the resource is not one that a JID may have";
                let error = stanza::Trouble::new("modify", "bad-request", text);
                out.extend_from_slice(stanza::error(element, None, &error).as_bytes());
                return Step::Read;
            }
        };
        Step::Bind(Bind { login, resource, enable: None, inactive: false, answer: Answer::Iq(iq.to_owned()) })
    }

    fn write_header(&mut self, out: &mut Vec<u8>) {
        let header = Header {
            to: None,
            from: Some(self.domain.to_string()),
            id: Some(self.random_hex()),
            version: Some("1.0".to_owned()),
        };
        write_header(out, &header);
        self.header_written = true;
    }

    fn random_hex(&self) -> String {
        random_hex(&self.entropy)
    }
}

/// Whether `<enable/>` asks for a stream that can be resumed.
pub(crate) fn wants_to_resume(enable: &Element) -> bool {
    matches!(enable.attr("resume"), Some("true" | "1"))
}

/// `<enabled/>`, and what the stream can be resumed by: `None` if it can't be, or the client does not want to.
pub(crate) fn enabled(limits: &Limits, entropy: &SharedEntropy, resume: bool) -> (String, Option<Arc<str>>) {
    if !resume || limits.resume_time_max.is_zero() || limits.resumable_max == 0 {
        return (format!("<enabled xmlns='{NS_SM}'/>"), None);
    }
    let id: Arc<str> = random_hex(entropy).into();
    let max = limits.resume_time_max.as_secs();
    (format!("<enabled xmlns='{NS_SM}' id='{id}' resume='true' max='{max}'/>"), Some(id))
}

/// The refusal of a request of stream management.
pub(crate) fn sm_failed(condition: &str) -> String {
    format!("<failed xmlns='{NS_SM}'><{condition} xmlns='{}'/></failed>", stanza::NS_STANZAS)
}

/// 128 random bits as text.
pub(crate) fn random_hex(entropy: &SharedEntropy) -> String {
    let mut bytes = [0; 16];
    entropy.fill(&mut bytes);
    format!("{:032x}", u128::from_be_bytes(bytes))
}
