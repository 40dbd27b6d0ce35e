//! The folders in which containerd looks for a registry, in its own order and spelling, and the certificates in them.
//!
//! Invariant: what is found is what containerd finds at its next pull.

use super::files::{self, ENTRIES_MAX, FILE_NAME};
use super::hosts_toml::{self, Marked};
use super::toml_text::quoted;
use anyhow::{Context, bail};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The folder for registries without a folder of their own.
pub(crate) const DEFAULT: &str = "_default";

/// The folders of hosts.toml files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Roots {
    /// The folder that setup writes to.
    pub(crate) dir: PathBuf,
    /// All folders that containerd searches, in its order. `dir` is one of them.
    pub(crate) all: Vec<PathBuf>,
}

/// Where the file of a registry goes.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) folder: PathBuf,
    pub(crate) exists: bool,
    /// The folder that containerd used for the registry and that `folder` hides.
    pub(crate) hidden: Option<Hidden>,
}

/// A folder that a new one hides.
#[derive(Debug)]
pub(crate) struct Hidden {
    pub(crate) folder: PathBuf,
    /// The folder as seen from the new one, or its full path.
    pub(crate) prefix: String,
}

/// Returns the names under which containerd looks for a registry, in its order.
pub(crate) fn names(registry: &str) -> Vec<String> {
    let mut names = Vec::new();
    // Some file systems have no colon in names, so containerd has a second spelling and takes it first.
    if let Some((host, port)) = registry.rsplit_once(':').filter(|(host, _)| !host.is_empty()) {
        names.push(format!("{host}_{port}_"));
    }
    names.push(registry.to_string());
    if registry != DEFAULT {
        names.push(DEFAULT.to_string());
    }
    names
}

/// Returns the folder that hides a folder of `dir` from containerd.
pub(crate) fn hidden_by(dir: &Path, name: &str) -> Option<PathBuf> {
    let first = dir.join(names(name).first()?);
    (first != dir.join(name) && first.is_dir()).then_some(first)
}

fn is_folder(path: &Path) -> anyhow::Result<bool> {
    let shown = path.display();
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(true),
        Ok(_) => bail!("{shown} is not a folder, and containerd fails every pull that needs it: remove it"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot look at {shown}")),
    }
}

struct Found {
    /// The position of its root.
    root: usize,
    name: String,
    folder: PathBuf,
}

/// Returns the folder that containerd takes, as if there were no folder `skipped`.
fn find(roots: &Roots, names: &[String], skipped: Option<&Path>) -> anyhow::Result<Option<Found>> {
    for (root, dir) in roots.all.iter().enumerate() {
        for name in names {
            let folder = dir.join(name);
            if skipped != Some(folder.as_path()) && is_folder(&folder)? {
                return Ok(Some(Found { root, name: name.clone(), folder }));
            }
        }
    }
    Ok(None)
}

/// Returns where the file of a registry goes.
///
/// # Errors
/// Fails if containerd would not read the file there, or if the file system fails.
pub(crate) fn place(roots: &Roots, registry: &str) -> anyhow::Result<Place> {
    let names = names(registry);
    let own = roots.all.iter().position(|root| *root == roots.dir).unwrap_or_default();
    let found = find(roots, &names, None)?;
    if let Some(found) = found.as_ref().filter(|found| found.root < own) {
        let (folder, root) = (found.folder.display(), roots.all[found.root].display());
        bail!("containerd takes {folder} before {}: run the command with --hosts-dir {root}", roots.dir.display());
    }
    match found {
        Some(Found { root, name, folder }) if root == own && (name != DEFAULT || registry == DEFAULT) => {
            // What the folder hides is the same as when setup created it.
            let is_created = is_created_by_setup(&folder)?;
            let hidden = if is_created { find(roots, &names, Some(folder.as_path()))? } else { None };
            Ok(Place { hidden: hidden.map(|hidden| hide(hidden, own)).transpose()?, folder, exists: true })
        }
        hidden => {
            let hidden = hidden.map(|hidden| hide(hidden, own)).transpose()?;
            Ok(Place { folder: roots.dir.join(registry), exists: false, hidden })
        }
    }
}

