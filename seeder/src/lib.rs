//! The seeder role: ingest, publishing and jobs.
