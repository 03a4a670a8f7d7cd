//! Reads `dirigent.toml` for `deploy`, with errors that point at the line; finds out what a folder
//! without one is; puts flags on top.
//!
//! The rules themselves are core's (`Manifest::validate`); here they only get a place in a file.

use std::{fs, ops::Range, path::Path};

use dirigent_core::manifest::{Manifest, ManifestError};

use crate::{
    fail::{Fail, Kind, OrFail as _, Result},
    format::nearest,
};

/// The file's name in a function's folder.
pub(crate) const FILE: &str = "dirigent.toml";

/// A manifest's text with its place, to point at.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// As shown to the user.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Source {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .or_fail(Kind::Config, || format!("cannot read {}", path.display()))?;
        Ok(Self { path: path.display().to_string(), text })
    }

    /// The manifest as written. Its rules are not checked yet: flags may mend it.
    pub(crate) fn parse(&self) -> Result<Manifest> {
        toml::from_str(&self.text).map_err(|error| {
            let message = error.message().to_owned();
            let fail = self.fail(error.span(), &message);
            hints(&message).into_iter().fold(fail, Fail::hint)
        })
    }

    /// The failure that a broken rule is.
    pub(crate) fn broken(&self, error: &ManifestError) -> Fail {
        self.fail(self.find(error.key), &error.to_string())
    }

    /// A message with its place and the line marked.
    fn fail(&self, span: Option<Range<usize>>, message: &str) -> Fail {
        let Some(span) = span.filter(|span| span.start <= self.text.len()) else {
            return Fail::config(format!("{}: {message}", self.path));
        };
        let before = self.text.get(..span.start).unwrap_or_default();
        let number = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = self.text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or_default();
        let column = span.start - start;
        let width = span.len().min(line.len().saturating_sub(column)).max(1);
        let margin = " ".repeat(number.to_string().len());
        Fail::config(format!("{}:{number}:{}: {message}", self.path, column + 1)).details([
            format!("{margin} |"),
            format!("{number} | {line}"),
            format!("{margin} | {}{}", " ".repeat(column), "^".repeat(width)),
        ])
    }

    /// Where the value of a key such as `scaling.max` stands, or the nearest table around it.
    fn find(&self, key: &str) -> Option<Range<usize>> {
        let document = toml::de::DeTable::parse(&self.text).ok()?;
        let mut table = document.get_ref();
        let mut found = None;
        for part in key.split('.') {
            let Some((name, value)) = table.iter().find(|(name, _)| name.get_ref() == part) else {
                break;
            };
            found = Some(match value.get_ref() {
                toml::de::DeValue::Table(_) => name.span(),
                _ => value.span(),
            });
            match value.get_ref().as_table() {
                Some(inner) => table = inner,
                None => break,
            }
        }
        found
    }
}

/// What to do about a message of the TOML reader.
fn hints(message: &str) -> Vec<String> {
    let mut words = message.split('`').skip(1).step_by(2);
    if message.starts_with("unknown field") || message.starts_with("unknown variant") {
        let wrong = words.next().unwrap_or_default();
        let near = nearest(wrong, words).map(|near| format!("did you mean `{near}`?"));
        return near.into_iter().collect();
    }
    if message.contains("missing field `name`") {
        return vec!["begin with: name = \"hello\"".to_owned()];
    }
    if message.contains("missing field `sandbox`") {
        return vec!["say what runs: [sandbox] and command = [\"python3\", \"app.py\"]".to_owned()];
    }
    if message.contains("expected a sequence") {
        return vec!["write a list: [\"python3\", \"app.py\"]".to_owned()];
    }
    let simple = [
        ("expected a string with a unit", "write it with a unit: \"128MiB\", \"100m\""),
        ("expected a string", "write it in quotes"),
        ("expected u32", "write a whole number, 0 or more"),
        ("expected u16", "write a port, 1 to 65535"),
        ("expected a boolean", "write true or false"),
    ];
    let found = simple.iter().find(|(words, _)| message.contains(words));
    found.map(|(_, hint)| (*hint).to_owned()).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source { path: "f/dirigent.toml".to_owned(), text: text.to_owned() }
    }

    #[test]
    fn unknown_keys_are_pointed_at() {
        let text = "name = \"a\"\n[sandbox]\ncomand = [\"x\"]\n";
        let lines = source(text).parse().unwrap_err().lines();
        assert!(lines[0].starts_with("error: f/dirigent.toml:3:1: unknown field `comand`"));
        assert_eq!(
            lines[1..],
            ["    |", "  3 | comand = [\"x\"]", "    | ^^^^^^", "hint: did you mean `command`?"]
        );
    }

    #[test]
    fn broken_rules_are_found_in_the_file() {
        let text = "name = \"a\"\n[sandbox]\ncommand = [\"x\"]\n[scaling]\nmin = 5\nmax = 2\n";
        let error = ManifestError { key: "scaling.max", problem: "is less than min".to_owned() };
        let lines = source(text).broken(&error).lines();
        assert_eq!(lines[0], "error: f/dirigent.toml:6:7: `scaling.max` is less than min");
        assert_eq!(lines[3], "    |       ^");
        let error = ManifestError { key: "sandbox.image", problem: "is missing".to_owned() };
        assert!(source(text).broken(&error).lines()[0].contains(":2:2:"), "the table around it");
        let error = ManifestError { key: "env", problem: "is odd".to_owned() };
        assert_eq!(source(text).broken(&error).lines(), ["error: f/dirigent.toml: `env` is odd"]);
    }
}
