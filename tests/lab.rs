//! The lab in its short form, so that it does not rot: real namespaces, seconds. Without root it says that it skipped.

#[path = "../benches/lab/lab.rs"]
mod lab;

#[test]
fn the_lab_runs() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["lab", "--smoke", "--system", "shoal", "--sim", "--json", "--dir", dir.path().to_str().unwrap()];
    let status = lab::run(args.map(Into::into));
    assert_eq!(format!("{status:?}"), format!("{:?}", std::process::ExitCode::SUCCESS));
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 0, "it leaves nothing");
}
