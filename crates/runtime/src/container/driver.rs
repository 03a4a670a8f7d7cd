//! The runtime's thread: orders in, a task for each sandbox, events out.

use std::{
    cell::RefCell, collections::HashMap, io, path::PathBuf, rc::Rc, sync::mpsc as std_mpsc,
    time::Duration,
};

use dirigent_containerd::{
    Client, Failure,
    api::containerd::services::namespaces::v1::{CreateNamespaceRequest, Namespace},
};
use dirigent_core::{
    Digest, Pull, SandboxId,
    worker::{Adopted, CreateSandbox},
};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::{JoinSet, LocalSet},
    time::{Instant, MissedTickBehavior},
};

use super::{
    ContainerConfig, HANDLER,
    ahead::{self, Shelf},
    bundle::Hands,
    image::ImageError,
    images::Images,
    kept::{self, Stock},
    life::{self, Stop},
    made::Place,
    network::Offer,
    program,
    recover::{self, Found},
    removal,
    scratch::Scratch,
};
use crate::{
    Event,
    claim::Claim,
    keeper::{
        orphans::Name,
        output::{Bounds, Logs},
    },
    process::listeners::Listeners,
};

/// How long one call may take that nothing else is said of.
const CALL: Duration = Duration::from_secs(30);

/// How long a worker that had sandboxes waits at its start for a containerd that is itself starting.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long what is left at a clean exit may take to go.
const CLOSING: Duration = Duration::from_secs(10);

/// What callers tell the thread.
#[derive(Debug)]
pub(super) enum Order {
    /// Say what is left.
    Recover { answer: std_mpsc::Sender<io::Result<Vec<Adopted>>> },
    /// Take the image in an archive.
    Import { digest: Digest, path: PathBuf },
    /// Say what the tag of an image stands for.
    Resolve { sandbox: SandboxId, image: String, pull: Pull },
    /// Get an image from its registry.
    Pull { digest: Digest, image: String },
    /// No revision needs an image any more.
    Discard { digest: Digest },
    /// One needs it again, that was withdrawn from what is kept.
    Revive { digest: Digest },
    /// Start a sandbox.
    Create(Box<CreateSandbox>),
    /// Stop one.
    Destroy { sandbox: SandboxId, grace: Duration },
    /// Kill what is left, and end.
    Close,
    /// End, and leave the sandboxes.
    Detach,
}

/// What the thread is started with.
pub(super) struct Start {
    pub(super) config: ContainerConfig,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) inbox: mpsc::Receiver<Order>,
    /// What is held, for those who ask.
    pub(super) stock: Stock,
    /// What is missing here, once that is known.
    pub(super) started: std_mpsc::Sender<io::Result<Vec<String>>>,
}

/// What all sandboxes share.
#[derive(Debug)]
pub(super) struct World {
    pub(super) config: ContainerConfig,
    pub(super) client: Client,
    /// What everything of ours in containerd begins with.
    pub(super) mark: String,
    pub(super) images: Images,
    pub(super) offer: Offer,
    pub(super) shelf: Shelf,
    pub(super) scratch: Scratch,
    /// Who makes sandboxes without containerd's tasks, where there is a keeper.
    pub(super) hands: Option<Rc<Hands>>,
    pub(super) logs: RefCell<Logs>,
    pub(super) listeners: RefCell<Listeners>,
    /// How many may be removed at once.
    pub(super) removals: Semaphore,
    /// One collects images at a time.
    pub(super) collecting: tokio::sync::Mutex<()>,
    pub(super) stock: Stock,
    events: mpsc::Sender<Event>,
}

impl World {
    pub(super) fn new(
        config: ContainerConfig,
        events: mpsc::Sender<Event>,
        stock: Stock,
    ) -> io::Result<Self> {
        let client = Client::new(&config.socket, &config.namespace, CALL)
            .map_err(|failure| io::Error::other(failure.message))?;
        // As a keeper's: another state directory of the machine has another one.
        let mark = Name::of(&config.directory)?.to_string();
        let images = Images::new(client.clone(), &config, &mark)?;
        let bounds = Bounds { file: config.log_file.0, total: config.log_total.0 };
        Ok(Self {
            client,
            mark,
            images,
            offer: config.offer(),
            shelf: Shelf::new(config.ahead),
            scratch: Scratch::start(&config.socket)?,
            hands: None,
            logs: RefCell::new(Logs::new(config.directory.join("logs"), bounds)),
            listeners: RefCell::new(Listeners::new(config.address)),
            removals: Semaphore::new(config.removals.max(1)),
            collecting: tokio::sync::Mutex::new(()),
            stock,
            events,
            config,
        })
    }

