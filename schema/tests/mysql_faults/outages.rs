//! A server that dies and comes back, and one that stands still.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use super::*;

/// What callers were told of the accounts whose tokens they revoked.
#[derive(Default)]
struct Told {
    done: BTreeSet<u128>,
    not_done: BTreeSet<u128>,
    unknown: BTreeSet<u128>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_loses_nothing_it_answered_and_is_found_again_by_itself() {
    let Some(mut server) = server_of_ones_own(&[]) else { return };
    let options = MysqlOptions { url: server.url("catalog"), ..patient() };
    let catalog = Arc::new(made(options).await);
    let (told, stop) = (Arc::new(Mutex::new(Told::default())), Arc::new(AtomicBool::new(false)));
    let writers: Vec<_> = (0..8u128)
        .map(|writer| {
            let (catalog, told, stop) = (catalog.clone(), told.clone(), stop.clone());
            tokio::spawn(async move {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let account = (writer << 64) + number;
                    let answer = catalog.revoke_tokens(AccountId(account), 1).await;
                    let mut told = told.lock().unwrap();
                    match answer {
                        Ok(()) => told.done.insert(account),
                        Err(StoreError::Unavailable(_)) => told.not_done.insert(account),
                        Err(StoreError::TimedOut) => told.unknown.insert(account),
                        Err(error) => panic!("{error}"),
                    };
                }
            })
        })
        .collect();
    let done = || told.lock().unwrap().done.len();
    for _ in 0..3 {
        let before = done();
        until("changes", async || done() > before + 100).await;
        server.kill();
        let failed = catalog.metrics().failures;
        let begun = Instant::now();
        until("calls that fail", async || catalog.metrics().failures > failed + 8).await;
        assert!(begun.elapsed() < Duration::from_secs(2) + SLACK, "they fail fast: {:?}", begun.elapsed());
        assert!(catalog.ping().await.is_err() && !catalog.state().is_well());
        assert!(catalog.state().failure.is_some());
        server.restart();
    }
    let before = done();
    until("changes after the last restart", async || done() > before + 100).await;
    assert!(catalog.state().is_well());
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let stored: BTreeSet<_> = catalog.revocations(0).await.unwrap().into_iter().map(|(account, _)| account.0).collect();
    let told = told.lock().unwrap();
    assert!(told.done.is_subset(&stored), "lost: {:?}", told.done.difference(&stored).count());
    assert!(told.not_done.is_disjoint(&stored), "happened: {:?}", told.not_done.intersection(&stored).count());
    assert!(stored.iter().all(|account| told.done.contains(account) || told.unknown.contains(account)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_to_a_server_that_stands_still_fail_in_their_time_and_go_on_with_it() {
    let Some(server) = server_of_ones_own(&[]) else { return };
    let options =
        MysqlOptions { connections_max: 4, ..impatient(MysqlOptions { url: server.url("catalog"), ..patient() }) };
    let catalog = Arc::new(made(options).await);
    catalog.revoke_tokens(AccountId(0), 1).await.unwrap();
    server.pause();
    let begun = Instant::now();
    let calls: Vec<_> = (1..=20)
        .map(|account| {
            let catalog = catalog.clone();
            tokio::spawn(async move {
                if account % 2 == 0 { catalog.ping().await } else { catalog.revoke_tokens(AccountId(account), 1).await }
            })
        })
        .collect();
    let mut not_done = BTreeSet::new();
    for (account, call) in (1..).zip(calls) {
        match call.await.unwrap().unwrap_err() {
            StoreError::Unavailable(_) => drop(not_done.insert(account)),
            error => assert_eq!(error, StoreError::TimedOut),
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(4) + SLACK, "{:?}", begun.elapsed());
    assert!(!catalog.state().is_well());
    assert!(catalog.metrics().timeouts >= 20);
    server.resume();
    until("an answer", async || catalog.ping().await.is_ok()).await;
    assert!(catalog.state().is_well());
    // As many at once as there may be: none of the connections is still waiting for a late answer.
    let pings: Vec<_> =
        (0..4).map(|_| catalog.clone()).map(|catalog| tokio::spawn(async move { catalog.ping().await })).collect();
    for ping in pings {
        ping.await.unwrap().unwrap();
    }
    let stored = catalog.revocations(0).await.unwrap();
    assert!(stored.iter().all(|(account, _)| !not_done.contains(&account.0)), "{stored:?}");
}

#[tokio::test]
async fn a_server_that_no_longer_leads_is_left_for_the_one_that_does() {
    let Some(server) = server_of_ones_own(&[]) else { return };
    let options = MysqlOptions { url: server.url("catalog"), ..patient() };
    server.execute("CREATE USER mia@'%'; GRANT ALL ON catalog.* TO mia@'%'").unwrap();
    let catalog = made(MysqlOptions { url: options.url.replace("root@", "mia@"), ..options }).await;
    server.execute("SET GLOBAL read_only = 1").unwrap();
    let connections = "SELECT id FROM information_schema.processlist WHERE user = 'mia'";
    let before = server.execute(connections).unwrap();
    let error = catalog.revoke_tokens(AccountId(1), 1).await.unwrap_err();
    assert!(matches!(&error, StoreError::Unavailable(text) if text.contains("read-only")), "{error}");
    // A name or an address may lead to another server by now, so new connections are made.
    assert!(catalog.metrics().retries >= 1 && !catalog.state().is_well());
    let after = server.execute(connections).unwrap();
    assert!(before.lines().all(|id| !after.lines().any(|other| other == id)), "{before:?} {after:?}");
    server.execute("SET GLOBAL read_only = 0").unwrap();
    catalog.revoke_tokens(AccountId(1), 1).await.unwrap();
    assert!(catalog.state().is_well());
}
