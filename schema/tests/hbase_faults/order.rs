//! Who wins, and what a reader may see in between.

use std::sync::atomic::AtomicBool;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_requests_one_after_another_the_later_wins_whatever_they_do() {
    let Some(options) = tables() else { return };
    let store = open(options).await;
    let row = b"row".as_slice();
    for round in 0..60u8 {
        let value = [round];
        store.write(put_one(row, b"c", &value)).await.unwrap();
        assert_eq!(cells(&store, row).await, [(b"c".to_vec(), value.to_vec())]);
        let delete = if round % 2 == 0 { delete_cell(row, b"c") } else { delete_row(row) };
        store.write(vec![delete]).await.unwrap();
        assert!(cells(&store, row).await.is_empty());
        assert!(store.put_if_absent(put(row, b"c", b"guard")).await.unwrap());
        assert!(!store.put_if_absent(put(row, b"c", b"other")).await.unwrap());
        assert_eq!(cells(&store, row).await, [(b"c".to_vec(), b"guard".to_vec())]);
        if round % 3 == 0 {
            store.write(vec![delete_cell(row, b"c")]).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_changes_at_once_also_where_it_is_put_and_deleted() {
    let Some(options) = tables() else { return };
    let store = open(options).await;
    let states: [&[(&[u8], &[u8])]; 3] =
        [&[(b"a", b"1"), (b"b", b"1")], &[(b"c", b"2")], &[(b"a", b"3"), (b"d", b"3")]];
    let puts = |state: usize| states[state].iter().map(|(cell, value)| Mutation::Put(put(b"row", cell, value)));
    store.write(puts(0).collect()).await.unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (store, done) = (store.clone(), done.clone());
            tokio::spawn(async move {
                let mut reads = 0;
                while !done.load(Ordering::SeqCst) {
                    let found = cells(&store, b"row").await;
                    let found: Vec<_> = found.iter().map(|(cell, value)| (cell.as_slice(), value.as_slice())).collect();
                    assert!(states.contains(&found.as_slice()), "{found:?}");
                    reads += 1;
                }
                reads
            })
        })
        .collect();
    for round in 1..60 {
        let (before, after) = (states[(round - 1) % 3], round % 3);
        let mut batch: Vec<_> = if round % 2 == 0 {
            vec![delete_row(b"row")]
        } else {
            before.iter().map(|(cell, _)| delete_cell(b"row", cell)).collect()
        };
        batch.extend(puts(after));
        store.write(batch).await.unwrap();
    }
    done.store(true, Ordering::SeqCst);
    for reader in readers {
        assert!(reader.await.unwrap() > 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_second_is_never_seen_without_what_came_first() {
    let Some(options) = tables() else { return };
    let store = open(options).await;
    let writers: Vec<_> = (0..8u8)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for number in 0..30u8 {
                    let row = vec![writer, number];
                    let index = Put { table: Table::Names, ..put(&row, b"m", b"") };
                    let last = Put { table: Table::Days, ..put(&row, b"m", b"") };
                    let batch = [put(&row, b"c", b"truth"), index, last].map(Mutation::Put);
                    store.write(batch.into()).await.unwrap();
                }
            })
        })
        .collect();
    loop {
        let over = writers.iter().all(tokio::task::JoinHandle::is_finished);
        // What was done last is read first.
        let mut before: Option<usize> = None;
        for table in [Table::Days, Table::Names, T] {
            let rows = store.keys(RowScan { table, ..all_rows() }).await.unwrap().len();
            assert!(before.is_none_or(|before| rows >= before), "{table:?}: {rows} of {before:?}");
            before = Some(rows);
        }
        if over {
            assert_eq!(before, Some(240));
            break;
        }
    }
    for writer in writers {
        writer.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hbase_itself_leaves_out_what_expired_at_any_moment() {
    let Some(options) = tables() else { return };
    // Moments whose bytes mean something in HBase's filter language.
    for (row, moment) in
        [0x0000_01a3_2727_2727u64, 0x0000_0127_2c29_2800, 0x0000_01a3_27ff_ffff].into_iter().enumerate()
    {
        let clock = TestClock::new(moment - 2);
        let store = HbaseStore::open(options.clone(), clock.clone(), Arc::new(SystemEntropy)).await.unwrap();
        let row = u8::try_from(row).unwrap();
        let cell =
            |cell: &[u8], at: Option<u64>| Mutation::Put(Put { expires_at_ms: at, ..put(&[row, cell[0]], cell, b"v") });
        // Written over: the earlier value must not come to light when the later one expires.
        store.write(vec![cell(b"o", None)]).await.unwrap();
        let batch = [(b"a", moment - 1), (b"b", moment), (b"c", moment + 1), (b"o", moment)];
        store.write(batch.map(|(name, at)| cell(name, Some(at))).into()).await.unwrap();
        store.write(vec![cell(b"s", None)]).await.unwrap();
        for (now, expected) in
            [(moment - 2, b"abcos".as_slice()), (moment - 1, b"bcos"), (moment, b"cs"), (moment + 1, b"s")]
        {
            clock.0.store(now, Ordering::SeqCst);
            let range = RowScan { from: vec![row], to: Some(vec![row + 1]), ..all_rows() };
            let keys: Vec<_> = expected.iter().map(|cell| vec![row, *cell]).collect();
            assert_eq!(store.keys(range.clone()).await.unwrap(), keys);
            let rows = store.scan(range).await.unwrap();
            assert_eq!(rows.into_iter().map(|row| row.row).collect::<Vec<_>>(), keys);
        }
    }
}
