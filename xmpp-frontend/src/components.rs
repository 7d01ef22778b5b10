//! Channels that others serve. A service is a component (XEP-0114): it connects to this front, proves a secret, and from then
//! on is the service of one channel number. It hears what devices say on that channel, each with its address, which the front
//! attests, and what it says goes to the connections that have the channel open.
//!
//! A service has one connection: a newer one takes over, and the older ends with `conflict`. A front knows its own devices
//! alone, so where there are several fronts a service connects to each.
//!
//! Nothing waits for a service but its own queue, which is bounded. What finds no room there is refused at once.

mod connection;
mod desk;
mod spoken;

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use self::connection::take;
use self::desk::{Desk, Link, Refusal, Tell, Told};
use crate::channels::answer_error;
use crate::config::{Config, ServedChannel};
use crate::form::Frame;
use crate::line::Line;
use crate::metrics::{Metrics, OfChannel};
use crate::routing::full_jid;
use crate::stanza::{Request, Trouble};
use crate::{Shared, lock};

/// How long services may take to hear the last words of a front that drains.
const END_TIME_MAX: std::time::Duration = std::time::Duration::from_secs(1);

/// The services of channels.
pub(crate) struct Components {
    services: HashMap<u32, Arc<Component>>,
    /// Connections, logged in or not.
    connections: AtomicUsize,
    tasks: TaskTracker,
    /// Cancelled when their connections are to end.
    ending: CancellationToken,
}

/// The service of one channel, whether it is here or not.
pub(crate) struct Component {
    number: u32,
    name: String,
    secret: String,
    desk: Mutex<Desk>,
    /// Ends the connection that it has.
    replaced: Mutex<CancellationToken>,
    /// There is something to write to it.
    wake: Notify,
    metrics: Arc<Metrics>,
}

impl Components {
    pub(crate) fn new(config: &Config, metrics: &Arc<Metrics>) -> Self {
        let service = |channel: &ServedChannel| {
            let number = u32::from(channel.number);
            let component = Component {
                number,
                name: channel.name.clone(),
                secret: channel.secret.clone(),
                desk: Mutex::new(Desk::new(number, &channel.name, &config.domain, &config.limits)),
                replaced: Mutex::default(),
                wake: Notify::new(),
                metrics: Arc::clone(metrics),
            };
            component.change(|_| ());
            component.metrics.channel_services.get_or_create(&component.label()).set(0);
            (number, Arc::new(component))
        };
        Self {
            services: config.channels.iter().map(service).collect(),
            connections: AtomicUsize::new(0),
            tasks: TaskTracker::new(),
            ending: CancellationToken::new(),
        }
    }

    /// Who serves a channel, if others do.
    pub(crate) fn serving(&self, number: u32) -> Option<&Arc<Component>> {
        self.services.get(&number)
    }

    /// A connection of a device has ended for good.
    pub(crate) fn left(&self, line: &Arc<Line>) {
        for component in self.services.values() {
            component.change(|desk| desk.left(line, Instant::now()));
        }
    }

    /// Ends the connections of all services.
    pub(crate) async fn end(&self) {
        self.ending.cancel();
        self.tasks.close();
        // Whoever does not read is cut off.
        let _ = timeout(END_TIME_MAX, self.tasks.wait()).await;
    }

    fn named(&self, name: &str) -> Option<&Arc<Component>> {
        self.services.values().find(|component| component.name.eq_ignore_ascii_case(name))
    }
}

/// Hands the opening of a channel to its service. The service's answer is the device's.
pub(crate) fn open(shared: &Arc<Shared>, component: &Component, line: &Arc<Line>, request: Request) {
    let reply = request.reply.clone();
    if let Err(refusal) = component.change(|desk| desk.open(line, request, Instant::now())) {
        answer_error(shared, line, &reply, &component.refused(refusal));
    }
}

/// Hands a payload to its channel's service.
pub(crate) fn up(shared: &Arc<Shared>, component: &Component, line: &Arc<Line>, request: &Request) {
    match component.change(|desk| desk.up(line, request)) {
        Ok(()) => _ = component.metrics.channel_payloads_up.get_or_create(&component.label()).inc(),
        Err(refusal) => answer_error(shared, line, &request.reply, &component.refused(refusal)),
    }
}

impl Component {
    fn label(&self) -> OfChannel {
        OfChannel { channel: self.number }
    }

    /// Does something at the desk and shows what has become of it.
    fn change<T>(&self, act: impl FnOnce(&mut Desk) -> T) -> T {
        let mut desk = lock(&self.desk);
        let done = act(&mut desk);
        let (members, waiting) = (desk.members(), desk.waiting_bytes());
        let as_gauge = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.metrics.channel_members.get_or_create(&self.label()).set(as_gauge(members));
        self.metrics.channel_waiting_bytes.get_or_create(&self.label()).set(as_gauge(waiting));
        drop(desk);
        if waiting > 0 {
            self.wake.notify_one();
        }
        done
    }

    /// The service is here by a new connection, which ends when the token is cancelled.
    fn attach(&self, shared: &Shared) -> (Link, CancellationToken) {
        let token = CancellationToken::new();
        let (link, tell) = self.change(|desk| {
            std::mem::replace(&mut *lock(&self.replaced), token.clone()).cancel();
            self.metrics.channel_services.get_or_create(&self.label()).set(1);
            desk.attach(Instant::now())
        });
        self.tell(shared, tell);
        (link, token)
    }

    fn detach(&self, shared: &Shared, link: Link) {
        let tell = self.change(|desk| {
            if desk.is_by(link) {
                self.metrics.channel_services.get_or_create(&self.label()).set(0);
            }
            desk.detach(link)
        });
        self.tell(shared, tell);
    }

    /// Tells devices what has become of what they asked.
    fn tell(&self, shared: &Shared, tell: Tell) {
        for (line, told) in tell {
            match told {
                Told::Opened(reply) => {
                    let opened = format!("<open xmlns='{}' number='{}'/>", idl::channel::NS, self.number);
                    // A line that takes no more is closing: its client comes back and asks anew.
                    let _ = line.say(Frame::stanza(reply.result(&full_jid(shared, &line), &opened)));
                }
                Told::NotOpened(reply, trouble) => {
                    self.metrics.refused_on(self.number, trouble.condition());
                    answer_error(shared, &line, &reply, &trouble);
                }
                Told::Closed(trouble) => {
                    self.metrics.refused_on(self.number, trouble.condition());
                    let channel = format!("<channel xmlns='{}' number='{}'/>", idl::channel::NS, self.number);
                    let closed = format!("<message type='error'>{channel}{}</message>", trouble.element());
                    // As above.
                    let _ = line.say(Frame::stanza(closed));
                }
            }
        }
    }

    fn refused(&self, refusal: Refusal) -> Trouble {
        let trouble = match refusal {
            Refusal::Because(trouble) => trouble,
            Refusal::Limit(limit) => {
                self.metrics.limit(limit);
                let text = format!("too much waits for the service of channel {}", self.number);
                Trouble::new("wait", "resource-constraint", text)
            }
        };
        self.metrics.refused_on(self.number, trouble.condition());
        trouble
    }
}
