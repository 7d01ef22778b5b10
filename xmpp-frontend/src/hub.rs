//! Connections by slot, name and epoch, the index over them, and what the middle tier writes to them. A front has several
//! hubs, each with a share of its accounts.
//!
//! All of it is behind one lock that is held for short, bounded work: one connection, one batch, or one chunk of a
//! broadcast. Under it frames only go into outboxes; they are written once it is given back.

pub(crate) mod broadcasts;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use idl::audience::Audience;
use idl::contract::bus as wire;
use idl::ids::{AccountId, AppId, Epoch};
use tokio::sync::Notify;

use crate::close::Reason;
use crate::config::Limits;
use crate::form::Frame;
use crate::index::{Change, Index, Membership, Memberships};
use crate::line::{Line, Refused};
use crate::lock;
use crate::metrics::Metrics;
use crate::paced::Paced;
use crate::ring::Ring;
use crate::wheel::Wheel;

/// A share of the front's connections.
pub(crate) struct Hub {
    state: Mutex<State>,
    metrics: Arc<Metrics>,
    /// The first hub counts what all of them see.
    is_first: bool,
    /// Keeps the time of these connections.
    pub(crate) wheel: Arc<Wheel>,
    /// Wakes whoever writes paced broadcasts: somebody waits for a moment.
    pub(crate) paced: Notify,
}

struct State {
    slots: Vec<Option<Slot>>,
    free: Vec<u32>,
    /// The slots of each account: one for each of its resources.
    by_account: BTreeSet<(AccountId, u32)>,
    resumable: HashMap<Arc<str>, Arc<Line>>,
    index: Index,
    ring: Ring,
    paced: Paced,
    /// The paced broadcasts and who waits for them, as they were last told.
    measured: (i64, i64),
    /// Those that have something to write, once the lock is given back.
    written: Vec<Arc<Line>>,
}

/// One connection.
struct Slot {
    line: Arc<Line>,
    /// Order of the payloads that the middle tier handed over last; empty before the first.
    taken: Box<[u8]>,
    memberships: Memberships,
    /// Of the registrations that have left the index: up to which version a batch has nothing new about them.
    left: BTreeMap<AppId, i64>,
}

/// What became of index entries that came with a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applied {
    /// They are in force and nothing was missed.
    Whole,
    /// They are in force, but broadcasts since the request have been forgotten: the channel must be opened again.
    Wrapped,
    /// The connection is gone.
    Gone,
}

impl Hub {
    pub(crate) fn new(limits: &Limits, number: usize, metrics: Arc<Metrics>) -> Self {
        let state = State {
            slots: Vec::new(),
            free: Vec::new(),
            by_account: BTreeSet::new(),
            resumable: HashMap::new(),
            index: Index::default(),
            ring: Ring::new(limits.recent_broadcasts_max),
            paced: Paced::new(limits.paced_broadcasts_max, limits.paced_slots_max),
            measured: (0, 0),
            written: Vec::new(),
        };
        let wheel = Arc::new(Wheel::new(limits));
        Self { state: Mutex::new(state), metrics, is_first: number == 0, wheel, paced: Notify::new() }
    }

    /// Adds a connection. An older one of the same account and resource ends with `conflict`; if this one is the older,
    /// it is not added.
    pub(crate) fn attach(&self, line: &Arc<Line>) -> Result<(), Reason> {
        let mut state = lock(&self.state);
        let other = state.of_account(line.account()).find(|other| other.resource == line.resource).cloned();
        if let Some(other) = other {
            if other.epoch() > line.epoch() {
                return Err(Reason::Conflict);
            }
            other.close(Reason::Conflict);
            self.take_out(&mut state, &other);
        }
        let seat = Slot {
            line: Arc::clone(line),
            taken: Box::default(),
            memberships: Memberships::default(),
            left: BTreeMap::new(),
        };
        let slot = if let Some(slot) = state.free.pop() {
            if let Some(place) = state.slots.get_mut(slot as usize) {
                *place = Some(seat);
            }
            slot
        } else {
            state.slots.push(Some(seat));
            u32::try_from(state.slots.len() - 1).expect("connections_max is far below 2^32")
        };
        line.sits_at(slot);
        state.by_account.insert((line.account(), slot));
        self.metrics.lines.inc();
        Ok(())
    }

    /// Takes a connection out. Repeating it is harmless.
    pub(crate) fn detach(&self, line: &Arc<Line>) {
        if lock(&self.state).remove(line) {
            self.metrics.lines.dec();
        }
    }

