//! An image in files: an OCI layout, as a folder or a tar archive, or what `docker save` writes.
//!
//! Invariant: nothing outside the folder or archive is ever opened, whatever names are in it: blobs are looked up by
//! digest, and names by the archive's own list.

use super::documents::{Choice, DOCUMENT_BYTES_MAX, Descriptor, DocumentError, Gather, IndexDocument, digest_of};
use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use serde::Deserialize;
use shoal_proto::image::{DOCKER_MANIFEST, Digest, ImageBlob, ImageIndex, Reference};
use shoal_store::BlobSource;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Files in one archive.
const ENTRIES_MAX: usize = 100_000;
/// Links followed from one name.
const LINKS_MAX: usize = 8;

/// Why files are no image, or not the one asked for.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A file cannot be read.
    #[error("{what}: {source}")]
    Io {
        /// The file.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Neither of the known forms.
    #[error("{0} is neither an OCI layout nor an archive of `docker save`; a compressed one has to be unpacked first")]
    Unknown(String),
    /// One of its files is not as it should be.
    #[error("{what}: {why}")]
    Malformed {
        /// The file.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// Several images, or one without a full name.
    #[error("say which image it is with --ref; it has: {0}")]
    Which(String),
    /// None of that name.
    #[error("there is no image {wanted} in it; it has: {has}")]
    NoSuch {
        /// What was asked for.
        wanted: Reference,
        /// What there is.
        has: String,
    },
    /// Its documents do not make an image.
    #[error(transparent)]
    Document(#[from] DocumentError),
}

fn fault<'a>(what: &'a str) -> impl FnOnce(io::Error) -> ArchiveError + 'a {
    move |source| ArchiveError::Io { what: what.to_string(), source }
}

fn malformed(what: &str, why: impl ToString) -> ArchiveError {
    ArchiveError::Malformed { what: what.to_string(), why: why.to_string() }
}

/// Files by name.
enum Files {
    Folder(PathBuf),
    Tar { file: Arc<File>, entries: BTreeMap<String, Entry> },
}

enum Entry {
    File { offset: u64, len: u64 },
    Link(String),
}

/// A name with its `.` and `..` worked out; `None` if it leads out of the archive.
fn normal(name: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!name.starts_with('/') && !parts.is_empty()).then(|| parts.join("/"))
}

impl Files {
    fn open(path: &Path) -> Result<Self, ArchiveError> {
        let what = path.display().to_string();
        let file = File::open(path).map_err(fault(&what))?;
        if file.metadata().map_err(fault(&what))?.is_dir() {
            return Ok(Self::Folder(path.to_path_buf()));
        }
        let mut entries = BTreeMap::new();
        let mut archive = tar::Archive::new(&file);
        let listed = archive.entries_with_seek().map_err(|_| ArchiveError::Unknown(what.clone()))?;
        for entry in listed {
            let entry = entry.map_err(|error| match entries.is_empty() {
                true => ArchiveError::Unknown(what.clone()),
                false => malformed(&what, error),
            })?;
            let Some(name) = std::str::from_utf8(&entry.path_bytes()).ok().and_then(normal) else { continue };
            let row = match entry.header().entry_type() {
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    Entry::File { offset: entry.raw_file_position(), len: entry.size() }
                }
                tar::EntryType::Symlink => {
                    let target = entry.link_name_bytes().and_then(|target| String::from_utf8(target.into()).ok());
                    let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
                    match target
                        .filter(|t| !t.starts_with('/'))
                        .and_then(|t| normal(&format!("{folder}/{t}").trim_start_matches('/').to_string()))
                    {
                        Some(target) => Entry::Link(target),
                        None => continue,
                    }
                }
                tar::EntryType::Link => {
                    match entry.link_name_bytes().and_then(|t| normal(std::str::from_utf8(&t).ok()?)) {
                        Some(target) => Entry::Link(target),
                        None => continue,
                    }
                }
                _ => continue,
            };
            entries.insert(name, row);
            if entries.len() > ENTRIES_MAX {
                return Err(malformed(&what, format!("more than {ENTRIES_MAX} files")));
            }
        }
        Ok(Self::Tar { file: Arc::new(file), entries })
    }

    /// A file's bytes and length. The name is one of ours, or of the archive's own list.
    fn reader(&self, name: &str) -> io::Result<(Box<dyn Read + Send>, u64)> {
        match self {
            Self::Folder(folder) => {
                let file = File::open(folder.join(name))?;
                let meta = file.metadata()?;
                if !meta.is_file() {
                    return Err(io::Error::other("not a regular file"));
                }
                Ok((Box::new(file), meta.len()))
            }
            Self::Tar { file, entries } => {
                let mut at = name.to_string();
                for _ in 0..LINKS_MAX {
                    match entries.get(&at) {
                        Some(Entry::Link(target)) => at = target.clone(),
                        Some(Entry::File { offset, len }) => {
                            let section = Section { file: file.clone(), at: *offset, left: *len };
                            return Ok((Box::new(section), *len));
                        }
                        None => break,
                    }
                }
                Err(io::Error::new(io::ErrorKind::NotFound, "not in the archive"))
            }
        }
    }

    fn small(&self, name: &str) -> Result<Vec<u8>, ArchiveError> {
        let (reader, len) = self.reader(name).map_err(fault(name))?;
        if len > DOCUMENT_BYTES_MAX {
            return Err(malformed(name, format!("{len} bytes, the limit is {DOCUMENT_BYTES_MAX}")));
        }
        let mut bytes = Vec::new();
        reader.take(DOCUMENT_BYTES_MAX).read_to_end(&mut bytes).map_err(fault(name))?;
        Ok(bytes)
    }

    fn has(&self, name: &str) -> bool {
        self.reader(name).is_ok()
    }
}

