use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use idl::clock::{Clock, SystemEntropy};
use idl::contract::bus::TokenRevoked;
use idl::token::KeyRing;
use idl::xml::{Limits as XmlLimits, StreamReader};
use prometheus_client::registry::Registry;
use proptest::prelude::*;

use super::*;
use crate::fast::client_message;
use crate::metrics::Metrics;
use crate::scram::{Keys, client_proof};

const LIMITS: XmlLimits = XmlLimits { stanza_bytes_max: 4096, depth_max: 8 };
const HEADER: &str = "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' \
                      to='example.org' version='1.0'>";
const ACCOUNT: AccountId = AccountId(1);
const LOGIN: Login = Login { account: ACCOUNT, issued_at_ms: 5 };
const EXPORTER: Exporter = [9; 32];
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

struct At(AtomicU64);

impl Clock for At {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A front's credentials and clock.
struct Front {
    credentials: Arc<Credentials>,
    clock: Arc<At>,
}

impl Front {
    fn new() -> Self {
        let clock = Arc::new(At(AtomicU64::new(1000 * DAY_MS)));
        let metrics = Arc::new(Metrics::register(&mut Registry::default()));
        let credentials = Credentials::new(ring(), 1, 1, Arc::clone(&clock) as _, metrics);
        Self { credentials: Arc::new(credentials), clock }
    }

    fn negotiator(&self, protection: Protection, attempts: u32) -> Negotiator {
        let limits = Limits { login_attempts_max: attempts, ..Limits::default() };
        let credentials = Arc::clone(&self.credentials);
        Negotiator::new("example.org".into(), credentials, Arc::new(SystemEntropy), protection, &limits, true)
    }

    /// A stream whose features have been written.
    fn stream(&self, protection: Protection, exporter: Option<Exporter>) -> Stream {
        let mut negotiator = self.negotiator(protection, 3);
        if exporter.is_some() {
            negotiator.tls_started(exporter);
        }
        let mut stream = Stream { negotiator, said: String::new() };
        stream.open(None);
        stream
    }

    /// A stream over TLS.
    fn secured(&self) -> Stream {
        self.stream(Protection::Secured, Some(EXPORTER))
    }

    /// The token that a client gets with a login by `PLAIN`.
    fn fast_token(&self, mechanism: &str) -> String {
        let mut stream = self.secured();
        let wanted = format!("<request-token xmlns='urn:xmpp:fast:0' mechanism='{mechanism}'/>");
        assert_eq!(stream.authenticate("PLAIN", &plain(), &format!("{AGENT}{wanted}")), Step::LoggedIn);
        token_in(&stream.said)
    }

    /// Logs in with a token on a new stream.
    fn with_token(&self, mechanism: &str, token: &str, binding: &[u8]) -> (Step, Stream) {
        let mut stream = self.secured();
        let message = client_message(&ACCOUNT.to_string(), token, binding);
        let step = stream.authenticate(mechanism, &message, &format!("{AGENT}{FAST}"));
        (step, stream)
    }
}

struct Stream {
    negotiator: Negotiator,
    /// What the last words of the client were answered with.
    said: String,
}

impl Stream {
    fn open(&mut self, from: Option<&str>) {
        let (to, version) = (Some("example.org".into()), Some("1.0".into()));
        let header = Header { to, version, from: from.map(str::to_owned), ..Header::default() };
        assert_eq!(self.take(Event::Opened(header)), Step::Read);
    }

    fn take(&mut self, event: Event) -> Step {
        let mut out = Vec::new();
        let step = self.negotiator.handle(event, &mut out);
        self.said = String::from_utf8(out).expect("text");
        step
    }

    fn hear(&mut self, element: &str) -> Step {
        self.take(Event::Element(element.parse().expect("an element")))
    }

