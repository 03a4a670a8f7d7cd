//! `cargo xtask test`: everything, with what was skipped counted.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::run;

/// Debian packages that some tests use, with the program that shows whether they are there.
/// Without them those tests say that they skip.
const PACKAGES: [(&str, &str); 12] = [
    ("python3", "python3"),
    ("nftables", "nft"),
    ("iproute2", "ip"),
    ("haproxy", "haproxy"),
    ("etcd-server", "etcd"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("crun", "crun"),
    ("busybox-static", "busybox"),
    ("nginx-light", "nginx"),
    ("docker-registry", "docker-registry"),
    ("skopeo", "skopeo"),
];

/// Whose tests differ between root and an ordinary user, as cargo's package ids name them.
const TWICE: [&str; 2] = ["#dirigent-runtime@", "#dirigent-cli@"];

/// What is not in every build and is tested all the same.
pub(crate) const FEATURES: &str = "dirigent-cli/containerd,dirigent-cli/ablations";

/// Test programs that run whole systems: a failure there is looked at a second time.
const SYSTEMS: [&str; 2] = ["up", "rig"];

/// More failures than that are no accident.
const ACCIDENTS: usize = 2;

/// An ordinary user without a name: no account needs to exist for it.
const ORDINARY: u32 = 52_731;

pub(crate) fn test(install: bool, filter: Option<&str>) -> Result<()> {
    packages(install || is_ci())?;
    let mut seen = Seen::default();
    let cargo = || {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["test", "--workspace", "--no-fail-fast", "--features", FEATURES]);
        cargo
    };
    let mut all = cargo();
    all.args(["--", "--show-output"]).args(filter);
    println!("xtask: test: cargo test --workspace --no-fail-fast --features {FEATURES}");
    let again = || {
        let mut systems = cargo();
        systems.args(SYSTEMS.iter().flat_map(|name| ["--test", name])).arg("--");
        systems
    };
    let passed = seen.passes(&mut all, Some(&again))?;
    let passed_twice = if passed && rustix::process::getuid().is_root() {
        as_ordinary_user(filter, &mut seen)?
    } else {
        true
    };
    for (what, lines) in [("skipped", &seen.skips), ("flaky", &seen.flaky)] {
        println!("xtask: {what}: {}", lines.len());
        for line in lines {
            println!("xtask:   {line}");
        }
    }
    if !passed {
        bail!("tests failed; their names stand under `failures:` above");
    }
    if !passed_twice {
        bail!("tests failed as an ordinary user (uid {ORDINARY})");
    }
    Ok(())
}

/// Whether nobody watches: then nothing may be left out quietly.
fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|ci| ci == "true")
}

/// Installs what is missing, or prints the one line that does.
fn packages(install: bool) -> Result<()> {
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(_, program)| !on_path(program))
        .map(|(package, _)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let line = format!("apt-get install --yes --no-install-recommends {}", missing.join(" "));
    if !install || !rustix::process::getuid().is_root() || !on_path("apt-get") {
        println!("xtask: for the tests that will be skipped: {line}");
        return Ok(());
    }
    // Services of the packages are not started: tests run their own on free ports.
    let script = format!(
        "export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1; \
         printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d; \
         apt-get update -qq && {line} -qq; status=$?; rm -f /usr/sbin/policy-rc.d; exit $status"
    );
    let status = Command::new("sh").args(["-c", &script]).status().context("cannot start sh")?;
    if !status.success() {
        println!("xtask: could not install; run it by hand: {line}");
    }
    Ok(())
}

fn on_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// What the tests said.
#[derive(Debug)]
struct Seen {
    /// Why parts were left out.
    skips: Vec<String>,
    /// Failed beside others and passed alone.
    flaky: Vec<String>,
    /// Where lines go.
    tell: fn(&str),
}

impl Default for Seen {
    fn default() -> Self {
        Self { skips: Vec::new(), flaky: Vec::new(), tell: |line| println!("{line}") }
    }
}

