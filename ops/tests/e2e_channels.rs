//! A channel that others serve, beside push on one connection: the chat rooms of `examples/chat-room` as a process of their own,
//! beside the real server.

#[path = "harness/harness.rs"]
#[expect(clippy::allow_attributes, reason = "each test file uses a part of the harness")]
#[allow(dead_code, reason = "each test file uses a part of the harness")]
mod harness;
#[path = "bad_input/peer.rs"]
#[expect(clippy::allow_attributes, reason = "each test file uses a part of it")]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod peer;
#[path = "clients/program.rs"]
#[expect(clippy::allow_attributes, reason = "each test file uses a part of it")]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod program;

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use campanile_ops::api::Account;
use harness::server::Server;
use harness::wait_for;
use idl::contract::push::FromDevice;
use idl::wire::{decode_trusted, encode};
use peer::{Peer, account, registering};
use program::Program;

const ROOMS: &str = "rooms.localhost";

/// Builds the service, in a target folder of its own inside that of the tests, and returns its program.
fn build() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/chat-room/Cargo.toml");
    // Beside the folder that cargo gives to tests.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it is in the target folder").join("chat-room");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--locked", "--quiet", "--manifest-path"])
        .arg(&manifest)
        .arg("--target-dir")
        .arg(&target)
        .status()
        .expect("cargo runs");
    assert!(built.success(), "the example can't be built");
    target.join("debug/chat-room")
}

/// The service, once it serves.
fn serve(program: &Path, server: &Server, secret: &Path) -> Program {
    let front = server.address("xmpp.component").to_string();
    let mut service = Program::start(Command::new(program).args([ROOMS, &front, "7"]).arg(secret));
    wait_for("the service is let in", || {
        let ended = service.child.try_wait().expect("a child can be waited for");
        assert!(ended.is_none(), "the service ended with {ended:?}: {:#?}", service.said());
        service.said().iter().any(|line| line.starts_with("serving channel 7")).then_some(())
    });
    service
}

/// A device with both channels open, and its registration.
struct Device {
    peer: Peer,
    name: String,
    regid: String,
}

impl Device {
    fn new(server: &Server) -> Self {
        let account: Account = account(server);
        let mut peer = Peer::with_channel(server, &account);
        let register_app = Some(registering(server, &account));
        peer.send_up(&encode(&FromDevice { request: Some(1), register_app, ..FromDevice::default() }));
        let regid = peer.result().registered.expect("a registration").regid;
        let name = account.jid.split('@').next().expect("a name").to_owned();
        Self { peer, name, regid }
    }

    /// Asks for the channel with these words, and hears the answer.
    fn enter(&mut self, room: &str) -> String {
        let room = STANDARD.encode(room);
        self.peer.say(format!(
            "<iq type='set' id='room'><open xmlns='urn:campanile:channel:1' number='7'>{room}</open></iq>"
        ));
        self.peer.hear("</iq>")
    }

    fn chat(&mut self, text: &str) {
        let text = STANDARD.encode(text);
        self.peer
            .say(format!("<message><channel xmlns='urn:campanile:channel:1' number='7'>{text}</channel></message>"));
    }

    /// What comes next on either channel: a number, and the chat's words or the id of a push.
    fn next(&mut self) -> (u32, String) {
        let words = self.peer.hear("</message>");
        let element = words.split_once("<channel ").and_then(|(_, rest)| rest.split_once("</channel>"));
        let (element, _) = element.unwrap_or_else(|| panic!("no payload: {words}"));
        let (attributes, text) = element.split_once('>').expect("an element");
        let payload = STANDARD.decode(text).expect("base 64");
        if attributes.contains("number='7'") {
            return (7, String::from_utf8(payload).expect("text"));
        }
        assert!(attributes.contains("number='5'"), "{words}");
        let down: idl::contract::push::ToDevice = decode_trusted(&payload).expect("a payload for a device");
        let id = idl::ids::MessageId::from_bytes(&down.deliver.expect("a delivery").id).expect("an id");
        (5, id.to_string())
    }
}

#[test]
fn devices_chat_on_the_connection_that_push_comes_on() {
    let program = build();
    let folder = tempfile::tempdir().expect("a folder");
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "a secret of the rooms\n").expect("writes");
    let channels = format!("7:{ROOMS}:{}", secret.display());
    // One process: the service connects to a front, and there is one.
    let settings = [("xmpp.component", "127.0.0.1:0"), ("xmpp.channels", channels.as_str())];
    let server = Server::start_whole(&settings);
    let (mut one, mut two) = (Device::new(&server), Device::new(&server));
    let answer = one.enter("lobby");
    assert!(answer.contains("<service-unavailable "), "nobody serves yet: {answer}");

    let service = serve(&program, &server, &secret);
    let answer = one.enter("");
    assert!(answer.contains("<not-acceptable ") && answer.contains("a room&apos;s name"), "{answer}");
    for device in [&mut one, &mut two] {
        let answer = device.enter("lobby");
        assert!(answer.contains("type='result'"), "{answer}");
    }
    let push = |device: &Device| {
        let sent = server.send("/v3/message/regid", &[("registration_id", &device.regid), ("payload", "dong")]);
        (5, sent)
    };
    let chat = |by: &Device, text: &str| (7, format!("{}: {text}", by.name));
    for round in 0..3 {
        let text = format!("round {round}");
        let (from, to) = if round % 2 == 0 { (&mut one, &mut two) } else { (&mut two, &mut one) };
        from.chat(&text);
        let said = chat(from, &text);
        for device in [from, to] {
            // The two channels come in no order between each other.
            let mut expected = [said.clone(), push(device)];
            let mut heard = [device.next(), device.next()];
            expected.sort();
            heard.sort();
            assert_eq!(heard, expected);
        }
    }

    // Without the service push goes on, and when it is back it finds everyone where they were.
    drop(service);
    until_metric(&server, "campanile_front_channel_services", 0.0);
    one.chat("is anybody there?");
    let words = one.peer.hear("</message>");
    assert!(words.contains("<service-unavailable "), "{words}");
    for device in [&mut one, &mut two] {
        let sent = push(device);
        assert_eq!(device.next(), sent);
    }
    let _service = serve(&program, &server, &secret);
    until_metric(&server, "campanile_front_channel_services", 1.0);
    two.chat("hello again");
    let said = chat(&two, "hello again");
    for device in [&mut one, &mut two] {
        assert_eq!(device.next(), said);
    }

    // Who leaves the network leaves the room.
    drop(two);
    until_metric(&server, "campanile_front_channel_members", 1.0);
    one.chat("alone");
    assert_eq!(one.next(), chat(&one, "alone"));
}

fn until_metric(server: &Server, name: &str, value: f64) {
    wait_for(format!("{name} is {value}"), || ((server.metric(name) - value).abs() < 0.5).then_some(()));
}
