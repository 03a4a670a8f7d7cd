//! What functions themselves say was executed: the built-in `hello` writes a line for each call,
//! which has the call's number in it, and how many others it was executing at that moment.

use std::{collections::BTreeMap, fs, path::Path};

/// Executions by the numbers of their calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Witness {
    executions: BTreeMap<String, usize>,
    /// Lines of executions that began while another one went on in the same sandbox.
    pub beside: Vec<String>,
}

impl Witness {
    /// From the logs that workers keep below a directory.
    pub(crate) fn of(scratch: &Path) -> Self {
        let mut this = Self::default();
        for state in fs::read_dir(scratch).into_iter().flatten().flatten() {
            let logs = state.path().join("worker/logs");
            for log in fs::read_dir(logs).into_iter().flatten().flatten() {
                let bytes = fs::read(log.path()).unwrap_or_default();
                String::from_utf8_lossy(&bytes).lines().for_each(|line| this.take(line));
            }
        }
        this
    }

    /// `MILLISECONDS SANDBOX o METHOD /NUMBER request ID[, beside N]`
    fn take(&mut self, line: &str) {
        let mut words = line.split(' ').skip(3);
        let (Some("GET" | "POST"), Some(path)) = (words.next(), words.next()) else { return };
        *self.executions.entry(path.trim_start_matches('/').to_owned()).or_default() += 1;
        if line.contains(", beside ") {
            self.beside.push(line.to_owned());
        }
    }

    /// How often a call was executed.
    #[must_use]
    pub fn executions(&self, number: &str) -> usize {
        self.executions.get(number).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executions_are_counted_by_their_calls() {
        let mut witness = Witness::default();
        for line in [
            "1760000000123 sbx_1_7 o GET /a-1 request x",
            "1760000000124 sbx_1_8 o POST /a-2 request y",
            "1760000000125 sbx_1_8 o POST /a-2 request y, beside 1",
            "1760000000126 sbx_1_8 e something else",
        ] {
            witness.take(line);
        }
        let counts = ["a-1", "a-2", "a-3"].map(|number| witness.executions(number));
        assert_eq!((counts, witness.beside.len()), ([1, 2, 0], 1));
    }
}
