//! Commands: order, results, retries, the cache, registrations.

use std::collections::BTreeMap;
use std::time::Duration;

use campanile_sdk_android_bridge::{Action, AppConfig, Command, Event, Saved};
use idl::contract::push::FromDevice;
use idl::error::Code;
use idl::ids::RegId;

use crate::world::{World, app_config, config, demo, other};

fn alias(name: &str) -> Command {
    Command::SetAlias(name.parse().expect("an alias"))
}

fn subscribe(topic: &str) -> Command {
    Command::Subscribe(topic.parse().expect("a topic"))
}

fn aliases(world: &World) -> Vec<&str> {
    let set = world.server.said.iter().filter_map(|said| said.set_alias.as_ref());
    set.map(|set| set.alias_name.as_str()).collect()
}

/// The code of each result; 0 is success.
fn codes(world: &World) -> Vec<(u64, i32)> {
    let code = |result: Result<(), campanile_sdk_android_bridge::Failure>| {
        result.map_or_else(|failure| failure.code.number(), |()| 0)
    };
    world.results().into_iter().map(|(ticket, result)| (ticket, code(result))).collect()
}

#[test]
fn every_command_is_said_in_its_own_words_and_answered() {
    let mut world = World::online();
    world.server.said.clear();
    let commands = [
        alias("a"),
        Command::UnsetAlias("a".parse().expect("an alias")),
        Command::SetUserAccount("u".parse().expect("a user account")),
        Command::UnsetUserAccount("u".parse().expect("a user account")),
        subscribe("t"),
        Command::Unsubscribe("t".parse().expect("a topic")),
        Command::SetEnabled(false),
        Command::SetAcceptTime { start_minute: 480, end_minute: 1320, utc_offset_minutes: -90 },
        Command::Register,
        Command::Unregister,
    ];
    for (ticket, command) in (0..).zip(commands) {
        world.command(ticket, command);
    }
    assert_eq!(codes(&world), (0..10).map(|ticket| (ticket, 0)).collect::<Vec<_>>());
    let fields: [fn(&FromDevice) -> bool; 10] = [
        |said| said.set_alias.is_some(),
        |said| said.unset_alias.is_some(),
        |said| said.set_user_account.is_some(),
        |said| said.unset_user_account.is_some(),
        |said| said.subscribe.is_some(),
        |said| said.unsubscribe.is_some(),
        |said| said.set_enabled.as_ref().is_some_and(|set| !set.enabled),
        |said| said.set_accept_time.as_ref().is_some_and(|set| set.utc_offset_minutes == -90),
        |said| said.register_app.is_some(),
        |said| said.unregister.is_some(),
    ];
    assert_eq!(world.server.said.len(), fields.len());
    for (said, is_right) in world.server.said.iter().zip(fields) {
        assert!(is_right(said), "{said:?}");
    }
}

#[test]
fn an_alias_that_is_set_is_not_set_again_even_after_a_restart_or_without_a_connection() {
    let mut world = World::online();
    world.command(1, alias("a"));
    world.command(2, alias("a"));
    world.restart(config());
    world.command(3, alias("a"));
    world.cut();
    world.command(4, alias("a"));
    assert_eq!(codes(&world), [(1, 0), (2, 0), (3, 0), (4, 0)]);
    assert_eq!(aliases(&world), ["a"]);
    world.event(Event::Start);
    world.command(5, Command::UnsetAlias("a".parse().expect("an alias")));
    world.command(6, alias("a"));
    assert_eq!(aliases(&world), ["a", "a"], "one that was taken away is set again");
}

#[test]
fn a_subscription_is_always_sent_because_app_servers_change_them_too() {
    let mut world = World::online();
    world.command(1, subscribe("t"));
    world.command(2, subscribe("t"));
    assert_eq!(world.server.said.iter().filter(|said| said.subscribe.is_some()).count(), 2);
}

