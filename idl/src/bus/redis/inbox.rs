//! What others tell this process: one stream that it alone reads, on a connection of its own. What was read is trimmed
//! before more is read, so that the stream is always read from its beginning: nothing needs to be remembered when it
//! vanishes, or when Redis's clock steps back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::redis::Value;
use ::redis::aio::MultiplexedConnection;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{Instant, sleep};

use super::connection;
use super::courier::{LetterCourier, send};
use super::entries::{EntryId, letter_number, streams};
use super::letters::{self, ANSWER, BATCH, EVENT, QUESTION, Return};
use super::{Shared, lock};
use crate::bus::{Answer, FrontEvent, FrontInbox, Incoming, IncomingBatch, Lane, Request, Unreadable};
use crate::contract::bus as wire;
use crate::error::{Code, Failure};
use crate::ids::FrontId;
use crate::wire::decode_trusted;

const BLOCK: Duration = Duration::from_millis(500);
const ENTRIES_A_READ_MAX: usize = 64;
/// How long it is told that a front is gone.
const GONE_TOLD: Duration = Duration::from_secs(30);

/// The fronts of this process.
#[derive(Default)]
pub(super) struct Fronts(Mutex<Registered>);

#[derive(Default)]
struct Registered {
    living: BTreeMap<FrontId, Senders>,
    gone: Vec<(FrontId, Instant)>,
}

#[derive(Clone)]
struct Senders {
    batches: mpsc::Sender<IncomingBatch>,
    events: mpsc::Sender<FrontEvent>,
}

impl Fronts {
    pub(super) fn attach(&self, front: FrontId, batches_max: usize, events_max: usize) -> FrontInbox {
        let (batches_in, batches) = mpsc::channel(batches_max);
        let (events_in, events) = mpsc::channel(events_max);
        let mut registered = lock(&self.0);
        registered.gone.retain(|(gone, _)| *gone != front);
        registered.living.insert(front, Senders { batches: batches_in, events: events_in });
        FrontInbox { batches, events }
    }

    /// Those that live, and those that went lately.
    pub(super) fn living(&self) -> (Vec<FrontId>, Vec<FrontId>) {
        let now = Instant::now();
        let mut registered = lock(&self.0);
        let Registered { living, gone } = &mut *registered;
        living.retain(|front, senders| {
            let is_closed = senders.batches.is_closed() && senders.events.is_closed();
            if is_closed {
                gone.push((*front, now));
            }
            !is_closed
        });
        gone.retain(|(_, since)| now.duration_since(*since) < GONE_TOLD);
        (living.keys().copied().collect(), gone.iter().map(|(front, _)| *front).collect())
    }

    fn senders(&self, front: Option<FrontId>) -> Option<Senders> {
        lock(&self.0).living.get(&front?).cloned()
    }
}

/// Reads this process's stream for as long as the bus lives.
pub(super) async fn read(shared: Arc<Shared>) {
    let mut failed = 0;
    loop {
        let reason = match shared.dialer.dial(BLOCK + shared.options.response_timeout).await {
            Ok(connection) => {
                failed = 0;
                read_until_broken(&shared, connection).await
            }
            Err(reason) => reason,
        };
        tracing::debug!(%reason, "letters can't be read");
        sleep(shared.dialer.pause(failed)).await;
        failed += 1;
    }
}

async fn read_until_broken(shared: &Arc<Shared>, mut connection: MultiplexedConnection) -> String {
    let key = shared.keys.inbox(shared.process);
    let mut read: Option<EntryId> = None;
    loop {
        let mut pipe = ::redis::pipe();
        if let Some(last) = read.take() {
            pipe.cmd("XTRIM").arg(&key).arg("MINID").arg(last.after().to_string());
        }
        pipe.cmd("XREAD").arg("COUNT").arg(ENTRIES_A_READ_MAX).arg("BLOCK");
        pipe.arg(u64::try_from(BLOCK.as_millis()).unwrap_or(500)).arg("STREAMS").arg(&key).arg("0");
        let mut values = match connection::send(&mut connection, &pipe).await {
            Ok(values) => values,
            Err(error) => return shared.dialer.said(&error),
        };
        if let Some((error, _)) = values.iter().find_map(connection::refusal) {
            return shared.dialer.said(&error);
        }
        for (_, entries) in streams(values.pop().unwrap_or(Value::Nil)) {
            for entry in entries {
                read = Some(entry.id);
                for (place, bytes) in entry.values.iter().enumerate() {
                    if let Err(error) = take(shared, entry.id, place, bytes) {
                        shared.undecodable(&error.to_string());
                    }
                }
            }
        }
    }
}

