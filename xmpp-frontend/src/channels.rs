//! Channels: which number is served by whom, and the requests of one connection to its channels' services, one after the
//! other.
//!
//! Channels that others serve take no part in that: what is said on them goes to `components` at once, or is refused, so a
//! service that is slow holds up nothing of push.
//!
//! A task works on a line's requests while there are any. It outlives the stream, so what a client has sent is handed on
//! although the client has gone.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use idl::channel::{NS, PUSH, Payload};
use idl::error::{Code, Failure};
use idl::ids::Generation;
use tokio::sync::OwnedSemaphorePermit;

use crate::Shared;
use crate::close::Reason;
use crate::components;
use crate::form::Frame;
use crate::hub::{Applied, read_changes};
use crate::line::{Line, Ticket};
use crate::lock;
use crate::middle::{ChannelReply, Patience};
use crate::routing::full_jid;
use crate::stanza::{ReplyTo, Request, Trouble};

/// How often a channel is opened again at once because the ring of broadcasts wrapped; then it waits longer each time.
const REOPEN_WAIT: Duration = Duration::from_millis(200);
const REOPEN_WAIT_MAX: Duration = Duration::from_secs(5);

/// What a line wants of its channels' services.
#[derive(Default)]
pub(crate) struct Work {
    /// `None` while there is nothing to do.
    queue: Option<Box<Queue>>,
    /// The open channels, each with the payload to open it with again: few, most often one.
    open: Vec<(u32, Box<[u8]>)>,
    /// The life of the middle's memory that this line was last announced to. Its bytes take less room in an option.
    generation: Option<[u8; 16]>,
    announcing: bool,
    /// The route is given back, or will be: the middle must not hear of this connection again.
    ended: bool,
    reopened: u32,
}

/// Jobs while a task is at work on them, and of what they ask.
#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Bytes of payload in `jobs`.
    bytes: usize,
}

enum Job {
    Open(Request, Option<Ticket>),
    Up(Request, Option<Ticket>),
    /// Open a channel again, for what was missed.
    Reopen(u32),
    /// Tell the middle about a connection that it may have forgotten. The permit paces this.
    Announce(OwnedSemaphorePermit),
    /// The connection has ended for good.
    Disconnect,
}

/// Too many requests wait.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct QueueFull;

/// How a job failed.
enum Failed {
    /// The client is told and the stream goes on.
    Told(Failure),
    /// The stream must end.
    Fatal(Reason),
}

impl Work {
    /// The work of a line whose route was claimed in that life of the middle's memory.
    pub(crate) fn new(generation: Generation) -> Self {
        Self { generation: Some(generation.0.to_be_bytes()), ..Self::default() }
    }

    /// The channel is open, and opened again with that payload.
    fn opened(&mut self, number: u32, payload: &[u8]) {
        if let Some((_, known)) = self.open.iter_mut().find(|(open, _)| *open == number) {
            *known = payload.into();
        } else {
            self.open.reserve_exact(1);
            self.open.push((number, payload.into()));
        }
    }

    /// The payload that an open channel is opened again with.
    fn opening(&self, number: u32) -> Option<&[u8]> {
        self.open.iter().find(|(open, _)| *open == number).map(|(_, payload)| &**payload)
    }
}

/// True if a channel of that number is served.
fn is_served(number: u32) -> bool {
    number == PUSH
}

/// Queues the opening of a channel.
pub(crate) fn open(shared: &Arc<Shared>, line: &Arc<Line>, request: Request) -> Result<(), QueueFull> {
    if let Some(component) = shared.components.serving(request.payload.number) {
        line.received(false);
        components::open(shared, component, line, request);
        return Ok(());
    }
    if !is_served(request.payload.number) {
        line.received(false);
        let text = format!("there is no channel {}", request.payload.number);
        answer_error(shared, line, &request.reply, &Trouble::new("cancel", "item-not-found", text));
        return Ok(());
    }
    let size = request.payload.bytes.len();
    queue(shared, line, size, |ticket| Job::Open(request, ticket))
}

