//! `shoal feed`: publishes versions of feeds, lists feeds and prints versions as they arrive.

use super::seeder::{SeederArgs, block_on};
use super::{Outcome, help, output};
use anyhow::{Context, bail};
use serde_json::Value;
use shoal_api::feeds::{FeedVersion, VersionPublished};
use shoal_proto::announcement::Kind;
use shoal_proto::limits::FEED_BYTES_MAX;
use shoal_service::http_client::Client;
use std::io::Read;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Publish(Publish),
    Ls(Ls),
    Show(Show),
    Watch(Watch),
}

/// Publish the next version of a feed
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal feed publish gslb/main decisions.json
  generate | shoal feed publish gslb/main - --to site=lon1")]
pub(crate) struct Publish {
    /// Name of the feed, such as gslb/main
    feed: String,
    /// File with the version's bytes, or - for standard input
    file: PathBuf,
    #[arg(long = "to", value_name = "SELECTOR", default_value = "all", help = help::TO)]
    to: Vec<String>,
    /// Kind: gslb, config, image or blob. The kind sets the priority on links
    #[arg(long, default_value = "gslb")]
    kind: Kind,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    seeder: SeederArgs,
}

/// List the seeder's feeds with their newest versions
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal feed ls
  shoal feed ls --json")]
pub(crate) struct Ls {
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    seeder: SeederArgs,
}

/// Show the newest version of a feed
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal feed show gslb/main
  shoal feed show gslb/main --json")]
pub(crate) struct Show {
    /// Name of the feed, such as gslb/main
    feed: String,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    seeder: SeederArgs,
}

/// Print each version of a feed when it arrives
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal feed watch gslb/main
  shoal feed watch gslb/main --peer http://127.0.0.1:7701 --count 1 --json")]
pub(crate) struct Watch {
    /// Name of the feed, such as gslb/main
    feed: String,
    /// HTTP API of a peer to watch instead of the seeder
    #[arg(long, value_name = "URL")]
    peer: Option<String>,
    /// Number of versions after which the command ends [default: unlimited]
    #[arg(long)]
    count: Option<u64>,
    /// Print a JSON line for each version
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    seeder: SeederArgs,
}

pub(crate) fn run(command: &Command) -> anyhow::Result<Outcome> {
    match command {
        Command::Publish(args) => publish(args),
        Command::Ls(args) => ls(args),
        Command::Show(args) => show(args),
        Command::Watch(args) => watch(args),
    }
}

/// Reads a file or standard input, up to the largest size of a feed's version.
fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(FEED_BYTES_MAX + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(FEED_BYTES_MAX + 1).read_to_end(&mut bytes))
    };
    read.with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.len() as u64 > FEED_BYTES_MAX {
        bail!(
            "{} has more than {FEED_BYTES_MAX} bytes, the most of a feed's version; distribute it with `shoal push`",
            path.display()
        );
    }
    Ok(bytes)
}

fn publish(args: &Publish) -> anyhow::Result<Outcome> {
    let client = args.seeder.client()?;
    let bytes = read(&args.file)?;
    let path = format!("/v1/feeds/{}?kind={}&to={}", args.feed, args.kind, args.to.join(";"));
    let published: VersionPublished = block_on(async { Ok(client.post_bytes(&path, bytes).await?) })?;
    if args.json {
        output::json(&published)?;
    } else {
        output::line(&format!("{} {}", published.feed, published.sequence));
    }
    Ok(Outcome::Ok)
}

fn listing(client: &Client) -> anyhow::Result<Value> {
    block_on(async { Ok(client.get("/feeds").await?) })
}

fn ls(args: &Ls) -> anyhow::Result<Outcome> {
    let listing = listing(&args.seeder.client()?)?;
    let feeds = listing["feeds"].as_array().cloned().unwrap_or_default();
    if args.json {
        output::json(&feeds)?;
        return Ok(Outcome::Ok);
    }
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
    let rows: Vec<Vec<String>> = feeds
        .iter()
        .map(|row| {
            let published = output::ago(row["published_at_ms"].as_u64().unwrap_or(0) / 1000);
            vec![text(&row["feed"]), text(&row["kind"]), text(&row["sequence"]), text(&row["size"]), published]
        })
        .collect();
    output::table(&["FEED", "KIND", "SEQUENCE", "BYTES", "PUBLISHED"], &rows);
    Ok(Outcome::Ok)
}

fn show(args: &Show) -> anyhow::Result<Outcome> {
    let listing = listing(&args.seeder.client()?)?;
    let feeds = listing["feeds"].as_array().cloned().unwrap_or_default();
    let Some(row) = feeds.into_iter().find(|row| row["feed"] == args.feed) else {
        bail!("the seeder has no feed `{}`; `shoal feed ls` lists all feeds", args.feed);
    };
    if args.json {
        output::json(&row)?;
        return Ok(Outcome::Ok);
    }
    let line = |key: &str, value: &Value| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
        output::line(&format!("{key:<10} {text}"));
    };
    ["feed", "kind", "sequence", "size", "content"].into_iter().for_each(|key| line(key, &row[key]));
    output::line(&format!("published  {}", output::ago(row["published_at_ms"].as_u64().unwrap_or(0) / 1000)));
    Ok(Outcome::Ok)
}

fn watch(args: &Watch) -> anyhow::Result<Outcome> {
    let client = match &args.peer {
        Some(url) => Client::trusting(url, None, args.seeder.authority.ca.as_deref())?,
        None => args.seeder.client()?,
    };
    let path = format!("/feeds/{}/events?lines=true", args.feed);
    block_on(async {
        let mut lines = client.lines(&path).await?;
        let mut count = 0;
        while let Some(version) = lines.next::<FeedVersion>().await? {
            if args.json {
                output::json_line(&version)?;
            } else {
                let text = version.text.as_deref().unwrap_or("");
                output::line(&format!(
                    "{} {} bytes  {}",
                    version.sequence,
                    version.size,
                    text.lines().next().unwrap_or("")
                ));
            }
            count += 1;
            if args.count.is_some_and(|wanted| count >= wanted) {
                return Ok(Outcome::Ok);
            }
        }
        bail!("{} closed the stream; run the command again", client.url())
    })
}
