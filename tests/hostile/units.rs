//! The systemd units: what a role that an attacker took over can still do to its machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const ROLES: [&str; 4] = ["hub", "tracker", "seeder", "peer"];
/// The highest exposure that `systemd-analyze security` may compute for a unit, times 10. 100 is a unit without limits.
const EXPOSURE_MAX: &str = "40";

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path)
}

#[test]
fn units_expose_little() {
    for role in ROLES {
        let unit = deploy(&format!("systemd/shoal-{role}.service"));
        let threshold = format!("--threshold={EXPOSURE_MAX}");
        let analysed = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager", &threshold])
            .arg(&unit)
            .output()
            .expect("systemd-analyze is installed, see ./test --needs");
        let text = String::from_utf8_lossy(&analysed.stdout);
        assert!(text.contains("Overall exposure level"), "{role}: {text}");
        assert!(analysed.status.success(), "{role}: {text}");
    }
}

/// What no figure shows: users, modes and limits, and that the files beside the units agree with them.
#[test]
fn each_role_has_a_user_and_private_state() {
    let users = fs::read_to_string(deploy("sysusers.d/shoal.conf")).unwrap();
    for role in ROLES {
        let unit = fs::read_to_string(deploy(&format!("systemd/shoal-{role}.service"))).unwrap();
        let set = |line: &str| unit.lines().any(|found| found == line);
        let user = format!("shoal-{role}");
        for line in [
            &format!("User={user}"),
            &format!("StateDirectory=shoal/{role}"),
            "StateDirectoryMode=0700",
            "UMask=0077",
            "NoNewPrivileges=true",
            "ProtectSystem=strict",
            "CapabilityBoundingSet=",
            "SystemCallFilter=@system-service",
        ] {
            assert!(set(line), "{role}: {line}");
        }
        assert!(unit.contains("\nMemoryMax=") && unit.contains("\nRestrictAddressFamilies=AF_INET "), "{role}");
        assert!(users.lines().any(|line| line.starts_with(&format!("u {user} "))), "{role}");
        let files = fs::read_to_string(deploy(&format!("tmpfiles.d/shoal-{role}.conf"))).unwrap();
        assert!(files.contains(&format!("d /var/lib/shoal/{role} 0700 {user} {user}\n")), "{role}");
        for line in files.lines().filter(|line| line.starts_with("z ")) {
            assert!(line.contains(&format!(" 0600 {user} ")), "{line}");
        }
    }
}
