//! An app sees and changes nothing of what another one has: whatever it asks for by the names of another's things, it is
//! answered as if there were no such things.

use std::time::Duration;

use idl::audience::Audience;
use idl::bus::FrontEvent;
use idl::contract::bus::{
    AppAnswer, AppRequest, ChangeSchedule, ChangeTopic, Counters, MessageName, Messages, Name, NamesOf, OnlineOf, Page,
    Recall, RegidsOf, Segment, Send, SendMany, Stop, TakeInvalid, Template, Trace,
};
use idl::contract::push::{Ack, AppAck, Clicked, FromDevice, Report};
use idl::ids::{MessageId, RegId};
use idl::wire::encode;
use schema::sorted::Table;

use crate::harness::{
    APP, Device, START_MS, Tier, aliases, audience, callback, id_of, regids, register, segment, send_to, set_alias,
    set_user_account, subscribe, to, topic, user_accounts,
};

const SECOND: Duration = Duration::from_secs(1);
const OTHER: &str = "com.example.other";

/// Names of an app's things.
#[derive(Debug, Clone)]
struct Things {
    message: String,
    broadcast: String,
    schedule: String,
    regid: String,
    receipt: String,
    /// The job key, alias, user account, topic, segment and template are all called so.
    name: String,
}

impl Things {
    fn unknown() -> Self {
        let id = |number| MessageId::at(START_MS).0 + number;
        Self {
            message: MessageId(id(1)).to_string(),
            broadcast: MessageId(id(2)).to_string(),
            schedule: MessageId(id(3)).to_string(),
            regid: RegId([9; 24]).to_string(),
            receipt: MessageId::at(START_MS - 1).to_string(),
            name: "nothing".into(),
        }
    }

    fn texts(&self) -> [&str; 6] {
        [&self.message, &self.broadcast, &self.schedule, &self.regid, &self.receipt, &self.name]
    }
}

fn by(id: &str) -> MessageName {
    MessageName { id: Some(id.into()), job_key: None }
}

fn by_key(key: &str) -> MessageName {
    MessageName { id: None, job_key: Some(key.into()) }
}

fn page(after: Option<String>) -> Page {
    Page { after, limit: 100 }
}

/// Everything that can be asked for, by the names of these things. What only reads comes first.
fn requests(of: &Things) -> Vec<AppRequest> {
    let name = || Name { name: of.name.clone() };
    let ids = [&of.message, &of.broadcast, &of.schedule];
    let names = || ids.iter().map(|id| by(id)).chain([by_key(&of.name)]).collect::<Vec<_>>();
    let mut all = vec![
        AppRequest::RegidsOf(RegidsOf { user_account: of.name.clone() }),
        AppRequest::Online(OnlineOf { regids: vec![of.regid.clone()] }),
        AppRequest::Registration(Name { name: of.regid.clone() }),
        AppRequest::Counters(Counters { first_day: "20270115".into(), last_day: "20270115".into() }),
        AppRequest::Messages(Messages { begin_ms: 0, end_ms: i64::MAX, limit: 100 }),
        AppRequest::Receipts(page(None)),
        AppRequest::Receipts(page(Some("0".into()))),
        AppRequest::Schedules(page(None)),
        AppRequest::Schedules(page(Some(of.message.clone()))),
        AppRequest::Segment(name()),
        AppRequest::Segments(page(None)),
        AppRequest::Template(name()),
        AppRequest::Templates(page(None)),
        AppRequest::TakeInvalid(TakeInvalid { kind: 2 }),
    ];
    for kind in 1..=3 {
        all.push(AppRequest::NamesOf(NamesOf { regid: of.regid.clone(), kind }));
    }
    for name in names() {
        all.push(AppRequest::MessageStatus(name.clone()));
        all.push(AppRequest::Schedule(name));
    }
    for id in ids {
        all.push(AppRequest::Trace(Trace { id: id.clone(), regid: of.regid.clone() }));
    }
    let targets = || {
        [regids(std::slice::from_ref(&of.regid)), aliases(&[&of.name]), user_accounts(&[&of.name]), segment(&of.name)]
    };
    for target in targets() {
        all.push(AppRequest::Send(Send { dry_run: Some(true), ..send_to(target) }));
    }
    let of_template = Send { template_name: Some(of.name.clone()), ..send_to(audience(&topic(&of.name))) };
    all.push(AppRequest::Send(Send { dry_run: Some(true), ..of_template.clone() }));
    // From here on what changes something, or would.
    for target in targets() {
        all.push(AppRequest::Send(Send { callback: callback(16), ..send_to(target.clone()) }));
        all.push(AppRequest::SendMany(SendMany { sends: vec![send_to(target.clone())] }));
        all.push(AppRequest::Recall(Recall { target, notify_id: 7, packages: None }));
    }
    all.push(AppRequest::Send(of_template));
    all.push(AppRequest::Send(send_to(audience(&topic(&of.name)))));
    all.push(AppRequest::Recall(Recall { target: audience(&topic(&of.name)), notify_id: 7, packages: None }));
    for subscribe in [true, false] {
        for (kind, value) in [(1, &of.regid), (2, &of.name)] {
            let (topic, values) = (of.name.clone(), vec![value.clone()]);
            all.push(AppRequest::ChangeTopic(ChangeTopic { topic, subscribe, kind, values, packages: None }));
        }
    }
    for name in names() {
        all.push(AppRequest::Stop(Stop { names: vec![name.clone()], recall: true }));
        all.push(AppRequest::DeleteSchedule(name));
    }
    all.push(AppRequest::ChangeSchedule(ChangeSchedule {
        id: of.schedule.clone(),
        send_at_ms: Some(1),
        local_time: None,
        repeat: None,
    }));
    all.push(AppRequest::DeleteSegment(name()));
    all.push(AppRequest::DeleteTemplate(name()));
    all.push(AppRequest::PutSegment(Segment {
        name: of.name.clone(),
        expression: "not all".into(),
        changed_at_ms: None,
    }));
    all.push(AppRequest::PutTemplate(Template {
        name: of.name.clone(),
        payload: Some("theirs".into()),
        ..no_template()
    }));
    all
}

