//! Schedules in SQLite.

use async_trait::async_trait;
use idl::ids::{AppId, MessageId};
use rusqlite::{Connection, Row, params};

use super::{SqliteCatalog, all, as_a_whole, change, decode_app_id, failed, from_number, one, to_count, to_number};
use crate::catalog::{Created, Firing, Repeat, Schedule, ScheduleState, Schedules};
use crate::sorted::StoreError;

const SCHEDULE: &str = "SELECT id, app, job_key, created_at_ms, due_ms, local_time, repeat_cron, repeat_time_zone, \
                        repeat_until_ms, send, state, firing_due_ms, firing_message, last_message, fired \
                        FROM schedule";
const ONE: &str = "WHERE id = ?2 AND app = ?1";
const OF_APP: &str = "WHERE app = ?1 AND id > ?2 ORDER BY id LIMIT ?3";
const OF_JOB_KEY: &str = "WHERE app = ?1 AND job_key = ?2 ORDER BY id LIMIT ?3";
const DUE: &str = "WHERE state = 'waiting' AND due_ms <= ?1 ORDER BY due_ms, id LIMIT ?2";
const NEXT_DUE: &str = "SELECT due_ms FROM schedule WHERE state = 'waiting' ORDER BY due_ms LIMIT 1";
const WAITING: &str = "SELECT count(*) FROM schedule WHERE app = ?1 AND state = 'waiting'";
const FORGET: &str = "DELETE FROM schedule WHERE state = 'done' AND due_ms < ?1";

#[async_trait]
impl Schedules for SqliteCatalog {
    async fn create_schedule(&self, schedule: Schedule, waiting_max: usize) -> Result<Created, StoreError> {
        self.write(move |connection| {
            as_a_whole(connection, |connection| {
                let is_there = "SELECT 1 FROM schedule WHERE id = ?1";
                if one(connection, is_there, params![schedule.id.to_bytes()], |_| Ok(()))?.is_some() {
                    return Ok(Created::Exists);
                }
                if waiting(connection, &schedule.app)? >= to_count(waiting_max) {
                    return Ok(Created::Full);
                }
                insert(connection, &schedule)?;
                Ok(Created::New)
            })
        })
        .await
    }

    async fn schedule(&self, app: &AppId, id: MessageId) -> Result<Option<Schedule>, StoreError> {
        let select = format!("{SCHEDULE} {ONE}");
        self.read(|connection| one(connection, &select, params![app.as_str(), id.to_bytes()], decode))
    }

    async fn schedules(
        &self,
        app: &AppId,
        after: Option<MessageId>,
        limit: usize,
    ) -> Result<Vec<Schedule>, StoreError> {
        let select = format!("{SCHEDULE} {OF_APP}");
        let values = params![app.as_str(), after.unwrap_or(MessageId::MIN).to_bytes(), to_count(limit)];
        self.read(|connection| all(connection, &select, values, decode))
    }

    async fn schedules_by_job_key(
        &self,
        app: &AppId,
        job_key: &str,
        limit: usize,
    ) -> Result<Vec<Schedule>, StoreError> {
        let select = format!("{SCHEDULE} {OF_JOB_KEY}");
        let values = params![app.as_str(), job_key, to_count(limit)];
        self.read(|connection| all(connection, &select, values, decode))
    }

    async fn due_schedules(&self, now_ms: u64, limit: usize) -> Result<Vec<Schedule>, StoreError> {
        let select = format!("{SCHEDULE} {DUE}");
        self.read(|connection| all(connection, &select, params![to_number(now_ms), to_count(limit)], decode))
    }

    async fn next_due_ms(&self) -> Result<Option<u64>, StoreError> {
        let decode = |row: &Row<'_>| row.get(0).map(from_number).map_err(failed);
        self.read(|connection| one(connection, NEXT_DUE, [], decode))
    }

