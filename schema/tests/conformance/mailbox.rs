//! Mailboxes, and the messages they refer to.

use std::sync::Arc;

use idl::ids::MessageId;
use idl::message::{Handling, Message};
use schema::batch::Batch;
use schema::mailbox::{Entry, Mailboxes, Reference};
use schema::messages::Messages;
use schema::registrations::Registrations;
use schema::sorted::{Mutation, SortedStore, StoreError, Table};

use crate::world::{START_MS, World, message, put, regid, registration};

cases! { $ mailbox:
    an_unacked_message_stays,
    an_acked_message_is_gone_and_acking_again_succeeds,
    messages_come_in_the_order_of_their_ids,
    a_page_ends_at_its_limit_and_the_next_begins_after_it,
    a_message_for_one_target_is_stored_inside_its_mailbox,
    a_message_for_many_targets_is_stored_once,
    a_message_for_nobody_is_not_stored,
    a_message_expires_in_mailboxes_and_in_the_message_table,
    references_to_nothing_are_passed_over_however_many_there_are,
    mailboxes_are_read_together_each_by_itself,
    entries_may_be_put_for_several_registrations_at_once,
    clearing_empties_a_mailbox,
    opening_reads_registrations_and_mailboxes_together,
    opening_says_whether_there_is_more,
    a_delivery_is_read_by_itself,
    deliveries_are_read_in_one_call_and_their_references_in_another,
    a_batch_delivers_acknowledges_and_clears_in_its_order,
    a_message_with_a_collapse_key_reads_back_as_it_was_put,
    a_collapse_key_finds_its_deliveries_in_each_mailbox,
    a_hash_that_meets_another_key_is_told_apart_inside_the_mailbox,
    looking_for_a_collapse_key_is_one_read_and_ends_at_its_limit,
    a_revocation_waits_like_any_message,
    a_damaged_entry_is_named,
}

fn ids(mailbox: &[(MessageId, Message)]) -> Vec<u128> {
    mailbox.iter().map(|(id, _)| id.0).collect()
}

fn inline(number: u8, id: u128) -> (idl::ids::RegId, MessageId, Entry) {
    (regid(number), MessageId(id), Entry::Inline(message(id)))
}

async fn read(mailboxes: &Mailboxes, number: u8) -> Vec<(MessageId, Message)> {
    mailboxes.read(&[regid(number)], None, 100).await.unwrap().remove(0)
}

pub(crate) async fn an_unacked_message_stays(world: World) {
    let mailboxes = Mailboxes::new(world.store);
    mailboxes.put_with_message(&message(7), &[regid(1)]).await.unwrap();
    for _ in 0..2 {
        assert_eq!(read(&mailboxes, 1).await, [(MessageId(7), message(7))]);
    }
    assert!(read(&mailboxes, 2).await.is_empty());
}

pub(crate) async fn an_acked_message_is_gone_and_acking_again_succeeds(world: World) {
    let mailboxes = Mailboxes::new(world.store);
    mailboxes.put(&[inline(1, 1), inline(1, 2), inline(1, 3), inline(2, 1)]).await.unwrap();
    for _ in 0..2 {
        mailboxes.ack(&[(regid(1), vec![MessageId(1), MessageId(3)]), (regid(3), vec![MessageId(9)])]).await.unwrap();
        assert_eq!(ids(&read(&mailboxes, 1).await), [2]);
        assert_eq!(ids(&read(&mailboxes, 2).await), [1]);
    }
    mailboxes.ack(&[]).await.unwrap();
}

pub(crate) async fn messages_come_in_the_order_of_their_ids(world: World) {
    let mailboxes = Mailboxes::new(world.store);
    for id in [3, 1, u128::MAX, 256, 255] {
        mailboxes.put_with_message(&message(id), &[regid(1)]).await.unwrap();
        mailboxes.put_with_message(&message(id), &[regid(2), regid(3)]).await.unwrap();
    }
    assert_eq!(ids(&read(&mailboxes, 1).await), [1, 3, 255, 256, u128::MAX]);
    assert_eq!(ids(&read(&mailboxes, 2).await), [1, 3, 255, 256, u128::MAX]);
}

