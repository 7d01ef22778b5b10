//! Which connections hold which registrations: for each app a bitmap of slots, and sets of slots for each of its topics,
//! aliases, user accounts and values of attributes.
//!
//! An audience is evaluated by set arithmetic, whatever its size; a comparison of an attribute asks each value that some
//! registration has, once. How many values there are is up to the devices, so memory and the time of a comparison are
//! bounded by connections times attributes and no further: a value takes what one entry of a map and its text take. Texts
//! are kept once and shared with the connections' memberships.

mod membership;
mod slots;

use std::collections::HashMap;
use std::sync::Arc;

use idl::audience::{Audience, Comparison, Evaluate};
use idl::contract::bus::IndexEntry;
use idl::ids::{Alias, AppId, InvalidId, TopicName, UserAccount};
use roaring::RoaringBitmap;

pub(crate) use self::membership::{Label, Membership, Memberships};
use self::slots::Slots;

/// An [`IndexEntry`], read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) app: AppId,
    pub(crate) version: i64,
    /// `None` takes the registration out.
    pub(crate) labels: Option<Vec<Label>>,
}

impl TryFrom<&IndexEntry> for Change {
    type Error = InvalidId;

    fn try_from(entry: &IndexEntry) -> Result<Self, InvalidId> {
        let labels = if entry.removed == Some(true) { None } else { Some(read_labels(entry)?) };
        Ok(Self { app: entry.app.parse()?, version: entry.version, labels })
    }
}

fn read_labels(entry: &IndexEntry) -> Result<Vec<Label>, InvalidId> {
    let topics = entry.topics.iter().flatten().map(|name| name.parse().map(Label::Topic));
    let aliases = entry.aliases.iter().flatten().map(|name| name.parse().map(Label::Alias));
    let user_accounts = entry.user_accounts.iter().flatten().map(|name| name.parse().map(Label::UserAccount));
    let attribute = |(name, value): (&String, &String)| Label::Attribute {
        name: name.as_str().into(),
        value: value.as_str().into(),
    };
    let attributes = entry.attributes.iter().flatten().map(|pair| Ok(attribute(pair)));
    let mut labels: Vec<_> = topics.chain(aliases).chain(user_accounts).chain(attributes).collect::<Result<_, _>>()?;
    labels.sort_unstable();
    labels.dedup();
    Ok(labels)
}

/// All registrations of all connections of this front.
#[derive(Debug, Default)]
pub(crate) struct Index {
    apps: HashMap<Arc<AppId>, App>,
}

/// The registrations of one app.
#[derive(Debug, Default)]
struct App {
    all: RoaringBitmap,
    /// Topics, aliases and user accounts.
    names: Table,
    /// By the attribute's name.
    attributes: HashMap<Arc<str>, Table>,
}

type Table = HashMap<Arc<Label>, Slots>;

impl Index {
    /// Puts a slot where the labels say, and returns the texts to keep: those that others have too.
    pub(crate) fn insert(&mut self, app: AppId, slot: u32, labels: Vec<Label>) -> (Arc<AppId>, Box<[Arc<Label>]>) {
        let known = self.apps.get_key_value(&app).map(|(known, _)| Arc::clone(known));
        let app = known.unwrap_or_else(|| Arc::new(app));
        let found = self.apps.entry(Arc::clone(&app)).or_default();
        found.all.insert(slot);
        (app, labels.into_iter().map(|label| found.insert(slot, label)).collect())
    }

    /// Takes a slot out of where its membership had put it.
    pub(crate) fn remove(&mut self, app: &AppId, slot: u32, membership: &Membership) {
        let Some(found) = self.apps.get_mut(app) else { return };
        found.all.remove(slot);
        for label in &membership.labels {
            found.remove(slot, label);
        }
        if found.all.is_empty() {
            self.apps.remove(app);
        }
    }

    /// The slots that a broadcast of this app is for.
    pub(crate) fn audience(&self, app: &AppId, audience: &Audience) -> RoaringBitmap {
        self.apps.get(app).map(|app| audience.evaluate(app)).unwrap_or_default()
    }
}

impl App {
    fn insert(&mut self, slot: u32, mut label: Label) -> Arc<Label> {
        let table = match &mut label {
            Label::Attribute { name, .. } => {
                if let Some((known, _)) = self.attributes.get_key_value(name) {
                    *name = Arc::clone(known);
                }
                self.attributes.entry(Arc::clone(name)).or_default()
            }
            _ => &mut self.names,
        };
        if let Some((known, _)) = table.get_key_value(&label) {
            label_in(table, Arc::clone(known), slot)
        } else {
            label_in(table, Arc::new(label), slot)
        }
    }

    fn remove(&mut self, slot: u32, label: &Arc<Label>) {
        let Label::Attribute { name, .. } = &**label else {
            return label_out(&mut self.names, label, slot);
        };
        let Some(table) = self.attributes.get_mut(name) else { return };
        label_out(table, label, slot);
        if table.is_empty() {
            self.attributes.remove(name);
        }
    }

    fn named(&self, label: &Label) -> RoaringBitmap {
        let mut found = RoaringBitmap::new();
        if let Some(slots) = self.names.get(label) {
            slots.add_to(&mut found);
        }
        found
    }
}

fn label_in(table: &mut Table, label: Arc<Label>, slot: u32) -> Arc<Label> {
    table.entry(Arc::clone(&label)).and_modify(|slots| slots.insert(slot)).or_insert(Slots::One(slot));
    label
}

fn label_out(table: &mut Table, label: &Arc<Label>, slot: u32) {
    if table.get_mut(label).is_some_and(|slots| slots.remove(slot)) {
        table.remove(label);
    }
}

impl Evaluate for App {
    type Set = RoaringBitmap;

    fn everyone(&self) -> RoaringBitmap {
        self.all.clone()
    }

    fn topic(&self, topic: &TopicName) -> RoaringBitmap {
        self.named(&Label::Topic(topic.clone()))
    }

    fn alias(&self, alias: &Alias) -> RoaringBitmap {
        self.named(&Label::Alias(alias.clone()))
    }

    fn user_account(&self, user_account: &UserAccount) -> RoaringBitmap {
        self.named(&Label::UserAccount(user_account.clone()))
    }

    fn attribute(&self, comparison: &Comparison) -> RoaringBitmap {
        let mut found = RoaringBitmap::new();
        for (label, slots) in self.attributes.get(comparison.attribute()).into_iter().flatten() {
            if matches!(&**label, Label::Attribute { value, .. } if comparison.holds(value)) {
                slots.add_to(&mut found);
            }
        }
        found
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

#[cfg(test)]
mod tests;
