//! Plays the transcripts in `tests/transcripts`.
//!
//! A line says what happens next; `#` begins a comment.
//!
//! | line | meaning |
//! | --- | --- |
//! | `security: starttls` | how connections that are opened from here on are protected (`trusted` at first) |
//! | `limit: <name> <number>` | a limit of the front, before anything else |
//! | `include: <file>` | the lines of another file |
//! | `C: <xml/>` | the client sends this |
//! | `C: login <number>/<resource>` | the client opens a connection and logs in, as that account |
//! | `C: cut` | the client's connection breaks |
//! | `C: restart` | the client begins a new stream with what it sends next |
//! | `S: <xml/>` | the server says exactly this: same names, attributes, texts and children, in this order |
//! | `S: <stream:stream>`, `S: </stream:stream>` | the server opens, or closes, its stream |
//! | `S: end` | the server closes the connection |
//! | `X: …`, `F: …` | the same as `C:` and `S:` for the service of channel 7 and the front on its connection |
//! | `M: revoke`, `M: push <text>` | the middle tier revokes the account's tokens, or sends a payload |
//! | `M: fail to connect`, `M: say nothing` | the middle tier refuses the next login as no client would expect; or answers none |
//! | `M: drain` | the front drains |
//!
//! `C2:` and `S2:` are a second connection, `X2:` and `F2:` a second one of the service, and so on. `{name}` in a server's line matches any text the first time and the
//! same text ever after; in a client's line it stands for that text. Some are known from the start: see [`Script::new`].
//! `{authentication}` and `{logged-in}` in a server's line stand for elements that are the same everywhere: see [`ELEMENTS`].

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use campanile_xmpp_frontend::{Limits, Security};
use idl::bus::{Bus as _, FrontEvent};
use idl::contract::bus::TokenRevoked;
use idl::error::Code;
use idl::ids::AccountId;
use idl::xml::{Event, Limits as XmlLimits, StreamReader};
use minidom::{Element, Node};
use ring::{digest, hmac, pbkdf2};
use tokio::io::DuplexStream;
use tokio::time::Instant;

use crate::harness::{
    COMPONENT_HEADER, Client, DOMAIN, HEADER, NOW_MS, SERVICE_SECRET, World, account, handshake, item, settled, token,
};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/transcripts");
const SCRAM_FIRST: &str = "r=fyko+d2lbbFgONRv9qkxdawL";

/// What `what_is_offered_before_login.txt` and `what_is_offered_after_login.txt` write out, and the others do not.
const ELEMENTS: [(&str, &str); 3] = [
    (
        "{logged-in}",
        "<csi xmlns='urn:xmpp:csi:0'/>\
         <c xmlns='http://jabber.org/protocol/caps' hash='sha-1' node='urn:campanile:server' ver='{caps}'/>\
         <slim xmlns='urn:campanile:slim:1'/>",
    ),
    (
        "{authentication}",
        "<authentication xmlns='urn:xmpp:sasl:2'><mechanism>SCRAM-SHA-256</mechanism><mechanism>PLAIN</mechanism>\
         <inline><bind xmlns='urn:xmpp:bind:0'><inline><feature var='urn:xmpp:sm:3'/>\
         <feature var='urn:xmpp:csi:0'/></inline></bind>\
         <sm xmlns='urn:xmpp:sm:3'/><fast xmlns='urn:xmpp:fast:0'><mechanism>HT-SHA-256-NONE</mechanism></fast>\
         </inline></authentication>",
    ),
    (
        "{authentication-in-the-clear}",
        "<authentication xmlns='urn:xmpp:sasl:2'><mechanism>SCRAM-SHA-256</mechanism>\
         <inline><bind xmlns='urn:xmpp:bind:0'><inline><feature var='urn:xmpp:sm:3'/>\
         <feature var='urn:xmpp:csi:0'/></inline></bind>\
         <sm xmlns='urn:xmpp:sm:3'/></inline></authentication>",
    ),
];

macro_rules! transcripts {
    ($($name:ident)*) => {
        $(
            #[tokio::test(start_paused = true)]
            async fn $name() {
                play(stringify!($name)).await;
            }
        )*

        #[test]
        fn every_transcript_is_played() {
            let mut files: Vec<_> = std::fs::read_dir(FOLDER)
                .expect("transcripts")
                .map(|file| file.expect("a file").file_name().into_string().expect("a name"))
                .filter_map(|file| file.strip_suffix(".txt").map(str::to_owned))
                .collect();
            files.sort();
            let mut played = vec![$(stringify!($name).to_owned()),*];
            played.sort();
            assert_eq!(files, played);
        }
    };
}

