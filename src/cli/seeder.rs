//! The client of the seeder's HTTP API that most commands share.

use anyhow::Context;
use shoal_service::http_client::Client;
use shoal_service::http_server::{AdminToken, TokenError};
use std::path::PathBuf;

/// What to do when the token is missing.
pub(crate) const TOKEN_HINT: &str = "no token; name its file with --token-file or SHOAL_TOKEN_FILE";

/// Address of the seeder and the token that it requires.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Seeder")]
pub(crate) struct SeederArgs {
    /// HTTP API of the seeder
    #[arg(long, env = "SHOAL_SEEDER", default_value = "http://127.0.0.1:7721", value_name = "URL")]
    pub(crate) seeder: String,
    /// File with a token, such as the cluster's admin token
    #[arg(long, env = "SHOAL_TOKEN_FILE", default_value = "/etc/shoal/admin.token", value_name = "FILE")]
    pub(crate) token_file: PathBuf,
    #[command(flatten)]
    pub(crate) authority: AuthorityArgs,
}

/// A seeder or a hub, which both have tokens and an audit log.
#[derive(Debug, clap::Args)]
pub(crate) struct SeederOrHubArgs {
    /// Ask this hub instead of the seeder, for example `https://hub.example:7740`
    #[arg(long, env = "SHOAL_HUB", value_name = "URL")]
    hub: Option<String>,
    #[command(flatten)]
    seeder: SeederArgs,
}

impl SeederOrHubArgs {
    /// Returns a client that sends the token with every request. A hub on a loopback address can do without one.
    ///
    /// # Errors
    ///
    /// The token file is unreadable, or the URL is invalid.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        let Some(hub) = &self.hub else { return self.seeder.client() };
        let token = match AdminToken::load(&self.seeder.token_file) {
            Ok(token) => Some(token.secret().to_string()),
            Err(TokenError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).context(TOKEN_HINT),
        };
        Ok(Client::trusting(hub, token, self.seeder.authority.ca.as_deref())?)
    }
}

/// The authority of an https server.
#[derive(Debug, clap::Args)]
pub(crate) struct AuthorityArgs {
    /// PEM file with the authority of an https:// server, beside the system's authorities
    #[arg(long, env = "SHOAL_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
}

impl SeederArgs {
    /// Returns a client that sends the token with every request.
    ///
    /// # Errors
    ///
    /// The token file is unreadable, or the URL is invalid.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        let token = AdminToken::load(&self.token_file).context(TOKEN_HINT)?;
        Ok(Client::trusting(&self.seeder, Some(token.secret().to_string()), self.authority.ca.as_deref())?)
    }
}

/// Runs a command's asynchronous work on a runtime of one thread.
pub(crate) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
