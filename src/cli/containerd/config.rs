//! containerd's own configuration, read as containerd reads it: the file, its imports, and what CRI takes from both.
//!
//! Invariant: reading changes nothing. Files and bytes are bounded.

use super::files;
use super::folders::Roots;
use super::imports::{self, FILES_MAX};
use super::release::Release;
use super::toml_text::{first_position, line_number, message, table};
use anyhow::anyhow;
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// The folder of hosts.toml files that operators and documents use.
pub(crate) const CERTS_DIR: &str = "/etc/containerd/certs.d";
/// The folders of containerd 2.2 and later where no setting names others.
const CERTS_DIRS_DEFAULT: &str = "/etc/containerd/certs.d:/etc/docker/certs.d";
/// The first release 2.x with these folders.
const MINOR_WITH_DEFAULT: u32 = 2;
/// The first release 2.x that pulls through its transfer service.
const MINOR_WITH_TRANSFER: u32 = 1;
/// The first version of the file that only containerd 2.x reads.
const VERSION_OF_TWO: i64 = 3;

/// The plugins whose section `registry` CRI reads: in files of version 1, of version 2, and of later versions.
pub(crate) const PLUGINS: [&str; 3] = ["cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"];
pub(crate) const CRI_SHORT: usize = 0;
pub(crate) const CRI: usize = 1;
pub(crate) const IMAGES: usize = 2;

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) file: PathBuf,
    pub(crate) number: usize,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} of {}", self.number, self.file.display())
    }
}

/// What a plugin's section says of registries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Section {
    has_registry: bool,
    pub(crate) config_path: Option<(String, Line)>,
    pub(crate) mirrors: Option<Line>,
    /// TLS settings of a registry, which containerd 1.x refuses beside `config_path`.
    pub(crate) tls: Option<Line>,
    /// Whether CRI pulls without the transfer service.
    is_local: bool,
}

impl Section {
    fn read(file: &Path, text: &str, plugin: &DeTable<'_>) -> Self {
        let is_local = plugin.get("use_local_image_pull").and_then(|value| value.get_ref().as_bool()).unwrap_or(false);
        let Some(registry) = table(plugin, "registry") else { return Self { is_local, ..Self::default() } };
        let line_of = |table: &DeTable<'_>, key: &str| {
            let (key, value) = table.get_key_value(key)?;
            let is_set = match value.get_ref() {
                DeValue::Table(table) => !table.is_empty(),
                DeValue::String(text) => !text.is_empty(),
                _ => true,
            };
            let number = line_number(text, first_position(key, value));
            is_set.then(|| Line { file: file.to_path_buf(), number })
        };
        let configs = table(registry, "configs");
        let mut configs = configs.into_iter().flat_map(|configs| configs.values());
        let tls = configs.find_map(|config| line_of(config.get_ref().as_table()?, "tls"));
        let config_path = registry.get("config_path").and_then(|value| value.get_ref().as_str());
        let mirrors = line_of(registry, "mirrors");
        let falls_back =
            mirrors.is_some() || ["configs", "auths"].into_iter().any(|key| line_of(registry, key).is_some());
        Self {
            has_registry: true,
            config_path: config_path.map(str::to_string).zip(line_of(registry, "config_path")),
            mirrors,
            tls,
            is_local: is_local || falls_back,
        }
    }

    /// Returns what containerd 2.x makes of two sections: it merges them key by key.
    fn overlaid_by(self, later: Self) -> Self {
        Self {
            has_registry: self.has_registry || later.has_registry,
            config_path: later.config_path.or(self.config_path),
            mirrors: later.mirrors.or(self.mirrors),
            tls: later.tls.or(self.tls),
            is_local: self.is_local || later.is_local,
        }
    }
}

/// One file.
#[derive(Debug)]
struct ConfigFile {
    version: i64,
    imports: Vec<String>,
    /// The sections of [`PLUGINS`].
    sections: [Option<Section>; 3],
}

