//! TLS for bulk links.
