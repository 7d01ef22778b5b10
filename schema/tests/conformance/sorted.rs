//! What every sorted store promises.

use schema::sorted::{Cells, Mutation, Row, RowRead, RowScan, Table};

use crate::world::{START_MS, World, put, put_until, read};

cases! { $ sorted:
    a_cell_reads_back_as_it_was_written,
    rows_come_in_the_asked_order_and_absent_ones_are_empty,
    many_rows_are_read_in_one_call,
    cells_are_ordered_byte_by_byte,
    one_cell_is_read_alone,
    a_range_of_cells_holds_its_first_key_and_not_its_last,
    a_prefix_holds_its_cells_alone,
    a_limit_takes_the_first_cells,
    the_later_of_two_mutations_on_a_cell_wins,
    deleting_a_row_takes_what_was_put_before_and_leaves_what_is_put_after,
    deleting_what_is_not_there_succeeds,
    writing_a_batch_twice_leaves_what_once_leaves,
    an_empty_batch_and_an_empty_read_succeed,
    an_expired_cell_is_never_returned,
    expired_cells_take_no_place_within_a_limit,
    a_cell_written_anew_lives_by_its_new_time,
    a_scan_holds_its_first_row_and_not_its_last,
    a_scan_returns_whole_rows_up_to_its_limit,
    a_scan_passes_over_rows_without_live_cells,
    keys_are_those_that_a_scan_finds,
    rows_whose_keys_begin_alike_do_not_mix,
    tables_do_not_mix,
    put_if_absent_leaves_a_live_cell_alone,
    put_if_absent_takes_the_place_of_an_expired_or_deleted_cell,
    one_of_fifty_concurrent_put_if_absent_wins,
    concurrent_writes_are_all_there,
}

const T: Table = Table::Mailboxes;

fn scan(from: &[u8], to: Option<&[u8]>, rows_max: usize) -> RowScan {
    RowScan { table: T, from: from.to_vec(), to: to.map(<[u8]>::to_vec), rows_max }
}

fn delete_cell(row: &[u8], cell: &[u8]) -> Mutation {
    Mutation::DeleteCell { table: T, row: row.to_vec(), cell: cell.to_vec() }
}

fn delete_row(row: &[u8]) -> Mutation {
    Mutation::DeleteRow { table: T, row: row.to_vec() }
}

fn cells(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(cell, value)| ((*cell).to_owned(), (*value).to_owned())).collect()
}

fn keys(rows: &[Row]) -> Vec<&[u8]> {
    rows.iter().map(|row| row.row.as_slice()).collect()
}

async fn cell_keys(world: &World, asked: Cells) -> Vec<Vec<u8>> {
    let rows = world.store.read(vec![read(T, b"row", asked)]).await.unwrap();
    rows.into_iter().flat_map(|row| row.cells).map(|(cell, _)| cell).collect()
}

pub(crate) async fn a_cell_reads_back_as_it_was_written(world: World) {
    world.write([put(T, b"row", b"cell", b"one"), put(T, b"row", b"", b"empty key"), put(T, b"row", b"e", b"")]).await;
    assert_eq!(world.row(T, b"row").await, cells(&[("", "empty key"), ("cell", "one"), ("e", "")]));
}

pub(crate) async fn rows_come_in_the_asked_order_and_absent_ones_are_empty(world: World) {
    world.write([put(T, b"a", b"c", b"1"), put(Table::Names, b"b", b"c", b"2")]).await;
    let asked = [(Table::Names, b"b"), (T, b"x"), (T, b"a"), (T, b"a")];
    let rows = world.store.read(asked.map(|(table, row)| read(table, row, Cells::All)).into()).await.unwrap();
    assert_eq!(keys(&rows), [b"b", b"x", b"a", b"a"]);
    let values: Vec<_> = rows.iter().map(|row| row.cell(b"c")).collect();
    assert_eq!(values, [Some(b"2".as_slice()), None, Some(b"1".as_slice()), Some(b"1".as_slice())]);
}

