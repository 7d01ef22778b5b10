//! Room in mailboxes: a mailbox is bounded, and what has no room is refused when it is sent, never dropped afterwards.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use idl::error::Failure;
use idl::ids::RegId;

use crate::Shared;
use crate::accept::MAILBOXES_READ;

/// Lengths that are remembered; beyond it all are forgotten and read again as they are needed.
const LENGTHS_MAX: usize = 65_536;

/// How full mailboxes are, as far as it is known here. A length may be too large, since acks and expiry don't lessen it
/// (a device may acknowledge what is not there, or twice): before a mailbox is called full it is read.
#[derive(Default)]
pub(crate) struct Rooms(Mutex<BTreeMap<RegId, usize>>);

impl Rooms {
    fn lengths(&self) -> MutexGuard<'_, BTreeMap<RegId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one place in each mailbox and returns those that have none. Requests at the same moment may together go over
    /// the limit by as many as they are.
    pub(crate) async fn take(&self, shared: &Shared, regids: &[RegId]) -> Result<Vec<RegId>, Failure> {
        let limit = shared.config.mailbox_max;
        let known: BTreeMap<RegId, usize> = {
            let lengths = self.lengths();
            let known = regids.iter().filter_map(|regid| Some((*regid, *lengths.get(regid)?)));
            known.filter(|(_, length)| *length < limit).collect()
        };
        let doubtful: Vec<RegId> = regids.iter().filter(|regid| !known.contains_key(regid)).copied().collect();
        let mut read = Vec::with_capacity(doubtful.len());
        for doubtful in doubtful.chunks(MAILBOXES_READ) {
            read.extend(shared.mailboxes.lengths(doubtful, limit).await?);
        }
        let mut lengths = self.lengths();
        if lengths.len() + doubtful.len() > LENGTHS_MAX {
            lengths.clear();
        }
        lengths.extend(doubtful.into_iter().zip(read));
        let mut full = Vec::new();
        for regid in regids {
            // Forgotten meanwhile? Then it is what it was.
            let length = lengths.entry(*regid).or_insert_with(|| known.get(regid).copied().unwrap_or_default());
            if *length >= limit {
                full.push(*regid);
            } else {
                *length += 1;
            }
        }
        Ok(full)
    }
}
