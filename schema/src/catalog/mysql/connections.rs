//! How connections are made: what the URL says, TLS, limits, and what each is told first.

use std::fs;
use std::time::Duration;

use mysql_async::{Opts, OptsBuilder, PoolConstraints, PoolOpts, SslOpts};

use super::MysqlOptions;
use crate::sorted::StoreError;

/// A connection that nobody used for so long is closed.
const IDLE: Duration = Duration::from_mins(1);
/// The server closes one that is silent for so long, with the transaction in it: its process is gone without a word, and
/// others wait for its locks.
const SILENT_SECONDS: u64 = 90;
/// After so long without a word the other end is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// More than the catalog has statements, so that each is prepared once a connection.
const PREPARED_MAX: usize = 64;

/// Settings for the connections of a catalog.
pub(super) fn settings(options: &MysqlOptions) -> Result<Opts, StoreError> {
    let seconds = options.statement_timeout.as_millis().div_ceil(1000).max(1);
    let milliseconds = options.statement_timeout.as_millis().max(1);
    // MariaDB and MySQL each read their own comment and pass over the other's. MySQL ends queries only; changes are bounded by
    // their locks there, and by our own patience.
    let limits = format!(
        ", SESSION wait_timeout = {SILENT_SECONDS}, SESSION innodb_lock_wait_timeout = {seconds}, SESSION \
         lock_wait_timeout = {seconds} /*M!100101 , SESSION max_statement_time = {}.{:03} */ \
         /*!50708 , SESSION max_execution_time = {milliseconds} */",
        milliseconds / 1000,
        milliseconds % 1000
    );
    with_limits(options, &limits)
}

/// Settings for the connection that migrates: a statement may take long there.
pub(super) fn settings_for_migrating(options: &MysqlOptions, lock: Duration) -> Result<Opts, StoreError> {
    with_limits(options, &format!(", SESSION lock_wait_timeout = {}", lock.as_secs()))
}

fn with_limits(options: &MysqlOptions, limits: &str) -> Result<Opts, StoreError> {
    let refused = |why: String| {
        StoreError::Unavailable(format!(
            "the URL of the catalog, {}, is not like mysql://user:password@host:port/database: {why}",
            without_password(&options.url)
        ))
    };
    let url = Opts::from_url(&options.url).map_err(|error| refused(error.to_string()))?;
    if url.db_name().is_none_or(str::is_empty) {
        return Err(refused("it names no database".into()));
    }
    let mut tls = url.ssl_opts().cloned();
    if let Some(file) = &options.ca_file {
        // Here, because the error of the connection would not name it.
        if let Err(error) = fs::File::open(file) {
            return Err(StoreError::Unavailable(format!("the certificates {} can't be read: {error}", file.display())));
        }
        let private: SslOpts = tls.unwrap_or_default();
        tls = Some(private.with_root_certs(vec![file.clone().into()]).with_disable_built_in_roots(true));
    }
    let connections_max = options.connections_max.max(1);
    let constraints = PoolConstraints::new(0, connections_max).ok_or_else(|| refused("no connections".into()))?;
    let pool = PoolOpts::default()
        .with_constraints(constraints)
        .with_inactive_connection_ttl(IDLE)
        .with_ttl_check_interval(IDLE / 2)
        // Nothing of what a call does lasts in the session, and open transactions are rolled back without it.
        .with_reset_connection(false);
    // Texts are bytes, and what doesn't fit is refused instead of cut off.
    let told = format!(
        "SET NAMES binary, SESSION autocommit = 1, SESSION sql_mode = \
         'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'{limits}"
    );
    Ok(OptsBuilder::from_opts(url)
        .ssl_opts(tls)
        .pool_opts(pool)
        // Where the URL points, and nowhere else.
        .prefer_socket(false)
        .client_found_rows(true)
        .tcp_keepalive(Some(KEEPALIVE))
        .stmt_cache_size(PREPARED_MAX)
        .init(vec![told, "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED".into()])
        .into())
}

/// The URL with three stars for its password.
pub(super) fn without_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    // A password may hold anything, written as it must not be, so it ends with the last sign that can end it.
    let Some((credentials, place)) = rest.rsplit_once('@') else { return url.to_owned() };
    match (scheme, credentials.split_once(':')) {
        ("", _) => format!("***@{place}"),
        (scheme, Some((user, _))) => format!("{scheme}://{user}:***@{place}"),
        (scheme, None) => format!("{scheme}://{credentials}@{place}"),
    }
}
