//! The control plane over real TCP, with workers and data planes played by the tests.

#![cfg(test)]

mod artifacts;
mod compat;
mod host;
mod http;
mod life;
mod logs;
mod peers;
mod routes;
mod tokens;
