//! The catalog on MySQL (8.0.16 or newer) or MariaDB (10.11 or newer), for more processes than one.
//!
//! - **A change is a transaction**, also one of a single statement. So whatever goes wrong before its `COMMIT` is sent did not
//!   happen, and is tried again where another try may help: a lost connection, a deadlock, a lock that others hold. A
//!   `COMMIT` that was not answered may have happened: that is [`StoreError::TimedOut`], and is never repeated here.
//! - **What counts rows locks first**: a row of `app_lock` for each application, which whoever adds something that is counted
//!   holds to the end of the transaction. So transactions are `READ COMMITTED`: a count sees all that was committed before
//!   the lock was had, and no statement locks gaps between rows that others want to fill.
//! - **Texts are bytes**: all columns are `VARBINARY` or blobs and the connection has no character set, so they are compared
//!   byte by byte, without padding, on every server alike.
//! - **Rows found are counted**, not rows changed (`CLIENT_FOUND_ROWS`): to set what is set is a success.
//! - **Everything ends**: the wait for a connection, a statement (at the server and here) and a call with all its tries.
//!
//! The server must keep what it committed: `innodb_flush_log_at_trx_commit = 1`, which is its default; another value is
//! warned of.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use idl::ids::{AppId, MessageId};
use mysql_async::prelude::FromValue;
use mysql_async::{Pool, Row, Value};
use tokio::time::Instant;
use tracing::warn;

use super::{MIGRATIONS, Stored};
use crate::sorted::StoreError;

mod apps;
mod connections;
mod health;
mod migrations;
mod revocations;
mod schedules;
mod segments;
mod templates;
mod tries;

use health::Health;
pub use health::{MysqlMetrics, MysqlState};
pub use migrations::Migrated;
use tries::{Failure, Work};

/// Where the database is and what it may cost.
#[derive(Clone)]
pub struct MysqlOptions {
    /// `mysql://user:password@host:port/database`; with `?require_ssl=true` only over TLS, checked against the usual roots.
    /// What else the URL says of pools is ignored in favour of what is here.
    pub url: String,
    /// Certificates (PEM) that sign the server's, in the place of the usual roots: the connection is then made over TLS only.
    pub ca_file: Option<PathBuf>,
    /// Most connections of this process.
    pub connections_max: usize,
    /// Longest wait for a connection, whether for a free or a new one.
    pub connect_timeout: Duration,
    /// Longest time of one statement. The server is told to end it then, and to wait no longer for a lock; where it doesn't,
    /// the connection is given up a little later.
    pub statement_timeout: Duration,
    /// Longest time of one call, with all its statements and tries.
    pub call_timeout: Duration,
}

impl Default for MysqlOptions {
    fn default() -> Self {
        Self {
            url: "mysql://campanile@127.0.0.1:3306/campanile".into(),
            ca_file: None,
            connections_max: 16,
            connect_timeout: Duration::from_secs(2),
            statement_timeout: Duration::from_secs(3),
            call_timeout: Duration::from_secs(5),
        }
    }
}

impl fmt::Debug for MysqlOptions {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MysqlOptions")
            .field("url", &connections::without_password(&self.url))
            .field("ca_file", &self.ca_file)
            .field("connections_max", &self.connections_max)
            .field("connect_timeout", &self.connect_timeout)
            .field("statement_timeout", &self.statement_timeout)
            .field("call_timeout", &self.call_timeout)
            .finish()
    }
}

/// The catalog in a database of MySQL or MariaDB.
pub struct MysqlCatalog {
    pool: Pool,
    options: MysqlOptions,
    health: Health,
}

