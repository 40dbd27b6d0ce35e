//! The hub role: durable completion reports and their queries.
