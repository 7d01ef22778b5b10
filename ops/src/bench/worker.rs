//! A process that is many devices: it takes orders on stdin and answers on stdout. One thread, one small task for each
//! connection. A process holds only so many descriptors, so the bench starts several.

use std::cell::Cell;
use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use idl::clock::SystemEntropy;
use idl::seal::AgreementKey;
use rustls::ClientConfig;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::timeout;

use super::devices::{self, Counts};
use super::link::{Link, client_tls};
use super::mqtt::{self, Quality};
use super::order::{Answer, Connect, Device, Form, Kind, Order};
use super::push::{self, Heard};
use super::rate;
use super::sender::Sender;
use super::slim;
use super::xmpp::{self, Talk};
use crate::data_folder::read_json;
use crate::lifecycle::raise_file_limit;

/// From connecting to being ready for pushes.
const LOGIN_TIME_MAX: Duration = Duration::from_mins(1);
/// Failures in a row after which a lane of logins gives up.
const FAILURES_MAX: u32 = 3;

/// Runs until stdin ends.
pub(crate) fn run() -> Result<()> {
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (orders, mut queue) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if orders.blocking_send(line).is_err() {
                break;
            }
        }
    });
    LocalSet::new().block_on(&runtime, async {
        let mut worker = Worker::default();
        while let Some(line) = queue.recv().await {
            let done = match serde_json::from_str(&line) {
                Ok(order) => worker.take(order).await,
                Err(error) => Err(error.into()),
            };
            let answer = done.unwrap_or_else(|error| Answer { error: Some(format!("{error:#}")), ..Answer::default() });
            let mut out = std::io::stdout().lock();
            writeln!(out, "{}", serde_json::to_string(&answer)?)?;
            out.flush()?;
        }
        Ok(())
    })
}

#[derive(Default)]
struct Worker {
    counts: Rc<Counts>,
    connections: JoinSet<()>,
    /// What single messages are addressed to: registrations, or names.
    addresses: Vec<String>,
    sender: Option<Sender>,
}

/// A device that is ready for pushes.
pub(super) struct Ready {
    /// Its connection.
    pub(super) link: Link,
    /// What was heard beyond the last answer.
    pub(super) heard: Vec<u8>,
    /// Its registration, if it has one.
    pub(super) regid: Option<String>,
}

impl Worker {
    async fn take(&mut self, order: Order) -> Result<Answer> {
        match order {
            Order::Connect(order) => self.connect(order).await,
            Order::Forget => {
                self.counts.forget();
                Ok(Answer::default())
            }
            Order::Await { deliveries, patience_ms } => {
                // What has come until the end of patience is the answer, too.
                let _ = timeout(Duration::from_millis(patience_ms), self.counts.reached(deliveries)).await;
                Ok(self.counts.answer())
            }
            Order::Count => Ok(self.counts.answer()),
            Order::Publish(order) => {
                let sender = Sender::of(&mut self.sender, &order.sender).await?;
                let devices: Vec<Device> = devices_of(&order.sender.devices)?;
                let to = devices.get(..order.devices).context("there are not so many devices")?;
                sender.publish(&order.sender, to, order.times).await?;
                Ok(Answer::default())
            }
            Order::Rate(order) => rate::run(&order, &self.addresses, &self.counts, &mut self.sender).await,
            Order::Disconnect => {
                self.connections.shutdown().await;
                self.addresses.clear();
                self.sender = None;
                Ok(self.counts.answer())
            }
        }
    }

    async fn connect(&mut self, order: Connect) -> Result<Answer> {
        let devices: Vec<Device> = devices_of(&order.devices)?;
        let devices = devices.get(order.from..order.from + order.different).context("there are not so many devices")?;
        if devices.is_empty() {
            return Ok(Answer::default());
        }
        let shared = Rc::new(Lanes {
            devices: devices.to_vec(),
            next: Cell::new(0),
            key: AgreementKey::random(&SystemEntropy),
            counts: Rc::clone(&self.counts),
            order,
        });
        let one_for_all = shared.order.ca.as_deref().map(|ca| client_tls(ca, false)).transpose()?;
        let mut lanes = JoinSet::new();
        for _ in 0..shared.order.at_once {
            // Tickets are a device's own: each lane keeps those of its last connection.
            let tls = match (&shared.order.ca, shared.order.tickets) {
                (Some(ca), true) => Some(client_tls(ca, true)?),
                _ => one_for_all.clone(),
            };
            lanes.spawn_local(lane(Rc::clone(&shared), tls));
        }
        let mut answer = Answer::default();
        let mut addresses = vec![String::new(); devices.len()];
        while let Some(lane) = lanes.join_next().await {
            let lane = lane?;
            answer.count += lane.count;
            answer.resumed += lane.resumed;
            answer.error = answer.error.or(lane.error);
            for (number, ready) in lane.ready {
                let device = &shared.devices[number];
                addresses[number] = ready.regid.clone().unwrap_or_else(|| device.id.clone());
                self.connections.spawn_local(devices::live(
                    ready.link,
                    ready.heard,
                    Rc::clone(&self.counts),
                    &shared.order,
                ));
            }
        }
        if shared.order.stay {
            answer.regids.clone_from(&addresses);
            self.addresses.extend(addresses);
        }
        Ok(answer)
    }
}

