//! The bytes in `docs/protocol.md`: they are what a device and a server say in this test, and what the seals made of it.
//! `UPDATE=1` rewrites them.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use campanile_sdk_android_bridge::{Command, Event};
use idl::channel::Payload;
use idl::clock::Entropy as _;
use idl::contract::push::{AppKeys, Deliver, FromDevice, Hello, Registered, ToDevice};
use idl::ids::{AppId, MessageId};
use idl::seal::{AgreementKey, BroadcastOpener, BroadcastSealer, SingleSeal, registration_proof};
use idl::slim::{self, Frame};
use idl::wire;
use minidom::Element;
use ring::hmac;
use x25519_dalek::{PublicKey, StaticSecret};

use crate::server::{ACCOUNT, APP_KEY, BROADCAST_KEY, SEED, SIGNING_SEED, Slim, Steady, notification};
use crate::world::{World, demo};

const SINGLE: &str = "01K1HJW0G0ABCDEFGHJKMNPQRS";
const BROADCAST: &str = "01K1HJW0G1TVWXYZ0123456789";

/// Everything that happens in the document, in its order.
fn session() -> World {
    let mut world = World::new();
    world.server.manners.manageable = true;
    world.start();
    world.command(1, Command::Subscribe("news".parse().expect("a topic")));
    let bytes = world.server.deliver(&demo(), id(SINGLE), "for one");
    world.down(&bytes);
    let bytes = world.server.broadcast(&demo(), id(BROADCAST), "for all");
    world.down(&bytes);
    world.pass(Duration::from_secs(1));
    world.cut();
    world.wire.push(("", b"(the connection breaks; a new one is made)".to_vec()));
    world.event(Event::Start);
    world.event(Event::Stop);
    assert_eq!(world.pushed(), ["for one", "for all"]);
    assert_eq!((world.server.acked().len(), world.server.resumptions), (2, 1));
    world
}

fn id(text: &str) -> MessageId {
    text.parse().expect("a message id")
}

#[test]
fn the_document_shows_what_is_said() {
    let world = session();
    let mut text = String::new();
    for (who, bytes) in &world.wire {
        let bytes = String::from_utf8(bytes.clone()).expect("text");
        if who.is_empty() {
            writeln!(text, "\n{bytes}\n").expect("written");
            continue;
        }
        for element in elements(&bytes) {
            writeln!(text, "{who}: {element}").expect("written");
            if let Some(what) = payload_of(element) {
                writeln!(text, "   {what}").expect("written");
            }
        }
    }
    assert_in_document("session", &text);
}

