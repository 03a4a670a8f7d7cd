//! The container runtime against a containerd of the tests' own: images of all forms, what a sandbox
//! cannot do, and what is left when something is killed.

#![cfg(test)]

#[path = "common/mod.rs"]
mod common;
#[path = "oci/daemon.rs"]
mod daemon;
#[path = "oci/images.rs"]
mod images;
#[path = "oci/rig.rs"]
mod rig;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use common::{create, next, until};
use dirigent_core::{Bytes, Cause, Digest, Fault, Isolation, Pull, worker::ArtifactFailure};
use dirigent_runtime::{
    Event, Runtime as _,
    container::{ContainerConfig, Registry, Tasks},
};
use images::{Image, Layer};
use rig::{Rig, WAYS, busybox, get, order, rig, rig_by, rig_with, run, shell};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

#[test]
fn programs_of_this_machine_run_from_images() {
    let Some(mut rig) = rig() else { return };
    let image = rig.take(&busybox());
    let (sandbox, port) = rig.serve(order(image));
    assert_eq!(get(port), "from an image\n");
    rig.end(sandbox);
    let python = ["/usr/bin/python3", "/usr/local/bin/python3"].map(Path::new);
    match python.into_iter().find(|path| path.exists()) {
        None => println!("skip: no python3: apt-get install python3"),
        Some(python) => {
            let image = rig.take(&python_app(python));
            let (sandbox, port) = rig.serve(order(image));
            assert_eq!(get(port), "from python");
            rig.end(sandbox);
        }
    }
    match ["/usr/sbin/nginx", "/usr/bin/nginx"].map(Path::new).into_iter().find(|p| p.exists()) {
        None => println!("skip: no nginx: apt-get install nginx"),
        Some(nginx) => {
            let image = rig.take(&nginx_image(nginx));
            let (sandbox, port) = rig.serve(order(image));
            assert_eq!(get(port), "from nginx\n");
            rig.end(sandbox);
        }
    }
    rig.nothing_left();
}

/// With the standard library of the machine.
fn python_app(python: &Path) -> Image {
    let program = fs::canonicalize(python).unwrap();
    let asked = Command::new(&program)
        .args(["-c", "import sysconfig; print(sysconfig.get_path('stdlib'))"])
        .output()
        .unwrap();
    let library = PathBuf::from(String::from_utf8(asked.stdout).unwrap().trim());
    let mut layer = Layer::new();
    layer.directory("tmp", 0o1777).program("usr/bin/python3", &program);
    layer.tree(&library, &["test", "__pycache__", "site-packages", "dist-packages", "idlelib"]);
    let app = "import http.server, os\n\
               class H(http.server.BaseHTTPRequestHandler):\n\
               \x20   def do_GET(self):\n\
               \x20       self.send_response(200); self.end_headers()\n\
               \x20       self.wfile.write(b'from python')\n\
               http.server.HTTPServer((os.environ['HOST'], int(os.environ['PORT'])), H)\
               .serve_forever()\n";
    layer.file("app/app.py", 0o644, app.as_bytes());
    // A health check is no reason not to run, nor to wait.
    let config = serde_json::json!({
        "Entrypoint": ["/usr/bin/python3"], "Cmd": ["app.py"], "WorkingDir": "/app",
        "User": "4321:4321", "Healthcheck": { "Test": ["CMD", "false"] },
    });
    Image::new(layer, config)
}

fn nginx_image(nginx: &Path) -> Image {
    let mut layer = Layer::new();
    layer.busybox().program("usr/sbin/nginx", nginx).directory("tmp", 0o1777);
    for directory in ["var/log/nginx", "var/lib/nginx", "etc/nginx"] {
        layer.directory(directory, 0o755);
    }
    layer.file("www/index.html", 0o644, b"from nginx\n");
    layer.file("etc/passwd", 0o644, b"root:x:0:0::/:/bin/sh\nwww-data:x:33:33::/:/bin/sh\n");
    layer.file("etc/group", 0o644, b"root:x:0:\nwww-data:x:33:\n");
    let script = "echo \"daemon off; user www-data; error_log stderr; pid /tmp/pid; events {} \
                  http { access_log off; server { listen $HOST:$PORT; root /www; } }\" \
                  > /tmp/nginx.conf; exec nginx -c /tmp/nginx.conf";
    let config = serde_json::json!({ "Cmd": ["/bin/sh", "-c", script], "StopSignal": "SIGQUIT" });
    Image::new(layer, config)
}

