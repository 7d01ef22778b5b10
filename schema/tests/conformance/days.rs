//! Counters by day.

use schema::batch::Batch;
use schema::days::{DayCounts, Days};
use schema::sorted::{RowScan, StoreError, Table};

use crate::world::{START_MS, World, app, put};

cases! { $ days:
    counts_read_back_as_they_were_written,
    lives_add_up_and_each_replaces_its_own,
    days_come_in_order_within_their_bounds,
    a_day_without_counts_is_left_out,
    apps_do_not_mix,
    counts_are_kept_until_their_time,
    damage_is_named_with_table_and_row,
}

const fn ymd(year: u32, month: u32, day: u32) -> u32 {
    year * 10_000 + month * 100 + day
}

/// The last day of a year.
const EVE: u32 = ymd(2026, 12, 31);

fn counts(one: u64) -> DayCounts {
    DayCounts {
        alias_recipients: one,
        user_account_recipients: 2 * one,
        regid_recipients: 3 * one,
        broadcast_recipients: 4 * one,
        delivered: 5 * one,
        clicked: 6 * one,
        messages: 7 * one,
    }
}

async fn write(world: &World, name: &str, day: u32, life: u128, counts: DayCounts) {
    let mut batch = Batch::default();
    batch.day(&app(name), day, life, &counts, START_MS + 1000);
    batch.write(world.store.as_ref()).await.unwrap();
}

async fn read(world: &World, first: u32, last: u32) -> Vec<(u32, DayCounts)> {
    Days::new(world.store.clone()).read(&app("demo"), first, last).await.unwrap()
}

pub(crate) async fn counts_read_back_as_they_were_written(world: World) {
    for _ in 0..2 {
        write(&world, "demo", EVE, 1, counts(1_000_000_007)).await;
        assert_eq!(read(&world, EVE, EVE).await, [(EVE, counts(1_000_000_007))]);
    }
}

pub(crate) async fn lives_add_up_and_each_replaces_its_own(world: World) {
    for (life, one) in [(1, 10), (u128::MAX, 100), (1, 30), (2, 1000)] {
        write(&world, "demo", EVE, life, counts(one)).await;
    }
    assert_eq!(read(&world, EVE, EVE).await, [(EVE, counts(30) + counts(100) + counts(1000))]);
    assert_eq!(counts(30) + counts(100) + counts(1000), counts(1130));
    assert_eq!(world.rows(Table::Days).await, 1);
}

pub(crate) async fn days_come_in_order_within_their_bounds(world: World) {
    for day in [ymd(2027, 1, 1), ymd(2026, 12, 30), EVE, ymd(2027, 1, 2)] {
        write(&world, "demo", day, 1, counts(u64::from(day))).await;
    }
    let days = |found: Vec<(u32, DayCounts)>| found.into_iter().map(|(day, _)| day).collect::<Vec<_>>();
    assert_eq!(days(read(&world, 0, u32::MAX).await), [ymd(2026, 12, 30), EVE, ymd(2027, 1, 1), ymd(2027, 1, 2)]);
    assert_eq!(days(read(&world, EVE, ymd(2027, 1, 1)).await), [EVE, ymd(2027, 1, 1)]);
    assert!(read(&world, ymd(2027, 1, 1), EVE).await.is_empty());
}

pub(crate) async fn a_day_without_counts_is_left_out(world: World) {
    write(&world, "demo", ymd(2026, 12, 29), 1, counts(1)).await;
    write(&world, "demo", EVE, 1, counts(2)).await;
    let expected = [(ymd(2026, 12, 29), counts(1)), (EVE, counts(2))];
    assert_eq!(read(&world, ymd(2026, 12, 1), EVE).await, expected);
}

pub(crate) async fn apps_do_not_mix(world: World) {
    write(&world, "demo", EVE, 1, counts(1)).await;
    write(&world, "demo2", EVE, 1, counts(2)).await;
    assert_eq!(read(&world, 0, u32::MAX).await, [(EVE, counts(1))]);
}

pub(crate) async fn counts_are_kept_until_their_time(world: World) {
    write(&world, "demo", EVE, 1, counts(1)).await;
    world.clock.set(START_MS + 999);
    assert_eq!(read(&world, 0, u32::MAX).await.len(), 1);
    world.clock.set(START_MS + 1000);
    assert!(read(&world, 0, u32::MAX).await.is_empty());
}

pub(crate) async fn damage_is_named_with_table_and_row(world: World) {
    write(&world, "demo", EVE, 1, counts(1)).await;
    let scan = RowScan { table: Table::Days, from: Vec::new(), to: None, rows_max: 1 };
    let row = world.store.scan(scan).await.unwrap().remove(0).row;
    world.write([put(Table::Days, &row, &[1; 16], b"\x01short")]).await;
    let error = Days::new(world.store).read(&app("demo"), 0, u32::MAX).await.unwrap_err();
    let StoreError::Corrupt(text) = &error else { panic!("{error:?}") };
    assert!(text.starts_with("table days, row "), "{text}");
}