impl Seen {
    /// Whether all pass. One or two that fail are run by `again`, if there is a way, alone: dozens of
    /// systems at once on two processors bring about what a test may not have thought of, and a
    /// machine that is slow must not hold up everybody's work. What passes only then is a defect,
    /// of the test or of what it tests, is named at the end, and has to be mended.
    fn passes(
        &mut self,
        command: &mut Command,
        again: Option<&dyn Fn() -> Command>,
    ) -> Result<bool> {
        let (passed, ran) = self.run(command)?;
        let failed: Vec<String> =
            ran.tests.iter().filter(|(_, is_ok)| !is_ok).map(|(name, _)| name.clone()).collect();
        // A program that ended before its tests did has failed in a way that nobody saw.
        let is_whole = ran.begun == ran.ended && ran.failed == failed.len();
        let few = is_whole && (1..=ACCIDENTS).contains(&failed.len());
        let Some(again) = again.filter(|_| few) else {
            return Ok(passed);
        };
        (self.tell)(&format!("xtask: once more, alone: {}", failed.join(", ")));
        let mut alone = again();
        alone.args(["--exact", "--show-output", "--test-threads=1"]).args(&failed);
        let (passed, ran) = self.run(&mut alone)?;
        // One of another program is not run there at all.
        let passes = |name: &String| ran.tests.iter().any(|(other, is_ok)| other == name && *is_ok);
        let passed = passed && failed.iter().all(passes);
        if passed {
            self.flaky.extend(failed);
        }
        Ok(passed)
    }

    /// Runs with the output passed on; whether it was successful, and what ran. Keeps the lines of tests
    /// that say why they skip.
    fn run(&mut self, command: &mut Command) -> Result<(bool, Ran)> {
        let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start the tests")?;
        let stdout = child.stdout.take().context("standard output is piped")?;
        let mut ran = Ran::default();
        for line in BufReader::new(stdout).lines() {
            let line = line.context("cannot read the tests' output")?;
            (self.tell)(&line);
            ran.note(&line);
            if is_skip(&line) {
                self.skips.push(line);
            }
        }
        Ok((child.wait().context("cannot wait for the tests")?.success(), ran))
    }
}

/// What test programs said of their tests.
#[derive(Debug, Default)]
struct Ran {
    /// Each, with whether it passed.
    tests: Vec<(String, bool)>,
    /// Programs that began.
    begun: usize,
    /// Those that came to their summary.
    ended: usize,
    /// Failures in all summaries.
    failed: usize,
}

impl Ran {
    fn note(&mut self, line: &str) {
        self.tests.extend(result(line));
        if line.starts_with("running ") && (line.ends_with(" tests") || line.ends_with(" test")) {
            self.begun += 1;
        } else if line.starts_with("test result: ") {
            self.ended += 1;
            let before = line.split(" failed;").next().and_then(|before| before.rsplit(' ').next());
            self.failed += before.and_then(|count| count.parse().ok()).unwrap_or(0);
        }
    }
}

/// The test that a line of the runner names, and whether it passed.
fn result(line: &str) -> Option<(String, bool)> {
    let (name, outcome) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let is_ok = match outcome {
        "ok" => true,
        "FAILED" => false,
        _ => return None,
    };
    Some((name.to_owned(), is_ok))
}

/// Whether a test says so that it leaves out something.
fn is_skip(line: &str) -> bool {
    ["skip: ", "skipped: ", "skipped for ", "skipped in part: "]
        .iter()
        .any(|start| line.starts_with(start))
}