    /// Makes a connection known by what its stream can be resumed with, until it is detached.
    pub(crate) fn allow_resuming(&self, line: &Arc<Line>, id: Arc<str>) {
        let mut state = lock(&self.state);
        if state.slot_of(line).is_some() {
            state.resumable.insert(id, Arc::clone(line));
        }
    }

    /// The connection whose stream that id resumes.
    pub(crate) fn resumable(&self, id: &str) -> Option<Arc<Line>> {
        lock(&self.state).resumable.get(id).cloned()
    }

    /// Who has that slot.
    pub(crate) fn line(&self, slot: u32) -> Option<Arc<Line>> {
        lock(&self.state).line(slot)
    }

    /// All connections.
    pub(crate) fn lines(&self) -> Vec<Arc<Line>> {
        lock(&self.state).slots.iter().flatten().map(|slot| Arc::clone(&slot.line)).collect()
    }

    /// The connections of an account.
    pub(crate) fn lines_of(&self, account: AccountId) -> Vec<Arc<Line>> {
        lock(&self.state).of_account(account).cloned().collect()
    }

    /// Ends the connections of an account whose token was issued before that time.
    pub(crate) fn revoke(&self, account: AccountId, issued_before_ms: u64) {
        let state = lock(&self.state);
        for line in state.of_account(account).filter(|line| line.login().issued_at_ms < issued_before_ms) {
            line.close(Reason::Revoked);
        }
    }

    /// The place in the ring from which broadcasts have to be replayed once the reply to a request that is sent now
    /// arrives.
    pub(crate) fn place(&self) -> u64 {
        lock(&self.state).ring.next_place()
    }

    /// Applies what a reply to a channel request brought: index entries first, then the frames, then the broadcasts
    /// since `place` that the new entries match and the old ones did not.
    pub(crate) fn apply(
        &self,
        line: &Arc<Line>,
        place: u64,
        changes: Vec<Change>,
        frames: Vec<Frame>,
        now_ms: u64,
    ) -> Applied {
        self.write(|state| self.apply_to(state, line, place, changes, frames, now_ms))
    }

    /// Gives the lock back before anything goes into a socket.
    fn write<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = lock(&self.state);
        let done = act(&mut state);
        let written = std::mem::take(&mut state.written);
        drop(state);
        for line in written {
            line.flush();
        }
        done
    }

    fn apply_to(
        &self,
        state: &mut State,
        line: &Arc<Line>,
        place: u64,
        changes: Vec<Change>,
        frames: Vec<Frame>,
        now_ms: u64,
    ) -> Applied {
        let Some(slot) = state.slot_of(line) else { return Applied::Gone };
        let mut before: HashMap<AppId, Option<Membership>> = HashMap::new();
        for change in changes {
            let app = change.app.clone();
            let old = state.change(slot, change, place);
            before.entry(app).or_insert(old);
        }
        for frame in frames {
            if state.put(line, frame).is_err() {
                return self.evict(state, line);
            }
        }
        if before.is_empty() { Applied::Whole } else { self.replay(state, slot, place, &before, now_ms) }
    }

    /// Applies items of a batch, each with its number there, and returns the numbers of those that found no connection with
    /// their epoch.
    pub(crate) fn deliver(&self, items: Vec<(i32, wire::FrontItem)>) -> Vec<i32> {
        if items.is_empty() {
            return Vec::new();
        }
        self.write(|state| {
            let gone = |(number, item)| (!self.deliver_item(state, item)).then_some(number);
            items.into_iter().filter_map(gone).collect()
        })
    }

    /// How many connections have a registration in the audience; `None` if that can't be read.
    pub(crate) fn count(&self, count: &wire::CountOnline) -> Option<i64> {
        let audience = Audience::try_from(&count.audience)
            .inspect_err(|error| tracing::warn!(%error, "an audience to count can't be read"))
            .ok()?;
        let slots = lock(&self.state).index.audience(&count.app.parse().ok()?, &audience);
        i64::try_from(slots.len()).ok()
    }

    fn deliver_item(&self, state: &mut State, item: wire::FrontItem) -> bool {
        let Some((slot, line)) = state.find(&item) else { return false };
        if item.conflict == Some(true) {
            line.close(Reason::Conflict);
            self.evict(state, &line);
            return true;
        }
        let place = state.ring.next_place();
        for change in read_changes(&item.index.unwrap_or_default()) {
            // A batch may be late; replies come in the order of what the device asked for.
            if !state.has_left(slot, &change) {
                state.change(slot, change, place);
            }
        }
        let Some(number) = item.channel.and_then(|number| u32::try_from(number).ok()) else { return true };
        if item.order.is_some_and(|order| !state.take_order(slot, order)) {
            self.metrics.items_late.inc();
            return true;
        }
        for bytes in item.payloads.unwrap_or_default() {
            if state.put(&line, Frame::payload(number, bytes)).is_err() {
                self.evict(state, &line);
                return false;
            }
            self.metrics.payloads_down.inc();
        }
        true
    }

    /// Takes a line out while its stream still has something to say.
    fn take_out(&self, state: &mut State, line: &Arc<Line>) {
        if state.remove(line) {
            self.metrics.lines.dec();
            self.wheel.see_off(Arc::clone(line));
        }
    }

    /// A line that takes no more frames takes no part any more; its owner does the rest.
    fn evict(&self, state: &mut State, line: &Arc<Line>) -> Applied {
        self.take_out(state, line);
        Applied::Gone
    }
}

