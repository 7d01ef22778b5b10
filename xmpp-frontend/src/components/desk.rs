//! What a front knows of one channel's service: who has the channel open, what was asked and not answered, and what waits to
//! be written. No I/O; whoever calls says what the time is and tells the devices afterwards.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use idl::channel::Payload;
use idl::ids::AccountId;
use tokio::time::Instant;

use super::spoken::{self, Recipient};
use crate::config::Limits;
use crate::line::Line;
use crate::stanza::{ReplyTo, Request, Trouble};

/// About this much goes out in one write.
const WRITE_BYTES: usize = 32 * 1024;

/// What a connection is known by to services: account and resource.
type Name = (AccountId, Box<str>);

/// One channel's service, as the front sees it.
pub(super) struct Desk {
    number: u32,
    /// The service's domain.
    service: Box<str>,
    /// That of the devices.
    domain: Box<str>,
    limits: DeskLimits,
    /// By which connection the service is here.
    link: Option<Link>,
    links: u64,
    queue: VecDeque<Queued>,
    queue_bytes: usize,
    members: BTreeMap<Name, Member>,
    /// Openings that the service has not answered, by the ids of their IQs.
    asked: HashMap<u64, Asked>,
    /// The same in the order in which their time is up; those that were answered are passed over.
    deadlines: VecDeque<(Instant, u64)>,
    ids: u64,
    /// Whose opening has to be told to a service that came anew.
    returning: VecDeque<Name>,
    /// How many of these are being told.
    returning_now: usize,
    /// Whose end has to be told.
    leaving: VecDeque<Name>,
}

#[expect(clippy::struct_field_names, reason = "limits end in what they are")]
struct DeskLimits {
    queue_max: usize,
    queue_bytes_max: usize,
    queue_per_device_max: usize,
    opens_max: usize,
    open_bytes_max: usize,
    returning_max: usize,
    answer_time_max: Duration,
}

/// One connection of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link(u64);

struct Queued {
    bytes: Vec<u8>,
    /// Whose it is, of the devices.
    of: Option<Name>,
}

struct Member {
    line: Arc<Line>,
    /// What the channel was opened with.
    payload: Vec<u8>,
    stage: Stage,
    /// The newest opening; answers to others before it don't count.
    opening: u64,
    /// Its stanzas in the queue.
    waiting: usize,
}

/// How far a connection's channel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The service was asked and the device waits.
    Opening,
    Open,
    /// It was open when the service went away.
    Away,
    /// The service came anew and was told; the device doesn't know.
    Returning,
    /// The connection has ended and the service is to be told.
    Leaving,
}

struct Asked {
    name: Name,
    line: Arc<Line>,
    /// Where the device waits for the answer.
    reply: Option<ReplyTo>,
}

/// What a device is to be told.
#[derive(Debug)]
pub(super) enum Told {
    /// The channel is open.
    Opened(ReplyTo),
    /// It was not opened.
    NotOpened(ReplyTo, Trouble),
    /// It is open no more.
    Closed(Trouble),
}

/// What devices are to be told.
pub(super) type Tell = Vec<(Arc<Line>, Told)>;

/// Why something was not taken.
#[derive(Debug)]
pub(super) enum Refusal {
    /// For this reason.
    Because(Trouble),
    /// A limit, by its name.
    Limit(&'static str),
}

impl Desk {
    pub(super) fn new(number: u32, service: &str, domain: &str, limits: &Limits) -> Self {
        Self {
            number,
            service: service.into(),
            domain: domain.into(),
            limits: DeskLimits {
                queue_max: limits.component_queue_max,
                queue_bytes_max: limits.component_queue_bytes_max,
                queue_per_device_max: limits.component_queue_per_device_max,
                opens_max: limits.component_opens_max,
                open_bytes_max: limits.component_open_bytes_max,
                returning_max: limits.announcements_max,
                answer_time_max: limits.component_answer_time_max,
            },
            link: None,
            links: 0,
            queue: VecDeque::new(),
            queue_bytes: 0,
            members: BTreeMap::new(),
            asked: HashMap::new(),
            deadlines: VecDeque::new(),
            ids: 0,
            returning: VecDeque::new(),
            returning_now: 0,
            leaving: VecDeque::new(),
        }
    }

