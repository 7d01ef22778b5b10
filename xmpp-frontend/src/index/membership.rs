//! What one connection's registration of one app is in the index.

use std::collections::BTreeMap;
use std::sync::Arc;

use idl::audience::{Comparison, Evaluate};
use idl::due::{TIME_ZONE, UTC_OFFSET_MINUTES};
use idl::ids::{Alias, AppId, TopicName, UserAccount};

/// Something that registrations can be found by. All who have the same share one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Label {
    Topic(TopicName),
    Alias(Alias),
    UserAccount(UserAccount),
    Attribute { name: Arc<str>, value: Box<str> },
}

/// What one connection's registration of one app is in the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Membership {
    pub(crate) version: i64,
    pub(crate) labels: Box<[Arc<Label>]>,
    /// Broadcasts from this place in the ring on were judged by this membership.
    pub(crate) since: u64,
    /// From this place on the app has been there without a break: what was broadcast before is not for it.
    pub(crate) joined: u64,
}

/// The memberships of one connection, by app. A device has few, so a sorted list is leaner than a map.
#[derive(Debug, Default)]
pub(crate) struct Memberships(Vec<(Arc<AppId>, Membership)>);

impl Membership {
    /// Those of its attributes that say which time it is where the device is.
    pub(crate) fn local_clock(&self) -> BTreeMap<String, String> {
        let mut clock = BTreeMap::new();
        for label in &self.labels {
            if let Label::Attribute { name, value } = &**label
                && matches!(&**name, TIME_ZONE | UTC_OFFSET_MINUTES)
            {
                clock.insert(name.to_string(), value.to_string());
            }
        }
        clock
    }

    fn has(&self, wanted: impl Fn(&Label) -> bool) -> bool {
        self.labels.iter().any(|label| wanted(label))
    }
}

/// One registration alone, for replays.
impl Evaluate for Membership {
    type Set = bool;

    fn everyone(&self) -> bool {
        true
    }

    fn topic(&self, wanted: &TopicName) -> bool {
        self.has(|label| matches!(label, Label::Topic(topic) if topic == wanted))
    }

    fn alias(&self, wanted: &Alias) -> bool {
        self.has(|label| matches!(label, Label::Alias(alias) if alias == wanted))
    }

    fn user_account(&self, wanted: &UserAccount) -> bool {
        self.has(|label| matches!(label, Label::UserAccount(user_account) if user_account == wanted))
    }

    fn attribute(&self, comparison: &Comparison) -> bool {
        let holds = |name: &str, value: &str| name == comparison.attribute() && comparison.holds(value);
        self.has(|label| matches!(label, Label::Attribute { name, value } if holds(name, value)))
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

impl Memberships {
    pub(crate) fn get(&self, app: &AppId) -> Option<&Membership> {
        self.find(app).ok().and_then(|at| self.0.get(at)).map(|(_, membership)| membership)
    }

    pub(crate) fn get_mut(&mut self, app: &AppId) -> Option<&mut Membership> {
        self.find(app).ok().and_then(|at| self.0.get_mut(at)).map(|(_, membership)| membership)
    }

    /// Puts a membership in the place of the one that is there for the app, if any.
    pub(crate) fn insert(&mut self, app: Arc<AppId>, membership: Membership) {
        match self.find(&app) {
            Ok(at) => {
                if let Some((_, known)) = self.0.get_mut(at) {
                    *known = membership;
                }
            }
            Err(at) => {
                // Apps come rarely and stay: no room for more.
                self.0.reserve_exact(1);
                self.0.insert(at, (app, membership));
            }
        }
    }

    pub(crate) fn remove(&mut self, app: &AppId) {
        if let Ok(at) = self.find(app) {
            self.0.remove(at);
            self.0.shrink_to_fit();
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&AppId, &Membership)> {
        self.0.iter().map(|(app, membership)| (&**app, membership))
    }

    fn find(&self, app: &AppId) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| (**known).cmp(app))
    }
}
