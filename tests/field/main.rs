//! What operators of other systems reported, tried on regions of real processes.
//!
//! Each test is one kind of report. Where to look:
//! - why a rollout failed, and operations that meet, in [`rollouts`]; names and versions that meet in [`names`]
//! - what hooks leave running in [`hooks`]; logs without a reader in [`logs`]
//! - documents and blobs of images in [`shelf`]; images from files in [`images`]; registries in [`registries`]
//! - the read half of the distribution specification in [`mirror`]

mod hooks;
mod images;
mod logs;
mod mirror;
mod names;
mod registries;
mod rollouts;
mod shelf;

use serde_json::Value;
use shoal_testkit::region::ADDR;
use shoal_testkit::{Program, Region, Setup};
use std::fs;
use std::path::PathBuf;
use std::process::Output;

const SHOAL: Program = shoal_testkit::program!();

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

/// A region of one rack whose hosts have mirrors.
fn region(hosts: usize, peer: &[&str]) -> Region {
    setup(hosts, peer).start()
}

fn setup<'a>(hosts: usize, peer: &'a [&'a str]) -> Setup<'a> {
    Setup::new(SHOAL, 1, hosts).peers(move |_| {
        let listen = format!("mirror.listen='{ADDR}:0'");
        [listen].into_iter().chain(peer.iter().map(|pair| pair.to_string())).collect()
    })
}

fn mirror(region: &Region, host: usize) -> &str {
    region.peers[host].addrs["mirror"].as_str().unwrap()
}

/// Runs a command to its end with `--wait`; returns the last status of its job.
fn done(region: &Region, args: &[&str]) -> Value {
    let output = region.cli(&[args, &["--to", "all", "--wait", "--json"]].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{args:?}\n{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let mut rows = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    rows.rfind(|row| row["phase"].is_string()).unwrap()
}

/// Runs a command that must fail; returns its errors.
fn refused(region: &Region, args: &[&str]) -> String {
    let output = region.cli(&[args, &["--to", "all", "--wait"]].concat());
    assert!(!output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}
