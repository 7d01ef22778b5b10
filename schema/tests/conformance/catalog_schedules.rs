//! Schedules.

use idl::ids::MessageId;
use schema::catalog::{Created, Firing, Repeat, Schedule, ScheduleState};

use crate::world::{CatalogWorld, START_MS, app};

cases! { $ catalog_schedules:
    a_schedule_reads_back_as_it_was_made,
    a_schedule_made_again_stays_as_it_is,
    one_schedule_more_than_may_wait_is_refused,
    schedules_that_are_done_do_not_count_against_the_limit,
    schedules_come_in_the_order_of_their_ids_and_in_pages,
    schedules_are_found_by_their_job_key,
    what_is_due_comes_in_the_order_of_its_moments_over_all_applications,
    the_next_due_moment_is_the_earliest_of_those_that_wait,
    a_schedule_that_fires_once_is_done,
    a_schedule_that_repeats_waits_again,
    a_firing_that_has_begun_is_still_due,
    a_firing_begun_again_goes_out_under_the_newer_id,
    only_the_firing_that_is_due_begins,
    only_a_firing_that_has_begun_ends_and_it_ends_once,
    a_schedule_that_waits_is_changed,
    a_schedule_that_is_being_fired_or_done_is_neither_changed_nor_deleted,
    another_applications_schedule_is_out_of_reach,
    a_deleted_schedule_is_gone,
    what_is_done_is_forgotten_from_a_moment_on,
    no_race_makes_more_schedules_than_may_wait,
    of_firing_and_deleting_at_once_one_succeeds,
}

const MANY: usize = 1000;
const DUE: u64 = START_MS + 60_000;

fn schedule(of: &str, id: u128) -> Schedule {
    Schedule {
        id: MessageId(id),
        app: app(of),
        job_key: None,
        created_at_ms: START_MS,
        due_ms: DUE,
        local_time: None,
        repeat: None,
        send: format!("send {id}").into_bytes(),
        state: ScheduleState::Waiting,
        firing: None,
        last_message: None,
        fired: 0,
    }
}

fn daily() -> Repeat {
    Repeat { cron: "0 9 * * 1-5".into(), time_zone: "Asia/Shanghai".into(), until_ms: Some(DUE + 1_000_000) }
}

impl CatalogWorld {
    async fn create(&self, schedule: Schedule) {
        assert_eq!(self.catalog.create_schedule(schedule, MANY).await.unwrap(), Created::New);
    }

    /// The schedule with that id of application `a`.
    async fn stored(&self, id: u128) -> Option<Schedule> {
        self.catalog.schedule(&app("a"), MessageId(id)).await.unwrap()
    }

    async fn begin(&self, id: u128, due_ms: u64, message: u128) -> bool {
        self.catalog.begin_firing(MessageId(id), due_ms, MessageId(message)).await.unwrap()
    }

    async fn end(&self, id: u128, due_ms: u64, next_due_ms: Option<u64>) -> bool {
        self.catalog.fired(MessageId(id), due_ms, next_due_ms).await.unwrap()
    }

    /// Fires a schedule for the last time.
    async fn finish(&self, id: u128, due_ms: u64) {
        assert!(self.begin(id, due_ms, 1000 + id).await);
        assert!(self.end(id, due_ms, None).await);
    }

    async fn due(&self, now_ms: u64, limit: usize) -> Vec<u128> {
        ids(&self.catalog.due_schedules(now_ms, limit).await.unwrap())
    }

    async fn listed(&self, of: &str, after: Option<u128>, limit: usize) -> Vec<u128> {
        ids(&self.catalog.schedules(&app(of), after.map(MessageId), limit).await.unwrap())
    }

    /// Tries to change a schedule of application `a` to what no case has: whether it was done.
    async fn change(&self, of: &str, id: u128) -> bool {
        let (id, send) = (MessageId(id), b"other".to_vec());
        self.catalog.change_schedule(&app(of), id, DUE + 5, Some("later".into()), Some(daily()), send).await.unwrap()
    }

    async fn delete(&self, of: &str, id: u128) -> bool {
        self.catalog.delete_schedule(&app(of), MessageId(id)).await.unwrap()
    }
}

fn ids(schedules: &[Schedule]) -> Vec<u128> {
    schedules.iter().map(|schedule| schedule.id.0).collect()
}