    /// The service is here by a new connection, in place of the one that it had. It knows nobody: whoever has the channel
    /// open is told to it again.
    pub(super) fn attach(&mut self, now: Instant) -> (Link, Tell) {
        let told = self.clear();
        self.links += 1;
        let link = Link(self.links);
        self.link = Some(link);
        self.returning = self.members.keys().cloned().collect();
        self.catch_up(now);
        (link, told)
    }

    /// True if the service is here by that connection.
    pub(super) fn is_by(&self, link: Link) -> bool {
        self.link == Some(link)
    }

    /// The service's connection has ended. Does nothing if it has a newer one.
    pub(super) fn detach(&mut self, link: Link) -> Tell {
        if self.link == Some(link) { self.clear() } else { Vec::new() }
    }

    /// Forgets what a connection of the service was told, and was to be told.
    fn clear(&mut self) -> Tell {
        self.link = None;
        self.queue.clear();
        self.queue_bytes = 0;
        self.deadlines.clear();
        self.returning.clear();
        self.returning_now = 0;
        self.leaving.clear();
        self.members.retain(|_, member| {
            member.waiting = 0;
            let stays = !matches!(member.stage, Stage::Opening | Stage::Leaving);
            member.stage = Stage::Away;
            stays
        });
        let trouble = self.is_away();
        let tell = |asked: Asked| Some((asked.line, Told::NotOpened(asked.reply?, trouble.clone())));
        self.asked.drain().filter_map(|(_, asked)| tell(asked)).collect()
    }

    /// A device opens the channel. Its answer comes later, by [`Desk::answered`] or [`Desk::expire`].
    pub(super) fn open(&mut self, line: &Arc<Line>, request: Request, now: Instant) -> Result<(), Refusal> {
        let because = |trouble| Err(Refusal::Because(trouble));
        if line.closing().is_some() {
            // Whoever ends it has been here, or will be.
            return Ok(());
        }
        if self.link.is_none() {
            return because(self.is_away());
        }
        let Request { payload: Payload { bytes: payload, .. }, reply } = request;
        if payload.len() > self.limits.open_bytes_max {
            let text = format!("channel {} is opened with at most {} bytes", self.number, self.limits.open_bytes_max);
            return because(Trouble::new("modify", "policy-violation", text));
        }
        let name = name_of(line);
        match self.members.get(&name) {
            Some(member) if member.line.epoch() > line.epoch() => {
                return because(Trouble::new("cancel", "conflict", "a newer login has taken this resource"));
            }
            Some(member) if member.stage == Stage::Opening && Arc::ptr_eq(&member.line, line) => {
                let text = format!("channel {} is being opened", self.number);
                return because(Trouble::new("wait", "unexpected-request", text));
            }
            _ => {}
        }
        if self.asked.len() >= self.limits.opens_max {
            return Err(Refusal::Limit("component_opens_max"));
        }
        let opening = self.ask(&name, line, &payload, Some(reply), now)?;
        let waiting = self.members.get(&name).map_or(0, |member| member.waiting);
        let member = Member { line: Arc::clone(line), payload, stage: Stage::Opening, opening, waiting: waiting + 1 };
        self.members.insert(name, member);
        Ok(())
    }

    /// A device says something on the channel.
    pub(super) fn up(&mut self, line: &Arc<Line>, request: &Request) -> Result<(), Refusal> {
        let name = name_of(line);
        let member = self.members.get(&name).filter(|member| Arc::ptr_eq(&member.line, line));
        match member.map(|member| member.stage) {
            Some(Stage::Open | Stage::Returning) => {}
            Some(Stage::Away) => return Err(Refusal::Because(self.is_away())),
            Some(Stage::Opening | Stage::Leaving) | None => {
                let text = format!("open channel {} before sending on it", self.number);
                return Err(Refusal::Because(Trouble::new("cancel", "not-allowed", text)));
            }
        }
        let stanza = spoken::message(&self.jid(&name), &self.service, request);
        self.put(stanza, Some(&name))?;
        if let Some(member) = self.members.get_mut(&name) {
            member.waiting += 1;
        }
        Ok(())
    }

