//! Registries that redirect, ask for credentials, refuse for a while and speak no TLS, over real connections.

use super::*;
use crate::config::{RegistrySettings, SeederConfig};
use crate::errors::with_sources;
use crate::oci_documents::digest_of;
use shoal_proto::image::{Digest, OCI_INDEX, OCI_MANIFEST, Reference};
use shoal_service::units::Span;
use shoal_testkit::fake_registry::{FakeRegistry, Received, Reply};
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

const NAME: &str = "r.example";
const MANIFEST: &str = r#"{"schemaVersion":2,"config":{},"layers":null}"#;
/// `user:secret` in base64, as `docker_config` has it for [`NAME`].
const SECRET: &str = "dXNlcjpzZWNyZXQ=";

fn manifest() -> Reply {
    Reply::new(200, MANIFEST).with("content-type", OCI_MANIFEST)
}

/// A configuration whose registry [`NAME`] is at this address.
fn config(addr: &str, docker_config: Option<&Path>) -> SeederConfig {
    let settings = RegistrySettings { url: Some(format!("http://{addr}")), plain_http: true, ca: None };
    SeederConfig {
        registries: [(NAME.to_string(), settings)].into(),
        docker_config: docker_config.map(Path::to_path_buf),
        pull_patience: Span(Duration::ZERO),
        ..SeederConfig::default()
    }
}

/// Asks for the manifest of a reference.
async fn resolve(config: &SeederConfig, reference: &str) -> Result<Vec<u8>, RegistryError> {
    let reference: Reference = reference.parse().unwrap();
    let root = Repository::open(config, &reference).await?.resolve(&reference).await?;
    Ok(root.bytes.to_vec())
}

/// A folder with a `config.json` of this text.
fn docker_config(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

/// A port that a registry opens later.
fn port() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    (listener, addr)
}

/// Two registries. The first sends every request on to the second, which wants a token of its own token server.
struct Away {
    first: FakeRegistry,
    second: FakeRegistry,
}