pub(crate) async fn a_schedule_reads_back_as_it_was_made(world: CatalogWorld) {
    let written = [
        schedule("a", 1),
        Schedule {
            job_key: Some("job_key-1".into()),
            local_time: Some("2026-12-01T09:00".into()),
            repeat: Some(daily()),
            send: (0..=255).cycle().take(100_000).collect(),
            firing: Some(Firing { due_ms: DUE, message: MessageId(u128::MAX) }),
            last_message: Some(MessageId(7)),
            fired: 3,
            ..schedule("a", 2)
        },
        Schedule {
            due_ms: i64::MAX.unsigned_abs(),
            repeat: Some(Repeat { until_ms: None, ..daily() }),
            send: Vec::new(),
            state: ScheduleState::Done,
            ..schedule("a", u128::MAX)
        },
    ];
    for schedule in &written {
        world.create(schedule.clone()).await;
        assert_eq!(world.stored(schedule.id.0).await.as_ref(), Some(schedule));
    }
    assert_eq!(world.catalog.schedules(&app("a"), None, MANY).await.unwrap(), written);
    assert_eq!(world.stored(3).await, None);
}

pub(crate) async fn a_schedule_made_again_stays_as_it_is(world: CatalogWorld) {
    world.create(schedule("a", 1)).await;
    let other = Schedule { due_ms: DUE + 1, send: b"other".to_vec(), ..schedule("a", 1) };
    // Also when there is no room, for the first attempt took it; also when it has moved on since.
    for (again, waiting_max) in [(schedule("a", 1), MANY), (other, MANY), (schedule("a", 1), 1), (schedule("b", 1), 0)]
    {
        assert_eq!(world.catalog.create_schedule(again, waiting_max).await.unwrap(), Created::Exists);
        assert_eq!(world.catalog.schedules(&app("a"), None, MANY).await.unwrap(), [schedule("a", 1)]);
        assert!(world.listed("b", None, MANY).await.is_empty());
    }
    world.finish(1, DUE).await;
    let done = world.stored(1).await;
    assert_eq!(world.catalog.create_schedule(schedule("a", 1), MANY).await.unwrap(), Created::Exists);
    assert_eq!(world.stored(1).await, done);
}

pub(crate) async fn one_schedule_more_than_may_wait_is_refused(world: CatalogWorld) {
    let create =
        async |of: &str, id, waiting_max| world.catalog.create_schedule(schedule(of, id), waiting_max).await.unwrap();
    assert_eq!(create("a", 1, 0).await, Created::Full);
    assert_eq!(create("a", 1, 2).await, Created::New);
    assert_eq!(create("a", 2, 2).await, Created::New);
    assert_eq!(create("a", 3, 2).await, Created::Full);
    assert_eq!(world.listed("a", None, MANY).await, [1, 2]);
    assert_eq!(create("b", 3, 2).await, Created::New, "the limit is each application's own");
    assert!(world.delete("a", 1).await);
    assert_eq!(create("a", 4, 2).await, Created::New);
}

pub(crate) async fn schedules_that_are_done_do_not_count_against_the_limit(world: CatalogWorld) {
    world.create(schedule("a", 1)).await;
    assert!(world.begin(1, DUE, 100).await);
    assert_eq!(world.catalog.create_schedule(schedule("a", 2), 1).await.unwrap(), Created::Full);
    assert!(world.end(1, DUE, None).await);
    assert_eq!(world.catalog.create_schedule(schedule("a", 2), 1).await.unwrap(), Created::New);
    assert_eq!(world.listed("a", None, MANY).await, [1, 2]);
}

pub(crate) async fn schedules_come_in_the_order_of_their_ids_and_in_pages(world: CatalogWorld) {
    // The first byte of an id has its weight, also above 127; when they are due has none.
    let sorted = [1, 0x0100, 1 << 64, 1 << 127, u128::MAX - 1, u128::MAX];
    for (before, id) in (0..).zip([1 << 127, 1, u128::MAX, 1 << 64, 0x0100, u128::MAX - 1]) {
        world.create(Schedule { due_ms: DUE - before, ..schedule("a", id) }).await;
    }
    world.create(schedule("b", 2)).await;
    world.finish(0x0100, DUE - 4).await;
    assert_eq!(world.listed("a", None, MANY).await, sorted);
    assert_eq!(world.listed("a", None, usize::MAX).await, sorted);
    assert_eq!(world.listed("a", None, 2).await, sorted[..2]);
    assert!(world.listed("a", None, 0).await.is_empty());
    for (index, id) in sorted.into_iter().enumerate() {
        let rest = &sorted[index + 1..];
        assert_eq!(world.listed("a", Some(id), MANY).await, rest);
        assert_eq!(world.listed("a", Some(id), 2).await, rest[..rest.len().min(2)]);
    }
    assert_eq!(world.listed("a", Some(2), 1).await, [0x0100], "after an id that is another application's");
}

