//! Attacks on running roles: by strangers, by admitted hosts, and by holders of a stolen key.
//!
//! Each test is one attack and what honest users see meanwhile. `docs/SECURITY.md` names the test of each threat.

mod http_places;
