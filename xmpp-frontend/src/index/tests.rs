//! The index against an evaluator that shares nothing with it.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use idl::audience::Test;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;

use super::*;

fn app() -> AppId {
    "com.example.demo".parse().expect("an app id")
}

/// A registration as a person would write it down.
#[derive(Debug, Clone, Default)]
struct Person {
    topics: BTreeSet<String>,
    aliases: BTreeSet<String>,
    user_accounts: BTreeSet<String>,
    attributes: BTreeMap<String, String>,
}

impl Person {
    fn labels(&self) -> Vec<Label> {
        let names = |names: &BTreeSet<String>| Some(names.iter().cloned().collect());
        let entry = IndexEntry {
            app: app().to_string(),
            version: 1,
            removed: None,
            topics: names(&self.topics),
            attributes: Some(self.attributes.clone()),
            aliases: names(&self.aliases),
            user_accounts: names(&self.user_accounts),
        };
        Change::try_from(&entry).expect("an entry").labels.expect("it is not removed")
    }

    /// Whether the expression is true of this registration: what the operators mean, written anew.
    fn is_in(&self, audience: &Audience) -> bool {
        match audience {
            Audience::Everyone => true,
            Audience::Topic(name) => self.topics.contains(name.as_str()),
            Audience::Alias(name) => self.aliases.contains(name.as_str()),
            Audience::UserAccount(name) => self.user_accounts.contains(name.as_str()),
            Audience::Attribute(comparison) => {
                let name = comparison.attribute();
                let Some(value) = self.attributes.get(name) else { return false };
                match comparison.test() {
                    Test::In(values) => values.iter().any(|other| naive_order(name, value, other).is_eq()),
                    Test::Less(other) => naive_order(name, value, other).is_lt(),
                    Test::AtMost(other) => naive_order(name, value, other).is_le(),
                    Test::Greater(other) => naive_order(name, value, other).is_gt(),
                    Test::AtLeast(other) => naive_order(name, value, other).is_ge(),
                }
            }
            Audience::And(a, b) => self.is_in(a) && self.is_in(b),
            Audience::Or(a, b) => self.is_in(a) || self.is_in(b),
            Audience::Not(a) => !self.is_in(a),
        }
    }
}

fn naive_order(name: &str, a: &str, b: &str) -> Ordering {
    if name == "app_version" {
        let (mut a, mut b) = (naive_pieces(a), naive_pieces(b));
        let length = a.len().max(b.len());
        a.resize(length, (0, 0, String::new()));
        b.resize(length, (0, 0, String::new()));
        return a.cmp(&b);
    }
    match (naive_thousandths(a), naive_thousandths(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        _ => a.as_bytes().cmp(b.as_bytes()),
    }
}

/// Of each piece: 0 for a number and 1 for a text, the number, the text.
fn naive_pieces(version: &str) -> Vec<(u8, u64, String)> {
    let unified = version.replace(['-', '+', '_'], ".");
    let piece = |text: &str| text.parse().map_or_else(|_| (1, 0, text.to_owned()), |number| (0, number, String::new()));
    unified.split('.').map(piece).collect()
}

/// A number with at most three decimals, as the strategies make them.
fn naive_thousandths(text: &str) -> Option<i64> {
    let mut characters = text.chars().peekable();
    let sign = if characters.next_if_eq(&'-').is_some() { -1 } else { 1 };
    let (mut value, mut decimals, mut digits) = (0, None, 0);
    for character in characters {
        match (character, decimals) {
            ('.', None) if digits > 0 => decimals = Some(0),
            (digit @ '0'..='9', _) => {
                value = value * 10 + i64::from(u32::from(digit) - u32::from('0'));
                digits += 1;
                decimals = decimals.map(|decimals| decimals + 1);
            }
            _ => return None,
        }
    }
    let missing = 3_u32.checked_sub(decimals.unwrap_or(0)).expect("at most three decimals");
    (digits > 0).then_some(sign * value * 10_i64.pow(missing))
}

fn names() -> impl Strategy<Value = BTreeSet<String>> {
    btree_set("[a-c]", 0..3)
}

fn attribute_names() -> impl Strategy<Value = String> {
    prop_oneof![Just("platform"), Just("app_version"), Just("level")].prop_map(str::to_owned)
}

fn values() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ab]{0,2}",
        "-?[0-2]{1,2}(\\.[0-2]{0,3})?",
        "[0-2]{1,2}([._+-][0-2]{1,2}){0,2}(-beta)?",
        Just("1e1".to_owned()),
        Just("1.1.1".to_owned()),
    ]
}

fn people() -> impl Strategy<Value = Person> {
    (names(), names(), names(), btree_map(attribute_names(), values(), 0..3))
        .prop_map(|(topics, aliases, user_accounts, attributes)| Person { topics, aliases, user_accounts, attributes })
}

