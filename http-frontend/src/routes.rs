//! Which path means what: one table, from which the router is made.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::routing::any;

use crate::reply::{Done, Manner, Refusal};
use crate::request::{self, Received};
use crate::send::{self, Audience, Packages};
use crate::topics::{self, By};
use crate::{Shared, devices};

/// A path and what it does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route {
    pub(crate) path: &'static str,
    pub(crate) what: What,
}

/// What a path does. The path alone chooses the target; other targets among the parameters are ignored.
#[derive(Debug, Clone, Copy)]
pub(crate) enum What {
    Send(Audience, Packages),
    ChangeTopic { subscribe: bool, by: By },
    CreateAccount,
    RenewToken,
}

const fn sends(path: &'static str, to: Audience, packages: Packages) -> Route {
    Route { path, what: What::Send(to, packages) }
}

const fn changes(path: &'static str, subscribe: bool, by: By) -> Route {
    Route { path, what: What::ChangeTopic { subscribe, by } }
}

const ROUTES: &[Route] = &[
    sends("/v2/message/regid", Audience::Regids, Packages::One),
    sends("/v3/message/regid", Audience::Regids, Packages::Several),
    sends("/v4/message/regid", Audience::Regids, Packages::Several),
    sends("/v2/message/alias", Audience::Aliases, Packages::One),
    sends("/v3/message/alias", Audience::Aliases, Packages::Several),
    sends("/v2/message/user_account", Audience::UserAccounts, Packages::One),
    sends("/v2/message/topic", Audience::Topic, Packages::One),
    sends("/v3/message/topic", Audience::Topic, Packages::Several),
    sends("/v2/message/multi_topic", Audience::Topics, Packages::One),
    sends("/v3/message/multi_topic", Audience::Topics, Packages::Several),
    sends("/v2/message/all", Audience::Everyone, Packages::One),
    sends("/v3/message/all", Audience::Everyone, Packages::Several),
    changes("/v2/topic/subscribe", true, By::Regids),
    changes("/v2/topic/subscribe/alias", true, By::Aliases),
    changes("/v2/topic/unsubscribe", false, By::Regids),
    changes("/v2/topic/unsubscribe/alias", false, By::Aliases),
    Route { path: "/device/v1/account", what: What::CreateAccount },
    Route { path: "/device/v1/token", what: What::RenewToken },
];

impl What {
    pub(crate) fn manner(self) -> Manner {
        match self {
            Self::Send(..) | Self::ChangeTopic { .. } => Manner::MiPush,
            Self::CreateAccount | Self::RenewToken => Manner::Campanile,
        }
    }

    /// Refuses a caller before its body is read.
    pub(crate) fn admit(self, shared: &Shared, address: IpAddr) -> Result<(), Refusal> {
        match self {
            Self::Send(..) | Self::ChangeTopic { .. } => Ok(()),
            Self::CreateAccount | Self::RenewToken => devices::admit(shared, address),
        }
    }

    pub(crate) async fn handle(self, shared: &Shared, received: Received) -> Result<Done, Refusal> {
        match self {
            Self::Send(to, packages) => Ok(send::handle(shared, to, packages, &received).await?),
            Self::ChangeTopic { subscribe, by } => Ok(topics::handle(shared, subscribe, by, &received).await?),
            Self::CreateAccount => Ok(devices::create(shared, &received).await?),
            Self::RenewToken => Ok(devices::renew(shared, &received).await?),
        }
    }
}

/// The router over all paths; those that aren't in the table are answered in the envelope too.
pub(crate) fn router(shared: &Arc<Shared>) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        let shared = Arc::clone(shared);
        let serve = move |request: Request| request::serve(Arc::clone(&shared), *route, request);
        router = router.route(route.path, any(serve));
    }
    let shared = Arc::clone(shared);
    router.fallback(move |request: Request| {
        let response = request::unknown(&shared, &request);
        async move { response }
    })
}