impl ConfigFile {
    fn read(path: &Path) -> anyhow::Result<Option<Self>> {
        let Some(bytes) = files::read(path)? else { return Ok(None) };
        let shown = path.display();
        let text = std::str::from_utf8(&bytes).map_err(|_| anyhow!("cannot read {shown}, because it is not UTF-8"))?;
        let document = DeTable::parse(text)
            .map_err(|error| anyhow!("cannot read {shown}, because it is not TOML: {}", message(&error, text)))?;
        let root = document.get_ref();
        let version = root.get("version").and_then(|value| value.get_ref().as_integer());
        let imports = root.get("imports").and_then(|value| value.get_ref().as_array());
        let imports = imports.into_iter().flat_map(|imports| imports.iter());
        let plugins = table(root, "plugins");
        let section = |id: &str| Some(Section::read(path, text, table(plugins?, id)?));
        Ok(Some(Self {
            version: version.and_then(|version| version.as_str().parse().ok()).unwrap_or(0),
            imports: imports.filter_map(|import| import.get_ref().as_str()).take(FILES_MAX).map(String::from).collect(),
            sections: PLUGINS.map(section),
        }))
    }

    /// Returns what containerd 2.x makes of the file: it moves the section of older versions to the newer plugin.
    fn for_two(&self) -> Section {
        let [short, cri, images] = self.sections.clone();
        let images = images.unwrap_or_default();
        let older = cri.or(short.filter(|_| self.version < 2)).filter(|_| self.version < VERSION_OF_TWO);
        match older.filter(|older| older.has_registry) {
            Some(older) => Section { is_local: older.is_local || images.is_local, ..older },
            None => images,
        }
    }
}

/// What one line of releases makes of a configuration.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) major: u32,
    minor: Option<u32>,
    pub(crate) section: Section,
}

impl View {
    /// Returns the folders that CRI searches, in its order.
    pub(crate) fn folders(&self) -> Vec<PathBuf> {
        let set = self.section.config_path.as_ref().map(|(folders, _)| folders.as_str());
        let default = Some(CERTS_DIRS_DEFAULT).filter(|_| self.has_default());
        set.or(default).unwrap_or_default().split(':').filter(|folder| !folder.is_empty()).map(PathBuf::from).collect()
    }

    /// Whether CRI searches folders that no setting names.
    pub(crate) fn has_default(&self) -> bool {
        let is_recent = self.minor.is_none_or(|minor| minor >= MINOR_WITH_DEFAULT);
        self.major > 1 && is_recent && self.section.config_path.is_none() && self.section.mirrors.is_none()
    }

    /// Whether CRI takes several folders as several. The transfer service takes them for the name of one.
    pub(crate) fn splits_lists(&self) -> bool {
        self.major == 1 || self.section.is_local || self.minor.is_some_and(|minor| minor < MINOR_WITH_TRANSFER)
    }

    /// Whether settings of the file exclude hosts.toml files.
    pub(crate) fn is_blocked(&self) -> bool {
        self.section.mirrors.is_some() || self.major == 1 && self.section.tls.is_some()
    }

    fn reads(&self, dir: &Path) -> bool {
        let folders = self.folders();
        let can_read = folders.len() == 1 || self.splits_lists();
        !self.is_blocked() && can_read && folders.iter().any(|folder| folder == dir)
    }
}

/// containerd's configuration.
#[derive(Debug)]
pub(crate) struct ContainerdConfig {
    pub(crate) file: PathBuf,
    files: Vec<ConfigFile>,
    /// Files that cannot be read.
    pub(crate) problems: Vec<String>,
}

impl ContainerdConfig {
    /// Reads the file and what it imports, in the order of containerd.
    pub(crate) fn read(file: &Path) -> Self {
        let mut config = Self { file: file.to_path_buf(), files: Vec::new(), problems: Vec::new() };
        let mut seen = BTreeSet::new();
        let mut pending = VecDeque::from([file.to_path_buf()]);
        while let Some(path) = pending.pop_front() {
            if seen.len() == FILES_MAX {
                config.problems.push(format!("{} imports more than {FILES_MAX} files", file.display()));
                break;
            }
            if !seen.insert(path.clone()) {
                continue;
            }
            match ConfigFile::read(&path) {
                Ok(Some(found)) => {
                    pending.extend(imports::resolve(&path, &found.imports));
                    config.files.push(found);
                }
                // containerd has defaults where there is no file, and does not start without an import.
                Ok(None) if path == file => {}
                Ok(None) => {
                    config.problems.push(format!("{} imports {}, which does not exist", file.display(), path.display()))
                }
                Err(error) => config.problems.push(format!("{error:#}")),
            }
        }
        config
    }

