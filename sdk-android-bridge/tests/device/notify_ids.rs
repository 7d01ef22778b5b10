//! Notifications that take each other's place on the screen.

use campanile_sdk_android_bridge::Event;
use idl::contract::message::Notification;
use idl::ids::MessageId;

use crate::server::{notification, revocation};
use crate::world::{World, config, demo};

fn shown_under(notify_id: i64) -> Notification {
    Notification { pass_through: None, notify_id: Some(notify_id), ..notification("shown") }
}

#[test]
fn a_notification_says_which_one_it_replaces() {
    let mut world = World::online();
    world.notify(1, &shown_under(7));
    world.notify(2, &shown_under(8));
    world.notify(3, &shown_under(7));
    world.restart(config());
    world.notify(4, &shown_under(7));
    assert_eq!(world.replaced(), [(1, None), (2, None), (3, Some(1)), (4, Some(3))]);
}

#[test]
fn what_is_not_shown_replaces_nothing_and_is_not_replaced() {
    let mut world = World::online();
    world.notify(1, &Notification { pass_through: Some(true), ..shown_under(7) });
    world.notify(2, &shown_under(7));
    world.notify(3, &Notification { pass_through: Some(true), ..shown_under(7) });
    world.notify(4, &Notification { pass_through: None, ..notification("no notify_id") });
    world.notify(5, &Notification { pass_through: Some(false), ..shown_under(7) });
    world.notify(6, &shown_under(0));
    world.notify(7, &shown_under(0));
    let expected = [(1, None), (2, None), (3, None), (4, None), (5, Some(2)), (6, None), (7, None)];
    assert_eq!(world.replaced(), expected, "0 is as good as no notify_id");
}

#[test]
fn a_notification_that_comes_again_says_the_same_again() {
    let mut world = World::online();
    world.notify(1, &shown_under(7));
    world.obliging = false;
    world.notify(2, &shown_under(7));
    world.restart(config());
    world.notify(2, &shown_under(7));
    assert_eq!(world.replaced(), [(1, None), (2, Some(1)), (2, Some(1))]);
}

#[test]
fn a_notification_that_was_taken_back_or_refused_is_not_replaced() {
    let mut world = World::online();
    world.notify(1, &shown_under(7));
    world.revoke(revocation(&demo(), MessageId(2), MessageId(1)));
    world.notify(3, &shown_under(7));
    world.obliging = false;
    world.notify(4, &shown_under(7));
    world.event(Event::Refused { app: demo(), id: MessageId(4) });
    world.notify(5, &shown_under(7));
    assert_eq!(world.replaced(), [(1, None), (3, None), (4, Some(3)), (5, Some(3))]);
}
