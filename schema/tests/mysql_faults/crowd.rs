//! Locks that others hold, connections that others end, and more calls than connections.

use super::*;

/// Holds the lock of what is counted of the application, as a change under way does.
async fn holding_the_lock(url: &str) -> Conn {
    let mut holder = beside(url).await;
    holder.query_drop("START TRANSACTION").await.unwrap();
    let lock = "INSERT INTO app_lock (app) VALUES (?) ON DUPLICATE KEY UPDATE app = app";
    holder.exec_drop(lock, (app().as_str(),)).await.unwrap();
    holder
}

/// Waits until so many connections to the database have been at a statement for a while, as they are that wait for a lock;
/// returns their numbers.
async fn waiting(url: &str, count: usize) -> Vec<u64> {
    // InnoDB's own list of who waits is no help: it isn't made anew while somebody keeps looking at it.
    let list = "SELECT id FROM information_schema.processlist WHERE db = database() AND id <> connection_id() \
                AND command = 'Execute' AND time_ms > 100";
    let watcher = tokio::sync::Mutex::new(beside(url).await);
    until("the wait for a lock", async || watcher.lock().await.query::<u64, _>(list).await.unwrap().len() >= count)
        .await;
    watcher.lock().await.query(list).await.unwrap()
}

#[tokio::test]
async fn a_change_waits_for_a_lock_no_longer_than_it_may() {
    let Some(options) = fresh() else { return };
    let catalog = made(impatient(options.clone())).await;
    let mut holder = holding_the_lock(&options.url).await;
    let begun = Instant::now();
    let error = catalog.put_segment(segment("late"), 9).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(4) + SLACK, "{:?}", begun.elapsed());
    // What others do goes on meanwhile.
    catalog.revoke_tokens(AccountId(1), 1).await.unwrap();
    holder.query_drop("COMMIT").await.unwrap();
    until("the next change", async || catalog.put_segment(segment("next"), 9).await.is_ok()).await;
    let names: Vec<_> = catalog.segments(&app(), None, 9).await.unwrap();
    assert_eq!(names, [segment("next")], "what failed did not happen");
}

#[tokio::test]
async fn a_change_that_loses_a_deadlock_is_made_again() {
    let Some(options) = fresh() else { return };
    let catalog = std::sync::Arc::new(made(options.clone()).await);
    assert_eq!(catalog.put_segment(segment("fought for"), 9).await.unwrap(), Stored::New);
    let mut rival = beside(&options.url).await;
    rival.query_drop("START TRANSACTION").await.unwrap();
    // Whoever changed less loses.
    for number in 0..50 {
        let insert = "INSERT INTO token_revocation VALUES (unhex(lpad(?, 32, '0')), 1)";
        rival.exec_drop(insert, (number.to_string(),)).await.unwrap();
    }
    rival.query_drop("UPDATE segment SET changed_at_ms = 2").await.unwrap();
    let change = tokio::spawn({
        let catalog = catalog.clone();
        async move { catalog.put_segment(segment("fought for"), 9).await }
    });
    // It holds the application's lock and waits for the row; the rival holds the row and wants the lock.
    waiting(&options.url, 1).await;
    rival
        .query_drop(format!("INSERT INTO app_lock (app) VALUES ('{}') ON DUPLICATE KEY UPDATE app = app", app()))
        .await
        .unwrap();
    rival.query_drop("COMMIT").await.unwrap();
    assert_eq!(change.await.unwrap().unwrap(), Stored::Replaced);
    assert!(catalog.metrics().retries >= 1);
    assert_eq!(catalog.segment(&app(), "fought for").await.unwrap(), Some(segment("fought for")));
}

