//! The server's side of the protocol as a device meets it, without I/O: bytes in, bytes out, and a log of what was said.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use idl::channel::{PUSH, Payload};
use idl::clock::Entropy;
use idl::contract::message::Notification;
use idl::contract::push::{
    AppKeys, Deliver, FromDevice, Hello, Invalidated, Register, Registered, Result as Answer, Revoke, ToDevice,
};
use idl::ids::{AccountId, AppId, MessageId, RegId};
use idl::seal::{AgreementKey, BroadcastSealer, SingleSeal, verify_registration_proof};
use idl::slim::{self, Frame};
use idl::wire;
use idl::xml::{self, Event, Header, Limits, StreamReader};
use minidom::Element;

pub(crate) const DOMAIN: &str = "push.example.org";
pub(crate) const ACCOUNT: AccountId = AccountId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
pub(crate) const TOKEN: &str = "cpt1.1.1754000000000.c2VjcmV0";
pub(crate) const APP_KEY: &str = "demo-app-key";

/// The seed of the server's randomness; its private key comes first.
pub(crate) const SEED: u64 = 1_000;
pub(crate) const BROADCAST_KEY: [u8; 32] = *b"the key of this app's broadcasts";
pub(crate) const SIGNING_SEED: [u8; 32] = *b"the seed of the key that signs!!";

const LIMITS: Limits = Limits { stanza_bytes_max: 65_536, depth_max: 8 };
const SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";
const SM: &str = "urn:xmpp:sm:3";

/// Repeatable numbers (SplitMix64): the same bytes in every run.
pub(crate) struct Steady(AtomicU64);

impl Steady {
    pub(crate) fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }
}

impl Entropy for Steady {
    fn fill(&self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            let state = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed).wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes()[..chunk.len()]);
        }
    }
}

/// What the server does with `<slim/>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slim {
    NotOffered,
    Refused,
    /// It answers later: [`Server::agree`].
    Unanswered,
    Agreed,
}

/// What the server sent and may have to send again, in whatever form the stream has then.
#[derive(Debug, Clone)]
enum Stanza {
    Payload(Payload),
    Text(String),
}

/// How the server treats the next logins and commands.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches")]
pub(crate) struct Manners {
    /// The SASL condition to refuse logins with.
    pub(crate) login_failure: Option<&'static str>,
    pub(crate) mechanisms: &'static str,
    /// Offers XEP-0198, and resumption.
    pub(crate) manageable: bool,
    pub(crate) resumable: bool,
    pub(crate) slim: Slim,
    /// The stanza condition to refuse the channel with.
    pub(crate) channel_failure: Option<&'static str>,
    /// Another client, which answers the opening of the channel with an error before the server does.
    pub(crate) stranger: Option<&'static str>,
    /// Takes commands and says nothing.
    pub(crate) mute: bool,
    /// Codes to answer the next commands with.
    pub(crate) codes: Vec<i32>,
    /// Takes bytes and does nothing.
    pub(crate) deaf: bool,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            login_failure: None,
            mechanisms: "<mechanism>SCRAM-SHA-256</mechanism><mechanism>PLAIN</mechanism>",
            manageable: false,
            resumable: true,
            slim: Slim::NotOffered,
            channel_failure: None,
            stranger: None,
            mute: false,
            codes: Vec::new(),
            deaf: false,
        }
    }
}

/// What a registration is to the server.
pub(crate) struct ServerRegistration {
    pub(crate) regid: RegId,
    pub(crate) register: Register,
    seal: SingleSeal,
}

#[expect(clippy::struct_excessive_bools, reason = "independent facts about a connection")]
pub(crate) struct Server {
    pub(crate) manners: Manners,
    /// Whatever the device said on the channel, over all connections.
    pub(crate) said: Vec<FromDevice>,
    /// Each Hello.
    pub(crate) hellos: Vec<Hello>,
    /// Each stanza and other element, in text.
    pub(crate) elements: Vec<String>,
    pub(crate) registrations: BTreeMap<AppId, ServerRegistration>,
    pub(crate) logins: usize,
    pub(crate) resumptions: usize,
    pub(crate) token: String,
    /// True once the device has closed the stream.
    pub(crate) closed: bool,
    pub(crate) open: bool,
    /// Heartbeats that came as slim frames.
    pub(crate) pings: usize,
    /// Bytes that came in slim frames.
    pub(crate) slim_bytes: usize,
    reader: StreamReader,
    /// Reads frames once the stream is slim.
    slim: Option<slim::Reader>,
    /// `<slim/>` has come and is not answered.
    asked_for_slim: bool,
    authenticated: bool,
    secret: AgreementKey,
    broadcast: BroadcastSealer,
    entropy: Steady,
    managed: bool,
    received: u32,
    sent: u32,
    unacknowledged: Vec<(u32, Stanza)>,
    regids: u8,
}

