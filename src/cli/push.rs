//! `shoal push`: hands a path to the seeder, and shows how it goes.

use super::Outcome;
use super::progress::{Waiting, begun};
use super::seeder::{SeederArgs, block_on};
use anyhow::bail;
use shoal_api::jobs::{ImageRequest, JobAccepted, PushRequest};
use shoal_proto::announcement::Kind;
use std::path::PathBuf;

/// Push a file, a directory or an image to hosts
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// File or directory on the seeder's machine; with --kind image an OCI layout (folder or tar) or an archive of `docker save`
    path: PathBuf,
    /// Name of the content, e.g. edge-config or gslb/main; an image's is made from its own if left out
    #[arg(long)]
    name: Option<String>,
    /// Its version; an image's is its tag if left out
    #[arg(long)]
    version: Option<String>,
    /// What it is for: gslb, config, image or blob
    #[arg(long, default_value = "blob")]
    kind: Kind,
    /// For which hosts: all, or region=, site=, rack=, host= and labels joined by commas (and); repeat for or
    #[arg(long = "to", required = true, value_name = "SELECTOR")]
    to: Vec<String>,
    /// Only put the data on the hosts: a rollout switches it in
    #[arg(long)]
    stage: bool,
    /// The image's name, as containerd will ask for it; needed if the files say none, or several
    #[arg(long = "ref", value_name = "IMAGE")]
    reference: Option<String>,
    /// Which platform of the image: os/arch, os/arch/variant or all. Default: Linux on the seeder's processor
    #[arg(long)]
    platform: Option<String>,
    #[command(flatten)]
    waiting: Waiting,
    /// Print JSON: the job, then with --wait a line at each change
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    seeder: SeederArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let is_image = args.kind == Kind::Image;
    if !is_image && (args.name.is_none() || args.version.is_none()) {
        bail!("give it a --name and a --version; only an image has its own");
    }
    if !is_image && (args.reference.is_some() || args.platform.is_some()) {
        bail!("--ref and --platform are for --kind image");
    }
    let client = args.seeder.client()?;
    // The seeder does not share our working directory.
    let path = std::path::absolute(&args.path)?;
    let image = ImageRequest { reference: args.reference.clone(), platform: args.platform.clone(), pull: false };
    let request = PushRequest {
        path,
        name: args.name.clone().unwrap_or_default(),
        version: args.version.clone().unwrap_or_default(),
        kind: args.kind,
        to: args.to.clone(),
        staged: args.stage,
        image: is_image.then_some(image),
    };
    block_on(async {
        let pushed: JobAccepted = client.post("/v1/push", &request).await?;
        begun(&client, &pushed, &args.waiting, args.json).await
    })
}
