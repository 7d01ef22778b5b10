//! What a client may say after login, whom it is to, and what we answer ourselves: pings, discovery, errors. Pure
//! functions.

#[cfg(any(test, feature = "fuzzing"))]
mod check;

use idl::channel::{self, Payload};
use idl::slim;
use idl::xml::{NS_CLIENT, escape_attribute};
use minidom::Element;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::check::check;
use crate::caps::{self, NS_DISCO_INFO, NS_DISCO_ITEMS, NS_PING, NS_VERSION};
use crate::client_state;
use crate::close::Reason;
use crate::negotiate::{NS_SM, wants_to_resume};
use crate::routing::{Addressee, Recipient};

/// Namespace of stanza error conditions (RFC 6120 §8.3).
pub(crate) const NS_STANZAS: &str = "urn:ietf:params:xml:ns:xmpp-stanzas";
const NS_SESSION: &str = "urn:ietf:params:xml:ns:xmpp-session";

/// What an element from a client means.
#[derive(Debug, PartialEq)]
pub(crate) enum Heard {
    /// Nothing is to be done.
    Nothing,
    /// Answer with this stanza.
    Answer(String),
    /// Hand the stanza on.
    Route(Recipient),
    /// It is the presence of its sender, or about it.
    Presence(Addressee),
    /// Somebody looks at the device, or not (XEP-0352).
    ClientState {
        /// Somebody does.
        active: bool,
    },
    /// Open a channel.
    Open(Request),
    /// Hand a payload up its channel.
    Up(Request),
    /// Turn stream management on (XEP-0198 §3).
    Enable {
        /// The client wants to be able to resume.
        resume: bool,
    },
    /// Resuming is only possible instead of binding (XEP-0198 §5).
    ResumeTooLate,
    /// The client asks how many stanzas were handled.
    AckRequest,
    /// The client says how many stanzas it has handled.
    Ack(u32),
    /// Go on in slim frames.
    Slim,
    /// The stream must end.
    End(Reason),
}

/// A channel request, with what its answer needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) payload: Payload,
    pub(crate) reply: ReplyTo,
}

impl Request {
    /// A payload that came without anything around it.
    pub(crate) fn bare(payload: Payload) -> Self {
        Self { payload, reply: ReplyTo { kind: Kind::Message, id: None, to: None } }
    }
}

/// Where a stanza's answer goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReplyTo {
    kind: Kind,
    id: Option<Box<str>>,
    to: Option<Box<str>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Iq,
    Message,
    Presence,
}

/// A stanza error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    kind: &'static str,
    condition: &'static str,
    text: String,
}

impl Trouble {
    /// `kind` is RFC 6120's error type: `cancel`, `modify`, `wait`, `auth`.
    pub(crate) fn new(kind: &'static str, condition: &'static str, text: impl Into<String>) -> Self {
        Self { kind, condition, text: text.into() }
    }

    /// The defined condition (RFC 6120 §8.3.3).
    pub(crate) const fn condition(&self) -> &'static str {
        self.condition
    }

    /// The `<error/>` in a stanza of that type.
    pub(crate) fn element(&self) -> String {
        let Self { kind, condition, text } = self;
        let text = if text.is_empty() {
            String::new()
        } else {
            format!("<text xmlns='{NS_STANZAS}' xml:lang='en'>{}</text>", escape_attribute(text))
        };
        format!("<error type='{kind}'><{condition} xmlns='{NS_STANZAS}'/>{text}</error>")
    }

    /// Whoever the stanza is to is not there, or does not serve it.
    pub(crate) fn unavailable() -> Self {
        Self::new("cancel", "service-unavailable", "")
    }
}

/// Who is speaking.
pub(crate) struct Speaker<'a> {
    pub(crate) domain: &'a str,
    /// The bare JID.
    pub(crate) bare: &'a str,
    pub(crate) resource: &'a str,
}

impl Speaker<'_> {
    fn addressee(&self, stanza: &Element) -> Addressee {
        Addressee::read(stanza.attr("to"), self.domain, self.bare, self.resource)
    }

    /// True if a stanza does not say that it is from another (RFC 6120 §8.1.2.1).
    fn is_speaking(&self, stanza: &Element) -> bool {
        stanza.attr("from").is_none_or(|from| {
            let from = Addressee::read(Some(from), self.domain, self.bare, self.resource);
            matches!(from, Addressee::Account | Addressee::Myself)
        })
    }

    fn full(&self) -> String {
        format!("{}/{}", self.bare, self.resource)
    }
}

/// True for what XEP-0198 counts.
pub(crate) fn is_stanza(element: &Element) -> bool {
    element.has_ns(NS_CLIENT) && matches!(element.name(), "iq" | "message" | "presence")
}

