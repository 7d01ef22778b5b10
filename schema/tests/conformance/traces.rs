//! Traces.

use idl::ids::{FrontId, MessageId, RegId};
use schema::batch::Batch;
use schema::sorted::{RowScan, StoreError, Table};
use schema::traces::{Delivered, DropReason, Dropped, Steps, Traces};

use crate::world::{START_MS, World, put, regid};

cases! { $ traces:
    what_is_not_known_has_no_steps,
    each_step_reads_back_as_it_was_written,
    a_drop_after_a_delivery_does_not_hide_it,
    only_the_first_click_is_one,
    of_two_clicks_at_once_one_is_the_first,
    a_click_is_known_without_the_delivery,
    the_later_of_two_deliveries_goes,
    the_registrations_of_a_message_come_in_pages,
    messages_do_not_mix,
    each_step_expires_when_it_says,
    a_damaged_step_is_named,
}

const ID: MessageId = MessageId(7);
const KEEP_MS: u64 = START_MS + 20_000;

fn delivered(at_ms: u64) -> Delivered {
    Delivered { at_ms, dispatched_at_ms: Some(at_ms - 1), front: Some(FrontId(5)) }
}

fn dropped(reason: DropReason) -> Dropped {
    Dropped { at_ms: START_MS + 3, reason }
}

async fn write(world: &World, fill: impl FnOnce(&mut Batch)) {
    let mut batch = Batch::default();
    fill(&mut batch);
    batch.write(world.store.as_ref()).await.unwrap();
}

async fn steps(world: &World, number: u8) -> Steps {
    Traces::new(world.store.clone()).get(ID, regid(number)).await.unwrap()
}

pub(crate) async fn what_is_not_known_has_no_steps(world: World) {
    assert_eq!(steps(&world, 1).await, Steps::default());
    assert!(Traces::new(world.store).of_message(ID, None, 10).await.unwrap().is_empty());
}

pub(crate) async fn each_step_reads_back_as_it_was_written(world: World) {
    let bare = Delivered { at_ms: START_MS, dispatched_at_ms: None, front: None };
    for (number, delivered) in [(1, delivered(START_MS)), (2, bare)] {
        write(&world, |batch| batch.delivered(ID, regid(number), &delivered, KEEP_MS)).await;
        assert_eq!(steps(&world, number).await, Steps { delivered: Some(delivered), ..Steps::default() });
    }
    for (number, reason) in (10..).zip(DropReason::ALL) {
        write(&world, |batch| batch.dropped(ID, regid(number), dropped(*reason), KEEP_MS)).await;
        assert_eq!(steps(&world, number).await, Steps { dropped: Some(dropped(*reason)), ..Steps::default() });
    }
}

pub(crate) async fn a_drop_after_a_delivery_does_not_hide_it(world: World) {
    let first = delivered(START_MS);
    write(&world, |batch| batch.delivered(ID, regid(1), &first, KEEP_MS)).await;
    write(&world, |batch| batch.dropped(ID, regid(1), dropped(DropReason::Revoked), KEEP_MS)).await;
    let expected = Steps { delivered: Some(first), clicked: None, dropped: Some(dropped(DropReason::Revoked)) };
    assert_eq!(steps(&world, 1).await, expected);
}

pub(crate) async fn only_the_first_click_is_one(world: World) {
    let traces = Traces::new(world.store.clone());
    for (at_ms, first) in [(START_MS + 1, true), (START_MS + 2, false), (START_MS, false)] {
        assert_eq!(traces.clicked(ID, regid(1), at_ms, KEEP_MS).await.unwrap(), first);
        assert_eq!(steps(&world, 1).await.clicked, Some(START_MS + 1));
    }
    assert!(traces.clicked(ID, regid(2), START_MS, KEEP_MS).await.unwrap(), "a click is one registration's");
    assert!(traces.clicked(MessageId(8), regid(1), START_MS, KEEP_MS).await.unwrap(), "and one message's");
}

pub(crate) async fn of_two_clicks_at_once_one_is_the_first(world: World) {
    let clicks: Vec<_> = (0..8)
        .map(|at| {
            let traces = Traces::new(world.store.clone());
            tokio::spawn(async move { traces.clicked(ID, regid(1), START_MS + at, KEEP_MS).await.unwrap() })
        })
        .collect();
    let mut first = 0;
    for click in clicks {
        first += usize::from(click.await.unwrap());
    }
    assert_eq!(first, 1);
}