impl State {
    fn line(&self, slot: u32) -> Option<Arc<Line>> {
        self.slots.get(slot as usize)?.as_ref().map(|slot| Arc::clone(&slot.line))
    }

    /// Puts a frame into a line's outbox; it is written once the lock is given back.
    fn put(&mut self, line: &Arc<Line>, frame: Frame) -> Result<(), Refused> {
        line.put(frame)?;
        if !self.written.last().is_some_and(|last| Arc::ptr_eq(last, line)) {
            self.written.push(Arc::clone(line));
        }
        Ok(())
    }

    fn find(&self, item: &wire::FrontItem) -> Option<(u32, Arc<Line>)> {
        let epoch = Epoch::from_bytes(&item.epoch).ok()?;
        let line = self.of_account(item.account.parse().ok()?).find(|line| line.epoch() == epoch)?;
        Some((line.slot(), Arc::clone(line)))
    }

    /// The connections of an account.
    fn of_account(&self, account: AccountId) -> impl Iterator<Item = &Arc<Line>> {
        let slots = self.by_account.range((account, 0)..=(account, u32::MAX));
        slots.filter_map(|(_, slot)| Some(&self.slots.get(*slot as usize)?.as_ref()?.line))
    }

    /// Where the line sits, if it does.
    fn slot_of(&self, line: &Arc<Line>) -> Option<u32> {
        let slot = line.slot();
        let seat = self.slots.get(slot as usize)?.as_ref()?;
        Arc::ptr_eq(&seat.line, line).then_some(slot)
    }

    /// True if payloads of this order come after those that were taken before.
    fn take_order(&mut self, slot: u32, order: Vec<u8>) -> bool {
        let Some(Some(seat)) = self.slots.get_mut(slot as usize) else { return false };
        let later = *order > *seat.taken;
        if later {
            seat.taken = order.into();
        }
        later
    }

    fn remove(&mut self, line: &Arc<Line>) -> bool {
        let Some(number) = self.slot_of(line) else { return false };
        self.by_account.remove(&(line.account(), number));
        if let Some(id) = line.resume_id() {
            self.resumable.remove(&id);
        }
        if let Some(slot) = self.slots.get_mut(number as usize).and_then(Option::take) {
            for (app, membership) in slot.memberships.iter() {
                self.index.remove(app, number, membership);
            }
        }
        self.free.push(number);
        true
    }

    /// True if the registration had left the index by that version.
    fn has_left(&self, slot: u32, change: &Change) -> bool {
        let Some(Some(seat)) = self.slots.get(slot as usize) else { return true };
        seat.left.get(&change.app).is_some_and(|version| change.version <= *version)
    }

    /// Puts a change in force unless what is known is newer, and returns what was there before. `since` is the place
    /// from which the new membership judges broadcasts.
    fn change(&mut self, slot: u32, change: Change, since: u64) -> Option<Membership> {
        let seat = self.slots.get_mut(slot as usize)?.as_mut()?;
        let old = seat.memberships.get(&change.app).cloned();
        match (&old, change.labels) {
            (Some(known), Some(_)) if known.version >= change.version => {
                // Nothing new; but what came between is replayed now, so it counts from there.
                if let Some(known) = seat.memberships.get_mut(&change.app) {
                    known.since = known.since.min(since);
                    known.joined = known.joined.min(since);
                }
            }
            (Some(known), None) if known.version > change.version => {}
            (known, labels) => {
                if let Some(known) = known {
                    self.index.remove(&change.app, slot, known);
                    seat.memberships.remove(&change.app);
                    seat.left.insert(change.app.clone(), change.version);
                }
                if let Some(labels) = labels {
                    seat.left.remove(&change.app);
                    let joined = known.as_ref().map_or(since, |known| known.joined.min(since));
                    let (app, labels) = self.index.insert(change.app, slot, labels);
                    seat.memberships.insert(app, Membership { version: change.version, labels, since, joined });
                }
            }
        }
        old
    }
}