    pub(super) fn place(&self, sandbox: SandboxId) -> Place {
        Place::of(self, sandbox)
    }

    /// What has this name in containerd, if it is one that we give.
    pub(super) fn place_of(&self, id: &str) -> Option<Place> {
        let name = id.strip_prefix(&self.mark)?.strip_prefix('-')?;
        Some(self.place(name.parse().ok()?))
    }

    /// What has this name in containerd and no record.
    pub(super) fn place_named(&self, id: String) -> Place {
        Place::named(self, id)
    }

    pub(super) async fn report(&self, event: Event) {
        if self.events.send(event).await.is_err() {
            tracing::debug!("nobody hears of a sandbox");
        }
    }

    /// What is told again soon: nobody is waited for.
    fn tell(&self, event: Event) {
        if let Err(error) = self.events.try_send(event) {
            tracing::debug!(%error, "not told");
        }
    }

    /// Others ask what is held from their own threads.
    fn publish(&self) {
        self.stock.publish(self.images.list());
    }

    /// An image that was withdrawn from what is kept is needed again; whether it is there.
    fn take_back(&self, digest: Digest) -> Result<bool, ImageError> {
        let taken = self.images.take_back(digest);
        if taken.is_err() {
            self.stock.keep(digest);
        }
        taken
    }

    /// Takes an image, in the place of those that nobody needs where there is no other.
    async fn with_room<T: Future<Output = Result<(), ImageError>>>(
        &self,
        digest: Digest,
        take: impl Fn() -> T,
    ) -> Result<(), ImageError> {
        // It may have been discarded a moment ago.
        if self.stock.withdraw(digest) && self.take_back(digest)? {
            return Ok(());
        }
        kept::collect(self).await;
        match take().await {
            Err(ImageError::Full(_)) if kept::give_up(self).await => take().await,
            result => result,
        }
    }

    /// An image has gone from containerd behind our back.
    pub(super) async fn lost(&self, digest: Digest) {
        if self.images.forget(digest) {
            self.publish();
            self.report(Event::Lost { digest }).await;
        }
    }
}

/// The thread.
pub(super) fn run(start: Start) {
    let Start { config, events, inbox, stock, started } = start;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("container-runtime-disk")
        .max_blocking_threads(4)
        .build();
    let answer = |answer: io::Result<Vec<String>>| {
        if started.send(answer).is_err() {
            tracing::debug!("nobody waits for the container runtime");
        }
    };
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return answer(Err(error)),
    };
    let work = async {
        let mut world = match World::new(config, events, stock) {
            Ok(world) => world,
            Err(error) => return answer(Err(error)),
        };
        let missing = missing(&world).await;
        let config = &mut world.config;
        if config.program.is_none() && config.handler == HANDLER {
            config.program = program::best(&config.socket);
        }
        let hands = config.spaces.clone().map(|spaces| Hands::new(config, spaces));
        let program = hands.as_ref().and_then(Hands::program);
        tracing::debug!(?config.program, ?program, "what runs sandboxes of images, and who");
        world.hands = hands.map(Rc::new);
        let world = Rc::new(world);
        answer(Ok(missing));
        Driver { world, sandboxes: HashMap::new(), tasks: JoinSet::new() }.run(inbox).await;
    };
    LocalSet::new().block_on(&runtime, work);
    // An import that is being read looks at nothing but its file; nobody waits for it.
    runtime.shutdown_background();
}