    /// A connection has ended for good.
    pub(super) fn left(&mut self, line: &Arc<Line>, now: Instant) {
        let name = name_of(line);
        let Some(member) = self.members.get_mut(&name).filter(|member| Arc::ptr_eq(&member.line, line)) else { return };
        if member.stage == Stage::Away {
            self.members.remove(&name);
        } else {
            member.stage = Stage::Leaving;
            self.leaving.push_back(name);
            self.catch_up(now);
        }
    }

    /// The service answers an opening.
    pub(super) fn answered(&mut self, link: Link, id: u64, answer: Result<(), Trouble>, now: Instant) -> Tell {
        if self.link != Some(link) {
            return Vec::new();
        }
        let Some(asked) = self.asked.remove(&id) else { return Vec::new() };
        let told = self.settle(id, asked, answer, false);
        self.catch_up(now);
        told.into_iter().collect()
    }

    /// Gives up what the service has not answered in time.
    pub(super) fn expire(&mut self, link: Link, now: Instant) -> Tell {
        if self.link != Some(link) {
            return Vec::new();
        }
        let mut told = Vec::new();
        while let Some((_, id)) = self.deadlines.pop_front_if(|(deadline, _)| *deadline <= now) {
            let Some(asked) = self.asked.remove(&id) else { continue };
            let text = format!("the service of channel {} does not answer", self.number);
            told.extend(self.settle(id, asked, Err(Trouble::new("wait", "remote-server-timeout", text)), true));
        }
        self.catch_up(now);
        told
    }

    /// What comes of an opening. A service that answers too late may think that somebody is here: it is told the contrary.
    fn settle(&mut self, id: u64, asked: Asked, answer: Result<(), Trouble>, late: bool) -> Option<(Arc<Line>, Told)> {
        let Asked { name, line, reply } = asked;
        self.returning_now -= usize::from(reply.is_none());
        let member = self.members.get_mut(&name)?;
        if member.opening != id || member.stage == Stage::Leaving {
            // The connection has ended, or the channel been opened anew, since.
            return None;
        }
        let told = match (answer, reply) {
            (Ok(()), reply) => {
                member.stage = Stage::Open;
                return Some((line, Told::Opened(reply?)));
            }
            (Err(trouble), Some(reply)) => Told::NotOpened(reply, trouble),
            (Err(trouble), None) => Told::Closed(trouble),
        };
        if late {
            member.stage = Stage::Leaving;
            self.leaving.push_back(name);
        } else {
            self.members.remove(&name);
        }
        Some((line, told))
    }

    /// Who has the channel open of those that the service writes to.
    pub(super) fn receivers(&self, link: Link, to: &Recipient) -> Vec<Arc<Line>> {
        if self.link != Some(link) {
            return Vec::new();
        }
        let is_open = |member: &&Member| matches!(member.stage, Stage::Open | Stage::Returning);
        let line = |member: &Member| Arc::clone(&member.line);
        if let Some(resource) = &to.resource {
            let member = self.members.get(&(to.account, resource.clone()));
            return member.filter(is_open).map(line).into_iter().collect();
        }
        let members = self.members.range((to.account, Box::from(""))..);
        let members = members.take_while(|((account, _), _)| *account == to.account).map(|(_, member)| member);
        members.filter(is_open).map(line).collect()
    }

    /// Puts an answer to the service into its queue. One that has no room is dropped: the service does not read.
    pub(super) fn answer(&mut self, link: Link, stanza: String) -> Result<(), Refusal> {
        if self.link == Some(link) { self.put(stanza, None) } else { Ok(()) }
    }