/// What is chosen where nothing is said is one of them.
#[test]
fn whatever_program_runs_them_they_serve_and_their_ends_are_told() {
    let programs = [Some("runc"), Some("crun"), None];
    for (program, tasks) in programs.into_iter().flat_map(|one| WAYS.map(|way| (one, way))) {
        if program.is_some_and(|program| !daemon::on_path(program)) {
            println!("skip: images by {program:?}: not installed");
            continue;
        }
        let chosen = program.map(str::to_owned);
        let change = |config: &mut ContainerConfig| {
            config.program = chosen;
            config.tasks = tasks;
        };
        let Some(mut rig) = rig_with(change) else { return };
        let image = rig.take(&busybox());
        let (sandbox, port) = rig.serve(order(image));
        assert_eq!(get(port), "from an image\n", "{program:?}");
        let shims = usize::from(tasks == Tasks::Containerd);
        assert_eq!((rig.left().shims, rig.left().tasks), (shims, 1), "{program:?}");
        rig.end(sandbox);
        let (cause, said) = run(&mut rig, shell(image, "echo out; exit 7"));
        assert_eq!((cause, said.as_str()), (Cause::Exited { code: 7 }, "out"), "{program:?}");
        let missing = common::with(order(image), |spec| {
            spec.sandbox.command = vec!["/no/such".to_owned()];
        });
        let sandbox = missing.order.sandbox;
        rig.runtime.create(missing);
        let failure = rig.gone(sandbox);
        assert_eq!(failure.fault, Fault::Function, "{program:?}");
        assert!(failure.cause.to_string().contains("/no/such"), "{program:?}: {failure:?}");
        let memory = "a=xxxxxxxxxxxxxxxx; while :; do a=$a$a; done";
        let (cause, _) = run(&mut rig, shell(image, memory));
        assert_eq!(cause, Cause::OutOfMemory { limit: Bytes::mib(64) }, "{program:?}");
        rig.nothing_left();
    }
}

#[test]
fn layers_replace_what_is_below_and_archives_have_several_forms() {
    let Some(mut rig) = rig() else { return };
    let mut above = Layer::new();
    above.file("www/index.html", 0o644, b"from above\n").file("bin/.wh.nc", 0o644, b"");
    let image = busybox().and(above);
    for gzip in [false, true] {
        let path = rig.dir.path().join("archive");
        let digest = image.oci_archive(&path, gzip);
        rig.unpack(digest, path).unwrap();
        let (sandbox, port) = rig.serve(order(digest));
        assert_eq!(get(port), "from above\n");
        rig.end(sandbox);
        let (_, said) = run(&mut rig, shell(digest, "ls /bin"));
        assert!(said.contains("cat") && !said.contains("nc"), "a whiteout hides: {said}");
    }
}

#[test]
fn archives_that_are_not_what_they_say_are_refused() {
    let Some(mut rig) = rig() else { return };
    let path = rig.dir.path().join("archive");
    let mut out = Layer::new();
    out.raw("../evil", b"x");
    let image = Image::new(out, serde_json::json!({ "Cmd": ["x"] }));
    let digest = image.docker_archive(&path);
    let failure = rig.unpack(digest, path.clone()).unwrap_err();
    assert!(failure.message.contains("leads out of it"), "{failure:?}");
    assert_eq!(failure.fault, Fault::Function);
    // A layer that is another one than the configuration says.
    let mut image = busybox();
    image.lie = true;
    let digest = image.docker_archive(&path);
    let failure = rig.unpack(digest, path.clone()).unwrap_err();
    assert!(failure.message.contains("damaged"), "{failure:?}");
    let nobody = Image::new(Layer::new(), serde_json::json!({ "Cmd": ["x"], "User": "nobody" }));
    let digest = nobody.docker_archive(&path);
    let failure = rig.unpack(digest, path.clone()).unwrap_err();
    assert!(failure.message.contains("\"nobody\""), "{failure:?}");
    fs::write(&path, b"no archive at all").unwrap();
    let digest = images::digest(b"no archive at all").parse().unwrap();
    let failure = rig.unpack(digest, path.clone()).unwrap_err();
    assert!(failure.message.contains("not an image"), "{failure:?}");
    assert!(!path.exists() && rig.runtime.artifacts().is_empty());
    let (_, leases) = rig.daemon.ctr(&["leases", "list"]);
    assert_eq!(leases.lines().count(), 1, "no lease of a refused one stays: {leases}");
}

