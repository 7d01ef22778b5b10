//! Judges of a history. They know what was promised (design §8) and nothing of the code.

use crate::history::{Change, Events, Send, Target};

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Violation {
    /// §8.1, §8.3: a message that was answered "ok" did not reach a device it was for.
    Lost { send: usize, device: usize },
    /// §8.2: a callback ran more than once for one message.
    Repeated { send: usize, device: usize },
    /// A message reached a device it was not for.
    Misdirected { send: usize, device: usize },
    /// §8.4: two sends made one after the other to one registration arrived the other way round.
    Reordered { first: usize, second: usize, device: usize },
    /// A message that was sent while push was off ran a callback before push was on again.
    WhileOff { send: usize, device: usize },
}

/// All violations in a history that has come to rest.
pub(crate) fn check(events: &Events, devices: usize) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (number, send) in events.sends.iter().enumerate() {
        for device in 0..devices {
            let callbacks = events.callbacks.get(&(device, number)).map_or(0, Vec::len);
            if callbacks > 1 {
                violations.push(Violation::Repeated { send: number, device });
            }
            match concerns(events, send, device) {
                Some(true) if callbacks == 0 && must_arrive(send) && !is_before_rebirth(events, send, device) => {
                    violations.push(Violation::Lost { send: number, device });
                }
                Some(false) if callbacks > 0 => violations.push(Violation::Misdirected { send: number, device }),
                _ => {}
            }
        }
    }
    for device in 0..devices {
        order(events, device, &mut violations);
        silence(events, device, &mut violations);
    }
    violations
}

fn must_arrive(send: &Send) -> bool {
    !send.short_lived && send.answered.is_some_and(|(_, ok)| ok)
}

/// A registration that ends takes along what it has not got yet.
fn is_before_rebirth(events: &Events, send: &Send, device: usize) -> bool {
    let mut rebirths = events.rebirths.iter().filter(|rebirth| rebirth.device == device);
    rebirths.any(|rebirth| rebirth.over.is_none_or(|over| send.started < over))
}

/// Whether the send is for the device; `None` where either is right, because membership changed at that time or later.
fn concerns(events: &Events, send: &Send, device: usize) -> Option<bool> {
    let member = |topic: &usize| membership(events, send, device, *topic);
    let all = |topics: &[usize]| {
        let members: Vec<_> = topics.iter().map(member).collect();
        if members.contains(&Some(false)) {
            Some(false)
        } else if members.contains(&None) {
            None
        } else {
            Some(true)
        }
    };
    let any = |topics: &[usize]| {
        let members: Vec<_> = topics.iter().map(member).collect();
        if members.contains(&Some(true)) {
            Some(true)
        } else if members.contains(&None) {
            None
        } else {
            Some(false)
        }
    };
    match &send.target {
        Target::Devices(devices) => Some(devices.contains(&device)),
        Target::Everyone => Some(true),
        Target::Union(topics) => any(topics),
        Target::Intersection(topics) => all(topics),
        Target::Except(topics) => {
            let (first, rest) = topics.split_first()?;
            match (member(first), any(rest)) {
                (Some(true), Some(false)) => Some(true),
                (Some(false), _) | (_, Some(true)) => Some(false),
                _ => None,
            }
        }
    }
}

/// Whether the device counted as subscribed when the send was accepted. A change that overlaps the send leaves it open.
/// So does a later change that takes membership away (it may be judged by then); a later subscription does not: a topic
/// counts from the moment of its subscription.
fn membership(events: &Events, send: &Send, device: usize, topic: usize) -> Option<bool> {
    let changes = events.changes.iter().filter(|change| change.device == device && change.topic == topic).cloned();
    // A new registration has no topics.
    let rebirths = events.rebirths.iter().filter(|rebirth| rebirth.device == device).map(|rebirth| Change {
        device,
        topic,
        subscribe: false,
        started: rebirth.started,
        answered: rebirth.over.map(|over| (over, true)),
    });
    let mut changes: Vec<_> = changes.chain(rebirths).collect();
    changes.sort_by_key(|change| change.started);
    let mut member = false;
    for change in &changes {
        if is_over(change, send.started) {
            member = change.subscribe;
        } else if send.answered.is_none_or(|(at, _)| change.started < at) || !change.subscribe || member {
            return None;
        }
    }
    Some(member)
}

/// Answered "ok" before that moment. One that failed may have happened, at any time since.
fn is_over(change: &Change, at: usize) -> bool {
    matches!(change.answered, Some((answered, true)) if answered < at)
}

/// What was sent after push was answered to be off waits until it is on again, or until the registration ends.
fn silence(events: &Events, device: usize, violations: &mut Vec<Violation>) {
    let mut certain = true;
    for (number, switch) in events.switches.iter().enumerate().filter(|(_, switch)| switch.device == device) {
        let Some((off_at, true)) = switch.answered else {
            // One that was not answered "ok" may happen at any time since.
            certain &= !switch.on;
            continue;
        };
        if switch.on || !certain {
            continue;
        }
        let next = events.switches.iter().skip(number + 1).find(|next| next.device == device && next.on);
        let reborn = events.rebirths.iter().filter(|rebirth| rebirth.device == device && rebirth.started > off_at);
        let until = next.map(|next| next.started).into_iter().chain(reborn.map(|reborn| reborn.started)).min();
        for (send, _) in events.sends.iter().enumerate().filter(|(_, send)| send.started > off_at) {
            let callbacks = events.callbacks.get(&(device, send)).map(Vec::as_slice).unwrap_or_default();
            if callbacks.iter().any(|at| until.is_none_or(|until| *at < until)) {
                violations.push(Violation::WhileOff { send, device });
            }
        }
    }
}

fn order(events: &Events, device: usize, violations: &mut Vec<Violation>) {
    let arrived: Vec<(usize, &Send, usize)> = events
        .sends
        .iter()
        .enumerate()
        .filter(|(_, send)| matches!(&send.target, Target::Devices(devices) if devices.contains(&device)))
        .filter_map(|(number, send)| Some((number, send, *events.callbacks.get(&(device, number))?.first()?)))
        .collect();
    for (first, earlier, first_at) in &arrived {
        let Some((answered, true)) = earlier.answered else { continue };
        for (second, later, second_at) in &arrived {
            let ok = later.answered.is_some_and(|(_, ok)| ok);
            if ok && later.started > answered && second_at < first_at {
                violations.push(Violation::Reordered { first: *first, second: *second, device });
            }
        }
    }
}
