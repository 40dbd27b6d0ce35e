//! The release tree that the demo pushes by default: binaries, libraries, assets, translations, configurations, links.
//!
//! Invariant: the same seed and size make the same tree, byte for byte.

use anyhow::Context;
use shoal_service::units::ByteSize;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Small files: configurations, translations and scripts.
const SMALL_FILES: u64 = 240;
/// The size of a small file is between this value and four times this value, bytes.
const SMALL_BYTES: u64 = 512;
/// The largest share of the size that small files take. It matters for tiny trees only.
const SMALL_PERCENT: u64 = 10;
/// Medium files: libraries and compressed assets.
const MEDIUM_FILES: u64 = 60;
/// The share of the size in medium files.
const MEDIUM_PERCENT: u64 = 30;
/// Large files, with their part of the size that small and medium files leave.
const LARGE_FILES: [(&str, u64); 4] =
    [("bin/edge-server", 20), ("share/geo.db", 40), ("share/rules.db", 25), ("share/video-intro.mp4", 15)];
/// The length of the random block of which large files are written.
const BLOCK: usize = 1 << 20;

/// What a generated tree contains.
pub(crate) struct Release {
    pub(crate) path: PathBuf,
    files: u64,
    links: u64,
    bytes: u64,
}

impl std::fmt::Display for Release {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let size = ByteSize(self.bytes).rounded();
        write!(f, "a generated release ({} files and {} links, {size})", self.files, self.links)
    }
}

/// Writes the files of one tree from one stream of random bytes.
struct Writer {
    root: PathBuf,
    random: blake3::OutputReader,
    files: u64,
    bytes: u64,
}

impl Writer {
    /// A number below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        let mut bytes = [0; 8];
        self.random.fill(&mut bytes);
        u64::from_le_bytes(bytes) % bound.max(1)
    }

    fn create(&mut self, name: &str, mode: u32) -> anyhow::Result<File> {
        let path = self.root.join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        file.set_permissions(Permissions::from_mode(mode))?;
        self.files += 1;
        Ok(file)
    }

    /// Writes a file of incompressible bytes, so that no two blocks are equal.
    fn binary(&mut self, name: &str, mode: u32, size: u64) -> anyhow::Result<()> {
        let mut file = self.create(name, mode)?;
        let mut block = vec![0; BLOCK];
        let mut left = size;
        while left > 0 {
            let part = left.min(BLOCK as u64) as usize;
            self.random.fill(&mut block[..part]);
            file.write_all(&block[..part]).with_context(|| format!("cannot write {name}"))?;
            left -= part as u64;
        }
        self.bytes += size;
        Ok(())
    }

    /// Writes a file of `key = value` lines.
    fn text(&mut self, name: &str, mode: u32, size: u64) -> anyhow::Result<()> {
        let mut file = self.create(name, mode)?;
        let mut text = String::new();
        while (text.len() as u64) < size {
            let (key, value) = (self.below(1_000), self.below(1_000_000));
            text.push_str(&format!("upstream.{key}.weight = {value}\n"));
        }
        text.truncate(size as usize);
        file.write_all(text.as_bytes()).with_context(|| format!("cannot write {name}"))?;
        self.bytes += size;
        Ok(())
    }
}

/// The path and mode of the small file with a number.
fn small_file(number: u64) -> (String, u32) {
    match number % 4 {
        0 => (format!("etc/sites/site{number:03}.toml"), 0o640),
        1 => (format!("share/locale/l{:02}/messages{number:03}.txt", number % 24), 0o644),
        2 => (format!("share/www/pages/page{number:03}.html"), 0o644),
        _ => (format!("libexec/check{number:03}.sh"), 0o755),
    }
}

/// Generates a tree of `size` bytes below `root`, which must not exist.
///
/// # Errors
///
/// The disk is full, or the folder cannot be written.
pub(crate) fn generate(root: &Path, size: u64, seed: u64) -> anyhow::Result<Release> {
    let random = blake3::Hasher::new().update(b"shoal demo release").update(&seed.to_le_bytes()).finalize_xof();
    let mut writer = Writer { root: root.to_path_buf(), random, files: 0, bytes: 0 };
    let small = SMALL_BYTES.min(size * SMALL_PERCENT / 100 / (4 * SMALL_FILES));
    for number in 0..SMALL_FILES {
        let (name, mode) = small_file(number);
        let length = small + writer.below(3 * small);
        writer.text(&name, mode, length)?;
    }
    let medium = size * MEDIUM_PERCENT / 100 / MEDIUM_FILES;
    for number in 0..MEDIUM_FILES {
        let name =
            if number % 3 == 0 { format!("lib/libedge{number:02}.so.1") } else { format!("share/www/a{number:02}.br") };
        // Between half and one and a half of the mean, so that the sum stays near the part of medium files.
        let length = medium / 2 + writer.below(medium);
        writer.binary(&name, 0o644, length)?;
    }
    let rest = size.saturating_sub(writer.bytes);
    for (name, percent) in LARGE_FILES.into_iter().skip(1) {
        writer.binary(name, 0o644, rest * percent / 100)?;
    }
    // The first large file takes what rounding left, so that the tree has exactly the requested size.
    let (name, _) = LARGE_FILES[0];
    writer.binary(name, 0o755, size.saturating_sub(writer.bytes))?;
    let links = link(root)?;
    Ok(Release { path: root.to_path_buf(), files: writer.files, links, bytes: writer.bytes })
}

/// Adds the links that releases have: unversioned libraries, a default site, a start command. Returns their number.
fn link(root: &Path) -> anyhow::Result<u64> {
    let mut links = vec![
        ("etc/default.toml".to_string(), "sites/site000.toml".to_string()),
        ("bin/edge".to_string(), "edge-server".to_string()),
        ("share/locale/default".to_string(), "l01".to_string()),
    ];
    let libraries = (0..MEDIUM_FILES).step_by(3);
    links.extend(libraries.map(|number| (format!("lib/libedge{number:02}.so"), format!("libedge{number:02}.so.1"))));
    for (name, target) in &links {
        symlink(target, root.join(name)).with_context(|| format!("cannot create the link {name}"))?;
    }
    Ok(links.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::super::verify::{fingerprint, matches};
    use super::*;

    #[test]
    fn the_same_seed_and_size_make_the_same_tree() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, size, seed| generate(&dir.path().join(name), size, seed).unwrap();
        let first = make("first", 8 << 20, 1);
        assert_eq!(first.bytes, 8 << 20);
        let truth = fingerprint(&first.path).unwrap();
        matches(&truth, &make("second", 8 << 20, 1).path).unwrap();
        assert!(matches(&truth, &make("other", 8 << 20, 2).path).is_err());
        // Sizes too small for the parts still add up.
        assert_eq!([0u64, 1, 1000].map(|size| make(&size.to_string(), size, 1).bytes), [0, 1, 1000]);
    }
}
