//! `shoal feed`: publish versions of feeds, list them, watch them come.

use super::seeder::{SeederArgs, block_on};
use super::{Outcome, output};
use anyhow::{Context, bail};
use serde_json::Value;
use shoal_api::feeds::FeedVersion;
use shoal_api::feeds::VersionPublished;
use shoal_proto::announcement::Kind;
use shoal_proto::limits::FEED_BYTES_MAX;
use shoal_service::http_client::Client;
use std::io::Read;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Publish the next version of a feed; the latest wins
    Publish(Publish),
    /// List the feeds a seeder knows
    Ls(Ls),
    /// Show a feed's newest version
    Show(Show),
    /// Print a feed's versions as they come
    Watch(Watch),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Publish {
    /// Name of the feed, e.g. gslb/main
    feed: String,
    /// File with the version's bytes; - for standard input
    file: PathBuf,
    /// For which hosts: all, or region=, site=, rack=, host= and labels joined by commas (and); repeat for or
    #[arg(long = "to", value_name = "SELECTOR", default_value = "all")]
    to: Vec<String>,
    /// What it is for: gslb, config, image or blob. Sets its urgency
    #[arg(long, default_value = "gslb")]
    kind: Kind,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    seeder: SeederArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Ls {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    seeder: SeederArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    /// Name of the feed
    feed: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    seeder: SeederArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Watch {
    /// Name of the feed
    feed: String,
    /// A host's local API; the seeder's is asked when this is not given
    #[arg(long, value_name = "URL")]
    peer: Option<String>,
    /// End after this many versions
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

/// All of a file or of standard input, up to what a version may have.
fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(FEED_BYTES_MAX + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(FEED_BYTES_MAX + 1).read_to_end(&mut bytes))
    };
    read.with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.len() as u64 > FEED_BYTES_MAX {
        bail!("{} has more than {FEED_BYTES_MAX} bytes: push it as a content", path.display());
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
        bail!("the seeder knows no feed `{}`; see `shoal feed ls`", args.feed);
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
        Some(url) => Client::new(url, None)?,
        None => args.seeder.client()?,
    };
    let path = format!("/feeds/{}/events?lines=true", args.feed);
    block_on(async {
        let mut lines = client.lines(&path).await?;
        let mut count = 0;
        while let Some(told) = lines.next::<FeedVersion>().await? {
            if args.json {
                output::json_line(&told)?;
            } else {
                let text = told.text.as_deref().unwrap_or("");
                output::line(&format!("{} {} bytes  {}", told.sequence, told.size, text.lines().next().unwrap_or("")));
            }
            count += 1;
            if args.count.is_some_and(|wanted| count >= wanted) {
                return Ok(Outcome::Ok);
            }
        }
        bail!("{} ended the stream", client.url())
    })
}