pub(crate) async fn a_page_ends_at_its_limit_and_the_next_begins_after_it(world: World) {
    let mailboxes = Mailboxes::new(world.store);
    mailboxes.put(&(1..=5).map(|id| inline(1, id)).collect::<Vec<_>>()).await.unwrap();
    let page = |after, limit| {
        let mailboxes = mailboxes.clone();
        async move { ids(&mailboxes.read(&[regid(1)], after, limit).await.unwrap()[0]) }
    };
    assert_eq!(page(None, 2).await, [1, 2]);
    assert_eq!(page(Some(MessageId(2)), 2).await, [3, 4]);
    assert_eq!(page(Some(MessageId(4)), 2).await, [5]);
    assert!(page(Some(MessageId(5)), 2).await.is_empty());
    assert!(page(None, 0).await.is_empty());
}

pub(crate) async fn a_message_for_one_target_is_stored_inside_its_mailbox(world: World) {
    Mailboxes::new(world.store.clone()).put_with_message(&message(7), &[regid(1)]).await.unwrap();
    assert_eq!((world.rows(Table::Mailboxes).await, world.rows(Table::Messages).await), (1, 0));
}

pub(crate) async fn a_message_for_many_targets_is_stored_once(world: World) {
    let mailboxes = Mailboxes::new(world.store.clone());
    let targets: Vec<_> = (0..100).map(regid).collect();
    mailboxes.put_with_message(&message(7), &targets).await.unwrap();
    assert_eq!((world.rows(Table::Mailboxes).await, world.rows(Table::Messages).await), (100, 1));
    for mailbox in mailboxes.read(&targets, None, 10).await.unwrap() {
        assert_eq!(mailbox, [(MessageId(7), message(7))]);
    }
    mailboxes.ack(&[(regid(0), vec![MessageId(7)])]).await.unwrap();
    assert!(read(&mailboxes, 0).await.is_empty());
    assert_eq!(read(&mailboxes, 1).await.len(), 1, "an ack is one registration's");
}

pub(crate) async fn a_message_for_nobody_is_not_stored(world: World) {
    let mailboxes = Mailboxes::new(world.store.clone());
    mailboxes.put_with_message(&message(7), &[]).await.unwrap();
    mailboxes.put(&[]).await.unwrap();
    assert_eq!((world.rows(Table::Mailboxes).await, world.rows(Table::Messages).await), (0, 0));
}

pub(crate) async fn a_message_expires_in_mailboxes_and_in_the_message_table(world: World) {
    let (mailboxes, messages) = (Mailboxes::new(world.store.clone()), Messages::new(world.store.clone()));
    mailboxes.put_with_message(&message(7), &[regid(1)]).await.unwrap();
    mailboxes.put_with_message(&message(8), &[regid(1), regid(2)]).await.unwrap();
    messages.put(&message(9)).await.unwrap();
    world.clock.set(START_MS + 9_999);
    assert_eq!(ids(&read(&mailboxes, 1).await), [7, 8]);
    let all = [MessageId(9), MessageId(1), MessageId(8)];
    assert_eq!(messages.get(&all).await.unwrap(), [Some(message(9)), None, Some(message(8))]);
    world.clock.set(START_MS + 10_000);
    assert!(read(&mailboxes, 1).await.is_empty());
    assert_eq!(messages.get(&all).await.unwrap(), [None, None, None]);
    assert!(messages.get(&[]).await.unwrap().is_empty());
}

