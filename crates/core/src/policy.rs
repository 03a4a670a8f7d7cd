//! Policies: pure functions and small state, used by the machines.
//!
//! A policy is told everything that it decides from, by value; it knows no machine, keeps no clock
//! and refuses to know ids beyond those that it is handed. What ships is here; rivals for
//! comparison live in the simulator, behind [`placement::Placement`] and [`scaling::Scaling`].

pub mod adaptive;
pub mod ewma;
pub mod keep_alive;
pub mod kpa;
pub mod placement;
pub mod random;
pub mod scaling;
pub mod starts;
