//! Hosts as people write them: an address, or a network.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, de};

/// Hosts that are let in, or believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct Admitted(pub(crate) IpNet);

impl<'de> Deserialize<'de> for Admitted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let one = || text.parse::<IpAddr>().ok().map(IpNet::from);
        text.parse().ok().or_else(one).map(Self).ok_or_else(|| {
            de::Error::custom(format!(
                "`{text}` is neither an address nor a network such as \"10.1.0.0/16\""
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_network_of_one() {
        let read = |text: &str| serde_json::from_value::<Admitted>(text.into());
        let written = |text| serde_json::to_value(read(text).unwrap()).unwrap();
        assert_eq!(written("10.1.2.3"), "10.1.2.3/32");
        assert_eq!(written("10.1.0.0/16"), "10.1.0.0/16");
        assert_eq!(written("fd00::1"), "fd00::1/128");
        assert!(read("10.1.0.0/40").unwrap_err().to_string().contains("10.1.0.0/40"));
    }
}
