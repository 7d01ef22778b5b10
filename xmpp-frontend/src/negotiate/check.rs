//! The promises of a negotiation, held against any bytes: what fuzzing calls.

use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use idl::clock::{Clock, Entropy};
use idl::token::KeyRing;
use idl::xml::{Limits as XmlLimits, StreamReader};
use prometheus_client::registry::Registry;

use super::{
    AccountId, Credentials, Element, Event, Exporter, Failure, Limits, Login, NS_SM, Negotiator, Protection, Reason,
    SharedEntropy, Step, random_hex,
};
use crate::fast::client_message;
use crate::metrics::Metrics;
use crate::scram::{Keys, client_proof};

const ACCOUNT: AccountId = AccountId(7);
const DOMAIN: &str = "example.org";
const LOGIN: Login = Login { account: ACCOUNT, issued_at_ms: 5 };
const NOW_MS: u64 = 1_000_000_000;
const EXPORTER: Exporter = [9; 32];
const CLIENT: &str = "c";
/// Most that one element is answered with, besides what it repeats.
const ANSWER_BYTES_MAX: usize = 4096;
const LIMITS_WRITTEN: XmlLimits = XmlLimits { stanza_bytes_max: 1024 * 1024, depth_max: 16 };

/// Lets a client say anything, and asserts what the module promises: however its bytes are cut, it is answered the same; what is
/// answered is XML, and bounded; who fails too often is cut off; and nobody gets in whose words hold no token or proof.
///
/// The first byte says how: the two lowest bits in the clear, before STARTTLS, or within TLS without or with an exporter; the
/// others how long the pieces are. The rest is what the client says. There `(…)` stands for what it holds in base 64, and
/// these for what a client knows that has a token:
///
/// ```text
/// {account} {token}             who it is and its token
/// {plain}                       the message of PLAIN
/// {first} {final}               those of SCRAM-SHA-256: (n,,{first}), (c=biws,{final})
/// {plus}                        the last of SCRAM-SHA-256-PLUS, whole
/// {ht} {ht-bound}               those of HT-SHA-256-NONE and -EXPR for the client `c`
/// ```
pub(crate) fn check(input: &[u8]) {
    let Some((&how, words)) = input.split_first() else { return };
    let knowledge = &*KNOWLEDGE;
    let mut knows = false;
    let said = knowledge.say(words, &mut knows);
    let whole = Talk::of(how, &said, said.len().max(1));
    for length in [1, usize::from(how >> 2).max(1)] {
        assert_eq!(Talk::of(how, &said, length), whole, "in pieces of {length} bytes it is answered the same");
    }
    assert!(knows || !whole.got_in, "{:?} without a token", whole.steps);
    let failures: usize = whole.streams.iter().map(|stream| failures(stream)).sum();
    assert!(failures <= 3, "{failures} failed logins");
}

