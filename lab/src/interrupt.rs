//! SIGINT and SIGTERM. They set a flag, and every wait of the lab checks the flag, so that a run ends with its
//! cleaning.

use std::sync::atomic::{AtomicBool, Ordering};

static SEEN: AtomicBool = AtomicBool::new(false);

/// Whether a signal has arrived.
pub(crate) fn seen() -> bool {
    SEEN.load(Ordering::Relaxed)
}

/// Fails once a signal has arrived.
pub(crate) fn check() -> anyhow::Result<()> {
    anyhow::ensure!(!seen(), "interrupted");
    Ok(())
}

/// Handles signals from now on.
pub(crate) fn watch() -> std::io::Result<()> {
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
