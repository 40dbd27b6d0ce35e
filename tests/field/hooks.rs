//! What a hook leaves running.

use crate::{SHOAL, directory, ends_with};
use shoal_testkit::{Setup, until};
use std::fs;
use std::process::Command;

#[test]
fn a_service_that_a_hook_starts_keeps_a_working_output() {
    let dir = tempfile::tempdir().unwrap();
    let (pid, count) = (dir.path().join("pid"), dir.path().join("count"));
    // A line is written to the file only after the service has written to both outputs of the hook.
    let service = dir.path().join("service");
    let line = "x".repeat(1000);
    let loop_of_service =
        format!("while echo serving {line} && echo {line} >&2; do echo >> {}; sleep 0.02; done", count.display());
    fs::write(&service, format!("echo $$ > {}\n{loop_of_service}\n", pid.display())).unwrap();
    let start = dir.path().join("start");
    fs::write(&start, format!("sh {} &\necho started\n", service.display())).unwrap();
    let hook = format!("['sh', '{}']", start.display());
    let settings = format!("activation={{ 'edge/app' = {{ post_start = {hook} }} }}");
    let region = Setup::new(SHOAL, 1, 1).peers(|_| vec![settings.clone()]).start();
    let source = directory(&region, "source", b"1");
    let args = ["rollout", "edge/app@1", source.to_str().unwrap(), "--to", "all", "--soak", "0s", "--wait"];
    ends_with(0, &region.cli(&args));
    // More than both pipes hold, long after the end of the hook.
    until("the service goes on", || (fs::read(&count).ok()?.len() > 200).then_some(()));
    let pid = fs::read_to_string(pid).unwrap();
    assert!(Command::new("kill").arg(pid.trim()).status().unwrap().success(), "the service runs");
}
