//! What the catalog on MySQL does when its server, or the way to it, fails: against a real MariaDB.

#![expect(clippy::unwrap_used, reason = "in a test a failure is a panic; clippy knows tests by their attribute alone")]

// As the other crates of the workspace name it.
extern crate campanile_schema as schema;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use idl::ids::{AccountId, AppId};
use mysql_async::Conn;
use mysql_async::prelude::Queryable as _;
use schema::catalog::mysql::{MysqlCatalog, MysqlOptions};
use schema::catalog::{Revocations as _, Segment, Segments as _, Stored};
use schema::sorted::StoreError;
use servers::MariaDb;
use tokio::time::{Instant, timeout};

mod crowd;
mod migrating;
mod outages;
mod ways_in;

/// Nothing here takes so long.
const LONG: Duration = Duration::from_mins(1);
/// What a call may take beyond its time on a machine that is busy with other tests.
const SLACK: Duration = Duration::from_secs(5);

/// Options for an empty database of the server that the tests share.
fn fresh() -> Option<MysqlOptions> {
    static DATABASES: AtomicU32 = AtomicU32::new(0);
    let name = format!("faults_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
    servers::mariadb().map(|server| MysqlOptions { url: server.url(&name), ..patient() })
}

/// A server that a test may kill.
fn server_of_ones_own(arguments: &[String]) -> Option<MariaDb> {
    // Says aloud that it is missing, or panics where all tests are demanded.
    servers::mariadb()?;
    Some(MariaDb::start_with(arguments.to_vec()).unwrap())
}

/// For what has to succeed, however busy the machine is.
fn patient() -> MysqlOptions {
    MysqlOptions { connect_timeout: LONG, statement_timeout: LONG, call_timeout: LONG, ..MysqlOptions::default() }
}

/// For what has to fail soon.
fn impatient(options: MysqlOptions) -> MysqlOptions {
    MysqlOptions {
        connect_timeout: Duration::from_secs(2),
        statement_timeout: Duration::from_secs(2),
        call_timeout: Duration::from_secs(4),
        ..options
    }
}

async fn made(options: MysqlOptions) -> MysqlCatalog {
    MysqlCatalog::migrate(&MysqlOptions { url: options.url.clone(), ca_file: options.ca_file.clone(), ..patient() })
        .await
        .unwrap();
    MysqlCatalog::open(options).await.unwrap()
}

/// Why it was not opened.
async fn refusal(options: MysqlOptions) -> String {
    let Err(error) = MysqlCatalog::open(options).await else { panic!("it was opened") };
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    error.to_string()
}

/// A connection past the catalog.
async fn beside(url: &str) -> Conn {
    Conn::from_url(format!("{url}?prefer_socket=false")).await.unwrap()
}

fn app() -> AppId {
    "com.example.app".parse().unwrap()
}

fn segment(name: &str) -> Segment {
    Segment { app: app(), name: name.into(), expression: "all".into(), changed_at_ms: 1 }
}

/// Polls until it holds.
async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let poll = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LONG, poll).await.unwrap_or_else(|_| panic!("{what} did not come true"));
}
