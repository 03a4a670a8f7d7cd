//! A control plane on a directory and a port of its own.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use dirigent_control::{Config, Running};
use dirigent_service::Tasks;

use crate::http::{Answer, exchange};

pub(crate) struct Host {
    pub(crate) running: Running,
    pub(crate) token: String,
    pub(crate) dir: tempfile::TempDir,
    tasks: Tasks,
}

pub(crate) fn config(dir: &tempfile::TempDir) -> Config {
    Config { listen: loopback(), artifact_limit: 1 << 20, ..Config::new(dir.path().join("state")) }
}

pub(crate) fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

impl Host {
    pub(crate) async fn new() -> Self {
        Self::with(|_config| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(&dir);
        change(&mut config);
        Self::start(dir, config).await
    }

    pub(crate) async fn start(dir: tempfile::TempDir, config: Config) -> Self {
        let tasks = Tasks::new();
        let running = dirigent_control::start(config, &tasks).await.unwrap();
        let token = std::fs::read_to_string(&running.token_path).unwrap();
        Self { running, token, dir, tasks }
    }

    /// For peers that are played beside it: they end with it.
    pub(crate) fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Stop, and give back the directory.
    pub(crate) async fn stop(self) -> tempfile::TempDir {
        self.tasks.stop();
        assert!(self.tasks.wait(Duration::from_secs(20)).await, "tasks are left");
        assert_eq!(self.tasks.failure(), None);
        self.dir
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, b"").await
    }

    /// Ask with the right token.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let authorization = format!("Authorization: Bearer {}\r\n", self.token);
        self.raw(method, path, &authorization, body).await
    }

    /// Ask with these header lines only.
    pub(crate) async fn raw(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\
             Content-Length: {}\r\n{headers}\r\n",
            body.len()
        );
        exchange(self.running.api, &[head.as_bytes(), body].concat()).await
    }
}
