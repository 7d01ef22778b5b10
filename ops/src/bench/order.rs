//! What the bench says to its worker processes and what they answer: a line of JSON each, one order at a time.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Which server, and so which protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// This binary.
    Campanile,
    /// The XMPP server of that name.
    Ejabberd,
    /// The MQTT broker of that name.
    Mosquitto,
}

/// How pushes look on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Form {
    /// XML, as every XMPP client speaks it.
    Xml,
    /// Campanile's frames (`docs/protocol.md`, section 12).
    Slim,
}

/// One order.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub(super) enum Order {
    /// Connects devices. Answer: how many connected, which registrations they have, how many were resumed.
    Connect(Connect),
    /// Sets what was counted to zero.
    Forget,
    /// Waits until so many deliveries were counted. Answer: how many there are.
    Await {
        /// Since the last [`Order::Forget`].
        deliveries: u64,
        /// Then the answer is what has come until then.
        patience_ms: u64,
    },
    /// Answer: what was counted since the last [`Order::Forget`].
    Count,
    /// Sends to all devices of the file from a connection of the protocol, so many messages to each, and goes on. The
    /// connection is made by the first one.
    Publish(Publish),
    /// Sends single messages at a rate, whatever became of those before, and waits for their arrival. Answer: how long
    /// each took.
    Rate(Rate),
    /// Ends all connections.
    Disconnect,
}

/// Which devices connect, and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Connect {
    /// The protocol.
    pub(super) kind: Kind,
    /// How pushes look.
    pub(super) form: Form,
    /// Where.
    pub(super) to: SocketAddr,
    /// With TLS, trusting this CA.
    pub(super) ca: Option<PathBuf>,
    /// The domain, and the name in the certificate.
    pub(super) domain: String,
    /// File with the devices: a list of [`Device`] as JSON.
    pub(super) devices: PathBuf,
    /// The first of them.
    pub(super) from: usize,
    /// How many of them; over the end of the range, those from `from` on come again.
    pub(super) count: usize,
    /// How many different ones.
    pub(super) different: usize,
    /// How many log in at one time.
    pub(super) at_once: usize,
    /// Opens the push channel for this application, and registers devices that have no registration.
    pub(super) app: Option<AppOnDevice>,
    /// Acknowledges deliveries as the client core does: 200 ms after the first, or 64 together.
    pub(super) acks: bool,
    /// Resumes TLS sessions by tickets where the server gives them.
    pub(super) tickets: bool,
    /// Stays connected. Otherwise each stream is closed as soon as it is bound.
    pub(super) stay: bool,
}

/// An application as its devices know it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct AppOnDevice {
    /// Its id.
    pub(super) app: String,
    /// Its package.
    pub(super) package: String,
    /// Its key.
    pub(super) app_key: String,
}

/// A device's account.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Device {
    /// The name it logs in with.
    pub(super) id: String,
    /// Its password or token.
    pub(super) password: String,
    /// Its registration, if it has one.
    pub(super) regid: Option<String>,
}

/// See [`Order::Publish`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Publish {
    /// How the sender connects; its own account is that of `from`.
    pub(super) sender: Connect,
    /// How many devices, from the first of the file on.
    pub(super) devices: usize,
    /// Messages to each.
    pub(super) times: u64,
}

/// See [`Order::Rate`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Rate {
    /// Through which way.
    pub(super) by: Way,
    /// Messages in a second.
    pub(super) per_second: u64,
    /// Messages in all.
    pub(super) count: u64,
}

/// How single messages are sent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Way {
    /// By the HTTP API, over HTTP/2 without TLS.
    Http {
        /// Where it is.
        to: SocketAddr,
        /// The application's secret.
        secret: String,
    },
    /// From a connection of the protocol.
    Sender(Connect),
}

/// What came of an order.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Answer {
    /// Why it could not be done.
    pub(super) error: Option<String>,
    /// Connections, or deliveries.
    pub(super) count: u64,
    /// Connections that were lost.
    pub(super) lost: u64,
    /// Registrations, in the order of devices.
    pub(super) regids: Vec<String>,
    /// TLS sessions resumed by a ticket.
    pub(super) resumed: u64,
    /// Bytes that came from sockets.
    pub(super) received: u64,
    /// Bytes that went into them.
    pub(super) sent: u64,
    /// Microseconds from a request to the arrival on the device, in no order.
    pub(super) arrival_us: Vec<u64>,
    /// Microseconds between a request's moment and its beginning, in no order.
    pub(super) late_us: Vec<u64>,
}
