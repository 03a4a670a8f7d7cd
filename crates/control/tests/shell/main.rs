//! The control plane over real TCP, with workers and data planes played by the tests.

mod artifacts;
mod compat;
mod host;
mod http;
mod routes;
