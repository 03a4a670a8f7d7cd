//! Rules that no compiler checks. Each complaint names file, line and what to do.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::run;

/// Lines of a source file, tests included.
const FILE_LINES_MAX: usize = 1000;
/// Crates that the product may stand on.
const CRATES_MAX: usize = 300;

/// Which crates of the workspace each may name: the direction of the architecture.
const LAYERS: [(&str, &[&str]); 14] = [
    ("core", &[]),
    ("containerd", &[]),
    ("proto", &["core"]),
    ("service", &[]),
    ("transport", &["core", "proto", "service"]),
    ("runtime", &["core", "containerd"]),
    ("control", &["core", "service"]),
    ("proxy", &["core", "service"]),
    ("worker", &["core", "service", "runtime"]),
    ("trace", &[]),
    ("sim", &["core", "trace"]),
    ("bench", &["core", "trace"]),
    ("rig", &["service", "bench"]),
    ("cli", &["core", "service", "transport", "runtime", "control", "proxy", "worker", "bench"]),
];

/// One word per thing (docs/glossary.md): words that are not used for it, with the one that is, and
/// what a line has, in small letters, in which the word means something else. `request`, which is
/// not to be used for an invocation, has an honest meaning of its own in half of all lines.
const BANNED: [(&[&str], &str, &[&str]); 6] = [
    (&["microservice", "microservices"], "function", &[]),
    (&["pod", "pods"], "sandbox", &[]),
    (&["replica", "replicas"], "sandbox", &[]),
    // The runtime of that name runs them.
    (
        &["container", "containers"],
        "sandbox",
        &[
            "runtime",
            "image",
            "oci ",
            "wasm",
            "for containers",
            "for a container it",
            "\"container: ",
            "functions may be containers",
            "::container",
            "guides/containers",
            "0004-containers",
            "mod container;",
            "cap_sys_admin",
        ],
    ),
    (&["instance", "instances"], "sandbox", &["for instance"]),
    // The program is called so.
    (
        &["node", "nodes"],
        "worker",
        &["\"node", "node_modules", "hello-node", ".js", "node reserves", "node without"],
    ),
];

/// Peers and their formats are called by their own names.
const PEERS: [&str; 5] =
    ["knative", "kubernetes", "aws", "`container-concurrency-", "    container,"];

pub(crate) fn tidy() -> Result<()> {
    let mut complaints = Vec::new();
    let files = tracked_files()?;
    for file in &files {
        // Listed but gone from the tree: the next commit removes it.
        let Ok(text) = fs::read_to_string(file) else { continue };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("rs") => source(file, &text, &mut complaints),
            Some("md") => document(file, &text, &mut complaints),
            _ => {}
        }
    }
    layers(&mut complaints)?;
    let crates = dependencies()?;
    if crates > CRATES_MAX {
        complaints.push(format!("Cargo.lock: {crates} crates, more than {CRATES_MAX}"));
    }
    if complaints.is_empty() {
        println!("xtask: tidy: ok, {} files, {crates} crates", files.len());
        return Ok(());
    }
    for complaint in &complaints {
        println!("{complaint}");
    }
    bail!("tidy: {} complaints", complaints.len())
}

fn tracked_files() -> Result<Vec<PathBuf>> {
    let listing = run::output("git", &["ls-files", "--cached", "--others", "--exclude-standard"])?;
    Ok(listing.lines().map(PathBuf::from).collect())
}

fn source(file: &Path, text: &str, complaints: &mut Vec<String>) {
    let name = file.display();
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        complaints.push(format!("{name}: {lines} lines; the wall is {FILE_LINES_MAX}: split it"));
    }
    let of_tests = file.file_name().is_some_and(|name| name == "tests.rs")
        || file.components().any(|part| part.as_os_str() == "tests");
    let first = text.lines().find(|line| !line.starts_with("#!") && !line.trim().is_empty());
    if !of_tests && !first.is_some_and(|line| line.starts_with("//!")) {
        complaints.push(format!("{name}: starts without a module doc (`//! What it is for`)"));
    }
    for (number, line) in text.lines().enumerate() {
        let number = number + 1;
        // Spelled in two parts, so that this file does not complain of itself.
        for marker in [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")] {
            if line.contains(marker) {
                complaints.push(format!("{name}:{number}: `{marker}`: do it, or leave it out"));
            }
        }
    }
    // Cargo takes `tests/common.rs` for a test of its own; `tests/common/mod.rs` is its convention.
    if file.ends_with("mod.rs") && !of_tests {
        complaints.push(format!("{name}: move it beside its directory"));
    }
    if !file.starts_with("xtask") {
        words(file, text, complaints);
    }
}