pub(crate) async fn schedules_are_found_by_their_job_key(world: CatalogWorld) {
    let with_key = |of, id, key: &str| Schedule { job_key: Some(key.into()), ..schedule(of, id) };
    for written in [
        with_key("a", 3, "key"),
        with_key("a", 1, "key"),
        with_key("a", 2, "KEY"),
        with_key("a", 4, "key "),
        with_key("b", 5, "key"),
        schedule("a", 6),
    ] {
        world.create(written).await;
    }
    world.finish(1, DUE).await;
    let find = async |key: &str, limit| ids(&world.catalog.schedules_by_job_key(&app("a"), key, limit).await.unwrap());
    assert_eq!(find("key", MANY).await, [1, 3]);
    assert_eq!(find("key", 1).await, [1]);
    assert_eq!(find("KEY", MANY).await, [2]);
    assert!(find("", MANY).await.is_empty());
    assert!(find("ke", MANY).await.is_empty());
    assert!(world.delete("a", 3).await);
    assert_eq!(find("key", MANY).await, [1]);
}

pub(crate) async fn what_is_due_comes_in_the_order_of_its_moments_over_all_applications(world: CatalogWorld) {
    for (of, id, due_ms) in [("a", 1, 30), ("b", 2, 10), ("a", u128::MAX, 20), ("b", 4, 20), ("a", 5, 40)] {
        world.create(Schedule { due_ms, ..schedule(of, id) }).await;
    }
    world.create(Schedule { due_ms: 5, state: ScheduleState::Done, ..schedule("a", 6) }).await;
    let sorted = [2, 4, u128::MAX, 1, 5];
    assert!(world.due(9, MANY).await.is_empty());
    for (now_ms, count) in [(10, 1), (19, 1), (20, 3), (30, 4), (39, 4), (40, 5), (u64::MAX, 5)] {
        assert_eq!(world.due(now_ms, MANY).await, sorted[..count], "at {now_ms}");
    }
    assert_eq!(world.due(40, 3).await, sorted[..3]);
    assert!(world.due(40, 0).await.is_empty());
    let first = world.catalog.due_schedules(40, 1).await.unwrap();
    assert_eq!(first, [Schedule { due_ms: 10, ..schedule("b", 2) }]);
}

pub(crate) async fn the_next_due_moment_is_the_earliest_of_those_that_wait(world: CatalogWorld) {
    assert_eq!(world.catalog.next_due_ms().await.unwrap(), None);
    for (of, id, due_ms) in [("a", 1, 30), ("b", 2, 10), ("a", 3, 20)] {
        world.create(Schedule { due_ms, ..schedule(of, id) }).await;
    }
    assert_eq!(world.catalog.next_due_ms().await.unwrap(), Some(10));
    assert!(world.begin(2, 10, 100).await);
    assert_eq!(world.catalog.next_due_ms().await.unwrap(), Some(10), "its firing isn't over");
    assert!(world.end(2, 10, Some(25)).await);
    assert_eq!(world.catalog.next_due_ms().await.unwrap(), Some(20));
    assert!(world.delete("a", 3).await);
    assert_eq!(world.catalog.next_due_ms().await.unwrap(), Some(25));
    world.finish(2, 25).await;
    world.finish(1, 30).await;
    assert_eq!(world.catalog.next_due_ms().await.unwrap(), None);
}

pub(crate) async fn a_schedule_that_fires_once_is_done(world: CatalogWorld) {
    world.create(schedule("a", 1)).await;
    assert!(world.begin(1, DUE, 100).await);
    let firing = Some(Firing { due_ms: DUE, message: MessageId(100) });
    assert_eq!(world.stored(1).await, Some(Schedule { firing, ..schedule("a", 1) }));
    assert!(world.end(1, DUE, None).await);
    let done =
        Schedule { state: ScheduleState::Done, last_message: Some(MessageId(100)), fired: 1, ..schedule("a", 1) };
    assert_eq!(world.stored(1).await, Some(done));
    assert!(world.due(u64::MAX, MANY).await.is_empty());
    assert!(!world.begin(1, DUE, 101).await, "a schedule that is done doesn't fire");
}

