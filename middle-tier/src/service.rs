//! Requests from the bus to the parts that answer them. Decides nothing itself.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use idl::bus::{Incoming, MiddleInbox, Reply, Request};
use idl::error::{Code, Failure};
use idl::ids::MessageId;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metrics::RequestLabels;
use crate::{Shared, accounts, app_calls, apps, commands, routes, schedules};

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
            if !self.seen.is_new(incoming.id) {
                self.shared.metrics.requests_repeated.inc();
                continue;
            }
            if incoming.deadline <= Instant::now() {
                self.shared.metrics.requests_late.inc();
                continue;
            }
            let shared = Arc::clone(&self.shared);
            self.shared.tasks.spawn(async move {
                serve(&shared, incoming).await;
                drop(place);
            });
        }
        let all = u32::try_from(self.shared.config.requests_max).unwrap_or(u32::MAX);
        let _ = self.places.acquire_many(all).await;
    }
}

async fn serve(shared: &Arc<Shared>, incoming: Incoming) {
    let Incoming { id, request, answer, .. } = incoming;
    let name = request.name();
    let result = respond(shared, id, request).await;
    let code = result.as_ref().err().map_or(0, |failure| failure.code.number());
    shared.metrics.requests.get_or_create(&RequestLabels { request: name, code }).inc();
    answer.send(result);
}

async fn respond(shared: &Arc<Shared>, id: MessageId, request: Request) -> Result<Reply, Failure> {
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
        Request::FrontLease(request) => Box::pin(routes::lease(shared, request)).await,
        Request::OpenChannel(request) => Box::pin(routes::open_channel(shared, id, request)).await,
        Request::ChannelUp(request) => Box::pin(commands::channel_up(shared, id, request)).await,
        other => Err(Failure::new(Code::NotServed, format!("{} is not served", other.name()))),
    }
}

/// Ids of recent requests. A bus may give a request twice; doing it once is enough, and a command that comes again after
/// a later one has been carried out must not undo that.
#[derive(Default)]
struct Seen {
    ids: BTreeSet<MessageId>,
    order: VecDeque<MessageId>,
}

impl Seen {
    const IDS_MAX: usize = 65_536;

    fn is_new(&mut self, id: MessageId) -> bool {
        if !self.ids.insert(id) {
            return false;
        }
        self.order.push_back(id);
        if self.order.len() > Self::IDS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_comes_twice_is_new_once() {
        let mut seen = Seen::default();
        assert!(seen.is_new(MessageId(1)));
        assert!(!seen.is_new(MessageId(1)));
        for id in 2..=u128::try_from(Seen::IDS_MAX).expect("fits") + 1 {
            assert!(seen.is_new(MessageId(id)));
        }
        assert!(seen.is_new(MessageId(1)), "the window is bounded");
    }
}
