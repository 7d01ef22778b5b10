//! What the embedded store holds when it is opened again, and how it groups writes.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use idl::ids::MessageId;
use schema::batch::Batch;
use schema::records::{Record, Records, Tally};
use schema::registrations::{Progress, Registrations};
use schema::sorted::embedded::{EmbeddedOptions, EmbeddedStore};
use schema::sorted::{Cells, Mutation, SortedStore, StoreError, Table};
use schema::topics::TopicMembers;
use schema::traces::{Delivered, Traces};

use crate::world::{START_MS, TestClock, app, open_embedded, put, put_until, read, recent, regid, registration};

const T: Table = Table::Mailboxes;

fn one(cell: &[u8]) -> Vec<Mutation> {
    vec![Mutation::Put(put(T, b"row", cell, b"value"))]
}

async fn cells(store: &EmbeddedStore) -> Vec<Vec<u8>> {
    let rows = store.read(vec![read(T, b"row", Cells::All)]).await.unwrap();
    rows.into_iter().flat_map(|row| row.cells).map(|(cell, _)| cell).collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_store_opened_again_holds_what_was_written() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    for round in 0..4u8 {
        let store = open_embedded(folder.path(), &clock);
        assert_eq!(cells(&store).await, (0..round).map(|cell| vec![cell]).collect::<Vec<_>>());
        store.write(one(&[round])).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_answered_is_in_the_folder_at_that_moment() {
    // The copies are what a process killed right after the answer would leave.
    let (folder, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let store = open_embedded(folder.path(), &clock);
    for round in 0..3u8 {
        store.write(one(&[round])).await.unwrap();
        assert!(store.put_if_absent(put(T, b"row", &[round, 1], b"value")).await.unwrap());
        let killed = tempfile::tempdir().unwrap();
        copy(folder.path(), killed.path());
        let found = cells(&open_embedded(killed.path(), &clock)).await;
        assert_eq!(found.len(), 2 * (usize::from(round) + 1), "{found:?}");
    }
}

#[tokio::test]
async fn a_cell_that_expired_while_the_store_was_closed_is_gone() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let store = open_embedded(folder.path(), &clock);
    store.write(vec![Mutation::Put(put_until(T, b"row", b"short", b"v", START_MS + 5))]).await.unwrap();
    store.write(one(b"stays")).await.unwrap();
    drop(store);
    clock.set(START_MS + 5);
    assert_eq!(cells(&open_embedded(folder.path(), &clock)).await, [b"stays"]);
}

#[tokio::test]
async fn writes_that_wait_together_are_synced_together() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let store = Arc::new(open_embedded(folder.path(), &clock));
    let metrics = store.metrics();
    // On one thread every write is queued before any is awaited, so all wait while the first group is synced.
    let writes: Vec<_> = (0..500u32)
        .map(|cell| {
            let store = store.clone();
            tokio::spawn(async move { store.write(one(&cell.to_be_bytes())).await })
        })
        .collect();
    for write in writes {
        write.await.unwrap().unwrap();
    }
    assert_eq!((metrics.requests(), metrics.mutations()), (500, 500));
    assert!(metrics.groups() < 250, "{} groups", metrics.groups());
    assert_eq!(cells(&store).await.len(), 500);
}

#[tokio::test]
async fn a_group_ends_at_its_limit_and_a_larger_request_is_a_group_of_its_own() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let options = EmbeddedOptions { group_mutations_max: 2, free_bytes_min: 0, ..EmbeddedOptions::default() };
    let store = Arc::new(EmbeddedStore::open(&folder.path().join("store"), clock, options).unwrap());
    let writes: Vec<_> = (0..20u8)
        .map(|cell| {
            let store = store.clone();
            tokio::spawn(async move { store.write(one(&[cell])).await })
        })
        .collect();
    for write in writes {
        write.await.unwrap().unwrap();
    }
    assert!(store.metrics().groups() >= 10);
    store.write((0..100u8).map(|cell| Mutation::Put(put(T, b"row", &[cell], b"v"))).collect()).await.unwrap();
    assert_eq!(cells(&store).await.len(), 100);
}

