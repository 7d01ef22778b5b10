//! One call is one or more tries: each takes a connection, does all of its work in bounded time, and says what may be done
//! about its failure.

use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::BuildHasher as _;
use std::io::ErrorKind;
use std::time::Duration;

use idl::ids::AppId;
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Error, IoError, Params, Row, Transaction, TxOpts, Value};
use tokio::time::{Instant, sleep, timeout_at};

use super::health::Health;
use super::{Change, Decode, Found, MysqlCatalog, at_most};
use crate::sorted::StoreError;

/// Most tries of a call.
const TRIES_MAX: u32 = 5;
/// The pause before the second try, twice as long before each further one; drawn up to double.
const PAUSE: Duration = Duration::from_millis(10);
/// Most characters of a server's message that are passed on.
const TEXT_MAX: usize = 300;

/// Why a try failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// There is no connection, or no more. Nothing happened, and another one may do.
    Lost(String),
    /// The server gave way to others and undid everything.
    Conflict(String),
    /// The server ended it because it took too long. Nothing happened.
    Slow(String),
    /// No answer in time. Nothing happened that lasts. What the connection would say next is the late answer, so it is not
    /// used again.
    Silent(String),
    /// The server doesn't let us in.
    Barred(String),
    /// A key is there already.
    Taken,
    /// There is no such table.
    NoTable(String),
    /// The server doesn't want it.
    Refused(String),
    /// What was found can't be read.
    Damaged(StoreError),
    /// `COMMIT` was not answered.
    Unknown,
}

impl Failure {
    /// What the caller is told.
    pub(super) fn told(self) -> StoreError {
        let text = match self {
            Self::Lost(text)
            | Self::Conflict(text)
            | Self::Slow(text)
            | Self::Silent(text)
            | Self::Barred(text)
            | Self::NoTable(text)
            | Self::Refused(text) => text,
            Self::Taken => "its key is there already".into(),
            Self::Damaged(error) => return error,
            Self::Unknown => return StoreError::TimedOut,
        };
        StoreError::Unavailable(format!("the catalog on MySQL: {text}"))
    }

    fn ends_the_connection(&self) -> bool {
        matches!(self, Self::Lost(_) | Self::Silent(_) | Self::Barred(_) | Self::Unknown)
    }
}

/// A change under way: statements of one transaction.
pub(super) struct Work<'a> {
    catalog: &'a MysqlCatalog,
    transaction: Transaction<'a>,
    deadline: Instant,
}

impl Work<'_> {
    /// Runs a statement and says how many rows it found that it is to change.
    pub(super) async fn run(&mut self, statement: &str, values: Vec<Value>) -> Result<u64, Failure> {
        let done = self.transaction.exec_drop(statement, Params::Positional(values));
        self.catalog.within(self.deadline, done).await?;
        Ok(self.transaction.affected_rows())
    }

    /// All rows that a query finds, in its order.
    pub(super) async fn find<T>(
        &mut self,
        table: &'static str,
        select: &str,
        values: Vec<Value>,
        decode: Decode<T>,
    ) -> Result<Vec<T>, Failure> {
        let rows = self.transaction.exec::<Row, _, _>(select, Params::Positional(values));
        let rows = self.catalog.within(self.deadline, rows).await?;
        let rows = rows.into_iter().map(|row| decode(&mut Found { row, table }));
        rows.collect::<Result<_, _>>().map_err(Failure::Damaged)
    }

    /// Waits until no other change that counts something of this application is under way.
    pub(super) async fn lock(&mut self, app: &AppId) -> Result<(), Failure> {
        let lock = "INSERT INTO app_lock (app) VALUES (?) ON DUPLICATE KEY UPDATE app = app";
        self.run(lock, vec![app.as_str().into()]).await.map(drop)
    }
}

impl MysqlCatalog {
    /// Makes a change, and makes it again where it surely did not happen and may succeed.
    pub(super) async fn change<C: Change>(&self, change: &C) -> Result<C::Answer, StoreError> {
        let mut tries = Tries::new(self);
        loop {
            let outcome = self.change_once(change, tries.deadline).await;
            if let Some(answer) = tries.judge(outcome).await {
                return answer.map_err(Failure::told);
            }
        }
    }

    /// The rows that a query finds. A query may be asked as often as need be.
    pub(super) async fn read(&self, select: &str, values: Vec<Value>) -> Result<Vec<Row>, Failure> {
        let mut tries = Tries::new(self);
        loop {
            let outcome = self.read_once(select, values.clone(), tries.deadline).await;
            if let Some(answer) = tries.judge(outcome).await {
                return answer;
            }
        }
    }