/// Reads index entries; one that can't be read is left out, since the others still hold.
pub(crate) fn read_changes(entries: &[wire::IndexEntry]) -> Vec<Change> {
    let read = |entry| {
        Change::try_from(entry)
            .inspect_err(|error| tracing::warn!(%error, "an index entry from the middle tier can't be read"))
            .ok()
    };
    entries.iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use prometheus_client::registry::Registry;

    use super::broadcasts::Received;
    use super::*;
    use crate::channels::Work;
    use crate::sasl::Login;
    use crate::walk::Walk;

    const APP: &str = "com.example.demo";

    fn hub() -> Hub {
        Hub::new(&Limits::default(), 0, Arc::new(Metrics::register(&mut Registry::default())))
    }

    fn line(account: u128, epoch: u128) -> Arc<Line> {
        let login = Login { account: AccountId(account), issued_at_ms: 1 };
        let wheel = Arc::new(Wheel::new(&Limits::default()));
        Line::new(login, Epoch(epoch), "r", 16384, Work::default(), &wheel).0
    }

    fn attach(hub: &Hub, number: u128) -> Arc<Line> {
        let line = line(number, number);
        assert_eq!(hub.attach(&line), Ok(()));
        line
    }

    fn register(hub: &Hub, line: &Arc<Line>) {
        let change = Change { app: APP.parse().expect("an app id"), version: 1, labels: Some(Vec::new()) };
        assert_eq!(hub.apply(line, hub.place(), vec![change], vec![], 0), Applied::Whole);
    }

    fn broadcast(hub: &Hub) -> Walk {
        let mut walk = Walk::default();
        send(hub, 0, &mut walk);
        walk
    }

    fn send(hub: &Hub, id: u128, walk: &mut Walk) {
        let broadcast = wire::Broadcast {
            id: id.to_be_bytes().to_vec(),
            app: APP.to_owned(),
            audience: Audience::Everyone.to_wire(),
            payload: id.to_string().into(),
            expires_at_ms: 1,
            channel: 5,
            spread_ms: None,
            local_time_ms: None,
        };
        let before = walk.len();
        hub.broadcast(&Received::read(&broadcast).expect("a broadcast"), walk, 0);
        assert_eq!(walk.len(), before + 1, "a broadcast in time");
    }

    fn walk_on(hub: &Hub, walk: &mut Walk) {
        while walk.len() > 0 {
            hub.walk(walk, 1, 0);
        }
    }

    fn has_got(line: &Line) -> bool {
        !line.take_waiting().is_empty()
    }

    #[test]
    fn whoever_takes_a_slot_over_during_a_walk_does_not_get_what_was_for_the_one_before() {
        let hub = hub();
        let first = attach(&hub, 1);
        let second = attach(&hub, 2);
        register(&hub, &first);
        register(&hub, &second);
        let mut walk = broadcast(&hub);
        assert_eq!(hub.walk(&mut walk, 1, 0), 0);
        assert!(has_got(&first));
        hub.detach(&second);
        let third = attach(&hub, 3);
        assert_eq!(third.slot(), 1, "it has the slot of the second");
        register(&hub, &third);
        walk_on(&hub, &mut walk);
        assert!(!has_got(&third));
        let mut walk = broadcast(&hub);
        walk_on(&hub, &mut walk);
        assert!(has_got(&third));
    }

    /// A batch of the middle tier that says so of the line's registration.
    fn index_batch(line: &Line, version: i64) -> Vec<(i32, wire::FrontItem)> {
        let entry = wire::IndexEntry {
            app: APP.to_owned(),
            version,
            removed: None,
            topics: Some(Vec::new()),
            attributes: None,
            aliases: None,
            user_accounts: None,
        };
        let item = wire::FrontItem {
            account: line.account().to_string(),
            epoch: line.epoch().to_bytes().to_vec(),
            index: Some(vec![entry]),
            channel: None,
            payloads: None,
            conflict: None,
            order: None,
        };
        vec![(0, item)]
    }

    #[test]
    fn a_late_batch_does_not_bring_a_registration_back_that_has_left_the_index() {
        let hub = hub();
        let line = attach(&hub, 1);
        register(&hub, &line);
        let app: AppId = APP.parse().expect("an app id");
        let gone = Change { app: app.clone(), version: 3, labels: None };
        assert_eq!(hub.apply(&line, hub.place(), vec![gone], vec![], 0), Applied::Whole);
        hub.deliver(index_batch(&line, 2));
        assert_eq!(broadcast(&hub).next(), None, "push is off");
        // What the device has been answered since counts, also if it is another registration with a version of its own.
        register(&hub, &line);
        assert_eq!(broadcast(&hub).next(), Some(0));
        hub.deliver(index_batch(&line, 2));
        walk_on(&hub, &mut broadcast(&hub));
        assert!(has_got(&line));
    }

    #[test]
    fn a_walk_ends_when_its_broadcast_is_cancelled_and_the_others_go_on() {
        let hub = hub();
        let first = attach(&hub, 1);
        let second = attach(&hub, 2);
        register(&hub, &first);
        register(&hub, &second);
        let cancel = |id: u128, walk: &mut Walk| {
            let id = id.to_be_bytes().to_vec();
            hub.cancel(&wire::CancelBroadcast { id, app: APP.to_owned() }, walk);
        };
        let mut walk = broadcast(&hub);
        assert_eq!(hub.walk(&mut walk, 1, 0), 0);
        cancel(7, &mut walk);
        assert_eq!(walk.len(), 1);
        cancel(0, &mut walk);
        cancel(0, &mut walk);
        assert_eq!(walk.len(), 0);
        assert!(has_got(&first) && !has_got(&second));
        hub.cancel(&wire::CancelBroadcast { id: b"no id".to_vec(), app: APP.to_owned() }, &mut walk);
    }

    /// The numbers of the broadcasts that wait for a connection, in order: their payloads, in base 64.
    fn got(line: &Line) -> Vec<String> {
        let waiting = line.take_waiting();
        let payloads = waiting.split("number='5'>").skip(1).filter_map(|rest| rest.split('<').next());
        payloads.filter_map(|payload| String::from_utf8(STANDARD.decode(payload).ok()?).ok()).collect()
    }

    #[test]
    fn broadcasts_that_come_during_a_walk_join_it_where_it_is_and_reach_each_once_and_in_order() {
        let hub = hub();
        let lines: Vec<_> = (1..=6).map(|number| attach(&hub, number)).collect();
        for line in &lines {
            register(&hub, line);
        }
        let mut walk = Walk::default();
        let mut writes = 0;
        // Number 0 begins alone, 1 and 2 join behind two connections, 3 in the second round.
        for number in 0..4 {
            send(&hub, number, &mut walk);
            for _ in 0..[2, 0, 5, 0][usize::try_from(number).expect("small")] {
                hub.walk(&mut walk, 1, 0);
                writes += 1;
            }
        }
        assert_eq!(walk.len(), 3, "one has been to all");
        while walk.len() > 0 {
            hub.walk(&mut walk, 1, 0);
            writes += 1;
        }
        for line in &lines {
            assert_eq!(got(line), ["0", "1", "2", "3"]);
        }
        assert_eq!(writes, 13, "four times six deliveries");
    }

    #[test]
    fn no_more_than_so_many_broadcasts_are_under_way_and_those_that_wait_begin_when_one_has_been_to_all() {
        let hub = hub();
        let lines: Vec<_> = (1..=3).map(|number| attach(&hub, number)).collect();
        for line in &lines {
            register(&hub, line);
        }
        let mut walk = Walk::default();
        for number in 0..40 {
            send(&hub, number, &mut walk);
        }
        let first = hub.walk(&mut walk, 3, 0);
        assert_eq!((first, walk.len()), (16, 24));
        walk_on(&hub, &mut walk);
        let all: Vec<_> = (0..40).map(|number| number.to_string()).collect();
        assert!(lines.iter().all(|line| got(line) == all));
    }

    #[test]
    fn a_walk_ends_when_its_broadcast_expires() {
        let hub = hub();
        let line = attach(&hub, 1);
        register(&hub, &line);
        let mut walk = broadcast(&hub);
        hub.walk(&mut walk, 1, 1);
        assert_eq!(walk.len(), 0);
        assert!(!has_got(&line));
    }

    #[test]
    fn an_older_login_that_comes_late_is_not_let_in() {
        let hub = hub();
        let newer = attach(&hub, 2);
        let older = line(2, 1);
        assert_eq!(hub.attach(&older), Err(Reason::Conflict));
        assert_eq!(newer.closing(), None);
    }
}
