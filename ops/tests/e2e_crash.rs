//! Crashes end to end: the server is killed, told to end, and devices are killed, all under a stream of sends. An
//! independent judge reads afterwards what was sent, answered and called back.

#[path = "harness/harness.rs"]
#[expect(clippy::allow_attributes, reason = "each test file uses a part of the harness")]
#[allow(dead_code, reason = "each test file uses a part of the harness")]
mod harness;
#[path = "harness/history.rs"]
#[expect(clippy::allow_attributes, reason = "each test file uses a part of it")]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod history;

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use harness::app_server::{Answer, AppServer};
use harness::fleet::Fleet;
use harness::server::Server;
use harness::terminal::TerminalDevice;
use harness::{eventually, wait_for};
use history::{History, Senders, Sent, Target, Violation, judge};
use idl::clock::{Clock as _, SystemClock};
use idl::ids::{AppId, MessageId};
use sdk_android_bridge::Saved;
use serde_json::Value;

/// A server, devices that stay with it, and what is sent to them.
struct World {
    server: Server,
    app: AppServer,
    fleet: Fleet,
    regids: Vec<String>,
    senders: Senders,
}

const TOPIC: &str = "news";
/// The devices that have the topic.
const SUBSCRIBERS: Range<usize> = 1..4;

impl World {
    /// Four devices, and senders that send by regid, to several regids at once, by alias and by topic.
    async fn new() -> Self {
        const DEVICES: usize = 4;
        let server = Server::start();
        let mut fleet = Fleet::new(&server, DEVICES);
        fleet.connect(0..DEVICES).await;
        let regids = fleet.regids(0..DEVICES).await;
        for device in &fleet.devices[SUBSCRIBERS] {
            device.subscribe(TOPIC).await;
        }
        for device in &fleet.devices[2..4] {
            device.alias("ann").await;
        }
        let app = AppServer::of(&server);
        let one = |device: usize| Target::regid(&regids[device], device);
        let topic = Target::topic(TOPIC, SUBSCRIBERS.collect());
        let plans = vec![
            vec![one(0)],
            vec![one(0), one(1), one(2), one(3)],
            vec![one(1), Target::regids(&regids), one(2)],
            vec![Target::alias("ann", [2, 3].into()), topic.clone()],
            vec![topic, one(3)],
        ];
        let senders = Senders::start(&app, plans);
        Self { server, app, fleet, regids, senders }
    }

    /// Allows sends, and waits until some of them have been accepted.
    async fn send(&mut self, allowed: usize, accepted: usize) {
        let before = self.senders.history.accepted();
        self.senders.allow(allowed);
        let accepted = || (self.senders.history.accepted() >= before + accepted).then_some(());
        eventually("sends are accepted", accepted).await;
    }

    /// Waits until every device is there and has got what was accepted for it.
    async fn catch_up(&self) {
        for (number, device) in self.fleet.devices.iter().enumerate() {
            let caught_up = || device.received_count() >= self.senders.history.deliveries(number);
            eventually("a device has what was accepted for it", || caught_up().then_some(())).await;
        }
    }

    /// Ends the stream of sends, waits until everything has arrived that must, and until nothing more can come; returns what
    /// was sent and what each device's app was called back with.
    async fn come_to_rest(mut self) -> (Server, History, Vec<Vec<String>>) {
        let history = self.senders.stop();
        let devices = self.fleet.devices.len();
        for device in &self.fleet.devices {
            device.ready().await;
        }
        // A device that comes back gets whatever waits for it; the marks come after that.
        self.fleet.stop(0..devices).await;
        self.app.send("/v3/message/regid", &[("registration_id", &self.regids.join(",")), ("payload", "mark")]);
        self.app.send("/v3/message/all", &[("payload", "mark for all")]);
        self.fleet.connect(0..devices).await;
        for device in &self.fleet.devices {
            device.wait_for_push("mark").await;
            device.wait_for_push("mark for all").await;
        }
        let without_marks = |payloads: Vec<String>| payloads.into_iter().filter(|payload| !payload.starts_with("mark"));
        let callbacks = self.fleet.devices.iter().map(|device| without_marks(device.payloads()).collect()).collect();
        (self.server, history, callbacks)
    }
}

