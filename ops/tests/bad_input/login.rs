//! Logins that must fail: what is no SASL, and tokens that prove nothing or no longer prove anything.

use campanile_ops::api::Account;

use crate::harness::wait_for;
use crate::peer::{Peer, account, auth, plain};
use crate::tower::Tower;

/// The server's answer to an SASL exchange that must fail: the condition.
fn failure(peer: &mut Peer) -> String {
    let words = peer.hear("</failure>");
    let (_, condition) = words.split_once("<failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><").expect("a failure");
    condition.split('/').next().unwrap_or_default().to_owned()
}

/// A token that differs in its proof alone.
fn forged(token: &str) -> String {
    let (rest, proof) = token.rsplit_once('.').expect("a token has parts");
    let first = if proof.starts_with('A') { "B" } else { "A" };
    format!("{rest}.{first}{}", &proof[1..])
}

#[test]
fn a_token_that_proves_nothing_is_refused_and_the_third_try_is_the_last() {
    let tower = Tower::start();
    let (mine, others) = (account(&tower.server), account(&tower.server));
    let cases = [
        ("a forged token", plain(&mine.jid, &forged(&mine.token))),
        ("another account's token", plain(&mine.jid, &others.token)),
        ("no token at all", plain(&mine.jid, "password")),
        ("a token with another time", plain(&mine.jid, &mine.token.replacen("cpt1.1.1", "cpt1.1.2", 1))),
        ("an account that was never made", plain("00000000000000000000000007@localhost", &mine.token)),
        ("a name that no account has", plain("admin@localhost", &mine.token)),
        ("an overlong token", plain(&mine.jid, &"x".repeat(4000))),
    ];
    for (case, words) in cases {
        let mut peer = Peer::tls(&tower.server);
        peer.open();
        for _ in 0..3 {
            peer.say(&words);
            assert_eq!(failure(&mut peer), "not-authorized", "{case}");
        }
        peer.ends_with("policy-violation", "logins", case);
        tower.goes_on_after(case);
    }
    let mut peer = Peer::tls(&tower.server);
    peer.open();
    peer.say(plain(&mine.jid, &others.token));
    assert_eq!(failure(&mut peer), "not-authorized");
    peer.say(plain(&mine.jid, &mine.token));
    peer.hear("<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>");
}

#[test]
fn an_exchange_that_is_no_sasl_is_refused_with_what_is_wrong() {
    let tower = Tower::start();
    let mine = account(&tower.server);
    let (name, token) = (mine.jid.split('@').next().expect("a name"), &mine.token);
    let encoded = auth("PLAIN", b"");
    let cases = [
        (encoded.replace("></auth>", ">*not base 64*</auth>"), "incorrect-encoding"),
        (auth("PLAIN", format!("{name} {token}").as_bytes()), "malformed-request"),
        (auth("PLAIN", format!("\0{name}\0").as_bytes()), "malformed-request"),
        (auth("PLAIN", b"\0\xff\xfe\0\xff"), "malformed-request"),
        (auth("PLAIN", format!("somebody@localhost\0{name}\0{token}").as_bytes()), "invalid-authzid"),
        (auth("DIGEST-MD5", b"x"), "invalid-mechanism"),
        (auth("", b"x"), "invalid-mechanism"),
        (auth("SCRAM-SHA-256", b"not SCRAM"), "malformed-request"),
        (encoded.replace("auth", "response"), "malformed-request"),
        (encoded.replace("auth", "abort"), "aborted"),
    ];
    for (words, condition) in cases {
        let mut peer = Peer::tls(&tower.server);
        peer.open();
        peer.say(&words);
        assert_eq!(failure(&mut peer), condition, "{words}");
        peer.say(plain(&mine.jid, token));
        peer.hear("<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>");
        tower.goes_on_after(&words);
    }
}

#[test]
fn a_stanza_before_login_and_a_login_before_tls_are_refused() {
    let tower = Tower::start();
    let mine = account(&tower.server);
    let mut peer = Peer::clear(&tower.server);
    peer.open();
    peer.say(plain(&mine.jid, &mine.token));
    assert_eq!(failure(&mut peer), "encryption-required");
    let open = "<iq type='set' id='1'><open xmlns='urn:campanile:channel:1' number='5'/></iq>";
    let streams = [Peer::clear(&tower.server), Peer::starttls(&tower.server), Peer::tls(&tower.server)];
    for (case, mut peer) in ["before TLS", "after STARTTLS", "in TLS"].into_iter().zip(streams) {
        peer.open();
        peer.say(open);
        peer.ends_with("not-authorized", "log in", case);
        tower.goes_on_after(case);
    }
    let mut peer = Peer::tls(&tower.server);
    peer.open();
    peer.say(plain(&mine.jid, &mine.token));
    peer.hear("<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>");
    peer.open();
    peer.say(open);
    peer.ends_with("not-authorized", "bind", "without a resource");
    tower.goes_on_after("a stanza without a resource");
}

#[test]
fn a_revoked_token_ends_its_open_connection_and_opens_no_other() {
    let tower = Tower::start();
    let (revoked, neighbour) = (account(&tower.server), account(&tower.server));
    let mut connections = [Peer::logged_in(&tower.server, &revoked), Peer::with_channel(&tower.server, &revoked)];
    let mut neighbours = Peer::with_channel(&tower.server, &neighbour);
    let id = revoked.jid.split('@').next().expect("an id");
    tower.server.json(&["ctl", "revoke-tokens", id]);
    for peer in &mut connections {
        peer.ends_with("not-authorized", "revoked", "an open connection");
    }
    let mut peer = Peer::tls(&tower.server);
    peer.open();
    peer.say(plain(&revoked.jid, &revoked.token));
    assert_eq!(failure(&mut peer), "not-authorized");

    let renew = |account: &Account| {
        let form = [("account", account.jid.as_str()), ("token", account.token.as_str())];
        tower.server.api().post("/device/v1/token", None, &form).expect("the API answers")
    };
    let refused = renew(&revoked);
    assert_eq!(refused.code, 70002, "{refused:?}");
    assert!(refused.description.contains("revoked"), "{refused:?}");
    assert_eq!(renew(&neighbour).code, 0, "another account's tokens are as good as before");
    neighbours.goes_on("the revocation of another account's tokens");
    tower.goes_on_after("a revocation");
}

#[test]
fn a_revoked_token_stays_worthless_after_another_start() {
    let mut tower = Tower::start();
    let revoked = account(&tower.server);
    let id = revoked.jid.split('@').next().expect("an id");
    tower.server.json(&["ctl", "revoke-tokens", id]);
    tower.server.restart();
    let mut peer = Peer::tls(&tower.server);
    peer.open();
    peer.say(plain(&revoked.jid, &revoked.token));
    assert_eq!(failure(&mut peer), "not-authorized");
    wait_for("the honest device comes back", || (tower.device.events("ready").len() > 1).then_some(()));
}
