//! Asking and telling all other middles.

use std::time::Duration;

use idl::bus::{Reply, Request};
use idl::error::Failure;
use tokio::time::Instant;

use crate::Shared;

/// How long they are waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// What each other middle answers; nothing where there are none.
pub(crate) async fn ask(shared: &Shared, request: Request) -> Vec<Result<Reply, Failure>> {
    if shared.partitions.is_whole() {
        return Vec::new();
    }
    let name = request.name();
    let answers = shared.bus.ask_others(request, Instant::now() + PATIENCE).await;
    for failure in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        tracing::warn!(request = name, %failure, "another middle did not answer");
    }
    answers
}
