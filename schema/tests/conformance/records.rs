//! Records of messages, and job keys.

use idl::ids::{AppId, MessageId};
use schema::batch::Batch;
use schema::records::{Ended, Record, Records, Resolved, Tally};
use schema::sorted::{RowScan, StoreError, Table};

use crate::world::{START_MS, World, app, put, regid};

cases! { $ records:
    a_record_reads_back_as_it_was_written,
    a_record_is_found_by_its_app_and_id_alone,
    records_are_read_in_the_asked_order,
    a_single_send_is_one_cell_and_a_thousand_targets_are_two,
    a_record_written_again_with_fewer_targets_has_those,
    how_many_it_is_for_may_be_known_later,
    an_end_outlives_the_record_being_written_again,
    counts_are_summed_over_lives_and_within_a_life_the_last_goes,
    counts_that_overflow_stay_at_the_largest,
    counts_without_a_record_are_none,
    the_newest_of_an_app_come_first_in_every_bucket,
    a_time_begins_with_its_first_millisecond_and_ends_before_its_last,
    a_list_passes_over_counts_without_a_record,
    a_job_key_finds_its_messages_the_newest_first,
    job_keys_that_begin_alike_do_not_mix,
    a_job_key_passes_over_what_has_no_record,
    all_of_a_record_expires_at_once,
    a_damaged_record_is_named,
}

const KEEP_MS: u64 = START_MS + 20_000;

fn record(id: u128) -> Record {
    Record {
        id: MessageId(id),
        app: app("demo"),
        kind: 1,
        created_at_ms: START_MS,
        expires_at_ms: START_MS + 10_000,
        keep_until_ms: KEEP_MS,
        job_key: None,
        topic: None,
        targets: vec![regid(1)],
        broadcast: false,
        invalid_targets: 0,
        schedule: None,
        has_callback: false,
        resolved: Some(Resolved { registrations: 1, exact: true }),
        ended: None,
        tally: Tally::default(),
    }
}

fn with_job_key(id: u128, job_key: &str) -> Record {
    Record { job_key: Some(job_key.to_owned()), ..record(id) }
}

async fn write(world: &World, fill: impl FnOnce(&mut Batch)) {
    let mut batch = Batch::default();
    fill(&mut batch);
    batch.write(world.store.as_ref()).await.unwrap();
}

async fn write_all(world: &World, records: &[Record]) {
    write(world, |batch| records.iter().for_each(|record| batch.record(record))).await;
}

async fn get(world: &World, id: u128) -> Option<Record> {
    Records::new(world.store.clone()).get(&app("demo"), MessageId(id)).await.unwrap()
}

async fn between(world: &World, app: &AppId, begin_ms: u64, end_ms: u64, limit: usize) -> Vec<u128> {
    let found = Records::new(world.store.clone()).between(app, begin_ms, end_ms, limit).await.unwrap();
    found.iter().map(|record| record.id.0).collect()
}

async fn by_job_key(world: &World, job_key: &str, limit: usize) -> Vec<u128> {
    let found = Records::new(world.store.clone()).by_job_key(&app("demo"), job_key, limit).await.unwrap();
    found.iter().map(|record| record.id.0).collect()
}

/// How many cells a table has.
async fn cells(world: &World, table: Table) -> usize {
    let scan = RowScan { table, from: Vec::new(), to: None, rows_max: usize::MAX };
    world.store.scan(scan).await.unwrap().iter().map(|row| row.cells.len()).sum()
}

pub(crate) async fn a_record_reads_back_as_it_was_written(world: World) {
    let several = Record {
        targets: (0..=255).map(regid).collect(),
        job_key: Some("job".into()),
        invalid_targets: 7,
        schedule: Some(MessageId(99)),
        has_callback: true,
        resolved: None,
        ..record(2)
    };
    let broadcast = Record {
        kind: 4,
        topic: Some("news;$;sport".into()),
        targets: Vec::new(),
        broadcast: true,
        resolved: Some(Resolved { registrations: 5_000_000, exact: false }),
        ended: Some(Ended { at_ms: START_MS + 1, revoked: true }),
        ..record(3)
    };
    let records = [record(1), several, broadcast];
    for _ in 0..2 {
        write_all(&world, &records).await;
        for record in &records {
            assert_eq!(get(&world, record.id.0).await.as_ref(), Some(record));
        }
    }
}

