//! All connections of this front, in several hubs by account: what is done for a connection waits for no other hub, and a
//! broadcast is walked in all of them at once.

use std::sync::{Arc, Mutex};

use idl::contract::bus as wire;
use idl::ids::{AccountId, Generation, Partition, Shard};

use crate::config::Limits;
use crate::generations::Generations;
use crate::hub::Hub;
use crate::line::Line;
use crate::lock;
use crate::metrics::Metrics;

/// The hubs.
pub(crate) struct Hubs {
    shares: Box<[Arc<Hub>]>,
    generations: Mutex<Generations>,
    metrics: Arc<Metrics>,
}

impl Hubs {
    /// As many as the limits say, or as there are cores.
    pub(crate) fn new(limits: &Limits, metrics: &Arc<Metrics>) -> Self {
        let count = match limits.hubs {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            count => count,
        };
        let share = Limits { paced_slots_max: limits.paced_slots_max.div_ceil(count), ..limits.clone() };
        let shares = (0..count).map(|number| Arc::new(Hub::new(&share, number, Arc::clone(metrics)))).collect();
        Self { shares, generations: Mutex::default(), metrics: Arc::clone(metrics) }
    }

    /// The hub of an account's connections.
    pub(crate) fn of(&self, account: AccountId) -> &Arc<Hub> {
        &self.shares[self.number(Shard::of_account(account).into())]
    }

    /// The hub of a connection.
    pub(crate) fn with(&self, line: &Line) -> &Arc<Hub> {
        &self.shares[self.number(line.partition)]
    }

    fn number(&self, partition: Partition) -> usize {
        partition.number() % self.shares.len()
    }

    /// Each of them.
    pub(crate) fn each(&self) -> impl Iterator<Item = &Arc<Hub>> {
        self.shares.iter()
    }

    /// All connections.
    pub(crate) fn lines(&self) -> Vec<Arc<Line>> {
        self.each().flat_map(|hub| hub.lines()).collect()
    }

    /// The generation of a partition of the middle tier's memory, as far as it is known.
    pub(crate) fn generation(&self, partition: Partition) -> Option<Generation> {
        lock(&self.generations).of(partition)
    }

    /// Learns the generations that a reply carried. Returns how many are others than before.
    pub(crate) fn learn(&self, generations: impl IntoIterator<Item = (Partition, Generation)>) -> usize {
        let mut known = lock(&self.generations);
        let changed = generations.into_iter().filter(|(partition, now)| known.learn(*partition, *now)).count();
        self.metrics.generations.inc_by(u64::from(changed > 0));
        changed
    }

    /// Applies a batch from the middle tier and says which items found no connection with their epoch, and how many
    /// connections have a registration in the audience, where that is asked.
    pub(crate) fn deliver(&self, batch: wire::FrontBatch) -> wire::FrontBatchReply {
        let mut items: Vec<Vec<_>> = vec![Vec::new(); self.shares.len()];
        for (number, item) in (0..).zip(batch.items) {
            // What names no account finds no connection anywhere.
            let hub = item.account.parse().map_or(0, |account| self.number(Shard::of_account(account).into()));
            if let Some(share) = items.get_mut(hub) {
                share.push((number, item));
            }
        }
        let count = |hub: &Hub| batch.count.as_ref().and_then(|count| hub.count(count));
        let online = self.each().map(|hub| count(hub)).sum::<Option<i64>>();
        let mut gone: Vec<i32> = self.each().zip(items).flat_map(|(hub, share)| hub.deliver(share)).collect();
        gone.sort_unstable();
        self.metrics.items_gone.inc_by(gone.len() as u64);
        wire::FrontBatchReply { gone: (!gone.is_empty()).then_some(gone), online }
    }
}
