//! Broken channel elements, Thrift payloads and commands: each is answered on its stream, which goes on.

use idl::contract::push::{Ack, AppAck, FromDevice, Hello, Register, SetAlias, SetEnabled, Subscribe};
use idl::error::Code;
use idl::ids::AppId;
use idl::seal::registration_proof;
use idl::wire::encode;

use crate::peer::{Peer, account, registering};
use crate::tower::Tower;

/// An element of Thrift's compact protocol: a list of structs that claims 2^31 elements, and one that claims the most that
/// a 32-bit number can say.
const HUGE_LISTS: [[u8; 7]; 2] =
    [[0x19, 0xfc, 0x80, 0x80, 0x80, 0x80, 0x08], [0x19, 0xfc, 0xff, 0xff, 0xff, 0xff, 0x07]];

/// Says a stanza that must be answered with this stanza error, whose text names the thing.
fn refused(peer: &mut Peer, stanza: &str, condition: &str, named: &str) {
    peer.say(stanza);
    let answer = peer.hear("</error>") + &peer.hear(">");
    assert!(answer.contains("type='error'"), "{stanza}: {answer}");
    assert!(
        answer.contains(&format!("<{condition} xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/>")),
        "{stanza}: {answer}"
    );
    assert!(answer.contains(named), "{stanza}: {named:?} is not in {answer}");
    peer.goes_on(stanza);
}