#[tokio::test]
async fn what_is_known_of_messages_and_registrations_outlives_the_process() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let (demo, id) = (app("demo"), MessageId(7));
    let record = Record {
        id,
        app: demo.clone(),
        kind: 1,
        created_at_ms: START_MS,
        expires_at_ms: START_MS + 5,
        keep_until_ms: START_MS + 10,
        job_key: Some("job".to_owned()),
        topic: None,
        targets: vec![regid(1), regid(2)],
        broadcast: false,
        invalid_targets: 0,
        schedule: None,
        has_callback: true,
        resolved: None,
        ended: None,
        tally: Tally::default(),
    };
    let delivered = Delivered { at_ms: START_MS, dispatched_at_ms: None, front: None };
    let progress = Progress { recent: Some(vec![recent(1), recent(2)]), ..Progress::default() };
    for life in 1..=3u128 {
        let store: Arc<dyn SortedStore> = Arc::new(open_embedded(folder.path(), &clock));
        let (records, traces) = (Records::new(store.clone()), Traces::new(store.clone()));
        let mut batch = Batch::default();
        if life == 1 {
            batch.record(&record);
            batch.delivered(id, regid(1), &delivered, record.keep_until_ms);
            batch.progress(regid(1), &progress);
            Registrations::new(store.clone()).create(&registration(1)).await.unwrap();
        }
        batch.tally(&demo, id, record.keep_until_ms, life, Tally { delivered: 10, clicked: 1 });
        batch.write(store.as_ref()).await.unwrap();
        let life = u64::try_from(life).unwrap();
        let expected = Record { tally: Tally { delivered: 10 * life, clicked: life }, ..record.clone() };
        assert_eq!(records.get(&demo, id).await.unwrap().as_ref(), Some(&expected));
        assert_eq!(records.between(&demo, 0, u64::MAX, 9).await.unwrap(), std::slice::from_ref(&expected));
        assert_eq!(records.by_job_key(&demo, "job", 9).await.unwrap(), [expected]);
        assert_eq!(traces.get(id, regid(1)).await.unwrap().delivered, Some(delivered));
        assert_eq!(traces.clicked(id, regid(1), START_MS, record.keep_until_ms).await.unwrap(), life == 1);
        let found = Registrations::new(store.clone()).read(&[regid(1)]).await.unwrap().remove(0);
        assert_eq!(found.unwrap().recent, [recent(1), recent(2)]);
        assert_eq!(TopicMembers::new(store).everyone(&demo, None, 9).await.unwrap(), [regid(1)]);
    }
}

#[tokio::test]
async fn a_folder_has_one_owner_at_a_time() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let path = folder.path().join("store");
    let store = EmbeddedStore::open(&path, clock.clone(), EmbeddedOptions::default()).unwrap();
    let Err(StoreError::Unavailable(text)) = EmbeddedStore::open(&path, clock.clone(), EmbeddedOptions::default())
    else {
        panic!("two owners")
    };
    assert!(text.contains("another process has it open"), "{text}");
    drop(store);
    EmbeddedStore::open(&path, clock, EmbeddedOptions::default()).unwrap();
}

#[tokio::test]
async fn with_too_little_room_on_the_disk_only_deletes_are_accepted() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let store = open_embedded(folder.path(), &clock);
    store.write([one(b"a"), one(b"b")].concat()).await.unwrap();
    drop(store);
    let options = EmbeddedOptions { free_bytes_min: u64::MAX, ..EmbeddedOptions::default() };
    let store = EmbeddedStore::open(&folder.path().join("store"), clock, options).unwrap();
    assert!(matches!(store.write(one(b"c")).await, Err(StoreError::Unavailable(text)) if text.contains("MiB free")));
    assert!(store.put_if_absent(put(T, b"row", b"c", b"v")).await.is_err());
    let delete = Mutation::DeleteCell { table: T, row: b"row".to_vec(), cell: b"a".to_vec() };
    store.write(vec![delete]).await.unwrap();
    assert_eq!(cells(&store).await, [b"b"]);
    assert_eq!(store.metrics().refused_full(), 2);
}