pub(crate) async fn many_rows_are_read_in_one_call(world: World) {
    world.write((0..100u8).map(|row| put(T, &[row], b"c", &[row]))).await;
    let rows = world.store.read((0..100u8).map(|row| read(T, &[row], Cells::All)).collect()).await.unwrap();
    assert_eq!(rows.len(), 100);
    assert!(rows.iter().all(|row| row.cell(b"c") == Some(row.row.as_slice())));
}

pub(crate) async fn cells_are_ordered_byte_by_byte(world: World) {
    let ordered: [&[u8]; 7] = [b"", b"\0", b"\0\0", b"\0\xff", b"a", b"a\0", b"\xff"];
    world.write(ordered.iter().rev().map(|cell| put(T, b"row", cell, b"v"))).await;
    assert_eq!(cell_keys(&world, Cells::All).await, ordered);
}

pub(crate) async fn one_cell_is_read_alone(world: World) {
    world.write([b"a".as_slice(), b"a\0", b"b"].map(|cell| put(T, b"row", cell, b"v"))).await;
    assert_eq!(cell_keys(&world, Cells::One(b"a".to_vec())).await, [b"a"]);
    assert!(cell_keys(&world, Cells::One(b"c".to_vec())).await.is_empty());
    let none = RowRead { limit: 0, ..read(T, b"row", Cells::One(b"a".to_vec())) };
    assert!(world.store.read(vec![none]).await.unwrap()[0].cells.is_empty());
}

pub(crate) async fn a_range_of_cells_holds_its_first_key_and_not_its_last(world: World) {
    world.write([b"a", b"b", b"c", b"d"].map(|cell| put(T, b"row", cell, b"v"))).await;
    let range = |from: &[u8], to: Option<&[u8]>| Cells::Range { from: from.to_vec(), to: to.map(<[u8]>::to_vec) };
    assert_eq!(cell_keys(&world, range(b"b", Some(b"d"))).await, [b"b", b"c"]);
    assert_eq!(cell_keys(&world, range(b"b\0", None)).await, [b"c", b"d"]);
    assert!(cell_keys(&world, range(b"b", Some(b"b"))).await.is_empty());
    assert!(cell_keys(&world, range(b"d", Some(b"a"))).await.is_empty(), "an inverted range is empty");
}

pub(crate) async fn a_prefix_holds_its_cells_alone(world: World) {
    world
        .write([b"a".as_slice(), b"ab", b"b", b"\xff", b"\xff\xff", b"\xfe"].map(|cell| put(T, b"row", cell, b"v")))
        .await;
    world.write([put(T, b"rox", b"a", b"another row")]).await;
    assert_eq!(cell_keys(&world, Cells::Prefix(b"a".to_vec())).await, [b"a".as_slice(), b"ab"]);
    assert_eq!(cell_keys(&world, Cells::Prefix(b"\xff".to_vec())).await, [b"\xff".as_slice(), b"\xff\xff"]);
    assert_eq!(cell_keys(&world, Cells::Prefix(Vec::new())).await.len(), 6);
}

pub(crate) async fn a_limit_takes_the_first_cells(world: World) {
    world.write([b"c", b"a", b"b"].map(|cell| put(T, b"row", cell, b"v"))).await;
    let rows = world.store.read(vec![RowRead { limit: 2, ..read(T, b"row", Cells::All) }]).await.unwrap();
    let found: Vec<_> = rows[0].cells.iter().map(|(cell, _)| cell.as_slice()).collect();
    assert_eq!(found, [b"a", b"b"]);
}

