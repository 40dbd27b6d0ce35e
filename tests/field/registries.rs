//! Registries as they answer: redirects to other hosts, tokens, helpers, refusals, tags that do not exist.

use crate::shelf::{Shelf, digest};
use crate::{done, mirror, refused, region, setup};
use serde_json::Value;
use shoal_testkit::fake_registry::{FakeRegistry, Received, Reply};
use shoal_testkit::http::get;
use shoal_testkit::oci::sha256;
use shoal_testkit::{Region, until};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

/// A registry with one image under any name, and the digest of its layer's archive.
fn one_image() -> (Shelf, Value) {
    let mut shelf = Shelf::default();
    let image = shelf.image("app", "amd64");
    shelf.tag("latest", &image);
    shelf.tag("v1", &image);
    (shelf, image)
}

/// Settings of a registry without TLS at this address.
fn plain(name: &str, addr: &str) -> String {
    format!("registries.\"{name}\"={{plain_http=true,url='http://{addr}'}}")
}

fn configure(region: &mut Region, pairs: &[String]) {
    pairs.iter().for_each(|pair| region.seeder.configure(pair));
    region.seeder.restart();
    region.wait_up(region.peers.len());
}

fn leaks(requests: &[Received], secret: &str) -> bool {
    requests.iter().any(|seen| format!("{seen:?}").contains(secret))
}

