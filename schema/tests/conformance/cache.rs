//! Routes, leases and generations.

use idl::ids::{AccountId, Epoch, FrontId};
use schema::cache::{Claim, Route};
use schema::sorted::StoreError;

use crate::world::{CacheWorld, START_MS};

cases! { $ cache:
    the_newer_epoch_wins_a_route,
    the_same_epoch_claimed_again_wins,
    resources_of_an_account_have_routes_of_their_own,
    a_route_is_released_by_its_epoch_alone,
    a_front_lives_while_its_lease_lasts,
    wiping_forgets_everything_and_begins_a_new_generation,
    a_full_cache_refuses_a_claim_and_keeps_its_routes,
    routes_of_fronts_that_are_gone_make_room,
    leases_are_bounded_and_those_that_ended_make_room,
    one_of_many_concurrent_claims_is_left,
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

pub(crate) async fn a_full_cache_refuses_a_claim_and_keeps_its_routes(world: CacheWorld) {
    let cache = world.cache;
    cache.renew_lease(FrontId(1)).await.unwrap();
    for account in 0..world.limits.routes_max as u128 {
        cache.claim(AccountId(account), "push", route(1, 10)).await.unwrap();
    }
    assert!(matches!(cache.claim(AccountId(99), "push", route(1, 11)).await, Err(StoreError::Unavailable(_))));
    assert_eq!(cache.route(AccountId(0), "push").await.unwrap(), Some(route(1, 10)));
    let again = cache.claim(AccountId(0), "push", route(1, 12)).await.unwrap();
    assert_eq!(again, Claim::Won { previous: Some(route(1, 10)) }, "a route that is held may change hands");
    assert!(cache.release(AccountId(1), "push", Epoch(10)).await.unwrap());
    assert_eq!(cache.claim(AccountId(99), "push", route(1, 11)).await.unwrap(), Claim::Won { previous: None });
}

pub(crate) async fn routes_of_fronts_that_are_gone_make_room(world: CacheWorld) {
    let cache = world.cache;
    cache.renew_lease(FrontId(1)).await.unwrap();
    for account in 0..world.limits.routes_max as u128 {
        cache.claim(AccountId(account), "push", route(account % 2, 10)).await.unwrap();
    }
    assert_eq!(cache.claim(AccountId(99), "push", route(1, 11)).await.unwrap(), Claim::Won { previous: None });
    assert_eq!(cache.route(AccountId(0), "push").await.unwrap(), None, "front 0 has no lease");
    assert_eq!(cache.route(AccountId(1), "push").await.unwrap(), Some(route(1, 10)));
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
