//! Bytes between a socket and a stream of HTTP/2, both ways, as they come.

use std::{future::poll_fn, io, pin::pin};

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split},
    select,
};

/// Bytes read at once.
const CHUNK: usize = 32 << 10;

/// Who broke what was carried.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// The socket.
    #[error("the socket broke: {0}")]
    Here(#[from] io::Error),
    /// The stream.
    #[error("the stream broke: {0}")]
    There(#[from] h2::Error),
}

/// Carries both ways until both have ended, or one broke. A stream whose socket broke is reset.
pub(super) async fn carry(
    socket: impl AsyncRead + AsyncWrite,
    mut send: SendStream<Bytes>,
    recv: RecvStream,
) -> Result<(), Broken> {
    let (reader, writer) = split(socket);
    let carried = both(reader, writer, &mut send, recv).await;
    if let Err(Broken::Here(_)) = carried {
        send.send_reset(Reason::CONNECT_ERROR);
    }
    carried
}

async fn both(
    reader: impl AsyncRead + Unpin,
    writer: impl AsyncWrite + Unpin,
    send: &mut SendStream<Bytes>,
    recv: RecvStream,
) -> Result<(), Broken> {
    let (mut out, mut back) = (pin!(outward(reader, send)), pin!(inward(writer, recv)));
    select! {
        ended = &mut out => {
            ended?;
            back.await
        }
        ended = &mut back => match ended {
            // The socket takes no more, and what it said before is to arrive all the same: a server
            // may answer before it was told everything, and hang up.
            Ok(()) | Err(Broken::Here(_)) => out.await,
            there => there,
        },
    }
}

/// From the socket to the stream.
async fn outward(
    mut reader: impl AsyncRead + Unpin,
    send: &mut SendStream<Bytes>,
) -> Result<(), Broken> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        let read = select! {
            read = reader.read_buf(&mut buffer) => read?,
            // What the other direction does not hear once it has ended.
            reset = poll_fn(|cx| send.poll_reset(cx)) => {
                let reason = reset?;
                return Err(h2::Error::from(reason).into());
            }
        };
        if read == 0 {
            send.send_data(Bytes::new(), true)?;
            return Ok(());
        }
        // Nothing is allotted to a stream before it has something to send: the connection's
        // allowance is for those that have.
        let mut data = buffer.split().freeze();
        while !data.is_empty() {
            let part = data.split_to(allowed(send, data.len()).await?);
            send.send_data(part, false)?;
        }
    }
}

/// Waits until some of so many bytes may be sent; how many.
async fn allowed(send: &mut SendStream<Bytes>, wanted: usize) -> Result<usize, h2::Error> {
    send.reserve_capacity(wanted);
    loop {
        let allowed = send.capacity().min(wanted);
        if allowed > 0 {
            return Ok(allowed);
        }
        match poll_fn(|cx| send.poll_capacity(cx)).await {
            Some(changed) => drop(changed?),
            None => return Err(Reason::STREAM_CLOSED.into()),
        }
    }
}

/// From the stream to the socket.
async fn inward(mut writer: impl AsyncWrite + Unpin, mut recv: RecvStream) -> Result<(), Broken> {
    loop {
        match recv.data().await {
            Some(Ok(data)) => {
                let mut left = data.clone();
                writer.write_all_buf(&mut left).await?;
                recv.flow_control().release_capacity(data.len())?;
            }
            // Who has said everything and wants to hear no more may say so (RFC 9113 8.1).
            Some(Err(error)) if error.reason() != Some(Reason::NO_ERROR) => {
                return Err(error.into());
            }
            None | Some(Err(_)) => {
                writer.shutdown().await?;
                return Ok(());
            }
        }
    }
}