    /// Whether there is no file.
    pub(crate) fn is_absent(&self) -> bool {
        self.files.is_empty() && self.problems.is_empty()
    }

    /// Returns the highest version of the files, 0 where none says its version.
    pub(crate) fn version(&self) -> i64 {
        self.files.iter().map(|file| file.version).max().unwrap_or(0)
    }

    fn section(&self, major: u32) -> Section {
        if major > 1 {
            return self.files.iter().map(ConfigFile::for_two).fold(Section::default(), Section::overlaid_by);
        }
        // containerd 1.x takes the last file that has the plugin, and the last version that a file states.
        let version = self.files.iter().map(|file| file.version).rfind(|version| *version > 0);
        let plugin = if version.is_some_and(|version| version > 1) { CRI } else { CRI_SHORT };
        self.files.iter().rev().find_map(|file| file.sections[plugin].clone()).unwrap_or_default()
    }

    /// Returns what the releases that may run here make of the configuration.
    pub(crate) fn views(&self, release: Option<Release>) -> Vec<View> {
        // The program in the path may be another one than the one that reads this configuration.
        let is_two = self.version() >= VERSION_OF_TWO;
        let release = release.filter(|release| release.major > 1 || !is_two);
        let majors: &[u32] = match release {
            Some(release) if release.major > 1 => &[2],
            Some(_) => &[1],
            None if is_two => &[2],
            None => &[1, 2],
        };
        let minor = release.map(|release| release.minor);
        majors.iter().map(|major| View { major: *major, minor, section: self.section(*major) }).collect()
    }

    /// Returns the lines that set `config_path` in sections of other versions.
    pub(crate) fn unused_paths(&self, views: &[View]) -> Vec<(Line, &'static str)> {
        let is_used = |line: &Line| {
            views.iter().any(|view| view.section.config_path.as_ref().is_some_and(|(_, used)| used == line))
        };
        let sections = self.files.iter().flat_map(|file| file.sections.iter().zip(PLUGINS));
        let lines = sections.filter_map(|(section, plugin)| {
            let (_, line) = section.as_ref()?.config_path.as_ref()?;
            Some((line.clone(), plugin))
        });
        lines.filter(|(line, _)| !is_used(line)).collect()
    }

    /// Returns how containerd reads a folder, by default the first folder that it searches.
    pub(crate) fn reading(&self, dir: Option<&Path>, release: Option<Release>) -> Reading {
        let views = self.views(release);
        let all = views.iter().rev().map(View::folders).find(|folders| !folders.is_empty()).unwrap_or_default();
        let first = || all.first().cloned().unwrap_or_else(|| PathBuf::from(CERTS_DIR));
        let dir = dir.map_or_else(first, Path::to_path_buf);
        let reads: Vec<bool> = views.iter().map(|view| view.reads(&dir)).collect();
        let is_read = match reads.as_slice() {
            _ if !self.problems.is_empty() => None,
            reads if reads.iter().all(|reads| *reads) => Some(true),
            reads if reads.iter().any(|reads| *reads) => None,
            _ => Some(false),
        };
        let all = if all.contains(&dir) { all } else { vec![dir.clone()] };
        Reading { roots: Roots { dir, all }, is_read, views }
    }
}

/// How containerd reads a folder of hosts.toml files.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) roots: Roots,
    /// Whether CRI reads the folder. `None` if that depends on the release, or a file cannot be read.
    pub(crate) is_read: Option<bool>,
    pub(crate) views: Vec<View>,
}

impl Reading {
    /// Returns the line that names the folder.
    pub(crate) fn line(&self) -> Option<&Line> {
        self.views.iter().find_map(|view| view.section.config_path.as_ref()).map(|(_, line)| line)
    }
}
