//! Messages that reach each device at a moment of its own: not before it, and soon after it, whoever was away when.

use std::time::Duration;

use idl::audience::Audience;
use idl::bus::FrontEvent;
use idl::contract::bus::{FrontBatchReply, Send};
use idl::due::Pace;
use idl::error::Code;
use idl::ids::MessageId;
use tokio::time::{Instant, sleep_until};

use crate::harness::{
    Device, START_MS, Tier, audience, deliveries, send_to, set_enabled, subscribe, to, to_all, to_device, topic,
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE_MS: u64 = 60_000;
/// 2027-01-15T09:00, an hour after tests begin, for a clock that shows UTC.
const NINE: &str = "2027-01-15T09:00";
const NINE_MS: u64 = START_MS + 60 * MINUTE_MS;

fn spread(ms: u64, send: Send) -> Send {
    Send { spread_ms: Some(ms.cast_signed()), ttl_ms: 3_600_000, ..send }
}

fn at_nine(send: Send) -> Send {
    Send { local_time: Some(NINE.into()), ttl_ms: 3_600_000, ..send }
}

fn everyone() -> Send {
    send_to(audience(&Audience::Everyone))
}

/// When the middle may hand a message to each of these devices, in the order of the devices.
fn due(id: MessageId, spread_ms: u64, devices: &[Device]) -> Vec<u64> {
    let pace = Pace { spread_ms, local_time_ms: None };
    devices.iter().map(|device| pace.due_ms(id, device.account, None)).collect()
}

/// What each device is handed until a moment, and when.
async fn handed(tier: &mut Tier, until_ms: u64, devices: &[Device]) -> Vec<Vec<(u64, MessageId)>> {
    let mut handed = vec![Vec::new(); devices.len()];
    let until = Instant::now() + Duration::from_millis(until_ms.saturating_sub(tier.now_ms()));
    loop {
        let incoming = tokio::select! {
            incoming = tier.front.batches.recv() => incoming.expect("the bus is there"),
            () = sleep_until(until) => return handed,
        };
        for item in &incoming.batch.items {
            let at = devices.iter().position(|device| device.account.to_string() == item.account).expect("a device");
            for payload in item.payloads.iter().flatten() {
                handed[at].extend(deliveries(&[to_device(payload)]).iter().map(|id| (tier.now_ms(), *id)));
            }
        }
        incoming.answer.send(Ok(FrontBatchReply { gone: None, online: None }));
    }
}

/// Of what was handed over only this message.
fn only(handed: &[Vec<(u64, MessageId)>], id: MessageId) -> Vec<Vec<(u64, MessageId)>> {
    handed.iter().map(|all| all.iter().filter(|(_, of)| *of == id).copied().collect()).collect()
}

/// Each device is handed the message once, at its moment or less than a second after it.
fn assert_on_time(handed: &[Vec<(u64, MessageId)>], id: MessageId, due: &[u64]) {
    for (handed, due) in handed.iter().zip(due) {
        let [(at, handed)] = handed.as_slice() else { panic!("once, at {due}: {handed:?}") };
        assert_eq!(*handed, id);
        assert!((*due..due + 1000).contains(at), "due at {due}, handed off at {at}");
    }
}

async fn devices(tier: &Tier, count: usize) -> Vec<Device> {
    let mut devices = Vec::new();
    for _ in 0..count {
        devices.push(tier.device().await);
    }
    devices
}

#[tokio::test(start_paused = true)]
async fn a_spread_send_reaches_each_connected_device_at_its_moment() {
    let mut tier = Tier::timed().await;
    let devices = devices(&tier, 20).await;
    let all: Vec<_> = devices.iter().collect();
    let (id, _) = tier.send(spread(MINUTE_MS, send_to(to_all(&all)))).await.expect("accepted");
    let due = due(id, MINUTE_MS, &devices);
    assert!(due.iter().any(|of_another| *of_another != due[0]), "{due:?}");
    let handed = handed(&mut tier, START_MS + 2 * MINUTE_MS, &devices).await;
    assert_on_time(&handed, id, &due);
}

#[tokio::test(start_paused = true)]
async fn who_comes_back_before_its_moment_waits_for_it_and_who_comes_back_after_it_does_not() {
    let mut tier = Tier::timed().await;
    let mut devices = devices(&tier, 40).await;
    for device in &devices {
        tier.disconnect(device).await;
    }
    let all: Vec<_> = devices.iter().collect();
    let (single, _) = tier.send(spread(MINUTE_MS, send_to(to_all(&all)))).await.expect("accepted");
    let (broadcast, _) = tier.send(spread(MINUTE_MS, everyone())).await.expect("accepted");
    let middle = START_MS + MINUTE_MS / 2;
    tokio::time::sleep(Duration::from_millis(middle - tier.now_ms())).await;
    for device in &mut devices {
        tier.reconnect(device).await;
    }
    let handed = handed(&mut tier, START_MS + 2 * MINUTE_MS, &devices).await;
    for id in [single, broadcast] {
        let due: Vec<_> = due(id, MINUTE_MS, &devices).iter().map(|due| *due.max(&middle)).collect();
        assert!(due.contains(&middle) && due.iter().any(|due| *due > middle));
        assert_on_time(&only(&handed, id), id, &due);
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_changes_no_moment() {
    let mut tier = Tier::timed().await;
    let mut devices = devices(&tier, 8).await;
    for device in &devices {
        tier.disconnect(device).await;
    }
    let all: Vec<_> = devices.iter().collect();
    let (id, _) = tier.send(spread(MINUTE_MS, send_to(to_all(&all)))).await.expect("accepted");
    tier.crash().await;
    for device in &mut devices {
        tier.reconnect(device).await;
    }
    let back_ms = tier.now_ms();
    let due: Vec<_> = due(id, MINUTE_MS, &devices).iter().map(|due| *due.max(&(back_ms - 500))).collect();
    let handed = handed(&mut tier, START_MS + 2 * MINUTE_MS, &devices).await;
    assert_on_time(&handed, id, &due);
}

#[tokio::test(start_paused = true)]
async fn what_comes_later_and_is_not_paced_overtakes_what_is() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    let (slow, _) = tier.send(at_nine(send_to(to(&device)))).await.expect("accepted");
    let (fast, _) = tier.send(send_to(to(&device))).await.expect("accepted");
    assert_eq!(deliveries(&tier.during(SECOND).await), [fast]);
    assert_eq!(tier.trace(slow, &device).await, ["accepted", "stored", "waiting: due later"]);
    let day_ms = 24 * 3_600_000;
    assert_eq!(tier.refused(spread(day_ms + 1, send_to(to(&device)))).await, Code::BadValue);
    assert_eq!(tier.refused(Send { spread_ms: Some(-1), ..send_to(to(&device)) }).await, Code::BadValue);
    // It lives as long after its moment as any other.
    tier.advance(Duration::from_hours(1));
    assert_eq!(deliveries(&tier.during(SECOND).await), [slow]);
    let (spread, _) = tier.send(Send { ttl_ms: 1000, ..spread(day_ms, send_to(to(&device))) }).await.expect("accepted");
    let due = due(spread, day_ms, std::slice::from_ref(&device))[0];
    tier.advance(Duration::from_millis(due - tier.now_ms()));
    assert_eq!(deliveries(&tier.during(SECOND).await), [spread]);
}

#[tokio::test(start_paused = true)]
async fn at_a_local_time_each_device_gets_it_when_its_own_clock_shows_it() {
    let mut tier = Tier::timed().await;
    let mut devices = vec![
        tier.device_with(&[("time_zone", "Europe/Berlin")]).await,
        tier.device_with(&[("time_zone", "America/New_York")]).await,
        tier.device_with(&[("utc_offset_minutes", "-30")]).await,
        tier.device().await,
    ];
    for device in &devices {
        tier.disconnect(device).await;
    }
    let all: Vec<_> = devices.iter().collect();
    let (single, _) = tier.send(at_nine(send_to(to_all(&all)))).await.expect("accepted");
    let (broadcast, _) = tier.send(at_nine(everyone())).await.expect("accepted");
    for id in [single, broadcast] {
        assert_eq!(tier.state(id).await.state, "sending", "in the furthest zone it is nine already");
    }
    for device in &mut devices {
        tier.reconnect(device).await;
    }
    // In Berlin it is nine in the morning as tests begin; in New York it is three.
    let expected = [START_MS, NINE_MS + 5 * 60 * MINUTE_MS, NINE_MS + 30 * MINUTE_MS, NINE_MS];
    let mut came = vec![Vec::new(); devices.len()];
    for minutes in (0..=7 * 60).step_by(10) {
        let now_ms = START_MS + minutes * MINUTE_MS;
        tier.advance(Duration::from_millis(now_ms.saturating_sub(tier.now_ms())));
        let until_ms = tier.now_ms() + 2000;
        for (came, handed) in came.iter_mut().zip(handed(&mut tier, until_ms, &devices).await) {
            came.extend(handed);
        }
    }
    for ((came, expected), device) in came.iter().zip(expected).zip(&devices) {
        let times: Vec<_> = came.iter().map(|(at, _)| *at).collect();
        assert_eq!(came.iter().map(|(_, id)| *id).collect::<Vec<_>>(), [single, broadcast], "{:?}", device.account);
        assert!(times.iter().all(|at| (expected..expected + 3000).contains(at)), "{expected}: {times:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_local_time_that_is_past_in_no_zone_waits_for_the_first_one() {
    let mut tier = Tier::timed().await;
    let kiribati = tier.device_with(&[("time_zone", "Pacific/Kiritimati")]).await;
    let accepted = tier.accepted(Send { local_time: Some("2027-01-16T09:00".into()), ..send_to(to(&kiribati)) }).await;
    let due_ms = accepted.expect("accepted").due_ms.expect("it is a schedule").cast_unsigned();
    assert_eq!(due_ms, NINE_MS + 24 * 60 * MINUTE_MS - 14 * 60 * MINUTE_MS);
    tier.advance(Duration::from_millis(due_ms - tier.now_ms() - 1000));
    assert_eq!(deliveries(&tier.during(SECOND / 2).await), []);
    assert_eq!(deliveries(&tier.during(SECOND * 3).await).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn flow_control_spreads_a_send_over_the_time_that_its_audience_takes() {
    let mut tier = Tier::timed().await;
    let devices = devices(&tier, 30).await;
    for device in &devices {
        tier.command(device, subscribe("news")).await;
    }
    let slowly = |send| Send { flow_control: Some(2), ..send };
    let (broadcast, _) = tier.send(slowly(send_to(audience(&topic("news"))))).await.expect("accepted");
    let events = tier.events();
    let Some(FrontEvent::Broadcast(event)) = events.last() else { panic!("{events:?}") };
    assert_eq!((event.id.as_slice(), event.spread_ms), (broadcast.to_bytes().as_slice(), Some(14_500)));
    let all: Vec<_> = devices.iter().collect();
    let (single, _) = tier.send(slowly(send_to(to_all(&all)))).await.expect("accepted");
    let handed = handed(&mut tier, START_MS + MINUTE_MS, &devices).await;
    // What the front was told of it paces itself; here it does not.
    assert_on_time(&only(&handed, single), single, &due(single, 14_500, &devices));
    for wrong in [0, -1] {
        let send = Send { flow_control: Some(wrong), ..everyone() };
        assert_eq!(tier.refused(send).await, Code::BadValue);
    }
}

#[tokio::test(start_paused = true)]
async fn a_front_paces_what_it_was_told_and_the_session_helps_only_who_was_away() {
    let mut tier = Tier::timed().await;
    let devices = devices(&tier, 1).await;
    tokio::time::sleep(SECOND).await;
    let (id, _) = tier.send(spread(20 * MINUTE_MS, everyone())).await.expect("accepted");
    let due = due(id, 20 * MINUTE_MS, &devices)[0];
    // The session is compared with the store every five minutes; the front hands it over at its moment.
    let before = handed(&mut tier, due.max(START_MS + 11 * MINUTE_MS), &devices).await;
    if due > START_MS + 11 * MINUTE_MS {
        assert_eq!(before, [vec![]], "not before its moment");
    }
    tier.ack(&devices[0], &[], &[id]).await;
    let rest = handed(&mut tier, START_MS + 30 * MINUTE_MS, &devices).await;
    assert_eq!(rest, [vec![]], "the device has it");
    assert_eq!(tier.state(id).await.delivered, 1);
}

#[tokio::test(start_paused = true)]
async fn push_that_is_off_at_the_moment_gets_it_when_it_is_on() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    let (id, _) = tier.send(at_nine(send_to(to(&device)))).await.expect("accepted");
    tier.command(&device, set_enabled(false)).await;
    tier.advance(Duration::from_hours(1));
    assert_eq!(deliveries(&tier.during(SECOND).await), []);
    tier.command(&device, set_enabled(true)).await;
    assert_eq!(deliveries(&tier.during(SECOND).await), [id]);
}