impl MysqlCatalog {
    /// Connects to a database whose schema is the one that this build knows: an older one is refused with the way out,
    /// [`Self::migrate`], and so is a newer one. Nothing is changed.
    pub async fn open(options: MysqlOptions) -> Result<Self, StoreError> {
        let settings = connections::settings(&options)?;
        let catalog = Self { pool: Pool::new(settings), options, health: Health::default() };
        catalog.check_schema().await?;
        let flush = "SELECT @@innodb_flush_log_at_trx_commit";
        let flush = catalog.one("variables", flush, Vec::new(), |row| row.take::<i64>(0)).await?;
        if flush != Some(1) {
            warn!("the server may lose what it committed: innodb_flush_log_at_trx_commit is not 1");
        }
        Ok(catalog)
    }

    /// Brings the schema of a database up to date, or makes it in an empty one. What was begun and cut off is carried on;
    /// of several processes at once one does it and the others find it done. A newer schema than this build knows is
    /// refused and left as it is.
    pub async fn migrate(options: &MysqlOptions) -> Result<Migrated, StoreError> {
        migrations::migrate(options, MIGRATIONS).await
    }

    /// Asks the server something small: it can be reached, lets us in and answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.one("ping", "SELECT 1", Vec::new(), |row| row.take::<i64>(0)).await.map(drop)
    }

    /// How the last calls went; asks nobody.
    pub fn state(&self) -> MysqlState {
        self.health.state()
    }

    /// What was done since it was opened, and how many connections there are.
    pub fn metrics(&self) -> MysqlMetrics {
        self.health.metrics(&self.pool)
    }

    async fn check_schema(&self) -> Result<(), StoreError> {
        let at = match self.read(migrations::STATE, Vec::new()).await {
            Ok(rows) => rows.into_iter().next(),
            Err(Failure::NoTable(_)) => None,
            Err(failure) => return Err(failure.told()),
        };
        let mut at = at.map(|row| Found { row, table: "schema_version" });
        let at = at.as_mut().map(|row| Ok((row.take(0)?, row.take(1)?))).transpose()?;
        migrations::judge(at, MIGRATIONS.len())
    }

    /// The row that a query finds, if there is one.
    async fn one<T>(
        &self,
        table: &'static str,
        select: &str,
        values: Vec<Value>,
        decode: Decode<T>,
    ) -> Result<Option<T>, StoreError> {
        Ok(self.all(table, select, values, decode).await?.into_iter().next())
    }

    /// All rows that a query finds, in its order.
    async fn all<T>(
        &self,
        table: &'static str,
        select: &str,
        values: Vec<Value>,
        decode: Decode<T>,
    ) -> Result<Vec<T>, StoreError> {
        let rows = self.read(select, values).await.map_err(Failure::told)?;
        rows.into_iter().map(|row| decode(&mut Found { row, table })).collect()
    }

    /// How many rows a statement found that it is to change, in a transaction of its own.
    async fn change_rows(&self, statement: &'static str, values: Vec<Value>) -> Result<u64, StoreError> {
        self.change(&Statement { statement, values }).await
    }
}

type Decode<T> = fn(&mut Found) -> Result<T, StoreError>;

/// A row that was found.
struct Found {
    row: Row,
    table: &'static str,
}

impl Found {
    /// What a column holds, once. Its value is in no error, for it may be a secret.
    fn take<T: FromValue>(&mut self, column: usize) -> Result<T, StoreError> {
        self.row.take_opt(column).and_then(Result::ok).ok_or_else(|| self.damaged(format!("column {column}")))
    }

    fn number(&mut self, column: usize) -> Result<u64, StoreError> {
        self.take(column).map(from_number)
    }

    fn app_id(&mut self, column: usize) -> Result<AppId, StoreError> {
        let id: String = self.take(column)?;
        id.parse().map_err(|error| self.damaged(error))
    }

    fn id(&mut self, column: usize) -> Result<u128, StoreError> {
        self.take(column).map(u128::from_be_bytes)
    }

    fn message(&mut self, column: usize) -> Result<Option<MessageId>, StoreError> {
        let bytes: Option<[u8; 16]> = self.take(column)?;
        Ok(bytes.map(|bytes| MessageId(u128::from_be_bytes(bytes))))
    }

