//! What every long-running role shares: configuration, logs, health, metrics, tasks and shutdown.
//!
//! Owns: the process, not what it does. Invariant: nothing here knows a role, a content or a host.
//!
//! Where to look: layered configuration in [`config`] and its human units in [`units`]; the HTTP server every role opens
//! in [`http_server`], its [`routes`], and refusals of requests in [`extract`]; its client in [`http_client`]; counters in [`metrics`]; stopping in [`shutdown`]; state in and out in [`backup`], a database's in [`tables`]; logs in [`logs`].

pub mod backup;
pub mod config;
pub mod extract;
pub mod http_client;
pub mod http_server;
pub mod logs;
pub mod metrics;
pub mod routes;
pub mod shutdown;
pub mod tables;

pub use shoal_api::units;