/// What a client knows.
struct Knowledge {
    credentials: Arc<Credentials>,
    keys: Keys,
    words: Vec<(&'static str, Vec<u8>)>,
}

static KNOWLEDGE: LazyLock<Knowledge> = LazyLock::new(|| {
    let ring = KeyRing::new(&[(1, [7; 32])]);
    let metrics = Arc::new(Metrics::register(&mut Registry::default()));
    let credentials = Arc::new(Credentials::new(ring.clone(), 1, 1, Arc::new(Still), metrics));
    let (account, token) = (ACCOUNT.to_string(), ring.issue(ACCOUNT, LOGIN.issued_at_ms));
    let salt = ring.scram_salt(&account);
    let first = format!("n={account},r=abc");
    let nonce = random_hex(&(Arc::new(Still) as SharedEntropy));
    let challenge = format!("r=abc{nonce},s={},i={}", STANDARD.encode(salt), crate::scram::ITERATIONS);
    let last = |binding: &[u8]| {
        let without_proof = format!("c={},r=abc{nonce}", STANDARD.encode(binding));
        let proof = client_proof(&token, &salt, &format!("{first},{challenge},{without_proof}"));
        format!("{without_proof},p={}", STANDARD.encode(proof))
    };
    let unbound = last(b"n,,").split_once(',').map(|(_, last)| last.to_owned()).unwrap_or_default();
    let plus = last(&[b"p=tls-exporter,,".as_slice(), &EXPORTER].concat());
    let fast = |mechanism, binding: &[u8]| {
        let token = credentials.issue_fast(LOGIN, CLIENT, mechanism).expect("a token in force");
        let element: Element = token.element().parse().expect("an element");
        STANDARD.encode(client_message(&account, element.attr("token").expect("a token"), binding)).into_bytes()
    };
    let words = vec![
        ("plain", STANDARD.encode(format!("\0{account}\0{token}")).into_bytes()),
        ("token", token.clone().into_bytes()),
        ("final", unbound.into_bytes()),
        ("plus", STANDARD.encode(plus).into_bytes()),
        ("ht", fast(crate::fast::Mechanism::Unbound, &[])),
        ("ht-bound", fast(crate::fast::Mechanism::Exporter, &EXPORTER)),
        ("account", account.into_bytes()),
        ("first", first.into_bytes()),
    ];
    Knowledge { keys: Keys::derive(&token, &salt), credentials, words }
});

impl Knowledge {
    /// What the words stand for, and whether a secret is among them.
    fn say(&self, mut words: &[u8], knows: &mut bool) -> Vec<u8> {
        let mut said = Vec::with_capacity(words.len());
        while let Some((&first, rest)) = words.split_first() {
            let until = |end| rest.iter().position(|byte| *byte == end).map(|at| (&rest[..at], &rest[at + 1..]));
            let known = until(b'}').filter(|_| first == b'{').and_then(|(name, after)| {
                let known = self.words.iter().find(|(known, _)| known.as_bytes() == name)?;
                Some((known, after))
            });
            words = if let Some(((name, word), after)) = known {
                *knows |= !matches!(*name, "account" | "first");
                said.extend_from_slice(word);
                after
            } else if let Some((inner, after)) = until(b')').filter(|_| first == b'(') {
                said.extend_from_slice(STANDARD.encode(self.say(inner, knows)).as_bytes());
                after
            } else {
                said.push(first);
                rest
            };
        }
        said
    }
}

/// Time and randomness that are always the same.
struct Still;

impl Clock for Still {
    fn now_ms(&self) -> u64 {
        NOW_MS
    }
}

impl Entropy for Still {
    fn fill(&self, buffer: &mut [u8]) {
        buffer.fill(3);
    }
}

/// A negotiation from its beginning to its end, or to the end of what the client says.
#[derive(Default, PartialEq, Eq)]
struct Talk {
    steps: Vec<String>,
    /// What was answered, each stream by itself.
    streams: Vec<Vec<u8>>,
    got_in: bool,
}

impl std::fmt::Debug for Talk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let streams: Vec<_> = self.streams.iter().map(|stream| String::from_utf8_lossy(stream)).collect();
        f.debug_struct("Talk").field("steps", &self.steps).field("streams", &streams).finish_non_exhaustive()
    }
}

/// Whether a talk goes on.
#[derive(PartialEq, Eq)]
enum Next {
    Goes,
    Ends,
}

impl Talk {
    fn of(how: u8, said: &[u8], length: usize) -> Self {
        let (protection, exporter) = match how & 3 {
            0 => (Protection::Clear, None),
            1 => (Protection::MustStartTls, None),
            2 => (Protection::Secured, None),
            _ => (Protection::Secured, Some(EXPORTER)),
        };
        let (credentials, entropy) = (Arc::clone(&KNOWLEDGE.credentials), Arc::new(Still));
        let mut negotiator = Negotiator::new(DOMAIN.into(), credentials, entropy, protection, &Limits::default(), true);
        if exporter.is_some() {
            negotiator.tls_started(exporter);
        }
        let mut talk = Self { streams: vec![Vec::new()], ..Self::default() };
        talk.hear(&mut negotiator, said, length);
        for stream in &talk.streams {
            assert!(is_whole(stream), "{}", String::from_utf8_lossy(stream));
        }
        let bytes: usize = talk.streams.iter().map(Vec::len).sum();
        assert!(bytes <= (talk.steps.len() + 1) * ANSWER_BYTES_MAX + 6 * said.len(), "{bytes} bytes are answered");
        talk
    }

    /// As `login.rs` does it.
    fn hear(&mut self, negotiator: &mut Negotiator, said: &[u8], length: usize) {
        let mut reader = StreamReader::new(limits(negotiator));
        let mut fresh = true;
        for piece in said.chunks(length) {
            let mut rest = piece;
            loop {
                if fresh {
                    rest = rest.trim_ascii_start();
                    fresh = rest.is_empty();
                }
                let event = match reader.read(&mut rest) {
                    Ok(None) => break,
                    Ok(Some(event)) => event,
                    Err(error) => return self.end(negotiator, Reason::from(&error)),
                };
                let streams = self.streams.len();
                if self.handle(negotiator, event) == Next::Ends {
                    return;
                }
                if self.streams.len() > streams {
                    (reader, fresh) = (StreamReader::new(limits(negotiator)), true);
                } else {
                    reader.set_limits(limits(negotiator));
                }
            }
        }
    }

