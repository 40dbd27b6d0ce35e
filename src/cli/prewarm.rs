//! `shoal prewarm`: the seeder pulls images once and distributes them before hosts need them.
//!
//! Invariant: without `--batch` an image is an ordinary push. With `--batch` it is a staged push and a rollout.

use super::progress::Waiting;
use super::seeder::{SeederArgs, block_on};
use super::{Outcome, help, output, rollout};
use shoal_api::images::{ResolvedBlob, ResolvedImage};
use shoal_api::jobs::{ImageRequest, JobAccepted, JobStatus, PushRequest};
use shoal_api::rollouts::{Amount, RollbackMode, RolloutAccepted, RolloutSpec};
use shoal_proto::announcement::Kind;
use shoal_service::http_client::Client;
use shoal_service::units::{ByteSize, Span};
use std::path::PathBuf;

/// Pull images once at the seeder, distribute them, and have containerd on every host unpack them
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal prewarm registry.example:5000/lab/app:v1 --to all --wait
  shoal prewarm registry.example:5000/lab/app:v1 --to site=lon1 --dry-run
  shoal prewarm registry.example:5000/lab/app:v1 --to all --batch 1,25%,100% --per-rack 1 --wait")]
pub(crate) struct Args {
    /// References under which containerd pulls the images, such as registry.example:5000/lab/app:v1
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    #[arg(long = "to", required = true, value_name = "SELECTOR", help = help::TO)]
    to: Vec<String>,
    /// Platform of the images: os/arch, os/arch/variant or all [default: linux on the seeder's processor]
    #[arg(long)]
    platform: Option<String>,
    /// Bring along what refers to the images at their registry, such as signatures and attestations
    #[arg(long)]
    with_referrers: bool,
    /// Unpack batch by batch after all hosts have stored the image. Values as for `shoal rollout`
    #[arg(long, value_delimiter = ',', value_name = "N|N%,...")]
    batch: Vec<Amount>,
    /// With --batch: number of hosts of one rack that may unpack at the same time [default: 1]
    #[arg(long, requires = "batch")]
    per_rack: Option<u32>,
    /// With --batch: number or percentage of failed hosts at which the rollout still continues [default: 0]
    #[arg(long, requires = "batch", value_name = "N|N%")]
    max_failures: Option<Amount>,
    /// With --batch: time for which all hosts must stay healthy after each batch [default: 10s]
    #[arg(long, requires = "batch")]
    soak: Option<Span>,
    /// With --batch: time after which the rollout fails [default: none]
    #[arg(long, requires = "batch")]
    deadline: Option<Span>,
    /// Print what the seeder would pull and for how many hosts, and change nothing
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    #[command(flatten)]
    waiting: Waiting,
    /// Print JSON lines: one for each job or dry-run image, and with --wait the status at every change
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
            image: Some(ImageRequest { reference, platform, pull: true, with_referrers: self.with_referrers }),
            replace: false,
        }
    }
}

/// Pushes the images staged, and prewarms them in batches with rollouts.
async fn in_batches(args: &Args, client: &Client) -> anyhow::Result<Outcome> {
    let mut rollouts = Vec::new();
    for image in &args.images {
        let pushed: JobAccepted = client.post("/v1/push", &args.request(image)).await?;
        let job: JobStatus = client.get(&format!("/v1/jobs/{}", pushed.job)).await?;
        let mut spec = RolloutSpec::new(&job.name, &job.version, args.to.clone());
        // A prewarmed image is harmless, so a failure elsewhere does not undo it.
        (spec.kind, spec.rollback, spec.batch) = (Kind::Image, RollbackMode::Manual, args.batch.clone());
        spec.per_rack = args.per_rack.unwrap_or(spec.per_rack);
        spec.max_failures = args.max_failures.unwrap_or(spec.max_failures);
        spec.soak = args.soak.unwrap_or(spec.soak);
        spec.deadline = args.deadline;
        // containerd may unpack a large image for many minutes.
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
        let size = |stored: bool| {
            let of = resolved.blobs.iter().filter(|blob| blob.stored == stored);
            ByteSize(of.map(|blob| blob.size).sum()).rounded().to_string()
        };
        output::line(&format!("{} is {}", resolved.reference, resolved.root));
        output::line(&format!(
            "  {} to pull, {} already stored, for {} hosts",
            size(false),
            size(true),
            resolved.hosts
        ));
        let row = |blob: &ResolvedBlob| {
            let state = if blob.stored { "stored" } else { "pull" };
            vec![
                blob.digest.to_string(),
                ByteSize(blob.size).rounded().to_string(),
                state.into(),
                blob.media_type.clone(),
            ]
        };
        let rows: Vec<Vec<String>> = resolved.blobs.iter().map(row).collect();
        output::table(&["BLOB", "SIZE", "STATE", "TYPE"], &rows);
    }
    Ok(Outcome::Ok)
}
