//! Traces of invocations, for whoever replays them: against a running system (`dirigent-bench`) or
//! in simulated time (`dirigent-sim`). Both make the same calls at the same times from one seed.
//!
//! - [`trace`]: the format of Azure Functions 2019, read.
//! - [`synthetic`]: a seeded trace drawn from the published distributions.
//! - [`arrivals`]: from counts per minute to single invocations.
//! - [`percentiles`]: summaries of samples.
//! - [`plot`], [`page`]: plots as inline SVG, and the page around them.
//!
//! It runs nothing and knows no system.

pub mod arrivals;
pub mod page;
pub mod percentiles;
pub mod plot;
pub mod synthetic;
pub mod trace;
