//! What the command line prints, compared with files beside this one. `UPDATE=1` writes them anew:
//! then the diff is the review.

#![cfg(test)]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

const DIRIGENT: &str = env!("CARGO_BIN_EXE_dirigent");

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// Runs the binary far from any running `up`; exit code, standard output and standard error.
fn run(args: &[&str], dir: &Path) -> (i32, String, String) {
    let output = Command::new(DIRIGENT)
        .args(args)
        .current_dir(dir)
        .env_clear()
        .env("COLUMNS", "100")
        .env("DIRIGENT_STATE", "/nonexistent/dirigent")
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Compares, or writes; what differs.
fn compare(path: &Path, found: &str) -> Option<String> {
    if env::var_os("UPDATE").is_some() {
        fs::write(path, found).unwrap();
        return None;
    }
    let wanted = fs::read_to_string(path).unwrap_or_default();
    (wanted != found).then(|| {
        format!("--- {} (UPDATE=1 writes it anew)\n{wanted}+++ found\n{found}", path.display())
    })
}

#[test]
fn bad_manifests_are_explained_and_good_ones_are_not() {
    let folder = tests().join("manifests");
    let mut names: Vec<String> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".toml"))
        .collect();
    names.sort();
    assert!(names.len() > 20, "the folder is there");
    let mut differences = Vec::new();
    for name in &names {
        let (code, out, err) = run(&["deploy", name], &folder);
        assert_eq!(out, "", "{name}");
        if name.starts_with("good") {
            // A good one gets as far as looking for the API.
            assert_eq!(code, 3, "{name}: {err}");
            assert!(err.contains("no Dirigent runs on /nonexistent/dirigent"), "{name}: {err}");
            continue;
        }
        assert_eq!(code, 2, "{name}: {err}");
        differences.extend(compare(&folder.join(name).with_extension("expected"), &err));
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn help_texts_are_as_reviewed() {
    let folder = tests().join("help");
    let verbs = [
        "",
        "up",
        "deploy",
        "rollback",
        "revisions",
        "list",
        "describe",
        "invoke",
        "logs",
        "rm",
        "top",
        "workers",
        "config",
        "doctor",
        "completions",
    ];
    let mut differences = Vec::new();
    for verb in verbs {
        let mut args: Vec<&str> = Vec::new();
        args.extend(Some(verb).filter(|verb| !verb.is_empty()));
        args.push("--help");
        let (code, out, err) = run(&args, &folder);
        assert_eq!((code, err.as_str()), (0, ""), "{verb}");
        let name = if verb.is_empty() { "dirigent" } else { verb };
        differences.extend(compare(&folder.join(name).with_extension("txt"), &out));
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn without_a_running_up_the_verbs_say_how_to_start_one() {
    for args in [&["list"][..], &["describe", "x"], &["invoke", "x"], &["logs", "x"], &["top"]] {
        let (code, out, err) = run(args, Path::new("/"));
        assert_eq!((code, out.as_str()), (3, ""), "{args:?}: {err}");
        assert!(err.contains("hint: start it with `dirigent up`"), "{args:?}: {err}");
    }
}

#[test]
fn with_json_errors_are_json_too() {
    let (code, out, err) = run(&["list", "--json"], Path::new("/"));
    assert_eq!((code, out.as_str()), (3, ""));
    assert!(err.starts_with(r#"{"error":{"#) && err.contains(r#""kind":"unavailable""#), "{err}");
}

#[test]
fn wrong_arguments_are_the_users_to_mend() {
    for args in [&["lst"][..], &["deploy", "--max", "x"], &["rm"], &["describe", "No_Name"]] {
        let (code, out, err) = run(args, Path::new("/"));
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}: {err}");
        assert!(err.starts_with("error:"), "{args:?}: {err}");
    }
}

#[test]
fn completions_and_version_need_nothing() {
    let (code, out, _) = run(&["completions", "bash"], Path::new("/"));
    assert_eq!(code, 0);
    assert!(out.contains("_dirigent()"));
    let (code, out, _) = run(&["version"], Path::new("/"));
    assert_eq!((code, out.as_str()), (0, concat!("dirigent ", env!("CARGO_PKG_VERSION"), "\n")));
}

#[test]
fn the_configuration_tells_where_each_value_comes_from() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("d.toml"), "drain = \"5s\"\n[compat]\nenabled = true\n").unwrap();
    let args = ["config", "show", "--origin", "--config", "d.toml", "--memory", "1GiB"];
    let (code, out, err) = run(&args, dir.path());
    assert_eq!(code, 0, "{err}");
    for wanted in [
        ["drain", "\"5s\"", "d.toml:1"],
        ["compat.enabled", "true", "d.toml:3"],
        ["state", "\"/nonexistent/dirigent\"", "$DIRIGENT_STATE"],
        ["memory", "\"1GiB\"", "--memory"],
        ["listen", "\"127.0.0.1:8080\"", "default"],
    ] {
        let has = |line: &str| line.split_whitespace().eq(wanted);
        assert!(out.lines().any(has), "{wanted:?} in {out}");
    }
    fs::write(dir.path().join("d.toml"), "drian = \"5s\"\n").unwrap();
    let (code, _, err) = run(&args, dir.path());
    assert_eq!(code, 2);
    assert!(err.contains("line 1") && err.contains("drian") && err.contains('^'), "{err}");
}
