//! Which partitions this middle has, for how long by its own clock, and which it is about to give away.
//!
//! A lease in Redis ends later than it is believed here: it is counted from before the sign of life was sent, less a
//! twentieth, by the monotonic clock of this process. So a process that stood still, or can't reach Redis, stops before
//! anybody else can begin. A partition is given away in order: it is marked as leaving, nothing more is read or handed out of
//! it, the middle says that it has left, all that was read is answered and acknowledged or dropped, and only then is the
//! lease released.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::entries::{EntryId, Slot};
use super::members::{View, wanted};
use super::outbox::Ack;
use super::{ProcessId, lock};
use crate::bus::{Hold, Lane, Owner, Term};
use crate::clock::SharedEntropy;
use crate::ids::Partition;

#[derive(Debug, Clone, Copy)]
struct Mine {
    term: Term,
    safe_until: Instant,
    leaving: Option<Leaving>,
}

#[derive(Debug, Clone, Copy)]
struct Leaving {
    since: Instant,
    /// The version from which on nobody reads it.
    version: u64,
    left: bool,
}

struct State {
    owner: Option<Arc<Owner>>,
    mine: [Option<Mine>; Partition::COUNT],
    terms: [Option<Term>; Partition::COUNT],
    detaching: bool,
    version: u64,
    /// How often a partition was claimed that a vanished middle had not released.
    orphaned: u64,
}

/// What is to be said of partitions with the next sign of life.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) renew: Vec<(Partition, Term)>,
    pub(super) claim: Vec<(Partition, Term)>,
    pub(super) release: Vec<(Partition, Term)>,
    /// Of what is claimed, so many had an owner who never released them: their leases ran out.
    orphaned: u64,
}

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Settled {
    pub(super) gained: usize,
    pub(super) lost: usize,
    pub(super) released: usize,
}

/// The partitions of this process's middle.
pub(super) struct Leases {
    me: ProcessId,
    lease: Duration,
    leaving_max: Duration,
    entropy: SharedEntropy,
    state: Mutex<State>,
    pub(super) changed: watch::Sender<u64>,
    /// For each lane the version that its reader acts by.
    honoured: [AtomicU64; 3],
    /// For each lane, partitions whose pending entries are to be looked for again.
    reclaim: [AtomicU64; 3],
}

impl Leases {
    pub(super) fn new(me: ProcessId, lease: Duration, leaving_max: Duration, entropy: SharedEntropy) -> Self {
        let nothing = State {
            owner: None,
            mine: [None; Partition::COUNT],
            terms: [None; Partition::COUNT],
            detaching: false,
            version: 0,
            orphaned: 0,
        };
        Self {
            me,
            lease,
            leaving_max,
            entropy,
            state: Mutex::new(nothing),
            changed: watch::Sender::new(0),
            honoured: Default::default(),
            reclaim: Default::default(),
        }
    }

    pub(super) fn attach(&self, owner: Arc<Owner>) {
        let mut state = lock(&self.state);
        state.owner = Some(owner);
        state.detaching = false;
    }

    /// All is to be given away, and nothing to be claimed.
    pub(super) fn detach(&self) {
        lock(&self.state).detaching = true;
    }

    /// True while this process has a middle that doesn't go.
    pub(super) fn is_middle(&self) -> bool {
        let state = lock(&self.state);
        state.owner.is_some() && !state.detaching
    }

    pub(super) fn is_detaching(&self) -> bool {
        lock(&self.state).detaching
    }

    /// How many partitions are this middle's, those that it is giving away among them.
    pub(super) fn count(&self) -> usize {
        lock(&self.state).mine.iter().flatten().count()
    }

    pub(super) fn is_leaving_any(&self) -> bool {
        lock(&self.state).mine.iter().flatten().any(|mine| mine.leaving.is_some())
    }

    pub(super) fn plan(&self, view: &View, in_hand: &InHand) -> Plan {
        let middles = self.candidates(view);
        let state = lock(&self.state);
        let mut plan = Plan::default();
        if state.owner.is_none() {
            return plan;
        }
        let honoured = self.honoured.iter().map(|version| version.load(Ordering::Acquire)).min().unwrap_or(0);
        let now = Instant::now();
        for partition in Partition::all() {
            match state.mine[partition.number()] {
                Some(mine) => {
                    let done = mine.leaving.is_some_and(|leaving| {
                        let in_order = leaving.left && honoured >= leaving.version && in_hand.under_way(partition) == 0;
                        in_order || now.duration_since(leaving.since) >= self.leaving_max
                    });
                    let list = if done { &mut plan.release } else { &mut plan.renew };
                    list.push((partition, mine.term));
                }
                None => {
                    if !state.detaching && view.is_free(partition) && wanted(partition, &middles) == Some(self.me) {
                        plan.claim.push((partition, self.term()));
                        plan.orphaned += u64::from(view.owner(partition).is_some());
                    }
                }
            }
        }
        plan
    }