#[test]
fn a_sandbox_has_no_more_than_it_needs() {
    let Some(mut rig) = rig() else { return };
    let image = rig.take(&busybox());
    let (_, said) = run(&mut rig, shell(image, "cat /proc/self/status /proc/mounts; ls /run /dev"));
    assert!(said.contains("NoNewPrivs:\t1") || said.contains("/dev"), "{said}");
    for (what, script) in [
        ("mounting", "mount -t tmpfs x /tmp"),
        ("memory of the kernel", "cat /proc/kcore"),
        ("settings of the kernel", "echo 1 > /proc/sys/kernel/panic"),
        ("a raw socket", "ping -c 1 127.0.0.1"),
        ("a device", "mknod /tmp/sda b 8 0"),
        ("containerd", "ls /run/containerd"),
        ("the host's files", "cat /etc/shadow"),
    ] {
        let (cause, said) = run(&mut rig, shell(image, script));
        assert!(matches!(cause, Cause::Exited { code: 1.. }), "{what}: {cause:?}: {said}");
    }
    let user = rig.take(&{
        let mut image = busybox();
        image.config["User"] = "app".into();
        image
    });
    let (_, said) = run(&mut rig, shell(user, "id -u; grep CapEff /proc/self/status"));
    assert!(said.starts_with("1000") && said.ends_with("0000000000000000"), "{said}");
    let status = "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status";
    let (_, said) = run(&mut rig, shell(image, status));
    assert_eq!(said, "NoNewPrivs:\t1\nSeccomp:\t2");
}

#[test]
fn bombs_hit_nobody_else() {
    let Some(mut rig) = rig_with(|config| config.processes = 64) else { return };
    let image = rig.take(&busybox());
    let (other, port) = rig.serve(order(image));
    let forks = "i=0; while [ $i -lt 200 ]; do sleep 100 & i=$((i+1)); done; exit 7";
    let (cause, said) = run(&mut rig, shell(image, forks));
    assert!(matches!(cause, Cause::Exited { code: 1.. }), "{cause:?} {said}");
    assert!(said.contains("fork"), "{said}");
    let memory = "a=xxxxxxxxxxxxxxxx; while :; do a=$a$a; done";
    let (cause, _) = run(&mut rig, shell(image, memory));
    assert_eq!(cause, Cause::OutOfMemory { limit: Bytes::mib(64) });
    assert_eq!(get(port), "from an image\n");
    rig.end(other);
    rig.nothing_left();
}

#[test]
fn what_runs_needs_no_containerd() {
    for tasks in WAYS {
        needs_no_containerd(tasks);
    }
}

fn needs_no_containerd(tasks: Tasks) {
    let Some(mut rig) = rig_by(tasks) else { return };
    let image = rig.take(&busybox());
    let (stopped, _) = rig.serve(order(image));
    let (serves, port) = rig.serve(order(image));
    rig.daemon.kill();
    assert_eq!(get(port), "from an image\n", "it serves on");
    // What ends is told, be it without what only containerd knows.
    let begun = Instant::now();
    rig.end(stopped);
    if tasks == Tasks::Keeper {
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
        assert_eq!(rig.processes.spaces().all_held().len(), 1, "nothing of it is left to wait for");
    }
    let late = order(image);
    let sandbox = late.order.sandbox;
    rig.runtime.create(late);
    let failure = rig.gone(sandbox);
    assert_eq!(failure.fault, Fault::Worker);
    assert!(failure.cause.to_string().contains("containerd does not answer"), "{failure:?}");
    rig.daemon.restart();
    assert_eq!(get(port), "from an image\n");
    let (again, second) = rig.serve(order(image));
    assert_eq!(get(second), "from an image\n");
    rig.end(serves);
    rig.end(again);
    rig.nothing_left();
}

