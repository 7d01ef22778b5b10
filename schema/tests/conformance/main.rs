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
                            crate::$file::$case($dollar backend()).await;
                        }
                    )+
                }
            };
        }
        pub(crate) use $file;
    };
}

mod accounts;
mod cache;
mod catalog;
mod equality;
mod mailbox;
mod names;
mod registrations;
mod reopening;
mod sorted;
mod timeline;
mod world;

macro_rules! on_the_sorted_store {
    ($backend:path) => {
        crate::accounts::accounts!($backend);
        crate::mailbox::mailbox!($backend);
        crate::names::names!($backend);
        crate::registrations::registrations!($backend);
        crate::sorted::sorted!($backend);
        crate::timeline::timeline!($backend);
    };
}

mod memory {
    on_the_sorted_store!(crate::world::memory);
}

mod embedded {
    on_the_sorted_store!(crate::world::embedded);
}

mod sqlite {
    crate::catalog::catalog!(crate::world::sqlite);
}

mod sqlite_in_memory {
    crate::catalog::catalog!(crate::world::sqlite_in_memory);
}

mod in_process {
    crate::cache::cache!(crate::world::in_process);
}