/// What does not work here, with what to do.
async fn missing(world: &World) -> Vec<String> {
    if !rustix::process::geteuid().is_root() {
        return vec![
            "container: only root can run sandboxes by containerd: start as root".to_owned(),
        ];
    }
    let had = std::fs::read_dir(world.config.directory.join("sandboxes"))
        .is_ok_and(|mut entries| entries.next().is_some());
    let over = Instant::now() + if had { PATIENCE } else { Duration::ZERO };
    let answer = loop {
        match prepare(world).await {
            Err(failure) if failure.is_unreachable() && Instant::now() < over => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            answer => break answer,
        }
    };
    match answer {
        Ok(()) => Vec::new(),
        Err(failure) => vec![format!(
            "container: {failure}: install and start containerd (Debian: `apt-get install \
             containerd runc`), or say where it listens with `containerd.socket`"
        )],
    }
}

/// Whether containerd answers, with our namespace in it.
async fn prepare(world: &World) -> Result<(), Failure> {
    let client = &world.client;
    let version = client.version().await?;
    tracing::info!(version, socket = %client.socket().display(), "containerd answers");
    let name = world.config.namespace.clone();
    let namespace = Namespace { name, ..Namespace::default() };
    let create = CreateNamespaceRequest { namespace: Some(namespace) };
    match client.namespaces().create(create).await.map_err(|status| client.failure(&status)) {
        Err(failure) if !failure.is_exists() => Err(failure),
        _ => Ok(()),
    }
}

/// See the module.
struct Driver {
    world: Rc<World>,
    /// How each is told to stop, from the order to create it until it is gone.
    sandboxes: HashMap<SandboxId, watch::Sender<Stop>>,
    /// `None` is what is no sandbox.
    tasks: JoinSet<Option<SandboxId>>,
}

