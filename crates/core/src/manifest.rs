//! `dirigent.toml`: what a user writes to describe a function, parsed into what the cluster keeps.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    Auth, Bytes, Digest, FunctionName, Isolation, KeepAlive, Listen, MilliCpu, Outbound, Protocol,
    Pull, Resources, RuntimeKind, SandboxSpec, Settings, Spec, units,
};

/// A manifest as written. Unknown keys are errors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// `NAME` or `NAMESPACE/NAME`.
    pub name: FunctionName,
    /// What runs.
    pub sandbox: Sandbox,
    /// What it may use.
    #[serde(default)]
    pub resources: ManifestResources,
    /// How it scales.
    #[serde(default)]
    pub scaling: Scaling,
    /// How it is invoked.
    #[serde(default)]
    pub invocation: Invocation,
    /// Its environment, beside what the platform sets.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// `[sandbox]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sandbox {
    /// `process`, or `container` for an OCI image; `wasm`, `microvm` are to come.
    #[serde(default = "process")]
    pub runtime: RuntimeKind,
    /// Program and arguments; `dirigent` is the binary of the worker itself. For a container it
    /// takes the place of what its image says.
    #[serde(default)]
    pub command: Vec<String>,
    /// For containers: one of a registry, such as `registry.example.org/team/app:1`, or an archive beside
    /// the manifest, as `docker-archive:FILE`, `oci-archive:FILE` or `oci:DIRECTORY`.
    #[serde(default)]
    pub image: Option<String>,
    /// When an image is asked of its registry: `missing`, if the worker that makes the first sandbox does
    /// not have it; `always`, with every deploy; `never`.
    #[serde(default)]
    pub pull: Pull,
    /// Whether the root that an image gives is for reading only; `/tmp` is in memory then.
    #[serde(default)]
    pub read_only: bool,
    /// The runtime handler of containerd, such as `io.containerd.runsc.v1`; the worker's usual one if
    /// nothing is said.
    #[serde(default)]
    pub handler: Option<String>,
    /// For wasm.
    #[serde(default)]
    pub component: Option<String>,
    /// A wish, which OCI images with a network of their own are granted; the truth is in `$PORT`.
    #[serde(default)]
    pub port: Option<u16>,
    /// `http1`, or `h2c` for gRPC.
    #[serde(default)]
    pub protocol: Protocol,
    /// `plain`, `basic`, `strict`: refused rather than weakened; the best there is if left out.
    #[serde(default)]
    pub isolation: Option<Isolation>,
    /// `port`: it binds `$PORT`; `fd`: it takes file descriptor 3 (`LISTEN_FDS`), the fastest start.
    #[serde(default)]
    pub listen: Listen,
    /// Where it may connect: `internet`, `none`, or a list such as `["10.0.0.5:5432", "10.1.0.0/16"]`.
    /// Demands `strict`. If left out, `internet` where it is strict.
    #[serde(default)]
    pub network: Option<Outbound>,
}

impl Sandbox {
    /// What runs this command, and says nothing else.
    #[must_use]
    pub const fn new(runtime: RuntimeKind, command: Vec<String>) -> Self {
        Self {
            runtime,
            command,
            image: None,
            pull: Pull::Missing,
            read_only: false,
            handler: None,
            component: None,
            port: None,
            protocol: Protocol::Http1,
            isolation: None,
            listen: Listen::Port,
            network: None,
        }
    }
}

/// What an image is that is sent with the deploy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFiles<'a> {
    /// An archive.
    File(&'a str),
    /// The directory of an OCI layout.
    Directory(&'a str),
}

impl<'a> ImageFiles<'a> {
    /// Of `sandbox.image`, in the words that `skopeo` and `podman` have for it.
    #[must_use]
    pub fn of(image: &'a str) -> Option<Self> {
        match image.split_once(':')? {
            ("docker-archive" | "oci-archive", file) if !file.is_empty() => Some(Self::File(file)),
            ("oci", directory) if !directory.is_empty() => Some(Self::Directory(directory)),
            _ => None,
        }
    }
}

fn process() -> RuntimeKind {
    RuntimeKind::Process
}

/// `[resources]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ManifestResources {
    /// See [`Resources::cpu`].
    pub cpu: MilliCpu,
    /// See [`Resources::memory`].
    pub memory: Bytes,
}

