//! What a sandbox reaches of the machine without a path and without a port: names of Unix sockets in
//! the abstract name space, which belongs to a network name space, not to a root file system.
//!
//! Landlock keeps them apart for sandboxes that share the machine's network. It is the second layer for
//! those that have their own. From Linux 6.12 on (version 6 of its interface).

use landlock::{Access as _, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _, Scope};

/// Why it is not there.
pub(super) type Missing = landlock::RulesetError;

/// Whether this kernel does it.
pub(super) fn look() -> Result<(), Missing> {
    rules()?.create().map(drop)
}

/// From here on this process and its descendants connect to no abstract name but their own, and signal
/// nobody else.
pub(super) fn confine() -> Result<(), Missing> {
    rules()?.create()?.restrict_self().map(drop)
}

fn rules() -> Result<Ruleset, Missing> {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .scope(Scope::from_all(landlock::ABI::V6))
}