/// How many sends there were, accepted, refused and unanswered, and how many callbacks.
fn summary(history: &History, callbacks: &[Vec<String>]) -> String {
    let sends = history.all();
    let count = |of: fn(&Answer) -> bool| sends.iter().filter(|sent| sent.answer.as_ref().is_some_and(of)).count();
    let refused = count(|answer| matches!(answer, Answer::Refused(_)));
    let unanswered = count(|answer| matches!(answer, Answer::Nothing));
    let delivered: usize = callbacks.iter().map(Vec::len).sum();
    format!(
        "{} sends: {} accepted for {} deliveries, {refused} refused, {unanswered} without an answer; {delivered} delivered",
        sends.len(),
        history.accepted(),
        (0..callbacks.len()).map(|device| history.deliveries(device)).sum::<usize>(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_kills_of_the_server_under_a_stream_of_sends_lose_nothing_and_double_nothing() {
    const KILLS: usize = 20;
    // All together fewer than what a device knows again.
    const SENDS: usize = 45;
    let mut world = World::new().await;
    for kill in 0..KILLS {
        // Every other kill comes while devices still come back from the one before.
        if kill % 2 == 0 {
            world.catch_up().await;
        }
        world.send(SENDS, 1 + kill * 7 % 30).await;
        world.server.kill();
        world.server.restart();
    }
    let (_server, history, callbacks) = world.come_to_rest().await;
    println!("{KILLS} kills, {}", summary(&history, &callbacks));
    assert_eq!(judge(&history.all(), &callbacks), []);
    let broken_off = history.all().iter().filter(|sent| sent.answer == Some(Answer::Nothing)).count();
    assert!(broken_off >= KILLS, "kills must hit sends that are under way: {broken_off}");
    assert!(history.accepted() >= KILLS * 10, "{}", history.accepted());
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_a_stream_of_sends_drains_in_time_and_loses_nothing() {
    const ROUNDS: usize = 3;
    let mut world = World::new().await;
    let mut longest_ms = 0;
    for _ in 0..ROUNDS {
        world.catch_up().await;
        world.send(200, 50).await;
        let begun_ms = SystemClock.now_ms();
        let status = world.server.stop();
        longest_ms = longest_ms.max(SystemClock.now_ms() - begun_ms);
        // A drain that takes longer than it may ends with 1.
        assert!(status.success(), "{status}: {}", world.server.output().1);
        assert!(!world.server.folder().run().exists(), "a clean stop takes run.json away");
        world.server.restart();
    }
    let (mut server, history, callbacks) = world.come_to_rest().await;
    println!("{ROUNDS} drains, the longest {longest_ms} ms, {}", summary(&history, &callbacks));
    assert_eq!(judge(&history.all(), &callbacks), []);
    assert!(server.stop().success());
}

/// One life of a device on the terminal: what it printed before it was killed, and what it had written down by then.
struct Life {
    pushes: Vec<(MessageId, String)>,
    saved: Saved,
}

impl Life {
    fn of(device: &TerminalDevice, state: &Path) -> Self {
        let text = |push: &Value, member: &str| push[member].as_str().expect("a push has it").to_owned();
        let pushes = device.events("push");
        let pushes = pushes.iter().map(|push| (text(push, "id").parse().expect("an id"), text(push, "payload")));
        let state: Value =
            serde_json::from_slice(&fs::read(state).expect("its state")).expect("whole, even after a kill");
        let saved = STANDARD.decode(state["saved"].as_str().expect("what it keeps")).expect("base 64");
        Self { pushes: pushes.collect(), saved: Saved::from_bytes(&saved).expect("what a device keeps") }
    }
}

/// The payloads of all lives, without those that came once more because the device was killed between its callback and
/// writing it down: no device can know those again. Any other repetition stays.
fn journal(lives: &[Life], app: &AppId) -> (Vec<String>, usize) {
    let mut payloads = Vec::new();
    let mut had: BTreeSet<MessageId> = BTreeSet::new();
    let mut repeated = 0;
    let mut began_with = Saved::default();
    for life in lives {
        let mut had_now = BTreeSet::new();
        for (id, payload) in &life.pushes {
            if had.contains(id) && !began_with.has_seen(app, *id) && !had_now.contains(id) {
                repeated += 1;
            } else {
                payloads.push(payload.clone());
            }
            had_now.insert(*id);
        }
        had.append(&mut had_now);
        began_with = life.saved.clone();
    }
    (payloads, repeated)
}

#[test]
fn a_device_that_is_killed_under_a_stream_of_sends_misses_nothing_and_repeats_only_what_it_could_not_write_down() {
    const KILLS: usize = 12;
    const SENDS: usize = 60;
    let server = Server::start();
    let app = AppServer::of(&server);
    let state = server.data().join("device.json");
    let arguments = ["--topic", TOPIC, "--alias", "ann", "--state", state.to_str().expect("a path")];
    let mut device = TerminalDevice::start(&server, &arguments);
    let regid = Target::regid(&device.regid(), 0);
    let (alias, topic) = (Target::alias("ann", [0].into()), Target::topic(TOPIC, [0].into()));
    let mut senders = Senders::start(&app, vec![vec![regid, alias], vec![topic]]);
    let mut lives = Vec::new();
    for kill in 0..KILLS {
        senders.allow(SENDS);
        wait_for("pushes arrive", || (device.events("push").len() > kill * 7 % 30).then_some(()));
        device.kill();
        lives.push(Life::of(&device, &state));
        device = TerminalDevice::launch(&server, &arguments);
    }
    let history = senders.stop();
    app.send("/v3/message/alias", &[("alias", "ann"), ("payload", "mark")]);
    app.send("/v3/message/topic", &[("topic", TOPIC), ("payload", "mark for all")]);
    device.wait_for_push("mark");
    device.wait_for_push("mark for all");
    device.kill();
    lives.push(Life::of(&device, &state));
    let (mut callbacks, repeated) = journal(&lives, &server.demo().app.parse().expect("an application id"));
    callbacks.retain(|payload| !payload.starts_with("mark"));
    let callbacks = [callbacks];
    println!("{KILLS} kills of a device, {repeated} repeated, {}", summary(&history, &callbacks));
    assert_eq!(judge(&history.all(), &callbacks), []);
    assert_eq!(history.accepted(), history.all().len(), "the server was there all the time");
}

#[test]
fn the_judge_finds_what_is_lost_doubled_misdirected_and_out_of_order() {
    let id = MessageId::MIN;
    let sent = |sender, number: usize, target: &Target, answer| Sent {
        sender,
        target: target.clone(),
        payload: number.to_string(),
        answer: Some(answer),
    };
    let (one, topic) = (Target::regid("a", 0), Target::topic(TOPIC, [0, 1].into()));
    let sends = [
        sent(0, 0, &one, Answer::Accepted(id)),
        sent(0, 1, &one, Answer::Nothing),
        sent(0, 2, &one, Answer::Accepted(id)),
        sent(1, 3, &topic, Answer::Accepted(id)),
        sent(1, 4, &topic, Answer::Refused(10001)),
        sent(1, 5, &topic, Answer::Accepted(id)),
    ];
    let judged = |first: &[&str], second: &[&str]| {
        judge(&sends, &[first, second].map(|payloads| payloads.iter().map(ToString::to_string).collect()))
    };
    let text = |number: usize| number.to_string();
    assert_eq!(judged(&["0", "2", "3", "5"], &["3", "5"]), [], "what failed need not arrive");
    assert_eq!(
        judged(&["1", "0", "2", "5", "4", "3"], &["3", "4", "5"]),
        [],
        "or may, and broadcasts come in any order"
    );
    assert_eq!(judged(&["0", "2", "3"], &["3", "5"]), [Violation::Lost { payload: text(5), device: 0 }]);
    let repeated = |times| [Violation::Repeated { payload: text(1), device: 0, times }];
    assert_eq!(judged(&["0", "1", "2", "1", "3", "5"], &["3", "5"]), repeated(2));
    assert_eq!(
        judged(&["0", "2", "3", "5"], &["3", "0", "5"]),
        [Violation::Misdirected { payload: text(0), device: 1 }]
    );
    assert_eq!(
        judged(&["0", "2", "3", "5"], &["3", "x", "5"]),
        [Violation::Misdirected { payload: "x".into(), device: 1 }]
    );
    let reordered = [Violation::Reordered { first: text(0), second: text(2), device: 0 }];
    assert_eq!(judged(&["2", "3", "0", "5"], &["3", "5"]), reordered);
}
