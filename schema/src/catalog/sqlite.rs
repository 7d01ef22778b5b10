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

use async_trait::async_trait;
use idl::ids::{AccountId, AppId};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use subtle::ConstantTimeEq as _;

use super::{App, Catalog};
use crate::sorted::StoreError;

/// The numbered migrations; the number of a migration is its place, from 1. Never changed once released, only added to.
const MIGRATIONS: &[&str] = &[include_str!("../../sql/0001_apps_and_revocations.sql")];

/// How long a statement waits for another process that has the file locked, such as a tool of the operator's.
const BUSY: Duration = Duration::from_secs(5);

const APP: &str =
    "SELECT id, package, app_key, secret_sha256, agreement_secret, broadcast_key, signing_seed, created_at_ms FROM app";

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

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)
}

/// Applies the migrations that the file lacks, each in a transaction together with the number it brings the file to.
fn migrate(connection: &mut Connection, migrations: &[&str]) -> Result<(), StoreError> {
    loop {
        // Exclusive from its first read on: two processes that start at once don't migrate twice.
        let transaction =
            connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(failed)?;
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

#[async_trait]
impl Catalog for SqliteCatalog {
    async fn create_app(&self, app: App) -> Result<bool, StoreError> {
        let insert = "INSERT INTO app (id, package, app_key, secret_sha256, agreement_secret, broadcast_key, \
                      signing_seed, created_at_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (id) DO NOTHING";
        self.write(move |connection| {
            let values = params![
                app.app.as_str(),
                app.package,
                app.app_key,
                app.secret_sha256,
                app.agreement_secret,
                app.broadcast_key,
                app.signing_seed,
                to_ms(app.created_at_ms)
            ];
            connection.execute(insert, values).map(|rows| rows == 1).map_err(failed)
        })
        .await
    }

    async fn app(&self, id: &AppId) -> Result<Option<App>, StoreError> {
        self.read(|connection| one(connection, &format!("{APP} WHERE id = ?1"), params![id.as_str()]))
    }

    async fn app_by_secret(&self, sha256: &[u8; 32]) -> Result<Option<App>, StoreError> {
        let app =
            self.read(|connection| one(connection, &format!("{APP} WHERE secret_sha256 = ?1"), params![sha256]))?;
        Ok(app.filter(|app| bool::from(app.secret_sha256.ct_eq(sha256))))
    }

    async fn apps(&self) -> Result<Vec<App>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(&format!("{APP} ORDER BY id")).map_err(failed)?;
            let mut rows = statement.query([]).map_err(failed)?;
            let mut apps = Vec::new();
            while let Some(row) = rows.next().map_err(failed)? {
                apps.push(decode(row)?);
            }
            Ok(apps)
        })
    }

    async fn set_secret(&self, id: &AppId, sha256: [u8; 32]) -> Result<bool, StoreError> {
        let id = id.clone();
        self.write(move |connection| {
            let update = "UPDATE app SET secret_sha256 = ?2 WHERE id = ?1";
            connection.execute(update, params![id.as_str(), sha256]).map(|rows| rows == 1).map_err(failed)
        })
        .await
    }

    async fn revoke_tokens(&self, account: AccountId, issued_before_ms: u64) -> Result<(), StoreError> {
        self.write(move |connection| {
            let upsert = "INSERT INTO token_revocation (account, issued_before_ms) VALUES (?1, ?2) \
                          ON CONFLICT (account) DO UPDATE SET issued_before_ms = excluded.issued_before_ms \
                          WHERE excluded.issued_before_ms > token_revocation.issued_before_ms";
            connection.execute(upsert, params![account.to_bytes(), to_ms(issued_before_ms)]).map_err(failed)?;
            Ok(())
        })
        .await
    }

    async fn revocations(&self, since_ms: u64) -> Result<Vec<(AccountId, u64)>, StoreError> {
        self.read(|connection| {
            let select = "SELECT account, issued_before_ms FROM token_revocation WHERE issued_before_ms >= ?1 \
                          ORDER BY issued_before_ms, account";
            let mut statement = connection.prepare_cached(select).map_err(failed)?;
            let rows = statement.query_map(params![to_ms(since_ms)], |row| {
                Ok((AccountId(u128::from_be_bytes(row.get(0)?)), row.get::<_, i64>(1)?))
            });
            let rows = rows.map_err(failed)?.map(|row| row.map(|(account, ms)| (account, from_ms(ms))).map_err(failed));
            rows.collect()
        })
    }
}

fn one(connection: &Connection, select: &str, values: impl rusqlite::Params) -> Result<Option<App>, StoreError> {
    let mut statement = connection.prepare_cached(select).map_err(failed)?;
    // The row's own damage is told apart from SQLite's: the inner result is the decoding's.
    statement.query_row(values, |row| Ok(decode(row))).optional().map_err(failed)?.transpose()
}

fn decode(row: &Row<'_>) -> Result<App, StoreError> {
    let id: String = row.get(0).map_err(failed)?;
    Ok(App {
        app: id.parse().map_err(|error| StoreError::Corrupt(format!("table app: {error}")))?,
        package: row.get(1).map_err(failed)?,
        app_key: row.get(2).map_err(failed)?,
        secret_sha256: row.get(3).map_err(failed)?,
        agreement_secret: row.get(4).map_err(failed)?,
        broadcast_key: row.get(5).map_err(failed)?,
        signing_seed: row.get(6).map_err(failed)?,
        created_at_ms: from_ms(row.get(7).map_err(failed)?),
    })
}

/// SQLite's numbers are signed: moments after the year 292 million are that year.
fn to_ms(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

fn from_ms(ms: i64) -> u64 {
    u64::try_from(ms).unwrap_or(0)
}

/// Every statement here runs in a transaction of its own, which SQLite rolls back when it fails.
fn failed(error: rusqlite::Error) -> StoreError {
    use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType};
    match error {
        FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..) => {
            StoreError::Corrupt(format!("the catalog: {error}"))
        }
        error => StoreError::Unavailable(format!("the catalog: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

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
        assert_eq!(version(&connection), 1);
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