pub(crate) async fn a_record_is_found_by_its_app_and_id_alone(world: World) {
    write_all(&world, &[record(16)]).await;
    assert_eq!(get(&world, 32).await, None);
    let records = Records::new(world.store);
    assert_eq!(records.get(&app("other"), MessageId(16)).await.unwrap(), None);
    assert_eq!(records.get(&app("demo"), MessageId(16)).await.unwrap(), Some(record(16)));
}

pub(crate) async fn records_are_read_in_the_asked_order(world: World) {
    write_all(&world, &[record(1), record(2)]).await;
    let records = Records::new(world.store);
    let found = records.get_many(&app("demo"), &[2, 9, 1].map(MessageId)).await.unwrap();
    assert_eq!(found, [Some(record(2)), None, Some(record(1))]);
    assert!(records.get_many(&app("demo"), &[]).await.unwrap().is_empty());
}

pub(crate) async fn a_single_send_is_one_cell_and_a_thousand_targets_are_two(world: World) {
    write_all(&world, &[record(1), Record { targets: Vec::new(), broadcast: true, ..record(2) }]).await;
    assert_eq!((cells(&world, Table::Records).await, cells(&world, Table::JobKeys).await), (2, 0));
    let many = Record { targets: (0..=255).cycle().take(1000).map(regid).collect(), ..with_job_key(3, "job") };
    write_all(&world, std::slice::from_ref(&many)).await;
    assert_eq!((cells(&world, Table::Records).await, cells(&world, Table::JobKeys).await), (4, 1));
    assert_eq!(get(&world, 3).await, Some(many));
}

pub(crate) async fn a_record_written_again_with_fewer_targets_has_those(world: World) {
    for targets in [vec![regid(1), regid(2), regid(3)], vec![regid(4), regid(5)], vec![regid(6)], Vec::new()] {
        let record = Record { targets, ..record(1) };
        write_all(&world, std::slice::from_ref(&record)).await;
        assert_eq!(get(&world, 1).await, Some(record));
    }
}

pub(crate) async fn how_many_it_is_for_may_be_known_later(world: World) {
    write_all(&world, &[Record { resolved: None, ..record(1) }, record(2)]).await;
    let exact = Resolved { registrations: 12, exact: true };
    for (id, resolved) in [(1, Resolved { registrations: 9, exact: false }), (1, exact), (2, exact)] {
        write(&world, |batch| batch.resolved(&app("demo"), MessageId(id), KEEP_MS, resolved)).await;
        assert_eq!(get(&world, id).await, Some(Record { resolved: Some(resolved), ..record(id) }));
    }
}

pub(crate) async fn an_end_outlives_the_record_being_written_again(world: World) {
    write_all(&world, &[record(1)]).await;
    for ended in [Ended { at_ms: START_MS + 5, revoked: false }, Ended { at_ms: START_MS + 6, revoked: true }] {
        write(&world, |batch| batch.ended(&app("demo"), MessageId(1), KEEP_MS, ended)).await;
        let expected = Some(Record { ended: Some(ended), ..record(1) });
        assert_eq!(get(&world, 1).await, expected);
        write_all(&world, &[record(1)]).await;
        assert_eq!(get(&world, 1).await, expected);
    }
}

pub(crate) async fn counts_are_summed_over_lives_and_within_a_life_the_last_goes(world: World) {
    write_all(&world, &[record(1)]).await;
    let counts = [(1, 10, 1), (2, 20, 2), (1, 11, 1), (u128::MAX, 100, 3), (u128::MAX, 100, 3)];
    for (life, delivered, clicked) in counts {
        let tally = Tally { delivered, clicked };
        write(&world, |batch| batch.tally(&app("demo"), MessageId(1), KEEP_MS, life, tally)).await;
    }
    let expected = Record { tally: Tally { delivered: 131, clicked: 6 }, ..record(1) };
    assert_eq!(get(&world, 1).await, Some(expected));
}

pub(crate) async fn counts_that_overflow_stay_at_the_largest(world: World) {
    write_all(&world, &[record(1)]).await;
    for life in [1, 2] {
        let tally = Tally { delivered: u64::MAX, clicked: 1 };
        write(&world, |batch| batch.tally(&app("demo"), MessageId(1), KEEP_MS, life, tally)).await;
    }
    assert_eq!(get(&world, 1).await.unwrap().tally, Tally { delivered: u64::MAX, clicked: 2 });
}

