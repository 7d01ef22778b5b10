//! Receipts: their log, and what waits to be posted.

use idl::ids::MessageId;
use schema::batch::Batch;
use schema::receipts::{Receipt, Receipts, UrlKey};
use schema::sorted::{StoreError, Table};

use crate::world::{START_MS, World, app, put, regid};

cases! { $ receipts:
    a_receipt_reads_back_as_it_was_written,
    a_receipt_without_anything_reads_back,
    receipts_come_in_the_order_of_their_ids_whatever_bucket_they_are_in,
    bounds_hold_neither_id,
    pages_of_any_size_pass_over_nothing,
    receipts_of_two_apps_do_not_mix,
    a_receipt_is_kept_until_its_time_and_waits_until_its_own,
    a_receipt_without_a_url_waits_nowhere,
    what_waits_comes_oldest_first_for_its_url_alone,
    what_was_posted_waits_no_longer_and_stays_in_the_log,
    every_url_is_listed_once_in_pages,
    a_url_is_listed_longer_than_anything_waits_for_it,
    a_later_receipt_keeps_its_url_listed,
    writing_a_receipt_twice_changes_nothing,
    damage_is_named_with_table_and_row,
}

const URL: &str = "https://example.com/receipts?of=demo";
const DAY_MS: u64 = 24 * 3600 * 1000;

fn receipt(id: u128) -> Receipt {
    Receipt {
        id: MessageId(id),
        app: app("demo"),
        message: MessageId(1 << 80),
        kind: 16,
        target: "anna – ü".into(),
        regid: Some(regid(7)),
        at_ms: START_MS,
        url: Some(URL.into()),
        param: Some("what was given".into()),
        job_key: Some("job".into()),
        error_code: Some(-3),
    }
}

fn bare(id: u128) -> Receipt {
    Receipt {
        regid: None,
        url: None,
        param: None,
        job_key: None,
        error_code: None,
        target: String::new(),
        ..receipt(id)
    }
}

async fn write(world: &World, receipts: &[Receipt]) {
    let mut batch = Batch::default();
    batch.receipts(receipts, START_MS + 7 * DAY_MS, START_MS + DAY_MS);
    batch.write(world.store.as_ref()).await.unwrap();
}

async fn posted(world: &World, receipt: &Receipt) {
    let mut batch = Batch::default();
    batch.receipt_posted(receipt);
    batch.write(world.store.as_ref()).await.unwrap();
}

async fn since(world: &World, after: Option<u128>, before: u128, limit: usize) -> Vec<u128> {
    let receipts = Receipts::new(world.store.clone());
    let found = receipts.since(&app("demo"), after.map(MessageId), MessageId(before), limit).await.unwrap();
    found.iter().map(|receipt| receipt.id.0).collect()
}

async fn pending(world: &World, url: &str, after: Option<u128>, limit: usize) -> Vec<u128> {
    let receipts = Receipts::new(world.store.clone());
    let found = receipts.pending(&app("demo"), url, after.map(MessageId), limit).await.unwrap();
    found.iter().map(|receipt| receipt.id.0).collect()
}

async fn urls(world: &World) -> Vec<String> {
    let urls = Receipts::new(world.store.clone()).urls(None, usize::MAX).await.unwrap();
    urls.into_iter().map(|(_, _, url)| url).collect()
}

pub(crate) async fn a_receipt_reads_back_as_it_was_written(world: World) {
    write(&world, &[receipt(7)]).await;
    let receipts = Receipts::new(world.store.clone());
    assert_eq!(receipts.since(&app("demo"), None, MessageId::MAX, 9).await.unwrap(), [receipt(7)]);
    assert_eq!(receipts.pending(&app("demo"), URL, None, 9).await.unwrap(), [receipt(7)]);
}

pub(crate) async fn a_receipt_without_anything_reads_back(world: World) {
    write(&world, &[bare(7)]).await;
    let receipts = Receipts::new(world.store.clone());
    assert_eq!(receipts.since(&app("demo"), None, MessageId::MAX, 9).await.unwrap(), [bare(7)]);
}

