//! How a cluster comes to be: as the guides tell people to make one.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::SocketAddr,
    os::unix::net::UnixStream,
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use dirigent_bench::etcd;
use dirigent_service::tls::Trust;

use super::{ADMIN, API, BALANCER, CONTROLS, Cluster, ETCD, ETCD_PEERS, FUNCTIONS, PEERS, Shape};
use crate::{
    net::{Host, Net, PREFIX, is_installed},
    part::Part,
};

/// As in the guide, which is tested by that.
const BALANCED: &str = include_str!("../../../../docs/guides/haproxy.cfg");

impl Cluster {
    /// Why there can be none here, if so.
    #[must_use]
    pub fn obstacle() -> Option<String> {
        Net::obstacle().or_else(|| {
            let missing = ["etcd", "haproxy"].into_iter().find(|program| !is_installed(program));
            missing.map(|program| format!("{program} is not installed"))
        })
    }

    /// Makes one and waits until all is well.
    ///
    /// # Errors
    /// If a part does not come up, with what it said.
    pub fn start(shape: &Shape) -> Result<Self> {
        let hosts = CONTROLS + shape.planes + shape.workers + 1;
        let net = Net::new(u8::try_from(hosts)?, shape.seed)?;
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let scratch = tempfile::Builder::new().prefix(&prefix).tempdir()?;
        let mut hosts = net.hosts().to_vec().into_iter();
        let mut take = |count: usize| hosts.by_ref().take(count).collect::<Vec<Host>>();
        let (controls, planes, workers) = (take(CONTROLS), take(shape.planes), take(shape.workers));
        let [caller] = take(1)[..] else { bail!("too few hosts") };
        let part = |kind: &str, hosts: &[Host], program: &Path| -> Result<Vec<Part>> {
            let numbered = (1..).zip(hosts);
            numbered
                .map(|(n, host)| Part::new(&format!("{kind}{n}"), *host, scratch.path(), program))
                .collect()
        };
        let mut this = Self {
            etcd: part("e", &controls, Path::new("etcd"))?,
            controls: part("c", &controls, &shape.dirigent)?,
            planes: part("d", &planes, &shape.dirigent)?,
            workers: part("w", &workers, &shape.dirigent)?,
            balancer: Part::new("haproxy", caller, scratch.path(), Path::new("haproxy"))?,
            caller,
            token: String::new(),
            trust: None,
            dirigent: shape.dirigent.clone(),
            emulate: shape.emulate,
            net,
            scratch,
        };
        this.tell_etcd();
        this.start_etcd()?;
        this.start_roles()?;
        this.start_balancer()?;
        this.settled()?;
        Ok(this)
    }

    /// The arguments of etcd's members.
    fn tell_etcd(&mut self) {
        let at = |host: Host, port: u16| SocketAddr::from((host.ip(), port));
        let members = self.etcd.iter();
        let cluster = etcd::initial_cluster(members.map(|member| at(member.host, ETCD_PEERS)));
        for (number, member) in self.etcd.iter_mut().enumerate() {
            let (client, peer) = (at(member.host, ETCD), at(member.host, ETCD_PEERS));
            let data = member.state.join("data").display().to_string();
            let args = etcd::arguments(number, &cluster, client, peer);
            member.args(args.into_iter().chain([data]));
        }
    }

    /// The first control plane makes the cluster, all others join it.
    fn start_roles(&mut self) -> Result<()> {
        let etcd: Vec<String> =
            self.etcd.iter().map(|member| format!("http://{}", member.host.at(ETCD))).collect();
        let etcd = etcd.join(",");
        for control in &mut self.controls {
            let (api, peers) = (control.host.at(API), control.host.at(PEERS));
            let state = control.state.display().to_string();
            let args = ["control-plane", "--json", "--state", &state, "--name", &control.name];
            let places = ["--api", &api, "--peers", &peers, "--etcd", &etcd];
            let args: Vec<String> =
                args.iter().chain(&places).map(|arg| (*arg).to_owned()).collect();
            control.args(args);
        }
        let first = self.controls.first().context("there is a first one")?;
        self.ok(first, &["cluster", "init", "--name", &first.name])?;
        let first = self.controls.first_mut().context("there is a first one")?;
        first.start(&self.net)?;
        first.ready()?;
        self.trust = Some(Trust::file(&first.state.join("tls/ca.pem"))?);
        self.token = fs::read_to_string(first.state.join("token"))?.trim().to_owned();
        self.one_leads()?;
        self.join("control-plane", self.controls.get(1..).unwrap_or_default())?;
        self.join("data-plane", &self.planes)?;
        self.join("worker", &self.workers)?;
        self.tell_peers();
        let (first, others) = self.controls.split_first_mut().context("there is a first one")?;
        for control in &*others {
            fs::copy(first.state.join("token"), control.state.join("token"))?;
        }
        let mut rest: Vec<&mut Part> =
            others.iter_mut().chain(&mut self.planes).chain(&mut self.workers).collect();
        for part in &mut rest {
            part.start(&self.net)?;
        }
        for part in &mut rest {
            part.ready()?;
        }
        Ok(())
    }

