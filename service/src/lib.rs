//! The parts that every long-running role needs: configuration, logs, HTTP, metrics, tasks and shutdown.
//!
//! Owns: the process, not its work.
//! Invariant: nothing here knows a role, a content or a host.
//!
//! Where to look: layered configuration in [`config`] and its units in [`units`]; the HTTP server of each role in
//! [`http_server`], its [`routes`], and the refusal of malformed requests in [`extract`]; the one HTTP transport and
//! the client of the roles' APIs in [`http_client`]; metrics in [`metrics`]; tasks and stopping in [`shutdown`]; state
//! in and out in [`backup`], state folders in [`folders`] and their places in [`folder_places`], the record of changes
//! in [`audit`], the limit of open files in [`descriptors`], hashes of tokens in [`token_hash`], tables of a database
//! in [`tables`]; logs in [`logs`]; the size of the machine in [`machine`].
//!
//! Terms are in `docs/GLOSSARY.md`.

pub mod access;
pub mod audit;
pub mod backup;
pub mod config;
pub mod descriptors;
pub mod error_text;
pub mod extract;
pub mod folder_places;
pub mod folders;
pub mod http_client;
pub mod http_server;
mod log_queue;
pub mod logs;
pub mod machine;
pub mod metrics;
pub mod routes;
pub mod shutdown;
pub mod tables;
pub mod token_hash;
pub mod trust_metrics;

pub use shoal_api::units;