#[test]
fn an_apps_commands_are_under_way_one_at_a_time() {
    let mut world = World::online();
    world.server.manners.mute = true;
    world.command(1, alias("a"));
    world.command(2, alias("b"));
    assert_eq!(aliases(&world), ["a"]);
    // After the reconnect the first is sent again, and answered, before the second.
    world.server.manners.mute = false;
    world.cut_and_return();
    assert_eq!(aliases(&world), ["a", "a", "b"]);
    assert_eq!(codes(&world), [(1, 0), (2, 0)]);
}

#[test]
fn apps_do_not_wait_for_each_other() {
    let apps = vec![app_config(demo()), app_config(other())];
    let mut world = World::with(config(), apps, Saved::default(), 1);
    world.start();
    world.server.manners.mute = true;
    world.command(1, alias("a"));
    world.event(Event::Command { ticket: 2, app: other(), command: alias("b") });
    assert_eq!(aliases(&world), ["a", "b"]);
}

#[test]
fn a_command_without_an_answer_is_sent_again_and_in_the_end_times_out() {
    let mut world = World::online();
    world.server.manners.mute = true;
    world.command(1, alias("a"));
    world.pass(Duration::from_secs(59));
    assert_eq!((aliases(&world).len(), codes(&world).len()), (3, 0));
    world.pass(Duration::from_secs(1));
    assert_eq!(codes(&world), [(1, Code::TimedOut.number())]);
    world.server.manners.mute = false;
    world.command(2, alias("a"));
    assert_eq!(aliases(&world).len(), 4, "it was not taken for set");
}

#[test]
fn a_command_without_a_connection_waits_and_times_out() {
    let mut world = World::new();
    world.reachable = false;
    world.start();
    world.command(1, alias("a"));
    world.pass(Duration::from_mins(1));
    assert_eq!(codes(&world), [(1, Code::TimedOut.number())]);
    world.command(2, alias("b"));
    world.reachable = true;
    world.event(Event::Start);
    assert_eq!(codes(&world)[1..], [(2, 0)], "the registration goes before it");
}

#[test]
fn a_late_answer_to_an_earlier_sending_is_ignored() {
    let mut world = World::online();
    world.server.manners.mute = true;
    world.command(1, alias("a"));
    let request = world.server.said.last().and_then(|said| said.request).expect("a request number");
    world.pass(Duration::from_secs(20));
    let answer = idl::contract::push::Result { request, code: 0, description: None, registered: None };
    let late = world.server.say(&idl::contract::push::ToDevice { result: Some(answer), ..Default::default() });
    world.down(&late);
    assert_eq!(codes(&world), []);
}

#[test]
fn an_answer_that_says_later_is_followed_by_another_try() {
    let mut world = World::online();
    world.server.manners.codes = vec![Code::Busy.number(), Code::System.number()];
    world.command(1, alias("a"));
    world.pass(Duration::from_secs(5));
    assert_eq!((aliases(&world).len(), codes(&world)), (3, vec![(1, 0)]));
    world.server.manners.codes = vec![Code::Busy.number(); 1000];
    world.command(2, alias("b"));
    world.pass(Duration::from_mins(1));
    assert_eq!(codes(&world)[1..], [(2, Code::Busy.number())], "the last answer is the result");
}

#[test]
fn an_answer_that_says_no_is_the_result() {
    let mut world = World::online();
    world.server.manners.codes = vec![Code::LimitReached.number()];
    world.command(1, alias("a"));
    assert_eq!((aliases(&world).len(), codes(&world)), (1, vec![(1, Code::LimitReached.number())]));
}

#[test]
fn an_answer_on_a_superseded_connection_does_not_end_the_command() {
    let mut world = World::online();
    world.server.manners.codes = vec![Code::Superseded.number()];
    world.command(1, alias("a"));
    assert_eq!(codes(&world), []);
    world.cut_and_return();
    world.pass(Duration::from_secs(1));
    assert_eq!(codes(&world), [(1, 0)]);
}