    /// Acts on what Redis said to a plan that was sent at that moment.
    pub(super) fn settle(&self, plan: &Plan, view: &View, sent_at: Instant) -> Settled {
        let safe_until = sent_at + self.lease - self.lease / 20;
        let mut settled = Settled::default();
        let middles = self.candidates(view);
        let mut state = lock(&self.state);
        if state.owner.is_none() {
            return settled;
        }
        let is_mine = |(partition, term): &(Partition, Term)| {
            view.owner(*partition).is_some_and(|owned| owned.process == self.me && owned.term == *term)
        };
        for renewed in &plan.renew {
            let mine = &mut state.mine[renewed.0.number()];
            if is_mine(renewed) {
                if let Some(mine) = mine.as_mut().filter(|mine| mine.term == renewed.1) {
                    mine.safe_until = safe_until;
                }
            } else if mine.take().is_some() {
                settled.lost += 1;
            }
        }
        for released in &plan.release {
            if state.mine[released.0.number()].take_if(|mine| mine.term == released.1).is_some() {
                settled.released += 1;
            }
        }
        for claimed in plan.claim.iter().filter(|claimed| is_mine(claimed)) {
            state.mine[claimed.0.number()] = Some(Mine { term: claimed.1, safe_until, leaving: None });
            settled.gained += 1;
        }
        if settled.gained > 0 {
            state.orphaned += plan.orphaned;
        }
        let (next, now) = (state.version + 1, Instant::now());
        let detaching = state.detaching;
        for partition in Partition::all() {
            let to_another = detaching || wanted(partition, &middles).is_some_and(|process| process != self.me);
            if let Some(mine) = &mut state.mine[partition.number()]
                && mine.leaving.is_none()
                && to_another
            {
                mine.leaving = Some(Leaving { since: now, version: next, left: false });
            }
            state.terms[partition.number()] = view.owner(partition).map(|owned| owned.term);
        }
        self.publish(&mut state);
        settled
    }

    /// Gives up what may be another's by now.
    pub(super) fn expire(&self) -> usize {
        let now = Instant::now();
        let mut state = lock(&self.state);
        let mut lost = 0;
        for mine in &mut state.mine {
            lost += usize::from(mine.take_if(|mine| mine.safe_until <= now).is_some());
        }
        if lost > 0 {
            self.publish(&mut state);
        }
        lost
    }

    /// When the first lease ends by this process's clock.
    pub(super) fn next_end(&self) -> Option<Instant> {
        lock(&self.state).mine.iter().flatten().map(|mine| mine.safe_until).min()
    }

    /// The middle has left a partition, or all of them, for it is gone.
    pub(super) fn left(&self, partition: Option<Partition>) {
        let mut state = lock(&self.state);
        for each in Partition::all().filter(|each| partition.is_none_or(|partition| partition == *each)) {
            if let Some(leaving) = state.mine[each.number()].as_mut().and_then(|mine| mine.leaving.as_mut()) {
                leaving.left = true;
            }
        }
    }

    /// What is to be read, and the version of that.
    pub(super) fn readable(&self) -> (u64, Vec<(Partition, Term)>) {
        let now = Instant::now();
        let state = lock(&self.state);
        let readable = Partition::all().filter_map(|partition| {
            let mine = state.mine[partition.number()]?;
            (mine.leaving.is_none() && mine.safe_until > now).then_some((partition, mine.term))
        });
        (state.version, readable.collect())
    }

    /// A lane's reader has nothing under way that is not of that version.
    pub(super) fn honour(&self, lane: Lane, version: u64) {
        self.honoured[lane as usize].store(version, Ordering::Release);
    }

    /// True if what was read of a partition in that term may be handed to the middle at this moment.
    pub(super) fn may_hand_over(&self, partition: Partition, term: Term) -> bool {
        let mine = lock(&self.state).mine[partition.number()];
        mine.is_some_and(|mine| mine.term == term && mine.leaving.is_none() && mine.safe_until > Instant::now())
    }

