//! From the first byte to a bound resource (RFC 6120 §4–7), without I/O: elements in, bytes and [`Step`]s out.
//!
//! What takes time (TLS, the keys of SCRAM, claiming the route, resuming a stream) is asked for as a step; whoever drives
//! the negotiation does it and comes back.

use std::sync::Arc;

use idl::clock::SharedEntropy;
use idl::xml::{Event, Header, NS_CLIENT, write_header};
use minidom::Element;

use crate::close::Reason;
use crate::config::Limits;
use crate::credentials::Credentials;
use crate::sasl::{self, Failure, Login, Plain};
use crate::scram::{Check, Exchange};
use crate::stanza;

/// Namespace of STARTTLS.
const NS_TLS: &str = "urn:ietf:params:xml:ns:xmpp-tls";
/// Namespace of resource binding.
const NS_BIND: &str = "urn:ietf:params:xml:ns:xmpp-bind";
/// Namespace of announced limits (XEP-0478).
const NS_LIMITS: &str = "urn:xmpp:stream-limits:0";
/// Namespace of stream management (XEP-0198).
pub(crate) const NS_SM: &str = "urn:xmpp:sm:3";

/// How the stream is protected while it is negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protection {
    /// In the clear; TLS must come first.
    MustStartTls,
    /// In the clear and staying so: PLAIN is not offered.
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
    /// Bind this resource. With it the negotiation is over.
    Bind(Bind),
    /// Resume that stream. If it is there the negotiation is over; else write [`not_resumed`].
    Resume(Resume),
    /// Write [`Negotiator::end`] and close.
    End(Reason),
}

/// A resource to be bound.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Bind {
    pub(crate) login: Login,
    pub(crate) resource: String,
    /// The id of the IQ to answer.
    pub(crate) iq: String,
}

/// A stream to be resumed (XEP-0198 §5).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Resume {
    pub(crate) login: Login,
    pub(crate) previous: String,
    /// How many stanzas the client has handled.
    pub(crate) handled: u32,
}

/// The negotiation of one connection.
pub(crate) struct Negotiator {
    domain: Arc<str>,
    credentials: Arc<Credentials>,
    entropy: SharedEntropy,
    protection: Protection,
    announced: Announced,
    attempts_left: u32,
    header_written: bool,
    stage: Stage,
}

/// Limits that a client is told of (XEP-0478): how many bytes a stanza may have, and after how many seconds of silence we do
/// something about it. Before login that is the end of the connection, after it a probe.
#[derive(Clone, Copy)]
struct Announced {
    before_login: (usize, u64),
    after_login: (usize, u64),
}

impl Announced {
    fn of(limits: &Limits) -> Self {
        Self {
            before_login: (limits.stanza_bytes_max_before_login, limits.login_time_max.as_secs()),
            after_login: (limits.stanza_bytes_max, limits.idle_time_max.as_secs()),
        }
    }

    fn feature(self, logged_in: bool) -> String {
        let (bytes, seconds) = if logged_in { self.after_login } else { self.before_login };
        format!(
            "<limits xmlns='{NS_LIMITS}'><max-bytes>{bytes}</max-bytes><idle-seconds>{seconds}</idle-seconds></limits>"
        )
    }
}

enum Stage {
    /// The client may log in.
    LoggedOut,
    /// The client has chosen a mechanism and said nothing yet (RFC 6120 §6.4.2).
    Chosen(Mechanism),
    /// The client has had its SCRAM challenge.
    Challenged(Exchange),
    /// The client's proof is being checked.
    Checking,
    /// The client may bind or resume.
    LoggedIn(Login),
}

#[derive(Clone, Copy)]
enum Mechanism {
    Plain,
    ScramSha256,
}

impl Negotiator {
    pub(crate) fn new(
        domain: Arc<str>,
        credentials: Arc<Credentials>,
        entropy: SharedEntropy,
        protection: Protection,
        limits: &Limits,
    ) -> Self {
        Self {
            domain,
            credentials,
            entropy,
            protection,
            announced: Announced::of(limits),
            attempts_left: limits.login_attempts_max.max(1),
            header_written: false,
            stage: Stage::LoggedOut,
        }
    }

