//! Applications and revocations. Segments, templates and schedules are in the files beside this one.

use idl::ids::AccountId;
use schema::catalog::App;
use schema::sorted::StoreError;

use crate::world::{CatalogWorld, START_MS, app};

cases! { $ catalog:
    an_application_reads_back_as_it_was_made,
    an_application_that_exists_stays_as_it_is,
    an_application_is_found_by_its_secret,
    a_secret_that_another_application_has_is_refused,
    applications_come_in_the_order_of_their_ids,
    a_new_secret_ends_the_old_one,
    limits_are_set_and_lifted,
    a_new_webhook_secret_takes_the_place_of_the_old_one,
    an_application_that_is_not_there_gets_nothing_set,
    a_revocation_never_moves_backwards,
    revocations_are_listed_from_a_moment_on,
    changes_made_at_once_are_all_there,
    debug_output_holds_no_secret,
}

pub(crate) fn an_app(name: &str, secret: u8) -> App {
    App {
        app: app(name),
        package: format!("com.example.package.{name}"),
        app_key: "app-key-in-the-app".into(),
        secret_sha256: [secret; 32],
        agreement_secret: [101; 32],
        broadcast_key: [102; 32],
        signing_seed: [103; 32],
        webhook_secret: [104; 32],
        sends_per_second_max: u32::MAX,
        sends_per_day_max: 5_000_000_000,
        created_at_ms: START_MS,
    }
}

pub(crate) async fn an_application_reads_back_as_it_was_made(world: CatalogWorld) {
    assert!(world.catalog.create_app(an_app("a", 1)).await.unwrap());
    assert_eq!(world.catalog.app(&app("a")).await.unwrap(), Some(an_app("a", 1)));
    assert_eq!(world.catalog.app(&app("b")).await.unwrap(), None);
}

pub(crate) async fn an_application_that_exists_stays_as_it_is(world: CatalogWorld) {
    assert!(world.catalog.create_app(an_app("a", 1)).await.unwrap());
    assert!(!world.catalog.create_app(an_app("a", 2)).await.unwrap());
    assert_eq!(world.catalog.app(&app("a")).await.unwrap(), Some(an_app("a", 1)));
}

pub(crate) async fn an_application_is_found_by_its_secret(world: CatalogWorld) {
    world.catalog.create_app(an_app("a", 1)).await.unwrap();
    world.catalog.create_app(an_app("b", 2)).await.unwrap();
    assert_eq!(world.catalog.app_by_secret(&[2; 32]).await.unwrap(), Some(an_app("b", 2)));
    assert_eq!(world.catalog.app_by_secret(&[3; 32]).await.unwrap(), None);
}

pub(crate) async fn a_secret_that_another_application_has_is_refused(world: CatalogWorld) {
    world.catalog.create_app(an_app("a", 1)).await.unwrap();
    assert!(matches!(world.catalog.create_app(an_app("b", 1)).await, Err(StoreError::Unavailable(_))));
    assert_eq!(world.catalog.app(&app("b")).await.unwrap(), None);
}

pub(crate) async fn applications_come_in_the_order_of_their_ids(world: CatalogWorld) {
    for (secret, name) in (1..).zip(["b", "a", "c"]) {
        world.catalog.create_app(an_app(name, secret)).await.unwrap();
    }
    let ids: Vec<_> = world.catalog.apps().await.unwrap().into_iter().map(|found| found.app).collect();
    assert_eq!(ids, ["a", "b", "c"].map(app));
}

pub(crate) async fn a_new_secret_ends_the_old_one(world: CatalogWorld) {
    world.catalog.create_app(an_app("a", 1)).await.unwrap();
    assert!(world.catalog.set_secret(&app("a"), [2; 32]).await.unwrap());
    assert_eq!(world.catalog.app_by_secret(&[1; 32]).await.unwrap(), None);
    assert_eq!(world.catalog.app_by_secret(&[2; 32]).await.unwrap(), Some(an_app("a", 2)));
    assert!(!world.catalog.set_secret(&app("b"), [3; 32]).await.unwrap());
}

