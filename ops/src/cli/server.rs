//! Which server a command speaks to, and which CA it trusts.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;

use super::ctl::none_running;
use crate::api::Api;
use crate::config::Config;
use crate::data_folder::DataFolder;
use crate::socket::Run;

/// Where the server is; without it the one that runs on the data folder.
#[derive(Args)]
pub(super) struct Server {
    /// Where the API is, such as `https://push.example.com:8443`.
    #[arg(
        long,
        value_name = "URL",
        help = "Where the API is, such as https://push.example.com:8443 [default: the server of the data folder]"
    )]
    server: Option<String>,
    /// CA to trust, a PEM file [default: that of the data folder's server; with --server the public ones]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

/// A server that was found.
pub(super) struct Found {
    /// Where its API is.
    pub(super) base: String,
    /// The CA to trust.
    pub(super) ca: Option<PathBuf>,
}

impl Server {
    /// Finds it.
    pub(super) fn find(&self, config: &Config) -> Result<Found> {
        if let Some(base) = &self.server {
            return Ok(Found { base: base.clone(), ca: self.ca.clone() });
        }
        let folder = DataFolder::at(config.data());
        let run =
            Run::read(&folder)?.with_context(|| format!("{}, or name one with --server", none_running(&folder)))?;
        let base =
            run.https().context("the server has no HTTPS listener (http.https); name another one with --server")?;
        Ok(Found { base, ca: self.ca.clone().or(run.ca) })
    }
}

impl Found {
    /// A client of its API.
    pub(super) fn api(&self) -> Result<Api> {
        Api::new(&self.base, self.ca.as_deref())
    }
}
