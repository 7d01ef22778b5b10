//! Several middles on one bus and the same stores.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use campanile_middle_tier::{Config, Middle};
use idl::bus::{Reply, Request};
use idl::clock::SystemEntropy;
use idl::contract::bus::{AppAnswer, AppRequest, Connect, FrontBatchReply};
use idl::error::Failure;
use idl::ids::{AccountId, MessageId, Partition, Shard};
use prometheus_client::registry::Registry;
use schema::cache::in_process::{CacheLimits, InProcessCache};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::shared_bus::SharedBus;
use super::{APP, Device, FRONT, START_MS, TestClock, Tier, counted, delivery, sha256, shard_of_secret};

/// The middle that app servers ask, unless a send is for one registration.
pub(crate) const A: usize = 0;
/// The other one.
pub(crate) const B: usize = 1;

/// Two middles; the clock goes with the runtime's, which the test pauses.
pub(crate) struct Several {
    tier: Tier,
    pub(crate) shared: Arc<SharedBus>,
    middles: Vec<Running>,
}

struct Running {
    registry: Registry,
    drain: CancellationToken,
    serving: JoinHandle<()>,
}

impl Deref for Several {
    type Target = Tier;

    fn deref(&self) -> &Tier {
        &self.tier
    }
}

impl DerefMut for Several {
    fn deref_mut(&mut self) -> &mut Tier {
        &mut self.tier
    }
}

impl Several {
    /// `A` has the partition of the app's secret and those with an even number, `B` the others.
    pub(crate) async fn start() -> Self {
        Self::start_with(Config::default()).await
    }

    pub(crate) async fn start_with(config: Config) -> Self {
        let clock = Arc::new(TestClock { at_ms: AtomicU64::new(START_MS), goes_since: Some(Instant::now()) });
        let shared = SharedBus::new(clock.clone());
        let front = shared.attach_front(FRONT);
        let tier = Tier::without_middle(config.clone(), clock, shared.clone(), front);
        let entropy = Arc::new(SystemEntropy);
        let cache = Arc::new(InProcessCache::new(tier.clock.clone(), entropy, CacheLimits::default()));
        let mut middles = Vec::new();
        for _ in 0..2 {
            let (inbox, bus) = shared.attach_middle();
            let mut registry = Registry::default();
            let middle =
                Middle::build(config.clone(), tier.dependencies(Arc::new(bus), inbox, cache.clone()), &mut registry);
            let drain = CancellationToken::new();
            middles.push(Running { registry, serving: tokio::spawn(middle.serve(drain.clone())), drain });
        }
        let mut several = Self { tier, shared, middles };
        let all: Vec<_> = Partition::all().collect();
        several.shared.give(&all, A).await;
        let (secret, app_key) = several.create_app(APP).await;
        (several.secret, several.app_key) = (secret, app_key);
        let of_b: Vec<_> =
            all.into_iter().filter(|of| of.number() % 2 == 1 && *of != several.partition_of_secret()).collect();
        several.shared.give(&of_b, B).await;
        several.lease().await;
        // They see what they have, and look for receipts.
        sleep(Duration::from_secs(2)).await;
        several
    }

    pub(crate) fn partition_of_secret(&self) -> Partition {
        shard_of_secret(&sha256(&self.secret)).into()
    }

    /// A device whose account is this middle's, in a partition that nothing else is of.
    pub(crate) async fn device_at(&self, middle: usize) -> Device {
        let account = loop {
            let (account, _) = self.account().await;
            let partition = partition_of(account);
            let alone = partition != self.partition_of_secret() && partition.number() != 0;
            if alone && self.shared.owner_of(partition) == Some(middle) {
                break account;
            }
        };
        self.device_of(account, &[]).await
    }

    /// Its front announces the connection anew, as it does when the generation of its partition has changed.
    pub(crate) async fn announce(&self, device: &Device) {
        let connect = Connect {
            account: device.account.to_string(),
            resource: "push".into(),
            front: FRONT.to_string(),
            epoch: Some(device.epoch.clone()),
        };
        let connected = self.ask(Request::Connect(connect)).await;
        assert!(matches!(connected, Ok(Reply::Connected(_))), "{connected:?}");
        self.open(device.account, &device.epoch, &[device.regid.to_string()]).await.expect("it opens");
    }

    /// Asks as the app's server, at this middle.
    pub(crate) async fn app_at(&self, middle: usize, request: AppRequest) -> Result<AppAnswer, Failure> {
        let request = Request::App(Box::new(self.call(request)));
        match self.shared.ask_at(middle, request, Instant::now() + Duration::from_secs(10)).await? {
            Reply::App(reply) if reply.status.code == 0 => Ok(reply.answer.expect("an answer comes with success")),
            Reply::App(reply) => Err(Failure::from_status(reply.status)),
            other => panic!("{other:?}"),
        }
    }

    /// What a counter of this middle has counted.
    pub(crate) fn counted_at(&self, middle: usize, name: &str) -> u64 {
        counted(&self.middles[middle].registry, &format!("campanile_middle_{name}"))
    }

    /// What both have counted.
    pub(crate) fn counted_of_all(&self, name: &str) -> u64 {
        (0..self.middles.len()).map(|middle| self.counted_at(middle, name)).sum()
    }

    /// Plays the front while something is done, and gives what came of that and what each account was handed.
    pub(crate) async fn handing<T>(&mut self, doing: impl Future<Output = T>) -> (T, Vec<(AccountId, MessageId)>) {
        let mut handed = Vec::new();
        tokio::pin!(doing);
        loop {
            let incoming = tokio::select! {
                biased;
                incoming = self.tier.front.batches.recv() => incoming.expect("the bus is there"),
                done = &mut doing => return (done, handed),
            };
            for item in &incoming.batch.items {
                let account = item.account.parse().expect("an account");
                let payloads = item.payloads.iter().flatten();
                handed.extend(payloads.filter_map(|payload| Some((account, delivery(payload)?))));
            }
            incoming.answer.send(Ok(FrontBatchReply { gone: None, online: None }));
        }
    }

    /// Both middles end in peace.
    pub(crate) async fn end_in_peace(self) {
        for Running { drain, serving, .. } in self.middles {
            drain.cancel();
            serving.await.expect("it ends");
        }
    }
}

pub(crate) fn partition_of(account: AccountId) -> Partition {
    Shard::of_account(account).into()
}
