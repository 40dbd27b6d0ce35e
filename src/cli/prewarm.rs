//! `shoal prewarm`: has the seeder pull images once and push them to hosts before they are needed.

use super::progress::Waiting;
use super::seeder::{SeederArgs, block_on};
use super::{Outcome, output, rollout};
use shoal_api::images::{ResolvedBlob, ResolvedImage};
use shoal_api::jobs::{ImageRequest, JobAccepted, JobStatus, PushRequest};
use shoal_api::rollouts::{Amount, RollbackMode, RolloutAccepted, RolloutSpec};
use shoal_proto::announcement::Kind;
use shoal_service::http_client::Client;
use shoal_service::units::{ByteSize, Span};
use std::path::PathBuf;

/// Pull images from their registry, once, and push them to hosts
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Images as containerd will ask for them, e.g. registry.example:5000/lab/app:v1
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// For which hosts: all, or region=, site=, rack=, host= and labels joined by commas (and); repeat for or
    #[arg(long = "to", required = true, value_name = "SELECTOR")]
    to: Vec<String>,
    /// Which platform: os/arch, os/arch/variant or all. Default: Linux on the seeder's processor
    #[arg(long)]
    platform: Option<String>,
    /// Warm batch by batch once all have the data: hosts that are warm after each batch, as for rollout
    #[arg(long, value_delimiter = ',', value_name = "N|N%,...")]
    batch: Vec<Amount>,
    /// With --batch: hosts of a rack that may be warming at a time [default: 1]
    #[arg(long, requires = "batch")]
    per_rack: Option<u32>,
    /// With --batch: number or percentage of failed hosts to tolerate; more stop it [default: 0]
    #[arg(long, requires = "batch", value_name = "N|N%")]
    max_failures: Option<Amount>,
    /// With --batch: how long all must be well after each batch [default: 10s]
    #[arg(long, requires = "batch")]
    soak: Option<Span>,
    /// With --batch: how long all of it may take [default: as long as it takes]
    #[arg(long, requires = "batch")]
    deadline: Option<Span>,
    /// Say what would be pulled, and for how many hosts, and do nothing
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    #[command(flatten)]
    waiting: Waiting,
    /// Print JSON: a line for each job (or with --dry-run image), then with --wait one at each change
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    seeder: SeederArgs,
}

impl Args {
    fn request(&self, image: &str) -> PushRequest {
        let (reference, platform) = (Some(image.to_string()), self.platform.clone());
        PushRequest {
            path: PathBuf::new(),
            name: String::new(),
            version: String::new(),
            kind: Kind::Image,
            to: self.to.clone(),
            staged: !self.batch.is_empty(),
            image: Some(ImageRequest { reference, platform, pull: true }),
        }
    }
}

/// Pushes the images, and has them warmed by rollouts.
async fn in_batches(args: &Args, client: &Client) -> anyhow::Result<Outcome> {
    let mut rollouts = Vec::new();
    for image in &args.images {
        let pushed: JobAccepted = client.post("/v1/push", &args.request(image)).await?;
        let job: JobStatus = client.get(&format!("/v1/jobs/{}", pushed.job)).await?;
        let mut spec = RolloutSpec::new(&job.name, &job.version, args.to.clone());
        // A warm image harms nobody: what went well stays.
        (spec.kind, spec.rollback, spec.batch) = (Kind::Image, RollbackMode::Manual, args.batch.clone());
        spec.per_rack = args.per_rack.unwrap_or(spec.per_rack);
        spec.max_failures = args.max_failures.unwrap_or(spec.max_failures);
        spec.soak = args.soak.unwrap_or(spec.soak);
        spec.deadline = args.deadline;
        // Unpacking takes its time.
        spec.switch_timeout = Span::seconds(3600);
        let begun: RolloutAccepted = client.post("/v1/rollouts", &spec).await?;
        if args.json {
            output::json_line(&begun)?;
        } else {
            output::line(&format!("rollout {} {image}", begun.rollout));
        }
        rollouts.push(begun.rollout.to_string());
    }
    args.waiting.for_each(&rollouts, async |of, left| rollout::follow(client, of, args.json, left).await).await
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let client = args.seeder.client()?;
    block_on(async {
        if args.dry_run {
            return dry_run(args, &client).await;
        }
        if !args.batch.is_empty() {
            return in_batches(args, &client).await;
        }
        let mut jobs = Vec::new();
        for image in &args.images {
            let pushed: JobAccepted = client.post("/v1/push", &args.request(image)).await?;
            if args.json {
                output::json_line(&pushed)?;
            } else {
                output::line(&format!("job {} {image}", pushed.job));
            }
            jobs.push(pushed.job);
        }
        args.waiting.for_jobs(&client, &jobs, args.json).await
    })
}

async fn dry_run(args: &Args, client: &Client) -> anyhow::Result<Outcome> {
    for image in &args.images {
        let resolved: ResolvedImage = client.post("/v1/images/resolve", &args.request(image)).await?;
        if args.json {
            output::json_line(&resolved)?;
            continue;
        }
        let size = |held: bool| {
            let of = resolved.blobs.iter().filter(|blob| blob.stored == held);
            ByteSize(of.map(|blob| blob.size).sum()).rounded().to_string()
        };
        output::line(&format!("{} is {}", resolved.reference, resolved.root));
        output::line(&format!("  {} to pull, {} here already, for {} hosts", size(false), size(true), resolved.hosts));
        let row = |blob: &ResolvedBlob| {
            let held = if blob.stored { "here" } else { "pull" };
            vec![
                blob.digest.to_string(),
                ByteSize(blob.size).rounded().to_string(),
                held.into(),
                blob.media_type.clone(),
            ]
        };
        let rows: Vec<Vec<String>> = resolved.blobs.iter().map(row).collect();
        output::table(&["BLOB", "SIZE", "", "TYPE"], &rows);
    }
    Ok(Outcome::Ok)
}
