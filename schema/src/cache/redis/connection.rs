//! The connection to Redis: one for all calls of the process, made anew whenever it is lost.
//!
//! A call waits for a connection that is being made for the first time or right after a loss. Once a try has failed, calls
//! fail at once with the reason until a try succeeds. A call without an answer in time counts as a loss: a server that is
//! paused or a network that swallows packets is not told from one that is gone, and those who come next need not wait.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use idl::clock::SharedEntropy;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ErrorKind, IntoConnectionInfo, ProtocolVersion, PushInfo, PushKind,
    RedisError, RedisResult, ServerErrorKind, TlsCertificates,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::metrics::RedisMetrics;
use super::options::RedisOptions;
use crate::sorted::StoreError;

/// Commands that wait for the socket; further ones wait for room.
const QUEUE_MAX: usize = 1024;
/// How often an idle connection is tried.
pub(super) const PING_EVERY: Duration = Duration::from_secs(2);

/// Makes connections.
#[derive(Clone)]
pub(super) struct Dialer {
    client: Client,
    /// The server, as errors name it: host and port.
    server: Arc<str>,
    options: Arc<RedisOptions>,
    entropy: SharedEntropy,
}

/// How the connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisState {
    /// It is being made, and no try has failed yet.
    Connecting,
    /// It is there.
    Up,
    /// The last try failed, for this reason. Tries go on.
    Down(String),
}

/// Whether a call changes something: then one whose connection broke may have happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Reads,
    Writes,
}

/// A connection that was made.
#[derive(Clone)]
pub(super) struct Link {
    /// Counts connections.
    pub(super) number: u64,
    /// The server's process, by its own random name.
    pub(super) run: Arc<str>,
    pub(super) connection: MultiplexedConnection,
}

#[derive(Clone)]
enum Slot {
    Connecting,
    Up(Link),
    Down(String),
}

/// The connection. Dropping it ends it.
pub(super) struct Connection {
    slot: Arc<watch::Sender<Slot>>,
    server: Arc<str>,
    response_timeout: Duration,
    metrics: Arc<RedisMetrics>,
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Dialer {
    /// Fails when the options can't be used, and says which.
    pub(super) fn new(options: Arc<RedisOptions>, entropy: SharedEntropy) -> Result<Self, StoreError> {
        let refused = |text: String| StoreError::Unavailable(format!("the cache in Redis can't be used: {text}"));
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if options.prefix.is_empty() || options.prefix.len() > 64 || !options.prefix.chars().all(valid) {
            let expected = "1 to 64 characters of A-Z a-z 0-9 . _ - were expected";
            return Err(refused(format!("the prefix {:?} is not valid: {expected}", options.prefix)));
        }
        // What the library says of a URL may quote it, with the password.
        let unusable = "its URL can't be read: redis://user:password@host:port or rediss://… was expected".to_owned();
        let info = options.url.as_str().into_connection_info().map_err(|_| refused(unusable))?;
        // Version 3 of the protocol tells of a lost connection without being asked.
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3).set_skip_set_lib_name();
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        let info = info.set_redis_settings(settings).set_tcp_settings(tcp);
        let server = info.addr().to_string().into();
        let read = |file: &Path| fs::read(file).map_err(|error| refused(format!("{}: {error}", file.display())));
        let ca = options.ca_file.as_deref().map(read).transpose()?;
        let client = match (&options.certificate_file, &options.key_file) {
            (Some(certificate), Some(key)) => {
                Some(ClientTlsConfig { client_cert: read(certificate)?, client_key: read(key)? })
            }
            (None, None) => None,
            _ => return Err(refused("a client certificate and its key go together; one is missing".to_owned())),
        };
        let made = if ca.is_some() || client.is_some() {
            Client::build_with_tls(info, TlsCertificates { client_tls: client, root_cert: ca })
        } else {
            Client::open(info)
        };
        let client = made.map_err(|error| refused(error.to_string()))?;
        Ok(Self { client, server, options, entropy })
    }

