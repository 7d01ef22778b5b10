//! The middle tier as a front asks it: typed requests over the bus, counted, with patience and back-off.

use std::sync::Arc;
use std::time::Duration;

use idl::bus::{Bus, Call, Reply, Request};
use idl::clock::SharedEntropy;
use idl::contract::bus as wire;
use idl::error::{Code, Failure};
use idl::ids::{AccountId, Epoch, FrontId, Generation, InvalidId, Partition, Shard};
use tokio::time::Instant;

use crate::close::Reason;
use crate::line::Line;
use crate::metrics::Metrics;

const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(3);

/// The middle tier.
pub(crate) struct Middle {
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) front: FrontId,
    pub(crate) entropy: SharedEntropy,
    /// How long one try may take.
    pub(crate) request_time_max: Duration,
    pub(crate) metrics: Arc<Metrics>,
}

/// What the middle said about a channel.
pub(crate) struct ChannelReply {
    pub(crate) index: Vec<wire::IndexEntry>,
    pub(crate) payloads: Vec<Vec<u8>>,
    pub(crate) generation: Generation,
    /// What to open the channel with from now on when it is opened anew.
    pub(crate) reopen: Option<Vec<u8>>,
}

/// A route that was claimed.
pub(crate) struct Connected {
    pub(crate) epoch: Epoch,
    pub(crate) generation: Generation,
}

/// A lease that was renewed.
pub(crate) struct Leased {
    pub(crate) generations: Vec<(Partition, Generation)>,
    pub(crate) revoked: Vec<wire::TokenRevoked>,
}

/// How long a request is tried. Every request to the middle may be repeated.
#[derive(Clone, Copy)]
pub(crate) enum Patience<'a> {
    /// One try.
    Once,
    /// Until it is answered, fails for good, or no time for another try is left.
    For(Duration),
    /// Likewise, but given up as superseded once the line has lost its route.
    While(&'a Line, Duration),
}

/// A connection, as the middle knows it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) account: AccountId,
    pub(crate) epoch: Epoch,
}

impl Middle {
    /// Claims the route of an account; with an epoch, announces a connection that has it already.
    pub(crate) async fn connect(
        &self,
        account: AccountId,
        resource: &str,
        epoch: Option<Epoch>,
        patience: Patience<'_>,
    ) -> Result<Connected, Failure> {
        let request = Request::Connect(wire::Connect {
            account: account.to_string(),
            resource: resource.to_owned(),
            front: self.front.to_string(),
            epoch: epoch.map(|epoch| epoch.to_bytes().to_vec()),
        });
        match self.ask(Shard::of_account(account), request, patience).await? {
            Reply::Connected(connected) => Ok(Connected {
                epoch: Epoch::from_bytes(&connected.epoch).map_err(|error| unreadable(&error))?,
                generation: generation(&connected.generation)?,
            }),
            _ => Err(unexpected("Connect")),
        }
    }

    /// Gives a route back.
    pub(crate) async fn disconnect(&self, place: Place, resource: &str, patience: Patience<'_>) -> Result<(), Failure> {
        let request = Request::Disconnect(wire::Disconnect {
            account: place.account.to_string(),
            resource: resource.to_owned(),
            front: self.front.to_string(),
            epoch: place.epoch.to_bytes().to_vec(),
        });
        self.ask(Shard::of_account(place.account), request, patience).await.map(|_| ())
    }

