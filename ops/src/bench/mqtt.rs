//! MQTT 3.1.1 as a device of the load speaks it: CONNECT, SUBSCRIBE, PUBLISH and PUBACK, written out.

use anyhow::{Result, bail};

use super::devices::Key;
use super::link::Link;

/// The topic of broadcasts.
pub(super) const EVERYONE: &str = "everyone";
/// The user that all clients log in as; their identifiers differ.
pub(super) const USER: &str = "device";
/// A packet that claims more ends the connection.
const PACKET_BYTES_MAX: usize = 64 << 10;

const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
const PUBLISH: u8 = 0x30;
const PUBACK: u8 = 0x40;
const SUBSCRIBE: u8 = 0x82;
const SUBACK: u8 = 0x90;
/// Ends a connection well.
pub(super) const DISCONNECT: [u8; 2] = [0xe0, 0];

/// The topic of one device.
pub(super) fn topic_of(id: &str) -> String {
    format!("device/{id}")
}

/// Logs in with a clean session, and subscribes to what a device hears if it stays for that.
pub(super) async fn log_in(link: &mut Link, id: &str, password: &str, subscribe: Option<Quality>) -> Result<()> {
    // Protocol level 4; user name, password and clean session; no keep-alive.
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', 4, 0xc2, 0, 0];
    for text in [id, USER, password] {
        push_text(&mut body, text)?;
    }
    link.send(&packet(CONNECT, &body)?).await?;
    let mut packets = Packets::default();
    if hear(link, &mut packets, CONNACK).await? != [0, 0] {
        bail!("the broker refuses the login");
    }
    if let Some(quality) = subscribe {
        let mut body = vec![0, 1];
        for topic in [EVERYONE, &topic_of(id)] {
            push_text(&mut body, topic)?;
            body.push(quality as u8);
        }
        link.send(&packet(SUBSCRIBE, &body)?).await?;
        if !hear(link, &mut packets, SUBACK).await?.ends_with(&[quality as u8; 2]) {
            bail!("the broker refuses a subscription");
        }
    }
    Ok(())
}

/// How often a message arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Quality {
    /// Once or never, without acknowledgement.
    Once = 0,
    /// Until it is acknowledged.
    Acknowledged = 1,
}

/// A message to a topic. The number is needed where it is acknowledged.
pub(super) fn publish(topic: &str, payload: &str, quality: Quality, number: u64) -> Result<Vec<u8>> {
    let mut body = Vec::with_capacity(topic.len() + payload.len() + 4);
    push_text(&mut body, topic)?;
    if quality == Quality::Acknowledged {
        let id = u16::try_from(number % 0xffff)? + 1;
        body.extend_from_slice(&id.to_be_bytes());
    }
    body.extend_from_slice(payload.as_bytes());
    packet(PUBLISH | (quality as u8) << 1, &body)
}

async fn hear(link: &mut Link, packets: &mut Packets, awaited: u8) -> Result<Vec<u8>> {
    let mut heard = None;
    while heard.is_none() {
        let mut sense = true;
        let open = link
            .receive(|bytes| {
                sense &= packets.take(bytes, |kind, body| {
                    if kind == awaited {
                        heard = Some(body.to_vec());
                    }
                });
            })
            .await?;
        if !open || !sense {
            bail!("the broker ended the connection");
        }
    }
    Ok(heard.unwrap_or_default())
}

fn push_text(body: &mut Vec<u8>, text: &str) -> Result<()> {
    body.extend_from_slice(&u16::try_from(text.len())?.to_be_bytes());
    body.extend_from_slice(text.as_bytes());
    Ok(())
}

fn packet(kind: u8, body: &[u8]) -> Result<Vec<u8>> {
    let mut packet = vec![kind];
    let mut left = body.len();
    loop {
        let digit = u8::try_from(left % 128)?;
        left /= 128;
        packet.push(if left > 0 { digit | 0x80 } else { digit });
        if left == 0 {
            break;
        }
    }
    packet.extend_from_slice(body);
    Ok(packet)
}

