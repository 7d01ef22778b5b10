//! The catalog on SQLite: one file, nothing to install.
//!
//! Write-ahead log with `synchronous = FULL`, so what was answered `Ok` is on disk. Two connections: one writes, on a
//! blocking thread because it waits for the disk; one reads, on the caller's thread, because a look-up in a file this small
//! is a few microseconds and the write-ahead log lets it go on during a write. In memory both are one connection, and
//! everything happens on the caller's thread, so that a simulation stays in one.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use idl::ids::AppId;
use rusqlite::{Connection, OptionalExtension as _, Params, Row, TransactionBehavior, params};

use super::{MIGRATIONS, Stored};
use crate::sorted::StoreError;

mod apps;
mod revocations;
mod schedules;
mod segments;
mod templates;

/// How long a statement waits for another process that has the file locked, such as a tool of the operator's.
const BUSY: Duration = Duration::from_secs(5);

/// The catalog in a SQLite file, or in memory.
pub struct SqliteCatalog {
    reader: Arc<Mutex<Connection>>,
    writer: Arc<Mutex<Connection>>,
    in_memory: bool,
}

impl SqliteCatalog {
    /// Opens the file, makes it, for this user alone, if it is absent, and brings its schema up to date. A file with a newer schema than this
    /// build knows is refused and left as it is.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let opening = |error: rusqlite::Error| {
            StoreError::Unavailable(format!("the catalog {} can't be opened: {error}", path.display()))
        };
        // The apps' secrets lie here. SQLite gives its other files the mode of this one.
        let made = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
        made.map_err(|error| StoreError::Unavailable(format!("{} can't be opened: {error}", path.display())))?;
        let mut writer = Connection::open(path).map_err(opening)?;
        writer.pragma_update(None, "journal_mode", "WAL").map_err(opening)?;
        prepare(&writer).map_err(opening)?;
        migrate(&mut writer, MIGRATIONS)?;
        let reader = Connection::open(path).map_err(opening)?;
        prepare(&reader).map_err(opening)?;
        reader.pragma_update(None, "query_only", true).map_err(opening)?;
        Ok(Self { reader: Arc::new(Mutex::new(reader)), writer: Arc::new(Mutex::new(writer)), in_memory: false })
    }

    /// An empty catalog that vanishes with the value: for tests and the simulation.
    pub fn in_memory() -> Result<Self, StoreError> {
        let mut connection = Connection::open_in_memory().map_err(failed)?;
        prepare(&connection).map_err(failed)?;
        migrate(&mut connection, MIGRATIONS)?;
        let connection = Arc::new(Mutex::new(connection));
        Ok(Self { reader: connection.clone(), writer: connection, in_memory: true })
    }

    fn read<T>(&self, query: impl FnOnce(&Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        query(&self.reader.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        // A panic inside rolls its transaction back, so the connection is fit for use whatever happened.
        if self.in_memory {
            return change(&mut self.writer.lock().unwrap_or_else(PoisonError::into_inner));
        }
        let writer = self.writer.clone();
        tokio::task::spawn_blocking(move || change(&mut writer.lock().unwrap_or_else(PoisonError::into_inner)))
            .await
            .map_err(|_| StoreError::TimedOut)?
    }
}

impl Default for SqliteCatalog {
    /// As [`SqliteCatalog::in_memory`], which fails only where there is no memory left.
    fn default() -> Self {
        Self::in_memory().expect("SQLite makes an empty database in memory")
    }
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)
}

/// Applies the migrations that the file lacks, each in a transaction together with the number it brings the file to.
fn migrate(connection: &mut Connection, migrations: &[&str]) -> Result<(), StoreError> {
    loop {
        // Exclusive from its first read on: two processes that start at once don't migrate twice.
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        let version: u32 = transaction.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
        let applied = version as usize;
        if applied > migrations.len() {
            return Err(StoreError::Unavailable(format!(
                "the catalog's schema is number {version} and this build knows {} at most: run a newer build",
                migrations.len()
            )));
        }
        let Some(migration) = migrations.get(applied) else { return Ok(()) };
        transaction.execute_batch(migration).map_err(failed)?;
        transaction.pragma_update(None, "user_version", version + 1).map_err(failed)?;
        transaction.commit().map_err(failed)?;
    }
}

