//! A sandbox in containerd: how it is made there, and that nothing of it is left.

use std::{
    collections::HashMap,
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use dirigent_containerd::{
    Client, Failure, Kind,
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
    bundle::{self, Hands, Verb},
    driver::World,
    image::Image,
    images::absent,
    output,
    scratch::{self, Layers, Scratch},
    spec::{self, Plan},
};
use crate::process::Layered;

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
    /// Who makes it, if not containerd's tasks.
    hands: Option<Rc<Hands>>,
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

/// One that was made.
#[derive(Debug)]
pub(super) struct Created {
    pub(super) pid: Pid,
    pub(super) held: OwnedFd,
    /// Whether it waits to be started.
    pub(super) waits: bool,
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
            hands: world.hands.clone(),
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

    /// Makes it; its first process. It waits to be started, if it is not known whose it is.
    pub(super) async fn create(
        &self,
        world: &World,
        image: &Image,
        plan: &Plan<'_>,
        adopted: Option<&Adopted>,
    ) -> Made<Created> {
        plan.check().map_err(|message| failed(message, Fault::Function))?;
        let own = plan.create.order.spec.sandbox.handler.as_ref();
        let handler = own.unwrap_or(&world.config.handler);
        // As much as processes may write.
        let size = Bytes(plan.create.order.spec.resources.memory.0 / 2);
        let layers = match world.config.writes {
            Writes::Memory => self.layers(world, image).await?,
            Writes::Disk => None,
        };
        let mut record = self.container(world, plan, (handler, adopted))?;
        if let (Some(hands), Some(layers)) = (&self.hands, &layers)
            && hands.make(handler)
            && let Some(root) = bundle::layered(layers, size, &self.directory)
        {
            record.snapshot_key = world.images.view(image);
            return self.create_bundle(hands, (record, root), adopted).await;
        }
        let Root { mounts, snapshot } = match layers {
            // Named by a container, so that containerd's garbage collector leaves it.
            Some(layers) => self.in_memory(&layers, size, world.images.view(image)).await?,
            None => self.on_disk(image).await?,
        };
        record.snapshot_key = snapshot;
        self.create_task(record, mounts).await
    }

    /// By containerd's tasks.
    async fn create_task(&self, record: Container, mounts: Vec<Mount>) -> Made<Created> {
        self.create_record(record).await?;
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
        let (pid, held) = first(pid).map_err(|error| ours(&error))?;
        Ok(Created { pid, held, waits: true })
    }

    /// By the keeper; of a process that ended meanwhile is told what ended it.
    async fn create_bundle(
        &self,
        hands: &Hands,
        (record, root): (Container, Layered),
        adopted: Option<&Adopted>,
    ) -> Made<Created> {
        let config = record.spec.as_ref().map(|spec| &spec.value[..]).unwrap_or_default();
        bundle::write(&self.directory, config).map_err(|error| ours(&error))?;
        let verb = if adopted.is_some() { Verb::Run } else { Verb::Create };
        let made = hands.execute(self.bundle(), verb, Some(root));
        // Neither needs the other, and what is found of one leads to both.
        let (recorded, made) = tokio::join!(self.create_record(record), made);
        recorded?;
        let first = made.map_err(|error| blamed(&error.to_string()))?;
        let first = first.ok_or_else(|| failed("nothing was made", Fault::Worker))?;
        let held =
            bundle::hold(first).and_then(|held| held.map_or_else(|| bundle::ended(first), Ok));
        let (pid, held) = held.map_err(|error| ours(&error))?;
        Ok(Created { pid, held, waits: verb == Verb::Create })
    }

    async fn create_record(&self, record: Container) -> Made<()> {
        let create = CreateContainerRequest { container: Some(record) };
        let created = self.client.containers().create(create).await;
        created.map(drop).map_err(|status| self.failure(&status))
    }

    /// What the next life of the worker finds it by.
    fn container(
        &self,
        world: &World,
        plan: &Plan<'_>,
        (handler, adopted): (&str, Option<&Adopted>),
    ) -> Made<Container> {
        let config = &world.config;
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
        Ok(Container {
            id: self.id.clone(),
            labels,
            runtime: Some(container::Runtime { name: handler.to_owned(), options }),
            spec: Some(prost_types::Any { type_url: spec::TYPE.to_owned(), value: plan.bytes() }),
            snapshotter: self.snapshotter.clone(),
            ..Container::default()
        })
    }

    /// Of what an image is made, if it is directories.
    async fn layers(&self, world: &World, image: &Image) -> Made<Option<Layers>> {
        let mounts = world.images.mounts(image).await;
        let mounts = mounts.map_err(|failure| self.no_image(image, failure))?;
        Ok(match &mounts[..] {
            [one] => scratch::layers(&one.r#type, &one.source, one.options.iter()),
            _ => None,
        })
    }

    /// With a layer in memory.
    async fn in_memory(&self, layers: &Layers, size: Bytes, snapshot: String) -> Made<Root> {
        let made = self.scratch.make(&self.directory, layers, size).await;
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
        Ok(Root { mounts: vec![mount], snapshot })
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

    /// Starts one that waits.
    pub(super) async fn start(&self) -> Made<()> {
        if let Some(hands) = self.hands() {
            let started = hands.execute(self.bundle(), Verb::Start, None).await;
            return started.map(drop).map_err(|error| blamed(&error.to_string()));
        }
        let start = StartRequest { container_id: self.id.clone(), exec_id: String::new() };
        let started = self.client.tasks().start(start).await;
        started.map(drop).map_err(|status| self.failure(&status))
    }

    fn failure(&self, status: &tonic::Status) -> StartFailure {
        blamed(&self.client.failure(status).message)
    }

    /// Its name, and where it is.
    fn bundle(&self) -> (&str, &Path) {
        (&self.id, &self.directory)
    }

    /// Whether it is not of containerd's tasks.
    pub(super) fn is_bundle(&self) -> bool {
        bundle::is_here(&self.directory)
    }

    /// Who has made it, if it is not of containerd's tasks.
    pub(super) fn hands(&self) -> Option<&Hands> {
        self.hands.as_deref().filter(|_| self.is_bundle())
    }

    /// The exit status of its first process, which has ended; `None` if nobody knows.
    pub(super) async fn status(&self) -> Result<Option<u32>, Failure> {
        match self.hands() {
            Some(hands) => Ok(hands.status(&self.id).await),
            None if self.is_bundle() => Ok(None),
            None => self.wait().await.map(Some),
        }
    }

    async fn wait(&self) -> Result<u32, Failure> {
        let wait = WaitRequest { container_id: self.id.clone(), exec_id: String::new() };
        let waited = self.client.tasks().wait(wait).await;
        Ok(waited.map_err(|status| self.client.failure(&status))?.into_inner().exit_status)
    }

    /// Signals its first process by who made it.
    pub(super) async fn signal(&self, signal: i32) -> Result<(), Failure> {
        match self.hands() {
            Some(hands) => {
                let signalled = hands.execute(self.bundle(), Verb::Kill(signal), None).await;
                signalled.map(drop).map_err(|error| refused(&error))
            }
            None => self.kill(signal, signal == libc::SIGKILL).await,
        }
    }

    /// Signals its first process by containerd, or everything in it.
    async fn kill(&self, signal: i32, all: bool) -> Result<(), Failure> {
        let signal = signal.unsigned_abs();
        let (container_id, exec_id) = (self.id.clone(), String::new());
        let kill = KillRequest { container_id, exec_id, signal, all };
        let killed = self.client.tasks().kill(kill).await;
        killed.map(drop).map_err(|status| self.client.failure(&status))
    }

    /// Removes whatever there is of it, living or dead.
    pub(super) async fn remove(&self) -> Result<(), Failure> {
        if self.is_bundle() {
            self.clear().await?;
        } else {
            self.remove_task().await?;
        }
        self.remove_record().await
    }

    /// Removes all of a bundle but what containerd has of it.
    pub(super) async fn clear(&self) -> Result<(), Failure> {
        if let Some(hands) = &self.hands {
            hands.end(&self.id, &self.directory).await.map_err(|error| refused(&error))?;
        }
        bundle::remove_group(&self.group()).await.map_err(|error| refused(&error))?;
        self.remove_files();
        Ok(())
    }

    async fn remove_task(&self) -> Result<(), Failure> {
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
                absent(self.wait().await.map(drop))?;
                let deleted = client.tasks().delete(delete).await;
                absent(deleted.map(drop).map_err(|status| client.failure(&status)))?;
            }
        }
        Ok(())
    }

    /// Removes what containerd has of one that is no more.
    pub(super) async fn remove_record(&self) -> Result<(), Failure> {
        let client = &self.client;
        let delete = DeleteContainerRequest { id: self.id.clone() };
        let deleted = client.containers().delete(delete).await;
        absent(deleted.map(drop).map_err(|status| client.failure(&status)))?;
        if self.directory.exists() {
            if !Scratch::is_here(&self.directory) {
                self.remove_snapshot().await?;
            }
            self.remove_directory().await;
        }
        Ok(())
    }

    /// Its pipes, and what may be mounted below.
    pub(super) async fn remove_directory(&self) {
        self.scratch.remove(&self.directory).await;
        self.remove_files();
    }

    fn remove_files(&self) {
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

/// A failure of what made one, or was to.
fn blamed(message: &str) -> StartFailure {
    let fault = if is_functions(message) { Fault::Function } else { Fault::Worker };
    failed(told(message), fault)
}

fn refused(error: &io::Error) -> Failure {
    Failure { kind: Kind::Refused, message: error.to_string() }
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
