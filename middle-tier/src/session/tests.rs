//! What a session asks for, step by step.

use idl::audience::Audience;
use idl::contract::message::Notification;

use idl::message::Handling;
use schema::registrations::Cursor;

use super::*;

const APP: &str = "com.example.demo";
const MINUTE: u64 = 60_000;

fn app() -> AppId {
    APP.parse().expect("an app id")
}

fn registration() -> Registration {
    Registration {
        regid: RegId([1; 24]),
        account: AccountId(1),
        app: app(),
        device_public: [0; 32],
        seal_key: [0; 32],
        enabled: true,
        attributes: BTreeMap::new(),
        aliases: BTreeSet::new(),
        user_accounts: BTreeSet::new(),
        topics: BTreeMap::new(),
        version: 1,
        created_at: MessageId::MIN,
        cursor: Cursor { judged_to: MessageId::MIN, acked: Vec::new() },
        last_seen_ms: None,
        recent: Vec::new(),
    }
}

fn message(id: MessageId, audience: Option<Audience>) -> Arc<Message> {
    let notification = Notification::default();
    Arc::new(Message {
        id,
        app: app(),
        notification,
        accepted_at_ms: 0,
        expires_at_ms: u64::MAX,
        audience,
        handling: Handling::default(),
    })
}

fn id(n: u64) -> MessageId {
    MessageId::at(10 * MINUTE + n)
}

/// A session whose mailbox was read whole and whose timeline was judged.
fn in_step() -> (Session, Config) {
    let config = Config { window_max: 3, ..Config::default() };
    let mut session = Session::new(AccountId(1), FrontId(1), Epoch(1), MessageId(1));
    session.open(registration(), Vec::new(), false, 10 * MINUTE);
    let step = session.next(10 * MINUTE, &config);
    let Step::Judge { app, to, .. } = step else { panic!("the channel has opened: judge") };
    session.judged(&app, &[], to, false, &config, 10 * MINUTE);
    assert!(matches!(session.next(10 * MINUTE, &config), Step::Idle));
    (session, config)
}

fn cursor(written: &[Advance]) -> &Cursor {
    written[0].progress.cursor.as_ref().expect("a cursor")
}

fn handed_off(step: Step) -> Vec<MessageId> {
    let Step::HandOff(items) = step else { panic!("a hand-off was expected") };
    items.iter().flat_map(|(_, items)| items.iter().map(|item| item.message().id)).collect()
}

#[test]
fn a_live_message_goes_out_at_once_when_the_session_is_in_step() {
    let (mut session, config) = in_step();
    session.stored(&app(), RegId([1; 24]), &message(id(1), None), &config, 10 * MINUTE);
    assert_eq!(handed_off(session.next(10 * MINUTE, &config)), [id(1)]);
    session.handed_off();
    assert!(matches!(session.next(10 * MINUTE, &config), Step::Idle));
}

#[tokio::test(start_paused = true)]
async fn after_a_failed_hand_off_the_mailbox_is_read_before_anything_newer_goes_out() {
    let (mut session, config) = in_step();
    session.stored(&app(), RegId([1; 24]), &message(id(1), None), &config, 10 * MINUTE);
    let Step::HandOff(batch) = session.next(10 * MINUTE, &config) else { panic!("a hand-off") };
    session.hand_off_failed(batch, &config);
    session.stored(&app(), RegId([1; 24]), &message(id(2), None), &config, 10 * MINUTE);
    assert!(matches!(session.next(10 * MINUTE, &config), Step::Wait(_)));
    tokio::time::advance(Duration::from_secs(1)).await;
    let Step::Drain(reads) = session.next(10 * MINUTE, &config) else { panic!("the mailbox comes first") };
    let mailbox = [1, 2].map(|n| (id(n), (*message(id(n), None)).clone())).to_vec();
    session.drained(reads[0].0, mailbox, true, 10 * MINUTE);
    assert_eq!(handed_off(session.next(10 * MINUTE, &config)), [id(1), id(2)]);
}

#[test]
fn a_message_stored_while_the_mailbox_is_read_is_not_forgotten() {
    let (mut session, config) = in_step();
    session.check();
    let Step::Drain(reads) = session.next(10 * MINUTE, &config) else { panic!("a check reads") };
    session.stored(&app(), RegId([1; 24]), &message(id(1), None), &config, 10 * MINUTE);
    session.drained(reads[0].0, Vec::new(), true, 10 * MINUTE);
    let Step::Drain(_) = session.next(10 * MINUTE, &config) else { panic!("it is read again") };
}

