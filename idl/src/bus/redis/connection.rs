//! Connections to Redis: how one is made, and what is known of whether it can be reached.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, IntoConnectionInfo, Pipeline, ProtocolVersion,
    RedisError, ServerErrorKind, TlsCertificates, Value,
};
use rustls::crypto::CryptoProvider;
use tokio::time::timeout;

use super::lock;
use super::options::RedisOptions;
use crate::clock::SharedEntropy;
use crate::error::{Code, Failure};

/// Makes connections.
pub(super) struct Dialer {
    client: Client,
    /// The server, as errors name it: host and port.
    pub(super) server: String,
    connect_timeout: Duration,
    retry_pause_max: Duration,
    entropy: SharedEntropy,
}

impl Dialer {
    /// Fails when the options can't be used, and says which.
    pub(super) fn new(options: &RedisOptions, entropy: SharedEntropy) -> Result<Self, Failure> {
        let refused = |text: String| Failure::new(Code::System, format!("the bus on Redis can't be used: {text}"));
        if let Some(fault) = options.fault() {
            return Err(refused(fault));
        }
        // What the library says of a URL may quote it, with the password.
        let unusable = "its URL can't be read: redis://user:password@host:port or rediss://… was expected";
        let info = options.url.as_str().into_connection_info().map_err(|_| refused(unusable.to_owned()))?;
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP2).set_skip_set_lib_name();
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        let info = info.set_redis_settings(settings).set_tcp_settings(tcp);
        let server = info.addr().to_string();
        if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) && CryptoProvider::get_default().is_none() {
            // The library takes the one of the process and can't be given another. That somebody else was first is well.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let client = match &options.ca_file {
            Some(file) => {
                let ca = fs::read(file).map_err(|error| refused(format!("{}: {error}", file.display())))?;
                Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert: Some(ca) })
            }
            None => Client::open(info),
        };
        let client = client.map_err(|error| refused(error.to_string()))?;
        let (connect_timeout, retry_pause_max) = (options.connect_timeout, options.retry_pause_max);
        Ok(Self { client, server, connect_timeout, retry_pause_max, entropy })
    }

    /// One try. Each pipeline then fails when it isn't answered in that time.
    pub(super) async fn dial(&self, response_timeout: Duration) -> Result<MultiplexedConnection, String> {
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(Some(response_timeout));
        match timeout(self.connect_timeout, self.client.get_multiplexed_async_connection_with_config(&config)).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(self.said(&error)),
            Err(_) => Err(format!("Redis at {} did not answer within {:?}", self.server, self.connect_timeout)),
        }
    }

    /// The pause after so many tries that failed: doubled each time and with jitter, so that processes spread.
    pub(super) fn pause(&self, failed: u32) -> Duration {
        let longest = self.retry_pause_max;
        let pause = (longest / 16).saturating_mul(1 << failed.min(4)).min(longest);
        let jitter = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX) / 2;
        pause.saturating_sub(Duration::from_millis(self.entropy.below(jitter.saturating_add(1))))
    }

    /// An error of the library as a sentence. Holds no secret: the library names hosts and Redis's own words.
    pub(super) fn said(&self, error: &RedisError) -> String {
        format!("Redis at {}: {error}", self.server)
    }
}

/// Sends a pipeline. What Redis refuses of it stands in its place as [`Value::ServerError`].
pub(super) async fn send(connection: &mut MultiplexedConnection, pipe: &Pipeline) -> Result<Vec<Value>, RedisError> {
    connection.send_packed_commands(pipe, 0, pipe.len()).await
}

/// What Redis refused, and whether another connection is to be tried: it is starting, or follows another server now.
pub(super) fn refusal(value: &Value) -> Option<(RedisError, bool)> {
    let Value::ServerError(error) = value else { return None };
    let error = RedisError::from(error.clone());
    let elsewhere = matches!(
        error.kind(),
        ErrorKind::Server(ServerErrorKind::BusyLoading | ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown)
    ) || error.code() == Some("NOAUTH");
    Some((error, elsewhere))
}

/// Which part of the bus speaks to Redis.
#[derive(Debug, Clone, Copy)]
pub(super) enum Speaker {
    Flusher = 0,
    Beats = 1,
}

/// Why nothing can be carried, as far as is known.
#[derive(Default)]
pub(super) struct Status {
    reasons: Mutex<[Option<String>; 2]>,
    down: AtomicBool,
}

impl Status {
    /// True if it was well before.
    pub(super) fn fails(&self, speaker: Speaker, reason: &str) -> bool {
        let mut reasons = lock(&self.reasons);
        let first = reasons.iter().all(Option::is_none);
        reasons[speaker as usize] = Some(reason.to_owned());
        self.down.store(true, Ordering::Release);
        first
    }

    pub(super) fn works(&self, speaker: Speaker) {
        if self.down.load(Ordering::Acquire) {
            let mut reasons = lock(&self.reasons);
            reasons[speaker as usize] = None;
            self.down.store(reasons.iter().any(Option::is_some), Ordering::Release);
        }
    }

    pub(super) fn trouble(&self) -> Option<String> {
        if !self.down.load(Ordering::Acquire) {
            return None;
        }
        lock(&self.reasons).iter().flatten().next().cloned()
    }

    pub(super) fn usable(&self) -> Result<(), Failure> {
        self.trouble().map_or(Ok(()), |reason| Err(away(&reason)))
    }
}

/// The failure of what was not sent.
pub(super) fn away(reason: &str) -> Failure {
    Failure::new(Code::System, format!("the bus is not there, nothing was sent: {reason}; try again"))
}

/// Says something at most once a second, however often there is reason to.
#[derive(Default)]
pub(super) struct Seldom(Mutex<Option<tokio::time::Instant>>);

impl Seldom {
    pub(super) fn now(&self) -> bool {
        let now = tokio::time::Instant::now();
        let mut last = lock(&self.0);
        let may = last.is_none_or(|last| now.duration_since(last) >= Duration::from_secs(1));
        if may {
            *last = Some(now);
        }
        may
    }
}

/// Shared by all parts that make connections.
pub(super) type SharedDialer = Arc<Dialer>;
