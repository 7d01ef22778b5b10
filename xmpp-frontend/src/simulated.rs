//! Members of the index without connections: for measuring what an audience of a size costs that no machine has sockets for.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use idl::audience::Audience;
use idl::contract::bus::IndexEntry;
use idl::ids::{AccountId, AppId, Epoch, Shard};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::Acceptor;
use crate::channels::Work;
use crate::hub::{Applied, read_changes};
use crate::index::{Index, Membership, Memberships};
use crate::intake::Share;
use crate::line::{Attachment, Line};
use crate::sasl::Login;
use crate::scratch;
use crate::socket::Socket;
use crate::stream::Stream;

impl Acceptor {
    /// Adds a bound connection for each account, with these index entries, to which nobody listens: what is written to it
    /// stays in its outbox until that is full, then it is dropped as any other. The middle tier is not told. Returns how many
    /// there are now.
    pub fn simulate(&self, accounts: impl IntoIterator<Item = AccountId>, entries: &[IndexEntry]) -> usize {
        self.add(accounts, entries, |_, _| ())
    }

    /// The same with a stream in the clear whose socket takes all that is written, at once, and says nothing. It has what a
    /// connection has but for the socket, TLS and the task that reads. One that no limit admits is left out.
    pub fn simulate_streams(&self, accounts: impl IntoIterator<Item = AccountId>, entries: &[IndexEntry]) -> usize {
        self.add(accounts, entries, |line, attachment| {
            let Ok(admission) = self.shared.admissions.admit(IpAddr::V4(Ipv4Addr::LOCALHOST)) else { return };
            line.begin(attachment, Stream::new(Socket::Other(Box::new(Nobody)), admission));
            let mut cx = Context::from_waker(Waker::noop());
            let turn = scratch::with(|scratch| line.poll(attachment, &Share::default(), &mut cx, scratch));
            debug_assert!(turn.is_pending(), "nobody says nothing");
        })
    }

    fn add(
        &self,
        accounts: impl IntoIterator<Item = AccountId>,
        entries: &[IndexEntry],
        begin: impl Fn(&Arc<Line>, Attachment),
    ) -> usize {
        let (shared, mut added) = (&self.shared, 0);
        let now_ms = shared.clock.now_ms();
        for account in accounts {
            let login = Login { account, issued_at_ms: now_ms };
            let generation = shared.hubs.generation(Shard::of_account(account).into());
            let work = generation.map(Work::new).unwrap_or_default();
            let (line, attachment) = Line::new(
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
            begin(&line, attachment);
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

/// A byte stream that takes everything and says nothing.
struct Nobody;

impl AsyncRead for Nobody {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Nobody {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The index of one hub and what its slots are in it, without connections.
#[derive(Debug, Default)]
pub struct SimulatedIndex {
    index: Index,
    slots: Vec<Memberships>,
}

impl SimulatedIndex {
    /// Adds a slot with these entries.
    pub fn add(&mut self, entries: &[IndexEntry]) {
        let Ok(slot) = u32::try_from(self.slots.len()) else { return };
        let mut memberships = Memberships::default();
        for change in read_changes(entries) {
            let (app, labels) = self.index.insert(change.app, slot, change.labels.unwrap_or_default());
            memberships.insert(app, Membership { version: change.version, labels, since: 0, joined: 0 });
        }
        self.slots.push(memberships);
    }

    /// How many slots an audience has.
    pub fn count(&self, app: &AppId, audience: &Audience) -> u64 {
        self.index.audience(app, audience).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(topic: &str) -> IndexEntry {
        IndexEntry {
            app: "com.example.demo".to_owned(),
            version: 1,
            removed: None,
            topics: Some(vec![topic.to_owned()]),
            attributes: None,
            aliases: None,
            user_accounts: None,
        }
    }

    #[test]
    fn slots_are_counted_by_audience() {
        let mut simulated = SimulatedIndex::default();
        for number in 0..10 {
            simulated.add(&[entry(if number % 2 == 0 { "even" } else { "odd" })]);
        }
        let app = "com.example.demo".parse().expect("an app id");
        assert_eq!(simulated.count(&app, &Audience::Everyone), 10);
        assert_eq!(simulated.count(&app, &Audience::Topic("odd".parse().expect("a topic"))), 5);
    }
}