/// The test programs of [`TWICE`], once more without root's rights.
fn as_ordinary_user(filter: Option<&str>, seen: &mut Seen) -> Result<bool> {
    let programs = test_programs()?;
    let scratch = scratch("test", 0o777)?;
    let user =
        Ordinary::new(programs.iter().flat_map(|(directory, program)| [directory, program]))?;
    let mut passed = true;
    for (directory, program) in &programs {
        if let Err(error) = user.reaches(&[&directory.join("Cargo.toml"), program]) {
            let shown = program.display();
            if is_ci() {
                bail!("{shown} cannot be run as an ordinary user (uid {ORDINARY}): {error:#}");
            }
            let skip = format!("skip: {shown} as an ordinary user: {error:#}");
            println!("{skip}");
            seen.skips.push(skip);
            continue;
        }
        println!("xtask: as uid {ORDINARY}: {}", program.display());
        let command = || {
            let mut command = user.command(program);
            command
                .current_dir(directory)
                .env_clear()
                .env("PATH", std::env::var_os("PATH").unwrap_or_default())
                .env("CARGO_MANIFEST_DIR", directory)
                .env("HOME", &scratch)
                .env("TMPDIR", &scratch);
            command
        };
        let again: Option<&dyn Fn() -> Command> =
            if runs_systems(program) { Some(&command) } else { None };
        passed &= seen.passes(command().arg("--show-output").args(filter), again)?;
    }
    if let Err(error) = std::fs::remove_dir_all(&scratch) {
        println!("xtask: {} stays behind: {error}", scratch.display());
    }
    Ok(passed)
}

/// Whether it is one of [`SYSTEMS`], whose names end in cargo's hash.
fn runs_systems(program: &Path) -> bool {
    let name = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.rsplit_once('-').is_some_and(|(name, _)| SYSTEMS.contains(&name))
}

/// A directory of this run where every user gets to.
fn scratch(what: &str, mode: u32) -> Result<PathBuf> {
    let place = std::env::temp_dir();
    let place = if closed_above(&place.join("x")).is_some() { "/tmp".into() } else { place };
    let scratch = place.join(format!("dirigent-{what}-{}", std::process::id()));
    std::fs::create_dir(&scratch).context("cannot make a directory for the second run")?;
    std::fs::set_permissions(&scratch, std::fs::Permissions::from_mode(mode))
        .context("cannot open the directory for the second run")?;
    Ok(scratch)
}

/// How programs are run as [`ORDINARY`]. The checkout may lie below a directory that is closed to
/// others, as root's home is: then they are run in a mount namespace in which an empty directory
/// lies over that one, with what they need in its old place, since that is where they look for it.
struct Ordinary {
    /// The highest closed directories.
    closed: Vec<PathBuf>,
    /// What is needed below them.
    needed: Vec<PathBuf>,
    /// Where that is kept while its place is covered; empty outside of the namespace.
    kept: PathBuf,
}

/// `$1` is where to keep, followed by closed directories, `--`, needed ones, `--` and the command.
const OPEN: &str = r#"
set -e
kept=$1; shift
mount -t tmpfs tmpfs "$kept"
closed=
count=0
while [ "$1" != -- ]; do
    count=$((count + 1)); eval "closed$count=\$1"; shift
done
shift
needed=0
while [ "$1" != -- ]; do
    needed=$((needed + 1)); eval "needed$needed=\$1"
    mkdir "$kept/$needed"
    mount --bind "$1" "$kept/$needed"
    shift
done
shift
for number in $(seq "$count"); do
    eval "place=\$closed$number"
    mount -t tmpfs -o mode=755 tmpfs "$place"
done
umask 022
for number in $(seq "$needed"); do
    eval "place=\$needed$number"
    mkdir -p "$place"
    mount --bind "$kept/$number" "$place"
done
# What was entered before is the covered directory.
cd "$PWD"
exec "$@"
"#;

