//! Messages that are taken back: before they came, while the app has them under way, and afterwards.

use std::time::Duration;

use campanile_sdk_android_bridge::{Action, Config, Event, OfflineReason, ProtocolFault, Saved};
use idl::contract::message::Notification;
use idl::contract::push::Revoke;
use idl::ids::MessageId;

use crate::server::{notification, revocation, revoke};
use crate::world::{World, app_config, config, demo, other};

const A_WHILE: Duration = Duration::from_secs(1);

/// Takes back what is shown under a `notify_id`.
fn recall(id: u128, notify_id: i64) -> Revoke {
    let revoke = revocation(&demo(), MessageId(id), MessageId(0));
    Revoke { message: Vec::new(), notify_id: Some(notify_id), ..revoke }
}

fn shown_under(notify_id: i64) -> Notification {
    Notification { pass_through: None, notify_id: Some(notify_id), ..notification("shown") }
}

#[test]
fn a_message_that_the_app_has_had_is_taken_back_and_the_revocation_acknowledged() {
    let mut world = World::online();
    world.deliver(&demo(), 1, "one");
    world.pass(A_WHILE);
    world.revoke(revocation(&demo(), MessageId(2), MessageId(1)));
    world.pass(A_WHILE);
    assert_eq!(world.revoked(), [1]);
    assert_eq!(world.server.acked(), [1, 2].map(MessageId));
}

#[test]
fn a_revocation_is_acknowledged_among_what_it_was_sent_with() {
    let mut world = World::online();
    world.revoke(revocation(&demo(), MessageId(2), MessageId(1)));
    world.revoke(Revoke { broadcast: Some(true), ..revocation(&demo(), MessageId(3), MessageId(1)) });
    world.pass(A_WHILE);
    let ack = world.server.said.iter().find_map(|said| said.ack.as_ref()).expect("an ack");
    assert_eq!(ack.apps[0].messages.as_deref(), Some(MessageId(2).to_bytes().as_slice()));
    assert_eq!(ack.apps[0].broadcasts.as_deref(), Some(MessageId(3).to_bytes().as_slice()));
}

#[test]
fn a_revocation_that_comes_again_is_acknowledged_again_and_not_told() {
    let mut world = World::online();
    world.deliver(&demo(), 1, "one");
    world.pass(A_WHILE);
    for _ in 0..2 {
        world.revoke(revocation(&demo(), MessageId(2), MessageId(1)));
        world.pass(A_WHILE);
    }
    world.restart(config());
    world.revoke(revocation(&demo(), MessageId(2), MessageId(1)));
    world.pass(A_WHILE);
    assert_eq!(world.revoked(), [1]);
    assert_eq!(world.server.acked(), [1, 2, 2, 2].map(MessageId));
}

#[test]
fn a_message_is_taken_back_once_whatever_the_revocations_are_called() {
    let mut world = World::online();
    world.deliver(&demo(), 1, "one");
    world.revoke(revoke(&demo(), MessageId(1)));
    world.revoke(revoke(&demo(), MessageId(1)));
    world.revoke(revocation(&demo(), MessageId(2), MessageId(1)));
    world.pass(A_WHILE);
    assert_eq!(world.revoked(), [1]);
    assert_eq!(world.server.acked(), [1, 2].map(MessageId), "one without an id is not acknowledged");
}

#[test]
fn a_message_that_was_taken_back_before_it_came_is_acknowledged_and_never_handed_over() {
    let mut world = World::online();
    world.revoke(revocation(&demo(), MessageId(3), MessageId(1)));
    world.revoke(Revoke { broadcast: Some(true), ..revocation(&demo(), MessageId(4), MessageId(2)) });
    world.pass(A_WHILE);
    world.restart(config());
    world.deliver(&demo(), 1, "late");
    world.broadcast(&demo(), 2, "late as well");
    world.pass(A_WHILE);
    world.revoke(revocation(&demo(), MessageId(5), MessageId(1)));
    world.pass(A_WHILE);
    assert_eq!((world.pushed(), world.revoked()), (vec![], vec![]), "the app has heard of neither");
    assert_eq!(world.server.acked(), [3, 4, 1, 2, 5].map(MessageId));
}

