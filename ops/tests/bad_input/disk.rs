//! A disk that takes no more writes: what would be stored is refused with a code that may be tried again, the process and
//! its connections live, and when there is room again all is as before.

use campanile_ops::api::Account;
use idl::contract::push::{FromDevice, Subscribe};
use idl::wire::encode;

use crate::harness::server::{Server, text};
use crate::harness::terminal::TerminalDevice;
use crate::harness::wait_for;
use crate::peer::{Peer, account, registering};
use crate::request::{Answer, FORM, PLAIN, post, post_as_demo};
use crate::tower::Tower;

const STORE_UNAVAILABLE: i64 = 70009;

/// What can only be answered by writing, from outside.
fn writes(server: &Server, regid: &str) -> [(&'static str, Answer); 6] {
    let send = |path: &str, to: &str| post_as_demo(server, path, FORM, format!("{to}&payload=refused").as_bytes());
    [
        ("a send by regid", send("/v3/message/regid", &format!("registration_id={regid}"))),
        ("a send by alias", send("/v3/message/alias", "alias=honest")),
        ("a send by topic", send("/v3/message/topic", "topic=honest")),
        ("a send to all", send("/v3/message/all", "")),
        ("a subscription by the server", send("/v2/topic/subscribe", &format!("registration_id={regid}&topic=new"))),
        ("a device account", post(server, "/device/v1/account", &[], b"device=new")),
    ]
}

fn all_are_refused(server: &Server, regid: &str, named: &str) {
    for (case, answer) in writes(server, regid) {
        answer.refuses(503, STORE_UNAVAILABLE, named, case);
        assert!(answer.head.contains("retry-after: "), "{case}: {answer:?}");
    }
}

/// A device of that account with the demo application registered.
fn registered(server: &Server, account: &Account) -> Peer {
    let mut peer = Peer::with_channel(server, account);
    let register = Some(registering(server, account));
    peer.send_up(&encode(&FromDevice { request: Some(1), register_app: register, ..FromDevice::default() }));
    assert_eq!(peer.result().code, 0);
    peer
}

#[test]
fn a_full_disk_refuses_what_would_be_stored_and_costs_no_connection() {
    let settings = [PLAIN, ("limits.store_free_bytes_min", "0"), ("limits.xmpp_channel_retry_ms_max", "600000")];
    let mut tower = Tower::on(Server::start_on_a_disk_that_fills(&settings));
    tower.goes_on_after("the start");
    wait_for("its ack is stored", || (tower.server.metric("campanile_middle_acks_total") > 0.0).then_some(()));
    let (here, away) = (account(&tower.server), account(&tower.server));
    let mut peer = registered(&tower.server, &here);

    tower.server.limit_files_to(Some(1));
    for _ in 0..2 {
        all_are_refused(&tower.server, &tower.regid, "the disk can't be written");
    }
    let refused = tower.server.command(&["app", "create", "com.example.later"]);
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains("the catalog"), "{}", text(&refused.stderr));
    assert_eq!(tower.server.telemetry("/live").0, 200);
    assert_eq!(tower.server.json(&["ctl", "status"])[0]["pid"], tower.server.pid());
    tower.is_connected_still("a full disk");
    peer.goes_on("a full disk");
    Peer::with_channel(&tower.server, &away).goes_on("a login while the disk is full");
    // A device's command waits for the disk.
    let subscribe = Subscribe { app: tower.server.demo().app, topic: "patience".to_owned() };
    peer.send_up(&encode(&FromDevice { request: Some(2), subscribe: Some(subscribe), ..FromDevice::default() }));
    let failed = tower.server.metric("campanile_store_groups_failed_total");
    wait_for("it is tried", || (tower.server.metric("campanile_store_groups_failed_total") > failed).then_some(()));
    peer.goes_on("a command that waits");

    tower.server.limit_files_to(None);
    wait_for("sends are accepted again", || {
        let body = format!("registration_id={}&payload=accepted again", tower.regid);
        let answer = post_as_demo(&tower.server, "/v3/message/regid", FORM, body.as_bytes());
        if answer.status == 503 {
            answer.refuses(503, STORE_UNAVAILABLE, "", "a send before the store has mended itself");
        }
        (answer.body["code"] == 0).then_some(())
    });
    tower.expect_push("accepted again");
    let result = peer.result();
    assert_eq!((result.request, result.code), (2, 0), "the command that waited: {result:?}");
    tower.server.json(&["app", "create", "com.example.later"]);
    account(&tower.server);
    assert!(tower.server.metric("campanile_store_mended_total") > 0.0);
    tower.goes_on_after("a full disk");

    tower.server.restart();
    wait_for("the honest device is back", || (tower.device.events("ready").len() > 1).then_some(()));
    tower.server.send("/v3/message/topic", &[("topic", "honest"), ("payload", "after another start")]);
    tower.expect_push("after another start");
    let payloads = tower.device.payloads();
    assert!(!payloads.iter().any(|payload| payload == "refused"), "what was refused is not there: {payloads:?}");
}

#[test]
fn a_disk_with_too_little_room_refuses_sends_and_takes_acks_until_there_is_room() {
    let mut tower = Tower::on(Server::start_whole(&[PLAIN]));
    let state = tower.server.data().join("away.json");
    let arguments = ["--alias", "away", "--state", state.to_str().expect("a path")];
    TerminalDevice::start(&tower.server, &arguments).stop();
    tower.server.send("/v3/message/alias", &[("alias", "away"), ("payload", "kept")]);
    tower.goes_on_after("the start");
    wait_for("its ack is stored", || (tower.server.metric("campanile_middle_acks_total") > 0.0).then_some(()));

    tower.server.set("limits.store_free_bytes_min", "9000000000000000000");
    tower.server.restart();
    wait_for("the honest device is back", || (tower.device.events("ready").len() > 1).then_some(()));
    all_are_refused(&tower.server, &tower.regid, "MiB free and the store needs");
    assert!(tower.server.metric("campanile_store_refused_full_total") >= 6.0);
    let away = TerminalDevice::start(&tower.server, &arguments);
    away.wait_for_push("kept");
    wait_for("an ack makes room", || (tower.server.metric("campanile_middle_acks_total") > 0.0).then_some(()));

    tower.server.set("limits.store_free_bytes_min", "0");
    tower.server.restart();
    wait_for("the honest device is back", || (tower.device.events("ready").len() > 2).then_some(()));
    tower.server.send("/v3/message/alias", &[("alias", "away,honest"), ("payload", "room again")]);
    tower.expect_push("room again");
    away.wait_for_push("room again");
    assert_eq!((tower.device.payloads().len(), away.payloads()), (2, vec!["kept".to_owned(), "room again".to_owned()]));
}
