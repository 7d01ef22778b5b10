//! The push channel as a device speaks it, reduced to what a load needs: seals stay closed.

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use idl::channel::{PUSH, Payload};
use idl::contract::push::{Ack, AppAck, FromDevice, Hello, Register, ToDevice};
use idl::seal::{AgreementKey, registration_proof};
use idl::slim;
use idl::wire::{decode_trusted, encode};

use super::order::{AppOnDevice, Form};

/// What every delivery's payload begins with: `ToDevice.deliver`, whose first field has 16 bytes.
const DELIVERY: [u8; 3] = [0x2c, 0x18, 0x10];
/// The same in base 64.
const DELIVERY_BASE64: &[u8] = b"LBgQ";

/// What a device acknowledges: a message's id, and whether it was a broadcast.
pub(super) type Delivered = ([u8; 16], bool);

/// What the server says on the channel.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// The registration is made.
    Registered(String),
    /// A command failed.
    Failed(String),
    /// A message.
    Delivered(Delivered),
    /// Anything else.
    Other,
}

/// Opens the channel, as XML.
pub(super) fn open(regid: Option<&str>) -> Vec<u8> {
    let registrations = regid.map(|regid| vec![regid.to_owned()]).unwrap_or_default();
    let hello = Hello { registrations: Some(registrations) };
    Payload { number: PUSH, bytes: encode(&hello) }.to_open("open")
}

/// The payload that registers the application on an account. Devices of a load share their key pair: the server can't tell.
pub(super) fn register(app: &AppOnDevice, account: &str, key: &AgreementKey) -> Result<Vec<u8>> {
    let (id, account) = (app.app.parse().context("the application's id")?, account.parse().context("an account's id")?);
    let public_key = key.public();
    let register = Register {
        app: app.app.clone(),
        package_name: app.package.clone(),
        public_key: public_key.to_vec(),
        proof: registration_proof(&app.app_key, account, &id, &public_key).to_vec(),
        attributes: Some([("platform".to_owned(), "bench".to_owned())].into()),
    };
    Ok(encode(&FromDevice { request: Some(1), register_app: Some(register), ..FromDevice::default() }))
}

/// The payload that acknowledges.
pub(super) fn ack(app: &str, delivered: &[Delivered]) -> Vec<u8> {
    let ids = |broadcast: bool| -> Option<Vec<u8>> {
        let ids: Vec<u8> = delivered.iter().filter(|(_, of)| *of == broadcast).flat_map(|(id, _)| *id).collect();
        (!ids.is_empty()).then_some(ids)
    };
    let ack = Ack { apps: vec![AppAck { app: app.to_owned(), messages: ids(false), broadcasts: ids(true) }] };
    encode(&FromDevice { request: None, ack: Some(ack), ..FromDevice::default() })
}

/// A payload as it is sent.
pub(super) fn upwards(form: Form, bytes: Vec<u8>) -> Vec<u8> {
    match form {
        Form::Xml => Payload { number: PUSH, bytes }.to_message(),
        Form::Slim => {
            let mut frame = Vec::new();
            slim::write_payload(&mut frame, PUSH, &bytes);
            frame
        }
    }
}

/// The base 64 of a stanza's channel element.
fn payload(stanza: &[u8]) -> Option<&[u8]> {
    let end = stanza.windows(10).rposition(|at| at[1] == b'/' && at == b"</channel>")?;
    let stanza = &stanza[..end];
    let start = stanza.iter().rposition(|byte| *byte == b'>')?;
    stanza.get(start + 1..)
}

/// True if a stanza is a delivery. Quicker than [`read`].
pub(super) fn is_delivery(stanza: &[u8]) -> bool {
    payload(stanza).is_some_and(|payload| payload.starts_with(DELIVERY_BASE64))
}

/// True if a payload is a delivery. Quicker than [`read_payload`].
pub(super) fn is_delivered(payload: &[u8]) -> bool {
    payload.starts_with(&DELIVERY)
}

/// Reads a stanza.
pub(super) fn read(stanza: &[u8]) -> Heard {
    let bytes = payload(stanza).and_then(|payload| STANDARD.decode(payload).ok());
    bytes.map_or(Heard::Other, |bytes| read_payload(&bytes))
}

/// Reads a payload.
pub(super) fn read_payload(bytes: &[u8]) -> Heard {
    match decode_trusted::<ToDevice>(bytes) {
        Ok(ToDevice { deliver: Some(deliver), .. }) => match deliver.id.try_into() {
            Ok(id) => Heard::Delivered((id, deliver.broadcast == Some(true))),
            Err(_) => Heard::Other,
        },
        Ok(ToDevice { result: Some(result), .. }) => match result.registered {
            Some(registered) => Heard::Registered(registered.regid),
            None if result.code == 0 => Heard::Other,
            None => Heard::Failed(format!("code {}: {}", result.code, result.description.unwrap_or_default())),
        },
        _ => Heard::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SINGLE: &[u8] = b"<message><channel xmlns='urn:campanile:channel:1' number='5'>LBgQAZhjLgIAUtjXPhGU6VtfGRgQY29tLmV4YW1wbGUuZGVtbxgiaEaZO8Fr6pvAfKWXtrcUTaquvBe5m2tZA+1hVYAh14sxSQAA</channel></message>";

    #[test]
    fn a_delivery_is_told_from_a_result() {
        assert!(is_delivery(SINGLE));
        let Heard::Delivered((id, broadcast)) = read(SINGLE) else { panic!("{:?}", read(SINGLE)) };
        assert_eq!((id[..4].to_vec(), broadcast), (vec![0x01, 0x98, 0x63, 0x2e], false));
        let result = b"<message><channel xmlns='urn:campanile:channel:1' number='5'>HBUEFQAAAA==</channel></message>";
        assert!(!is_delivery(result));
        assert_eq!(read(result), Heard::Other);
        assert_eq!(read(b"<message><body>LBgQ</body></message>"), Heard::Other);
        let single = payload(SINGLE).map(|payload| STANDARD.decode(payload).expect("base 64")).expect("a payload");
        assert!(is_delivered(&single) && !is_delivered(&[0x1c, 0x15, 0x04]));
        assert_eq!(read_payload(&single), read(SINGLE));
    }

    #[test]
    fn acks_are_those_of_the_protocols_document() {
        let id = |text: &str| u128::from_str_radix(text, 16).expect("hexadecimal").to_be_bytes();
        let delivered =
            [(id("0198632e020052d8d73e1194e95b5f19"), false), (id("0198632e0201d6f9df7c0110c8531d09"), true)];
        let said = upwards(Form::Xml, ack("com.example.demo", &delivered));
        let said = String::from_utf8(said).expect("text");
        let shown = include_str!("../../../docs/protocol.md");
        assert!(shown.contains(&said), "{said}");
    }
}
