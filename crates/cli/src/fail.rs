//! How a command ends badly: whose fault, why, and what to do about it.
//!
//! Each kind has an exit code of its own, so that scripts can tell "try again" from "fix this".

use std::{fmt, process::ExitCode};

use crate::printer::Printer;

/// Whose fault it is. The numbers are the exit codes, documented in `--help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What was asked for cannot be done: no such function, a deploy whose check failed.
    User,
    /// A flag, a manifest or a configuration file is wrong.
    Config,
    /// Somebody does not answer, or something is taken: try again, or start it.
    Unavailable,
    /// A bug, or a machine that does not do what it must.
    Internal,
    /// The user pressed Ctrl-C; what was begun has been cleaned up.
    Interrupted,
}

impl Kind {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::User => 1,
            Self::Config => 2,
            Self::Unavailable => 3,
            Self::Internal => 70,
            Self::Interrupted => 130,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Config => "config",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
            Self::Interrupted => "interrupted",
        }
    }
}

/// The table of exit codes for `--help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0   done
  1   what was asked for cannot be done (no such function, a deploy whose check failed)
  2   a flag, a manifest or a configuration file is wrong
  3   unavailable: nothing answers, or a port or directory is taken
  70  internal error
  130 interrupted";

/// A failure with its kind, its cause chain and hints.
#[derive(Debug)]
pub(crate) struct Fail {
    kind: Kind,
    error: anyhow::Error,
    /// Lines shown as they are below the message, such as a sandbox's last words.
    details: Vec<String>,
    hints: Vec<String>,
}

/// What commands return.
pub(crate) type Result<T = (), E = Fail> = std::result::Result<T, E>;

impl Fail {
    pub(crate) fn new(kind: Kind, error: impl Into<anyhow::Error>) -> Self {
        Self { kind, error: error.into(), details: Vec::new(), hints: Vec::new() }
    }

    pub(crate) fn user(message: impl fmt::Display) -> Self {
        Self::new(Kind::User, anyhow::anyhow!("{message}"))
    }

    pub(crate) fn config(message: impl fmt::Display) -> Self {
        Self::new(Kind::Config, anyhow::anyhow!("{message}"))
    }

    pub(crate) fn unavailable(message: impl fmt::Display) -> Self {
        Self::new(Kind::Unavailable, anyhow::anyhow!("{message}"))
    }

    pub(crate) fn internal(message: impl fmt::Display) -> Self {
        Self::new(Kind::Internal, anyhow::anyhow!("{message}"))
    }

    pub(crate) fn interrupted() -> Self {
        Self::new(Kind::Interrupted, anyhow::anyhow!("interrupted"))
    }

    /// For those who have no kinds: message, causes, details and hints become the text.
    pub(crate) fn into_error(self) -> anyhow::Error {
        let text: Vec<String> = self.details.iter().chain(&self.hints).cloned().collect();
        if text.is_empty() { self.error } else { self.error.context(text.join("; ")) }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    pub(crate) fn details(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        self.details.extend(lines);
        self
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// The reader of our output left (`dirigent list | head`): no failure at all.
    fn is_closed_pipe(&self) -> bool {
        self.error.chain().any(|cause| {
            cause
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
        })
    }

    /// Message, causes, details and hints, a line each.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("error: {}", self.error)];
        let mut said = self.error.to_string();
        for cause in self.error.chain().skip(1) {
            let text = cause.to_string();
            // Some libraries repeat their cause in their own message.
            if !said.contains(&text) {
                lines.push(format!("  caused by: {text}"));
            }
            said = text;
        }
        lines.extend(self.details.iter().map(|line| format!("  {line}")));
        lines.extend(self.hints.iter().map(|hint| format!("hint: {hint}")));
        lines
    }

    /// Tells the user; returns the exit code.
    pub(crate) fn report(&self, printer: &Printer) -> ExitCode {
        if self.is_closed_pipe() {
            return ExitCode::SUCCESS;
        }
        if printer.is_json() {
            let causes: Vec<_> = self.error.chain().skip(1).map(ToString::to_string).collect();
            printer.note(&serde_json::json!({ "error": {
                "kind": self.kind.name(),
                "message": self.error.to_string(),
                "causes": causes,
                "details": self.details,
                "hints": self.hints,
            }}));
        } else {
            self.lines().iter().for_each(|line| printer.problem(line));
        }
        ExitCode::from(self.kind.code())
    }
}

/// Turns a library's error into a failure with a sentence of context.
pub(crate) trait OrFail<T> {
    fn or_fail<C>(self, kind: Kind, context: impl FnOnce() -> C) -> Result<T>
    where
        C: fmt::Display + Send + Sync + 'static;
}

impl<T, E: Into<anyhow::Error>> OrFail<T> for std::result::Result<T, E> {
    fn or_fail<C>(self, kind: Kind, context: impl FnOnce() -> C) -> Result<T>
    where
        C: fmt::Display + Send + Sync + 'static,
    {
        self.map_err(|error| Fail::new(kind, error.into().context(context())))
    }
}

/// Output that cannot be written.
impl From<std::io::Error> for Fail {
    fn from(error: std::io::Error) -> Self {
        Self::new(Kind::Internal, error)
    }
}

impl From<serde_json::Error> for Fail {
    fn from(error: serde_json::Error) -> Self {
        Self::new(Kind::Internal, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_listed_once_and_hints_come_last() {
        let inner = std::io::Error::other("disk on fire");
        let fail = Err::<(), _>(inner)
            .or_fail(Kind::Unavailable, || "cannot read the token")
            .unwrap_err()
            .hint("put it out");
        assert_eq!(
            fail.lines(),
            ["error: cannot read the token", "  caused by: disk on fire", "hint: put it out"]
        );
        let repeated = anyhow::anyhow!("disk on fire").context("read: disk on fire");
        assert_eq!(Fail::new(Kind::Internal, repeated).lines(), ["error: read: disk on fire"]);
    }
}
