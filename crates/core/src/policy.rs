//! Policies: pure functions and small state, chosen by configuration, used by the machines.
