//! Backups of a role's state: one archive, read from the role while it runs, or from its folder while it does not.
//!
//! ```text
//! "shoal backup 1\n"   one line of JSON: role, when
//! records              kind u8 | name length u16 LE | body length u64 LE | name | body
//!   1 row              name: the table; body: key length u32 LE | key | value
//!   2 file             name: the path within the state folder
//!   3 secret           name: which
//!   0 end              body: BLAKE3 of everything before this record
//! ```
//!
//! A running role offers its state on a socket in its folder, which only the folder's owner may open.
//! Invariant: an archive is whole or it is refused; nothing is restored from one before its end was checked.

use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

const MAGIC: &[u8] = b"shoal backup 1\n";
/// Name of the socket.
const SOCKET: &str = "backup.sock";
/// Longest name of a record, bytes.
const NAME_MAX: usize = 4096;
/// Longest row, secret or head, bytes.
const BODY_MAX: u64 = 64 * 1024 * 1024;
/// A reader that takes nothing for this long is gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why an archive cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The disk or the socket.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is not an archive this version reads.
    #[error("not a backup this version can read: {0}")]
    Malformed(&'static str),
    /// It ended early or was changed.
    #[error("the backup is damaged: {0}")]
    Damaged(&'static str),
    /// The state folder is in the way.
    #[error("{} is not empty; say --force to put it aside", .0.display())]
    InTheWay(PathBuf),
    /// A role's database failed.
    #[error("cannot read or write the role's database")]
    Database(#[from] shoal_kv::KvError),
    /// A role's own records failed.
    #[error("{0}")]
    State(String),
}

/// What an archive says first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Whose state it is.
    pub role: String,
    /// When it was made, Unix seconds.
    pub created_at: u64,
    /// Payload of contents is in it.
    pub contents: bool,
}

/// One part of an archive.
pub enum Record<'a> {
    /// A row of a table.
    Row {
        /// The table.
        table: &'a str,
        /// Its key.
        key: &'a [u8],
        /// Its value.
        value: &'a [u8],
    },
    /// A file of the state folder.
    File {
        /// Where, within the folder.
        path: &'a Path,
        /// How many bytes.
        len: u64,
        /// The bytes.
        body: &'a mut dyn Read,
    },
    /// Something for whoever may see it.
    Secret {
        /// Which.
        name: &'a str,
        /// Its bytes.
        body: &'a [u8],
    },
}

/// Writes an archive.
pub struct Writer<W: Write> {
    out: W,
    hasher: blake3::Hasher,
}

