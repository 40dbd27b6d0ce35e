//! The release of the containerd on this machine, which its program prints.
//!
//! Invariant: a release that is not known is `None`, never a guess.

use std::process::{Command, Stdio};

/// A release, such as 1.7 or 2.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Release {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

/// Returns the release of the program in the path.
pub(crate) fn installed() -> Option<Release> {
    let output = Command::new("containerd").arg("--version").stdin(Stdio::null()).output().ok()?;
    parse(&String::from_utf8_lossy(&output.stdout))
}

/// Reads `containerd MODULE VERSION REVISION`. Debian appends its own suffix to the version.
fn parse(text: &str) -> Option<Release> {
    let version = text.split_whitespace().nth(2)?;
    let mut numbers = version.trim_start_matches('v').split(['.', '~', '-', '+']);
    Some(Release { major: numbers.next()?.parse().ok()?, minor: numbers.next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_as_programs_print_them() {
        let of = |major, minor| Some(Release { major, minor });
        let debian = "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u1\n";
        assert_eq!(parse(debian), of(1, 6));
        assert_eq!(parse("containerd containerd.io 1.7.27 05044ec0a9a75232cad458027ca83437aae3f4da\n"), of(1, 7));
        assert_eq!(parse("containerd github.com/containerd/containerd/v2 v2.4.2 \n"), of(2, 4));
        assert_eq!(parse("containerd github.com/containerd/containerd/v2 2.1.0+unknown \n"), of(2, 1));
        for text in ["", "containerd", "containerd x main y", "containerd x v2 y"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