    async fn begin_firing(&self, id: MessageId, due_ms: u64, message: MessageId) -> Result<bool, StoreError> {
        self.write(move |connection| {
            let update = "UPDATE schedule SET firing_due_ms = ?2, firing_message = ?3 \
                          WHERE id = ?1 AND state = 'waiting' AND due_ms = ?2";
            let values = params![id.to_bytes(), to_number(due_ms), message.to_bytes()];
            change(connection, update, values).map(|rows| rows == 1)
        })
        .await
    }

    async fn fired(&self, id: MessageId, due_ms: u64, next_due_ms: Option<u64>) -> Result<bool, StoreError> {
        self.write(move |connection| {
            // What is on the right of the signs is the row as it was before.
            let update = "UPDATE schedule SET fired = fired + 1, last_message = firing_message, \
                          firing_due_ms = NULL, firing_message = NULL, due_ms = coalesce(?3, due_ms), \
                          state = CASE WHEN ?3 IS NULL THEN 'done' ELSE 'waiting' END \
                          WHERE id = ?1 AND state = 'waiting' AND firing_due_ms = ?2";
            let values = params![id.to_bytes(), to_number(due_ms), next_due_ms.map(to_number)];
            change(connection, update, values).map(|rows| rows == 1)
        })
        .await
    }

    async fn change_schedule(
        &self,
        app: &AppId,
        id: MessageId,
        due_ms: u64,
        local_time: Option<String>,
        repeat: Option<Repeat>,
        send: Vec<u8>,
    ) -> Result<bool, StoreError> {
        let app = app.clone();
        self.write(move |connection| {
            let update = "UPDATE schedule SET due_ms = ?3, local_time = ?4, repeat_cron = ?5, \
                          repeat_time_zone = ?6, repeat_until_ms = ?7, send = ?8 \
                          WHERE id = ?2 AND app = ?1 AND state = 'waiting' AND firing_message IS NULL";
            let (cron, time_zone, until_ms) = columns(repeat.as_ref());
            let due_ms = to_number(due_ms);
            let values = params![app.as_str(), id.to_bytes(), due_ms, local_time, cron, time_zone, until_ms, send];
            change(connection, update, values).map(|rows| rows == 1)
        })
        .await
    }

    async fn delete_schedule(&self, app: &AppId, id: MessageId) -> Result<bool, StoreError> {
        let app = app.clone();
        self.write(move |connection| {
            let delete = "DELETE FROM schedule \
                          WHERE id = ?2 AND app = ?1 AND state = 'waiting' AND firing_message IS NULL";
            change(connection, delete, params![app.as_str(), id.to_bytes()]).map(|rows| rows == 1)
        })
        .await
    }

    async fn forget_schedules_before(&self, ms: u64) -> Result<u64, StoreError> {
        self.write(move |connection| change(connection, FORGET, params![to_number(ms)]).map(|rows| rows as u64)).await
    }
}

/// How many schedules of the application wait.
fn waiting(connection: &Connection, app: &AppId) -> Result<i64, StoreError> {
    let mut statement = connection.prepare_cached(WAITING).map_err(failed)?;
    statement.query_row(params![app.as_str()], |row| row.get(0)).map_err(failed)
}

fn insert(connection: &Connection, schedule: &Schedule) -> Result<(), StoreError> {
    let insert = "INSERT INTO schedule (id, app, job_key, created_at_ms, due_ms, local_time, repeat_cron, \
                  repeat_time_zone, repeat_until_ms, send, state, firing_due_ms, firing_message, last_message, fired) \
                  VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)";
    let (cron, time_zone, until_ms) = columns(schedule.repeat.as_ref());
    let values = params![
        schedule.id.to_bytes(),
        schedule.app.as_str(),
        schedule.job_key,
        to_number(schedule.created_at_ms),
        to_number(schedule.due_ms),
        schedule.local_time,
        cron,
        time_zone,
        until_ms,
        schedule.send,
        match schedule.state {
            ScheduleState::Waiting => "waiting",
            ScheduleState::Done => "done",
        },
        schedule.firing.map(|firing| to_number(firing.due_ms)),
        schedule.firing.map(|firing| firing.message.to_bytes()),
        schedule.last_message.map(MessageId::to_bytes),
        to_number(schedule.fired),
    ];
    change(connection, insert, values)?;
    Ok(())
}