#[test]
fn what_is_told_late_is_looked_for_in_the_mailbox() {
    let (mut session, config) = in_step();
    let stored = |session: &mut Session, n| {
        session.stored(&app(), RegId([1; 24]), &message(id(n), None), &config, 10 * MINUTE);
    };
    stored(&mut session, 2);
    assert_eq!(handed_off(session.next(10 * MINUTE, &config)), [id(2)]);
    session.handed_off();
    // Told again while it is under way: it is known.
    stored(&mut session, 2);
    assert!(matches!(session.next(10 * MINUTE, &config), Step::Idle));
    // One before it, and itself once more after it was acknowledged: only what the mailbox still has goes out.
    session.acked_singles(&app(), &[id(2)]);
    stored(&mut session, 1);
    stored(&mut session, 2);
    stored(&mut session, 3);
    let Step::Drain(reads) = session.next(10 * MINUTE, &config) else { panic!("the mailbox tells") };
    let mailbox = [1, 3].map(|n| (id(n), (*message(id(n), None)).clone())).to_vec();
    session.drained(reads[0].0, mailbox, true, 10 * MINUTE);
    assert_eq!(handed_off(session.next(10 * MINUTE, &config)), [id(1), id(3)]);
}

#[test]
fn a_device_that_claims_to_have_any_number_of_broadcasts_is_believed_so_far() {
    let (mut session, config) = in_step();
    let mut believed = 0;
    for first in (0..100_000).step_by(1000) {
        let claimed: Vec<_> = (first..first + 1000).map(id).collect();
        believed += session.acked_broadcasts(&app(), &claimed, &config, 10 * MINUTE).len();
    }
    let remembered: usize = session.take_unsettled().iter().map(|(_, ids)| ids.len()).sum();
    assert_eq!((believed, remembered), (UNSETTLED_MAX, UNSETTLED_MAX));
}

#[test]
fn a_message_stored_while_the_channel_opens_is_not_forgotten() {
    let config = Config::default();
    let mut session = Session::new(AccountId(1), FrontId(1), Epoch(1), MessageId(1));
    session.stored(&app(), RegId([1; 24]), &message(id(1), None), &config, 10 * MINUTE);
    session.open(registration(), Vec::new(), false, 10 * MINUTE);
    assert!(matches!(session.next(10 * MINUTE, &config), Step::Drain(_)));
}

#[test]
fn a_full_window_waits_for_acks_and_goes_on_in_order() {
    let (mut session, config) = in_step();
    for n in 1..=5 {
        session.stored(&app(), RegId([1; 24]), &message(id(n), None), &config, 10 * MINUTE);
    }
    assert_eq!(handed_off(session.next(10 * MINUTE, &config)), [id(1), id(2), id(3)]);
    assert!(matches!(session.next(10 * MINUTE, &config), Step::Idle));
    session.acked_singles(&app(), &[id(1), id(2)]);
    let Step::Drain(reads) = session.next(10 * MINUTE, &config) else { panic!("the queue was full: read") };
    let mailbox = [3, 4, 5].map(|n| (id(n), (*message(id(n), None)).clone())).to_vec();
    session.drained(reads[0].0, mailbox, true, 10 * MINUTE);
    assert_eq!(handed_off(session.next(10 * MINUTE, &config)), [id(4), id(5)]);
}

#[test]
fn a_judgement_hands_off_what_matches_and_the_cursor_waits_for_its_ack() {
    let (mut session, config) = in_step();
    let row = message(id(1), Some(Audience::Everyone));
    session.judge_soon();
    let Step::Judge { app, to, .. } = session.next(11 * MINUTE, &config) else { panic!("a judgement") };
    assert_eq!(session.judged(&app, &[row], to, false, &config, 10 * MINUTE), 1);
    assert_eq!(handed_off(session.next(11 * MINUTE, &config)), [id(1)]);
    let Step::WriteProgress(written) = session.next(11 * MINUTE, &config) else { panic!("a cursor") };
    assert_eq!(cursor(&written).judged_to, id(1), "not past what is not acknowledged");
    session.acked_broadcasts(&app, &[id(1)], &config, 10 * MINUTE);
    session.end();
    let Step::Judge { app, from, to } = session.next(12 * MINUTE, &config) else { panic!("the last judgement") };
    assert!(from <= id(1), "the overlap is judged again");
    let row = message(id(1), Some(Audience::Everyone));
    assert_eq!(session.judged(&app, &[row], to, false, &config, 10 * MINUTE), 0, "it is acknowledged");
    let Step::WriteProgress(written) = session.next(12 * MINUTE, &config) else { panic!("a cursor") };
    assert_eq!(cursor(&written).judged_to, MessageId::at(12 * MINUTE));
    assert_eq!(written[0].settles, [id(1)], "now it counts for good");
    assert_eq!(written[0].progress.last_seen_ms, Some(12 * MINUTE));
    assert!(matches!(session.next(12 * MINUTE, &config), Step::Ended));
}

