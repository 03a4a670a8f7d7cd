//! A data plane under test: a scripted control plane on one side, raw sockets on the others.

use std::{
    collections::HashMap,
    future::Future,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use dirigent_core::{
    Address, ClusterId, DataPlaneId, Epoch, FunctionId, FunctionName, FunctionView, Protocol,
    RevisionId, SandboxId, Serial, Settings, StartPhases,
    frame::{
        Demand, FromDataPlane, FromDataPlaneBulk, Grant, Share, Status, ToDataPlane,
        ToDataPlaneBulk, Welcome, WhyReturned,
    },
    name::HostRules,
};
use dirigent_proxy::{Config, Running};
use dirigent_service::{Acceptor, OnCancel, Tasks, acceptor};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};

/// No test takes longer than this.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("the test's deadline")
}

#[derive(Clone)]
pub(crate) struct Function {
    pub(crate) settings: Settings,
    pub(crate) concurrency: u32,
    pub(crate) protocol: Protocol,
    pub(crate) id: u64,
}

impl Default for Function {
    fn default() -> Self {
        Self { settings: Settings::default(), concurrency: 1, protocol: Protocol::Http1, id: 1 }
    }
}

impl Function {
    pub(crate) fn function_id(&self) -> FunctionId {
        FunctionId::new(Epoch(1), self.id)
    }

    pub(crate) fn revision(&self) -> RevisionId {
        RevisionId { function: self.function_id(), number: 1 }
    }

    pub(crate) fn view(&self, name: &str) -> Arc<FunctionView> {
        Arc::new(FunctionView {
            id: self.function_id(),
            name: name.parse().unwrap(),
            settings: Arc::new(self.settings.clone()),
            targets: vec![dirigent_core::RevisionView {
                id: self.revision(),
                weight: 1,
                concurrency: self.concurrency,
                protocol: self.protocol,
            }],
        })
    }
}