pub(crate) async fn counts_without_a_record_are_none(world: World) {
    write(&world, |batch| {
        batch.tally(&app("demo"), MessageId(1), KEEP_MS, 1, Tally { delivered: 1, clicked: 1 });
        batch.ended(&app("demo"), MessageId(2), KEEP_MS, Ended { at_ms: 1, revoked: true });
        batch.resolved(&app("demo"), MessageId(3), KEEP_MS, Resolved { registrations: 1, exact: true });
    })
    .await;
    for id in 1..=3 {
        assert_eq!(get(&world, id).await, None);
    }
}

pub(crate) async fn the_newest_of_an_app_come_first_in_every_bucket(world: World) {
    // Several in each bucket, and one bucket that has the most.
    let mut ids: Vec<u128> = (100..150).chain((1000..1400).step_by(16)).collect();
    write_all(&world, &ids.iter().map(|id| record(*id)).collect::<Vec<_>>()).await;
    write_all(&world, &[Record { app: app("other"), ..record(5000) }, Record { app: app("dem"), ..record(5000) }])
        .await;
    ids.reverse();
    for limit in [0, 1, 2, 15, 16, 17, 40, 74, 75, 1000] {
        let expected: Vec<_> = ids.iter().copied().take(limit).collect();
        assert_eq!(between(&world, &app("demo"), 0, u64::MAX, limit).await, expected, "{limit}");
    }
    assert_eq!(between(&world, &app("other"), 0, u64::MAX, 10).await, [5000]);
    assert!(between(&world, &app("nobody"), 0, u64::MAX, 10).await.is_empty());
}

pub(crate) async fn a_time_begins_with_its_first_millisecond_and_ends_before_its_last(world: World) {
    let id = |ms: u64, random: u128| MessageId::at(ms).0 + random;
    let ids = [id(999, 0xffff), id(1000, 0), id(1000, 77), id(1999, 3), id(2000, 0), id(2001, 9)];
    write_all(&world, &ids.map(record)).await;
    assert_eq!(between(&world, &app("demo"), 1000, 2000, 10).await, [ids[3], ids[2], ids[1]]);
    assert_eq!(between(&world, &app("demo"), 1000, 2001, 2).await, [ids[4], ids[3]]);
    assert_eq!(between(&world, &app("demo"), 2001, u64::MAX, 10).await, [ids[5]]);
    assert_eq!(between(&world, &app("demo"), 0, 1000, 10).await, [ids[0]]);
    for (begin_ms, end_ms) in [(1000, 1000), (2000, 1000), (0, 0), (1500, 1600), (u64::MAX, u64::MAX)] {
        assert!(between(&world, &app("demo"), begin_ms, end_ms, 10).await.is_empty(), "{begin_ms} to {end_ms}");
    }
}

pub(crate) async fn a_list_passes_over_counts_without_a_record(world: World) {
    write_all(&world, &[record(1), record(2), record(3)]).await;
    write(&world, |batch| {
        for id in 100..200 {
            batch.tally(&app("demo"), MessageId(id), KEEP_MS, 1, Tally::default());
        }
    })
    .await;
    assert_eq!(between(&world, &app("demo"), 0, u64::MAX, 2).await, [3, 2]);
    assert_eq!(between(&world, &app("demo"), 0, u64::MAX, 9).await, [3, 2, 1]);
}

pub(crate) async fn a_job_key_finds_its_messages_the_newest_first(world: World) {
    let ids = [3, 1, 256, 255, u128::MAX];
    write_all(&world, &ids.map(|id| with_job_key(id, "job"))).await;
    write_all(&world, &[record(4), Record { app: app("other"), ..with_job_key(5, "job") }]).await;
    assert_eq!(by_job_key(&world, "job", 10).await, [u128::MAX, 256, 255, 3, 1]);
    assert_eq!(by_job_key(&world, "job", 2).await, [u128::MAX, 256]);
    assert!(by_job_key(&world, "job", 0).await.is_empty());
    assert!(by_job_key(&world, "none", 10).await.is_empty());
}

pub(crate) async fn job_keys_that_begin_alike_do_not_mix(world: World) {
    write_all(&world, &[with_job_key(1, "a"), with_job_key(2, "ab"), with_job_key(3, "A"), with_job_key(4, "")]).await;
    for (job_key, id) in [("a", 1), ("ab", 2), ("A", 3), ("", 4)] {
        assert_eq!(by_job_key(&world, job_key, 10).await, [id]);
    }
}