pub(crate) async fn the_later_of_two_mutations_on_a_cell_wins(world: World) {
    let batch = vec![
        Mutation::Put(put(T, b"row", b"deleted", b"1")),
        delete_cell(b"row", b"deleted"),
        delete_cell(b"row", b"put"),
        Mutation::Put(put(T, b"row", b"put", b"1")),
        Mutation::Put(put(T, b"row", b"twice", b"1")),
        Mutation::Put(put(T, b"row", b"twice", b"2")),
    ];
    world.store.write(batch).await.unwrap();
    assert_eq!(world.row(T, b"row").await, cells(&[("put", "1"), ("twice", "2")]));
}

pub(crate) async fn deleting_a_row_takes_what_was_put_before_and_leaves_what_is_put_after(world: World) {
    world.write([put(T, b"row", b"stored", b"1"), put(T, b"row\0", b"neighbour", b"1")]).await;
    let batch = vec![
        Mutation::Put(put(T, b"row", b"before", b"1")),
        delete_row(b"row"),
        Mutation::Put(put(T, b"row", b"after", b"1")),
    ];
    world.store.write(batch).await.unwrap();
    assert_eq!(world.row(T, b"row").await, cells(&[("after", "1")]));
    assert_eq!(world.row(T, b"row\0").await, cells(&[("neighbour", "1")]));
}

pub(crate) async fn deleting_what_is_not_there_succeeds(world: World) {
    world.store.write(vec![delete_cell(b"row", b"cell"), delete_row(b"row")]).await.unwrap();
    assert!(world.row(T, b"row").await.is_empty());
}

pub(crate) async fn writing_a_batch_twice_leaves_what_once_leaves(world: World) {
    let batch = vec![
        Mutation::Put(put(T, b"row", b"a", b"1")),
        delete_row(b"row"),
        Mutation::Put(put(T, b"row", b"b", b"1")),
        delete_cell(b"row", b"c"),
    ];
    for _ in 0..2 {
        world.store.write(batch.clone()).await.unwrap();
        assert_eq!(world.row(T, b"row").await, cells(&[("b", "1")]));
    }
}

pub(crate) async fn an_empty_batch_and_an_empty_read_succeed(world: World) {
    world.store.write(Vec::new()).await.unwrap();
    assert!(world.store.read(Vec::new()).await.unwrap().is_empty());
}

pub(crate) async fn an_expired_cell_is_never_returned(world: World) {
    world.write([put_until(T, b"row", b"short", b"1", START_MS + 5), put(T, b"row", b"stays", b"1")]).await;
    world.clock.set(START_MS + 4);
    assert_eq!(world.row(T, b"row").await, cells(&[("short", "1"), ("stays", "1")]));
    world.clock.set(START_MS + 5);
    assert_eq!(world.row(T, b"row").await, cells(&[("stays", "1")]));
    assert!(cell_keys(&world, Cells::One(b"short".to_vec())).await.is_empty());
    assert_eq!(world.store.scan(scan(b"", None, 9)).await.unwrap()[0].cells.len(), 1);
    world.write([put_until(T, b"row", b"late", b"1", START_MS), put_until(T, b"row", b"never", b"1", 0)]).await;
    assert_eq!(world.row(T, b"row").await, cells(&[("stays", "1")]), "one that has expired is not there at all");
}

pub(crate) async fn expired_cells_take_no_place_within_a_limit(world: World) {
    world.write([put_until(T, b"row", b"a", b"1", START_MS + 5), put(T, b"row", b"b", b"1")]).await;
    world.clock.set(START_MS + 5);
    let rows = world.store.read(vec![RowRead { limit: 1, ..read(T, b"row", Cells::All) }]).await.unwrap();
    assert_eq!(rows[0].cell(b"b"), Some(b"1".as_slice()));
}

