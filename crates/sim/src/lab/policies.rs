//! Rivals and ablations, one file each. They exist to be compared with: nothing of them ships.

pub mod artifact;
pub mod clairvoyant;
pub mod histogram;
pub mod knative;
pub mod reduced;
