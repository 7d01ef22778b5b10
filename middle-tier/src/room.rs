//! Room in mailboxes: a mailbox is bounded, and what has no room is refused when it is sent, never dropped afterwards.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use idl::error::Failure;
use idl::ids::{Partition, RegId, Shard};
use tokio::time::Instant;

use crate::Shared;
use crate::accept::MAILBOXES_READ;

/// Lengths that are remembered; beyond it all are forgotten and read again as they are needed.
const LENGTHS_MAX: usize = 65_536;

/// How long the length of a mailbox is remembered whose account is another middle's: nobody says here what others add. So
/// middles that send to one device at the same time may together go over the limit by what they add within this time.
const OF_OTHERS_KEPT: Duration = Duration::from_secs(5);

/// How full mailboxes are, as far as it is known here. A length may be too large, since acks and expiry don't lessen it
/// (a device may acknowledge what is not there, or twice): before a mailbox is called full it is read.
#[derive(Default)]
pub(crate) struct Rooms(Mutex<BTreeMap<RegId, Length>>);

struct Length {
    cells: usize,
    /// Until when it can be relied on, for an account of another middle.
    until: Option<Instant>,
}

impl Rooms {
    fn lengths(&self) -> MutexGuard<'_, BTreeMap<RegId, Length>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one place in each mailbox and returns those that have none. Requests at the same moment may together go over
    /// the limit by as many as they are.
    pub(crate) async fn take(&self, shared: &Shared, regids: &[RegId]) -> Result<Vec<RegId>, Failure> {
        let limit = shared.config.mailbox_max;
        let known: BTreeMap<RegId, usize> = {
            let lengths = self.lengths();
            let lives = |length: &&Length| length.until.is_none_or(|until| until > Instant::now());
            let cells = |regid: &RegId| lengths.get(regid).filter(lives).map(|length| (*regid, length.cells));
            regids.iter().filter_map(cells).filter(|(_, cells)| *cells < limit).collect()
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
        let length = |regid: RegId, cells| {
            let until = (!shared.partitions.has_registration(regid)).then(|| Instant::now() + OF_OTHERS_KEPT);
            Length { cells, until }
        };
        lengths.extend(doubtful.into_iter().zip(read).map(|(regid, cells)| (regid, length(regid, cells))));
        let mut full = Vec::new();
        for regid in regids {
            // Forgotten meanwhile? Then it is what it was.
            let was = || length(*regid, known.get(regid).copied().unwrap_or_default());
            let length = lengths.entry(*regid).or_insert_with(was);
            if length.cells >= limit {
                full.push(*regid);
            } else {
                length.cells += 1;
            }
        }
        Ok(full)
    }

    /// Another middle put a message into the mailbox.
    pub(crate) fn added(&self, regid: RegId) {
        if let Some(length) = self.lengths().get_mut(&regid) {
            length.cells += 1;
        }
    }

    /// Another middle may have put messages into the mailbox.
    pub(crate) fn forget(&self, regid: RegId) {
        self.lengths().remove(&regid);
    }

    /// Forgets the mailboxes of accounts of these partitions.
    pub(crate) fn forget_of(&self, partitions: &[Partition]) {
        self.lengths().retain(|regid, _| !partitions.contains(&Shard::of_registration(*regid).into()));
    }
}
