//! Names of functions: `namespace/name`, both DNS labels.

mod host;

pub use host::{Candidate, HostRules, Route};

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The namespace that may be left out everywhere.
pub const DEFAULT_NAMESPACE: &str = "default";

/// `namespace/name`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FunctionName {
    namespace: Arc<str>,
    name: Arc<str>,
}

impl FunctionName {
    /// The function `name` in `namespace`.
    ///
    /// # Errors
    /// If either is not a DNS label.
    pub fn new(namespace: &str, name: &str) -> Result<Self, NameError> {
        Ok(Self { namespace: label(namespace)?, name: label(name)? })
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name within the namespace.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// RFC 1123: 1 to 63 of a-z, 0-9 and '-', not at the ends. Upper case is refused rather than
/// folded, so that one function has one spelling in records, logs and metrics.
fn label(text: &str) -> Result<Arc<str>, NameError> {
    let fits = (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-');
    if fits { Ok(text.into()) } else { Err(NameError { text: text.to_owned() }) }
}

impl fmt::Display for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if &*self.namespace == DEFAULT_NAMESPACE {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

impl fmt::Debug for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for FunctionName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (namespace, name) = text.split_once('/').unwrap_or((DEFAULT_NAMESPACE, text));
        Self::new(namespace, name).map_err(|_part| NameError { text: text.to_owned() })
    }
}

impl Serialize for FunctionName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for FunctionName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Text that is not a function's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a function name: use NAME or NAMESPACE/NAME, each 1 to 63 of a-z, 0-9 and `-`, \
     not starting or ending with `-`"
)]
pub struct NameError {
    text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_namespace_may_be_omitted() {
        let name: FunctionName = "hello".parse().unwrap();
        assert_eq!((name.namespace(), name.name()), ("default", "hello"));
        assert_eq!(name.to_string(), "hello");
        assert_eq!("default/hello".parse(), Ok(name));
        assert_eq!("media/thumbs".parse::<FunctionName>().unwrap().to_string(), "media/thumbs");
    }

    #[test]
    fn names_that_are_no_dns_labels_are_refused() {
        for bad in ["", "/", "a/", "/a", "A", "a_b", "-a", "a-", "a/b/c", &"x".repeat(64)] {
            assert!(bad.parse::<FunctionName>().is_err(), "{bad}");
        }
    }
}
