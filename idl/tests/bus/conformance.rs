//! What every bus does.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use campanile_idl::bus::{Call, FrontEvent, Lane, Reply, Request};
use campanile_idl::contract::bus as wire;
use campanile_idl::error::{Code, Failure};
use campanile_idl::ids::{FrontId, Shard};
use tokio::time::Instant;

use crate::harness::{self, FRONT, LONG, ROOMY, Room, World, call, seen, serve, serve_all, wait_for};

macro_rules! on_each {
    ($($case:ident($room:expr);)*) => {
        mod in_process {
            $(#[tokio::test]
            async fn $case() {
                super::$case(crate::harness::in_process($room).await.expect("it is always there")).await;
            })*
        }

        mod redis {
            $(#[tokio::test]
            async fn $case() {
                if let Some(world) = crate::harness::on_redis($room).await {
                    super::$case(world).await;
                }
            })*
        }
    };
}

on_each! {
    a_request_is_answered_and_later_requests_of_its_lane_get_greater_ids(crate::harness::ROOMY);
    a_failure_passes_through(crate::harness::ROOMY);
    a_request_that_nobody_answers_times_out_as_may_have_happened(crate::harness::ROOMY);
    a_full_lane_sheds_and_the_others_go_on(crate::conformance::NARROW);
    a_middle_that_is_behind_takes_the_high_lane_first_and_the_low_one_too(crate::harness::ROOMY);
    a_batch_reaches_its_front_and_is_answered(crate::harness::ROOMY);
    a_front_that_is_gone_or_never_was_fails_at_once(crate::harness::ROOMY);
    an_event_reaches_each_front_once(crate::harness::ROOMY);
    a_full_queue_of_events_holds_up_no_batches_and_fails_the_publisher(crate::conformance::NARROW);
    a_full_queue_of_events_takes_more_once_there_is_place(crate::conformance::NARROW);
    a_middle_that_is_alone_has_nobody_to_ask(crate::harness::ROOMY);
}

pub(crate) const NARROW: Room = Room { lane: 2, ..ROOMY_BUT_FRONT };
const ROOMY_BUT_FRONT: Room = Room { front: 2, ..ROOMY };

fn event(number: u8) -> FrontEvent {
    FrontEvent::CancelBroadcast(wire::CancelBroadcast { id: vec![number; 16], app: "com.example.demo".to_owned() })
}

fn batch() -> wire::FrontBatch {
    wire::FrontBatch { items: vec![], count: None }
}

fn later() -> Instant {
    Instant::now() + LONG
}

async fn a_request_is_answered_and_later_requests_of_its_lane_get_greater_ids(world: World) {
    let (_serving, log) = serve_all(world.middle);
    for round in 0..20 {
        for shard in [0, 1, 63, 64, u16::MAX] {
            let lane = Lane::ALL[usize::from(round % 3_u8)];
            assert_eq!(world.producer.request(call(lane, shard, LONG)).await, Ok(Reply::Done));
        }
    }
    let log = seen(&log);
    assert_eq!(log.iter().map(|seen| seen.id).collect::<BTreeSet<_>>().len(), 100);
    for (partition, lane) in [0, 1, 63].into_iter().flat_map(|partition| Lane::ALL.map(|lane| (partition, lane))) {
        let ids = log.iter().filter(|seen| seen.partition == Some(partition) && seen.lane == lane).map(|seen| seen.id);
        assert!(ids.is_sorted(), "one after another in the {} lane of partition {partition}", lane.name());
    }
    let expected =
        |seen: &&harness::Seen| seen.request == Request::RevokeTokens(wire::RevokeTokens { account: "64".into() });
    assert_eq!(log.iter().filter(expected).count(), 20, "each came as it was sent");
}

async fn a_failure_passes_through(world: World) {
    let failure = Failure::new(Code::TooManyTargets, "1001 targets; at most 1000 were expected");
    let answer = failure.clone();
    let (_serving, _) = serve(world.middle, move |_| Some(Err(answer.clone())));
    assert_eq!(world.producer.request(call(Lane::High, 5, LONG)).await, Err(failure));
}

async fn a_request_that_nobody_answers_times_out_as_may_have_happened(world: World) {
    let patience = Duration::from_millis(300);
    let begun = Instant::now();
    let failure = world.producer.request(call(Lane::High, 1, patience)).await.expect_err("nobody answers");
    assert_eq!(failure.code, Code::TimedOut);
    assert!(begun.elapsed() >= patience);
}