    fn damaged(&self, reason: impl fmt::Display) -> StoreError {
        StoreError::Corrupt(format!("table {}: {reason}", self.table))
    }
}

/// Something that is changed as a whole. It may be made several times, each in a transaction of its own of which the last
/// alone lasts.
#[async_trait]
trait Change: Sync {
    type Answer: Send;

    async fn make(&self, work: &mut Work<'_>) -> Result<Self::Answer, Failure>;
}

/// A change of one statement.
struct Statement {
    statement: &'static str,
    values: Vec<Value>,
}

#[async_trait]
impl Change for Statement {
    type Answer = u64;

    async fn make(&self, work: &mut Work<'_>) -> Result<u64, Failure> {
        work.run(self.statement, self.values.clone()).await
    }
}

/// Stores a row in a table whose key is an application and a name.
struct Put<'a> {
    table: &'static str,
    app: &'a AppId,
    name: &'a str,
    max: usize,
    insert: &'static str,
    update: &'static str,
    /// Of both statements: what is stored, then application and name.
    values: Vec<Value>,
}

#[async_trait]
impl Change for Put<'_> {
    type Answer = Stored;

    async fn make(&self, work: &mut Work<'_>) -> Result<Stored, Failure> {
        work.lock(self.app).await?;
        let select = format!("SELECT count(*), coalesce(max(name = ?), 0) FROM {} WHERE app = ?", self.table);
        let values = vec![self.name.into(), self.app.as_str().into()];
        let counts = work.find(self.table, &select, values, |row| Ok((row.take(0)?, row.take(1)?))).await?;
        let (rows, is_there): (i64, i64) = counts.first().copied().unwrap_or_default();
        if is_there != 0 {
            work.run(self.update, self.values.clone()).await?;
            return Ok(Stored::Replaced);
        }
        if rows >= to_count(self.max) {
            return Ok(Stored::Full);
        }
        work.run(self.insert, self.values.clone()).await?;
        Ok(Stored::New)
    }
}

/// The columns' numbers are signed: what is larger is stored as the largest, which is the year 292 million for a moment.
fn to_number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn to_count(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn from_number(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// The earlier of a deadline and what is left from now on.
fn at_most(left: Duration, deadline: Instant) -> Instant {
    (Instant::now() + left).min(deadline)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_holds_no_password() {
        for (url, shown) in [
            ("mysql://user:pass@host:1/db", "mysql://user:***@host:1/db"),
            ("mysql://user:p@ss/word@host/db?require_ssl=true", "mysql://user:***@host/db?require_ssl=true"),
            ("mysql://user@host/db", "mysql://user@host/db"),
            ("mysql://host/db", "mysql://host/db"),
            ("user:pass@host", "***@host"),
        ] {
            let options = MysqlOptions { url: url.into(), ..MysqlOptions::default() };
            let text = format!("{options:?}");
            assert!(text.contains(&format!("{shown:?}")), "{text}");
        }
    }

    #[tokio::test]
    async fn a_url_that_is_none_is_refused_without_its_password() {
        for url in [
            "user:secret@host",
            "http://user:secret@host/db",
            "mysql://user:secret@host",
            "mysql://user:secret@h/d?x=y",
        ] {
            let options = MysqlOptions { url: url.into(), ..MysqlOptions::default() };
            let Err(error) = MysqlCatalog::open(options).await else { panic!("{url}") };
            let text = error.to_string();
            assert!(text.contains("mysql://user:password@host:port/database") && !text.contains("secret"), "{text}");
        }
    }

    #[tokio::test]
    async fn a_ca_file_that_is_not_there_is_named() {
        let options = MysqlOptions { ca_file: Some("/nowhere/ca.pem".into()), ..MysqlOptions::default() };
        let Err(error) = MysqlCatalog::open(options).await else { panic!("opened") };
        assert!(error.to_string().contains("/nowhere/ca.pem"), "{error}");
    }
}
