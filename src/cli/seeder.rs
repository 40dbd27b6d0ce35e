//! How commands reach the seeder's API.

use anyhow::Context;
use shoal_service::http_client::Client;
use shoal_service::http_server::AdminToken;
use std::path::PathBuf;

/// Which seeder, and how to be let in.
#[derive(Debug, clap::Args)]
pub(crate) struct SeederArgs {
    /// The seeder's API
    #[arg(long, env = "SHOAL_SEEDER", default_value = "http://127.0.0.1:7721", value_name = "URL")]
    pub(crate) seeder: String,
    /// The cluster's admin token
    #[arg(long, env = "SHOAL_TOKEN_FILE", default_value = "/etc/shoal/admin.token", value_name = "FILE")]
    pub(crate) token_file: PathBuf,
}

impl SeederArgs {
    /// A client that shows the token.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        let token = AdminToken::load(&self.token_file).context("say which with --token-file")?;
        Ok(Client::new(&self.seeder, Some(token.secret().to_string()))?)
    }
}

/// Runs a command's one piece of asynchronous work.
pub(crate) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
