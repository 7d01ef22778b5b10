//! A server by its roles, devices on both of its fronts, and a stream of sends through both of its HTTP frontends.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::{Duration, Instant};

use servers::{Engines, Role};

use crate::harness::app_server::{Answer, AppServer};
use crate::harness::eventually;
use crate::harness::fleet::Fleet;
use crate::harness::server::Server;
use crate::history::{Flow, Senders, Target, Violation, judge};

const TOPIC: &str = "news";
const DEVICES: usize = 6;
/// The devices that have the topic.
const SUBSCRIBERS: Range<usize> = 2..5;
/// The devices that have the alias.
const NAMED: Range<usize> = 3..6;
/// About twelve sends a second, however many fail: a device knows its last 1,000 messages again, and what a fault may bring
/// back must stay below that.
const PORTION: usize = 3;
const PORTION_EVERY: Duration = Duration::from_millis(250);

/// A server by its roles under a stream of sends.
pub(crate) struct Stream {
    pub(crate) server: Server,
    apps: Vec<AppServer>,
    fleet: Fleet,
    regids: Vec<String>,
    senders: Senders,
    flow: Option<Flow>,
    begun: Instant,
}

impl Stream {
    /// Devices with names and a topic, three on each front, and senders that send by regid, to several regids at once, by alias
    /// and by topic. Nothing is sent yet.
    pub(crate) async fn new(engines: Engines<'_>, settings: &[(&str, &str)]) -> Self {
        let begun = now();
        let server = Server::start_by_roles(engines, settings);
        let mut fleet = Fleet::new(&server, DEVICES);
        fleet.connect(0..DEVICES).await;
        let regids = fleet.regids(0..DEVICES).await;
        for device in &fleet.devices[SUBSCRIBERS] {
            device.subscribe(TOPIC).await;
        }
        for device in &fleet.devices[NAMED] {
            device.alias("ann").await;
        }
        let https =
            server.cluster().of(Role::Http).into_iter().map(|name| server.cluster().address(name, "http.https"));
        let apps: Vec<_> = https.map(|https| AppServer::through(&server, https.expect("it serves HTTPS"))).collect();
        let one = |device: usize| Target::regid(&regids[device], device);
        let topic = Target::topic(TOPIC, SUBSCRIBERS.collect());
        let alias = Target::alias("ann", NAMED.collect());
        let plans = vec![
            vec![one(0), one(1)],
            vec![one(0), one(1), one(2), one(3), one(4), one(5)],
            vec![one(5), Target::regids(&regids), one(2)],
            vec![alias, topic.clone()],
            vec![topic, one(3)],
        ];
        let senders = Senders::start_through(&apps, plans);
        let mut stream = Self { server, apps, fleet, regids, senders, flow: None, begun };
        stream.spread().await;
        stream
    }

    /// Lets devices begin with each front in turn, so that half of them are on either, and lets sends flow.
    pub(crate) async fn begin(&mut self, what: &str) {
        println!("{:>6.1} s {what}", self.begun.elapsed().as_secs_f64());
        self.spread().await;
        self.flow = Some(self.senders.flow(PORTION, PORTION_EVERY));
        self.sends_go_on().await;
    }

    async fn spread(&mut self) {
        let fronts = self.fronts();
        self.fleet.stop(0..DEVICES).await;
        for (number, device) in self.fleet.devices.iter_mut().enumerate() {
            device.begin_with(fronts[number % fronts.len()]);
        }
        self.fleet.connect(0..DEVICES).await;
    }

    fn fronts(&self) -> Vec<u16> {
        let cluster = self.server.cluster();
        // Those that devices were told of when they got their accounts.
        let names = ["front-1", "front-2"].into_iter();
        names.map(|name| cluster.address(name, "xmpp.tls").expect("a front listens").port()).collect()
    }

    /// Waits until sends are accepted that begin from now on, by every sender.
    pub(crate) async fn sends_go_on(&self) {
        let begun = self.senders.history.all().len();
        let all = |senders: BTreeSet<usize>| (senders.len() == 5).then_some(());
        let accepted = || {
            let sends = self.senders.history.all();
            let later = sends[begun..].iter().filter(|sent| matches!(sent.answer, Some(Answer::Accepted(_))));
            all(later.map(|sent| sent.sender).collect())
        };
        eventually("every sender's sends are accepted", accepted).await;
    }

    /// Waits until so many more sends have been tried, whatever comes of them.
    pub(crate) async fn sends_are_tried(&self, count: usize) {
        let before = self.senders.history.tried();
        let tried = || (self.senders.history.tried() >= before + count).then_some(());
        eventually("sends are tried", tried).await;
    }

    /// Ends the flow, waits until everything has arrived that must, and judges all that has happened until now. Every device
    /// connects anew for that, so that whatever waits for it comes, and marks come after.
    pub(crate) async fn judge(&mut self, what: &str) {
        self.flow = None;
        self.senders.halt();
        eventually("every send has its answer", || self.senders.are_idle().then_some(())).await;
        for (number, device) in self.fleet.devices.iter().enumerate() {
            device.ready().await;
            let expected = self.senders.history.deliveries(number);
            let caught_up = || (without_marks(&device.payloads()).len() >= expected).then_some(());
            eventually(format!("{what}: device {number} has what was accepted for it"), caught_up).await;
        }
        self.fleet.stop(0..DEVICES).await;
        let (single, broadcast) = (format!("mark single {what}"), format!("mark broadcast {what}"));
        let everyone = self.regids.join(",");
        self.apps[0].send("/v3/message/regid", &[("registration_id", &everyone), ("payload", &single)]);
        self.apps[1].send("/v3/message/all", &[("payload", &broadcast)]);
        self.fleet.connect(0..DEVICES).await;
        for device in &self.fleet.devices {
            device.wait_for_push(&single).await;
            device.wait_for_push(&broadcast).await;
        }
        let callbacks: Vec<_> = self.fleet.devices.iter().map(|device| without_marks(&device.payloads())).collect();
        let sends = self.senders.history.all();
        let accepted = self.senders.history.accepted();
        let delivered: usize = callbacks.iter().map(Vec::len).sum();
        println!(
            "{:>6.1} s {what}: {} sends so far, {accepted} accepted, {delivered} callbacks",
            self.begun.elapsed().as_secs_f64(),
            sends.len()
        );
        assert_eq!(judge(&sends, &callbacks), <[Violation; 0]>::default(), "{what}");
    }

    /// How many devices a front has.
    pub(crate) fn devices_on(&self, front: &str) -> f64 {
        self.server.metric_of(front, "campanile_front_connections")
    }

    /// A way to send through each HTTP frontend there is now.
    pub(crate) fn app_server(&self, name: &str) -> AppServer {
        let https = self.server.cluster().address(name, "http.https").expect("it serves HTTPS");
        AppServer::through(&self.server, https)
    }

    /// The registration of a device.
    pub(crate) fn regid(&self, device: usize) -> &str {
        &self.regids[device]
    }

    /// A device connects to the front with that port, until the next phase begins.
    pub(crate) async fn move_to(&mut self, device: usize, port: u16) {
        self.fleet.stop(device..device + 1).await;
        self.fleet.devices[device].begin_with(port);
        self.fleet.connect(device..device + 1).await;
    }
}

fn without_marks(payloads: &[String]) -> Vec<String> {
    payloads.iter().filter(|payload| !payload.starts_with("mark ")).cloned().collect()
}

#[expect(clippy::disallowed_methods, reason = "these tests run against real processes in real time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
