//! A pool in a machine of its own: a network namespace with a link to another one, which stands for
//! the rest of the world. As root only.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Command, Stdio},
};

use super::*;
use crate::sys::process::unshare;

const NAME: &str = "dirigent_0123456789abcdef_1";

/// Long enough for a connection on a busy machine; refusals come at once.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs in a thread that has a machine's network for itself: `here`, with a link to `world`.
fn machine(act: impl FnOnce(&World) + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: only root makes network namespaces with links");
    }
    let missing = ["ip", "nft"].into_iter().find(|program| {
        !Command::new(program).arg("-V").output().is_ok_and(|output| output.status.success())
    });
    if let Some(program) = missing {
        return println!("skipped: `{program}` is not installed");
    }
    let thread = std::thread::spawn(move || {
        // Not kept: this thread ends here.
        unshare(libc::CLONE_NEWNET).unwrap();
        let world = link::own_namespace().unwrap();
        ip("link set lo up");
        unshare(libc::CLONE_NEWNET).unwrap();
        let here = link::own_namespace().unwrap();
        ip("link set lo up");
        ip("link add uplink type veth peer name wire");
        // The other end goes to the world by a process that is there.
        let mut there = link::within(world.as_fd(), here.as_fd(), || {
            // It ends with this test, whichever way.
            Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn()
        })
        .unwrap();
        ip(&format!("link set wire netns {}", there.id()));
        ip("addr add 198.51.100.1/24 dev uplink");
        ip("link set uplink up");
        ip("route add default via 198.51.100.2");
        let world = World { world, here };
        world.there(|| {
            ip("addr add 198.51.100.2/24 dev wire");
            ip("addr add 10.77.0.1/32 dev wire");
            ip("addr add 169.254.169.254/32 dev wire");
            ip("link set wire up");
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(&world)));
        drop(there.stdin.take());
        there.wait().unwrap();
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(args: &str) {
    let output = Command::new("ip").args(args.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
}

struct World {
    world: OwnedFd,
    here: OwnedFd,
}

impl World {
    fn there<T>(&self, act: impl FnOnce() -> T) -> T {
        link::within(self.world.as_fd(), self.here.as_fd(), || Ok(act())).unwrap()
    }

    fn inside<T>(&self, space: &Space, act: impl FnOnce() -> T) -> T {
        link::within(space.namespace(), self.here.as_fd(), || Ok(act())).unwrap()
    }
}

fn settings() -> Settings {
    Settings {
        range: None,
        address: Ipv4Addr::LOCALHOST,
        admitted: Vec::new(),
        forbidden: Vec::new(),
        ready: 4,
    }
}

/// Somebody who answers each connection with a word.
fn serve(at: &str, word: &'static str) -> SocketAddr {
    let listener = TcpListener::bind(at).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            if connection.write_all(word.as_bytes()).is_err() {
                return;
            }
        }
    });
    address
}

/// What is heard there; nothing if nobody is reached.
fn call(address: impl Into<SocketAddr>) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address.into(), PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut word = String::new();
    stream.read_to_string(&mut word).ok()?;
    Some(word)
}

fn heard(word: &str) -> Option<String> {
    Some(word.to_owned())
}

#[test]
fn a_sandbox_is_reached_and_reaches_the_public_only() {
    machine(|world| {
        let everywhere = "0.0.0.0:7000";
        world.there(|| serve(everywhere, "world"));
        serve(everywhere, "machine");
        let mut pool = Pool::open(NAME, settings()).unwrap();
        let one = pool.lend(&Outbound::Internet, None).unwrap();
        let two = pool.lend(&Outbound::Internet, None).unwrap();
        world.inside(&one, || serve(everywhere, "one"));
        world.inside(&two, || serve(everywhere, "two"));
        assert_eq!(call((one.address(), 7000)), heard("one"));
        assert_eq!(call((two.address(), 7000)), heard("two"));
        let from = |space: &Space, to: Ipv4Addr| world.inside(space, || call((to, 7000)));
        assert_eq!(from(&one, Ipv4Addr::LOCALHOST), heard("one"), "its own loopback");
        assert_eq!(from(&one, Ipv4Addr::new(198, 51, 100, 2)), heard("world"));
        for forbidden in [
            two.address(),
            range::gateway_of(one.address()),
            Ipv4Addr::new(198, 51, 100, 1),
            Ipv4Addr::new(10, 77, 0, 1),
            Ipv4Addr::new(169, 254, 169, 254),
        ] {
            assert_eq!(from(&one, forbidden), None, "{forbidden}");
        }
        // Nobody else comes in, route or not.
        let from_outside = world.there(|| {
            ip(&format!("route add {}/32 via 198.51.100.1", one.address()));
            call((one.address(), 7000))
        });
        assert_eq!(from_outside, None);
        pool.close();
    });
}

