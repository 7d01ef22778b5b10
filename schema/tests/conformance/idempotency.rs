//! First answers to idempotency keys.

use std::sync::Arc;

use idl::ids::MessageId;
use schema::batch::Batch;
use schema::idempotency::{Claim, Idempotency};
use schema::sorted::{RowScan, StoreError, Table};

use crate::world::{START_MS, World, app, put};

cases! { $ idempotency:
    the_first_claim_is_new_and_the_next_finds_it,
    an_answer_is_found_by_the_next_claim,
    an_empty_answer_is_an_answer,
    one_of_fifty_concurrent_claims_is_new,
    a_key_that_is_given_up_is_new_again,
    a_claim_taken_over_has_another_id_and_no_answer,
    a_claim_expires,
    an_answer_lives_by_its_own_time,
    keys_and_apps_do_not_mix,
    damage_is_named_with_table_and_row,
}

const UNTIL_MS: u64 = START_MS + 1000;
const F: [u8; 32] = [7; 32];

fn store(world: &World) -> Idempotency {
    Idempotency::new(world.store.clone())
}

async fn claim(world: &World, key: &str, id: u128) -> Claim {
    store(world).claim(&app("demo"), key, [u8::try_from(id).unwrap(); 32], MessageId(id), UNTIL_MS).await.unwrap()
}

fn taken(id: u128, answer: Option<&[u8]>) -> Claim {
    let fingerprint = [u8::try_from(id).unwrap(); 32];
    Claim::Taken { fingerprint, id: MessageId(id), answer: answer.map(<[u8]>::to_vec) }
}

async fn answer(world: &World, key: &str, answer: &[u8], until_ms: u64) {
    let mut batch = Batch::default();
    batch.idempotent_answer(&app("demo"), key, F, MessageId(7), answer, until_ms);
    batch.write(world.store.as_ref()).await.unwrap();
}

pub(crate) async fn the_first_claim_is_new_and_the_next_finds_it(world: World) {
    assert_eq!(claim(&world, "k", 1).await, Claim::New);
    assert_eq!(claim(&world, "k", 2).await, taken(1, None));
    assert_eq!(claim(&world, "k", 1).await, taken(1, None), "who claims twice finds its own id");
    assert_eq!(world.rows(Table::Idempotency).await, 1);
}

pub(crate) async fn an_answer_is_found_by_the_next_claim(world: World) {
    assert_eq!(claim(&world, "k", 7).await, Claim::New);
    let long = vec![0xff; 100_000];
    for bytes in [b"\x00\x01answer".as_slice(), &long] {
        answer(&world, "k", bytes, UNTIL_MS).await;
        assert_eq!(claim(&world, "k", 8).await, taken(7, Some(bytes)));
    }
}

pub(crate) async fn an_empty_answer_is_an_answer(world: World) {
    answer(&world, "k", b"", UNTIL_MS).await;
    assert_eq!(claim(&world, "k", 8).await, taken(7, Some(b"")));
}

pub(crate) async fn one_of_fifty_concurrent_claims_is_new(world: World) {
    let world = Arc::new(world);
    let claims: Vec<_> = (1..=50)
        .map(|id| {
            let world = world.clone();
            tokio::spawn(async move { (id, claim(&world, "k", id).await) })
        })
        .collect();
    let (mut new, mut others) = (Vec::new(), Vec::new());
    for one in claims {
        match one.await.unwrap() {
            (id, Claim::New) => new.push(id),
            (_, taken) => others.push(taken),
        }
    }
    let [winner] = new.as_slice() else { panic!("{new:?} are all new") };
    assert_eq!(others, vec![taken(*winner, None); 49]);
}

pub(crate) async fn a_key_that_is_given_up_is_new_again(world: World) {
    assert_eq!(claim(&world, "k", 1).await, Claim::New);
    for _ in 0..2 {
        store(&world).release(&app("demo"), "k").await.unwrap();
    }
    assert_eq!(claim(&world, "k", 2).await, Claim::New);
    assert_eq!(claim(&world, "k", 3).await, taken(2, None));
}

pub(crate) async fn a_claim_taken_over_has_another_id_and_no_answer(world: World) {
    answer(&world, "k", b"answer", UNTIL_MS).await;
    let mut batch = Batch::default();
    batch.reclaim(&app("demo"), "k", [9; 32], MessageId(9), UNTIL_MS);
    batch.write(world.store.as_ref()).await.unwrap();
    assert_eq!(claim(&world, "k", 8).await, taken(9, None));
}

pub(crate) async fn a_claim_expires(world: World) {
    assert_eq!(claim(&world, "k", 1).await, Claim::New);
    world.clock.set(UNTIL_MS - 1);
    assert_eq!(claim(&world, "k", 2).await, taken(1, None));
    world.clock.set(UNTIL_MS);
    let claimed = store(&world).claim(&app("demo"), "k", F, MessageId(2), UNTIL_MS + 1).await.unwrap();
    assert_eq!(claimed, Claim::New);
}

pub(crate) async fn an_answer_lives_by_its_own_time(world: World) {
    assert_eq!(claim(&world, "k", 7).await, Claim::New);
    answer(&world, "k", b"answer", UNTIL_MS + 10).await;
    world.clock.set(UNTIL_MS + 9);
    assert_eq!(claim(&world, "k", 8).await, taken(7, Some(b"answer")));
}

pub(crate) async fn keys_and_apps_do_not_mix(world: World) {
    assert_eq!(claim(&world, "k", 1).await, Claim::New);
    assert_eq!(claim(&world, "k2", 2).await, Claim::New);
    assert_eq!(claim(&world, "", 3).await, Claim::New);
    let other = store(&world).claim(&app("demo2"), "k", F, MessageId(7), UNTIL_MS).await.unwrap();
    assert_eq!(other, Claim::New);
    store(&world).release(&app("demo2"), "k").await.unwrap();
    assert_eq!(claim(&world, "k", 9).await, taken(1, None));
}

pub(crate) async fn damage_is_named_with_table_and_row(world: World) {
    assert_eq!(claim(&world, "k", 1).await, Claim::New);
    let scan = RowScan { table: Table::Idempotency, from: Vec::new(), to: None, rows_max: 1 };
    let row = world.store.scan(scan).await.unwrap().remove(0).row;
    world.write([put(Table::Idempotency, &row, b"m", b"\x01short")]).await;
    let error = store(&world).claim(&app("demo"), "k", F, MessageId(7), UNTIL_MS).await.unwrap_err();
    let StoreError::Corrupt(text) = &error else { panic!("{error:?}") };
    assert!(text.starts_with("table idempotency, row "), "{text}");
}