fn hide(found: Found, own: usize) -> anyhow::Result<Hidden> {
    let Found { root, name, folder } = found;
    let prefix = if root == own {
        format!("../{name}")
    } else {
        let text = folder.to_str().with_context(|| format!("the name of {} is not UTF-8", folder.display()))?;
        text.to_string()
    };
    Ok(Hidden { folder, prefix })
}

/// Whether setup created a folder and it still has no certificates.
fn is_created_by_setup(folder: &Path) -> anyhow::Result<bool> {
    let Some(bytes) = files::read(&folder.join(FILE_NAME))? else { return Ok(false) };
    let is_marked = std::str::from_utf8(&bytes).is_ok_and(|text| Marked::parse(text).flags().is_new_folder);
    Ok(is_marked && certificates(folder, "")?.is_empty())
}

/// The certificates of a folder. containerd takes them by their names where there is no hosts.toml.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Certificates {
    /// Certificates of authorities.
    pub(crate) ca: Vec<String>,
    /// Certificates of the client with the files of their keys.
    pub(crate) client: Vec<[String; 2]>,
}

impl Certificates {
    pub(crate) fn is_empty(&self) -> bool {
        self.ca.is_empty() && self.client.is_empty()
    }

    /// Returns the value of the key `ca`.
    pub(crate) fn ca_value(&self) -> String {
        list(self.ca.iter().map(|name| quoted(name)))
    }

    /// Returns the value of the key `client`.
    pub(crate) fn client_value(&self) -> String {
        list(self.client.iter().map(|pair| list(pair.iter().map(|name| quoted(name)))))
    }
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

/// Returns the certificates of a folder, each as `prefix` and its name.
pub(crate) fn certificates(folder: &Path, prefix: &str) -> anyhow::Result<Certificates> {
    let cannot_list = || format!("cannot list {}", folder.display());
    let mut names = Vec::new();
    for item in fs::read_dir(folder).with_context(cannot_list)?.take(ENTRIES_MAX) {
        let item = item.with_context(cannot_list)?;
        let path = item.path();
        let is_certificate = path.extension().is_some_and(|ending| ending == "crt" || ending == "cert");
        if !is_certificate || item.file_type().with_context(cannot_list)?.is_dir() {
            continue;
        }
        let Ok(name) = item.file_name().into_string() else {
            bail!("hosts.toml cannot name {}, because the name is not UTF-8: rename it", path.display());
        };
        names.push(name);
    }
    names.sort();
    let named = |name: String| if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
    let mut found = Certificates::default();
    for name in names {
        match name.strip_suffix(".cert").map(|stem| format!("{stem}.key")) {
            // A certificate without a file for its key has the key in its own file.
            Some(key) if !folder.join(&key).exists() => found.client.push([named(name.clone()), named(name)]),
            Some(key) => found.client.push([named(name), named(key)]),
            None => found.ca.push(named(name)),
        }
    }
    Ok(found)
}

/// Returns the names of the folders whose files have the URL among their hosts.
pub(crate) fn leading_to(dir: &Path, url: &str) -> Vec<String> {
    let folders = fs::read_dir(dir).into_iter().flatten().flatten().take(ENTRIES_MAX);
    let leads = folders.filter(|folder| {
        let bytes = files::read(&folder.path().join(FILE_NAME)).ok().flatten().unwrap_or_default();
        let hosts = std::str::from_utf8(&bytes).map(hosts_toml::hosts).unwrap_or_default();
        hosts.iter().any(|host| hosts_toml::is_same_url(host, url))
    });
    let mut names: Vec<String> = leads.map(|folder| folder.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