/// What lanes of logins share.
struct Lanes {
    order: Connect,
    devices: Vec<Device>,
    next: Cell<usize>,
    key: AgreementKey,
    counts: Rc<Counts>,
}

/// What came of a lane.
#[derive(Default)]
struct Lane {
    count: u64,
    resumed: u64,
    error: Option<String>,
    ready: Vec<(usize, Ready)>,
}

/// One login after another.
async fn lane(shared: Rc<Lanes>, tls: Option<Arc<ClientConfig>>) -> Lane {
    let (mut lane, mut failures, order) = (Lane::default(), 0, &shared.order);
    while failures < FAILURES_MAX && shared.next.get() < order.count {
        let number = shared.next.replace(shared.next.get() + 1) % shared.devices.len();
        let device = &shared.devices[number];
        let login = timeout(LOGIN_TIME_MAX, begin(order, device, tls.clone(), &shared.key)).await;
        let done = match login.context("a login took too long").and_then(|login| login) {
            Ok(mut ready) => {
                lane.count += 1;
                lane.resumed += u64::from(ready.link.is_resumed());
                if order.stay {
                    let shrunk = ready.link.shrink();
                    lane.ready.push((number, ready));
                    shrunk.context("its TLS")
                } else {
                    leave(order, ready.link).await
                }
            }
            Err(error) => Err(error),
        };
        match done {
            Ok(()) => failures = 0,
            Err(error) => {
                failures += 1;
                shared.counts.lost.set(shared.counts.lost.get() + 1);
                lane.error = Some(format!("{error:#}"));
            }
        }
    }
    lane
}

/// Connects a device and brings it to where pushes reach it.
pub(super) async fn begin(
    order: &Connect,
    device: &Device,
    tls: Option<Arc<ClientConfig>>,
    key: &AgreementKey,
) -> Result<Ready> {
    let origin = u8::try_from(order.from / DEVICES_PER_ORIGIN).unwrap_or(u8::MAX);
    let tls = tls.map(|config| (config, order.domain.as_str()));
    let mut link = Link::open(order.to, origin, tls).await.context("connecting")?;
    if order.kind == Kind::Mosquitto {
        let quality = if order.acks { Quality::Acknowledged } else { Quality::Once };
        mqtt::log_in(&mut link, &device.id, &device.password, order.stay.then_some(quality)).await?;
        return Ok(Ready { link, heard: Vec::new(), regid: None });
    }
    let mut talk = Talk::new(link);
    xmpp::log_in(&mut talk, &order.domain, device, xmpp::RESOURCE).await?;
    if order.form == Form::Slim {
        return slim::begin(talk, order, device, key).await;
    }
    let mut regid = device.regid.clone();
    if let Some(app) = &order.app {
        talk.ask(&push::open(regid.as_deref()), &["</iq>"]).await.context("opening the channel")?;
        if regid.is_none() {
            let mut said = push::upwards(order.form, push::register(app, &device.id, key)?);
            while regid.is_none() {
                let heard = talk.ask(&said, &["</message>"]).await.context("registering")?;
                said.clear();
                match push::read(heard.as_bytes()) {
                    Heard::Registered(made) => regid = Some(made),
                    Heard::Failed(why) => bail!("registering: {why}"),
                    Heard::Delivered(_) | Heard::Other => {}
                }
            }
        }
    }
    let (link, heard) = talk.end();
    Ok(Ready { link, heard, regid })
}

/// Connections that come from one address: a machine has some 28,000 ports for each.
const DEVICES_PER_ORIGIN: usize = 12_000;

impl Ready {
    /// Its connection.
    pub(super) fn into_link(self) -> Link {
        self.link
    }
}

/// Ends a stream well.
async fn leave(order: &Connect, mut link: Link) -> Result<()> {
    match order.kind {
        Kind::Campanile if order.form == Form::Slim => link.send(&idl::slim::CLOSE).await?,
        Kind::Campanile | Kind::Ejabberd => link.send(b"</stream:stream>").await?,
        Kind::Mosquitto => link.send(&mqtt::DISCONNECT).await?,
    }
    Ok(())
}

fn devices_of(file: &Path) -> Result<Vec<Device>> {
    read_json(file)?.with_context(|| format!("there are no devices in {}", file.display()))
}