/// The three columns of a repeat.
fn columns(repeat: Option<&Repeat>) -> (Option<&str>, Option<&str>, Option<i64>) {
    let repeat = repeat.map(|repeat| (repeat.cron.as_str(), repeat.time_zone.as_str(), repeat.until_ms.map(to_number)));
    repeat.map_or((None, None, None), |(cron, time_zone, until_ms)| (Some(cron), Some(time_zone), until_ms))
}

fn decode(row: &Row<'_>) -> Result<Schedule, StoreError> {
    let message = |column: usize| -> Result<Option<MessageId>, StoreError> {
        let bytes: Option<[u8; 16]> = row.get(column).map_err(failed)?;
        Ok(bytes.map(|bytes| MessageId(u128::from_be_bytes(bytes))))
    };
    let moment = |column: usize| -> Result<Option<u64>, StoreError> {
        let ms: Option<i64> = row.get(column).map_err(failed)?;
        Ok(ms.map(from_number))
    };
    let text = |column: usize| -> Result<Option<String>, StoreError> { row.get(column).map_err(failed) };
    let repeat = match (text(6)?, text(7)?) {
        (Some(cron), Some(time_zone)) => Some(Repeat { cron, time_zone, until_ms: moment(8)? }),
        _ => None,
    };
    let firing = match (moment(11)?, message(12)?) {
        (Some(due_ms), Some(message)) => Some(Firing { due_ms, message }),
        _ => None,
    };
    let state: String = row.get(10).map_err(failed)?;
    Ok(Schedule {
        id: MessageId(u128::from_be_bytes(row.get(0).map_err(failed)?)),
        app: decode_app_id(row, 1, "schedule")?,
        job_key: text(2)?,
        created_at_ms: from_number(row.get(3).map_err(failed)?),
        due_ms: from_number(row.get(4).map_err(failed)?),
        local_time: text(5)?,
        repeat,
        send: row.get(9).map_err(failed)?,
        state: match state.as_str() {
            "waiting" => ScheduleState::Waiting,
            "done" => ScheduleState::Done,
            other => return Err(StoreError::Corrupt(format!("table schedule: {other:?} is no state"))),
        },
        firing,
        last_message: message(13)?,
        fired: from_number(row.get(14).map_err(failed)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How SQLite goes about a statement with the catalog's schema, one line a step.
    fn plan(statement: &str) -> String {
        let catalog = SqliteCatalog::in_memory().unwrap();
        catalog
            .read(|connection| {
                let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {statement}")).map_err(failed)?;
                // What the parameters are has no influence.
                for parameter in 1..=statement.parameter_count() {
                    statement.raw_bind_parameter(parameter, 1).map_err(failed)?;
                }
                let (mut rows, mut steps) = (statement.raw_query(), String::new());
                while let Some(row) = rows.next().map_err(failed)? {
                    steps += &row.get::<_, String>(3).map_err(failed)?;
                    steps.push('\n');
                }
                Ok(steps)
            })
            .unwrap()
    }

    #[test]
    fn no_question_reads_all_schedules_or_sorts_them() {
        for (statement, index) in [
            (format!("{SCHEDULE} {ONE}"), "sqlite_autoindex_schedule_1"),
            (format!("{SCHEDULE} {OF_APP}"), "schedule_by_app"),
            (format!("{SCHEDULE} {OF_JOB_KEY}"), "schedule_by_job_key"),
            (format!("{SCHEDULE} {DUE}"), "schedule_by_due"),
            (NEXT_DUE.into(), "schedule_by_due"),
            (WAITING.into(), "schedule_that_waits"),
            (FORGET.into(), "schedule_by_due"),
        ] {
            let plan = plan(&statement);
            assert!(plan.contains(index), "{statement}: {plan}");
            assert!(!plan.contains("SCAN") && !plan.contains("TEMP B-TREE"), "{statement}: {plan}");
        }
    }
}