pub(crate) async fn references_to_nothing_are_passed_over_however_many_there_are(world: World) {
    let mailboxes = Mailboxes::new(world.store.clone());
    let dangling = (1..=10).map(|id| (regid(1), MessageId(id), Entry::Reference(Reference::to(&message(id)))));
    mailboxes.put(&dangling.collect::<Vec<_>>()).await.unwrap();
    mailboxes.put(&[inline(1, 11), inline(1, 12), inline(2, 3)]).await.unwrap();
    let found = mailboxes.read(&[regid(1), regid(2)], None, 2).await.unwrap();
    assert_eq!(found.iter().map(|mailbox| ids(mailbox)).collect::<Vec<_>>(), [vec![11, 12], vec![3]]);
    let opened = mailboxes.open(&[regid(1)], 2).await.unwrap().remove(0);
    assert!(opened.mailbox.is_empty() && opened.more);
}

pub(crate) async fn mailboxes_are_read_together_each_by_itself(world: World) {
    let mailboxes = Mailboxes::new(world.store);
    mailboxes.put(&[inline(1, 1), inline(3, 2), inline(3, 3)]).await.unwrap();
    let found = mailboxes.read(&[regid(3), regid(2), regid(1), regid(3)], None, 10).await.unwrap();
    assert_eq!(found.iter().map(|mailbox| ids(mailbox)).collect::<Vec<_>>(), [vec![2, 3], vec![], vec![1], vec![2, 3]]);
    assert!(mailboxes.read(&[], None, 10).await.unwrap().is_empty());
}

pub(crate) async fn entries_may_be_put_for_several_registrations_at_once(world: World) {
    let (mailboxes, messages) = (Mailboxes::new(world.store.clone()), Messages::new(world.store));
    messages.put(&message(2)).await.unwrap();
    let reference = Entry::Reference(Reference::to(&message(2)));
    mailboxes
        .put(&[inline(1, 1), (regid(1), MessageId(2), reference.clone()), (regid(2), MessageId(2), reference)])
        .await
        .unwrap();
    assert_eq!(ids(&read(&mailboxes, 1).await), [1, 2]);
    assert_eq!(read(&mailboxes, 2).await, [(MessageId(2), message(2))]);
}

pub(crate) async fn clearing_empties_a_mailbox(world: World) {
    let mailboxes = Mailboxes::new(world.store);
    mailboxes.put(&[inline(1, 1), inline(1, 2), inline(2, 1)]).await.unwrap();
    for _ in 0..2 {
        mailboxes.clear(&[regid(1), regid(9)]).await.unwrap();
        assert!(read(&mailboxes, 1).await.is_empty());
        assert_eq!(ids(&read(&mailboxes, 2).await), [1]);
    }
    mailboxes.clear(&[]).await.unwrap();
}

pub(crate) async fn opening_reads_registrations_and_mailboxes_together(world: World) {
    let counting = Arc::new(Counting { store: world.store.clone(), reads: std::sync::atomic::AtomicUsize::new(0) });
    let mailboxes = Mailboxes::new(counting.clone());
    let registrations = Registrations::new(world.store.clone());
    registrations.create(&registration(1)).await.unwrap();
    registrations.create(&registration(2)).await.unwrap();
    mailboxes.put(&[inline(1, 1), inline(3, 1)]).await.unwrap();
    mailboxes.put_with_message(&message(5), &[regid(1), regid(2)]).await.unwrap();

    let opened = mailboxes.open(&[regid(1), regid(2), regid(3)], 10).await.unwrap();
    assert_eq!(counting.reads.load(std::sync::atomic::Ordering::SeqCst), 2, "one read, and one for references");
    let found: Vec<_> = opened.iter().map(|opened| (opened.registration.clone(), ids(&opened.mailbox))).collect();
    let expected = [(Some(registration(1)), vec![1, 5]), (Some(registration(2)), vec![5]), (None, vec![1])];
    assert_eq!(found, expected);
    assert!(opened.iter().all(|opened| !opened.more));
    assert!(mailboxes.open(&[], 10).await.unwrap().is_empty());
}

