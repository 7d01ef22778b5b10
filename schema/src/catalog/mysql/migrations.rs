//! The schema in MySQL: the same migrations as SQLite's, put into MySQL's words.
//!
//! `schema_version` says how many migrations are whole and how many statements of the next one are done, because MySQL ends
//! a transaction with every statement that changes a table. Where a process died in the middle the next one carries on.
//! The one statement that had begun then may have been done unnoticed, which shows by what the server says to it.

use std::future::Future;
use std::time::Duration;

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Error};
use tokio::time::timeout;

use super::MysqlOptions;
use super::connections::settings_for_migrating;
use super::tries::{Failure, failure};
use crate::sorted::StoreError;

/// How many migrations are whole, and how many statements of the next one are done.
pub(super) const STATE: &str = "SELECT version, step FROM schema_version WHERE number = 1";

const MAKE_STATE: &str = "CREATE TABLE IF NOT EXISTS schema_version (number INT PRIMARY KEY NOT NULL, \
                          version BIGINT NOT NULL, step BIGINT NOT NULL, begun BIGINT NOT NULL) ENGINE = InnoDB";
/// As [`STATE`], and whether one more statement has begun.
const WHOLE_STATE: &str = "SELECT version, step, begun FROM schema_version WHERE number = 1";
const BEGIN: &str = "UPDATE schema_version SET begun = 1 WHERE number = 1";
const REFUSED: &str = "UPDATE schema_version SET begun = 0 WHERE number = 1";
const DONE: &str = "UPDATE schema_version SET step = step + 1, begun = 0 WHERE number = 1";
/// What only this backend has: the rows that its transactions lock.
const MAKE_LOCKS: &str =
    "CREATE TABLE IF NOT EXISTS app_lock (app VARBINARY(255) PRIMARY KEY NOT NULL) ENGINE = InnoDB";
/// How long a process waits for another one that migrates, and for those that use a table.
const LOCK: Duration = Duration::from_mins(1);
/// Longest time of one statement. It goes on at the server if it takes longer.
const STATEMENT: Duration = Duration::from_hours(1);

/// What migrating did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migrated {
    /// How many migrations were whole before; 0 for an empty database.
    pub from: usize,
    /// How many are now.
    pub to: usize,
}

/// Whether a database at this point is one for a build that knows so many migrations.
pub(super) fn judge(at: Option<(i64, i64)>, known: usize) -> Result<(), StoreError> {
    let (version, step) = at.unwrap_or_default();
    match usize::try_from(version) {
        Ok(version) if version == known && step == 0 => Ok(()),
        Ok(version) if version < known => Err(StoreError::Unavailable(format!(
            "the catalog's schema is number {version} and this build needs {known}: run `campanile migrate`"
        ))),
        _ => Err(StoreError::Unavailable(too_new(version, known))),
    }
}

fn too_new(version: i64, known: usize) -> String {
    format!("the catalog's schema is number {version} and this build knows {known} at most: run a newer build")
}

/// Applies the migrations that the database lacks.
pub(super) async fn migrate(options: &MysqlOptions, migrations: &[&str]) -> Result<Migrated, StoreError> {
    let settings = settings_for_migrating(options, LOCK)?;
    let connecting = timeout(options.connect_timeout, Conn::new(settings)).await;
    let connecting = connecting.map_err(|_| Failure::Silent(format!("no answer within {:?}", options.connect_timeout)));
    let mut connection = connecting.and_then(|made| made.map_err(failure)).map_err(Failure::told)?;
    let outcome = migrate_locked(&mut connection, migrations).await;
    // The lock goes with the connection; that it could not be closed in good form is no failure.
    let _ = timeout(options.connect_timeout, connection.disconnect()).await;
    outcome.map_err(Failure::told)
}

async fn migrate_locked(connection: &mut Conn, migrations: &[&str]) -> Result<Migrated, Failure> {
    let lock = format!("SELECT GET_LOCK(concat('campanile.', sha1(database())), {})", LOCK.as_secs());
    if answer(connection.query_first::<Option<i64>, _>(lock)).await?.flatten() != Some(1) {
        let text = format!("another process has been migrating this database for {LOCK:?}: try again when it is done");
        return Err(Failure::Refused(text));
    }
    let (version, mut step, begun) = state(connection).await?;
    let from = usize::try_from(version).ok().filter(|from| *from <= migrations.len());
    let from = from.ok_or_else(|| Failure::Refused(too_new(version, migrations.len())))?;
    answer(connection.query_drop(MAKE_LOCKS)).await?;
    let mut may_be_done = begun != 0;
    for (done, migration) in migrations.iter().enumerate().skip(from) {
        let statements = statements(migration);
        for statement in statements.iter().skip(usize::try_from(step).unwrap_or_default()) {
            apply(connection, statement, may_be_done).await?;
            may_be_done = false;
        }
        let whole = i64::try_from(done + 1).unwrap_or(i64::MAX);
        let update = "UPDATE schema_version SET version = ?, step = 0 WHERE number = 1";
        answer(connection.exec_drop(update, (whole,))).await?;
        step = 0;
    }
    Ok(Migrated { from, to: migrations.len() })
}

