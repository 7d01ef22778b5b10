//! Registrations and what hangs on them.

use std::collections::{BTreeMap, BTreeSet};

use idl::ids::MessageId;
use schema::accounts::Accounts;
use schema::batch::Batch;
use schema::mailbox::Mailboxes;
use schema::names::{Name, Names};
use schema::registrations::{Cursor, Progress, RECENT_MAX, Registration, Registrations};
use schema::sorted::{StoreError, Table};
use schema::topics::TopicMembers;

use crate::world::{START_MS, World, app, message, put, recent, regid, registration};

cases! { $ registrations:
    a_registration_reads_back_as_it_was_made,
    registrations_are_read_in_the_asked_order,
    a_registration_without_anything_reads_back,
    an_update_changes_each_thing_and_nothing_else,
    an_update_moves_the_indexes,
    a_topic_subscribed_anew_counts_from_then,
    an_update_that_changes_nothing_writes_nothing,
    a_deleted_registration_leaves_nothing,
    deleting_again_leaves_a_newer_registration_of_the_app_alone,
    a_cursor_is_written_alone,
    progress_changes_what_it_names_and_nothing_else,
    only_the_last_acknowledged_broadcasts_are_remembered,
    the_progress_of_a_deleted_registration_does_not_bring_it_back,
    an_update_does_not_turn_back_progress,
    a_registration_is_one_of_its_apps_as_long_as_it_exists,
    damage_is_named_with_table_and_row,
}

async fn one(registrations: &Registrations, number: u8) -> Option<Registration> {
    registrations.read(&[regid(number)]).await.unwrap().remove(0)
}

pub(crate) async fn a_registration_reads_back_as_it_was_made(world: World) {
    let registrations = Registrations::new(world.store.clone());
    for _ in 0..2 {
        registrations.create(&registration(1)).await.unwrap();
        assert_eq!(one(&registrations, 1).await, Some(registration(1)));
    }
    let account = registration(1).account;
    assert_eq!(Accounts::new(world.store).registration(account, &app("demo")).await.unwrap(), Some(regid(1)));
}

pub(crate) async fn registrations_are_read_in_the_asked_order(world: World) {
    let registrations = Registrations::new(world.store);
    registrations.create(&registration(1)).await.unwrap();
    registrations.create(&registration(2)).await.unwrap();
    let found = registrations.read(&[regid(2), regid(9), regid(1)]).await.unwrap();
    assert_eq!(found, [Some(registration(2)), None, Some(registration(1))]);
    assert!(registrations.read(&[]).await.unwrap().is_empty());
}

pub(crate) async fn a_registration_without_anything_reads_back(world: World) {
    let bare = Registration {
        enabled: false,
        attributes: BTreeMap::new(),
        aliases: BTreeSet::new(),
        user_accounts: BTreeSet::new(),
        topics: BTreeMap::new(),
        version: u64::MAX,
        cursor: Cursor { judged_to: MessageId::MIN, acked: Vec::new() },
        last_seen_ms: None,
        recent: Vec::new(),
        ..registration(1)
    };
    let registrations = Registrations::new(world.store);
    registrations.create(&bare).await.unwrap();
    assert_eq!(one(&registrations, 1).await, Some(bare));
}

pub(crate) async fn an_update_changes_each_thing_and_nothing_else(world: World) {
    let registrations = Registrations::new(world.store);
    let mut stored = registration(1);
    registrations.create(&stored).await.unwrap();
    let changes: [fn(&mut Registration); 14] = [
        |new| new.enabled = false,
        |new| new.seal_key = [9; 32],
        |new| new.device_public = [8; 32],
        |new| new.version = 2,
        |new| new.attributes.extend([("locale".into(), "de_CH".into())]),
        |new| new.aliases.extend(["carla".parse().unwrap()]),
        |new| new.aliases.retain(|alias| alias.as_str() != "anna"),
        |new| new.user_accounts.clear(),
        |new| new.topics.extend([("sport".parse().unwrap(), MessageId(77))]),
        |new| new.cursor = Cursor { judged_to: MessageId(50), acked: vec![MessageId(49)] },
        |new| new.last_seen_ms = Some(START_MS + 7),
        |new| new.recent.push(recent(2)),
        |new| new.last_seen_ms = None,
        |new| new.recent.clear(),
    ];
    for change in changes {
        let mut new = stored.clone();
        change(&mut new);
        registrations.update(&stored, &new).await.unwrap();
        assert_eq!(one(&registrations, 1).await.as_ref(), Some(&new));
        stored = new;
    }
}

