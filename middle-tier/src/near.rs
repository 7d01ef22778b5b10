//! Profiles of registrations that are remembered in the process: they follow what other middles change, and count how often
//! they were found where.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;
use schema::profiles::NearMetrics;
use tokio_util::sync::CancellationToken;

use crate::Shared;

/// Forgets profiles that other middles changed, until `drain` is cancelled.
pub(crate) async fn run(shared: Arc<Shared>, drain: CancellationToken) {
    drain.run_until_cancelled(shared.profiles.follow()).await;
}

/// Where profiles were found, as metrics.
#[derive(Debug)]
pub(crate) struct Found(pub(crate) Arc<NearMetrics>);

impl Collector for Found {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let Self(metrics) = self;
        let (name, help) = ("campanile_middle_profiles", "Profiles of registrations by where they were found");
        let mut family = encoder.encode_descriptor(name, help, None, ConstCounter::new(0_u64).metric_type())?;
        for (place, found) in [("near", metrics.near()), ("cache", metrics.cached()), ("store", metrics.stored())] {
            ConstCounter::new(found).encode(family.encode_family(&[("found", place)])?)?;
        }
        let forgotten = ConstCounter::new(metrics.forgotten());
        let (name, help) =
            ("campanile_middle_profiles_forgotten", "Profiles forgotten because another middle changed them");
        forgotten.encode(encoder.encode_descriptor(name, help, None, forgotten.metric_type())?)
    }
}
