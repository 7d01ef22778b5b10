//! Counting: what was delivered and clicked of each broadcast, and what each app did on each day.
//!
//! Counts are gathered in memory and written about once a second, as the absolute numbers of this life of the process in a
//! cell of its own; readers add the lives up. So a write that comes twice counts once, and a crash loses at most what was
//! counted since the last write. A delivered broadcast counts for good only when a written cursor covers it: until then
//! it would be delivered, and counted, again after a crash.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use idl::bus::{Reply, Request};
use idl::contract::bus as wire;
use idl::error::Failure;
use idl::ids::{AppId, MessageId};
use idl::message::TTL_MS_MAX;
use jiff::Timestamp;
use jiff::tz::Offset;
use schema::batch::Batch;
use schema::days::DayCounts;
use schema::records::Tally;
use tokio::sync::{RwLock, RwLockReadGuard};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::accounts::signed;
use crate::apps::parse;
use crate::{Shared, others, pokes};

const DAY_MS: u64 = 24 * 3600 * 1000;
/// How often counts are written.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// Broadcasts that are counted at one time. Beyond it those that have not changed make room, and if all have, nothing is
/// counted of a further one until they are written.
const BROADCASTS_MAX: usize = 65_536;
/// How long the counters of a day are kept: longer than the time that one request may ask for.
const DAYS_KEPT_MS: u64 = 400 * DAY_MS;
/// Messages looked up or written in one call.
const CHUNK: usize = 500;

/// What is counted and not yet written.
#[derive(Default)]
pub(crate) struct Counts {
    state: Mutex<State>,
    /// Counters that came into being in this life: each has a cell of its own.
    made: AtomicU64,
    /// Taken for writing: one at a time, since an older count must not be written over a newer one; and not while somebody
    /// adds what is stored to what is not.
    writing: RwLock<()>,
}

#[derive(Default)]
struct State {
    broadcasts: HashMap<(AppId, MessageId), Broadcast>,
    days: BTreeMap<u32, HashMap<AppId, Day>>,
    /// Since the epoch, and the same in the calendar.
    today: (u64, u32),
}

struct Broadcast {
    /// Names its cell.
    life: u128,
    /// Acknowledged, but not covered by a written cursor.
    live: u64,
    tally: Tally,
    /// The tally as it is stored.
    written: Tally,
    dirty: bool,
    /// It is a broadcast of the app: a device may acknowledge what it likes.
    verified: bool,
    /// Deliveries that the day has to count once it is verified.
    for_the_day: u64,
}

#[derive(Default, Clone)]
struct Day {
    counts: DayCounts,
    /// The counts as they are stored.
    written: DayCounts,
    dirty: bool,
}