impl Server {
    pub(crate) fn new() -> Self {
        let entropy = Steady::new(SEED);
        let mut secret = [0; 32];
        entropy.fill(&mut secret);
        Self {
            manners: Manners::default(),
            said: Vec::new(),
            hellos: Vec::new(),
            elements: Vec::new(),
            registrations: BTreeMap::new(),
            logins: 0,
            resumptions: 0,
            token: TOKEN.to_owned(),
            closed: false,
            open: false,
            pings: 0,
            slim_bytes: 0,
            reader: StreamReader::new(LIMITS),
            slim: None,
            asked_for_slim: false,
            authenticated: false,
            secret: AgreementKey::from_bytes(secret),
            broadcast: BroadcastSealer::new(&BROADCAST_KEY, &SIGNING_SEED),
            entropy,
            managed: false,
            received: 0,
            sent: 0,
            unacknowledged: Vec::new(),
            regids: 0,
        }
    }

    /// A new connection has come.
    pub(crate) fn connected(&mut self) {
        self.reader = StreamReader::new(LIMITS);
        self.slim = None;
        self.asked_for_slim = false;
        self.authenticated = false;
        self.open = false;
        self.closed = false;
    }

    /// Takes bytes; returns the answer.
    pub(crate) fn receive(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        if self.manners.deaf {
            return out;
        }
        assert!(!self.asked_for_slim || bytes.is_empty(), "the device says nothing before its <slim/> is answered");
        loop {
            if let Some(reader) = &mut self.slim {
                let length = bytes.len();
                let frame = reader.read(&mut bytes, LIMITS.stanza_bytes_max).expect("the device speaks slim");
                self.slim_bytes += length - bytes.len();
                let Some(frame) = frame else { return out };
                self.frame(frame, &mut out);
                continue;
            }
            match self.reader.read(&mut bytes).expect("the device speaks XMPP") {
                Some(Event::Opened(header)) => {
                    assert_eq!(header.to.as_deref(), Some(DOMAIN));
                    self.features(&mut out);
                }
                Some(Event::Element(element)) if element.is("slim", slim::NS) => {
                    assert!(bytes.is_empty(), "nothing follows <slim/>");
                    self.asked_for_slim = true;
                    match self.manners.slim {
                        Slim::NotOffered => panic!("slim was not offered"),
                        Slim::Refused => {
                            self.asked_for_slim = false;
                            out.extend_from_slice(slim::FAILURE.as_bytes());
                        }
                        Slim::Unanswered => {}
                        Slim::Agreed => out.extend(self.agree()),
                    }
                }
                Some(Event::Element(element)) => self.element(&element, &mut out),
                Some(Event::Closed) => self.closed = true,
                None => return out,
            }
        }
    }

    /// Agrees to the device's `<slim/>`.
    pub(crate) fn agree(&mut self) -> Vec<u8> {
        assert!(std::mem::take(&mut self.asked_for_slim), "the device has asked");
        self.slim = Some(slim::Reader::new());
        slim::SWITCH.as_bytes().to_vec()
    }

    pub(crate) fn is_slim(&self) -> bool {
        self.slim.is_some()
    }

    fn frame(&mut self, frame: Frame<'_>, out: &mut Vec<u8>) {
        assert!(!self.closed, "the device says nothing behind its end");
        match frame {
            Frame::Ping => {
                self.pings += 1;
                Frame::Pong.write(out);
            }
            Frame::Pong => {}
            Frame::Payload { number, bytes } => {
                self.count();
                self.payload(&Payload { number, bytes: bytes.into_owned() }, out);
            }
            Frame::Stanza(text) => self.element(&slim::element(&text, LIMITS).expect("an element"), out),
            Frame::AckRequest => Frame::Ack(self.received).write(out),
            Frame::Ack(handled) => self.acknowledged(handled),
            Frame::End(reason) => {
                if !reason.is_empty() {
                    let error = slim::element(&reason, LIMITS).expect("an element");
                    assert!(error.is("error", xml::NS_STREAM));
                    self.elements.push(reason.into_owned());
                }
                self.closed = true;
            }
        }
    }

