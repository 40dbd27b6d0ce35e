//! Switches on a real disk with real hooks: successful, failed and interrupted ones.

use super::*;
use crate::activation::content_dir::ContentSettings;
use crate::activation::mode_mask::ModeMask;
use shoal_proto::ids::JobId;
use shoal_service::units::Span;
use shoal_store::StoreConfig;
use shoal_store::ingest::{IngestOptions, IngestProgress};
use std::fs;
use std::sync::Arc;

struct Host {
    dir: tempfile::TempDir,
    context: Switch,
    versions: Vec<InstalledVersion>,
}

impl Host {
    /// A host on version 1 that also has version 2. Each hook appends its call to a file. A hook fails while the file
    /// `fail-HOOK-PHASE` exists, and waits while `wait-HOOK` exists.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(StoreConfig::new(dir.path().join("store")), Box::new(|_| {})).unwrap();
        let (content, mode_mask) = (dir.path().join("content"), ModeMask::default());
        let settings = ContentSettings { dir: content, keep_versions: 1, mode_mask };
        let folder = ContentDir::open(settings).unwrap();
        let mut versions = Vec::new();
        for number in 1..=2u64 {
            let source = dir.path().join(format!("source{number}"));
            fs::create_dir(&source).unwrap();
            fs::write(source.join("file"), format!("version {number}")).unwrap();
            let progress = Arc::new(IngestProgress::default());
            let content = store.ingest(&source, &IngestOptions::default(), &progress).unwrap().content;
            versions.push(InstalledVersion { version: number.to_string(), content, sequence: number });
        }
        folder.activate(&store, &versions[0].content, "edge/a", "1").unwrap();
        let home = dir.path().display();
        let script = format!(
            "cd {home}; echo $SHOAL_HOOK $SHOAL_PHASE $SHOAL_VERSION >> hooks; \
             while test -e wait-$SHOAL_HOOK; do sleep 0.02; done; \
             if test -e fail-$SHOAL_HOOK-$SHOAL_PHASE; then echo cannot $SHOAL_HOOK; exit 1; fi"
        );
        let argv = vec!["sh".to_string(), "-c".to_string(), script];
        let settings = ActivationSettings {
            pre_stop: argv.clone(),
            post_start: argv.clone(),
            check: argv,
            check_timeout: Span::seconds(60),
            ..ActivationSettings::default()
        };
        let (journal, name) = (Journal::new(dir.path()), "edge/a".to_string());
        let needed = vec!["1".to_string(), "2".to_string()];
        Self { context: Switch { store, folder, journal, settings, name, needed }, dir, versions }
    }

    fn record(&self, from: usize, to: usize, back: bool) -> SwitchRecord {
        let version = |number: usize| Some(self.versions[number - 1].clone());
        SwitchRecord {
            rollout: JobId([1; 16]),
            attempt: 1,
            step: SwitchStep::Prepare,
            from: version(from),
            to: version(to),
            before: version(1),
            back,
            state: HostState::Has,
            detail: String::new(),
        }
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn hooks(&self) -> Vec<String> {
        let text = fs::read_to_string(self.file("hooks")).unwrap_or_default();
        text.lines().map(str::to_string).collect()
    }

    fn current(&self) -> String {
        let current = self.context.folder.current("edge/a").unwrap();
        let text = fs::read_to_string(self.context.folder.folder("edge/a").join("current/file")).unwrap();
        assert_eq!(text, format!("version {current}"), "`current` is one whole version");
        current
    }
}

#[tokio::test]
async fn forward_and_back_run_each_hook_once() {
    let host = Host::new();
    let done = host.context.run(host.record(1, 2, false)).await;
    assert_eq!((done.state, done.step, host.current()), (HostState::Active, SwitchStep::Done, "2".into()));
    assert_eq!(host.hooks(), ["pre_stop forward 2", "post_start forward 2", "check forward 2"]);
    let done = host.context.run(host.record(2, 1, true)).await;
    assert_eq!((done.state, host.current()), (HostState::Failed(Reason::RolledBack), "1".into()));
    assert_eq!(host.hooks()[3..], ["pre_stop back 1", "post_start back 1", "check back 1"]);
    assert_eq!(SwitchRecord::load(&host.context.store), [("edge/a".to_string(), done)]);
}

#[tokio::test]
async fn a_failed_switch_keeps_or_restores_the_version() {
    let cases: [(&str, &[&str]); 3] = [
        ("pre_stop", &["pre_stop forward 2"]),
        ("post_start", &["pre_stop forward 2", "post_start forward 2", "post_start undo 1"]),
        ("check", &["pre_stop forward 2", "post_start forward 2", "check forward 2", "post_start undo 1"]),
    ];
    for (hook, expected) in cases {
        let host = Host::new();
        fs::write(host.file(&format!("fail-{hook}-forward")), "").unwrap();
        let done = host.context.run(host.record(1, 2, false)).await;
        assert_eq!((done.state, host.current()), (HostState::Failed(Reason::Activation), "1".into()), "{hook}");
        assert!(done.detail.contains(&format!("cannot {hook}")), "{}", done.detail);
        assert_eq!(host.hooks(), expected);
    }
    // A failed rollback is not undone.
    let host = Host::new();
    host.context.run(host.record(1, 2, false)).await;
    fs::write(host.file("fail-post_start-back"), "").unwrap();
    let done = host.context.run(host.record(2, 1, true)).await;
    assert_eq!((done.state, host.current()), (HostState::Failed(Reason::Activation), "1".into()));
}

#[tokio::test]
async fn an_interrupted_switch_resumes_at_its_step() {
    for (hook, on) in [("pre_stop", "1"), ("post_start", "2"), ("check", "2")] {
        let host = Host::new();
        fs::write(host.file(&format!("wait-{hook}")), "").unwrap();
        let (context, record) = (host.context.clone(), host.record(1, 2, false));
        let work = tokio::spawn(async move { context.run(record).await });
        while !host.hooks().iter().any(|line| line.starts_with(hook)) {
            tokio::task::yield_now().await;
        }
        work.abort();
        assert!(work.await.is_err());
        assert_eq!(host.current(), on);
        let (_, interrupted) = SwitchRecord::load(&host.context.store).remove(0);
        assert_ne!(interrupted.step, SwitchStep::Done);
        fs::remove_file(host.file(&format!("wait-{hook}"))).unwrap();
        let done = host.context.run(interrupted).await;
        assert_eq!((done.state, host.current()), (HostState::Active, "2".into()));
        for other in ["pre_stop", "post_start", "check"] {
            let times = host.hooks().iter().filter(|line| line.starts_with(other)).count();
            assert_eq!(times, if other == hook { 2 } else { 1 }, "{hook} was interrupted: {:?}", host.hooks());
        }
    }
}
