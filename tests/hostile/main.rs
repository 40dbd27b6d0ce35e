//! Attacks on running roles: by strangers, by admitted hosts, by holders of a stolen key, and by users of a machine.
//!
//! Each test is one attack and what honest users see meanwhile. `docs/SECURITY.md` names the test of each threat.

mod admitted;
mod attacker;
mod audit;
mod backup;
mod claims;
mod disk;
mod http_places;
mod hub;
mod intruder;
mod joining;
mod kubeedge;
mod links;
mod lying_tracker;
mod member;
mod modes;
mod push_roots;
mod switch_race;
mod tokens;
mod tracker_strangers;
mod trust;
mod units;

const SHOAL: shoal_testkit::Program = shoal_testkit::program!();