pub(crate) struct Rig {
    pub(crate) tasks: Tasks,
    pub(crate) proxy: Running,
    pub(crate) address: SocketAddr,
    functions: Arc<Mutex<HashMap<FunctionName, Function>>>,
    order: mpsc::Sender<ToDataPlane>,
    frames: watch::Receiver<Vec<FromDataPlane>>,
    up: watch::Sender<bool>,
    bulk: tokio::sync::Mutex<Acceptor<ToDataPlaneBulk, FromDataPlaneBulk>>,
    serial: std::sync::atomic::AtomicU64,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let rig = Self::dark(change).await;
        rig.attach(true).await;
        rig
    }

    /// Without a control plane, until `attach(true)`.
    pub(crate) async fn dark(change: impl FnOnce(&mut Config)) -> Self {
        let tasks = Tasks::new();
        let mut config = Config::new(SocketAddr::from(([127, 0, 0, 1], 0)));
        config.hosts = HostRules::new(&["example.com"], &[]);
        change(&mut config);
        let (frames, accept) = acceptor("dp");
        let (bulk, accept_bulk) = acceptor("dp");
        let proxy = dirigent_proxy::start(config, frames, bulk, &tasks).await.unwrap();
        let functions = Arc::new(Mutex::new(HashMap::new()));
        let (order, orders) = mpsc::channel(64);
        let (log, frames) = watch::channel(Vec::new());
        let (up, is_up) = watch::channel(false);
        tasks.run(
            "script",
            OnCancel::Abort,
            script(accept, Arc::clone(&functions), orders, log, is_up),
        );
        Self {
            address: proxy.address,
            tasks,
            proxy,
            functions,
            order,
            frames,
            up,
            bulk: tokio::sync::Mutex::new(accept_bulk),
            serial: std::sync::atomic::AtomicU64::new(0),
        }
    }

    /// The control plane comes or goes.
    pub(crate) async fn attach(&self, up: bool) {
        self.up.send_replace(up);
        until("attached or detached", || self.proxy.is_attached() == up).await;
    }

    pub(crate) fn function(&self, name: &str, function: Function) {
        self.functions.lock().unwrap().insert(name.parse().unwrap(), function);
    }

    pub(crate) async fn say(&self, frame: ToDataPlane) {
        self.order.send(frame).await.unwrap();
    }

    /// Grants `slots` of a sandbox at `address`; zero is an open grant.
    pub(crate) async fn grant(
        &self,
        function: &Function,
        number: u64,
        address: SocketAddr,
        slots: u32,
    ) {
        let share = if slots == 0 { Share::Open } else { Share::Slots(slots) };
        self.grant_share(function, number, address, share, None).await;
    }

    /// Grants one slot of a sandbox just started.
    pub(crate) async fn grant_started(
        &self,
        function: &Function,
        number: u64,
        address: SocketAddr,
        start: Option<StartPhases>,
    ) {
        self.grant_share(function, number, address, Share::Slots(1), start).await;
    }

    async fn grant_share(
        &self,
        function: &Function,
        number: u64,
        address: SocketAddr,
        share: Share,
        start: Option<StartPhases>,
    ) {
        let serial = self.serial.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        self.say(ToDataPlane::Grant(Box::new(Grant {
            sandbox: sandbox(number),
            revision: function.revision(),
            address: Address::Tcp(address),
            protocol: function.protocol,
            share,
            serial: Serial(serial),
            pinned: false,
            start,
        })))
        .await;
    }

    pub(crate) async fn status(&self, function: &Function, status: Status) {
        self.say(ToDataPlane::Status { function: function.function_id(), status }).await;
    }

    /// A function with one sandbox granted, subscribed to already.
    pub(crate) async fn serving(
        &self,
        name: &str,
        function: Function,
        address: SocketAddr,
        slots: u32,
    ) {
        self.function(name, function.clone());
        self.subscribe(name).await;
        self.grant(&function, 1, address, slots).await;
    }

    /// Makes the data plane ask for a name: a caller who leaves at once.
    pub(crate) async fn subscribe(&self, name: &str) {
        let mut caller = self.connect().await;
        caller
            .write_all(format!("GET / HTTP/1.1\r\nHost: {name}\r\n\r\n").as_bytes())
            .await
            .unwrap();
        self.saw("its demand", |frame| matches!(frame, FromDataPlane::Demand(d) if d.queued == 1))
            .await;
        drop(caller);
        self.demand("nobody waiting", |demand| demand.queued == 0).await;
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// One request, and what came until the connection ended.
    pub(crate) async fn raw(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        within(stream.read_to_end(&mut answer)).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub(crate) async fn get(&self, host: &str, path: &str) -> String {
        self.raw(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await
    }

    pub(crate) fn frames(&self) -> Vec<FromDataPlane> {
        self.frames.borrow().clone()
    }

    pub(crate) async fn saw(&self, what: &str, mut wanted: impl FnMut(&FromDataPlane) -> bool) {
        let mut frames = self.frames.clone();
        let seen = frames.wait_for(|frames| frames.iter().any(&mut wanted));
        let seen = tokio::time::timeout(DEADLINE, seen).await;
        assert!(seen.is_ok(), "{what} was not said: {:#?}", self.frames());
    }

    /// The last demand said is of that kind.
    pub(crate) async fn demand(&self, what: &str, mut wanted: impl FnMut(&Demand) -> bool) {
        let mut frames = self.frames.clone();
        let last = |frames: &Vec<FromDataPlane>| {
            frames.iter().rev().find_map(|frame| match frame {
                FromDataPlane::Demand(demand) => Some(*demand),
                _ => None,
            })
        };
        let seen = frames.wait_for(|frames| last(frames).is_some_and(|demand| wanted(&demand)));
        let seen = tokio::time::timeout(DEADLINE, seen).await;
        assert!(seen.is_ok(), "{what} was not said: {:#?}", self.frames());
    }

    pub(crate) async fn returned(&self, number: u64, why: WhyReturned) {
        self.saw("a return", |frame| {
            matches!(frame, FromDataPlane::Returned(r) if r.sandbox == sandbox(number) && r.why == why)
        })
        .await;
    }

    pub(crate) async fn ask_bulk(&self, question: ToDataPlaneBulk) -> FromDataPlaneBulk {
        let (_, mut end) = within(async { self.bulk.lock().await.accept().await }).await.unwrap();
        end.tx.send(question).await.unwrap();
        within(end.rx.recv()).await.unwrap()
    }
}

pub(crate) fn sandbox(number: u64) -> SandboxId {
    SandboxId::new(Epoch(1), number)
}

pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(DEADLINE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what}");
}

async fn script(
    mut accept: Acceptor<ToDataPlane, FromDataPlane>,
    functions: Arc<Mutex<HashMap<FunctionName, Function>>>,
    mut orders: mpsc::Receiver<ToDataPlane>,
    log: watch::Sender<Vec<FromDataPlane>>,
    mut up: watch::Receiver<bool>,
) {
    loop {
        let Some((_, mut end)) = accept.accept().await else { return };
        if !*up.borrow_and_update() {
            continue;
        }
        let resolve = |name: FunctionName| {
            let function = functions.lock().unwrap().get(&name).cloned();
            let function = function.map(|function| function.view(&name.to_string()));
            ToDataPlane::Resolved { name, version: 1, function }
        };
        loop {
            tokio::select! {
                frame = end.rx.recv() => {
                    let Some(frame) = frame else { break };
                    let answers = match &frame {
                        FromDataPlane::Hello(hello) => {
                            let welcome = Welcome { cluster: ClusterId(1), epoch: Epoch(1) };
                            let mut answers =
                                vec![ToDataPlane::Welcome { welcome, you: DataPlaneId(1) }];
                            answers.extend(hello.names.iter().cloned().map(&resolve));
                            answers
                        }
                        FromDataPlane::Resolve { name } => vec![resolve(name.clone())],
                        _ => Vec::new(),
                    };
                    log.send_modify(|frames| frames.push(frame));
                    for answer in answers {
                        end.tx.send(answer).await.unwrap();
                    }
                }
                Some(order) = orders.recv() => end.tx.send(order).await.unwrap(),
                Ok(()) = up.changed() => if !*up.borrow() { break },
            }
        }
    }
}

/// A sandbox: every connection is given to `serve` with its number, from 0.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    tasks: Tasks,
    pub(crate) connections: watch::Receiver<usize>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

impl Backend {
    pub(crate) async fn start<F, T>(serve: F) -> Self
    where
        F: Fn(TcpStream, usize) -> T + Send + Sync + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tasks = Tasks::new();
        let (count, connections) = watch::channel(0);
        let inner = tasks.clone();
        tasks.run("backend", OnCancel::Abort, async move {
            for number in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                count.send_replace(number + 1);
                inner.run("backend connection", OnCancel::Abort, serve(stream, number));
            }
        });
        Self { address, tasks, connections }
    }

    /// Answers every request with 200 and what `answer` makes of its head and body.
    pub(crate) async fn answering(
        answer: impl Fn(&str, &[u8]) -> String + Send + Sync + Clone + 'static,
    ) -> Self {
        Self::start(move |mut stream, _| {
            let answer = answer.clone();
            async move {
                while let Some((head, body)) = read_request(&mut stream).await {
                    let text = answer(&head, &body);
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", text.len());
                    if stream.write_all((head + &text).as_bytes()).await.is_err() {
                        return;
                    }
                }
            }
        })
        .await
    }
}

