//! `shoal token`: creates, lists and revokes the tokens of a seeder's or a hub's API.
//!
//! Invariant: a secret is printed or written once, to its creator.

use super::seeder::{SeederOrHubArgs, block_on};
use super::{Outcome, help, output};
use anyhow::Context;
use shoal_api::access::{RevokeRequest, Scope, TokenCreated, TokenRequest, TokenView};
use shoal_net::admission::system_clock;
use shoal_service::units::Span;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Create(Create),
    /// List the tokens without their secrets
    #[command(after_help = "\
Examples:
  shoal token ls
  shoal token ls --json")]
    Ls {
        /// Print JSON instead of text
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: SeederOrHubArgs,
    },
    /// Revoke a token at once
    #[command(after_help = "\
Examples:
  shoal token revoke ci")]
    Revoke {
        /// Name of the token
        name: String,
        /// Print JSON instead of text
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: SeederOrHubArgs,
    },
}

/// Create a token for a person or a program
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal token create ci --scope push --names edge/ --to site=lon1 --expires 90d --out ci.token
  shoal token create dashboard --scope read --out dashboard.token
  shoal token create anna --scope read --hub https://hub.example:7740 --out anna.token

Commands use the file with --token-file or SHOAL_TOKEN_FILE.")]
pub(crate) struct Create {
    /// Name of the token, which `shoal audit` shows
    name: String,
    /// Scope: read, push (with --names and --to) or admin
    #[arg(long)]
    scope: Scope,
    /// Contents that a push token may change: `edge/` for all names below edge, `edge/app` for one name, `*` for all.
    /// Repeat --names to add others
    #[arg(long, value_name = "NAMES")]
    names: Vec<String>,
    #[arg(long = "to", value_name = "SELECTOR", help = help::TO)]
    to: Vec<String>,
    /// Time after which the token ends, such as 90d. Without it, the token works until it is revoked
    #[arg(long)]
    expires: Option<Span>,
    /// Write the secret to a new file of mode 0600 instead of printing it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: SeederOrHubArgs,
}

pub(crate) fn run(command: &Command) -> anyhow::Result<Outcome> {
    match command {
        Command::Create(args) => create(args),
        Command::Ls { json, server } => list(*json, server),
        Command::Revoke { name, json, server } => {
            let client = server.client()?;
            let request = RevokeRequest { name: name.clone() };
            let revoked: TokenView = block_on(async { Ok(client.post("/v1/tokens/revoke", &request).await?) })?;
            match json {
                true => output::json(&revoked)?,
                false => output::line(&format!("revoked {}", revoked.name)),
            }
            Ok(Outcome::Ok)
        }
    }
}

fn create(args: &Create) -> anyhow::Result<Outcome> {
    let client = args.server.client()?;
    let request = TokenRequest {
        name: args.name.clone(),
        scope: args.scope,
        names: args.names.clone(),
        to: args.to.clone(),
        expires: args.expires,
    };
    // Opened before the token exists, so that no secret is lost to a file that cannot be written.
    let file = args.out.as_deref().map(create_file).transpose()?;
    let answer = block_on(async { Ok(client.post::<TokenCreated>("/v1/tokens", &request).await?) });
    let created = answer.inspect_err(|_| {
        args.out.as_ref().map(std::fs::remove_file); // empty, and a retry needs the name
    })?;
    if let (Some(mut file), Some(path)) = (file, &args.out) {
        let written = writeln!(file, "{}", created.secret).and_then(|()| file.sync_all());
        written.with_context(|| format!("cannot write {}; revoke the token {}", path.display(), args.name))?;
        match args.json {
            true => output::json(&created.token)?,
            false => output::line(&format!("created {} in {}", created.token.name, path.display())),
        }
    } else if args.json {
        output::json(&created)?;
    } else {
        output::line(&created.secret);
        output::note("the server stores only a hash; keep the secret in a file of mode 0600");
    }
    Ok(Outcome::Ok)
}

fn create_file(path: &Path) -> anyhow::Result<std::fs::File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.with_context(|| format!("cannot create {}", path.display()))
}

fn list(json: bool, server: &SeederOrHubArgs) -> anyhow::Result<Outcome> {
    let client = server.client()?;
    let tokens: Vec<TokenView> = block_on(async { Ok(client.get("/v1/tokens").await?) })?;
    if json {
        output::json(&tokens)?;
        return Ok(Outcome::Ok);
    }
    let now = system_clock();
    let row = |token: &TokenView| {
        let expires = match token.expires_at {
            None => "never".to_string(),
            Some(at) if at <= now => "expired".to_string(),
            Some(at) => format!("in {}", remaining(at - now)),
        };
        let created = output::ago(token.created_at);
        vec![
            token.name.clone(),
            token.scope.to_string(),
            token.names.join(","),
            token.to.join(" or "),
            created,
            expires,
        ]
    };
    output::table(
        &["NAME", "SCOPE", "NAMES", "HOSTS", "CREATED", "EXPIRES"],
        &tokens.iter().map(row).collect::<Vec<_>>(),
    );
    Ok(Outcome::Ok)
}

fn remaining(seconds: u64) -> String {
    match seconds {
        0..=7_199 => format!("{}m", seconds.div_ceil(60)),
        7_200..=172_799 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}
