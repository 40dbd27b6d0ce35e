//! Pieces on disk, their index, the erasure codec and the quota.