    /// A stanza of the device has come.
    fn count(&mut self) {
        if self.managed && self.authenticated {
            self.received += 1;
        }
    }

    fn put(&self, stanza: &Stanza, out: &mut Vec<u8>) {
        match (stanza, self.is_slim()) {
            (Stanza::Payload(payload), false) => out.extend(payload.to_message()),
            (Stanza::Payload(payload), true) => slim::write_payload(out, payload.number, &payload.bytes),
            (Stanza::Text(text), false) => out.extend_from_slice(text.as_bytes()),
            (Stanza::Text(text), true) => slim::write_stanza(out, text),
        }
    }

    fn features(&mut self, out: &mut Vec<u8>) {
        let id = if self.authenticated { "s2" } else { "s1" };
        let header = Header {
            from: Some(DOMAIN.to_owned()),
            id: Some(id.to_owned()),
            version: Some("1.0".to_owned()),
            ..Header::default()
        };
        xml::write_header(out, &header);
        let features = if self.authenticated {
            let management = if self.manners.manageable { format!("<sm xmlns='{SM}'/>") } else { String::new() };
            let slim = if self.manners.slim == Slim::NotOffered { "" } else { slim::SWITCH };
            format!("<bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/>{management}{slim}")
        } else {
            format!("<mechanisms xmlns='{SASL}'>{}</mechanisms>", self.manners.mechanisms)
        };
        let (bytes, seconds) = if self.authenticated { (65536, 900) } else { (8192, 30) };
        let limits = format!(
            "<limits xmlns='urn:xmpp:stream-limits:0'><max-bytes>{bytes}</max-bytes><idle-seconds>{seconds}</idle-seconds></limits>"
        );
        out.extend_from_slice(format!("<stream:features>{features}{limits}</stream:features>").as_bytes());
    }

    fn element(&mut self, element: &Element, out: &mut Vec<u8>) {
        self.elements.push(String::from(element));
        if element.ns() == xml::NS_CLIENT {
            self.count();
        }
        match (element.name(), element.ns().as_str()) {
            ("auth", SASL) => self.authenticate(element, out),
            ("enable", SM) => {
                self.managed = true;
                (self.received, self.sent) = (0, 0);
                self.unacknowledged.clear();
                let resume = if self.manners.resumable { " id='stream-1' resume='true' max='300'" } else { "" };
                self.put(&Stanza::Text(format!("<enabled xmlns='{SM}'{resume}/>")), out);
            }
            ("resume", SM) => self.resume(element, out),
            ("r", SM) => out.extend_from_slice(format!("<a xmlns='{SM}' h='{}'/>", self.received).as_bytes()),
            ("a", SM) => self.acknowledged(h(element)),
            ("iq", _) => self.iq(element, out),
            ("message", _) => {
                let payload = Payload::from_message(element).expect("a channel").expect("a payload");
                self.payload(&payload, out);
            }
            ("error", xml::NS_STREAM) => {}
            other => panic!("the device sent {other:?}"),
        }
    }

    fn payload(&mut self, payload: &Payload, out: &mut Vec<u8>) {
        assert_eq!(payload.number, PUSH);
        let said: FromDevice = wire::decode_device(&payload.bytes).expect("a FromDevice");
        self.answer(&said, out);
        self.said.push(said);
    }

    fn authenticate(&mut self, auth: &Element, out: &mut Vec<u8>) {
        assert_eq!(auth.attr("mechanism"), Some("PLAIN"));
        let response = STANDARD.decode(auth.text()).expect("base 64");
        let right = response == format!("\0{ACCOUNT}\0{}", self.token).into_bytes();
        let failure = self.manners.login_failure.or((!right).then_some("not-authorized"));
        if let Some(condition) = failure {
            out.extend_from_slice(format!("<failure xmlns='{SASL}'><{condition}/></failure>").as_bytes());
            return;
        }
        self.logins += 1;
        self.authenticated = true;
        self.reader = StreamReader::new(LIMITS);
        out.extend_from_slice(format!("<success xmlns='{SASL}'/>").as_bytes());
    }