fn comparisons() -> impl Strategy<Value = Comparison> {
    let tests = prop_oneof![
        vec(values(), 1..4).prop_map(Test::In),
        values().prop_map(Test::Less),
        values().prop_map(Test::AtMost),
        values().prop_map(Test::Greater),
        values().prop_map(Test::AtLeast),
    ];
    (attribute_names(), tests).prop_map(|(name, test)| Comparison::new(&name, test).expect("a comparison"))
}

fn expressions() -> impl Strategy<Value = Audience> {
    let leaf = prop_oneof![
        1 => Just(Audience::Everyone),
        2 => "[a-c]".prop_map(|name| Audience::Topic(name.parse().expect("a topic"))),
        2 => "[a-c]".prop_map(|name| Audience::Alias(name.parse().expect("an alias"))),
        2 => "[a-c]".prop_map(|name| Audience::UserAccount(name.parse().expect("a user account"))),
        6 => comparisons().prop_map(Audience::Attribute),
    ];
    leaf.prop_recursive(4, 24, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a.and(b)),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a.or(b)),
            inner.prop_map(Audience::not),
        ]
    })
}

/// An index with the memberships of its slots, as the hub keeps them.
#[derive(Default)]
struct World {
    index: Index,
    memberships: BTreeMap<u32, Membership>,
}

impl World {
    fn put(&mut self, slot: u32, person: Option<&Person>) {
        if let Some(known) = self.memberships.remove(&slot) {
            self.index.remove(&app(), slot, &known);
        }
        if let Some(person) = person {
            let (_, labels) = self.index.insert(app(), slot, person.labels());
            self.memberships.insert(slot, Membership { version: 1, labels, since: 0, joined: 0 });
        }
    }
}

fn topic(name: &str) -> Audience {
    Audience::Topic(name.parse().expect("a topic"))
}

fn of_topics(names: &[&str]) -> Person {
    Person { topics: names.iter().map(|name| (*name).to_owned()).collect(), ..Person::default() }
}

#[test]
fn another_app_has_other_slots() {
    let mut world = World::default();
    world.put(7, Some(&of_topics(&["a"])));
    let other = "com.example.other".parse().expect("an app id");
    assert!(world.index.audience(&app(), &topic("a")).contains(7));
    assert!(world.index.audience(&other, &topic("a").not()).is_empty());
}

#[test]
fn an_entry_with_a_name_that_is_none_is_no_change() {
    let entry = |topics: &[&str], alias: &str| IndexEntry {
        app: app().to_string(),
        version: 1,
        removed: None,
        topics: Some(topics.iter().map(|topic| (*topic).to_owned()).collect()),
        attributes: None,
        aliases: Some(vec![alias.to_owned()]),
        user_accounts: None,
    };
    assert!(Change::try_from(&entry(&["a"], "")).is_err());
    let twice = Change::try_from(&entry(&["a", "a"], "x")).expect("a change");
    assert_eq!(twice.labels.map(|labels| labels.len()), Some(2));
    let removed = IndexEntry { removed: Some(true), ..entry(&["a"], "") };
    assert_eq!(Change::try_from(&removed).expect("names do not matter then").labels, None);
}

#[test]
fn a_text_that_many_have_is_kept_once() {
    let person =
        Person { attributes: BTreeMap::from([("platform".to_owned(), "android".to_owned())]), ..Person::default() };
    let mut world = World::default();
    world.put(1, Some(&person));
    world.put(2, Some(&person));
    let [one, two] = [1, 2].map(|slot| Arc::clone(&world.memberships[&slot].labels[0]));
    assert!(Arc::ptr_eq(&one, &two));
}

proptest! {
    /// The index, one registration alone and common sense can't disagree, whatever came and went before.
    #[test]
    fn an_audience_is_who_the_expression_is_true_of(
        steps in vec((0u32..8, option::weighted(0.8, people())), 1..20),
        expressions in vec(expressions(), 1..4),
    ) {
        let mut world = World::default();
        let mut there = BTreeMap::new();
        for (slot, person) in &steps {
            world.put(*slot, person.as_ref());
            match person {
                Some(person) => there.insert(*slot, person),
                None => there.remove(slot),
            };
        }
        for expression in &expressions {
            let found = world.index.audience(&app(), expression);
            let expected: Vec<u32> =
                there.iter().filter(|(_, person)| person.is_in(expression)).map(|(slot, _)| *slot).collect();
            prop_assert_eq!(found.iter().collect::<Vec<_>>(), expected);
            for (slot, membership) in &world.memberships {
                prop_assert_eq!(expression.evaluate(membership), there[slot].is_in(expression));
            }
        }
    }

    #[test]
    fn slots_that_were_taken_out_leave_nothing_behind(people in vec(people(), 1..8)) {
        let mut world = World::default();
        for (slot, person) in (0..).zip(&people) {
            world.put(slot, Some(person));
        }
        for (slot, _) in (0..).zip(&people) {
            world.put(slot, None);
        }
        prop_assert!(world.index.apps.is_empty());
    }
}