pub(crate) async fn limits_are_set_and_lifted(world: CatalogWorld) {
    world.catalog.create_app(an_app("a", 1)).await.unwrap();
    world.catalog.create_app(an_app("b", 2)).await.unwrap();
    // To set what is set is a success too.
    for (per_second, per_day) in [(10, 1_000_000), (10, 1_000_000), (0, 0), (u32::MAX, i64::MAX.unsigned_abs())] {
        assert!(world.catalog.set_app_limits(&app("a"), per_second, per_day).await.unwrap());
        let expected = App { sends_per_second_max: per_second, sends_per_day_max: per_day, ..an_app("a", 1) };
        assert_eq!(world.catalog.app(&app("a")).await.unwrap().as_ref(), Some(&expected));
        assert_eq!(world.catalog.app_by_secret(&[1; 32]).await.unwrap().as_ref(), Some(&expected));
        assert_eq!(world.catalog.apps().await.unwrap(), [expected, an_app("b", 2)]);
    }
    assert!(world.catalog.set_app_limits(&app("a"), 1, u64::MAX).await.unwrap());
    let stored = world.catalog.app(&app("a")).await.unwrap().unwrap();
    assert_eq!(stored.sends_per_day_max, i64::MAX.unsigned_abs());
}

pub(crate) async fn a_new_webhook_secret_takes_the_place_of_the_old_one(world: CatalogWorld) {
    world.catalog.create_app(an_app("a", 1)).await.unwrap();
    world.catalog.create_app(an_app("b", 2)).await.unwrap();
    // Two applications may have the same one: it names nobody.
    for secret in [[7; 32], [7; 32], [8; 32], [104; 32]] {
        assert!(world.catalog.set_webhook_secret(&app("a"), secret).await.unwrap());
        let expected = App { webhook_secret: secret, ..an_app("a", 1) };
        assert_eq!(world.catalog.apps().await.unwrap(), [expected, an_app("b", 2)]);
    }
}

pub(crate) async fn an_application_that_is_not_there_gets_nothing_set(world: CatalogWorld) {
    world.catalog.create_app(an_app("a", 1)).await.unwrap();
    assert!(!world.catalog.set_app_limits(&app("b"), 1, 1).await.unwrap());
    assert!(!world.catalog.set_webhook_secret(&app("b"), [7; 32]).await.unwrap());
    assert_eq!(world.catalog.apps().await.unwrap(), [an_app("a", 1)]);
}

pub(crate) async fn a_revocation_never_moves_backwards(world: CatalogWorld) {
    for (at, expected) in [(10, 10), (30, 30), (20, 30), (30, 30)] {
        world.catalog.revoke_tokens(AccountId(1), at).await.unwrap();
        assert_eq!(world.catalog.revocations(0).await.unwrap(), [(AccountId(1), expected)]);
    }
}

pub(crate) async fn revocations_are_listed_from_a_moment_on(world: CatalogWorld) {
    for (account, at) in [(1, 30), (2, 10), (u128::MAX, 20)] {
        world.catalog.revoke_tokens(AccountId(account), at).await.unwrap();
    }
    let all = [(AccountId(2), 10), (AccountId(u128::MAX), 20), (AccountId(1), 30)];
    assert_eq!(world.catalog.revocations(0).await.unwrap(), all);
    assert_eq!(world.catalog.revocations(20).await.unwrap(), all[1..]);
    assert!(world.catalog.revocations(31).await.unwrap().is_empty());
}

pub(crate) async fn changes_made_at_once_are_all_there(world: CatalogWorld) {
    let changes = (1..=20).map(|account| {
        let catalog = world.catalog.clone();
        tokio::spawn(async move { catalog.revoke_tokens(AccountId(account), START_MS).await })
    });
    for change in changes.collect::<Vec<_>>() {
        change.await.unwrap().unwrap();
    }
    assert_eq!(world.catalog.revocations(0).await.unwrap().len(), 20);
}

pub(crate) async fn debug_output_holds_no_secret(world: CatalogWorld) {
    world.catalog.create_app(an_app("a", 99)).await.unwrap();
    let text = format!("{:?}", world.catalog.app(&app("a")).await.unwrap());
    for secret in ["99", "101", "102", "103", "104", "app-key"] {
        assert!(!text.contains(secret), "{text}");
    }
}
