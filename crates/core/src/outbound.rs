//! What a sandbox with a network of its own may connect to.

use std::{fmt, str::FromStr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Where connections of a sandbox may go. Whatever it says, none reaches another sandbox, the
/// machine that it runs on, a control plane, or link-local addresses, where clouds keep their
/// metadata. Written `"none"`, `"internet"` or a list such as `["10.0.0.5:5432", "10.1.0.0/16"]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Outbound {
    /// Nowhere.
    None,
    /// To all public addresses, and to the machine's resolvers for names.
    #[default]
    Internet,
    /// There and nowhere else; resolvers too only if they are listed.
    Only(Vec<Destination>),
}

/// Hosts, by address, and a port of theirs or all; TCP and UDP alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    /// Which hosts.
    pub hosts: Ipv4Net,
    /// Which port; all if none is given.
    pub port: Option<u16>,
}

/// The longest list.
pub const MOST_DESTINATIONS: usize = 64;

/// A text that is no destination.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no destination: write an IPv4 address or network, with a port or without, such as \
     \"10.0.0.5:5432\" or \"10.1.0.0/16\"; names are not looked up"
)]
pub struct DestinationError {
    text: String,
}

impl Destination {
    /// Whether whatever the other one allows is allowed by this one.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.hosts.contains(&other.hosts) && (self.port.is_none() || self.port == other.port)
    }
}

impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, DestinationError> {
        let bad = || DestinationError { text: text.to_owned() };
        let (hosts, port) = match text.split_once(':') {
            None => (text, None),
            Some((hosts, port)) => {
                let port = port.parse().ok().filter(|port| *port != 0);
                (hosts, Some(port.ok_or_else(bad)?))
            }
        };
        let hosts = match hosts.parse::<std::net::Ipv4Addr>() {
            Ok(one) => Ipv4Net::from(one),
            Err(_no_address) => hosts.parse().map_err(|_reason| bad())?,
        };
        Ok(Self { hosts: hosts.trunc(), port })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.hosts.prefix_len() {
            32 => write!(f, "{}", self.hosts.addr())?,
            _ => write!(f, "{}", self.hosts)?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl fmt::Display for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Internet => f.write_str("internet"),
            Self::Only(list) => {
                for (n, destination) in list.iter().enumerate() {
                    let comma = if n == 0 { "" } else { ", " };
                    write!(f, "{comma}{destination}")?;
                }
                Ok(())
            }
        }
    }
}

impl Serialize for Outbound {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None | Self::Internet => serializer.collect_str(self),
            Self::Only(list) => serializer.collect_seq(list.iter().map(ToString::to_string)),
        }
    }
}

impl<'de> Deserialize<'de> for Outbound {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Visitor)
    }
}

struct Visitor;

impl<'de> de::Visitor<'de> for Visitor {
    type Value = Outbound;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"none\", \"internet\" or a list of destinations such as \"10.0.0.5:5432\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Outbound, E> {
        match text {
            "none" => Ok(Outbound::None),
            "internet" => Ok(Outbound::Internet),
            _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
        }
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut texts: A) -> Result<Outbound, A::Error> {
        let mut list: Vec<Destination> = Vec::new();
        while let Some(text) = texts.next_element::<String>()? {
            let destination = text.parse().map_err(de::Error::custom)?;
            if list.len() == MOST_DESTINATIONS {
                let message = format!("more than {MOST_DESTINATIONS} destinations");
                return Err(de::Error::custom(message));
            }
            list.push(destination);
        }
        // "Nowhere" has a word, and an empty list is rather a mistake.
        if list.is_empty() {
            return Err(de::Error::custom("no destination is listed: write \"none\" for nowhere"));
        }
        // Two lists that say the same are the same revision.
        list.sort_unstable();
        list.dedup();
        Ok(Outbound::Only(list))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Outbound, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn a_policy_is_read_and_written_back() {
        for json in [r#""none""#, r#""internet""#, r#"["10.0.0.5:5432","10.1.0.0/16"]"#] {
            let policy = read(json).unwrap();
            assert_eq!(serde_json::to_string(&policy).unwrap(), json);
        }
        assert_eq!(read(r#"["10.1.0.9/16", "10.0.0.5/32:5432"]"#), {
            read(r#"["10.0.0.5:5432", "10.1.0.0/16", "10.1.0.0/16"]"#)
        });
    }

    #[test]
    fn what_is_no_policy_is_told_with_what_would_be_one() {
        for (json, want) in [
            (r#""lan""#, "\"internet\""),
            (r#"["db.example:5432"]"#, "names are not looked up"),
            (r#"["10.0.0.5:0"]"#, "10.0.0.5:5432"),
            (r#"["10.0.0.5:"]"#, "10.0.0.5:5432"),
            (r#"["fd00::1"]"#, "IPv4"),
            ("[]", "none"),
            ("7", "none"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(want), "{json}: {error}");
        }
        let long: Vec<String> = (0..65).map(|n| format!("10.0.0.{n}")).collect();
        let error = read(&serde_json::to_string(&long).unwrap()).unwrap_err();
        assert!(error.contains("64"), "{error}");
    }

    #[test]
    fn a_network_covers_its_hosts_and_all_ports_each() {
        let d = |text: &str| text.parse::<Destination>().unwrap();
        assert!(d("10.0.0.0/8").covers(&d("10.0.0.5:5432")));
        assert!(d("10.0.0.0/8:80").covers(&d("10.1.0.0/16:80")));
        assert!(!d("10.0.0.0/8:80").covers(&d("10.1.0.0/16")));
        assert!(!d("10.1.0.0/16").covers(&d("10.0.0.0/8")));
    }
}
