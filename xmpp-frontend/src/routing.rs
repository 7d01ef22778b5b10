//! From one connection to another (RFC 6121 §8), as far as that goes without rosters, without anything stored, and among
//! the connections of this front.
//!
//! Whoever speaks may take half of the receiver's outbox, which is there for what the middle tier hands over, and may
//! make so many deliveries a second.

use std::io::{self, Write};
use std::sync::Arc;

use idl::ids::AccountId;
use idl::slim;
use idl::xml::{Limits, NS_CLIENT};
use jid::Jid;
use minidom::Element;
use minidom::rxml::{Namespace, NcName};
use tokio::time::Instant;

use crate::Shared;
use crate::client_state::{ClientState, Haste};
use crate::form::Frame;
use crate::line::{Line, NotTaken};
use crate::presence::Presence;
use crate::stanza::{ReplyTo, Trouble};

/// What a client may be sent (`docs/protocol.md`, section 11), less what slim puts around it. Else somebody could end the
/// streams of others.
const SAID_BYTES_MAX: usize = 64 * 1024 - 16;

/// Someone of our domain that a stanza is to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recipient {
    /// `None` for a name that no account can have.
    pub(crate) account: Option<AccountId>,
    pub(crate) resource: Option<Box<str>>,
}

/// Whom a stanza is to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Addressee {
    /// The server.
    Domain,
    /// The sender's own account, which is whom a stanza without an address is to (RFC 6120 §10.3).
    Account,
    /// The resource that it is from.
    Myself,
    /// Another resource of the sender's account, or another account.
    Other(Recipient),
    /// Nobody of our domain.
    Elsewhere,
    /// That is no JID.
    Malformed,
}

impl Addressee {
    /// Reads `to`, coming from that resource of that bare JID.
    pub(crate) fn read(to: Option<&str>, domain: &str, bare: &str, resource: &str) -> Self {
        let Some(to) = to else { return Self::Account };
        if to.eq_ignore_ascii_case(domain) {
            return Self::Domain;
        }
        let Ok(jid) = Jid::new(to) else { return Self::Malformed };
        if !jid.domain().as_str().eq_ignore_ascii_case(domain) {
            return Self::Elsewhere;
        }
        let to_resource = jid.resource().map(jid::ResourceRef::as_str);
        let Some(node) = jid.node() else {
            // The domain has no resources (RFC 6120 §10.5.2).
            return Self::Other(Recipient { account: None, resource: to_resource.map(Into::into) });
        };
        let is_mine = bare.split_once('@').is_some_and(|(account, _)| account == node.as_str());
        match to_resource {
            None if is_mine => Self::Account,
            Some(to) if is_mine && to == resource => Self::Myself,
            to => Self::Other(Recipient { account: node.as_str().parse().ok(), resource: to.map(Into::into) }),
        }
    }
}

/// What a line has once its client deals with others, or says how it is.
#[derive(Default)]
pub(crate) struct Dealings {
    /// `None` while it is unavailable.
    pub(crate) presence: Option<Presence>,
    pub(crate) client_state: ClientState,
    pub(crate) pace: Pace,
}

/// How much a connection has said to others of late: a bucket that may be overdrawn once.
#[derive(Default)]
pub(crate) struct Pace {
    filled_at: Option<Instant>,
    owed: f64,
}

impl Pace {
    /// True if something may be said, at so many deliveries a second.
    pub(crate) fn may_speak(&mut self, per_second: usize, now: Instant) -> bool {
        let per_second = f64::from(u32::try_from(per_second).unwrap_or(u32::MAX));
        let since = self.filled_at.replace(now).map_or(0.0, |at| (now - at).as_secs_f64());
        self.owed = (self.owed - since * per_second).max(0.0);
        self.owed < per_second
    }

    /// So many deliveries were made.
    pub(crate) fn spoke(&mut self, deliveries: usize) {
        self.owed += f64::from(u32::try_from(deliveries).unwrap_or(u32::MAX));
    }
}

/// A type of message (RFC 6121 §5.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    Chat,
    Groupchat,
    Headline,
    Error,
}

impl Kind {
    fn of(message: &Element) -> Self {
        match message.attr("type") {
            Some("chat") => Self::Chat,
            Some("groupchat") => Self::Groupchat,
            Some("headline") => Self::Headline,
            Some("error") => Self::Error,
            // Others are to be taken for that.
            _ => Self::Normal,
        }
    }
}

