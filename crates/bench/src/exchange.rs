//! One exchange on a bare connection: what is measured is the server, not a client library.

use anyhow::{Context as _, Result, bail};
use tokio::{io::AsyncReadExt as _, net::TcpStream};

/// Reads one response with a `content-length` whole; its head without the empty line.
pub(crate) async fn response<'a>(stream: &mut TcpStream, buffer: &'a mut [u8]) -> Result<&'a str> {
    let mut filled = 0;
    loop {
        let n = stream.read(&mut buffer[filled..]).await?;
        if n == 0 {
            bail!("closed in the middle of a response");
        }
        filled += n;
        let Some(head) = buffer[..filled].windows(4).position(|end| end == b"\r\n\r\n") else {
            continue;
        };
        let text = std::str::from_utf8(&buffer[..head])?;
        let length = header(text, "content-length").context("a response without a length")?;
        let end = head + 4 + length.parse::<usize>()?;
        while filled < end {
            let n = stream.read(&mut buffer[filled..]).await?;
            if n == 0 {
                bail!("closed in the middle of a body");
            }
            filled += n;
        }
        return Ok(std::str::from_utf8(&buffer[..head])?);
    }
}

/// A header of a head, by its name in any case.
pub(crate) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.split("\r\n")
        .filter_map(|line| line.split_once(':'))
        .find(|(candidate, _)| candidate.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

/// That a head is of a success.
pub(crate) fn expect_200(head: &str) -> Result<()> {
    if !head.starts_with("HTTP/1.1 200") {
        bail!("not 200: {head}");
    }
    Ok(())
}