#[test]
fn a_shim_that_is_killed_takes_its_sandbox_with_it_and_that_is_told() {
    let Some(mut rig) = rig_by(Tasks::Containerd) else { return };
    let image = rig.take(&busybox());
    let (sandbox, _) = rig.serve(order(image));
    rig.kill_all();
    let failure = rig.gone(sandbox);
    let told = matches!(failure.cause, Cause::Signalled { signal: 9 } | Cause::WorkerLost);
    assert!(told, "{failure:?}");
    rig.nothing_left();
}

/// Also those that have the machine's network, and were lent none.
#[test]
fn a_keeper_that_is_killed_takes_its_sandboxes_with_it_and_that_is_told() {
    let Some(mut rig) = rig() else { return };
    let image = rig.take(&busybox());
    let plain =
        |image| common::with(order(image), |spec| spec.sandbox.isolation = Some(Isolation::Plain));
    let (sandbox, _) = rig.serve(plain(image));
    rig.kill_keeper();
    let failure = rig.gone(sandbox);
    assert_eq!((failure.cause, failure.fault), (Cause::WorkerLost, Fault::Worker));
    rig.nothing_left();
    // And while no worker is there.
    let (sandbox, _) = rig.serve(plain(image));
    rig.runtime.detach();
    rig.processes.detach();
    rig.kill_keeper();
    rig.restart();
    let adopted = rig.runtime.recover().unwrap();
    assert_eq!(adopted.iter().map(|one| one.report.sandbox).collect::<Vec<_>>(), [sandbox]);
    assert_eq!(rig.gone(sandbox).cause, Cause::WorkerLost);
    rig.nothing_left();
}

#[test]
fn who_it_is_and_what_it_writes_while_no_worker_is_there() {
    let Some(mut rig) = rig() else { return };
    let image = rig.take(&{
        let mut image = busybox();
        image.config["User"] = "app".into();
        image
    });
    // As programs do for their logs, and without those that they were started with.
    let script = "(while [ ! -e /tmp/end ]; do sleep 0.05; done; id -u > /dev/stderr; exit 9) \
                  > /dev/stdout 2> /dev/stderr & httpd -h /www -p $HOST:$PORT; wait $!";
    let create = shell(image, script);
    let revision = create.order.revision;
    let (sandbox, _) = rig.serve(create);
    let first = rig.processes.spaces().all_held();
    let pid = rig.processes.spaces().held(&first[0]).unwrap().pid;
    rig.runtime.detach();
    rig.processes.detach();
    fs::write(format!("/proc/{pid}/root/tmp/end"), "").unwrap();
    until("it has ended", || !Path::new(&format!("/proc/{pid}/root/tmp")).exists());
    rig.restart();
    let adopted = rig.runtime.recover().unwrap();
    assert_eq!(adopted.iter().map(|one| one.report.revision).collect::<Vec<_>>(), [revision]);
    let failure = rig.gone(sandbox);
    let tail = vec!["1000".to_owned()];
    assert_eq!((failure.cause, failure.log_tail), (Cause::Exited { code: 9 }, tail));
    rig.nothing_left();
}

#[test]
fn containerd_restarted_under_load_loses_nothing_that_is_not_told() {
    for tasks in WAYS {
        restarted_under_load(tasks);
    }
}

