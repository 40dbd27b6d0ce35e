//! node tests
