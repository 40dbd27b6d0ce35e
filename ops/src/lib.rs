//! What every long-running role needs: configuration, logs, health, metrics and shutdown.
