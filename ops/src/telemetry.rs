//! What can be seen from outside: logs, `/live`, `/ready` and `/metrics`.

pub mod figures;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result, anyhow};
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse as _;
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};
use crate::lifecycle::Health;

/// Sends logs to stderr. A level that can't be understood is an error that says what would be right.
pub fn install_logs(log: &Log) -> Result<()> {
    let filter = filter(&log.level)?;
    // A line that can't be written, for example on a full disk, is lost. By default this would be told on stderr too, which
    // panics where stderr is what can't be written: in a task, or worse in the thread that commits.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).log_internal_errors(false);
    let installed = match log.format {
        LogFormat::Human => builder.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    installed.map_err(|error| anyhow!("logs can't be installed: {error}"))
}

/// Puts panics into the log, with their place. A panic is a fault of ours; where one connection has it, the others go on.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let what = panic.payload_as_str().unwrap_or("a panic without words");
        tracing::error!(%place, "a task panicked: {what}");
    }));
}

/// Reads `log.level`.
pub fn filter(level: &str) -> Result<EnvFilter> {
    EnvFilter::try_new(level).with_context(|| {
        format!("log.level is {level:?}; it must be error, warn, info, debug, trace or a list such as info,rustls=warn")
    })
}

/// A registry with what the process itself has to tell.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.register(
        "campanile_build",
        "What is running",
        Info::new([("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]),
    );
    registry.register_collector(Box::new(Process));
    registry
}

/// The process as the system sees it (Linux); elsewhere it tells nothing.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let resident_kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse::<i64>().ok());
        let files = std::fs::read_dir("/proc/self/fd").ok().and_then(|entries| i64::try_from(entries.count()).ok());
        let gauges = [
            ("process_resident_memory_bytes", "Resident memory", resident_kib.map(|kib| kib * 1024)),
            ("process_open_fds", "Open files and sockets", files),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                let gauge = ConstGauge::new(value);
                gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
            }
        }
        Ok(())
    }
}

/// The operator's listener, bound.
pub struct BoundTelemetry {
    listener: TcpListener,
    router: Router,
}

/// What the page of metrics is made of: nothing until the parts of the process are built.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<OnceLock<Registry>>);

impl Metrics {
    /// From now on these are on the page.
    pub fn publish(&self, registry: Registry) {
        // Once in the life of a process.
        let _ = self.0.set(registry);
    }
}

/// Binds the operator's listener.
pub async fn bind(address: SocketAddr, metrics: Metrics, health: Health) -> Result<BoundTelemetry> {
    let listener = TcpListener::bind(address).await.map_err(|error| {
        anyhow!("listening on {address}: {error}; set telemetry.listen to another address, or to \"\" for none")
    })?;
    Ok(BoundTelemetry { listener, router: router(metrics, health) })
}

impl BoundTelemetry {
    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `drain` is cancelled.
    pub async fn serve(self, drain: CancellationToken) {
        // A scraper may hold its connection open for ever; it is not worth waiting for.
        tokio::select! {
            () = drain.cancelled() => {}
            result = axum::serve(self.listener, self.router).into_future() => {
                if let Err(error) = result {
                    tracing::error!(%error, "telemetry ended");
                }
            }
        }
    }
}

fn router(metrics: Metrics, health: Health) -> Router {
    let metrics = move || async move {
        let Some(registry) = metrics.0.get() else {
            return (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response();
        };
        let mut page = String::new();
        match prometheus_client::encoding::text::encode(&mut page, registry) {
            Ok(()) => {
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                ([(header::CONTENT_TYPE, kind)], page).into_response()
            }
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
    };
    let ready = move || async move {
        match health.not_ready_because() {
            None => (StatusCode::OK, "ready\n".to_owned()),
            Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        }
    };
    Router::new().route("/live", get(|| async { "live\n" })).route("/ready", get(ready)).route("/metrics", get(metrics))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_can_not_be_understood_says_what_would_be_right() {
        assert!(filter("info,campanile_xmpp_frontend=debug").is_ok());
        let error = format!("{:#}", filter("info,=,x=loud").expect_err("not a level"));
        assert!(error.contains("it must be error, warn, info"), "{error}");
    }

    #[test]
    fn the_process_tells_its_memory() {
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry()).expect("encodes");
        assert!(page.contains("process_resident_memory_bytes"), "{page}");
        assert!(page.contains("campanile_build_info{version="), "{page}");
    }
}