/// Where the database is; makes the table that says it in one that is empty.
async fn state(connection: &mut Conn) -> Result<(i64, i64, i64), Failure> {
    match answer(connection.query_first::<(i64, i64, i64), _>(WHOLE_STATE)).await {
        Ok(Some(state)) => return Ok(state),
        Ok(None) => {}
        Err(Failure::NoTable(_)) => {
            // What is there already would be taken for what a migration made.
            let others = "SELECT count(*) FROM information_schema.tables WHERE table_schema = database()";
            if answer(connection.query_first::<i64, _>(others)).await? != Some(0) {
                let text = "the database holds tables of something else: give the catalog a database of its own";
                return Err(Failure::Refused(text.into()));
            }
            answer(connection.query_drop(MAKE_STATE)).await?;
        }
        Err(failure) => return Err(failure),
    }
    let insert = "INSERT INTO schema_version (number, version, step, begun) VALUES (1, 0, 0, 0)";
    answer(connection.query_drop(insert)).await?;
    Ok((0, 0, 0))
}

/// Runs one statement and writes that it is done: as a whole where it changes rows.
async fn apply(connection: &mut Conn, statement: &str, may_be_done: bool) -> Result<(), Failure> {
    answer(connection.query_drop(BEGIN)).await?;
    answer(connection.query_drop("START TRANSACTION")).await?;
    match timeout(STATEMENT, connection.query_drop(statement)).await {
        Ok(Ok(())) => {}
        Ok(Err(Error::Server(error))) if may_be_done && is_done(statement, error.code) => {}
        Ok(Err(error)) => {
            if matches!(error, Error::Server(_)) {
                answer(connection.query_drop("ROLLBACK")).await?;
                answer(connection.query_drop(REFUSED)).await?;
            }
            return Err(failure(error));
        }
        Err(_) => return Err(Failure::Unknown),
    }
    answer(connection.query_drop(DONE)).await?;
    answer(connection.query_drop("COMMIT")).await
}

/// Whether a server says with this number that a statement had been run already.
fn is_done(statement: &str, code: u16) -> bool {
    match statement.split_whitespace().collect::<Vec<_>>().as_slice() {
        ["CREATE", "TABLE", ..] => code == 1050,
        ["CREATE", ..] => code == 1061,
        ["DROP", "TABLE", ..] => code == 1051,
        ["ALTER", "TABLE", _, "RENAME", ..] => code == 1146,
        ["ALTER", "TABLE", _, "ADD", ..] => code == 1060,
        _ => false,
    }
}

async fn answer<T>(asked: impl Future<Output = mysql_async::Result<T>>) -> Result<T, Failure> {
    // The lock is waited for among them.
    timeout(LOCK * 2, asked).await.map_err(|_| Failure::Unknown)?.map_err(failure)
}

/// The statements of a migration as MySQL takes them. The words are SQLite's, in the part of SQL that both have, but for:
/// - a table's options;
/// - types: `TEXT` and `BLOB` become bytes of variable length, up to the number in the comment beside them if there is one,
///   as what is in a key must have; `INTEGER` becomes `BIGINT`;
/// - an index of some rows, which becomes one of all rows;
/// - the name of the function that draws bytes.
///
/// `/*! … */` is for MySQL alone, by its own rules.
fn statements(migration: &str) -> Vec<String> {
    let without_comments: Vec<_> = migration.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
    let without_comments = without_comments.join("\n");
    without_comments.split(';').map(str::trim).filter(|statement| !statement.is_empty()).map(in_mysql).collect()
}

