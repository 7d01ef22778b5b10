//! From nothing to an open channel.

use std::time::Duration;

use campanile_sdk_android_bridge::{Action, Event, OfflineReason};
use idl::ids::RegId;

use crate::world::{World, config, demo};

#[test]
fn a_device_logs_in_opens_the_channel_and_registers_its_app() {
    let world = World::online();
    assert_eq!(world.server.logins, 1);
    assert_eq!(world.server.hellos[0].registrations.as_deref(), Some(&[][..]));
    assert_eq!(world.server.registers().len(), 1);
    assert_eq!(world.ready(), [RegId([1; 24])]);
    assert_eq!(world.core.saved().regid(&demo()), Some(RegId([1; 24])));
    assert!(!world.kept.is_empty(), "the registration is kept");
}

#[test]
fn the_private_key_is_kept_before_the_public_one_is_shown() {
    let mut world = World::new();
    world.core.handle(0, Event::Start);
    assert_eq!(world.core.poll(), Some(Action::Save));
    assert_eq!(world.core.poll(), Some(Action::Connect));
}

#[test]
fn a_device_that_comes_back_names_its_registration_and_does_not_register_again() {
    let mut world = World::online();
    world.cut_and_return();
    let regid = RegId([1; 24]).to_string();
    assert_eq!(world.server.hellos[1].registrations.as_deref(), Some(&[regid][..]));
    assert_eq!(world.server.registers().len(), 1);
    assert_eq!(world.ready().len(), 2, "the app hears that it is reachable again");
}

#[test]
fn a_refused_token_logs_the_device_out_until_a_new_one_comes() {
    let mut world = World::new();
    world.server.token = "another".to_owned();
    world.start();
    assert!(world.told.contains(&Action::LoggedOut { reason: "not-authorized".to_owned() }));
    world.pass(Duration::from_hours(24));
    world.start();
    assert_eq!(world.attempts_ms, [0], "it does not knock again with the same token");
    world.event(Event::TokenRenewed("another".to_owned()));
    assert_eq!(world.server.logins, 1);
    assert_eq!(world.ready().len(), 1);
}

#[test]
fn a_login_failure_that_may_pass_is_tried_again() {
    let mut world = World::new();
    world.server.manners.login_failure = Some("temporary-auth-failure");
    world.start();
    assert_eq!(world.offline(), [OfflineReason::LoginFailed("temporary-auth-failure".to_owned())]);
    world.server.manners.login_failure = None;
    world.pass(Duration::from_secs(1));
    assert_eq!(world.ready().len(), 1);
}

#[test]
fn a_server_without_plain_does_not_get_the_token() {
    let mut world = World::new();
    world.server.manners.mechanisms = "<mechanism>SCRAM-SHA-1</mechanism>";
    world.start();
    assert_eq!(world.offline(), [OfflineReason::NoPlain]);
    assert!(world.server.elements.is_empty());
}

#[test]
fn a_channel_that_is_not_served_is_tried_again_later() {
    let mut world = World::new();
    world.server.manners.channel_failure = Some("service-unavailable");
    world.start();
    assert_eq!(world.offline(), [OfflineReason::ChannelRefused("service-unavailable".to_owned())]);
    assert!(world.server.closed, "the stream is closed in good order");
    world.server.manners.channel_failure = None;
    world.pass(Duration::from_secs(1));
    assert_eq!(world.ready().len(), 1);
}

#[test]
fn a_server_that_says_nothing_is_left_after_the_login_time() {
    let mut world = World::new();
    world.server.manners.deaf = true;
    world.start();
    world.pass(config().login_time_max.checked_sub(Duration::from_millis(1)).expect("a time"));
    assert_eq!(world.offline(), []);
    world.pass(Duration::from_millis(1));
    assert_eq!(world.offline(), [OfflineReason::LoginTimedOut]);
    assert!(!world.connected);
}