pub(crate) async fn opening_says_whether_there_is_more(world: World) {
    let mailboxes = Mailboxes::new(world.store);
    mailboxes.put(&(1..=3).map(|id| inline(1, id)).collect::<Vec<_>>()).await.unwrap();
    for (limit, more) in [(2, true), (3, false), (4, false)] {
        let opened = mailboxes.open(&[regid(1)], limit).await.unwrap().remove(0);
        assert_eq!((opened.mailbox.len(), opened.more), (limit.min(3), more));
    }
}

/// With a collapse key.
fn collapsing(id: u128, key: &str) -> Message {
    let handling = Handling { collapse_key: Some(key.to_owned()), ..Handling::default() };
    Message { handling, ..message(id) }
}

pub(crate) async fn a_delivery_is_read_by_itself(world: World) {
    let mailboxes = Mailboxes::new(world.store.clone());
    mailboxes.put_with_message(&message(1), &[regid(1)]).await.unwrap();
    mailboxes.put_with_message(&message(2), &[regid(1), regid(2)]).await.unwrap();
    let asked = [(2, 2), (1, 1), (2, 1), (1, 2), (9, 1), (1, 1)].map(|(number, id)| (regid(number), MessageId(id)));
    let expected = [Some(message(2)), Some(message(1)), None, Some(message(2)), None, Some(message(1))];
    assert_eq!(mailboxes.get(&asked).await.unwrap(), expected);
    mailboxes.ack(&[(regid(1), vec![MessageId(2)])]).await.unwrap();
    let expected = [Some(message(2)), Some(message(1)), None, None, None, Some(message(1))];
    assert_eq!(mailboxes.get(&asked).await.unwrap(), expected);
    world.clock.set(START_MS + 10_000);
    assert_eq!(mailboxes.get(&asked).await.unwrap(), [None, None, None, None, None, None]);
    assert!(mailboxes.get(&[]).await.unwrap().is_empty());
}

pub(crate) async fn deliveries_are_read_in_one_call_and_their_references_in_another(world: World) {
    let counting = Arc::new(Counting { store: world.store.clone(), reads: std::sync::atomic::AtomicUsize::new(0) });
    let mailboxes = Mailboxes::new(counting.clone());
    for id in 1..=20 {
        mailboxes.put_with_message(&message(id), &[regid(1), regid(2)]).await.unwrap();
    }
    mailboxes.put(&[inline(1, 30)]).await.unwrap();
    let asked: Vec<_> = (1..=30).map(|id| (regid(1), MessageId(id))).collect();
    assert_eq!(mailboxes.get(&asked).await.unwrap().iter().flatten().count(), 21);
    assert_eq!(counting.reads.load(std::sync::atomic::Ordering::SeqCst), 2);
    mailboxes.get(&[(regid(1), MessageId(30))]).await.unwrap();
    assert_eq!(counting.reads.load(std::sync::atomic::Ordering::SeqCst), 3, "without references one read is enough");
}

pub(crate) async fn a_batch_delivers_acknowledges_and_clears_in_its_order(world: World) {
    let mailboxes = Mailboxes::new(world.store.clone());
    mailboxes.put(&[inline(1, 1), inline(1, 2), inline(3, 1)]).await.unwrap();
    let mut batch = Batch::default();
    batch.deliver(&message(5), &[regid(1)]);
    batch.deliver(&message(6), &[regid(1), regid(2)]);
    batch.deliver(&message(7), &[]);
    batch.acknowledged(regid(1), MessageId(1));
    batch.acknowledged(regid(2), MessageId(99));
    batch.clear_mailbox(regid(3));
    batch.clear_mailbox(regid(4));
    batch.deliver(&message(8), &[regid(3)]);
    batch.write(world.store.as_ref()).await.unwrap();
    let found = mailboxes.read(&[1, 2, 3].map(regid), None, 10).await.unwrap();
    assert_eq!(found.iter().map(|mailbox| ids(mailbox)).collect::<Vec<_>>(), [vec![2, 5, 6], vec![6], vec![8]]);
    assert_eq!(world.rows(Table::Messages).await, 1);
}