    /// What goes out in one write; nothing if nothing waits. `None` if the service has a newer connection.
    pub(super) fn take(&mut self, link: Link, now: Instant) -> Option<Vec<u8>> {
        if self.link != Some(link) {
            return None;
        }
        let mut out = Vec::new();
        while out.len() < WRITE_BYTES {
            let Some(Queued { bytes, of }) = self.queue.pop_front() else { break };
            self.queue_bytes -= bytes.len();
            out.extend_from_slice(&bytes);
            if let Some(member) = of.and_then(|name| self.members.get_mut(&name)) {
                member.waiting = member.waiting.saturating_sub(1);
            }
        }
        self.catch_up(now);
        Some(out)
    }

    /// How many connections have the channel open, or are about to.
    pub(super) fn members(&self) -> usize {
        self.members.len()
    }

    /// Bytes that wait to be written to the service.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.queue_bytes
    }

    /// Tells the service what is due, as far as there is room: who has left, then who has had the channel open.
    fn catch_up(&mut self, now: Instant) {
        while let Some(name) = self.leaving.front() {
            if self.members.get(name).is_some_and(|member| member.stage == Stage::Leaving) {
                let gone = spoken::gone(&self.jid(name), &self.service);
                if self.put(gone, None).is_err() {
                    return;
                }
                let Some(name) = self.leaving.pop_front() else { return };
                self.members.remove(&name);
            } else {
                // It was opened by a newer connection since.
                self.leaving.pop_front();
            }
        }
        while self.returning_now < self.limits.returning_max && self.asked.len() < self.limits.opens_max {
            let Some(name) = self.returning.pop_front() else { return };
            let Some(member) = self.members.get(&name).filter(|member| member.stage == Stage::Away) else { continue };
            let (line, payload) = (Arc::clone(&member.line), member.payload.clone());
            let Ok(opening) = self.ask(&name, &line, &payload, None, now) else {
                self.returning.push_front(name);
                return;
            };
            self.returning_now += 1;
            if let Some(member) = self.members.get_mut(&name) {
                member.stage = Stage::Returning;
                member.opening = opening;
                member.waiting += 1;
            }
        }
    }

    fn ask(
        &mut self,
        name: &Name,
        line: &Arc<Line>,
        payload: &[u8],
        reply: Option<ReplyTo>,
        now: Instant,
    ) -> Result<u64, Refusal> {
        let id = self.ids + 1;
        let stanza = spoken::open(id, &self.jid(name), &self.service, self.number, payload);
        self.put(stanza, Some(name))?;
        self.ids = id;
        self.asked.insert(id, Asked { name: name.clone(), line: Arc::clone(line), reply });
        self.deadlines.push_back((now + self.limits.answer_time_max, id));
        Ok(id)
    }

    fn put(&mut self, stanza: String, of: Option<&Name>) -> Result<(), Refusal> {
        let limits = &self.limits;
        let own = of.and_then(|name| self.members.get(name)).map_or(0, |member| member.waiting);
        if own >= limits.queue_per_device_max {
            return Err(Refusal::Limit("component_queue_per_device_max"));
        }
        if self.queue.len() >= limits.queue_max {
            return Err(Refusal::Limit("component_queue_max"));
        }
        if self.queue_bytes + stanza.len() > limits.queue_bytes_max {
            return Err(Refusal::Limit("component_queue_bytes_max"));
        }
        self.queue_bytes += stanza.len();
        self.queue.push_back(Queued { bytes: stanza.into_bytes(), of: of.cloned() });
        Ok(())
    }

    fn jid(&self, (account, resource): &Name) -> String {
        format!("{account}@{}/{resource}", self.domain)
    }

    fn is_away(&self) -> Trouble {
        let text = format!("the service of channel {} is away", self.number);
        Trouble::new("wait", "service-unavailable", text)
    }
}

fn name_of(line: &Line) -> Name {
    (line.account(), line.resource.clone())
}