#[test]
fn a_full_queue_refuses_at_once() {
    let mut world = World::online();
    world.server.manners.mute = true;
    for ticket in 0..=256 {
        world.command(ticket, alias(&ticket.to_string()));
    }
    assert_eq!(codes(&world), [(256, Code::Busy.number())]);
}

#[test]
fn a_command_for_an_app_that_is_not_there_is_refused() {
    let mut world = World::online();
    world.event(Event::Command { ticket: 1, app: other(), command: alias("a") });
    assert_eq!(codes(&world), [(1, Code::UnknownApp.number())]);
}

#[test]
fn a_registration_whose_answer_was_lost_is_asked_for_again_with_the_same_key() {
    let mut world = World::new();
    world.server.manners.mute = true;
    world.start();
    world.cut_and_return();
    world.restart(config());
    world.server.manners.mute = false;
    world.pass(Duration::from_secs(30));
    let registers = world.server.registers();
    assert!(registers.len() >= 4, "on each connection, and when there is no answer");
    assert!(registers.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(world.ready(), [RegId([1; 24])]);
}

#[test]
fn a_registration_that_is_refused_is_told_and_tried_with_the_next_connection() {
    let mut world = World::new();
    world.server.manners.codes = vec![Code::PackageMismatch.number()];
    world.start();
    let failed = world.told.iter().filter(|told| matches!(told, Action::RegisterFailed { .. })).count();
    assert_eq!((failed, world.ready().len()), (1, 0));
    world.pass(Duration::from_hours(1));
    assert_eq!(world.server.registers().len(), 1);
    world.cut_and_return();
    assert_eq!(world.ready().len(), 1);
}

#[test]
fn an_answer_made_with_another_app_key_is_not_believed() {
    let wrong = AppConfig { app_key: "another key".to_owned(), ..app_config(demo()) };
    // The server of the test checks the proof: it is made to answer with the right key's registration.
    let mut world = World::online();
    let right = world.server.registrations[&demo()].register.clone();
    world.core = campanile_sdk_android_bridge::Core::new(
        config(),
        vec![wrong],
        Saved::default(),
        std::sync::Arc::new(crate::server::Steady::new(1)),
    );
    world.server.manners.mute = true;
    world.server.elements.clear();
    world.told.clear();
    // Its Register must not reach the checks of the test's server.
    world.core.handle(0, Event::Start);
    let mut register = None;
    world.server.connected();
    while let Some(action) = world.core.poll() {
        match action {
            Action::Connect => world.core.handle(0, Event::Connected),
            Action::Send(bytes) => {
                register = Some(bytes.clone());
                let answer = world.server.receive(&bytes);
                world.core.handle(0, Event::Received(&answer));
            }
            told => world.told.push(told),
        }
    }
    assert!(register.is_some());
    let request = world.server.said.last().and_then(|said| said.request).expect("a request number");
    let registered = idl::contract::push::Registered {
        app: right.app,
        regid: RegId([1; 24]).to_string(),
        server_key: vec![9; 32],
        sealed_keys: vec![0; 80],
    };
    let answer = idl::contract::push::Result { request, code: 0, description: None, registered: Some(registered) };
    let bytes = world.server.say(&idl::contract::push::ToDevice { result: Some(answer), ..Default::default() });
    world.down(&bytes);
    assert!(
        world
            .told
            .iter()
            .any(|told| matches!(told, Action::RegisterFailed { failure, .. } if failure.code == Code::BadProof))
    );
    assert_eq!(world.core.saved().regid(&demo()), None);
}

#[test]
fn an_unregistered_app_stays_so_until_it_registers_again() {
    let mut world = World::online();
    world.command(1, alias("a"));
    world.command(2, Command::Unregister);
    world.restart(config());
    assert_eq!(world.server.registers().len(), 1);
    world.command(3, alias("b"));
    world.command(4, Command::Unregister);
    world.command(5, Command::Register);
    world.command(6, alias("a"));
    let unknown = Code::UnknownRegistration.number();
    assert_eq!(codes(&world), [(1, 0), (2, 0), (3, unknown), (4, 0), (5, 0), (6, 0)]);
    assert_eq!(aliases(&world), ["a", "a"], "the names went with the registration");
    assert!(!world.told.contains(&Action::Invalidated { app: demo() }), "it was asked for");
    assert_eq!(world.server.said.iter().filter(|said| said.unregister.is_some()).count(), 1);
}

#[test]
fn an_invalidated_registration_is_made_anew_and_its_names_are_forgotten() {
    let mut world = World::online();
    world.command(1, alias("a"));
    let bytes = world.server.invalidate(&demo());
    world.down(&bytes);
    assert!(world.told.contains(&Action::Invalidated { app: demo() }));
    assert_eq!(world.ready(), [RegId([1; 24]), RegId([2; 24])]);
    world.command(2, alias("a"));
    assert_eq!(aliases(&world), ["a", "a"]);
    world.deliver(&demo(), 1, "one");
    assert_eq!(world.pushed(), ["one"]);
}

#[test]
fn an_answer_that_the_registration_is_unknown_makes_it_anew_and_the_command_succeeds() {
    let mut world = World::online();
    world.server.registrations.clear();
    world.server.manners.codes = vec![Code::UnknownRegistration.number()];
    world.command(1, alias("a"));
    world.pass(Duration::from_secs(1));
    assert_eq!(world.ready().last(), Some(&RegId([2; 24])));
    assert_eq!(codes(&world), [(1, 0)]);
}

#[test]
fn an_invalidation_of_another_registration_changes_nothing() {
    let mut world = World::online();
    let invalidated =
        idl::contract::push::Invalidated { regid: RegId([9; 24]).to_string(), app: Some(demo().to_string()) };
    let bytes =
        world.server.say(&idl::contract::push::ToDevice { invalidated: Some(invalidated), ..Default::default() });
    world.down(&bytes);
    assert_eq!(world.core.saved().regid(&demo()), Some(RegId([1; 24])));
    assert_eq!(world.ready().len(), 1);
}

#[test]
fn an_app_whose_attributes_changed_registers_again_and_keeps_its_id() {
    let mut world = World::online();
    let saved = Saved::from_bytes(&world.kept).expect("saved state");
    let attributes = BTreeMap::from([("app_version".to_owned(), "2".to_owned())]);
    let app = AppConfig { attributes: attributes.clone(), ..app_config(demo()) };
    world.core = campanile_sdk_android_bridge::Core::new(
        config(),
        vec![app],
        saved,
        std::sync::Arc::new(crate::server::Steady::new(5)),
    );
    world.start();
    assert_eq!(world.server.registers().last().and_then(|register| register.attributes.clone()), Some(attributes));
    assert_eq!(world.ready(), [RegId([1; 24]), RegId([1; 24])]);
    world.cut_and_return();
    assert_eq!(world.server.registers().len(), 2, "once");
}

#[test]
fn a_stopped_device_answers_what_waits() {
    let mut world = World::online();
    world.server.manners.mute = true;
    world.command(1, alias("a"));
    world.event(Event::Stop);
    world.command(2, alias("b"));
    assert_eq!(codes(&world), [(1, Code::TimedOut.number()), (2, Code::TimedOut.number())]);
}

#[test]
fn many_apps_do_not_say_more_at_once_than_a_server_takes() {
    let app = |number: usize| format!("com.example.app{number}").parse().expect("an app id");
    let apps = (0..200).map(|number| app_config(app(number))).collect();
    let mut world = World::with(config(), apps, Saved::default(), 1);
    world.server.manners.mute = true;
    world.start();
    world.pass(Duration::from_secs(1));
    assert_eq!(world.server.registers().len(), 32);
    world.server.manners.mute = false;
    world.cut_and_return();
    assert_eq!(world.ready().len(), 200);
}