impl<W: Write> Writer<W> {
    /// Begins one.
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
        let name_len = u16::try_from(name.len()).ok().filter(|len| usize::from(*len) <= NAME_MAX);
        let name_len = name_len.ok_or_else(|| io::Error::other("a name is too long"))?;
        self.put(&[kind])?;
        self.put(&name_len.to_le_bytes())?;
        self.put(&len.to_le_bytes())?;
        self.put(name.as_bytes())
    }

    /// A row of a table.
    pub fn row(&mut self, table: &str, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.begin(1, table, 4 + key.len() as u64 + value.len() as u64)?;
        self.put(&(key.len() as u32).to_le_bytes())?;
        self.put(key)?;
        self.put(value)
    }

    /// A file. One that is gone by now is left out; one that changes its length meanwhile is an error.
    pub fn file(&mut self, folder: &Path, path: &Path) -> io::Result<()> {
        let file = match File::open(folder.join(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        let len = file.metadata()?.len();
        self.body(path, len, &mut file.take(len))
    }

    fn body(&mut self, path: &Path, len: u64, body: &mut dyn Read) -> io::Result<()> {
        self.begin(2, path.to_str().ok_or_else(|| io::Error::other("a path is not text"))?, len)?;
        let (mut buffer, mut left) = (vec![0; 256 * 1024], len);
        while left > 0 {
            let step = buffer.len().min(left as usize);
            body.read_exact(&mut buffer[..step])?;
            self.put(&buffer[..step])?;
            left -= step as u64;
        }
        Ok(())
    }

    /// A secret.
    pub fn secret(&mut self, name: &str, body: &[u8]) -> io::Result<()> {
        self.begin(3, name, body.len() as u64)?;
        self.put(body)
    }

    /// Ends it; gives what it was written to.
    pub fn finish(mut self) -> io::Result<W> {
        let hash = self.hasher.finalize();
        self.begin(0, "", 32)?;
        self.out.write_all(hash.as_bytes())?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// Reads an archive, checking as it goes, and hands out each record. What was handed out counts only once this returns.
pub fn read(
    input: impl Read,
    mut each: impl FnMut(&Head, Record<'_>) -> Result<(), BackupError>,
) -> Result<Head, BackupError> {
    let mut input = Hashed { input, hasher: blake3::Hasher::new() };
    let mut magic = [0; MAGIC.len()];
    input.exact(&mut magic)?;
    if magic != MAGIC {
        return Err(BackupError::Malformed("it begins with something else"));
    }
    let mut line = Vec::new();
    loop {
        let mut byte = [0];
        input.exact(&mut byte)?;
        if byte == *b"\n" {
            break;
        }
        line.push(byte[0]);
        if line.len() > NAME_MAX {
            return Err(BackupError::Malformed("its head is too long"));
        }
    }
    let head: Head = serde_json::from_slice(&line).map_err(|_| BackupError::Malformed("its head cannot be read"))?;
    loop {
        let so_far = input.hasher.clone();
        let mut fixed = [0; 11];
        input.exact(&mut fixed)?;
        let (kind, name_len) = (fixed[0], usize::from(u16::from_le_bytes([fixed[1], fixed[2]])));
        let mut len = [0; 8];
        len.copy_from_slice(&fixed[3..]);
        let len = u64::from_le_bytes(len);
        if name_len > NAME_MAX || (kind != 2 && len > BODY_MAX) {
            return Err(BackupError::Malformed("a record is too long"));
        }
        let mut name = vec![0; name_len];
        input.exact(&mut name)?;
        let name = String::from_utf8(name).map_err(|_| BackupError::Malformed("a name is not text"))?;
        if kind == 2 {
            let path = Path::new(&name);
            if name.is_empty() || !path.components().all(|part| matches!(part, Component::Normal(_))) {
                return Err(BackupError::Malformed("a path leads out of the folder"));
            }
            let mut body = (&mut input).take(len);
            each(&head, Record::File { path, len, body: &mut body })?;
            // Whatever was not read is part of the archive all the same.
            let left = body.limit();
            if io::copy(&mut body, &mut io::sink())? != left {
                return Err(BackupError::Damaged("it ends in the middle"));
            }
            continue;
        }
        let mut body = Vec::new();
        (&mut input).take(len).read_to_end(&mut body)?;
        if body.len() as u64 != len {
            return Err(BackupError::Damaged("it ends in the middle"));
        }
        match kind {
            0 if *so_far.finalize().as_bytes() == body[..] => return Ok(head),
            0 => return Err(BackupError::Damaged("its end does not fit what is before")),
            1 => {
                let (len, rest) = body.split_at_checked(4).ok_or(BackupError::Malformed("a row without a key"))?;
                let len = u32::from_le_bytes([len[0], len[1], len[2], len[3]]) as usize;
                let (key, value) = rest.split_at_checked(len).ok_or(BackupError::Malformed("a row without a key"))?;
                each(&head, Record::Row { table: &name, key, value })?;
            }
            3 => each(&head, Record::Secret { name: &name, body: &body })?,
            _ => return Err(BackupError::Malformed("a record of an unknown kind")),
        }
    }
}

struct Hashed<R> {
    input: R,
    hasher: blake3::Hasher,
}

impl<R: Read> Hashed<R> {
    fn exact(&mut self, buffer: &mut [u8]) -> Result<(), BackupError> {
        self.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => BackupError::Damaged("it ends in the middle"),
            _ => error.into(),
        })
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

/// A thread that writes a state.
pub type Writing = std::thread::JoinHandle<Result<(), BackupError>>;

/// Secrets of an archive, by name.
pub type Secrets = Vec<(String, Vec<u8>)>;

/// Something whose state can be written to an archive; `contents`: with payload, where there is any.
pub type Source = Arc<dyn Fn(&mut Writer<BufWriter<UnixStream>>, bool) -> Result<(), BackupError> + Send + Sync>;

/// Offers a running role's state on a socket in its folder until the token is cancelled.
pub async fn serve(folder: PathBuf, role: &'static str, source: Source, token: CancellationToken) {
    let path = folder.join(SOCKET);
    let _left_by_a_kill = fs::remove_file(&path);
    let listener = UnixListener::bind(&path)
        .and_then(|listener| fs::set_permissions(&path, Permissions::from_mode(0o600)).map(|()| listener));
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => {
            // The path may be too long for a socket; then a backup needs the role to be stopped.
            tracing::warn!(path = %path.display(), %error, "cannot offer backups while running");
            return token.cancelled().await;
        }
    };
    loop {
        let accepted = tokio::select! {
            () = token.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else { continue };
        let source = source.clone();
        // One at a time: it reads all there is.
        let written = tokio::task::spawn_blocking(move || answer(stream, role, &source));
        tokio::select! {
            () = token.cancelled() => break,
            written = written => match written {
                Ok(Ok(())) => tracing::info!("state was backed up"),
                Ok(Err(error)) => tracing::warn!(%error, "a backup failed"),
                Err(error) => tracing::error!(%error, "a backup panicked"),
            },
        }
    }
    let _gone = fs::remove_file(&path);
}

fn answer(stream: tokio::net::UnixStream, role: &str, source: &Source) -> Result<(), BackupError> {
    let mut stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut asked = [0];
    stream.read_exact(&mut asked)?;
    let contents = asked[0] == 1;
    let head = Head { role: role.into(), created_at: unix_now(), contents };
    let mut writer = Writer::new(BufWriter::new(stream), &head)?;
    source(&mut writer, contents)?;
    writer.finish()?;
    Ok(())
}

fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Asks a running role for its state; `None` when none runs on this folder.
pub fn ask(folder: &Path, contents: bool) -> io::Result<Option<BufReader<UnixStream>>> {
    let mut stream = match UnixStream::connect(folder.join(SOCKET)) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[u8::from(contents)])?;
    Ok(Some(BufReader::new(stream)))
}

/// The other end of what a role's state is written to when it does not run: the same stream, from a thread of our own.
pub fn offline(
    role: &str,
    contents: bool,
    source: impl FnOnce(&mut Writer<BufWriter<UnixStream>>) -> Result<(), BackupError> + Send + 'static,
) -> Result<(BufReader<UnixStream>, Writing), BackupError> {
    let (ours, theirs) = UnixStream::pair()?;
    let head = Head { role: role.into(), created_at: unix_now(), contents };
    let thread = std::thread::spawn(move || {
        let mut writer = Writer::new(BufWriter::new(theirs), &head)?;
        source(&mut writer)?;
        writer.finish()?;
        Ok(())
    });
    Ok((BufReader::new(ours), thread))
}

/// Writes what comes from a role to a file of mode 0600, with `secrets` (name and file of each) if any; in one step, and
/// only if it is whole. Gives its head and length.
pub fn save(input: impl Read, out: &Path, secrets: &[(&str, PathBuf)]) -> Result<(Head, u64), BackupError> {
    let temporary = out.with_extension("part");
    let _left = fs::remove_file(&temporary);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let result = (|| {
        let mut writer: Option<Writer<BufWriter<File>>> = None;
        let mut file = Some(BufWriter::new(file));
        let head = read(input, |head, record| {
            if let Some(file) = file.take() {
                writer = Some(Writer::new(file, head)?);
            }
            let Some(writer) = &mut writer else { return Ok(()) };
            match record {
                Record::Row { table, key, value } => writer.row(table, key, value)?,
                Record::Secret { name, body } => writer.secret(name, body)?,
                Record::File { path, len, body } => writer.body(path, len, body)?,
            }
            Ok(())
        })?;
        let mut writer = match (writer, file) {
            (Some(writer), _) => writer,
            (None, Some(file)) => Writer::new(file, &head)?,
            (None, None) => return Err(BackupError::Damaged("nothing is in it")),
        };
        for (name, path) in secrets {
            writer.secret(name, &fs::read(path)?)?;
        }
        let file = writer.finish()?.into_inner().map_err(|error| error.into_error())?;
        file.sync_all()?;
        let len = file.metadata()?.len();
        fs::rename(&temporary, out)?;
        Ok((head, len))
    })();
    if result.is_err() {
        let _gone = fs::remove_file(&temporary);
    }
    result
}

/// Takes the rows of an archive.
pub trait Rows {
    /// One row.
    fn row(&mut self, table: &str, key: &[u8], value: &[u8]) -> Result<(), BackupError>;
    /// That was all: they are to survive a loss of power.
    fn finish(self: Box<Self>) -> Result<(), BackupError>;
}

/// Makes a state folder from an archive, in one step; gives its head and its secrets. `open` makes the tables in the
/// folder it is given. With `force`, a folder that is in the way is put aside.
pub fn restore(
    archive: &Path,
    role: &str,
    folder: &Path,
    force: bool,
    open: impl FnOnce(&Path) -> Result<Box<dyn Rows>, BackupError>,
) -> Result<(Head, Secrets), BackupError> {
    // The whole of it is checked before anything is touched.
    let head = read(BufReader::new(File::open(archive)?), |_, _| Ok(()))?;
    if head.role != role {
        return Err(BackupError::Malformed("it is another role's"));
    }
    if UnixStream::connect(folder.join(SOCKET)).is_ok() {
        return Err(BackupError::State(format!("a {role} runs on {}: stop it first", folder.display())));
    }
    let there = fs::read_dir(folder).is_ok_and(|mut items| items.next().is_some());
    if there && !force {
        return Err(BackupError::InTheWay(folder.to_path_buf()));
    }
    let making = beside(folder, "restoring");
    if making.exists() {
        fs::remove_dir_all(&making)?;
    }
    fs::create_dir_all(&making)?;
    let mut rows = open(&making)?;
    let mut secrets = Vec::new();
    read(BufReader::new(File::open(archive)?), |_, record| {
        match record {
            Record::Row { table, key, value } => rows.row(table, key, value)?,
            Record::Secret { name, body } => secrets.push((name.to_string(), body.to_vec())),
            Record::File { path, body, .. } => {
                let path = making.join(path);
                if let Some(parent) = path.parent() {
                    fs::create_dir_all(parent)?;
                }
                let mut file = File::create_new(path)?;
                io::copy(body, &mut file)?;
                file.sync_data()?;
            }
        }
        Ok(())
    })?;
    rows.finish()?;
    if there {
        fs::rename(folder, beside(folder, &format!("before-{}", unix_now())))?;
    } else if folder.exists() {
        fs::remove_dir(folder)?;
    }
    fs::rename(&making, folder)?;
    Ok((head, secrets))
}

fn beside(folder: &Path, suffix: &str) -> PathBuf {
    let mut name = folder.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{suffix}"));
    folder.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Kept(Arc<std::sync::Mutex<Vec<String>>>);

    impl Rows for Kept {
        fn row(&mut self, table: &str, key: &[u8], value: &[u8]) -> Result<(), BackupError> {
            self.0.lock().unwrap().push(format!("{table} {key:?} {value:?}"));
            Ok(())
        }

        fn finish(self: Box<Self>) -> Result<(), BackupError> {
            Ok(())
        }
    }

    fn archive(dir: &Path) -> PathBuf {
        fs::create_dir_all(dir.join("state/sub")).unwrap();
        fs::write(dir.join("state/sub/file"), vec![7; 700_000]).unwrap();
        fs::write(dir.join("key"), b"secret").unwrap();
        let folder = dir.join("state");
        let (input, thread) = offline("hub", false, move |writer| {
            writer.row("jobs", b"key", b"value")?;
            writer.file(&folder, Path::new("sub/file"))?;
            writer.file(&folder, Path::new("sub/gone"))?;
            Ok(())
        })
        .unwrap();
        let out = dir.join("archive");
        let (head, _) = save(input, &out, &[("key", dir.join("key"))]).unwrap();
        thread.join().unwrap().unwrap();
        assert_eq!(head.role, "hub");
        assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);
        out
    }

    #[test]
    fn what_was_backed_up_is_restored() {
        let dir = tempfile::tempdir().unwrap();
        let archive = archive(dir.path());
        let rows = Arc::<std::sync::Mutex<Vec<String>>>::default();
        let into = dir.path().join("into");
        let open = |_: &Path| -> Result<Box<dyn Rows>, BackupError> { Ok(Box::new(Kept(rows.clone()))) };
        let (_, secrets) = restore(&archive, "hub", &into, false, open).unwrap();
        assert_eq!(secrets, [("key".to_string(), b"secret".to_vec())]);
        assert_eq!(rows.lock().unwrap().len(), 1);
        assert_eq!(fs::read(into.join("sub/file")).unwrap(), vec![7; 700_000]);
        // Not over what is there, unless told to; then that is put aside.
        assert!(matches!(restore(&archive, "hub", &into, false, open), Err(BackupError::InTheWay(_))));
        restore(&archive, "hub", &into, true, open).unwrap();
        let aside = fs::read_dir(dir.path()).unwrap().flatten();
        assert!(aside.into_iter().any(|item| item.file_name().to_string_lossy().starts_with("into.before-")));
        assert!(matches!(restore(&archive, "tracker", &into, true, open), Err(BackupError::Malformed(_))));
    }

    #[test]
    fn a_damaged_archive_is_refused_before_anything_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let archive = archive(dir.path());
        let whole = fs::read(&archive).unwrap();
        let into = dir.path().join("into");
        let refused = |bytes: &[u8]| {
            fs::write(&archive, bytes).unwrap();
            let open = |_: &Path| -> Result<Box<dyn Rows>, BackupError> { panic!("nothing is opened") };
            let error = restore(&archive, "hub", &into, true, open).map(|_| ()).unwrap_err();
            assert!(matches!(error, BackupError::Damaged(_) | BackupError::Malformed(_)), "{error}");
            assert!(!into.exists());
        };
        for cut in [0, 5, MAGIC.len(), 40, 90, 400_000, whole.len() - 1] {
            refused(&whole[..cut]);
        }
        for at in [3, 20, 60, 80, 120, 300_000, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            refused(&bytes);
        }
    }
}
