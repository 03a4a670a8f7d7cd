//! A sandbox in containerd: how it is made there, and that nothing of it is left.

use std::{collections::HashMap, fs, io, os::fd::OwnedFd, path::PathBuf, time::Duration};

use dirigent_containerd::{
    Client, Failure,
    api::containerd::{
        runc::v1::Options,
        services::{
            containers::v1::{
                Container, CreateContainerRequest, DeleteContainerRequest, container,
            },
            snapshots::v1::{PrepareSnapshotRequest, RemoveSnapshotRequest},
            tasks::v1::{
                CreateTaskRequest, DeleteTaskRequest, KillRequest, StartRequest, WaitRequest,
            },
        },
        types::Mount,
    },
};
use dirigent_core::{Bytes, Cause, Fault, SandboxId, StartFailure, worker::Adopted};
use prost::Message as _;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{
    DIRECTORY, NETWORK, SANDBOX, Writes,
    driver::World,
    image::Image,
    images::absent,
    output,
    scratch::{self, Scratch},
    spec::{self, Plan},
};

/// Longer than any of these calls takes on a machine that is of any use.
const CALL: Duration = Duration::from_secs(30);

/// The parent of the sandboxes' control groups.
const GROUPS: &str = "/dirigent-containers";

/// In the directory of a sandbox that was made ahead.
const RECORD: &str = "record";

/// Where a sandbox is, in containerd and here.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) client: Client,
    scratch: Scratch,
    pub(super) snapshotter: String,
    pub(super) mark: String,
    /// Its name in containerd, unlike that of any other worker's.
    pub(super) id: String,
    /// Its pipes and its record.
    pub(super) directory: PathBuf,
    /// What it was named for: the sandbox, unless it was made before there was one. By this name it
    /// has its network. `None` for what is not ours to be known.
    pub(super) key: Option<SandboxId>,
}

/// Of what a sandbox's file system is mounted.
struct Root {
    mounts: Vec<Mount>,
    /// What the container names as its snapshot.
    snapshot: String,
}

/// What a function found out of a start that failed.
pub(super) type Made<T> = Result<T, StartFailure>;

fn failed(message: impl Into<String>, fault: Fault) -> StartFailure {
    let cause = Cause::CreateFailed { message: message.into() };
    StartFailure { cause, fault, log_tail: Vec::new() }
}

fn ours(error: &io::Error) -> StartFailure {
    failed(error.to_string(), Fault::Worker)
}

impl Place {
    pub(super) fn of(world: &World, sandbox: SandboxId) -> Self {
        let id = format!("{}-{sandbox}", world.mark);
        Self { key: Some(sandbox), ..Self::named(world, id) }
    }

    /// What has this name in containerd.
    pub(super) fn named(world: &World, id: String) -> Self {
        Self {
            client: world.client.within(CALL),
            scratch: world.scratch.clone(),
            snapshotter: world.config.snapshotter.clone(),
            mark: world.mark.clone(),
            directory: world.config.directory.join("sandboxes").join(&id),
            id,
            key: None,
        }
    }

    /// Says whose it is, for the next life of the worker, where that was not known when it was made.
    pub(super) fn record(&self, adopted: &Adopted) -> io::Result<()> {
        fs::write(self.marker(RECORD), serde_json::to_vec(adopted)?)
    }

    pub(super) fn recorded(&self) -> Option<Adopted> {
        serde_json::from_slice(&fs::read(self.marker(RECORD)).ok()?).ok()
    }

    pub(super) fn group(&self) -> String {
        format!("{GROUPS}/{}", self.id)
    }

    /// Whether the kernel killed something in it for want of memory.
    pub(super) fn out_of_memory(&self) -> bool {
        let group = self.group();
        let files = [
            format!("/sys/fs/cgroup/memory{group}/memory.oom_control"),
            format!("/sys/fs/cgroup{group}/memory.events"),
        ];
        files.iter().filter_map(|file| fs::read_to_string(file).ok()).any(|text| {
            let mut counts = text.lines().filter_map(|line| line.strip_prefix("oom_kill "));
            counts.any(|count| count.trim() != "0")
        })
    }

