//! `cargo xtask dist`: what is handed to those who run Dirigent, below `target/dist`: a static binary with
//! its units, configuration and completions as an archive and as a Debian package, and their checksums.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::run;

/// What is not in every build and is in each release: nothing that is there for measurements only.
const FEATURES: &str = "dirigent-cli/containerd";

const OUT: &str = "target/dist";
const SHELLS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/dirigent"),
    ("zsh", "usr/share/zsh/vendor-completions/_dirigent"),
    ("fish", "usr/share/fish/vendor_completions.d/dirigent.fish"),
];
const DOCUMENTS: [&str; 3] = ["README.md", "CHANGELOG.md", "LICENSE"];

pub(crate) fn dist() -> Result<()> {
    let binary = build()?;
    let version = version(&binary)?;
    let (architecture, debian) = architecture()?;
    if Path::new(OUT).exists() {
        fs::remove_dir_all(OUT).with_context(|| format!("cannot empty {OUT}"))?;
    }
    let name = format!("dirigent-{version}-{architecture}-linux");
    let root = Path::new(OUT).join(&name);
    lay_out(&root, &binary)?;
    let mut made = vec![format!("{name}.tar.gz")];
    let reproducible = ["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0"];
    let archive = format!("{OUT}/{name}.tar.gz");
    let args: Vec<&str> = [&reproducible[..], &["-czf", &archive, "-C", OUT, &name]].concat();
    run::output("tar", &args)?;
    match package(&root, &version, debian) {
        Ok(package) => made.push(package),
        Err(error) => println!("skip: no Debian package: {error:#}"),
    }
    fs::remove_dir_all(&root).context("cannot remove what was packed")?;
    let sums = run::output("sh", &["-c", &format!("cd {OUT} && sha256sum {}", made.join(" "))])?;
    fs::write(Path::new(OUT).join("SHA256SUMS"), &sums).context("cannot write the checksums")?;
    print!("{sums}");
    Ok(())
}

/// The binary, which needs no library of the machine that it runs on.
fn build() -> Result<PathBuf> {
    let rustc = run::rustc();
    let host = run::machine(&rustc)?;
    let musl = host.replace("-gnu", "-musl");
    let libraries = run::output(&rustc, &["--print", "target-libdir", "--target", &musl])?;
    // Ring has C and assembler in it.
    let target = if Path::new(libraries.trim()).is_dir() && has("musl-gcc") {
        musl.as_str()
    } else {
        println!("xtask: dist: no {musl} with musl-gcc here: linked statically with glibc");
        &host
    };
    let args = ["build", "--release", "--package", "dirigent-cli", "--features", FEATURES];
    let flags = [("RUSTFLAGS", "-C target-feature=+crt-static")];
    run::cargo_with("a static binary", &[&args[..], &["--target", target]].concat(), &flags)?;
    let binary = Path::new("target").join(target).join("release/dirigent");
    let headers = run::output("readelf", &["-lW", path(&binary)?])?;
    ensure!(!headers.contains("INTERP"), "{} is not static", binary.display());
    Ok(binary)
}

fn has(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// The binary's own: what it says of itself is what it is called.
fn version(binary: &Path) -> Result<String> {
    let said = run::output(path(binary)?, &["--version"])?;
    let version = said.split_whitespace().nth(1).context("the binary tells no version")?;
    Ok(version.to_owned())
}

/// As the kernel calls it, and as Debian does.
fn architecture() -> Result<(&'static str, &'static str)> {
    match std::env::consts::ARCH {
        "x86_64" => Ok(("x86_64", "amd64")),
        "aarch64" => Ok(("aarch64", "arm64")),
        other => bail!("packages are made for x86_64 and aarch64, not for {other}"),
    }
}

/// Everything at its place below `root`, as on a machine.
fn lay_out(root: &Path, binary: &Path) -> Result<()> {
    let program = "usr/bin/dirigent";
    put(root, program, &fs::read(binary).context("cannot read the binary")?, 0o755)?;
    // Names of functions stay, for backtraces; lines are three quarters of the file.
    run::output("strip", &["--strip-debug", path(&root.join(program))?])?;
    for (from, to) in
        [("packaging/systemd", "lib/systemd/system"), ("packaging/etc", "etc/dirigent")]
    {
        for entry in fs::read_dir(from).with_context(|| format!("cannot read {from}"))? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_str().context("a name that is no text")?;
            put(root, &format!("{to}/{name}"), &fs::read(entry.path())?, 0o644)?;
        }
    }
    for document in DOCUMENTS {
        let to = format!("usr/share/doc/dirigent/{document}");
        put(root, &to, &fs::read(document).with_context(|| format!("no {document}"))?, 0o644)?;
    }
    for (shell, to) in SHELLS {
        let text = run::output(path(binary)?, &["completions", shell])?;
        put(root, to, text.as_bytes(), 0o644)?;
    }
    Ok(())
}

fn put(root: &Path, to: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let file = root.join(to);
    fs::create_dir_all(file.parent().context("a file has a parent")?)?;
    fs::write(&file, bytes).with_context(|| format!("cannot write {}", file.display()))?;
    fs::set_permissions(&file, fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// Nothing is started or enabled by installing it: which roles a machine has is the operator's choice.
fn package(root: &Path, version: &str, architecture: &str) -> Result<String> {
    ensure!(has("dpkg-deb"), "dpkg-deb is not installed");
    let size = run::output("du", &["-sk", path(root)?])?;
    let size = size.split_whitespace().next().unwrap_or("0");
    let control = format!(
        "Package: dirigent\nVersion: {version}\nArchitecture: {architecture}\n\
         Maintainer: The Dirigent developers <maintainers@invalid>\nInstalled-Size: {size}\n\
         Suggests: containerd, runc, etcd-server, haproxy\nSection: admin\nPriority: optional\n\
         Description: lightweight serverless orchestrator\n \
         Deploy a function, and it starts sandboxes for it when requests come, routes them,\n \
         scales with the load and to zero, and survives failures. One machine: `systemctl enable\n \
         --now dirigent`; several: the units of the roles, after `dirigent join`.\n"
    );
    put(root, "DEBIAN/control", control.as_bytes(), 0o644)?;
    let kept: Vec<String> = fs::read_dir(root.join("etc/dirigent"))?
        .map(|entry| Ok(format!("/etc/dirigent/{}\n", entry?.file_name().to_string_lossy())))
        .collect::<Result<_>>()?;
    put(root, "DEBIAN/conffiles", kept.concat().as_bytes(), 0o644)?;
    let name = format!("dirigent_{version}_{architecture}.deb");
    let to = format!("{OUT}/{name}");
    run::output("dpkg-deb", &["--root-owner-group", "--build", path(root)?, &to])?;
    Ok(name)
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is no text", path.display()))
}
