//! Profiles of registrations, remembered near to who asks: they follow changes, also those that other processes make.

// As the other crates of the workspace name it.
extern crate campanile_schema as schema;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use idl::clock::{SystemClock, SystemEntropy};
use idl::ids::{AccountId, MessageId, RegId};
use schema::cache::Cache;
use schema::cache::in_process::{CacheLimits, InProcessCache};
use schema::cache::redis::{RedisCache, RedisOptions};
use schema::profiles::{NearLimits, Profiles};
use schema::registrations::{Cursor, Registration, Registrations};
use schema::sorted::memory::MemoryStore;
use schema::sorted::{Mutation, Put, Row, RowRead, RowScan, SortedStore, StoreError};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

const REGID: RegId = RegId([7; 24]);

fn registration() -> Registration {
    Registration {
        regid: REGID,
        account: AccountId(1),
        app: "com.example.demo".parse().expect("an app id"),
        device_public: [1; 32],
        seal_key: [2; 32],
        enabled: true,
        attributes: BTreeMap::new(),
        aliases: BTreeSet::new(),
        user_accounts: BTreeSet::new(),
        topics: BTreeMap::new(),
        version: 1,
        created_at: MessageId(3),
        cursor: Cursor { judged_to: MessageId(3), acked: Vec::new() },
        last_seen_ms: None,
        recent: Vec::new(),
    }
}

fn in_process() -> Arc<dyn Cache> {
    Arc::new(InProcessCache::new(Arc::new(SystemClock), Arc::new(SystemEntropy), CacheLimits::default()))
}

fn stores(store: &Arc<dyn SortedStore>, cache: &Arc<dyn Cache>) -> (Profiles, Registrations) {
    let profiles = Profiles::new(Arc::clone(store), Arc::clone(cache), NearLimits::default());
    (profiles.clone(), Registrations::remembered(Arc::clone(store), profiles))
}

#[tokio::test]
async fn a_profile_is_read_once_and_follows_each_change() {
    let store: Arc<dyn SortedStore> = Arc::new(MemoryStore::new(Arc::new(SystemClock)));
    let (profiles, registrations) = stores(&store, &in_process());
    let read = || async { profiles.read(&[REGID]).await.expect("reads").pop().flatten() };

    assert_eq!(read().await, None);
    assert_eq!(read().await, None);
    assert_eq!((profiles.metrics().stored(), profiles.metrics().near()), (1, 1), "that there is none is remembered");

    let made = registration();
    registrations.create(&made).await.expect("writes");
    assert_eq!(read().await.map(|profile| profile.account), Some(AccountId(1)));
    read().await;
    assert_eq!((profiles.metrics().stored(), profiles.metrics().near()), (2, 2));

    let named = Registration { aliases: ["ann".parse().expect("an alias")].into(), version: 2, ..made.clone() };
    registrations.update(&made, &named).await.expect("writes");
    assert_eq!(read().await.map(|profile| profile.aliases.len()), Some(1));

    registrations.delete(&named).await.expect("writes");
    assert_eq!(read().await, None);
}

/// A store whose reads wait.
struct Slow {
    inner: Arc<dyn SortedStore>,
    reads: AtomicUsize,
    go_on: Notify,
}

#[async_trait]
impl SortedStore for Slow {
    async fn write(&self, batch: Vec<Mutation>) -> Result<(), StoreError> {
        self.inner.write(batch).await
    }

    async fn read(&self, rows: Vec<RowRead>) -> Result<Vec<Row>, StoreError> {
        let read = self.inner.read(rows).await;
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.go_on.notified().await;
        read
    }

    async fn scan(&self, scan: RowScan) -> Result<Vec<Row>, StoreError> {
        self.inner.scan(scan).await
    }

    async fn put_if_absent(&self, put: Put) -> Result<bool, StoreError> {
        self.inner.put_if_absent(put).await
    }
}

#[tokio::test]
async fn what_was_read_before_a_change_is_not_remembered_after_it() {
    let slow = Arc::new(Slow {
        inner: Arc::new(MemoryStore::new(Arc::new(SystemClock))),
        reads: AtomicUsize::new(0),
        go_on: Notify::new(),
    });
    let store: Arc<dyn SortedStore> = slow.clone();
    let (profiles, registrations) = stores(&store, &in_process());
    let reading = tokio::spawn({
        let profiles = profiles.clone();
        async move { profiles.read(&[REGID]).await }
    });
    while slow.reads.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    registrations.create(&registration()).await.expect("writes");
    slow.go_on.notify_one();
    assert_eq!(reading.await.expect("runs").expect("reads"), [None], "it was asked before there was one");
    slow.go_on.notify_one();
    assert!(profiles.read(&[REGID]).await.expect("reads")[0].is_some());
}

#[tokio::test]
async fn a_registration_changed_by_one_process_is_seen_by_another_that_remembers_it() {
    let Some(redis) = servers::redis() else { return };
    let store: Arc<dyn SortedStore> = Arc::new(MemoryStore::new(Arc::new(SystemClock)));
    let process = || {
        let options = RedisOptions { url: redis.url(), prefix: "near".to_owned(), ..RedisOptions::default() };
        let cache: Arc<dyn Cache> = Arc::new(RedisCache::start(options, Arc::new(SystemEntropy)).expect("starts"));
        stores(&store, &cache)
    };
    let ((profiles, _), (_, registrations)) = (process(), process());
    let following = tokio::spawn({
        let profiles = profiles.clone();
        async move { profiles.follow().await }
    });
    let made = registration();
    let mut now = made.clone();
    registrations.create(&made).await.expect("writes");
    // Each change is one that the other process has remembered the state before of.
    for version in 2..=20 {
        let remembered = async {
            loop {
                let before = profiles.metrics().near();
                let read = profiles.read(&[REGID]).await.expect("reads").pop().flatten();
                if read.is_some_and(|profile| profile.enabled == now.enabled) && profiles.metrics().near() > before {
                    return;
                }
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(10), remembered).await.expect("the state before is remembered");
        let next = Registration { enabled: !now.enabled, version, ..now.clone() };
        registrations.update(&now, &next).await.expect("writes");
        now = next;
        let seen = async {
            while profiles.read(&[REGID]).await.expect("reads")[0].as_ref().is_none_or(|p| p.enabled != now.enabled) {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(10), seen).await.expect("the change is seen");
    }
    assert!(profiles.metrics().forgotten() > 0, "it was told, and did not wait for its time to live");
    following.abort();
}
