//! A blob from a registry to a file: streamed, hashed on the way, continued where it broke off, also after a restart.
//!
//! Invariant: a finished file has the bytes its digest says; a partial one is a beginning of them, or is thrown away.

use super::{Patience, RegistryError, Repository, http::Answer, passing};
use aws_lc_rs::digest::{Context, SHA256};
use hyper::StatusCode;
use shoal_proto::image::{Digest, ImageBlob};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes gathered before they are hashed and written.
const BLOCK_BYTES: usize = 1 << 20;

/// A file being filled, and the hash of what is in it.
struct Partial {
    path: PathBuf,
    file: File,
    sha256: Context,
    len: u64,
}

impl Partial {
    /// Continues what is there. Blocks while it hashes it.
    fn open(path: &Path, size: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut made = Self { path: path.to_path_buf(), file, sha256: Context::new(&SHA256), len: 0 };
        if made.file.metadata()?.len() > size {
            made.restart()?;
        }
        let mut buffer = vec![0; BLOCK_BYTES];
        loop {
            let read = made.file.read(&mut buffer)?;
            if read == 0 {
                return Ok(made);
            }
            made.sha256.update(&buffer[..read]);
            made.len += read as u64;
        }
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.sha256 = Context::new(&SHA256);
        self.len = 0;
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.sha256.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }
}

/// Runs what blocks elsewhere.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

impl Repository {
    /// Fetches a blob into `done`, by way of `part`. `got` counts its bytes, those that were there before too.
    pub(crate) async fn fetch(
        &self,
        blob: &ImageBlob,
        part: &Path,
        done: &Path,
        got: &AtomicU64,
    ) -> Result<(), RegistryError> {
        let fault = |source| RegistryError::Disk { path: part.display().to_string(), source };
        let (path, size) = (part.to_path_buf(), blob.size);
        let mut partial = blocking(move || Partial::open(&path, size)).await.map_err(fault)?;
        let resumed = partial.len > 0;
        got.fetch_add(partial.len, Ordering::Relaxed);
        let mut patience = Patience::new(self.patience);
        while partial.len < blob.size {
            let before = partial.len;
            let (back, error) = self.stream(blob, partial, got).await;
            partial = back;
            let Some(error) = error else { continue };
            if partial.len > before {
                // It moves: what counts is the time that brings nothing.
                patience = Patience::new(self.patience);
            }
            patience.after(error).await?;
        }
        let found = partial.sha256.clone().finish();
        if found.as_ref() != blob.digest.0 {
            fs::remove_file(part).map_err(fault)?;
            got.fetch_sub(partial.len, Ordering::Relaxed);
            if resumed {
                // What was there may have been damaged.
                return Box::pin(self.fetch(blob, part, done, got)).await;
            }
            let mut bytes = [0; 32];
            bytes.copy_from_slice(found.as_ref());
            let (registry, found) = (self.registry.clone(), Digest(bytes).to_string());
            return Err(RegistryError::WrongDigest { registry, expected: blob.digest, found });
        }
        fs::rename(part, done).map_err(fault)
    }

    /// Takes what one request brings.
    async fn stream(
        &self,
        blob: &ImageBlob,
        mut partial: Partial,
        got: &AtomicU64,
    ) -> (Partial, Option<RegistryError>) {
        let mut answer = match self.blob_from(&blob.digest, partial.len).await {
            Ok(answer) => answer,
            Err(RegistryError::Refused { status: 416, .. }) if partial.len > 0 => {
                return (partial, Some(self.malformed(format!("{} is shorter than its manifest says", blob.digest))));
            }
            Err(error) => return (partial, Some(error)),
        };
        if let Some(error) = self.fit(blob, &answer, &mut partial, got) {
            return (partial, Some(error));
        }
        loop {
            let (block, end) = gather(&mut answer).await;
            if partial.len + block.len() as u64 > blob.size {
                let why = format!("{} is longer than the {} bytes its manifest says", blob.digest, blob.size);
                return (partial, Some(self.malformed(why)));
            }
            let len = block.len() as u64;
            let (back, written) = blocking(move || {
                let written = partial.append(&block);
                (partial, written)
            })
            .await;
            partial = back;
            if let Err(source) = written {
                let path = partial.path.display().to_string();
                return (partial, Some(RegistryError::Disk { path, source }));
            }
            got.fetch_add(len, Ordering::Relaxed);
            match end {
                End::More => {}
                End::Broken(error) => return (partial, Some(error)),
                End::Whole if partial.len < blob.size => {
                    let why = format!("{} ended after {} of {} bytes", blob.digest, partial.len, blob.size);
                    return (partial, Some(RegistryError::Unreachable(why)));
                }
                End::Whole => return (partial, None),
            }
        }
    }

    /// Whether the answer continues where we are; one that begins anew is taken so.
    fn fit(&self, blob: &ImageBlob, answer: &Answer, partial: &mut Partial, got: &AtomicU64) -> Option<RegistryError> {
        if partial.len == 0 {
            return None;
        }
        if answer.status == StatusCode::PARTIAL_CONTENT {
            let range = answer.header("content-range").unwrap_or_default();
            let fits = range.starts_with(&format!("bytes {}-", partial.len));
            return (!fits).then(|| self.malformed(format!("`{range}` is not the range of {} asked for", blob.digest)));
        }
        got.fetch_sub(partial.len, Ordering::Relaxed);
        let path = partial.path.display().to_string();
        partial.restart().err().map(|source| RegistryError::Disk { path, source })
    }
}

/// What follows a block.
enum End {
    More,
    Whole,
    Broken(RegistryError),
}

/// Reads up to a block; what came before an error comes with it.
async fn gather(answer: &mut Answer) -> (Vec<u8>, End) {
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    while block.len() < BLOCK_BYTES {
        match answer.next().await {
            Ok(Some(bytes)) => block.extend_from_slice(&bytes),
            Ok(None) => return (block, End::Whole),
            Err(error) => return (block, End::Broken(passing(error))),
        }
    }
    (block, End::More)
}
