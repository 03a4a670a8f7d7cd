//! Logs of this process: to standard error, as text or JSON, filtered by target and level.

use std::{fmt, io::IsTerminal as _, str::FromStr};

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

impl FromStr for Format {
    type Err = TelemetryError;

    fn from_str(text: &str) -> Result<Self, TelemetryError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(TelemetryError::Format { text: text.to_owned() }),
        }
    }
}

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Neither text nor json.
    #[error("`{text}` is not a log format: use `text` or `json`")]
    Format {
        /// What was given.
        text: String,
    },
    /// The filter cannot be read.
    #[error("`{filter}` is not a log filter such as `info` or `warn,dirigent_control=debug`")]
    Filter {
        /// What was given.
        filter: String,
        /// Why not.
        #[source]
        source: Box<tracing_subscriber::filter::ParseError>,
    },
    /// Logging was started before.
    #[error("logging was started before")]
    Twice,
}

/// Start logging, once per process, with a filter such as `info` or `warn,dirigent_control=debug`.
///
/// # Errors
/// If the filter cannot be read, or logging was started before.
pub fn init(format: Format, filter: &str) -> Result<(), TelemetryError> {
    let env_filter = parse(filter)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(env_filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = match format {
        Format::Text => builder.try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|_already| TelemetryError::Twice)
}

fn parse(filter: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::try_new(filter).map_err(|source| TelemetryError::Filter {
        filter: filter.to_owned(),
        source: Box::new(source),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_filter_or_format_says_what_a_right_one_looks_like() {
        assert!(parse("info,dirigent_control=debug").is_ok());
        let error = parse("a=b=c").unwrap_err().to_string();
        assert!(error.contains("`a=b=c` is not a log filter"), "{error}");
        assert_eq!("json".parse::<Format>().unwrap(), Format::Json);
        assert!("xml".parse::<Format>().is_err());
    }
}