#[test]
fn a_redirect_takes_no_credentials_to_another_host() {
    let mut region = region(1, &[]);
    let (shelf, image) = one_image();
    let (here, there) = (shelf.clone(), shelf);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let own = addr.clone();
    let second = FakeRegistry::start_on(listener, move |seen, _| {
        if seen.path.starts_with("/token") {
            return Reply::new(200, r#"{"token":"T","expires_in":300}"#);
        }
        if seen.path.starts_with("/store/") || seen.header("authorization") == "Bearer T" {
            return there.answer(seen);
        }
        let scope = "repository:away:pull";
        let challenge = format!("Bearer realm=\"http://{own}/token\",service=\"b\",scope=\"{scope}\"");
        Reply::new(401, "{}").with("www-authenticate", &challenge)
    });
    let first = FakeRegistry::start(move |seen, _| {
        let mut parts = seen.path.rsplit('/');
        let (last, kind) = (parts.next().unwrap(), parts.next().unwrap());
        let location = match seen.path.split('/').nth(2).unwrap_or_default() {
            _ if seen.path.starts_with("/store/") => return here.answer(seen),
            "net" => format!("//{addr}/store/{kind}/{last}"),
            "rel" => format!("../../../store/{kind}/{last}"),
            _ => format!("http://{addr}{}", seen.path),
        };
        Reply::new(307, "").with("location", &location)
    });
    let file = region.folder.path().join("docker.json");
    configure(&mut region, &[plain("odd.example", &first.addr), format!("docker_config='{}'", file.display())]);
    for (row, secret) in
        [(r#"{"auth":"dXNlcjpzZWNyZXQ="}"#, "dXNlcjpzZWNyZXQ="), (r#"{"identitytoken":"refresh"}"#, "refresh")]
    {
        fs::write(&file, format!(r#"{{"auths":{{"odd.example":{row},"empty.example":{{}}}}}}"#)).unwrap();
        for repository in ["away", "net", "rel"] {
            let status = done(&region, &["prewarm", &format!("odd.example/{repository}:latest")]);
            assert_eq!(status["phase"], "done", "{repository}");
        }
        assert!(!leaks(&second.received(), secret) && !leaks(&first.received(), secret), "{secret}");
    }
    assert!(!leaks(&first.received(), "Bearer T"), "a token of the second host went to the first one");
    assert!(region.peers[0].stored_digests().contains(digest(&image)));
}

#[test]
fn credentials_are_those_of_the_path() {
    let mut region = region(1, &[]);
    let (shelf, _) = one_image();
    let registry = FakeRegistry::start(move |seen, _| {
        let team = seen.path.split('/').nth(2).unwrap_or_default();
        // `a:p` and `b:p` in base64.
        let right = if team == "team-a" { "Basic YTpw" } else { "Basic Yjpw" };
        match seen.header("authorization") == right {
            true => shelf.answer(seen),
            false => Reply::new(401, "{}").with("www-authenticate", "Basic realm=\"x\""),
        }
    });
    let file = region.folder.path().join("docker.json");
    let rows = r#""r.example/team-b":{"auth":"Yjpw"},"r.example":{"auth":"eDp5"},"r.example/team-a":{"auth":"YTpw"}"#;
    fs::write(&file, format!(r#"{{"auths":{{{rows},"r.example/team-c":{{}}}},"credHelpers":null}}"#)).unwrap();
    configure(&mut region, &[plain("r.example", &registry.addr), format!("docker_config='{}'", file.display())]);
    for team in ["team-a", "team-b"] {
        assert_eq!(done(&region, &["prewarm", &format!("r.example/{team}/app:v1")])["phase"], "done", "{team}");
    }
    let text = refused(&region, &["prewarm", "r.example/team-c/app:v1"]);
    assert!(text.contains("refuses the credentials in docker_config"), "{text}");
}

#[test]
fn a_credential_helper_is_asked() {
    let tools = tempfile::tempdir().unwrap();
    let helper = |name: &str, text: &str| {
        let path = tools.path().join(format!("docker-credential-{name}"));
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let log = tools.path().join("asked");
    let write = format!("server=$(cat); echo \"$1 $server\" >> '{}'", log.display());
    helper("cloud", &format!(r#"{write}; echo '{{"ServerURL":"x","Username":"a","Secret":"p"}}'"#));
    helper("store", &format!("{write}; echo 'credentials not found in native keychain'; exit 1"));
    helper("broken", "echo 'the keyring is locked'; exit 2");
    let path = format!("PATH={}:{}", tools.path().display(), std::env::var("PATH").unwrap());
    let mut region = setup(1, &[]).wrapped_in(&["env".into(), path]).start();
    let (shelf, _) = one_image();
    let registry = FakeRegistry::start(move |seen, _| {
        let repository = seen.path.split('/').nth(2).unwrap_or_default();
        match repository == "open" || seen.header("authorization") == "Basic YTpw" {
            true => shelf.answer(seen),
            false => Reply::new(401, "{}").with("www-authenticate", "Basic realm=\"x\""),
        }
    });
    let file = region.folder.path().join("docker.json");
    let text = r#"{"auths":{"r.example":{},"stored.example":{}},"credsStore":"store","credHelpers":
        {"r.example":"cloud","broken.example":"broken","none.example":"none"}}"#;
    fs::write(&file, text).unwrap();
    let names = ["r.example", "stored.example", "broken.example", "none.example"];
    let mut pairs: Vec<String> = names.iter().map(|name| plain(name, &registry.addr)).collect();
    pairs.push(format!("docker_config='{}'", file.display()));
    configure(&mut region, &pairs);
    assert_eq!(done(&region, &["prewarm", "r.example/app:v1"])["phase"], "done");
    assert_eq!(done(&region, &["prewarm", "stored.example/open/app:v1"])["phase"], "done", "no credentials are needed");
    let asked = fs::read_to_string(&log).unwrap();
    assert!(asked.contains("get r.example\n") && asked.contains("get stored.example\n"), "{asked}");
    let text = refused(&region, &["prewarm", "broken.example/app:v1"]);
    assert!(text.contains("the keyring is locked") && text.contains("docker-credential-broken"), "{text}");
    let text = refused(&region, &["prewarm", "none.example/app:v1"]);
    assert!(text.contains("docker-credential-none") && text.contains("PATH"), "{text}");
}

#[test]
fn a_loopback_registry_needs_no_settings_and_names_with_dots_can_be_set() {
    let mut region = region(1, &[]);
    let (shelf, _) = one_image();
    let registry = shelf.serve();
    let status = done(&region, &["prewarm", &format!("{}/app:v1", registry.addr)]);
    assert_eq!(status["phase"], "done");
    // Each key below a name with dots, in quotes.
    let name = "registry.example:5000";
    let url = format!("registries.\"{name}\".url=\"http://{}\"", registry.addr);
    configure(&mut region, &[url, format!("registries.'{name}'.plain_http=true")]);
    assert_eq!(done(&region, &["prewarm", &format!("{name}/app:v1")])["phase"], "done");
}

#[test]
fn a_refusal_until_a_date_is_waited_for() {
    let mut region = region(1, &[]);
    let (shelf, _) = one_image();
    let registry = FakeRegistry::start(move |seen, number| match number {
        // A date of the past asks for no wait of its own.
        1 => Reply::new(429, "{}").with("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"),
        _ => shelf.answer(seen),
    });
    configure(&mut region, &[plain("r.example", &registry.addr)]);
    assert_eq!(done(&region, &["prewarm", "r.example/app:v1"])["phase"], "done");
    let never = FakeRegistry::start(|_, _| Reply::new(429, "{}").with("retry-after", "Fri, 31 Dec 9999 23:59:59 GMT"));
    configure(&mut region, &[plain("never.example", &never.addr)]);
    let began = Instant::now();
    let text = refused(&region, &["prewarm", "never.example/app:v1"]);
    assert!(text.contains("429") && began.elapsed() < Duration::from_secs(30), "{text}");
}

#[test]
fn a_tag_that_does_not_exist_is_404_at_once() {
    let mut region = region(2, &["mirror.fetch_through=true", "mirror.max_wait=30s"]);
    let (shelf, image) = one_image();
    let registry = shelf.serve();
    let allowed = "fetch_through=['r.example']".to_string();
    configure(&mut region, &[plain("r.example", &registry.addr), allowed]);
    for host in [0, 1, 0] {
        for tag in ["missing", "sha256-00.sig"] {
            let began = Instant::now();
            let path = format!("/v2/app/manifests/{tag}?ns=r.example");
            assert_eq!(get(mirror(&region, host), &path, None).unwrap().0, 404, "{tag}");
            assert!(began.elapsed() < Duration::from_secs(10), "{tag} took {:?}", began.elapsed());
        }
    }
    let jobs = region.cli_json(&["status", "--json"]).unwrap();
    assert_eq!(jobs.as_array().unwrap().len(), 0, "a tag that does not exist left a job: {jobs:#}");
    let asked = registry.received().iter().filter(|seen| seen.path.contains("missing")).count();
    assert!(asked <= 3, "three requests of two hosts made {asked} of the registry");
    // A tag that exists comes as before.
    let path = "/v2/app/manifests/v1?ns=r.example";
    let body = until("the image arrives", || get(mirror(&region, 1), path, None).filter(|(code, _)| *code == 200)).1;
    assert_eq!(sha256(body.as_bytes()), digest(&image));
}

#[test]
fn referrers_travel_on_request_and_a_part_of_them_is_no_list() {
    let mut region = region(2, &[]);
    let mut shelf = Shelf::with_referrers_api();
    let image = shelf.image("app", "amd64");
    let signature = shelf.artifact(&image, "application/vnd.example.signature", "signature");
    let sbom = shelf.artifact(&image, "application/spdx+json", "parts");
    let lonely = shelf.image("lonely", "amd64");
    for (tag, row) in [("v1", &image), ("sig", &signature), ("sbom", &sbom), ("lonely", &lonely)] {
        shelf.tag(tag, row);
    }
    let registry = shelf.serve();
    configure(&mut region, &[plain("r.example", &registry.addr)]);
    let host = region.peers[1].addrs["mirror"].as_str().unwrap().to_string();
    let list = |of: &Value, query: &str| {
        let (code, body) = get(&host, &format!("/v2/app/referrers/{}{query}", digest(of)), None).unwrap();
        let rows = serde_json::from_str::<Value>(&body).unwrap()["manifests"].as_array().map_or(0, Vec::len);
        (code, rows)
    };
    done(&region, &["prewarm", "r.example/app:v1"]);
    assert_eq!(list(&image, "").0, 404, "the registry has referrers that the host lacks");
    done(&region, &["prewarm", "r.example/app:sig"]);
    assert_eq!(list(&image, "").0, 404, "one of two is no list");
    let status = done(&region, &["prewarm", "r.example/app:v1", "--with-referrers"]);
    assert_eq!(status["phase"], "done");
    assert_eq!(list(&image, ""), (200, 2));
    assert_eq!(list(&image, "?artifactType=application%2Fspdx%2Bjson"), (200, 1));
    assert!(region.peers[1].stored_digests().contains(&sha256(b"parts")), "the parts of a referrer travel too");
    done(&region, &["prewarm", "r.example/app:lonely"]);
    assert_eq!(list(&lonely, "").0, 404, "the registry may have a signature by now");
}