fn no_template() -> Template {
    Template { name: String::new(), title: None, description: None, payload: None, extra: None, changed_at_ms: None }
}

/// The number of a request among all kinds: a new kind must be asked for above.
fn kind(request: &AppRequest) -> usize {
    match request {
        AppRequest::Send(_) => 0,
        AppRequest::SendMany(_) => 1,
        AppRequest::ChangeTopic(_) => 2,
        AppRequest::NamesOf(_) => 3,
        AppRequest::RegidsOf(_) => 4,
        AppRequest::Online(_) => 5,
        AppRequest::TakeInvalid(_) => 6,
        AppRequest::Counters(_) => 7,
        AppRequest::MessageStatus(_) => 8,
        AppRequest::Messages(_) => 9,
        AppRequest::Stop(_) => 10,
        AppRequest::Trace(_) => 11,
        AppRequest::Schedule(_) => 12,
        AppRequest::Schedules(_) => 13,
        AppRequest::DeleteSchedule(_) => 14,
        AppRequest::ChangeSchedule(_) => 15,
        AppRequest::PutSegment(_) => 16,
        AppRequest::Segment(_) => 17,
        AppRequest::DeleteSegment(_) => 18,
        AppRequest::Segments(_) => 19,
        AppRequest::PutTemplate(_) => 20,
        AppRequest::Template(_) => 21,
        AppRequest::DeleteTemplate(_) => 22,
        AppRequest::Templates(_) => 23,
        AppRequest::Receipts(_) => 24,
        AppRequest::Registration(_) => 25,
        AppRequest::Recall(_) => 26,
    }
}

const KINDS: usize = 27;

/// An answer without the names that were asked for, and without ids that it makes up.
fn without_names(answer: &str, things: &Things) -> String {
    let mut text = answer.to_owned();
    for (at, name) in things.texts().into_iter().enumerate() {
        text = text.replace(name, &format!("<{at}>"));
    }
    let words = text.split_inclusive(|c: char| !c.is_ascii_alphanumeric());
    let is_id = |word: &str| word.len() == 27 && word.starts_with("01M");
    words.map(|word| if is_id(word) { "<id>" } else { word }).collect()
}

/// An app with one of everything.
async fn settled(tier: &mut Tier) -> (Device, Things) {
    let device = tier.device().await;
    let name = "ours";
    for command in [set_alias(name), set_user_account(name), subscribe(name)] {
        assert_eq!(tier.command(&device, command).await.code, 0);
    }
    tier.app(AppRequest::PutSegment(Segment { name: name.into(), expression: "all".into(), changed_at_ms: None }))
        .await
        .expect("saved");
    tier.app(AppRequest::PutTemplate(Template { name: name.into(), payload: Some("ours".into()), ..no_template() }))
        .await
        .expect("saved");
    let named = |mut send: Send| {
        send.notification.job_key = Some(name.into());
        send.notification.notify_id = Some(7);
        Send { ttl_ms: 24 * 3_600_000, ..send }
    };
    let targets = [device.regid.to_string(), RegId([1; 24]).to_string()];
    let single = Send { callback: callback(1 | 16), ..send_to(regids(&targets)) };
    let (message, _) = tier.send(named(single)).await.expect("accepted");
    let (broadcast, _) = tier.send(named(send_to(audience(&topic(name))))).await.expect("accepted");
    let later = Send { send_at_ms: Some((START_MS + 3_600_000).cast_signed()), ..send_to(to(&device)) };
    let (schedule, _) = tier.send(named(later)).await.expect("accepted");
    assert_eq!(tier.refused(send_to(aliases(&["gone"]))).await, idl::error::Code::SendFailed);
    tier.during(SECOND * 2).await;
    tier.events();
    let receipt = tier.receipts().await.pop().expect("one").id;
    let [message, broadcast, schedule] = [message, broadcast, schedule].map(|id| id.to_string());
    (
        device.clone(),
        Things { message, broadcast, schedule, regid: device.regid.to_string(), receipt, name: name.into() },
    )
}

