//! Accounts, their tokens and registrations.

use idl::ids::AccountId;
use schema::accounts::{AccountInfo, Accounts, TOKEN_TIMES_MAX};
use schema::registrations::Registrations;
use schema::sorted::{StoreError, Table};

use crate::world::{START_MS, World, app, put, regid, registration};

cases! { $ accounts:
    an_account_reads_back_as_it_was_made,
    an_account_that_does_not_exist_has_nothing,
    token_times_are_the_newest_four_newest_first,
    a_token_recorded_twice_counts_once,
    a_token_of_no_account_is_not_recorded,
    registrations_come_in_the_order_of_their_apps,
    damage_is_named_with_table_and_row,
}

const ID: AccountId = AccountId(7);

fn info() -> AccountInfo {
    AccountInfo { device: "digest".into(), model: Some("M1 – ü".into()), platform: None, created_at_ms: START_MS }
}

pub(crate) async fn an_account_reads_back_as_it_was_made(world: World) {
    let accounts = Accounts::new(world.store);
    for _ in 0..2 {
        accounts.create(ID, &info(), START_MS).await.unwrap();
        assert_eq!(accounts.info(ID).await.unwrap(), Some(info()));
        assert_eq!(accounts.token_times(ID).await.unwrap(), [START_MS]);
    }
}

pub(crate) async fn an_account_that_does_not_exist_has_nothing(world: World) {
    let accounts = Accounts::new(world.store);
    accounts.create(AccountId(8), &info(), START_MS).await.unwrap();
    assert_eq!(accounts.info(ID).await.unwrap(), None);
    assert!(accounts.token_times(ID).await.unwrap().is_empty());
    assert!(accounts.registrations(ID).await.unwrap().is_empty());
    assert_eq!(accounts.registration(ID, &app("demo")).await.unwrap(), None);
}

pub(crate) async fn token_times_are_the_newest_four_newest_first(world: World) {
    let accounts = Accounts::new(world.store.clone());
    accounts.create(ID, &info(), 10).await.unwrap();
    for at in [30, 20, 60, 40, 50, 5] {
        assert!(accounts.record_token(ID, at).await.unwrap());
    }
    assert_eq!(accounts.token_times(ID).await.unwrap(), [60, 50, 40, 30]);
    let cells = world.row(Table::Accounts, &ID.to_bytes()).await.len();
    assert_eq!(cells, 1 + TOKEN_TIMES_MAX, "the older ones are gone for good");
}

pub(crate) async fn a_token_recorded_twice_counts_once(world: World) {
    let accounts = Accounts::new(world.store);
    accounts.create(ID, &info(), 10).await.unwrap();
    for _ in 0..6 {
        assert!(accounts.record_token(ID, 20).await.unwrap());
    }
    assert_eq!(accounts.token_times(ID).await.unwrap(), [20, 10]);
}

pub(crate) async fn a_token_of_no_account_is_not_recorded(world: World) {
    let accounts = Accounts::new(world.store);
    assert!(!accounts.record_token(ID, 20).await.unwrap());
    assert!(accounts.token_times(ID).await.unwrap().is_empty());
}

pub(crate) async fn registrations_come_in_the_order_of_their_apps(world: World) {
    let (accounts, registrations) = (Accounts::new(world.store.clone()), Registrations::new(world.store));
    for (number, name) in [(1, "b"), (2, "a"), (3, "a.b")] {
        let new = schema::registrations::Registration { account: ID, app: app(name), ..registration(number) };
        registrations.create(&new).await.unwrap();
    }
    let expected = [(app("a"), regid(2)), (app("a.b"), regid(3)), (app("b"), regid(1))];
    assert_eq!(accounts.registrations(ID).await.unwrap(), expected);
    assert_eq!(accounts.registration(ID, &app("a")).await.unwrap(), Some(regid(2)));
    assert_eq!(accounts.registration(ID, &app("c")).await.unwrap(), None);
}

pub(crate) async fn damage_is_named_with_table_and_row(world: World) {
    world.write([put(Table::Accounts, &ID.to_bytes(), b"i", b"\x01short")]).await;
    let error = Accounts::new(world.store).info(ID).await.unwrap_err();
    let StoreError::Corrupt(text) = &error else { panic!("{error:?}") };
    assert!(text.contains("table accounts, row 00000000000000000000000000000007"), "{text}");
}