pub(crate) async fn a_job_key_passes_over_what_has_no_record(world: World) {
    let brief = |id| Record { keep_until_ms: START_MS + 10, ..with_job_key(id, "job") };
    write_all(&world, &[with_job_key(1, "job"), with_job_key(5, "job"), brief(9), brief(8), brief(7)]).await;
    // The row of the job key is written again with another expiry, so that it outlives its record.
    let scan = RowScan { table: Table::JobKeys, from: Vec::new(), to: None, rows_max: 10 };
    for row in world.store.scan(scan).await.unwrap() {
        world.write([put(Table::JobKeys, &row.row, b"m", b"")]).await;
    }
    world.clock.set(START_MS + 10);
    assert_eq!(by_job_key(&world, "job", 2).await, [5, 1]);
    assert_eq!(by_job_key(&world, "job", 1).await, [5]);
}

pub(crate) async fn all_of_a_record_expires_at_once(world: World) {
    let many = Record { targets: vec![regid(1), regid(2)], ..with_job_key(1, "job") };
    write_all(&world, &[many]).await;
    write(&world, |batch| {
        let (app, id) = (app("demo"), MessageId(1));
        batch.resolved(&app, id, KEEP_MS, Resolved { registrations: 2, exact: true });
        batch.ended(&app, id, KEEP_MS, Ended { at_ms: START_MS, revoked: false });
        batch.tally(&app, id, KEEP_MS, 1, Tally { delivered: 1, clicked: 0 });
    })
    .await;
    world.clock.set(KEEP_MS - 1);
    assert_eq!(by_job_key(&world, "job", 10).await, [1]);
    assert_eq!(between(&world, &app("demo"), 0, u64::MAX, 10).await, [1]);
    assert!(get(&world, 1).await.is_some_and(|record| record.ended.is_some() && record.tally.delivered == 1));
    world.clock.set(KEEP_MS);
    assert_eq!(get(&world, 1).await, None);
    assert!(between(&world, &app("demo"), 0, u64::MAX, 10).await.is_empty());
    assert_eq!((world.rows(Table::Records).await, world.rows(Table::JobKeys).await), (0, 0));
}

pub(crate) async fn a_damaged_record_is_named(world: World) {
    let many = Record { targets: vec![regid(1), regid(2)], ..with_job_key(1, "job") };
    let damages: [(&[u8], &[u8]); 9] = [
        (b"b", b""),
        (b"b", b"\x02"),
        (b"b", b"\x01short"),
        (b"t", b"\x01short"),
        (b"t", b"\x09"),
        (b"r", b"\x01short"),
        (b"e", b"\x01"),
        (b"k", b""),
        (b"k0123456789abcdef", b"\x01short"),
    ];
    for (cell, value) in damages {
        write_all(&world, std::slice::from_ref(&many)).await;
        let scan = RowScan { table: Table::Records, from: Vec::new(), to: None, rows_max: 1 };
        let row = world.store.scan(scan).await.unwrap().remove(0).row;
        world.write([put(Table::Records, &row, cell, value)]).await;
        let records = Records::new(world.store.clone());
        let (app, id) = (app("demo"), MessageId(1));
        let errors = [
            records.get(&app, id).await.unwrap_err(),
            records.between(&app, 0, u64::MAX, 10).await.unwrap_err(),
            records.by_job_key(&app, "job", 10).await.unwrap_err(),
        ];
        for error in errors {
            let StoreError::Corrupt(text) = &error else { panic!("{error:?}") };
            assert!(text.starts_with("table records, row "), "{text}");
        }
        let gone = vec![schema::sorted::Mutation::DeleteRow { table: Table::Records, row }];
        world.store.write(gone).await.unwrap();
    }
    // Targets that are said to be there and are not.
    write_all(&world, &[many]).await;
    let scan = RowScan { table: Table::Records, from: Vec::new(), to: None, rows_max: 1 };
    let row = world.store.scan(scan).await.unwrap().remove(0).row;
    let gone = schema::sorted::Mutation::DeleteCell { table: Table::Records, row, cell: b"t".to_vec() };
    world.store.write(vec![gone]).await.unwrap();
    let error = Records::new(world.store).get(&app("demo"), MessageId(1)).await.unwrap_err();
    assert!(matches!(&error, StoreError::Corrupt(text) if text.ends_with("a record without its targets")), "{error}");
}
