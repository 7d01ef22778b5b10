//! Stanzas between connections, where a transcript can't show it: receivers that don't read.

use campanile_xmpp_frontend::Limits;
use minidom::Element;

use crate::harness::{World, account, item, settled};

fn condition(said: &Element) -> String {
    let error = said.get_child("error", "jabber:client").unwrap_or_else(|| panic!("{said:?}"));
    format!("{} {}", error.attr("type").expect("a type"), error.children().next().expect("a condition").name())
}

#[tokio::test(start_paused = true)]
async fn who_floods_a_receiver_is_refused_and_the_receiver_loses_no_push() {
    let limits = Limits { outbox_bytes_max: 64 * 1024, stanzas_per_second_max: 10_000, ..Limits::default() };
    let world = World::with(limits).await;
    let mut receiver = world.subscriber(account(2), &[]).await;
    let mut stranger = world.login(account(1), "r").await;
    let body = "x".repeat(1000);
    for _ in 0..100 {
        stranger.send(&format!("<message to='{}@example.org/r'><body>{body}</body></message>", account(2))).await;
    }
    let refused = stranger.element().await;
    assert_eq!(condition(&refused), "wait resource-constraint");
    settled().await;
    assert!(world.metric("campanile_front_stanzas_refused_total") > 0);
    let push = vec![b'p'; 10_000];
    let epoch = world.middle.epoch(account(2), "r");
    assert_eq!(world.deliver(vec![item(account(2), epoch, &[&push])]).await, [0; 0], "there is room for it");
    let mut messages = 0;
    loop {
        let said = receiver.element().await;
        if said.has_child("channel", "urn:campanile:channel:1") {
            break;
        }
        assert_eq!(said.attr("from"), Some(format!("{}@example.org/r", account(1)).as_str()));
        messages += 1;
    }
    assert_eq!(world.metric("campanile_front_stanzas_routed_total"), messages);
    assert!(messages < 100);
    // It is only for so long.
    stranger.send(&format!("<message to='{}@example.org/r' id='later'/>", account(2))).await;
    assert_eq!(receiver.element().await.attr("id"), Some("later"));
}

#[tokio::test(start_paused = true)]
async fn a_newer_login_on_a_resource_takes_its_presence_over() {
    let world = World::new().await;
    let mut witness = world.login(account(1), "witness").await;
    witness.send("<presence/>").await;
    assert_eq!(witness.element().await.name(), "presence");
    let mut heard = Vec::new();
    let mut phones = Vec::new();
    for _ in 0..2 {
        let mut phone = world.login(account(1), "phone").await;
        phone.send("<presence/>").await;
        settled().await;
        phones.push(phone);
    }
    witness.send("<iq type='get' id='fence'><ping xmlns='urn:xmpp:ping'/></iq>").await;
    loop {
        let said = witness.element().await;
        match said.name() {
            "presence" => heard.push(said.attr("type").map(str::to_owned)),
            _ => break,
        }
    }
    assert_eq!(heard, [None, Some("unavailable".to_owned()), None]);
}

#[tokio::test(start_paused = true)]
async fn a_stanza_that_no_client_has_to_take_is_refused() {
    let world = World::new().await;
    let mut receiver = world.login(account(2), "r").await;
    let mut stranger = world.login(account(1), "r").await;
    let to = format!("{}@example.org/r", account(2));
    // Short as it was sent: each of its elements declares the namespace when it is written.
    let namespace = "n".repeat(500);
    let many = "<p:x/>".repeat(1000);
    stranger.send(&format!("<message to='{to}' xmlns:p='{namespace}'>{many}</message>")).await;
    assert_eq!(condition(&stranger.element().await), "modify policy-violation");
    let head = format!("<message to='{to}'><body>");
    let large = "x".repeat(64 * 1024 - head.len() - "</body></message>".len());
    stranger.send(&format!("{head}{large}</body></message>")).await;
    assert_eq!(condition(&stranger.element().await), "modify policy-violation");
    receiver.nothing_more().await;
}

#[tokio::test(start_paused = true)]
async fn a_receiver_whose_stream_is_lost_gets_its_messages_when_it_resumes() {
    let world = World::new().await;
    let mut receiver = world.login(account(2), "r").await;
    let mut witness = world.login(account(2), "witness").await;
    for client in [&mut witness, &mut receiver] {
        client.send("<presence/>").await;
        assert_eq!(client.element().await.name(), "presence");
    }
    assert_eq!(receiver.element().await.name(), "presence", "the witness's or its own");
    assert_eq!(witness.element().await.name(), "presence", "the receiver's");
    let id = receiver.enable().await;
    drop(receiver);
    settled().await;
    let mut stranger = world.login(account(1), "r").await;
    stranger.send(&format!("<message to='{}@example.org/r' id='1'/>", account(2))).await;
    settled().await;
    let mut resumed = world.connect(campanile_xmpp_frontend::Security::Trusted).await;
    resumed.authenticate(account(2)).await;
    resumed.send(&format!("<resume xmlns='urn:xmpp:sm:3' previd='{id}' h='0'/>")).await;
    assert_eq!(resumed.element().await.name(), "resumed");
    assert_eq!(resumed.element().await.attr("id"), Some("1"));
    // Nobody was told that it was away: it was not.
    witness.send("<iq type='get' id='fence'><ping xmlns='urn:xmpp:ping'/></iq>").await;
    assert_eq!(witness.element().await.attr("id"), Some("fence"));
}