    fn resume(&mut self, resume: &Element, out: &mut Vec<u8>) {
        if !self.managed || !self.manners.resumable {
            out.extend_from_slice(format!("<failed xmlns='{SM}'/>").as_bytes());
            return;
        }
        assert_eq!(resume.attr("previd"), Some("stream-1"));
        self.acknowledged(h(resume));
        self.resumptions += 1;
        self.open = true;
        let resumed = format!("<resumed xmlns='{SM}' previd='stream-1' h='{}'/>", self.received);
        out.extend_from_slice(resumed.as_bytes());
        for (_, stanza) in &self.unacknowledged {
            self.put(stanza, out);
        }
    }

    fn acknowledged(&mut self, handled: u32) {
        assert!(handled <= self.sent, "the device has {handled} of {} stanzas", self.sent);
        self.unacknowledged.retain(|(number, _)| *number > handled);
    }

    fn iq(&mut self, iq: &Element, out: &mut Vec<u8>) {
        let id = iq.attr("id").expect("an id");
        if let Some(open) = iq.children().find_map(Payload::from_open) {
            let open = open.expect("a payload");
            self.hellos.push(wire::decode_device(&open.bytes).expect("a Hello"));
            if let Some(stranger) = self.manners.stranger {
                self.stanza(Stanza::Text(format!("<iq type='error' id='{id}' from='{stranger}'/>")), out);
            }
            let answer = if let Some(condition) = self.manners.channel_failure {
                let condition = format!("<{condition} xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/>");
                format!("<iq type='error' id='{id}'><error type='cancel'>{condition}</error></iq>")
            } else {
                let opened = "<open xmlns='urn:campanile:channel:1' number='5'/>";
                format!("<iq type='result' id='{id}' to='{ACCOUNT}@{DOMAIN}/push'>{opened}</iq>")
            };
            self.open = self.manners.channel_failure.is_none();
            self.stanza(Stanza::Text(answer), out);
        } else if iq.has_child("bind", "urn:ietf:params:xml:ns:xmpp-bind") {
            let jid = format!("<jid>{ACCOUNT}@{DOMAIN}/push</jid>");
            let bind = format!("<bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>{jid}</bind>");
            self.put(&Stanza::Text(format!("<iq type='result' id='{id}'>{bind}</iq>")), out);
        } else if iq.has_child("ping", "urn:xmpp:ping") {
            self.stanza(Stanza::Text(format!("<iq type='result' id='{id}'/>")), out);
        }
    }

    fn answer(&mut self, said: &FromDevice, out: &mut Vec<u8>) {
        let Some(request) = said.request.filter(|request| *request > 0 && !self.manners.mute) else { return };
        let code = if self.manners.codes.is_empty() { 0 } else { self.manners.codes.remove(0) };
        let registered = match &said.register_app {
            Some(register) if code == 0 => Some(self.register(register)),
            _ => None,
        };
        if let (Some(unregister), 0) = (&said.unregister, code) {
            let app = unregister.app.parse().expect("an app id");
            if self.registrations.contains_key(&app) {
                out.extend(self.invalidate(&app));
            }
        }
        let description = (code != 0).then(|| "No.".to_owned());
        let answer = Answer { request, code, description, registered };
        out.extend(self.say(&ToDevice { result: Some(answer), ..ToDevice::default() }));
    }

    fn register(&mut self, register: &Register) -> Registered {
        let app: AppId = register.app.parse().expect("an app id");
        assert!(verify_registration_proof(APP_KEY, ACCOUNT, &app, &register.public_key, &register.proof));
        let public: [u8; 32] = register.public_key.as_slice().try_into().expect("32 bytes");
        let seal = || SingleSeal::new(&self.secret.agree_as_server(&public, APP_KEY).expect("a usable key"));
        let keys = AppKeys { broadcast_key: BROADCAST_KEY.to_vec(), verify_key: self.broadcast.verify_key().to_vec() };
        let sealed_keys = seal().seal_keys(&app, &self.entropy, &wire::encode(&keys));
        let (seal, server_key) = (seal(), self.secret.public().to_vec());
        let regid = if let Some(known) = self.registrations.get(&app) {
            known.regid
        } else {
            self.regids += 1;
            RegId([self.regids; 24])
        };
        self.registrations.insert(app, ServerRegistration { regid, register: register.clone(), seal });
        Registered { app: register.app.clone(), regid: regid.to_string(), server_key, sealed_keys }
    }

    fn stanza(&mut self, stanza: Stanza, out: &mut Vec<u8>) {
        self.put(&stanza, out);
        if self.managed {
            self.sent += 1;
            self.unacknowledged.push((self.sent, stanza));
        }
    }

