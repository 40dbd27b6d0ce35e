//! What operators of other systems reported, tried on regions of real processes.
//!
//! Each test is one kind of report. Where to look: why a rollout failed, and operations that meet, in [`rollouts`];
//! names and versions that meet in [`names`]; what hooks leave running in [`hooks`]; logs without a reader in [`logs`].

mod hooks;
mod logs;
mod names;
mod rollouts;

use shoal_testkit::Region;
use std::fs;
use std::path::PathBuf;
use std::process::Output;

const SHOAL: shoal_testkit::Program = shoal_testkit::program!();

/// What a command printed, to both outputs.
fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Checks the exit code of a command; returns what it printed.
#[track_caller]
fn ends_with(code: i32, output: &Output) -> String {
    let text = text(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

/// A directory with one file `f` on the seeder's machine.
fn directory(region: &Region, name: &str, bytes: &[u8]) -> PathBuf {
    let folder = region.folder.path().join(name);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("f"), bytes).unwrap();
    folder
}

/// The version that `current` of a name points at.
fn current(region: &Region, peer: usize, name: &str) -> Option<String> {
    let link = fs::read_link(region.peers[peer].dir().join("content").join(name).join("current")).ok()?;
    Some(link.to_str()?.to_string())
}