#[test]
fn a_policy_is_one_sandboxs_and_ends_with_it() {
    machine(|world| {
        for port in [7000, 7001] {
            world.there(|| serve(&format!("0.0.0.0:{port}"), "world"));
        }
        let mut pool = Pool::open(NAME, settings()).unwrap();
        let (public, private) = (Ipv4Addr::new(198, 51, 100, 2), Ipv4Addr::new(10, 77, 0, 1));
        let list = ["10.77.0.1:7000", "10.77.0.0/16:7000", "10.77.0.1:7000"];
        let list = list.iter().map(|text| text.parse().unwrap()).collect();
        let none = pool.lend(&Outbound::None, None).unwrap();
        let only = pool.lend(&Outbound::Only(list), None).unwrap();
        let all = pool.lend(&Outbound::Only(vec!["0.0.0.0/0".parse().unwrap()]), None).unwrap();
        let free = pool.lend(&Outbound::Internet, None).unwrap();
        let from = |space: &Space, to, port| world.inside(space, || call((to, port)).is_some());
        let reached = |space: &Space| {
            [(public, 7000), (public, 7001), (private, 7000), (private, 7001)]
                .map(|(to, port)| from(space, to, port))
        };
        assert_eq!(reached(&none), [false; 4]);
        assert_eq!(reached(&only), [false, false, true, false]);
        assert_eq!(reached(&all), [true; 4]);
        assert_eq!(reached(&free), [true, true, false, false]);
        for forbidden in [Ipv4Addr::new(169, 254, 169, 254), free.address()] {
            assert!(!from(&all, forbidden, 7000), "{forbidden}");
        }
        // The same after the rules were written anew, as they are after a flush.
        let status = Command::new("nft").args(["flush", "ruleset"]).status().unwrap();
        assert!(status.success() && pool.is_outdated());
        let late = pool.lend(&Outbound::None, None).unwrap_err();
        assert!(late.to_string().contains("network rules"), "{late}");
        let renewal = pool.renewal();
        renewal.run().unwrap();
        pool.renewed();
        assert!(!pool.is_outdated());
        assert_eq!(reached(&none), [false; 4]);
        assert_eq!(reached(&only), [false, false, true, false]);
        // Who gets the namespace next has its own policy.
        let address = none.address();
        let mut others = vec![only, all, free];
        pool.give_back(none);
        // What the calls in it left behind may take a moment.
        let begun = Instant::now();
        while pool.rest_over(Instant::now()) {
            assert!(begun.elapsed() < PATIENCE, "it rests for ever");
            std::thread::park_timeout(Duration::from_millis(5));
        }
        loop {
            let next = pool.lend(&Outbound::Internet, None).unwrap();
            if next.address() == address {
                assert_eq!(reached(&next), [true, true, false, false]);
                break;
            }
            others.push(next);
            assert!(others.len() < 20, "it is never lent again");
        }
        pool.close();
    });
}