transcripts! {
    a_component_of_an_unknown_name_is_refused
    a_component_that_does_not_know_its_secret_is_refused
    a_component_that_says_something_else_is_refused
    a_newer_connection_of_a_component_takes_over
    a_service_says_nothing_for_others
    a_service_that_comes_back_hears_who_is_there
    a_service_that_is_away_is_said_to_be
    acks_are_counted
    a_busy_service_ends_the_stream
    an_oversized_stanza_after_login_ends_the_stream
    an_oversized_stanza_before_login_ends_the_stream
    a_login_without_a_resource_binds_as_of_old
    a_front_that_drains_ends_its_streams
    a_login_that_takes_too_long_ends_the_stream
    a_lost_stream_is_resumed
    a_lost_stream_is_resumed_with_the_login
    a_newer_login_ends_the_older_stream_with_conflict
    a_revoked_token_is_refused_and_its_connection_ends
    a_stream_must_be_to_our_domain
    a_stream_must_be_xmpp_1
    a_token_for_coming_back_takes_one_round_trip
    channels_of_others_carry_payloads_both_ways
    channels_open_and_carry_payloads
    comments_end_the_stream
    content_of_another_kind_ends_the_stream
    devices_that_nobody_looks_at_get_only_what_is_urgent
    disco_says_what_is_here
    document_types_end_the_stream
    entities_end_the_stream
    limits_are_announced_as_they_are_set
    elements_that_are_no_stanzas_end_the_stream
    encodings_other_than_utf_8_end_the_stream
    failures_of_the_newer_profile_say_what_was_wrong
    iqs_are_answered_by_the_resource_that_they_are_to
    login_with_a_wrong_token_fails_a_bounded_number_of_times
    login_with_plain
    login_with_plain_in_the_clear_is_refused
    login_with_scram
    login_with_scram_and_a_wrong_token_or_account
    messages_to_an_account_reach_its_most_available_resources
    messages_to_a_resource_reach_it
    one_request_logs_in_and_binds
    pings_are_answered
    presence_is_told_to_the_resources_of_one_account
    processing_instructions_end_the_stream
    resources_are_chosen_or_made
    resuming_what_is_not_there_fails_at_once
    sasl_failures_say_what_was_wrong
    stanzas_before_login_end_the_stream
    stanzas_from_another_end_the_stream
    starttls_comes_before_anything_else
    subscriptions_are_refused
    text_between_stanzas_ends_the_stream
    trouble_of_the_server_s_own_ends_the_stream
    the_server_tells_its_version_and_an_account_has_none
    unknown_stanzas_are_answered_with_service_unavailable
    what_a_lost_client_never_acknowledged_goes_to_another_or_back
    what_is_for_nobody_is_refused_or_dropped
    what_is_offered_after_login
    what_is_offered_before_login
    who_says_too_much_is_refused
    xml_that_is_not_well_formed_ends_the_stream
}

async fn play(name: &str) {
    let lines = read(&format!("{name}.txt"));
    let mut limits = Limits::default();
    for line in &lines {
        if let Some(limit) = line.text.strip_prefix("limit: ") {
            let (name, number) = limit.split_once(' ').expect("a limit and a number");
            match name {
                "stanza_bytes_max" => limits.stanza_bytes_max = number.parse().expect("a number"),
                "stanzas_per_second_max" => limits.stanzas_per_second_max = number.parse().expect("a number"),
                "login_attempts_max" => limits.login_attempts_max = number.parse().expect("a number"),
                other => panic!("{}: limit {other} is not known to transcripts", line.place),
            }
        }
    }
    let mut script = Script::new(World::with(limits).await);
    for line in lines {
        // Shown if the test fails.
        println!("{}: {}", line.place, line.text);
        script.step(&line).await;
    }
}

struct Line {
    place: String,
    text: String,
}