pub(crate) async fn a_cell_written_anew_lives_by_its_new_time(world: World) {
    world.write([b"longer", b"always", b"sooner"].map(|cell| put_until(T, b"row", cell, b"1", START_MS + 5))).await;
    world
        .write([
            put_until(T, b"row", b"longer", b"2", START_MS + 50),
            put(T, b"row", b"always", b"2"),
            put_until(T, b"row", b"sooner", b"2", START_MS + 1),
        ])
        .await;
    world.clock.set(START_MS + 1);
    assert_eq!(world.row(T, b"row").await, cells(&[("always", "2"), ("longer", "2")]));
    world.clock.set(START_MS + 49);
    world.write([put(T, b"other", b"c", b"a write may sweep")]).await;
    assert_eq!(world.row(T, b"row").await, cells(&[("always", "2"), ("longer", "2")]));
    world.clock.set(START_MS + 50);
    assert_eq!(world.row(T, b"row").await, cells(&[("always", "2")]));
}

pub(crate) async fn a_scan_holds_its_first_row_and_not_its_last(world: World) {
    world.write([b"a", b"b", b"c", b"d"].map(|row| put(T, row, b"c", b"v"))).await;
    assert_eq!(keys(&world.store.scan(scan(b"b", Some(b"d"), 9)).await.unwrap()), [b"b", b"c"]);
    assert_eq!(keys(&world.store.scan(scan(b"c\0", None, 9)).await.unwrap()), [b"d"]);
    assert!(world.store.scan(scan(b"b", Some(b"b"), 9)).await.unwrap().is_empty());
    assert!(world.store.scan(scan(b"d", Some(b"a"), 9)).await.unwrap().is_empty(), "an inverted range is empty");
}

pub(crate) async fn a_scan_returns_whole_rows_up_to_its_limit(world: World) {
    world
        .write([b"a", b"b", b"c"].iter().flat_map(|row| [b"1", b"2", b"3"].map(|cell| put(T, *row, cell, b"v"))))
        .await;
    let rows = world.store.scan(scan(b"", None, 2)).await.unwrap();
    assert_eq!(keys(&rows), [b"a", b"b"]);
    assert!(rows.iter().all(|row| row.cells.len() == 3), "{rows:?}");
    assert!(world.store.scan(scan(b"", None, 0)).await.unwrap().is_empty());
}

pub(crate) async fn a_scan_passes_over_rows_without_live_cells(world: World) {
    world
        .write([put_until(T, b"a", b"c", b"v", START_MS + 5), put(T, b"b", b"c", b"v"), put(T, b"c", b"c", b"v")])
        .await;
    world.store.write(vec![delete_cell(b"b", b"c")]).await.unwrap();
    world.clock.set(START_MS + 5);
    assert_eq!(keys(&world.store.scan(scan(b"", None, 1)).await.unwrap()), [b"c"]);
}

pub(crate) async fn keys_are_those_that_a_scan_finds(world: World) {
    let rows: [&[u8]; 7] = [b"a", b"a\0", b"a\0\x01", b"a\0\xff", b"ab", b"b", b"\xff"];
    for row in rows {
        // The first cell of each expires, the others stay; one is long.
        world
            .write([put_until(T, row, b"", b"1", START_MS + 5), put(T, row, b"1", b"2"), put(T, row, b"\0", b"3")])
            .await;
    }
    world.write([put_until(T, b"aa", b"1", b"v", START_MS + 5), put_until(T, b"aa", b"2", b"v", START_MS + 5)]).await;
    let ask = |from: &'static [u8], to: Option<&'static [u8]>, rows_max| world.store.keys(scan(from, to, rows_max));
    assert_eq!(ask(b"", None, 9).await.unwrap().len(), 8);
    world.clock.set(START_MS + 5);
    assert_eq!(ask(b"", None, 9).await.unwrap(), rows);
    assert_eq!(ask(b"", None, 3).await.unwrap(), rows[..3]);
    assert_eq!(ask(b"a\0\xff", None, 2).await.unwrap(), rows[3..5], "what expired takes no place within a limit");
    assert_eq!(ask(b"a\0", Some(b"ab"), 9).await.unwrap(), rows[1..4]);
    for (from, to, rows_max) in [(b"".as_slice(), None, 0), (b"b", Some(b"b".as_slice()), 9), (b"b", Some(b"a"), 9)] {
        assert!(ask(from, to, rows_max).await.unwrap().is_empty());
    }
}