impl Default for ManifestResources {
    fn default() -> Self {
        let Resources { cpu, memory } = Resources::default();
        Self { cpu, memory }
    }
}

/// `[scaling]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scaling {
    /// See [`Settings::min`].
    pub min: u32,
    /// See [`Settings::max`].
    pub max: u32,
    /// See [`Spec::concurrency`].
    pub concurrency: u32,
    /// See [`Settings::keep_alive`].
    pub keep_alive: KeepAlive,
}

impl Default for Scaling {
    fn default() -> Self {
        let Settings { min, max, keep_alive, .. } = Settings::default();
        Self { min, max, concurrency: 1, keep_alive }
    }
}

/// `[invocation]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Invocation {
    /// See [`Settings::timeout`].
    #[serde(with = "units::duration")]
    pub timeout: Duration,
    /// See [`Settings::queue_timeout`].
    #[serde(with = "units::duration")]
    pub queue_timeout: Duration,
    /// See [`Settings::start_timeout`].
    #[serde(with = "units::duration")]
    pub start_timeout: Duration,
    /// See [`Settings::idle_timeout`].
    #[serde(with = "units::duration")]
    pub idle_timeout: Duration,
    /// See [`Settings::drain_timeout`].
    #[serde(with = "units::duration")]
    pub drain_timeout: Duration,
    /// See [`Settings::grace`].
    #[serde(with = "units::duration")]
    pub grace: Duration,
    /// See [`Settings::max_queue`].
    pub max_queue: u32,
    /// See [`Settings::retry`].
    pub retry: bool,
    /// See [`Settings::auth`].
    pub auth: Auth,
}

impl Default for Invocation {
    fn default() -> Self {
        let s = Settings::default();
        Self {
            timeout: s.timeout,
            queue_timeout: s.queue_timeout,
            start_timeout: s.start_timeout,
            idle_timeout: s.idle_timeout,
            drain_timeout: s.drain_timeout,
            grace: s.grace,
            max_queue: s.max_queue,
            retry: s.retry,
            auth: s.auth,
        }
    }
}

impl Manifest {
    /// The parsed form: a valid spec and settings.
    ///
    /// # Errors
    /// The first rule broken, with the key's path and what to write instead.
    pub fn validate(
        self,
        artifact: Option<Digest>,
    ) -> Result<(FunctionName, Arc<Spec>, Arc<Settings>), ManifestError> {
        let Self { name, sandbox, resources, scaling, invocation, env } = self;
        sandbox.check()?;
        resources.check()?;
        scaling.check()?;
        invocation.check()?;
        check_env(&env)?;
        let spec = Spec {
            sandbox: SandboxSpec {
                runtime: sandbox.runtime,
                command: sandbox.command,
                image: sandbox.image,
                pull: sandbox.pull,
                read_only: sandbox.read_only,
                handler: sandbox.handler,
                component: sandbox.component,
                port: sandbox.port,
                protocol: sandbox.protocol,
                // Nothing less keeps to it.
                isolation: sandbox
                    .isolation
                    .or_else(|| sandbox.network.as_ref().map(|_| Isolation::Strict)),
                listen: sandbox.listen,
                network: sandbox.network,
            },
            resources: Resources { cpu: resources.cpu, memory: resources.memory },
            env,
            concurrency: scaling.concurrency,
            artifact,
        };
        let settings = Settings {
            min: scaling.min,
            max: scaling.max,
            keep_alive: scaling.keep_alive,
            timeout: invocation.timeout,
            queue_timeout: invocation.queue_timeout,
            start_timeout: invocation.start_timeout,
            idle_timeout: invocation.idle_timeout,
            drain_timeout: invocation.drain_timeout,
            grace: invocation.grace,
            max_queue: invocation.max_queue,
            retry: invocation.retry,
            auth: invocation.auth,
        };
        Ok((name, Arc::new(spec), Arc::new(settings)))
    }