#[test]
fn the_document_shows_how_the_seals_come_about() {
    let world = session();
    let app = demo();
    let mut text = String::new();
    let mut show = |name: &str, bytes: &[u8]| writeln!(text, "{name:<26} {}", hex(bytes)).expect("written");

    let (device, server) = (secret(1), secret(SEED));
    let (device_key, server_key) = (AgreementKey::from_bytes(device), AgreementKey::from_bytes(server));
    let register = &world.server.registrations[&app].register;
    assert_eq!(register.public_key, device_key.public());
    show("app key (text)", APP_KEY.as_bytes());
    show("device private key", &device);
    show("device public key", &device_key.public());

    let account = ACCOUNT.to_string();
    let parts: [&[u8]; 4] =
        [b"campanile register 1", account.as_bytes(), app.as_str().as_bytes(), &device_key.public()];
    let proof_text: Vec<u8> = parts
        .iter()
        .flat_map(|part| {
            u32::try_from(part.len()).expect("a length").to_be_bytes().into_iter().chain(part.iter().copied())
        })
        .collect();
    let proof = sign(APP_KEY.as_bytes(), &proof_text);
    assert_eq!(proof, registration_proof(APP_KEY, ACCOUNT, &app, &device_key.public()));
    assert_eq!(proof.as_slice(), register.proof);
    show("proof text", &proof_text);
    show("proof", &proof);

    show("server private key", &server);
    show("server public key", &server_key.public());
    let shared = StaticSecret::from(device).diffie_hellman(&PublicKey::from(server_key.public()));
    show("X25519 shared secret", shared.as_bytes());
    let extracted = sign(APP_KEY.as_bytes(), shared.as_bytes());
    show("HKDF extracted (PRK)", &extracted);
    let info = [b"campanile seal 1".as_slice(), &device_key.public(), &server_key.public()].concat();
    show("HKDF info", &info);
    let seal_key = sign(&extracted, &[info.as_slice(), &[1]].concat());
    assert_eq!(device_key.agree_as_device(&server_key.public(), APP_KEY), Ok(seal_key));
    show("seal key", &seal_key);

    let registered = registered(&world);
    assert_eq!(registered.server_key, server_key.public());
    let keys = SingleSeal::new(&seal_key).open_keys(&app, &registered.sealed_keys).expect("the keys open");
    let app_keys: AppKeys = wire::decode_trusted(&keys).expect("AppKeys");
    show("sealed_keys", &registered.sealed_keys);
    show("  nonce", &registered.sealed_keys[..12]);
    show("  associated data", &context(b"campanile keys 1", &app, MessageId::MIN));
    show("  opened (AppKeys)", &keys);
    show("broadcast_key", &app_keys.broadcast_key);
    show("verify_key", &app_keys.verify_key);
    assert_eq!(app_keys.broadcast_key, BROADCAST_KEY);

    let single = delivered(&world, id(SINGLE));
    let opened = SingleSeal::new(&seal_key).open(&app, id(SINGLE), &single.sealed).expect("it opens");
    assert_eq!(opened, wire::encode(&notification("for one")));
    show("single: message id", &single.id);
    show("  nonce", &single.id[4..]);
    show("  associated data", &context(b"campanile single 1", &app, id(SINGLE)));
    show("  sealed", &single.sealed);
    show("  opened (Notification)", &opened);

    let broadcast = delivered(&world, id(BROADCAST));
    let verify_key = BroadcastSealer::new(&BROADCAST_KEY, &SIGNING_SEED).verify_key();
    let opener = BroadcastOpener::new(&BROADCAST_KEY, verify_key);
    let opened = opener.open(&app, id(BROADCAST), &broadcast.sealed).expect("it opens");
    let (sealed, signature) = broadcast.sealed.split_at(broadcast.sealed.len() - 64);
    let associated = context(b"campanile broadcast 1", &app, id(BROADCAST));
    show("broadcast: message id", &broadcast.id);
    show("  nonce", &broadcast.id[4..]);
    show("  associated data", &associated);
    show("  sealed", &broadcast.sealed);
    show("  signed bytes", &[associated.as_slice(), sealed].concat());
    show("  signature", signature);
    show("  opened (Notification)", &opened);
    assert_in_document("seals", &text);
}

/// The same in slim frames, from the end of the login on. The connection breaks in the middle of a frame.
#[test]
fn the_document_shows_what_is_said_in_slim_frames() {
    let mut world = World::new();
    world.server.manners.manageable = true;
    world.server.manners.slim = Slim::Agreed;
    world.start();
    world.deliver(&demo(), id(SINGLE).0, "for one");
    world.pass(Duration::from_secs(1));
    world.pass(Duration::from_mins(2));
    let bytes = world.server.broadcast(&demo(), id(BROADCAST), "for all");
    world.down(&bytes[..5]);
    world.cut();
    world
        .wire
        .push(("", b"(the connection breaks in the middle of this frame; a new one is made and logs in)".to_vec()));
    world.event(Event::Start);
    world.pass(Duration::from_secs(1));
    world.event(Event::Stop);
    assert_eq!(world.pushed(), ["for one", "for all"]);
    assert_eq!((world.server.acked().len(), world.server.resumptions), (2, 1));

    let (mut text, mut slim, mut logged_in) = (String::new(), false, false);
    for (who, bytes) in &world.wire {
        if who.is_empty() {
            writeln!(text, "\n{}\n", String::from_utf8_lossy(bytes)).expect("written");
            (slim, logged_in) = (false, false);
        } else if slim {
            show_frames(who, bytes, &mut text);
        } else {
            let bytes = String::from_utf8(bytes.clone()).expect("text");
            for element in elements(&bytes) {
                logged_in |= element.starts_with("<stream:features><bind");
                if logged_in {
                    writeln!(text, "{who}: {element}").expect("written");
                }
            }
            slim = *who == "S" && bytes.ends_with(slim::SWITCH);
        }
    }
    assert_in_document("slim-session", &text);
}