#[test]
fn a_message_that_the_app_has_under_way_is_taken_back_and_not_handed_over_again() {
    let mut world = World::online();
    world.obliging = false;
    world.deliver(&demo(), 1, "one");
    world.deliver(&demo(), 2, "two");
    world.revoke(revoke(&demo(), MessageId(1)));
    world.revoke(revocation(&demo(), MessageId(3), MessageId(1)));
    assert_eq!(world.revoked(), [1]);
    world.handled(&demo(), 1);
    world.event(Event::Refused { app: demo(), id: MessageId(2) });
    world.pass(A_WHILE);
    assert_eq!(world.server.acked(), [1, 3].map(MessageId));
    world.revoke(revocation(&demo(), MessageId(4), MessageId(1)));
    world.revoke(revocation(&demo(), MessageId(5), MessageId(2)));
    assert_eq!(world.revoked(), [1], "the app has one no longer and two not at all");
}

#[test]
fn a_device_that_is_killed_while_it_takes_a_message_back_does_not_hand_it_over() {
    let mut world = World::online();
    world.obliging = false;
    world.deliver(&demo(), 1, "one");
    world.revoke(revocation(&demo(), MessageId(2), MessageId(1)));
    world.restart(config());
    world.deliver(&demo(), 1, "one");
    world.revoke(revocation(&demo(), MessageId(2), MessageId(1)));
    world.pass(A_WHILE);
    assert_eq!((world.pushed(), world.revoked()), (vec!["one".to_owned()], vec![1]));
    assert_eq!(world.server.acked(), [1, 2].map(MessageId));
}

#[test]
fn the_app_hears_of_it_before_it_is_saved_and_it_is_saved_before_it_is_acknowledged() {
    let mut world = World::with(Config { ack_batch_max: 1, ..config() }, vec![app_config(demo())], Saved::default(), 1);
    world.start();
    world.deliver(&demo(), 1, "one");
    let bytes = world.server.revoke(revocation(&demo(), MessageId(2), MessageId(1)));
    world.core.handle(world.now_ms, Event::Received(&bytes));
    let actions: Vec<Action> = std::iter::from_fn(|| world.core.poll()).collect();
    let [Action::Revoked { .. }, Action::Save, Action::Send(_)] = actions.as_slice() else { panic!("{actions:?}") };
}

#[test]
fn what_is_shown_under_a_notify_id_is_taken_back_by_it() {
    let mut world = World::online();
    world.notify(1, &shown_under(7));
    world.notify(2, &shown_under(1 << 40));
    world.revoke(recall(3, 1 << 40));
    world.revoke(recall(4, 8));
    world.pass(A_WHILE);
    world.revoke(recall(3, 1 << 40));
    world.pass(A_WHILE);
    assert_eq!(world.revoked(), [2], "nothing is shown under 8");
    assert_eq!(world.server.acked(), [1, 2, 3, 4, 3].map(MessageId));
}

#[test]
fn a_notify_id_that_is_used_again_is_not_taken_back_by_the_revocation_before() {
    let mut world = World::online();
    world.notify(1, &shown_under(7));
    world.revoke(recall(2, 7));
    world.notify(3, &shown_under(7));
    world.revoke(recall(2, 7));
    assert_eq!(world.revoked(), [1]);
    world.revoke(recall(4, 7));
    assert_eq!(world.revoked(), [1, 3]);
}

#[test]
fn a_notification_that_has_left_the_window_is_taken_back_while_it_is_shown() {
    let mut world = World::with(Config { seen_max: 2, ..config() }, vec![app_config(demo())], Saved::default(), 1);
    world.start();
    world.notify(1, &shown_under(7));
    world.notify(2, &shown_under(8));
    for id in 3..6 {
        world.deliver(&demo(), id, "x");
    }
    world.revoke(recall(6, 7));
    world.revoke(revocation(&demo(), MessageId(7), MessageId(2)));
    assert_eq!(world.revoked(), [1, 2]);
}

#[test]
fn a_revocation_for_an_app_that_is_not_there_is_reported_and_not_acknowledged() {
    let mut world = World::online();
    world.revoke(revoke(&other(), MessageId(1)));
    for _ in 0..2 {
        world.revoke(revocation(&other(), MessageId(2), MessageId(1)));
    }
    world.pass(A_WHILE);
    assert_eq!(world.server.reports(), [(MessageId(2), 1)]);
    assert_eq!((world.revoked(), world.server.acked()), (vec![], vec![]));
}

#[test]
fn a_revocation_with_half_an_id_is_a_fault_of_the_servers() {
    let half = vec![0; 8];
    let whole = || revocation(&demo(), MessageId(2), MessageId(1));
    for revoke in [
        Revoke { message: half.clone(), ..whole() },
        Revoke { message: Vec::new(), ..whole() },
        Revoke { id: Some(half), ..whole() },
    ] {
        let mut world = World::online();
        world.revoke(revoke);
        assert_eq!(world.offline(), [OfflineReason::Protocol(ProtocolFault::MessageId)]);
    }
}
