//! Schedules in MySQL.

use async_trait::async_trait;
use idl::ids::{AppId, MessageId};
use mysql_async::Value;

use super::{Change, Failure, Found, MysqlCatalog, Work, from_number, to_count, to_number};
use crate::catalog::{Created, Firing, Repeat, Schedule, ScheduleState, Schedules};
use crate::sorted::StoreError;

const SCHEDULE: &str = "SELECT id, app, job_key, created_at_ms, due_ms, local_time, repeat_cron, repeat_time_zone, \
                        repeat_until_ms, send, state, firing_due_ms, firing_message, last_message, fired \
                        FROM schedule";
const INSERT: &str = "INSERT INTO schedule (id, app, job_key, created_at_ms, due_ms, local_time, repeat_cron, \
                      repeat_time_zone, repeat_until_ms, send, state, firing_due_ms, firing_message, last_message, fired) \
                      VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
const ONE: &str = "WHERE id = ? AND app = ?";
const OF_APP: &str = "WHERE app = ? AND id > ? ORDER BY id LIMIT ?";
const OF_JOB_KEY: &str = "WHERE app = ? AND job_key = ? ORDER BY id LIMIT ?";
const DUE: &str = "WHERE state = 'waiting' AND due_ms <= ? ORDER BY due_ms, id LIMIT ?";
const NEXT_DUE: &str = "SELECT due_ms FROM schedule WHERE state = 'waiting' ORDER BY due_ms LIMIT 1";
const WAITING: &str = "SELECT count(*) FROM schedule WHERE app = ? AND state = 'waiting'";
const FORGET: &str = "DELETE FROM schedule WHERE state = 'done' AND due_ms < ?";

#[async_trait]
impl Schedules for MysqlCatalog {
    async fn create_schedule(&self, schedule: Schedule, waiting_max: usize) -> Result<Created, StoreError> {
        self.change(&Create { schedule, waiting_max }).await
    }

    async fn schedule(&self, app: &AppId, id: MessageId) -> Result<Option<Schedule>, StoreError> {
        let values = vec![id.to_bytes().into(), app.as_str().into()];
        self.one("schedule", &format!("{SCHEDULE} {ONE}"), values, decode).await
    }

    async fn schedules(
        &self,
        app: &AppId,
        after: Option<MessageId>,
        limit: usize,
    ) -> Result<Vec<Schedule>, StoreError> {
        let after = after.unwrap_or(MessageId::MIN).to_bytes();
        let values = vec![app.as_str().into(), after.into(), to_count(limit).into()];
        self.all("schedule", &format!("{SCHEDULE} {OF_APP}"), values, decode).await
    }

    async fn schedules_by_job_key(
        &self,
        app: &AppId,
        job_key: &str,
        limit: usize,
    ) -> Result<Vec<Schedule>, StoreError> {
        let values = vec![app.as_str().into(), job_key.into(), to_count(limit).into()];
        self.all("schedule", &format!("{SCHEDULE} {OF_JOB_KEY}"), values, decode).await
    }

    async fn due_schedules(&self, now_ms: u64, limit: usize) -> Result<Vec<Schedule>, StoreError> {
        let values = vec![to_number(now_ms).into(), to_count(limit).into()];
        self.all("schedule", &format!("{SCHEDULE} {DUE}"), values, decode).await
    }

    async fn next_due_ms(&self) -> Result<Option<u64>, StoreError> {
        self.one("schedule", NEXT_DUE, Vec::new(), |row| row.number(0)).await
    }

    async fn begin_firing(&self, id: MessageId, due_ms: u64, message: MessageId) -> Result<bool, StoreError> {
        let update = "UPDATE schedule SET firing_due_ms = ?, firing_message = ? \
                      WHERE id = ? AND state = 'waiting' AND due_ms = ?";
        let due = to_number(due_ms);
        let values = vec![due.into(), message.to_bytes().into(), id.to_bytes().into(), due.into()];
        Ok(self.change_rows(update, values).await? == 1)
    }