/// A part of a file.
struct Section {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for Section {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buf[..want], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// An image found in files.
pub struct LocalImage {
    /// What it is.
    pub index: ImageIndex,
    /// Its name, parsed.
    pub reference: Reference,
    files: Files,
    documents: BTreeMap<Digest, Bytes>,
    /// Names of blobs that are not named by their digest.
    names: BTreeMap<Digest, String>,
}

impl LocalImage {
    /// Finds the image of this name, or the only one there is.
    pub fn open(path: &Path, wanted: Option<&Reference>, choice: &Choice) -> Result<Self, ArchiveError> {
        let files = Files::open(path)?;
        if files.has("index.json") && files.has("oci-layout") {
            Self::of_layout(files, wanted, choice)
        } else if matches!(files, Files::Tar { .. }) && files.has("manifest.json") {
            Self::of_docker(files, wanted, choice)
        } else {
            Err(ArchiveError::Unknown(path.display().to_string()))
        }
    }

    /// A blob's bytes.
    pub fn source(&self, blob: &ImageBlob) -> io::Result<BlobSource> {
        if let Some(bytes) = self.documents.get(&blob.digest) {
            return Ok(BlobSource::Read(Box::new(Cursor::new(bytes.clone()))));
        }
        let name = self.names.get(&blob.digest).cloned().unwrap_or_else(|| blob_name(&blob.digest));
        Ok(BlobSource::Read(self.files.reader(&name)?.0))
    }

    fn of_layout(files: Files, wanted: Option<&Reference>, choice: &Choice) -> Result<Self, ArchiveError> {
        let index: IndexDocument =
            serde_json::from_slice(&files.small("index.json")?).map_err(|error| malformed("index.json", error))?;
        let (reference, rows) = pick(index.manifests, wanted, named_in_layout)?;
        // A layout may name the platforms of one image one by one.
        let root = match &choice.of(&rows)?[..] {
            [root] => (*root).clone(),
            _ => return Err(malformed("index.json", "several images of that name: choose one with --platform")),
        };
        let mut gather = Gather::new(root, choice.clone())?;
        while let Some(next) = gather.next() {
            let bytes = files.small(&blob_name(&next.digest))?;
            gather.bring(bytes.into())?;
        }
        let (index, documents) = gather.finish(&reference);
        Ok(Self { index, reference, files, documents, names: BTreeMap::new() })
    }

