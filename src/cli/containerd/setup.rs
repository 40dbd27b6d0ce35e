//! Writes the `hosts.toml` file of a registry beside what is there: merged into a file of others, or new with the
//! certificates and the settings that the new file hides.
//!
//! Invariant: nothing is written before all registries of a command passed. What a file of others says stays.

use super::files::{self, FILE_NAME};
use super::folders::{self, Certificates, DEFAULT, Hidden, Place, Roots};
use super::hosts_toml::{self, Flags, Marked};
use super::toml_text::{message, quoted};
use anyhow::{Context, anyhow, bail};
use shoal_proto::image::is_host;
use std::fs;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// The registry of Docker's short names, whose address is not its name.
const DOCKER: &str = "docker.io";
const DOCKER_ALIAS: &str = "index.docker.io";
const DOCKER_SERVER: &str = "https://registry-1.docker.io";

/// What setup writes.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// The URL of the mirror.
    pub(crate) mirror: String,
    /// The URL of the registry. `None` if containerd can derive it from the registry's name.
    pub(crate) server: Option<String>,
    /// Whether containerd asks the mirror for tags too, not only for digests.
    pub(crate) resolves_tags: bool,
    /// Whether files of others are replaced, not merged.
    pub(crate) force: bool,
}

/// What happened to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Change {
    /// The file is new or has new contents.
    Written,
    /// The file had these contents already.
    Unchanged,
    Removed,
    /// The file is as it was before setup.
    Restored,
    /// The lines of shoal are removed. Changes after setup stay.
    LinesRemoved,
    /// Nothing was done, and somebody must look.
    Kept,
}

/// A file and what happened to it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Changed {
    pub(crate) file: PathBuf,
    pub(crate) change: Change,
    pub(crate) notes: Vec<String>,
}

/// Returns registries as containerd names them, each once, and `_default` first.
///
/// # Errors
/// Fails if a name is not that of a registry.
pub(crate) fn canonical(registries: &[String]) -> anyhow::Result<Vec<String>> {
    let mut found: Vec<String> = Vec::new();
    for registry in registries {
        if registry != DEFAULT && !is_host(registry) {
            bail!(
                "invalid registry `{registry}`: use the name as in image names, for example registry.example:5000, or \
                 {DEFAULT}"
            );
        }
        let name = if registry == DOCKER_ALIAS { DOCKER } else { registry.as_str() };
        if found.iter().all(|other| other != name) {
            found.push(name.to_string());
        }
    }
    // The files of other registries repeat what `_default` does.
    found.sort_by_key(|name| name != DEFAULT);
    Ok(found)
}

/// Sets up registries. A dry run writes nothing.
///
/// # Errors
/// Fails if a registry cannot be set up, or if the file system fails.
pub(crate) fn set_up(
    roots: &Roots,
    registries: &[String],
    wanted: &Wanted,
    is_dry_run: bool,
) -> anyhow::Result<Vec<Changed>> {
    if let Some(server) = wanted.server.as_ref().filter(|server| !is_url(server)) {
        bail!("invalid URL `{server}`: use http:// or https:// with a host and a port");
    }
    let registries = canonical(registries)?;
    // A dry pass finds every refusal before the first write.
    let mut plans = Vec::new();
    for registry in &registries {
        plans.push(plan(roots, registry, wanted)?);
    }
    if !is_dry_run {
        plans.clear();
        for registry in &registries {
            // The first registry may be `_default`, whose file the others repeat.
            let plan = plan(roots, registry, wanted)?;
            plan.apply()?;
            plans.push(plan);
        }
    }
    Ok(plans.into_iter().map(Plan::into_changed).collect())
}

fn is_url(text: &str) -> bool {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    rest.is_some_and(is_host)
}

/// Where undo finds the file as it was.
enum Backup {
    /// There was no file, or the backup is there.
    Unneeded,
    /// The file itself.
    Current,
    /// The file without the lines of shoal.
    Text(String),
}

struct Plan {
    path: PathBuf,
    former: Option<Vec<u8>>,
    text: String,
    backup: Backup,
    notes: Vec<String>,
    /// The file whose settings a new file repeats. They may be secret, so the new file is as readable as that one.
    repeats: Option<PathBuf>,
}

impl Plan {
    fn change(&self) -> Change {
        let is_unchanged = self.former.as_deref() == Some(self.text.as_bytes());
        if is_unchanged { Change::Unchanged } else { Change::Written }
    }

    fn into_changed(self) -> Changed {
        Changed { change: self.change(), file: self.path, notes: self.notes }
    }