    async fn fired(&self, id: MessageId, due_ms: u64, next_due_ms: Option<u64>) -> Result<bool, StoreError> {
        // MySQL sets from left to right, and what is on the right of a sign is what was set before: the message is taken over
        // before it is removed.
        let update = "UPDATE schedule SET fired = fired + 1, last_message = firing_message, firing_due_ms = NULL, \
                      firing_message = NULL, due_ms = coalesce(?, due_ms), state = ? \
                      WHERE id = ? AND state = 'waiting' AND firing_due_ms = ?";
        let state = if next_due_ms.is_some() { ScheduleState::Waiting } else { ScheduleState::Done };
        let values =
            vec![next_due_ms.map(to_number).into(), name(state).into(), id.to_bytes().into(), to_number(due_ms).into()];
        Ok(self.change_rows(update, values).await? == 1)
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
        let update = "UPDATE schedule SET due_ms = ?, local_time = ?, repeat_cron = ?, repeat_time_zone = ?, \
                      repeat_until_ms = ?, send = ? \
                      WHERE id = ? AND app = ? AND state = 'waiting' AND firing_message IS NULL";
        let [cron, time_zone, until_ms] = columns(repeat.as_ref());
        let values = vec![
            to_number(due_ms).into(),
            local_time.into(),
            cron,
            time_zone,
            until_ms,
            send.into(),
            id.to_bytes().into(),
            app.as_str().into(),
        ];
        Ok(self.change_rows(update, values).await? == 1)
    }

    async fn delete_schedule(&self, app: &AppId, id: MessageId) -> Result<bool, StoreError> {
        let delete = "DELETE FROM schedule WHERE id = ? AND app = ? AND state = 'waiting' AND firing_message IS NULL";
        Ok(self.change_rows(delete, vec![id.to_bytes().into(), app.as_str().into()]).await? == 1)
    }

    async fn forget_schedules_before(&self, ms: u64) -> Result<u64, StoreError> {
        self.change_rows(FORGET, vec![to_number(ms).into()]).await
    }
}

struct Create {
    schedule: Schedule,
    waiting_max: usize,
}

#[async_trait]
impl Change for Create {
    type Answer = Created;

    async fn make(&self, work: &mut Work<'_>) -> Result<Created, Failure> {
        let app = &self.schedule.app;
        work.lock(app).await?;
        let id = vec![self.schedule.id.to_bytes().into()];
        let same = work.find("schedule", "SELECT 1 FROM schedule WHERE id = ?", id, |_| Ok(())).await?;
        if !same.is_empty() {
            return Ok(Created::Exists);
        }
        let waiting = work.find("schedule", WAITING, vec![app.as_str().into()], |row| row.take::<i64>(0)).await?;
        if waiting.first().copied().unwrap_or_default() >= to_count(self.waiting_max) {
            return Ok(Created::Full);
        }
        match work.run(INSERT, values(&self.schedule)).await {
            Ok(_) => Ok(Created::New),
            // Another application made it at the same moment, under a lock of its own.
            Err(Failure::Taken) => Ok(Created::Exists),
            Err(failure) => Err(failure),
        }
    }
}

fn values(schedule: &Schedule) -> Vec<Value> {
    let [cron, time_zone, until_ms] = columns(schedule.repeat.as_ref());
    vec![
        schedule.id.to_bytes().into(),
        schedule.app.as_str().into(),
        schedule.job_key.as_deref().into(),
        to_number(schedule.created_at_ms).into(),
        to_number(schedule.due_ms).into(),
        schedule.local_time.as_deref().into(),
        cron,
        time_zone,
        until_ms,
        schedule.send.as_slice().into(),
        name(schedule.state).into(),
        schedule.firing.map(|firing| to_number(firing.due_ms)).into(),
        schedule.firing.map(|firing| firing.message.to_bytes()).into(),
        schedule.last_message.map(MessageId::to_bytes).into(),
        to_number(schedule.fired).into(),
    ]
}

/// The three columns of a repeat.
fn columns(repeat: Option<&Repeat>) -> [Value; 3] {
    [
        repeat.map(|repeat| repeat.cron.as_str()).into(),
        repeat.map(|repeat| repeat.time_zone.as_str()).into(),
        repeat.and_then(|repeat| repeat.until_ms).map(to_number).into(),
    ]
}