/// Each frame in hexadecimal, its parts apart, and texts as they are.
fn show_frames(who: &str, mut bytes: &[u8], text: &mut String) {
    let mut reader = slim::Reader::new();
    while !bytes.is_empty() {
        let before = bytes;
        let Some(frame) = reader.read(&mut bytes, 65_536).expect("frames") else {
            return writeln!(text, "{who}: {} …", hex(before)).expect("written");
        };
        let frame_bytes = before.strip_suffix(bytes).expect("what was read");
        let split = |body: &[u8]| {
            let (length, kind_and_body) =
                frame_bytes.split_at(frame_bytes.iter().take_while(|b| **b > 0x7f).count() + 1);
            let (kind, rest) = kind_and_body.split_at(1);
            let between = rest.strip_suffix(body).expect("the body");
            [length, kind, between]
                .iter()
                .filter(|part| !part.is_empty())
                .fold(String::new(), |head, part| head + &hex(part) + " ")
        };
        let (line, name) = match &frame {
            Frame::Stanza(element) | Frame::End(element) => (split(element.as_bytes()) + element, String::new()),
            Frame::Payload { bytes, .. } => {
                let name = match wire::decode_trusted::<FromDevice>(bytes).ok() {
                    Some(said) if wire::encode(&said) == **bytes => up_name(&said),
                    _ => down_name(&wire::decode_trusted(bytes).expect("a ToDevice")),
                };
                (split(bytes) + &hex(bytes), format!("payload on channel 5: {name}"))
            }
            Frame::Ack(handled) => (split(&[]), format!("ack: {handled}")),
            Frame::Ping => (split(&[]), "ping".to_owned()),
            Frame::Pong => (split(&[]), "pong".to_owned()),
            Frame::AckRequest => (split(&[]), "ack request".to_owned()),
        };
        writeln!(text, "{who}: {}", line.trim_end()).expect("written");
        if !name.is_empty() {
            writeln!(text, "   {name}").expect("written");
        }
    }
}

/// The first private key that randomness of this seed makes.
fn secret(seed: u64) -> [u8; 32] {
    let mut secret = [0; 32];
    Steady::new(seed).fill(&mut secret);
    secret
}

fn sign(key: &[u8], text: &[u8]) -> [u8; 32] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text);
    tag.as_ref().try_into().expect("32 bytes")
}

fn context(purpose: &[u8], app: &AppId, id: MessageId) -> Vec<u8> {
    [purpose, b"\0", app.as_str().as_bytes(), b"\0", &id.to_bytes()].concat()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("written");
        text
    })
}

/// What the server said on the channel.
fn said(world: &World) -> Vec<ToDevice> {
    let down = world.wire.iter().filter(|(who, _)| *who == "S");
    let texts: Vec<_> = down.map(|(_, bytes)| String::from_utf8(bytes.clone()).expect("text")).collect();
    let elements = texts.iter().flat_map(|text| elements(text));
    elements
        .filter(|element| element.starts_with("<message>"))
        .map(|element| wire::decode_trusted(&payload(element).bytes).expect("a ToDevice"))
        .collect()
}

fn registered(world: &World) -> Registered {
    said(world).into_iter().find_map(|said| said.result?.registered).expect("an answer to Register")
}

fn delivered(world: &World, id: MessageId) -> Deliver {
    let mut deliveries = said(world).into_iter().filter_map(|said| said.deliver);
    deliveries.find(|deliver| deliver.id == id.to_bytes()).expect("a delivery")
}

