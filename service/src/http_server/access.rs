//! Who may reach an HTTP API, and how: names, TLS, and the rule that nothing leaves this machine in the clear.
//!
//! Invariant: a port that other machines can reach speaks TLS, or the operator has said that something else protects
//! it.

#![allow(unreachable_pub, reason = "the server is the only user of this module")]

use crate::config::ConfigError;
use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio_rustls::TlsAcceptor;

/// How often the files are looked at. A renewed certificate is in use after this time.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How clients reach an HTTP API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpAccess {
    /// Names by which clients address the API, beside its addresses, `localhost` and the machine's name. A request for
    /// any other name is refused, which protects against DNS rebinding. Default: none.
    pub names: Vec<String>,
    /// Certificate and key. Default: none, and the API speaks plain HTTP.
    pub tls: Option<TlsFiles>,
    /// Whether a port without TLS may be open to other machines, because a proxy or a firewall protects it. Default
    /// `false`.
    pub behind_proxy: bool,
}

/// The PEM files of a certificate. A role reads them again when they change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The certificate, followed by those that lead to the authority.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The reason for which a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields carry their types' names")]
pub enum TlsFilesError {
    #[error("cannot read the certificate or key in {}: {source}", path.display())]
    Read { path: PathBuf, source: pem::Error },
    #[error("cannot read {}: {source}", path.display())]
    Look { path: PathBuf, source: io::Error },
    #[error("private key {} has mode {mode:04o}, so others can read or change it; run `chmod 600` on it", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("the certificate {} and its key cannot be used: {source}", path.display())]
    Unusable { path: PathBuf, source: rustls::Error },
}

impl HttpAccess {
    /// Checks that a port at `http` is not open to other machines in the clear.
    ///
    /// # Errors
    ///
    /// Fails if the address is not a loopback address, there is no TLS, and `behind_proxy` is not set.
    pub fn check(&self, http: SocketAddr) -> Result<(), ConfigError> {
        if http.ip().to_canonical().is_loopback() || self.tls.is_some() || self.behind_proxy {
            return Ok(());
        }
        Err(ConfigError::invalid(
            "http",
            format!(
                "{http} is open to other machines and has no TLS; set http_access.tls (see `shoal cluster tls`), listen \
                 on 127.0.0.1, or set http_access.behind_proxy = true if something else protects the port"
            ),
        ))
    }
}

impl HttpAccess {
    /// Checks the certificate and its key, as the start of a role does.
    ///
    /// # Errors
    ///
    /// Fails if the files cannot be used.
    pub fn check_files(&self) -> Result<(), TlsFilesError> {
        self.tls.as_ref().map_or(Ok(()), |files| acceptor(files).map(drop))
    }
}

/// The TLS of a server, read again when its files change.
#[derive(Clone)]
pub struct Tls {
    files: TlsFiles,
    loaded: Arc<Mutex<Loaded>>,
}

struct Loaded {
    acceptor: TlsAcceptor,
    changed: [SystemTime; 2],
    looked: Instant,
}

impl Tls {
    pub fn load(files: &TlsFiles) -> Result<Self, TlsFilesError> {
        let loaded = Loaded { changed: changed(files)?, acceptor: acceptor(files)?, looked: Instant::now() };
        Ok(Self { files: files.clone(), loaded: Arc::new(Mutex::new(loaded)) })
    }

    /// Returns the acceptor of the present files. Files that cannot be used leave the former certificate in force.
    pub fn acceptor(&self) -> TlsAcceptor {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.looked.elapsed() >= LOOK_EVERY {
            loaded.looked = Instant::now();
            if let Err(error) = self.reload(&mut loaded) {
                tracing::warn!(%error, "the former certificate stays in use");
            }
        }
        loaded.acceptor.clone()
    }

    fn reload(&self, loaded: &mut Loaded) -> Result<(), TlsFilesError> {
        let now = changed(&self.files)?;
        if now != loaded.changed {
            loaded.acceptor = acceptor(&self.files)?;
            loaded.changed = now;
            tracing::info!(cert = %self.files.cert.display(), "the certificate was read again");
        }
        Ok(())
    }
}

fn changed(files: &TlsFiles) -> Result<[SystemTime; 2], TlsFilesError> {
    let at = |path: &Path| {
        let time = std::fs::metadata(path).and_then(|metadata| metadata.modified());
        time.map_err(|source| TlsFilesError::Look { path: path.to_path_buf(), source })
    };
    Ok([at(&files.cert)?, at(&files.key)?])
}

/// Checks that only the owner and the group can read a private key. Programs that renew certificates share a group.
fn check_mode(key: &Path) -> Result<(), TlsFilesError> {
    let look = |source| TlsFilesError::Look { path: key.to_path_buf(), source };
    let mode = std::fs::metadata(key).map_err(look)?.mode() & 0o7777;
    if mode & 0o027 != 0 { Err(TlsFilesError::Exposed { path: key.to_path_buf(), mode }) } else { Ok(()) }
}

fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, TlsFilesError> {
    let read = |path: &Path| {
        let path = path.to_path_buf();
        move |source| TlsFilesError::Read { path: path.clone(), source }
    };
    let chain = CertificateDer::pem_file_iter(&files.cert).map_err(read(&files.cert))?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(read(&files.cert))?;
    check_mode(&files.key)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(read(&files.key))?;
    let unusable = |source| TlsFilesError::Unusable { path: files.cert.clone(), source };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = builder.map_err(unusable)?.with_no_client_auth().with_single_cert(chain, key).map_err(unusable)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_the_machine_in_the_clear() {
        let plain = HttpAccess::default();
        let files = TlsFiles { cert: "a".into(), key: "b".into() };
        let tls = HttpAccess { tls: Some(files), ..HttpAccess::default() };
        let proxied = HttpAccess { behind_proxy: true, ..HttpAccess::default() };
        for (addr, local) in [
            ("127.0.0.1:1", true),
            ("[::1]:1", true),
            ("127.9.8.7:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
            ("192.0.2.1:1", false),
            ("169.254.1.1:1", false),
        ] {
            let addr: SocketAddr = addr.parse().unwrap();
            assert_eq!(plain.check(addr).is_ok(), local, "{addr}");
            assert!(tls.check(addr).is_ok() && proxied.check(addr).is_ok(), "{addr}");
        }
    }
}
