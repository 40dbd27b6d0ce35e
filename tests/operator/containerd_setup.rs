//! `shoal containerd setup` as operators run it: what it prints, and how it ends.

use crate::SHOAL;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Output;

/// Runs the command with the configuration in a folder. The path has no containerd.
fn setup(at: &Path, args: &[&str]) -> Output {
    let config = at.join("config.toml");
    let mut command = SHOAL.command();
    command.args(["containerd", "setup", "--containerd-config", config.to_str().unwrap()]);
    command.args(args).env("PATH", at.join("none")).output().unwrap()
}

fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn the_folder_comes_from_the_configuration_of_containerd() {
    let folder = tempfile::tempdir().unwrap();
    let (at, certs) = (folder.path(), folder.path().join("certs"));
    let section = "[plugins.\"io.containerd.cri.v1.images\".registry]";
    fs::create_dir(at.join("conf.d")).unwrap();
    fs::write(at.join("config.toml"), "version = 3\nimports = ['conf.d/*.toml']\n").unwrap();
    let import = format!("version = 3\n{section}\n  config_path = '{}'\n", certs.display());
    fs::write(at.join("conf.d/registry.toml"), import).unwrap();
    let output = setup(at, &["docker.io", "--json"]);
    let printed = document(&output);
    assert!(output.status.success() && printed["config_path_set"] == true, "{printed:#}");
    assert_eq!(printed["hosts_dir"], certs.to_str().unwrap());
    assert_eq!((printed["files"][0]["change"].as_str(), &printed["notes"]), (Some("written"), &Value::Array(vec![])));
    assert!(certs.join("docker.io/hosts.toml").exists());
    let output = setup(at, &["--undo", "--json"]);
    assert_eq!(document(&output)["files"][0]["change"], "removed");
    assert!(!certs.join("docker.io").exists());
}

#[test]
fn mirrors_of_the_configuration_are_said_before_the_setting() {
    let folder = tempfile::tempdir().unwrap();
    let certs = folder.path().join("certs");
    let config = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\n  \
                  endpoint = [\"https://m.example\"]\n";
    fs::write(folder.path().join("config.toml"), config).unwrap();
    let output = setup(folder.path(), &["docker.io", "--hosts-dir", certs.to_str().unwrap()]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let (mirrors, setting) = (said.find("registry.mirrors"), said.find("set config_path"));
    assert!(said.contains("line 2 of ") && mirrors.is_some() && mirrors < setting, "{said}");
}

#[test]
fn a_file_that_cannot_be_undone_stops_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let certs = folder.path().join("certs");
    let dir = ["--hosts-dir", certs.to_str().unwrap()];
    assert!(setup(folder.path(), &[&["a.example", "b.example"], &dir[..]].concat()).status.success());
    let path = certs.join("a.example/hosts.toml");
    let changed = fs::read_to_string(&path).unwrap().replace("resolve", "push");
    fs::write(&path, &changed).unwrap();
    let output = setup(folder.path(), &[&["--undo"], &dir[..]].concat());
    let (printed, said) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(1), "{printed}{said}");
    assert!(printed.contains("stays as it is") && printed.contains("removed"), "{printed}");
    assert!(said.contains("were changed"), "{said}");
    assert_eq!(fs::read_to_string(&path).unwrap(), changed);
    assert!(!certs.join("b.example").exists());
}