impl Counts {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn broadcast<'a>(
        &self,
        state: &'a mut State,
        shared: &Shared,
        app: &AppId,
        id: MessageId,
    ) -> Option<&'a mut Broadcast> {
        let key = (app.clone(), id);
        if !state.broadcasts.contains_key(&key) && state.broadcasts.len() >= BROADCASTS_MAX {
            state.broadcasts.retain(|_, broadcast| broadcast.dirty || broadcast.live > 0);
            if state.broadcasts.len() >= BROADCASTS_MAX {
                shared.metrics.counts_dropped.inc();
                return None;
            }
        }
        let life = || shared.life.0.wrapping_add(u128::from(self.made.fetch_add(1, Ordering::Relaxed)));
        Some(state.broadcasts.entry(key).or_insert_with(|| Broadcast {
            life: life(),
            live: 0,
            tally: Tally::default(),
            written: Tally::default(),
            dirty: false,
            verified: false,
            for_the_day: 0,
        }))
    }

    /// A device acknowledged broadcasts for the first time.
    pub(crate) fn acknowledged(&self, shared: &Shared, app: &AppId, ids: &[MessageId]) {
        let mut state = self.state();
        for id in ids {
            if let Some(broadcast) = self.broadcast(&mut state, shared, app, *id) {
                broadcast.live += 1;
            }
        }
    }

    /// A written cursor covers these acknowledgements.
    pub(crate) fn settled(&self, shared: &Shared, app: &AppId, ids: &[MessageId]) {
        let now_ms = shared.clock.now_ms();
        let mut state = self.state();
        let mut for_the_day = 0;
        for id in ids {
            if let Some(broadcast) = self.broadcast(&mut state, shared, app, *id) {
                broadcast.live = broadcast.live.saturating_sub(1);
                broadcast.tally.delivered += 1;
                broadcast.dirty = true;
                if broadcast.verified {
                    for_the_day += 1;
                } else {
                    broadcast.for_the_day += 1;
                }
            }
        }
        if for_the_day > 0 {
            state.today(now_ms, app, |day| day.delivered += for_the_day);
        }
    }

    /// Whoever remembered these acknowledgements is gone before a cursor covered them: the deliveries come again, and so do
    /// their acknowledgements.
    pub(crate) fn withdrawn(&self, app: &AppId, ids: &[MessageId]) {
        let mut state = self.state();
        for id in ids {
            if let Some(broadcast) = state.broadcasts.get_mut(&(app.clone(), *id)) {
                broadcast.live = broadcast.live.saturating_sub(1);
            }
        }
    }

    /// A user tapped on a broadcast; counted once for each registration by the caller.
    pub(crate) fn clicked(&self, shared: &Shared, app: &AppId, id: MessageId) {
        let mut state = self.state();
        if let Some(broadcast) = self.broadcast(&mut state, shared, app, id) {
            broadcast.tally.clicked += 1;
            broadcast.dirty = true;
        }
    }

    /// Adds to what the app did today.
    pub(crate) fn today(&self, now_ms: u64, app: &AppId, with: impl FnOnce(&mut DayCounts)) {
        self.state().today(now_ms, app, with);
    }

    /// Nothing is written until this is dropped: hold it while what is stored and what is [unwritten](Self::unwritten) are
    /// read, so that nothing is counted twice, or not at all.
    pub(crate) async fn hold_still(&self) -> RwLockReadGuard<'_, ()> {
        self.writing.read().await
    }

    /// What this life counted and has not written yet of a broadcast: to be added to what is stored.
    pub(crate) fn unwritten(&self, app: &AppId, id: MessageId) -> Tally {
        let state = self.state();
        let Some(broadcast) = state.broadcasts.get(&(app.clone(), id)) else { return Tally::default() };
        let Broadcast { live, tally, written, .. } = broadcast;
        Tally {
            delivered: live + tally.delivered.saturating_sub(written.delivered),
            clicked: tally.clicked.saturating_sub(written.clicked),
        }
    }

    /// The same of an app's day. Deliveries of broadcasts that no written cursor covers are those of today.
    pub(crate) fn unwritten_day(&self, app: &AppId, day: u32, today: u32) -> DayCounts {
        let state = self.state();
        let mut sum = state.day(app, day).map(|day| since(&day.counts, &day.written)).unwrap_or_default();
        if day == today {
            let of_app = state.broadcasts.iter().filter(|((of, _), counted)| of == app && counted.verified);
            sum.delivered += of_app.map(|(_, counted)| counted.live).sum::<u64>();
        }
        sum
    }

    /// What this life counted on one day, written or not.
    pub(crate) fn day(&self, app: &AppId, day: u32) -> DayCounts {
        self.state().day(app, day).map(|day| day.counts).unwrap_or_default()
    }

    /// Writes what has changed. What can't be written is tried again with the next call.
    pub(crate) async fn flush(&self, shared: &Arc<Shared>) -> Result<(), schema::StoreError> {
        self.verify(shared).await?;
        let _writing = self.writing.write().await;
        let now_ms = shared.clock.now_ms();
        let mut batch = Batch::default();
        let (mut broadcasts, mut days) = (Vec::new(), Vec::new());
        {
            let mut state = self.state();
            for ((app, id), broadcast) in state.broadcasts.iter_mut().filter(|(_, b)| b.dirty && b.verified) {
                broadcast.dirty = false;
                batch.tally(app, *id, keep_until(shared, *id), broadcast.life, broadcast.tally);
                broadcasts.push(((app.clone(), *id), broadcast.tally));
            }
            for (day, apps) in &mut state.days {
                for (app, counted) in apps.iter_mut().filter(|(_, counted)| counted.dirty) {
                    counted.dirty = false;
                    let keep_until_ms = now_ms.saturating_add(DAYS_KEPT_MS);
                    batch.day(app, *day, shared.life.0, &counted.counts, keep_until_ms);
                    days.push((*day, app.clone(), counted.counts));
                }
            }
        }
        let written = batch.write(shared.store.as_ref()).await;
        let mut state = self.state();
        for (key, tally) in broadcasts {
            match state.broadcasts.get_mut(&key) {
                Some(broadcast) if written.is_ok() => broadcast.written = tally,
                Some(broadcast) => broadcast.dirty = true,
                None => {}
            }
        }
        for (day, app, counts) in days {
            match state.days.get_mut(&day).and_then(|apps| apps.get_mut(&app)) {
                Some(day) if written.is_ok() => day.written = counts,
                Some(day) => day.dirty = true,
                None => {}
            }
        }
        // What is over is forgotten: yesterday may still be added to.
        let yesterday = day_of(now_ms.saturating_sub(DAY_MS));
        state.days.retain(|day, apps| *day >= yesterday || apps.values().any(|counted| counted.dirty));
        written
    }

    /// Drops what is counted of what is no broadcast.
    pub(crate) async fn verify(&self, shared: &Arc<Shared>) -> Result<(), schema::StoreError> {
        let unknown: Vec<(AppId, MessageId)> = {
            let state = self.state();
            let unverified = state.broadcasts.iter().filter(|(_, broadcast)| !broadcast.verified);
            unverified.map(|(key, _)| key.clone()).collect()
        };
        let mut by_app: BTreeMap<AppId, Vec<MessageId>> = BTreeMap::new();
        for (app, id) in unknown {
            by_app.entry(app).or_default().push(id);
        }
        for (app, ids) in by_app {
            for ids in ids.chunks(CHUNK) {
                let records = shared.records.get_many(&app, ids).await?;
                let now_ms = shared.clock.now_ms();
                let mut state = self.state();
                let mut for_the_day = 0;
                for (id, record) in ids.iter().zip(records) {
                    let key = (app.clone(), *id);
                    if !record.is_some_and(|record| record.broadcast) {
                        state.broadcasts.remove(&key);
                    } else if let Some(broadcast) = state.broadcasts.get_mut(&key) {
                        broadcast.verified = true;
                        for_the_day += std::mem::take(&mut broadcast.for_the_day);
                    }
                }
                if for_the_day > 0 {
                    state.today(now_ms, &app, |day| day.delivered += for_the_day);
                }
            }
        }
        Ok(())
    }
}