fn name(state: ScheduleState) -> &'static str {
    match state {
        ScheduleState::Waiting => "waiting",
        ScheduleState::Done => "done",
    }
}

fn decode(row: &mut Found) -> Result<Schedule, StoreError> {
    let moment = |row: &mut Found, column| -> Result<Option<u64>, StoreError> {
        let ms: Option<i64> = row.take(column)?;
        Ok(ms.map(from_number))
    };
    let repeat = match (row.take(6)?, row.take(7)?) {
        (Some(cron), Some(time_zone)) => Some(Repeat { cron, time_zone, until_ms: moment(row, 8)? }),
        _ => None,
    };
    let firing = match (moment(row, 11)?, row.message(12)?) {
        (Some(due_ms), Some(message)) => Some(Firing { due_ms, message }),
        _ => None,
    };
    let state: String = row.take(10)?;
    Ok(Schedule {
        id: MessageId(row.id(0)?),
        app: row.app_id(1)?,
        job_key: row.take(2)?,
        created_at_ms: row.number(3)?,
        due_ms: row.number(4)?,
        local_time: row.take(5)?,
        repeat,
        send: row.take(9)?,
        state: match state.as_str() {
            "waiting" => ScheduleState::Waiting,
            "done" => ScheduleState::Done,
            other => return Err(row.damaged(format!("{other:?} is no state"))),
        },
        firing,
        last_message: row.message(13)?,
        fired: row.number(14)?,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mysql_async::prelude::Queryable as _;
    use mysql_async::{Conn, Params, Row};

    use super::*;
    use crate::catalog::mysql::MysqlOptions;

    #[tokio::test]
    async fn no_question_reads_all_schedules_or_sorts_them() {
        let Some(server) = servers::mariadb() else { return };
        let url = server.url("plans");
        let patient = Duration::from_mins(1);
        let options = MysqlOptions { url: url.clone(), connect_timeout: patient, ..MysqlOptions::default() };
        MysqlCatalog::migrate(&options).await.unwrap();
        let mut connection = Conn::from_url(url).await.unwrap();
        // Enough of several applications that the server takes the trouble to choose.
        let fill = "INSERT INTO schedule (id, app, job_key, created_at_ms, due_ms, send, state, fired) SELECT \
                    unhex(lpad(hex(seq), 32, '0')), concat('app-', seq % 50), concat('key-', seq % 500), 0, seq, 'send', \
                    if(seq % 3 = 0, 'done', 'waiting'), 0 FROM seq_1_to_20000";
        connection.query_drop(fill).await.unwrap();
        connection.query_drop("ANALYZE TABLE schedule").await.unwrap();
        let (app, id): (Value, Value) = ("app-9".into(), 9_u128.to_be_bytes().into());
        for (statement, values, index) in [
            (format!("{SCHEDULE} {ONE}"), vec![id.clone(), app.clone()], "PRIMARY"),
            (format!("{SCHEDULE} {OF_APP}"), vec![app.clone(), id, 10.into()], "schedule_by_app"),
            (format!("{SCHEDULE} {OF_JOB_KEY}"), vec![app.clone(), "key-9".into(), 10.into()], "schedule_by_job_key"),
            (format!("{SCHEDULE} {DUE}"), vec![200.into(), 10.into()], "schedule_by_due"),
            (NEXT_DUE.into(), Vec::new(), "schedule_by_due"),
            (WAITING.into(), vec![app], "schedule_that_waits"),
            (FORGET.into(), vec![200.into()], "schedule_by_due"),
        ] {
            let explain = format!("EXPLAIN {statement}");
            let plan: Option<Row> = connection.exec_first(explain, Params::Positional(values)).await.unwrap();
            let plan = plan.unwrap();
            let key: Option<String> = plan.get("key").unwrap();
            let extra: Option<String> = plan.get("Extra").unwrap();
            assert_eq!(key.as_deref(), Some(index), "{statement}");
            assert!(!extra.unwrap_or_default().contains("filesort"), "{statement}");
        }
    }
}
