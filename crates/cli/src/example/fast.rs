//! `fast`: answers everything with the same few bytes, from one thread that never blocks. The
//! function of `bench warm`: what is measured is the proxy in front, so the function must cost
//! little and wake nobody. Bodies of requests are not expected.

use std::process::ExitCode;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::http;

const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 3\r\n\r\nok\n";

pub(super) fn serve() -> ExitCode {
    let served = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .and_then(|runtime| runtime.block_on(accept()));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => super::fail(&format!("cannot serve: {error}")),
    }
}

async fn accept() -> std::io::Result<()> {
    let listener = http::listener()?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        connections.spawn(connection(stream));
        // Those that have ended: a set keeps them until it is asked.
        while connections.try_join_next().is_some() {}
    }
}

/// Until the client leaves, however it does.
async fn connection(mut stream: TcpStream) {
    let mut buffer = [0; 8192];
    let mut filled = 0;
    while let Ok(read @ 1..) = stream.read(&mut buffer[filled..]).await {
        filled += read;
        if buffer[..filled].ends_with(b"\r\n\r\n") {
            filled = 0;
            if stream.write_all(ANSWER).await.is_err() {
                return;
            }
        } else if filled == buffer.len() {
            return;
        }
    }
}