/// Queues a payload for its channel's service.
pub(crate) fn up(shared: &Arc<Shared>, line: &Arc<Line>, request: Request) -> Result<(), QueueFull> {
    if let Some(component) = shared.components.serving(request.payload.number) {
        line.received(false);
        components::up(shared, component, line, &request);
        return Ok(());
    }
    let size = request.payload.bytes.len();
    queue(shared, line, size, |ticket| Job::Up(request, ticket))
}

/// Queues the announcement of a line to a middle tier that may have forgotten it. Does nothing if one is queued already,
/// or if the line has ended.
pub(crate) fn announce(shared: &Arc<Shared>, line: &Arc<Line>, permit: OwnedSemaphorePermit) {
    let mut work = lock(&line.work);
    if !work.ended && !std::mem::replace(&mut work.announcing, true) {
        // Before what waits: it would fail for want of the announcement.
        start(shared, line, &mut work).jobs.push_front(Job::Announce(permit));
    }
}

/// True if the line was last announced to another life of the middle's memory.
pub(crate) fn needs_announcing(line: &Line, generation: Generation) -> bool {
    let work = lock(&line.work);
    work.generation != Some(generation.0.to_be_bytes()) && !work.announcing && !work.ended
}

/// Gives the route back once everything that is queued has been done.
pub(crate) fn disconnect(shared: &Arc<Shared>, line: &Arc<Line>) {
    let mut work = lock(&line.work);
    work.ended = true;
    start(shared, line, &mut work).jobs.push_back(Job::Disconnect);
}

fn queue(
    shared: &Arc<Shared>,
    line: &Arc<Line>,
    size: usize,
    job: impl FnOnce(Option<Ticket>) -> Job,
) -> Result<(), QueueFull> {
    let limits = &shared.config.limits;
    let mut work = lock(&line.work);
    let (waiting, bytes) = work.queue.as_ref().map_or((0, 0), |queue| (queue.jobs.len(), queue.bytes));
    if waiting >= limits.channel_queue_max || bytes + size > limits.channel_queue_bytes_max {
        return Err(QueueFull);
    }
    let ticket = line.received(true);
    let queue = start(shared, line, &mut work);
    queue.bytes += size;
    queue.jobs.push_back(job(ticket));
    Ok(())
}

/// The queue of a line, with a task at work on it that looks once the lock on the work is given back.
fn start<'a>(shared: &Arc<Shared>, line: &Arc<Line>, work: &'a mut Work) -> &'a mut Queue {
    work.queue.get_or_insert_with(|| {
        shared.spawn_connection(run(Arc::clone(shared), Arc::clone(line)));
        Box::default()
    })
}

/// What is rare is boxed, so that a payload on its way to its service, of which there may be one for each connection, takes
/// little.
async fn run(shared: Arc<Shared>, line: Arc<Line>) {
    while let Some(job) = next(&line) {
        match job {
            Job::Open(request, ticket) => {
                Box::pin(do_open(&shared, &line, request)).await;
                handled(&line, ticket);
            }
            Job::Up(request, ticket) => {
                do_up(&shared, &line, request).await;
                handled(&line, ticket);
            }
            Job::Reopen(number) => Box::pin(reopen(&shared, &line, number)).await,
            Job::Announce(permit) => {
                shared.metrics.announcements.inc();
                if let Err(failure) = Box::pin(announce_now(&shared, &line)).await {
                    tracing::debug!(%failure, "a connection could not be announced");
                }
                lock(&line.work).announcing = false;
                drop(permit);
            }
            Job::Disconnect => do_disconnect(&shared, &line).await,
        }
    }
}

fn next(line: &Line) -> Option<Job> {
    let mut work = lock(&line.work);
    let queue = work.queue.as_mut()?;
    let job = queue.jobs.pop_front();
    match &job {
        Some(Job::Open(request, _) | Job::Up(request, _)) => queue.bytes -= request.payload.bytes.len(),
        Some(_) => {}
        None => work.queue = None,
    }
    job
}

fn handled(line: &Line, ticket: Option<Ticket>) {
    if let Some(ticket) = ticket {
        line.handled_one(ticket);
    }
}