pub(crate) async fn receipts_come_in_the_order_of_their_ids_whatever_bucket_they_are_in(world: World) {
    let ids = [1u128, 2, 15, 16, 17, 31, 32, 255, 256, 1 << 64, u128::MAX - 1];
    write(&world, &ids.iter().rev().map(|id| receipt(*id)).collect::<Vec<_>>()).await;
    assert_eq!(since(&world, None, u128::MAX, 99).await, ids);
    assert_eq!(since(&world, None, u128::MAX, 4).await, ids[..4]);
    assert!(since(&world, None, u128::MAX, 0).await.is_empty());
}

pub(crate) async fn bounds_hold_neither_id(world: World) {
    write(&world, &(1..=5).map(receipt).collect::<Vec<_>>()).await;
    assert_eq!(since(&world, Some(2), 5, 9).await, [3, 4]);
    assert_eq!(since(&world, Some(0), 2, 9).await, [1]);
    assert!(since(&world, Some(3), 4, 9).await.is_empty());
    assert!(since(&world, Some(4), 2, 9).await.is_empty());
    assert!(since(&world, Some(u128::MAX), u128::MAX, 9).await.is_empty());
}

pub(crate) async fn pages_of_any_size_pass_over_nothing(world: World) {
    // Ninety in one bucket, then some in each of the others.
    let ids: Vec<u128> = (0..90).map(|id| id * 16 + 3).chain(90 * 16..90 * 16 + 40).collect();
    write(&world, &ids.iter().map(|id| bare(*id)).collect::<Vec<_>>()).await;
    for limit in [1, 2, 16, 33, 64, 500] {
        let mut read = Vec::new();
        loop {
            let page = since(&world, read.last().copied(), u128::MAX, limit).await;
            let whole = page.len() < limit;
            read.extend(page);
            if whole {
                break;
            }
        }
        assert_eq!(read, ids, "pages of {limit}");
    }
}

pub(crate) async fn receipts_of_two_apps_do_not_mix(world: World) {
    let other = Receipt { app: app("demo2"), ..receipt(2) };
    write(&world, &[receipt(1), other.clone(), Receipt { app: app("dem"), ..receipt(3) }]).await;
    assert_eq!(since(&world, None, u128::MAX, 9).await, [1]);
    assert_eq!(pending(&world, URL, None, 9).await, [1]);
    posted(&world, &other).await;
    assert_eq!(pending(&world, URL, None, 9).await, [1]);
    assert_eq!(urls(&world).await, [URL; 3]);
}

pub(crate) async fn a_receipt_is_kept_until_its_time_and_waits_until_its_own(world: World) {
    let mut batch = Batch::default();
    batch.receipts(&[receipt(1)], START_MS + 20, START_MS + 10);
    batch.receipts(&[receipt(2)], START_MS + 10, START_MS + 20);
    batch.write(world.store.as_ref()).await.unwrap();
    world.clock.set(START_MS + 9);
    assert_eq!((since(&world, None, 9, 9).await, pending(&world, URL, None, 9).await), (vec![1, 2], vec![1, 2]));
    world.clock.set(START_MS + 10);
    assert_eq!((since(&world, None, 9, 9).await, pending(&world, URL, None, 9).await), (vec![1], vec![2]));
    world.clock.set(START_MS + 20);
    assert_eq!((since(&world, None, 9, 9).await, pending(&world, URL, None, 9).await), (vec![], vec![]));
}

pub(crate) async fn a_receipt_without_a_url_waits_nowhere(world: World) {
    write(&world, &[bare(1)]).await;
    posted(&world, &bare(1)).await;
    assert_eq!((world.rows(Table::Receipts).await, world.rows(Table::Callbacks).await), (1, 0));
}

pub(crate) async fn what_waits_comes_oldest_first_for_its_url_alone(world: World) {
    let elsewhere = |id| Receipt { url: Some(format!("{URL}/")), ..receipt(id) };
    write(&world, &[receipt(300), elsewhere(2), receipt(17), receipt(3), elsewhere(40), receipt(16)]).await;
    assert_eq!(pending(&world, URL, None, 9).await, [3, 16, 17, 300]);
    assert_eq!(pending(&world, URL, None, 2).await, [3, 16]);
    assert_eq!(pending(&world, URL, Some(16), 9).await, [17, 300]);
    assert_eq!(pending(&world, &format!("{URL}/"), None, 9).await, [2, 40]);
    assert!(pending(&world, "https://example.com/", None, 9).await.is_empty());
}

