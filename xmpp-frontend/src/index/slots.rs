//! A set of slots that is never empty. Most names belong to one connection alone, so one slot takes no bitmap.

use roaring::RoaringBitmap;

/// One slot, or several.
#[derive(Debug)]
pub(crate) enum Slots {
    One(u32),
    Many(Box<RoaringBitmap>),
}

impl Slots {
    pub(crate) fn insert(&mut self, slot: u32) {
        match self {
            Self::One(one) if *one == slot => {}
            Self::One(one) => *self = Self::Many(Box::new([*one, slot].into_iter().collect())),
            Self::Many(many) => {
                many.insert(slot);
            }
        }
    }

    /// Takes a slot out. Returns true if none is left: then the set must go.
    pub(crate) fn remove(&mut self, slot: u32) -> bool {
        match self {
            Self::One(one) => *one == slot,
            Self::Many(many) => {
                many.remove(slot);
                if let (Some(first), 1) = (many.min(), many.len()) {
                    *self = Self::One(first);
                }
                false
            }
        }
    }

    /// Puts these slots beside those that are in the bitmap.
    pub(crate) fn add_to(&self, bitmap: &mut RoaringBitmap) {
        match self {
            Self::One(one) => {
                bitmap.insert(*one);
            }
            Self::Many(many) => *bitmap |= &**many,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn listed(slots: &Slots) -> Vec<u32> {
        let mut bitmap = RoaringBitmap::new();
        slots.add_to(&mut bitmap);
        bitmap.into_iter().collect()
    }

    #[test]
    fn what_has_one_slot_again_takes_no_bitmap() {
        let mut slots = Slots::One(7);
        slots.insert(9);
        assert!(matches!(slots, Slots::Many(_)));
        assert!(!slots.remove(7));
        assert!(matches!(slots, Slots::One(9)));
        assert!(slots.remove(9));
    }

    proptest! {
        #[test]
        fn it_holds_what_was_put_in_and_not_taken_out(steps in proptest::collection::vec((any::<bool>(), 0u32..5), 0..40)) {
            let mut slots = Slots::One(0);
            let mut expected = BTreeSet::from([0]);
            for (put, slot) in steps {
                if put {
                    slots.insert(slot);
                    expected.insert(slot);
                } else if expected != BTreeSet::from([slot]) {
                    prop_assert!(!slots.remove(slot));
                    expected.remove(&slot);
                } else {
                    prop_assert!(slots.remove(slot));
                }
                prop_assert_eq!(listed(&slots), expected.iter().copied().collect::<Vec<_>>());
            }
        }
    }
}