impl Driver {
    async fn run(mut self, mut inbox: mpsc::Receiver<Order>) {
        let mut looks = tokio::time::interval(kept::LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                Some(ended) = self.tasks.join_next() => self.ended(ended),
                _ = looks.tick(), if self.world.images.keeps_any() => self.collect(),
                order = inbox.recv() => match order {
                    None | Some(Order::Detach) => return,
                    Some(Order::Close) => return self.close().await,
                    Some(order) => self.obey(order).await,
                },
            }
        }
    }

    fn ended(&mut self, ended: Result<Option<SandboxId>, tokio::task::JoinError>) {
        match ended {
            Ok(Some(sandbox)) => drop(self.sandboxes.remove(&sandbox)),
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "a task of the container runtime failed"),
        }
        self.world.logs.borrow_mut().forget_closed();
    }

    async fn obey(&mut self, order: Order) {
        match order {
            Order::Recover { answer } => {
                let found = self.recover().await;
                if answer.send(found).is_err() {
                    tracing::debug!("whoever asked has given up waiting");
                }
            }
            Order::Import { digest, path } => self.import(digest, path),
            Order::Resolve { sandbox, image, pull } => self.resolve(sandbox, image, pull),
            Order::Pull { digest, image } => self.pull(digest, image),
            Order::Discard { digest } => self.discard(digest),
            Order::Revive { digest } => self.revive(digest),
            Order::Create(create) => self.create(*create).await,
            Order::Destroy { sandbox, grace } => self.stop(sandbox, grace),
            Order::Close | Order::Detach => {}
        }
    }

    async fn recover(&mut self) -> io::Result<Vec<Adopted>> {
        let told = |error: &dyn std::fmt::Display| io::Error::other(error.to_string());
        self.world.images.recover().await.map_err(|error| told(&error))?;
        self.world.publish();
        for (_, digest) in self.world.images.kept() {
            self.world.stock.keep(digest);
        }
        let found = recover::recover(&self.world).await.map_err(|error| told(&error))?;
        let adopted = found.iter().map(|one| one.adopted().clone()).collect();
        for one in found {
            let sandbox = one.adopted().report.sandbox;
            let (stop, stops) = watch::channel(None);
            self.sandboxes.insert(sandbox, stop);
            let world = Rc::clone(&self.world);
            self.tasks.spawn_local(async move {
                match one {
                    Found::Runs(_, running) => life::serve(world, *running, stops).await,
                    Found::Ended(_, place, failure) => {
                        removal::bury(&world, &place, sandbox, failure).await;
                    }
                }
                Some(sandbox)
            });
        }
        Ok(adopted)
    }

    fn import(&mut self, digest: Digest, path: PathBuf) {
        let world = Rc::clone(&self.world);
        self.tasks.spawn_local(async move {
            let result = world.with_room(digest, || world.images.import(digest, &path)).await;
            if let Err(error) = tokio::fs::remove_file(&path).await {
                tracing::warn!(path = %path.display(), %error, "an image's archive stays");
            }
            world.publish();
            let result = result.map_err(|error| error.failure());
            world.report(Event::Unpacked { digest, result }).await;
            None
        });
    }

    fn revive(&mut self, digest: Digest) {
        let world = Rc::clone(&self.world);
        self.tasks.spawn_local(async move {
            let result = world.take_back(digest).map(drop);
            world.publish();
            let result = result.map_err(|error| error.failure());
            world.report(Event::Unpacked { digest, result }).await;
            None
        });
    }

    fn discard(&mut self, digest: Digest) {
        self.world.shelf.let_go(digest);
        if !self.world.config.keep.time.is_zero() && self.world.images.set_aside(digest) {
            self.world.stock.keep(digest);
            self.world.publish();
            return self.collect();
        }
        if self.world.images.forget(digest) {
            self.world.publish();
            let world = Rc::clone(&self.world);
            self.tasks.spawn_local(async move {
                world.images.let_go_of(digest).await;
                None
            });
        }
    }

    fn collect(&mut self) {
        let world = Rc::clone(&self.world);
        self.tasks.spawn_local(async move {
            kept::collect(&world).await;
            None
        });
    }

    fn resolve(&mut self, sandbox: SandboxId, image: String, pull: Pull) {
        let world = Rc::clone(&self.world);
        self.tasks.spawn_local(async move {
            let result = world.images.resolve(&image, pull).await;
            let result = result.map_err(|error| error.failure());
            world.report(Event::Resolved { sandbox, result }).await;
            None
        });
    }

    fn pull(&mut self, digest: Digest, image: String) {
        let world = Rc::clone(&self.world);
        self.tasks.spawn_local(async move {
            let tell = |fetched, all| world.tell(Event::Fetching { digest, fetched, all });
            let result = world.with_room(digest, || world.images.pull(digest, &image, &tell)).await;
            world.publish();
            let result = result.map_err(|error| error.failure());
            world.report(Event::Unpacked { digest, result }).await;
            None
        });
    }

    async fn create(&mut self, create: CreateSandbox) {
        let (sandbox, port) = (create.order.sandbox, create.port);
        let taken = self.world.listeners.borrow_mut().at(port).is_some();
        let (false, Ok(claim)) = (taken, Claim::for_start(port)) else {
            return self.world.report(Event::PortTaken { sandbox, port }).await;
        };
        let task = self.world.shelf.take(create.order.revision);
        if self.world.offer.can_be_ahead(&create) && self.world.shelf.wants(create.order.revision) {
            let prepared = ahead::prepare(Rc::clone(&self.world), create.clone());
            self.tasks.spawn_local(async move {
                prepared.await;
                None
            });
        }
        let (stop, stops) = watch::channel(None);
        self.sandboxes.insert(sandbox, stop);
        let world = Rc::clone(&self.world);
        self.tasks.spawn_local(async move {
            life::live(world, create, task, claim, stops).await;
            Some(sandbox)
        });
    }

    /// A later order can only shorten the grace.
    fn stop(&self, sandbox: SandboxId, grace: Duration) {
        let Some(stop) = self.sandboxes.get(&sandbox) else { return };
        let kill_at = Instant::now() + grace.min(Duration::from_secs(365 * 24 * 3600));
        stop.send_if_modified(|before| {
            let sooner = before.is_none_or(|before| kill_at < before);
            if sooner {
                *before = Some(kill_at);
            }
            sooner
        });
    }

    async fn close(mut self) {
        for sandbox in self.sandboxes.keys().copied().collect::<Vec<_>>() {
            self.stop(sandbox, Duration::ZERO);
        }
        self.world.shelf.close();
        let gone = async {
            while let Some(ended) = self.tasks.join_next().await {
                if let Err(error) = ended {
                    tracing::error!(%error, "a task of the container runtime failed");
                }
            }
        };
        if tokio::time::timeout(CLOSING, gone).await.is_err() {
            tracing::warn!("sandboxes are left in containerd; the next start removes them");
        }
    }
}
