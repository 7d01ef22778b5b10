//! Routes, leases, generations and records.

use idl::ids::{AccountId, Epoch, FrontId};
use schema::cache::{Claim, Forgotten, Known, Route};
use schema::sorted::StoreError;
use tokio::sync::broadcast::error::TryRecvError;

use crate::world::{CacheWorld, START_MS};

cases! { $ cache:
    the_newer_epoch_wins_a_route,
    the_same_epoch_claimed_again_wins,
    resources_of_an_account_have_routes_of_their_own,
    a_route_is_released_by_its_epoch_alone,
    a_front_lives_while_its_lease_lasts,
    wiping_forgets_everything_and_begins_a_new_generation,
    leases_are_bounded_and_those_that_ended_make_room,
    one_of_many_concurrent_claims_is_left,
    an_account_is_connected_by_a_front_that_lives,
    what_is_known_of_a_record_is_what_was_kept_or_nothing,
    what_was_forgotten_is_not_known,
    nothing_is_heard_of_what_this_process_forgot,
}

const A: AccountId = AccountId(1);

fn route(front: u128, epoch: u128) -> Route {
    Route { front: FrontId(front), epoch: Epoch(epoch) }
}

pub(crate) async fn the_newer_epoch_wins_a_route(world: CacheWorld) {
    let cache = world.cache;
    assert_eq!(cache.route(A, "push").await.unwrap(), None);
    assert_eq!(cache.claim(A, "push", route(1, 10)).await.unwrap(), Claim::Won { previous: None });
    assert_eq!(cache.claim(A, "push", route(2, 20)).await.unwrap(), Claim::Won { previous: Some(route(1, 10)) });
    assert_eq!(cache.claim(A, "push", route(1, 15)).await.unwrap(), Claim::Lost { current: route(2, 20) });
    assert_eq!(cache.route(A, "push").await.unwrap(), Some(route(2, 20)));
}

pub(crate) async fn the_same_epoch_claimed_again_wins(world: CacheWorld) {
    let cache = world.cache;
    cache.claim(A, "push", route(1, 10)).await.unwrap();
    assert_eq!(cache.claim(A, "push", route(1, 10)).await.unwrap(), Claim::Won { previous: Some(route(1, 10)) });
    assert_eq!(cache.route(A, "push").await.unwrap(), Some(route(1, 10)));
}

pub(crate) async fn resources_of_an_account_have_routes_of_their_own(world: CacheWorld) {
    let cache = world.cache;
    cache.claim(A, "push", route(1, 10)).await.unwrap();
    assert_eq!(cache.claim(A, "desk", route(2, 5)).await.unwrap(), Claim::Won { previous: None });
    assert_eq!(cache.claim(AccountId(2), "push", route(3, 1)).await.unwrap(), Claim::Won { previous: None });
    assert_eq!(cache.route(A, "push").await.unwrap(), Some(route(1, 10)));
    assert_eq!(cache.route(A, "desk").await.unwrap(), Some(route(2, 5)));
}

pub(crate) async fn a_route_is_released_by_its_epoch_alone(world: CacheWorld) {
    let cache = world.cache;
    cache.claim(A, "push", route(1, 10)).await.unwrap();
    assert!(!cache.release(A, "push", Epoch(9)).await.unwrap());
    assert!(!cache.release(A, "desk", Epoch(10)).await.unwrap());
    assert!(!cache.release(AccountId(2), "push", Epoch(10)).await.unwrap());
    assert_eq!(cache.route(A, "push").await.unwrap(), Some(route(1, 10)));
    assert!(cache.release(A, "push", Epoch(10)).await.unwrap());
    assert_eq!(cache.route(A, "push").await.unwrap(), None);
    assert!(!cache.release(A, "push", Epoch(10)).await.unwrap());
}

pub(crate) async fn a_front_lives_while_its_lease_lasts(world: CacheWorld) {
    let lease_ms = u64::try_from(world.limits.lease.as_millis()).unwrap();
    let front = FrontId(1);
    assert!(!world.cache.front_lives(front).await.unwrap());
    world.cache.renew_lease(front).await.unwrap();
    world.clock.set(START_MS + lease_ms - 1);
    assert!(world.cache.front_lives(front).await.unwrap());
    world.cache.renew_lease(front).await.unwrap();
    world.clock.set(START_MS + lease_ms);
    assert!(world.cache.front_lives(front).await.unwrap());
    world.clock.set(START_MS + 2 * lease_ms);
    assert!(!world.cache.front_lives(front).await.unwrap());
    assert!(!world.cache.front_lives(FrontId(2)).await.unwrap());
}