pub(crate) async fn what_was_posted_waits_no_longer_and_stays_in_the_log(world: World) {
    write(&world, &[receipt(1), receipt(2)]).await;
    for _ in 0..2 {
        posted(&world, &receipt(1)).await;
        assert_eq!(pending(&world, URL, None, 9).await, [2]);
        assert_eq!(since(&world, None, 9, 9).await, [1, 2]);
    }
}

pub(crate) async fn every_url_is_listed_once_in_pages(world: World) {
    let expected: Vec<String> = (0..20).map(|number| format!("https://example.com/{number}")).collect();
    let of = |id: u128, url: &String| Receipt { url: Some(url.clone()), ..receipt(id) };
    for ids in [100, 200] {
        write(&world, &expected.iter().zip(ids..).map(|(url, id)| of(id, url)).collect::<Vec<_>>()).await;
    }
    let receipts = Receipts::new(world.store.clone());
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = receipts.urls(after, 7).await.unwrap();
        after = page.last().map(|(key, ..)| key.clone());
        let whole = page.len() < 7;
        for (key, of, url) in page {
            assert_eq!((&key, &of), (&UrlKey::new(&of, &url), &app("demo")));
            found.push((key, url));
        }
        if whole {
            break;
        }
    }
    assert!(found.is_sorted(), "in the order of their keys");
    let mut found: Vec<String> = found.into_iter().map(|(_, url)| url).collect();
    found.sort_unstable();
    let mut expected = expected;
    expected.sort_unstable();
    assert_eq!(found, expected);
}

pub(crate) async fn a_url_is_listed_longer_than_anything_waits_for_it(world: World) {
    write(&world, &[receipt(1)]).await;
    posted(&world, &receipt(1)).await;
    assert_eq!(urls(&world).await, [URL]);
    world.clock.set(START_MS + 2 * DAY_MS - 1);
    assert_eq!(urls(&world).await, [URL]);
    world.clock.set(START_MS + 2 * DAY_MS);
    assert!(urls(&world).await.is_empty());
}

pub(crate) async fn a_later_receipt_keeps_its_url_listed(world: World) {
    write(&world, &[receipt(1)]).await;
    let mut batch = Batch::default();
    batch.receipts(&[receipt(2)], START_MS, START_MS + 3 * DAY_MS);
    batch.write(world.store.as_ref()).await.unwrap();
    world.clock.set(START_MS + 3 * DAY_MS - 1);
    assert_eq!((urls(&world).await, pending(&world, URL, None, 9).await), (vec![URL.to_owned()], vec![2]));
}

pub(crate) async fn writing_a_receipt_twice_changes_nothing(world: World) {
    for _ in 0..2 {
        write(&world, &[receipt(1)]).await;
        assert_eq!((world.rows(Table::Receipts).await, world.rows(Table::Callbacks).await), (1, 2));
    }
}

pub(crate) async fn damage_is_named_with_table_and_row(world: World) {
    write(&world, &[receipt(1)]).await;
    for table in [Table::Receipts, Table::Callbacks] {
        let scan = schema::sorted::RowScan { table, from: Vec::new(), to: None, rows_max: 9 };
        for row in world.store.scan(scan).await.unwrap() {
            world.write([put(table, &row.row, b"m", b"\x01short")]).await;
        }
    }
    let receipts = Receipts::new(world.store.clone());
    let errors = [
        receipts.since(&app("demo"), None, MessageId::MAX, 9).await.unwrap_err(),
        receipts.pending(&app("demo"), URL, None, 9).await.unwrap_err(),
        receipts.urls(None, 9).await.unwrap_err(),
    ];
    for (error, table) in errors.iter().zip(["receipts", "callbacks", "callbacks"]) {
        let StoreError::Corrupt(text) = error else { panic!("{error:?}") };
        assert!(text.starts_with(&format!("table {table}, row ")), "{text}");
    }
}
