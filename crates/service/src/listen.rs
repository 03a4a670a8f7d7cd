//! Listening on a port, with an error that says who has it already and what to do.

use std::{fmt, fs, io, net::SocketAddr, path::Path};

use tokio::net::{TcpListener, TcpSocket};

/// Connections that may wait to be accepted. The usual 128 overflow in a burst, and a connection
/// that does is tried again by its client after a second (RFC 6298). The kernel bounds it by
/// `net.core.somaxconn`, 4096 by default.
const BACKLOG: u32 = 4096;

/// A process that listens on a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its id.
    pub pid: u32,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` (pid {})", self.name, self.pid)
    }
}

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody else listens there.
    #[error(
        "port {} is taken{}: stop that process, or choose another port with `{flag}`",
        address.port(),
        holder.as_ref().map_or_else(String::new, |holder| format!(" by {holder}"))
    )]
    Taken {
        /// What was asked for.
        address: SocketAddr,
        /// Who, if it can be seen.
        holder: Option<Holder>,
        /// The flag to change it with.
        flag: String,
    },
    /// Something else.
    #[error("cannot listen on {address} (set by `{flag}`)")]
    Io {
        /// What was asked for.
        address: SocketAddr,
        /// The flag to change it with.
        flag: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Listen on `address`; `flag` is what a user would change it with, such as `--listen`.
///
/// # Errors
/// If the address cannot be had; names the process that has it.
#[expect(clippy::unused_async, reason = "only within a runtime can a listener be made")]
pub async fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener, ListenError> {
    listen(address).map_err(|source| {
        let flag = flag.to_owned();
        if source.kind() == io::ErrorKind::AddrInUse {
            ListenError::Taken { address, holder: holder(address.port()), flag }
        } else {
            ListenError::Io { address, flag, source }
        }
    })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart must not wait for the connections of its former life to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The process that listens on a TCP port of this host, as far as this user may see.
#[must_use]
pub fn holder(port: u16) -> Option<Holder> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| listeners(&table, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    if inodes.is_empty() {
        return None;
    }
    let processes = fs::read_dir("/proc").ok()?;
    processes.filter_map(Result::ok).find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let path = entry.path();
        holds(&path.join("fd"), &inodes).then(|| Holder {
            pid,
            name: fs::read_to_string(path.join("comm")).unwrap_or_default().trim().to_owned(),
        })
    })
}

/// The inodes of the sockets that listen on `port`, from a table of `/proc/net`.
fn listeners(table: &str, port: u16) -> Vec<String> {
    const LISTEN: &str = "0A";
    let port = format!(":{port:04X}");
    let inode = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1)?;
        let state = fields.nth(1)?;
        let inode = fields.nth(5)?;
        (local.ends_with(&port) && state == LISTEN).then(|| inode.to_owned())
    };
    table.lines().skip(1).filter_map(inode).collect()
}

fn holds(fds: &Path, sockets: &[String]) -> bool {
    let Ok(fds) = fs::read_dir(fds) else { return false };
    fds.filter_map(Result::ok)
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_names_its_holder_and_the_flag() {
        let first = bind("127.0.0.1:0".parse().unwrap(), "--listen").await.unwrap();
        let address = first.local_addr().unwrap();
        let error = bind(address, "--listen").await.unwrap_err().to_string();
        assert!(error.contains(&format!("port {} is taken", address.port())), "{error}");
        assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");
        assert!(error.contains("`--listen`"), "{error}");
    }

    #[tokio::test]
    async fn a_burst_of_connections_waits_to_be_accepted() {
        let listener = bind("127.0.0.1:0".parse().unwrap(), "--listen").await.unwrap();
        let address = listener.local_addr().unwrap();
        let second = std::time::Duration::from_millis(900);
        // A connection that is dropped is tried again after a second at the earliest.
        let held: Vec<_> = (0..400)
            .map(|_| std::net::TcpStream::connect_timeout(&address, second).expect("connects"))
            .collect();
        assert_eq!(held.len(), 400);
    }
}
