//! What stands between containerd and its hosts.toml files, and what to do about it.
//!
//! Invariant: no advice, followed, keeps containerd or its CRI plugin from starting.

use super::config::{CERTS_DIR, CRI, CRI_SHORT, ContainerdConfig, IMAGES, Line, PLUGINS, Reading, View};
use std::path::Path;

/// Something that keeps containerd from reading the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    /// Whether containerd or its CRI plugin does not start.
    pub(crate) is_failure: bool,
    pub(crate) found: String,
    /// What to do.
    pub(crate) remedy: String,
}

impl Note {
    fn warning(found: String, remedy: impl Into<String>) -> Self {
        Self { is_failure: false, found, remedy: remedy.into() }
    }

    fn failure(found: String, remedy: impl Into<String>) -> Self {
        Self { is_failure: true, found, remedy: remedy.into() }
    }
}

/// Returns what keeps containerd from reading a folder.
pub(crate) fn notes(config: &ContainerdConfig, reading: &Reading) -> Vec<Note> {
    let advisor = Advisor { config, reading };
    let problems = config.problems.iter().map(|problem| {
        Note::warning(problem.clone(), "correct it: shoal cannot tell whether containerd reads the hosts.toml files")
    });
    let mut notes: Vec<Note> = problems.collect();
    notes.extend(advisor.mirrors());
    notes.extend(advisor.tls());
    if reading.is_read == Some(true) {
        return notes;
    }
    notes.extend(advisor.unused_paths());
    // The setting is the last step. Those above come first.
    if config.problems.is_empty() && !reading.views.iter().any(View::is_blocked) {
        notes.extend(advisor.folder());
    }
    notes
}

struct Advisor<'a> {
    config: &'a ContainerdConfig,
    reading: &'a Reading,
}

impl Advisor<'_> {
    fn view(&self, has: impl Fn(&View) -> bool) -> Option<&View> {
        self.reading.views.iter().find(|&view| has(view))
    }

    /// Returns how to name the folder in the configuration.
    fn setting(&self) -> String {
        let (file, dir) = (self.config.file.display(), self.reading.roots.dir.display());
        let is_two = self.view(|view| view.major == 1).is_none();
        let (version, plugin) = match (self.config.is_absent(), self.config.version()) {
            (true, _) if is_two => ("create it with version = 3, ", IMAGES),
            (true, _) => ("create it with version = 2, ", CRI),
            (false, ..=1) => ("", CRI_SHORT),
            (false, 2) => ("", CRI),
            (false, _) => ("", IMAGES),
        };
        let section = format!("[plugins.\"{}\".registry]", PLUGINS[plugin]);
        format!("{version}set config_path = \"{dir}\" in {section} of {file}, and restart containerd")
    }

    /// `registry.mirrors` and hosts.toml files exclude each other.
    fn mirrors(&self) -> Option<Note> {
        let view = self.view(|view| view.section.mirrors.is_some())?;
        let mirrors = view.section.mirrors.as_ref()?;
        let dir = self.reading.roots.dir.display();
        let steps = format!("write each mirror to a hosts.toml file below {dir}, then remove registry.mirrors");
        Some(match &view.section.config_path {
            Some((_, path)) => Note::failure(
                format!("{mirrors} sets registry.mirrors and {path} config_path, so the CRI plugin does not start"),
                format!("{steps}, and restart containerd"),
            ),
            None => Note::warning(
                format!("{mirrors} sets registry.mirrors, so containerd reads no hosts.toml file"),
                format!("{steps}. Only after that, {}", self.setting()),
            ),
        })
    }

    /// The TLS settings of `registry.configs` exclude hosts.toml files too, in containerd 1.x.
    fn tls(&self) -> Option<Note> {
        let view = self.view(|view| view.section.tls.is_some())?;
        let tls = view.section.tls.as_ref()?;
        let steps = "name the certificates as ca and client in the hosts.toml of the registry, and remove this table";
        Some(match (view.major, &view.section.config_path) {
            (1, Some((_, path))) => Note::failure(
                format!("{tls} sets registry.configs.tls and {path} config_path, so the CRI plugin does not start"),
                steps,
            ),
            (1, None) => Note::warning(
                format!("{tls} sets registry.configs.tls, which containerd refuses beside config_path"),
                format!("{steps}. Only after that, {}", self.setting()),
            ),
            _ => Note::warning(format!("{tls} sets registry.configs.tls, which containerd 2.x ignores"), steps),
        })
    }

    /// Settings in a section that containerd does not read.
    fn unused_paths(&self) -> Vec<Note> {
        let version = self.config.version();
        let note = |(line, plugin): (Line, &str)| {
            let found =
                format!("{line} sets config_path of {plugin}, which containerd does not read in version {version}");
            Note::warning(found, self.setting())
        };
        self.config.unused_paths(&self.reading.views).into_iter().map(note).collect()
    }

    /// Why containerd does not search the folder.
    fn folder(&self) -> Option<Note> {
        let dir = self.reading.roots.dir.display();
        if let Some((folders, line)) = self.reading.views.iter().find_map(|view| view.section.config_path.as_ref()) {
            let first = folders.split(':').next().unwrap_or_default();
            if folders.split(':').all(|folder| self.reading.roots.dir != Path::new(folder)) {
                let remedy = format!("run the command with --hosts-dir {first}, or {}", self.setting());
                return Some(Note::warning(format!("{line} names {folders}, not {dir}"), remedy));
            }
            let found =
                format!("{line} names several folders, of which the transfer service of containerd 2.x reads none");
            return Some(Note::warning(found, self.setting()));
        }
        Some(self.without_setting())
    }

    fn without_setting(&self) -> Note {
        let (file, dir) = (self.config.file.display(), self.reading.roots.dir.display());
        let cause = if self.config.is_absent() {
            format!("{file} does not exist")
        } else {
            format!("{file} sets no config_path")
        };
        let effect = match (self.view(|view| view.major == 1), self.view(View::has_default)) {
            (Some(_), None) => "containerd 1.x reads no hosts.toml file".to_string(),
            (Some(_), Some(_)) => {
                "neither containerd 1.x nor the transfer service of 2.x reads a hosts.toml file".into()
            }
            (None, None) => "containerd 2.0 and 2.1 read no hosts.toml file".to_string(),
            (None, Some(view)) if view.splits_lists() => format!("containerd reads {CERTS_DIR}, not {dir}"),
            (None, Some(_)) => "the transfer service of containerd 2.x reads no hosts.toml file".to_string(),
        };
        Note::warning(format!("{cause}, so {effect}"), self.setting())
    }
}
