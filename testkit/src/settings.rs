//! Credentials and settings of the roles of one region, all below one folder.

use crate::Program;
use std::net::Ipv4Addr;
use std::path::Path;

/// Issues a key and a credential for a node on loopback addresses, into the folder of its name.
pub fn issue(program: Program, folder: &Path, name: &str, role: &str, locality: &str) {
    issue_with(program, folder, name, role, locality, &["--address", "127.0.0.0/8"]);
}

/// Issues a key and a credential with further options of `shoal cluster issue`, into the folder of the node's name.
pub fn issue_with(program: Program, folder: &Path, name: &str, role: &str, locality: &str, options: &[&str]) {
    let (cluster, out) = (folder.join("cluster"), folder.join(name));
    let (cluster, out) = (cluster.to_str().unwrap(), out.to_str().unwrap());
    let args = ["cluster", "issue", "--dir", cluster, "--role", role, "--locality", locality, "--out", out];
    program.ok(&[&args, options].concat());
}

/// The settings that name the files which [`issue`] wrote. `prefix` is `node.` for seeders and peers.
pub fn files(folder: &Path, name: &str, prefix: &str) -> Vec<String> {
    let dir = folder.join(name);
    [("trust", "trust"), ("key", "node.key"), ("credential", "node.cred")]
        .map(|(key, file)| format!("{prefix}{key}='{}'", dir.join(file).display()))
        .to_vec()
}

/// The settings that seeders and peers have in common: files, state, ports on `addr` and the tracker's control address.
pub fn node(folder: &Path, addr: Ipv4Addr, name: &str, control: &str) -> Vec<String> {
    let mut set = files(folder, name, "node.");
    set.push(format!("dir='{}'", folder.join(name).join("state").display()));
    set.push(format!("node.listen=['{addr}:0']"));
    set.push("node.min_free=0".into());
    set.push(format!("node.trackers=['{control}']"));
    set.push(format!("http={addr}:0"));
    set
}