    /// A payload on the channel.
    pub(crate) fn say(&mut self, payload: &ToDevice) -> Vec<u8> {
        let mut out = Vec::new();
        self.stanza(Stanza::Payload(Payload { number: PUSH, bytes: wire::encode(payload) }), &mut out);
        out
    }

    /// A delivery for one registration.
    pub(crate) fn deliver(&mut self, app: &AppId, id: MessageId, text: &str) -> Vec<u8> {
        let sealed = self.registrations[app].seal.seal(app, id, &wire::encode(&notification(text)));
        self.say(&delivery(app, id, sealed, None))
    }

    /// A broadcast.
    pub(crate) fn broadcast(&mut self, app: &AppId, id: MessageId, text: &str) -> Vec<u8> {
        let sealed = self.broadcast.seal(app, id, &wire::encode(&notification(text)));
        self.say(&delivery(app, id, sealed, Some(true)))
    }

    /// A delivery for one registration that holds more than a text.
    pub(crate) fn notify(&mut self, app: &AppId, id: MessageId, notification: &Notification) -> Vec<u8> {
        let sealed = self.registrations[app].seal.seal(app, id, &wire::encode(notification));
        self.say(&delivery(app, id, sealed, None))
    }

    pub(crate) fn revoke(&mut self, revoke: Revoke) -> Vec<u8> {
        self.say(&ToDevice { revoke: Some(revoke), ..ToDevice::default() })
    }

    /// Forgets a registration and says so.
    pub(crate) fn invalidate(&mut self, app: &AppId) -> Vec<u8> {
        let regid = self.registrations.remove(app).expect("a registration").regid.to_string();
        let invalidated = Invalidated { regid, app: Some(app.to_string()) };
        self.say(&ToDevice { invalidated: Some(invalidated), ..ToDevice::default() })
    }

    /// The ids that were acknowledged, in order, each as often as it was.
    pub(crate) fn acked(&self) -> Vec<MessageId> {
        let acks = self.said.iter().filter_map(|said| said.ack.as_ref()).flat_map(|ack| &ack.apps);
        acks.flat_map(|app| app.messages.iter().chain(&app.broadcasts))
            .flat_map(|ids| ids.chunks(16))
            .map(|id| MessageId::from_bytes(id).expect("16 bytes"))
            .collect()
    }

    /// The messages of the clicks, in order.
    pub(crate) fn clicks(&self) -> Vec<MessageId> {
        let clicks = self.said.iter().filter_map(|said| said.clicked.as_ref());
        clicks.map(|click| MessageId::from_bytes(&click.message).expect("16 bytes")).collect()
    }

    /// The reports, in order.
    pub(crate) fn reports(&self) -> Vec<(MessageId, i32)> {
        let reports = self.said.iter().filter_map(|said| said.report.as_ref());
        reports.map(|report| (MessageId::from_bytes(&report.message).expect("16 bytes"), report.reason)).collect()
    }

    /// The Register commands, in order.
    pub(crate) fn registers(&self) -> Vec<&Register> {
        self.said.iter().filter_map(|said| said.register_app.as_ref()).collect()
    }
}

/// The count in `<a/>` or `<resume/>`.
fn h(element: &Element) -> u32 {
    element.attr("h").and_then(|h| h.parse().ok()).expect("a count")
}

pub(crate) fn notification(text: &str) -> Notification {
    Notification::new(
        text.to_owned(),
        None,
        None,
        Some(true),
        None,
        None,
        None,
        None,
        None,
        None,
        None,
        Some(1_754_000_000_000),
    )
}

/// Takes a message back, without an id of its own.
pub(crate) fn revoke(app: &AppId, message: MessageId) -> Revoke {
    Revoke { app: app.to_string(), message: message.to_bytes().to_vec(), id: None, broadcast: None, notify_id: None }
}

/// Takes a message back, to be acknowledged.
pub(crate) fn revocation(app: &AppId, id: MessageId, message: MessageId) -> Revoke {
    Revoke { id: Some(id.to_bytes().to_vec()), ..revoke(app, message) }
}

pub(crate) fn delivery(app: &AppId, id: MessageId, sealed: Vec<u8>, broadcast: Option<bool>) -> ToDevice {
    let deliver = Deliver { id: id.to_bytes().to_vec(), app: app.to_string(), sealed, broadcast };
    ToDevice { deliver: Some(deliver), ..ToDevice::default() }
}