    async fn read_once(&self, select: &str, values: Vec<Value>, deadline: Instant) -> Result<Vec<Row>, Failure> {
        let mut connection = self.connection(deadline).await?;
        let rows = connection.exec(select, Params::Positional(values));
        let outcome = self.within(deadline, rows).await;
        if outcome.as_ref().is_err_and(Failure::ends_the_connection) {
            self.close(connection, deadline).await;
        }
        outcome
    }

    async fn change_once<C: Change>(&self, change: &C, deadline: Instant) -> Result<C::Answer, Failure> {
        let mut connection = self.connection(deadline).await?;
        let outcome = self.transact(&mut connection, change, deadline).await;
        if outcome.as_ref().is_err_and(Failure::ends_the_connection) {
            self.close(connection, deadline).await;
        }
        outcome
    }

    async fn transact<C: Change>(
        &self,
        connection: &mut Conn,
        change: &C,
        deadline: Instant,
    ) -> Result<C::Answer, Failure> {
        let transaction = self.within(deadline, connection.start_transaction(TxOpts::default())).await?;
        let mut work = Work { catalog: self, transaction, deadline };
        let mut outcome = change.make(&mut work).await;
        if outcome.is_ok() && Instant::now() >= deadline {
            outcome = Err(Failure::Slow("it took too long".into()));
        }
        match outcome {
            Ok(answer) => match self.within(deadline, work.transaction.commit()).await {
                Ok(()) => Ok(answer),
                // It was answered: undone.
                Err(Failure::Conflict(text)) => Err(Failure::Conflict(text)),
                Err(_) => Err(Failure::Unknown),
            },
            Err(failure) => {
                if !failure.ends_the_connection()
                    && let Err(other) = self.within(deadline, work.transaction.rollback()).await
                {
                    // The end of the connection undoes it.
                    return Err(if other.ends_the_connection() { other } else { failure });
                }
                Err(failure)
            }
        }
    }

    /// Closes a connection that is of no use any more, also where the server would keep it, such as one that no longer leads.
    async fn close(&self, connection: Conn, deadline: Instant) {
        let _ = timeout_at(at_most(self.options.connect_timeout, deadline), connection.disconnect()).await;
    }

    async fn connection(&self, deadline: Instant) -> Result<Conn, Failure> {
        let limit = at_most(self.options.connect_timeout, deadline);
        match timeout_at(limit, self.pool.get_conn()).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(match failure(error) {
                Failure::Refused(text) => Failure::Barred(text),
                failure => failure,
            }),
            Err(_) => {
                Health::count(&self.health.timeouts);
                let used = self.health.metrics(&self.pool).connections_in_use;
                let waited = self.options.connect_timeout;
                Err(Failure::Silent(format!("no connection within {waited:?}; {used} are in use")))
            }
        }
    }

    /// Waits for the answer to a statement. Where that takes too long the connection is closed, for the answer may still come.
    async fn within<T>(
        &self,
        deadline: Instant,
        answer: impl Future<Output = mysql_async::Result<T>>,
    ) -> Result<T, Failure> {
        Health::count(&self.health.statements);
        // The server is to be first with ending it, which keeps the connection.
        let patience = self.options.statement_timeout + self.options.statement_timeout / 4;
        let outcome = match timeout_at(at_most(patience, deadline), answer).await {
            Ok(answer) => answer.map_err(failure),
            Err(_) => Err(Failure::Silent("the server did not answer in time".into())),
        };
        if matches!(outcome, Err(Failure::Slow(_) | Failure::Silent(_))) {
            Health::count(&self.health.timeouts);
        }
        outcome
    }
}

/// The tries of one call.
struct Tries<'a> {
    catalog: &'a MysqlCatalog,
    deadline: Instant,
    made: u32,
}

impl<'a> Tries<'a> {
    fn new(catalog: &'a MysqlCatalog) -> Self {
        Self { catalog, deadline: Instant::now() + catalog.options.call_timeout, made: 0 }
    }

