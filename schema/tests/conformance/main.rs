//! One suite, every backend: each case below runs against each backend of its kind, and is named after both, such as
//! `embedded::mailbox::an_unacked_message_stays`.

#![expect(clippy::unwrap_used, reason = "in a test a failure is a panic; clippy knows tests by their attribute alone")]

// As the other crates of the workspace name it.
extern crate campanile_schema as schema;

macro_rules! cases {
    // The `$` comes in as a token, because a macro can't write one into the macro that it makes.
    ($dollar:tt $file:ident: $($case:ident,)+) => {
        macro_rules! $file {
            ($dollar backend:path) => {
                mod $file {
                    $(
                        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                        async fn $case() {
                            // A backend whose server is absent gives none.
                            if let Some(world) = Option::from($dollar backend()) {
                                crate::$file::$case(world).await;
                            }
                        }
                    )+
                }
            };
        }
        pub(crate) use $file;
    };
}

mod accounts;
mod apart;
mod cache;
mod cache_full;
mod cache_shared;
mod catalog;
mod catalog_reopening;
mod catalog_schedules;
mod catalog_segments;
mod catalog_templates;
mod days;
mod equality;
mod expiries;
mod feedback;
mod idempotency;
mod mailbox;
mod names;
mod quotas;
mod receipts;
mod records;
mod registrations;
mod reopening;
mod sorted;
mod timeline;
mod traces;
mod world;

macro_rules! on_the_sorted_store {
    ($backend:path) => {
        crate::accounts::accounts!($backend);
        crate::days::days!($backend);
        crate::expiries::expiries!($backend);
        crate::feedback::feedback!($backend);
        crate::idempotency::idempotency!($backend);
        crate::mailbox::mailbox!($backend);
        crate::names::names!($backend);
        crate::receipts::receipts!($backend);
        crate::records::records!($backend);
        crate::registrations::registrations!($backend);
        crate::sorted::sorted!($backend);
        crate::timeline::timeline!($backend);
        crate::traces::traces!($backend);
    };
}

macro_rules! on_the_catalog {
    ($backend:path) => {
        crate::catalog::catalog!($backend);
        crate::catalog_schedules::catalog_schedules!($backend);
        crate::catalog_segments::catalog_segments!($backend);
        crate::catalog_templates::catalog_templates!($backend);
    };
}

mod memory {
    on_the_sorted_store!(crate::world::memory);
}

mod embedded {
    on_the_sorted_store!(crate::world::embedded);
}

mod hbase {
    on_the_sorted_store!(crate::apart::hbase);
}

mod sqlite {
    on_the_catalog!(crate::world::sqlite);
}

mod sqlite_in_memory {
    on_the_catalog!(crate::world::sqlite_in_memory);
}

mod mysql {
    on_the_catalog!(crate::world::mysql);
}

mod in_process {
    crate::cache::cache!(crate::world::in_process);
    crate::cache_full::cache_full!(crate::world::in_process);
    crate::quotas::quotas!(crate::world::in_process);
}

mod redis {
    crate::cache::cache!(crate::world::redis);
    crate::cache_shared::cache_shared!(crate::world::redis_processes);
    crate::quotas::quotas!(crate::world::redis);
}
