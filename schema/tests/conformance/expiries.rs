//! Deliveries whose expiry somebody wants to know of.

use idl::contract::message::Callback;
use idl::ids::MessageId;
use schema::batch::Batch;
use schema::expiries::{Expiries, Expiry, KEEP_MS};
use schema::sorted::{RowScan, StoreError, Table};

use crate::world::{START_MS, World, app, put, regid};

cases! { $ expiries:
    an_expiry_reads_back_as_it_was_written,
    an_expiry_is_due_from_its_moment_on,
    what_is_due_comes_oldest_first_whatever_bucket_it_is_in,
    what_is_due_comes_again_until_it_is_done,
    each_registration_of_a_message_expires_by_itself,
    the_next_expiry_is_known,
    an_expiry_that_nobody_took_is_forgotten_after_a_week,
    awaiting_twice_awaits_once,
    damage_is_named_with_table_and_row,
}

/// In bucket `message % 16`.
fn expiry(message: u128, in_ms: u64) -> Expiry {
    Expiry {
        message: MessageId(message),
        app: app("demo"),
        regid: regid(1),
        target: "anna".into(),
        expires_at_ms: START_MS + in_ms,
        callback: Callback { url: Some("https://example.com/".into()), param: Some("p".into()), types: 1024 },
        job_key: Some("job".into()),
    }
}

async fn write(world: &World, expiries: &[Expiry]) {
    let mut batch = Batch::default();
    for expiry in expiries {
        batch.await_expiry(expiry);
    }
    batch.write(world.store.as_ref()).await.unwrap();
}

async fn done(world: &World, expiry: &Expiry) {
    let mut batch = Batch::default();
    batch.expiry_done(expiry);
    batch.write(world.store.as_ref()).await.unwrap();
}

async fn due(world: &World, in_ms: u64, limit: usize) -> Vec<u128> {
    let due = Expiries::new(world.store.clone()).due(START_MS + in_ms, limit).await.unwrap();
    due.iter().map(|expiry| expiry.message.0).collect()
}

async fn next(world: &World) -> Option<u64> {
    Expiries::new(world.store.clone()).next_ms().await.unwrap()
}

pub(crate) async fn an_expiry_reads_back_as_it_was_written(world: World) {
    let bare = Expiry {
        callback: Callback { url: None, param: None, types: -1 },
        job_key: None,
        target: String::new(),
        ..expiry(2, 0)
    };
    write(&world, &[expiry(1, 0), bare.clone()]).await;
    assert_eq!(Expiries::new(world.store.clone()).due(START_MS, 9).await.unwrap(), [expiry(1, 0), bare]);
}

pub(crate) async fn an_expiry_is_due_from_its_moment_on(world: World) {
    write(&world, &[expiry(1, 10)]).await;
    assert!(due(&world, 9, 9).await.is_empty());
    assert_eq!(due(&world, 10, 9).await, [1]);
    let at_the_end_of_time = Expiries::new(world.store.clone()).due(u64::MAX, 9).await.unwrap();
    assert_eq!(at_the_end_of_time, [expiry(1, 10)]);
}

pub(crate) async fn what_is_due_comes_oldest_first_whatever_bucket_it_is_in(world: World) {
    let all: Vec<Expiry> = (0..50).map(|number| expiry(1000 - u128::from(number) * 7, number)).collect();
    write(&world, &all).await;
    let expected: Vec<u128> = all.iter().map(|expiry| expiry.message.0).collect();
    assert_eq!(due(&world, 99, 99).await, expected);
    assert_eq!(due(&world, 99, 20).await, expected[..20]);
    assert_eq!(due(&world, 29, 99).await, expected[..30]);
}

pub(crate) async fn what_is_due_comes_again_until_it_is_done(world: World) {
    write(&world, &[expiry(1, 0), expiry(2, 1)]).await;
    assert_eq!(due(&world, 5, 9).await, [1, 2]);
    for _ in 0..2 {
        done(&world, &expiry(1, 0)).await;
        assert_eq!(due(&world, 5, 9).await, [2]);
    }
    done(&world, &expiry(2, 1)).await;
    assert_eq!(world.rows(Table::Expiries).await, 0);
}

pub(crate) async fn each_registration_of_a_message_expires_by_itself(world: World) {
    write(&world, &[expiry(1, 0), Expiry { regid: regid(2), ..expiry(1, 0) }]).await;
    done(&world, &expiry(1, 0)).await;
    let left = Expiries::new(world.store.clone()).due(START_MS, 9).await.unwrap();
    assert_eq!(left.iter().map(|expiry| expiry.regid).collect::<Vec<_>>(), [regid(2)]);
}

pub(crate) async fn the_next_expiry_is_known(world: World) {
    assert_eq!(next(&world).await, None);
    write(&world, &[expiry(1, 30), expiry(2, 20), expiry(17, 25)]).await;
    assert_eq!(next(&world).await, Some(START_MS + 20));
    done(&world, &expiry(2, 20)).await;
    assert_eq!(next(&world).await, Some(START_MS + 25));
    world.clock.set(START_MS + 40);
    assert_eq!(next(&world).await, Some(START_MS + 25), "one that is due already is still to be taken");
}

pub(crate) async fn an_expiry_that_nobody_took_is_forgotten_after_a_week(world: World) {
    write(&world, &[expiry(1, 10), expiry(2, 20)]).await;
    world.clock.set(START_MS + 10 + KEEP_MS - 1);
    assert_eq!(due(&world, 99, 9).await, [1, 2]);
    world.clock.set(START_MS + 10 + KEEP_MS);
    assert_eq!(due(&world, 99, 9).await, [2]);
}

pub(crate) async fn awaiting_twice_awaits_once(world: World) {
    for _ in 0..2 {
        write(&world, &[expiry(1, 10)]).await;
        assert_eq!(world.rows(Table::Expiries).await, 1);
    }
}

pub(crate) async fn damage_is_named_with_table_and_row(world: World) {
    write(&world, &[expiry(1, 10)]).await;
    let scan = RowScan { table: Table::Expiries, from: Vec::new(), to: None, rows_max: 1 };
    let row = world.store.scan(scan).await.unwrap().remove(0).row;
    world.write([put(Table::Expiries, &row, b"m", b"\x01")]).await;
    let expiries = Expiries::new(world.store);
    for error in [expiries.due(START_MS + 10, 9).await.unwrap_err(), expiries.next_ms().await.unwrap_err()] {
        let StoreError::Corrupt(text) = &error else { panic!("{error:?}") };
        assert!(text.starts_with("table expiries, row 01"), "{text}");
    }
}
