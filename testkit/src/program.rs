//! The program under test, and other programs that a test runs to their end.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The path of the `shoal` program. A test makes it with [`program!`](crate::program!).
#[derive(Clone, Copy, Debug)]
pub struct Program(&'static str);

impl Program {
    /// The program at a path.
    pub const fn new(path: &'static str) -> Self {
        Self(path)
    }

    /// The path.
    pub fn path(self) -> &'static Path {
        Path::new(self.0)
    }

    /// Returns a command without arguments.
    pub fn command(self) -> Command {
        Command::new(self.0)
    }

    /// Runs the program to its end.
    ///
    /// # Panics
    /// When the program cannot be started.
    pub fn run(self, args: &[&str]) -> Output {
        self.command().args(args).output().unwrap_or_else(|error| panic!("cannot start {}: {error}", self.0))
    }

    /// Runs the program to its end and returns what it printed.
    ///
    /// # Panics
    /// When the program fails.
    pub fn ok(self, args: &[&str]) -> String {
        let output = self.run(args);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {}\n{text}\n{complaint}", output.status);
        text
    }
}

/// Sends bytes through a program such as `gzip`, and returns what it printed.
///
/// # Panics
/// When the program fails.
pub fn filter(program: &mut Command, bytes: &[u8]) -> Vec<u8> {
    let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // A thread of its own writes: the program's output pipe may fill before it has read all its input.
        scope.spawn(move || input.write_all(bytes).unwrap());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{program:?}: {}", output.status);
        output.stdout
    })
}