    /// What would have to be written to get these; the artifact stands beside a manifest.
    #[must_use]
    pub fn of(name: FunctionName, spec: &Spec, settings: &Settings) -> Self {
        let Spec { sandbox, resources, env, concurrency, artifact: _ } = spec.clone();
        let SandboxSpec { runtime, command, image, component, port, protocol, .. } = sandbox;
        let Settings { min, max, keep_alive, .. } = *settings;
        Self {
            name,
            sandbox: Sandbox {
                runtime,
                command,
                image,
                component,
                port,
                protocol,
                isolation: sandbox.isolation,
                listen: sandbox.listen,
                network: sandbox.network,
                pull: sandbox.pull,
                read_only: sandbox.read_only,
                handler: sandbox.handler,
            },
            resources: ManifestResources { cpu: resources.cpu, memory: resources.memory },
            scaling: Scaling { min, max, concurrency, keep_alive },
            invocation: Invocation {
                timeout: settings.timeout,
                queue_timeout: settings.queue_timeout,
                start_timeout: settings.start_timeout,
                idle_timeout: settings.idle_timeout,
                drain_timeout: settings.drain_timeout,
                grace: settings.grace,
                max_queue: settings.max_queue,
                retry: settings.retry,
                auth: settings.auth,
            },
            env,
        }
    }
}

/// Bounds that protect the platform from slips of the pen, far above any use.
const MAX_SANDBOXES: u32 = 100_000;
const MAX_CONCURRENCY: u32 = 10_000;
const MAX_QUEUE: u32 = 1_000_000;
const MAX_TIME: Duration = Duration::from_hours(7 * 24);
const MAX_TEXT: usize = 64 << 10;
/// Less is not enough for any program to start.
const MIN_MEMORY: Bytes = Bytes::mib(4);

fn broken<T>(key: &'static str, problem: impl Into<String>) -> Result<T, ManifestError> {
    Err(ManifestError { key, problem: problem.into() })
}

impl Sandbox {
    fn check(&self) -> Result<(), ManifestError> {
        let runtime = self.runtime;
        match runtime {
            RuntimeKind::Process => {
                if self.command.first().is_none_or(String::is_empty) {
                    return broken(
                        "sandbox.command",
                        "is missing: say what to run, such as [\"python3\", \"app.py\"]",
                    );
                }
            }
            RuntimeKind::Container if self.image.is_none() => {
                return broken("sandbox.image", "is missing: a container needs one");
            }
            RuntimeKind::Wasm if self.component.is_none() => {
                return broken("sandbox.component", "is missing: say which file is the component");
            }
            RuntimeKind::Container
            | RuntimeKind::Wasm
            | RuntimeKind::Microvm
            | RuntimeKind::Fake => {}
        }
        if let Some(image) = self.image.as_deref().filter(|_| runtime == RuntimeKind::Container)
            && let Err(problem) = check_image(image)
        {
            return broken("sandbox.image", problem);
        }
        if runtime != RuntimeKind::Container {
            for (key, is_set) in [
                ("sandbox.pull", self.pull != Pull::default()),
                ("sandbox.read_only", self.read_only),
                ("sandbox.handler", self.handler.is_some()),
            ] {
                if is_set {
                    return broken(key, "is for containers: leave it out, or change `runtime`");
                }
            }
        }
        if let Some(handler) = &self.handler
            && (handler.is_empty() || !handler.chars().all(is_of_a_name))
        {
            return broken("sandbox.handler", "is a name such as `io.containerd.runsc.v1`");
        }
        if self.image.is_some() && runtime == RuntimeKind::Process {
            return broken("sandbox.image", "is for containers: leave it out, or change `runtime`");
        }
        if self.component.is_some() && runtime != RuntimeKind::Wasm {
            return broken("sandbox.component", "is for `runtime = \"wasm\"`: leave it out");
        }
        if self.port == Some(0) {
            return broken("sandbox.port", "must be 1 to 65535, or left out");
        }
        if self.listen == Listen::Fd && runtime != RuntimeKind::Process {
            return broken("sandbox.listen", "can be `fd` for processes only: use `port`");
        }
        if self.network.is_some() {
            if !matches!(runtime, RuntimeKind::Process | RuntimeKind::Container) {
                let problem = "is for containers and processes: leave it out";
                return broken("sandbox.network", problem);
            }
            if self.isolation.is_some_and(|level| level < Isolation::Strict) {
                return broken(
                    "sandbox.network",
                    "demands a network of its own: leave out `isolation`, or demand `strict`",
                );
            }
        }
        if self.command.iter().any(|word| word.contains('\0')) {
            return broken("sandbox.command", "has a zero byte in it");
        }
        if self.command.iter().map(String::len).sum::<usize>() > MAX_TEXT {
            return broken("sandbox.command", "is longer than 64KiB");
        }
        Ok(())
    }
}

