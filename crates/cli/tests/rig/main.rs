//! Clusters on hosts that the tests make, while their parts die. Each case is a file that reads as
//! its script.

#![cfg(test)]

mod admitted;
mod disk;
mod emulated;
mod etcd;
mod leader;
mod links;
mod partition;
mod plane;
mod rolling;
mod stage;
mod worker;