async fn do_open(shared: &Arc<Shared>, line: &Arc<Line>, request: Request) {
    let Payload { number, bytes } = request.payload;
    match open_now(shared, line, number, &bytes).await {
        Ok((place, reply)) => {
            lock(&line.work).opened(number, &bytes);
            let opened = format!("<open xmlns='{NS}' number='{number}'/>");
            let result = Frame::stanza(request.reply.result(&full_jid(shared, line), &opened));
            apply(shared, line, number, place, reply, Some(result));
        }
        Err(failure) => match failure.code {
            Code::Superseded => line.close(Reason::Conflict),
            Code::UnknownAccount => line.close(Reason::Revoked),
            // Nothing is lost by telling: the client opens the channel again when it likes.
            _ => answer_error(shared, line, &request.reply, &trouble(&failure)),
        },
    }
}

async fn do_up(shared: &Arc<Shared>, line: &Arc<Line>, request: Request) {
    let Payload { number, bytes } = request.payload;
    if lock(&line.work).opening(number).is_none() {
        let text = format!("open channel {number} before sending on it");
        let trouble = Trouble::new("cancel", "not-allowed", text);
        return answer_error(shared, line, &request.reply, &trouble);
    }
    // Of the first try: what was stored before any of the tries did its work need not be replayed.
    let place = shared.hubs.with(line).place();
    let patience = patience(shared, line);
    let mut result = shared.middle.channel_up(line.place, number, bytes.clone(), patience).await;
    if forgotten(&result) && Box::pin(announce_now(shared, line)).await.is_ok() {
        result = shared.middle.channel_up(line.place, number, bytes, patience).await;
    }
    match result.map_err(failed) {
        Ok(reply) => apply(shared, line, number, place, reply, None),
        Err(Failed::Told(failure)) => answer_error(shared, line, &request.reply, &trouble(&failure)),
        Err(Failed::Fatal(reason)) => line.close(reason),
    }
}

/// Opens a channel that the client opened before, because broadcasts may have been missed since.
async fn reopen(shared: &Arc<Shared>, line: &Arc<Line>, number: u32) {
    let (payload, reopened) = {
        let mut work = lock(&line.work);
        work.reopened += 1;
        (work.opening(number).map(<[u8]>::to_vec), work.reopened)
    };
    let Some(payload) = payload else { return };
    if reopened > 1 {
        // Broadcasts come faster than channels open: don't make it worse.
        tokio::time::sleep(REOPEN_WAIT.saturating_mul(1 << reopened.min(8)).min(REOPEN_WAIT_MAX)).await;
    }
    match open_now(shared, line, number, &payload).await {
        Ok((place, reply)) => apply(shared, line, number, place, reply, None),
        Err(failure) => match failed(failure) {
            Failed::Told(_) => line.close(Reason::MiddleFailed),
            Failed::Fatal(reason) => line.close(reason),
        },
    }
}

async fn open_now(
    shared: &Arc<Shared>,
    line: &Arc<Line>,
    number: u32,
    payload: &[u8],
) -> Result<(u64, ChannelReply), Failure> {
    let place = shared.hubs.with(line).place();
    let patience = patience(shared, line);
    let mut result = shared.middle.open_channel(line.place, number, payload.to_vec(), patience).await;
    if forgotten(&result) && claim(shared, line).await.is_ok() {
        result = shared.middle.open_channel(line.place, number, payload.to_vec(), patience).await;
    }
    result.map(|reply| (place, reply))
}

/// Announces the connection and opens its channels again.
async fn announce_now(shared: &Arc<Shared>, line: &Arc<Line>) -> Result<(), Failure> {
    claim(shared, line).await?;
    let open = lock(&line.work).open.clone();
    for (number, payload) in open {
        let place = shared.hubs.with(line).place();
        let reply = shared.middle.open_channel(line.place, number, payload.into(), patience(shared, line)).await;
        let reply = reply.inspect_err(|failure| {
            if failure.code == Code::Superseded {
                line.close(Reason::Conflict);
            } else {
                // Announced, but not listening: the next round has to try again.
                lock(&line.work).generation = None;
            }
        })?;
        apply(shared, line, number, place, reply, None);
    }
    Ok(())
}