/// Hands a message or an IQ on, stamped with whom it is from. Whoever sent it is told why it was not taken, unless that is
/// not to be told.
pub(crate) fn route(shared: &Shared, sender: &Arc<Line>, stanza: Element, to: &Recipient) -> Result<(), Trouble> {
    let is_iq = stanza.is("iq", NS_CLIENT);
    let may_answer = !matches!((is_iq, stanza.attr("type")), (_, Some("error")) | (true, Some("result")));
    let routed = try_route(shared, sender, stanza, to, is_iq);
    if may_answer { routed } else { Ok(()) }
}

fn try_route(shared: &Shared, sender: &Arc<Line>, stanza: Element, to: &Recipient, is_iq: bool) -> Result<(), Trouble> {
    may_speak(shared, sender)?;
    let kind = if is_iq { None } else { Some(Kind::of(&stanza)) };
    let receivers = receivers(shared, kind, to)?;
    let from = full_jid(shared, sender);
    let haste = if is_iq { Haste::Urgent } else { Haste::of_message(&stanza, &from) };
    let frame = stamp(shared, stanza, &from)?;
    match deliver(sender, &receivers, &frame, &haste) {
        Ok(()) => {
            shared.metrics.stanzas_routed.inc();
            Ok(())
        }
        Err(NotTaken::Closing) => absent(kind),
        Err(NotTaken::Busy) => {
            shared.metrics.stanzas_refused.inc();
            let text = "the receiver does not take what is written to it fast enough; try again later";
            Err(Trouble::new("wait", "resource-constraint", text))
        }
    }
}

/// Refuses whoever says too much.
pub(crate) fn may_speak(shared: &Shared, sender: &Line) -> Result<(), Trouble> {
    let per_second = shared.config.limits.stanzas_per_second_max;
    if sender.with_dealings(|dealings| dealings.pace.may_speak(per_second, Instant::now())) {
        return Ok(());
    }
    shared.metrics.limit("stanzas_per_second_max");
    Err(Trouble::new("wait", "resource-constraint", "too many stanzas to others; try again in a second"))
}

/// Hands a stanza to receivers. It is taken if one of them takes it.
pub(crate) fn deliver(
    sender: &Arc<Line>,
    receivers: &[Arc<Line>],
    frame: &Frame,
    haste: &Haste,
) -> Result<(), NotTaken> {
    sender.with_dealings(|dealings| dealings.pace.spoke(receivers.len()));
    let mut outcome = Err(NotTaken::Closing);
    for receiver in receivers {
        let taken = receiver.deliver(frame.clone(), haste.clone());
        match (&outcome, taken) {
            (_, Ok(())) => {
                outcome = Ok(());
                if !Arc::ptr_eq(receiver, sender) {
                    receiver.flush();
                }
            }
            (Err(_), Err(NotTaken::Busy)) => outcome = Err(NotTaken::Busy),
            _ => {}
        }
    }
    outcome
}

/// What others sent to a connection that has ended and that its client never acknowledged goes where it would go now, as if it
/// had been sent to a resource that is not there (XEP-0198 §5): to others of its account, or back as an error.
pub(crate) fn hand_back(shared: &Shared, line: &Line) {
    let limits = Limits { stanza_bytes_max: SAID_BYTES_MAX, depth_max: shared.config.limits.stanza_depth_max };
    for text in line.take_unacknowledged() {
        let stanza = str::from_utf8(&text).ok().and_then(|text| slim::element(text, limits).ok());
        if let Some(stanza) = stanza {
            hand_on(shared, &stanza, &Frame::Stanza(text));
        }
    }
}