impl Ordinary {
    /// For programs that need these files or directories, with the checkout.
    fn new<'a>(needed: impl IntoIterator<Item = &'a PathBuf>) -> Result<Self> {
        let root = std::env::current_dir().context("where is this")?;
        let mut places: Vec<PathBuf> = vec![root];
        for path in needed {
            if !places.iter().any(|place| path.starts_with(place)) {
                // A program's neighbours are needed too: those that it starts.
                places.push(target_of(path).to_owned());
            }
        }
        Self::with(places)
    }

    fn with(places: Vec<PathBuf>) -> Result<Self> {
        let (mut closed, mut needed) = (Vec::new(), Vec::new());
        for place in places {
            let Some(above) = closed_above(&place) else { continue };
            if !closed.contains(&above) {
                closed.push(above);
            }
            needed.push(place);
        }
        Ok(Self { closed, needed, kept: scratch("kept", 0o755)? })
    }

    /// Runs `program`; arguments, directory and environment are the caller's to add.
    fn command(&self, program: &Path) -> Command {
        let mut command;
        if self.closed.is_empty() {
            command = Command::new("setpriv");
        } else {
            command = Command::new("unshare");
            command.args(["--mount", "--propagation", "private", "sh", "-c", OPEN, "sh"]);
            command.arg(&self.kept).args(&self.closed).arg("--").args(&self.needed);
            command.args(["--", "setpriv"]);
        }
        let id = ORDINARY.to_string();
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"]).arg(program);
        command
    }

    /// Whether it can read these.
    fn reaches(&self, paths: &[&Path]) -> Result<()> {
        for path in paths {
            let output = self.command(Path::new("test")).arg("-r").arg(path).output();
            let output = output.context("cannot start setpriv or unshare")?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr);
                bail!("{} is closed to others {}", path.display(), said.trim());
            }
        }
        Ok(())
    }
}

impl Drop for Ordinary {
    fn drop(&mut self) {
        // Not with what is in it: only an empty directory is ours.
        if let Err(error) = std::fs::remove_dir(&self.kept) {
            println!("xtask: {} stays behind: {error}", self.kept.display());
        }
    }
}

/// The directory that holds a build's programs, `debug` in `target/debug/deps/program-1f`.
fn target_of(program: &Path) -> &Path {
    program.ancestors().nth(2).unwrap_or(program)
}

/// The highest directory above `path` that users other than its owner cannot pass.
fn closed_above(path: &Path) -> Option<PathBuf> {
    let is_closed = |dir: &&Path| {
        !std::fs::metadata(dir).is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0)
    };
    let above = path.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty());
    above.filter(is_closed).last().map(Path::to_owned)
}