/// Makes a change of several statements as a whole. The lock is taken before the first read, so what was read still holds
/// when the rest is written, whichever processes have the file open.
fn as_a_whole<T>(
    connection: &mut Connection,
    change: impl FnOnce(&Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    let answer = change(&transaction)?;
    transaction.commit().map_err(failed)?;
    Ok(answer)
}

type Decode<T> = fn(&Row<'_>) -> Result<T, StoreError>;

/// The row that a query finds, if there is one.
fn one<T>(
    connection: &Connection,
    select: &str,
    values: impl Params,
    decode: Decode<T>,
) -> Result<Option<T>, StoreError> {
    let mut statement = connection.prepare_cached(select).map_err(failed)?;
    // The row's own damage is told apart from SQLite's: the inner result is the decoding's.
    statement.query_row(values, |row| Ok(decode(row))).optional().map_err(failed)?.transpose()
}

/// All rows that a query finds, in its order.
fn all<T>(connection: &Connection, select: &str, values: impl Params, decode: Decode<T>) -> Result<Vec<T>, StoreError> {
    let mut statement = connection.prepare_cached(select).map_err(failed)?;
    let mut rows = statement.query(values).map_err(failed)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().map_err(failed)? {
        found.push(decode(row)?);
    }
    Ok(found)
}

/// How many rows a statement changed; one that sets what was set counts.
fn change(connection: &Connection, statement: &str, values: impl Params) -> Result<usize, StoreError> {
    connection.prepare_cached(statement).and_then(|mut statement| statement.execute(values)).map_err(failed)
}

/// What comes of storing a row under this name in a table whose key is an application and a name.
fn place(connection: &Connection, table: &str, app: &str, name: &str, max: usize) -> Result<Stored, StoreError> {
    let select = format!("SELECT count(*), coalesce(max(name = ?2), 0) FROM {table} WHERE app = ?1");
    let mut statement = connection.prepare_cached(&select).map_err(failed)?;
    let row = statement.query_row(params![app, name], |row| Ok((row.get(0)?, row.get(1)?)));
    let (rows, is_there): (i64, bool) = row.map_err(failed)?;
    Ok(if is_there {
        Stored::Replaced
    } else if rows >= to_count(max) {
        Stored::Full
    } else {
        Stored::New
    })
}

fn decode_app_id(row: &Row<'_>, column: usize, table: &str) -> Result<AppId, StoreError> {
    let id: String = row.get(column).map_err(failed)?;
    id.parse().map_err(|error| StoreError::Corrupt(format!("table {table}: {error}")))
}

/// SQLite's numbers are signed: what is larger is stored as the largest, which is the year 292 million for a moment.
fn to_number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn to_count(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn from_number(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// Every change here is a transaction, which SQLite rolls back when a statement of it fails.
fn failed(error: rusqlite::Error) -> StoreError {
    use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, Utf8Error};
    match error {
        FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..) | Utf8Error(..) => {
            StoreError::Corrupt(format!("the catalog: {error}"))
        }
        error => StoreError::Unavailable(format!("the catalog: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use idl::ids::AccountId;

    use super::*;
    use crate::catalog::{App, Apps as _, Revocations as _};

    fn version(connection: &Connection) -> i64 {
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
    }

    #[test]
    fn a_file_that_is_up_to_date_is_left_as_it_is() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, MIGRATIONS).unwrap();
        connection
            .execute("INSERT INTO token_revocation (account, issued_before_ms) VALUES (?1, 1)", params![[7u8; 16]])
            .unwrap();
        migrate(&mut connection, MIGRATIONS).unwrap();
        assert_eq!(version(&connection), 2);
        let rows: i64 = connection.query_row("SELECT count(*) FROM token_revocation", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 1);
    }

    #[test]
    fn a_newer_schema_is_refused_with_the_way_out() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.pragma_update(None, "user_version", 99).unwrap();
        let error = migrate(&mut connection, MIGRATIONS).unwrap_err();
        assert!(error.to_string().contains("run a newer build"), "{error}");
        assert_eq!(version(&connection), 99);
    }

    #[test]
    fn a_migration_that_fails_leaves_the_file_at_the_one_before() {
        let mut connection = Connection::open_in_memory().unwrap();
        let broken = ["CREATE TABLE a (b);", "CREATE TABLE c (d); CREATE TABLE a (b);"];
        assert!(migrate(&mut connection, &broken).is_err());
        assert_eq!(version(&connection), 1);
        let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).unwrap();
        assert_eq!(tables, 1, "the first statement of the failed one is undone");
    }

    #[tokio::test]
    async fn a_file_of_the_first_schema_keeps_its_apps_and_each_gets_a_webhook_secret_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("catalog.sqlite");
        let mut first = Connection::open(&path).unwrap();
        migrate(&mut first, &MIGRATIONS[..1]).unwrap();
        let insert = "INSERT INTO app (id, package, app_key, secret_sha256, agreement_secret, broadcast_key, \
                      signing_seed, created_at_ms) VALUES (?1, 'package', 'key', ?2, ?3, ?4, ?5, 1000)";
        for (id, secret) in [("b", 2u8), ("a", 1)] {
            first.execute(insert, params![id, [secret; 32], [11u8; 32], [12u8; 32], [13u8; 32]]).unwrap();
        }
        first.execute("INSERT INTO token_revocation VALUES (?1, 5)", params![AccountId(7).to_bytes()]).unwrap();
        drop(first);

        let mut apps = Vec::new();
        // Opened again it isn't migrated again.
        for _ in 0..2 {
            let catalog = SqliteCatalog::open(&path).unwrap();
            assert_eq!(version(&catalog.writer.lock().unwrap()), 2);
            apps = catalog.apps().await.unwrap();
            let kept = |id: &str, secret| App {
                app: id.parse().unwrap(),
                package: "package".into(),
                app_key: "key".into(),
                secret_sha256: [secret; 32],
                agreement_secret: [11; 32],
                broadcast_key: [12; 32],
                signing_seed: [13; 32],
                webhook_secret: apps[usize::from(secret) - 1].webhook_secret,
                sends_per_second_max: 0,
                sends_per_day_max: 0,
                created_at_ms: 1000,
            };
            assert_eq!(apps, [kept("a", 1), kept("b", 2)]);
            assert_eq!(catalog.app_by_secret(&[2; 32]).await.unwrap().as_ref(), apps.last());
            assert_eq!(catalog.revocations(0).await.unwrap(), [(AccountId(7), 5)]);
            // The rule that one secret names one application is kept too.
            assert!(catalog.create_app(App { app: "c".parse().unwrap(), ..apps[0].clone() }).await.is_err());
        }
        assert_ne!(apps[0].webhook_secret, apps[1].webhook_secret);
        assert!(apps.iter().all(|app| app.webhook_secret.iter().any(|byte| *byte != 0)));
    }

    #[test]
    fn a_file_written_by_one_catalog_is_read_by_the_next_with_full_synchrony() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("catalog.sqlite");
        for _ in 0..2 {
            let catalog = SqliteCatalog::open(&path).unwrap();
            let connection = catalog.writer.lock().unwrap();
            let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
            let synchronous: i64 = connection.pragma_query_value(None, "synchronous", |row| row.get(0)).unwrap();
            assert_eq!((mode.as_str(), synchronous), ("wal", 2));
            for file in std::fs::read_dir(folder.path()).unwrap() {
                assert_eq!(file.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
            }
        }
    }
}
