//! Every format of this crate, from outside: its golden bytes, its round trip, what it refuses.

mod bitmap;
mod geometry;
mod golden;
mod hostile;
mod image;
mod manifest;
mod roundtrip;
mod samples;
mod trust;
mod trust_life;