fn words(file: &Path, text: &str, complaints: &mut Vec<String>) {
    // What is about the runtime `container` has that in its name.
    let name = file.to_string_lossy();
    let of_containers = name.contains("container") || name.contains("/oci");
    for (number, line) in text.lines().enumerate() {
        for (word, instead) in banned(line) {
            if of_containers && word.starts_with("container") {
                continue;
            }
            let place = format!("{}:{}", file.display(), number + 1);
            complaints.push(format!("{place}: `{word}`: the glossary's word is {instead}"));
        }
    }
}

/// The banned words of a line, with what to say instead.
fn banned(line: &str) -> Vec<(&'static str, &'static str)> {
    let lower = line.to_lowercase();
    let has = |text: &&str| lower.contains(text);
    if PEERS.iter().any(has) {
        return Vec::new();
    }
    let words: Vec<&str> = lower.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    let meant = BANNED.iter().filter(|(_, _, unless)| !unless.iter().any(has));
    let found = meant.flat_map(|(banned, instead, _)| banned.iter().map(move |b| (*b, *instead)));
    found.filter(|(word, _)| words.contains(word)).collect()
}

/// The glossary's words; and relative links must lead somewhere.
fn document(file: &Path, text: &str, complaints: &mut Vec<String>) {
    words(file, text, complaints);
    let directory = file.parent().unwrap_or_else(|| Path::new(""));
    for (number, line) in text.lines().enumerate() {
        for link in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap_or_default();
            if path.is_empty() || link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            if !directory.join(path).exists() {
                let place = format!("{}:{}", file.display(), number + 1);
                complaints.push(format!("{place}: the link to {path} leads nowhere"));
            }
        }
    }
}

fn layers(complaints: &mut Vec<String>) -> Result<()> {
    let allowed: BTreeMap<&str, &[&str]> = LAYERS.into_iter().collect();
    for entry in fs::read_dir("crates").context("cannot list crates/")? {
        let path = entry.context("cannot list crates/")?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let manifest = path.join("Cargo.toml");
        let text = fs::read_to_string(&manifest)
            .with_context(|| format!("cannot read {}", manifest.display()))?;
        let parsed: toml::Table =
            text.parse().with_context(|| format!("{}", manifest.display()))?;
        let Some(allowed) = allowed.get(name.as_str()) else {
            complaints.push(format!("{}: give the crate its place in LAYERS", manifest.display()));
            continue;
        };
        let dependencies = parsed.get("dependencies").and_then(toml::Value::as_table);
        for dependency in dependencies.into_iter().flat_map(toml::Table::keys) {
            let Some(other) = dependency.strip_prefix("dirigent-") else { continue };
            if !allowed.contains(&other) {
                let file = manifest.display();
                complaints.push(format!("{file}: {name} must not depend on {other} (design)"));
            }
        }
        // The core is pure by what it can reach, not by good intentions.
        if name == "core" {
            for forbidden in ["tokio", "rand", "hyper", "rustix", "libc"] {
                if dependencies.is_some_and(|table| table.contains_key(forbidden)) {
                    complaints
                        .push(format!("{}: core does no I/O: {forbidden}", manifest.display()));
                }
            }
        }
    }
    Ok(())
}

/// Crates behind the binary as users build it, counted once each.
fn dependencies() -> Result<usize> {
    let tree = run::output(
        env!("CARGO"),
        &["tree", "--package", "dirigent-cli", "--edges", "normal,build", "--prefix", "none"],
    )?;
    Ok(tree.lines().filter_map(|line| line.split(" (").next()).collect::<BTreeSet<_>>().len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_a_thing_that_has_another_are_found_and_other_things_are_not() {
        for (line, word) in [
            ("/// Each pod of it", "pod"),
            ("a microservice", "microservice"),
            ("a new Container is started", "container"),
            ("every instance is busy", "instance"),
            ("placed on the least busy node", "node"),
            ("| replicas | 3 |", "replicas"),
        ] {
            let found: Vec<_> = banned(line).into_iter().map(|(word, _)| word).collect();
            assert_eq!(found, [word], "{line}");
        }
        for line in [
            "Knative has a pod for each",
            "`sandbox.image` is for containers",
            "runtime = \"container\"",
            "small ones, for instance",
            "command: [\"node\", \"server.js\"]",
            "on a podium",
        ] {
            assert_eq!(banned(line), [], "{line}");
        }
    }
}
