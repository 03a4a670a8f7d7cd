//! What `deploy` was pointed at, made into a manifest and the files that go with it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use dirigent_core::{
    Digest, FunctionName, RuntimeKind,
    manifest::{self, ImageFiles, Manifest},
};

use crate::{
    args::ManifestFlags,
    detect,
    fail::{Fail, Kind, OrFail as _, Result},
    manifest::{FILE, Source},
};

/// The program that is the worker's own binary: it needs no files.
const BUILT_IN: &str = "dirigent";

/// The files of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Files {
    /// None: everything is on the worker.
    None,
    /// A folder, whole.
    Folder(PathBuf),
    /// One file.
    File(PathBuf),
    /// An image in an archive, which is sent as it is.
    Image(PathBuf),
}

/// A function to deploy.
#[derive(Debug)]
pub(crate) struct Project {
    pub(crate) manifest: Manifest,
    pub(crate) files: Files,
    /// What was found out instead of being told, in a sentence each.
    pub(crate) notes: Vec<String>,
    /// The manifest's text, to point at.
    source: Option<Source>,
}

impl Project {
    /// Reads or recognises what is at `path`, and puts the flags on top.
    pub(crate) fn open(path: Option<&Path>, flags: &ManifestFlags) -> Result<Self> {
        let mut project = match path {
            Some(path) => Self::at(path, flags)?,
            // A command and nothing else needs no folder; the current one may hold anything.
            None if flags.command.is_some() => Self::bare(Files::None, Path::new("."), flags)?,
            None => Self::at(Path::new("."), flags)?,
        };
        apply(&mut project.manifest, flags)?;
        let program = project.manifest.sandbox.command.first();
        if program.is_some_and(|program| program == BUILT_IN) && project.is_only_a_manifest()? {
            project.files = Files::None;
        }
        project.check(None)?;
        Ok(project)
    }

    fn at(path: &Path, flags: &ManifestFlags) -> Result<Self> {
        let meta = fs::metadata(path)
            .or_fail(Kind::Config, || format!("cannot read {}", path.display()))?;
        if meta.is_dir() {
            let manifest = path.join(FILE);
            if manifest.is_file() {
                return Self::written(&manifest, path);
            }
            return Self::bare(Files::Folder(path.to_owned()), path, flags);
        }
        if path.extension().is_some_and(|extension| extension == "toml") {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            return Self::written(path, folder.unwrap_or_else(|| Path::new(".")));
        }
        Self::bare(Files::File(path.to_owned()), path, flags)
    }

    fn written(manifest: &Path, folder: &Path) -> Result<Self> {
        let source = Source::read(manifest)?;
        let manifest = source.parse()?;
        Ok(Self {
            files: files_of(&manifest, folder),
            manifest,
            notes: Vec::new(),
            source: Some(source),
        })
    }

    /// Without a manifest: the name from the path, the command from what is there.
    fn bare(files: Files, path: &Path, flags: &ManifestFlags) -> Result<Self> {
        let mut notes = Vec::new();
        let name = if let Some(name) = &flags.name {
            name.clone()
        } else {
            let made = detect::name(path).and_then(|name| name.parse::<FunctionName>().ok());
            made.ok_or_else(|| {
                Fail::config(format!("no name can be made from {}", path.display()))
                    .hint("give one with --name")
            })?
        };
        let command = if flags.command.is_some() {
            Vec::new()
        } else {
            let found = match &files {
                Files::File(file) => detect::file(file)?,
                Files::Folder(folder) => detect::folder(folder)?,
                Files::None | Files::Image(_) => {
                    return Err(Fail::config("say what to run with --command"));
                }
            };
            let shown = found.command.join(" ");
            notes.push(format!("runs `{shown}`, as {}", found.because));
            found.command
        };
        Ok(Self { manifest: plain(name, command), files, notes, source: None })
    }

    /// Checks the rules that core knows; `artifact` once it is packed.
    pub(crate) fn check(&self, artifact: Option<Digest>) -> Result {
        match self.manifest.clone().validate(artifact) {
            Ok(_valid) => Ok(()),
            Err(error) => Err(match &self.source {
                Some(source) => source.broken(&error),
                None => Fail::config(error),
            }),
        }
    }

    fn is_only_a_manifest(&self) -> Result<bool> {
        let Files::Folder(folder) = &self.files else { return Ok(false) };
        let entries = fs::read_dir(folder)
            .or_fail(Kind::Config, || format!("cannot read {}", folder.display()))?;
        Ok(entries.filter_map(std::result::Result::ok).all(|entry| entry.file_name() == FILE))
    }
}

/// What goes with a manifest: the folder that it is in, or the image that it names.
fn files_of(manifest: &Manifest, folder: &Path) -> Files {
    if manifest.sandbox.runtime != RuntimeKind::Container {
        return Files::Folder(folder.to_owned());
    }
    match manifest.sandbox.image.as_deref().and_then(ImageFiles::of) {
        Some(ImageFiles::File(file)) => Files::Image(folder.join(file)),
        Some(ImageFiles::Directory(directory)) => Files::Folder(folder.join(directory)),
        None => Files::None,
    }
}