#[test]
fn ports_lead_from_the_machines_address_to_sandboxes() {
    machine(|world| {
        let address = Ipv4Addr::new(198, 51, 100, 1);
        let stranger = Ipv4Addr::new(198, 51, 100, 3);
        world.there(|| ip(&format!("addr add {stranger}/24 dev wire")));
        let admitted = vec!["198.51.100.2/32".parse().unwrap()];
        let mut pool = Pool::open(NAME, Settings { address, admitted, ..settings() }).unwrap();
        let exposed = |port| Some(Exposed { via: Via::Machine, port, inside: 8080 });
        let one = pool.lend(&Outbound::None, exposed(20_001)).unwrap();
        let two = pool.lend(&Outbound::Internet, exposed(20_002)).unwrap();
        world.inside(&one, || serve("0.0.0.0:8080", "one"));
        world.inside(&two, || serve("0.0.0.0:8080", "two"));
        let from_outside = |port| world.there(|| call((address, port)));
        assert_eq!(from_outside(20_001), heard("one"));
        assert_eq!(from_outside(20_002), heard("two"));
        assert_eq!(call((address, 20_001)), heard("one"), "from here");
        let from_stranger = world.there(|| {
            let output = Command::new("bash")
                .args(["-c", &format!("ip route replace {address}/32 dev wire src {stranger}; exec 3<>/dev/tcp/{address}/20001")])
                .output()
                .unwrap();
            ip(&format!("route del {address}/32"));
            output.status.success()
        });
        assert!(!from_stranger);
        assert_eq!(world.inside(&two, || call((address, 20_001))), None, "from a neighbour");
        pool.give_back(one);
        assert_eq!(from_outside(20_001), None);
        assert_eq!(from_outside(20_002), heard("two"));
        pool.close();
    });
}

#[test]
fn nothing_of_ipv6_passes() {
    machine(|world| {
        ip("addr add fd00:77::1/64 dev uplink nodad");
        serve("[::]:7000", "machine");
        let mut pool = Pool::open(NAME, settings()).unwrap();
        let one = pool.lend(&Outbound::Internet, None).unwrap();
        let (addresses, own, machine) = world.inside(&one, || {
            let addresses = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
            serve("[::]:7000", "one");
            let call = |address: &str| call(address.parse::<SocketAddr>().unwrap());
            (addresses, call("[::1]:7000"), call("[fd00:77::1]:7000"))
        });
        assert_eq!(addresses.lines().count(), 1, "the loopback's alone: {addresses}");
        assert_eq!(own, heard("one"));
        assert_eq!(machine, None);
        pool.close();
    });
}

#[test]
fn a_namespace_is_lent_again_when_no_socket_is_left_in_it() {
    machine(|world| {
        let mut pool = Pool::open(NAME, Settings { ready: 1, ..settings() }).unwrap();
        let one = pool.lend(&Outbound::Internet, None).unwrap();
        let address = one.address();
        let socket = world.inside(&one, || UdpSocket::bind("0.0.0.0:0").unwrap());
        // A connection that the sandbox ends first.
        let listener = world.inside(&one, || TcpListener::bind("0.0.0.0:8080").unwrap());
        let mut client = TcpStream::connect((address, 8080)).unwrap();
        drop(listener.accept().unwrap());
        assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
        drop((client, listener));
        pool.give_back(one);
        assert!(pool.rest_over(Instant::now()), "there is a socket");
        drop(socket);
        let deadline = Instant::now() + PATIENCE;
        while pool.rest_over(Instant::now()) {
            assert!(Instant::now() < deadline, "it rests for ever");
        }
        let again = pool.lend(&Outbound::Internet, None).unwrap();
        assert_eq!(again.address(), address);
        // One that is never let go of is closed.
        let socket = world.inside(&again, || UdpSocket::bind("0.0.0.0:0").unwrap());
        pool.give_back(again);
        assert!(!pool.rest_over(Instant::now() + LONGEST_REST));
        let next = pool.lend(&Outbound::Internet, None).unwrap();
        assert_ne!(next.address(), address);
        drop(socket);
        pool.close();
    });
}

#[test]
fn more_are_made_only_when_half_are_used() {
    machine(|_| {
        let mut pool = Pool::open(NAME, settings()).unwrap();
        let fill = |pool: &mut Pool| {
            let mut made = 0;
            while let Some(order) = pool.wanted() {
                let space = order.make(pool.home());
                pool.made(order.address(), space).unwrap();
                made += 1;
            }
            made
        };
        // One was made to see whether it works.
        assert_eq!(fill(&mut pool), 3);
        let one = pool.lend(&Outbound::Internet, None).unwrap();
        assert_eq!(fill(&mut pool), 0);
        let two = pool.lend(&Outbound::Internet, None).unwrap();
        assert_eq!(fill(&mut pool), 2);
        drop((one, two));
        pool.close();
    });
}

