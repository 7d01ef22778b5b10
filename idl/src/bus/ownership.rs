//! Which middle does which part of the work.
//!
//! A bus that several middles share gives each partition to one of them at a time, for a *term*. A middle that is about to
//! give a partition away sees it [leaving](Hold::Leaving): it gets no more requests of it, finishes what it has, and says
//! [`Ownership::left`]. One that lost it, because its lease ran out, finds it gone at once.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, watch};

use crate::ids::{Partition, Shard};

/// One time of owning a partition: random, so that no two are the same. What a middle remembers of a partition is of one term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Term(pub u128);

/// What a middle has of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hold {
    /// Nothing: it is another's, or nobody's.
    #[default]
    No,
    /// It is this middle's.
    Owned(Term),
    /// It is still this middle's, which is to give it away.
    Leaving(Term),
}

impl Hold {
    /// The term, if the partition is this middle's.
    pub fn term(self) -> Option<Term> {
        match self {
            Self::No => None,
            Self::Owned(term) | Self::Leaving(term) => Some(term),
        }
    }
}

/// All partitions, as one middle sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct View {
    holds: [Hold; Partition::COUNT],
    /// The term of each partition's owner, whoever that is, as far as it is known.
    terms: [Option<Term>; Partition::COUNT],
    /// How often partitions came here whose owner had vanished.
    orphaned: u64,
}

/// A middle's view of the partitions. Clones see the same; each remembers for itself what [`Ownership::changed`] has told.
#[derive(Debug, Clone)]
pub struct Ownership {
    view: watch::Receiver<Arc<View>>,
    /// What `changed` has told.
    told: [Hold; Partition::COUNT],
    told_orphaned: u64,
    left: Option<mpsc::UnboundedSender<Partition>>,
    /// Keeps the view of a middle that owns all for ever.
    whole: Option<Arc<watch::Sender<Arc<View>>>>,
}

/// The other end: for backends of the bus.
#[derive(Debug)]
pub struct Owner {
    view: watch::Sender<Arc<View>>,
    left: Mutex<mpsc::UnboundedReceiver<Partition>>,
}

/// What has changed since it was asked last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// New here, or here for another term than before.
    pub gained: Vec<Partition>,
    /// Some of those had an owner that never gave them away: what it had begun and told nobody of is left undone.
    pub orphaned: bool,
    /// To be given away: finish, then say [`Ownership::left`].
    pub leaving: Vec<Partition>,
    /// Gone. Also those that are here again for another term.
    pub lost: Vec<Partition>,
}

impl Ownership {
    /// Of a middle that owns everything, as long as it lives.
    pub fn whole(term: Term) -> Self {
        let view =
            View { holds: [Hold::Owned(term); Partition::COUNT], terms: [Some(term); Partition::COUNT], orphaned: 0 };
        let (sender, receiver) = watch::channel(Arc::new(view));
        let told = [Hold::No; Partition::COUNT];
        Self { view: receiver, told, told_orphaned: 0, left: None, whole: Some(Arc::new(sender)) }
    }

    /// A view, and the end that changes it. Nothing is owned at first.
    pub fn shared() -> (Owner, Self) {
        let view = View { holds: [Hold::No; Partition::COUNT], terms: [None; Partition::COUNT], orphaned: 0 };
        let (sender, receiver) = watch::channel(Arc::new(view));
        // At most one entry for each partition and term.
        let (left, has_left) = mpsc::unbounded_channel();
        let told = [Hold::No; Partition::COUNT];
        let ownership = Self { view: receiver, told, told_orphaned: 0, left: Some(left), whole: None };
        (Owner { view: sender, left: Mutex::new(has_left) }, ownership)
    }

    /// True if there are no other middles, and never will be.
    pub fn is_whole(&self) -> bool {
        self.whole.is_some()
    }

    /// What this middle has of a partition.
    pub fn hold(&self, partition: Partition) -> Hold {
        self.view.borrow().holds[partition.number()]
    }