/// Sends a command that must be refused with this code and a description that names the thing.
fn command_refused(peer: &mut Peer, command: FromDevice, code: Code, named: &str) {
    let case = format!("{command:?}");
    peer.send_up(&encode(&FromDevice { request: Some(7), ..command }));
    let result = peer.result();
    let description = result.description.unwrap_or_default();
    assert_eq!((result.request, result.code), (7, code.number()), "{case}: {description}");
    assert!(description.contains(named), "{case}: {named:?} is not in {description}");
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[test]
fn a_broken_channel_element_is_refused_and_its_stream_goes_on() {
    let tower = Tower::start();
    let mut peer = Peer::with_channel(&tower.server, &account(&tower.server));
    let ns = "urn:campanile:channel:1";
    let message = |inner: &str| format!("<message id='1'>{inner}</message>");
    let iq = |inner: &str| format!("<iq id='1' type='set'>{inner}</iq>");
    let cases = [
        (message(&format!("<channel xmlns='{ns}' number='5'>not base 64!</channel>")), "bad-request", "base 64"),
        (message(&format!("<channel xmlns='{ns}' number='5'>QUJ</channel>")), "bad-request", "base 64"),
        (iq(&format!("<open xmlns='{ns}' number='5'>*</open>")), "bad-request", "base 64"),
        (iq(&format!("<open xmlns='{ns}' number='9'/>")), "item-not-found", "channel 9"),
        (message(&format!("<channel xmlns='{ns}' number='9'>QUJD</channel>")), "not-allowed", "channel 9"),
        (iq(&format!("<open xmlns='{ns}' number='0'/>")), "bad-request", "number"),
        (iq(&format!("<open xmlns='{ns}' number='65541'/>")), "bad-request", "number"),
        (iq(&format!("<open xmlns='{ns}' number='five'/>")), "bad-request", "number"),
        (iq(&format!("<open xmlns='{ns}'/>")), "bad-request", "number"),
        (message(&format!("<channel xmlns='{ns}'>QUJD</channel>")), "bad-request", "number"),
        (message("<body>a word</body>"), "service-unavailable", ""),
        (format!("<iq id='1' type='get'><open xmlns='{ns}' number='5'/></iq>"), "service-unavailable", ""),
        ("<iq id='1' type='set'/>".to_owned(), "bad-request", "exactly one child"),
        ("<iq id='1' type='put'><ping xmlns='urn:xmpp:ping'/></iq>".to_owned(), "bad-request", "type"),
        ("<iq type='get'><ping xmlns='urn:xmpp:ping'/></iq>".to_owned(), "bad-request", "id"),
    ];
    for (stanza, condition, named) in cases {
        refused(&mut peer, &stanza, condition, named);
        tower.goes_on_after(&stanza);
    }
    let mut unopened = Peer::logged_in(&tower.server, &account(&tower.server));
    let early = message(&format!("<channel xmlns='{ns}' number='5'>QUJD</channel>"));
    refused(&mut unopened, &early, "not-allowed", "channel 5");
    peer.say("<nothing xmlns='urn:example:nothing'/>");
    peer.ends_with("unsupported-stanza-type", "not understood", "an element that is no stanza");
    tower.goes_on_after("an element that is no stanza");
}

#[test]
fn a_payload_that_is_no_thrift_is_answered_with_what_was_expected() {
    let tower = Tower::start();
    let mut peer = Peer::with_channel(&tower.server, &account(&tower.server));
    let ack = |list: [u8; 7]| [&[0xcc_u8][..], &list].concat();
    let whole = encode(&FromDevice { request: Some(1), ack: Some(Ack { apps: vec![] }), ..FromDevice::default() });
    let cases = [
        ("a list of 2^31 elements", ack(HUGE_LISTS[0])),
        ("a list of 2^31-1 elements", ack(HUGE_LISTS[1])),
        // Field 4, SetAlias, whose first field is a text of 2^31-1 bytes.
        ("a text of 2^31-1 bytes", vec![0x4c, 0x18, 0xff, 0xff, 0xff, 0xff, 0x07, b'a']),
        ("half a command", whole[..whole.len() - 1].to_vec()),
        ("more than a command", [whole.as_slice(), b"and more"].concat()),
        ("an unknown type", vec![0x1f, 0x00]),
        ("structs inside structs", vec![0x1c; 1000]),
        ("a text", b"{\"request\": 1}".to_vec()),
        ("a required field left out", vec![0x4c, 0x00, 0x00]),
    ];
    for (case, payload) in cases {
        peer.send_up(&payload);
        let result = peer.result();
        let description = result.description.unwrap_or_default();
        assert_eq!((result.request, result.code), (0, Code::BadRequest.number()), "{case}: {description}");
        assert!(description.contains("not a valid FromDevice"), "{case}: {description}");
        peer.goes_on(case);
        tower.goes_on_after(case);
    }
    peer.send_up(&vec![0; 16 * 1024 + 1]);
    let description = peer.result().description.unwrap_or_default();
    assert!(description.contains("16385 bytes are over the limit of 16384"), "{description}");
    for nothing in [FromDevice::default(), FromDevice { request: Some(7), ..FromDevice::default() }] {
        peer.send_up(&encode(&nothing));
        let result = peer.result();
        assert_eq!(result.code, Code::BadRequest.number(), "{result:?}");
        assert!(result.description.unwrap_or_default().contains("one command"));
    }
    tower.goes_on_after("an oversized payload");
}

#[test]
fn a_channel_is_not_opened_with_a_payload_that_is_no_hello() {
    let tower = Tower::start();
    let account = account(&tower.server);
    let mut peer = Peer::logged_in(&tower.server, &account);
    let many = Hello { registrations: Some(vec!["regid".to_owned(); 257]) };
    let cases = [
        (HUGE_LISTS[0].to_vec(), "bad-request", "not a valid Hello"),
        (HUGE_LISTS[1].to_vec(), "bad-request", "not a valid Hello"),
        (vec![0x19, 0x18, 0xff, 0xff, 0xff, 0xff, 0x07], "bad-request", "not a valid Hello"),
        (b"hello".to_vec(), "bad-request", "not a valid Hello"),
        (vec![0; 16 * 1024 + 1], "bad-request", "over the limit of 16384"),
        (encode(&many), "resource-constraint", "at most 256"),
    ];
    for (hello, condition, named) in cases {
        let hello = base64(&hello);
        let open =
            format!("<iq id='1' type='set'><open xmlns='urn:campanile:channel:1' number='5'>{hello}</open></iq>");
        refused(&mut peer, &open, condition, named);
        tower.goes_on_after(&open[..open.len().min(120)]);
    }
    // Registrations that are nobody's, or somebody else's, are told to be invalid, and nothing of theirs is told.
    let hello = Hello { registrations: Some(vec!["nonsense".to_owned(), tower.regid.clone()]) };
    let hello = base64(&encode(&hello));
    peer.say(format!("<iq id='1' type='set'><open xmlns='urn:campanile:channel:1' number='5'>{hello}</open></iq>"));
    assert!(peer.hear("</iq>").contains("type='result'"));
    for _ in 0..2 {
        assert!(peer.payload().invalidated.is_some());
    }
    tower.goes_on_after("a Hello with another account's registration");
}

#[test]
fn a_command_that_can_not_be_carried_out_is_answered_with_why() {
    let tower = Tower::start();
    let account = account(&tower.server);
    let mut peer = Peer::with_channel(&tower.server, &account);
    let demo = tower.server.demo();
    let (app, long) = (demo.app.clone(), "x".repeat(129));
    let register = registering(&tower.server, &account);
    let with = |register| FromDevice { register_app: Some(register), ..FromDevice::default() };
    let subscribing = |app: &str, topic: &str| FromDevice {
        subscribe: Some(Subscribe { app: app.to_owned(), topic: topic.to_owned() }),
        ..FromDevice::default()
    };
    let alias = |alias: &str| FromDevice {
        set_alias: Some(SetAlias { app: app.clone(), alias_name: alias.to_owned() }),
        ..FromDevice::default()
    };
    let zeros = Register { public_key: vec![0; 32], ..register.clone() };
    let id = account.jid.split('@').next().and_then(|id| id.parse().ok()).expect("an account");
    let app_id: AppId = app.parse().expect("an application");
    let zeros = Register { proof: registration_proof(&demo.app_key, id, &app_id, &[0; 32]).to_vec(), ..zeros };
    let before = [
        (with(Register { proof: vec![7; 32], ..register.clone() }), Code::BadProof, "proof"),
        (with(Register { public_key: vec![7; 31], ..register.clone() }), Code::BadValue, "public_key"),
        (with(zeros), Code::BadValue, ""),
        (with(Register { package_name: "other".into(), ..register.clone() }), Code::PackageMismatch, "other"),
        (with(Register { app: "com.example.none".into(), ..register.clone() }), Code::UnknownApp, "com.example.none"),
        (with(Register { app: "no id".into(), ..register.clone() }), Code::BadValue, "application id"),
        (subscribing(&app, "topic"), Code::UnknownRegistration, "not registered"),
    ];
    for (command, code, named) in before {
        command_refused(&mut peer, command, code, named);
    }
    tower.goes_on_after("registrations that were refused");

    let attribute = |name: &str, value: &str| [(name.to_owned(), value.to_owned())].into();
    let wide = Register { attributes: Some(attribute("platform", &long)), ..register.clone() };
    command_refused(&mut peer, with(wide), Code::LimitReached, "attributes");
    peer.send_up(&encode(&FromDevice { request: Some(1), ..with(register) }));
    let registered = peer.result();
    assert_eq!(registered.code, 0, "{registered:?}");
    let after = [
        (subscribing(&app, &long), Code::BadValue, "topic"),
        (subscribing(&app, ""), Code::BadValue, "topic"),
        (subscribing(&app, "a\ntopic"), Code::BadValue, "topic"),
        (subscribing("com.example.none", "topic"), Code::UnknownRegistration, "com.example.none"),
        (alias(&long), Code::BadValue, "alias"),
        (
            FromDevice {
                ack: Some(Ack {
                    apps: vec![AppAck { app: app.clone(), messages: Some(vec![1; 15]), broadcasts: None }],
                }),
                ..FromDevice::default()
            },
            Code::BadValue,
            "16 bytes",
        ),
    ];
    for (command, code, named) in after {
        command_refused(&mut peer, command, code, named);
    }
    let enable = SetEnabled { app, enabled: true };
    peer.send_up(&encode(&FromDevice { request: Some(2), set_enabled: Some(enable), ..FromDevice::default() }));
    assert_eq!(peer.result().code, 0, "the registration is as it was");
    peer.goes_on("commands that were refused");
    tower.goes_on_after("commands that were refused");
}
