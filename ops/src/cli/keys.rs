//! `campanile keys`: the file of keys that the processes of an installation share (`identity.keys`).

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use idl::clock::SystemEntropy;
use serde_json::json;

use super::Settings;
use crate::identity::{copy_keys_for_fronts, make_keys};

/// Make the keys that the processes of an installation share.
#[derive(Args)]
pub(super) struct Keys {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a file of new keys; whoever has it can be any device, so keep it like a password
    Make {
        /// The file, which must not exist yet
        file: PathBuf,
    },
    /// Copy what fronts need of a file of keys
    ForFronts {
        /// The whole file
        from: PathBuf,
        /// The copy, which must not exist yet
        file: PathBuf,
    },
}

impl Keys {
    /// Makes the file. None is ever replaced.
    pub(super) fn run(self, settings: &Settings) -> Result<()> {
        let (file, who) = match self.verb {
            Verb::Make { file } => {
                make_keys(&file, &SystemEntropy)?;
                (file, "every middle and every front")
            }
            Verb::ForFronts { from, file } => {
                copy_keys_for_fronts(&from, &file)?;
                (file, "every front")
            }
        };
        let words = format!("{} is made: set identity.keys to it for {who}, and keep a backup", file.display());
        settings.say(&json!({ "event": "made", "file": file }), &words)
    }
}