fn hand_on(shared: &Shared, stanza: &Element, frame: &Frame) {
    let (is_iq, kind) = (stanza.is("iq", NS_CLIENT), Kind::of(stanza));
    let wants_answer = !matches!((is_iq, stanza.attr("type")), (_, Some("error")) | (true, Some("result")));
    let someone = |name| match Addressee::read(stanza.attr(name), &shared.config.domain, "", "") {
        Addressee::Other(recipient) => Some(recipient),
        _ => None,
    };
    // Our own answers are from nobody, and presence is told anew.
    let (Some(from), Some(to)) = (someone("from"), someone("to")) else { return };
    if stanza.is("presence", NS_CLIENT) {
        return;
    }
    let give = |receivers: &[Arc<Line>], frame: &Frame| {
        for receiver in receivers {
            if receiver.deliver(frame.clone(), Haste::Urgent).is_ok() {
                receiver.flush();
            }
        }
    };
    match receivers(shared, (!is_iq).then_some(kind), &to) {
        Ok(receivers) => give(&receivers, frame),
        Err(trouble) if wants_answer => {
            let error = ReplyTo::of(stanza).error(stanza.attr("from"), &trouble);
            let back = receivers(shared, None, &from).unwrap_or_default();
            give(&back, &Frame::stanza(error));
        }
        Err(_) => {}
    }
}

/// Who gets a stanza: nobody where that is in order, and an error where the sender has to hear of it. `kind` is `None` for
/// an IQ.
fn receivers(shared: &Shared, kind: Option<Kind>, to: &Recipient) -> Result<Vec<Arc<Line>>, Trouble> {
    let mut lines = to.account.map(|account| shared.hubs.of(account).lines_of(account)).unwrap_or_default();
    lines.retain(|line| line.closing().is_none());
    if let Some(resource) = &to.resource {
        // RFC 6121 §8.5.3.1.
        if let Some(line) = lines.iter().find(|line| line.resource == *resource) {
            return Ok(vec![Arc::clone(line)]);
        }
    }
    let Some(kind) = kind else { return Err(Trouble::unavailable()) };
    let to_account = to.resource.is_none() || kind == Kind::Chat;
    if to_account {
        let priorities: Vec<_> = lines.iter().map(|line| Some(line.presence()?.priority)).collect();
        let chosen = choose(kind, &priorities);
        let mut chosen = chosen.into_iter();
        lines.retain(|_| chosen.next().unwrap_or(false));
    } else {
        lines.clear();
    }
    if lines.is_empty() { absent(Some(kind)).map(|()| lines) } else { Ok(lines) }
}

/// Which of the resources with these priorities get a message to their account (RFC 6121 §8.5.2.1.1): a headline all that
/// are available and not negative, others those of them that have the highest priority.
fn choose(kind: Kind, priorities: &[Option<i8>]) -> Vec<bool> {
    let available = |priority: &Option<i8>| priority.filter(|priority| *priority >= 0);
    let highest = priorities.iter().filter_map(available).max();
    let gets = |priority: &Option<i8>| match kind {
        Kind::Groupchat | Kind::Error => false,
        Kind::Headline => available(priority).is_some(),
        Kind::Normal | Kind::Chat => highest.is_some() && available(priority) == highest,
    };
    priorities.iter().map(gets).collect()
}

/// Nobody is there (RFC 6121 §8.5.2.2, §8.5.3.2): headlines and errors are dropped without a word.
fn absent(kind: Option<Kind>) -> Result<(), Trouble> {
    match kind {
        Some(Kind::Headline | Kind::Error) => Ok(()),
        _ => Err(Trouble::unavailable()),
    }
}

/// The stanza as it goes to others: whoever it says it is from, it is from that full JID (RFC 6120 §8.1.2.1).
pub(crate) fn stamp(shared: &Shared, mut stanza: Element, from: &str) -> Result<Frame, Trouble> {
    set(&mut stanza, "from", from);
    write(&stanza, shared.config.limits.stanza_bytes_max.min(SAID_BYTES_MAX))
}

/// Sets an attribute of that plain name.
pub(crate) fn set(stanza: &mut Element, attribute: &'static str, value: &str) {
    let attribute = NcName::try_from(attribute).expect("it is a name");
    stanza.set_attr(Namespace::NONE, attribute, value);
}

/// A stanza's text. Prefixes are written out, so a short stanza may have a long text: it is refused while it grows.
fn write(stanza: &Element, bytes_max: usize) -> Result<Frame, Trouble> {
    let mut out = Bounded { bytes: Vec::new(), bytes_max };
    if stanza.write_to(&mut out).is_err() {
        let text =
            "the stanza is too large once its sender is in it and its namespaces are declared where they are used";
        return Err(Trouble::new("modify", "policy-violation", text));
    }
    // As all that we say, within a stream that declares it.
    let text = String::from_utf8_lossy(&out.bytes);
    let declared = [format!(" xmlns='{NS_CLIENT}'"), format!(" xmlns=\"{NS_CLIENT}\"")];
    let short = declared.iter().find_map(|declared| {
        let name = format!("<{}", stanza.name());
        Some(name.clone() + text.strip_prefix(&name)?.strip_prefix(declared.as_str())?)
    });
    Ok(Frame::stanza(short.as_deref().unwrap_or(&text)))
}

