//! `dirigent.toml`: what a user writes to describe a function, parsed into what the cluster keeps.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    Bytes, Digest, FunctionName, Isolation, Listen, MilliCpu, Protocol, Resources, RuntimeKind,
    SandboxSpec, Settings, Spec, units,
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
    /// Its environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// `[sandbox]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sandbox {
    /// `process` (default), `container`, `wasm`, `microvm`.
    #[serde(default = "process")]
    pub runtime: RuntimeKind,
    /// Program and arguments.
    #[serde(default)]
    pub command: Vec<String>,
    /// For containers.
    #[serde(default)]
    pub image: Option<String>,
    /// For wasm.
    #[serde(default)]
    pub component: Option<String>,
    /// A wish; the truth is in `$PORT`.
    #[serde(default)]
    pub port: Option<u16>,
    /// `http1` or `h2c`.
    #[serde(default)]
    pub protocol: Protocol,
    /// `plain`, `basic`, `strict`; demanded if given.
    #[serde(default)]
    pub isolation: Option<Isolation>,
    /// `port` or `fd`.
    #[serde(default)]
    pub listen: Listen,
}

fn process() -> RuntimeKind {
    RuntimeKind::Process
}

/// `[resources]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ManifestResources {
    /// `100m`.
    pub cpu: MilliCpu,
    /// `128MiB`.
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
    #[serde(with = "units::duration")]
    pub keep_alive: Duration,
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
        let spec = Spec {
            sandbox: SandboxSpec {
                runtime: sandbox.runtime,
                command: sandbox.command,
                image: sandbox.image,
                component: sandbox.component,
                port: sandbox.port,
                protocol: sandbox.protocol,
                isolation: sandbox.isolation,
                listen: sandbox.listen,
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
        };
        Ok((name, Arc::new(spec), Arc::new(settings)))
    }
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
