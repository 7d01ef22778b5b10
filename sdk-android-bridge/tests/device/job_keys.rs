//! Job keys: of messages to one app with the same key, the first is handed over.

use std::time::Duration;

use campanile_sdk_android_bridge::{Event, Saved};
use idl::contract::message::Notification;
use idl::ids::MessageId;

use crate::server::{notification, revocation};
use crate::world::{World, app_config, config, demo, other};

const A_WHILE: Duration = Duration::from_secs(1);
const DUPLICATE: i32 = 5;

fn with_key(key: &str) -> Notification {
    Notification { job_key: Some(key.to_owned()), ..notification(key) }
}

#[test]
fn of_messages_with_the_same_job_key_the_first_is_handed_over_and_the_others_are_reported_and_acknowledged() {
    let mut world = World::online();
    world.notify(1, &with_key("a"));
    world.notify(2, &with_key("a"));
    world.notify(3, &with_key("b"));
    world.deliver(&demo(), 4, "none");
    world.notify(5, &with_key("a"));
    world.pass(A_WHILE);
    assert_eq!(world.pushed(), ["a", "b", "none"]);
    assert_eq!(world.server.reports(), [2, 5].map(|id| (MessageId(id), DUPLICATE)));
    assert_eq!(world.server.acked(), [1, 2, 3, 4, 5].map(MessageId));
}

#[test]
fn a_duplicate_that_comes_again_is_acknowledged_again_and_reported_once() {
    let mut world = World::online();
    world.notify(1, &with_key("a"));
    for _ in 0..3 {
        world.notify(2, &with_key("a"));
        world.pass(A_WHILE);
    }
    assert_eq!(world.server.reports(), [(MessageId(2), DUPLICATE)]);
    assert_eq!(world.server.acked(), [1, 2, 2, 2].map(MessageId));
}

#[test]
fn more_duplicates_than_other_reports_have_room_are_all_reported() {
    let mut world = World::online();
    for id in 0..100 {
        world.notify(id, &with_key("a"));
    }
    assert_eq!(world.server.reports().len(), 99);
}

#[test]
fn a_job_key_is_remembered_over_a_restart_and_its_first_message_comes_again_until_it_is_handled() {
    let mut world = World::online();
    world.obliging = false;
    world.notify(1, &with_key("a"));
    world.restart(config());
    world.notify(2, &with_key("a"));
    world.notify(1, &with_key("a"));
    world.pass(A_WHILE);
    assert_eq!(world.replaced(), [(1, None), (1, None)]);
    assert_eq!(world.server.reports(), [(MessageId(2), DUPLICATE)]);
    assert_eq!(world.server.acked(), [MessageId(2)]);
}

#[test]
fn a_message_that_the_app_refused_makes_room_for_another_with_its_job_key() {
    let mut world = World::online();
    world.obliging = false;
    world.notify(1, &with_key("a"));
    world.event(Event::Refused { app: demo(), id: MessageId(1) });
    world.notify(2, &with_key("a"));
    world.notify(1, &with_key("a"));
    assert_eq!(world.pushed().len(), 2);
    assert_eq!(world.server.reports(), [(MessageId(1), 3), (MessageId(1), DUPLICATE)]);
}

#[test]
fn a_duplicate_is_not_taken_back_from_an_app_that_has_not_had_it() {
    let mut world = World::online();
    world.notify(1, &with_key("a"));
    world.notify(2, &with_key("a"));
    world.revoke(revocation(&demo(), MessageId(3), MessageId(2)));
    world.revoke(revocation(&demo(), MessageId(4), MessageId(1)));
    assert_eq!(world.revoked(), [1]);
}

#[test]
fn apps_do_not_share_job_keys_and_no_key_is_no_key() {
    let apps = vec![app_config(demo()), app_config(other())];
    let mut world = World::with(config(), apps, Saved::default(), 1);
    world.start();
    world.notify(1, &with_key("a"));
    let bytes = world.server.notify(&other(), MessageId(2), &with_key("a"));
    world.down(&bytes);
    world.notify(3, &with_key(""));
    world.notify(4, &with_key(""));
    assert_eq!(world.pushed(), ["a", "a", "", ""]);
}
