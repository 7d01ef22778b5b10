//! Members of the index without connections: for measuring what an audience of a size costs that no machine has sockets for.

use idl::contract::bus::IndexEntry;
use idl::ids::{AccountId, Epoch, Shard};

use crate::Acceptor;
use crate::channels::Work;
use crate::hub::{Applied, read_changes};
use crate::line::Line;
use crate::sasl::Login;

impl Acceptor {
    /// Adds a bound connection for each account, with these index entries, to which nobody listens: what is written to it
    /// stays in its outbox until that is full, then it is dropped as any other. The middle tier is not told. Returns how many
    /// there are now.
    pub fn simulate(&self, accounts: impl IntoIterator<Item = AccountId>, entries: &[IndexEntry]) -> usize {
        let (shared, mut added) = (&self.shared, 0);
        let now_ms = shared.clock.now_ms();
        for account in accounts {
            let login = Login { account, issued_at_ms: now_ms };
            let generation = shared.hubs.generation(Shard::of_account(account).into());
            let work = generation.map(Work::new).unwrap_or_default();
            let (line, _) = Line::new(
                login,
                Epoch(account.0),
                "simulated",
                shared.config.limits.outbox_bytes_max,
                work,
                &shared.hubs.of(account).wheel,
            );
            if shared.hubs.with(&line).attach(&line).is_err() {
                continue;
            }
            let place = shared.hubs.with(&line).place();
            let applied = shared.hubs.with(&line).apply(&line, place, read_changes(entries), Vec::new(), now_ms);
            added += usize::from(applied != Applied::Gone);
        }
        added
    }

    /// How many broadcasts were written to connections, each counted once a connection.
    pub fn broadcast_deliveries(&self) -> u64 {
        self.shared.metrics.broadcast_deliveries.get()
    }
}