    /// One try. `on_push` gets what the server says without being asked, and [`PushKind::Disconnection`].
    pub(super) async fn dial(
        &self,
        on_push: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> Result<MultiplexedConnection, String> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE_MAX)
            .set_push_sender(move |push| {
                on_push(push);
                Ok::<(), ()>(())
            });
        let dialing = self.client.get_multiplexed_async_connection_with_config(&config);
        match timeout(self.options.connect_timeout, dialing).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(self.said(&error)),
            Err(_) => Err(format!("{} did not answer within {:?}", self.server, self.options.connect_timeout)),
        }
    }

    /// The pause after so many tries that failed: doubled each time and with jitter, so that processes spread.
    pub(super) fn pause(&self, failed: u32) -> Duration {
        let longest = self.options.retry_pause_max;
        let pause = (longest / 16).saturating_mul(1 << failed.min(4)).min(longest);
        let jitter = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX) / 2;
        pause.saturating_sub(Duration::from_millis(self.entropy.below(jitter.saturating_add(1))))
    }

    /// Asks whether the server is there.
    pub(super) async fn ping(&self, connection: &mut MultiplexedConnection) -> bool {
        let ping: RedisResult<String> =
            match timeout(self.options.response_timeout, async { redis::cmd("PING").query_async(connection).await })
                .await
            {
                Ok(answer) => answer,
                Err(_) => return false,
            };
        ping.is_ok()
    }

    pub(super) fn said(&self, error: &RedisError) -> String {
        format!("{}: {error}", self.server)
    }

    pub(super) fn response_timeout(&self) -> Duration {
        self.options.response_timeout
    }

    async fn run(&self, connection: &mut MultiplexedConnection) -> Result<Arc<str>, String> {
        let asked = timeout(self.options.response_timeout, async {
            redis::cmd("INFO").arg("server").query_async::<String>(connection).await
        });
        match asked.await {
            Ok(Ok(info)) => Ok(info.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap_or_default().into()),
            Ok(Err(error)) => Err(self.said(&error)),
            Err(_) => Err(format!("{} did not answer within {:?}", self.server, self.options.response_timeout)),
        }
    }
}

impl Connection {
    /// Begins to connect, and goes on for as long as this lives.
    pub(super) fn start(dialer: Dialer, metrics: Arc<RedisMetrics>) -> Self {
        let slot = Arc::new(watch::Sender::new(Slot::Connecting));
        let (server, response_timeout) = (Arc::clone(&dialer.server), dialer.options.response_timeout);
        let task = tokio::spawn(keep_up(dialer, Arc::clone(&slot), Arc::clone(&metrics)));
        Self { slot, server, response_timeout, metrics, task }
    }

    pub(super) fn state(&self) -> RedisState {
        match &*self.slot.borrow() {
            Slot::Connecting => RedisState::Connecting,
            Slot::Up(_) => RedisState::Up,
            Slot::Down(reason) => RedisState::Down(reason.clone()),
        }
    }

    /// The number of the connection, while there is one.
    pub(super) fn number(&self) -> Option<u64> {
        if let Slot::Up(link) = &*self.slot.borrow() { Some(link.number) } else { None }
    }

    /// One call, within the time for a response.
    pub(super) async fn call<T>(
        &self,
        effect: Effect,
        commands: impl AsyncFnOnce(Link) -> RedisResult<T>,
    ) -> Result<T, StoreError> {
        self.metrics.commands.add(1);
        let mut used = None;
        let answered = timeout(self.response_timeout, async {
            let link = self.link().await?;
            used = Some(link.number);
            commands(link).await.map_err(|error| self.failed(effect, used, &error))
        });
        let outcome = answered.await.unwrap_or_else(|_| {
            self.lost(used);
            match used {
                Some(_) => Err(StoreError::TimedOut),
                // Nothing was sent.
                None => Err(self.unavailable(&format!("no connection within {:?}", self.response_timeout))),
            }
        });
        match &outcome {
            Ok(_) => {}
            Err(StoreError::TimedOut) => self.metrics.timeouts.add(1),
            Err(_) => self.metrics.errors.add(1),
        }
        outcome
    }

