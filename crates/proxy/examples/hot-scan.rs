//! The framing of requests, followed so many times: what `cargo xtask bench` counts instructions of.
//! The module is taken in as it is, since nobody outside of the data plane is to use it.

#![expect(clippy::print_stdout, reason = "a program for developers")]

#[path = "../src/scan.rs"]
#[expect(dead_code, reason = "the data plane asks it more")]
mod scan;

/// As a browser's, without its cookies.
const HEAD: &[u8] = b"POST /orders?page=2 HTTP/1.1\r\n\
    host: shop.example.com\r\n\
    user-agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
    accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    accept-language: en-GB,en;q=0.5\r\n\
    accept-encoding: gzip, deflate, br\r\n\
    content-type: application/json\r\n\
    content-length: 16\r\n\
    connection: keep-alive\r\n\r\n\
    {\"article\": 123}";

fn main() {
    let rounds = std::env::args().nth(1).and_then(|rounds| rounds.parse().ok()).unwrap_or(1000);
    let mut scanner = scan::Scanner::new(64 << 10);
    for round in 0..rounds {
        if let Err((violation, at)) = scanner.scan(std::hint::black_box(HEAD)) {
            return println!("round {round}: refused at {at}: {}", violation.reason);
        }
    }
    println!("{rounds} requests");
}
