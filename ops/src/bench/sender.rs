//! A connection that sends to devices, where the protocol and not an HTTP API is the way.

use anyhow::{Context as _, Result, bail};
use idl::clock::SystemEntropy;
use idl::seal::AgreementKey;

use super::link::{Link, client_tls};
use super::mqtt::{self, Quality};
use super::order::{Connect, Device, Kind};
use super::worker::begin;
use super::xmpp::RESOURCE;
use crate::data_folder::read_json;

/// What a payload has, in bytes, on every server.
pub(super) const PAYLOAD_BYTES: usize = 100;
/// What is given to the socket at one time.
const PIECE_BYTES: usize = 64 << 10;

/// An open connection of a sender.
pub(super) struct Sender {
    link: Link,
}

impl Sender {
    /// The one that is there, or a new one.
    pub(super) async fn of<'a>(there: &'a mut Option<Self>, order: &Connect) -> Result<&'a mut Self> {
        if there.is_none() {
            let devices: Vec<Device> = read_json(&order.devices)?.context("there are no devices")?;
            let device = devices.get(order.from).context("there is no sender among the devices")?;
            let tls = order.ca.as_deref().map(|ca| client_tls(ca, false)).transpose()?;
            // A sender is subscribed to nothing.
            let order = Connect { stay: false, app: None, ..order.clone() };
            let ready =
                begin(&order, device, tls, &AgreementKey::random(&SystemEntropy)).await.context("the sender")?;
            *there = Some(Self { link: ready.into_link() });
        }
        there.as_mut().context("a sender")
    }

    /// Sends to every device, one message after another.
    pub(super) async fn publish(&mut self, order: &Connect, to: &[Device], times: u64) -> Result<()> {
        let mut said = Vec::new();
        for number in 0..times {
            if order.kind == Kind::Mosquitto {
                said.extend(mqtt::publish(mqtt::EVERYONE, &payload(number), quality(order), number)?);
                continue;
            }
            for device in to {
                said.extend(message(order, &device.id, number)?);
                if said.len() >= PIECE_BYTES {
                    self.link.send(&said).await?;
                    said.clear();
                }
            }
        }
        self.link.skip()?;
        Ok(self.link.send(&said).await?)
    }

    /// Sends to one device.
    pub(super) async fn send(&mut self, order: &Connect, to: &str, number: u64) -> Result<()> {
        let said = message(order, to, number)?;
        // What the server says to the sender is of no use, but must not fill its socket.
        self.link.skip()?;
        Ok(self.link.send(&said).await?)
    }
}

fn quality(order: &Connect) -> Quality {
    if order.acks { Quality::Acknowledged } else { Quality::Once }
}

/// The text of a message of that number.
pub(super) fn payload(number: u64) -> String {
    format!("{number:016}{:x<1$}", "", PAYLOAD_BYTES - 16)
}

fn message(order: &Connect, to: &str, number: u64) -> Result<Vec<u8>> {
    match order.kind {
        Kind::Ejabberd => {
            let (domain, payload) = (&order.domain, payload(number));
            Ok(format!("<message to='{to}@{domain}/{RESOURCE}' type='headline'><body>{payload}</body></message>")
                .into_bytes())
        }
        Kind::Mosquitto => mqtt::publish(&mqtt::topic_of(to), &payload(number), quality(order), number),
        Kind::Campanile => bail!("Campanile's devices get messages through its API"),
    }
}
