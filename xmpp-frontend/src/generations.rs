//! Which life of the middle tier's memory each partition of accounts is in, as far as this front knows.

use idl::ids::{Generation, Partition};

/// One generation a partition.
pub(crate) struct Generations([Known; Partition::COUNT]);

#[derive(Debug, Clone, Copy, Default)]
struct Known {
    now: Option<Generation>,
    before: Option<Generation>,
}

impl Default for Generations {
    fn default() -> Self {
        Self([Known::default(); Partition::COUNT])
    }
}

impl Generations {
    /// A partition's generation.
    pub(crate) fn of(&self, partition: Partition) -> Option<Generation> {
        self.0[partition.number()].now
    }

    /// Learns the generation that a reply carried. Returns true if it is another than before. A reply that was under way
    /// while the memory changed still carries the one before: it teaches nothing.
    pub(crate) fn learn(&mut self, partition: Partition, generation: Generation) -> bool {
        let known = &mut self.0[partition.number()];
        if known.now == Some(generation) || known.before == Some(generation) {
            return false;
        }
        known.before = known.now.replace(generation);
        known.before.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_that_was_under_way_while_the_memory_changed_teaches_nothing() {
        let mut known = Generations::default();
        let (one, other) = (Partition::new(1).expect("there is one"), Partition::new(2).expect("there is one"));
        assert!(!known.learn(one, Generation(1)), "the first is no change");
        assert!(known.learn(one, Generation(2)));
        assert!(!known.learn(one, Generation(1)));
        assert!(!known.learn(one, Generation(2)));
        assert_eq!((known.of(one), known.of(other)), (Some(Generation(2)), None));
        assert!(known.learn(one, Generation(3)));
        assert!(!known.learn(other, Generation(3)));
    }
}