#[test]
fn what_has_expired_takes_no_place_in_the_window() {
    let (mut session, config) = in_step();
    let brief =
        |n: u64, audience| Arc::new(Message { expires_at_ms: 11 * MINUTE, ..(*message(id(n), audience)).clone() });
    session.stored(&app(), RegId([1; 24]), &brief(1, None), &config, 10 * MINUTE);
    session.judge_soon();
    assert_eq!(handed_off(session.next(10 * MINUTE, &config)), [id(1)]);
    let Step::Judge { app, to, .. } = session.next(10 * MINUTE + 9, &config) else { panic!("a judgement") };
    let rows = [2, 3].map(|n| brief(n, Some(Audience::Everyone)));
    session.judged(&app, &rows, to, false, &config, 10 * MINUTE);
    assert_eq!(handed_off(session.next(10 * MINUTE + 9, &config)), [2, 3].map(id));
    session.stored(&app, RegId([1; 24]), &message(id(4), None), &config, 10 * MINUTE);
    assert!(matches!(session.next(10 * MINUTE + 9, &config), Step::WriteProgress(_)));
    assert!(matches!(session.next(10 * MINUTE + 9, &config), Step::Idle), "the window is full");
    assert_eq!(handed_off(session.next(11 * MINUTE, &config)), [id(4)], "nobody will acknowledge what has expired");
    session.judge_soon();
    assert!(matches!(session.next(11 * MINUTE, &config), Step::Judge { .. }));
}

#[test]
fn what_is_in_flight_to_a_device_stays_below_what_its_front_holds_for_it() {
    let config = Config::default();
    let mut session = Session::new(AccountId(1), FrontId(1), Epoch(1), MessageId(1));
    let large = |n| {
        let notification = Notification { payload: Some("x".repeat(40_000)), ..Notification::default() };
        (id(n), Message { notification, ..(*message(id(n), None)).clone() })
    };
    let apps: Vec<AppId> = (0..3).map(|n| format!("com.example.{n}").parse().expect("an app id")).collect();
    for (n, app) in (0u8..).zip(&apps) {
        let registration = Registration { app: app.clone(), regid: RegId([n; 24]), ..registration() };
        session.open(registration, (0..64).map(large).collect(), false, 10 * MINUTE);
    }
    let mut arrived = 0;
    while arrived < 3 * 64 {
        let mut in_flight: Vec<(AppId, MessageId)> = Vec::new();
        loop {
            match session.next(10 * MINUTE, &config) {
                Step::Judge { app, to, .. } => drop(session.judged(&app, &[], to, false, &config, 10 * MINUTE)),
                Step::HandOff(batch) => in_flight.extend(batch.iter().flat_map(|(registration, items)| {
                    items.iter().map(|item| (registration.app.clone(), item.message().id))
                })),
                Step::Drain(_) => panic!("what was read has not gone out"),
                Step::Idle => break,
                _ => {}
            }
        }
        assert!(in_flight.len() * 40_000 < 2 << 20, "{} of them at once", in_flight.len());
        let without: Vec<_> = apps.iter().filter(|app| in_flight.iter().all(|(other, _)| other != *app)).collect();
        assert!(arrived > 0 || without.is_empty(), "{without:?} must not wait for the others' acks");
        arrived += in_flight.len();
        for (app, id) in in_flight {
            session.acked_singles(&app, &[id]);
        }
    }
}

