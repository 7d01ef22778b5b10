//! Pushes end to end: the real binary, sends over HTTPS, devices over TLS. Who gets what, when it comes back, and what
//! it may cost.

#[path = "harness/harness.rs"]
#[expect(clippy::allow_attributes, reason = "each test file uses a part of the harness")]
#[allow(dead_code, reason = "each test file uses a part of the harness")]
mod harness;
#[path = "harness/history.rs"]
#[expect(clippy::allow_attributes, reason = "each test file uses a part of it")]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod history;
#[path = "harness/proxy.rs"]
mod proxy;

use std::ops::Range;
use std::time::Duration;

use harness::app_server::AppServer;
use harness::fleet::{Fleet, InProcessDevice};
use harness::server::Server;
use harness::{eventually, wait_for};
use history::{Senders, Target, judge};
use idl::clock::{Clock as _, SystemClock};
use proxy::Proxy;
use schema::sorted::{Row, RowScan, Table};
use sdk_android_bridge::Command;

/// A server, its app server, and devices that were registered with it.
struct Party {
    server: Server,
    app: AppServer,
    fleet: Fleet,
    regids: Vec<String>,
}

impl Party {
    /// As many devices, all online.
    async fn of(devices: usize) -> Self {
        Self::on(Server::start(), devices).await
    }

    async fn on(server: Server, devices: usize) -> Self {
        let mut fleet = Fleet::new(&server, devices);
        fleet.connect(0..devices).await;
        let regids = fleet.regids(0..devices).await;
        Self { app: AppServer::of(&server), server, fleet, regids }
    }

    fn everyone(&self) -> Range<usize> {
        0..self.fleet.devices.len()
    }

    fn device(&self, number: usize) -> &InProcessDevice {
        &self.fleet.devices[number]
    }

    /// Sends to one device, by its regid.
    fn send_to(&self, device: usize, payload: &str) {
        self.app.send("/v3/message/regid", &[("registration_id", &self.regids[device]), ("payload", payload)]);
    }

    fn send_to_topic(&self, topic: &str, payload: &str) {
        self.app.send("/v3/message/topic", &[("topic", topic), ("payload", payload)]);
    }

    /// Sends two marks to every device, one on each way that messages take. Whatever was sent before and takes the same
    /// way has come when they have.
    fn mark(&self, name: &str) {
        let everyone = self.regids.join(",");
        let single = format!("mark {name}, single");
        self.app.send("/v3/message/regid", &[("registration_id", &everyone), ("payload", &single)]);
        self.app.send("/v3/message/all", &[("payload", &format!("mark {name}, broadcast"))]);
    }

    /// Waits for the marks of that name.
    async fn marked(&self, name: &str) {
        for device in &self.fleet.devices {
            device.wait_for_push(&format!("mark {name}, single")).await;
            device.wait_for_push(&format!("mark {name}, broadcast")).await;
        }
    }

    /// What a device's app was called back with, in order, without marks.
    fn got(&self, device: usize) -> Vec<String> {
        without_marks(self.device(device).payloads())
    }

    /// Checks that exactly these devices got the payload, each once. Needs a mark after it.
    fn reached(&self, payload: &str, devices: &[usize]) {
        for device in self.everyone() {
            let times = self.got(device).iter().filter(|got| *got == payload).count();
            assert_eq!(times, usize::from(devices.contains(&device)), "{payload:?} at device {device}");
        }
    }
}