/// Takes so many bytes and no more.
struct Bounded {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.bytes_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) fn full_jid(shared: &Shared, line: &Line) -> String {
    format!("{}@{}/{}", line.account(), shared.config.domain, line.resource)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_message_to_an_account_goes_to_its_most_available_resources() {
        let priorities = [None, Some(-1), Some(0), Some(5), Some(5)];
        let gets = |kind| choose(kind, &priorities).iter().map(|gets| u8::from(*gets)).collect::<Vec<_>>();
        assert_eq!(gets(Kind::Chat), [0, 0, 0, 1, 1]);
        assert_eq!(gets(Kind::Normal), [0, 0, 0, 1, 1]);
        assert_eq!(gets(Kind::Headline), [0, 0, 1, 1, 1]);
        assert_eq!(gets(Kind::Groupchat), [0; 5]);
        assert_eq!(gets(Kind::Error), [0; 5]);
        assert_eq!(choose(Kind::Chat, &[None, Some(-1), Some(-128)]), [false; 3]);
        assert_eq!(choose(Kind::Chat, &[Some(0), None]), [true, false]);
    }

    #[test]
    fn an_address_is_read_as_jids_are_compared() {
        const ME: &str = "00000000000000000000000007";
        let bare = format!("{ME}@example.org");
        let read = |to: &str| Addressee::read(Some(to), "example.org", &bare, "R");
        let other = |account: Option<u128>, resource: Option<&str>| {
            Addressee::Other(Recipient { account: account.map(AccountId), resource: resource.map(Into::into) })
        };
        assert_eq!(Addressee::read(None, "example.org", &bare, "R"), Addressee::Account);
        assert_eq!(read("Example.ORG"), Addressee::Domain);
        assert_eq!(read(&bare), Addressee::Account);
        assert_eq!(read(&format!("{bare}/R")), Addressee::Myself);
        assert_eq!(read(&format!("{bare}/r")), other(Some(7), Some("r")), "resources have their case");
        assert_eq!(read("0000000000000000000000000a@EXAMPLE.org"), other(Some(10), None));
        assert_eq!(read("0000000000000000000000000A@example.org/x/y"), other(Some(10), Some("x/y")));
        assert_eq!(read("someone@example.org"), other(None, None));
        assert_eq!(read("example.org/x"), other(None, Some("x")));
        assert_eq!(read("someone@example.com"), Addressee::Elsewhere);
        assert_eq!(read("example.com"), Addressee::Elsewhere);
        for malformed in ["", "@example.org", "a@", "/x", "someone@example.org/"] {
            assert_eq!(read(malformed), Addressee::Malformed, "{malformed:?}");
        }
    }

    #[test]
    fn a_stanza_that_grows_when_it_is_written_is_refused() {
        let small: Element = "<message xmlns='jabber:client' to='a'><body>&lt;</body><x xmlns='y'/></message>"
            .parse()
            .expect("a message");
        let mut text = Vec::new();
        write(&small, 1000).expect("it is small").write(&mut crate::form::Form::Xml, &mut text);
        let text = String::from_utf8(text).expect("text");
        assert!(text.starts_with("<message to="), "{text}");
        let namespace = "n".repeat(500);
        let mut large = Element::bare("message", NS_CLIENT);
        for _ in 0..100 {
            large.append_child(Element::bare("x", namespace.as_str()));
        }
        assert_eq!(write(&large, 10_000).err().map(|trouble| trouble.condition()), Some("policy-violation"));
    }

    #[test]
    fn who_overdraws_the_bucket_waits_until_it_is_filled() {
        let mut pace = Pace::default();
        let mut now = Instant::now();
        assert!(pace.may_speak(10, now));
        pace.spoke(30);
        assert!(!pace.may_speak(10, now));
        now += Duration::from_secs(1);
        assert!(!pace.may_speak(10, now));
        now += Duration::from_millis(1100);
        assert!(pace.may_speak(10, now));
    }
}
