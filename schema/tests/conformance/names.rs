//! The indexes from names and topics to registrations.

use idl::ids::RegId;
use schema::names::{Name, Names};
use schema::registrations::{Registration, Registrations};
use schema::topics::TopicMembers;

use crate::world::{World, app, regid, registration};

cases! { $ names:
    a_name_finds_its_registrations,
    names_that_begin_alike_do_not_mix,
    an_alias_is_not_a_user_account,
    names_and_topics_of_two_apps_do_not_mix,
    members_come_in_pages,
    a_topic_finds_its_members,
    everyone_comes_in_pages,
}

fn alias(text: &str) -> Name {
    Name::Alias(text.parse().unwrap())
}

fn user(text: &str) -> Name {
    Name::UserAccount(text.parse().unwrap())
}

fn named(number: u8, aliases: &[&str], users: &[&str], topics: &[&str]) -> Registration {
    Registration {
        aliases: aliases.iter().map(|text| text.parse().unwrap()).collect(),
        user_accounts: users.iter().map(|text| text.parse().unwrap()).collect(),
        topics: topics.iter().map(|text| (text.parse().unwrap(), idl::ids::MessageId(1))).collect(),
        ..registration(number)
    }
}

async fn members(names: &Names, name: &Name) -> Vec<RegId> {
    names.members(&app("demo"), name, None, 100).await.unwrap()
}

pub(crate) async fn a_name_finds_its_registrations(world: World) {
    let (names, registrations) = (Names::new(world.store.clone()), Registrations::new(world.store));
    registrations.create(&named(2, &["anna", "x"], &["u"], &[])).await.unwrap();
    registrations.create(&named(1, &["anna"], &["u", "v"], &[])).await.unwrap();
    assert_eq!(members(&names, &alias("anna")).await, [regid(1), regid(2)]);
    assert_eq!(members(&names, &alias("x")).await, [regid(2)]);
    assert_eq!(members(&names, &user("u")).await, [regid(1), regid(2)]);
    assert_eq!(members(&names, &user("v")).await, [regid(1)]);
    assert!(members(&names, &alias("nobody")).await.is_empty());
}

pub(crate) async fn names_that_begin_alike_do_not_mix(world: World) {
    let (names, registrations) = (Names::new(world.store.clone()), Registrations::new(world.store));
    registrations.create(&named(1, &["a"], &[], &[])).await.unwrap();
    registrations.create(&named(2, &["ab"], &[], &[])).await.unwrap();
    registrations.create(&named(3, &["A"], &[], &[])).await.unwrap();
    assert_eq!(members(&names, &alias("a")).await, [regid(1)]);
    assert_eq!(members(&names, &alias("ab")).await, [regid(2)]);
}

pub(crate) async fn an_alias_is_not_a_user_account(world: World) {
    let (names, registrations) = (Names::new(world.store.clone()), Registrations::new(world.store));
    registrations.create(&named(1, &["same"], &[], &[])).await.unwrap();
    registrations.create(&named(2, &[], &["same"], &[])).await.unwrap();
    assert_eq!(members(&names, &alias("same")).await, [regid(1)]);
    assert_eq!(members(&names, &user("same")).await, [regid(2)]);
}

pub(crate) async fn names_and_topics_of_two_apps_do_not_mix(world: World) {
    let (names, topics) = (Names::new(world.store.clone()), TopicMembers::new(world.store.clone()));
    let registrations = Registrations::new(world.store);
    registrations.create(&named(1, &["a"], &[], &["t"])).await.unwrap();
    registrations.create(&Registration { app: app("other"), ..named(2, &["a"], &[], &["t"]) }).await.unwrap();
    assert_eq!(members(&names, &alias("a")).await, [regid(1)]);
    assert_eq!(names.members(&app("other"), &alias("a"), None, 9).await.unwrap(), [regid(2)]);
    assert_eq!(topics.members(&app("demo"), &"t".parse().unwrap(), None, 9).await.unwrap(), [regid(1)]);
    assert_eq!(topics.members(&app("other"), &"t".parse().unwrap(), None, 9).await.unwrap(), [regid(2)]);
}

pub(crate) async fn members_come_in_pages(world: World) {
    let (names, registrations) = (Names::new(world.store.clone()), Registrations::new(world.store));
    for number in [5, 3, 1, 4, 2] {
        registrations.create(&named(number, &["anna"], &[], &[])).await.unwrap();
    }
    let mut seen = Vec::new();
    loop {
        let page = names.members(&app("demo"), &alias("anna"), seen.last().copied(), 2).await.unwrap();
        seen.extend(&page);
        if page.len() < 2 {
            break;
        }
    }
    assert_eq!(seen, [1, 2, 3, 4, 5].map(regid));
}

pub(crate) async fn a_topic_finds_its_members(world: World) {
    let (topics, registrations) = (TopicMembers::new(world.store.clone()), Registrations::new(world.store));
    registrations.create(&named(1, &[], &[], &["news", "sport"])).await.unwrap();
    registrations.create(&named(2, &[], &[], &["news"])).await.unwrap();
    let members = |topic: &str, after| {
        let (topics, topic) = (topics.clone(), topic.parse().unwrap());
        async move { topics.members(&app("demo"), &topic, after, 10).await.unwrap() }
    };
    assert_eq!(members("news", None).await, [regid(1), regid(2)]);
    assert_eq!(members("news", Some(regid(1))).await, [regid(2)]);
    assert_eq!(members("sport", None).await, [regid(1)]);
    assert!(members("new", None).await.is_empty());
}

pub(crate) async fn everyone_comes_in_pages(world: World) {
    let (topics, registrations) = (TopicMembers::new(world.store.clone()), Registrations::new(world.store));
    for number in [5, 3, 1, 4, 2] {
        registrations.create(&named(number, &[], &[], &["news"])).await.unwrap();
    }
    let page = |after, limit| {
        let topics = topics.clone();
        async move { topics.everyone(&app("demo"), after, limit).await.unwrap() }
    };
    assert_eq!(page(None, 2).await, [1, 2].map(regid));
    assert_eq!(page(Some(regid(2)), 2).await, [3, 4].map(regid));
    assert_eq!(page(Some(regid(4)), 2).await, [regid(5)]);
    assert!(page(Some(regid(5)), 2).await.is_empty());
    assert!(page(None, 0).await.is_empty());
}
