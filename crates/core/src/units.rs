//! Quantities with units, as users write them: `128MiB`, `100m`, `30s`.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An amount of memory or disk in bytes. Written `128MiB`, `1GB` or a plain number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

impl Bytes {
    /// `n` mebibytes.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// For messages: rounded down to a tenth of the largest unit that fits. Not to be read back.
    #[must_use]
    pub fn rounded(self) -> String {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            let whole = self.0 >> shift;
            if whole > 0 {
                let tenth = (((self.0 - (whole << shift)) >> (shift - 10)) * 10) >> 10;
                let tenth = if tenth == 0 { String::new() } else { format!(".{tenth}") };
                return format!("{whole}{tenth}{unit}");
            }
        }
        format!("{}B", self.0)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 >> shift > 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl FromStr for Bytes {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let size: bytesize::ByteSize = text.parse().map_err(|_reason| UnitError {
            text: text.to_owned(),
            want: "a size such as \"128MiB\" or \"1GB\"",
        })?;
        Ok(Self(size.as_u64()))
    }
}

/// A share of processors in thousandths of a core. Written `100m`, `0.5` or `2`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MilliCpu(pub u32);

impl fmt::Display for MilliCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}m", self.0)
    }
}

impl FromStr for MilliCpu {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bad = || UnitError {
            text: text.to_owned(),
            want: "processor shares such as \"100m\" (a tenth of a core), \"0.5\" or \"2\"",
        };
        if let Some(milli) = text.strip_suffix('m') {
            return milli.parse().map(Self).map_err(|_reason| bad());
        }
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        if fraction.len() > 3 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        let whole: u32 = whole.parse().map_err(|_reason| bad())?;
        let thousandths: u32 = format!("{fraction:0<3}").parse().map_err(|_reason| bad())?;
        whole
            .checked_mul(1000)
            .and_then(|milli| milli.checked_add(thousandths))
            .map(Self)
            .ok_or_else(bad)
    }
}

/// Text that is not a quantity of the wanted kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {want}")]
pub struct UnitError {
    text: String,
    want: &'static str,
}

impl UnitError {
    pub(crate) fn new(text: &str, want: &'static str) -> Self {
        Self { text: text.to_owned(), want }
    }
}

macro_rules! serde_as_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a string with a unit")
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Visitor)
            }
        }
    };
}

pub(crate) use serde_as_text;

serde_as_text!(Bytes);
serde_as_text!(MilliCpu);

/// Serde for a duration as users write it: `"30s"`, `"100ms"`, `"15m"`.
/// Use as `#[serde(with = "units::duration")]`.
pub mod duration {
    use super::{Deserialize, Deserializer, Duration, Serializer, de};

    /// Writes `30s`.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*value))
    }

    /// Reads `30s`.
    ///
    /// # Errors
    /// If the text is not a duration; the message says what one looks like.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map_err(|_reason| {
            de::Error::custom(format!("`{text}` is not a duration such as \"30s\" or \"5m\""))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        assert_eq!("128MiB".parse(), Ok(Bytes::mib(128)));
        assert_eq!("1GB".parse(), Ok(Bytes(1_000_000_000)));
        assert_eq!(Bytes::mib(128).to_string(), "128MiB");
        assert_eq!(Bytes(1500).to_string(), "1500B");
        assert_eq!(Bytes(1500).rounded(), "1.4KiB");
        assert_eq!(Bytes(20_221_201_608).rounded(), "18.8GiB");
        assert_eq!(Bytes::mib(128).rounded(), "128MiB");
        assert_eq!((Bytes(12).rounded(), Bytes(u64::MAX).rounded().len()), ("12B".into(), 13));
        assert!("lots".parse::<Bytes>().is_err());
    }

    #[test]
    fn processor_shares_are_read_and_written() {
        assert_eq!("100m".parse(), Ok(MilliCpu(100)));
        assert_eq!("0.5".parse(), Ok(MilliCpu(500)));
        assert_eq!("2".parse(), Ok(MilliCpu(2000)));
        for bad in ["", "m", "-1", "1.2345", "1.x", "99999999"] {
            assert!(bad.parse::<MilliCpu>().is_err(), "{bad}");
        }
    }
}
