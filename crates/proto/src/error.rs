//! Why a frame that was received is none.

use std::fmt;

/// A message that is no frame of this version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A newer peer's: it is answered `Unsupported` with this kind, and the stream goes on.
    #[error("the kind of frame `{kind}` is not known here")]
    Unknown {
        /// Whose frame and which, as far as the sender named it: `FromWorker.Teleport`.
        kind: String,
    },
    /// The sender broke the protocol: its stream is closed.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

impl FrameError {
    /// What the sender called it is shown to people, so it is kept to a few plain characters.
    pub(crate) fn unknown(frame: &str, name: &str) -> Self {
        let name: String = name.chars().filter(char::is_ascii_alphanumeric).take(64).collect();
        let name = if name.is_empty() { "?" } else { &name };
        Self::Unknown { kind: format!("{frame}.{name}") }
    }
}

/// A field that cannot be what it says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {why}")]
pub struct Malformed {
    /// From the frame down: `FromWorker.SandboxGone.failure.log_tail[3]`.
    pub field: String,
    /// What is wrong with it.
    pub why: Why,
}

/// What is wrong with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is not there, or of a kind that is not known here.
    Missing,
    /// It is a number that none of the known values has.
    NoSuchValue(i32),
    /// It is longer than this, in bytes or elements.
    TooLong(usize),
    /// It is of another length than those possible.
    WrongLength(usize),
    /// It is a number larger than this.
    TooLarge(u32),
    /// It is not the name of a function.
    NoName,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("is missing, or of an unknown kind"),
            Self::NoSuchValue(value) => write!(f, "has the unknown value {value}"),
            Self::TooLong(limit) => write!(f, "is longer than {limit}"),
            Self::WrongLength(length) => write!(f, "is {length} bytes long"),
            Self::TooLarge(limit) => write!(f, "is larger than {limit}"),
            Self::NoName => f.write_str("is not a function name"),
        }
    }
}

impl Malformed {
    pub(crate) fn new(why: Why) -> Self {
        Self { field: String::new(), why }
    }

    /// The same, seen from the field's holder.
    pub(crate) fn within(mut self, holder: &str) -> Self {
        let dot = if self.field.is_empty() || self.field.starts_with('[') { "" } else { "." };
        self.field.insert_str(0, dot);
        self.field.insert_str(0, holder);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_named_from_the_frame_down() {
        let malformed = Malformed::new(Why::TooLong(3)).within("[7]").within("names");
        let malformed = malformed.within("Hello").within("FromDataPlane");
        assert_eq!(malformed.to_string(), "`FromDataPlane.Hello.names[7]` is longer than 3");
    }

    #[test]
    fn an_unknown_kind_has_a_plain_name() {
        let kind = |name: &str| FrameError::unknown("ToWorker", name).to_string();
        assert_eq!(kind("Teleport"), "the kind of frame `ToWorker.Teleport` is not known here");
        assert_eq!(kind("a\n\u{1b}[31mb"), "the kind of frame `ToWorker.a31mb` is not known here");
        assert_eq!(kind(""), "the kind of frame `ToWorker.?` is not known here");
        assert!(kind(&"x".repeat(1000)).len() < 120);
    }
}
