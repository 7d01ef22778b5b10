//! Sends that go out later: once, again and again, and whatever happens around the moment that they are due.

use std::time::Duration;

use campanile_middle_tier::Config;
use idl::audience::Audience;
use idl::contract::bus::{
    AppAnswer, AppRequest, ChangeSchedule, MessageName, Page, Repeat, ScheduleState, Segment, Send,
};
use idl::error::{Code, Failure};
use idl::ids::MessageId;
use schema::sorted::Table;

use crate::harness::{
    Device, Fault, START_MS, Tier, audience, by_id, by_job_key, deliveries, first_page, segment, send_to, to,
};

const SECOND: Duration = Duration::from_secs(1);
/// Long enough for the job to see what another process made, and to try again what failed.
const FIRED: Duration = Duration::from_secs(3);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR_MS: u64 = 3_600_000;

fn at(ms: u64, send: Send) -> Send {
    Send { send_at_ms: Some(ms.cast_signed()), ..send }
}

/// A minute after tests begin.
fn soon(device: &Device) -> Send {
    at(START_MS + 60_000, Send { ttl_ms: 24 * 3_600_000, ..send_to(to(device)) })
}

#[expect(clippy::unnecessary_wraps, reason = "it is what a send has")]
fn every(cron: &str, until_ms: Option<u64>) -> Option<Repeat> {
    Some(Repeat { cron: cron.into(), time_zone: "UTC".into(), until_ms: until_ms.map(u64::cast_signed) })
}

async fn schedules(tier: &Tier) -> Vec<ScheduleState> {
    match tier.app(AppRequest::Schedules(first_page())).await {
        Ok(AppAnswer::Schedules(schedules)) => schedules.schedules,
        other => panic!("{other:?}"),
    }
}

async fn delete(tier: &Tier, name: MessageName) -> Result<bool, Failure> {
    match tier.app(AppRequest::DeleteSchedule(name)).await? {
        AppAnswer::Changed(changed) => Ok(changed.existed),
        other => panic!("{other:?}"),
    }
}

async fn change(tier: &Tier, change: ChangeSchedule) -> Result<ScheduleState, Failure> {
    match tier.app(AppRequest::ChangeSchedule(change)).await? {
        AppAnswer::Schedule(schedule) => Ok(schedule),
        other => panic!("{other:?}"),
    }
}

fn no_change(id: MessageId) -> ChangeSchedule {
    ChangeSchedule { id: id.to_string(), send_at_ms: None, local_time: None, repeat: None }
}

/// Lets time go on to the next moment that something is due, and gives what was delivered until a little after it.
async fn after(tier: &mut Tier, by: Duration) -> Vec<MessageId> {
    tier.advance(by);
    deliveries(&tier.during(FIRED).await)
}

#[tokio::test(start_paused = true)]
async fn a_send_goes_out_once_when_it_is_due() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    let accepted = tier.accepted(soon(&device)).await.expect("accepted");
    assert_eq!(accepted.due_ms, Some((START_MS + 60_000).cast_signed()));
    let schedule: MessageId = accepted.id.expect("an id").parse().expect("a message id");
    let state = tier.state(schedule).await;
    assert_eq!((state.state.as_str(), state.due_ms), ("scheduled", accepted.due_ms));
    assert_eq!(tier.trace(schedule, &device).await, ["waiting: due later"]);
    assert_eq!(deliveries(&tier.during(SECOND * 59).await), []);
    let delivered = deliveries(&tier.during(FIRED).await);
    let [message] = delivered.as_slice() else { panic!("{delivered:?}") };
    assert!(*message > schedule, "devices were judged to what came before it");
    assert_eq!(message.time_ms() / 1000, (START_MS + 60_000) / 1000, "it goes out on time");
    tier.ack(&device, &[*message], &[]).await;
    let state = tier.state(schedule).await;
    assert_eq!((state.state.as_str(), state.delivered, state.messages), ("done", 1, Some(vec![message.to_string()])));
    assert_eq!(tier.last_step(schedule, &device).await, "delivered");
    assert_eq!(tier.state(*message).await.delivered, 1);
    let shown = tier.schedule(schedule).await.expect("it is kept");
    assert_eq!((shown.state.as_str(), shown.fired, shown.last_message), ("done", 1, Some(message.to_string())));
    assert_eq!(after(&mut tier, Duration::from_hours(24)).await, []);
}