    pub(crate) fn open_channel<'a>(
        &'a self,
        place: Place,
        channel: u32,
        payload: Vec<u8>,
        patience: Patience<'a>,
    ) -> impl Future<Output = Result<ChannelReply, Failure>> + use<'a> {
        let request = Request::OpenChannel(wire::OpenChannel {
            account: place.account.to_string(),
            front: self.front.to_string(),
            epoch: place.epoch.to_bytes().to_vec(),
            channel: channel_number(channel),
            payload: (!payload.is_empty()).then_some(payload),
        });
        self.ask_channel("OpenChannel", place, request, patience)
    }

    pub(crate) fn channel_up<'a>(
        &'a self,
        place: Place,
        channel: u32,
        payload: Vec<u8>,
        patience: Patience<'a>,
    ) -> impl Future<Output = Result<ChannelReply, Failure>> + use<'a> {
        let request = Request::ChannelUp(wire::ChannelUp {
            account: place.account.to_string(),
            front: self.front.to_string(),
            epoch: place.epoch.to_bytes().to_vec(),
            channel: channel_number(channel),
            payload,
        });
        self.ask_channel("ChannelUp", place, request, patience)
    }

    /// When the account's tokens in force were issued; empty for an account that does not exist.
    pub(crate) async fn token_times(&self, account: AccountId) -> Result<Vec<u64>, Failure> {
        let request = Request::TokenTimes(wire::TokenTimes { account: account.to_string() });
        match self.ask(Shard::of_account(account), request, Patience::Once).await? {
            Reply::TokenTimes(times) => {
                Ok(times.issued_at_ms.into_iter().filter_map(|ms| u64::try_from(ms).ok()).collect())
            }
            _ => Err(unexpected("TokenTimes")),
        }
    }

    /// Says that this front lives. Any middle will do: one that is just being replaced must not make it look dead, so two
    /// are tried.
    pub(crate) async fn lease(&self) -> Result<Leased, Failure> {
        let request = || Request::FrontLease(wire::FrontLease { front: self.front.to_string() });
        let shard = || Shard(u16::try_from(self.entropy.below(1 << 16)).unwrap_or(0));
        let reply = match self.ask(shard(), request(), Patience::Once).await {
            Err(failure) if failure.code.retryable() => self.ask(shard(), request(), Patience::Once).await?,
            reply => reply?,
        };
        let Reply::Leased(leased) = reply else { return Err(unexpected("FrontLease")) };
        let generations = if let Some(all) = leased.generations {
            // A partition that nobody has is told by none.
            let known = Partition::all().zip(all).filter(|(_, bytes)| !bytes.is_empty());
            known.map(|(partition, bytes)| Ok((partition, generation(&bytes)?))).collect::<Result<_, Failure>>()?
        } else {
            let generation = generation(&leased.generation)?;
            Partition::all().map(|partition| (partition, generation)).collect()
        };
        Ok(Leased { generations, revoked: leased.revoked })
    }

    async fn ask_channel(
        &self,
        name: &'static str,
        place: Place,
        request: Request,
        patience: Patience<'_>,
    ) -> Result<ChannelReply, Failure> {
        match self.ask(Shard::of_account(place.account), request, patience).await? {
            Reply::Channel(reply) => Ok(ChannelReply {
                index: reply.index.unwrap_or_default(),
                payloads: reply.payloads.unwrap_or_default(),
                generation: generation(&reply.generation)?,
                reopen: reply.reopen,
            }),
            _ => Err(unexpected(name)),
        }
    }

    async fn ask(&self, shard: Shard, request: Request, patience: Patience<'_>) -> Result<Reply, Failure> {
        let time_max = match patience {
            Patience::Once => Duration::ZERO,
            Patience::For(time_max) | Patience::While(_, time_max) => time_max,
        };
        let give_up_at = Instant::now() + time_max;
        let mut wait = FIRST_WAIT;
        loop {
            if let Patience::While(line, _) = patience
                && line.closing().is_some_and(Reason::is_without_route)
            {
                return Err(Failure::from(Code::Superseded));
            }
            let name = request.name();
            let answer = self.bus.request(Call::high(shard, self.request_time_max, request.clone())).await;
            self.metrics.request(name, answer.as_ref().map_or_else(|failure| failure.code.number(), |_| 0));
            let failure = match answer {
                Ok(reply) => return Ok(reply),
                Err(failure) => failure,
            };
            let jitter = self.entropy.below(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
            let next = Instant::now() + wait / 2 + Duration::from_millis(jitter);
            if !failure.code.retryable() || next >= give_up_at {
                return Err(failure);
            }
            tokio::time::sleep_until(next).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }
}

fn channel_number(number: u32) -> i32 {
    i32::try_from(number).expect("channel numbers end at 65535")
}

fn generation(bytes: &[u8]) -> Result<Generation, Failure> {
    Generation::from_bytes(bytes).map_err(|error| unreadable(&error))
}

fn unreadable(error: &InvalidId) -> Failure {
    Failure::new(Code::System, format!("the middle tier's answer can't be read: {error}"))
}

fn unexpected(request: &str) -> Failure {
    Failure::new(Code::System, format!("the middle tier gave an answer that does not go with {request}"))
}