fn without_marks(payloads: Vec<String>) -> Vec<String> {
    payloads.into_iter().filter(|payload| !payload.starts_with("mark ")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_regid_an_alias_and_a_user_account_reach_exactly_those_who_have_them() {
    let party = Party::of(4).await;
    let (app, device) = (&party.app, |number| party.device(number));
    device(0).alias("ann").await;
    device(1).alias("ann").await;
    device(1).alias("bob").await;
    device(2).user_account("family").await;
    device(3).user_account("family").await;
    device(3).user_account("work").await;

    let send = |path, name, value: &str, payload| app.send(path, &[(name, value), ("payload", payload)]);
    for path in ["/v2/message/regid", "/v3/message/regid", "/v4/message/regid"] {
        send(path, "registration_id", &party.regids[2], path);
    }
    send("/v2/message/alias", "alias", "ann", "to ann");
    send("/v3/message/alias", "alias", "bob", "to bob");
    send("/v3/message/alias", "aliases", "ann,bob", "to ann and bob");
    send("/v2/message/user_account", "user_account", "family", "to the family");
    send("/v2/message/user_account", "user_account", "work,family", "to all accounts");
    let mixed = format!("nobody,{},{}", party.regids[0], party.regids[3]);
    let envelope = party.server.post("/v3/message/regid", &[("registration_id", &mixed), ("payload", "to some")]);
    assert_eq!((envelope.code, envelope.data["bad_regids"].as_str()), (0, Some("nobody")), "{envelope:?}");
    let nobody = party.server.post("/v3/message/alias", &[("alias", "cleo"), ("payload", "to nobody")]);
    assert_eq!(nobody.code, 20301, "{nobody:?}");
    party.mark("now");
    party.marked("now").await;
    for path in ["/v2/message/regid", "/v3/message/regid", "/v4/message/regid"] {
        party.reached(path, &[2]);
    }
    party.reached("to ann", &[0, 1]);
    party.reached("to bob", &[1]);
    party.reached("to ann and bob", &[0, 1]);
    party.reached("to the family", &[2, 3]);
    party.reached("to all accounts", &[2, 3]);
    party.reached("to some", &[0, 3]);
    party.reached("to nobody", &[]);

    let unset = Command::UnsetAlias("ann".parse().expect("an alias"));
    device(0).command(unset).await.expect("the alias is unset");
    let unset = Command::UnsetUserAccount("family".parse().expect("a user account"));
    device(3).command(unset).await.expect("the user account is unset");
    send("/v3/message/alias", "alias", "ann", "to the other ann");
    send("/v2/message/user_account", "user_account", "family", "to the rest of the family");
    party.mark("later");
    party.marked("later").await;
    party.reached("to the other ann", &[1]);
    party.reached("to the rest of the family", &[2]);
}

/// Every combination of three topics, one device each: device 5 (binary 101) has the topics 0 and 2.
const TOPICS: [&str; 3] = ["sport", "music", "politics"];

/// A name for the audience, its parameters, and whether it holds for a device by its topics.
type Audience = (&'static str, &'static [(&'static str, &'static str)], fn([bool; 3]) -> bool);

const AUDIENCES: &[Audience] = &[
    ("topic", &[("topic", "sport")], |[sport, ..]| sport),
    ("union", &[("topics", "sport;$;music"), ("topic_op", "UNION")], |[sport, music, _]| sport || music),
    ("intersection", &[("topics", "sport;$;music;$;politics"), ("topic_op", "INTERSECTION")], |topics| {
        topics == [true; 3]
    }),
    ("except", &[("topics", "sport;$;music;$;politics"), ("topic_op", "EXCEPT")], |topics| {
        topics == [true, false, false]
    }),
    ("all", &[], |_| true),
    ("nobody", &[("topic", "gardening")], |_| false),
];

#[tokio::test(flavor = "multi_thread")]
async fn topics_their_operators_and_all_reach_exactly_those_who_match_online_and_offline() {
    let mut party = Party::of(8).await;
    for (number, device) in party.fleet.devices.iter().enumerate() {
        for (bit, topic) in TOPICS.iter().enumerate().filter(|(bit, _)| number >> bit & 1 == 1) {
            // Both ways to subscribe count the same.
            if bit == 1 {
                party
                    .app
                    .change("/v2/topic/subscribe", &[("registration_id", &party.regids[number]), ("topic", topic)]);
            } else {
                device.subscribe(topic).await;
            }
        }
    }
    let send_all = |party: &Party, when: &str| {
        for (name, parameters, _) in AUDIENCES {
            let path = match *name {
                "topic" | "nobody" => "/v3/message/topic",
                "all" => "/v3/message/all",
                _ => "/v3/message/multi_topic",
            };
            let payload = format!("{name} {when}");
            party.app.send(path, &[*parameters, &[("payload", payload.as_str())]].concat());
        }
        party.mark(when);
    };
    let check = |party: &Party, when: &str| {
        for (name, _, holds) in AUDIENCES {
            let has = |device: usize| [0, 1, 2].map(|bit| device >> bit & 1 == 1);
            let devices: Vec<_> = party.everyone().filter(|device| holds(has(*device))).collect();
            party.reached(&format!("{name} {when}"), &devices);
        }
    };
    send_all(&party, "online");
    party.marked("online").await;
    check(&party, "online");

    party.fleet.stop(party.everyone()).await;
    send_all(&party, "offline");
    party.fleet.connect(party.everyone()).await;
    party.marked("offline").await;
    check(&party, "offline");
    check(&party, "online");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_while_a_device_was_offline_is_replayed_in_order_without_what_has_expired() {
    // More than the window of unacknowledged deliveries, on each way.
    const ROUNDS: usize = 75;
    const SHORT_MS: u64 = 1000;
    let mut party = Party::of(1).await;
    party.device(0).subscribe("news").await;
    party.device(0).alias("ann").await;
    party.fleet.stop(0..1).await;

    let short = SHORT_MS.to_string();
    let send = |path, target, payload: &str, more: &[(&str, &str)]| {
        party.app.send(path, &[&[target, ("payload", payload)], more].concat());
    };
    let (alias, topic) = (("alias", "ann"), ("topic", "news"));
    let mut expected = Vec::new();
    for round in 0..ROUNDS {
        if round % 25 == 3 {
            send("/v3/message/alias", alias, "a single that expires", &[("time_to_live", &short)]);
            send("/v3/message/topic", topic, "a broadcast that expires", &[("time_to_live", &short)]);
        }
        for (path, target) in [("/v3/message/alias", alias), ("/v3/message/topic", topic)] {
            let payload = format!("{round} to {}", target.0);
            send(path, target, &payload, &[("time_to_live", "3600000")]);
            expected.push(payload);
        }
    }
    let over_at = SystemClock.now_ms() + SHORT_MS;
    wait_for("the short ones have expired", || (SystemClock.now_ms() > over_at).then_some(()));
    party.mark("end");
    party.fleet.connect(0..1).await;
    party.marked("end").await;
    assert_eq!(party.got(0), expected, "in the order of acceptance, on both ways");
    let kinds: Vec<bool> = party.device(0).received().iter().map(|received| received.broadcast).collect();
    assert_eq!(kinds.iter().filter(|broadcast| **broadcast).count(), ROUNDS + 1);

    party.fleet.stop(0..1).await;
    party.mark("once more");
    party.fleet.connect(0..1).await;
    party.marked("once more").await;
    assert_eq!(party.got(0), expected, "nothing comes twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_that_was_not_acknowledged_comes_again_and_the_app_is_called_back_once() {
    let mut party = Party::of(1).await;
    party.device(0).subscribe("news").await;
    party.fleet.stop(0..1).await;
    // Its acknowledgements will not leave before it is killed.
    party.fleet.devices[0].configure(|config| config.ack_delay = Duration::from_hours(1));
    party.fleet.connect(0..1).await;
    party.send_to(0, "single");
    party.send_to_topic("news", "broadcast");
    let device = &mut party.fleet.devices[0];
    device.wait_for_push("single").await;
    device.wait_for_push("broadcast").await;
    let saved = |device: &InProcessDevice| device.received().iter().all(|push| device.has_saved(push.id));
    eventually("the device has written down what its app had", || saved(device).then_some(())).await;
    device.kill().await;
    // The messages are still the server's: had they been acknowledged, they would not be handed off again.
    let handed_off = party.server.metric("campanile_middle_deliveries_total");
    party.mark("after the kill");
    let device = &mut party.fleet.devices[0];
    device.configure(|_| {});
    device.connect().await;
    party.marked("after the kill").await;
    // A device may have a delivery before the middle has heard of that, and counts it.
    let again = || party.server.metric("campanile_middle_deliveries_total") - handed_off;
    eventually("two that were not acknowledged and two marks are counted", || (again() >= 4.0).then_some(())).await;
    assert_eq!(party.got(0), ["single", "broadcast"]);
}

/// Cuts a device's connection again and again under a stream of sends.
async fn cut_and_judge(server: Server) -> Server {
    const CUTS: usize = 12;
    const BETWEEN_CUTS: usize = 30;
    let mut party = Party::on(server, 1).await;
    party.device(0).subscribe("news").await;
    party.fleet.stop(0..1).await;
    let proxy = Proxy::to(party.server.address("xmpp.tls")).await;
    party.fleet.devices[0].go_through(proxy.port());
    party.fleet.connect(0..1).await;

    let to_device = Target::regid(&party.regids[0], 0);
    let to_topic = Target::topic("news", [0].into());
    let mut senders = Senders::start(&party.app, vec![vec![to_device.clone()], vec![to_device, to_topic]]);
    let device = party.device(0);
    for cut in 0..CUTS {
        let received = device.received_count();
        senders.allow(BETWEEN_CUTS);
        let arrived = || (device.received_count() >= received + BETWEEN_CUTS / 3).then_some(());
        eventually("pushes arrive between two cuts", arrived).await;
        if cut % 2 == 1 {
            // What is sent now is written by the server and never arrives.
            proxy.swallow();
            senders.allow(BETWEEN_CUTS);
            eventually("sends go on while nothing arrives", || senders.are_done().then_some(())).await;
        }
        proxy.cut();
    }
    let history = senders.stop();
    eventually("all has arrived", || (device.received_count() >= history.deliveries(0)).then_some(())).await;
    party.fleet.stop(0..1).await;
    party.mark("end");
    party.fleet.connect(0..1).await;
    party.marked("end").await;
    assert_eq!(judge(&history.all(), &[party.got(0)]), []);
    assert_eq!(history.all().len(), history.accepted(), "the server was there all the time");
    party.server
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_cut_under_sends_is_resumed_and_loses_and_doubles_nothing() {
    let server = cut_and_judge(Server::start()).await;
    assert!(server.metric("campanile_front_resumed_total") > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_cut_under_sends_and_can_not_be_resumed_loses_and_doubles_nothing() {
    cut_and_judge(Server::start_with(&[("limits.xmpp_resume_ms_max", "1")])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sends_one_after_another_arrive_in_that_order_also_across_reconnects() {
    const RECONNECTS: usize = 8;
    const BETWEEN: usize = 25;
    let mut party = Party::of(1).await;
    let target = Target::regid(&party.regids[0], 0);
    let mut senders = Senders::start(&party.app, vec![vec![target]]);
    for _ in 0..RECONNECTS {
        let accepted = senders.history.accepted();
        senders.allow(2 * BETWEEN);
        let some = || (senders.history.accepted() >= accepted + BETWEEN).then_some(());
        eventually("sends go on", some).await;
        party.fleet.stop(0..1).await;
        eventually("sends go on while the device is offline", || senders.are_done().then_some(())).await;
        // Some of the next ones are sent while what waits is replayed.
        senders.allow(BETWEEN);
        party.fleet.connect(0..1).await;
        eventually("sends go on while the device comes back", || senders.are_done().then_some(())).await;
    }
    let sent: Vec<_> = senders.stop().all().into_iter().map(|sent| sent.payload).collect();
    party.mark("end");
    party.marked("end").await;
    assert_eq!(party.got(0), sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_unsubscribes_gets_a_topic_no_more_whoever_asks_for_it_online_or_not() {
    let mut party = Party::of(6).await;
    for device in &party.fleet.devices {
        device.subscribe("news").await;
        device.subscribe("sport").await;
    }
    party.device(4).alias("ann").await;
    party.send_to_topic("news", "before");
    party.mark("before");
    party.marked("before").await;

    party.fleet.stop(2..3).await;
    party.device(0).unsubscribe("news").await;
    let by_server = |party: &Party, path, name, value: &str| {
        assert_eq!(party.app.change(path, &[(name, value), ("topic", "news")]), "");
    };
    for device in [1, 2] {
        by_server(&party, "/v2/topic/unsubscribe", "registration_id", &party.regids[device]);
    }
    by_server(&party, "/v2/topic/unsubscribe/alias", "aliases", "ann");
    party.device(3).unsubscribe("news").await;
    party.fleet.stop(3..4).await;
    party.send_to_topic("news", "after");
    party.send_to_topic("sport", "another topic");
    party.mark("after");
    party.fleet.connect(2..4).await;
    party.marked("after").await;
    party.reached("before", &[0, 1, 2, 3, 4, 5]);
    party.reached("after", &[5]);
    party.reached("another topic", &[0, 1, 2, 3, 4, 5]);

    // Who comes back to a topic gets what is sent from then on, and not what was sent in between.
    party.device(0).subscribe("news").await;
    by_server(&party, "/v2/topic/subscribe/alias", "aliases", "ann");
    party.send_to_topic("news", "again");
    party.fleet.stop(party.everyone()).await;
    party.mark("again");
    party.fleet.connect(party.everyone()).await;
    party.marked("again").await;
    party.reached("again", &[0, 4, 5]);
    party.reached("after", &[5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_login_of_an_account_ends_the_older_stream_with_conflict() {
    let mut party = Party::of(1).await;
    party.fleet.stop(0..1).await;
    let older = &mut party.fleet.devices[0];
    // Who loses an account comes back, but only after at least half of this.
    older.configure(|config| config.backoff.max = Duration::from_hours(1));
    older.connect().await;
    let mut newer = older.copy();
    let regid = newer.connect().await.to_string();
    assert_eq!(regid, party.regids[0], "it is the same registration");
    let older = party.device(0);
    eventually("the older one is offline", || (!older.is_online()).then_some(())).await;
    let reasons = older.offline_reasons();
    assert_eq!(reasons.last().map(String::as_str), Some("another device has taken over the account"), "{reasons:?}");

    party.send_to(0, "to the newer one");
    party.app.send("/v3/message/all", &[("payload", "to all")]);
    newer.wait_for_push("to the newer one").await;
    newer.wait_for_push("to all").await;
    assert_eq!((newer.received_count(), party.device(0).received_count()), (2, 0));
    newer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_push_is_off_messages_wait_and_come_in_order_when_it_is_on_again() {
    let mut party = Party::of(2).await;
    party.device(0).command(Command::SetEnabled(false)).await.expect("push is off");
    for number in 0..3 {
        party.send_to(0, &format!("{number}, single"));
        party.app.send("/v3/message/all", &[("payload", &format!("{number}, broadcast"))]);
    }
    party.device(1).wait_for_push("2, broadcast").await;
    // It answers, and nothing came before the answer; nor does it when it connects anew.
    party.device(0).subscribe("news").await;
    party.fleet.stop(0..1).await;
    party.fleet.connect(0..1).await;
    party.device(0).unsubscribe("news").await;
    assert_eq!(party.got(0), <[String; 0]>::default());

    party.device(0).command(Command::SetEnabled(true)).await.expect("push is on");
    party.mark("on");
    party.marked("on").await;
    let expected: Vec<_> =
        (0..3).flat_map(|number| [format!("{number}, single"), format!("{number}, broadcast")]).collect();
    assert_eq!(party.got(0), expected);
}

/// Every row of a table of a server that has stopped.
async fn rows(server: &Server, table: Table) -> Vec<Row> {
    let scan = RowScan { table, from: Vec::new(), to: None, rows_max: 10_000 };
    server.sorted().await.scan(scan).await.expect("the store reads")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broadcast_to_5000_devices_of_which_half_are_offline_is_one_row_and_reaches_all() {
    const DEVICES: usize = 5000;
    const ONLINE: usize = DEVICES / 2;
    let mut server = Server::start();
    let app = AppServer::of(&server);
    // And one who is not in the audience.
    let mut fleet = Fleet::new(&server, DEVICES + 1);
    fleet.connect(ONLINE..DEVICES + 1).await;
    let mut regids = fleet.regids(ONLINE..DEVICES).await;
    fleet.stop(ONLINE..DEVICES + 1).await;
    fleet.connect(0..ONLINE).await;
    regids.extend(fleet.regids(0..ONLINE).await);
    for some in regids.chunks(1000) {
        let some = some.join(",");
        assert_eq!(app.change("/v2/topic/subscribe", &[("registration_id", &some), ("topic", "news")]), "");
    }
    app.send("/v3/message/topic", &[("topic", "news"), ("payload", "to all of you")]);
    fleet.wait_for_count(0..ONLINE, 1).await;
    fleet.stop(0..ONLINE).await;
    assert!(server.stop().success());

    // Half of the audience has not got it yet, and it is stored once.
    assert_eq!(rows(&server, Table::Timelines).await.len(), 1);
    assert_eq!(rows(&server, Table::Mailboxes).await.len(), 0);
    assert_eq!(rows(&server, Table::Messages).await.len(), 0);
    server.restart();
    fleet.connect(ONLINE..DEVICES + 1).await;
    fleet.wait_for_count(ONLINE..DEVICES, 1).await;
    // Broadcasts come in order: what should not have come would be before this.
    app.send("/v3/message/all", &[("payload", "the end")]);
    fleet.wait_for_count(ONLINE..DEVICES, 2).await;
    let outsider = &fleet.devices[DEVICES];
    outsider.wait_for_push("the end").await;
    assert_eq!(outsider.payloads(), ["the end"]);
    for device in &fleet.devices[..ONLINE] {
        assert_eq!(device.payloads(), ["to all of you"]);
    }
    for device in &fleet.devices[ONLINE..DEVICES] {
        assert_eq!(device.payloads(), ["to all of you", "the end"]);
    }
    fleet.stop(ONLINE..DEVICES + 1).await;
    assert!(server.stop().success());
    assert_eq!(rows(&server, Table::Timelines).await.len(), 2);
    assert_eq!(rows(&server, Table::Mailboxes).await.len(), 0);
}