    async fn link(&self) -> Result<Link, StoreError> {
        let mut slot = self.slot.subscribe();
        let Ok(settled) = slot.wait_for(|slot| !matches!(slot, Slot::Connecting)).await else {
            return Err(self.unavailable("the connection was closed"));
        };
        match &*settled {
            Slot::Up(link) => Ok(link.clone()),
            // The reason names the server.
            Slot::Down(reason) => Err(StoreError::Unavailable(format!("Redis at {reason}"))),
            Slot::Connecting => Err(self.unavailable("there is no connection yet")),
        }
    }

    fn failed(&self, effect: Effect, used: Option<u64>, error: &RedisError) -> StoreError {
        match error.kind() {
            ErrorKind::Io => {
                self.lost(used);
                if effect == Effect::Writes { StoreError::TimedOut } else { self.unavailable(&error.to_string()) }
            }
            // It follows another server now: a new connection may lead to that one.
            ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown) => {
                self.lost(used);
                self.unavailable(&error.to_string())
            }
            ErrorKind::Parse | ErrorKind::UnexpectedReturnType => {
                StoreError::Corrupt(format!("Redis at {}: {error}", self.server))
            }
            _ => self.unavailable(&error.to_string()),
        }
    }

    fn unavailable(&self, text: &str) -> StoreError {
        StoreError::Unavailable(format!("Redis at {}: {text}", self.server))
    }

    /// The connection of this number is of no use any more.
    fn lost(&self, number: Option<u64>) {
        if let Some(number) = number {
            lost(&self.slot, number);
        }
    }
}

fn lost(slot: &watch::Sender<Slot>, number: u64) {
    slot.send_if_modified(|slot| {
        let is_it = matches!(slot, Slot::Up(link) if link.number == number);
        if is_it {
            *slot = Slot::Connecting;
        }
        is_it
    });
}

/// Connects, watches the connection, and connects again.
async fn keep_up(dialer: Dialer, slot: Arc<watch::Sender<Slot>>, metrics: Arc<RedisMetrics>) {
    let (mut number, mut failed) = (0_u64, 0_u32);
    loop {
        let next = number + 1;
        let watched = Arc::downgrade(&slot);
        let dialed = dialer.dial(move |push| {
            if push.kind == PushKind::Disconnection
                && let Some(slot) = watched.upgrade()
            {
                lost(&slot, next);
            }
        });
        let made = match dialed.await {
            Ok(mut connection) => dialer.run(&mut connection).await.map(|run| Link { number: next, run, connection }),
            Err(reason) => Err(reason),
        };
        match made {
            Ok(link) => {
                (number, failed) = (next, 0);
                if number > 1 {
                    metrics.reconnects.add(1);
                    tracing::info!(server = %dialer.server, "connected to Redis again");
                }
                slot.send_replace(Slot::Up(link.clone()));
                watch_over(&dialer, &slot, link).await;
                tracing::warn!(server = %dialer.server, "the connection to Redis was lost");
            }
            Err(reason) => {
                if failed == 0 {
                    tracing::warn!(%reason, "Redis can't be reached");
                }
                slot.send_replace(Slot::Down(reason));
                sleep(dialer.pause(failed)).await;
                failed = failed.saturating_add(1);
            }
        }
    }
}

/// Returns when the connection is lost.
async fn watch_over(dialer: &Dialer, slot: &watch::Sender<Slot>, mut link: Link) {
    let mut changes = slot.subscribe();
    let is_lost = |slot: &Slot| !matches!(slot, Slot::Up(up) if up.number == link.number);
    loop {
        if timeout(PING_EVERY, changes.wait_for(is_lost)).await.is_ok() {
            return;
        }
        if !dialer.ping(&mut link.connection).await {
            lost(slot, link.number);
        }
    }
}
