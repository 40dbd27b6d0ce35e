//! A blob from a registry to a file: hashed while it arrives, and continued where it broke off, also after a restart.
//!
//! Invariant: a finished file has the bytes of its digest. A partial file is a beginning of these bytes, or is
//! discarded.

use super::error::{Patience, RegistryError};
use super::repository::Repository;
use aws_lc_rs::digest::{Context, SHA256};
use hyper::StatusCode;
use shoal_proto::image::{Digest, ImageBlob};
use shoal_service::http_client::transport::HttpResponse;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that are collected before they are hashed and written.
const BLOCK_BYTES: usize = 1 << 20;

/// A file that is being filled, and the hash of its bytes so far.
struct Partial {
    path: PathBuf,
    file: Arc<File>,
    sha256: Context,
    len: u64,
}

impl Partial {
    /// Continues an existing file, or creates one. Blocks while it hashes the bytes.
    fn open(path: &Path, size: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut partial =
            Self { path: path.to_path_buf(), file: Arc::new(file), sha256: Context::new(&SHA256), len: 0 };
        if partial.file.metadata()?.len() > size {
            partial.restart()?;
        }
        let mut buffer = vec![0; BLOCK_BYTES];
        loop {
            let read = partial.file.read_at(&mut buffer, partial.len)?;
            if read == 0 {
                return Ok(partial);
            }
            partial.sha256.update(&buffer[..read]);
            partial.len += read as u64;
        }
    }

    /// Discards all bytes.
    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.sha256 = Context::new(&SHA256);
        self.len = 0;
        Ok(())
    }

    /// Writes and hashes a block on another thread.
    async fn append(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        let (file, mut sha256, at, len) = (self.file.clone(), self.sha256.clone(), self.len, bytes.len() as u64);
        let written = blocking(move || {
            file.write_all_at(&bytes, at)?;
            sha256.update(&bytes);
            io::Result::Ok(sha256)
        });
        self.sha256 = written.await?;
        self.len += len;
        Ok(())
    }

    fn disk_error(&self, source: io::Error) -> RegistryError {
        RegistryError::Disk { path: self.path.clone(), source }
    }
}

/// Runs blocking work on another thread.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

impl Repository {
    /// Fetches a blob into the file `whole`, through the file `part`.
    ///
    /// `received` counts the blob's bytes, including those that `part` had before.
    ///
    /// # Errors
    /// Returns an error if the registry does not serve the blob with its digest, or the disk fails.
    pub(crate) async fn fetch(
        &self,
        blob: &ImageBlob,
        part: &Path,
        whole: &Path,
        received: &AtomicU64,
    ) -> Result<(), RegistryError> {
        let disk = |source| RegistryError::Disk { path: part.to_path_buf(), source };
        let (path, size) = (part.to_path_buf(), blob.size);
        let mut partial = blocking(move || Partial::open(&path, size)).await.map_err(disk)?;
        let is_resumed = partial.len > 0;
        received.fetch_add(partial.len, Ordering::Relaxed);
        let mut patience = Patience::new(self.patience);
        while partial.len < blob.size {
            let before = partial.len;
            let streamed = self.stream(blob, &mut partial, received).await;
            let Err(error) = streamed else { continue };
            if partial.len > before {
                // The blob advances. Only the time without any progress counts.
                patience = Patience::new(self.patience);
            }
            patience.after(error).await?;
        }
        let found = partial.sha256.clone().finish();
        if found.as_ref() != blob.digest.0 {
            fs::remove_file(part).map_err(disk)?;
            received.fetch_sub(partial.len, Ordering::Relaxed);
            if is_resumed {
                // The old bytes may have been damaged, so the blob is fetched once more from its beginning.
                return Box::pin(self.fetch(blob, part, whole, received)).await;
            }
            let mut bytes = [0; 32];
            bytes.copy_from_slice(found.as_ref());
            let (registry, found) = (self.exchange.registry().to_string(), Digest(bytes));
            return Err(RegistryError::WrongDigest { registry, expected: blob.digest, found });
        }
        fs::rename(part, whole).map_err(disk)
    }

    /// Sends one request and appends what it brings. Returns once the blob is whole or the request ended in an error.
    async fn stream(&self, blob: &ImageBlob, partial: &mut Partial, received: &AtomicU64) -> Result<(), RegistryError> {
        let mut answer = match self.blob_from(&blob.digest, partial.len).await {
            Err(RegistryError::Refused { status: 416, .. }) if partial.len > 0 => {
                return Err(self.malformed(format!("{} is shorter than its manifest says", blob.digest)));
            }
            answer => answer?,
        };
        self.check_range(blob, &answer, partial, received)?;
        loop {
            let Block { bytes, end } = read_block(&mut answer).await;
            if partial.len + bytes.len() as u64 > blob.size {
                let why = format!("{} is longer than the {} bytes that its manifest says", blob.digest, blob.size);
                return Err(self.malformed(why));
            }
            let len = bytes.len() as u64;
            partial.append(bytes).await.map_err(|source| partial.disk_error(source))?;
            received.fetch_add(len, Ordering::Relaxed);
            match end {
                BlockEnd::More => {}
                BlockEnd::Failed(error) => return Err(error),
                BlockEnd::Last if partial.len < blob.size => {
                    return Err(RegistryError::Truncated {
                        registry: self.exchange.registry().to_string(),
                        digest: blob.digest,
                        received: partial.len,
                        expected: blob.size,
                    });
                }
                BlockEnd::Last => return Ok(()),
            }
        }
    }

    /// Checks that the answer continues where the file ends. Discards the file if the answer begins at the first byte.
    fn check_range(
        &self,
        blob: &ImageBlob,
        answer: &HttpResponse,
        partial: &mut Partial,
        received: &AtomicU64,
    ) -> Result<(), RegistryError> {
        if partial.len == 0 {
            return Ok(());
        }
        if answer.status == StatusCode::PARTIAL_CONTENT {
            let range = answer.header("content-range").unwrap_or_default();
            if range.starts_with(&format!("bytes {}-", partial.len)) {
                return Ok(());
            }
            return Err(
                self.malformed(format!("it sent the range `{range}` of {}, not the requested one", blob.digest))
            );
        }
        received.fetch_sub(partial.len, Ordering::Relaxed);
        partial.restart().map_err(|source| partial.disk_error(source))
    }
}

/// Bytes of an answer, and what follows them.
struct Block {
    bytes: Vec<u8>,
    end: BlockEnd,
}

enum BlockEnd {
    More,
    Last,
    Failed(RegistryError),
}

/// Reads up to [`BLOCK_BYTES`]. Bytes that arrived before an error are returned with it, so that they are not lost.
async fn read_block(answer: &mut HttpResponse) -> Block {
    let mut bytes = Vec::with_capacity(BLOCK_BYTES);
    while bytes.len() < BLOCK_BYTES {
        match answer.next().await {
            Ok(Some(more)) => bytes.extend_from_slice(&more),
            Ok(None) => return Block { bytes, end: BlockEnd::Last },
            Err(error) => return Block { bytes, end: BlockEnd::Failed(error.into()) },
        }
    }
    Block { bytes, end: BlockEnd::More }
}