impl State {
    fn today(&mut self, now_ms: u64, app: &AppId, with: impl FnOnce(&mut DayCounts)) {
        if self.today.0 != now_ms / DAY_MS || self.today.1 == 0 {
            self.today = (now_ms / DAY_MS, day_of(now_ms));
        }
        let apps = self.days.entry(self.today.1).or_default();
        if !apps.contains_key(app) {
            apps.insert(app.clone(), Day::default());
        }
        // It was inserted when it was missing.
        let Some(day) = apps.get_mut(app) else { return };
        with(&mut day.counts);
        day.dirty = true;
    }

    fn day(&self, app: &AppId, day: u32) -> Option<&Day> {
        self.days.get(&day)?.get(app)
    }
}

/// What was counted since.
fn since(counts: &DayCounts, written: &DayCounts) -> DayCounts {
    DayCounts {
        alias_recipients: counts.alias_recipients - written.alias_recipients,
        user_account_recipients: counts.user_account_recipients - written.user_account_recipients,
        regid_recipients: counts.regid_recipients - written.regid_recipients,
        broadcast_recipients: counts.broadcast_recipients - written.broadcast_recipients,
        delivered: counts.delivered - written.delivered,
        clicked: counts.clicked - written.clicked,
        messages: counts.messages - written.messages,
    }
}

// ---------------------------------------------------------------------------------------------------------- other middles