/// What an element means, coming from this speaker.
pub(crate) fn hear(element: &Element, speaker: &Speaker<'_>) -> Heard {
    if matches!(element.name(), "iq" | "message" | "presence") {
        if !element.has_ns(NS_CLIENT) {
            // The content of some other kind of stream (RFC 6120 §4.8.3).
            return Heard::End(Reason::InvalidNamespace);
        }
        if !speaker.is_speaking(element) {
            return Heard::End(Reason::InvalidFrom);
        }
        return match element.name() {
            "iq" => iq(element, speaker),
            "message" => message(element, speaker),
            _ => Heard::Presence(speaker.addressee(element)),
        };
    }
    if element.has_ns(NS_SM) {
        return match element.name() {
            "enable" => Heard::Enable { resume: wants_to_resume(element) },
            "resume" => Heard::ResumeTooLate,
            "r" => Heard::AckRequest,
            "a" => match element.attr("h").and_then(|h| h.parse().ok()) {
                Some(handled) => Heard::Ack(handled),
                None => Heard::End(Reason::UnsupportedStanzaType),
            },
            _ => Heard::End(Reason::UnsupportedStanzaType),
        };
    }
    if element.is("slim", slim::NS) {
        return Heard::Slim;
    }
    if element.has_ns(client_state::NS) && matches!(element.name(), "active" | "inactive") {
        return Heard::ClientState { active: element.name() == "active" };
    }
    Heard::End(Reason::UnsupportedStanzaType)
}

/// Hands a stanza on, unless it could be taken for one of ours: what is in the namespace of channels comes from the server.
fn route(element: &Element, speaker: &Speaker<'_>, to: Recipient) -> Heard {
    if element.children().any(|child| child.has_ns(channel::NS)) {
        return match element.attr("type") {
            Some("error" | "result") => Heard::Nothing,
            _ => Heard::Answer(error(element, Some(speaker), &Trouble::unavailable())),
        };
    }
    Heard::Route(to)
}

/// The error that answers whom a stanza can't be to.
fn unknown(addressee: &Addressee) -> Option<Trouble> {
    match addressee {
        Addressee::Elsewhere => Some(Trouble::new("cancel", "remote-server-not-found", "")),
        Addressee::Malformed => Some(Trouble::new("modify", "jid-malformed", "'to' must be a JID")),
        _ => None,
    }
}

fn iq(element: &Element, speaker: &Speaker<'_>) -> Heard {
    let refuse = |trouble: &Trouble| Heard::Answer(error(element, Some(speaker), trouble));
    let set = match element.attr("type") {
        Some("get") => false,
        Some("set") => true,
        Some("result" | "error") => {
            return match speaker.addressee(element) {
                Addressee::Other(to) if to.resource.is_some() && element.attr("id").is_some() => {
                    route(element, speaker, to)
                }
                // Answers to our own pings, or to nothing.
                _ => Heard::Nothing,
            };
        }
        _ => return refuse(&Trouble::new("modify", "bad-request", "an IQ's type is get, set, result or error")),
    };
    if element.attr("id").is_none() {
        return refuse(&Trouble::new("modify", "bad-request", "an IQ must have an id"));
    }
    let mut children = element.children();
    let (Some(child), None) = (children.next(), children.next()) else {
        return refuse(&Trouble::new("modify", "bad-request", "an IQ of type get or set has exactly one child"));
    };
    let addressee = speaker.addressee(element);
    if let Some(trouble) = unknown(&addressee) {
        return refuse(&trouble);
    }
    if let Addressee::Other(to) = addressee {
        // What is asked of another account the server would have to answer, and knows nothing to say (RFC 6121 §8.5.2.1.3).
        return if to.resource.is_some() { route(element, speaker, to) } else { refuse(&Trouble::unavailable()) };
    }
    if set && child.is("session", NS_SESSION) {
        return Heard::Answer(result(element, speaker, ""));
    }
    if !set && child.is("ping", NS_PING) {
        return Heard::Answer(result(element, speaker, ""));
    }
    if !set && (child.is("query", NS_DISCO_INFO) || child.is("query", NS_DISCO_ITEMS)) {
        return match discover(child, &addressee) {
            Ok(answer) => Heard::Answer(result(element, speaker, &answer)),
            Err(trouble) => refuse(&trouble),
        };
    }
    if !set && child.is("query", NS_VERSION) && addressee == Addressee::Domain {
        let version = env!("CARGO_PKG_VERSION");
        let query = format!("<query xmlns='{NS_VERSION}'><name>Campanile</name><version>{version}</version></query>");
        return Heard::Answer(result(element, speaker, &query));
    }
    match Payload::from_open(child).filter(|_| set) {
        Some(Ok(payload)) => Heard::Open(Request { payload, reply: ReplyTo::new(element, Kind::Iq) }),
        Some(Err(invalid)) => refuse(&Trouble::new("modify", "bad-request", invalid.to_string())),
        None => refuse(&Trouble::unavailable()),
    }
}

