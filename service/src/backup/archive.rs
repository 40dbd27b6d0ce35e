//! The format of an archive.
//!
//! ```text
//! "shoal backup 1\n"   then one line of JSON: role, time, whether contents are included
//! records              kind u8 | name length u16 LE | body length u64 LE | name | body
//!   1 row              name: the table; body: key length u32 LE | key | value
//!   2 file             name: the path within the state folder
//!   3 secret           name: which secret
//!   0 end              body: BLAKE3 of all bytes before this record
//! ```
//!
//! Invariant: the reader checks each length before it reserves memory, and the hash before it returns.

use super::error::BackupError;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Component, Path};

/// The first bytes of an archive.
pub(super) const MAGIC: &[u8] = b"shoal backup 1\n";
/// The longest name of a record, in bytes.
const NAME_BYTES_MAX: usize = 4096;
/// The longest row, secret or head, in bytes.
const BODY_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Bytes of a file that are copied at a time.
const COPY_BYTES: usize = 256 * 1024;

const END: u8 = 0;
const ROW: u8 = 1;
const FILE: u8 = 2;
const SECRET: u8 = 3;

/// The head of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The role whose state the archive holds.
    pub role: String,
    /// When the archive was made, in Unix seconds.
    pub created_at: u64,
    /// Whether the archive holds the payload of contents.
    pub contents: bool,
}

/// One part of an archive.
#[allow(missing_docs, reason = "the names say it")]
pub enum Record<'a> {
    /// A row of a table.
    Row { table: &'a str, key: &'a [u8], value: &'a [u8] },
    /// A file of the state folder. `path` is relative to the folder and does not leave it.
    File { path: &'a Path, len: u64, body: &'a mut dyn Read },
    /// A secret, such as a key file.
    Secret { name: &'a str, body: &'a [u8] },
}

/// Writes an archive.
pub struct Writer<W: Write> {
    out: W,
    hasher: blake3::Hasher,
}

impl<W: Write> Writer<W> {
    /// Starts an archive.
    ///
    /// # Errors
    ///
    /// Fails if `out` fails.
    pub fn new(out: W, head: &Head) -> Result<Self, BackupError> {
        let mut writer = Self { out, hasher: blake3::Hasher::new() };
        writer.put(MAGIC)?;
        writer.put(&serde_json::to_vec(head).map_err(io::Error::other)?)?;
        writer.put(b"\n")?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.out.write_all(bytes)
    }

    fn begin(&mut self, kind: u8, name: &str, len: u64) -> io::Result<()> {
        let name_len = u16::try_from(name.len()).ok().filter(|len| usize::from(*len) <= NAME_BYTES_MAX);
        let name_len = name_len.ok_or_else(|| io::Error::other("the name of a backup record is too long"))?;
        self.put(&[kind])?;
        self.put(&name_len.to_le_bytes())?;
        self.put(&len.to_le_bytes())?;
        self.put(name.as_bytes())
    }

    /// Appends a row of a table.
    ///
    /// # Errors
    ///
    /// Fails if the output fails or the table's name is too long.
    pub fn row(&mut self, table: &str, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.begin(ROW, table, 4 + key.len() as u64 + value.len() as u64)?;
        self.put(&(key.len() as u32).to_le_bytes())?;
        self.put(key)?;
        self.put(value)
    }