    /// What a try's outcome means for the call: its answer, or `None`, after a pause, for another try.
    async fn judge<T>(&mut self, outcome: Result<T, Failure>) -> Option<Result<T, Failure>> {
        self.made += 1;
        let health = &self.catalog.health;
        let failure = match outcome {
            Ok(answer) => {
                health.answered();
                return Some(Ok(answer));
            }
            Err(failure) => failure,
        };
        if matches!(failure, Failure::Lost(_) | Failure::Conflict(_)) && self.made < TRIES_MAX {
            let pause = PAUSE * (1 << (self.made - 1));
            let pause = pause + pause.mul_f64(drawn());
            if Instant::now() + pause < self.deadline {
                Health::count(&health.retries);
                sleep(pause).await;
                return None;
            }
        }
        match &failure {
            Failure::Lost(text) | Failure::Silent(text) | Failure::Barred(text) => health.failed(text.clone()),
            Failure::Unknown => health.failed("COMMIT was not answered".into()),
            // Whatever it says, it answers.
            Failure::Conflict(_)
            | Failure::Slow(_)
            | Failure::Taken
            | Failure::NoTable(_)
            | Failure::Refused(_)
            | Failure::Damaged(_) => health.answered(),
        }
        Some(Err(failure))
    }
}

/// A number from 0 to 1, another one each time: who failed at once must not come back at once.
fn drawn() -> f64 {
    let bits = RandomState::new().hash_one(0u8) >> 32;
    f64::from(u32::try_from(bits).unwrap_or_default()) / f64::from(u32::MAX)
}

/// What an error of the driver means. The numbers are the servers' own.
pub(super) fn failure(error: Error) -> Failure {
    let error = match error {
        Error::Server(error) => error,
        Error::Io(IoError::Tls(error)) => return Failure::Barred(first_line(&error.to_string())),
        // So comes what TLS doesn't like of the server, such as who signed its certificate.
        Error::Io(IoError::Io(error)) if error.kind() == ErrorKind::InvalidData => {
            return Failure::Barred(first_line(&error.to_string()));
        }
        Error::Io(IoError::Io(error)) => return Failure::Lost(error.to_string()),
        // The connection is in a state that is unlike what we know.
        error => return Failure::Lost(first_line(&error.to_string())),
    };
    let text = format!("{} (error {})", first_line(&error.message), error.code);
    match error.code {
        // Its text holds the key.
        1062 => Failure::Taken,
        1146 => Failure::NoTable(text),
        // A lock not had in time, a deadlock.
        1205 | 1213 => Failure::Conflict(text),
        // Ended because it took too long: MariaDB's and MySQL's.
        1969 | 3024 => Failure::Slow(text),
        // Too many connections, of all or of this user; shutting down; ended by somebody; silent for too long; a statement
        // prepared over another connection; read-only, as a server is that no longer leads.
        1040 | 1203 | 1226 | 1053 | 1317 | 1927 | 3169 | 4031 | 1243 | 1290 | 1792 | 1836 => Failure::Lost(text),
        _ => Failure::Refused(text),
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(TEXT_MAX).collect()
}

#[cfg(test)]
mod tests {
    use mysql_async::ServerError;

    use super::*;

    fn server(code: u16, message: &str) -> Failure {
        failure(Error::Server(ServerError { code, message: message.into(), state: "HY000".into() }))
    }

    #[test]
    fn what_is_tried_again_surely_did_not_happen() {
        for code in [1205, 1213] {
            assert!(matches!(server(code, "x"), Failure::Conflict(_)), "{code}");
        }
        for code in [1040, 1053, 1927, 1290] {
            assert!(matches!(server(code, "x"), Failure::Lost(_)), "{code}");
        }
        for code in [1045, 1406, 3819, 4025] {
            assert!(matches!(server(code, "x"), Failure::Refused(_)), "{code}");
        }
        assert_eq!(Failure::Unknown.told(), StoreError::TimedOut);
    }

    #[test]
    fn an_error_is_one_short_line_and_never_holds_a_key() {
        let long = format!("first\nsecond {}", "x".repeat(1000));
        let error = server(1146, &long).told().to_string();
        assert!(error.ends_with("first (error 1146)"), "{error}");
        let error = server(1406, &"x".repeat(1000)).told().to_string();
        assert!(error.len() < 400, "{error}");
        let error = server(1062, "Duplicate entry 'key' for key 'app_by_secret'").told().to_string();
        assert!(!error.contains("entry"), "{error}");
    }

    #[test]
    fn pauses_differ() {
        let drawn: Vec<f64> = (0..10).map(|_| drawn()).collect();
        assert!(drawn.iter().all(|number| (0.0..=1.0).contains(number)));
        assert!(drawn.windows(2).any(|pair| pair[0].to_bits() != pair[1].to_bits()));
    }
}
