//! Functions written into a folder, and made again from it.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use crate::{
    hello,
    host::{DIRIGENT, PATIENCE, Up, output},
    path,
};

/// Every file below a folder, with its bytes.
fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{} is not for its owner only", path.display());
            files.insert(path.strip_prefix(folder).unwrap().to_owned(), fs::read(&path).unwrap());
        }
    }
    files
}

fn deploy(up: &Up, name: &str, rest: &str, file: Option<&str>) {
    let folder = hello(name, rest);
    if let Some(text) = file {
        fs::write(folder.path().join("data"), text).unwrap();
    }
    up.ok(&["deploy", path(&folder)]);
}

#[test]
fn functions_are_made_again_from_an_export_and_exported_again_they_are_the_same() {
    let up = Up::start(&[]);
    let settings = "[scaling]\nmax = 7\nkeep_alive = \"3m 5s\"\n[invocation]\nauth = \"token\"\n\
                    grace = \"2s\"\nretry = false\n[resources]\ncpu = \"250m\"\n";
    deploy(&up, "media/plain", settings, None);
    for version in ["first", "second"] {
        let env = format!("[env]\nVERSION = \"{version}\"\nQUOTED = \"a \\\"b\\\"\\nc\"\n");
        deploy(&up, "rich", &env, Some(version));
    }
    // What is live is what counts, not what is newest.
    up.ok(&["rollback", "rich", "--to", "1"]);
    deploy(&up, "same", "", Some("first"));

    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let (code, _, err) = up.cli(&["export", &at("none")]);
    assert!(code == 2 && err.contains("--with-env") && err.contains("rich"), "{code} {err}");
    assert!(!Path::new(&at("none")).exists(), "nothing is written");
    let told = up.json(&["export", &at("one"), "--with-env"]);
    // Two functions have the same files.
    assert_eq!((&told["functions"], &told["artifacts"]), (&4.into(), &1.into()), "{told}");
    let (code, _, err) = up.cli(&["export", &at("one"), "--with-env"]);
    assert!(code == 2 && err.contains("not empty"), "{code} {err}");
    up.ok(&["export", &at("named"), "same", "media/plain"]);
    assert_eq!(tree(Path::new(&at("named"))).len(), 4);
    let one = tree(Path::new(&at("one")));
    assert_eq!(one.len(), 1 + 4 + 1, "{:?}", one.keys());

    let other = Up::start(&[]);
    other.ok(&["deploy", &at("one")]);
    let rich = String::from_utf8(one[Path::new("functions/default/rich.toml")].clone()).unwrap();
    assert!(rich.contains("VERSION = \"first\""), "{rich}");
    assert_eq!(other.get("rich", "/").status, 200);
    assert_eq!(other.get("plain.media.localhost", "/").status, 401);
    other.ok(&["export", &at("two"), "--with-env"]);
    assert_eq!(tree(Path::new(&at("two"))), one);
    // It can be done again, and changes nothing.
    let (code, _, err) = other.cli(&["deploy", &at("one")]);
    assert!(code == 0 && err.matches("unchanged").count() == 4, "{code} {err}");
}

#[test]
fn secrets_are_written_only_for_who_may_and_asks_and_damage_is_found() {
    let up = Up::start(&[]);
    deploy(&up, "a", "[env]\nKEY = \"hunter2\"\n", Some("of a"));
    deploy(&up, "b", "", Some("of b"));
    let token = up.ok(&["token", "create", "--role", "deploy"]);
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("export");
    let export = |how: &str| {
        let mut command = std::process::Command::new(DIRIGENT);
        command.args(["export", folder.to_str().unwrap(), how]).env_clear();
        command.env("DIRIGENT_STATE", up.state.path()).env("DIRIGENT_TOKEN", token.trim());
        output(&mut command, PATIENCE)
    };
    let refused = export("--with-env");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && said.contains("role `admin`"), "{said}");
    fs::remove_dir_all(&folder).unwrap();
    let exported = export("--without-env");
    assert!(exported.status.success(), "{}", String::from_utf8_lossy(&exported.stderr));
    let files = tree(&folder);
    let has = |bytes: &[u8]| bytes.windows(7).any(|part| part == b"hunter2");
    assert!(!files.values().any(|bytes| has(bytes)));

    // One file is damaged: its function is not deployed, the others are.
    let index: serde_json::Value =
        serde_json::from_slice(&files[Path::new("export.json")]).unwrap();
    let of = |name: &str| {
        let functions = index["functions"].as_array().unwrap();
        let found = functions.iter().find(|one| one["name"] == name).unwrap();
        found["artifact"].as_str().unwrap().trim_start_matches("sha256:").to_owned()
    };
    fs::write(folder.join("artifacts").join(of("b")), "something else").unwrap();
    let other = Up::start(&[]);
    let place = folder.to_str().unwrap();
    let (code, _, err) = other.cli(&["deploy", place]);
    assert!(code == 1 && err.contains("is damaged") && err.contains("1 of 3"), "{code} {err}");
    assert!(err.contains("left out of the export: KEY"), "{err}");
    assert_eq!(other.get("a", "/").status, 200);
    assert_eq!(other.get("b", "/").status, 404);
    let (code, _, err) = other.cli(&["deploy", place, "--max", "3"]);
    assert!(code == 2 && err.contains("flags are for one function"), "{code} {err}");
}