    fn join(&self, role: &str, parts: &[Part]) -> Result<()> {
        let first = self.controls.first().context("there is a first one")?;
        let token = self.ok(first, &["cluster", "token", "--many", "--role", role])?;
        let token = token.lines().next().unwrap_or_default().trim();
        for part in parts {
            let server = first.host.at(API);
            self.ok(part, &["join", token, "--server", &server, "--name", &part.name])?;
        }
        Ok(())
    }

    /// The arguments of data planes and workers.
    fn tell_peers(&mut self) {
        let each = |flag: &str, places: Vec<String>| -> Vec<String> {
            places.into_iter().flat_map(|place| [flag.to_owned(), place]).collect()
        };
        let controls = self.controls.iter().map(|it| it.host.at(PEERS)).collect();
        let controls = each("--control", controls);
        let planes = self.planes.iter().map(|it| it.host.ip().to_string()).collect();
        let admitted = each("--admit", planes);
        let common = |part: &Part, role: &str| -> Vec<String> {
            let state = part.state.display().to_string();
            let args = [role, "--json", "--state", &state, "--name", &part.name];
            args.into_iter().map(str::to_owned).chain(controls.iter().cloned()).collect()
        };
        for plane in &mut self.planes {
            let mut args = common(plane, "data-plane");
            let (listen, admin) = (plane.host.at(FUNCTIONS), plane.host.at(ADMIN));
            args.extend(["--listen", &listen, "--admin", &admin].map(str::to_owned));
            plane.args(args);
        }
        for worker in &mut self.workers {
            let mut args = common(worker, "worker");
            args.extend(["--address".to_owned(), worker.host.ip().to_string()]);
            match self.emulate {
                Some(count) => args.extend(["--emulate".to_owned(), count.to_string()]),
                None => args.extend(admitted.iter().cloned()),
            }
            worker.args(args);
        }
    }

    fn start_balancer(&mut self) -> Result<()> {
        let place = self.balancer.host.at(BALANCER);
        let mut config = replaced(BALANCED, "127.0.0.1:80\n", &format!("{place}\n"))?;
        let servers =
            ["    server one 127.0.0.1:8080 port 9093", "    server two 127.0.0.1:8081 port 9094"];
        let [one, two] = servers;
        let mine: Vec<String> = self
            .planes
            .iter()
            .map(|plane| {
                let at = plane.host.at(FUNCTIONS);
                format!("    server {} {at} port {ADMIN}", plane.name)
            })
            .collect();
        config = replaced(&config, one, &mine.join("\n"))?;
        config = replaced(&config, two, "")?;
        let socket = self.balancer.state.join("stat");
        let config = format!("global\n    stats socket {}\n{config}\n", socket.display());
        let path = self.balancer.state.join("haproxy.cfg");
        fs::write(&path, config)?;
        self.balancer.args(["-db", "-f", &path.display().to_string()]);
        self.balancer.start(&self.net)
    }
}

fn replaced(text: &str, from: &str, to: &str) -> Result<String> {
    if text.matches(from).count() != 1 {
        bail!("the guide's haproxy.cfg has another form than the rig knows: {from}");
    }
    Ok(text.replace(from, to))
}

/// How many servers HAProxy sends calls to.
pub(super) fn servers_up(balancer: &Part) -> usize {
    let mut text = String::new();
    if let Ok(mut stream) = UnixStream::connect(balancer.state.join("stat")) {
        let told = stream.write_all(b"show stat\n").and_then(|()| stream.read_to_string(&mut text));
        if told.is_err() {
            return 0;
        }
    }
    let servers = text.lines().filter(|line| line.starts_with("data_planes,"));
    servers.filter(|line| !line.contains("BACKEND") && line.contains(",UP,")).count()
}