pub(crate) async fn wiping_forgets_everything_and_begins_a_new_generation(world: CacheWorld) {
    let cache = world.cache;
    let first = cache.generation().await.unwrap();
    cache.claim(A, "push", route(1, 10)).await.unwrap();
    cache.renew_lease(FrontId(1)).await.unwrap();
    assert_eq!(cache.generation().await.unwrap(), first);
    let second = cache.wipe().await.unwrap();
    assert_ne!(second, first);
    assert_eq!(cache.generation().await.unwrap(), second);
    assert_eq!(cache.route(A, "push").await.unwrap(), None);
    assert!(!cache.front_lives(FrontId(1)).await.unwrap());
}

pub(crate) async fn leases_are_bounded_and_those_that_ended_make_room(world: CacheWorld) {
    let cache = world.cache;
    for front in 0..world.limits.fronts_max as u128 {
        cache.renew_lease(FrontId(front)).await.unwrap();
    }
    assert!(matches!(cache.renew_lease(FrontId(99)).await, Err(StoreError::Unavailable(_))));
    cache.renew_lease(FrontId(0)).await.unwrap();
    world.clock.set(START_MS + 60_000);
    cache.renew_lease(FrontId(99)).await.unwrap();
    assert!(cache.front_lives(FrontId(99)).await.unwrap());
}

pub(crate) async fn one_of_many_concurrent_claims_is_left(world: CacheWorld) {
    let claims = (1..=50).map(|epoch| {
        let cache = world.cache.clone();
        tokio::spawn(async move { cache.claim(A, "push", route(epoch, epoch)).await })
    });
    for claim in claims.collect::<Vec<_>>() {
        claim.await.unwrap().unwrap();
    }
    assert_eq!(world.cache.route(A, "push").await.unwrap(), Some(route(50, 50)));
}

pub(crate) async fn an_account_is_connected_by_a_front_that_lives(world: CacheWorld) {
    let cache = world.cache;
    let (living, gone, nobody) = (FrontId(1), 2, AccountId(9));
    cache.renew_lease(living).await.unwrap();
    cache.claim(A, "push", route(gone, 10)).await.unwrap();
    cache.claim(A, "desk", route(1, 11)).await.unwrap();
    cache.claim(AccountId(2), "push", route(gone, 12)).await.unwrap();
    cache.claim(AccountId(3), "push", route(1, 13)).await.unwrap();
    let accounts = [AccountId(3), nobody, A, AccountId(2), A];
    assert_eq!(cache.connected(&accounts).await.unwrap(), [true, false, true, false, true]);
    assert!(cache.connected(&[]).await.unwrap().is_empty());
    cache.release(A, "desk", Epoch(11)).await.unwrap();
    assert_eq!(cache.connected(&[A]).await.unwrap(), [false]);
    world.clock.set(START_MS + u64::try_from(world.limits.lease.as_millis()).unwrap());
    assert_eq!(cache.connected(&[AccountId(3)]).await.unwrap(), [false], "its front is gone");
}

pub(crate) async fn what_is_known_of_a_record_is_what_was_kept_or_nothing(world: CacheWorld) {
    let cache = world.cache;
    let keys: Vec<Vec<u8>> = (0..50_u8).map(|key| vec![key; usize::from(key)]).collect();
    assert_eq!(cache.records(&keys).await.unwrap(), vec![None; 50]);
    let known = |key: &Vec<u8>| if key.len().is_multiple_of(3) { Known::Absent } else { Known::Present(key.repeat(2)) };
    let kept = keys.iter().filter(|key| key.len().is_multiple_of(2)).map(|key| (key.clone(), known(key))).collect();
    cache.keep(kept).await.unwrap();
    for (key, found) in keys.iter().zip(cache.records(&keys).await.unwrap()) {
        assert!(found.is_none() || key.len().is_multiple_of(2) && found == Some(known(key)), "{key:?}: {found:?}");
    }
    cache.keep(Vec::new()).await.unwrap();
    assert_eq!(cache.records(&[]).await.unwrap(), []);
}

pub(crate) async fn what_was_forgotten_is_not_known(world: CacheWorld) {
    let (cache, key) = (world.cache, b"key".to_vec());
    cache.keep(vec![(key.clone(), Known::Present(b"old".to_vec()))]).await.unwrap();
    cache.forget(std::slice::from_ref(&key)).await.unwrap();
    assert_eq!(cache.records(std::slice::from_ref(&key)).await.unwrap(), [None]);
    cache.keep(vec![(key.clone(), Known::Present(b"old".to_vec()))]).await.unwrap();
    assert_eq!(cache.records(&[key]).await.unwrap(), [None], "a slow reader put back what was old");
    cache.forget(&[]).await.unwrap();
}

pub(crate) async fn nothing_is_heard_of_what_this_process_forgot(world: CacheWorld) {
    let mut forgotten = world.cache.forgotten();
    world.cache.forget(&[b"key".to_vec()]).await.unwrap();
    match forgotten.try_recv() {
        // A subscription that has just begun.
        Err(TryRecvError::Empty) | Ok(Forgotten::All) => {}
        other => panic!("{other:?}"),
    }
}