pub(crate) async fn an_update_moves_the_indexes(world: World) {
    let (names, topics) = (Names::new(world.store.clone()), TopicMembers::new(world.store.clone()));
    let registrations = Registrations::new(world.store.clone());
    registrations.create(&registration(1)).await.unwrap();
    let new = Registration {
        aliases: BTreeSet::from(["bert".parse().unwrap(), "carla".parse().unwrap()]),
        user_accounts: BTreeSet::new(),
        topics: BTreeMap::from([("sport".parse().unwrap(), MessageId(9))]),
        ..registration(1)
    };
    registrations.update(&registration(1), &new).await.unwrap();
    for (alias, there) in [("anna", false), ("bert", true), ("carla", true)] {
        let found = names.members(&app("demo"), &Name::Alias(alias.parse().unwrap()), None, 9).await.unwrap();
        assert_eq!(!found.is_empty(), there, "{alias}");
    }
    for (topic, there) in [("news", false), ("sport", true)] {
        let found = topics.members(&app("demo"), &topic.parse().unwrap(), None, 9).await.unwrap();
        assert_eq!(!found.is_empty(), there, "{topic}");
    }
    assert_eq!((world.rows(Table::Names).await, world.rows(Table::TopicMembers).await), (2, 2));
}

pub(crate) async fn a_topic_subscribed_anew_counts_from_then(world: World) {
    let registrations = Registrations::new(world.store.clone());
    registrations.create(&registration(1)).await.unwrap();
    let mut new = registration(1);
    new.topics.insert("news".parse().unwrap(), MessageId(100));
    registrations.update(&registration(1), &new).await.unwrap();
    assert_eq!(one(&registrations, 1).await, Some(new));
    assert_eq!(world.rows(Table::TopicMembers).await, 2, "the topic's and the app's");
}

pub(crate) async fn an_update_that_changes_nothing_writes_nothing(world: World) {
    let registrations = Registrations::new(world.store.clone());
    registrations.update(&registration(1), &registration(1)).await.unwrap();
    for table in Table::ALL {
        assert_eq!(world.rows(*table).await, 0);
    }
}

pub(crate) async fn a_deleted_registration_leaves_nothing(world: World) {
    let registrations = Registrations::new(world.store.clone());
    registrations.create(&registration(1)).await.unwrap();
    Mailboxes::new(world.store.clone()).put_with_message(&message(7), &[regid(1)]).await.unwrap();
    for _ in 0..2 {
        registrations.delete(&registration(1)).await.unwrap();
        assert_eq!(one(&registrations, 1).await, None);
        for table in Table::ALL {
            assert_eq!(world.rows(*table).await, 0, "{}", table.name());
        }
    }
}

pub(crate) async fn deleting_again_leaves_a_newer_registration_of_the_app_alone(world: World) {
    let (registrations, accounts) = (Registrations::new(world.store.clone()), Accounts::new(world.store));
    registrations.create(&registration(1)).await.unwrap();
    registrations.delete(&registration(1)).await.unwrap();
    let newer = Registration { regid: regid(2), ..registration(1) };
    registrations.create(&newer).await.unwrap();
    registrations.delete(&registration(1)).await.unwrap();
    assert_eq!(accounts.registration(newer.account, &newer.app).await.unwrap(), Some(regid(2)));
    assert_eq!(one(&registrations, 2).await, Some(newer));
}

pub(crate) async fn a_cursor_is_written_alone(world: World) {
    let registrations = Registrations::new(world.store);
    registrations.create(&registration(1)).await.unwrap();
    registrations.create(&registration(2)).await.unwrap();
    let cursor = |id| Cursor { judged_to: MessageId(id), acked: vec![MessageId(id - 2), MessageId(id - 1)] };
    let to = |id| Progress { cursor: Some(cursor(id)), ..Progress::default() };
    registrations.write_progress(&[(regid(1), to(100)), (regid(2), to(200))]).await.unwrap();
    registrations.write_progress(&[]).await.unwrap();
    let with = |number, id| Some(Registration { cursor: cursor(id), ..registration(number) });
    assert_eq!(registrations.read(&[regid(1), regid(2)]).await.unwrap(), [with(1, 100), with(2, 200)]);
}

pub(crate) async fn progress_changes_what_it_names_and_nothing_else(world: World) {
    let registrations = Registrations::new(world.store.clone());
    let mut expected = registration(1);
    registrations.create(&expected).await.unwrap();
    registrations.write_progress(&[(regid(1), Progress::default())]).await.unwrap();
    assert_eq!(one(&registrations, 1).await.as_ref(), Some(&expected));

    let seen = Progress { last_seen_ms: Some(START_MS + 5), ..Progress::default() };
    registrations.write_progress(&[(regid(1), seen)]).await.unwrap();
    expected.last_seen_ms = Some(START_MS + 5);
    assert_eq!(one(&registrations, 1).await.as_ref(), Some(&expected));

    expected.recent = vec![recent(5), recent(4)];
    let acknowledged = Progress { recent: Some(expected.recent.clone()), ..Progress::default() };
    registrations.write_progress(&[(regid(1), acknowledged)]).await.unwrap();
    assert_eq!(one(&registrations, 1).await.as_ref(), Some(&expected));

    let nothing = Progress { recent: Some(Vec::new()), ..Progress::default() };
    let mut batch = Batch::default();
    batch.progress(regid(1), &nothing);
    batch.write(world.store.as_ref()).await.unwrap();
    expected.recent.clear();
    assert_eq!(one(&registrations, 1).await, Some(expected));
}