    fn apply(&self) -> anyhow::Result<()> {
        if self.change() == Change::Unchanged {
            return Ok(());
        }
        let folder = self.path.parent().unwrap_or(Path::new(""));
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let like = fs::metadata(&self.path).ok();
        let like = like.or_else(|| self.repeats.as_ref().and_then(|repeated| fs::metadata(repeated).ok()));
        match &self.backup {
            Backup::Unneeded => {}
            Backup::Current => files::back_up(&self.path)?,
            Backup::Text(text) => {
                let backup = files::backup_of(&self.path);
                if files::read(&backup)?.as_deref() != Some(text.as_bytes()) {
                    files::write(&backup, text, like.as_ref())?;
                }
            }
        }
        files::write(&self.path, &self.text, like.as_ref())
    }
}

fn plan(roots: &Roots, registry: &str, wanted: &Wanted) -> anyhow::Result<Plan> {
    let place = folders::place(roots, registry)?;
    let path = place.folder.join(FILE_NAME);
    let former = files::read(&path)?;
    let composer = Composer { registry, wanted, place: &place };
    let cannot = || format!("cannot set up {registry} in {}", path.display());
    let (text, backup) = composer.text(former.as_deref()).with_context(cannot)?;
    let repeats = place.hidden.as_ref().map(|hidden| hidden.folder.join(FILE_NAME));
    let notes = composer.notes(roots, &text, former.as_deref());
    let plan = Plan { notes, path, former, text, backup, repeats };
    if plan.change() == Change::Written && plan.text.parse::<Table>().is_err() {
        let shown = plan.path.display();
        bail!("lines in {shown} do not fit the lines of shoal: remove them, or replace the file with --force");
    }
    Ok(plan)
}

/// Composes the file of one registry.
struct Composer<'a> {
    registry: &'a str,
    wanted: &'a Wanted,
    place: &'a Place,
}

