//! Many callers, large rows, framed gateways.

use schema::sorted::{Row, StoreError};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_share_calls() {
    const CALLERS: u8 = 64;
    const ROUNDS: u8 = 40;
    let Some(options) = tables() else { return };
    let store = open(options).await;
    let metrics = store.metrics();
    let run = async |write: bool| {
        let begun = Instant::now();
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let store = store.clone();
                tokio::spawn(async move {
                    for round in 0..ROUNDS {
                        if write {
                            store.write(put_one(&[caller, round], b"c", &[b'x'; 200])).await.unwrap();
                        } else {
                            assert_eq!(cells(&store, &[caller, round]).await.len(), 1);
                        }
                    }
                })
            })
            .collect();
        for caller in callers {
            caller.await.unwrap();
        }
        f64::from(CALLERS) * f64::from(ROUNDS) / begun.elapsed().as_secs_f64()
    };
    let (writes, reads) = (run(true).await, run(false).await);
    let all = u64::from(CALLERS) * u64::from(ROUNDS);
    assert_eq!((metrics.writes(), metrics.mutations(), metrics.reads()), (all, all, all));
    assert!(metrics.groups() < all / 4 && metrics.read_calls() < all / 4, "{metrics:?}");
    println!("{CALLERS} callers: {writes:.0} writes/s, {reads:.0} reads/s, {metrics:?}");
    let keys: Vec<_> = (0..CALLERS).flat_map(|caller| (0..ROUNDS).map(move |round| vec![caller, round])).collect();
    let begun = Instant::now();
    let found = store.read(keys.iter().map(|row| whole(row)).collect()).await.unwrap();
    assert!(found.iter().all(|row| row.cells.len() == 1));
    println!("{} rows in one read: {:?}", found.len(), begun.elapsed());
}

/// Writes and reads that come to their limits, on any transport.
async fn come_to_limits(options: HbaseOptions) {
    let store = open(HbaseOptions { response_bytes_max: 100_000, ..options }).await;
    // Ten rows of 40 cells of 1,000 bytes: more than one answer holds, and one row nearly.
    let mut batch = Vec::new();
    for row in 0..10u8 {
        batch.extend((0..40u8).map(|cell| Mutation::Put(put(&[row], &[cell], &[cell; 1000]))));
    }
    // And one row that no answer holds.
    batch.extend((0..150u8).map(|cell| Mutation::Put(put(b"large", &[cell], &[cell; 1000]))));
    store.write(batch).await.unwrap();
    let rows: Vec<_> = (0..10u8).map(|row| vec![row]).chain([b"large".to_vec()]).collect();
    let right = |row: &Row| {
        row.cells.len() == if row.row == b"large" { 150 } else { 40 }
            && row.cells.iter().all(|(cell, value)| value == &[cell[0]; 1000])
    };
    let found = store.read(rows.iter().map(|row| whole(row)).collect()).await.unwrap();
    assert!(found.len() == 11 && found.iter().all(right));
    let found = store.scan(RowScan { rows_max: 11, ..all_rows() }).await.unwrap();
    assert!(found.len() == 11 && found.iter().all(right));
    assert_eq!(store.keys(all_rows()).await.unwrap(), rows);
    let limited = RowRead { limit: 3, cells: Cells::Prefix(vec![7]), ..whole(b"large") };
    assert_eq!(store.read(vec![limited]).await.unwrap()[0].cells, [(vec![7], vec![7; 1000])]);
    assert!(store.healthy(), "an answer that is too large says nothing of its gateway");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_larger_than_the_limit_are_read_in_parts() {
    let Some(options) = tables() else { return };
    come_to_limits(options).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_framed_gateway_takes_batches_of_any_size() {
    if servers::hbase().is_none() {
        return;
    }
    let framed = servers::HBaseOptions { framed: true, ..servers::HBaseOptions::default() };
    let server = tokio::task::block_in_place(|| HBase::start_with(framed)).unwrap();
    let options = tables_in(&server, Transport::Framed);
    come_to_limits(options.clone()).await;
    let store = open(options).await;
    // 5 MB in one batch, and rows of nearly 2 MB and a little more.
    let many = (0..1000u32).map(|row| Mutation::Put(put(&row.to_be_bytes(), b"c", &[1; 5000])));
    store.write(many.collect()).await.unwrap();
    store.write(put_one(b"one", b"c", &vec![2; 1_850_000])).await.unwrap();
    assert_eq!(cells(&store, b"one").await[0].1.len(), 1_850_000);
    let error = store.write(put_one(b"one", b"c", &vec![3; 2_000_000])).await.unwrap_err();
    assert!(matches!(&error, StoreError::Unavailable(text) if text.contains("at most 1900000")), "{error}");
    assert_eq!(store.keys(all_rows()).await.unwrap().len(), 1000 + 12);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_request_that_hbase_refuses_stops_no_other() {
    let Some(options) = tables() else { return };
    // HBase refuses what is larger than 10 MiB, and nothing before it does here.
    let store = open(HbaseOptions { row_bytes_max: 1 << 30, ..options }).await;
    let writes: Vec<_> = (0..20u8)
        .map(|number| {
            let store = store.clone();
            let value = vec![number; if number == 7 { 11 << 20 } else { 10 }];
            tokio::spawn(async move { store.write(put_one(&[number], b"c", &value)).await })
        })
        .collect();
    for (number, write) in writes.into_iter().enumerate() {
        assert_eq!(write.await.unwrap().is_ok(), number != 7, "{number}");
    }
    assert_eq!(store.keys(all_rows()).await.unwrap().len(), 19);
    assert!(store.healthy());
}