pub(crate) async fn only_the_last_acknowledged_broadcasts_are_remembered(world: World) {
    let registrations = Registrations::new(world.store);
    registrations.create(&registration(1)).await.unwrap();
    let all: Vec<_> = (0..100).map(recent).collect();
    let progress = Progress { recent: Some(all.clone()), ..Progress::default() };
    registrations.write_progress(&[(regid(1), progress)]).await.unwrap();
    let last = &all[100 - RECENT_MAX..];
    assert_eq!(one(&registrations, 1).await.unwrap().recent, last);
}

pub(crate) async fn the_progress_of_a_deleted_registration_does_not_bring_it_back(world: World) {
    let registrations = Registrations::new(world.store);
    registrations.create(&registration(1)).await.unwrap();
    registrations.delete(&registration(1)).await.unwrap();
    let Registration { cursor, recent, last_seen_ms, .. } = registration(1);
    let progress = Progress { cursor: Some(cursor), recent: Some(recent), last_seen_ms };
    registrations.write_progress(&[(regid(1), progress)]).await.unwrap();
    assert_eq!(one(&registrations, 1).await, None);
}

pub(crate) async fn an_update_does_not_turn_back_progress(world: World) {
    let registrations = Registrations::new(world.store);
    for (number, old) in
        [(1, registration(1)), (2, Registration { last_seen_ms: None, recent: Vec::new(), ..registration(2) })]
    {
        registrations.create(&old).await.unwrap();
        let progress = Progress {
            cursor: Some(Cursor { judged_to: MessageId(1000), acked: Vec::new() }),
            recent: Some(vec![recent(7), recent(8)]),
            last_seen_ms: Some(START_MS + 99),
        };
        registrations.write_progress(&[(regid(number), progress.clone())]).await.unwrap();
        let mut new = Registration { enabled: false, version: 9, ..old.clone() };
        new.topics.clear();
        registrations.update(&old, &new).await.unwrap();
        let Progress { cursor, recent, last_seen_ms } = progress;
        let expected = Registration { cursor: cursor.unwrap(), recent: recent.unwrap(), last_seen_ms, ..new };
        assert_eq!(one(&registrations, number).await, Some(expected));
    }
}

pub(crate) async fn a_registration_is_one_of_its_apps_as_long_as_it_exists(world: World) {
    let (registrations, topics) = (Registrations::new(world.store.clone()), TopicMembers::new(world.store));
    let bare = |number| Registration { topics: BTreeMap::new(), ..registration(number) };
    let everyone = |name: &'static str| {
        let topics = topics.clone();
        async move { topics.everyone(&app(name), None, 10).await.unwrap() }
    };
    registrations.create(&bare(2)).await.unwrap();
    registrations.create(&registration(1)).await.unwrap();
    registrations.create(&Registration { app: app("other"), ..registration(3) }).await.unwrap();
    assert_eq!(everyone("demo").await, [regid(1), regid(2)]);
    assert_eq!(everyone("other").await, [regid(3)]);
    assert!(everyone("dem").await.is_empty());

    registrations.update(&registration(1), &bare(1)).await.unwrap();
    assert_eq!(everyone("demo").await, [regid(1), regid(2)], "a change of topics is none of the app");
    for _ in 0..2 {
        registrations.delete(&bare(1)).await.unwrap();
        assert_eq!(everyone("demo").await, [regid(2)]);
    }
}

pub(crate) async fn damage_is_named_with_table_and_row(world: World) {
    let registrations = Registrations::new(world.store.clone());
    let damages: [(&[u8], &[u8]); 8] = [
        (b"b", b"\x01short"),
        (b"c", b"\x01short"),
        (b"a", b"\x02"),
        (b"h", b"\x01short"),
        (b"s", b"\x01"),
        (b"v", b"short"),
        (b"tnews", b"short"),
        (b"l\xff", b""),
    ];
    for (cell, value) in damages {
        registrations.create(&registration(1)).await.unwrap();
        world.write([put(Table::Registrations, &regid(1).0, cell, value)]).await;
        let error = registrations.read(&[regid(1)]).await.unwrap_err();
        let StoreError::Corrupt(text) = &error else { panic!("{error:?}") };
        assert!(text.starts_with("table registrations, row 0000"), "{text}");
        registrations.delete(&registration(1)).await.unwrap();
    }
}