fn discover(query: &Element, addressee: &Addressee) -> Result<String, Trouble> {
    let node = query.attr("node");
    let answer = match (query.has_ns(NS_DISCO_ITEMS), addressee) {
        (true, _) => node.is_none_or(str::is_empty).then(|| format!("<query xmlns='{NS_DISCO_ITEMS}'/>")),
        (false, Addressee::Domain) => caps::server_info(node),
        (false, _) => caps::account_info(node),
    };
    answer.ok_or_else(|| Trouble::new("cancel", "item-not-found", ""))
}

fn message(element: &Element, speaker: &Speaker<'_>) -> Heard {
    let is_error = element.attr("type") == Some("error");
    // An error must not be answered by an error (RFC 6120 §8.3.1).
    let refuse = |trouble: &Trouble| {
        if is_error { Heard::Nothing } else { Heard::Answer(error(element, Some(speaker), trouble)) }
    };
    let addressee = speaker.addressee(element);
    if let Addressee::Other(to) = addressee {
        return route(element, speaker, to);
    }
    if let Some(trouble) = unknown(&addressee) {
        return refuse(&trouble);
    }
    if !is_error {
        match Payload::from_message(element) {
            Some(Ok(payload)) => {
                return Heard::Up(Request { payload, reply: ReplyTo::new(element, Kind::Message) });
            }
            Some(Err(invalid)) => return refuse(&Trouble::new("modify", "bad-request", invalid.to_string())),
            None => {}
        }
    }
    let account = speaker.bare.split_once('@').and_then(|(account, _)| account.parse().ok());
    match addressee {
        // To whom it is from (RFC 6120 §10.3.1, RFC 6121 §8.5.2).
        Addressee::Account => route(element, speaker, Recipient { account, resource: None }),
        Addressee::Myself => route(element, speaker, Recipient { account, resource: Some(speaker.resource.into()) }),
        _ => refuse(&Trouble::unavailable()),
    }
}

fn result(element: &Element, speaker: &Speaker<'_>, child: &str) -> String {
    ReplyTo::new(element, Kind::Iq).result(&speaker.full(), child)
}

/// The error that answers a stanza.
pub(crate) fn error(element: &Element, speaker: Option<&Speaker<'_>>, trouble: &Trouble) -> String {
    ReplyTo::of(element).error(speaker.map(Speaker::full).as_deref(), trouble)
}

impl ReplyTo {
    /// Where the answer to that stanza goes.
    pub(crate) fn of(stanza: &Element) -> Self {
        let kind = match stanza.name() {
            "iq" => Kind::Iq,
            "message" => Kind::Message,
            _ => Kind::Presence,
        };
        Self::new(stanza, kind)
    }

    fn new(element: &Element, kind: Kind) -> Self {
        Self { kind, id: element.attr("id").map(Into::into), to: element.attr("to").map(Into::into) }
    }

    /// The stanza's id.
    pub(crate) fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The result of an IQ, to that full JID. `child` is written as it is.
    pub(crate) fn result(&self, to: &str, child: &str) -> String {
        let attributes = self.attributes(Some(to));
        format!("<iq type='result'{attributes}>{child}</iq>")
    }

    /// The error of a stanza.
    pub(crate) fn error(&self, to: Option<&str>, trouble: &Trouble) -> String {
        let name = match self.kind {
            Kind::Iq => "iq",
            Kind::Message => "message",
            Kind::Presence => "presence",
        };
        let attributes = self.attributes(to);
        format!("<{name} type='error'{attributes}>{}</{name}>", trouble.element())
    }