pub(crate) async fn a_message_with_a_collapse_key_reads_back_as_it_was_put(world: World) {
    let mailboxes = Mailboxes::new(world.store);
    mailboxes.put_with_message(&collapsing(1, "score"), &[regid(1)]).await.unwrap();
    mailboxes.put_with_message(&collapsing(2, ""), &[regid(1), regid(2)]).await.unwrap();
    let both = [(MessageId(1), collapsing(1, "score")), (MessageId(2), collapsing(2, ""))];
    assert_eq!(read(&mailboxes, 1).await, both);
    assert_eq!(mailboxes.open(&[regid(2)], 9).await.unwrap()[0].mailbox, both[1..]);
    assert_eq!(mailboxes.get(&[(regid(1), MessageId(1))]).await.unwrap(), [Some(collapsing(1, "score"))]);
}

pub(crate) async fn a_collapse_key_finds_its_deliveries_in_each_mailbox(world: World) {
    let mailboxes = Mailboxes::new(world.store.clone());
    mailboxes.put(&[inline(1, 1), inline(2, 1)]).await.unwrap();
    mailboxes.put_with_message(&collapsing(2, "score"), &[regid(1)]).await.unwrap();
    mailboxes.put_with_message(&collapsing(3, "other"), &[regid(1)]).await.unwrap();
    mailboxes.put_with_message(&collapsing(4, "score"), &[regid(1), regid(3)]).await.unwrap();
    mailboxes.put_with_message(&collapsing(5, "other"), &[regid(1), regid(3)]).await.unwrap();
    mailboxes.put_with_message(&message(6), &[regid(1), regid(3)]).await.unwrap();
    let find = |key: &'static str| {
        let mailboxes = mailboxes.clone();
        async move {
            let found = mailboxes.collapsing(&[3, 1, 2, 9].map(regid), key, 100).await.unwrap();
            found.into_iter().map(|ids| ids.into_iter().map(|id| id.0).collect()).collect::<Vec<Vec<_>>>()
        }
    };
    assert_eq!(find("score").await, [vec![4], vec![2, 4], vec![], vec![]]);
    assert_eq!(find("other").await, [vec![5], vec![3, 5], vec![], vec![]]);
    assert_eq!(find("").await, [const { Vec::<u128>::new() }; 4], "no key is not an empty key");
    assert!(mailboxes.collapsing(&[], "score", 100).await.unwrap().is_empty());

    mailboxes.ack(&[(regid(1), vec![MessageId(2)])]).await.unwrap();
    assert_eq!(find("score").await, [vec![4], vec![4], vec![], vec![]]);
    world.clock.set(START_MS + 10_000);
    assert_eq!(find("score").await, [const { Vec::<u128>::new() }; 4]);
}

pub(crate) async fn a_hash_that_meets_another_key_is_told_apart_inside_the_mailbox(world: World) {
    let mailboxes = Mailboxes::new(world.store.clone());
    let (one, other) = (collapsing(1, "score"), collapsing(2, "score"));
    mailboxes.put_with_message(&one, &[regid(1)]).await.unwrap();
    mailboxes.put_with_message(&other, &[regid(2), regid(3)]).await.unwrap();
    // A cell with the hash of one key around a message with another, as two keys with one hash would leave it.
    let find = |number| {
        let mailboxes = mailboxes.clone();
        async move { mailboxes.collapsing(&[regid(number)], "score", 9).await.unwrap().remove(0) }
    };
    assert_eq!((find(1).await, find(2).await), (vec![MessageId(1)], vec![MessageId(2)]));
    let row = schema::sorted::RowRead {
        table: Table::Mailboxes,
        row: regid(1).0.to_vec(),
        cells: schema::sorted::Cells::All,
        limit: 1,
    };
    let stored = world.store.read(vec![row]).await.unwrap().remove(0).cells.remove(0).1;
    let forged = [&stored[..9], collapsing(1, "other").to_stored().as_slice()].concat();
    world.write([put(Table::Mailboxes, &regid(1).0, &MessageId(1).to_bytes(), &forged)]).await;
    assert!(find(1).await.is_empty());
    assert_eq!(read(&mailboxes, 1).await, [(MessageId(1), collapsing(1, "other"))]);
}

