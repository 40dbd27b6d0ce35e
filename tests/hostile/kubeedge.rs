//! Hosts that join with the certificate of a KubeEdge node, and those that show another one.

use super::SHOAL;
use shoal_net::admission::system_clock;
use shoal_net::control::{ControlConfig, ControlHandle, ControlPlane};
use shoal_net::identity::Identity;
use shoal_net::node_certificate::{NodeCertificate, Proof};
use shoal_proto::control::{Request, Response};
use shoal_proto::ids::NodeId;
use shoal_proto::limits::CLOCK_SKEW_MAX_S;
use shoal_proto::trust::Keypair;
use shoal_testkit::{Region, Setup};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use tokio::runtime::Runtime;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs openssl in a folder.
fn openssl(folder: &Path, args: &[&str]) {
    let output = Command::new("openssl").args(args).current_dir(folder).output();
    let output = output.expect("openssl is installed, see ./test --needs");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes an authority as CloudCore has one: NAME.crt and NAME.key.
fn authority(folder: &Path, name: &str) {
    let (key, crt) = (format!("{name}.key"), format!("{name}.crt"));
    let new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "10"];
    openssl(folder, &[&new[..], &["-subj", "/CN=KubeEdge", "-keyout", &key, "-out", &crt]].concat());
}

/// Makes the certificate NAME.crt and its key NAME.key.
fn certificate(folder: &Path, name: &str, authority: &str, subject: &str, kind: &[&str], days: &str, usage: &str) {
    let (key, csr, crt) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.crt"));
    openssl(folder, &[&["req", "-nodes", "-subj", subject, "-keyout", &key, "-out", &csr, "-newkey"], kind].concat());
    fs::write(folder.join("usage"), format!("extendedKeyUsage={usage}\n")).unwrap();
    let (ca, ca_key) = (format!("{authority}.crt"), format!("{authority}.key"));
    let sign = ["x509", "-req", "-in", &csr, "-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial", "-out", &crt];
    openssl(folder, &[&sign[..], &["-days", days, "-extfile", "usage"]].concat());
}

const EC: [&str; 3] = ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
const RSA: [&str; 1] = ["rsa:2048"];
const NODE_1: &str = "/O=system:nodes/CN=system:node:edge-1";

/// A region whose tracker takes certificates of the authority `ca`, and the folder of the certificates.
fn region() -> (Region, tempfile::TempDir) {
    let certs = tempfile::tempdir().unwrap();
    let at = certs.path();
    authority(at, "ca");
    let nodes = "name,locality,labels,addresses\nedge-1,t/site/rack0/e1,service=cache,127.0.0.0/8\n\
                 edge-2,t/site/rack0/e2,,\n";
    fs::write(at.join("nodes.csv"), nodes).unwrap();
    let setting = format!("kubeedge={{ca='{0}/ca.crt', nodes='{0}/nodes.csv'}}", at.display());
    (Setup::new(SHOAL, 1, 1).with_issuer().tracker(&[setting]).start(), certs)
}

fn cluster(region: &Region) -> String {
    let dir = region.folder.path().join("cluster");
    let shown = SHOAL.ok(&["cluster", "show", "--dir", text(&dir), "--json"]);
    serde_json::from_str::<serde_json::Value>(&shown).unwrap()["cluster"].as_str().unwrap().to_string()
}

/// Runs `shoal join` with a certificate. Returns its output if it succeeds, else its complaint.
fn join(region: &Region, certs: &Path, name: &str, host: &str) -> Result<String, anyhow::Error> {
    let (dir, cluster) = (region.folder.path().join(host), cluster(region));
    let tracker = region.tracker.addrs["control"][0].as_str().unwrap();
    let (crt, key) = (certs.join(format!("{name}.crt")), certs.join(format!("{name}.key")));
    let output = SHOAL.run(&[
        "join",
        "--kubeedge-cert",
        text(&crt),
        "--kubeedge-key",
        text(&key),
        "--cluster",
        &cluster,
        "--tracker",
        tracker,
        "--dir",
        text(&dir),
    ]);
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout)?);
    }
    assert!(!dir.join("node.cred").exists());
    Err(anyhow::anyhow!(String::from_utf8(output.stderr)?))
}

#[test]
fn a_node_of_kubeedge_gets_the_place_of_the_list() {
    let (region, certs) = region();
    certificate(certs.path(), "one", "ca", NODE_1, &EC, "1", "clientAuth");
    certificate(certs.path(), "two", "ca", "/O=system:nodes/CN=system:node:edge-2", &RSA, "1", "clientAuth");
    assert!(join(&region, certs.path(), "one", "one").unwrap().starts_with("peer t/site/rack0/e1: node "));
    assert!(join(&region, certs.path(), "two", "two").unwrap().starts_with("peer t/site/rack0/e2: node "));
    // The key of the certificate stays on the host, and a second key does not get the place.
    let again = join(&region, certs.path(), "one", "thief").unwrap_err().to_string();
    assert!(again.contains("t/site/rack0/e1 is taken by another key"), "{again}");
}

