//! Which connections hold which registrations: for each app a bitmap of slots, and one for each of its topics.

use std::collections::{BTreeSet, HashMap};

use idl::audience::{Audience, Comparison, Evaluate};
use idl::contract::bus::IndexEntry;
use idl::ids::{Alias, AppId, InvalidId, TopicName, UserAccount};
use roaring::RoaringBitmap;

/// What one connection's registration of one app is in the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Membership {
    pub(crate) version: i64,
    pub(crate) topics: BTreeSet<TopicName>,
    /// Broadcasts from this place in the ring on were judged by this membership.
    pub(crate) since: u64,
}

/// An [`IndexEntry`], read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) app: AppId,
    pub(crate) version: i64,
    /// `None` takes the registration out.
    pub(crate) topics: Option<BTreeSet<TopicName>>,
}

impl TryFrom<&IndexEntry> for Change {
    type Error = InvalidId;

    fn try_from(entry: &IndexEntry) -> Result<Self, InvalidId> {
        let topics = || entry.topics.iter().flatten().map(|topic| topic.parse()).collect::<Result<_, _>>();
        let topics = if entry.removed == Some(true) { None } else { Some(topics()?) };
        Ok(Self { app: entry.app.parse()?, version: entry.version, topics })
    }
}

/// All registrations of all connections of this front.
#[derive(Debug, Default)]
pub(crate) struct Index {
    apps: HashMap<AppId, Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    all: RoaringBitmap,
    topics: HashMap<TopicName, RoaringBitmap>,
}

impl Index {
    /// Puts a slot where its membership says.
    pub(crate) fn insert(&mut self, app: &AppId, slot: u32, membership: &Membership) {
        let slots = self.apps.entry(app.clone()).or_default();
        slots.all.insert(slot);
        for topic in &membership.topics {
            slots.topics.entry(topic.clone()).or_default().insert(slot);
        }
    }

    /// Takes a slot out of where its membership had put it.
    pub(crate) fn remove(&mut self, app: &AppId, slot: u32, membership: &Membership) {
        let Some(slots) = self.apps.get_mut(app) else { return };
        slots.all.remove(slot);
        for topic in &membership.topics {
            if let Some(bitmap) = slots.topics.get_mut(topic) {
                bitmap.remove(slot);
                if bitmap.is_empty() {
                    slots.topics.remove(topic);
                }
            }
        }
        if slots.all.is_empty() {
            self.apps.remove(app);
        }
    }

    /// The slots that a broadcast of this app is for.
    pub(crate) fn audience(&self, app: &AppId, audience: &Audience) -> RoaringBitmap {
        self.apps.get(app).map(|slots| audience.evaluate(slots)).unwrap_or_default()
    }
}

impl Evaluate for Slots {
    type Set = RoaringBitmap;

    fn everyone(&self) -> RoaringBitmap {
        self.all.clone()
    }

    fn topic(&self, topic: &TopicName) -> RoaringBitmap {
        self.topics.get(topic).cloned().unwrap_or_default()
    }

    fn alias(&self, _: &Alias) -> RoaringBitmap {
        RoaringBitmap::new()
    }

    fn user_account(&self, _: &UserAccount) -> RoaringBitmap {
        RoaringBitmap::new()
    }

    fn attribute(&self, _: &Comparison) -> RoaringBitmap {
        RoaringBitmap::new()
    }

    fn and(&self, a: RoaringBitmap, b: RoaringBitmap) -> RoaringBitmap {
        a & b
    }

    fn or(&self, a: RoaringBitmap, b: RoaringBitmap) -> RoaringBitmap {
        a | b
    }

    fn not(&self, a: RoaringBitmap) -> RoaringBitmap {
        &self.all - a
    }
}

/// One registration alone, for replays.
impl Evaluate for Membership {
    type Set = bool;

    fn everyone(&self) -> bool {
        true
    }

    fn topic(&self, topic: &TopicName) -> bool {
        self.topics.contains(topic)
    }

    fn alias(&self, _: &Alias) -> bool {
        false
    }

    fn user_account(&self, _: &UserAccount) -> bool {
        false
    }

    fn attribute(&self, _: &Comparison) -> bool {
        false
    }

    fn and(&self, a: bool, b: bool) -> bool {
        a && b
    }

    fn or(&self, a: bool, b: bool) -> bool {
        a || b
    }

    fn not(&self, a: bool) -> bool {
        !a
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn app() -> AppId {
        "com.example.demo".parse().expect("an app id")
    }

    fn topic(name: &str) -> Audience {
        Audience::Topic(name.parse().expect("a topic"))
    }

    fn membership(topics: &[&str]) -> Membership {
        let topics = topics.iter().map(|topic| topic.parse().expect("a topic")).collect();
        Membership { version: 1, topics, since: 0 }
    }

    fn expressions() -> impl Strategy<Value = Audience> {
        let leaf = prop_oneof![Just(Audience::Everyone), "[a-c]".prop_map(|name| topic(&name))];
        leaf.prop_recursive(4, 24, 2, |inner| {
            prop_oneof![
                (inner.clone(), inner.clone()).prop_map(|(a, b)| a.and(b)),
                (inner.clone(), inner.clone()).prop_map(|(a, b)| a.or(b)),
                inner.prop_map(Audience::not),
            ]
        })
    }

    #[test]
    fn a_slot_that_was_taken_out_leaves_nothing_behind() {
        let mut index = Index::default();
        let members = membership(&["a", "b"]);
        index.insert(&app(), 7, &members);
        assert!(index.audience(&app(), &topic("a")).contains(7));
        index.remove(&app(), 7, &members);
        assert!(index.audience(&app(), &Audience::Everyone).is_empty());
        assert!(index.apps.is_empty());
    }

    #[test]
    fn another_app_has_other_slots() {
        let mut index = Index::default();
        index.insert(&app(), 7, &membership(&["a"]));
        let other = "com.example.other".parse().expect("an app id");
        assert!(index.audience(&other, &topic("a").not()).is_empty());
    }

    proptest! {
        /// The index and one registration alone can't disagree.
        #[test]
        fn bitmaps_say_what_each_registration_says(
            members in proptest::collection::vec(proptest::collection::btree_set("[a-c]", 0..3), 1..12),
            expression in expressions(),
        ) {
            let members: Vec<_> = members
                .iter()
                .map(|topics| membership(&topics.iter().map(String::as_str).collect::<Vec<_>>()))
                .collect();
            let mut index = Index::default();
            for (slot, membership) in (0u32..).zip(&members) {
                index.insert(&app(), slot, membership);
            }
            let found = index.audience(&app(), &expression);
            for (slot, membership) in (0u32..).zip(&members) {
                prop_assert_eq!(found.contains(slot), expression.evaluate(membership));
            }
        }
    }
}
