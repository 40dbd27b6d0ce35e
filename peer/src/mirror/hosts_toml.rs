//! The `hosts.toml` files that send containerd to the mirror first.
//!
//! Invariant: only files that begin with [`MARK`] are overwritten or removed, unless the caller insists, and a reader
//! sees an old file or a new one, never half of one. Nothing else is touched.

use shoal_proto::image::is_host;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// First line of our files.
pub const MARK: &str = "# Written by `shoal containerd setup`, which also removes it with --undo.";
/// For registries that have no file of their own.
const DEFAULT: &str = "_default";
const FILE: &str = "hosts.toml";
const TEMPORARY: &str = ".hosts.toml.shoal";

/// Why a file was not written or removed.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// It cannot be a registry.
    #[error("`{0}` is no registry: say its name as images do, e.g. registry.example:5000, or _default")]
    Registry(String),
    /// An address cannot be used.
    #[error("`{0}` is not http:// or https://, a host and a port")]
    Url(String),
    /// Somebody else wrote it.
    #[error("{} was not written by shoal; it is left alone. --force overwrites it", .0.display())]
    Foreign(PathBuf),
    /// The file system refused.
    #[error("cannot {what} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn fault<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> HostsError + 'a {
    move |source| HostsError::Io { what, path: path.to_path_buf(), source }
}

/// What a file is to say.
#[derive(Clone, Debug)]
pub struct HostsToml {
    /// Where the mirror listens, `http://host:port`.
    pub mirror: String,
    /// Where the registry is reached when the mirror cannot help; containerd's own idea of it when absent.
    pub server: Option<String>,
    /// Whether the mirror also says what a tag leads to.
    pub resolve: bool,
}

/// What was done with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It is new or says something else now.
    Written,
    /// It said the same already.
    Unchanged,
    /// It is gone.
    Removed,
}

fn is_url(text: &str) -> bool {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    rest.is_some_and(is_host)
}

fn path_of(dir: &Path, registry: &str) -> Result<PathBuf, HostsError> {
    if registry != DEFAULT && !is_host(registry) {
        return Err(HostsError::Registry(registry.to_string()));
    }
    Ok(dir.join(registry).join(FILE))
}

/// What is there; `None` when nothing is.
fn existing(path: &Path) -> Result<Option<String>, HostsError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fault("read", path)(error)),
    }
}

fn is_ours(text: &str) -> bool {
    text.lines().next() == Some(MARK)
}

impl HostsToml {
    fn render(&self) -> Result<String, HostsError> {
        for url in [Some(&self.mirror), self.server.as_ref()].into_iter().flatten() {
            if !is_url(url) {
                return Err(HostsError::Url(url.clone()));
            }
        }
        let server = self.server.as_ref().map_or_else(String::new, |server| format!("server = \"{server}\"\n"));
        let capabilities = if self.resolve { "\"pull\", \"resolve\"" } else { "\"pull\"" };
        let mirror = &self.mirror;
        Ok(format!("{MARK}\n{server}\n[host.\"{mirror}\"]\n  capabilities = [{capabilities}]\n"))
    }

    /// Writes a registry's file below `dir`. `force` overwrites what is not ours; `dry` only looks.
    pub fn setup(&self, dir: &Path, registry: &str, force: bool, dry: bool) -> Result<(PathBuf, Change), HostsError> {
        let path = path_of(dir, registry)?;
        let text = self.render()?;
        match existing(&path)? {
            Some(former) if former == text => return Ok((path, Change::Unchanged)),
            Some(former) if !is_ours(&former) && !force => return Err(HostsError::Foreign(path)),
            _ => {}
        }
        if !dry {
            let folder = dir.join(registry);
            fs::create_dir_all(&folder).map_err(fault("make", &folder))?;
            let temporary = folder.join(TEMPORARY);
            let written = File::create(&temporary).and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_data()
            });
            written.map_err(fault("write", &temporary))?;
            fs::rename(&temporary, &path).map_err(fault("write", &path))?;
        }
        Ok((path, Change::Written))
    }
}

