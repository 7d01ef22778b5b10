//! Work that goes on by itself and survives kill -9: schedules, receipts, slow broadcasts, expiry. The server is killed
//! where it hurts; devices and a receiver of callbacks say afterwards what came of it.

#[path = "harness/harness.rs"]
#[expect(clippy::allow_attributes, reason = "each test file uses a part of the harness")]
#[allow(dead_code, reason = "each test file uses a part of the harness")]
mod harness;
#[path = "harness/history.rs"]
#[expect(clippy::allow_attributes, reason = "each test file uses a part of it")]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod history;

use std::collections::{BTreeMap, BTreeSet};

use harness::app_server::AppServer;
use harness::fleet::{Fleet, InProcessDevice};
use harness::http::{Answer, Http, PLAIN};
use harness::receiver::{ALLOWED, Event, Mode, Post, Receiver};
use harness::server::Server;
use harness::{eventually, wait_for};
use history::{Senders, Target, judge};
use idl::clock::{Clock as _, SystemClock};
use idl::due::Pace;
use idl::ids::MessageId;
use serde_json::Value;

const HOUR_MS: u64 = 3600 * 1000;
const DELIVERED: i64 = 1;
const EXPIRED: i64 = 1024;

/// A server, devices of the demo application, and a receiver of its callbacks.
struct World {
    server: Server,
    app: AppServer,
    http: Http,
    fleet: Fleet,
    regids: Vec<String>,
    receiver: Receiver,
    webhook_secret: String,
}

impl World {
    /// As many devices, all online.
    async fn of(devices: usize) -> Self {
        let server = Server::start_with(&[PLAIN, ALLOWED]);
        let mut fleet = Fleet::new(&server, devices);
        fleet.connect(0..devices).await;
        let regids = fleet.regids(0..devices).await;
        let told = server.json(&["app", "webhook-secret", &server.demo().app]);
        let webhook_secret = told[0]["webhook_secret"].as_str().expect("a secret").to_owned();
        let (app, http, receiver) = (AppServer::of(&server), Http::of(&server), Receiver::listen());
        Self { server, app, http, fleet, regids, receiver, webhook_secret }
    }

    fn device(&self, number: usize) -> &InProcessDevice {
        &self.fleet.devices[number]
    }

    /// Sends to one device, with what else the form has.
    fn send_to(&self, device: usize, payload: &str, more: &[(&str, &str)]) -> String {
        let form = [&[("registration_id", &*self.regids[device]), ("payload", payload)], more].concat();
        self.http.post("/v3/message/regid", &form).id()
    }

    /// The same with receipts of one kind.
    fn send_with_receipts(&self, device: usize, payload: &str, kind: i64, more: &[(&str, &str)]) -> String {
        let kind = kind.to_string();
        let callback = [("extra.callback", &*self.receiver.url), ("extra.callback.type", &kind)];
        self.send_to(device, payload, &[&callback[..], more].concat())
    }

    fn event(&self, message: &str, kind: i64, device: usize) -> Event {
        Event { message: message.to_owned(), kind, target: self.regids[device].clone() }
    }

    /// Waits until the receiver has taken this, and gives how often.
    async fn taken(&self, event: &Event) -> usize {
        let look = || self.receiver.events().get(event).copied();
        eventually(format!("the receipt {event:?}"), look).await
    }

    /// Waits until each device has got whatever was sent to it before, all of which is there once this returns.
    async fn settle(&self, mark: &str) {
        let everyone = self.regids.join(",");
        self.app.send("/v3/message/regid", &[("registration_id", &everyone), ("payload", &format!("mark {mark}"))]);
        self.app.send("/v3/message/all", &[("payload", &format!("mark {mark} for all"))]);
        for device in &self.fleet.devices {
            device.wait_for_push(&format!("mark {mark}")).await;
            device.wait_for_push(&format!("mark {mark} for all")).await;
        }
    }

    /// How often a device's app was called back with the payload.
    fn times(&self, device: usize, payload: &str) -> usize {
        self.device(device).payloads().iter().filter(|got| *got == payload).count()
    }

    fn schedule(&self, id: &str) -> Answer {
        self.http.get(&format!("/campanile/v1/schedules/{id}"), &[])
    }

    /// Waits until a schedule is in this state.
    async fn schedule_is(&self, id: &str, state: &str) -> Value {
        let look = || Some(self.schedule(id).data().clone()).filter(|schedule| schedule["state"] == state);
        eventually(format!("the schedule is {state}"), look).await
    }
}