    /// Appends a file of the state folder. A file that is gone by now is left out.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be read or becomes shorter meanwhile, or the output fails.
    pub fn file(&mut self, folder: &Path, path: &Path) -> io::Result<()> {
        let file = match File::open(folder.join(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        let len = file.metadata()?.len();
        self.file_body(path, len, &mut file.take(len))
    }

    pub(super) fn file_body(&mut self, path: &Path, len: u64, body: &mut dyn Read) -> io::Result<()> {
        let name = path.to_str().ok_or_else(|| io::Error::other("a path in the state folder is not UTF-8"))?;
        self.begin(FILE, name, len)?;
        let (mut buffer, mut left) = (vec![0; COPY_BYTES], len);
        while left > 0 {
            let step = buffer.len().min(left as usize);
            body.read_exact(&mut buffer[..step])?;
            self.put(&buffer[..step])?;
            left -= step as u64;
        }
        Ok(())
    }

    /// Appends a secret.
    ///
    /// # Errors
    ///
    /// Fails if the output fails or the name is too long.
    pub fn secret(&mut self, name: &str, body: &[u8]) -> io::Result<()> {
        self.begin(SECRET, name, body.len() as u64)?;
        self.put(body)
    }

    /// Ends the archive and returns the output.
    ///
    /// # Errors
    ///
    /// Fails if the output fails.
    pub fn finish(mut self) -> io::Result<W> {
        let hash = self.hasher.finalize();
        self.begin(END, "", 32)?;
        self.out.write_all(hash.as_bytes())?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// Reads an archive and hands each record to `each`. The records count only if this function succeeds.
///
/// # Errors
///
/// Fails if the input fails, the archive is malformed or damaged, or `each` fails.
pub fn read(
    input: impl Read,
    mut each: impl FnMut(&Head, Record<'_>) -> Result<(), BackupError>,
) -> Result<Head, BackupError> {
    let mut input = HashingReader { input, hasher: blake3::Hasher::new() };
    let head = read_head(&mut input)?;
    loop {
        let hash_so_far = input.hasher.clone();
        let RecordStart { kind, len, name } = read_record_start(&mut input)?;
        if kind == FILE {
            read_file(&mut input, &name, len, |record| each(&head, record))?;
            continue;
        }
        let mut body = Vec::new();
        (&mut input).take(len).read_to_end(&mut body)?;
        if body.len() as u64 != len {
            return Err(TRUNCATED);
        }
        match kind {
            END if *hash_so_far.finalize().as_bytes() == body[..] => return Ok(head),
            END => return Err(BackupError::Damaged("its hash does not match its contents")),
            ROW => {
                let no_key = || BackupError::Malformed("a row has no key");
                let (len, rest) = body.split_first_chunk::<4>().ok_or_else(no_key)?;
                let len = u32::from_le_bytes(*len) as usize;
                let (key, value) = rest.split_at_checked(len).ok_or_else(no_key)?;
                each(&head, Record::Row { table: &name, key, value })?;
            }
            SECRET => each(&head, Record::Secret { name: &name, body: &body })?,
            _ => return Err(BackupError::Malformed("a record has an unknown kind")),
        }
    }
}

const TRUNCATED: BackupError = BackupError::Damaged("it ends too early");

fn read_head(input: &mut HashingReader<impl Read>) -> Result<Head, BackupError> {
    let mut magic = [0; MAGIC.len()];
    input.fill(&mut magic)?;
    if magic != MAGIC {
        return Err(BackupError::Malformed("it does not start as a backup does"));
    }
    let mut line = Vec::new();
    loop {
        let mut byte = [0];
        input.fill(&mut byte)?;
        if byte == *b"\n" {
            break;
        }
        line.push(byte[0]);
        if line.len() > NAME_BYTES_MAX {
            return Err(BackupError::Malformed("its head is too long"));
        }
    }
    serde_json::from_slice(&line).map_err(|_| BackupError::Malformed("its head cannot be read"))
}

struct RecordStart {
    kind: u8,
    len: u64,
    name: String,
}

fn read_record_start(input: &mut HashingReader<impl Read>) -> Result<RecordStart, BackupError> {
    let mut fixed = [0; 11];
    input.fill(&mut fixed)?;
    let [kind, name_low, name_high, len @ ..] = fixed;
    let (name_len, len) = (usize::from(u16::from_le_bytes([name_low, name_high])), u64::from_le_bytes(len));
    if name_len > NAME_BYTES_MAX || (kind != FILE && len > BODY_BYTES_MAX) {
        return Err(BackupError::Malformed("a record is too long"));
    }
    let mut name = vec![0; name_len];
    input.fill(&mut name)?;
    let name = String::from_utf8(name).map_err(|_| BackupError::Malformed("a name is not UTF-8"))?;
    Ok(RecordStart { kind, len, name })
}

fn read_file(
    input: &mut HashingReader<impl Read>,
    name: &str,
    len: u64,
    each: impl FnOnce(Record<'_>) -> Result<(), BackupError>,
) -> Result<(), BackupError> {
    let path = Path::new(name);
    if name.is_empty() || !path.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(BackupError::Malformed("a path leads out of the folder"));
    }
    let mut body = input.take(len);
    each(Record::File { path, len, body: &mut body })?;
    // The hash covers the bytes that the caller left.
    let left = body.limit();
    if io::copy(&mut body, &mut io::sink())? != left {
        return Err(TRUNCATED);
    }
    Ok(())
}

/// Hashes the bytes that it reads.
struct HashingReader<R> {
    input: R,
    hasher: blake3::Hasher,
}

impl<R: Read> HashingReader<R> {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), BackupError> {
        self.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => TRUNCATED,
            _ => error.into(),
        })
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}
