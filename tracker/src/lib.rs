//! The tracker role: membership, liveness and the folding of hosts' reports.