fn restarted_under_load(tasks: Tasks) {
    let Some(mut rig) = rig_by(tasks) else { return };
    let image = rig.take(&busybox());
    let mut open = BTreeSet::new();
    for round in 0..3 {
        for _ in 0..6 {
            let create = order(image);
            open.insert(create.order.sandbox);
            rig.runtime.create(create);
        }
        if round == 1 {
            rig.daemon.kill();
            rig.daemon.restart();
        }
    }
    let mut failed = 0;
    while !open.is_empty() {
        match next(&mut rig.events) {
            Event::Listening { sandbox, .. } => rig.runtime.destroy(sandbox, Duration::ZERO),
            Event::Gone { sandbox, failure } => {
                assert!(open.remove(&sandbox), "{sandbox} is gone twice");
                failed += u32::from(failure.cause != Cause::Stopped);
            }
            Event::Created { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    println!("{failed} of 18 starts failed");
    let (sandbox, _) = rig.serve(order(image));
    rig.end(sandbox);
    rig.nothing_left();
}

#[test]
fn half_made_sandboxes_and_strangers_leftovers_are_removed_at_a_start() {
    for tasks in WAYS {
        half_made(tasks);
    }
}

fn half_made(tasks: Tasks) {
    let Some(mut rig) = rig_by(tasks) else { return };
    let image = rig.take(&busybox());
    let (lives, port) = rig.serve(order(image));
    // One that does not listen yet.
    let half = shell(image, "sleep 1000");
    let sandbox = half.order.sandbox;
    rig.runtime.create(half);
    assert_eq!(next(&mut rig.events), Event::Created { sandbox });
    rig.restart();
    let adopted = rig.runtime.recover().unwrap();
    let adopted: Vec<_> = adopted.iter().map(|one| one.report.sandbox).collect();
    assert_eq!(adopted, [lives]);
    assert_eq!(rig.left().tasks, 1);
    assert_eq!(get(port), "from an image\n");
    rig.end(lives);
    rig.nothing_left();
}

#[test]
fn an_image_that_somebody_removed_is_missed_and_can_be_had_again() {
    let Some(mut rig) = rig() else { return };
    let image = busybox();
    let digest = rig.take(&image);
    let (_, leases) = rig.daemon.ctr(&["leases", "list", "--quiet"]);
    for lease in leases.lines() {
        assert!(rig.daemon.ctr(&["leases", "delete", "--sync", lease]).0);
    }
    until("containerd has collected it", || {
        !rig.daemon.ctr(&["snapshots", "list"]).1.contains("Committed")
    });
    let create = order(digest);
    let sandbox = create.order.sandbox;
    rig.runtime.create(create);
    assert_eq!(next(&mut rig.events), Event::Lost { digest });
    let failure = rig.gone(sandbox);
    assert_eq!(failure.fault, Fault::Worker);
    assert!(failure.cause.to_string().contains("somebody has removed it"), "{failure:?}");
    assert_eq!(rig.runtime.artifacts(), []);
    assert_eq!(rig.take(&image), digest);
    let (sandbox, _) = rig.serve(order(digest));
    rig.end(sandbox);
}

#[test]
fn a_hundred_sandboxes_leave_nothing_behind() {
    let Some(mut rig) = rig() else { return };
    let image = rig.take(&busybox());
    let (mut ordered, mut ended) = (0, 0);
    while ended < 100 {
        while ordered < 100 && ordered - ended < 8 {
            rig.runtime.create(order(image));
            ordered += 1;
        }
        match next(&mut rig.events) {
            Event::Listening { sandbox, .. } => rig.runtime.destroy(sandbox, Duration::ZERO),
            Event::Gone { failure, .. } => {
                assert_eq!(failure.cause, Cause::Stopped);
                ended += 1;
            }
            Event::Created { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    rig.nothing_left();
    rig.runtime.discard(image);
    until("the image is collected", || {
        rig.daemon.ctr(&["snapshots", "list"]).1.lines().count() == 1
            && rig.daemon.ctr(&["leases", "list"]).1.lines().count() == 1
            && rig.daemon.ctr(&["content", "list"]).1.lines().count() == 1
    });
}

/// A registry of Debian's package, on loopback.
struct Hub {
    child: std::process::Child,
    port: u16,
    dir: tempfile::TempDir,
}

/// `secret`, as `htpasswd -B` writes it.
const HTPASSWD: &str = "me:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

impl Hub {
    /// With a user `me` and TLS by an authority of its own, if it is private.
    fn start(is_private: bool) -> Option<Self> {
        for (program, package) in [("docker-registry", "docker-registry"), ("skopeo", "skopeo")] {
            if !daemon::on_path(program) {
                println!("skip: a registry: no `{program}`: apt-get install {package}");
                return None;
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let port = common::free_port();
        let place = |name: &str| dir.path().join(name).display().to_string();
        let mut config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: \
             true\nhttp:\n  addr: 127.0.0.1:{port}\n",
            place("data")
        );
        if is_private {
            let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
            let made = rcgen::generate_simple_self_signed(names).unwrap();
            fs::write(place("cert.pem"), made.cert.pem()).unwrap();
            fs::write(place("key.pem"), made.signing_key.serialize_pem()).unwrap();
            fs::write(place("users"), HTPASSWD).unwrap();
            fs::write(place("password"), "secret\n").unwrap();
            let more = format!(
                "  tls:\n    certificate: {}\n    key: {}\nauth:\n  htpasswd:\n    realm: test\n    \
                 path: {}\n",
                place("cert.pem"),
                place("key.pem"),
                place("users")
            );
            config.push_str(&more);
        }
        fs::write(place("config.yml"), config).unwrap();
        let log = fs::File::create(place("log")).unwrap();
        let child = Command::new("docker-registry")
            .args(["serve", &place("config.yml")])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        until("the registry listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Some(Self { child, port, dir })
    }

    fn image(&self, tag: &str) -> String {
        format!("127.0.0.1:{}/team/app:{tag}", self.port)
    }

    /// By somebody else's program; the digest that it says.
    fn push(&self, image: &Image, tag: &str) -> Digest {
        let archive = self.dir.path().join("image.tar");
        image.docker_archive(&archive);
        let output = Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"])
            .args(["--dest-creds", "me:secret", "--format", "oci"])
            .arg(format!("--digestfile={}", self.dir.path().join("digest").display()))
            .arg(format!("docker-archive:{}", archive.display()))
            .arg(format!("docker://{}", self.image(tag)))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        fs::read_to_string(self.dir.path().join("digest")).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Rig {
    fn resolve(&mut self, image: &str, pull: Pull) -> Result<Digest, ArtifactFailure> {
        let asked = create(&[], None).order.sandbox;
        self.runtime.resolve(asked, image, pull).unwrap();
        match next(&mut self.events) {
            Event::Resolved { sandbox, result } if sandbox == asked => result,
            other => panic!("{other:?}"),
        }
    }

    fn pull(&mut self, digest: Digest, image: &str) -> Result<(), ArtifactFailure> {
        self.runtime.pull(digest, image).unwrap();
        match next(&mut self.events) {
            Event::Unpacked { digest: unpacked, result } if unpacked == digest => result,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_tag_is_resolved_and_its_image_pulled_once() {
    let Some(mut rig) = rig() else { return };
    let Some(hub) = Hub::start(false) else { return };
    let tag = hub.image("1");
    let pushed = hub.push(&busybox(), "1");
    let failure = rig.resolve(&tag, Pull::Never).unwrap_err();
    assert!(failure.message.contains("`sandbox.pull` is `never`"), "{failure:?}");
    assert_eq!(rig.resolve(&tag, Pull::Missing), Ok(pushed));
    let pinned = format!("{tag}@{pushed}");
    rig.pull(pushed, &pinned).unwrap();
    assert_eq!(rig.runtime.artifacts(), [pushed]);
    let (sandbox, port) = rig.serve(order(pushed));
    assert_eq!(get(port), "from an image\n");
    rig.end(sandbox);
    // The tag moves on; what is here stays what it was, unless the registry is asked.
    let mut above = Layer::new();
    above.file("www/index.html", 0o644, b"a later one\n");
    let later = hub.push(&busybox().and(above), "1");
    assert_ne!(later, pushed);
    assert_eq!(rig.resolve(&tag, Pull::Missing), Ok(pushed));
    assert_eq!(rig.resolve(&tag, Pull::Never), Ok(pushed));
    assert_eq!(rig.resolve(&tag, Pull::Always), Ok(later));
    assert_eq!(rig.resolve(&pinned, Pull::Always), Ok(pushed));
    rig.pull(later, &tag).unwrap();
    assert_eq!(rig.resolve(&tag, Pull::Missing), Ok(later), "the newest that has the tag");
    let failure = rig.resolve(&hub.image("none"), Pull::Missing).unwrap_err();
    assert!(failure.message.contains("has no"), "{failure:?}");
    assert_eq!(failure.fault, Fault::Function);
    // Nobody pulls what is there, nor by a digest that is another one's.
    drop(hub);
    rig.pull(later, &tag).unwrap();
    let failure = rig.resolve(&tag, Pull::Always).unwrap_err();
    assert_eq!(failure.fault, Fault::Worker, "{failure:?}");
}

#[test]
fn a_private_registry_is_asked_with_credentials_and_its_own_authority() {
    let Some(hub) = Hub::start(true) else { return };
    let registry = Registry {
        user: Some("me".to_owned()),
        password_file: Some(hub.dir.path().join("password")),
        ca: Some(hub.dir.path().join("cert.pem")),
        plain_http: false,
    };
    let name = format!("127.0.0.1:{}", hub.port);
    let nobody = Registry { user: None, password_file: None, ..registry.clone() };
    let stranger = Registry { ca: None, plain_http: true, ..registry.clone() };
    let tag = hub.image("1");
    let pushed = hub.push(&busybox(), "1");
    for (registry, why) in [(nobody, "password_file"), (stranger, "cannot be asked")] {
        let registries = BTreeMap::from([(name.clone(), registry)]);
        let Some(mut rig) = rig_with(|config| config.registries = registries) else { return };
        let failure = rig.resolve(&tag, Pull::Missing).unwrap_err();
        assert!(failure.message.contains(why), "{failure:?}");
    }
    let registries = BTreeMap::from([(name, registry)]);
    let Some(mut rig) = rig_with(|config| config.registries = registries) else { return };
    assert_eq!(rig.resolve(&tag, Pull::Missing), Ok(pushed));
    rig.pull(pushed, &tag).unwrap();
    // Bytes that are others than their digest says.
    let blobs = hub.dir.path().join("data/docker/registry/v2/blobs/sha256");
    damage(&blobs);
    rig.runtime.discard(pushed);
    until("it is discarded", || rig.runtime.artifacts().is_empty());
    let failure = rig.pull(pushed, &tag).unwrap_err();
    let said = failure.message.contains("damaged") || failure.message.contains("igest");
    assert!(said, "{failure:?}");
}

/// A small disk of its own, in memory, for a directory.
struct Small(PathBuf);

impl Small {
    fn at(path: PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap();
        mount(c"small", &path, c"tmpfs", MountFlags::empty(), c"size=8m,mode=700").unwrap();
        Self(path)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

/// Layers of registries are files of the worker before containerd gets them.
#[test]
fn an_image_that_the_workers_disk_cannot_take_is_refused_and_had_when_there_is_space() {
    let Some(hub) = Hub::start(false) else { return };
    // They travel packed, and this cannot be.
    let mut state = 1_u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56).to_le_bytes()[0]
    });
    let mut above = Layer::new();
    above.file("noise", 0o644, &noise.take(4 << 20).collect::<Vec<_>>());
    let (tag, pushed) = (hub.image("1"), hub.push(&busybox().and(above), "1"));
    let mut small = None;
    let started = rig_with(|config| small = Some(Small::at(config.directory.join("images"))));
    let Some(mut rig) = started else { return };
    // Unmounted before the directory is removed.
    let small = small.unwrap();
    let others = small.0.join("others.json");
    fs::write(&others, vec![0; 4 << 20]).unwrap();
    let failure = rig.pull(pushed, &tag).unwrap_err();
    assert!(failure.message.contains("no space left on the worker's disk"), "{failure:?}");
    assert!(failure.message.contains("free some"), "{failure:?}");
    assert_eq!((failure.fault, rig.runtime.artifacts()), (Fault::Worker, Vec::new()));
    assert_eq!(fs::read_dir(&small.0).unwrap().count(), 1, "nothing of it stays");
    let (_, leases) = rig.daemon.ctr(&["leases", "list"]);
    assert_eq!(leases.lines().count(), 1, "{leases}");
    fs::remove_file(&others).unwrap();
    rig.pull(pushed, &tag).unwrap();
    let (sandbox, port) = rig.serve(order(pushed));
    assert_eq!(get(port), "from an image\n");
    rig.end(sandbox);
}

/// Changes a byte of every large file.
fn damage(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            damage(&path);
        } else if path.metadata().unwrap().len() > 10_000 {
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&path, bytes).unwrap();
        }
    }
}
