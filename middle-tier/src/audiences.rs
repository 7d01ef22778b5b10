//! How large an audience is: for dry runs, for the pace of slow sends, and for what is told of a broadcast afterwards.
//!
//! Members of names and topics are rows in order of registration id, and so are all registrations of an app. Counting
//! goes over the rows of all names in the expression at once, like merging sorted lists, so it needs no memory. Where names
//! alone decide, nothing else is read and the count is exact. Where attributes decide, registrations are read, so many at
//! most; beyond that the count is an estimate: registration ids are spread evenly, so what was found in a part of them stands
//! for the rest.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use idl::audience::{Audience, Comparison, Evaluate};
use idl::contract::bus::{Accepted, AudienceCount, CountOnline, FrontBatch};
use idl::error::{Code, Failure};
use idl::ids::{AccountId, Alias, AppId, RegId, TopicName, UserAccount};
use idl::message::Message;
use schema::batch::Batch;
use schema::catalog::App;
use schema::names::Name;
use schema::records::Resolved;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::accounts::signed;
use crate::counts::keep_until;
use crate::order::{Order, Whom};
use crate::{Shared, judge, resolve};

/// Rows read in one call.
const PAGE: usize = 4096;
/// Registrations read in one call.
const READ: usize = 500;
/// Broadcasts waiting to be counted; further ones are counted when somebody asks.
const WAITING_MAX: usize = 256;

/// The size of an audience.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) registrations: u64,
    pub(crate) exact: bool,
}

/// Checks a send to the end and counts whom it would reach.
pub(crate) async fn dry_run(shared: &Arc<Shared>, app: &App, order: &Order) -> Result<Accepted, Failure> {
    let (count, online, bad_targets) = if let Some(audience) = order.audience()? {
        let count = count(shared, &app.app, &audience).await?;
        (count, online(shared, &app.app, &audience).await?, None)
    } else {
        let resolved = match &order.whom {
            Whom::Regids(values) => resolve::regids(shared, &app.app, values.clone()).await?,
            Whom::Aliases(values) => resolve::aliases(shared, &app.app, values.clone()).await?,
            Whom::UserAccounts(values) => resolve::user_accounts(shared, &app.app, values.clone()).await?,
            Whom::Audience(_) => return Err(Failure::from(Code::System)),
        };
        let concerned = resolved.registrations.values().filter(|registration| {
            order.filter.as_ref().is_none_or(|filter| judge::holds(filter, registration.as_ref()))
        });
        let accounts: Vec<AccountId> = concerned.map(|registration| registration.account).collect();
        let registrations = accounts.len() as u64;
        let online = shared.sessions.are_online(shared, &accounts).await?;
        let online = online.into_iter().filter(|online| *online).count() as u64;
        (Count { registrations, exact: true }, online, Some(resolved.bad_targets))
    };
    let how = if count.exact { "exact" } else { "estimate" };
    let audience =
        AudienceCount { registrations: signed(count.registrations), online: signed(online), how: how.to_owned() };
    Ok(Accepted { id: None, bad_targets, audience: Some(audience), due_ms: None })
}

