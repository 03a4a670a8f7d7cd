//! Finds out how to run a folder or a file that has no manifest. It guesses only what can be told
//! in a sentence, and the sentence is printed.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use crate::fail::{Fail, Kind, OrFail as _, Result};

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Detected {
    pub(crate) command: Vec<String>,
    /// By what, as a sentence's end: "`app.py` is there".
    pub(crate) because: String,
}

/// Programs that are started by an interpreter, in the order in which they are looked for.
const ENTRIES: [(&str, &str); 9] = [
    ("app.py", "python3"),
    ("server.py", "python3"),
    ("main.py", "python3"),
    ("server.js", "node"),
    ("app.js", "node"),
    ("index.js", "node"),
    ("server.mjs", "node"),
    ("app.mjs", "node"),
    ("index.mjs", "node"),
];

/// How a folder is run.
pub(crate) fn folder(dir: &Path) -> Result<Detected> {
    if let Some(found) = package(dir)? {
        return Ok(found);
    }
    for (file, interpreter) in ENTRIES {
        if dir.join(file).is_file() {
            return Ok(Detected {
                command: vec![interpreter.to_owned(), file.to_owned()],
                because: format!("`{file}` is there"),
            });
        }
    }
    let programs = executables(dir)?;
    if let [program] = programs.as_slice() {
        return Ok(Detected {
            command: vec![format!("./{program}")],
            because: format!("`{program}` is the only executable"),
        });
    }
    let found = if programs.is_empty() { "nothing to run was" } else { "several executables were" };
    Err(Fail::config(format!("{}: no dirigent.toml, and {found} found", dir.display()))
        .hint("say what to run: --command \"python3 app.py\"")
        .hint("or write a dirigent.toml: name = \"...\", then [sandbox] and command = [...]"))
}

/// How a file is run.
pub(crate) fn file(path: &Path) -> Result<Detected> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let extension = path.extension().and_then(|extension| extension.to_str());
    let interpreter = match extension {
        Some("py") => Some("python3"),
        Some("js" | "mjs" | "cjs") => Some("node"),
        Some("sh") => Some("sh"),
        _ => None,
    };
    if let Some(interpreter) = interpreter {
        return Ok(Detected {
            command: vec![interpreter.to_owned(), name],
            because: format!("its name ends in `.{}`", extension.unwrap_or_default()),
        });
    }
    if is_executable(path) {
        return Ok(Detected {
            command: vec![format!("./{name}")],
            because: "it is executable".to_owned(),
        });
    }
    Err(Fail::config(format!("{}: neither a manifest nor a program", path.display()))
        .hint("say how to run it: --command \"...\", or make it executable"))
}

/// What a `package.json` says.
fn package(dir: &Path) -> Result<Option<Detected>> {
    let path = dir.join("package.json");
    if !path.is_file() {
        return Ok(None);
    }
    let text = fs::read_to_string(&path)
        .or_fail(Kind::Config, || format!("cannot read {}", path.display()))?;
    let package: serde_json::Value = serde_json::from_str(&text)
        .or_fail(Kind::Config, || format!("{} is not JSON", path.display()))?;
    let start = package.pointer("/scripts/start").and_then(serde_json::Value::as_str);
    let main = package.get("main").and_then(serde_json::Value::as_str);
    // Without a shell's characters the script can be run as it is, which saves npm's start.
    if let Some(start) = start.filter(|start| !start.contains(['&', '|', ';', '$', '"', '\''])) {
        return Ok(Some(Detected {
            command: start.split_whitespace().map(str::to_owned).collect(),
            because: "`package.json` has the script `start`".to_owned(),
        }));
    }
    if start.is_some() {
        return Ok(Some(Detected {
            command: ["npm", "start"].map(str::to_owned).to_vec(),
            because: "`package.json` has the script `start`".to_owned(),
        }));
    }
    Ok(main.filter(|main| dir.join(main).is_file()).map(|main| Detected {
        command: vec!["node".to_owned(), main.to_owned()],
        because: format!("`package.json` names `{main}` as its main file"),
    }))
}

fn executables(dir: &Path) -> Result<Vec<String>> {
    let entries =
        fs::read_dir(dir).or_fail(Kind::Config, || format!("cannot read {}", dir.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(std::result::Result::ok)
        .filter(|entry| is_executable(&entry.path()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    Ok(names)
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// A function's name made from a path's: what no name may have becomes `-`.
pub(crate) fn name(path: &Path) -> Option<String> {
    let absolute: PathBuf = fs::canonicalize(path).ok()?;
    let stem = if absolute.is_dir() { absolute.file_name() } else { absolute.file_stem() };
    let text = stem?.to_string_lossy().to_ascii_lowercase();
    let name: String =
        text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    let name = name.trim_matches('-');
    (!name.is_empty()).then(|| name.to_owned())
}

/// Splits a command as a shell would, as far as quotes go; nothing is expanded.
pub(crate) fn words(text: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in text.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            None if c == '"' || c == '\'' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    match quote {
        Some(open) => Err(Fail::config(format!("--command: the quote {open} is not closed"))),
        None if words.is_empty() => Err(Fail::config("--command is empty")),
        None => Ok(words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(files: &[(&str, &str, u32)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text, mode) in files {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
        }
        dir
    }

    fn command(files: &[(&str, &str, u32)]) -> String {
        folder(with(files).path())
            .map_or_else(|fail| fail.lines().join("\n"), |found| found.command.join(" "))
    }

    #[test]
    fn folders_are_recognised_by_what_is_in_them() {
        assert_eq!(command(&[("app.py", "", 0o644)]), "python3 app.py");
        assert_eq!(command(&[("x", "", 0o755), ("y", "", 0o644)]), "./x");
        let start = r#"{"scripts": {"start": "node web.js"}}"#;
        assert_eq!(command(&[("package.json", start, 0o644)]), "node web.js");
        let shell = r#"{"scripts": {"start": "A=1 && node web.js"}}"#;
        assert_eq!(command(&[("package.json", shell, 0o644)]), "npm start");
        let main = [("package.json", r#"{"main": "m.js"}"#, 0o644), ("m.js", "", 0o644)];
        assert_eq!(command(&main), "node m.js");
        assert!(command(&[("a", "", 0o755), ("b", "", 0o755)]).contains("several executables"));
        assert!(command(&[]).contains("nothing to run"));
        assert!(command(&[("package.json", "{", 0o644)]).contains("is not JSON"));
    }

    #[test]
    fn files_are_run_by_their_ending_or_as_they_are() {
        let dir = with(&[("f.py", "", 0o644), ("prog", "", 0o755), ("text", "", 0o644)]);
        assert_eq!(file(&dir.path().join("f.py")).unwrap().command, ["python3", "f.py"]);
        assert_eq!(file(&dir.path().join("prog")).unwrap().command, ["./prog"]);
        assert_eq!(file(&dir.path().join("text")).unwrap_err().kind(), Kind::Config);
    }

    #[test]
    fn names_are_made_from_paths() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("My_App.v2");
        fs::create_dir(&inner).unwrap();
        assert_eq!(name(&inner).as_deref(), Some("my-app-v2"));
        assert_eq!(name(&dir.path().join("absent")), None);
    }

    #[test]
    fn commands_are_split_at_spaces_outside_of_quotes() {
        assert_eq!(words("a  'b c' d\"e f\" ''").unwrap(), ["a", "b c", "de f", ""]);
        assert!(words("a 'b").is_err());
        assert!(words("  ").is_err());
    }
}