/// The test programs of [`TWICE`] with the directory of their package.
fn test_programs() -> Result<Vec<(PathBuf, PathBuf)>> {
    // All of the workspace, as before: fewer packages need fewer features of what they depend on,
    // and almost everything would be built once more for them.
    let args = [
        "test",
        "--no-run",
        "--workspace",
        "--message-format=json-render-diagnostics",
        "--quiet",
        "--features",
        FEATURES,
    ];
    let mut programs = Vec::new();
    for line in run::output(env!("CARGO"), &args)?.lines() {
        let message: serde_json::Value = serde_json::from_str(line).context("cargo speaks JSON")?;
        let package = message["package_id"].as_str().unwrap_or_default();
        if message["profile"]["test"] != true || !TWICE.iter().any(|name| package.contains(name)) {
            continue;
        }
        let manifest = message["manifest_path"].as_str().map(Path::new).and_then(Path::parent);
        if let (Some(program), Some(directory)) = (message["executable"].as_str(), manifest) {
            programs.push((directory.to_owned(), PathBuf::from(program)));
        }
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_skip_is_counted() {
        for line in ["skip: a", "skipped: a", "skipped for basic: a", "skipped in part: a"] {
            assert!(is_skip(line), "{line}");
        }
        assert!(!is_skip("test skipped_ones_are_counted ... ok") && !is_skip("skipping"));
    }

    /// A test program that says these lines.
    fn saying(lines: &str, is_ok: bool) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("printf '%s\\n' {lines}; {is_ok}"), "sh"]);
        command
    }

    #[test]
    fn what_fails_beside_others_and_passes_alone_is_named_and_nothing_else_passes() {
        let (ok, bad) = ("'test a::b ... ok'", "'test a::b ... FAILED'");
        let summary = |failed| {
            format!("'test result: FAILED. 1 passed; {failed} failed; 0 ignored; 0 measured'")
        };
        let whole =
            || saying(&format!("'running 2 tests' 'test c ... ok' {bad} {}", summary(1)), false);
        // Not on: whoever reads what this test says would take it for what became of tests.
        let silent = || Seen { tell: |_line| {}, ..Seen::default() };
        let mut seen = silent();
        assert!(seen.passes(&mut whole(), Some(&|| saying(ok, true))).unwrap());
        assert_eq!(seen.flaky, ["a::b"]);
        let mut seen = silent();
        let never: [&dyn Fn() -> Command; 3] = [
            &|| saying(bad, false),
            // Of another program: nothing was run.
            &|| saying("'running 0 tests'", true),
            // It ended badly all the same.
            &|| saying(ok, false),
        ];
        for again in never {
            assert!(!seen.passes(&mut whole(), Some(again)).unwrap());
        }
        assert!(!seen.passes(&mut whole(), None).unwrap());
        let many = "'test d ... FAILED' 'test e ... FAILED'";
        let many = format!("'running 3 tests' {bad} {many} {}", summary(3));
        // One that ended in the middle, beside one whose failure is an accident.
        let cut = format!("'running 2 tests' {bad} {} 'running 9 tests'", summary(1));
        // Two failed, of which one was not seen to.
        let unseen = format!("'running 2 tests' {bad} {}", summary(2));
        for lines in [many, cut, unseen] {
            let again: &dyn Fn() -> Command = &|| saying(ok, true);
            assert!(!seen.passes(&mut saying(&lines, false), Some(again)).unwrap(), "{lines}");
        }
        // Without a test that failed, as where it does not build.
        assert!(!seen.passes(&mut saying("", false), Some(&|| saying(ok, true))).unwrap());
        assert_eq!(seen.flaky, [] as [&str; 0]);
    }

    #[test]
    fn systems_are_told_from_other_test_programs() {
        assert!(runs_systems(Path::new("/x/deps/up-a27ae447729827e8")));
        assert!(!runs_systems(Path::new("/x/deps/conformance-a27ae447729827e8")));
        assert!(!runs_systems(Path::new("/x/deps/up")));
    }

    #[test]
    fn the_second_run_gets_to_what_lies_below_a_closed_directory() {
        if !rustix::process::getuid().is_root() {
            return println!("skip: only root becomes another user");
        }
        let home = scratch("closed", 0o700).unwrap();
        let checkout = home.join("me/checkout");
        std::fs::create_dir_all(&checkout).unwrap();
        std::fs::write(home.join("secret"), "").unwrap();
        std::fs::write(checkout.join("file"), "of the checkout").unwrap();
        assert_eq!(closed_above(&checkout), Some(home.clone()));
        let user = Ordinary::with(vec![checkout.clone()]).unwrap();
        let mut command = user.command(Path::new("sh"));
        let script = "id -u; cat file; ls ../..; mount --bind . / 2>&1 || exit 7";
        let output = command.args(["-c", script]).current_dir(&checkout).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let reached = user.reaches(&[&checkout.join("file")]);
        let missed = user.reaches(&[&home.join("secret")]);
        drop(user);
        // Nothing of it is seen outside.
        let files = std::fs::read_dir(&home).unwrap().count();
        std::fs::remove_dir_all(&home).unwrap();
        if said.is_empty() && String::from_utf8_lossy(&output.stderr).contains("unshare") {
            return println!("skip: this root may make no mount namespace");
        }
        let seen = said.starts_with(&format!("{ORDINARY}\nof the checkoutme\n"));
        assert!(seen && output.status.code() == Some(7), "{output:?}");
        reached.unwrap();
        missed.unwrap_err();
        assert_eq!(files, 2);
    }
}
