//! `ws`: a WebSocket (RFC 6455) that echoes text and binary messages, frame by frame, answers
//! pings, and closes when asked to. A plain request gets a 426 with the way to do it.

use std::{
    io::{self, Read, Write as _},
    net::TcpStream,
};

use base64::Engine as _;
use sha1::Digest as _;

use super::http::{Request, Responder};

/// RFC 6455, 1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// A frame larger than this is refused with 1009.
const MAX_FRAME: u64 = 16 << 20;

pub(super) fn answer(request: &Request, responder: &mut Responder<'_>) -> io::Result<()> {
    let Some(key) = request.header("sec-websocket-key") else {
        let why = b"this function speaks WebSocket: connect with a WebSocket client\n";
        return responder.send(426, "text/plain", why);
    };
    super::say("opened");
    let mut stream = responder.take_over();
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
         sec-websocket-accept: {}\r\n\r\n",
        accept(key),
    );
    stream.write_all(head.as_bytes())?;
    let ended = echo(stream);
    super::say("closed");
    ended
}

fn accept(key: &str) -> String {
    let digest = sha1::Sha1::new().chain_update(key.trim()).chain_update(GUID).finalize();
    base64::engine::general_purpose::STANDARD.encode(digest)
}

fn echo(mut stream: &TcpStream) -> io::Result<()> {
    let mut input = io::BufReader::new(stream);
    loop {
        let Some((first, payload)) = frame(&mut input)? else {
            return write_frame(&mut stream, 0x88, &1009_u16.to_be_bytes());
        };
        match first & 0x0f {
            // Text, binary and their continuations go back as they came, `FIN` included.
            0..=2 => write_frame(&mut stream, first, &payload)?,
            8 => return write_frame(&mut stream, 0x88, payload.get(..2).unwrap_or_default()),
            9 => write_frame(&mut stream, 0x8a, &payload)?,
            10 => {}
            _ => return write_frame(&mut stream, 0x88, &1002_u16.to_be_bytes()),
        }
    }
}

/// The first byte of a frame and its unmasked payload; `None` if it is too large.
fn frame(input: &mut impl Read) -> io::Result<Option<(u8, Vec<u8>)>> {
    let mut head = [0; 2];
    input.read_exact(&mut head)?;
    let [first, second] = head;
    let length = match second & 0x7f {
        126 => {
            let mut bytes = [0; 2];
            input.read_exact(&mut bytes)?;
            u64::from(u16::from_be_bytes(bytes))
        }
        127 => {
            let mut bytes = [0; 8];
            input.read_exact(&mut bytes)?;
            u64::from_be_bytes(bytes)
        }
        short => u64::from(short),
    };
    let mut mask = [0; 4];
    if second & 0x80 != 0 {
        input.read_exact(&mut mask)?;
    }
    if length > MAX_FRAME {
        return Ok(None);
    }
    let mut payload = vec![0; usize::try_from(length).unwrap_or_default()];
    input.read_exact(&mut payload)?;
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    Ok(Some((first, payload)))
}

fn write_frame(stream: &mut &TcpStream, first: u8, payload: &[u8]) -> io::Result<()> {
    let mut message = Vec::with_capacity(payload.len() + 10);
    message.push(first);
    if let Ok(short @ 0..=125) = u8::try_from(payload.len()) {
        message.push(short);
    } else if let Ok(length) = u16::try_from(payload.len()) {
        message.push(126);
        message.extend(length.to_be_bytes());
    } else {
        message.push(127);
        message.extend(u64::try_from(payload.len()).unwrap_or(u64::MAX).to_be_bytes());
    }
    message.extend_from_slice(payload);
    stream.write_all(&message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_the_rfc_is_accepted_with_its_answer() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn frames_are_unmasked() {
        // RFC 6455, 5.7: a single-frame masked text message.
        let hello = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(frame(&mut &hello[..]).unwrap(), Some((0x81, b"Hello".to_vec())));
        let huge = [0x82, 0x7f, 0, 0, 0, 1, 0, 0, 0, 0];
        assert_eq!(frame(&mut &huge[..]).unwrap(), None);
        assert!(frame(&mut &hello[..5]).is_err());
    }
}