/// Claims the route for the connection's epoch.
async fn claim(shared: &Arc<Shared>, line: &Arc<Line>) -> Result<(), Failure> {
    let epoch = Some(line.epoch());
    let connected = shared.middle.connect(line.account(), &line.resource, epoch, patience(shared, line)).await;
    let connected = connected.inspect_err(|failure| match failure.code {
        Code::Superseded => line.close(Reason::Conflict),
        Code::UnknownAccount => line.close(Reason::Revoked),
        _ => {}
    })?;
    lock(&line.work).generation = Some(connected.generation.0.to_be_bytes());
    shared.learn([(line.partition, connected.generation)]);
    Ok(())
}

async fn do_disconnect(shared: &Arc<Shared>, line: &Arc<Line>) {
    let patience = Patience::For(shared.config.limits.bus_time_max);
    // The lease and the epoch make up for it if this fails.
    if let Err(failure) = shared.middle.disconnect(line.place, &line.resource, patience).await {
        tracing::debug!(%failure, "a route could not be given back");
    }
}

fn patience<'a>(shared: &Shared, line: &'a Line) -> Patience<'a> {
    Patience::While(line, shared.config.limits.channel_retry_time_max)
}

fn apply(shared: &Arc<Shared>, line: &Arc<Line>, number: u32, place: u64, reply: ChannelReply, result: Option<Frame>) {
    shared.metrics.payloads_down.inc_by(reply.payloads.len() as u64);
    let payloads = reply.payloads.into_iter().map(|bytes| Frame::payload(number, bytes));
    let frames = result.into_iter().chain(payloads).collect();
    let changes = read_changes(&reply.index);
    let applied = shared.hubs.with(line).apply(line, place, changes, frames, shared.clock.now_ms());
    shared.learn([(line.partition, reply.generation)]);
    let mut work = lock(&line.work);
    if let Some(reopen) = reply.reopen {
        work.opened(number, &reopen);
    }
    match applied {
        Applied::Whole => work.reopened = 0,
        Applied::Wrapped => {
            shared.metrics.limit("recent_broadcasts_max");
            start(shared, line, &mut work).jobs.push_front(Job::Reopen(number));
        }
        Applied::Gone => {}
    }
}

/// True if the middle doesn't know this connection: it may have lost its memory, or another connection is newer.
/// Announcing tells which.
fn forgotten<T>(result: &Result<T, Failure>) -> bool {
    matches!(result, Err(failure) if failure.code == Code::Superseded)
}

fn failed(failure: Failure) -> Failed {
    match failure.code {
        Code::Superseded => Failed::Fatal(Reason::Conflict),
        Code::UnknownAccount => Failed::Fatal(Reason::Revoked),
        Code::System => Failed::Fatal(Reason::MiddleFailed),
        code if code.retryable() => Failed::Fatal(Reason::MiddleBusy),
        _ => Failed::Told(failure),
    }
}

fn trouble(failure: &Failure) -> Trouble {
    let (kind, condition) = match failure.code {
        code if code.retryable() => ("wait", "resource-constraint"),
        Code::NotServed | Code::UnknownApp | Code::UnknownRegistration => ("cancel", "item-not-found"),
        Code::BadProof | Code::Unauthorized => ("auth", "forbidden"),
        Code::LimitReached => ("cancel", "resource-constraint"),
        Code::Illegal => ("cancel", "not-allowed"),
        _ => ("modify", "bad-request"),
    };
    Trouble::new(kind, condition, failure.description.clone())
}

/// Tells a client what is wrong with its stanza.
pub(crate) fn answer_error(shared: &Shared, line: &Arc<Line>, reply: &ReplyTo, trouble: &Trouble) {
    // A line that takes no more is closing: its client comes back and asks anew.
    let _ = line.say(Frame::stanza(reply.error(Some(&full_jid(shared, line)), trouble)));
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn size<A, B, F>(_: impl FnOnce(A, B) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_payload_on_its_way_to_its_service_takes_little() {
        assert!(size(run) <= 1536, "{} bytes", size(run));
        let task = async {
            let held = [0_u8; 1024];
            std::future::pending::<()>().await;
            std::hint::black_box(held);
        };
        let around = size_of_val(&crate::until(CancellationToken::new(), task));
        assert!(around <= 384, "{around} bytes around a task that has its own");
    }
}
