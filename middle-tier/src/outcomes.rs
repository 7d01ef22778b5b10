//! What becomes of deliveries, written as one: traces, receipts, and whatever else belongs to the same step.

use std::sync::Arc;

use idl::error::{Code, Failure};
use idl::ids::{AppId, FrontId, MessageId, RegId};
use schema::batch::Batch;
use schema::receipts::Receipt;
use schema::traces::{Delivered, DropReason, Dropped};

use crate::Shared;
use crate::counts::keep_until;
use crate::receipts::{InFlight, POSTING_MS};
use crate::session::Wanted;

/// Bits of a callback's types.
pub(crate) mod kind {
    pub(crate) const DELIVERED: i32 = 1;
    pub(crate) const CLICKED: i32 = 2;
    pub(crate) const INVALID_TARGET: i32 = 16;
    pub(crate) const DISABLED: i32 = 32;
    pub(crate) const FILTERED: i32 = 64;
    pub(crate) const QUOTA: i32 = 128;
    pub(crate) const EXPIRED: i32 = 1024;
    /// All of them.
    pub(crate) const ALL: i32 = DELIVERED | CLICKED | INVALID_TARGET | DISABLED | FILTERED | QUOTA | EXPIRED;
}

/// How long receipts can be read again.
const RECEIPTS_KEPT_MS: u64 = 7 * 24 * 3600 * 1000;

/// A step that is about to be written.
pub(crate) struct Outcomes<'a> {
    shared: &'a Arc<Shared>,
    /// Receipts of the step. They are written before all else, since the rest says that they are: an acknowledgement that was
    /// cut off comes again, a receipt does not.
    receipts: Vec<Receipt>,
    /// What belongs to the step besides.
    pub(crate) batch: Batch,
    now_ms: u64,
    /// Receipts under way: readers don't pass over them.
    in_flight: Option<InFlight>,
    /// What is told later hangs on this step.
    owes: bool,
}

/// A registration's part in a message.
pub(crate) struct Whose<'a> {
    pub(crate) app: &'a AppId,
    pub(crate) message: MessageId,
    pub(crate) regid: RegId,
}

impl<'a> Outcomes<'a> {
    pub(crate) fn new(shared: &'a Arc<Shared>) -> Self {
        Self {
            receipts: Vec::new(),
            batch: Batch::default(),
            now_ms: shared.clock.now_ms(),
            in_flight: None,
            owes: false,
            shared,
        }
    }

    /// The time of the step.
    pub(crate) fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// True if an app server is told of something, now or later.
    pub(crate) fn tells(&self) -> bool {
        self.in_flight.is_some() || self.owes
    }

    /// What is told later, or not any more, hangs on this step.
    pub(crate) fn owes(&mut self) {
        self.owes = true;
    }

    /// The device has it.
    pub(crate) fn delivered(
        &mut self,
        whose: &Whose<'_>,
        dispatched_at_ms: Option<u64>,
        front: Option<FrontId>,
        wanted: Option<&Wanted>,
    ) {
        let delivered = Delivered { at_ms: self.now_ms, dispatched_at_ms, front };
        self.batch.delivered(whose.message, whose.regid, &delivered, keep_until(self.shared, whose.message));
        if let Some(wanted) = wanted {
            self.receipt(
                whose.app,
                whose.message,
                wanted,
                kind::DELIVERED,
                &target(wanted, whose.regid),
                Some(whose.regid),
            );
        }
    }

    /// It will not be delivered.
    pub(crate) fn dropped(&mut self, whose: &Whose<'_>, reason: DropReason) {
        let dropped = Dropped { at_ms: self.now_ms, reason };
        self.batch.dropped(whose.message, whose.regid, dropped, keep_until(self.shared, whose.message));
    }

    /// The app server is told, if it wants to be told of this.
    pub(crate) fn receipt(
        &mut self,
        app: &AppId,
        message: MessageId,
        wanted: &Wanted,
        kind: i32,
        target: &str,
        regid: Option<RegId>,
    ) {
        if wanted.callback.types & kind == 0 {
            return;
        }
        let in_flight = self.in_flight.get_or_insert_with(|| self.shared.receipts.begin());
        self.receipts.push(Receipt {
            id: in_flight.next(self.shared),
            app: app.clone(),
            message,
            kind,
            target: target.to_owned(),
            regid,
            at_ms: self.now_ms,
            url: wanted.callback.url.clone(),
            param: wanted.callback.param.clone(),
            job_key: wanted.job_key.clone(),
            error_code: (kind == self::kind::QUOTA).then(|| Code::DailyQuota.number()),
        });
    }

    /// Writes it all, durably when `Ok`; then receipts are on their way.
    pub(crate) async fn write(self) -> Result<(), Failure> {
        let Self { shared, receipts, batch, now_ms, in_flight, .. } = self;
        let mut all = Batch::default();
        all.receipts(&receipts, now_ms.saturating_add(RECEIPTS_KEPT_MS), now_ms.saturating_add(POSTING_MS));
        all.append(batch);
        all.write(shared.store.as_ref()).await?;
        drop(in_flight);
        shared.metrics.receipts_written.inc_by(receipts.len() as u64);
        for receipt in receipts {
            if let Some(url) = receipt.url {
                shared.receipts.poke(shared, &receipt.app, &url);
            }
        }
        Ok(())
    }
}

/// A target as the send named it: an alias, or the registration.
pub(crate) fn target(wanted: &Wanted, regid: RegId) -> String {
    wanted.alias.clone().unwrap_or_else(|| regid.to_string())
}