/// A manifest with nothing but a name and a command.
fn plain(name: FunctionName, command: Vec<String>) -> Manifest {
    Manifest {
        name,
        sandbox: manifest::Sandbox::new(RuntimeKind::Process, command),
        resources: manifest::ManifestResources::default(),
        scaling: manifest::Scaling::default(),
        invocation: manifest::Invocation::default(),
        env: std::collections::BTreeMap::new(),
    }
}

/// The manifest of a function that is built into the binary.
pub(crate) fn built_in(name: FunctionName, example: &str) -> Manifest {
    let command = [BUILT_IN, "example", example].map(str::to_owned).to_vec();
    plain(name, command)
}

fn apply(manifest: &mut Manifest, flags: &ManifestFlags) -> Result {
    fn set<T: Clone>(target: &mut T, flag: Option<&T>) {
        if let Some(value) = flag {
            target.clone_from(value);
        }
    }
    set(&mut manifest.name, flags.name.as_ref());
    if let Some(command) = &flags.command {
        manifest.sandbox.command = detect::words(command)?;
    }
    if let Some(isolation) = flags.isolation {
        manifest.sandbox.isolation = Some(isolation.into());
    }
    if let Some(protocol) = flags.protocol {
        manifest.sandbox.protocol = protocol.into();
    }
    set(&mut manifest.resources.memory, flags.memory.as_ref());
    set(&mut manifest.resources.cpu, flags.cpu.as_ref());
    set(&mut manifest.scaling.min, flags.min.as_ref());
    set(&mut manifest.scaling.max, flags.max.as_ref());
    set(&mut manifest.scaling.concurrency, flags.concurrency.as_ref());
    set(&mut manifest.scaling.keep_alive, flags.keep_alive.as_ref());
    set(&mut manifest.invocation.timeout, flags.timeout.as_ref());
    set(&mut manifest.invocation.queue_timeout, flags.queue_timeout.as_ref());
    set(&mut manifest.invocation.start_timeout, flags.start_timeout.as_ref());
    set(&mut manifest.invocation.max_queue, flags.max_queue.as_ref());
    for pair in &flags.env {
        let (name, value) = pair.split_once('=').ok_or_else(|| {
            // The text may be a secret whose name was forgotten: it is not repeated.
            Fail::config("--env: no `=` in one of the values").hint("write --env NAME=VALUE")
        })?;
        manifest.env.insert(name.to_owned(), value.to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str =
        "name = \"a\"\n[sandbox]\ncommand = [\"dirigent\", \"example\", \"hello\"]\n";

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn flags_win_over_the_manifest() {
        let dir = folder(&[(FILE, MANIFEST)]);
        let flags = ManifestFlags {
            name: Some("media/b".parse().unwrap()),
            max: Some(7),
            env: vec!["A=b=c".to_owned()],
            ..ManifestFlags::default()
        };
        let project = Project::open(Some(dir.path()), &flags).unwrap();
        assert_eq!(project.manifest.name.to_string(), "media/b");
        assert_eq!(project.manifest.scaling.max, 7);
        assert_eq!(project.manifest.env["A"], "b=c");
        assert_eq!(project.files, Files::None, "a built-in function has no files");
    }

    #[test]
    fn a_folder_with_more_than_the_manifest_is_packed() {
        let dir = folder(&[(FILE, MANIFEST), ("data.txt", "")]);
        let project = Project::open(Some(dir.path()), &ManifestFlags::default()).unwrap();
        assert_eq!(project.files, Files::Folder(dir.path().to_owned()));
    }

    #[test]
    fn a_folder_without_a_manifest_says_what_was_detected() {
        let dir = folder(&[("app.py", "")]);
        let flags = ManifestFlags { name: Some("x".parse().unwrap()), ..ManifestFlags::default() };
        let project = Project::open(Some(dir.path()), &flags).unwrap();
        assert_eq!(project.manifest.sandbox.command, ["python3", "app.py"]);
        assert_eq!(project.notes, ["runs `python3 app.py`, as `app.py` is there"]);
    }

    #[test]
    fn a_command_alone_needs_no_folder() {
        let flags = ManifestFlags {
            name: Some("x".parse().unwrap()),
            command: Some("dirigent example spin".to_owned()),
            ..ManifestFlags::default()
        };
        let project = Project::open(None, &flags).unwrap();
        assert_eq!(project.files, Files::None);
        assert_eq!(project.manifest.sandbox.command, ["dirigent", "example", "spin"]);
    }

    #[test]
    fn a_secret_without_its_name_is_not_repeated() {
        let dir = folder(&[(FILE, MANIFEST)]);
        let flags = ManifestFlags { env: vec!["hunter2".to_owned()], ..ManifestFlags::default() };
        let fail = Project::open(Some(dir.path()), &flags).unwrap_err();
        assert!(!fail.lines().concat().contains("hunter2"));
    }
}