#[test]
fn acks_are_remembered_only_while_a_mailbox_is_read() {
    let (mut session, config) = in_step();
    let made_up: Vec<_> = (0..10_000).map(id).collect();
    let remembered = |session: &Session| {
        let held = session.held.get(&app()).expect("it is held");
        held.acked_meanwhile.as_ref().map_or(0, BTreeSet::len)
    };
    session.acked_singles(&app(), &made_up);
    assert_eq!(remembered(&session), 0);
    session.check();
    let Step::Drain(reads) = session.next(10 * MINUTE, &config) else { panic!("a check reads") };
    session.acked_singles(&app(), &made_up[..1]);
    let mailbox = vec![(id(0), (*message(id(0), None)).clone())];
    session.drained(reads[0].0, mailbox, true, 10 * MINUTE);
    assert!(!matches!(session.next(10 * MINUTE, &config), Step::HandOff(_)), "it was read before it was deleted");
    assert_eq!(remembered(&session), 0);
}

#[test]
fn live_broadcasts_are_judged_before_their_acks_are_forgotten() {
    let (mut session, _) = in_step();
    let config = Config::default();
    // Four a second for the five minutes between two checks, each acknowledged at once.
    let rows: Vec<_> = (0..1200).map(|n| message(id(n * 250), Some(Audience::Everyone))).collect();
    let mut missing = 0;
    for (last, row) in rows.iter().enumerate() {
        let now_ms = row.id.time_ms();
        session.acked_broadcasts(&app(), &[row.id], &config, 10 * MINUTE);
        if last == rows.len() - 1 {
            session.check();
        }
        while let step @ (Step::Judge { .. } | Step::WriteProgress(_) | Step::Drain(_)) = session.next(now_ms, &config)
        {
            match step {
                Step::Judge { app, from, to } => {
                    let found: Vec<_> = rows[..=last].iter().filter(|row| row.id >= from).cloned().collect();
                    missing += session.judged(&app, &found, to, false, &config, 10 * MINUTE);
                }
                Step::Drain(reads) => session.drained(reads[0].0, Vec::new(), true, 10 * MINUTE),
                _ => {}
            }
        }
    }
    assert_eq!(missing, 0, "each has arrived");
}

#[test]
fn an_ack_of_a_live_broadcast_does_not_move_the_cursor() {
    let (mut session, config) = in_step();
    session.acked_broadcasts(&app(), &[id(5)], &config, 10 * MINUTE);
    assert!(matches!(session.next(10 * MINUTE, &config), Step::Idle), "no write for an ack");
    session.judge_soon();
    let Step::Judge { app, to, .. } = session.next(11 * MINUTE, &config) else { panic!("a judgement") };
    // The row before it was lost on its way here.
    let rows = [message(id(4), Some(Audience::Everyone)), message(id(5), Some(Audience::Everyone))];
    assert_eq!(session.judged(&app, &rows, to, false, &config, 10 * MINUTE), 1);
    assert_eq!(handed_off(session.next(11 * MINUTE, &config)), [id(4)]);
}

#[test]
fn what_waits_is_replayed_in_order_of_id_whichever_way_it_comes() {
    let config = Config { window_max: 3, judged_rows_max: 3, ..Config::default() };
    let now_ms = 11 * MINUTE;
    let single = |n: u64| (id(n), (*message(id(n), None)).clone());
    let broadcast = |n: u64| message(id(n), Some(Audience::Everyone));
    let mut session = Session::new(AccountId(1), FrontId(1), Epoch(1), MessageId(1));
    // Singles: 1, 2, 4, 8. Broadcasts: 3, 5, 6, 7.
    session.open(registration(), [1, 2, 4].map(single).to_vec(), true, 10 * MINUTE);
    let Step::Judge { app, .. } = session.next(now_ms, &config) else { panic!("what is between them is not known") };
    let next = MessageId(id(6).0 + 1);
    session.judged(&app, &[3, 5, 6].map(broadcast), next, true, &config, 10 * MINUTE);
    assert_eq!(handed_off(session.next(now_ms, &config)), [1, 2, 3].map(id));
    session.acked_singles(&app, &[id(1), id(2)]);
    session.acked_broadcasts(&app, &[id(3)], &config, 10 * MINUTE);
    assert_eq!(handed_off(session.next(now_ms, &config)), [id(4)], "the mailbox is known up to 4");
    let Step::Drain(reads) = session.next(now_ms, &config) else { panic!("what follows in the mailbox?") };
    session.drained(reads[0].0, [4, 8].map(single).to_vec(), true, 10 * MINUTE);
    assert_eq!(handed_off(session.next(now_ms, &config)), [5, 6].map(id), "the timeline is known up to 6");
    let Step::Judge { app, from, to } = session.next(now_ms, &config) else { panic!("what follows in the timeline?") };
    assert_eq!(from, next, "after what was read");
    session.stored(&app, RegId([1; 24]), &message(id(9), None), &config, 10 * MINUTE);
    session.judged(&app, &[broadcast(7)], to, false, &config, 10 * MINUTE);
    session.acked_singles(&app, &[id(4)]);
    session.acked_broadcasts(&app, &[5, 6].map(id), &config, 10 * MINUTE);
    assert_eq!(handed_off(session.next(now_ms, &config)), [7, 8, 9].map(id));
}