    /// Its pipes, opened for reading.
    pub(super) fn pipes(&self) -> Made<[OwnedFd; 2]> {
        let make = || {
            match fs::remove_dir_all(&self.directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            crate::keeper::private_directory(&self.directory)?;
            output::make(&self.directory)?;
            output::open_both(&self.directory)
        };
        make().map_err(|error| ours(&error))
    }

    fn marker(&self, what: &str) -> PathBuf {
        self.directory.join(what)
    }

    /// Notes something for the next life of the worker.
    pub(super) fn note(&self, what: &str) {
        if let Err(error) = fs::write(self.marker(what), "") {
            tracing::warn!(id = self.id, what, %error, "not noted of a sandbox");
        }
    }

    pub(super) fn is_noted(&self, what: &str) -> bool {
        self.marker(what).exists()
    }

    /// Makes the task, which waits to be started; its first process.
    pub(super) async fn create(
        &self,
        world: &World,
        image: &Image,
        plan: &Plan<'_>,
        adopted: Option<&Adopted>,
    ) -> Made<(Pid, OwnedFd)> {
        plan.check().map_err(|message| failed(message, Fault::Function))?;
        let config = &world.config;
        let memory = plan.create.order.spec.resources.memory;
        let Root { mounts, snapshot } = self.root(world, image, memory).await?;
        let own = plan.create.order.spec.sandbox.handler.as_ref();
        let handler = own.unwrap_or(&config.handler);
        // Handlers of other kinds have options of other kinds.
        let program = config.program.as_ref().filter(|_| *handler == config.handler);
        let options = program.map(|program| prost_types::Any {
            type_url: "containerd.runc.v1.Options".to_owned(),
            value: Options { binary_name: program.clone(), ..Options::default() }.encode_to_vec(),
        });
        let mut labels = HashMap::from([(DIRECTORY.to_owned(), self.mark.clone())]);
        if let Some(adopted) = adopted {
            let record = serde_json::to_string(adopted).map_err(|error| ours(&error.into()))?;
            labels.insert(SANDBOX.to_owned(), record);
        }
        if plan.network.lent.is_some() {
            labels.insert(NETWORK.to_owned(), "own".to_owned());
        }
        let container = Container {
            id: self.id.clone(),
            labels,
            runtime: Some(container::Runtime { name: handler.clone(), options }),
            spec: Some(prost_types::Any { type_url: spec::TYPE.to_owned(), value: plan.bytes() }),
            snapshotter: self.snapshotter.clone(),
            snapshot_key: snapshot,
            ..Container::default()
        };
        let create = CreateContainerRequest { container: Some(container) };
        let created = self.client.containers().create(create).await;
        created.map_err(|status| self.failure(&status))?;
        let [stdout, stderr] =
            output::NAMES.map(|name| self.directory.join(name).display().to_string());
        let create = CreateTaskRequest {
            container_id: self.id.clone(),
            rootfs: mounts,
            stdout,
            stderr,
            ..CreateTaskRequest::default()
        };
        let created = self.client.tasks().create(create).await;
        self.scratch.let_go(&self.directory);
        let pid = created.map_err(|status| self.failure(&status))?.into_inner().pid;
        // It waits to be started, so that the number is still its own.
        first(pid).map_err(|error| ours(&error))
    }

    /// Its file system, on the image's.
    async fn root(&self, world: &World, image: &Image, memory: Bytes) -> Made<Root> {
        if world.config.writes == Writes::Disk {
            return self.on_disk(image).await;
        }
        let mounts = world.images.mounts(image).await;
        let mounts = mounts.map_err(|failure| self.no_image(image, failure))?;
        let layers = match &mounts[..] {
            [one] => scratch::layers(&one.r#type, &one.source, one.options.iter()),
            _ => None,
        };
        let Some(layers) = layers else { return self.on_disk(image).await };
        // As much as processes may write.
        let made = self.scratch.make(&self.directory, &layers, Bytes(memory.0 / 2)).await;
        let options = made.map_err(|error| {
            let what = "no layer in memory can be made for it";
            let hint = "`containerd.writes = \"disk\"` does without";
            failed(format!("{what}: {error}: {hint}"), Fault::Worker)
        })?;
        let mount = Mount {
            r#type: "overlay".to_owned(),
            source: "overlay".to_owned(),
            options,
            ..Mount::default()
        };
        // Named by a container, so that containerd's garbage collector leaves it.
        Ok(Root { mounts: vec![mount], snapshot: world.images.view(image) })
    }

    /// With a snapshot of its own.
    async fn on_disk(&self, image: &Image) -> Made<Root> {
        let prepare = PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: self.id.clone(),
            parent: image.chain.clone(),
            labels: HashMap::from([
                (DIRECTORY.to_owned(), self.mark.clone()),
                // Else containerd's garbage collector takes it from under the sandbox.
                ("containerd.io/gc.root".to_owned(), "dirigent".to_owned()),
            ]),
        };
        let prepared = self.client.snapshots().prepare(prepare).await;
        let prepared = prepared
            .map_err(|status| self.no_image(image, self.client.failure(&status)))?
            .into_inner();
        Ok(Root { mounts: prepared.mounts, snapshot: self.id.clone() })
    }

    fn no_image(&self, image: &Image, failure: Failure) -> StartFailure {
        if !failure.is_not_found() {
            return failed(failure.message, Fault::Worker);
        }
        let message = format!(
            "image {} is not in containerd any more: somebody has removed it; it is fetched again with \
             the next start",
            image.digest
        );
        let cause = Cause::ArtifactFailed { message };
        StartFailure { cause, fault: Fault::Worker, log_tail: Vec::new() }
    }

    pub(super) async fn start(&self) -> Made<()> {
        let start = StartRequest { container_id: self.id.clone(), exec_id: String::new() };
        let started = self.client.tasks().start(start).await;
        started.map(drop).map_err(|status| self.failure(&status))
    }

    fn failure(&self, status: &tonic::Status) -> StartFailure {
        let failure = self.client.failure(status);
        let fault = if is_functions(&failure.message) { Fault::Function } else { Fault::Worker };
        failed(told(&failure.message), fault)
    }

    /// The exit status of its first process, which has ended.
    pub(super) async fn status(&self) -> Result<u32, Failure> {
        let wait = WaitRequest { container_id: self.id.clone(), exec_id: String::new() };
        let waited = self.client.tasks().wait(wait).await;
        Ok(waited.map_err(|status| self.client.failure(&status))?.into_inner().exit_status)
    }

    /// Signals its first process by containerd, or everything in it.
    pub(super) async fn kill(&self, signal: i32, all: bool) -> Result<(), Failure> {
        let signal = signal.unsigned_abs();
        let (container_id, exec_id) = (self.id.clone(), String::new());
        let kill = KillRequest { container_id, exec_id, signal, all };
        let killed = self.client.tasks().kill(kill).await;
        killed.map(drop).map_err(|status| self.client.failure(&status))
    }

    /// Removes whatever there is of it, living or dead.
    pub(super) async fn remove(&self) -> Result<(), Failure> {
        let client = &self.client;
        let delete = DeleteTaskRequest { container_id: self.id.clone() };
        let deleted = client.tasks().delete(delete.clone()).await;
        let deleted = absent(deleted.map(drop).map_err(|status| client.failure(&status)));
        match deleted {
            Ok(()) => {}
            Err(failure) if failure.is_unreachable() => return Err(failure),
            // It runs, or its shim does not know yet that it does not.
            Err(_lives) => {
                absent(self.kill(libc::SIGKILL, true).await)?;
                absent(self.status().await.map(drop))?;
                let deleted = client.tasks().delete(delete).await;
                absent(deleted.map(drop).map_err(|status| client.failure(&status)))?;
            }
        }
        let delete = DeleteContainerRequest { id: self.id.clone() };
        let deleted = client.containers().delete(delete).await;
        absent(deleted.map(drop).map_err(|status| client.failure(&status)))?;
        if !Scratch::is_here(&self.directory) {
            self.remove_snapshot().await?;
        }
        self.remove_directory().await;
        Ok(())
    }

    /// Its pipes, and what may be mounted below.
    pub(super) async fn remove_directory(&self) {
        self.scratch.remove(&self.directory).await;
        if let Err(error) = fs::remove_dir_all(&self.directory)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.directory.display(), %error, "a sandbox's pipes stay");
        }
    }

    pub(super) async fn remove_snapshot(&self) -> Result<(), Failure> {
        let remove =
            RemoveSnapshotRequest { snapshotter: self.snapshotter.clone(), key: self.id.clone() };
        let removed = self.client.snapshots().remove(remove).await;
        absent(removed.map(drop).map_err(|status| self.client.failure(&status)))
    }
}