#[tokio::test(start_paused = true)]
async fn what_is_past_goes_out_at_once_and_what_is_too_far_ahead_is_refused() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    for ms in [0, 1, tier.now_ms()] {
        let accepted = tier.accepted(at(ms, send_to(to(&device)))).await.expect("accepted");
        assert_eq!(accepted.due_ms, None);
    }
    assert_eq!(deliveries(&tier.during(SECOND).await).len(), 3);
    let week_ms = 7 * 24 * HOUR_MS;
    tier.accepted(at(tier.now_ms() + week_ms, send_to(to(&device)))).await.expect("accepted");
    assert_eq!(tier.refused(at(tier.now_ms() + week_ms + 1000, send_to(to(&device)))).await, Code::BadValue);
    let local = |text: &str| Send { local_time: Some(text.into()), ..send_to(to(&device)) };
    // 2027-01-15T08:00 in UTC; the last zone is twelve hours behind.
    for text in ["2027-01-14T19:59", "2027-01-22T08:01", "tomorrow", "2027-02-30T09:00", ""] {
        assert_eq!(tier.refused(local(text)).await, Code::BadValue, "{text:?}");
    }
    let both = Send { send_at_ms: Some(i64::MAX / 2), ..local("2027-01-16T09:00") };
    assert_eq!(tier.refused(both).await, Code::BadValue);
    let both = Send { repeat: every("0 9 * * *", None), ..local("2027-01-16T09:00") };
    assert_eq!(tier.refused(both).await, Code::BadValue);
    let over = Send { repeat: every("0 9 * * *", Some(START_MS)), ..send_to(to(&device)) };
    assert_eq!(tier.refused(over).await, Code::BadValue);
    let never = Send { repeat: every("0 0 30 2 *", None), ..send_to(to(&device)) };
    assert_eq!(tier.refused(never).await, Code::BadValue);
    for repeat in [("* * * *", "UTC"), ("0 9 * * *", "Mars/Base"), ("every day", "UTC")] {
        let repeat = Some(Repeat { cron: repeat.0.into(), time_zone: repeat.1.into(), until_ms: None });
        assert_eq!(tier.refused(Send { repeat, ..send_to(to(&device)) }).await, Code::BadValue);
    }
    assert_eq!(schedules(&tier).await.len(), 1);
}