#[test]
fn a_replay_goes_on_after_more_live_messages_than_the_queue_takes() {
    let config = Config { window_max: 2, ..Config::default() };
    let mut session = Session::new(AccountId(1), FrontId(1), Epoch(1), MessageId(1));
    session.open(registration(), Vec::new(), false, 10 * MINUTE);
    let Step::Judge { app, to, .. } = session.next(10 * MINUTE, &config) else { panic!("a judgement") };
    for n in 1..=3 {
        session.stored(&app, RegId([1; 24]), &message(id(n), None), &config, 10 * MINUTE);
    }
    session.judged(&app, &[], to, true, &config, 10 * MINUTE);
    assert!(matches!(session.next(10 * MINUTE, &config), Step::Judge { .. }), "the rest of the timeline first");
    session.judged(&app, &[], to, false, &config, 10 * MINUTE);
    assert_eq!(handed_off(session.next(10 * MINUTE, &config)), [1, 2].map(id));
    session.acked_singles(&app, &[1, 2].map(id));
    assert!(matches!(session.next(10 * MINUTE, &config), Step::Drain(_)));
}

#[test]
fn a_judgement_that_was_read_in_part_goes_on_where_it_stopped() {
    let (mut session, config) = in_step();
    session.judge_soon();
    let Step::Judge { app, from, .. } = session.next(11 * MINUTE, &config) else { panic!("a judgement") };
    assert!(from < id(0), "it begins before the cursor");
    // All of them are within the overlap, and none is for this registration.
    let rows = [1, 2].map(|n| message(id(n), None));
    session.judged(&app, &rows, id(3), true, &config, 10 * MINUTE);
    let Step::Judge { from, to, .. } = session.next(11 * MINUTE, &config) else { panic!("the rest of it") };
    assert_eq!(from, id(3));
    session.judge_soon();
    session.judged(&app, &[], to, false, &config, 10 * MINUTE);
    let Step::Judge { from, .. } = session.next(11 * MINUTE, &config) else { panic!("what became due meanwhile") };
    assert!(from < to, "another judgement has its overlap again");
}

#[test]
fn what_is_stored_late_while_a_judgement_waits_is_met_by_the_next() {
    let (mut session, config) = in_step();
    session.judge_soon();
    let Step::Judge { app, .. } = session.next(11 * MINUTE, &config) else { panic!("a judgement") };
    session.judged(&app, &[message(id(1), None)], id(MINUTE - 1), true, &config, 10 * MINUTE);
    // It goes on nine minutes later; a row of 10:59.5 was stored at 11:03.
    let Step::Judge { app, to, .. } = session.next(20 * MINUTE, &config) else { panic!("the rest of it") };
    session.judged(&app, &[], to, false, &config, 10 * MINUTE);
    session.judge_soon();
    let Step::Judge { from, .. } = session.next(20 * MINUTE, &config) else { panic!("the next one") };
    assert!(from <= MessageId::at(10 * MINUTE), "the overlap before the moment at which the first began");
}

#[test]
fn a_disabled_registration_gets_nothing_until_it_is_enabled_again() {
    let (mut session, config) = in_step();
    session.hold(Arc::new(Registration { enabled: false, version: 2, ..registration() }));
    session.stored(&app(), RegId([1; 24]), &message(id(1), None), &config, 10 * MINUTE);
    assert!(matches!(session.next(10 * MINUTE, &config), Step::Idle));
    session.hold(Arc::new(Registration { version: 3, ..registration() }));
    assert!(matches!(session.next(10 * MINUTE, &config), Step::Drain(_)));
}

#[test]
fn an_expired_message_is_not_handed_off() {
    let (mut session, config) = in_step();
    let expired = Message { expires_at_ms: 1, ..(*message(id(1), None)).clone() };
    session.stored(&app(), RegId([1; 24]), &Arc::new(expired), &config, 10 * MINUTE);
    assert!(matches!(session.next(10 * MINUTE, &config), Step::Idle));
}
