//! Deliveries: opened, handed over once, acknowledged when they are handled.

use std::time::Duration;

use campanile_sdk_android_bridge::{Config, Event, OfflineReason, Saved};
use idl::contract::push::ToDevice;
use idl::ids::MessageId;

use crate::server::delivery;
use crate::world::{World, app_config, config, demo, other};

const A_WHILE: Duration = Duration::from_secs(1);

#[test]
fn a_single_delivery_and_a_broadcast_are_opened_and_acknowledged_as_what_they_are() {
    let mut world = World::online();
    world.deliver(&demo(), 1, "for one");
    world.broadcast(&demo(), 2, "for all");
    assert_eq!(world.pushed(), ["for one", "for all"]);
    world.pass(A_WHILE);
    let ack = world.server.said.iter().find_map(|said| said.ack.as_ref()).expect("an ack");
    assert_eq!(ack.apps.len(), 1);
    assert_eq!(ack.apps[0].messages.as_deref(), Some(MessageId(1).to_bytes().as_slice()));
    assert_eq!(ack.apps[0].broadcasts.as_deref(), Some(MessageId(2).to_bytes().as_slice()));
}

#[test]
fn nothing_is_acknowledged_before_the_app_has_handled_it() {
    let mut world = World::online();
    world.obliging = false;
    world.deliver(&demo(), 1, "one");
    world.pass(Duration::from_mins(10));
    assert_eq!(world.server.acked(), []);
    world.handled(&demo(), 1);
    world.pass(A_WHILE);
    assert_eq!(world.server.acked(), [MessageId(1)]);
}

#[test]
fn acks_wait_for_each_other_but_not_for_long() {
    let mut world = World::online();
    for id in 0..10 {
        world.deliver(&demo(), id, "x");
    }
    assert_eq!(world.server.acked(), []);
    world.pass(config().ack_delay);
    let acks = world.server.said.iter().filter(|said| said.ack.is_some()).count();
    assert_eq!((acks, world.server.acked().len()), (1, 10));
}

#[test]
fn a_full_batch_of_acks_leaves_at_once() {
    let mut world = World::online();
    for id in 0..64 {
        world.deliver(&demo(), id, "x");
    }
    assert_eq!(world.server.acked().len(), 64);
}

#[test]
fn a_redelivery_while_the_first_is_being_handled_is_neither_pushed_nor_acknowledged() {
    let mut world = World::online();
    world.obliging = false;
    world.deliver(&demo(), 1, "one");
    world.deliver(&demo(), 1, "one");
    world.cut_and_return();
    world.deliver(&demo(), 1, "one");
    world.pass(A_WHILE);
    assert_eq!((world.pushed().len(), world.server.acked().len()), (1, 0));
    world.handled(&demo(), 1);
    world.pass(A_WHILE);
    assert_eq!(world.server.acked(), [MessageId(1)]);
}

#[test]
fn a_redelivery_of_what_was_handled_is_acknowledged_again_and_not_pushed() {
    let mut world = World::online();
    world.deliver(&demo(), 1, "one");
    world.pass(A_WHILE);
    world.broadcast(&demo(), 2, "two");
    world.pass(A_WHILE);
    world.deliver(&demo(), 1, "one");
    world.broadcast(&demo(), 2, "two");
    world.pass(A_WHILE);
    assert_eq!(world.pushed(), ["one", "two"]);
    assert_eq!(world.server.acked(), [1, 2, 1, 2].map(MessageId));
}

#[test]
fn an_ack_that_waited_when_the_connection_broke_leaves_with_the_next_one() {
    let mut world = World::online();
    world.deliver(&demo(), 1, "one");
    world.cut_and_return();
    assert_eq!(world.server.acked(), [MessageId(1)]);
}

#[test]
fn a_device_that_was_killed_pushes_nothing_a_second_time() {
    let mut world = World::online();
    world.deliver(&demo(), 1, "one");
    world.obliging = false;
    world.deliver(&demo(), 2, "two");
    world.restart(config());
    for (id, text) in [(1, "one"), (2, "two")] {
        world.deliver(&demo(), id, text);
    }
    assert_eq!(world.pushed(), ["one", "two", "two"], "what was not handled comes again, what was does not");
    world.pass(A_WHILE);
    assert_eq!(world.server.acked(), [MessageId(1)]);
    assert_eq!(world.server.registers().len(), 1, "the registration was kept too");
}

#[test]
fn the_duplicate_window_is_bounded_by_its_configuration() {
    let mut world = World::with(Config { seen_max: 3, ..config() }, vec![app_config(demo())], Saved::default(), 1);
    world.start();
    for id in 1..=4 {
        world.deliver(&demo(), id, "x");
    }
    let seen = |world: &World| [1, 2, 3, 4].map(|id| world.core.saved().has_seen(&demo(), MessageId(id)));
    assert_eq!(seen(&world), [false, true, true, true]);
    world.deliver(&demo(), 2, "again");
    world.deliver(&demo(), 5, "x");
    assert_eq!(seen(&world), [false, true, false, true], "one that came again stays longer");
}

#[test]
fn pushes_come_in_the_order_of_their_arrival() {
    let mut world = World::online();
    let mut bytes = Vec::new();
    for id in [5, 3, 9, 1] {
        bytes.extend(world.server.deliver(&demo(), MessageId(id), &id.to_string()));
    }
    world.down(&bytes);
    assert_eq!(world.pushed(), ["5", "3", "9", "1"]);
}

