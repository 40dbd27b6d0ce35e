//! TLS of the HTTP APIs: the cluster's own authority, checked by openssl and by the commands, and its renewal.

use shoal_service::http_client::Client;
use shoal_testkit::process::Launcher;
use shoal_testkit::settings::{files, issue};
use shoal_testkit::{Process, Program, own_loopback, until};
use std::path::Path;
use std::process::Command;

const SHOAL: Program = shoal_testkit::program!();

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Makes a certificate of `cluster` for `name` in `out`.
fn certificate(cluster: &Path, name: &str, out: &Path) {
    SHOAL.ok(&["cluster", "tls", "--dir", path(cluster), "--name", name, "--out", path(out)]);
}

/// Returns the serial number of the certificate that the server shows, if openssl trusts it for this name.
fn serial(server: &str, name: &str, authority: &Path) -> Option<String> {
    let shown = Command::new("openssl")
        .args(["s_client", "-connect", server, "-CAfile", path(authority), "-verify_return_error", "-verify_ip", name])
        .stdin(std::process::Stdio::null())
        .output()
        .expect("openssl is installed, see ./test --needs");
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    let pem = text.split_once("-----BEGIN")?.1.split_once("-----END")?.0.to_string();
    shown.status.success().then_some(pem)
}

#[test]
fn an_api_proves_its_name_by_the_clusters_authority() {
    let folder = tempfile::tempdir().unwrap();
    let (cluster, other, hub) = (folder.path().join("cluster"), folder.path().join("other"), folder.path().join("hub"));
    for dir in [&cluster, &other] {
        SHOAL.ok(&["cluster", "init", "--dir", path(dir)]);
    }
    let addr = own_loopback().to_string();
    certificate(&cluster, &addr, &hub);
    certificate(&other, &addr, &folder.path().join("wrong"));
    let set = vec![
        format!("http={addr}:0"),
        format!("dir='{}'", hub.join("state").display()),
        format!("http_access.tls={{cert='{0}/tls.crt', key='{0}/tls.key'}}", hub.display()),
    ];
    issue(SHOAL, folder.path(), "hub", "hub", "t/core/core/hub");
    let set = [files(folder.path(), "hub", ""), set].concat();
    let mut process = Process::new(folder.path(), "hub", "hub", set, &Launcher::new(SHOAL, &[]));
    process.start();
    let (server, authority) = (process.http().to_string(), hub.join("ca.pem"));
    let first = serial(&server, &addr, &authority).expect("openssl trusts the certificate");
    assert_eq!(serial(&server, "192.0.2.1", &authority), None, "the certificate is for another address");
    assert_eq!(serial(&server, &addr, &folder.path().join("wrong/ca.pem")), None, "another cluster's authority");

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let health = |scheme: &str, authority: Option<&Path>| {
        let client = Client::trusting(&format!("{scheme}://{server}"), None, authority).unwrap();
        runtime.block_on(client.get::<serde_json::Value>("/healthz")).map(|health| health["role"] == "hub")
    };
    assert!(health("https", Some(&authority)).unwrap());
    assert!(health("https", None).is_err(), "the system does not know the authority");
    assert!(health("http", None).is_err(), "the port speaks TLS only");

    certificate(&cluster, &addr, &hub);
    until("the renewed certificate is in use", || (serial(&server, &addr, &authority)? != first).then_some(()));
    std::fs::write(hub.join("tls.crt"), "not a certificate").unwrap();
    assert!(health("https", Some(&authority)).unwrap(), "the former certificate stays in use");
}

#[test]
fn a_port_that_is_open_to_others_needs_tls() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = folder.path().join("cluster");
    SHOAL.ok(&["cluster", "init", "--dir", path(&cluster)]);
    let trust = format!("trust='{}'", cluster.join("trust").display());
    let dir = format!("dir='{}'", folder.path().join("state").display());
    let refused = SHOAL.run(&["hub", "--set", "http=0.0.0.0:0", "--set", &trust, "--set", &dir]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("http_access.tls"), "{why}");
}
