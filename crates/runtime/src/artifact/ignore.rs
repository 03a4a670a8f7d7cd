//! What is left out when a directory is packed: `.dirigentignore`, in the form of `.gitignore`.
//!
//! Understood: `#` comments, `!` to take back in, a leading or inner `/` to anchor, a trailing `/`
//! for directories only, `*`, `?` and `**`. Not understood: character classes and escapes.

/// The lines of an ignore file.
#[derive(Debug, Default)]
pub(super) struct Ignore {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    parts: Vec<String>,
    negated: bool,
    directories_only: bool,
}

impl Ignore {
    pub(super) fn parse(text: &str) -> Self {
        Self { rules: text.lines().filter_map(Rule::parse).collect() }
    }

    /// Whether `path`, relative to the directory packed, is left out. As in git the last rule that
    /// matches decides; what lies in a directory left out is never asked for.
    pub(super) fn excludes(&self, path: &str, is_dir: bool) -> bool {
        let names: Vec<&str> = path.split('/').collect();
        self.rules
            .iter()
            .rev()
            .find(|rule| (is_dir || !rule.directories_only) && matches(&rule.parts, &names))
            .is_some_and(|rule| !rule.negated)
    }
}

impl Rule {
    fn parse(line: &str) -> Option<Self> {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return None;
        }
        let (negated, line) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest));
        let (directories_only, line) =
            line.strip_suffix('/').map_or((false, line), |rest| (true, rest));
        let mut parts: Vec<String> =
            line.trim_start_matches('/').split('/').map(str::to_owned).collect();
        if !line.contains('/') {
            parts.insert(0, "**".to_owned());
        }
        Some(Self { parts, negated, directories_only })
    }
}

fn matches(parts: &[String], names: &[&str]) -> bool {
    match (parts.split_first(), names.split_first()) {
        (None, None) => true,
        (None, Some(_)) => false,
        (Some((part, rest)), _) if part == "**" => {
            matches(rest, names) && !(rest.is_empty() && names.is_empty())
                || !names.is_empty() && matches(parts, &names[1..])
        }
        (Some((part, rest)), Some((name, names))) => {
            glob(part.as_bytes(), name.as_bytes()) && matches(rest, names)
        }
        (Some(_), None) => false,
    }
}

/// `*` and `?` within one name. Linear: at a mismatch only the last star is tried again.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == b'?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((at, from)) = star else { return false };
                star = Some((at, from + 1));
                p = at + 1;
                n = from + 1;
            }
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_match_as_in_git() {
        let ignore = Ignore::parse(
            "# comment\n\n*.pyc\n/build\nnode_modules/\ndocs/**/draft.md\n!keep.pyc\na/*/z\n",
        );
        for (path, is_dir, out) in [
            ("x.pyc", false, true),
            ("deep/er/x.pyc", false, true),
            ("keep.pyc", false, false),
            ("build", true, true),
            ("src/build", true, false),
            ("node_modules", true, true),
            ("web/node_modules", true, true),
            ("node_modules", false, false),
            ("docs/draft.md", false, true),
            ("docs/a/b/draft.md", false, true),
            ("draft.md", false, false),
            ("a/b/z", false, true),
            ("a/b/c/z", false, false),
            ("main.py", false, false),
        ] {
            assert_eq!(ignore.excludes(path, is_dir), out, "{path}");
        }
    }

    #[test]
    fn a_pattern_of_many_stars_is_judged_quickly() {
        let pattern = "*a".repeat(60) + "b";
        assert!(!glob(pattern.as_bytes(), "a".repeat(250).as_bytes()));
    }
}