pub(crate) async fn a_schedule_that_repeats_waits_again(world: CatalogWorld) {
    let repeating = Schedule { repeat: Some(daily()), ..schedule("a", 1) };
    world.create(repeating.clone()).await;
    for round in 0..3u64 {
        let due_ms = DUE + 10 * round;
        let message = 100 + u128::from(round);
        assert!(world.begin(1, due_ms, message).await);
        assert!(world.end(1, due_ms, Some(due_ms + 10)).await);
        let waiting = Schedule {
            due_ms: due_ms + 10,
            last_message: Some(MessageId(message)),
            fired: round + 1,
            ..repeating.clone()
        };
        assert_eq!(world.stored(1).await, Some(waiting));
        assert!(world.due(due_ms + 9, MANY).await.is_empty());
        assert_eq!(world.due(due_ms + 10, MANY).await, [1]);
    }
}

pub(crate) async fn a_firing_that_has_begun_is_still_due(world: CatalogWorld) {
    world.create(schedule("a", 1)).await;
    assert!(world.begin(1, DUE, 100).await);
    let found = world.catalog.due_schedules(DUE, MANY).await.unwrap();
    assert_eq!(ids(&found), [1]);
    assert_eq!(found[0].firing, Some(Firing { due_ms: DUE, message: MessageId(100) }));
}

pub(crate) async fn a_firing_begun_again_goes_out_under_the_newer_id(world: CatalogWorld) {
    world.create(schedule("a", 1)).await;
    for message in [100, 100, 50] {
        assert!(world.begin(1, DUE, message).await);
        let firing = world.stored(1).await.unwrap().firing;
        assert_eq!(firing, Some(Firing { due_ms: DUE, message: MessageId(message) }));
    }
    assert!(world.end(1, DUE, None).await);
    let done = world.stored(1).await.unwrap();
    assert_eq!((done.last_message, done.fired), (Some(MessageId(50)), 1));
}

pub(crate) async fn only_the_firing_that_is_due_begins(world: CatalogWorld) {
    world.create(schedule("a", 1)).await;
    world.create(schedule("a", 2)).await;
    for (id, due_ms) in [(1, DUE - 1), (1, DUE + 1), (1, 0), (3, DUE)] {
        assert!(!world.begin(id, due_ms, 100).await, "{id} at {due_ms}");
    }
    assert_eq!(world.catalog.schedules(&app("a"), None, MANY).await.unwrap(), [schedule("a", 1), schedule("a", 2)]);
    // It was changed since it was found due.
    assert!(world.change("a", 1).await);
    assert!(!world.begin(1, DUE, 100).await);
    assert!(world.begin(1, DUE + 5, 100).await);
    // It went on since it was found due.
    assert!(world.end(1, DUE + 5, Some(DUE + 6)).await);
    assert!(!world.begin(1, DUE + 5, 101).await);
    assert_eq!(world.stored(1).await.unwrap().firing, None);
    assert_eq!(world.stored(2).await, Some(schedule("a", 2)));
}

pub(crate) async fn only_a_firing_that_has_begun_ends_and_it_ends_once(world: CatalogWorld) {
    world.create(schedule("a", 1)).await;
    world.create(schedule("a", 2)).await;
    assert!(!world.end(1, DUE, None).await, "it hasn't begun");
    assert_eq!(world.stored(1).await, Some(schedule("a", 1)));
    assert!(world.begin(1, DUE, 100).await);
    for (id, due_ms) in [(1, DUE - 1), (1, DUE + 1), (2, DUE), (3, DUE)] {
        assert!(!world.end(id, due_ms, None).await, "{id} at {due_ms}");
    }
    assert!(world.end(1, DUE, Some(DUE + 10)).await);
    let waiting = world.stored(1).await;
    for next_due_ms in [Some(DUE + 10), None] {
        assert!(!world.end(1, DUE, next_due_ms).await, "it is over");
        assert_eq!(world.stored(1).await, waiting);
    }
    world.finish(1, DUE + 10).await;
    let done = world.stored(1).await;
    assert!(!world.end(1, DUE + 10, Some(DUE + 20)).await, "it is over for good");
    assert_eq!(world.stored(1).await, done);
    assert_eq!(world.stored(2).await, Some(schedule("a", 2)));
}

pub(crate) async fn a_schedule_that_waits_is_changed(world: CatalogWorld) {
    let before = Schedule { job_key: Some("key".into()), ..schedule("a", 1) };
    world.create(before.clone()).await;
    world.create(schedule("a", 2)).await;
    // Once more is the same.
    for _ in 0..2 {
        assert!(world.change("a", 1).await);
        let changed = Schedule {
            due_ms: DUE + 5,
            local_time: Some("later".into()),
            repeat: Some(daily()),
            send: b"other".to_vec(),
            ..before.clone()
        };
        assert_eq!(world.stored(1).await, Some(changed));
    }
    assert!(world.due(DUE + 4, MANY).await == [2]);
    let back = world.catalog.change_schedule(&app("a"), MessageId(1), DUE, None, None, before.send.clone()).await;
    assert!(back.unwrap());
    assert_eq!(world.stored(1).await, Some(before));
    assert_eq!(world.stored(2).await, Some(schedule("a", 2)));
    // Between two firings it waits as well.
    assert!(world.begin(1, DUE, 100).await && world.end(1, DUE, Some(DUE + 1)).await);
    assert!(world.change("a", 1).await);
    let changed = world.stored(1).await.unwrap();
    assert_eq!((changed.due_ms, changed.fired, changed.last_message), (DUE + 5, 1, Some(MessageId(100))));
}

