//! A store that is away, a process that ends at any moment, and one that ends in peace: what was accepted is delivered and
//! told, once.

use std::collections::BTreeSet;
use std::time::Duration;

use idl::audience::Audience;
use idl::contract::bus::{AppRequest, Send};
use idl::contract::push::ToDevice;
use idl::error::Code;
use idl::ids::MessageId;
use schema::sorted::Table;

use crate::harness::{
    Device, Fault, START_MS, Tier, audience, callback, deliveries, first_page, id_of, revocations, send_to, to,
};

const SECOND: Duration = Duration::from_secs(1);

fn everyone() -> Send {
    send_to(audience(&Audience::Everyone))
}

/// A device and its user: whatever comes is acknowledged, and tapped on.
struct User {
    device: Device,
    has: BTreeSet<MessageId>,
}

impl User {
    /// Goes on until nothing comes any more. What can't be said now is said again after the next reconnect.
    async fn live(&mut self, tier: &mut Tier, messages: &[(MessageId, bool)]) {
        for _ in 0..4 {
            let came = tier.during(SECOND).await;
            self.take(tier, &came, messages).await;
        }
    }

    async fn take(&mut self, tier: &mut Tier, came: &[ToDevice], messages: &[(MessageId, bool)]) {
        for id in deliveries(came) {
            self.has.insert(id);
            let broadcast = messages.iter().any(|(of, broadcast)| *of == id && *broadcast);
            let (singles, broadcasts) = if broadcast { (vec![], vec![id]) } else { (vec![id], vec![]) };
            let device = self.device.clone();
            let saying = async {
                let acked = tier.try_ack(&device, &singles, &broadcasts).await.is_ok();
                acked && tier.try_click(&device, id).await.is_ok()
            };
            let _ = tokio::time::timeout(SECOND, saying).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn wherever_the_process_ends_each_message_is_delivered_and_counted_once() {
    // In pieces, an answer that is lost is the next piece that is.
    for (fault, in_pieces) in [(Fault::Lost, false), (Fault::Unanswered, false), (Fault::Lost, true)] {
        let mut ends = 0;
        for write in 0.. {
            let mut tier = Tier::timed().await;
            if in_pieces {
                tier.store.write_in_pieces();
            }
            let mut user = User { device: tier.device().await, has: BTreeSet::new() };
            let target = to(&user.device);
            let requests = || {
                let single = Send { callback: callback(1 | 2 | 1024), ..send_to(target.clone()) };
                [AppRequest::Send(single), AppRequest::Send(everyone())]
            };
            tier.during(SECOND).await;
            tier.store.fault_all(write, fault);
            let mut messages = Vec::new();
            for (number, request) in (0u8..).zip(requests()) {
                let reply = tokio::time::timeout(SECOND, tier.keyed(&format!("k{number}"), number, request)).await;
                if let Ok(reply) = reply {
                    messages.push((id_of(&reply.expect("answered")), number == 1));
                }
            }
            // The front tells who is here of a broadcast.
            let live: Vec<_> = messages.iter().filter(|(_, broadcast)| *broadcast).map(|(id, _)| *id).collect();
            user.live(&mut tier, &messages).await;
            let device = user.device.clone();
            if !live.is_empty() {
                user.has.extend(&live);
                let _ = tokio::time::timeout(SECOND, tier.try_ack(&device, &[], &live)).await;
            }
            let _ = tokio::time::timeout(SECOND, tier.disconnect(&device)).await;
            tier.during(SECOND * 2).await;
            let whole = !tier.store.has_met();
            ends += usize::from(!whole);

            tier.crash().await;
            let mut messages = Vec::new();
            for (number, request) in (0u8..).zip(requests()) {
                let reply = tier.keyed(&format!("k{number}"), number, request).await.expect("answered");
                messages.push((id_of(&reply), number == 1));
            }
            tier.reconnect(&mut user.device).await;
            user.live(&mut tier, &messages).await;
            let context = format!("{fault:?} at {write}, in pieces: {in_pieces}");
            for (id, _) in &messages {
                assert!(user.has.contains(id), "{context}");
                // What the user had tapped on before the crash the device says again.
                tier.click(&user.device, *id).await;
            }
            tier.disconnect(&user.device).await;
            tier.during(SECOND * 3).await;
            tier.crash().await;
            for (id, broadcast) in &messages {
                let state = tier.state(*id).await;
                let counted = (state.delivered, state.clicked);
                // What was counted of a broadcast since the last write of counts, a second before, a crash may lose.
                let lost = *broadcast && !whole && counted.0 <= 1 && counted.1 <= 1;
                assert!(counted == (1, 1) || lost, "{context}: {counted:?} of {id}");
            }
            assert_eq!(tier.rows(Table::Records).await, 2, "{context}");
            assert_eq!(user.has.len(), 2, "{context}");
            let told = tier.told().await;
            let delivered = told.iter().filter(|(kind, _)| *kind == 1).count();
            // The receipt may be all that was written of an acknowledgement, which then comes again.
            assert!(delivered == 1 || (in_pieces && delivered == 2), "{context}: {told:?}");
            assert!(told.iter().any(|(kind, _)| *kind == 2), "{context}: {told:?}");
            assert!(!told.iter().any(|(kind, _)| *kind == 1024), "{context}: {told:?}");
            tier.reconnect(&mut user.device).await;
            assert!(tier.during(SECOND).await.is_empty(), "{context}");
            if whole {
                break;
            }
        }
        assert!(ends > if in_pieces { 20 } else { 6 }, "the process ended at {ends} writes");
    }
}

#[tokio::test(start_paused = true)]
async fn devices_that_come_back_at_once_share_the_reading_of_what_was_broadcast_meanwhile() {
    const DEVICES: usize = 60;
    let mut tier = Tier::timed().await;
    let mut devices = Vec::new();
    for _ in 0..DEVICES {
        let device = tier.device().await;
        tier.disconnect(&device).await;
        devices.push(device);
    }
    tier.during(SECOND).await;
    let (id, _) = tier.send(everyone()).await.expect("accepted");
    let before = tier.store.scans(Table::Timelines);
    for device in &mut devices {
        tier.reconnect(device).await;
    }
    let came = tier.during(SECOND).await;
    assert_eq!(deliveries(&came), vec![id; DEVICES], "each gets it");
    let scans = tier.store.scans(Table::Timelines) - before;
    assert!((1..=DEVICES / 3).contains(&scans), "{scans} scans for {DEVICES} devices");
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_away_everything_is_refused_and_nothing_is_lost() {
    let mut tier = Tier::timed().await;
    let (here, mut away) = (tier.device().await, tier.device().await);
    tier.disconnect(&away).await;
    let noted = |types| Send { callback: callback(types), ..send_to(to(&here)) };
    let (acked, _) = tier.send(noted(1)).await.expect("accepted");
    let (expires, _) = tier.send(Send { callback: callback(1024), ..send_to(to(&away)) }).await.expect("accepted");
    let later = Send { send_at_ms: Some((START_MS + 5000).cast_signed()), ..send_to(to(&here)) };
    let (schedule, _) = tier.send(later).await.expect("accepted");
    let (broadcast, _) = tier.send(everyone()).await.expect("accepted");
    assert_eq!(deliveries(&tier.during(SECOND).await), [acked]);
    tier.ack(&here, &[], &[broadcast]).await;

    tier.store.set_down(true);
    for request in [
        AppRequest::Send(noted(1)),
        AppRequest::Send(everyone()),
        AppRequest::Receipts(first_page()),
        AppRequest::MessageStatus(crate::harness::by_id(acked)),
        AppRequest::Stop(idl::contract::bus::Stop { names: vec![crate::harness::by_id(acked)], recall: true }),
    ] {
        let failure = tier.app(request.clone()).await.expect_err("the store is away");
        assert_eq!(failure.code, Code::StoreUnavailable, "{request:?}");
        let reply = tier.keyed("k", 1, request).await.expect("answered");
        assert_eq!(reply.status.code, Code::StoreUnavailable.number());
    }
    assert!(tier.try_ack(&here, &[acked], &[]).await.is_err_and(|failure| failure.code.retryable()));
    assert!(tier.try_click(&here, acked).await.is_err_and(|failure| failure.code.retryable()));
    // All jobs come by, and sessions are compared with the store.
    tier.advance(Duration::from_mins(1));
    tier.during(Duration::from_mins(6)).await;
    tier.store.set_down(false);

    let came = tier.during(Duration::from_secs(10)).await;
    let fired: MessageId =
        tier.schedule(schedule).await.expect("it is kept").last_message.expect("it fired").parse().expect("an id");
    assert_eq!(deliveries(&came), [fired]);
    tier.ack(&here, &[acked, fired], &[]).await;
    tier.click(&here, acked).await;
    tier.during(Duration::from_mins(1)).await;
    let mut told = tier.told().await;
    told.sort();
    assert_eq!(told.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [1024]);
    assert_eq!(tier.last_step(expires, &away).await, "dropped: expired");
    assert_eq!(tier.state(broadcast).await.delivered, 1);
    assert_eq!(tier.day().await.messages, 4);
    tier.reconnect(&mut away).await;
    assert!(tier.during(SECOND).await.is_empty(), "all that waited has expired");
}

#[tokio::test(start_paused = true)]
async fn a_tier_that_ends_in_peace_leaves_nothing_to_be_done_again() {
    let mut tier = Tier::timed().await;
    let mut device = tier.device().await;
    let (single, _) = tier.send(Send { callback: callback(1), ..send_to(to(&device)) }).await.expect("accepted");
    let (broadcast, _) = tier.send(everyone()).await.expect("accepted");
    assert_eq!(deliveries(&tier.during(SECOND).await), [single]);
    tier.ack(&device, &[single], &[broadcast]).await;
    tier.click(&device, broadcast).await;
    tier.restart().await;
    let state = tier.state(broadcast).await;
    assert_eq!((state.delivered, state.clicked, tier.day().await.delivered), (1, 1, 2));
    tier.reconnect(&mut device).await;
    let came = tier.during(SECOND * 3).await;
    assert!(deliveries(&came).is_empty() && revocations(&came).is_empty(), "{came:?}");
    assert_eq!(tier.posted().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_large_backlog_of_expiries_does_not_keep_the_tier_from_ending() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    tier.disconnect(&device).await;
    for _ in 0..900 {
        tier.send(Send { callback: callback(1024), ..send_to(to(&device)) }).await.expect("accepted");
    }
    tier.advance(Duration::from_mins(1));
    tier.during(SECOND * 3).await;
    tier.restart().await;
    assert_eq!(tier.told().await.len(), 900);
    assert_eq!(tier.cells(Table::Expiries).await, 0);
}
