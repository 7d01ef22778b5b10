//! Processes of the roles die, come back and are added.

use servers::Role;

use crate::harness::eventually;
use crate::harness::roles::shared_engines;
use crate::stream::Stream;

#[tokio::test(flavor = "multi_thread")]
async fn processes_of_any_role_are_killed_added_and_taken_away_under_a_stream_of_sends() {
    let Some(engines) = shared_engines() else { return };
    let mut stream = Stream::new(engines, &[]).await;
    for victim in ["http-1", "front-1", "middle-1"] {
        let what = format!("{victim} is killed");
        stream.begin(&what).await;
        stream.server.cluster_mut().kill(victim);
        // Through http-2 all go on without it; who knows http-1 alone waits for its return.
        if victim == "http-1" {
            stream.sends_are_tried(60).await;
        } else {
            stream.sends_go_on().await;
        }
        stream.server.cluster_mut().restart(victim);
        stream.sends_go_on().await;
        stream.judge(&what).await;
    }

    let what = "both middles are killed";
    stream.begin(what).await;
    stream.server.cluster_mut().kill("middle-1");
    stream.server.cluster_mut().kill("middle-2");
    stream.sends_are_tried(10).await;
    stream.server.cluster_mut().launch("middle-1");
    stream.server.cluster_mut().restart("middle-2");
    stream.server.cluster_mut().wait("middle-1");
    stream.sends_go_on().await;
    stream.judge(what).await;

    let what = "one more of each role";
    stream.begin(what).await;
    let added: Vec<_> = [Role::Middle, Role::Front, Role::Http]
        .into_iter()
        .map(|role| stream.server.cluster_mut().add(role).expect("one more starts"))
        .collect();
    assert_eq!(added, ["middle-3", "front-3", "http-3"]);
    let front = stream.server.cluster().address("front-3", "xmpp.tls").expect("it listens").port();
    stream.move_to(1, front).await;
    assert!(stream.devices_on("front-3") > 0.0);
    let owns = || (stream.server.metric_of("middle-3", "campanile_bus_partitions_owned") > 0.0).then_some(());
    eventually("the new middle has its share of the work", owns).await;
    let regid = stream.regid(1).to_owned();
    let sent = stream
        .app_server("http-3")
        .send("/v3/message/regid", &[("registration_id", &*regid), ("payload", "mark through what is new")]);
    println!("        {sent} went through the new ones");
    stream.sends_go_on().await;
    stream.judge(what).await;

    let what = "one of each role ends";
    stream.begin(what).await;
    for name in ["http-3", "middle-3", "middle-1"] {
        assert_eq!(stream.server.cluster_mut().stop(name), 0, "{name}: {}", stream.server.cluster().output(name));
        stream.sends_go_on().await;
    }
    stream.judge(what).await;
}