impl Composer<'_> {
    fn text(&self, former: Option<&[u8]>) -> anyhow::Result<(String, Backup)> {
        let force = self.wanted.force;
        let created = Flags { is_new: true, is_new_folder: !self.place.exists, ..Flags::default() };
        let replacement = Flags { is_replacement: true, ..Flags::default() };
        let Some(bytes) = former else { return Ok((self.whole(created)?, Backup::Unneeded)) };
        let text = match std::str::from_utf8(bytes) {
            Ok(text) if !text.is_empty() => text,
            Err(_) if !force => bail!("it is not UTF-8, so containerd does not read it: mend it or use --force"),
            _ => return Ok((self.whole(replacement)?, Backup::Current)),
        };
        let marked = Marked::parse(text);
        if marked.is_edited() && !force {
            bail!("the lines between `# shoal begin` and `# shoal end` were changed: move the changes, or use --force");
        }
        let flags = marked.flags();
        if marked.is_edited() {
            // The file before the first setup is there already. Undo must find that one.
            let path = self.place.folder.join(FILE_NAME);
            let is_kept = !marked.is_foreign() && files::read(&files::backup_of(&path))?.is_some();
            return Ok((self.whole(replacement)?, if is_kept { Backup::Unneeded } else { Backup::Current }));
        }
        if marked.is_foreign() && force {
            return Ok((self.whole(replacement)?, Backup::Current));
        }
        if flags.is_whole() {
            return Ok((marked.with(&self.whole(flags)?), Backup::Unneeded));
        }
        let rest = marked.rest();
        let merged = if force { self.whole(replacement)? } else { self.merged(&rest)? };
        Ok((merged, if marked.is_foreign() { Backup::Current } else { Backup::Text(rest) }))
    }

    /// Returns a file that is nothing but a block.
    fn whole(&self, flags: Flags) -> anyhow::Result<String> {
        let hidden = self.place.hidden.as_ref().filter(|_| !self.wanted.force);
        let (base, certificates) = match hidden {
            Some(hidden) => repeated(hidden)?,
            None if self.place.exists => (String::new(), folders::certificates(&self.place.folder, "")?),
            None => Default::default(),
        };
        let mut lines = String::new();
        if let Some(hidden) = hidden.filter(|_| !base.is_empty() || !certificates.is_empty()) {
            lines.push_str(&format!("# Repeats what {} does for this registry.\n", quoted(&hidden.prefix)));
        }
        lines += &self.compose(&base, &certificates, false)?;
        if !lines.ends_with('\n') {
            lines.push('\n');
        }
        Ok(hosts_toml::marked(&lines, flags))
    }

    /// Returns a file of others with the mirror.
    fn merged(&self, base: &str) -> anyhow::Result<String> {
        self.compose(base, &folders::certificates(&self.place.folder, "")?, true)
    }

    fn compose(&self, base: &str, certificates: &Certificates, has_marks: bool) -> anyhow::Result<String> {
        let former = base.parse::<Table>().map_err(|error| {
            anyhow!("containerd does not read it ({}): mend it, or replace it with --force", message(&error, base))
        })?;
        if hosts_toml::hosts(base).iter().any(|host| hosts_toml::is_same_url(host, &self.wanted.mirror)) {
            return Ok(base.to_string());
        }
        let (head, added) = self.head(&former, certificates, !has_marks)?;
        let table = hosts_toml::mirror_table(&self.wanted.mirror, self.wanted.resolves_tags);
        let merged = hosts_toml::merge(base, &head, &table, has_marks)?;
        if !hosts_toml::is_merged(base, &merged, &self.wanted.mirror, &added) {
            bail!("the mirror cannot come first: write each host as a table [host.\"URL\"], or use --force");
        }
        Ok(merged)
    }

    /// Returns the lines for the registry itself, which containerd asks last, and their keys.
    fn head(
        &self,
        former: &Table,
        certificates: &Certificates,
        is_whole: bool,
    ) -> anyhow::Result<(String, Vec<&'static str>)> {
        let mut rows = Vec::new();
        if let Some(server) = self.server(former, is_whole)? {
            rows.push(("server", quoted(&server)));
        }
        // containerd takes certificates by their names until a file has hosts.
        if !former.contains_key("host") {
            if !certificates.ca.is_empty() && !former.contains_key("ca") {
                rows.push(("ca", certificates.ca_value()));
            }
            if !certificates.client.is_empty() && !former.contains_key("client") {
                rows.push(("client", certificates.client_value()));
            }
        }
        let lines = rows.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        Ok((lines, rows.into_iter().map(|(key, _)| key).collect()))
    }

    /// Returns the address of the registry if the file needs it and lacks it.
    fn server(&self, former: &Table, is_whole: bool) -> anyhow::Result<Option<String>> {
        let theirs = former.get("server").and_then(Value::as_str);
        match (theirs, &self.wanted.server) {
            (None, Some(server)) => Ok(Some(server.clone())),
            (None, None) if is_whole && self.registry == DOCKER => Ok(Some(DOCKER_SERVER.to_string())),
            (Some(theirs), Some(server)) if !hosts_toml::is_same_url(theirs, server) => {
                bail!("its server is {theirs}, not {server}: leave out --server, or use --force")
            }
            _ => Ok(None),
        }
    }

    fn notes(&self, roots: &Roots, text: &str, former: Option<&[u8]>) -> Vec<String> {
        let (folder, mut notes) = (self.place.folder.display(), Vec::new());
        if let Some(hidden) = self.place.hidden.as_ref().filter(|_| !self.wanted.force) {
            let hidden = hidden.folder.display();
            notes.push(format!(
                "{folder} hides {hidden} and repeats what it does: run the command again after a change of {hidden}"
            ));
        }
        let second = roots.dir.join(self.registry);
        if second != self.place.folder && second.is_dir() {
            notes.push(format!("containerd does not read {}, because it takes {folder} first", second.display()));
        }
        if former == Some(text.as_bytes()) && Marked::parse(text).is_foreign() {
            let first = hosts_toml::hosts(text).first().is_some_and(|host| self.is_mirror(host));
            let order = if first { "" } else { ". Another host comes before the mirror" };
            notes.push(format!("{folder} names the mirror in lines that shoal did not write, and they stay{order}"));
        }
        notes
    }

    fn is_mirror(&self, host: &str) -> bool {
        hosts_toml::is_same_url(host, &self.wanted.mirror)
    }
}

/// Returns what a hidden folder says apart from the mirror, and the certificates that containerd takes from it.
fn repeated(hidden: &Hidden) -> anyhow::Result<(String, Certificates)> {
    let bytes = files::read(&hidden.folder.join(FILE_NAME))?.unwrap_or_default();
    // containerd takes the certificates alone where it cannot read the file.
    let text = std::str::from_utf8(&bytes).unwrap_or_default().trim_start_matches('\u{feff}');
    let text = hosts_toml::relocate(&hosts_toml::without_mirror(text), &hidden.prefix).unwrap_or_default();
    let text = if text.trim().is_empty() { String::new() } else { text };
    Ok((text, folders::certificates(&hidden.folder, &hidden.prefix)?))
}
