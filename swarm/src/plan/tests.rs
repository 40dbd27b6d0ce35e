//! plan tests
