//! Ctrl-C and SIGTERM: noticed, and the run winds down by itself.

use std::sync::atomic::{AtomicBool, Ordering};

static SEEN: AtomicBool = AtomicBool::new(false);

/// Whether the lab was told to stop.
pub(super) fn seen() -> bool {
    SEEN.load(Ordering::Relaxed)
}

/// Fails once the lab was told to stop.
pub(super) fn check() -> anyhow::Result<()> {
    anyhow::ensure!(!seen(), "interrupted");
    Ok(())
}

/// Notices signals from now on.
pub(super) fn watch() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        SEEN.store(true, Ordering::Relaxed);
    });
    Ok(())
}