    fn of_docker(files: Files, wanted: Option<&Reference>, choice: &Choice) -> Result<Self, ArchiveError> {
        let saved: Vec<Saved> = serde_json::from_slice(&files.small("manifest.json")?)
            .map_err(|error| malformed("manifest.json", error))?;
        let (reference, rows) = pick(saved, wanted, |row| row.tags.clone().unwrap_or_default())?;
        let saved = &rows[0];
        let config = files.small(&inside(&saved.config)?)?;
        let parsed: Config = serde_json::from_slice(&config).map_err(|error| malformed(&saved.config, error))?;
        if parsed.rootfs.diff_ids.len() != saved.layers.len() {
            return Err(malformed(&saved.config, "it does not have as many layers as manifest.json"));
        }
        let mut names = BTreeMap::new();
        let mut layers = Vec::new();
        for (name, diff_id) in saved.layers.iter().zip(&parsed.rootfs.diff_ids) {
            let layer = docker_layer(&files, &inside(name)?, *diff_id)?;
            names.insert(layer.digest, inside(name)?);
            layers.push(layer);
        }
        let config_blob = ImageBlob {
            digest: digest_of(&config),
            media_type: "application/vnd.docker.container.image.v1+json".into(),
            size: config.len() as u64,
        };
        let manifest = Bytes::from(docker_manifest(&config_blob, &layers));
        let root = Descriptor {
            media_type: DOCKER_MANIFEST.into(),
            digest: digest_of(&manifest),
            size: manifest.len() as u64,
            platform: None,
            annotations: BTreeMap::new(),
        };
        let mut gather = Gather::new(root, choice.clone())?;
        gather.bring(manifest)?;
        let (index, mut documents) = gather.finish(&reference);
        documents.insert(config_blob.digest, config.into());
        Ok(Self { index, reference, files, documents, names })
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn inside(name: &str) -> Result<String, ArchiveError> {
    normal(name).ok_or_else(|| malformed("manifest.json", format!("`{name}` leads out of the archive")))
}

/// The images of the wanted name, or of the only one there is; and the name.
fn pick<T>(
    all: Vec<T>,
    wanted: Option<&Reference>,
    names_of: impl Fn(&T) -> Vec<String>,
) -> Result<(Reference, Vec<T>), ArchiveError> {
    let full = |name: &String| {
        // A lone tag would read as an image of Docker's own library.
        let parsed = name.contains('/').then(|| name.parse::<Reference>().ok()).flatten();
        parsed.or_else(|| name.contains(':').then(|| name.parse().ok()).flatten())
    };
    let names: Vec<Vec<String>> = all.iter().map(&names_of).collect();
    let has = || names.concat().join(", ");
    let rows =
        |keep: &dyn Fn(&String) -> bool| -> Vec<bool> { names.iter().map(|names| names.iter().any(keep)).collect() };
    let keep = |flags: Vec<bool>, all: Vec<T>| -> Vec<T> {
        all.into_iter().zip(flags).filter(|(_, keep)| *keep).map(|(row, _)| row).collect()
    };
    match wanted {
        Some(wanted) => {
            let by_name = rows(&|name| full(name).as_ref() == Some(wanted));
            let by_tag = rows(&|name| full(name).is_none() && Some(name) == wanted.tag.as_ref());
            let flags = if by_name.contains(&true) { by_name } else { by_tag };
            let named: std::collections::BTreeSet<&String> = names.iter().flatten().collect();
            if flags.contains(&true) {
                return Ok((wanted.clone(), keep(flags, all)));
            }
            // The only image there is can be given any name, if it has no full one of its own.
            if !all.is_empty() && named.len() <= 1 && named.iter().all(|name| full(name).is_none()) {
                return Ok((wanted.clone(), all));
            }
            Err(ArchiveError::NoSuch { wanted: wanted.clone(), has: has() })
        }
        None => {
            let references: std::collections::BTreeSet<Reference> = names.iter().flatten().filter_map(full).collect();
            match &references.iter().collect::<Vec<_>>()[..] {
                [only] if names.iter().all(|names| names.iter().any(|name| full(name).as_ref() == Some(only))) => {
                    Ok(((*only).clone(), all))
                }
                _ => Err(ArchiveError::Which(has())),
            }
        }
    }
}

fn named_in_layout(row: &Descriptor) -> Vec<String> {
    let by = |key: &str| row.annotations.get(key).cloned();
    by("io.containerd.image.name").or_else(|| by("org.opencontainers.image.ref.name")).into_iter().collect()
}

/// A row of `manifest.json`.
#[derive(Deserialize)]
struct Saved {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags")]
    tags: Option<Vec<String>>,
    #[serde(rename = "Layers")]
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

/// A layer as `docker save` left it. The digest of a plain one is in the configuration, and is checked as it is taken in.
fn docker_layer(files: &Files, name: &str, diff_id: Digest) -> Result<ImageBlob, ArchiveError> {
    let (mut reader, size) = files.reader(name).map_err(fault(name))?;
    let mut magic = [0; 2];
    let mut held = 0;
    while held < 2 {
        match reader.read(&mut magic[held..]).map_err(fault(name))? {
            0 => break,
            read => held += read,
        }
    }
    if magic != [0x1f, 0x8b] {
        let media_type = "application/vnd.docker.image.rootfs.diff.tar".into();
        return Ok(ImageBlob { digest: diff_id, media_type, size });
    }
    let mut sha256 = Context::new(&SHA256);
    sha256.update(&magic);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer).map_err(fault(name))? {
            0 => break,
            read => sha256.update(&buffer[..read]),
        }
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(sha256.finish().as_ref());
    let media_type = "application/vnd.docker.image.rootfs.diff.tar.gzip".into();
    Ok(ImageBlob { digest: Digest(digest), media_type, size })
}

/// The manifest of a saved image, which has none: the same bytes for the same image, whoever makes it.
fn docker_manifest(config: &ImageBlob, layers: &[ImageBlob]) -> String {
    let row = |blob: &ImageBlob| {
        format!(r#"{{"mediaType":"{}","size":{},"digest":"{}"}}"#, blob.media_type, blob.size, blob.digest)
    };
    let layers: Vec<String> = layers.iter().map(row).collect();
    let (config, layers) = (row(config), layers.join(","));
    format!(r#"{{"schemaVersion":2,"mediaType":"{DOCKER_MANIFEST}","config":{config},"layers":[{layers}]}}"#)
}

#[cfg(test)]
mod tests;