impl ManifestResources {
    fn check(self) -> Result<(), ManifestError> {
        if self.cpu == MilliCpu(0) {
            return broken("resources.cpu", "must be at least 1m");
        }
        if self.memory < MIN_MEMORY {
            return broken("resources.memory", format!("must be at least {MIN_MEMORY}"));
        }
        Ok(())
    }
}

impl Scaling {
    fn check(self) -> Result<(), ManifestError> {
        let Self { min, max, concurrency, keep_alive } = self;
        if concurrency > MAX_CONCURRENCY {
            return broken(
                "scaling.concurrency",
                format!("must be at most {MAX_CONCURRENCY}, or 0 for no limit"),
            );
        }
        if !(1..=MAX_SANDBOXES).contains(&max) {
            return broken("scaling.max", format!("must be 1 to {MAX_SANDBOXES}"));
        }
        if min > max {
            return broken("scaling.min", format!("is {min}, more than `scaling.max`, {max}"));
        }
        at_most("scaling.keep_alive", keep_alive.unheld())
    }
}

impl Invocation {
    fn check(self) -> Result<(), ManifestError> {
        for (key, time) in [
            ("invocation.timeout", self.timeout),
            ("invocation.queue_timeout", self.queue_timeout),
            ("invocation.start_timeout", self.start_timeout),
            ("invocation.idle_timeout", self.idle_timeout),
        ] {
            if time.is_zero() {
                return broken(key, "must be longer than zero");
            }
            at_most(key, time)?;
        }
        at_most("invocation.drain_timeout", self.drain_timeout)?;
        at_most("invocation.grace", self.grace)?;
        if !(1..=MAX_QUEUE).contains(&self.max_queue) {
            return broken(
                "invocation.max_queue",
                format!(
                    "must be 1 to {MAX_QUEUE}: a call that starts a sandbox waits in the queue"
                ),
            );
        }
        Ok(())
    }
}

fn is_of_a_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')
}

/// The form of an image: an archive, or a reference as registries have them, with the registry's name, so
/// that nobody gets another one's image by a default.
fn check_image(image: &str) -> Result<(), String> {
    if ImageFiles::of(image).is_some() {
        return Ok(());
    }
    let known = |c: char| is_of_a_name(c) || matches!(c, '/' | ':' | '@');
    if image.is_empty() || image.len() > 512 || !image.chars().all(known) {
        return Err("is neither a reference, such as `registry.example.org/app:1`, nor \
                    `docker-archive:FILE`, `oci-archive:FILE` or `oci:DIRECTORY`"
            .to_owned());
    }
    let registry = image.split_once('/').map(|(registry, _)| registry);
    let named = registry
        .is_some_and(|name| name.contains('.') || name.contains(':') || name == "localhost");
    if !named {
        return Err(format!(
            "does not name its registry: write `docker.io/library/{image}` if it is Docker Hub's, or \
             `docker-archive:{image}` if it is a file"
        ));
    }
    Ok(())
}

