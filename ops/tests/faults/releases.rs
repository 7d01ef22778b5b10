//! Processes of this build and of the one before work together, so that an installation can be upgraded process by process.

use std::path::{Path, PathBuf};

use servers::Role;

use crate::harness::clients::demanded;
use crate::harness::roles::shared_engines;
use crate::harness::server::BINARY;
use crate::stream::Stream;

/// The program as the commit before this one has it, where `ops/previous` has built it.
fn previous() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it is in the target folder");
    let binary = target.join("previous/campanile");
    let there = binary.exists();
    assert!(there || !demanded(), "{} is not there; ops/previous builds it", binary.display());
    if !there {
        eprintln!("skipped: {} is not there; ops/previous builds it", binary.display());
    }
    there.then_some(binary)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_is_upgraded_and_taken_back_process_by_process_under_a_stream_of_sends() {
    let (Some(previous), Some(engines)) = (previous(), shared_engines()) else { return };
    let mut stream = Stream::new(engines, &[]).await;
    let frontends = [Role::Front, Role::Http];
    for (what, roles, binary) in [
        ("old middles under new frontends", &[Role::Middle][..], &*previous),
        ("old processes alone", &frontends, &previous),
        ("new middles under old frontends", &[Role::Middle], Path::new(BINARY)),
        ("new processes alone", &frontends, Path::new(BINARY)),
    ] {
        stream.begin(what).await;
        for role in roles {
            let names: Vec<_> = stream.server.cluster().of(*role).into_iter().map(str::to_owned).collect();
            for name in names {
                let cluster = stream.server.cluster_mut();
                cluster.set_binary(&name, binary);
                // As an upgrade does it: ended well, then started anew.
                assert_eq!(cluster.stop(&name), 0, "{name}: {}", cluster.output(&name));
                cluster.restart(&name);
                stream.sends_go_on().await;
            }
        }
        stream.judge(what).await;
    }
}