    fn auth(&mut self, mechanism: &str, message: &[u8]) -> Step {
        let text = STANDARD.encode(message);
        self.hear(&format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='{mechanism}'>{text}</auth>"))
    }

    fn authenticate(&mut self, mechanism: &str, message: &[u8], inline: &str) -> Step {
        let text = STANDARD.encode(message);
        self.hear(&format!(
            "<authenticate xmlns='urn:xmpp:sasl:2' mechanism='{mechanism}'>\
             <initial-response>{text}</initial-response>{inline}</authenticate>"
        ))
    }

    /// The condition of the failure that was said.
    fn failure(&self) -> String {
        let failure: Element = self.said.parse().expect("an element");
        assert!(failure.is("failure", failure.ns().as_str()) && Profile::of(&failure).is_some(), "{}", self.said);
        let condition = failure.children().next().expect("a condition");
        assert!(condition.has_ns("urn:ietf:params:xml:ns:xmpp-sasl"), "{}", self.said);
        condition.name().to_owned()
    }
}

const AGENT: &str = "<user-agent id='d4565fa7-4d72-4749-b3d3-740edbf87770'><device>it</device></user-agent>";
const FAST: &str = "<fast xmlns='urn:xmpp:fast:0' count='1'/>";
const BIND: &str = "<bind xmlns='urn:xmpp:bind:0'><tag>app</tag><enable xmlns='urn:xmpp:sm:3' resume='1'/></bind>";

fn ring() -> KeyRing {
    KeyRing::new(&[(1, [7; 32])])
}

fn plain() -> Vec<u8> {
    format!("\0{ACCOUNT}\0{}", ring().issue(ACCOUNT, LOGIN.issued_at_ms)).into_bytes()
}

fn token_in(said: &str) -> String {
    let (_, rest) = said.split_once(" token='").unwrap_or_else(|| panic!("a token in {said}"));
    rest.split('\'').next().expect("its end").to_owned()
}

fn bind_of(step: Step) -> Bind {
    match step {
        Step::Bind(bind) => bind,
        other => panic!("a bind was expected, not {other:?}"),
    }
}

/// What a client may say, in whatever order.
fn said() -> impl Strategy<Value = String> {
    let sasl = |name: &str, attributes: &str, text: &str| {
        format!("<{name} xmlns='urn:ietf:params:xml:ns:xmpp-sasl' {attributes}>{text}</{name}>")
    };
    let sasl2 = |mechanism: &str, text: &str, inline: &str| {
        format!(
            "<authenticate xmlns='urn:xmpp:sasl:2' mechanism='{mechanism}'>\
             <initial-response>{text}</initial-response>{inline}</authenticate>"
        )
    };
    let inline = proptest::sample::subsequence(
        vec![
            AGENT,
            BIND,
            FAST,
            "<fast xmlns='urn:xmpp:fast:0' invalidate='true'/>",
            "<resume xmlns='urn:xmpp:sm:3' previd='x' h='1'/>",
            "<resume xmlns='urn:xmpp:sm:3'/>",
            "<request-token xmlns='urn:xmpp:fast:0' mechanism='HT-SHA-256-NONE'/>",
            "<request-token xmlns='urn:xmpp:fast:0' mechanism='HT-SHA-256-EXPR'/>",
        ],
        0..=8,
    )
    .prop_map(|children| children.concat());
    let mechanism = proptest::sample::select(vec![
        "PLAIN",
        "SCRAM-SHA-256",
        "SCRAM-SHA-256-PLUS",
        "HT-SHA-256-EXPR",
        "HT-SHA-256-NONE",
        "EXTERNAL",
        "",
    ]);
    // A name that exists, and a proof of the right length.
    let hashed = proptest::array::uniform32(any::<u8>())
        .prop_map(|proof| STANDARD.encode([ACCOUNT.to_string().as_bytes(), &[0], &proof].concat()));
    let first = |flag: &str| STANDARD.encode(format!("{flag},,n={ACCOUNT},r=abc"));
    let message = prop_oneof![
        "[A-Za-z0-9+/=]{0,24}",
        hashed,
        Just(first("n")),
        Just(first("y")),
        Just(first("p=tls-exporter")),
        Just(STANDARD.encode(format!("\0{ACCOUNT}\0cpf1.AAAA"))),
    ];
    let ns = prop_oneof![Just("urn:ietf:params:xml:ns:xmpp-sasl"), Just("urn:xmpp:sasl:2")];
    prop_oneof![
        Just("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>".to_owned()),
        (mechanism.clone(), message.clone()).prop_map(move |(mechanism, text)| sasl(
            "auth",
            &format!("mechanism='{mechanism}'"),
            &text
        )),
        (mechanism.clone(), message.clone(), inline.clone())
            .prop_map(move |(mechanism, text, inline)| sasl2(mechanism, &text, &inline)),
        (mechanism, inline).prop_map(|(mechanism, inline)| {
            format!("<authenticate xmlns='urn:xmpp:sasl:2' mechanism='{mechanism}'>{inline}</authenticate>")
        }),
        (ns, message).prop_map(|(ns, text)| format!("<response xmlns='{ns}'>{text}</response>")),
        Just(sasl("abort", "", "")),
        Just("<abort xmlns='urn:xmpp:sasl:2'/>".to_owned()),
        Just("<success xmlns='urn:xmpp:sasl:2'/>".to_owned()),
        Just("<iq type='set' id='1'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>".to_owned()),
        Just("<resume xmlns='urn:xmpp:sm:3' previd='x' h='1'/>".to_owned()),
    ]
}

proptest! {
    #[test]
    fn nobody_gets_in_without_a_token(
        all in proptest::collection::vec(said(), 0..12),
        clear: bool,
        exporter in proptest::option::of(Just(EXPORTER)),
    ) {
        let mut negotiator =
            Front::new().negotiator(if clear { Protection::MustStartTls } else { Protection::Secured }, 100);
        if !clear {
            negotiator.tls_started(exporter);
        }
        let mut reader = StreamReader::new(LIMITS);
        let text = format!("{HEADER}{}", all.concat());
        let mut bytes = text.as_bytes();
        let mut out = Vec::new();
        while let Some(event) = reader.read(&mut bytes).expect("well-formed") {
            match negotiator.handle(event, &mut out) {
                Step::Read => {}
                Step::CheckScram(_) => {
                    prop_assert!(!clear, "no proof is taken in the clear");
                    let step = negotiator.scram_checked(Err(Failure::NotAuthorized), &mut out);
                    prop_assert_eq!(step, Step::Read);
                }
                Step::StartTls => prop_assert!(clear),
                Step::End(_) => break,
                step @ (Step::Restart | Step::LoggedIn | Step::Bind(_) | Step::Resume(_)) => {
                    panic!("{step:?} without a token")
                }
            }
            prop_assert!(!negotiator.is_logged_in());
        }
        let said = String::from_utf8(out).expect("text");
        prop_assert!(!said.contains("<success") && !said.contains("<token"), "{said}");
    }
}

#[test]
fn a_token_gets_in_and_binds() {
    let mut stream = Front::new().stream(Protection::Secured, None);
    assert_eq!(stream.auth("PLAIN", &plain()), Step::Restart);
    stream.open(None);
    let bind = stream.hear(
        "<iq xmlns='jabber:client' type='set' id='1'>\
         <bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>r</resource></bind></iq>",
    );
    let bind = bind_of(bind);
    assert_eq!((bind.login, bind.resource.as_str(), bind.enable), (LOGIN, "r", None));
    let expected = format!(
        "<iq type='result' id='1'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>\
         <jid>{ACCOUNT}@example.org/r</jid></bind></iq>"
    );
    assert_eq!(bind.answer("example.org", None), expected);
}

#[test]
fn what_is_offered_depends_on_the_tls_below() {
    let front = Front::new();
    let offers = [
        front.stream(Protection::Clear, None),
        front.stream(Protection::Secured, None),
        front.stream(Protection::Secured, Some(EXPORTER)),
    ];
    let offered = offers.map(|stream| {
        let count = |text: &str| stream.said.matches(text).count();
        let names = ["SCRAM-SHA-256<", "PLAIN<", "SCRAM-SHA-256-PLUS<", "'tls-exporter'", "HT-SHA-256-NONE<", "-EXPR<"];
        names.map(count)
    });
    assert_eq!(offered[0], [2, 0, 0, 0, 0, 0], "nothing that shows a token");
    assert_eq!(offered[1], [2, 2, 0, 0, 1, 0], "nothing that is bound to TLS");
    assert_eq!(offered[2], [2, 2, 2, 1, 1, 1]);
}

#[test]
fn one_request_logs_in_and_binds_with_stream_management_on() {
    let mut stream = Front::new().secured();
    let bind = bind_of(stream.authenticate("PLAIN", &plain(), &format!("{AGENT}{BIND}")));
    assert_eq!(stream.said, "", "the answer waits for the resource");
    assert!(stream.negotiator.is_logged_in());
    assert_eq!((bind.login, bind.enable, bind.inactive), (LOGIN, Some(true), false));
    let own = bind.resource.strip_prefix("app/").expect("the tag goes before");
    assert!(own.len() == 16 && !own.contains('/'), "{own}");
    let always = features::Announced::of(&Limits::default(), true).features(true);
    assert_eq!(
        bind.answer("example.org", Some("<enabled xmlns='urn:xmpp:sm:3'/>")),
        format!(
            "<success xmlns='urn:xmpp:sasl:2'>\
             <authorization-identifier>{ACCOUNT}@example.org/app/{own}</authorization-identifier>\
             <bound xmlns='urn:xmpp:bind:0'><enabled xmlns='urn:xmpp:sm:3'/></bound></success>\
             <stream:features>{always}</stream:features>"
        )
    );
}

#[test]
fn the_resource_of_a_client_is_always_the_same_and_another_s_is_another() {
    let front = Front::new();
    let resource = |agent: &str, tag: &str| {
        let bind = format!("{agent}<bind xmlns='urn:xmpp:bind:0'><tag>{tag}</tag></bind>");
        bind_of(front.secured().authenticate("PLAIN", &plain(), &bind)).resource
    };
    let first = resource(AGENT, "app");
    assert_eq!(resource(AGENT, "app"), first);
    assert_ne!(resource("<user-agent id='another'/>", "app"), first);
    assert_ne!(resource("", "app"), resource("", "app"), "without an id there is nothing to tell it by");
    // A tag that no resource may hold is passed over.
    let untagged = resource(AGENT, "&#x7f;");
    assert_eq!(format!("app/{untagged}"), first);
    assert_eq!(resource(AGENT, &"x".repeat(1024)), untagged);
    assert_eq!(resource(AGENT, ""), untagged);
}

#[test]
fn a_login_without_a_resource_goes_on_on_the_same_stream() {
    let mut stream = Front::new().secured();
    assert_eq!(stream.authenticate("PLAIN", &plain(), ""), Step::LoggedIn);
    let expected = format!(
        "<success xmlns='urn:xmpp:sasl:2'><authorization-identifier>{ACCOUNT}@example.org</authorization-identifier>\
         </success><stream:features><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/><sm xmlns='urn:xmpp:sm:3'/>"
    );
    assert!(stream.said.starts_with(&expected), "{}", stream.said);
    let step = stream
        .hear("<iq xmlns='jabber:client' type='set' id='1'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>");
    assert_eq!(bind_of(step).login, LOGIN);
    // A second login is an error of the stream (XEP-0388 §2.9).
    assert_eq!(stream.authenticate("PLAIN", &plain(), ""), Step::End(Reason::NotLoggedIn));
}

#[test]
fn a_stream_is_resumed_before_anything_is_bound() {
    let mut stream = Front::new().secured();
    let resume = "<resume xmlns='urn:xmpp:sm:3' previd='p' h='7'/>";
    let ask = |stream: &mut Stream, inline: &str| match stream.authenticate("PLAIN", &plain(), inline) {
        Step::Resume(resume) => resume,
        other => panic!("a resumption was expected, not {other:?}"),
    };
    let resume_and_bind = ask(&mut stream, &format!("{BIND}{resume}"));
    assert_eq!((resume_and_bind.previous.as_str(), resume_and_bind.handled), ("p", 7));
    let answer = resume_and_bind.answer("example.org", "r", "<resumed xmlns='urn:xmpp:sm:3' h='1' previd='p'/>");
    assert!(
        answer.contains(
            "@example.org/r</authorization-identifier><resumed xmlns='urn:xmpp:sm:3' h='1' previd='p'/></success>"
        ),
        "{answer}"
    );
    assert!(answer.ends_with("</stream:features>") && !answer.contains("<bound"), "{answer}");
    // It is not there: the resource is.
    let mut out = Vec::new();
    let bind = bind_of(stream.negotiator.not_resumed(resume_and_bind, &mut out));
    assert!(out.is_empty() && bind.resource.starts_with("app/"));
    let failed = "<failed xmlns='urn:xmpp:sm:3'><item-not-found xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></failed>";
    let answer = bind.answer("example.org", None);
    assert!(answer.contains(&format!("{failed}<bound xmlns='urn:xmpp:bind:0'></bound></success>")), "{answer}");
    // Nothing else was asked for: the client may bind as of old.
    let mut stream = Front::new().secured();
    let alone = ask(&mut stream, resume);
    assert_eq!(stream.negotiator.not_resumed(alone, &mut out), Step::LoggedIn);
    assert!(String::from_utf8(out).expect("text").contains(&format!("{failed}</success><stream:features><bind ")));
}

/// A login with SCRAM, up to the step after the final message; `shown` is what the client says of the TLS below.
fn scram(stream: &mut Stream, mechanism: &str, gs2: &str, shown: &[u8]) -> Step {
    let first = format!("n={ACCOUNT},r=abc");
    let step = stream.authenticate(mechanism, format!("{gs2}{first}").as_bytes(), "");
    if step != Step::Read || stream.said.contains("<failure") {
        return step;
    }
    let challenge: Element = stream.said.parse().expect("a challenge");
    let challenge = Profile::Sasl2.decode(&challenge.text()).expect("base 64");
    let challenge = String::from_utf8(challenge).expect("text");
    let nonce = challenge.split(',').next().expect("a nonce");
    let token = ring().issue(ACCOUNT, LOGIN.issued_at_ms);
    let salt = ring().scram_salt(&ACCOUNT.to_string());
    let binding = STANDARD.encode([gs2.as_bytes(), shown].concat());
    let without_proof = format!("c={binding},{nonce}");
    let proof = client_proof(&token, &salt, &format!("{first},{challenge},{without_proof}"));
    let last = STANDARD.encode(format!("{without_proof},p={}", STANDARD.encode(proof)));
    match stream.hear(&format!("<response xmlns='urn:xmpp:sasl:2'>{last}</response>")) {
        Step::CheckScram(check) => {
            let verified = Keys::derive(&token, &salt).verify(&check).ok_or(Failure::NotAuthorized);
            let mut out = Vec::new();
            let step = stream.negotiator.scram_checked(verified.map(|last| (LOGIN, last)), &mut out);
            stream.said = String::from_utf8(out).expect("text");
            step
        }
        other => other,
    }
}

#[test]
fn scram_binds_the_login_to_its_tls() {
    let front = Front::new();
    let mut stream = front.secured();
    assert_eq!(scram(&mut stream, "SCRAM-SHA-256-PLUS", "p=tls-exporter,,", &EXPORTER), Step::LoggedIn);
    assert!(stream.said.contains("<additional-data>"), "{}", stream.said);
    let mut stream = front.secured();
    assert_eq!(scram(&mut stream, "SCRAM-SHA-256-PLUS", "p=tls-exporter,,", &[8; 32]), Step::Read);
    assert_eq!(stream.failure(), "not-authorized", "someone else's TLS");
    let cases = [
        ("SCRAM-SHA-256-PLUS", "p=tls-unique,,"),
        ("SCRAM-SHA-256-PLUS", "n,,"),
        ("SCRAM-SHA-256", "p=tls-exporter,,"),
        // It would have bound the channel, and did not hear that we offered it.
        ("SCRAM-SHA-256", "y,,"),
    ];
    for (mechanism, gs2) in cases {
        let mut stream = front.secured();
        assert_eq!(scram(&mut stream, mechanism, gs2, &[]), Step::Read);
        assert_eq!(stream.failure(), "malformed-request", "{mechanism} {gs2}");
    }
    assert_eq!(scram(&mut front.secured(), "SCRAM-SHA-256", "n,,", &[]), Step::LoggedIn);
}

#[test]
fn without_an_exporter_nothing_is_bound_to_tls_and_a_client_that_would_is_welcome() {
    let front = Front::new();
    let over_tls_1_2 = || front.stream(Protection::Secured, None);
    assert_eq!(scram(&mut over_tls_1_2(), "SCRAM-SHA-256", "y,,", &[]), Step::LoggedIn);
    for mechanism in ["SCRAM-SHA-256-PLUS", "HT-SHA-256-EXPR"] {
        let mut stream = over_tls_1_2();
        assert_eq!(stream.authenticate(mechanism, b"p=tls-exporter,,n=x,r=y", ""), Step::Read);
        assert_eq!(stream.failure(), "invalid-mechanism", "{mechanism}");
    }
}

#[test]
fn a_token_of_an_earlier_login_gets_in_with_one_message() {
    let front = Front::new();
    for (mechanism, binding) in [("HT-SHA-256-EXPR", EXPORTER.as_slice()), ("HT-SHA-256-NONE", &[])] {
        let token = front.fast_token(mechanism);
        let (step, stream) = front.with_token(mechanism, &token, binding);
        assert_eq!(step, Step::LoggedIn, "{mechanism}");
        assert!(stream.said.contains("<additional-data>") && !stream.said.contains("<token"), "{}", stream.said);
        // A week later it is renewed, and is good all the same.
        front.clock.0.fetch_add(7 * DAY_MS, Ordering::Relaxed);
        let (step, stream) = front.with_token(mechanism, &token, binding);
        assert_eq!(step, Step::LoggedIn);
        let newer = token_in(&stream.said);
        assert_ne!(newer, token);
        assert_eq!(front.with_token(mechanism, &newer, binding).0, Step::LoggedIn);
        // It was good for at most four weeks.
        front.clock.0.fetch_add(21 * DAY_MS, Ordering::Relaxed);
        assert_eq!(front.with_token(mechanism, &newer, binding).0, Step::LoggedIn);
        assert_eq!(front.with_token(mechanism, &token, binding).1.failure(), "not-authorized");
    }
}

#[test]
fn a_token_is_of_one_mechanism_one_tls_connection_and_one_client() {
    let front = Front::new();
    let token = front.fast_token("HT-SHA-256-EXPR");
    for (mechanism, binding) in [("HT-SHA-256-NONE", [].as_slice()), ("HT-SHA-256-EXPR", &[8; 32])] {
        let (step, stream) = front.with_token(mechanism, &token, binding);
        assert_eq!((step, stream.failure().as_str()), (Step::Read, "not-authorized"), "{mechanism}");
    }
    let message = client_message(&ACCOUNT.to_string(), &token, &EXPORTER);
    let cases = [
        (format!("{AGENT}{FAST}"), None),
        (format!("<user-agent id='another'/>{FAST}"), Some("not-authorized")),
        (FAST.to_owned(), Some("malformed-request")),
        (AGENT.to_owned(), Some("malformed-request")),
        // Nothing here can invalidate one token, so the client does not hear that it is done.
        (format!("{AGENT}<fast xmlns='urn:xmpp:fast:0' invalidate='true'/>"), Some("not-authorized")),
    ];
    for (inline, expected) in cases {
        let mut stream = front.secured();
        let step = stream.authenticate("HT-SHA-256-EXPR", &message, &inline);
        match expected {
            None => assert_eq!(step, Step::LoggedIn, "{inline}"),
            Some(condition) => assert_eq!((step, stream.failure().as_str()), (Step::Read, condition), "{inline}"),
        }
    }
    let mut stream = front.secured();
    stream.auth("HT-SHA-256-EXPR", &message);
    assert_eq!(stream.failure(), "invalid-mechanism", "not in the older profile");
}

#[test]
fn a_revocation_ends_tokens_and_what_was_logged_in_with_them() {
    let front = Front::new();
    let token = front.fast_token("HT-SHA-256-EXPR");
    let mut stream = front.secured();
    let message = client_message(&ACCOUNT.to_string(), &token, &EXPORTER);
    let bind = bind_of(stream.authenticate("HT-SHA-256-EXPR", &message, &format!("{AGENT}{FAST}{BIND}")));
    assert!(!front.credentials.revoked.covers(bind.login));
    let revoked = TokenRevoked { account: ACCOUNT.to_string(), issued_before_ms: 6 };
    front.credentials.revoked.learn(&revoked);
    assert!(front.credentials.revoked.covers(bind.login), "the connection ends");
    assert_eq!(front.with_token("HT-SHA-256-EXPR", &token, &EXPORTER).1.failure(), "not-authorized");
    // Who proved an older token just before gets no successor to it.
    let mut stream = front.secured();
    let wanted = format!("{AGENT}<request-token xmlns='urn:xmpp:fast:0' mechanism='HT-SHA-256-EXPR'/>");
    let request = Request::read(
        &format!("<authenticate xmlns='urn:xmpp:sasl:2'>{wanted}</authenticate>").parse().expect("an element"),
        stream.negotiator.offer(),
    );
    stream.negotiator.stage = Stage::Checking(Asked::Sasl2(Box::new(request)));
    let mut out = Vec::new();
    assert_eq!(stream.negotiator.scram_checked(Ok((LOGIN, "v=".to_owned())), &mut out), Step::Read);
    stream.said = String::from_utf8(out).expect("text");
    assert_eq!(stream.failure(), "not-authorized");
    // Later logins have tokens of their own.
    let later = format!("\0{ACCOUNT}\0{}", ring().issue(ACCOUNT, 6)).into_bytes();
    assert_eq!(front.secured().authenticate("PLAIN", &later, &wanted), Step::LoggedIn);
}

#[test]
fn nothing_that_shows_a_token_goes_through_the_clear() {
    let front = Front::new();
    let mut stream = front.stream(Protection::MustStartTls, None);
    stream.authenticate("SCRAM-SHA-256", b"n,,n=x,r=y", "");
    assert_eq!(stream.failure(), "encryption-required");
    for mechanism in ["PLAIN", "HT-SHA-256-NONE"] {
        let mut stream = front.stream(Protection::Clear, None);
        stream.authenticate(mechanism, b"x", "");
        assert_eq!(stream.failure(), "encryption-required", "{mechanism}");
    }
    let stream = front.stream(Protection::Clear, None);
    let wanted = "<authenticate xmlns='urn:xmpp:sasl:2'>\
                  <request-token xmlns='urn:xmpp:fast:0' mechanism='HT-SHA-256-NONE'/></authenticate>";
    let request = Request::read(&wanted.parse().expect("an element"), stream.negotiator.offer());
    assert_eq!(request.token, None);
}

#[test]
fn a_stream_is_whose_it_says() {
    let front = Front::new();
    let cases = [
        (format!("{ACCOUNT}@example.org"), true),
        (format!("{ACCOUNT}@Example.org/resource"), true),
        (format!("{}@example.org", AccountId(2)), false),
        (format!("{ACCOUNT}@example.com"), false),
        (String::new(), false),
    ];
    for (from, is_so) in cases {
        let mut stream = front.secured();
        stream.open(Some(&from));
        let step = stream.authenticate("PLAIN", &plain(), BIND);
        if is_so {
            assert_eq!(bind_of(step).login, LOGIN, "{from}");
        } else {
            assert_eq!((step, stream.failure().as_str()), (Step::Read, "invalid-authzid"), "{from}");
            assert!(!stream.negotiator.is_logged_in());
        }
    }
}

#[test]
fn failures_of_both_profiles_count_together_and_say_what_was_wrong() {
    let front = Front::new();
    let mut stream = front.secured();
    let mut failures = vec![];
    let words = [
        "<authenticate xmlns='urn:xmpp:sasl:2' mechanism='EXTERNAL'/>",
        "<abort xmlns='urn:xmpp:sasl:2'/>",
        "<response xmlns='urn:xmpp:sasl:2'>AAAA</response>",
    ];
    let steps = words.map(|words| {
        let step = stream.hear(words);
        failures.push(stream.failure());
        step
    });
    assert_eq!(failures, ["invalid-mechanism", "aborted", "malformed-request"]);
    assert_eq!(steps, [Step::Read, Step::Read, Step::End(Reason::LoginAttempts)]);
    // What was begun in one profile is not gone on with in the other.
    let mut stream = front.secured();
    assert_eq!(stream.hear("<authenticate xmlns='urn:xmpp:sasl:2' mechanism='PLAIN'/>"), Step::Read);
    assert_eq!(stream.said, "<challenge xmlns='urn:xmpp:sasl:2'></challenge>");
    let response = STANDARD.encode(plain());
    stream.hear(&format!("<response xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>{response}</response>"));
    assert_eq!(stream.failure(), "malformed-request");
    assert_eq!(stream.hear("<authenticate xmlns='urn:xmpp:sasl:2' mechanism='PLAIN'/>"), Step::Read);
    assert_eq!(stream.hear(&format!("<response xmlns='urn:xmpp:sasl:2'>{response}</response>")), Step::LoggedIn);
    let mut stream = front.secured();
    stream.hear(
        "<authenticate xmlns='urn:xmpp:sasl:2' mechanism='PLAIN'><initial-response>=</initial-response></authenticate>",
    );
    assert_eq!(stream.failure(), "incorrect-encoding");
}
