//! Deliveries that expired: whoever wants to be told of that is told.
//!
//! What expires vanishes by itself; nothing has to be done for it. Only where a receipt of type 1024 is wanted a row says
//! when to look, and that row is removed together with the receipt, or with the acknowledgement.

use std::sync::Arc;
use std::time::Duration;

use idl::error::Failure;
use schema::expiries::Expiry;
use schema::traces::DropReason;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::Shared;
use crate::outcomes::{Outcomes, Whose, kind};
use crate::session::Wanted;

const REST: Duration = Duration::from_secs(1);
/// Rows taken in one go.
const AT_ONCE: usize = 500;

/// Looks for what expired until `drain` is cancelled.
pub(crate) async fn run(shared: Arc<Shared>, drain: CancellationToken) {
    while !drain.is_cancelled() {
        // One middle is enough for all.
        let looked = if shared.partitions.leads() { look(&shared).await } else { Ok(0) };
        match looked {
            Ok(found) if found >= AT_ONCE => continue,
            Ok(_) => {}
            Err(failure) => {
                tracing::warn!(%failure, "expired deliveries could not be looked for; they are tried again");
            }
        }
        shared.metrics.ran("expiries", shared.clock.now_ms());
        tokio::select! {
            () = drain.cancelled() => return,
            () = sleep(REST) => {}
        }
    }
}

async fn look(shared: &Arc<Shared>) -> Result<usize, Failure> {
    let due = shared.expiries.due(shared.clock.now_ms(), AT_ONCE).await?;
    if due.is_empty() {
        return Ok(0);
    }
    let found = due.len();
    let mut outcomes = Outcomes::new(shared);
    for expiry in due {
        let steps = shared.traces.get(expiry.message, expiry.regid).await?;
        if steps.delivered.is_none() && steps.dropped.is_none() {
            expired(&mut outcomes, &expiry);
            shared.metrics.deliveries_expired.inc();
        }
        outcomes.batch.expiry_done(&expiry);
    }
    outcomes.write().await?;
    Ok(found)
}

fn expired(outcomes: &mut Outcomes<'_>, expiry: &Expiry) {
    outcomes.dropped(&Whose { app: &expiry.app, message: expiry.message, regid: expiry.regid }, DropReason::Expired);
    let wanted = Wanted { callback: expiry.callback.clone(), alias: None, job_key: expiry.job_key.clone() };
    outcomes.receipt(&expiry.app, expiry.message, &wanted, kind::EXPIRED, &expiry.target, Some(expiry.regid));
}
