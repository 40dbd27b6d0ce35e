//! `shoal push`: asks the seeder to ingest a path and distribute it, and follows the job.
//!
//! Invariant: the seeder reads the path, so the command sends an absolute one.

use super::progress::{Waiting, begun};
use super::seeder::{SeederArgs, block_on};
use super::{Outcome, help};
use anyhow::bail;
use shoal_api::jobs::{ImageRequest, JobAccepted, PushRequest};
use shoal_proto::announcement::Kind;
use std::path::PathBuf;

/// Distribute a file, a directory or an image to hosts and activate it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal push ./settings --name edge/settings --version 42 --kind config --to site=lon1 --wait
  shoal push app.tar --kind image --to all --wait --timeout 30m
  shoal push ./release --name edge/app --version 7 --to all --stage

`shoal rollout edge/app@7 --to all` activates a version pushed with --stage.")]
pub(crate) struct Args {
    /// File or directory on the seeder's machine. With --kind image: an OCI layout (folder or tar file), or the
    /// output of `docker save`
    path: PathBuf,
    /// Name of the content, such as edge/settings. Required, except that an image can supply its own
    #[arg(long)]
    name: Option<String>,
    /// Version of the content. Required, except that an image can supply its tag
    #[arg(long)]
    version: Option<String>,
    /// Kind: gslb, config, image or blob. The kind sets the priority on links
    #[arg(long, default_value = "blob")]
    kind: Kind,
    #[arg(long = "to", required = true, value_name = "SELECTOR", help = help::TO)]
    to: Vec<String>,
    /// Distribute without activation. `shoal rollout` activates the version later
    #[arg(long)]
    stage: bool,
    /// Let the version replace a version of the same label that has another content
    #[arg(long)]
    replace: bool,
    /// Reference under which containerd pulls the image. Required if the files name no image or several
    #[arg(long = "ref", value_name = "IMAGE")]
    reference: Option<String>,
    /// Platform of the image: os/arch, os/arch/variant or all [default: linux on the seeder's processor]
    #[arg(long)]
    platform: Option<String>,
    #[command(flatten)]
    waiting: Waiting,
    /// Print JSON lines: the job, and with --wait the status at every change
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    seeder: SeederArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let is_image = args.kind == Kind::Image;
    if !is_image && (args.name.is_none() || args.version.is_none()) {
        bail!("a push of kind {} needs --name and --version; add both", args.kind);
    }
    if !is_image && (args.reference.is_some() || args.platform.is_some()) {
        bail!("--ref and --platform apply to images only; add --kind image or remove them");
    }
    let client = args.seeder.client()?;
    // The seeder does not share our working directory.
    let path = std::path::absolute(&args.path)?;
    let image =
        ImageRequest { reference: args.reference.clone(), platform: args.platform.clone(), ..ImageRequest::default() };
    let request = PushRequest {
        path,
        name: args.name.clone().unwrap_or_default(),
        version: args.version.clone().unwrap_or_default(),
        kind: args.kind,
        to: args.to.clone(),
        staged: args.stage,
        image: is_image.then_some(image),
        replace: args.replace,
    };
    block_on(async {
        let pushed: JobAccepted = client.post("/v1/push", &request).await?;
        begun(&client, &pushed, &args.waiting, args.json).await
    })
}