#[tokio::test]
async fn a_change_whose_connection_is_ended_is_made_over_another_one() {
    let Some(options) = fresh() else { return };
    let catalog = std::sync::Arc::new(made(options.clone()).await);
    let mut holder = holding_the_lock(&options.url).await;
    let change = tokio::spawn({
        let catalog = catalog.clone();
        async move { catalog.put_segment(segment("once"), 1).await }
    });
    for connection in waiting(&options.url, 1).await {
        holder.query_drop(format!("KILL {connection}")).await.unwrap();
    }
    until("another try", async || catalog.metrics().retries >= 1).await;
    holder.query_drop("COMMIT").await.unwrap();
    assert_eq!(change.await.unwrap().unwrap(), Stored::New);
}

#[tokio::test]
async fn connections_that_were_ended_while_nobody_used_them_are_not_noticed() {
    let Some(options) = fresh() else { return };
    let catalog = std::sync::Arc::new(made(options.clone()).await);
    let pings: Vec<_> = (0..8)
        .map(|_| {
            let catalog = catalog.clone();
            tokio::spawn(async move { catalog.ping().await })
        })
        .collect();
    for ping in pings {
        ping.await.unwrap().unwrap();
    }
    let mut beside = beside(&options.url).await;
    let others = "SELECT id FROM information_schema.processlist WHERE db = database() AND id <> connection_id()";
    for connection in beside.query::<u64, _>(others).await.unwrap() {
        // One may have gone by itself.
        let _ = beside.query_drop(format!("KILL {connection}")).await;
    }
    for number in 0..10 {
        catalog.revoke_tokens(AccountId(number), 1).await.unwrap();
    }
    assert_eq!(catalog.revocations(0).await.unwrap().len(), 10);
}

#[tokio::test]
async fn more_calls_than_connections_wait_in_bounded_time() {
    let Some(options) = fresh() else { return };
    let options = MysqlOptions { connections_max: 2, connect_timeout: Duration::from_secs(2), ..options };
    let catalog = std::sync::Arc::new(made(options.clone()).await);
    let mut holder = holding_the_lock(&options.url).await;
    let changes: Vec<_> = (0..2)
        .map(|number| {
            let catalog = catalog.clone();
            tokio::spawn(async move { catalog.put_segment(segment(&number.to_string()), 9).await })
        })
        .collect();
    waiting(&options.url, 2).await;
    let begun = Instant::now();
    let error = catalog.ping().await.unwrap_err().to_string();
    assert!(error.contains("no connection within 2s; 2 are in use"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(2) + SLACK);
    let metrics = catalog.metrics();
    assert_eq!((metrics.connections, metrics.connections_in_use), (2, 2));
    assert!(metrics.timeouts >= 1 && !catalog.state().is_well());
    holder.query_drop("COMMIT").await.unwrap();
    for change in changes {
        assert_eq!(change.await.unwrap().unwrap(), Stored::New);
    }
    catalog.ping().await.unwrap();
    assert!(catalog.state().is_well());
}

#[tokio::test]
async fn a_query_that_takes_too_long_is_ended_at_the_server_and_costs_no_connection() {
    let Some(options) = fresh() else { return };
    let options = MysqlOptions { statement_timeout: Duration::from_secs(2), ..options };
    let catalog = made(options.clone()).await;
    let mut beside = beside(&options.url).await;
    let others = "SELECT id FROM information_schema.processlist WHERE db = database() AND id <> connection_id()";
    let before: Vec<u64> = beside.query(others).await.unwrap();
    beside.query_drop("LOCK TABLES segment WRITE").await.unwrap();
    let error = catalog.segment(&app(), "s").await.unwrap_err().to_string();
    // The number is the server's own: it ended the statement, or the wait for the lock, which it was told to as well.
    assert!(error.contains("(error 1969)") || error.contains("(error 1205)"), "{error}");
    beside.query_drop("UNLOCK TABLES").await.unwrap();
    assert_eq!(catalog.segment(&app(), "s").await.unwrap(), None);
    let after: Vec<u64> = beside.query(others).await.unwrap();
    assert!(!before.is_empty() && before.iter().all(|id| after.contains(id)), "{before:?} {after:?}");
}