/// Waits until the clock shows more.
async fn time_passes(ms: u64) {
    eventually("time passes", || (SystemClock.now_ms() > ms).then_some(())).await;
}

// ----------------------------------------------------------------------------------------------------------- schedules

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_due_during_an_outage_fires_once_after_the_restart() {
    let mut world = World::of(1).await;
    let due_ms = SystemClock.now_ms() + 5000;
    let id = world.send_to(0, "scheduled", &[("time_to_send", &due_ms.to_string())]);
    assert_eq!(world.schedule(&id).data()["state"], "waiting");
    world.server.kill();
    time_passes(due_ms).await;
    assert_eq!(world.times(0, "scheduled"), 0, "nobody was there to send it");
    world.server.restart();
    world.device(0).wait_for_push("scheduled").await;
    let done = world.schedule_is(&id, "done").await;
    assert_eq!((&done["fired"], &done["due_ms"]), (&1.into(), &due_ms.into()), "{done}");
    let pushed = world.device(0).received()[0].id.to_string();
    assert_eq!(done["last_message"], pushed, "the message of the firing is the one that arrived");

    world.server.kill();
    world.server.restart();
    world.device(0).ready().await;
    world.settle("after another restart").await;
    assert_eq!(world.times(0, "scheduled"), 1, "{:?}", world.device(0).payloads());
    assert_eq!(world.schedule(&id).data()["fired"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn schedules_that_are_due_at_once_fire_once_each_however_often_the_server_is_killed_meanwhile() {
    const SCHEDULES: usize = 60;
    let mut world = World::of(1).await;
    let due_ms = (SystemClock.now_ms() + 4000).to_string();
    let payloads: Vec<_> = (0..SCHEDULES).map(|number| format!("scheduled {number}")).collect();
    let ids: Vec<_> = payloads.iter().map(|payload| world.send_to(0, payload, &[("time_to_send", &due_ms)])).collect();
    for arrived in [1, 7, 20, 40] {
        let came = || (world.device(0).received_count() >= arrived).then_some(());
        eventually("schedules fire", came).await;
        world.server.kill();
        world.server.restart();
    }
    for id in &ids {
        assert_eq!(world.schedule_is(id, "done").await["fired"], 1);
    }
    world.device(0).ready().await;
    world.settle("at the end").await;
    let counts: BTreeMap<_, _> = payloads.iter().map(|payload| (payload, world.times(0, payload))).collect();
    assert!(counts.values().all(|times| *times == 1), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_send_does_not_make_up_for_what_an_outage_missed() {
    let mut world = World::of(1).await;
    // Once a day, far from now.
    let noon_ms = SystemClock.now_ms() + 12 * HOUR_MS;
    let cron = format!("{} {} * * *", noon_ms / 60_000 % 60, noon_ms / HOUR_MS % 24);
    let id = world.send_to(0, "repeated", &[("repeat", &cron), ("time_zone", "UTC")]);
    let next_ms = world.schedule(&id).data()["due_ms"].as_u64().expect("a time");
    assert_eq!(next_ms, noon_ms / 60_000 * 60_000);
    world.server.kill();
    {
        // As it would be after an outage of three days.
        let catalog = world.server.catalog().await;
        let app = world.server.demo().app.parse().expect("an application id");
        let found = catalog.schedule(&app, id.parse().expect("an id")).await.expect("it reads").expect("it is there");
        let missed_ms = found.due_ms - 72 * HOUR_MS;
        let changed = catalog.change_schedule(&app, found.id, missed_ms, None, found.repeat, found.send).await;
        assert!(changed.expect("it writes"), "it waits");
    }
    world.server.restart();
    world.device(0).wait_for_push("repeated").await;
    let fired = || Some(world.schedule(&id).data().clone()).filter(|schedule| schedule["fired"] == 1);
    let schedule = eventually("the firing is over", fired).await;
    assert_eq!((&schedule["state"], &schedule["due_ms"]), (&"waiting".into(), &next_ms.into()), "{schedule}");
    world.server.kill();
    world.server.restart();
    world.device(0).ready().await;
    world.settle("after another restart").await;
    assert_eq!(world.times(0, "repeated"), 1, "{:?}", world.device(0).payloads());
    assert_eq!(world.schedule(&id).data()["fired"], 1);
}

// ------------------------------------------------------------------------------------------------------------ receipts

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_that_was_pending_at_a_kill_is_posted_after_the_restart_and_signed_right() {
    for mode in [Mode::Down, Mode::Status(503), Mode::Silent] {
        let mut world = World::of(1).await;
        world.receiver.set(mode);
        let id = world.send_with_receipts(0, "told", DELIVERED, &[("extra.callback.param", "a & b=ü")]);
        eventually("it is posted", || (world.receiver.tries() > 0).then_some(())).await;
        assert_eq!(world.receiver.events(), [].into(), "{mode:?}: nothing was taken");
        world.server.kill();
        world.receiver.set(Mode::Up);
        world.server.restart();
        let event = world.event(&id, DELIVERED, 0);
        world.taken(&event).await;
        world.receiver.check(&world.webhook_secret);
        let posts = world.receiver.posts();
        let told = &posts.last().expect("it was posted").data()[&id];
        assert_eq!(told["param"], "a & b=ü", "{mode:?}: {told}");

        let kept = world.http.get("/campanile/v1/receipts", &[]);
        let kept = &kept.data()["list"];
        assert_eq!((&kept[0]["message"], &kept[0]["type"], &kept[1]), (&id.into(), &1.into(), &Value::Null), "{kept}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_fails_comes_again_as_it_was_under_the_same_id() {
    let world = World::of(1).await;
    world.receiver.set(Mode::Status(500));
    let id = world.send_with_receipts(0, "told", DELIVERED, &[]);
    eventually("it is tried twice", || (world.receiver.posts().len() >= 2).then_some(())).await;
    // What is written meanwhile does not change the post.
    let later = world.send_with_receipts(0, "told later", DELIVERED, &[]);
    world.device(0).wait_for_push("told later").await;
    world.receiver.set(Mode::Up);
    world.taken(&world.event(&id, DELIVERED, 0)).await;
    world.taken(&world.event(&later, DELIVERED, 0)).await;
    world.receiver.check(&world.webhook_secret);
    let of = |message: &String| -> BTreeSet<String> {
        let posts = world.receiver.posts().into_iter().filter(|post| post.data()[message].is_object());
        posts.map(|post| post.header("webhook-id").to_owned()).collect()
    };
    assert_eq!((of(&id).len(), of(&later).len()), (1, 1));
    assert!(of(&id).is_disjoint(&of(&later)), "the second receipt is in a post of its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_says_nothing_holds_up_no_other() {
    let world = World::of(1).await;
    let silent = Receiver::listen();
    silent.set(Mode::Silent);
    let quiet = world.send_to(0, "into silence", &[("extra.callback", &silent.url), ("extra.callback.type", "1")]);
    eventually("it is posted", || (!silent.posts().is_empty()).then_some(())).await;
    let id = world.send_with_receipts(0, "told", DELIVERED, &[]);
    world.taken(&world.event(&id, DELIVERED, 0)).await;
    assert_eq!(silent.events(), [].into());
    silent.set(Mode::Up);
    let event = world.event(&quiet, DELIVERED, 0);
    eventually("it is taken", || silent.events().get(&event).copied()).await;
    silent.check(&world.webhook_secret);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_receipt_is_lost_over_kills_under_a_stream_of_sends_while_the_receiver_comes_and_goes() {
    const SENDS: usize = 40;
    let modes = [Mode::Up, Mode::Down, Mode::Up, Mode::Status(500), Mode::Silent, Mode::Up, Mode::Down];
    let mut world = World::of(3).await;
    let with_receipts =
        |target: Target| target.with("extra.callback", &world.receiver.url).with("extra.callback.type", "1");
    let one = |device: usize| with_receipts(Target::regid(&world.regids[device], device));
    let plans = vec![vec![one(0)], vec![one(1), with_receipts(Target::regids(&world.regids)), one(2)]];
    let mut senders = Senders::start(&world.app, plans);
    for (kill, mode) in modes.into_iter().enumerate() {
        world.receiver.set(mode);
        let (before, tries) = (senders.history.accepted(), world.receiver.tries());
        senders.allow(SENDS);
        let enough = || (senders.history.accepted() > before + kill * 5).then_some(());
        eventually("sends are accepted", enough).await;
        // The kill hits posts, too.
        eventually("receipts are posted", || (world.receiver.tries() > tries).then_some(())).await;
        world.server.kill();
        world.server.restart();
    }
    world.receiver.set(Mode::Up);
    let history = senders.stop();
    for device in &world.fleet.devices {
        device.ready().await;
    }
    world.settle("at the end").await;
    let payloads: Vec<Vec<String>> = world.fleet.devices.iter().map(InProcessDevice::payloads).collect();
    let without_marks: Vec<Vec<String>> = payloads
        .into_iter()
        .map(|payloads| payloads.into_iter().filter(|payload| !payload.starts_with("mark ")).collect())
        .collect();
    assert_eq!(judge(&history.all(), &without_marks), []);

    // Also a send that was never answered has receipts, if it was accepted.
    let delivered: BTreeSet<Event> = (0..world.regids.len())
        .flat_map(|device| world.device(device).received().into_iter().map(move |received| (device, received)))
        .filter(|(_, received)| !received.payload.starts_with("mark "))
        .map(|(device, received)| world.event(&received.id.to_string(), DELIVERED, device))
        .collect();
    let all_taken = || {
        let taken = world.receiver.events();
        delivered.iter().all(|event| taken.contains_key(event)).then_some(())
    };
    eventually("a receipt of each delivery", all_taken).await;
    world.receiver.check(&world.webhook_secret);
    let taken: BTreeSet<Event> = world.receiver.events().into_keys().collect();
    assert_eq!(taken, delivered, "receipts of what was not delivered");
    let kept = all_receipts(&world.http);
    assert_eq!(kept.iter().cloned().collect::<BTreeSet<_>>(), delivered, "the receipts that can be read again");
    println!(
        "{} kills, {} sends, {} deliveries, {} receipts in {} posts, {} of them taken",
        modes.len(),
        history.all().len(),
        delivered.len(),
        kept.len(),
        world.receiver.posts().len(),
        world.receiver.posts().iter().filter(|post| post.answered == Some(200)).count(),
    );
    assert!(delivered.len() > 100, "{}", delivered.len());
}

#[test]
fn the_receiver_tells_a_right_signature_from_a_wrong_one() {
    // The vector of Standard Webhooks' own libraries.
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let headers = [
        ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
        ("webhook-timestamp", "1614265330"),
        ("webhook-signature", "v1,AAAA v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
    ];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let right = Post { headers, body: br#"{"test": 2432232314}"#.to_vec(), answered: None };
    assert!(right.is_signed_with(secret));
    assert!(!right.is_signed_with("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSx"));
    assert!(!Post { body: br#"{"test": 2432232315}"#.to_vec(), ..right.clone() }.is_signed_with(secret));
    let mut later = right;
    later.headers.insert("webhook-timestamp".to_owned(), "1614265331".to_owned());
    assert!(!later.is_signed_with(secret));
}

/// Every receipt that can be read again, page by page.
fn all_receipts(http: &Http) -> Vec<Event> {
    let (mut receipts, mut since) = (Vec::new(), String::new());
    loop {
        let page = http.get("/campanile/v1/receipts", &[("since", &since), ("limit", "50")]);
        let list = page.data()["list"].as_array().expect("a list").clone();
        if list.is_empty() {
            return receipts;
        }
        let text = |receipt: &Value, member: &str| receipt[member].as_str().expect("a text").to_owned();
        receipts.extend(list.iter().map(|receipt| Event {
            message: text(receipt, "message"),
            kind: receipt["type"].as_i64().expect("a type"),
            target: text(receipt, "target"),
        }));
        since = text(page.data(), "next");
    }
}

// -------------------------------------------------------------------------------------------- slow broadcasts and expiry

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_broadcast_goes_on_after_a_kill_and_comes_to_each_device_once_and_not_before_its_time() {
    const DEVICES: usize = 12;
    const SPREAD_MS: u64 = 12_000;
    let mut world = World::of(DEVICES).await;
    let id = world.app.send("/v3/message/all", &[("payload", "slow"), ("spread_ms", &SPREAD_MS.to_string())]);
    let pace = Pace { spread_ms: SPREAD_MS, local_time_ms: None };
    let due_ms: Vec<u64> = world.fleet.devices.iter().map(|device| due_ms(pace, id, device)).collect();
    let came_in_time = |world: &World| {
        let came = (0..DEVICES).filter(|device| world.times(*device, "slow") > 0);
        let now_ms = SystemClock.now_ms();
        came.inspect(|device| assert!(now_ms >= due_ms[*device], "device {device} got it too early")).count()
    };
    for came in [1, DEVICES / 2] {
        eventually("some have it", || (came_in_time(&world) >= came).then_some(())).await;
        world.server.kill();
        assert!(came_in_time(&world) < DEVICES, "the kill comes while it is under way");
        world.server.restart();
    }
    let left = DEVICES - came_in_time(&world);
    eventually("all have it", || (came_in_time(&world) == DEVICES).then_some(())).await;
    world.server.kill();
    world.server.restart();
    for device in &world.fleet.devices {
        device.ready().await;
    }
    world.settle("at the end").await;
    let counts: Vec<_> = (0..DEVICES).map(|device| world.times(device, "slow")).collect();
    assert_eq!(counts, [1; DEVICES]);
    println!("{left} of {DEVICES} got it after the kills");
}

/// When a paced message is due at a device.
fn due_ms(pace: Pace, id: MessageId, device: &InProcessDevice) -> u64 {
    let account = device.jid().split('@').next().expect("an account").parse().expect("an account id");
    pace.due_ms(id, account, None)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_expires_while_the_server_is_down_is_told_as_expired_once_it_is_back() {
    const TTL_MS: u64 = 1500;
    let mut world = World::of(2).await;
    world.fleet.stop(0..1).await;
    let ttl = TTL_MS.to_string();
    let id = world.send_with_receipts(0, "too late", DELIVERED | EXPIRED, &[("time_to_live", &ttl)]);
    let delivered = world.send_with_receipts(1, "in time", DELIVERED | EXPIRED, &[("time_to_live", &ttl)]);
    world.taken(&world.event(&delivered, DELIVERED, 1)).await;
    let sent_ms = SystemClock.now_ms();
    world.server.kill();
    time_passes(sent_ms + TTL_MS).await;
    world.server.restart();
    world.taken(&world.event(&id, EXPIRED, 0)).await;
    world.receiver.check(&world.webhook_secret);
    let steps = world.http.get(&format!("/campanile/v1/messages/{id}/trace"), &[("registration_id", &world.regids[0])]);
    let last = steps.data()["steps"].as_array().and_then(|steps| steps.last()).cloned().expect("a step");
    assert_eq!((&last["what"], &last["reason"]), (&"dropped".into(), &"expired".into()), "{last}");
    world.fleet.connect(0..1).await;
    world.device(1).ready().await;
    world.settle("at the end").await;
    assert_eq!((world.times(0, "too late"), world.times(1, "in time")), (0, 1));
    let kinds: Vec<_> = world.receiver.events().into_keys().map(|event| (event.message, event.kind)).collect();
    assert_eq!(kinds, [(id, EXPIRED), (delivered, DELIVERED)], "and nothing is told twice over");
}

// ------------------------------------------------------------------------------------------------------------- metrics

#[tokio::test(flavor = "multi_thread")]
async fn each_job_shows_in_the_metrics_when_it_last_ran_also_after_a_kill() {
    const JOBS: &[&str] = &["schedules", "receipts", "expiries", "counts", "audience_counts"];
    let mut world = World::of(1).await;
    for life in 0..2 {
        let ran_ms = |job: &str| world.server.metric(&format!("campanile_middle_job_last_run_ms{{job=\"{job}\"}}"));
        let begun_ms = SystemClock.now_ms();
        let id = world.send_with_receipts(0, "told", DELIVERED, &[]);
        world.app.send("/v3/message/all", &[("payload", "to all")]);
        world.taken(&world.event(&id, DELIVERED, 0)).await;
        #[expect(clippy::cast_precision_loss, reason = "a time of this century has fewer bits than a float")]
        let begun_ms = begun_ms as f64;
        for job in JOBS {
            wait_for(format!("the job {job} runs"), || (ran_ms(job) >= begun_ms).then_some(()));
        }
        assert!(world.server.metric("campanile_middle_receipts_posted_total") >= 1.0);
        if life == 0 {
            world.server.kill();
            world.server.restart();
            world.device(0).ready().await;
        }
    }
    let due = (SystemClock.now_ms() + 300).to_string();
    world.send_to(0, "scheduled", &[("time_to_send", &due)]);
    world.device(0).wait_for_push("scheduled").await;
    wait_for("it is counted", || (world.server.metric("campanile_middle_schedules_fired_total") >= 1.0).then_some(()));
}