pub(crate) async fn a_schedule_that_is_being_fired_or_done_is_neither_changed_nor_deleted(world: CatalogWorld) {
    world.create(schedule("a", 1)).await;
    assert!(world.begin(1, DUE, 100).await);
    let fired = world.stored(1).await;
    assert!(!world.change("a", 1).await && !world.delete("a", 1).await);
    assert_eq!(world.stored(1).await, fired);
    assert!(world.end(1, DUE, None).await);
    let done = world.stored(1).await;
    assert!(!world.change("a", 1).await && !world.delete("a", 1).await);
    assert_eq!(world.stored(1).await, done);
}

pub(crate) async fn another_applications_schedule_is_out_of_reach(world: CatalogWorld) {
    world.create(schedule("a", 1)).await;
    assert_eq!(world.catalog.schedule(&app("b"), MessageId(1)).await.unwrap(), None);
    assert!(!world.change("b", 1).await && !world.delete("b", 1).await);
    assert_eq!(world.stored(1).await, Some(schedule("a", 1)));
}

pub(crate) async fn a_deleted_schedule_is_gone(world: CatalogWorld) {
    world.create(schedule("a", 1)).await;
    world.create(schedule("a", 2)).await;
    assert!(world.delete("a", 1).await);
    assert!(!world.delete("a", 1).await && !world.change("a", 1).await && !world.begin(1, DUE, 100).await);
    assert_eq!(world.stored(1).await, None);
    assert_eq!(world.due(DUE, MANY).await, [2]);
}

pub(crate) async fn what_is_done_is_forgotten_from_a_moment_on(world: CatalogWorld) {
    for (of, id, due_ms) in [("a", 1, 10), ("b", 2, 10), ("a", 3, 20), ("a", 4, 5), ("a", 5, 5)] {
        world.create(Schedule { due_ms, ..schedule(of, id) }).await;
    }
    for (id, due_ms) in [(1, 10), (2, 10), (3, 20)] {
        world.finish(id, due_ms).await;
    }
    assert!(world.begin(5, 5, 100).await);
    assert_eq!(world.catalog.forget_schedules_before(10).await.unwrap(), 0);
    assert_eq!(world.catalog.forget_schedules_before(11).await.unwrap(), 2);
    assert_eq!(world.catalog.forget_schedules_before(11).await.unwrap(), 0);
    assert_eq!(world.listed("a", None, MANY).await, [3, 4, 5]);
    assert!(world.listed("b", None, MANY).await.is_empty());
    assert_eq!(world.catalog.forget_schedules_before(u64::MAX).await.unwrap(), 1);
    assert_eq!(world.listed("a", None, MANY).await, [4, 5], "what waits isn't forgotten, however late it is");
}

pub(crate) async fn no_race_makes_more_schedules_than_may_wait(world: CatalogWorld) {
    let creates = (1..=20).map(|id| {
        let catalog = world.catalog.clone();
        tokio::spawn(async move { catalog.create_schedule(schedule("a", id), 5).await.unwrap() })
    });
    let mut new = 0;
    for create in creates.collect::<Vec<_>>() {
        new += usize::from(create.await.unwrap() == Created::New);
    }
    assert_eq!((new, world.listed("a", None, MANY).await.len()), (5, 5));
}

pub(crate) async fn of_firing_and_deleting_at_once_one_succeeds(world: CatalogWorld) {
    for id in 1..=20 {
        world.create(schedule("a", id)).await;
        let (firing, deleting) = (world.catalog.clone(), world.catalog.clone());
        let fire = tokio::spawn(async move { firing.begin_firing(MessageId(id), DUE, MessageId(100)).await.unwrap() });
        let delete = tokio::spawn(async move { deleting.delete_schedule(&app("a"), MessageId(id)).await.unwrap() });
        let (fired, deleted) = (fire.await.unwrap(), delete.await.unwrap());
        assert_ne!(fired, deleted);
        assert_eq!(world.stored(id).await.is_some(), fired);
    }
}
