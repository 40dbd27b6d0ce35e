//! The `hosts.toml` files that make containerd ask the mirror first.
//!
//! Invariant: only files that begin with [`MARK`] are overwritten or removed, unless the caller forces it. A reader
//! sees the old file or the new one, never a part.

use shoal_proto::image::is_host;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The first line of our files.
pub const MARK: &str = "# Written by `shoal containerd setup`, which also removes it with --undo.";
/// The folder for registries without a folder of their own.
const DEFAULT: &str = "_default";
const FILE_NAME: &str = "hosts.toml";
const TEMPORARY_NAME: &str = ".hosts.toml.shoal";

/// Why a file cannot be written or removed.
#[derive(Debug, thiserror::Error)]
pub enum HostsTomlError {
    /// The name is not a valid registry.
    #[error("invalid registry `{0}`: use the name as in image names, for example registry.example:5000, or _default")]
    Registry(String),
    /// The URL is not valid.
    #[error("invalid URL `{0}`: use http:// or https:// with a host and a port")]
    Url(String),
    /// The file has another author.
    #[error("{} was not written by shoal and stays unchanged; --force overwrites it", .0.display())]
    Foreign(PathBuf),
    /// The file system refused an operation.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// A verb, for example `write`.
        action: &'static str,
        /// The operation's object.
        path: PathBuf,
        #[allow(missing_docs, reason = "the error of the system call")]
        #[source]
        source: io::Error,
    },
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> HostsTomlError + 'a {
    move |source| HostsTomlError::Io { action, path: path.to_path_buf(), source }
}

/// The contents of a file.
#[derive(Clone, Debug)]
pub struct HostsToml {
    /// The URL of the mirror, `http://host:port`.
    pub mirror: String,
    /// The URL of the registry. `None` if containerd can derive it from the registry's name.
    pub server: Option<String>,
    /// Whether containerd asks the mirror for tags too, not only for digests.
    pub resolve: bool,
}

/// What happened to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// The file is new or has new contents.
    Written,
    /// The file had these contents already.
    Unchanged,
    #[allow(missing_docs, reason = "the name says it")]
    Removed,
}

fn is_url(text: &str) -> bool {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    rest.is_some_and(is_host)
}

fn path_of(dir: &Path, registry: &str) -> Result<PathBuf, HostsTomlError> {
    if registry != DEFAULT && !is_host(registry) {
        return Err(HostsTomlError::Registry(registry.to_string()));
    }
    Ok(dir.join(registry).join(FILE_NAME))
}

/// Returns the contents of a file, or `None` if there is no file.
fn read_existing(path: &Path) -> Result<Option<String>, HostsTomlError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read", path)(error)),
    }
}

fn is_ours(text: &str) -> bool {
    text.lines().next() == Some(MARK)
}

impl HostsToml {
    fn render(&self) -> Result<String, HostsTomlError> {
        for url in [Some(&self.mirror), self.server.as_ref()].into_iter().flatten() {
            if !is_url(url) {
                return Err(HostsTomlError::Url(url.clone()));
            }
        }
        let server = self.server.as_ref().map_or_else(String::new, |server| format!("server = \"{server}\"\n"));
        let capabilities = if self.resolve { "\"pull\", \"resolve\"" } else { "\"pull\"" };
        let mirror = &self.mirror;
        Ok(format!("{MARK}\n{server}\n[host.\"{mirror}\"]\n  capabilities = [{capabilities}]\n"))
    }

    /// Writes a registry's file below `dir`. `force` overwrites a file of another author. `dry_run` writes nothing.
    ///
    /// # Errors
    /// Fails if the registry or a URL is invalid, if the file has another author, or if the file system fails.
    pub fn setup(
        &self,
        dir: &Path,
        registry: &str,
        force: bool,
        dry_run: bool,
    ) -> Result<(PathBuf, Change), HostsTomlError> {
        let path = path_of(dir, registry)?;
        let text = self.render()?;
        match read_existing(&path)? {
            Some(former) if former == text => return Ok((path, Change::Unchanged)),
            Some(former) if !is_ours(&former) && !force => return Err(HostsTomlError::Foreign(path)),
            _ => {}
        }
        if !dry_run {
            let folder = dir.join(registry);
            fs::create_dir_all(&folder).map_err(io_error("create", &folder))?;
            let temporary = folder.join(TEMPORARY_NAME);
            let written = File::create(&temporary).and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_data()
            });
            written.map_err(io_error("write", &temporary))?;
            fs::rename(&temporary, &path).map_err(io_error("write", &path))?;
        }
        Ok((path, Change::Written))
    }
}

/// Removes our files below `dir`: those of `registries`, or all if that is empty. `dry_run` removes nothing.
///
/// # Errors
/// Fails if a registry is invalid or if the file system fails.
pub fn undo(dir: &Path, registries: &[String], dry_run: bool) -> Result<Vec<(PathBuf, Change)>, HostsTomlError> {
    let mut paths = Vec::new();
    if registries.is_empty() {
        let items = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            items => items.map_err(io_error("list", dir))?,
        };
        for item in items {
            paths.push(item.map_err(io_error("list", dir))?.path().join(FILE_NAME));
        }
        paths.sort();
    } else {
        for registry in registries {
            paths.push(path_of(dir, registry)?);
        }
    }
    let mut removed = Vec::new();
    for path in paths {
        // There may be plain files beside the folders of registries.
        let existing = if path.parent().is_some_and(Path::is_dir) { read_existing(&path)? } else { None };
        if !existing.is_some_and(|text| is_ours(&text)) {
            continue;
        }
        if !dry_run {
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
            if let Some(folder) = path.parent() {
                let _ = fs::remove_dir(folder); // fails if the folder has other files
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
    fn a_file_is_written_once_and_removed_with_its_folder() {
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
        assert!(!path.parent().unwrap().exists(), "the folder had no other file");
        assert!(undo(&dir.path().join("nowhere"), &[], false).unwrap().is_empty());
    }

    #[test]
    fn files_of_other_authors_stay() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("docker.io");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(FILE_NAME), "server = \"x\"\n").unwrap();
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
    fn malicious_names_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for registry in ["../x", "a/b", "", ".", "..", "a\nb", "registry.example:port"] {
            assert!(matches!(hosts().setup(dir.path(), registry, true, false), Err(HostsTomlError::Registry(_))));
        }
        for url in ["127.0.0.1:7703", "http://a\"]", "http://a/b", "ftp://a"] {
            let bad = HostsToml { mirror: url.into(), ..hosts() };
            assert!(matches!(bad.setup(dir.path(), "_default", false, false), Err(HostsTomlError::Url(_))), "{url}");
        }
    }
}