    pub(super) fn reclaim(&self, slot: Slot) {
        self.reclaim[slot.lane as usize].fetch_or(1 << slot.partition.number(), Ordering::AcqRel);
    }

    /// The partitions of a lane that were asked for by [`Self::reclaim`] since.
    pub(super) fn to_reclaim(&self, lane: Lane) -> Vec<Partition> {
        let bits = self.reclaim[lane as usize].swap(0, Ordering::AcqRel);
        Partition::all().filter(|partition| bits >> partition.number() & 1 == 1).collect()
    }

    /// Those who may own something: living middles, this one only while it doesn't go.
    fn candidates(&self, view: &View) -> Vec<ProcessId> {
        let mut middles = view.middles();
        middles.retain(|process| *process != self.me);
        if self.is_middle() {
            middles.push(self.me);
        }
        middles
    }

    fn term(&self) -> Term {
        let mut bytes = [0; 16];
        self.entropy.fill(&mut bytes);
        Term(u128::from_be_bytes(bytes))
    }

    fn publish(&self, state: &mut State) {
        let holds = state.mine.map(|mine| match mine {
            None => Hold::No,
            Some(Mine { term, leaving: None, .. }) => Hold::Owned(term),
            Some(Mine { term, .. }) => Hold::Leaving(term),
        });
        // The middle knows before a reader may act by it.
        if let Some(owner) = &state.owner {
            owner.set(holds, state.terms, state.orphaned);
        }
        state.version += 1;
        self.changed.send_replace(state.version);
    }
}

/// Requests that were read and are not acknowledged: none of them is handed over twice, and a partition is not given away
/// while the middle has one.
#[derive(Default)]
pub(super) struct InHand {
    entries: Mutex<HashSet<(Slot, EntryId)>>,
    under_way: Vec<AtomicUsize>,
    late: Mutex<Vec<Late>>,
}

/// A request that the middle dropped unanswered: it is acknowledged once nobody waits any more.
#[derive(Debug, Clone, Copy)]
struct Late {
    deadline: Instant,
    slot: Slot,
    entry: EntryId,
    term: Term,
}

/// Beyond, what is dropped unanswered is acknowledged at once.
const LATE_MAX: usize = 65_536;

impl InHand {
    pub(super) fn new() -> Self {
        let under_way = std::iter::repeat_with(AtomicUsize::default).take(Partition::COUNT).collect();
        Self { under_way, ..Self::default() }
    }

    /// False if it is here already.
    pub(super) fn take(&self, slot: Slot, entry: EntryId) -> bool {
        let new = lock(&self.entries).insert((slot, entry));
        if new {
            self.under_way[slot.partition.number()].fetch_add(1, Ordering::AcqRel);
        }
        new
    }

    /// Left as it is in Redis: for the next owner.
    pub(super) fn leave(&self, slot: Slot, entry: EntryId) {
        if lock(&self.entries).remove(&(slot, entry)) {
            self.under_way[slot.partition.number()].fetch_sub(1, Ordering::AcqRel);
        }
    }

    pub(super) fn acknowledged(&self, ack: Ack) {
        lock(&self.entries).remove(&(ack.slot, ack.entry));
        if ack.counted {
            self.under_way[ack.slot.partition.number()].fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Dropped without an answer, while the partition is this middle's. True if it is to be acknowledged now.
    pub(super) fn drop_late(&self, slot: Slot, entry: EntryId, term: Term, deadline: Instant) -> bool {
        self.under_way[slot.partition.number()].fetch_sub(1, Ordering::AcqRel);
        let mut late = lock(&self.late);
        let full = late.len() >= LATE_MAX;
        if !full {
            late.push(Late { deadline, slot, entry, term });
        }
        full
    }

    /// Those of a lane whose deadline has passed, each with whether it is still this middle's to acknowledge.
    pub(super) fn overdue(&self, lane: Lane, leases: &Leases) -> Vec<Ack> {
        let now = Instant::now();
        let mut due = Vec::new();
        lock(&self.late).retain(|late| {
            let is_due = late.slot.lane == lane && late.deadline <= now;
            if is_due {
                due.push(*late);
            }
            !is_due
        });
        let mut acks = Vec::new();
        for Late { slot, entry, term, .. } in due {
            if leases.may_hand_over(slot.partition, term) {
                acks.push(Ack { slot, entry, counted: false });
            } else {
                lock(&self.entries).remove(&(slot, entry));
            }
        }
        acks
    }

    pub(super) fn under_way(&self, partition: Partition) -> usize {
        self.under_way[partition.number()].load(Ordering::Acquire)
    }
}