/// Cuts the firing off at each of its writes, before and after it: the message is there once, and delivered.
#[tokio::test(start_paused = true)]
async fn a_firing_that_is_cut_off_anywhere_is_made_once() {
    for fault in [Fault::Lost, Fault::Unanswered] {
        let mut cut = 0;
        for write in 0.. {
            let mut tier = Tier::timed().await;
            let mut device = tier.device().await;
            tier.send(soon(&device)).await.expect("accepted");
            tier.send(at(START_MS + 60_000, send_to(audience(&Audience::Everyone)))).await.expect("accepted");
            tier.during(SECOND * 59).await;
            tier.store.fault_all(write, fault);
            tier.during(FIRED).await;
            let fired = schedules(&tier).await.iter().filter(|schedule| schedule.fired == 1).count();
            cut += usize::from(fired < 2);
            tier.crash().await;
            tier.during(FIRED).await;
            assert!(schedules(&tier).await.iter().all(|schedule| schedule.fired == 1), "{fault:?} at {write}");
            assert_eq!(tier.rows(Table::Records).await, 2, "cut off {fault:?} at {write}");
            tier.reconnect(&mut device).await;
            assert_eq!(deliveries(&tier.during(SECOND).await).len(), 2, "cut off {fault:?} at {write}");
            if fired == 2 {
                break;
            }
        }
        assert!(cut >= 2, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_due_during_an_outage_goes_out_once_after_it() {
    let mut tier = Tier::timed().await;
    let mut device = tier.device().await;
    tier.send(soon(&device)).await.expect("accepted");
    let repeat = Send { repeat: every("*/10 * * * *", None), ..send_to(to(&device)) };
    let (repeats, _) = tier.send(repeat).await.expect("accepted");
    tier.end().await;
    tier.advance(Duration::from_mins(61));
    tier.crash().await;
    tier.reconnect(&mut device).await;
    assert_eq!(deliveries(&tier.during(FIRED).await).len(), 2, "what was missed is not made up for");
    let shown = tier.schedule(repeats).await.expect("it waits");
    assert_eq!((shown.state.as_str(), shown.fired), ("waiting", 1));
    assert_eq!(shown.due_ms.cast_unsigned(), START_MS + 70 * 60_000, "then as usual");
    assert_eq!(after(&mut tier, Duration::from_mins(9)).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_due_while_the_store_takes_nothing_goes_out_once_it_does() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    let (schedule, _) = tier.send(soon(&device)).await.expect("accepted");
    tier.store.fault(Table::Mailboxes, 0, Fault::Refused);
    assert_eq!(after(&mut tier, MINUTE).await, []);
    assert_eq!(tier.schedule(schedule).await.expect("it waits").state, "firing");
    assert_eq!(tier.trace(schedule, &device).await, ["waiting: due later"]);
    tier.store.set_down(true);
    assert_eq!(after(&mut tier, MINUTE).await, []);
    tier.store.set_down(false);
    tier.store.open();
    assert_eq!(after(&mut tier, SECOND).await.len(), 1);
    assert_eq!(after(&mut tier, MINUTE).await, []);
}

#[tokio::test(start_paused = true)]
async fn a_repeated_send_goes_out_by_its_time_zone_until_its_end() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    // In Shanghai it is four in the afternoon.
    let repeat = Repeat {
        cron: "0 17 * * *".into(),
        time_zone: "Asia/Shanghai".into(),
        until_ms: Some((START_MS + 49 * HOUR_MS).cast_signed()),
    };
    let mut send = Send { repeat: Some(repeat.clone()), ..send_to(to(&device)) };
    send.notification.job_key = Some("daily".into());
    let (schedule, _) = tier.send(send).await.expect("accepted");
    let mut sent = Vec::new();
    for hour in 0..80 {
        let delivered = after(&mut tier, Duration::from_hours(1)).await;
        assert_eq!(delivered.len(), usize::from([0, 24, 48].contains(&hour)), "{hour}");
        tier.ack(&device, &delivered, &[]).await;
        sent.extend(delivered);
    }
    let shown = tier.schedule(schedule).await.expect("it is kept");
    assert_eq!((shown.state.as_str(), shown.fired, shown.repeat), ("done", 3, Some(repeat)));
    let states = tier.states(by_job_key("daily")).await.expect("known");
    assert_eq!(
        states.iter().map(|state| state.id.clone()).rev().collect::<Vec<_>>(),
        sent.iter().map(ToString::to_string).collect::<Vec<_>>()
    );
    let later = Send {
        send_at_ms: Some((tier.now_ms() + 90 * 60_000).cast_signed()),
        repeat: every("0 * * * *", None),
        ..send_to(to(&device))
    };
    let due_ms = tier.accepted(later).await.expect("accepted").due_ms.expect("later").cast_unsigned();
    assert!(due_ms >= tier.now_ms() + 90 * 60_000 && due_ms.is_multiple_of(HOUR_MS), "not before time_to_send");
}

#[tokio::test(start_paused = true)]
async fn a_schedule_that_waits_is_changed_and_deleted() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    let (id, _) = tier.send(soon(&device)).await.expect("accepted");
    assert_eq!(change(&tier, no_change(id)).await.expect_err("nothing").code, Code::Missing);
    let far = ChangeSchedule { send_at_ms: Some(i64::MAX), ..no_change(id) };
    assert_eq!(change(&tier, far).await.expect_err("too far").code, Code::BadValue);
    let unknown = ChangeSchedule { send_at_ms: Some(1), ..no_change(MessageId(7)) };
    assert_eq!(change(&tier, unknown).await.expect_err("unknown").code, Code::NotFound);
    let due = (START_MS + HOUR_MS).cast_signed();
    let changed = change(&tier, ChangeSchedule { send_at_ms: Some(due), ..no_change(id) }).await.expect("changed");
    assert_eq!((changed.due_ms, changed.state.as_str()), (due, "waiting"));
    assert_eq!(after(&mut tier, Duration::from_mins(10)).await, []);
    assert_eq!(after(&mut tier, Duration::from_mins(50)).await.len(), 1);
    let again = ChangeSchedule { send_at_ms: Some(due + 1000 * 3600), ..no_change(id) };
    assert_eq!(change(&tier, again).await.expect_err("it is over").code, Code::WrongState);
    assert_eq!(delete(&tier, by_id(id)).await.expect_err("it is over").code, Code::WrongState);

    let (id, _) = tier.send(at(tier.now_ms() + 60_000, send_to(to(&device)))).await.expect("accepted");
    let repeat = ChangeSchedule { repeat: every("* * * * *", None), ..no_change(id) };
    assert_eq!(change(&tier, repeat).await.expect("changed").repeat, every("* * * * *", None));
    assert_eq!(after(&mut tier, MINUTE).await.len(), 1);
    // What has fired is the message's now; the repetition is still the schedule's.
    let now = ChangeSchedule { send_at_ms: Some(1), ..no_change(id) };
    assert_eq!(change(&tier, now).await.expect("changed").repeat, None);
    assert_eq!(deliveries(&tier.during(FIRED).await).len(), 1, "it is due now");

    let (id, _) = tier.send(at(tier.now_ms() + 60_000, send_to(to(&device)))).await.expect("accepted");
    assert_eq!(delete(&tier, by_id(id)).await, Ok(true));
    assert_eq!(after(&mut tier, MINUTE).await, []);
    for name in [by_id(id), by_id(MessageId(7)), MessageName { id: Some("x".into()), job_key: None }, by_job_key("x")] {
        assert_eq!(delete(&tier, name.clone()).await.expect_err("unknown").code, Code::NotFound, "{name:?}");
    }
    for name in [MessageName { id: None, job_key: None }, MessageName { job_key: Some("k".into()), ..by_id(id) }] {
        assert_eq!(delete(&tier, name.clone()).await.expect_err("none or both").code, Code::Missing, "{name:?}");
        let shown = tier.app(AppRequest::Schedule(name)).await;
        assert_eq!(shown.expect_err("none or both").code, Code::Missing);
    }
}

#[tokio::test(start_paused = true)]
async fn schedules_are_found_and_deleted_by_their_job_key() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    let with_key = |key: &str, due_ms| {
        let mut send = at(due_ms, send_to(to(&device)));
        send.notification.job_key = Some(key.into());
        send
    };
    let now_ms = tier.now_ms();
    tier.send(with_key("a", now_ms + 1000)).await.expect("accepted");
    assert_eq!(after(&mut tier, SECOND).await.len(), 1);
    let mut waiting = Vec::new();
    for minutes in 1..=3 {
        waiting.push(tier.send(with_key("a", now_ms + minutes * HOUR_MS)).await.expect("accepted").0);
    }
    let (other, _) = tier.send(with_key("b", now_ms + HOUR_MS)).await.expect("accepted");
    let shown = tier.app(AppRequest::Schedule(by_job_key("a"))).await;
    let Ok(AppAnswer::Schedule(shown)) = shown else { panic!("{shown:?}") };
    assert_eq!(shown.id, waiting[0].to_string(), "the first that waits");
    let states = tier.states(by_job_key("a")).await.expect("known");
    let states: Vec<_> = states.iter().map(|state| state.state.as_str()).collect();
    assert_eq!(states, ["scheduled", "scheduled", "scheduled", "sending"]);
    assert_eq!(delete(&tier, by_job_key("a")).await, Ok(true));
    assert_eq!(delete(&tier, by_job_key("a")).await.expect_err("none waits").code, Code::NotFound);
    assert_eq!(schedules(&tier).await.iter().filter(|schedule| schedule.state == "waiting").count(), 1);
    assert_eq!(tier.schedule(other).await.expect("it waits").state, "waiting");
}

#[tokio::test(start_paused = true)]
async fn so_many_schedules_wait_and_they_come_in_pages() {
    let tier = Tier::timed_with(Config { schedules_max: 5, ..Config::default() }).await;
    let device = tier.device().await;
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(tier.send(soon(&device)).await.expect("accepted").0.to_string());
    }
    assert_eq!(tier.refused(soon(&device)).await, Code::LimitReached);
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = AppRequest::Schedules(Page { after, limit: 2 });
        let Ok(AppAnswer::Schedules(page)) = tier.app(page).await else { panic!("a page") };
        found.extend(page.schedules.into_iter().map(|schedule| schedule.id));
        after = page.next_after;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(found, made);
}