/// How many connected registrations an audience has, as the fronts know.
async fn online(shared: &Arc<Shared>, app: &AppId, audience: &Audience) -> Result<u64, Failure> {
    let mut online = 0;
    for front in shared.cache.fronts().await? {
        let count = CountOnline { app: app.to_string(), audience: audience.to_wire() };
        let batch = FrontBatch { items: Vec::new(), count: Some(count) };
        let deadline = Instant::now() + shared.config.hand_off_time_max;
        match shared.bus.deliver(front, batch, deadline).await {
            Ok(reply) => online += u64::try_from(reply.online.unwrap_or(0)).unwrap_or(0),
            // A front that is gone has nobody online.
            Err(failure) if failure.code == Code::System => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(online)
}

/// Counts the registrations that an expression holds for, by stored membership: both halves of all ids at once.
pub(crate) async fn count(shared: &Arc<Shared>, app: &AppId, audience: &Audience) -> Result<Count, Failure> {
    let [lower, upper] = Part::HALVES.map(|part| count_part(shared, app, audience, part));
    let (lower, upper) = tokio::try_join!(lower, upper)?;
    let registrations = lower.registrations.saturating_add(upper.registrations);
    Ok(Count { registrations, exact: lower.exact && upper.exact })
}

async fn count_part(shared: &Arc<Shared>, app: &AppId, audience: &Audience, part: Part) -> Result<Count, Failure> {
    let mut lists = Lists::of(app, audience, part);
    let (mut found, mut read, mut scanned) = (0u64, 0, 0usize);
    let mut doubtful: Vec<RegId> = Vec::new();
    let mut last = None;
    let limits = [shared.config.counted_rows_max, shared.config.counted_registrations_max];
    let [rows_max, registrations_max] = limits.map(|limit| limit / Part::HALVES.len());
    while let Some(regid) = lists.next(shared).await? {
        scanned += 1;
        match audience.evaluate(&lists) {
            Some(true) => found += 1,
            Some(false) => {}
            None => doubtful.push(regid),
        }
        last = Some(regid);
        if doubtful.len() >= READ {
            read += doubtful.len();
            found += certain(shared, app, audience, std::mem::take(&mut doubtful)).await?;
        }
        if scanned >= rows_max || read >= registrations_max {
            break;
        }
    }
    found += certain(shared, app, audience, doubtful).await?;
    let whole = lists.next(shared).await?.is_none();
    let (Some(last), false) = (last, whole) else {
        return Ok(Count { registrations: found, exact: true });
    };
    Ok(Count { registrations: part.extrapolate(found, last), exact: false })
}

/// How many of these registrations the expression holds for, from what is stored of each.
async fn certain(shared: &Arc<Shared>, app: &AppId, audience: &Audience, regids: Vec<RegId>) -> Result<u64, Failure> {
    let found = shared.registrations.read(&regids).await?;
    let holds = found.iter().flatten().filter(|found| found.app == *app && judge::holds(audience, *found));
    Ok(holds.count() as u64)
}

/// Registrations whose ids begin with numbers of this range, big-endian, both ends included.
#[derive(Debug, Clone, Copy)]
struct Part {
    first: u64,
    last: u64,
}

impl Part {
    const HALVES: [Self; 2] = [Self { first: 0, last: u64::MAX / 2 }, Self { first: u64::MAX / 2 + 1, last: u64::MAX }];

    /// What was found up to an id stands for what follows it.
    fn extrapolate(self, found: u64, up_to: RegId) -> u64 {
        let seen = u128::from(head(up_to).saturating_sub(self.first)) + 1;
        let all = u128::from(self.last - self.first) + 1;
        u64::try_from(u128::from(found) * all / seen).unwrap_or(u64::MAX)
    }

    /// The id that comes right before all of them.
    fn after(self) -> Option<RegId> {
        let mut regid = RegId([0xff; 24]);
        regid.0[..8].copy_from_slice(&self.first.checked_sub(1)?.to_be_bytes());
        Some(regid)
    }
}

/// The number that an id begins with.
fn head(regid: RegId) -> u64 {
    let mut head = [0; 8];
    head.copy_from_slice(&regid.0[..8]);
    u64::from_be_bytes(head)
}

/// A name or topic of the expression, or everyone.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Leaf {
    Everyone,
    Topic(TopicName),
    Name(Name),
}

/// Members of all leaves of an expression in one part, gone through at once in order of id.
struct Lists {
    app: AppId,
    part: Part,
    all: Vec<List>,
    /// Which registration the lists stand at.
    at: Option<RegId>,
}

struct List {
    leaf: Leaf,
    page: VecDeque<RegId>,
    after: Option<RegId>,
    whole: bool,
    holds: bool,
}

impl Lists {
    fn of(app: &AppId, audience: &Audience, part: Part) -> Self {
        let mut leaves = Vec::new();
        leaves_of(audience, &mut leaves);
        let mut lists = Self { app: app.clone(), part, all: Vec::new(), at: None };
        for leaf in leaves {
            lists.add(leaf);
        }
        // May it hold for a registration that no name of it holds for? Then all have to be gone through.
        if audience.evaluate(&lists) != Some(false) {
            lists.add(Leaf::Everyone);
        }
        lists
    }

    fn add(&mut self, leaf: Leaf) {
        if self.all.iter().all(|list| list.leaf != leaf) {
            self.all.push(List { leaf, page: VecDeque::new(), after: self.part.after(), whole: false, holds: false });
        }
    }

    /// Goes on to the next registration that is in any of the lists.
    async fn next(&mut self, shared: &Shared) -> Result<Option<RegId>, Failure> {
        for list in &mut self.all {
            if list.page.is_empty() && !list.whole {
                list.fill(shared, &self.app, self.part).await?;
            }
        }
        self.at = self.all.iter().filter_map(|list| list.page.front()).min().copied();
        let Some(at) = self.at else { return Ok(None) };
        for list in &mut self.all {
            list.holds = list.page.pop_front_if(|regid| *regid == at).is_some();
        }
        Ok(Some(at))
    }

    fn holds(&self, leaf: &Leaf) -> bool {
        self.all.iter().any(|list| list.holds && list.leaf == *leaf)
    }
}

impl List {
    async fn fill(&mut self, shared: &Shared, app: &AppId, part: Part) -> Result<(), Failure> {
        let mut page = match &self.leaf {
            Leaf::Everyone => shared.topics.everyone(app, self.after, PAGE).await?,
            Leaf::Topic(topic) => shared.topics.members(app, topic, self.after, PAGE).await?,
            Leaf::Name(name) => shared.names.members(app, name, self.after, PAGE).await?,
        };
        let full = page.len() >= PAGE;
        self.after = page.last().copied();
        page.truncate(page.partition_point(|regid| head(*regid) <= part.last));
        self.whole = !full || page.len() < PAGE;
        self.page = page.into();
        Ok(())
    }
}

fn leaves_of(audience: &Audience, leaves: &mut Vec<Leaf>) {
    match audience {
        Audience::Everyone => leaves.push(Leaf::Everyone),
        Audience::Topic(topic) => leaves.push(Leaf::Topic(topic.clone())),
        Audience::Alias(alias) => leaves.push(Leaf::Name(Name::Alias(alias.clone()))),
        Audience::UserAccount(user_account) => leaves.push(Leaf::Name(Name::UserAccount(user_account.clone()))),
        Audience::Attribute(_) => {}
        Audience::And(a, b) | Audience::Or(a, b) => {
            leaves_of(a, leaves);
            leaves_of(b, leaves);
        }
        Audience::Not(a) => leaves_of(a, leaves),
    }
}

/// The registration at which the lists stand, as far as names tell: `None` where it hangs on an attribute.
impl Evaluate for Lists {
    type Set = Option<bool>;

    fn everyone(&self) -> Option<bool> {
        Some(true)
    }

    fn topic(&self, topic: &TopicName) -> Option<bool> {
        Some(self.holds(&Leaf::Topic(topic.clone())))
    }

    fn alias(&self, alias: &Alias) -> Option<bool> {
        Some(self.holds(&Leaf::Name(Name::Alias(alias.clone()))))
    }

    fn user_account(&self, user_account: &UserAccount) -> Option<bool> {
        Some(self.holds(&Leaf::Name(Name::UserAccount(user_account.clone()))))
    }

    fn attribute(&self, _: &Comparison) -> Option<bool> {
        None
    }

    fn and(&self, a: Option<bool>, b: Option<bool>) -> Option<bool> {
        match (a, b) {
            (Some(false), _) | (_, Some(false)) => Some(false),
            (Some(true), Some(true)) => Some(true),
            _ => None,
        }
    }

    fn or(&self, a: Option<bool>, b: Option<bool>) -> Option<bool> {
        self.and(a.map(|a| !a), b.map(|b| !b)).map(|both| !both)
    }

    fn not(&self, a: Option<bool>) -> Option<bool> {
        a.map(|a| !a)
    }
}

/// Broadcasts whose audience is to be counted when there is time.
pub(crate) struct Queue(mpsc::Sender<Arc<Message>>);

/// Counts them.
pub(crate) struct Counter(mpsc::Receiver<Arc<Message>>);

/// A queue and its counter.
pub(crate) fn queue() -> (Queue, Counter) {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    (Queue(sender), Counter(receiver))
}

impl Queue {
    /// Counts the audience of a broadcast soon. One that is not counted is counted when somebody asks for its state.
    pub(crate) fn count_later(&self, shared: &Shared, message: Arc<Message>) {
        if self.0.try_send(message).is_err() {
            shared.metrics.broadcasts_uncounted.inc();
        }
    }
}

impl Counter {
    /// Runs until `drain` is cancelled. The sizes of audiences that were counted lately are used again.
    pub(crate) async fn run(mut self, shared: Arc<Shared>, drain: CancellationToken) {
        let mut known = Known::default();
        loop {
            let message = tokio::select! {
                biased;
                () = drain.cancelled() => return,
                message = self.0.recv() => message,
            };
            let Some(message) = message else { return };
            if let Err(failure) = known.count(&shared, &message).await {
                tracing::debug!(id = %message.id, %failure, "the audience of a broadcast was not counted");
            }
            shared.metrics.ran("audience_counts", shared.clock.now_ms());
        }
    }
}

#[derive(Default)]
struct Known(BTreeMap<(AppId, String), (u64, Count)>);

impl Known {
    const FRESH_MS: u64 = 30_000;
    const MAX: usize = 256;

    async fn count(&mut self, shared: &Arc<Shared>, message: &Message) -> Result<(), Failure> {
        let Some(audience) = &message.audience else { return Ok(()) };
        let now_ms = shared.clock.now_ms();
        let key = (message.app.clone(), audience.to_string());
        let fresh = self.0.get(&key).filter(|(at_ms, _)| now_ms < at_ms + Self::FRESH_MS).map(|(_, count)| *count);
        let count = match fresh {
            Some(count) => count,
            None => count(shared, &message.app, audience).await?,
        };
        if self.0.len() >= Self::MAX {
            self.0.clear();
        }
        if fresh.is_none() {
            self.0.insert(key, (now_ms, count));
        }
        shared.counts.today(now_ms, &message.app, |day| day.broadcast_recipients += count.registrations);
        let mut batch = Batch::default();
        let resolved = Resolved { registrations: count.registrations, exact: count.exact };
        batch.resolved(&message.app, message.id, keep_until(shared, message.id), resolved);
        batch.write(shared.store.as_ref()).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_in_a_half_of_a_part_is_doubled() {
        let regid = |head: u64| {
            let mut regid = RegId([0xff; 24]);
            regid.0[..8].copy_from_slice(&head.to_be_bytes());
            regid
        };
        let [lower, upper] = Part::HALVES;
        assert_eq!(lower.extrapolate(100, regid(u64::MAX / 4)), 200);
        assert_eq!(lower.extrapolate(100, regid(lower.last)), 100);
        assert_eq!(upper.extrapolate(100, regid(upper.first + u64::MAX / 4)), 200);
        assert_eq!(upper.extrapolate(100, regid(u64::MAX)), 100);
        assert_eq!(lower.extrapolate(u64::MAX, regid(0)), u64::MAX, "no overflow");
    }

    #[test]
    fn the_halves_are_all_ids_and_meet_nowhere() {
        let [lower, upper] = Part::HALVES;
        assert_eq!((lower.after(), upper.last), (None, u64::MAX));
        assert_eq!(upper.after().map(head), Some(lower.last), "the last id of the lower half comes before the upper");
        assert_eq!(upper.first, lower.last + 1);
    }
}