    fn handle(&mut self, negotiator: &mut Negotiator, event: Event) -> Next {
        let mut out = Vec::new();
        let mut step = negotiator.handle(event, &mut out);
        if let Step::CheckScram(check) = step {
            let proved = KNOWLEDGE.keys.verify(&check).filter(|_| check.username.account == Some(ACCOUNT));
            self.steps.push(format!("check for {:?}", check.username));
            step = negotiator.scram_checked(proved.map(|last| (LOGIN, last)).ok_or(Failure::NotAuthorized), &mut out);
        }
        if let Step::Resume(resume) = step {
            assert_eq!(resume.login.account, ACCOUNT);
            self.got_in = true;
            self.steps.push(format!("resume {:?}", resume.previous));
            if resume.previous == "there" {
                let resumed = format!("<resumed xmlns='{NS_SM}' h='0' previd='there'/>");
                out.extend_from_slice(resume.answer(DOMAIN, "r", &resumed).as_bytes());
                self.answered(&out);
                return Next::Ends;
            }
            step = negotiator.not_resumed(resume, &mut out);
        }
        self.steps.push(format!("{step:?}"));
        self.got_in |= matches!(step, Step::Restart | Step::LoggedIn | Step::Bind(_)) || negotiator.is_logged_in();
        if let Step::Bind(bind) = &step {
            assert_eq!(bind.login.account, ACCOUNT);
            let enabled = bind.enable.map(|_| format!("<enabled xmlns='{NS_SM}'/>"));
            out.extend_from_slice(bind.answer(DOMAIN, enabled.as_deref()).as_bytes());
        }
        self.answered(&out);
        match step {
            Step::Read | Step::LoggedIn => Next::Goes,
            Step::Restart => {
                self.streams.push(Vec::new());
                Next::Goes
            }
            Step::StartTls => {
                negotiator.tls_started(Some(EXPORTER));
                self.streams.push(Vec::new());
                Next::Goes
            }
            Step::End(reason) => {
                self.end(negotiator, reason);
                Next::Ends
            }
            Step::Bind(_) => Next::Ends,
            Step::CheckScram(_) | Step::Resume(_) => panic!("{step:?} was answered"),
        }
    }

    fn end(&mut self, negotiator: &mut Negotiator, reason: Reason) {
        self.steps.push(format!("end: {}", reason.label()));
        let mut words = Vec::new();
        negotiator.end(reason, &mut words);
        self.answered(&words);
    }

    fn answered(&mut self, out: &[u8]) {
        if let Some(stream) = self.streams.last_mut() {
            stream.extend_from_slice(out);
        }
    }
}

fn limits(negotiator: &Negotiator) -> XmlLimits {
    let limits = Limits::default();
    let logged_in = negotiator.is_logged_in();
    let stanza_bytes_max = if logged_in { limits.stanza_bytes_max } else { limits.stanza_bytes_max_before_login };
    XmlLimits { stanza_bytes_max, depth_max: limits.stanza_depth_max }
}

/// What was written is a stream up to the end of an element, or nothing.
fn is_whole(stream: &[u8]) -> bool {
    let (mut reader, mut rest) = (StreamReader::new(LIMITS_WRITTEN), stream);
    while !rest.is_empty() {
        // A client that opens its stream again is answered with a header, and no client does.
        match reader.read(&mut rest) {
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return false,
        }
    }
    reader.is_between_elements()
}

fn failures(stream: &[u8]) -> usize {
    String::from_utf8_lossy(stream).matches("<failure ").count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_knows_a_token_gets_in_by_each_mechanism() {
        let header = "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' \
                      to='example.org' version='1.0'>";
        for (how, mechanism, first, last) in [
            (b'2', "PLAIN", "{plain}", None),
            (b'2', "PLAIN", "(\0{account}\0{token})", None),
            (b'2', "SCRAM-SHA-256", "(n,,{first})", Some("(c=biws,{final})")),
            (b'3', "SCRAM-SHA-256-PLUS", "(p=tls-exporter,,{first})", Some("{plus}")),
            (b'2', "HT-SHA-256-NONE", "{ht}", None),
            (b'3', "HT-SHA-256-EXPR", "{ht-bound}", None),
        ] {
            let last = last.map(|last| format!("<response xmlns='urn:xmpp:sasl:2'>{last}</response>"));
            let words = format!(
                "{header}<authenticate xmlns='urn:xmpp:sasl:2' mechanism='{mechanism}'>\
                 <initial-response>{first}</initial-response><user-agent id='c'/><fast xmlns='urn:xmpp:fast:0'/>\
                 </authenticate>{}",
                last.unwrap_or_default()
            );
            let mut knows = false;
            let talk = Talk::of(how, &KNOWLEDGE.say(words.as_bytes(), &mut knows), words.len());
            assert!(talk.got_in && knows, "{mechanism}: {talk:?}");
        }
    }
}
