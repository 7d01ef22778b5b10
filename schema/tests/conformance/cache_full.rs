//! A cache that is bounded by a count of routes.

use idl::ids::{AccountId, Epoch, FrontId};
use schema::cache::{Claim, Route};
use schema::sorted::StoreError;

use crate::world::CacheWorld;

cases! { $ cache_full:
    a_full_cache_refuses_a_claim_and_keeps_its_routes,
    routes_of_fronts_that_are_gone_make_room,
}

fn route(front: u128, epoch: u128) -> Route {
    Route { front: FrontId(front), epoch: Epoch(epoch) }
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
