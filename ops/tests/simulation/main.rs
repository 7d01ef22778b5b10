//! The first simulation: 64 seeds of the whole path under faults, judged by checkers that know only what was promised.
//!
//! A failure prints its seed; `SIMULATION_SEED=<seed> cargo test -p campanile --test simulation one_seed` repeats it.

mod breaks;
mod catalog;
mod checkers;
mod dice;
mod faults;
mod history;
mod world;

use std::time::Duration;

use tokio::time::sleep;

use crate::breaks::Break;
use crate::checkers::Violation;
use crate::history::Events;
use crate::world::{DEVICES, TOPICS, World};

const SEEDS: u64 = 64;
const STEPS: usize = 60;

/// Lives one life of the world and returns what was seen of it.
fn live(seed: u64, broken: Break) -> Events {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let mut world = World::build(seed, broken).await;
        world.weather.turn(true);
        let mut sends = Vec::new();
        for _ in 0..STEPS {
            sleep(world.dice.duration(Duration::from_secs(4))).await;
            step(&mut world, &mut sends).await;
        }
        for send in sends {
            send.await.expect("a send's task runs");
        }
        world.calm().await;
        std::mem::take(&mut *world.history.events())
    })
}

async fn step(world: &mut World, sends: &mut Vec<tokio::task::JoinHandle<()>>) {
    let device = world.dice.below(DEVICES);
    let topic = world.dice.below(TOPICS);
    let subscribe = world.dice.chance(650);
    let what = world.dice.below(110);
    let in_rebirth = world.is_in_rebirth(device);
    tracing::info!(what, device, topic, subscribe, at_s = world.elapsed().as_secs_f32(), "step");
    match what {
        0..=39 | 108.. => world.send().await,
        40..=54 => sends.push(tokio::spawn(world.send())),
        55..=66 if !in_rebirth => world.change_by_device(device, topic, subscribe).await,
        67..=72 if !in_rebirth => world.change_by_server(device, topic, subscribe).await,
        73..=78 => world.cut(device),
        79..=81 => world.freeze(device),
        82..=86 => world.set_online(device, false),
        87..=91 => world.set_online(device, true),
        92..=93 => world.restart_device(device).await,
        94..=95 => world.kill_front(device % 2),
        96 => world.start_front(device % 2).await,
        97..=98 => {
            world.kill_middle();
            sleep(world.dice.duration(Duration::from_secs(3))).await;
            world.start_middle();
        }
        99 => world.wipe_cache().await,
        100..=102 if !in_rebirth => drop(world.switch(device, subscribe).await),
        103..=105 if !in_rebirth => world.start_rebirth(device),
        106..=107 => {
            world.drain_middle().await;
            sleep(world.dice.duration(Duration::from_secs(3))).await;
            world.start_middle();
        }
        // Not to a device whose registration is being replaced.
        _ => {}
    }
}

fn violations(seed: u64, broken: Break) -> Vec<Violation> {
    checkers::check(&live(seed, broken), DEVICES)
}

#[test]
fn what_was_promised_holds_for_64_seeds() {
    let mut accepted = 0;
    let mut callbacks = 0;
    for seed in 0..SEEDS {
        let events = live(seed, Break::Nothing);
        let violations = checkers::check(&events, DEVICES);
        assert!(violations.is_empty(), "seed {seed}: {violations:?}");
        accepted += events.sends.iter().filter(|send| send.answered.is_some_and(|(_, ok)| ok)).count();
        callbacks += events.callbacks.len();
    }
    println!("{SEEDS} seeds: {accepted} sends accepted, {callbacks} callbacks");
    assert!(accepted > 1000 && callbacks > 1500, "the simulation must have done something: {accepted}, {callbacks}");
}

#[test]
fn the_same_seed_lives_the_same_life() {
    for seed in [1, 2] {
        assert_eq!(format!("{:?}", live(seed, Break::Nothing)), format!("{:?}", live(seed, Break::Nothing)));
    }
}

#[test]
fn one_seed() {
    #[expect(clippy::disallowed_methods, reason = "a test's own parameter")]
    let seed = std::env::var("SIMULATION_SEED").map_or(7, |seed| seed.parse().expect("a number"));
    tracing_subscriber::fmt().with_env_filter("debug").without_time().with_ansi(false).with_test_writer().init();
    assert_eq!(violations(seed, Break::Nothing), []);
}

/// The seeds in which a break is seen as what it is.
fn caught(broken: Break, as_what: fn(&Violation) -> bool) -> usize {
    (0..SEEDS).filter(|seed| violations(*seed, broken).iter().any(as_what)).count()
}

#[test]
fn an_answer_before_the_write_is_durable_is_caught() {
    assert!(caught(Break::AckBeforeDurable, |violation| matches!(violation, Violation::Lost { .. })) > 0);
}

#[test]
fn a_cursor_moved_by_live_delivery_is_caught() {
    assert!(caught(Break::CursorMovedByLiveDelivery, |violation| matches!(violation, Violation::Lost { .. })) > 0);
}

#[test]
fn a_missing_duplicate_window_is_caught() {
    assert!(caught(Break::NoDuplicateWindow, |violation| matches!(violation, Violation::Repeated { .. })) > 0);
}