    fn attributes(&self, to: Option<&str>) -> String {
        [("id", self.id.as_deref()), ("from", self.to.as_deref()), ("to", to)]
            .into_iter()
            .filter_map(|(name, value)| Some(format!(" {name}='{}'", escape_attribute(value?))))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEAKER: Speaker<'_> = Speaker { domain: "example.org", bare: "me@example.org", resource: "r" };

    fn heard(text: &str) -> Heard {
        let text = text.replacen('>', " xmlns='jabber:client'>", 1);
        hear(&text.parse().expect("an element"), &SPEAKER)
    }

    fn answer(text: &str) -> Element {
        match heard(text) {
            Heard::Answer(answer) => answer.replacen('>', " xmlns='jabber:client'>", 1).parse().expect("an element"),
            other => panic!("{text} gives {other:?}"),
        }
    }

    fn condition(text: &str) -> String {
        let answer = answer(text);
        let error = answer.get_child("error", NS_CLIENT).expect("an error");
        error.children().next().expect("a condition").name().to_owned()
    }

    #[test]
    fn an_iq_that_can_not_be_served_is_answered_with_what_is_wrong() {
        assert_eq!(condition("<iq type='get' id='1'><x xmlns='y'/></iq>"), "service-unavailable");
        assert_eq!(
            condition("<iq type='get' id='1' to='you@example.org'><ping xmlns='urn:xmpp:ping'/></iq>"),
            "service-unavailable"
        );
        assert_eq!(condition("<iq type='get'><ping xmlns='urn:xmpp:ping'/></iq>"), "bad-request");
        assert_eq!(condition("<iq type='get' id='1'></iq>"), "bad-request");
        assert_eq!(condition("<iq type='what' id='1'><x xmlns='y'/></iq>"), "bad-request");
        assert_eq!(condition("<iq type='set' id='1'><open xmlns='urn:campanile:channel:1'/></iq>"), "bad-request");
        assert_eq!(heard("<iq type='error' id='1'></iq>"), Heard::Nothing);
        assert_eq!(heard("<iq type='result' id='1'></iq>"), Heard::Nothing);
    }

    #[test]
    fn messages_to_others_are_handed_on_but_payloads_are_not_and_errors_are_not_answered() {
        assert_eq!(condition("<message to='example.org'><body>hi</body></message>"), "service-unavailable");
        let nobody = || Recipient { account: None, resource: None };
        assert_eq!(heard("<message to='you@example.org'><body>hi</body></message>"), Heard::Route(nobody()));
        assert_eq!(heard("<message type='error' to='you@example.org'></message>"), Heard::Route(nobody()));
        assert_eq!(condition("<message to='you@example.com'></message>"), "remote-server-not-found");
        assert_eq!(condition("<message to='@'></message>"), "jid-malformed");
        assert_eq!(heard("<message type='error' to='@'></message>"), Heard::Nothing);
        assert_eq!(heard("<presence></presence>"), Heard::Presence(Addressee::Account));
        let channel = "<channel xmlns='urn:campanile:channel:1' number='5'>AAE=</channel>";
        let refused = format!("<message to='you@example.org'>{channel}</message>");
        assert_eq!(condition(&refused), "service-unavailable");
        let error = format!("<message type='error' to='you@example.org'>{channel}</message>");
        assert_eq!(heard(&error), Heard::Nothing);
        let result = format!("<iq type='result' id='1' to='you@example.org/r'>{channel}</iq>");
        assert_eq!(heard(&result), Heard::Nothing);
        let Heard::Up(request) = heard(&format!("<message id='7'>{channel}</message>")) else { panic!("a payload") };
        assert_eq!(request.payload, Payload { number: 5, bytes: vec![0, 1] });
    }

    #[test]
    fn an_answer_goes_back_where_the_stanza_came_from() {
        let answer = answer("<iq type='get' id='a&apos;b' to='example.org'><ping xmlns='urn:xmpp:ping'/></iq>");
        assert_eq!(answer.attr("type"), Some("result"));
        assert_eq!(answer.attr("id"), Some("a'b"));
        assert_eq!(answer.attr("from"), Some("example.org"));
        assert_eq!(answer.attr("to"), Some("me@example.org/r"));
    }

    #[test]
    fn a_stanza_is_from_whom_it_is_from() {
        for from in ["me@example.org", "ME@EXAMPLE.org/r"] {
            assert_eq!(heard(&format!("<presence from='{from}'></presence>")), Heard::Presence(Addressee::Account));
        }
        for from in ["", "you@example.org", "me@example.org/other", "example.org", "me@example.com"] {
            let heard = heard(&format!("<presence from='{from}'></presence>"));
            assert_eq!(heard, Heard::End(Reason::InvalidFrom), "{from:?}");
        }
        let element: Element = "<message xmlns='jabber:server'/>".parse().expect("an element");
        assert_eq!(hear(&element, &SPEAKER), Heard::End(Reason::InvalidNamespace));
    }

    #[test]
    fn what_is_no_stanza_ends_the_stream() {
        let element: Element = "<x xmlns='y'/>".parse().expect("an element");
        assert_eq!(hear(&element, &SPEAKER), Heard::End(Reason::UnsupportedStanzaType));
        let element: Element = "<a xmlns='urn:xmpp:sm:3' h='many'/>".parse().expect("an element");
        assert_eq!(hear(&element, &SPEAKER), Heard::End(Reason::UnsupportedStanzaType));
    }
}