/// Cuts a stream into its elements. Knows no more XML than this test's two sides write.
fn elements(mut text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    while !text.is_empty() {
        let (mut depth, mut end) = (0, 0);
        loop {
            let tag_end = end + text[end..].find('>').expect("a tag") + 1;
            let tag_start = text[..tag_end].rfind('<').expect("a tag");
            let tag = &text[tag_start..tag_end];
            end = tag_end;
            if tag.starts_with("<?") {
                continue;
            }
            if tag.starts_with("<stream:stream") || tag == "</stream:stream>" {
                break;
            } else if tag.starts_with("</") {
                depth -= 1;
            } else if !tag.ends_with("/>") {
                depth += 1;
            }
            if depth == 0 {
                break;
            }
        }
        let (element, rest) = text.split_at(end);
        found.push(element);
        text = rest;
    }
    found
}

fn payload(message: &str) -> Payload {
    let message: Element = message.replacen("<message", "<message xmlns='jabber:client'", 1).parse().expect("XML");
    Payload::from_message(&message).expect("a channel").expect("a payload")
}

/// What a payload says, in a word or two, and its bytes.
fn payload_of(element: &str) -> Option<String> {
    if element.starts_with("<message>") {
        let bytes = payload(element).bytes;
        let name = match wire::decode_trusted::<FromDevice>(&bytes).ok() {
            Some(said) if wire::encode(&said) == bytes => up_name(&said),
            _ => down_name(&wire::decode_trusted(&bytes).expect("a ToDevice")),
        };
        return Some(format!("{name}: {}", hex(&bytes)));
    }
    let iq: Element = element.replacen("<iq", "<iq xmlns='jabber:client'", 1).parse().ok()?;
    let open = iq.children().find_map(Payload::from_open)?.expect("a payload");
    let hello = wire::decode_device::<Hello>(&open.bytes).ok().filter(|_| !open.bytes.is_empty())?;
    let count = hello.registrations.map_or(0, |registrations| registrations.len());
    Some(format!("Hello with {count} registrations: {}", hex(&open.bytes)))
}

fn up_name(said: &FromDevice) -> String {
    let request = said.request.map_or_else(|| "no request number".to_owned(), |request| format!("request {request}"));
    let name = if said.register_app.is_some() {
        "Register"
    } else if said.subscribe.is_some() {
        "Subscribe"
    } else if said.ack.is_some() {
        "Ack"
    } else {
        panic!("{said:?} has no name here")
    };
    format!("FromDevice {name}, {request}")
}

fn down_name(said: &ToDevice) -> String {
    match said {
        ToDevice { result: Some(result), .. } => {
            format!("ToDevice Result, request {}, code {}", result.request, result.code)
        }
        ToDevice { deliver: Some(deliver), .. } => {
            let kind = if deliver.broadcast.is_some() { "broadcast" } else { "single" };
            format!("ToDevice Deliver, {kind}")
        }
        _ => panic!("{said:?} has no name here"),
    }
}

/// Both parts are in one file.
static DOCUMENT: Mutex<()> = Mutex::new(());

/// Compares the text with the part of the document that has this name.
fn assert_in_document(name: &str, text: &str) {
    let _alone = DOCUMENT.lock().unwrap_or_else(PoisonError::into_inner);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/protocol.md");
    let document = std::fs::read_to_string(&path).expect("docs/protocol.md");
    let (begin, end) = (format!("<!-- {name}: begin -->\n```text\n"), format!("```\n<!-- {name}: end -->"));
    let (before, rest) = document.split_once(&begin).expect("the mark where the part begins");
    let (shown, after) = rest.split_once(&end).expect("the mark where it ends");
    if shown == text {
        return;
    }
    #[expect(clippy::disallowed_methods, reason = "how tests of generated files are told to write them")]
    let update = std::env::var("UPDATE").is_ok();
    assert!(update, "{name} in docs/protocol.md is not what was said; run the test with UPDATE=1:\n{text}");
    std::fs::write(&path, format!("{before}{begin}{text}{end}{after}")).expect("docs/protocol.md can be written");
}