    /// True once SASL has succeeded: the larger limits hold from the next stream on.
    pub(crate) fn is_logged_in(&self) -> bool {
        matches!(self.stage, Stage::LoggedIn(_))
    }

    /// Takes what the client said. What is to be written is appended to `out`.
    pub(crate) fn handle(&mut self, event: Event, out: &mut Vec<u8>) -> Step {
        match event {
            Event::Opened(header) => self.opened(&header, out),
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

    /// TLS is established.
    pub(crate) fn tls_started(&mut self) {
        self.protection = Protection::Secured;
        self.header_written = false;
    }

    /// The proof of a [`Step::CheckScram`] was checked.
    pub(crate) fn scram_checked(&mut self, proved: Result<(Login, String), Failure>, out: &mut Vec<u8>) -> Step {
        match proved {
            Ok((login, last)) => {
                sasl::write(out, "success", &last);
                self.succeed(login)
            }
            Err(failure) => self.fail(failure, out),
        }
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

    fn opened(&mut self, header: &Header, out: &mut Vec<u8>) -> Step {
        self.write_header(out);
        let Some(to) = header.to.as_deref() else { return Step::End(Reason::ImproperAddressing) };
        if !to.eq_ignore_ascii_case(&self.domain) {
            return Step::End(Reason::HostUnknown);
        }
        let major = header.version.as_deref().and_then(|version| version.split('.').next()?.parse::<u32>().ok());
        if major.is_none_or(|major| major < 1) {
            return Step::End(Reason::UnsupportedVersion);
        }
        let features = match (self.protection, &self.stage) {
            (Protection::MustStartTls, _) => format!("<starttls xmlns='{NS_TLS}'><required/></starttls>"),
            (_, Stage::LoggedIn(_)) => format!("<bind xmlns='{NS_BIND}'/><sm xmlns='{NS_SM}'/>"),
            (protection, _) => {
                let plain = if protection == Protection::Secured { "<mechanism>PLAIN</mechanism>" } else { "" };
                format!("<mechanisms xmlns='{}'><mechanism>SCRAM-SHA-256</mechanism>{plain}</mechanisms>", sasl::NS)
            }
        };
        let limits = self.announced.feature(self.is_logged_in());
        out.extend_from_slice(format!("<stream:features>{features}{limits}</stream:features>").as_bytes());
        Step::Read
    }

    fn before_tls(&mut self, element: &Element, out: &mut Vec<u8>) -> Step {
        if element.is("starttls", NS_TLS) {
            out.extend_from_slice(format!("<proceed xmlns='{NS_TLS}'/>").as_bytes());
            return Step::StartTls;
        }
        if element.has_ns(sasl::NS) {
            return self.fail(Failure::EncryptionRequired, out);
        }
        Step::End(Reason::NotLoggedIn)
    }

    fn log_in(&mut self, stage: Stage, element: &Element, out: &mut Vec<u8>) -> Step {
        if element.is("starttls", NS_TLS) {
            out.extend_from_slice(format!("<failure xmlns='{NS_TLS}'/>").as_bytes());
            return Step::End(Reason::TlsUnavailable);
        }
        if !element.has_ns(sasl::NS) {
            return Step::End(Reason::NotLoggedIn);
        }
        let step = match (stage, element.name()) {
            (_, "auth") => self.choose(element, out),
            (Stage::Chosen(mechanism), "response") => {
                sasl::decode(&element.text()).and_then(|message| self.begin(mechanism, &message, out))
            }
            (Stage::Challenged(exchange), "response") => {
                sasl::decode(&element.text()).and_then(|message| exchange.finish(&message)).map(|check| {
                    self.stage = Stage::Checking;
                    Step::CheckScram(check)
                })
            }
            (_, "abort") => Err(Failure::Aborted),
            _ => Err(Failure::MalformedRequest),
        };
        step.unwrap_or_else(|failure| self.fail(failure, out))
    }

    fn choose(&mut self, element: &Element, out: &mut Vec<u8>) -> Result<Step, Failure> {
        let mechanism = match element.attr("mechanism").unwrap_or_default() {
            "PLAIN" if self.protection == Protection::Secured => Mechanism::Plain,
            "PLAIN" => return Err(Failure::EncryptionRequired),
            "SCRAM-SHA-256" => Mechanism::ScramSha256,
            _ => return Err(Failure::InvalidMechanism),
        };
        let text = element.text();
        if text.trim().is_empty() {
            // Both mechanisms let the client speak first: ask it to (RFC 6120 §6.4.2).
            sasl::write(out, "challenge", "");
            self.stage = Stage::Chosen(mechanism);
            return Ok(Step::Read);
        }
        self.begin(mechanism, &sasl::decode(&text)?, out)
    }

    fn begin(&mut self, mechanism: Mechanism, message: &[u8], out: &mut Vec<u8>) -> Result<Step, Failure> {
        match mechanism {
            Mechanism::Plain => {
                let plain = Plain::parse(message, &self.domain)?;
                let login = self.credentials.prove_plain(&plain)?;
                out.extend_from_slice(format!("<success xmlns='{}'/>", sasl::NS).as_bytes());
                Ok(self.succeed(login))
            }
            Mechanism::ScramSha256 => {
                let nonce = self.random_hex();
                let exchange = Exchange::begin(message, &self.domain, &nonce, |name| self.credentials.salt(name))?;
                sasl::write(out, "challenge", exchange.server_first());
                self.stage = Stage::Challenged(exchange);
                Ok(Step::Read)
            }
        }
    }

    fn succeed(&mut self, login: Login) -> Step {
        self.stage = Stage::LoggedIn(login);
        self.header_written = false;
        Step::Restart
    }

    fn fail(&mut self, failure: Failure, out: &mut Vec<u8>) -> Step {
        self.stage = Stage::LoggedOut;
        sasl::write_failure(out, failure);
        self.attempts_left = self.attempts_left.saturating_sub(1);
        if self.attempts_left == 0 { Step::End(Reason::LoginAttempts) } else { Step::Read }
    }

    fn logged_in(&mut self, login: Login, element: &Element, out: &mut Vec<u8>) -> Step {
        if element.is("resume", NS_SM) {
            let handled = element.attr("h").and_then(|h| h.parse().ok());
            let (Some(previous), Some(handled)) = (element.attr("previd"), handled) else {
                out.extend_from_slice(not_resumed().as_bytes());
                return Step::Read;
            };
            return Step::Resume(Resume { login, previous: previous.to_owned(), handled });
        }
        if element.is("resume", NS_CLIENT) {
            // Some clients forget its namespace, and bind only when they have heard that they can't resume.
            out.extend_from_slice(not_resumed().as_bytes());
            return Step::Read;
        }
        if element.has_ns(NS_SM) {
            // Before a resource is bound there is nothing to count.
            out.extend_from_slice(sm_failed("unexpected-request").as_bytes());
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
        Step::Bind(Bind { login, resource, iq: iq.to_owned() })
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

/// The answer to a bind that succeeded.
pub(crate) fn bound(iq: &str, jid: &str) -> String {
    let (iq, jid) = (idl::xml::escape_attribute(iq), idl::xml::escape_attribute(jid));
    format!("<iq type='result' id='{iq}'><bind xmlns='{NS_BIND}'><jid>{jid}</jid></bind></iq>")
}

/// The refusal of a request of stream management.
pub(crate) fn sm_failed(condition: &str) -> String {
    format!("<failed xmlns='{NS_SM}'><{condition} xmlns='{}'/></failed>", stanza::NS_STANZAS)
}

/// The stream of a [`Step::Resume`] is not there: the client may bind instead.
pub(crate) fn not_resumed() -> String {
    sm_failed("item-not-found")
}

/// 128 random bits as text.
pub(crate) fn random_hex(entropy: &SharedEntropy) -> String {
    let mut bytes = [0; 16];
    entropy.fill(&mut bytes);
    format!("{:032x}", u128::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use idl::clock::SystemEntropy;
    use idl::ids::AccountId;
    use idl::token::KeyRing;
    use idl::xml::{Limits as XmlLimits, StreamReader};
    use prometheus_client::registry::Registry;
    use proptest::prelude::*;

    use super::*;
    use crate::metrics::Metrics;

    const LIMITS: XmlLimits = XmlLimits { stanza_bytes_max: 4096, depth_max: 8 };
    const HEADER: &str = "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' \
                          to='example.org' version='1.0'>";

    fn negotiator(protection: Protection) -> Negotiator {
        let ring = KeyRing::new(&[(1, [7; 32])]);
        let credentials = Credentials::new(ring, 1, 1, Arc::new(Metrics::register(&mut Registry::default())));
        let limits = Limits { login_attempts_max: 100, ..Limits::default() };
        Negotiator::new("example.org".into(), Arc::new(credentials), Arc::new(SystemEntropy), protection, &limits)
    }

    /// What a client may say, in whatever order.
    fn said() -> impl Strategy<Value = String> {
        let sasl = |name: &str, attributes: &str, text: &str| {
            format!("<{name} xmlns='urn:ietf:params:xml:ns:xmpp-sasl' {attributes}>{text}</{name}>")
        };
        prop_oneof![
            Just("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>".to_owned()),
            "[A-Za-z0-9+/=]{0,24}".prop_map(move |text| sasl("auth", "mechanism='PLAIN'", &text)),
            "[A-Za-z0-9+/=]{0,24}".prop_map(move |text| sasl("auth", "mechanism='SCRAM-SHA-256'", &text)),
            Just(sasl("auth", "mechanism='SCRAM-SHA-256'", "bixuPTEscj1hYmM=")),
            "[A-Za-z0-9+/=]{0,24}".prop_map(move |text| sasl("response", "", &text)),
            Just(sasl("abort", "", "")),
            Just("<iq type='set' id='1'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>".to_owned()),
            Just("<resume xmlns='urn:xmpp:sm:3' previd='x' h='1'/>".to_owned()),
        ]
    }

    proptest! {
        #[test]
        fn nobody_gets_in_without_a_token(all in proptest::collection::vec(said(), 0..12), clear: bool) {
            let mut negotiator = negotiator(if clear { Protection::MustStartTls } else { Protection::Secured });
            let mut reader = StreamReader::new(LIMITS);
            let text = format!("{HEADER}{}", all.concat());
            let mut bytes = text.as_bytes();
            let mut out = Vec::new();
            while let Some(event) = reader.read(&mut bytes).expect("well-formed") {
                match negotiator.handle(event, &mut out) {
                    Step::Read => {}
                    Step::CheckScram(_) => prop_assert!(!clear, "no proof is taken in the clear"),
                    Step::StartTls => prop_assert!(clear),
                    Step::End(_) => break,
                    step @ (Step::Restart | Step::Bind(_) | Step::Resume(_)) => panic!("{step:?} without a token"),
                }
                prop_assert!(!negotiator.is_logged_in());
            }
        }
    }

    #[test]
    fn a_token_gets_in_and_binds() {
        let mut negotiator = negotiator(Protection::Secured);
        let account = AccountId(1);
        let token = KeyRing::new(&[(1, [7; 32])]).issue(account, 5);
        let mut out = Vec::new();
        let header = Header { to: Some("example.org".into()), version: Some("1.0".into()), ..Header::default() };
        assert_eq!(negotiator.handle(Event::Opened(header), &mut out), Step::Read);
        let plain = STANDARD.encode(format!("\0{account}\0{token}"));
        let auth = format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{plain}</auth>");
        let auth: Element = auth.parse().expect("an element");
        assert_eq!(negotiator.handle(Event::Element(auth), &mut out), Step::Restart);
        let bind = "<iq xmlns='jabber:client' type='set' id='1'>\
                    <bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>r</resource></bind></iq>";
        let login = Login { account, issued_at_ms: 5 };
        let expected = Step::Bind(Bind { login, resource: "r".to_owned(), iq: "1".to_owned() });
        assert_eq!(negotiator.handle(Event::Element(bind.parse().expect("an element")), &mut out), expected);
    }
}
