//! Targets that turned out to be invalid.

use idl::ids::AppId;
use schema::batch::Batch;
use schema::feedback::{Feedback, InvalidKind};
use schema::sorted::{RowScan, StoreError, Table};

use crate::world::{START_MS, World, app, put};

cases! { $ feedback:
    a_target_that_was_taken_is_gone,
    targets_come_in_pages,
    a_target_that_is_named_again_is_there_once,
    apps_and_kinds_do_not_mix,
    any_text_can_be_a_target,
    a_target_that_nobody_took_expires,
    damage_is_named_and_nothing_is_taken,
}

const KEEP_UNTIL_MS: u64 = START_MS + 1000;

async fn invalid(world: &World, app: &AppId, kind: InvalidKind, targets: &[&str]) {
    let mut batch = Batch::default();
    for target in targets {
        batch.invalid(app, kind, target, KEEP_UNTIL_MS);
    }
    batch.write(world.store.as_ref()).await.unwrap();
}

async fn take(world: &World, app: &AppId, kind: InvalidKind, limit: usize) -> Vec<String> {
    Feedback::new(world.store.clone()).take(app, kind, limit).await.unwrap()
}

pub(crate) async fn a_target_that_was_taken_is_gone(world: World) {
    invalid(&world, &app("demo"), InvalidKind::Alias, &["anna", "bert"]).await;
    assert_eq!(take(&world, &app("demo"), InvalidKind::Alias, 9).await, ["anna", "bert"]);
    assert_eq!(world.rows(Table::Feedback).await, 0);
    assert!(take(&world, &app("demo"), InvalidKind::Alias, 9).await.is_empty());
    invalid(&world, &app("demo"), InvalidKind::Alias, &["anna"]).await;
    assert_eq!(take(&world, &app("demo"), InvalidKind::Alias, 9).await, ["anna"], "it was invalid again");
}

pub(crate) async fn targets_come_in_pages(world: World) {
    invalid(&world, &app("demo"), InvalidKind::RegId, &["e", "a", "d", "b", "c"]).await;
    assert_eq!(take(&world, &app("demo"), InvalidKind::RegId, 2).await, ["a", "b"]);
    assert_eq!(take(&world, &app("demo"), InvalidKind::RegId, 2).await, ["c", "d"]);
    assert_eq!(take(&world, &app("demo"), InvalidKind::RegId, 2).await, ["e"]);
}

pub(crate) async fn a_target_that_is_named_again_is_there_once(world: World) {
    for _ in 0..3 {
        invalid(&world, &app("demo"), InvalidKind::Alias, &["anna"]).await;
    }
    assert_eq!(take(&world, &app("demo"), InvalidKind::Alias, 9).await, ["anna"]);
}

pub(crate) async fn apps_and_kinds_do_not_mix(world: World) {
    invalid(&world, &app("demo"), InvalidKind::Alias, &["anna"]).await;
    invalid(&world, &app("demo"), InvalidKind::RegId, &["bert"]).await;
    invalid(&world, &app("demo2"), InvalidKind::Alias, &["carla"]).await;
    assert_eq!(take(&world, &app("demo"), InvalidKind::Alias, 9).await, ["anna"]);
    assert_eq!(take(&world, &app("demo2"), InvalidKind::Alias, 9).await, ["carla"]);
    assert_eq!(take(&world, &app("demo"), InvalidKind::RegId, 9).await, ["bert"]);
}

pub(crate) async fn any_text_can_be_a_target(world: World) {
    let targets = ["", "\0", "\0\u{1}", "a\0", "ü,–", "🎈"];
    invalid(&world, &app("demo"), InvalidKind::Alias, &targets).await;
    assert_eq!(take(&world, &app("demo"), InvalidKind::Alias, 9).await, targets);
}

pub(crate) async fn a_target_that_nobody_took_expires(world: World) {
    invalid(&world, &app("demo"), InvalidKind::Alias, &["anna"]).await;
    world.clock.set(KEEP_UNTIL_MS);
    assert!(take(&world, &app("demo"), InvalidKind::Alias, 9).await.is_empty());
}

pub(crate) async fn damage_is_named_and_nothing_is_taken(world: World) {
    invalid(&world, &app("demo"), InvalidKind::Alias, &["anna", "bert"]).await;
    let scan = RowScan { table: Table::Feedback, from: Vec::new(), to: None, rows_max: 1 };
    let mut row = world.store.scan(scan).await.unwrap().remove(0).row;
    row.push(b'x');
    world.write([put(Table::Feedback, &row, b"m", b"")]).await;
    let error = Feedback::new(world.store.clone()).take(&app("demo"), InvalidKind::Alias, 9).await.unwrap_err();
    let StoreError::Corrupt(text) = &error else { panic!("{error:?}") };
    assert!(text.starts_with("table feedback, row "), "{text}");
    assert_eq!(world.rows(Table::Feedback).await, 3);
}
