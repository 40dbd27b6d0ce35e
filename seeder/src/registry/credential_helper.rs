//! Credential helpers: the programs `docker-credential-NAME`, which know the credentials of registries.
//!
//! Invariant: a helper has a deadline and its output has a limit. What a helper answered never appears in an error or a
//! log, except its own message about a failure.

use super::auth::Credentials;
use shoal_proto::go_json::GoValue;
use shoal_proto::plain_text;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

/// The time that a helper has. Helpers of clouds ask a service.
const TIME_MAX: Duration = Duration::from_secs(20);
/// The longest output of a helper, bytes.
const OUTPUT_BYTES_MAX: u64 = 64 * 1024;
/// Characters of a helper's message that an error repeats.
const MESSAGE_SHOWN_CHARS: usize = 200;
/// What helpers write about a registry that they do not know.
const NOT_FOUND: &str = "credentials not found";
/// The user name that marks a refresh token.
const TOKEN_USER: &str = "<token>";

/// Why a credential helper gives no credentials. `server` is the registry as the helper was asked for it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the enum's comment explains the fields")]
pub(crate) enum HelperError {
    #[error("`{0}` is no name of a credential helper; use letters, digits, `.`, `_` and `-`")]
    Name(String),
    #[error("cannot run `docker-credential-{name}`; install it in a folder of the seeder's PATH")]
    Start { name: String, source: io::Error },
    #[error("cannot read the answer of `docker-credential-{name} get` for {server}; run it as the seeder's user")]
    Read { name: String, server: String, source: io::Error },
    #[error(
        "`docker-credential-{name} get` did not end within {} s for {server}; run it as the seeder's user",
        TIME_MAX.as_secs()
    )]
    Timeout { name: String, server: String },
    #[error("`docker-credential-{name} get` failed for {server} ({status}): {message}; run it as the seeder's user")]
    Failed { name: String, server: String, status: ExitStatus, message: String },
    #[error("`docker-credential-{name} get` wrote more than {OUTPUT_BYTES_MAX} bytes for {server}; replace the helper")]
    TooLong { name: String, server: String },
    #[error(
        "`docker-credential-{name} get` wrote no JSON with `Username` and `Secret` for {server}; replace the helper"
    )]
    Answer { name: String, server: String },
}

/// Whether a text may name a helper. No text of a configuration becomes a path.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Asks a helper for the credentials of a server. Returns `None` if the helper has none.
///
/// # Errors
/// Returns an error if the helper cannot run, fails, or gives no credentials in time.
pub async fn get(name: &str, server: &str) -> Result<Option<Credentials>, HelperError> {
    if !is_name(name) {
        return Err(HelperError::Name(name.chars().take(MESSAGE_SHOWN_CHARS).collect()));
    }
    run(Path::new(&format!("docker-credential-{name}")), name, server, TIME_MAX).await
}

/// What a helper did.
struct Ended {
    status: ExitStatus,
    output: Vec<u8>,
}

async fn run(program: &Path, name: &str, server: &str, limit: Duration) -> Result<Option<Credentials>, HelperError> {
    let own = || (name.to_string(), server.to_string());
    let mut command = Command::new(program);
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|source| HelperError::Start { name: name.to_string(), source })?;
    let ended = tokio::time::timeout(limit, converse(&mut child, server)).await;
    let Ended { status, output } = match ended {
        Ok(Ok(ended)) => ended,
        Ok(Err(source)) => {
            let (name, server) = own();
            return Err(HelperError::Read { name, server, source });
        }
        Err(_) => {
            let (name, server) = own();
            return Err(HelperError::Timeout { name, server });
        }
    };
    let (name, server) = own();
    if output.len() as u64 > OUTPUT_BYTES_MAX {
        return Err(HelperError::TooLong { name, server });
    }
    if !status.success() {
        let message = String::from_utf8_lossy(&output);
        if message.contains(NOT_FOUND) {
            return Ok(None);
        }
        let message = message.trim().chars().take(MESSAGE_SHOWN_CHARS).collect::<String>();
        let message = plain_text::escape(&message).into_owned();
        return Err(HelperError::Failed { name, server, status, message });
    }
    credentials(&output).ok_or(HelperError::Answer { name, server })
}

