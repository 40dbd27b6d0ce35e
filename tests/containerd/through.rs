//! An image that was never pushed and that all hosts pull at the same time. Its registry serves each blob once.

use crate::SHOAL;
use crate::image::{Item, layer, layout, shell};
use crate::runtime::{Release, Runtime, on_each_release, require_packages};
use shoal_testkit::region::ADDR;
use shoal_testkit::registry::Registry;
use shoal_testkit::{Setup, noise, until};
use std::process::Stdio;

on_each_release!(a_miss_is_fetched_once_for_all_hosts);

fn a_miss_is_fetched_once_for_all_hosts(release: Release) {
    require_packages();
    let folder = tempfile::tempdir().unwrap();
    let data = noise(8_000_000, 9);
    let layers = [shell(), layer(&[Item::Folder("data"), Item::File("data/noise", 0o644, &data)])];
    let image = layout(&folder.path().join("image"), "v1", &layers);
    let registry = Registry::start(&folder.path().join("registry"));
    registry.copy(&format!("oci:{}", image.display()), "lab/app:v1");
    let mut runtimes: Vec<Runtime> =
        (0..3).map(|host| Runtime::new(release, &folder.path().join(format!("h{host}")), true)).collect();
    runtimes.iter_mut().for_each(Runtime::start);
    let mut region = Setup::new(SHOAL, 1, 3)
        .peers(|_| {
            let listen = format!("mirror.listen='{ADDR}:0'");
            vec![listen, "mirror.fetch_through=true".into(), "mirror.max_wait=50s".into()]
        })
        .start();
    region.seeder.kill();
    let at = format!("{{ url = 'http://{}', plain_http = true }}", registry.addr);
    region.seeder.configure(&format!("registries={{ 'registry.example:5000' = {at} }}"));
    region.seeder.configure("fetch_through=['registry.example:5000/lab']");
    region.seeder.start();
    region.wait_up(3);
    for (host, runtime) in runtimes.iter().enumerate() {
        let mirror = region.peers[host].addrs["mirror"].as_str().unwrap();
        let dir = runtime.hosts_dir();
        SHOAL.ok(&["containerd", "setup", "_default", "--mirror", mirror, "--hosts-dir", dir.to_str().unwrap()]);
    }
    let reference = "registry.example:5000/lab/app:v1";
    let pulls: Vec<_> = runtimes
        .iter()
        .map(|runtime| {
            let dir = runtime.hosts_dir();
            let mut pull = runtime.command(&["images", "pull", "--hosts-dir", dir.to_str().unwrap(), reference]);
            pull.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for pull in pulls {
        let ended = pull.wait_with_output().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
    for runtime in &runtimes {
        let output = runtime.run(reference, "sha256sum < /data/noise");
        assert!(output.contains(&shoal_containerd::sha256(&data)["sha256:".len()..]), "{output}");
    }
    let gets = registry.blobs_sent();
    assert_eq!(gets.len(), 3, "a configuration and two layers: {gets:?}");
    assert!(gets.values().all(|count| *count == 1), "a blob was pulled more than once: {gets:?}");

    // A repository that the operator did not name is refused at once.
    let dir = runtimes[0].hosts_dir();
    let other = ["images", "pull", "--hosts-dir", dir.to_str().unwrap(), "registry.example:5000/other/app:v1"];
    assert!(!runtimes[0].ctr(&other).status.success());
    until("the mirror counts the miss", || {
        let misses = region.peers[0].metric("shoal_mirror_requests_total{what=\"manifest\",outcome=\"miss\"}");
        (misses > 0).then_some(())
    });
}