async fn a_full_lane_sheds_and_the_others_go_on(mut world: World) {
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let producer = Arc::clone(&world.producer);
        waiting.push(tokio::spawn(async move { producer.request(call(Lane::Low, 0, LONG)).await }));
    }
    // Each lane of a partition, or of a middle, has place for two.
    let give_up_at = later();
    loop {
        let answered = world.producer.request(call(Lane::Low, 0, Duration::from_millis(50))).await;
        match answered.expect_err("nobody answers").code {
            Code::Busy => break,
            _ => assert!(Instant::now() < give_up_at, "the lane never fills"),
        }
    }
    let producer = Arc::clone(&world.producer);
    let high = tokio::spawn(async move { producer.request(call(Lane::High, 0, LONG)).await });
    let first = loop {
        let incoming = world.middle.next().await.expect("a request");
        if incoming.lane == Lane::High {
            break incoming;
        }
        incoming.answer.send(Ok(Reply::Done));
    };
    first.answer.send(Ok(Reply::Done));
    assert_eq!(high.await.expect("runs"), Ok(Reply::Done));
    let (_serving, _) = serve_all(world.middle);
    for waiting in waiting {
        let _ = waiting.await.expect("runs");
    }
    let give_up_at = later();
    while world.producer.request(call(Lane::Low, 0, LONG)).await != Ok(Reply::Done) {
        assert!(Instant::now() < give_up_at, "the lane never empties");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn a_middle_that_is_behind_takes_the_high_lane_first_and_the_low_one_too(mut world: World) {
    const EACH: usize = 42;
    let mut waiting = Vec::new();
    for lane in [Lane::Low, Lane::Normal, Lane::High] {
        for shard in 0..EACH {
            let producer = Arc::clone(&world.producer);
            let shard = u16::try_from(shard).expect("small");
            waiting.push(tokio::spawn(async move { producer.request(call(lane, shard, LONG)).await }));
        }
    }
    wait_for("all requests are here", || world.middle.waiting() == 3 * EACH).await;
    let mut order = Vec::new();
    for _ in 0..3 * EACH {
        let incoming = world.middle.next().await.expect("a request");
        order.push(incoming.lane);
        incoming.answer.send(Ok(Reply::Done));
    }
    let in_first = |lane| order[..EACH].iter().filter(|each| **each == lane).count();
    assert!(in_first(Lane::High) >= EACH * 16 / 21 - 1, "high is not delayed: {}", in_first(Lane::High));
    assert!(in_first(Lane::Low) >= 1 && in_first(Lane::Normal) >= 1, "the others do not starve");
    for waiting in waiting {
        assert_eq!(waiting.await.expect("runs"), Ok(Reply::Done));
    }
}

async fn a_batch_reaches_its_front_and_is_answered(world: World) {
    let mut front = world.front;
    let delivering = tokio::spawn({
        let bus = Arc::clone(&world.at_middle);
        async move { bus.deliver(FRONT, batch(), later()).await }
    });
    let incoming = front.batches.recv().await.expect("a batch");
    assert_eq!(incoming.batch, batch());
    let reply = wire::FrontBatchReply { gone: Some(vec![1, 2]), online: Some(7) };
    incoming.answer.send(Ok(reply.clone()));
    assert_eq!(delivering.await.expect("runs"), Ok(reply));
}

async fn a_front_that_is_gone_or_never_was_fails_at_once(world: World) {
    let begun = Instant::now();
    let unknown = world.at_middle.deliver(FrontId(1), batch(), later()).await.expect_err("it never was");
    assert_eq!(unknown.code, Code::System);
    drop(world.front);
    let gone = world.at_middle.deliver(FRONT, batch(), later()).await.expect_err("it is gone");
    assert_eq!(gone.code, Code::System);
    assert!(begun.elapsed() < LONG / 2);
}

async fn an_event_reaches_each_front_once(world: World) {
    let mut front = world.front;
    for number in 1..=10 {
        world.at_middle.publish(event(number), later()).await.expect("the front has place");
        assert_eq!(front.events.recv().await, Some(event(number)));
    }
    assert!(front.events.try_recv().is_err(), "nothing came twice");
}

async fn a_full_queue_of_events_holds_up_no_batches_and_fails_the_publisher(world: World) {
    let mut front = world.front;
    world.at_middle.publish(event(1), later()).await.expect("there is place");
    world.at_middle.publish(event(2), later()).await.expect("there is place");
    let soon = Instant::now() + Duration::from_millis(300);
    let failure = world.at_middle.publish(event(3), soon).await.expect_err("there is no place");
    assert!(failure.code.retryable());
    let delivering = tokio::spawn({
        let bus = Arc::clone(&world.at_middle);
        async move { bus.deliver(FRONT, batch(), later()).await }
    });
    let reply = wire::FrontBatchReply { gone: None, online: None };
    front.batches.recv().await.expect("a batch").answer.send(Ok(reply.clone()));
    assert_eq!(delivering.await.expect("runs"), Ok(reply));
    assert_eq!(front.events.recv().await, Some(event(1)));
    assert_eq!(front.events.recv().await, Some(event(2)));
}

async fn a_full_queue_of_events_takes_more_once_there_is_place(world: World) {
    let mut front = world.front;
    let publishing = tokio::spawn({
        let bus = Arc::clone(&world.at_middle);
        async move {
            for number in 1..=5 {
                bus.publish(event(number), later()).await.expect("place comes");
            }
        }
    });
    for number in 1..=5 {
        assert_eq!(front.events.recv().await, Some(event(number)));
    }
    publishing.await.expect("all were taken");
}

async fn a_middle_that_is_alone_has_nobody_to_ask(world: World) {
    let answers = world.at_middle.ask_others(Request::JudgeSoon(wire::JudgeSoon::default()), later()).await;
    assert_eq!(answers, []);
    let (_serving, _) = serve_all(world.middle);
    let high = Call::high(Shard(3), LONG, Request::ListApps(wire::ListApps {}));
    wait_for("the bus is well", || world.producer.trouble().is_none()).await;
    assert_eq!(world.producer.request(high).await, Ok(Reply::Done));
}