/// Cuts a stream into packets. Between packets it holds no memory.
#[derive(Debug, Default)]
pub(super) struct Packets {
    rest: Vec<u8>,
}

impl Packets {
    /// Takes bytes and shows the first byte and the body of every packet that is whole. False: they make no sense.
    pub(super) fn take(&mut self, bytes: &[u8], mut shown: impl FnMut(u8, &[u8])) -> bool {
        let joined;
        let mut left = bytes;
        if !self.rest.is_empty() {
            self.rest.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.rest);
            left = &joined;
        }
        loop {
            match cut(left) {
                Cut::Whole(kind, body, rest) => {
                    shown(kind, body);
                    left = rest;
                }
                Cut::Part => {
                    self.rest.extend_from_slice(left);
                    return true;
                }
                Cut::Nonsense => return false,
            }
        }
    }
}

enum Cut<'a> {
    Whole(u8, &'a [u8], &'a [u8]),
    Part,
    Nonsense,
}

fn cut(bytes: &[u8]) -> Cut<'_> {
    let Some((kind, rest)) = bytes.split_first() else { return Cut::Part };
    let (mut length, mut shift) = (0_usize, 0);
    for (at, digit) in rest.iter().enumerate().take(4) {
        length |= usize::from(digit & 0x7f) << shift;
        shift += 7;
        if digit & 0x80 == 0 {
            if length > PACKET_BYTES_MAX {
                return Cut::Nonsense;
            }
            let rest = &rest[at + 1..];
            return match rest.split_at_checked(length) {
                Some((body, rest)) => Cut::Whole(*kind, body, rest),
                None => Cut::Part,
            };
        }
    }
    if rest.len() >= 4 { Cut::Nonsense } else { Cut::Part }
}

/// A message that arrived.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Arrived {
    /// The first bytes of what it says.
    pub(super) key: Option<Key>,
    /// The packet that acknowledges it, where that is awaited.
    pub(super) ack: Option<[u8; 4]>,
}

/// Reads a packet, if it is a message.
pub(super) fn arrived(kind: u8, body: &[u8]) -> Option<Arrived> {
    if kind & 0xf0 != PUBLISH {
        return None;
    }
    let (length, rest) = body.split_first_chunk::<2>()?;
    let rest = rest.get(usize::from(u16::from_be_bytes(*length))..)?;
    let (ack, payload) = if kind & 0x06 == 0 {
        (None, rest)
    } else {
        let (id, rest) = rest.split_first_chunk::<2>()?;
        (Some([PUBACK, 2, id[0], id[1]]), rest)
    };
    Some(Arrived { key: payload.first_chunk().copied(), ack })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_the_same_wherever_the_stream_is_cut() {
        let text = "x".repeat(200);
        let stream = [
            publish("everyone", &text, Quality::Once, 0).expect("a packet"),
            publish("device/7", "0000000000000007 and more", Quality::Acknowledged, 6).expect("a packet"),
        ]
        .concat();
        let expected = [
            Arrived { key: Some([b'x'; 16]), ack: None },
            Arrived { key: Some(*b"0000000000000007"), ack: Some([0x40, 2, 0, 7]) },
        ];
        for at in 0..=stream.len() {
            let (mut packets, mut shown) = (Packets::default(), Vec::new());
            for piece in [&stream[..at], &stream[at..]] {
                assert!(packets.take(piece, |kind, body| shown.extend(arrived(kind, body))));
            }
            assert_eq!(shown, expected, "cut at {at}");
        }
    }

    #[test]
    fn a_packet_that_claims_much_is_nonsense() {
        for claim in [&[PUBLISH, 0xff, 0xff, 0xff, 0x7f][..], &[PUBLISH, 0xff, 0xff, 0xff, 0xff, 0x7f]] {
            assert!(!Packets::default().take(claim, |_, _| panic!("no packet")));
        }
        assert_eq!(arrived(PUBLISH, &[0xff, 0xff, 1]), None);
    }
}