/// A request's head and body (by Content-Length or chunks, raw); `None` at the connection's end.
pub(crate) async fn read_request(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let head = read_head(stream).await?;
    let lower = head.to_ascii_lowercase();
    let mut body = Vec::new();
    if let Some(length) = lower.split("content-length: ").nth(1) {
        let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
        body.resize(length, 0);
        stream.read_exact(&mut body).await.ok()?;
    } else if lower.contains("transfer-encoding: chunked") {
        let last = |body: &[u8]| {
            body.ends_with(b"\r\n\r\n")
                && (body.starts_with(b"0\r\n") || body.windows(5).any(|part| part == b"\r\n0\r\n"))
        };
        while !last(&body) {
            body.push(stream.read_u8().await.ok()?);
        }
    }
    Some((head, body))
}

/// Up to and with the empty line.
pub(crate) async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

/// A response's head and body, by Content-Length.
pub(crate) async fn read_response(stream: &mut TcpStream) -> (String, String) {
    let (head, body) = within(read_request(stream)).await.expect("a response");
    (head, String::from_utf8(body).unwrap())
}

pub(crate) fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
}

pub(crate) fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    answer.split("\r\n\r\n").next()?.lines().find_map(|line| {
        let (key, value) = line.split_once(": ")?;
        key.eq_ignore_ascii_case(name).then_some(value.trim_end())
    })
}

pub(crate) fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}
