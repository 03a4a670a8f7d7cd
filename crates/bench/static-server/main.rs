//! A web server as small as one gets with the standard library, linked statically where the machine
//! can: what a cold start adds is seen best beside a program that starts at once. Answers everything
//! on `$PORT` with 200. Bodies of requests are not expected.

use std::{
    env,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
};

fn main() {
    let host = env::var("HOST").unwrap_or_else(|_unset| "127.0.0.1".to_owned());
    let port: u16 = env::var("PORT").expect("$PORT is set").parse().expect("$PORT is a port");
    let listener = TcpListener::bind((host.as_str(), port)).expect("$PORT is free");
    for stream in listener.incoming().flatten() {
        thread::spawn(move || serve(stream));
    }
}

/// Until the client leaves, however it does.
fn serve(mut stream: TcpStream) {
    let mut buffer = [0; 8192];
    let mut filled = 0;
    while let Ok(read @ 1..) = stream.read(&mut buffer[filled..]) {
        filled += read;
        let head = &buffer[..filled];
        if head.ends_with(b"\r\n\r\n") {
            let is_last = head.to_ascii_lowercase().windows(17).any(|at| at == b"connection: close");
            let answer = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 3\r\n\r\nok\n";
            if stream.write_all(answer).is_err() || is_last {
                return;
            }
            filled = 0;
        } else if filled == buffer.len() {
            return;
        }
    }
}