#[test]
fn a_machine_that_forwarded_nothing_forwards_nothing_else_and_nothing_afterwards() {
    const SETTING: &str = "/proc/sys/net/ipv4/ip_forward";
    machine(|world| {
        let forwards = || std::fs::read_to_string(SETTING).unwrap().trim() == "1";
        // A new network begins with what the machine has.
        std::fs::write(SETTING, "0").unwrap();
        // Another host behind this machine.
        let order = Order { address: Ipv4Addr::new(203, 0, 113, 9), mtu: 1500 };
        let other = order.make(world.here.as_fd()).unwrap();
        // Not called as ours are.
        ip("link set dgcb007109 down");
        ip("link set dgcb007109 name other");
        ip("link set other up");
        ip("route replace 203.0.113.9/32 dev other");
        world.inside(&other, || serve("0.0.0.0:7000", "other"));
        let through = || {
            world.there(|| {
                ip("route replace 203.0.113.9/32 via 198.51.100.1");
                let stream = TcpStream::connect_timeout(
                    &(Ipv4Addr::new(203, 0, 113, 9), 7000).into(),
                    Duration::from_millis(300),
                );
                stream.is_ok()
            })
        };
        assert!(!through());
        let one = Pool::open(NAME, settings()).unwrap();
        let two = Pool::open("dirigent_0123456789abcdee_1", settings()).unwrap();
        assert!(forwards() && !through());
        one.close();
        assert!(forwards() && !through(), "the other one still needs it");
        two.close();
        assert!(!forwards());
        // A machine that forwards of its own accord is left alone.
        std::fs::write(SETTING, "1").unwrap();
        let one = Pool::open(NAME, settings()).unwrap();
        assert!(through());
        one.close();
        assert!(forwards() && through());
    });
}

#[test]
fn a_thousand_loans_leave_nothing_behind() {
    machine(|world| {
        let links = || std::fs::read_dir("/proc/sys/net/ipv4/conf").unwrap().count();
        let before = links();
        let mut pool = Pool::open(NAME, Settings { ready: 8, ..settings() }).unwrap();
        let list = Outbound::Only(vec!["10.77.0.0/16".parse().unwrap()]);
        for n in 0..100_u16 {
            let lent: Vec<Space> = (0..10)
                .map(|m| {
                    let exposed = Some(Exposed {
                        via: Via::Machine,
                        port: 20_000 + n * 10 + m,
                        inside: 8080,
                    });
                    pool.lend(&list, exposed).unwrap()
                })
                .collect();
            for space in lent {
                world.inside(&space, || UdpSocket::bind("0.0.0.0:0").unwrap());
                pool.give_back(space);
            }
            let deadline = Instant::now() + PATIENCE;
            while pool.rest_over(Instant::now()) {
                assert!(Instant::now() < deadline, "some rest for ever");
            }
        }
        assert!(links() <= before + 11, "they were lent again");
        let rules = Command::new("nft").args(["list", "table", "inet", &pool.table]).output();
        let rules = String::from_utf8(rules.unwrap().stdout).unwrap();
        assert!(!rules.contains("10.77.0.0") && !rules.contains("8080"), "{rules}");
        pool.close();
        assert_eq!(forwarding::tables(), Vec::<String>::new());
        let deadline = Instant::now() + PATIENCE;
        while links() > before {
            assert!(Instant::now() < deadline, "links stay");
        }
    });
}

/// As runtimes do that bring a network stack of their own.
#[test]
fn one_whose_address_was_taken_away_is_not_lent_again() {
    machine(|world| {
        let mut pool = Pool::open(NAME, settings()).unwrap();
        let [spent, fine] = [(); 2].map(|()| pool.lend(&Outbound::Internet, None).unwrap());
        let (gone, kept) = (spent.address(), fine.address());
        world.inside(&spent, || ip("-4 addr flush dev eth0"));
        pool.give_back(spent);
        pool.give_back(fine);
        // The kernel takes its time with the socket by which that was done.
        let deadline = Instant::now() + PATIENCE;
        while pool.rest_over(Instant::now()) {
            assert!(Instant::now() < deadline, "some rest for ever");
        }
        let ready: Vec<Ipv4Addr> = pool.ready.iter().map(Space::address).collect();
        assert!(ready.contains(&kept) && !ready.contains(&gone), "{ready:?}");
        pool.close();
    });
}
