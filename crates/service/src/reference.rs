//! Pages of reference whose parts are made from the code and checked in.
//!
//! A part stands between `<!-- made from the code: NAME -->` and `<!-- end: NAME -->`; what is
//! around it is written by hand. A test beside the code renders the part and calls [`check`], which
//! says what is stale, or writes it anew when the tests run with [`UPDATE`] set.

use std::{env, fs, path::Path, sync::Mutex};

/// The variable with which tests write what they would else compare.
pub const UPDATE: &str = "UPDATE";

/// Two parts of one page may be written by two tests at once.
static WRITING: Mutex<()> = Mutex::new(());

/// Compares a part of a page, named by its path below `docs`, with what it should be.
///
/// # Errors
/// What is stale, and the command that renews it.
pub fn check(page: &str, part: &str, wanted: &str) -> Result<(), String> {
    let _alone = WRITING.lock().map_err(|_poisoned| "another check panicked".to_owned())?;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(page);
    let told = |error: std::io::Error| format!("{}: {error}", path.display());
    let text = fs::read_to_string(&path).map_err(told)?;
    let renewed = replaced(&text, part, wanted)
        .ok_or_else(|| format!("docs/{page} has no part `{part}` between its two marks"))?;
    if renewed == text {
        return Ok(());
    }
    if env::var_os(UPDATE).is_some() {
        return fs::write(&path, renewed).map_err(told);
    }
    Err(format!(
        "docs/{page} is stale: `cargo xtask generate` renews it. `{part}` should be:\n{wanted}"
    ))
}

/// The page with another text between the marks of a part.
fn replaced(page: &str, part: &str, wanted: &str) -> Option<String> {
    let (begin, end) =
        (format!("<!-- made from the code: {part} -->"), format!("<!-- end: {part} -->"));
    let (before, rest) = page.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}\n{}\n{end}{after}", wanted.trim_end()))
}

/// The fields of a struct, or the variants of an enum, with their doc comments as one line each, as
/// they stand in a source text formatted by rustfmt.
#[must_use]
pub fn documented(source: &str, item: &str) -> Vec<(String, String)> {
    let heads = [format!("struct {item} {{"), format!("enum {item} {{")];
    let body = source
        .lines()
        .skip_while(|line| !heads.iter().any(|head| line.ends_with(head.as_str())))
        .skip(1)
        .take_while(|line| *line != "}");
    let (mut found, mut words) = (Vec::new(), Vec::new());
    for line in body.map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            words.push(text.trim());
        } else if !line.starts_with("#[") && !line.starts_with("//") {
            let declared = line.split("pub(crate) ").last().unwrap_or(line);
            let declared = declared.strip_prefix("pub ").unwrap_or(declared);
            let name = declared.split([':', ',', '(', ' ']).next().unwrap_or_default();
            if !name.is_empty() && name != "}" {
                found.push((name.to_owned(), words.join(" ")));
            }
            words.clear();
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_replaced_and_the_rest_of_the_page_stays() {
        let page = "a\n<!-- made from the code: x -->\nold\n<!-- end: x -->\nb\n";
        let renewed = replaced(page, "x", "new\n").unwrap();
        assert_eq!(renewed, page.replace("old", "new"));
        assert_eq!(replaced(&renewed, "x", "new\n").as_deref(), Some(renewed.as_str()));
        assert_eq!(replaced(page, "y", "new"), None);
    }

    #[test]
    fn a_page_without_the_part_is_an_error() {
        assert!(check("glossary.md", "no such part", "").unwrap_err().contains("no such part"));
        assert!(check("no-such-page.md", "x", "").unwrap_err().contains("no-such-page.md"));
    }

    #[test]
    fn doc_comments_are_found_by_their_fields_and_variants() {
        let source = "\
pub(crate) struct Shape {
    /// How far
    /// it goes.
    #[serde(default)]
    pub(crate) width: u32,
    pub height: u32,
}

enum Colour {
    /// As blood.
    Red,
    /// With a tone.
    Grey(u8),
}
";
        let pairs = |item| {
            let found = documented(source, item);
            found.iter().map(|(name, text)| format!("{name}={text}")).collect::<Vec<_>>().join(";")
        };
        assert_eq!(pairs("Shape"), "width=How far it goes.;height=");
        assert_eq!(pairs("Colour"), "Red=As blood.;Grey=With a tone.");
        assert_eq!(pairs("Other"), "");
    }
}
