//! Presence (RFC 6121 §4) among the resources of one account: without rosters nobody else hears of it.

use std::sync::Arc;

use idl::xml::{NS_CLIENT, escape_attribute};
use minidom::Element;

use crate::Shared;
use crate::client_state::{Haste, Subject};
use crate::form::Frame;
use crate::line::Line;
use crate::routing::{Addressee, deliver, full_jid, may_speak, set, stamp};
use crate::stanza::Trouble;

/// The presence of a resource that is available.
#[derive(Clone)]
pub(crate) struct Presence {
    /// Messages to the account pass a negative one by.
    pub(crate) priority: i8,
    /// As others hear it.
    stanza: Frame,
}

/// What a presence stanza says.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Available {
        priority: i8,
    },
    Unavailable,
    Probe,
    /// Nobody wants an answer.
    Error,
}

/// Acts on a presence stanza, and says why it can't be.
pub(crate) fn hear(
    shared: &Shared,
    line: &Arc<Line>,
    mut stanza: Element,
    addressee: &Addressee,
) -> Result<(), Trouble> {
    let said = read(&stanza)?;
    if said == Said::Error {
        return Ok(());
    }
    may_speak(shared, line)?;
    let from = full_jid(shared, line);
    let haste = Haste::Waits(Some(Subject::Presence(from.as_str().into())));
    let is_directed = stanza.attr("to").is_some();
    let mut lines = available(shared, line);
    match addressee {
        Addressee::Account => {}
        Addressee::Myself => lines.retain(|other| Arc::ptr_eq(other, line)),
        Addressee::Other(to) if to.account == Some(line.account()) => {
            lines.retain(|other| Some(&other.resource) == to.resource.as_ref());
        }
        // Whoever shares no presence with others learns nothing of them, and they nothing of it (RFC 6121 §8.5.1).
        _ => return Ok(()),
    }
    if said == Said::Probe {
        answer_probe(shared, line, &lines);
        return Ok(());
    }
    if is_directed {
        let frame = stamp(shared, stanza, &from)?;
        let _ = deliver(line, &lines, &frame, &haste);
        return Ok(());
    }
    let to = format!("{}@{}", line.account(), shared.config.domain);
    set(&mut stanza, "to", &to);
    let frame = stamp(shared, stanza, &from)?;
    let presence = match said {
        Said::Available { priority } => Some(Presence { priority, stanza: frame.clone() }),
        _ => None,
    };
    let is_available = presence.is_some();
    let before = line.with_dealings(|dealings| std::mem::replace(&mut dealings.presence, presence));
    // It is subscribed to its own presence, so it hears of that too (RFC 6121 §4.2.2, §4.4.2, §4.5.2).
    match (before, is_available) {
        (Some(_), _) => {}
        (None, true) => {
            // What the server would learn by probing for it (RFC 6121 §4.3).
            answer_probe(shared, line, &lines);
            lines.push(Arc::clone(line));
        }
        (None, false) => return Ok(()),
    }
    let _ = deliver(line, &lines, &frame, &haste);
    Ok(())
}

/// A connection has ended for good: those that heard of its presence hear of that (RFC 6121 §4.5.2).
pub(crate) fn gone(shared: &Shared, line: &Arc<Line>) {
    if line.take_presence().is_none() {
        return;
    }
    let lines = available(shared, line);
    if lines.iter().any(|other| other.resource == line.resource) {
        // A newer login has the resource, and has said that it is available.
        return;
    }
    let from = full_jid(shared, line);
    let to = format!("{}@{}", line.account(), shared.config.domain);
    let (escaped, to) = (escape_attribute(&from), escape_attribute(&to));
    let frame = Frame::stanza(format!("<presence type='unavailable' from='{escaped}' to='{to}'/>"));
    let _ = deliver(line, &lines, &frame, &Haste::Waits(Some(Subject::Presence(from.into()))));
}

fn read(stanza: &Element) -> Result<Said, Trouble> {
    match stanza.attr("type") {
        None => Ok(Said::Available { priority: priority(stanza)? }),
        Some("unavailable") => Ok(Said::Unavailable),
        Some("probe") => Ok(Said::Probe),
        Some("error") => Ok(Said::Error),
        Some("subscribe" | "subscribed" | "unsubscribe" | "unsubscribed") => {
            let text = "there are no rosters here, and no subscriptions";
            Err(Trouble::new("cancel", "feature-not-implemented", text))
        }
        Some(_) => Err(Trouble::new("modify", "bad-request", "a presence has no such type")),
    }
}

/// RFC 6121 §4.7.2.3.
fn priority(stanza: &Element) -> Result<i8, Trouble> {
    let Some(priority) = stanza.get_child("priority", NS_CLIENT) else { return Ok(0) };
    let text = "the text of <priority/> must be a whole number from -128 to 127";
    priority.text().trim().parse().map_err(|_| Trouble::new("modify", "bad-request", text))
}

/// The available resources of the line's account.
fn available(shared: &Shared, line: &Line) -> Vec<Arc<Line>> {
    let mut lines = shared.hubs.with(line).lines_of(line.account());
    lines.retain(|line| line.presence().is_some());
    lines
}

/// Tells a line the presence of others.
fn answer_probe(shared: &Shared, line: &Arc<Line>, others: &[Arc<Line>]) {
    for other in others.iter().filter(|other| !Arc::ptr_eq(other, line)) {
        if let Some(presence) = other.presence() {
            let subject = Subject::Presence(full_jid(shared, other).into());
            let _ = deliver(line, std::slice::from_ref(line), &presence.stanza, &Haste::Waits(Some(subject)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Result<Said, &'static str> {
        let text = text.replacen("<presence", "<presence xmlns='jabber:client'", 1);
        read(&text.parse().expect("a presence")).map_err(|trouble| trouble.condition())
    }

    #[test]
    fn a_presence_has_a_priority_from_minus_128_to_127() {
        let priority = |text: &str| said(&format!("<presence><priority>{text}</priority></presence>"));
        assert_eq!(said("<presence/>"), Ok(Said::Available { priority: 0 }));
        assert_eq!(priority(" -128 "), Ok(Said::Available { priority: -128 }));
        assert_eq!(priority("127"), Ok(Said::Available { priority: 127 }));
        for wrong in ["128", "-129", "", "high", "1.5"] {
            assert_eq!(priority(wrong), Err("bad-request"), "{wrong:?}");
        }
    }

    #[test]
    fn a_type_that_is_not_served_is_refused() {
        assert_eq!(said("<presence type='unavailable'/>"), Ok(Said::Unavailable));
        assert_eq!(said("<presence type='subscribe'/>"), Err("feature-not-implemented"));
        assert_eq!(said("<presence type='available'/>"), Err("bad-request"));
    }
}