/// Brings one letter to whom it is for. Nothing here waits: whoever has no place for it says so.
fn take(shared: &Arc<Shared>, entry: EntryId, place: usize, bytes: &[u8]) -> Result<(), Unreadable> {
    let letter = letters::letter(bytes)?;
    if letter.kind == ANSWER {
        if shared.calls.end(letter.call, Ok(letter)) {
            shared.metrics.answers_received.add(1);
        }
        return Ok(());
    }
    if !matches!(letter.kind, BATCH | EVENT | QUESTION) {
        return Err(Unreadable::Unknown { what: "letter", number: letter.kind });
    }
    let back = letters::back(&letter)?;
    let Some(deadline) = shared.deadline(entry, back.patience) else {
        shared.metrics.expired.add(1);
        return Ok(());
    };
    shared.metrics.letters_received.add(1);
    let refused = match letter.kind {
        BATCH => batch(shared, letter, back, deadline),
        EVENT => event(shared, &letter, back, deadline),
        _ => question(shared, &letter, back, deadline, entry, place),
    };
    let answer = match refused {
        Ok(()) => return Ok(()),
        Err(Refused::Unreadable(error)) => {
            let bytes = letters::failure(back.call, &letters::not_known(&error));
            send(shared, back, bytes, deadline, None);
            return Err(error);
        }
        Err(Refused::NoPlace) => {
            shared.metrics.no_place.add(1);
            letters::no_place(back.call)
        }
        Err(Refused::NotHere(failure)) => letters::failure(back.call, &failure),
    };
    send(shared, back, answer, deadline, None);
    Ok(())
}

/// Why a letter was not taken.
enum Refused {
    NotHere(Failure),
    NoPlace,
    Unreadable(Unreadable),
}

impl<T> From<TrySendError<T>> for Refused {
    fn from(error: TrySendError<T>) -> Self {
        match error {
            TrySendError::Full(_) => Self::NoPlace,
            TrySendError::Closed(_) => Self::NotHere(Failure::new(Code::System, "it is not running any more")),
        }
    }
}

fn batch(shared: &Arc<Shared>, letter: wire::Letter, back: Return, deadline: Instant) -> Result<(), Refused> {
    let senders = front(shared, &letter)?;
    let place = senders.batches.try_reserve().map_err(Refused::from)?;
    let bytes = letter.body.unwrap_or_default();
    let batch = decode_trusted(&bytes).map_err(|error| Refused::Unreadable(error.into()))?;
    let courier = LetterCourier { shared: Arc::clone(shared), back, deadline, bytes: letters::batch_reply };
    place.send(IncomingBatch { batch, answer: Answer::away(courier) });
    Ok(())
}

fn event(shared: &Shared, letter: &wire::Letter, back: Return, deadline: Instant) -> Result<(), Refused> {
    let senders = front(shared, letter)?;
    let body = letter.body.as_deref().unwrap_or_default();
    let event = FrontEvent::from_bytes(letter.number.unwrap_or_default(), body).map_err(Refused::Unreadable)?;
    senders.events.try_send(event)?;
    send(shared, back, letters::taken(back.call), deadline, None);
    Ok(())
}

fn question(
    shared: &Arc<Shared>,
    letter: &wire::Letter,
    back: Return,
    deadline: Instant,
    entry: EntryId,
    place: usize,
) -> Result<(), Refused> {
    let not_here = || Refused::NotHere(Failure::new(Code::System, "no middle tier is running in this process"));
    let queue = lock(&shared.questions).clone().ok_or_else(not_here)?;
    let body = letter.body.as_deref().unwrap_or_default();
    let request = Request::from_bytes(letter.number.unwrap_or_default(), body).map_err(Refused::Unreadable)?;
    let courier = LetterCourier { shared: Arc::clone(shared), back, deadline, bytes: letters::reply };
    let id = entry.message_id(letter_number(place), shared.chance());
    let answer = Answer::away(courier);
    let incoming = Incoming { id, lane: Lane::High, partition: None, deadline, request, answer };
    queue.try_send(incoming).map_err(Refused::from)
}

fn front(shared: &Shared, letter: &wire::Letter) -> Result<Senders, Refused> {
    let not_here = || Refused::NotHere(Failure::new(Code::System, "the front is not running here"));
    shared.fronts.senders(letters::front(letter)).ok_or_else(not_here)
}
