//! A WebSocket client (RFC 6455) that only knows what the load needs: a text, its echo, a close.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// An open connection.
pub(crate) struct WebSocket {
    stream: TcpStream,
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Text(Vec<u8>),
    /// The status code of the close: 1001 is "going away".
    Close(Option<u16>),
}

const TEXT: u8 = 0x81;
const CLOSE: u8 = 0x88;

impl WebSocket {
    pub(crate) async fn open(target: SocketAddr, host: &str) -> Result<Self> {
        let mut stream = TcpStream::connect(target).await.context("cannot connect")?;
        stream.set_nodelay(true).context("cannot set TCP_NODELAY")?;
        // The key only shows that the server speaks the protocol; its example value does.
        let request = format!(
            "GET / HTTP/1.1\r\nhost: {host}\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.context("cannot ask for an upgrade")?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.context("closed before the upgrade")?);
        }
        let head = String::from_utf8_lossy(&head).to_lowercase();
        if !head.starts_with("http/1.1 101") || !head.contains("s3pplmbitxaq9kygzzhzrbk+xoo=") {
            bail!("not upgraded: {head}");
        }
        Ok(Self { stream })
    }

    /// Sends a short text and waits for its echo.
    pub(crate) async fn echo(&mut self, text: &[u8], deadline: Duration) -> Result<Message> {
        // Clients mask (RFC 6455 section 5.3); a mask of zeros leaves the text as it is.
        let length = u8::try_from(text.len()).context("a short text")?;
        let mut frame = vec![TEXT, 0x80 | length, 0, 0, 0, 0];
        frame.extend_from_slice(text);
        self.stream.write_all(&frame).await.context("cannot send")?;
        let received = tokio::time::timeout(deadline, self.receive());
        received.await.context("no echo in time")?
    }

    async fn receive(&mut self) -> Result<Message> {
        let kind = self.stream.read_u8().await.context("cut")?;
        let length = self.stream.read_u8().await.context("cut")?;
        if length > 125 {
            bail!("a longer message than was sent");
        }
        let mut body = vec![0; usize::from(length)];
        self.stream.read_exact(&mut body).await.context("cut")?;
        match kind {
            TEXT => Ok(Message::Text(body)),
            CLOSE => {
                let code = body.first_chunk::<2>().map(|code| u16::from_be_bytes(*code));
                Ok(Message::Close(code))
            }
            other => bail!("a frame of kind {other:#x}"),
        }
    }
}