/// Removes our files below `dir`: those of the registries, or all when none is given. Others' are left.
pub fn undo(dir: &Path, registries: &[String], dry: bool) -> Result<Vec<(PathBuf, Change)>, HostsError> {
    let mut paths = Vec::new();
    if registries.is_empty() {
        let items = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            items => items.map_err(fault("list", dir))?,
        };
        for item in items {
            paths.push(item.map_err(fault("list", dir))?.path().join(FILE));
        }
        paths.sort();
    } else {
        for registry in registries {
            paths.push(path_of(dir, registry)?);
        }
    }
    let mut removed = Vec::new();
    for path in paths {
        // Beside folders of registries there may be plain files.
        let there = if path.parent().is_some_and(Path::is_dir) { existing(&path)? } else { None };
        if !there.is_some_and(|text| is_ours(&text)) {
            continue;
        }
        if !dry {
            fs::remove_file(&path).map_err(fault("remove", &path))?;
            if let Some(folder) = path.parent() {
                // Only if nothing else is in it.
                let _ = fs::remove_dir(folder);
            }
        }
        removed.push((path, Change::Removed));
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts() -> HostsToml {
        HostsToml { mirror: "http://127.0.0.1:7703".into(), server: None, resolve: true }
    }

    #[test]
    fn written_once_and_removed_wholly() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("certs.d");
        let (path, change) = hosts().setup(&at, "registry.example:5000", false, true).unwrap();
        assert_eq!(change, Change::Written);
        assert!(!path.exists(), "a dry run");
        hosts().setup(&at, "registry.example:5000", false, false).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            format!("{MARK}\n\n[host.\"http://127.0.0.1:7703\"]\n  capabilities = [\"pull\", \"resolve\"]\n")
        );
        assert_eq!(hosts().setup(&at, "registry.example:5000", false, false).unwrap().1, Change::Unchanged);
        let digests = HostsToml { server: Some("http://10.0.0.1:5000".into()), resolve: false, ..hosts() };
        assert_eq!(digests.setup(&at, "registry.example:5000", false, false).unwrap().1, Change::Written);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("server = \"http://10.0.0.1:5000\"") && !text.contains("resolve"));
        assert_eq!(undo(&at, &[], true).unwrap().len(), 1);
        assert!(path.exists());
        assert_eq!(undo(&at, &[], false).unwrap(), [(path.clone(), Change::Removed)]);
        assert!(!path.parent().unwrap().exists(), "its folder held nothing else");
        assert!(undo(&dir.path().join("nowhere"), &[], false).unwrap().is_empty());
    }

    #[test]
    fn what_others_wrote_is_theirs() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("docker.io");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(FILE), "server = \"x\"\n").unwrap();
        fs::write(dir.path().join("note"), "").unwrap();
        let error = hosts().setup(dir.path(), "docker.io", false, false).unwrap_err();
        assert!(error.to_string().contains("--force"), "{error}");
        assert!(undo(dir.path(), &[], false).unwrap().is_empty());
        assert!(undo(dir.path(), &["docker.io".into()], false).unwrap().is_empty());
        hosts().setup(dir.path(), "docker.io", true, false).unwrap();
        fs::write(folder.join("ca.crt"), "").unwrap();
        assert_eq!(undo(dir.path(), &["docker.io".into()], false).unwrap().len(), 1);
        assert!(folder.join("ca.crt").exists());
    }

    #[test]
    fn tricks_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for registry in ["../x", "a/b", "", ".", "..", "a\nb", "registry.example:port"] {
            assert!(matches!(hosts().setup(dir.path(), registry, true, false), Err(HostsError::Registry(_))));
        }
        for url in ["127.0.0.1:7703", "http://a\"]", "http://a/b", "ftp://a"] {
            let bad = HostsToml { mirror: url.into(), ..hosts() };
            assert!(matches!(bad.setup(dir.path(), "_default", false, false), Err(HostsError::Url(_))), "{url}");
        }
    }
}
