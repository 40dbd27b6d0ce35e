//! The lab in its short form: real namespaces, a few seconds. Without root it says that it skips itself.

use std::process::ExitCode;

#[test]
fn the_lab_runs() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["lab", "--smoke", "--system", "shoal", "--sim", "--json"];
    let status = shoal_lab::run(shoal_testkit::program!(), dir.path(), args.map(Into::into));
    assert_eq!(format!("{status:?}"), format!("{:?}", ExitCode::SUCCESS));
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 0, "the lab left files behind");
}
