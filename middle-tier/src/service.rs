//! Requests from the bus to the parts that answer them. Decides nothing itself.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use idl::bus::{Incoming, MiddleInbox, Reply, Request, Term};
use idl::error::Failure;
use idl::ids::{MessageId, Partition};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metrics::RequestLabels;
use crate::partitions::Begun;
use crate::{
    Shared, accounts, app_calls, apps, commands, counts, pokes, publish, recall, routes, schedules, server_topics,
    sweep,
};

/// The loop that takes requests.
pub(crate) struct Service {
    shared: Arc<Shared>,
    places: Arc<Semaphore>,
    seen: Seen,
}

impl Service {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { places: Arc::new(Semaphore::new(shared.config.requests_max)), shared, seen: Seen::default() }
    }

    /// Takes requests until `drain` is cancelled or the bus is gone, then waits for those under way.
    pub(crate) async fn run(mut self, mut inbox: MiddleInbox, drain: CancellationToken) {
        loop {
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { break };
            let incoming = tokio::select! {
                biased;
                () = drain.cancelled() => None,
                incoming = inbox.next() => incoming,
            };
            let Some(incoming) = incoming else { break };
            // Left unanswered, the bus gives it to whoever has the partition next, which may be this middle again.
            let Some(begun) = Begun::of(&self.shared, incoming.partition) else {
                self.shared.metrics.requests_elsewhere.inc();
                continue;
            };
            // Of one term alone: what an earlier one left unanswered comes again under the same id.
            let term = incoming.partition.and_then(|partition| self.shared.partitions.held(partition));
            if !self.seen.is_new(incoming.id, term) {
                self.shared.metrics.requests_repeated.inc();
                continue;
            }
            if incoming.deadline <= Instant::now() {
                self.shared.metrics.requests_late.inc();
                continue;
            }
            self.shared.tasks.spawn(async move {
                serve(&begun, incoming).await;
                drop(place);
            });
        }
        let all = u32::try_from(self.shared.config.requests_max).unwrap_or(u32::MAX);
        let _ = self.places.acquire_many(all).await;
    }
}

async fn serve(begun: &Begun, incoming: Incoming) {
    let shared = &begun.shared;
    let Incoming { id, partition, request, answer, .. } = incoming;
    let name = request.name();
    let result = respond(shared, id, partition, request).await;
    let code = result.as_ref().err().map_or(0, |failure| failure.code.number());
    shared.metrics.requests.get_or_create(&RequestLabels { request: name, code }).inc();
    answer.send(result);
}

async fn respond(
    shared: &Arc<Shared>,
    id: MessageId,
    partition: Option<Partition>,
    request: Request,
) -> Result<Reply, Failure> {
    match request {
        Request::CreateAccount(request) => Box::pin(accounts::create(shared, request)).await,
        Request::RenewToken(request) => Box::pin(accounts::renew(shared, request)).await,
        Request::RevokeTokens(request) => Box::pin(accounts::revoke(shared, request)).await,
        Request::TokenTimes(request) => Box::pin(accounts::token_times(shared, request)).await,
        Request::App(call) => Box::pin(app_calls::answer(shared, id, call)).await,
        Request::FireSchedule(request) => Box::pin(schedules::fire(shared, id, request)).await,
        Request::CreateApp(request) => Box::pin(apps::create(shared, request)).await,
        Request::ListApps(_) => Box::pin(apps::list(shared)).await,
        Request::RotateSecret(request) => Box::pin(apps::rotate_secret(shared, request)).await,
        Request::SetAppLimits(request) => Box::pin(apps::set_limits(shared, request)).await,
        Request::WebhookSecret(request) => Box::pin(apps::webhook_secret(shared, request)).await,
        Request::Connect(request) => Box::pin(routes::connect(shared, id, request)).await,
        Request::Disconnect(request) => Box::pin(routes::disconnect(shared, request)).await,
        Request::FrontLease(request) => Box::pin(routes::lease(shared, partition, request)).await,
        Request::OpenChannel(request) => Box::pin(routes::open_channel(shared, id, request)).await,
        Request::ChannelUp(request) => Box::pin(commands::channel_up(shared, id, request)).await,
        Request::Stored(request) => pokes::received(shared, request),
        Request::Locate(request) => recall::located(shared, &request),
        Request::ChangeTopics(request) => Box::pin(server_topics::change_here(shared, request)).await,
        Request::ReceiptsWait(request) => shared.receipts.poked(&request),
        Request::AppChanged(request) => apps::changed_elsewhere(shared, &request),
        Request::BroadcastStopped(request) => publish::stopped_elsewhere(shared, &request),
        Request::JudgeSoon(request) => Ok(sweep::asked(shared, &request)),
        Request::Unwritten(request) => Box::pin(counts::unwritten_here(shared, request)).await,
        Request::AskSettled(_) => Ok(shared.receipts.settled_here(shared)),
    }
}

/// Ids of recent requests. A bus may give a request twice; doing it once is enough, and a command that comes again after
/// a later one has been carried out must not undo that.
struct Seen {
    ids: HashSet<u128, BuildHasherDefault<IdHasher>>,
    /// The same, the place of the oldest next to be taken.
    ring: Box<[u128]>,
    next: usize,
}

impl Default for Seen {
    fn default() -> Self {
        let ids = HashSet::with_capacity_and_hasher(Self::IDS_MAX + 1, BuildHasherDefault::default());
        // No request has the id 0: ids begin with the time.
        Self { ids, ring: vec![0; Self::IDS_MAX].into(), next: 0 }
    }
}

impl Seen {
    const IDS_MAX: usize = 65_536;
    /// Odd, and about half of its bits are set.
    const SPREAD: u128 = 0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645;

    fn is_new(&mut self, MessageId(id): MessageId, term: Option<Term>) -> bool {
        // Spread over all bits, so that ids of two terms, which count up, don't meet.
        let id = id ^ term.map_or(0, |Term(term)| term.wrapping_mul(Self::SPREAD));
        if !self.ids.insert(id) {
            return false;
        }
        if let Some(oldest) = self.ring.get_mut(self.next) {
            self.ids.remove(oldest);
            *oldest = id;
        }
        self.next = (self.next + 1) % Self::IDS_MAX;
        true
    }
}

/// Ids are random in their low bits, or count up: one multiplication spreads them. The bus stamps them, so nobody chooses
/// ids that collide.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the halves are joined")]
    fn write_u128(&mut self, id: u128) {
        self.0 = ((id >> 64) as u64 ^ id as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_comes_twice_is_new_once_a_term() {
        let (mut seen, term) = (Seen::default(), Some(Term(1)));
        assert!(seen.is_new(MessageId(1), term));
        assert!(!seen.is_new(MessageId(1), term));
        assert!(seen.is_new(MessageId(1), Some(Term(2))), "an earlier owner left it unanswered");
        for id in 2..=u128::try_from(Seen::IDS_MAX).expect("fits") + 1 {
            assert!(seen.is_new(MessageId(id), term));
        }
        assert!(seen.is_new(MessageId(1), term), "the window is bounded");
    }
}