impl Away {
    fn start() -> Self {
        let (listener, addr) = port();
        let own = addr.clone();
        let second = FakeRegistry::start_on(listener, move |seen, _| {
            if seen.path.starts_with("/token") {
                return Reply::new(200, r#"{"token":"T"}"#);
            }
            if seen.header("authorization") == "Bearer T" {
                return manifest();
            }
            let challenge = format!("Bearer realm=\"http://{own}/token\",service=\"b\",scope=\"repository:a:pull\"");
            Reply::new(401, "{}").with("www-authenticate", &challenge)
        });
        let first = FakeRegistry::start(move |seen, _| {
            Reply::new(307, "").with("location", &format!("http://{addr}{}", seen.path))
        });
        Self { first, second }
    }
}

fn shown(requests: &[Received]) -> Vec<String> {
    requests.iter().map(|seen| format!("{} {} {}", seen.path, seen.header("authorization"), seen.body)).collect()
}

#[tokio::test]
async fn the_challenge_of_another_host_is_answered_anonymously() {
    for row in [format!(r#"{{"auth":"{SECRET}"}}"#), r#"{"identitytoken":"refresh-secret"}"#.to_string()] {
        let (_dir, file) = docker_config(&format!(r#"{{"auths":{{"{NAME}":{row}}}}}"#));
        let away = Away::start();
        let found = resolve(&config(&away.first.addr, Some(&file)), &format!("{NAME}/a:v1")).await;
        assert_eq!(found.unwrap(), MANIFEST.as_bytes(), "{row}");
        let (first, second) = (shown(&away.first.received()), shown(&away.second.received()));
        let leaked = |rows: &[String]| rows.iter().any(|row| row.contains(SECRET) || row.contains("refresh-secret"));
        assert!(!leaked(&second) && !leaked(&first), "{second:#?}");
        assert!(
            !first.iter().any(|row| row.contains("Bearer")),
            "the other host's token went to the registry: {first:?}"
        );
    }
}

#[tokio::test]
async fn a_password_never_follows_a_redirect() {
    let (_dir, file) = docker_config(&format!(r#"{{"auths":{{"{NAME}":{{"auth":"{SECRET}"}}}}}}"#));
    let other = FakeRegistry::start(|seen, _| match seen.path.starts_with("/basic") {
        true => Reply::new(401, "{}").with("www-authenticate", "Basic realm=\"x\""),
        false => manifest(),
    });
    let addr = other.addr.clone();
    let first = FakeRegistry::start(move |seen, _| match seen.header("authorization") {
        "" => Reply::new(401, "{}").with("www-authenticate", "Basic realm=\"x\""),
        _ if seen.path.contains("/asks/") => Reply::new(302, "").with("location", &format!("http://{addr}/basic")),
        _ => Reply::new(307, "").with("location", &format!("http://{addr}/m")),
    });
    let config = config(&first.addr, Some(&file));
    assert_eq!(resolve(&config, &format!("{NAME}/a:v1")).await.unwrap(), MANIFEST.as_bytes());
    let error = with_sources(&resolve(&config, &format!("{NAME}/asks/a:v1")).await.unwrap_err());
    assert!(error.contains("needs a password") && error.contains(&other.addr), "{error}");
    assert!(first.received().iter().any(|seen| seen.header("authorization").contains(SECRET)));
    assert!(other.received().iter().all(|seen| seen.header("authorization").is_empty()));
}

#[tokio::test]
async fn a_token_server_gets_the_credentials_and_its_redirect_does_not() {
    let (_dir, file) = docker_config(&format!(r#"{{"auths":{{"{NAME}":{{"auth":"{SECRET}"}}}}}}"#));
    let elsewhere = FakeRegistry::start(|_, _| Reply::new(200, r#"{"access_token":"T","token":null}"#));
    let addr = elsewhere.addr.clone();
    let registry = FakeRegistry::start(move |seen, _| {
        if seen.path.starts_with("/auth") {
            return Reply::new(307, "").with("location", &format!("http://{addr}/moved"));
        }
        match seen.header("authorization") {
            "Bearer T" => manifest(),
            // The address of a token server may be relative too.
            _ => {
                Reply::new(401, "{}").with("www-authenticate", "Negotiate, Bearer realm=\"/auth?x=y\",service=\"a b\"")
            }
        }
    });
    let found = resolve(&config(&registry.addr, Some(&file)), &format!("{NAME}/team/a:v1")).await;
    assert_eq!(found.unwrap(), MANIFEST.as_bytes());
    let asked = registry.received().into_iter().find(|seen| seen.path.starts_with("/auth")).unwrap();
    assert_eq!(asked.path, "/auth?x=y&scope=repository%3Ateam%2Fa%3Apull&service=a%20b");
    assert_eq!(asked.header("authorization"), format!("Basic {SECRET}"));
    assert!(elsewhere.received().iter().all(|seen| seen.header("authorization").is_empty()));
}

#[tokio::test]
async fn every_form_of_a_redirect_is_followed() {
    let (listener, addr) = port();
    let own = addr.clone();
    let registry = FakeRegistry::start_on(listener, move |seen, _| {
        if seen.path.contains("/store") || seen.path.ends_with("?signed") {
            return manifest();
        }
        let tag = seen.path.rsplit('/').next().unwrap_or_default();
        let location = match tag {
            "path" => "/store/x".to_string(),
            "dots" => "../../../store/x".to_string(),
            "beside" => "store?key=a%2Fb".to_string(),
            "net" => format!("//{own}/store/x"),
            "query" => "?signed".to_string(),
            "blank" => "/store/a b/\u{e9}".to_string(),
            "empty" => String::new(),
            "scheme" => "ftp://x/store".to_string(),
            _ => format!("http://{own}/store/x#fragment"),
        };
        Reply::new(307, "").with("location", &location)
    });
    let config = config(&addr, None);
    for tag in ["path", "dots", "beside", "net", "query", "blank", "whole"] {
        let found = resolve(&config, &format!("{NAME}/a:{tag}")).await;
        assert_eq!(found.unwrap(), MANIFEST.as_bytes(), "{tag}");
    }
    let paths: Vec<String> = registry.received().into_iter().map(|seen| seen.path).collect();
    assert!(paths.contains(&"/store/a%20b/%C3%A9".to_string()) && paths.contains(&"/store/x".to_string()), "{paths:?}");
    for (tag, words) in [("empty", "without saying where to"), ("scheme", "ftp://x/store")] {
        let error = resolve(&config, &format!("{NAME}/a:{tag}")).await.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[tokio::test]
async fn a_registry_on_this_machine_without_tls_is_used_without() {
    let registry = FakeRegistry::start(|_, _| manifest());
    let undescribed = SeederConfig { pull_patience: Span(Duration::ZERO), ..SeederConfig::default() };
    let port = registry.addr.rsplit(':').next().unwrap();
    for name in [registry.addr.clone(), format!("localhost:{port}")] {
        assert_eq!(resolve(&undescribed, &format!("{name}/a:v1")).await.unwrap(), MANIFEST.as_bytes(), "{name}");
    }
    // Settings that speak of TLS mean TLS.
    let described = RegistrySettings { url: Some(format!("https://{}", registry.addr)), ..RegistrySettings::default() };
    let described = SeederConfig { registries: [(NAME.to_string(), described)].into(), ..undescribed };
    let error = resolve(&described, &format!("{NAME}/a:v1")).await.unwrap_err();
    assert!(matches!(error, RegistryError::Tls(_)), "{error}");
}

#[tokio::test]
async fn a_refusal_for_a_while_is_waited_for() {
    let registry = FakeRegistry::start(|_, number| {
        let when = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(2));
        if number > 1 { manifest() } else { Reply::new(429, "{}").with("retry-after", &when) }
    });
    let began = Instant::now();
    let patient = SeederConfig { pull_patience: Span(Duration::from_secs(30)), ..config(&registry.addr, None) };
    assert_eq!(resolve(&patient, &format!("{NAME}/a:v1")).await.unwrap(), MANIFEST.as_bytes());
    // A date has no fractions of a second.
    assert!((Duration::from_millis(900)..Duration::from_secs(20)).contains(&began.elapsed()), "{:?}", began.elapsed());
    let endless = FakeRegistry::start(|_, _| Reply::new(429, "{}").with("retry-after", "18446744073709551615"));
    let patient = SeederConfig { pull_patience: Span(Duration::from_secs(5)), ..config(&endless.addr, None) };
    let error = resolve(&patient, &format!("{NAME}/a:v1")).await.unwrap_err().to_string();
    assert!(error.contains("429"), "{error}");
    assert_eq!(endless.received().len(), 1, "a wait beyond the patience is not begun");
}

fn digest(of: &str) -> Digest {
    digest_of(of.as_bytes())
}

fn row(of: &str) -> String {
    format!(r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{}","size":{},"platform":null}}"#, digest(of), of.len())
}

fn index(rows: &[&str]) -> Reply {
    let rows: Vec<String> = rows.iter().map(|of| row(of)).collect();
    let body = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{}]}}"#, rows.join(","));
    Reply::new(200, body).with("content-type", OCI_INDEX)
}

#[tokio::test]
async fn referrers_are_listed_whole_or_not_at_all() {
    let registry = FakeRegistry::start(|seen, _| {
        let repository = seen.path.split('/').nth(2).unwrap_or_default();
        let is_list = seen.path.contains("/referrers/");
        match repository {
            "pages" if seen.path.contains("page=2") => index(&["three"]),
            "pages" if is_list => index(&["one", "two"]).with("link", "<?page=2>; rel=\"next\""),
            "endless" if is_list => index(&["one"]).with("link", "<?page=2>; rel=\"next\""),
            "elsewhere" if is_list => index(&["one"]).with("link", "<http://other.example/x>; rel=next"),
            "tagged" if seen.path.contains("/manifests/sha256-") => index(&["one"]),
            "odd" if seen.path.contains("/manifests/sha256-") => manifest(),
            "unsupported" if is_list => Reply::new(405, "{}"),
            "garbled" if is_list => Reply::new(200, r#"{"manifests":[{"digest":"sha512:00"}]}"#),
            "sick" if is_list => Reply::new(500, "{}"),
            _ => Reply::new(404, "{}"),
        }
    });
    let config = config(&registry.addr, None);
    let list = async |repository: &str| {
        let reference: Reference = format!("{NAME}/{repository}:v1").parse().unwrap();
        let found = Repository::open(&config, &reference).await.unwrap().referrers(&digest("subject")).await;
        found.map(|rows| rows.into_iter().map(|row| row.digest).collect::<Vec<_>>())
    };
    assert_eq!(list("pages").await.unwrap(), [digest("one"), digest("two"), digest("three")]);
    assert_eq!(list("tagged").await.unwrap(), [digest("one")]);
    for none in ["odd", "unsupported", "none"] {
        assert!(list(none).await.unwrap().is_empty(), "{none}");
    }
    for failing in ["endless", "elsewhere", "garbled", "sick"] {
        assert!(list(failing).await.is_err(), "{failing}");
    }
}
