//! What connected devices of a worker do: take deliveries, count them, acknowledge.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::link::Link;
use super::mqtt::{self, Packets};
use super::order::{Answer, Connect, Form, Kind};
use super::push::{self, Delivered, Heard};
use super::slim::Payloads;
use super::xmpp::Messages;

/// How long acknowledgements wait for others, and how many leave together: as the client core does.
const ACK_DELAY: Duration = Duration::from_millis(200);
const ACKS_MAX: usize = 64;

/// What a message is known by: its id, or the first bytes of its text.
pub(super) type Key = [u8; 16];

/// What the devices of this process have got.
#[derive(Default)]
pub(super) struct Counts {
    deliveries: Cell<u64>,
    goal: Cell<u64>,
    at_goal: Notify,
    received: Cell<u64>,
    sent: Cell<u64>,
    /// Connections that ended by themselves, and logins that failed.
    pub(super) lost: Cell<u64>,
    /// When messages arrived, while that is asked.
    arrivals: RefCell<Option<HashMap<Key, Instant>>>,
}

impl Counts {
    /// Begins anew.
    pub(super) fn forget(&self) {
        for count in [&self.deliveries, &self.goal, &self.received, &self.sent] {
            count.set(0);
        }
    }

    /// Waits until so many deliveries were counted.
    pub(super) async fn reached(&self, deliveries: u64) {
        self.goal.set(deliveries);
        while self.deliveries.get() < deliveries {
            self.at_goal.notified().await;
        }
    }

    /// What was counted.
    pub(super) fn answer(&self) -> Answer {
        Answer {
            count: self.deliveries.get(),
            lost: self.lost.get(),
            received: self.received.get(),
            sent: self.sent.get(),
            ..Answer::default()
        }
    }

    /// From now on arrivals are noted.
    pub(super) fn note_arrivals(&self) {
        *self.arrivals.borrow_mut() = Some(HashMap::new());
    }

    /// What was noted; no more is.
    pub(super) fn take_arrivals(&self) -> HashMap<Key, Instant> {
        self.arrivals.borrow_mut().take().unwrap_or_default()
    }

    fn delivered(&self, key: Option<Key>) {
        if let (Some(key), Some(arrivals)) = (key, self.arrivals.borrow_mut().as_mut()) {
            // A message that comes again has arrived before.
            arrivals.entry(key).or_insert_with(Instant::now);
        }
        self.deliveries.set(self.deliveries.get() + 1);
        if self.deliveries.get() == self.goal.get() {
            self.at_goal.notify_one();
        }
    }

    fn is_noting(&self) -> bool {
        self.arrivals.borrow().is_some()
    }

    fn count_bytes(&self, link: &mut Link) {
        self.received.set(self.received.get() + std::mem::take(&mut link.received));
        self.sent.set(self.sent.get() + std::mem::take(&mut link.sent));
    }
}

/// How a device takes what comes.
enum Taking {
    /// Campanile's channel 5; acknowledged for this application, if at all.
    Channel { stream: Stream, acks_for: Option<Rc<str>>, pending: Vec<Delivered> },
    /// Messages with a body.
    Bodies(Messages),
    /// MQTT, and acknowledgements that leave at once.
    Packets(Packets, Vec<u8>),
}

/// The form that Campanile's stream is in.
enum Stream {
    Xml(Messages),
    Slim(Payloads),
}