/// Sends the server's name and reads the answer to its end.
async fn converse(child: &mut Child, server: &str) -> io::Result<Ended> {
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(server.as_bytes()).await; // a helper that reads nothing is judged by its answer
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(OUTPUT_BYTES_MAX + 1).read_to_end(&mut output).await?;
    }
    Ok(Ended { status: child.wait().await?, output })
}

/// Reads a helper's answer. The outer `None` means that it has another form.
fn credentials(output: &[u8]) -> Option<Option<Credentials>> {
    let answer: GoValue = serde_json::from_slice(output).ok()?;
    let GoValue::Map(_) = &answer else { return None };
    let (user, secret) = (answer.text("Username").ok()?, answer.text("Secret").ok()?);
    Some(match user {
        _ if secret.is_empty() => None,
        TOKEN_USER => Some(Credentials::Refresh(secret.to_string())),
        user => Some(Credentials::Password(user.to_string(), secret.to_string())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    /// A helper that is a shell script.
    struct Script(tempfile::TempDir);

    impl Script {
        fn new(text: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("docker-credential-test");
            std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            Self(dir)
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("docker-credential-test")
        }

        async fn ask(&self) -> Result<Option<Credentials>, HelperError> {
            // Another test may fork while the script is open for writing. The script then cannot run for a moment.
            for _ in 0..100 {
                match run(&self.path(), "test", "r.example:5000", Duration::from_secs(10)).await {
                    Err(HelperError::Start { source, .. }) if source.kind() == io::ErrorKind::ExecutableFileBusy => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    other => return other,
                }
            }
            panic!("the script stays busy")
        }
    }

    #[tokio::test]
    async fn a_helper_is_asked_for_the_server() {
        let text = r#"server=$(cat); [ "$1" = get ] && printf '{"Username":"u","Secret":"%s"}' "$server""#;
        let found = Script::new(text).ask().await;
        assert!(found.unwrap() == Some(Credentials::Password("u".into(), "r.example:5000".into())));
        let token = Script::new(r#"cat >/dev/null; echo '{"Username":"<token>","Secret":"t"}'"#).ask().await.unwrap();
        assert!(token == Some(Credentials::Refresh("t".into())));
        let deaf = Script::new(r#"echo '{"Username":"u","Secret":"s"}'"#).ask().await.unwrap();
        assert!(deaf == Some(Credentials::Password("u".into(), "s".into())));
    }

    #[tokio::test]
    async fn a_helper_that_knows_nothing_is_no_error() {
        for text in [
            "echo 'credentials not found in native keychain'; exit 1",
            r#"echo '{"Username":"","Secret":""}'"#,
            r#"echo '{"Username":null,"Secret":null}'"#,
        ] {
            assert!(Script::new(text).ask().await.unwrap().is_none(), "{text}");
        }
    }

    #[tokio::test]
    async fn errors_say_what_to_do_and_repeat_no_secret() {
        let failed = Script::new("printf 'no \\033[1mkeyring'; exit 3").ask().await.unwrap_err().to_string();
        assert!(failed.contains("no \\u{1b}[1mkeyring") && failed.contains("as the seeder's user"), "{failed}");
        for text in ["echo secret", r#"echo '["secret"]'"#, r#"echo '{"Username":7,"Secret":"secret"}'"#] {
            let error = Script::new(text).ask().await.unwrap_err().to_string();
            assert!(error.contains("wrote no JSON") && !error.contains("secret"), "{error}");
        }
        let long = Script::new("head -c 200000 /dev/zero").ask().await.unwrap_err().to_string();
        assert!(long.contains("more than 65536 bytes"), "{long}");
        let missing = run(Path::new("/no/such/helper"), "test", "r", TIME_MAX).await.unwrap_err().to_string();
        assert!(missing.contains("install it"), "{missing}");
        for bad in ["", "../x", "a/b", ".x", "a b", "é"] {
            assert!(matches!(get(bad, "r").await, Err(HelperError::Name(_))), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_helper_that_hangs_is_ended() {
        let script = Script::new("exec sleep 600");
        let mut ended = run(&script.path(), "test", "r", Duration::from_millis(300)).await;
        for _ in 0..100 {
            if !matches!(ended, Err(HelperError::Start { .. })) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            ended = run(&script.path(), "test", "r", Duration::from_millis(300)).await;
        }
        assert!(matches!(ended, Err(HelperError::Timeout { .. })));
    }
}