    /// True if the work of a shard is this middle's.
    pub fn owns(&self, shard: Shard) -> bool {
        self.whole.is_some() || self.hold(shard.into()).term().is_some()
    }

    /// The term of the partition's owner, whoever that is, as far as it is known here.
    pub fn term(&self, partition: Partition) -> Option<Term> {
        let view = self.view.borrow();
        view.holds[partition.number()].term().or(view.terms[partition.number()])
    }

    /// Waits until something has changed since this was asked last. Pends for ever once nothing can change any more.
    pub async fn changed(&mut self) -> Changes {
        loop {
            let (holds, orphaned) = {
                let view = self.view.borrow_and_update();
                (view.holds, view.orphaned)
            };
            let mut changes = Changes { orphaned: orphaned != self.told_orphaned, ..Changes::default() };
            for partition in Partition::all() {
                let (before, now) = (self.told[partition.number()], holds[partition.number()]);
                if before.term() != now.term() {
                    changes.lost.extend(before.term().map(|_| partition));
                    changes.gained.extend(now.term().map(|_| partition));
                }
                if matches!(now, Hold::Leaving(_)) && before != now {
                    changes.leaving.push(partition);
                }
            }
            (self.told, self.told_orphaned) = (holds, orphaned);
            if changes != Changes::default() {
                return changes;
            }
            if self.view.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Says that nothing of a partition that was leaving is under way any more.
    pub fn left(&self, partition: Partition) {
        if let Some(left) = &self.left {
            // Without the other end there is nobody left to give it away.
            let _ = left.send(partition);
        }
    }
}

impl Owner {
    /// Says what this middle has, which terms the owners of all partitions have, and how often until now it got partitions
    /// whose owner had vanished.
    pub fn set(&self, holds: [Hold; Partition::COUNT], terms: [Option<Term>; Partition::COUNT], orphaned: u64) {
        let view = Arc::new(View { holds, terms, orphaned });
        self.view.send_if_modified(|before| {
            let changed = *before != view;
            if changed {
                *before = view;
            }
            changed
        });
    }

    /// The next partition that the middle has left; `None` once the middle is gone.
    pub async fn left(&self) -> Option<Partition> {
        self.left.lock().await.recv().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(number: usize) -> Partition {
        Partition::new(number).expect("there is one")
    }

    #[tokio::test]
    async fn changes_are_told_once_and_a_new_term_is_a_loss_and_a_gain() {
        let (owner, mut ownership) = Ownership::shared();
        let mut holds = [Hold::No; Partition::COUNT];
        holds[3] = Hold::Owned(Term(1));
        owner.set(holds, [None; Partition::COUNT], 0);
        let gained = Changes { gained: vec![partition(3)], ..Changes::default() };
        assert_eq!(ownership.changed().await, gained);
        holds[3] = Hold::Leaving(Term(1));
        owner.set(holds, [None; Partition::COUNT], 0);
        assert_eq!(ownership.changed().await, Changes { leaving: vec![partition(3)], ..Changes::default() });
        ownership.left(partition(3));
        assert_eq!(owner.left().await, Some(partition(3)));
        holds[3] = Hold::Owned(Term(2));
        owner.set(holds, [None; Partition::COUNT], 1);
        let again = Changes { gained: vec![partition(3)], lost: vec![partition(3)], orphaned: true, leaving: vec![] };
        assert_eq!(ownership.changed().await, again);
        holds[5] = Hold::Owned(Term(3));
        owner.set(holds, [None; Partition::COUNT], 1);
        assert!(!ownership.changed().await.orphaned);
        assert!(ownership.owns(Shard(3)) && ownership.owns(Shard(67)) && !ownership.owns(Shard(4)));
    }

    #[tokio::test]
    async fn whoever_owns_everything_owns_it_from_the_beginning() {
        let mut ownership = Ownership::whole(Term(7));
        assert_eq!(ownership.changed().await.gained.len(), Partition::COUNT);
        assert!(ownership.is_whole() && ownership.owns(Shard(u16::MAX)));
        assert_eq!(ownership.term(partition(63)), Some(Term(7)));
    }
}