/// Takes deliveries until the connection ends or the task does.
pub(super) fn live(
    mut link: Link,
    heard: Vec<u8>,
    counts: Rc<Counts>,
    order: &Connect,
) -> impl Future<Output = ()> + use<> {
    let mut taking = match order.kind {
        Kind::Campanile => {
            let acks_for = order.app.as_ref().filter(|_| order.acks).map(|app| Rc::from(app.app.as_str()));
            let stream = match order.form {
                Form::Xml => Stream::Xml(Messages::default()),
                Form::Slim => Stream::Slim(Payloads::default()),
            };
            Taking::Channel { stream, acks_for, pending: Vec::new() }
        }
        Kind::Ejabberd => Taking::Bodies(Messages::default()),
        Kind::Mosquitto => Taking::Packets(Packets::default(), Vec::new()),
    };
    async move {
        // What the login took is no delivery's.
        (link.received, link.sent) = (0, 0);
        let mut is_open = taking.take(&heard, &counts);
        drop(heard);
        let mut acks_at: Option<Instant> = None;
        while is_open {
            is_open = if let Some(at) = acks_at {
                tokio::select! {
                    received = link.receive(|bytes| { taking.take(bytes, &counts); }) => received.unwrap_or(false),
                    () = sleep_until(at) => true,
                }
            } else {
                link.receive(|bytes| {
                    taking.take(bytes, &counts);
                })
                .await
                .unwrap_or(false)
            };
            let due = acks_at.is_some_and(|at| at <= Instant::now());
            if let Some(said) = taking.due(due) {
                is_open &= link.send(&said).await.is_ok();
            }
            acks_at = taking.waits_since(acks_at);
            is_open &= link.shrink().is_ok();
            counts.count_bytes(&mut link);
        }
        counts.lost.set(counts.lost.get() + 1);
    }
}

impl Stream {
    fn form(&self) -> Form {
        match self {
            Self::Xml(_) => Form::Xml,
            Self::Slim(_) => Form::Slim,
        }
    }
}

impl Taking {
    /// Takes bytes. False: they make no sense.
    fn take(&mut self, bytes: &[u8], counts: &Counts) -> bool {
        match self {
            Self::Channel { stream, acks_for, pending } => {
                let with_ids = acks_for.is_some() || counts.is_noting();
                let mut heard = |heard: Heard| {
                    if let Heard::Delivered(delivered) = heard {
                        counts.delivered(Some(delivered.0));
                        if acks_for.is_some() {
                            pending.push(delivered);
                        }
                    }
                };
                match stream {
                    Stream::Xml(messages) if with_ids => messages.take(bytes, |message| heard(push::read(message))),
                    Stream::Xml(messages) => messages.take(bytes, |message| {
                        if push::is_delivery(message) {
                            counts.delivered(None);
                        }
                    }),
                    Stream::Slim(payloads) if with_ids => {
                        payloads.take(bytes, |payload| heard(push::read_payload(payload)))
                    }
                    Stream::Slim(payloads) => payloads.take(bytes, |payload| {
                        if push::is_delivered(payload) {
                            counts.delivered(None);
                        }
                    }),
                }
            }
            Self::Bodies(messages) => messages.take(bytes, |message| {
                if let Some(at) = message.windows(6).position(|at| at == b"<body>") {
                    let key = message.get(at + 6..at + 6 + size_of::<Key>());
                    counts.delivered(key.and_then(|key| key.try_into().ok()));
                }
            }),
            Self::Packets(packets, acks) => packets.take(bytes, |kind, body| {
                if let Some(arrived) = mqtt::arrived(kind, body) {
                    counts.delivered(arrived.key);
                    acks.extend(arrived.ack.into_iter().flatten());
                }
            }),
        }
    }

    /// What is to be said now.
    fn due(&mut self, acks: bool) -> Option<Vec<u8>> {
        match self {
            Self::Channel { stream, acks_for, pending } => {
                if let Some(app) = acks_for
                    && !pending.is_empty()
                    && (acks || pending.len() >= ACKS_MAX)
                {
                    return Some(push::upwards(stream.form(), push::ack(app, &std::mem::take(pending))));
                }
                match stream {
                    Stream::Xml(messages) => messages.pong(),
                    Stream::Slim(payloads) => payloads.pong(),
                }
            }
            Self::Bodies(messages) => messages.pong(),
            Self::Packets(_, acks) => (!acks.is_empty()).then(|| std::mem::take(acks)),
        }
    }

    /// When acknowledgements that wait are due.
    fn waits_since(&self, already: Option<Instant>) -> Option<Instant> {
        match self {
            Self::Channel { pending, .. } if !pending.is_empty() => {
                Some(already.filter(|at| *at > Instant::now()).unwrap_or_else(|| Instant::now() + ACK_DELAY))
            }
            _ => None,
        }
    }
}