fn read(file: &str) -> Vec<Line> {
    let text = std::fs::read_to_string(Path::new(FOLDER).join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    let mut lines = Vec::new();
    for (number, text) in text.lines().enumerate() {
        let text = text.trim();
        if let Some(file) = text.strip_prefix("include: ") {
            lines.extend(read(file));
        } else if !text.is_empty() && !text.starts_with('#') {
            lines.push(Line { place: format!("{file}:{}", number + 1), text: text.to_owned() });
        }
    }
    lines
}

struct Script {
    world: World,
    security: Security,
    clients: BTreeMap<String, Client<DuplexStream>>,
    services: BTreeMap<String, Client<DuplexStream>>,
    values: HashMap<String, String>,
}

impl Script {
    fn new(world: World) -> Self {
        let (one, token) = (account(1), token(account(1)));
        let stranger = account(12345);
        let base64 = |text: String| STANDARD.encode(text);
        let values = [
            ("header", HEADER.to_owned()),
            ("component-header", COMPONENT_HEADER.to_owned()),
            ("component-header-of-nobody", COMPONENT_HEADER.replace("rooms.", "games.")),
            ("header-from-another", HEADER.replace(" to=", &format!(" from='{stranger}@{DOMAIN}' to="))),
            ("account", one.to_string()),
            ("friend", account(2).to_string()),
            ("plain", base64(format!("\0{one}\0{token}"))),
            ("plain-jid", base64(format!("{one}@{DOMAIN}\0{one}@{DOMAIN}\0{token}"))),
            ("plain-wrong", base64(format!("\0{one}\0{token}x"))),
            ("plain-stranger", base64(format!("\0{stranger}\0{token}"))),
            ("plain-for-another", base64(format!("other@{DOMAIN}\0{one}\0{token}"))),
            ("scram-first", base64(format!("n,,n={one},{SCRAM_FIRST}"))),
            ("scram-first-stranger", base64(format!("n,,n={stranger},{SCRAM_FIRST}"))),
            ("scram-first-binding", base64(format!("p=tls-exporter,,n={one},{SCRAM_FIRST}"))),
            ("newline", "\n".to_owned()),
            ("fill-1000", "x".repeat(1000)),
            ("fill-9000", "x".repeat(9000)),
        ];
        let values = values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Self { world, security: Security::Trusted, clients: BTreeMap::new(), services: BTreeMap::new(), values }
    }

    async fn step(&mut self, line: &Line) {
        let place = &line.place;
        let (who, text) = line.text.split_once(':').unwrap_or_else(|| panic!("{place}: no colon"));
        let text = text.trim();
        match (who.get(..1), who) {
            (_, "limit") => {}
            (_, "security") => {
                self.security = match text {
                    "starttls" => Security::StartTls,
                    "plain" => Security::Plain,
                    "trusted" => Security::Trusted,
                    other => panic!("{place}: {other} is no security"),
                };
            }
            (_, "M") => self.middle(place, text).await,
            (Some("C"), _) => {
                let text = self.fill(place, text);
                let client = self.client(&who[1..]).await;
                match text.as_str() {
                    "restart" => client.restart(),
                    text if text.starts_with("login ") => {
                        let (number, resource) = text["login ".len()..].split_once('/').expect("a resource");
                        client.log_in(account(number.parse().expect("a number")), resource).await;
                    }
                    "cut" => {
                        self.clients.remove(&who[1..]);
                    }
                    text => client.send(text).await,
                }
            }
            (Some("S"), _) => {
                let client = self.client(&who[1..]).await;
                let said = client.next().await;
                self.compare(place, text, said);
            }
            (Some("X"), _) => {
                let text = self.fill(place, text);
                let service = self.service(&who[1..]).await;
                match text.as_str() {
                    "cut" => {
                        self.services.remove(&who[1..]);
                        // The front notices before anything else happens.
                        settled().await;
                    }
                    text => service.send(text).await,
                }
            }
            (Some("F"), _) => {
                let said = self.service(&who[1..]).await.next().await;
                self.compare_to_component(place, text, said);
            }
            _ => panic!("{place}: {who} is not known"),
        }
    }

    async fn client(&mut self, name: &str) -> &mut Client<DuplexStream> {
        if !self.clients.contains_key(name) {
            let client = self.world.connect(self.security).await;
            self.clients.insert(name.to_owned(), client);
        }
        self.clients.get_mut(name).expect("it is there")
    }

    async fn service(&mut self, name: &str) -> &mut Client<DuplexStream> {
        if !self.services.contains_key(name) {
            let service = self.world.connect_component().await;
            self.services.insert(name.to_owned(), service);
        }
        self.services.get_mut(name).expect("it is there")
    }

    async fn middle(&self, place: &str, text: &str) {
        if text == "drain" {
            self.world.drain.cancel();
        } else if text == "fail to connect" {
            self.world.middle.fail("Connect", Code::Illegal);
        } else if text == "say nothing" {
            self.world.middle.hold("Connect");
        } else if text == "revoke" {
            let issued_before_ms = i64::try_from(NOW_MS + 1).expect("a time");
            let revoked = TokenRevoked { account: account(1).to_string(), issued_before_ms };
            self.world.middle.set_revoked(vec![revoked.clone()]);
            self.world.bus.publish(FrontEvent::TokenRevoked(revoked), Instant::now()).await.expect("published");
        } else if let Some(payload) = text.strip_prefix("push ") {
            let epoch = self.world.middle.epoch(account(1), "r");
            assert_eq!(self.world.deliver(vec![item(account(1), epoch, &[payload.as_bytes()])]).await, []);
        } else {
            panic!("{place}: the middle does not know {text}");
        }
    }

    /// Puts values in place of `{name}`s.
    fn fill(&mut self, place: &str, text: &str) -> String {
        let mut filled = String::new();
        let mut rest = text;
        while let Some((before, name, after)) = placeholder(rest) {
            filled.push_str(before);
            filled.push_str(&self.value(place, name));
            rest = after;
        }
        filled + rest
    }

    fn value(&mut self, place: &str, name: &str) -> String {
        match name {
            "scram-final" => self.scram_final(&token(account(1))),
            "scram-final-wrong" => self.scram_final("another token"),
            "ht" => self.ht(),
            name => self.values.get(name).cloned().unwrap_or_else(|| panic!("{place}: nothing is known of {name}")),
        }
    }

    /// The client's part of RFC 5802 §3, from the challenge that was last captured. Also sets `scram-success`.
    fn scram_final(&mut self, password: &str) -> String {
        let challenge = STANDARD.decode(self.values.remove("challenge").expect("a challenge")).expect("base 64");
        let first = format!("n={},{SCRAM_FIRST}", account(1));
        let (last, success) = scram_final(password, "n,,", &[], &first, &challenge);
        self.values.insert("scram-success".to_owned(), success);
        last
    }

    /// A client's message of HT-SHA-256-NONE, with the token that was captured. Also sets `ht-answer`.
    fn ht(&mut self) -> String {
        let (message, answer) = ht(account(1), &self.values["fast-token"], &[]);
        self.values.insert("ht-answer".to_owned(), answer);
        message
    }

    /// What the front says to the service of a channel. The stream's id is what the next handshake is over.
    fn compare_to_component(&mut self, place: &str, expected: &str, said: Option<Event>) {
        match (expected, said) {
            ("<stream:stream>", Some(Event::Opened(header))) => {
                assert_eq!(header.version, None, "{place}");
                let id = header.id.unwrap_or_else(|| panic!("{place}: no id"));
                for (name, secret) in [("handshake", SERVICE_SECRET), ("handshake-wrong", "another secret")] {
                    self.values.insert(name.to_owned(), handshake(&id, secret));
                }
                self.values.insert("component-from".to_owned(), header.from.unwrap_or_default());
            }
            (expected, Some(Event::Element(said))) if expected.starts_with('<') && !expected.starts_with("</") => {
                let text = format!("{COMPONENT_HEADER}{expected}");
                let pattern = parse_behind(&text).unwrap_or_else(|| panic!("{place}: {expected:?} is no element"));
                if let Err(difference) = self.matches(&pattern, &said) {
                    panic!("{place}: {difference}\nexpected {expected}\nsaid     {}", String::from(&said));
                }
            }
            (expected, said) => self.compare(place, expected, said),
        }
    }

    fn compare(&mut self, place: &str, expected: &str, said: Option<Event>) {
        match (expected, said) {
            ("end", None) | ("</stream:stream>", Some(Event::Closed)) => {}
            ("<stream:stream>", Some(Event::Opened(header))) => {
                assert_eq!(header.from.as_deref(), Some(DOMAIN), "{place}");
                assert_eq!(header.version.as_deref(), Some("1.0"), "{place}");
                assert!(
                    header.id.is_some_and(|id| id.len() >= 16),
                    "{place}: a stream has an id that can't be guessed"
                );
            }
            (expected, Some(Event::Element(said))) => {
                let spelled = |text: String, (name, element): (&str, &str)| text.replace(name, element);
                let expected = &ELEMENTS.into_iter().fold(expected.to_owned(), spelled);
                let pattern = parse(expected).unwrap_or_else(|| panic!("{place}: {expected:?} is no element"));
                if let Err(difference) = self.matches(&pattern, &said) {
                    panic!("{place}: {difference}\nexpected {expected}\nsaid     {}", String::from(&said));
                }
            }
            (expected, said) => panic!("{place}: expected {expected}, not {said:?}"),
        }
    }

    fn matches(&mut self, pattern: &Element, said: &Element) -> Result<(), String> {
        let name = said.name();
        if (pattern.name(), pattern.ns()) != (name, said.ns()) {
            return Err(format!("<{name}/> in {} is another element", said.ns()));
        }
        let attributes = |element: &Element| -> BTreeMap<String, String> {
            element.attrs().iter().map(|((_, name), value)| (name.to_string(), value.clone())).collect()
        };
        let (expected, found) = (attributes(pattern), attributes(said));
        if !expected.keys().eq(found.keys()) {
            return Err(format!("<{name}/> has the attributes {found:?}"));
        }
        for (attribute, expected) in expected {
            self.matches_text(&expected, &found[&attribute])
                .map_err(|why| format!("{attribute} of <{name}/> {why}"))?;
        }
        let text = |element: &Element| -> String { element.nodes().filter_map(Node::as_text).collect() };
        self.matches_text(&text(pattern), &text(said)).map_err(|why| format!("the text of <{name}/> {why}"))?;
        if pattern.children().count() != said.children().count() {
            return Err(format!("<{name}/> has other children"));
        }
        pattern.children().zip(said.children()).try_for_each(|(pattern, said)| self.matches(pattern, said))
    }

    fn matches_text(&mut self, expected: &str, found: &str) -> Result<(), String> {
        let expected = match placeholder(expected) {
            Some(("", name, "")) => self.values.entry(name.to_owned()).or_insert_with(|| found.to_owned()).clone(),
            Some(_) => self.fill("", expected),
            None => expected.to_owned(),
        };
        if expected == found { Ok(()) } else { Err(format!("is {found:?}, not {expected:?}")) }
    }
}

/// The final message of a client and what the server must say to it (RFC 5802 §3), in base 64. `gs2` is the header of the
/// first message, `first` its rest, and `binding` what the client says of the TLS below.
pub(crate) fn scram_final(
    password: &str,
    gs2: &str,
    binding: &[u8],
    first: &str,
    challenge: &[u8],
) -> (String, String) {
    let challenge = std::str::from_utf8(challenge).expect("text");
    let attribute = |name: &str| challenge.split(',').find_map(|part| part.strip_prefix(name)).expect("an attribute");
    let (nonce, salt) = (attribute("r="), STANDARD.decode(attribute("s=")).expect("base 64"));
    let iterations = attribute("i=").parse().expect("a number");
    let mut salted = [0; 32];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, &salt, password.as_bytes(), &mut salted);
    let client_key = sign(&salted, b"Client Key");
    let stored = digest::digest(&digest::SHA256, client_key.as_ref());
    let without_proof = format!("c={},r={nonce}", STANDARD.encode([gs2.as_bytes(), binding].concat()));
    let message = format!("{first},{challenge},{without_proof}");
    let signature = sign(stored.as_ref(), message.as_bytes());
    let proof: Vec<u8> = client_key.as_ref().iter().zip(signature.as_ref()).map(|(a, b)| a ^ b).collect();
    let last = sign(sign(&salted, b"Server Key").as_ref(), message.as_bytes());
    let success = STANDARD.encode(format!("v={}", STANDARD.encode(last)));
    (STANDARD.encode(format!("{without_proof},p={}", STANDARD.encode(proof))), success)
}

/// The message of a client that comes back with a token, and what the server must say to it, in base 64.
pub(crate) fn ht(account: AccountId, token: &str, binding: &[u8]) -> (String, String) {
    let proof = |word: &[u8]| sign(token.as_bytes(), &[word, binding].concat());
    let message = [account.to_string().as_bytes(), &[0], proof(b"Initiator").as_ref()].concat();
    (STANDARD.encode(message), STANDARD.encode(proof(b"Responder")))
}

fn sign(key: &[u8], message: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message)
}

/// What is before, in and behind the first braces.
fn placeholder(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once('{')?;
    let (name, after) = rest.split_once('}')?;
    Some((before, name, after))
}

fn parse(text: &str) -> Option<Element> {
    parse_behind(&format!("{HEADER}{text}"))
}

/// The one element behind a header.
fn parse_behind(stream: &str) -> Option<Element> {
    let mut reader = StreamReader::new(XmlLimits { stanza_bytes_max: 1 << 20, depth_max: 32 });
    let mut unread = stream.as_bytes();
    reader.read(&mut unread).ok()??;
    match reader.read(&mut unread).ok()?? {
        Event::Element(element) if unread.is_empty() => Some(element),
        _ => None,
    }
}