#[test]
fn a_seal_that_does_not_open_is_reported_once_and_never_acknowledged() {
    let mut world = World::online();
    let forged = world.server.say(&delivery(&demo(), MessageId(1), vec![0; 40], None));
    let forged_broadcast = world.server.say(&delivery(&demo(), MessageId(2), vec![0; 140], Some(true)));
    for bytes in [&forged, &forged_broadcast, &forged] {
        world.down(bytes);
    }
    world.deliver(&demo(), 3, "three");
    world.pass(A_WHILE);
    assert_eq!(world.server.reports(), [(MessageId(1), 2), (MessageId(2), 2)]);
    assert_eq!(world.pushed(), ["three"], "what comes after it is not held up");
    assert_eq!(world.server.acked(), [MessageId(3)]);
    assert_eq!(world.server.registers().len(), 2, "the keys are asked for again, once");
}

#[test]
fn a_delivery_that_did_not_open_is_pushed_when_it_comes_again_and_opens() {
    let mut world = World::online();
    let forged = world.server.say(&delivery(&demo(), MessageId(1), vec![0; 40], None));
    world.down(&forged);
    world.deliver(&demo(), 1, "one");
    assert_eq!(world.pushed(), ["one"]);
}

#[test]
fn what_is_sealed_for_another_message_or_app_does_not_open() {
    let apps = vec![app_config(demo()), app_config(other())];
    let mut world = World::with(config(), apps, Saved::default(), 1);
    world.start();
    let bytes = world.server.deliver(&demo(), MessageId(1), "one");
    let text = String::from_utf8(bytes).expect("text");
    let body = text.split(['>', '<']).find(|part| part.len() > 40 && !part.contains(' ')).expect("base 64");
    let payload = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, body).expect("base 64");
    let genuine: ToDevice = idl::wire::decode_trusted(&payload).expect("a payload");
    let sealed = genuine.deliver.expect("a delivery").sealed;
    for (app, id) in [(demo(), 2), (other(), 1)] {
        let moved = world.server.say(&delivery(&app, MessageId(id), sealed.clone(), None));
        world.down(&moved);
    }
    assert_eq!(world.pushed(), Vec::<String>::new());
    assert_eq!(world.server.reports(), [(MessageId(2), 2), (MessageId(1), 2)]);
}

#[test]
fn a_delivery_for_an_app_that_is_not_there_is_reported() {
    let mut world = World::online();
    let bytes = world.server.say(&delivery(&other(), MessageId(1), vec![0; 40], None));
    world.down(&bytes);
    world.down(&bytes);
    assert_eq!(world.server.reports(), [(MessageId(1), 1)]);
}

#[test]
fn a_refused_push_is_reported_and_comes_again() {
    let mut world = World::online();
    world.obliging = false;
    world.deliver(&demo(), 1, "one");
    world.event(Event::Refused { app: demo(), id: MessageId(1) });
    world.pass(A_WHILE);
    assert_eq!((world.server.reports(), world.server.acked().len()), (vec![(MessageId(1), 3)], 0));
    world.deliver(&demo(), 1, "one");
    assert_eq!(world.pushed(), ["one", "one"]);
}

#[test]
fn an_app_that_takes_nothing_in_makes_the_device_leave_before_it_fills_up() {
    let mut world = World::with(Config { unhandled_max: 2, ..config() }, vec![app_config(demo())], Saved::default(), 1);
    world.start();
    world.obliging = false;
    for id in 1..=3 {
        world.deliver(&demo(), id, "x");
    }
    assert_eq!(world.pushed().len(), 2);
    assert_eq!(world.offline(), [OfflineReason::TooManyUnhandled]);
    assert!(world.server.elements.iter().any(|element| element.contains("resource-constraint")));
    world.handled(&demo(), 1);
    world.handled(&demo(), 2);
    world.event(Event::Start);
    world.deliver(&demo(), 3, "x");
    assert_eq!(world.pushed().len(), 3, "it comes again and finds room");
}

#[test]
fn a_click_without_a_connection_is_told_later() {
    let mut world = World::online();
    world.cut();
    for id in 0..300 {
        world.event(Event::Clicked { app: demo(), id: MessageId(id) });
    }
    world.event(Event::Start);
    let newest: Vec<_> = (268..300).map(MessageId).collect();
    assert_eq!(world.server.clicks(), newest, "the newest are kept");
}

/// A device that has clicked on two messages while the server had stopped listening, and has lost its connection.
fn clicked_in_vain() -> World {
    let mut world = World::new();
    world.server.manners.manageable = true;
    world.start();
    world.event(Event::Clicked { app: demo(), id: MessageId(1) });
    world.server.manners.deaf = true;
    world.event(Event::Clicked { app: demo(), id: MessageId(2) });
    world.event(Event::Clicked { app: demo(), id: MessageId(3) });
    world.cut();
    world.server.manners.deaf = false;
    world
}

#[test]
fn a_click_that_was_lost_with_its_connection_is_told_when_the_stream_goes_on() {
    let mut world = clicked_in_vain();
    world.event(Event::Start);
    assert_eq!((world.server.clicks(), world.server.resumptions), ([1, 2, 3].map(MessageId).to_vec(), 1));
}

#[test]
fn a_click_that_was_lost_with_its_stream_is_told_on_the_next() {
    let mut world = clicked_in_vain();
    world.server.manners.resumable = false;
    world.event(Event::Start);
    assert_eq!((world.server.clicks(), world.server.resumptions), ([1, 2, 3].map(MessageId).to_vec(), 0));
    world.cut_and_return();
    assert_eq!(world.server.clicks().len(), 3, "what the server has is not told again");
}

#[test]
fn apps_do_not_share_a_window() {
    let apps = vec![app_config(demo()), app_config(other())];
    let mut world = World::with(config(), apps, Saved::default(), 1);
    world.start();
    world.deliver(&demo(), 1, "demo");
    world.deliver(&other(), 1, "other");
    assert_eq!(world.pushed(), ["demo", "other"]);
}
