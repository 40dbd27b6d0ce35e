//! The socket on which a running role offers its state, and the same stream from a role that is stopped.
//!
//! Invariant: the socket has mode 0600, and a role serves one backup at a time.

use super::archive::{Head, Writer};
use super::error::BackupError;
use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use std::fs;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

/// The name of the socket in the state folder.
const SOCKET: &str = "backup.sock";
/// A backup fails if the other end takes or sends nothing for this time.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// A thread that writes a state.
pub type Writing = std::thread::JoinHandle<Result<(), BackupError>>;

/// Writes a role's state to an archive. The flag asks for the payload of contents too.
pub type Source = Arc<dyn Fn(&mut Writer<BufWriter<UnixStream>>, bool) -> Result<(), BackupError> + Send + Sync>;

/// Listens on a new socket of mode 0600.
fn listen_privately(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // On Linux the path gets the mode that the socket has at the bind. So there is no moment with another mode.
    fchmod(&socket, Mode::from_raw_mode(0o600))?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, 16)?;
    UnixListener::from_std(std::os::unix::net::UnixListener::from(socket))
}

/// Offers a running role's state on a socket in its folder until the token is cancelled.
pub async fn serve(folder: PathBuf, role: &'static str, source: Source, token: CancellationToken) {
    let path = folder.join(SOCKET);
    let _ = fs::remove_file(&path); // a killed process leaves its socket
    let listener = match listen_privately(&path) {
        Ok(listener) => listener,
        Err(error) => {
            // The path may be too long for a socket. Then a backup needs the role to be stopped.
            tracing::warn!(path = %path.display(), %error, "cannot offer backups while the role runs");
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
        let written = tokio::task::spawn_blocking(move || write_state(stream, role, &source));
        tokio::select! {
            () = token.cancelled() => break,
            written = written => match written {
                Ok(Ok(())) => tracing::info!("wrote a backup of the state"),
                Ok(Err(error)) => tracing::warn!(%error, "a backup failed"),
                Err(error) => tracing::error!(%error, "a backup panicked"),
            },
        }
    }
    let _ = fs::remove_file(&path); // the folder may be gone
}

fn write_state(stream: tokio::net::UnixStream, role: &str, source: &Source) -> Result<(), BackupError> {
    let mut stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(STALL_TIMEOUT))?;
    stream.set_write_timeout(Some(STALL_TIMEOUT))?;
    let mut wanted = [0];
    stream.read_exact(&mut wanted)?;
    let contents = wanted[0] == 1;
    let head = Head { role: role.into(), created_at: unix_now(), contents };
    let mut writer = Writer::new(BufWriter::new(stream), &head)?;
    source(&mut writer, contents)?;
    writer.finish()?;
    Ok(())
}

pub(super) fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Returns whether a role runs on the folder.
pub(super) fn is_running(folder: &Path) -> bool {
    UnixStream::connect(folder.join(SOCKET)).is_ok()
}

/// Asks the role that runs on `folder` for its state. Returns `None` if no role runs on the folder.
///
/// # Errors
///
/// Fails if the socket exists and cannot be used.
pub fn ask(folder: &Path, contents: bool) -> io::Result<Option<BufReader<UnixStream>>> {
    let mut stream = match UnixStream::connect(folder.join(SOCKET)) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    stream.set_read_timeout(Some(STALL_TIMEOUT))?;
    stream.write_all(&[u8::from(contents)])?;
    Ok(Some(BufReader::new(stream)))
}

/// Returns the state of a stopped role as the stream that [`ask`] returns for a running one. A thread writes the state.
///
/// # Errors
///
/// Fails if no pair of sockets can be made. Errors of `source` are those of the thread.
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