fn in_mysql(statement: &str) -> String {
    let text = statement.replace("randomblob(", "random_bytes(");
    if text.starts_with("CREATE TABLE") {
        return text
            .replace("STRICT, WITHOUT ROWID", "STRICT")
            .replace(") STRICT", ") ENGINE = InnoDB")
            .replace(" TEXT /* ", " VARBINARY(")
            .replace(" BLOB /* ", " VARBINARY(")
            .replace(" */", ")")
            .replace(" TEXT", " MEDIUMBLOB")
            .replace(" BLOB", " MEDIUMBLOB")
            .replace(" INTEGER", " BIGINT");
    }
    if text.starts_with("CREATE INDEX") {
        return text.split(" WHERE ").next().unwrap_or_default().to_owned();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::MIGRATIONS;

    #[test]
    fn a_migration_is_put_into_mysqls_words() {
        let migration = "-- Notes; with a semicolon.\nCREATE TABLE a (\n    id TEXT /* 255 */ PRIMARY KEY NOT NULL,\n    \
                         key BLOB /* 16 */ NOT NULL CHECK (length(key) = 16),\n    text TEXT,\n    more BLOB NOT NULL,\n    \
                         number INTEGER NOT NULL\n) STRICT, WITHOUT ROWID;\n\n-- More.\nCREATE INDEX a_by_b ON a (b /*! , c */) \
                         WHERE c = 'x';\nINSERT INTO a SELECT randomblob(32) FROM a WHERE c = 'x';\n";
        assert_eq!(
            statements(migration),
            [
                "CREATE TABLE a (\n    id VARBINARY(255) PRIMARY KEY NOT NULL,\n    key VARBINARY(16) NOT NULL CHECK \
                 (length(key) = 16),\n    text MEDIUMBLOB,\n    more MEDIUMBLOB NOT NULL,\n    number BIGINT NOT NULL\n) \
                 ENGINE = InnoDB",
                "CREATE INDEX a_by_b ON a (b /*! , c */)",
                "INSERT INTO a SELECT random_bytes(32) FROM a WHERE c = 'x'",
            ]
        );
    }

    #[test]
    fn no_word_of_sqlite_is_left_in_the_migrations() {
        for migration in MIGRATIONS {
            for statement in statements(migration) {
                for word in [" TEXT", " BLOB", " INTEGER", "STRICT", "ROWID", "randomblob", "--", "PRAGMA"] {
                    assert!(!statement.contains(word), "{word} in {statement}");
                }
                let begins = statement.split_whitespace().next().unwrap();
                assert!(["CREATE", "DROP", "ALTER", "INSERT", "UPDATE", "DELETE"].contains(&begins), "{statement}");
            }
        }
    }

    #[test]
    fn every_statement_that_ends_a_transaction_shows_that_it_was_done() {
        for statement in MIGRATIONS.iter().flat_map(|migration| statements(migration)) {
            let changes_rows = ["INSERT", "UPDATE", "DELETE"].iter().any(|word| statement.starts_with(word));
            let shows = [1050, 1051, 1060, 1061, 1146].into_iter().filter(|code| is_done(&statement, *code)).count();
            assert_eq!(shows, usize::from(!changes_rows), "{statement}");
        }
    }

    #[test]
    fn only_the_schema_that_a_build_knows_is_good_enough() {
        assert_eq!(judge(Some((2, 0)), 2), Ok(()));
        for (at, says) in [
            (None, "number 0 and this build needs 2: run `campanile migrate`"),
            (Some((1, 3)), "number 1 and this build needs 2: run `campanile migrate`"),
            (Some((2, 1)), "number 2 and this build knows 2 at most"), // A newer build is on its way to 3.
            (Some((3, 0)), "number 3 and this build knows 2 at most: run a newer build"),
        ] {
            assert!(judge(at, 2).unwrap_err().to_string().contains(says), "{at:?}");
        }
    }

    #[tokio::test]
    async fn what_was_done_but_not_noted_when_a_process_died_is_not_done_again() {
        let Some(server) = servers::mariadb() else { return };
        let patient = Duration::from_mins(1);
        for (before, migration) in MIGRATIONS.iter().enumerate() {
            for cut in 0..statements(migration).len() {
                let url = server.url(&format!("cut_{before}_{cut}"));
                let options = MysqlOptions { url, connect_timeout: patient, ..MysqlOptions::default() };
                migrate(&options, &MIGRATIONS[..before]).await.unwrap();
                let mut connection = Conn::new(settings_for_migrating(&options, LOCK).unwrap()).await.unwrap();
                for (number, statement) in statements(migration).iter().enumerate().take(cut + 1) {
                    let changes_rows = statement.starts_with("INSERT");
                    if number < cut || changes_rows {
                        apply(&mut connection, statement, false).await.unwrap();
                    } else {
                        connection.query_drop(BEGIN).await.unwrap();
                        connection.query_drop(statement).await.unwrap();
                    }
                }
                connection.disconnect().await.unwrap();
                let migrated = migrate(&options, MIGRATIONS).await.unwrap();
                assert_eq!(migrated, Migrated { from: before, to: MIGRATIONS.len() });
            }
        }
    }

    #[tokio::test]
    async fn a_statement_that_fails_is_not_taken_for_one_that_was_done() {
        let Some(server) = servers::mariadb() else { return };
        let options = MysqlOptions {
            url: server.url("broken"),
            connect_timeout: Duration::from_mins(1),
            ..MysqlOptions::default()
        };
        let broken = [
            "CREATE TABLE a (b INTEGER) STRICT;",
            "CREATE TABLE c (d INTEGER) STRICT; CREATE TABLE a (b INTEGER) STRICT;",
        ];
        for _ in 0..2 {
            // The second time it is the first statement of the run.
            let error = migrate(&options, &broken).await.unwrap_err().to_string();
            assert!(error.contains("already exists"), "{error}");
        }
    }
}
