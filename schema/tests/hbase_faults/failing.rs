//! Gateways, connections and HBase itself fail.

use std::net::TcpListener;
use std::sync::atomic::AtomicBool;

use schema::sorted::StoreError;

use super::*;
use crate::proxy::Proxy;

const QUICK: Duration = Duration::from_millis(400);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_never_answers_is_passed_over_for_another() {
    let Some(options) = tables() else { return };
    // The system accepts connections for it, and nobody ever reads from them.
    let silent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let gateways = vec![silent.local_addr().unwrap().to_string(), options.gateways[0].clone()];
    let store = open(HbaseOptions { gateways, read_timeout: Duration::from_secs(2), ..options }).await;
    for round in 0..20u8 {
        store.write(put_one(b"row", &[round], b"v")).await.unwrap();
        assert!(store.put_if_absent(put(b"guard", &[round], b"v")).await.unwrap());
        assert_eq!(cells(&store, b"row").await.len(), usize::from(round) + 1);
    }
    until("the silent one is left alone", || store.state()[0].open).await;
    assert!(store.healthy() && !store.state()[1].open);
    assert!(store.state()[0].last_failure.as_ref().unwrap().1.contains("in time"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_only_gateway_falls_silent_operations_end_in_time_then_at_once_and_it_comes_back_by_itself() {
    let Some(options) = tables() else { return };
    let proxy = Proxy::before(options.gateways[0].parse().unwrap());
    let (read_timeout, operation_timeout) = (Duration::from_secs(1), Duration::from_secs(3));
    let options = HbaseOptions { gateways: vec![proxy.address()], read_timeout, operation_timeout, ..options };
    let store = open(options).await;
    store.write(put_one(b"row", b"before", b"v")).await.unwrap();
    proxy.be_silent();
    let begun = Instant::now();
    assert_eq!(store.write(put_one(b"row", b"during", b"v")).await, Err(StoreError::TimedOut), "it may have happened");
    assert!(begun.elapsed() < operation_timeout + Duration::from_secs(2));
    until("it is left alone", || !store.healthy()).await;
    let begun = Instant::now();
    let answers = [
        store.write(put_one(b"row", b"refused", b"v")).await,
        store.read(vec![whole(b"row")]).await.map(drop),
        store.keys(all_rows()).await.map(drop),
        store.put_if_absent(put(b"row", b"refused", b"v")).await.map(drop),
    ];
    assert!(answers.iter().all(|answer| matches!(answer, Err(StoreError::Unavailable(_)))), "{answers:?}");
    assert!(begun.elapsed() < QUICK * 4, "{:?}", begun.elapsed());
    proxy.go_on();
    until("it is used again", || store.healthy()).await;
    store.write(put_one(b"row", b"after", b"v")).await.unwrap();
    let found = cells(&store, b"row").await;
    let found: Vec<_> = found.iter().map(|(cell, _)| cell.as_slice()).collect();
    assert!(!found.contains(&b"refused".as_slice()) && found.contains(&b"after".as_slice()), "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_lost_is_asked_for_again_without_doing_anything_twice() {
    let Some(options) = tables() else { return };
    let proxy = Proxy::before(options.gateways[0].parse().unwrap());
    let store = open(HbaseOptions { gateways: vec![proxy.address()], ..options }).await;
    for round in 0..10u8 {
        let batch = vec![
            Mutation::Put(put(b"row", b"kept", &[round])),
            delete_cell(b"row", b"gone"),
            Mutation::Put(put(&[round], b"c", b"v")),
        ];
        store.write(put_one(b"row", b"gone", b"v")).await.unwrap();
        proxy.cut_answers(1);
        store.write(batch).await.unwrap();
        assert_eq!(cells(&store, b"row").await, [(b"kept".to_vec(), vec![round])]);
        proxy.cut_answers(1);
        assert!(store.put_if_absent(put(b"guard", &[round], b"same")).await.unwrap(), "it was ours, both times");
        proxy.cut_answers(1);
        assert!(!store.put_if_absent(put(b"guard", &[round], b"same")).await.unwrap());
        proxy.cut_answers(1);
        assert_eq!(store.scan(all_rows()).await.unwrap().len(), usize::from(round) + 3);
        assert_eq!(proxy.cuts_left(), 0);
    }
    assert!(store.metrics().retries() >= 40);
    assert!(store.healthy(), "a connection that ends says nothing of its gateway");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_hbase_is_killed_under_writes() {
    if servers::hbase().is_none() {
        return;
    }
    let mut server = tokio::task::block_in_place(|| HBase::start().unwrap());
    let options = HbaseOptions {
        read_timeout: Duration::from_secs(2),
        operation_timeout: Duration::from_secs(5),
        ..tables_in(&server, Transport::Buffered)
    };
    let store = open(options).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..16u8)
        .map(|writer| {
            let (store, stop) = (store.clone(), stop.clone());
            tokio::spawn(async move {
                let (mut acknowledged, mut refused) = (Vec::new(), 0);
                for number in 0u32.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let row = [&[writer], number.to_be_bytes().as_slice()].concat();
                    if store.write(put_one(&row, b"c", &row)).await.is_ok() {
                        acknowledged.push(row);
                    } else {
                        refused += 1;
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
                (acknowledged, refused)
            })
        })
        .collect();
    let metrics = store.metrics();
    for _ in 0..2 {
        let before = metrics.writes();
        until("much is written", || metrics.writes() > before + 2000).await;
        tokio::task::block_in_place(|| server.kill());
        until("the store has noticed", || !store.healthy()).await;
        let begun = Instant::now();
        assert!(matches!(store.read(vec![whole(b"row")]).await, Err(StoreError::Unavailable(_))));
        assert!(begun.elapsed() < QUICK * 4, "{:?}", begun.elapsed());
        tokio::task::block_in_place(|| server.restart());
        until("the store is back", || store.healthy()).await;
    }
    let before = metrics.writes();
    until("much is written again", || metrics.writes() > before + 500).await;
    stop.store(true, Ordering::SeqCst);
    let mut acknowledged = Vec::new();
    for writer in writers {
        let (rows, refused) = writer.await.unwrap();
        assert!(refused > 0, "nobody was hit");
        acknowledged.extend(rows);
    }
    for rows in acknowledged.chunks(500) {
        let found = store.read(rows.iter().map(|row| whole(row)).collect()).await.unwrap();
        assert!(found.iter().all(|row| row.cell(b"c") == Some(row.row.as_slice())), "one is lost");
    }
    println!("{} rows acknowledged over two kills, none lost", acknowledged.len());
}