fn at_most(key: &'static str, time: Duration) -> Result<(), ManifestError> {
    if time > MAX_TIME { broken(key, "must be at most 7days") } else { Ok(()) }
}

/// Values are secrets: no message repeats one.
fn check_env(env: &BTreeMap<String, String>) -> Result<(), ManifestError> {
    for (name, value) in env {
        let word = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !word || name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            return broken(
                "env",
                format!(
                    "has a variable named {name:?}: use letters, digits and `_`, not starting \
                     with a digit"
                ),
            );
        }
        let ours = ["K_", "DIRIGENT_", "LISTEN_"];
        if matches!(name.as_str(), "PORT" | "HOST") || ours.iter().any(|p| name.starts_with(p)) {
            return broken("env", format!("sets `{name}`, which the platform sets"));
        }
        if value.contains('\0') {
            return broken("env", format!("has a zero byte in the value of `{name}`"));
        }
    }
    if env.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > MAX_TEXT {
        return broken("env", "is larger than 64KiB in all: read large values from a file");
    }
    Ok(())
}

/// A rule that a manifest breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` {problem}")]
pub struct ManifestError {
    /// The key's path, such as `scaling.max`.
    pub key: &'static str,
    /// What is wrong and what to write instead.
    pub problem: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said about a manifest with this text after its name and command.
    fn said(rest: &str) -> String {
        let text = format!("name = \"f\"\nsandbox.command = [\"x\"]\n{rest}");
        let manifest: Manifest = toml::from_str(&text).unwrap();
        manifest.validate(None).map_or_else(|error| error.to_string(), |_valid| String::new())
    }

    #[test]
    fn the_smallest_manifest_is_valid() {
        assert_eq!(said(""), "");
    }

    #[test]
    fn each_broken_rule_names_its_key() {
        for (rest, key) in [
            ("scaling.max = 0", "scaling.max"),
            ("scaling = { min = 3, max = 2 }", "scaling.min"),
            ("resources.cpu = \"0\"", "resources.cpu"),
            ("resources.memory = \"1KiB\"", "resources.memory"),
            ("invocation.timeout = \"0s\"", "invocation.timeout"),
            ("invocation.grace = \"1year\"", "invocation.grace"),
            ("invocation.max_queue = 0", "invocation.max_queue"),
            ("env.PORT = \"1\"", "env"),
            ("env.K_SERVICE = \"1\"", "env"),
            ("env.DIRIGENT_TOKEN = \"1\"", "env"),
            ("env.LISTEN_FDS = \"1\"", "env"),
            ("env.\"A=B\" = \"1\"", "env"),
            ("env.\"1A\" = \"1\"", "env"),
            ("env.\"\" = \"1\"", "env"),
            ("env.\"a\\u0000\" = \"1\"", "env"),
            ("scaling.concurrency = 10001", "scaling.concurrency"),
            ("scaling.keep_alive = \"8days\"", "scaling.keep_alive"),
        ] {
            assert!(said(rest).starts_with(&format!("`{key}` ")), "{rest}: {}", said(rest));
        }
    }

