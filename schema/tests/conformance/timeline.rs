//! Timelines.

use idl::audience::Audience;
use idl::ids::MessageId;
use idl::message::Message;
use schema::batch::Batch;
use schema::sorted::{StoreError, Table};
use schema::timeline::Timelines;

use crate::world::{START_MS, World, app, message, put};

cases! { $ timeline:
    a_broadcast_is_one_row_with_its_audience,
    broadcasts_come_in_the_order_of_their_ids,
    bounds_hold_the_first_id_and_not_the_last,
    timelines_of_two_apps_do_not_mix,
    a_broadcast_expires,
    a_broadcast_is_found_by_its_id,
    a_removed_broadcast_is_gone_and_removing_it_again_succeeds,
    a_batch_broadcasts_and_removes_in_its_order,
    a_damaged_row_is_named,
}

fn broadcast(id: u128) -> Message {
    Message { audience: Some(Audience::Topic("news".parse().unwrap()).not()), ..message(id) }
}

async fn ids(timelines: &Timelines, from: u128, to: Option<u128>, limit: usize) -> Vec<u128> {
    let found = timelines.since(&app("demo"), MessageId(from), to.map(MessageId), limit).await.unwrap();
    found.iter().map(|message| message.id.0).collect()
}

pub(crate) async fn a_broadcast_is_one_row_with_its_audience(world: World) {
    let timelines = Timelines::new(world.store.clone());
    for _ in 0..2 {
        timelines.append(&broadcast(7)).await.unwrap();
        assert_eq!(world.rows(Table::Timelines).await, 1);
    }
    assert_eq!(timelines.since(&app("demo"), MessageId::MIN, None, 9).await.unwrap(), [broadcast(7)]);
}

pub(crate) async fn broadcasts_come_in_the_order_of_their_ids(world: World) {
    let timelines = Timelines::new(world.store);
    for id in [3, 1, u128::MAX, 256, 255] {
        timelines.append(&broadcast(id)).await.unwrap();
    }
    assert_eq!(ids(&timelines, 0, None, 9).await, [1, 3, 255, 256, u128::MAX]);
    assert_eq!(ids(&timelines, 0, None, 2).await, [1, 3]);
}

pub(crate) async fn bounds_hold_the_first_id_and_not_the_last(world: World) {
    let timelines = Timelines::new(world.store);
    for id in 1..=5 {
        timelines.append(&broadcast(id)).await.unwrap();
    }
    assert_eq!(ids(&timelines, 2, Some(4), 9).await, [2, 3]);
    assert_eq!(ids(&timelines, 4, None, 9).await, [4, 5]);
    assert!(ids(&timelines, 6, None, 9).await.is_empty());
    assert!(ids(&timelines, 3, Some(3), 9).await.is_empty());
}

pub(crate) async fn timelines_of_two_apps_do_not_mix(world: World) {
    let timelines = Timelines::new(world.store);
    timelines.append(&broadcast(1)).await.unwrap();
    timelines.append(&Message { app: app("demo2"), ..broadcast(2) }).await.unwrap();
    assert_eq!(ids(&timelines, 0, None, 9).await, [1]);
}

pub(crate) async fn a_broadcast_expires(world: World) {
    let timelines = Timelines::new(world.store);
    timelines.append(&broadcast(1)).await.unwrap();
    timelines.append(&Message { expires_at_ms: START_MS + 20_000, ..broadcast(2) }).await.unwrap();
    world.clock.set(START_MS + 10_000);
    assert_eq!(ids(&timelines, 0, None, 9).await, [2]);
}

pub(crate) async fn a_broadcast_is_found_by_its_id(world: World) {
    let timelines = Timelines::new(world.store.clone());
    timelines.append(&broadcast(1)).await.unwrap();
    let get = |name: &'static str, id| {
        let timelines = timelines.clone();
        async move { timelines.get(&app(name), MessageId(id)).await.unwrap() }
    };
    assert_eq!(get("demo", 1).await, Some(broadcast(1)));
    assert_eq!(get("demo", 2).await, None);
    assert_eq!(get("demo2", 1).await, None);
    world.clock.set(START_MS + 10_000);
    assert_eq!(get("demo", 1).await, None);
}

pub(crate) async fn a_removed_broadcast_is_gone_and_removing_it_again_succeeds(world: World) {
    let timelines = Timelines::new(world.store.clone());
    for id in 1..=3 {
        timelines.append(&broadcast(id)).await.unwrap();
    }
    for _ in 0..2 {
        let mut batch = Batch::default();
        batch.remove_broadcast(&app("demo"), MessageId(2));
        batch.remove_broadcast(&app("other"), MessageId(1));
        batch.write(world.store.as_ref()).await.unwrap();
        assert_eq!(ids(&timelines, 0, None, 9).await, [1, 3]);
        assert_eq!(timelines.get(&app("demo"), MessageId(2)).await.unwrap(), None);
    }
}

pub(crate) async fn a_batch_broadcasts_and_removes_in_its_order(world: World) {
    let mut batch = Batch::default();
    assert!(batch.is_empty());
    batch.broadcast(&broadcast(1));
    batch.broadcast(&broadcast(2));
    batch.remove_broadcast(&app("demo"), MessageId(1));
    assert!(!batch.is_empty());
    batch.write(world.store.as_ref()).await.unwrap();
    Batch::default().write(world.store.as_ref()).await.unwrap();
    let timelines = Timelines::new(world.store.clone());
    assert_eq!(timelines.since(&app("demo"), MessageId::MIN, None, 9).await.unwrap(), [broadcast(2)]);
}

pub(crate) async fn a_damaged_row_is_named(world: World) {
    let timelines = Timelines::new(world.store.clone());
    timelines.append(&broadcast(1)).await.unwrap();
    let scan = schema::sorted::RowScan { table: Table::Timelines, from: Vec::new(), to: None, rows_max: 1 };
    let row = world.store.scan(scan).await.unwrap().remove(0).row;
    world.write([put(Table::Timelines, &row, b"m", b"\xff")]).await;
    let errors = [
        timelines.since(&app("demo"), MessageId::MIN, None, 9).await.unwrap_err(),
        timelines.get(&app("demo"), MessageId(1)).await.unwrap_err(),
    ];
    for error in errors {
        let StoreError::Corrupt(text) = &error else { panic!("{error:?}") };
        assert!(text.starts_with("table timelines, row "), "{text}");
    }
}
