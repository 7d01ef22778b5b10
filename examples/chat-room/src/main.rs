//! Chat rooms on a channel of Campanile. A device opens the channel with the name of a room, in UTF-8, and is in that room from
//! then on; what it sends goes to everyone in the room, with the sender's account before it. See README.md.

use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::StreamExt as _;
use tokio_xmpp::connect::DnsConfig;
use tokio_xmpp::jid::Jid;
use tokio_xmpp::minidom::Element;
use tokio_xmpp::parsers::iq::Iq;
use tokio_xmpp::parsers::message::{Message, MessageType};
use tokio_xmpp::parsers::presence::Type as PresenceType;
use tokio_xmpp::parsers::stanza_error::{DefinedCondition, ErrorType, StanzaError};
use tokio_xmpp::{Component, Stanza, xmlstream::Timeouts};

const NS_CHANNEL: &str = "urn:campanile:channel:1";
const NS_PING: &str = "urn:xmpp:ping";
const ROOM_CHARS_MAX: usize = 64;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [service, front, channel, secret_file] = arguments.as_slice() else {
        return Err("usage: chat-room DOMAIN FRONT:PORT CHANNEL SECRET-FILE".into());
    };
    let secret = std::fs::read_to_string(secret_file)?;
    let secret = secret.lines().next().unwrap_or_default();
    loop {
        let front = DnsConfig::addr(front);
        match Component::new_plaintext(service, secret, front, Timeouts::default()).await {
            Ok(mut component) => {
                println!("serving channel {channel} as {service}");
                // The front says again who is there, so a connection begins with nobody.
                let mut rooms = Rooms { channel, members: HashMap::new() };
                while let Some(stanza) = component.next().await {
                    for answer in rooms.hear(stanza) {
                        component.send_stanza(answer).await?;
                    }
                }
            }
            Err(error) => eprintln!("no connection: {error}"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

struct Rooms<'a> {
    channel: &'a str,
    /// In which room each device is, by its address.
    members: HashMap<Jid, String>,
}

impl Rooms<'_> {
    fn hear(&mut self, stanza: Stanza) -> Vec<Stanza> {
        match stanza {
            Stanza::Iq(Iq::Set { from: Some(device), to, id, payload }) if payload.is("open", NS_CHANNEL) => {
                let room = read(&payload).filter(|room| (1..=ROOM_CHARS_MAX).contains(&room.chars().count()));
                let answer = match room {
                    Some(room) => {
                        self.members.insert(device.clone(), room);
                        Iq::Result { from: to, to: Some(device), id, payload: None }
                    }
                    None => {
                        refuse(device, to, id, DefinedCondition::NotAcceptable, "open the channel with a room's name")
                    }
                };
                vec![answer.into()]
            }
            Stanza::Iq(Iq::Get { from, to, id, payload }) if payload.is("ping", NS_PING) => {
                vec![Iq::Result { from: to, to: from, id, payload: None }.into()]
            }
            Stanza::Iq(Iq::Get { from: Some(from), to, id, .. } | Iq::Set { from: Some(from), to, id, .. }) => {
                vec![refuse(from, to, id, DefinedCondition::ServiceUnavailable, "there are only rooms here").into()]
            }
            Stanza::Message(Message { from: Some(device), to, type_, payloads, .. }) if type_ != MessageType::Error => {
                let said = payloads.iter().find(|payload| payload.is("channel", NS_CHANNEL)).and_then(read);
                said.map_or_else(Vec::new, |said| self.say(&device, to.as_ref(), &said))
            }
            Stanza::Presence(presence) if presence.type_ == PresenceType::Unavailable => {
                presence.from.map(|device| self.members.remove(&device));
                vec![]
            }
            _ => vec![],
        }
    }

    /// What a device says, for everyone in its room.
    fn say(&self, device: &Jid, service: Option<&Jid>, said: &str) -> Vec<Stanza> {
        let Some(room) = self.members.get(device) else { return vec![] };
        let name = device.node().map_or("somebody", |node| node.as_str());
        let text = STANDARD.encode(format!("{name}: {said}"));
        let everyone = self.members.iter().filter(|(_, other)| *other == room).map(|(member, _)| member);
        let message = |member: &Jid| {
            let channel = Element::builder("channel", NS_CHANNEL)
                .attr("number".try_into().expect("a name"), self.channel)
                .append(text.as_str());
            let mut message = Message::normal(member.clone()).with_payloads(vec![channel.build()]);
            message.from = service.cloned();
            message.into()
        };
        everyone.map(message).collect()
    }
}

/// The payload of a channel element, as text.
fn read(element: &Element) -> Option<String> {
    String::from_utf8(STANDARD.decode(element.text()).ok()?).ok()
}

fn refuse(to: Jid, from: Option<Jid>, id: String, condition: DefinedCondition, text: &str) -> Iq {
    let error = StanzaError::new(ErrorType::Cancel, condition, "en", text);
    Iq::Error { from, to: Some(to), id, error, payload: None }
}