    #[test]
    fn runtimes_need_what_they_run() {
        let said = |sandbox: &str| {
            let text = format!("name = \"f\"\n[sandbox]\n{sandbox}");
            let manifest: Manifest = toml::from_str(&text).unwrap();
            manifest.validate(None).map_or_else(|error| error.key, |_valid| "")
        };
        assert_eq!(said(""), "sandbox.command");
        assert_eq!(said("command = [\"\"]"), "sandbox.command");
        assert_eq!(said("runtime = \"container\""), "sandbox.image");
        assert_eq!(said("runtime = \"wasm\""), "sandbox.component");
        assert_eq!(said("command = [\"x\"]\nimage = \"y\""), "sandbox.image");
        assert_eq!(said("command = [\"x\"]\nread_only = true"), "sandbox.read_only");
        assert_eq!(said("command = [\"x\"]\npull = \"always\""), "sandbox.pull");
        assert_eq!(
            said("runtime = \"container\"\nimage = \"oci:y\"\nlisten = \"fd\""),
            "sandbox.listen"
        );
        for (image, key) in [
            ("docker-archive:a.tar", ""),
            ("oci-archive:../b.tar", ""),
            ("oci:layout", ""),
            ("oci:", "sandbox.image"),
            ("app.tar", "sandbox.image"),
            ("app:1", "sandbox.image"),
            ("reg.example.org/a b", "sandbox.image"),
            ("registry.example.org/team/app:1", ""),
            ("localhost:5000/app", ""),
            ("127.0.0.1:5000/app@sha256:0", ""),
        ] {
            let text = format!("runtime = \"container\"\nimage = \"{image}\"");
            assert_eq!(said(&text), key, "{image}");
        }
    }

    #[test]
    fn where_it_may_connect_demands_a_network_of_its_own() {
        let validated = |sandbox: &str| {
            let text = format!("name = \"f\"\n[sandbox]\ncommand = [\"f\"]\n{sandbox}");
            let manifest: Manifest = toml::from_str(&text).map_err(|error| error.to_string())?;
            let (_, spec, _) = manifest.validate(None).map_err(|error| error.to_string())?;
            Ok::<_, String>(spec.sandbox.clone())
        };
        let none = validated("network = \"none\"").unwrap();
        assert_eq!((none.network, none.isolation), (Some(Outbound::None), Some(Isolation::Strict)));
        let silent = validated("").unwrap();
        assert_eq!((silent.network, silent.isolation), (None, None));
        assert!(validated("network = [\"10.0.0.5:5432\"]\nisolation = \"strict\"").is_ok());
        let error = validated("network = \"internet\"\nisolation = \"basic\"").unwrap_err();
        assert!(error.contains("sandbox.network") && error.contains("strict"), "{error}");
        let image = "runtime = \"container\"\nimage = \"docker-archive:x.tar\"\nnetwork = \"none\"";
        assert_eq!(validated(image).unwrap().isolation, Some(Isolation::Strict));
        let error = validated("runtime = \"microvm\"\nnetwork = \"none\"").unwrap_err();
        assert!(error.contains("is for containers and processes"), "{error}");
        let error = validated("network = [\"db:5432\"]").unwrap_err();
        assert!(error.contains("names are not looked up"), "{error}");
    }

    #[test]
    fn what_a_manifest_says_can_be_written_again() {
        let text = "name = \"media/f\"\nsandbox.command = [\"x\"]\nsandbox.port = 8080\n\
                    sandbox.network = \"none\"\nsandbox.isolation = \"strict\"\nresources.cpu = \"300m\"\n\
                    scaling = { min = 2, max = 7, concurrency = 0, keep_alive = \"3m 5s\" }\n\
                    invocation = { grace = \"1s\", retry = false, auth = \"token\", max_queue = 3 }\n\
                    env.A = \"a\\nb\"";
        let manifest: Manifest = toml::from_str(text).unwrap();
        let (name, spec, settings) = manifest.clone().validate(None).unwrap();
        let again = Manifest::of(name, &spec, &settings);
        assert_eq!(again, manifest);
        let written: Manifest = toml::from_str(&toml::to_string(&again).unwrap()).unwrap();
        assert_eq!(written, manifest);
    }

    #[test]
    fn secrets_are_not_repeated() {
        assert!(!said("env.A = \"hunter2\\u0000\"").contains("hunter2"));
    }
}
