//! `bulk`: sends as many bytes as the query asks for (`?bytes=N`), or counts those of a body that has
//! a length, and keeps neither. The function of `bench bulk`: what is measured is the proxy in front.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    process::ExitCode,
};

use super::http;

/// Of a request's head.
const MAX_HEAD: usize = 8 << 10;
/// Moved at once.
const PIECE: usize = 256 << 10;

pub(super) fn serve() -> ExitCode {
    let listener = match http::listener() {
        Ok(listener) => listener,
        Err(error) => return super::fail(&format!("cannot listen: {error}")),
    };
    for stream in listener.incoming().flatten() {
        // The client left, or spoke nonsense: nothing else to do.
        std::thread::spawn(move || drop(connection(stream)));
    }
    ExitCode::SUCCESS
}

fn connection(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut piece = vec![0; PIECE];
    let mut filled = 0;
    loop {
        let end = loop {
            if let Some(end) = piece[..filled].windows(4).position(|end| end == b"\r\n\r\n") {
                break end + 4;
            }
            if filled > MAX_HEAD {
                return Err(io::ErrorKind::InvalidData.into());
            }
            match stream.read(&mut piece[filled..])? {
                0 => return Ok(()),
                read => filled += read,
            }
        };
        let head = String::from_utf8_lossy(&piece[..end]).to_ascii_lowercase();
        let length = number(&head, "content-length: ");
        let mut counted = (filled - end) as u64;
        while counted < length {
            match stream.read(&mut piece)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => counted += read as u64,
            }
        }
        filled = 0;
        if head.starts_with("get ") {
            let mut left = number(&head, "bytes=");
            stream.write_all(answer(left).as_bytes())?;
            piece.fill(b'x');
            while left > 0 {
                let next = &piece[..usize::try_from(left).unwrap_or(PIECE).min(PIECE)];
                stream.write_all(next)?;
                left -= next.len() as u64;
            }
        } else {
            let body = counted.to_string();
            stream.write_all((answer(body.len() as u64) + &body).as_bytes())?;
        }
    }
}

/// The head of an answer with so many bytes.
fn answer(length: u64) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: {length}\r\n\r\n"
    )
}

/// The number that follows a name; 0 if there is none.
fn number(head: &str, name: &str) -> u64 {
    let digits = head.split_once(name).map_or("", |(_, rest)| rest);
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().unwrap_or_default()
}
