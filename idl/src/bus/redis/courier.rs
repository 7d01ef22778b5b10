//! Answers on their way out of this process.

use std::sync::Arc;

use tokio::time::Instant;

use super::Shared;
use super::letters::{self, Return};
use super::outbox::{Ack, OutLetter};
use crate::bus::{Courier, Reply, Term};
use crate::error::{Code, Failure};

/// Brings a middle's answer to the process that asked, and acknowledges the request after it.
pub(super) struct RequestCourier {
    shared: Arc<Shared>,
    ack: Ack,
    term: Term,
    back: Return,
    deadline: Instant,
}

impl RequestCourier {
    pub(super) fn new(shared: Arc<Shared>, ack: Ack, term: Term, back: Return, deadline: Instant) -> Self {
        Self { shared, ack, term, back, deadline }
    }
}

impl Courier<Reply> for RequestCourier {
    fn carry(self: Box<Self>, answer: Option<Result<Reply, Failure>>) {
        let Ack { slot, entry, .. } = self.ack;
        if let Some(result) = answer {
            let bytes = answer_bytes(self.back.call, &result, letters::reply);
            send(&self.shared, self.back, bytes, self.deadline, Some(self.ack));
        } else if self.shared.leases.may_hand_over(slot.partition, self.term) {
            // The middle had its reasons, such as that the caller waits no more. Nobody else gets it.
            if self.shared.in_hand.drop_late(slot, entry, self.term, self.deadline) {
                self.shared.outbox.ack(Ack { counted: false, ..self.ack });
            }
        } else {
            self.shared.in_hand.leave(slot, entry);
            // Should it be here again for another term, it is read again.
            self.shared.leases.reclaim(slot);
        }
    }

    fn is_abandoned(&self) -> bool {
        self.deadline <= Instant::now()
    }
}

/// Brings an answer to a letter to the process that asked.
pub(super) struct LetterCourier<T> {
    pub(super) shared: Arc<Shared>,
    pub(super) back: Return,
    pub(super) deadline: Instant,
    pub(super) bytes: fn(i64, &T) -> Vec<u8>,
}

impl<T> Courier<T> for LetterCourier<T> {
    fn carry(self: Box<Self>, answer: Option<Result<T, Failure>>) {
        if let Some(result) = answer {
            let bytes = answer_bytes(self.back.call, &result, self.bytes);
            send(&self.shared, self.back, bytes, self.deadline, None);
        }
    }

    fn is_abandoned(&self) -> bool {
        self.deadline <= Instant::now()
    }
}

fn answer_bytes<T>(call: i64, result: &Result<T, Failure>, bytes: fn(i64, &T) -> Vec<u8>) -> Vec<u8> {
    let bytes = match result {
        Ok(reply) => bytes(call, reply),
        Err(failure) => letters::failure(call, failure),
    };
    if bytes.len() <= letters::BYTES_MAX {
        return bytes;
    }
    let text = format!("an answer of {} bytes is over the limit of {}", bytes.len(), letters::BYTES_MAX);
    letters::failure(call, &Failure::new(Code::System, text))
}

/// Puts an answer into the outbox.
pub(super) fn send(shared: &Shared, back: Return, bytes: Vec<u8>, deadline: Instant, ack: Option<Ack>) {
    let letter = OutLetter { to: back.to, bytes, deadline, call: None };
    if !shared.outbox.answer(letter, ack) {
        shared.metrics.answers_lost.add(1);
    }
}