pub(crate) async fn a_click_is_known_without_the_delivery(world: World) {
    assert!(Traces::new(world.store.clone()).clicked(ID, regid(1), START_MS, KEEP_MS).await.unwrap());
    assert_eq!(steps(&world, 1).await, Steps { clicked: Some(START_MS), ..Steps::default() });
    let late = delivered(START_MS + 9);
    write(&world, |batch| batch.delivered(ID, regid(1), &late, KEEP_MS)).await;
    assert_eq!(steps(&world, 1).await, Steps { delivered: Some(late), clicked: Some(START_MS), dropped: None });
}

pub(crate) async fn the_later_of_two_deliveries_goes(world: World) {
    for at_ms in [START_MS + 5, START_MS + 1] {
        write(&world, |batch| batch.delivered(ID, regid(1), &delivered(at_ms), KEEP_MS)).await;
        assert_eq!(steps(&world, 1).await.delivered, Some(delivered(at_ms)));
    }
}

pub(crate) async fn the_registrations_of_a_message_come_in_pages(world: World) {
    write(&world, |batch| {
        for number in [5, 3, 1, 4, 2] {
            batch.delivered(ID, regid(number), &delivered(START_MS + u64::from(number)), KEEP_MS);
        }
    })
    .await;
    write(&world, |batch| batch.dropped(ID, RegId([255; 24]), dropped(DropReason::Expired), KEEP_MS)).await;
    let traces = Traces::new(world.store);
    let mut seen: Vec<(RegId, Steps)> = Vec::new();
    loop {
        let after = seen.last().map(|(regid, _)| *regid);
        let page = traces.of_message(ID, after, 2).await.unwrap();
        let whole = page.len() < 2;
        seen.extend(page);
        if whole {
            break;
        }
    }
    let of = |number: u8| {
        let delivered = Some(delivered(START_MS + u64::from(number)));
        (regid(number), Steps { delivered, ..Steps::default() })
    };
    let last = (RegId([255; 24]), Steps { dropped: Some(dropped(DropReason::Expired)), ..Steps::default() });
    assert_eq!(seen, [of(1), of(2), of(3), of(4), of(5), last]);
}

pub(crate) async fn messages_do_not_mix(world: World) {
    write(&world, |batch| {
        batch.delivered(ID, regid(1), &delivered(START_MS), KEEP_MS);
        batch.delivered(MessageId(8), regid(2), &delivered(START_MS), KEEP_MS);
    })
    .await;
    let found = Traces::new(world.store).of_message(ID, None, 10).await.unwrap();
    assert_eq!(found.iter().map(|(regid, _)| *regid).collect::<Vec<_>>(), [regid(1)]);
}

pub(crate) async fn each_step_expires_when_it_says(world: World) {
    let traces = Traces::new(world.store.clone());
    write(&world, |batch| {
        batch.delivered(ID, regid(1), &delivered(START_MS), START_MS + 10);
        batch.dropped(ID, regid(1), dropped(DropReason::Stopped), START_MS + 20);
    })
    .await;
    assert!(traces.clicked(ID, regid(1), START_MS, START_MS + 30).await.unwrap());
    for (at_ms, there) in [(9, [true, true, true]), (10, [false, true, true]), (20, [false, false, true])] {
        world.clock.set(START_MS + at_ms);
        let Steps { delivered, clicked, dropped } = steps(&world, 1).await;
        assert_eq!([delivered.is_some(), dropped.is_some(), clicked.is_some()], there);
    }
    world.clock.set(START_MS + 30);
    assert!(traces.of_message(ID, None, 10).await.unwrap().is_empty());
    assert_eq!(world.rows(Table::Traces).await, 0);
}

pub(crate) async fn a_damaged_step_is_named(world: World) {
    let damages: [(&[u8], &[u8]); 6] = [
        (b"d", b""),
        (b"d", b"\x01short"),
        (b"c", b"\x01short"),
        (b"c", b"\x02"),
        (b"x", b"\x01"),
        (b"x", b"\x01\0\0\0\0\0\0\0\0\xff"),
    ];
    for (cell, value) in damages {
        write(&world, |batch| batch.delivered(ID, regid(1), &delivered(START_MS), KEEP_MS)).await;
        let scan = RowScan { table: Table::Traces, from: Vec::new(), to: None, rows_max: 1 };
        let row = world.store.scan(scan).await.unwrap().remove(0).row;
        world.write([put(Table::Traces, &row, cell, value)]).await;
        let traces = Traces::new(world.store.clone());
        let errors = [traces.get(ID, regid(1)).await.unwrap_err(), traces.of_message(ID, None, 10).await.unwrap_err()];
        for error in errors {
            let StoreError::Corrupt(text) = &error else { panic!("{error:?}") };
            assert!(text.starts_with("table traces, row "), "{text}");
        }
        let gone = vec![schema::sorted::Mutation::DeleteRow { table: Table::Traces, row }];
        world.store.write(gone).await.unwrap();
    }
}
