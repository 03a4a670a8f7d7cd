//! The one place that writes to the terminal: data to standard output, everything else to standard
//! error, so that output can be piped. Colours and live updates only on a terminal (`NO_COLOR` is
//! obeyed).

use std::{
    fmt,
    io::{self, IsTerminal as _, Write as _},
};

use indicatif::ProgressBar;
use owo_colors::OwoColorize as _;
use serde::Serialize;

use crate::fail::Result;

/// How a command talks to its user.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Printer {
    json: bool,
    verbose: bool,
}

impl Printer {
    pub(crate) fn new(json: bool, verbose: bool) -> Self {
        Self { json, verbose }
    }

    /// Whether data is wanted as JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Whether a person watches standard output.
    pub(crate) fn is_live(&self) -> bool {
        !self.json && io::stdout().is_terminal()
    }

    /// How far something is, for a person who watches.
    pub(crate) fn bar(&self, length: u64) -> ProgressBar {
        if self.is_live() { ProgressBar::new(length) } else { ProgressBar::hidden() }
    }

    /// A line of data.
    pub(crate) fn line(&self, line: &dyn fmt::Display) -> Result {
        writeln!(anstream::stdout(), "{line}")?;
        Ok(())
    }

    /// Data as it is.
    pub(crate) fn raw(&self, data: &[u8]) -> Result {
        let mut out = io::stdout().lock();
        out.write_all(data)?;
        out.flush()?;
        Ok(())
    }

    /// Data as JSON: one line, so that several answers make a stream.
    pub(crate) fn json(&self, data: &impl Serialize) -> Result {
        let text = serde_json::to_string(data)?;
        writeln!(io::stdout(), "{text}")?;
        Ok(())
    }

    /// Rows under a head, in columns.
    pub(crate) fn table(&self, head: &[&str], rows: Vec<Vec<String>>) -> Result {
        self.line(&table(head, rows))
    }

    /// Empties the screen before a live view is drawn again.
    pub(crate) fn clear(&self) -> Result {
        write!(anstream::stdout(), "\x1b[H\x1b[2J")?;
        Ok(())
    }

    /// News about what is going on. Nobody reading it is no failure.
    pub(crate) fn note(&self, news: &dyn fmt::Display) {
        drop(writeln!(anstream::stderr(), "{news}"));
    }

    /// News for the curious.
    pub(crate) fn detail(&self, news: &dyn fmt::Display) {
        if self.verbose {
            self.note(&news.dimmed());
        }
    }

    /// A line about a failure, with its label marked.
    pub(crate) fn problem(&self, line: &str) {
        for (label, shown) in [
            ("error:", "error:".red().bold().to_string()),
            ("warning:", "warning:".yellow().bold().to_string()),
            ("hint:", "hint:".cyan().bold().to_string()),
        ] {
            if let Some(rest) = line.strip_prefix(label) {
                return self.note(&format_args!("{shown}{rest}"));
            }
        }
        self.note(&line);
    }
}

/// Columns without borders, as `kubectl` and `docker` print them, so that `awk` can read them.
pub(crate) fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_content_arrangement(comfy_table::ContentArrangement::Disabled);
    if !head.is_empty() {
        table.set_header(head.to_vec());
    }
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.to_string();
    let lines: Vec<_> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_plain_columns() {
        let rows = vec![vec!["hello".to_owned(), "1".to_owned()], vec!["x".into(), "20".into()]];
        assert_eq!(table(&["NAME", "READY"], rows), "NAME   READY\nhello  1\nx      20");
    }
}