/// What other middles counted of these broadcasts, and on these days, and have not written yet. Ask after reading what is
/// stored: what they write in between is missing for a moment, and never there twice. One that does not answer adds nothing.
pub(crate) async fn unwritten_elsewhere(
    shared: &Shared,
    app: &AppId,
    ids: &[MessageId],
    days: &[u32],
) -> (Vec<Tally>, Vec<DayCounts>) {
    let (mut tallies, mut counts) = (vec![Tally::default(); ids.len()], vec![DayCounts::default(); days.len()]);
    if shared.partitions.is_whole() || ids.is_empty() && days.is_empty() {
        return (tallies, counts);
    }
    let request = wire::Unwritten {
        app: app.to_string(),
        ids: ids.iter().map(|id| id.to_bytes().to_vec()).collect(),
        days: days.iter().map(|day| i32::try_from(*day).unwrap_or(0)).collect(),
    };
    for answer in others::ask(shared, Request::Unwritten(request)).await {
        let Ok(Reply::Unwritten(unwritten)) = answer else { continue };
        for (tally, counted) in tallies.iter_mut().zip(&unwritten.broadcasts) {
            tally.delivered = tally.delivered.saturating_add(unsigned(counted.delivered));
            tally.clicked = tally.clicked.saturating_add(unsigned(counted.clicked));
        }
        for (sum, day) in counts.iter_mut().zip(&unwritten.days) {
            *sum += DayCounts {
                alias_recipients: unsigned(day.alias_recipients),
                user_account_recipients: unsigned(day.user_account_recipients),
                regid_recipients: unsigned(day.regid_recipients),
                broadcast_recipients: unsigned(day.broadcast_recipients),
                delivered: unsigned(day.delivered),
                clicked: unsigned(day.clicked),
                messages: unsigned(day.messages),
            };
        }
    }
    (tallies, counts)
}

/// Another middle asks what this one counted and has not written.
pub(crate) async fn unwritten_here(shared: &Arc<Shared>, request: wire::Unwritten) -> Result<Reply, Failure> {
    let app: AppId = parse(&request.app)?;
    let ids = request.ids.iter().map(|id| pokes::message_id(id)).collect::<Result<Vec<_>, _>>()?;
    shared.counts.verify(shared).await?;
    // What is being written may be among what the other has read.
    let _still = shared.counts.hold_still().await;
    let today = day_of(shared.clock.now_ms());
    let counted = |id: MessageId| {
        let Tally { delivered, clicked } = shared.counts.unwritten(&app, id);
        wire::Counted { delivered: signed(delivered), clicked: signed(clicked) }
    };
    let day = |day: i32| {
        let day = u32::try_from(day).unwrap_or(0);
        shown(day, &shared.counts.unwritten_day(&app, day, today))
    };
    Ok(Reply::Unwritten(wire::UnwrittenCounts {
        broadcasts: ids.into_iter().map(counted).collect(),
        days: request.days.into_iter().map(day).collect(),
    }))
}

fn unsigned(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

/// The counts of a day as they are told.
pub(crate) fn shown(day: u32, counts: &DayCounts) -> wire::DayCounters {
    wire::DayCounters {
        day: day.to_string(),
        alias_recipients: signed(counts.alias_recipients),
        user_account_recipients: signed(counts.user_account_recipients),
        regid_recipients: signed(counts.regid_recipients),
        single_recipients: signed(counts.alias_recipients + counts.user_account_recipients + counts.regid_recipients),
        broadcast_recipients: signed(counts.broadcast_recipients),
        delivered: signed(counts.delivered),
        clicked: signed(counts.clicked),
        messages: signed(counts.messages),
    }
}

/// Writes counts about once a second until `drain` is cancelled.
pub(crate) async fn run(shared: Arc<Shared>, drain: CancellationToken) {
    let mut ticks = interval(FLUSH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = drain.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if let Err(error) = shared.counts.flush(&shared).await {
            tracing::warn!(%error, "counts could not be written; they are tried again");
        }
        shared.metrics.ran("counts", shared.clock.now_ms());
    }
}

/// Until when cells of a message are kept.
pub(crate) fn keep_until(shared: &Shared, id: MessageId) -> u64 {
    id.time_ms().saturating_add(TTL_MS_MAX).saturating_add(shared.config.record_retention_ms())
}

/// The day in UTC as `yyyymmdd`.
pub(crate) fn day_of(ms: u64) -> u32 {
    let at = Timestamp::from_millisecond(i64::try_from(ms).unwrap_or(i64::MAX)).unwrap_or(Timestamp::MAX);
    let date = Offset::UTC.to_datetime(at).date();
    let number = i64::from(date.year()) * 10_000 + i64::from(date.month()) * 100 + i64::from(date.day());
    u32::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_that_of_utc() {
        assert_eq!(day_of(0), 19_700_101);
        assert_eq!(day_of(1_796_115_600_000), 20_261_201);
        assert_eq!(day_of(1_796_083_199_999), 20_261_130);
        assert_eq!(day_of(u64::MAX), day_of(u64::MAX - 1));
    }
}
