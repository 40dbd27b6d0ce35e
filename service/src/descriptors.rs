//! The process's limit of open files, and how many connections fit below it.
//!
//! Invariant: a role that started has a descriptor for each connection that its settings allow, and [`RESERVE`] others.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors of a role beside the connections that it counts: its HTTP port, database, log and tasks.
pub const RESERVE: u32 = 1024;
/// Connections without which no role starts.
const FEWEST: u32 = 64;

/// The limit of open files is too small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the limit of open files is {limit}, but {connections} connections need {needed}; raise the limit \
     (`LimitNOFILE=` of the unit, `ulimit -n`) or lower `{key}`"
)]
pub struct DescriptorError {
    /// The process's limit.
    pub limit: u64,
    /// Connections that were configured.
    pub connections: u32,
    /// Descriptors that these connections and everything else need.
    pub needed: u64,
    /// The setting with the number of connections.
    pub key: &'static str,
}

/// Raises the limit of open files as far as the process may, and returns it.
fn raise() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let (current, maximum) = (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX));
    if current < maximum && setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).is_ok() {
        return maximum;
    }
    current
}

/// Returns how many connections a role may have: `wanted`, or by default as many as the limit of open files allows and
/// at most `default_max`. `others` is the number of descriptors that the role needs besides them.
///
/// # Errors
/// Fails if the limit of open files is too small for `wanted`, or for a few connections.
pub fn connections(
    key: &'static str,
    wanted: Option<u32>,
    default_max: u32,
    others: u32,
) -> Result<u32, DescriptorError> {
    fit(raise(), key, wanted, default_max, others)
}

fn fit(
    limit: u64,
    key: &'static str,
    wanted: Option<u32>,
    default_max: u32,
    others: u32,
) -> Result<u32, DescriptorError> {
    let others = u64::from(RESERVE) + u64::from(others);
    let room = u32::try_from(limit.saturating_sub(others)).unwrap_or(u32::MAX);
    let connections = wanted.unwrap_or(default_max.min(room).max(FEWEST));
    if connections > room {
        return Err(DescriptorError { limit, connections, needed: others + u64::from(connections), key });
    }
    Ok(connections)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "bounds.connections";

    #[test]
    fn connections_fit_below_the_limit_of_open_files() {
        assert_eq!(fit(1 << 20, KEY, None, 65_536, 100), Ok(65_536));
        assert_eq!(fit(20_000, KEY, None, 65_536, 976), Ok(18_000));
        assert_eq!(fit(20_000, KEY, Some(18_000), 65_536, 976), Ok(18_000));
        assert_eq!(fit(u64::MAX, KEY, Some(u32::MAX), 1, u32::MAX), Ok(u32::MAX));
        let short = fit(20_000, KEY, Some(18_001), 65_536, 976).unwrap_err();
        assert_eq!((short.limit, short.needed), (20_000, 20_001));
        let text = short.to_string();
        assert!(text.contains("LimitNOFILE") && text.contains(KEY), "{text}");
        assert_eq!(fit(1024, KEY, None, 65_536, 0).unwrap_err().connections, FEWEST);
    }

    #[test]
    fn the_limit_of_this_process_is_raised_to_what_it_may_be() {
        let raised = raise();
        assert_eq!(raise(), raised);
        assert_eq!(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX), raised);
    }
}