/// The first process of a sandbox, held so that its number cannot become somebody else's.
pub(super) fn first(pid: u32) -> io::Result<(Pid, OwnedFd)> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("containerd told no process of a task"))?;
    let held = pidfd_open(pid, PidfdFlags::NONBLOCK)
        .map_err(|error| io::Error::other(format!("process {pid:?} of a sandbox: {error}")))?;
    Ok((pid, held))
}

/// Whether a start failed by what was to be started: OCI runtimes only have words for it.
fn is_functions(message: &str) -> bool {
    let of_program = ["executable file", "exec:", "exec user process", "chdir to cwd", "mkdir"];
    let of_image = ["no such file or directory", "not found", "permission denied", "exec format"];
    of_program.iter().any(|word| message.contains(word))
        && of_image.iter().any(|word| message.contains(word))
}

/// Without what all such messages begin with.
fn told(message: &str) -> &str {
    let inner = ["unable to start container process: ", "failed to create shim task: "];
    inner
        .iter()
        .find_map(|word| message.split_once(word).map(|(_before, said)| said))
        .unwrap_or(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_are_not_there_are_the_functions_fault() {
        for (message, functions) in [
            (
                "OCI runtime create failed: runc create failed: unable to start container process: \
                 exec: \"no-such\": executable file not found in $PATH: unknown",
                true,
            ),
            ("OCI runtime start failed: executable file `no-such` not found in $PATH", true),
            ("OCI runtime create failed: exec: \"/etc\": permission denied", true),
            ("failed to mount rootfs component: no such file or directory", false),
            ("ttrpc: closed: unknown", false),
        ] {
            assert_eq!(is_functions(message), functions, "{message}");
        }
        let said = told("x: unable to start container process: exec: \"a\": not found");
        assert_eq!(said, "exec: \"a\": not found");
    }
}
