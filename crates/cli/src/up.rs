//! `dirigent up`: every role in one process.

pub(crate) mod config;
