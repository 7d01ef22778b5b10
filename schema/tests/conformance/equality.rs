//! Other stores do what the store in memory does, for any sequence of operations.

use std::sync::Arc;

use proptest::prelude::*;
use schema::sorted::memory::MemoryStore;
use schema::sorted::{Cells, Mutation, Put, RowRead, RowScan, SortedStore, Table};

use crate::world::{START_MS, TestClock, open_embedded};

#[derive(Debug, Clone)]
enum Step {
    /// Requests made at once, so that they are written in few groups, in this order.
    Write(Vec<Request>),
    Read(Vec<RowRead>),
    Scan(RowScan),
    Advance(u64),
    Reopen,
}

#[derive(Debug, Clone)]
enum Request {
    Batch(Vec<Mutation>),
    PutIfAbsent(Put),
}

/// `None` for a batch.
async fn serve(store: &dyn SortedStore, request: Request) -> Option<bool> {
    match request {
        Request::Batch(batch) => store.write(batch).await.map(|()| None).unwrap(),
        Request::PutIfAbsent(put) => store.put_if_absent(put).await.map(Some).unwrap(),
    }
}

/// Few and awkward keys, so that they meet: prefixes of each other, zeros, the largest byte.
fn key() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(b'a'), Just(0xff)], 0..3)
}

fn row() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(b'a'), Just(0xff)], 1..3)
}

fn table() -> impl Strategy<Value = Table> {
    prop_oneof![Just(Table::Mailboxes), Just(Table::Names)]
}

fn put() -> impl Strategy<Value = Put> {
    let expiry = prop::option::of((0u64..40).prop_map(|ms| START_MS + ms));
    (table(), row(), key(), prop::collection::vec(any::<u8>(), 0..4), expiry)
        .prop_map(|(table, row, cell, value, expires_at_ms)| Put { table, row, cell, value, expires_at_ms })
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        4 => put().prop_map(Mutation::Put),
        2 => (table(), row(), key()).prop_map(|(table, row, cell)| Mutation::DeleteCell { table, row, cell }),
        1 => (table(), row()).prop_map(|(table, row)| Mutation::DeleteRow { table, row }),
    ]
}

fn cells() -> impl Strategy<Value = Cells> {
    prop_oneof![
        Just(Cells::All),
        key().prop_map(Cells::One),
        key().prop_map(Cells::Prefix),
        (key(), prop::option::of(key())).prop_map(|(from, to)| Cells::Range { from, to }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let limit = prop_oneof![0usize..4, Just(usize::MAX)];
    let request = prop_oneof![
        3 => prop::collection::vec(mutation(), 0..8).prop_map(Request::Batch),
        1 => put().prop_map(Request::PutIfAbsent),
    ];
    let read = (table(), row(), cells(), limit.clone()).prop_map(|(table, row, cells, limit)| RowRead {
        table,
        row,
        cells,
        limit,
    });
    let scan = (table(), key(), prop::option::of(key()), limit).prop_map(|(table, from, to, rows_max)| RowScan {
        table,
        from,
        to,
        rows_max,
    });
    prop_oneof![
        8 => prop::collection::vec(request, 1..6).prop_map(Step::Write),
        4 => prop::collection::vec(read, 0..20).prop_map(Step::Read),
        3 => scan.prop_map(Step::Scan),
        2 => (1u64..10).prop_map(Step::Advance),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_embedded_store_does_what_the_store_in_memory_does(steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (folder, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
            let memory = MemoryStore::new(clock.clone());
            let open = || Some(Arc::new(open_embedded(folder.path(), &clock)));
            let mut embedded = open();
            let mut now_ms = START_MS;
            for step in steps {
                let store = embedded.clone().expect("open between steps");
                match step {
                    Step::Write(requests) => {
                        // One thread runs them first come, first served, so they queue in this order.
                        let together: Vec<_> = requests
                            .iter()
                            .map(|request| {
                                let (store, request) = (store.clone(), request.clone());
                                tokio::spawn(async move { serve(store.as_ref(), request).await })
                            })
                            .collect();
                        for (request, answer) in requests.into_iter().zip(together) {
                            prop_assert_eq!(answer.await.unwrap(), serve(&memory, request).await);
                        }
                    }
                    Step::Read(rows) => {
                        let expected = memory.read(rows.clone()).await.unwrap();
                        prop_assert_eq!(store.read(rows).await.unwrap(), expected);
                    }
                    Step::Scan(scan) => {
                        let expected = memory.scan(scan.clone()).await.unwrap();
                        prop_assert_eq!(&store.scan(scan.clone()).await.unwrap(), &expected);
                        let keys: Vec<_> = expected.into_iter().map(|row| row.row).collect();
                        prop_assert_eq!(&memory.keys(scan.clone()).await.unwrap(), &keys);
                        prop_assert_eq!(store.keys(scan).await.unwrap(), keys);
                    }
                    Step::Advance(ms) => {
                        now_ms += ms;
                        clock.set(now_ms);
                    }
                    Step::Reopen => {
                        drop((embedded.take(), store));
                        embedded = open();
                    }
                }
            }
            let store = embedded.expect("open after the last step");
            for table in [Table::Mailboxes, Table::Names] {
                let all = RowScan { table, from: Vec::new(), to: None, rows_max: usize::MAX };
                prop_assert_eq!(store.scan(all.clone()).await.unwrap(), memory.scan(all).await.unwrap());
            }
            Ok(())
        })?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_in_hbase_does_what_the_store_in_memory_does(steps in prop::collection::vec(step(), 1..30)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let clock = TestClock::new();
            let opening = tokio::spawn(crate::apart::open(clock.clone()));
            let Some(store) = opening.await.unwrap() else { return Ok(()) };
            let memory = MemoryStore::new(clock.clone());
            let mut now_ms = START_MS;
            for step in steps {
                match step {
                    // One after another: threads of the store serve what comes at once in any order.
                    Step::Write(requests) => {
                        for request in requests {
                            let expected = serve(&memory, request.clone()).await;
                            prop_assert_eq!(serve(&store, request).await, expected);
                        }
                    }
                    Step::Read(rows) => {
                        let expected = memory.read(rows.clone()).await.unwrap();
                        prop_assert_eq!(store.read(rows).await.unwrap(), expected);
                    }
                    Step::Scan(scan) => {
                        let expected = memory.scan(scan.clone()).await.unwrap();
                        prop_assert_eq!(&store.scan(scan.clone()).await.unwrap(), &expected);
                        let keys: Vec<_> = expected.into_iter().map(|row| row.row).collect();
                        prop_assert_eq!(store.keys(scan).await.unwrap(), keys);
                    }
                    Step::Advance(ms) => {
                        now_ms += ms;
                        clock.set(now_ms);
                    }
                    Step::Reopen => {}
                }
            }
            Ok(())
        })?;
    }
}