pub(crate) async fn looking_for_a_collapse_key_is_one_read_and_ends_at_its_limit(world: World) {
    let counting = Arc::new(Counting { store: world.store.clone(), reads: std::sync::atomic::AtomicUsize::new(0) });
    let mailboxes = Mailboxes::new(counting.clone());
    mailboxes.put(&[inline(1, 1), inline(1, 2)]).await.unwrap();
    for id in 3..=6 {
        mailboxes.put_with_message(&collapsing(id, "score"), &[regid(1), regid(2)]).await.unwrap();
    }
    let found = mailboxes.collapsing(&[regid(1), regid(2)], "score", 3).await.unwrap();
    assert_eq!(found, [vec![MessageId(3)], vec![MessageId(3), MessageId(4), MessageId(5)]]);
    assert_eq!(counting.reads.load(std::sync::atomic::Ordering::SeqCst), 1);
}

pub(crate) async fn a_revocation_waits_like_any_message(world: World) {
    let mailboxes = Mailboxes::new(world.store);
    let handling = Handling { revokes: Some(MessageId(1)), ..Handling::default() };
    let revocation = Message { handling, ..message(2) };
    mailboxes.put_with_message(&message(1), &[regid(1)]).await.unwrap();
    mailboxes.put_with_message(&revocation, &[regid(1), regid(2)]).await.unwrap();
    assert_eq!(read(&mailboxes, 1).await, [(MessageId(1), message(1)), (MessageId(2), revocation.clone())]);
    assert_eq!(read(&mailboxes, 2).await, [(MessageId(2), revocation)]);
}

pub(crate) async fn a_damaged_entry_is_named(world: World) {
    let mailboxes = Mailboxes::new(world.store.clone());
    let values: [&[u8]; 9] = [
        b"",
        b"\x09",
        b"\x01\xff",
        b"\x02short",
        b"\x03short",
        b"\x03\0\0\0\0\0\0\0\0\xff",
        b"\x04short",
        b"\x04\0\0\0\0\0\0\0\0short",
        b"\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0more",
    ];
    for value in values {
        world.write([put(Table::Mailboxes, &regid(1).0, &MessageId(1).to_bytes(), value)]).await;
        let error = mailboxes.read(&[regid(1)], None, 10).await.unwrap_err();
        let StoreError::Corrupt(text) = &error else { panic!("{error:?}") };
        assert!(text.starts_with("table mailboxes, row 0000"), "{text}");
    }
}

/// Counts the reads that reach a store.
struct Counting {
    store: Arc<dyn SortedStore>,
    reads: std::sync::atomic::AtomicUsize,
}

#[async_trait::async_trait]
impl SortedStore for Counting {
    async fn write(&self, batch: Vec<Mutation>) -> Result<(), StoreError> {
        self.store.write(batch).await
    }

    async fn read(&self, rows: Vec<schema::sorted::RowRead>) -> Result<Vec<schema::sorted::Row>, StoreError> {
        self.reads.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        self.store.read(rows).await
    }

    async fn scan(&self, scan: schema::sorted::RowScan) -> Result<Vec<schema::sorted::Row>, StoreError> {
        self.store.scan(scan).await
    }

    async fn put_if_absent(&self, put: schema::sorted::Put) -> Result<bool, StoreError> {
        self.store.put_if_absent(put).await
    }
}
