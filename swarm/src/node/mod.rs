//! stub
/// Shards outstanding on a link.
pub const LINK_WINDOW_SHARDS: usize = 4;