/// All that an app can read of its own things.
async fn seen(tier: &Tier, things: &Things) -> Vec<String> {
    let reads = requests(things).into_iter().take_while(|request| kind(request) != 0);
    let mut seen = Vec::new();
    // What is invalid is told once.
    for request in reads.filter(|request| kind(request) != 6) {
        let reply = tier.reply(tier.call(request.clone())).await.expect("answered");
        seen.push(format!("{request:?}: {} {:?}", reply.status.code, reply.answer));
    }
    seen
}

#[tokio::test(start_paused = true)]
async fn whatever_one_app_asks_for_it_learns_and_changes_nothing_of_another() {
    let mut tier = Tier::timed().await;
    let (device, ours) = settled(&mut tier).await;
    let unknown = Things::unknown();
    let kinds: std::collections::BTreeSet<_> = requests(&ours).iter().map(kind).collect();
    assert_eq!(kinds.len(), KINDS, "every kind of request is asked for");
    let before = seen(&tier, &ours).await;
    assert!(before.iter().filter(|answer| answer.contains(": 0 ")).count() > 20, "it has everything: {before:#?}");

    let (secret, app_key) = tier.create_app(OTHER).await;
    let our_secret = std::mem::replace(&mut tier.secret, secret);
    for (theirs, nothing) in requests(&ours).into_iter().zip(requests(&unknown)) {
        let mut answers = Vec::new();
        for (request, things) in [(&theirs, &ours), (&nothing, &unknown)] {
            let reply = tier.reply(tier.call(request.clone())).await.expect("answered");
            let text = format!("{:?} {:?} {:?}", reply.status, reply.answer, reply.replayed);
            answers.push(without_names(&text, things));
        }
        assert_eq!(answers[0], answers[1], "{theirs:?}");
    }
    // The same device has the other app as well, and says of its messages what it can.
    let register =
        FromDevice { register_app: Some(register(OTHER, &app_key, device.account)), ..FromDevice::default() };
    let registered = tier.command(&device, register).await.registered.expect("it registers");
    let their_regid: RegId = registered.regid.parse().expect("a registration id");
    for id in [&ours.message, &ours.broadcast].map(|id| id.parse::<MessageId>().expect("an id")) {
        let bytes = id.to_bytes().to_vec();
        let ack = AppAck { app: OTHER.into(), messages: Some(bytes.clone()), broadcasts: Some(bytes.clone()) };
        for command in [
            FromDevice { ack: Some(Ack { apps: vec![ack] }), ..FromDevice::default() },
            FromDevice {
                clicked: Some(Clicked { app: OTHER.into(), message: bytes.clone() }),
                ..FromDevice::default()
            },
            FromDevice {
                report: Some(Report { app: OTHER.into(), message: bytes, reason: 3 }),
                ..FromDevice::default()
            },
        ] {
            tier.up(device.account, &device.epoch, encode(&command)).await.expect("the middle answers");
        }
    }
    let everyone = tier.reply(tier.call(AppRequest::Send(send_to(audience(&Audience::Everyone))))).await;
    let theirs = id_of(&everyone.expect("accepted"));
    let came = tier.during(SECOND * 2).await;
    assert!(came.iter().all(|payload| payload.deliver.as_ref().is_none_or(|deliver| deliver.app == OTHER)), "{came:?}");
    for event in tier.events() {
        let app = match event {
            FrontEvent::Broadcast(broadcast) => broadcast.app,
            FrontEvent::CancelBroadcast(cancelled) => cancelled.app,
            FrontEvent::TokenRevoked(_) => continue,
        };
        assert_eq!(app, OTHER);
    }

    tier.secret = our_secret;
    let changed = |seen: Vec<String>| -> Vec<String> {
        // A device that is here is seen now.
        seen.into_iter().map(|text| text.split("last_seen_ms").next().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(changed(seen(&tier, &ours).await), changed(before));
    assert_eq!(tier.trace(theirs, &device).await, ["NotFound"]);
    // Nor does it learn of another's registration by asking what became of a message of its own for it.
    let broadcast = ours.broadcast.parse().expect("an id");
    let foreign = Device { regid: their_regid, ..device.clone() };
    assert_eq!(tier.last_step(broadcast, &foreign).await, "dropped: unregistered");
    assert_eq!(
        tier.states(crate::harness::by_id(theirs)).await.expect_err("not ours").code,
        idl::error::Code::NotFound
    );
    let invalid = tier.app(AppRequest::TakeInvalid(TakeInvalid { kind: 2 })).await;
    assert!(matches!(&invalid, Ok(AppAnswer::Texts(texts)) if texts.texts == ["gone"]), "{invalid:?}");
    assert!(tier.cells(Table::Mailboxes).await > 0, "what waits for our device still waits");
    assert!(!OTHER.starts_with(APP));
}