pub(crate) async fn rows_whose_keys_begin_alike_do_not_mix(world: World) {
    let rows: [&[u8]; 6] = [b"a", b"a\0", b"a\0\x01", b"a\0\xff", b"a\x01", b"ab"];
    world.write(rows.iter().rev().map(|row| put(T, row, row, row))).await;
    for row in rows {
        let found = world.store.read(vec![read(T, row, Cells::All)]).await.unwrap();
        assert_eq!(found[0].cells, [(row.to_vec(), row.to_vec())]);
    }
    assert_eq!(keys(&world.store.scan(scan(b"", None, 9)).await.unwrap()), rows);
    assert_eq!(keys(&world.store.scan(scan(b"a\0", Some(b"a\x01"), 9)).await.unwrap()), rows[1..4]);
}

pub(crate) async fn tables_do_not_mix(world: World) {
    world.write(Table::ALL.iter().map(|table| put(*table, b"row", b"c", table.name().as_bytes()))).await;
    world.store.write(vec![Mutation::DeleteRow { table: Table::Names, row: b"row".to_vec() }]).await.unwrap();
    for table in Table::ALL {
        let expected = if *table == Table::Names { Vec::new() } else { cells(&[("c", table.name())]) };
        assert_eq!(world.row(*table, b"row").await, expected);
        assert_eq!(world.rows(*table).await, expected.len());
    }
}

pub(crate) async fn put_if_absent_leaves_a_live_cell_alone(world: World) {
    assert!(world.store.put_if_absent(put(T, b"row", b"c", b"first")).await.unwrap());
    assert!(!world.store.put_if_absent(put(T, b"row", b"c", b"second")).await.unwrap());
    assert!(world.store.put_if_absent(put(T, b"row", b"d", b"other")).await.unwrap());
    assert_eq!(world.row(T, b"row").await, cells(&[("c", "first"), ("d", "other")]));
}

pub(crate) async fn put_if_absent_takes_the_place_of_an_expired_or_deleted_cell(world: World) {
    assert!(world.store.put_if_absent(put_until(T, b"row", b"c", b"1", START_MS + 5)).await.unwrap());
    world.clock.set(START_MS + 5);
    assert!(world.store.put_if_absent(put(T, b"row", b"c", b"2")).await.unwrap());
    world.store.write(vec![delete_cell(b"row", b"c")]).await.unwrap();
    assert!(world.store.put_if_absent(put(T, b"row", b"c", b"3")).await.unwrap());
    assert_eq!(world.row(T, b"row").await, cells(&[("c", "3")]));
}

pub(crate) async fn one_of_fifty_concurrent_put_if_absent_wins(world: World) {
    let attempts = (0..50u8).map(|value| {
        let store = world.store.clone();
        tokio::spawn(async move { store.put_if_absent(put(T, b"row", b"c", &[value])).await.unwrap() })
    });
    let mut winners = Vec::new();
    for (value, attempt) in (0..50u8).zip(attempts.collect::<Vec<_>>()) {
        if attempt.await.unwrap() {
            winners.push(value);
        }
    }
    let rows = world.store.read(vec![read(T, b"row", Cells::All)]).await.unwrap();
    assert_eq!(winners.len(), 1, "{winners:?}");
    assert_eq!(rows[0].cell(b"c"), Some(winners.as_slice()));
}

pub(crate) async fn concurrent_writes_are_all_there(world: World) {
    let writes = (0..200u8).map(|value| {
        let store = world.store.clone();
        tokio::spawn(async move { store.write(vec![Mutation::Put(put(T, b"row", &[value], &[value]))]).await })
    });
    for write in writes.collect::<Vec<_>>() {
        write.await.unwrap().unwrap();
    }
    assert_eq!(cell_keys(&world, Cells::All).await.len(), 200);
}
