//! HTTP/2 clients, frame by frame: what they may have the data plane hold.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::common::{Backend, Function, Rig, until, within};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const INITIAL_WINDOW_SIZE: u16 = 4;

/// `POST http://hello/`, with names of HPACK's table.
const POST: &[u8] = b"\x83\x86\x84\x41\x05hello";

#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

/// A client, and what the server lets it send.
struct Client {
    io: TcpStream,
    /// Of the connection.
    window: usize,
    /// Of each stream at its beginning.
    stream_window: usize,
}

impl Client {
    async fn connect(rig: &Rig) -> Self {
        let mut io = rig.connect().await;
        io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut this = Self { io, window: 65_535, stream_window: 65_535 };
        this.send(SETTINGS, 0, 0, &[]).await;
        // The first answer may come before the connection's window.
        this.round_trip().await;
        this.round_trip().await;
        this
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.try_send(kind, flags, stream, payload).await.unwrap();
    }

    async fn try_send(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> std::io::Result<()> {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.io.write_all(&frame).await
    }

    /// The next frame; `None` at the end of the connection.
    async fn frame(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.io.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.io.read_exact(&mut payload).await.ok()?;
        let frame = Frame { kind, flags, stream: u32::from_be_bytes(stream), payload };
        let number = |at: usize| u32::from_be_bytes(frame.payload[at..at + 4].try_into().unwrap());
        match (kind, frame.stream) {
            (WINDOW_UPDATE, 0) => self.window += number(0) as usize,
            (SETTINGS, _) if flags & ACK == 0 => {
                for at in (0..frame.payload.len()).step_by(6) {
                    if frame.payload[at..at + 2] == INITIAL_WINDOW_SIZE.to_be_bytes() {
                        self.stream_window = number(at + 2) as usize;
                    }
                }
                self.try_send(SETTINGS, ACK, 0, &[]).await.ok()?;
            }
            (PING, _) if flags & ACK == 0 => {
                let payload = frame.payload.clone();
                self.try_send(PING, ACK, 0, &payload).await.ok()?;
            }
            _ => {}
        }
        Some(frame)
    }

    /// Whatever was sent so far has been dealt with, and is answered.
    async fn round_trip(&mut self) {
        self.send(PING, 0, 0, b"12345678").await;
        loop {
            let frame = within(self.frame()).await.expect("the connection lives");
            assert!(!matches!(frame.kind, RESET | GO_AWAY), "{frame:?}");
            if frame.kind == PING && frame.flags & ACK != 0 {
                return;
            }
        }
    }

    /// Opens a stream for a body and sends of it what it may; how much that was.
    async fn upload(&mut self, stream: u32) -> usize {
        self.send(HEADERS, END_HEADERS, stream, POST).await;
        let may = self.window.min(self.stream_window);
        for part in vec![b'x'; may].chunks(16 << 10) {
            self.send(DATA, 0, stream, part).await;
        }
        self.window -= may;
        may
    }
}

#[tokio::test]
async fn bodies_of_queued_calls_take_no_more_than_the_connections_window() {
    let rig = Rig::with(|config| config.limits.ahead_bytes_total = 50 << 20).await;
    let backend = Backend::answering(|_, body| format!("{} bytes", body.len())).await;
    let function = Function::default();
    rig.function("hello", function.clone());
    let mut client = Client::connect(&rig).await;
    assert!(client.window <= 1 << 20 && client.stream_window <= 256 << 10, "{}", client.window);
    let whole = client.window;
    let (mut sent, mut last) = (0, 1);
    for stream in (1..).step_by(2) {
        sent += client.upload(stream).await;
        last = stream;
        if client.window == 0 {
            break;
        }
    }
    client.round_trip().await;
    rig.demand("all of them queued", |demand| u64::from(demand.queued) == u64::from(last / 2 + 1))
        .await;
    assert_eq!((sent, client.window), (whole, 0), "nothing is read, so nothing more may come");
    // The first is served now: its body is read, and the client may go on.
    rig.grant(&function, 1, backend.address, 1).await;
    while client.window == 0 {
        within(client.frame()).await.expect("the connection lives");
    }
}

#[tokio::test]
async fn windows_of_all_connections_share_a_budget() {
    const BUDGET: usize = 16 << 20;
    let rig = Rig::with(|config| config.limits.ahead_bytes_total = BUDGET).await;
    const NARROWEST: usize = 65_535;
    let first = Client::connect(&rig).await;
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(Client::connect(&rig).await);
    }
    let ahead: usize = held.iter().map(|client| client.window - NARROWEST).sum();
    assert!(ahead + first.window - NARROWEST <= BUDGET, "{ahead}");
    let last = held.last().unwrap();
    assert!(last.window < first.window && last.window >= NARROWEST, "{}", last.window);
    assert!(last.stream_window <= last.window / 4, "{}", last.stream_window);
    let whole = first.window;
    drop((first, held));
    until("none", || rig.proxy.metrics_page().contains("proxy_connections 0\n")).await;
    assert_eq!(Client::connect(&rig).await.window, whole);
}

#[tokio::test]
async fn a_head_that_never_ends_holds_a_connection_no_longer_than_silence() {
    let idle = Duration::from_millis(200);
    let rig = Rig::with(|config| config.limits.idle_connection = idle).await;
    // Silent, or one byte now and then.
    for drips in [false, true] {
        let mut client = Client::connect(&rig).await;
        client.send(HEADERS, END_STREAM, 1, POST).await;
        let closed = async {
            loop {
                tokio::select! {
                    _ = client.io.readable() => if client.frame().await.is_none() { break },
                    () = tokio::time::sleep(idle / 10), if drips => {
                        if client.try_send(CONTINUATION, 0, 1, b"\x40").await.is_err() {
                            break;
                        }
                    }
                }
            }
        };
        within(closed).await;
        assert_eq!(rig.frames().len(), 1, "no call was seen: {:?}", rig.frames());
    }
}