#[test]
fn other_certificates_are_refused() {
    let (region, certs) = region();
    let at = certs.path();
    authority(at, "other");
    let cases = [
        ("stranger", "other", NODE_1, "1", "clientAuth", "InvalidSignature"),
        ("expired", "ca", NODE_1, "-1", "clientAuth", "Cert"),
        ("server", "ca", NODE_1, "1", "serverAuth", "Required"),
        ("user", "ca", "/O=system:masters/CN=admin", "1", "clientAuth", "names no node"),
        (
            "unlisted",
            "ca",
            "/O=system:nodes/CN=system:node:edge-9",
            "1",
            "clientAuth",
            "edge-9 is not in the tracker's list",
        ),
        ("double", "ca", "/CN=system:node:edge-1/CN=system:node:edge-2", "1", "clientAuth", "names no node"),
    ];
    for (name, authority, subject, days, usage, why) in cases {
        certificate(at, name, authority, subject, &EC, days, usage);
        let complaint = join(&region, at, name, name).unwrap_err().to_string();
        assert!(complaint.contains(why), "{name}: {complaint}");
    }
}

/// A node without a credential that speaks the control protocol by hand.
struct Stranger {
    control: ControlHandle,
    node: NodeId,
    tracker: NodeId,
}

impl Stranger {
    async fn connect(at: SocketAddr, seed: u8) -> Self {
        let keys = Keypair::from_seed([seed; 32]);
        let (control, mut events) =
            ControlPlane::start(ControlConfig::new(Identity::new(&keys), Vec::new())).await.unwrap();
        tokio::spawn(async move { while events.recv().await.is_some() {} });
        let tracker = control.connect(at, None).await.unwrap();
        Self { control, node: keys.node(), tracker }
    }

    async fn show(&self, proof: &Proof) -> Response {
        let Proof { at, chain, scheme, signature } = proof.clone();
        let chain = chain.into_iter().map(Into::into).collect();
        self.control.request(self.tracker, Request::EnrolNode { at, chain, scheme, signature }).await.unwrap()
    }
}

#[test]
fn a_proof_counts_for_the_host_that_made_it() {
    let (region, certs) = region();
    let at = certs.path();
    certificate(at, "one", "ca", NODE_1, &EC, "1", "clientAuth");
    certificate(at, "two", "ca", "/O=system:nodes/CN=system:node:edge-2", &EC, "1", "clientAuth");
    let load = |name: &str, key: &str| {
        NodeCertificate::load(&at.join(format!("{name}.crt")), &at.join(format!("{key}.key"))).unwrap()
    };
    let (one, mixed) = (load("one", "one"), load("one", "two"));
    let tracker = region.tracker.addrs["control"][0].as_str().unwrap().parse().unwrap();
    let now = system_clock();
    // Each attempt has a connection of its own, because a refusal ends the connection.
    let show = async |seed, prove: &dyn Fn(&Stranger) -> Proof| {
        let stranger = Stranger::connect(tracker, seed).await;
        stranger.show(&prove(&stranger)).await
    };
    let (honest, thief) = (31, 32);
    Runtime::new().unwrap().block_on(async {
        let refused = |answer, why: &str| match answer {
            Response::Refused { why: found } => assert!(found.contains(why), "{found}"),
            other => panic!("joined: {other:?}"),
        };
        let unsigned = "not signed with the certificate's key";
        // Without the key of the certificate.
        refused(show(honest, &|it| mixed.prove(&it.tracker, &it.node, now).unwrap()).await, unsigned);
        // With what another host or another tracker has seen.
        let victim = Keypair::from_seed([honest; 32]).node();
        refused(show(thief, &|it| one.prove(&it.tracker, &victim, now).unwrap()).await, unsigned);
        refused(show(thief, &|it| one.prove(&NodeId([1; 32]), &it.node, now).unwrap()).await, unsigned);
        // With what was signed before, or with another time than was signed.
        let (before, after) = (now - CLOCK_SKEW_MAX_S - 9, now + CLOCK_SKEW_MAX_S + 60);
        for other in [before, after] {
            refused(show(honest, &|it| one.prove(&it.tracker, &it.node, other).unwrap()).await, "tracker's clock");
            let changed = |it: &Stranger| Proof { at: now, ..one.prove(&it.tracker, &it.node, other).unwrap() };
            refused(show(honest, &changed).await, unsigned);
        }
        let answer = show(honest, &|it| one.prove(&it.tracker, &it.node, now).unwrap()).await;
        assert!(matches!(answer, Response::Enrolled { .. }), "{answer:?}");
    });
}
