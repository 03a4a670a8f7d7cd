//! What the command line prints, compared with files beside this one. `cargo xtask generate` writes
//! them anew: then the diff is the review.

#![cfg(test)]

use std::{
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

#[path = "../../../fuzz/src/corpus.rs"]
mod corpus;
#[path = "../../../fuzz/src/manifest.rs"]
mod manifest;

use dirigent_service::reference::{UPDATE, check};

const DIRIGENT: &str = env!("CARGO_BIN_EXE_dirigent");

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// Runs the binary far from any running `up`; exit code, standard output and standard error.
fn run(args: &[&str], dir: &Path) -> (i32, String, String) {
    // One that hangs ends with 124 and fails its test, which would wait for ever otherwise.
    let output = Command::new("timeout")
        .args(["--kill-after=5", "60", DIRIGENT])
        .args(args)
        .current_dir(dir)
        .env_clear()
        .env("PATH", env::var_os("PATH").unwrap_or_default())
        .env("COLUMNS", "100")
        .env("DIRIGENT_STATE", "/nonexistent/dirigent")
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Compares, or writes; what differs.
fn compare(path: &Path, found: &str) -> Option<String> {
    if env::var_os(UPDATE).is_some() {
        fs::write(path, found).unwrap();
        return None;
    }
    let wanted = fs::read_to_string(path).unwrap_or_default();
    (wanted != found).then(|| {
        format!(
            "--- {} (`cargo xtask generate` writes it anew)\n{wanted}+++ found\n{found}",
            path.display()
        )
    })
}

#[test]
fn bad_manifests_are_explained_as_reviewed_and_good_ones_are_not() {
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

/// The help of a verb and of all below it, as the reference page shows it.
fn help(verb: &[String], page: &mut String) {
    let args: Vec<&str> = verb.iter().map(String::as_str).chain(["--help"]).collect();
    let (code, out, err) = run(&args, Path::new("/"));
    assert_eq!((code, err.as_str()), (0, ""), "{verb:?}");
    let name = ["dirigent"].into_iter().chain(verb.iter().map(String::as_str));
    let name = name.collect::<Vec<_>>().join(" ");
    writeln!(page, "## `{name}`\n\n```text\n{}\n```\n", out.trim_end()).unwrap();
    let verbs = out.split("\nCommands:\n").nth(1).unwrap_or_default();
    // Two spaces and the name; what is further in goes on with a line above.
    for line in verbs.lines().take_while(|line| !line.is_empty()) {
        if let Some(name) = line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')) {
            let next = name.split(' ').next().unwrap().to_owned();
            help(&[verb, &[next]].concat(), page);
        }
    }
}

#[test]
fn the_reference_page_shows_the_help_of_every_verb() {
    let mut page = String::new();
    help(&[], &mut page);
    for verb in ["up", "deploy", "bench zero", "config show"] {
        assert!(page.contains(&format!("## `dirigent {verb}`")), "{verb} was found");
    }
    assert_eq!(check("reference/cli.md", "verbs", &page), Ok(()));
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
fn a_function_is_called_where_the_context_in_use_says() {
    let dir = tempfile::tempdir().unwrap();
    let contexts = dir.path().join("contexts.toml");
    let text = "current = \"bare\"\n[contexts.bare]\nserver = \"http://127.0.0.1:1\"\n\
                [contexts.served]\nserver = \"http://127.0.0.1:1\"\nfunctions = \"http://127.0.0.1:2\"\n";
    fs::write(&contexts, text).unwrap();
    let invoke = |args: &[&str], context: &str| {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "60", DIRIGENT, "invoke", "x"]).args(args).env_clear();
        command.env("DIRIGENT_CONTEXTS", &contexts).env("DIRIGENT_CONTEXT", context);
        let output = command.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, err) = invoke(&[], "bare");
    assert!(code == 2 && err.contains("name it with --functions"), "{code} {err}");
    for (args, context) in [(&[][..], "served"), (&["--context", "served"], "bare")] {
        let (code, err) = invoke(args, context);
        assert!(code == 3 && err.contains("127.0.0.1:2"), "{code} {err}");
    }
    let (code, err) = invoke(&[], "none");
    assert!(code == 2 && err.contains("no context `none`"), "{code} {err}");
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

#[test]
fn any_text_is_refused_as_a_manifest_or_can_be_written_as_one() {
    corpus::replay("manifests", manifest::read);
}