#[tokio::test(start_paused = true)]
async fn a_send_that_is_refused_when_it_is_due_is_over() {
    let mut tier = Tier::timed().await;
    tier.device().await;
    let saved = Segment { name: "s".into(), expression: "all".into(), changed_at_ms: None };
    tier.app(AppRequest::PutSegment(saved)).await.expect("saved");
    let (id, _) = tier.send(at(START_MS + 60_000, send_to(segment("s")))).await.expect("accepted");
    let name = idl::contract::bus::Name { name: "s".into() };
    tier.app(AppRequest::DeleteSegment(name)).await.expect("deleted");
    after(&mut tier, MINUTE).await;
    assert_eq!(tier.counted("campanile_middle_schedules_failed_total"), 1);
    assert_eq!(tier.schedule(id).await.expect("it is kept").state, "done");
    // What became of it can be asked for: it reached nobody.
    let state = tier.state(id).await;
    assert_eq!((state.state.as_str(), state.resolved, state.delivered), ("stopped", 0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_stopped_while_it_fires_is_not_delivered() {
    for recall in [false, true] {
        for name in [None, Some("job")] {
            let mut tier = Tier::timed().await;
            let device = tier.device().await;
            let mut send = soon(&device);
            send.notification.job_key = name.map(str::to_owned);
            let (schedule, _) = tier.send(send).await.expect("accepted");
            tier.store.fault(Table::Mailboxes, 0, Fault::Held);
            tier.advance(MINUTE);
            tier.store.met().await;
            let name = name.map_or(by_id(schedule), by_job_key);
            let stop = idl::contract::bus::Stop { names: vec![name], recall };
            let stopping = tokio::spawn(tier.app(AppRequest::Stop(stop)));
            tier.during(SECOND).await;
            tier.store.open();
            tier.during(FIRED).await;
            let Ok(AppAnswer::Stopped(stopped)) = stopping.await.expect("it runs") else { panic!("it is stopped") };
            assert_eq!((stopped.found.len(), stopped.unknown.len()), (1, 0));
            let expected = if recall { "revoked" } else { "stopped" };
            assert_eq!(tier.state(schedule).await.state, expected);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_firing_that_the_store_refused_is_stopped_before_it_is_tried_again() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    let (schedule, _) = tier.send(soon(&device)).await.expect("accepted");
    tier.store.fault(Table::Mailboxes, 0, Fault::Refused);
    assert_eq!(after(&mut tier, MINUTE).await, []);
    assert_eq!(delete(&tier, by_id(schedule)).await.expect_err("it is firing").code, Code::WrongState);
    assert_eq!(tier.stop(vec![by_id(schedule)], false).await, Ok((1, 0)));
    tier.store.open();
    assert_eq!(after(&mut tier, MINUTE).await, []);
    assert_eq!(tier.schedule(schedule).await.expect("it is kept").state, "done");
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_is_found_among_many_that_are_done() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    let mut send = soon(&device);
    send.notification.job_key = Some("job".into());
    for _ in 0..120 {
        tier.send(at(tier.now_ms() + 1000, send.clone())).await.expect("accepted");
    }
    tier.during(Duration::from_secs(10)).await;
    let (id, _) = tier.send(at(tier.now_ms() + HOUR_MS, send)).await.expect("accepted");
    let Ok(AppAnswer::Schedule(shown)) = tier.app(AppRequest::Schedule(by_job_key("job"))).await else { panic!("one") };
    assert_eq!(shown.id, id.to_string());
    assert_eq!(tier.states(by_job_key("job")).await.expect("known")[0].state, "scheduled");
    tier.stop(vec![by_job_key("job")], false).await.expect("stopped");
    assert_eq!(tier.schedule(id).await.expect_err("it is gone").code, Code::NotFound);
}

#[tokio::test(start_paused = true)]
async fn what_repeats_is_stopped_with_the_message_that_went_out_last() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    tier.disconnect(&device).await;
    let send = Send { repeat: every("* * * * *", None), ttl_ms: 3_600_000, ..send_to(to(&device)) };
    let (schedule, _) = tier.send(send).await.expect("accepted");
    after(&mut tier, MINUTE).await;
    let shown = tier.schedule(schedule).await.expect("it waits");
    let message: MessageId = shown.last_message.expect("it fired").parse().expect("a message id");
    assert_eq!(tier.stop(vec![by_id(schedule)], false).await, Ok((1, 0)));
    assert_eq!(tier.last_step(message, &device).await, "dropped: stopped");
    assert_eq!(tier.schedule(schedule).await.expect_err("it is gone").code, Code::NotFound);
    after(&mut tier, MINUTE).await;
    assert_eq!(tier.rows(Table::Records).await, 1);
}
