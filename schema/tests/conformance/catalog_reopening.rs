//! What the catalog in a file holds when it is opened again, and what a process leaves that was killed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use idl::ids::MessageId;
use schema::catalog::sqlite::SqliteCatalog;
use schema::catalog::{
    Apps as _, Created, Firing, Repeat, Schedule, ScheduleState, Schedules as _, Segment, Segments as _, Stored,
    Template, Templates as _,
};
use tempfile::TempDir;

use crate::catalog::an_app;
use crate::world::{START_MS, app, open_sqlite};

fn schedule(id: u128) -> Schedule {
    Schedule {
        id: MessageId(id),
        app: app("a"),
        job_key: Some("key".into()),
        created_at_ms: START_MS,
        due_ms: START_MS + 1,
        local_time: Some("2026-12-01T09:00".into()),
        repeat: Some(Repeat { cron: "0 9 * * *".into(), time_zone: "Europe/Berlin".into(), until_ms: None }),
        send: vec![0, 255],
        state: ScheduleState::Waiting,
        firing: None,
        last_message: None,
        fired: 0,
    }
}

/// What a process killed at this moment would leave, opened by the next one.
fn after_a_kill(folder: &Path) -> (SqliteCatalog, TempDir) {
    let killed = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        // The index of the log is memory that the processes share; who comes first makes it anew.
        if !entry.file_name().to_string_lossy().ends_with("-shm") {
            fs::copy(entry.path(), killed.path().join(entry.file_name())).unwrap();
        }
    }
    (open_sqlite(killed.path()), killed)
}

#[tokio::test]
async fn a_catalog_opened_again_holds_what_was_put() {
    let folder = tempfile::tempdir().unwrap();
    let segment = Segment { app: app("a"), name: "s".into(), expression: "all".into(), changed_at_ms: START_MS };
    let template = Template {
        app: app("a"),
        name: "t".into(),
        title: Some("{{x}}".into()),
        description: None,
        payload: None,
        extra: BTreeMap::from([("a".into(), "b".into())]),
        changed_at_ms: START_MS,
    };
    let catalog = open_sqlite(folder.path());
    assert!(catalog.create_app(an_app("a", 1)).await.unwrap());
    assert!(catalog.set_app_limits(&app("a"), 7, 8).await.unwrap());
    assert!(catalog.set_webhook_secret(&app("a"), [9; 32]).await.unwrap());
    assert_eq!(catalog.put_segment(segment.clone(), 1).await.unwrap(), Stored::New);
    assert_eq!(catalog.put_template(template.clone(), 1).await.unwrap(), Stored::New);
    assert_eq!(catalog.create_schedule(schedule(1), 1).await.unwrap(), Created::New);
    drop(catalog);

    let catalog = open_sqlite(folder.path());
    let stored = catalog.app(&app("a")).await.unwrap().unwrap();
    assert_eq!((stored.sends_per_second_max, stored.sends_per_day_max, stored.webhook_secret), (7, 8, [9; 32]));
    assert_eq!(catalog.segments(&app("a"), None, 9).await.unwrap(), [segment]);
    assert_eq!(catalog.templates(&app("a"), None, 9).await.unwrap(), [template]);
    assert_eq!(catalog.schedules(&app("a"), None, 9).await.unwrap(), [schedule(1)]);
    assert_eq!(catalog.due_schedules(u64::MAX, 9).await.unwrap(), [schedule(1)]);
}

#[tokio::test]
async fn a_firing_is_found_where_it_was_when_the_process_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = open_sqlite(folder.path());
    assert_eq!(catalog.create_schedule(schedule(1), 9).await.unwrap(), Created::New);
    let (killed, _folder) = after_a_kill(folder.path());
    assert_eq!(killed.due_schedules(START_MS + 1, 9).await.unwrap(), [schedule(1)]);

    assert!(catalog.begin_firing(MessageId(1), START_MS + 1, MessageId(100)).await.unwrap());
    let (killed, _folder) = after_a_kill(folder.path());
    let firing = Some(Firing { due_ms: START_MS + 1, message: MessageId(100) });
    assert_eq!(killed.due_schedules(START_MS + 1, 9).await.unwrap(), [Schedule { firing, ..schedule(1) }]);
    // The next process ends it.
    assert!(killed.fired(MessageId(1), START_MS + 1, None).await.unwrap());

    assert!(catalog.fired(MessageId(1), START_MS + 1, Some(START_MS + 2)).await.unwrap());
    let (killed, _folder) = after_a_kill(folder.path());
    let waiting = Schedule { due_ms: START_MS + 2, last_message: Some(MessageId(100)), fired: 1, ..schedule(1) };
    assert_eq!(killed.schedule(&app("a"), MessageId(1)).await.unwrap(), Some(waiting));
    assert!(killed.due_schedules(START_MS + 1, 9).await.unwrap().is_empty());
    assert!(!killed.begin_firing(MessageId(1), START_MS + 1, MessageId(101)).await.unwrap());
}

#[tokio::test]
async fn a_schedule_that_was_deleted_does_not_come_back_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = open_sqlite(folder.path());
    assert_eq!(catalog.create_schedule(schedule(1), 9).await.unwrap(), Created::New);
    assert!(catalog.delete_schedule(&app("a"), MessageId(1)).await.unwrap());
    let (killed, _folder) = after_a_kill(folder.path());
    assert!(killed.schedules(&app("a"), None, 9).await.unwrap().is_empty());
}
