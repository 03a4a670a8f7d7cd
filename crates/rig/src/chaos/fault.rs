//! What may happen to a cluster, and what that may cost.

use std::time::Duration;

use anyhow::{Context as _, Result};
use rand::{Rng as _, rngs::StdRng, seq::IndexedRandom as _};
use rustix::process::{Signal, kill_process};

use crate::{
    cluster::Cluster,
    net::Host,
    part::{Part, hosts},
    wire::Link,
};

/// Which calls a fault may make fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Harm {
    /// No call.
    None,
    /// Calls that were open in a data plane.
    OfPlane,
    /// A call that was executed in a sandbox.
    OfSandbox,
    /// Calls in sandboxes of a host, until that was found out, within so long.
    OfHost(Duration),
    /// Calls as long as it lasts, and so long after: who is cut off is not taken for dead.
    Lasting(Duration),
}

/// From a host's death until everybody who knows its sandboxes has found out: a call on a kept
/// connection there is given up after five seconds of silence.
const FOUND_OUT: Duration = Duration::from_secs(6);

/// Kinds of process.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Control,
    Etcd,
    Plane,
    Worker,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// `kill -9`.
    Kill(Kind, usize),
    /// Stopped where it stands, and going on later.
    Freeze(Kind, usize),
    /// Ended in order.
    Restart(Kind, usize),
    /// Of the cluster and of etcd, at once.
    KillBothLeaders { control: usize, member: usize },
    /// Without it nothing can be recorded.
    KillMajorityOfEtcd(usize),
    /// A sandbox's program ends.
    KillSandbox(usize),
    /// A worker's host with all on it.
    KillHost(usize),
    /// A host's cable is pulled.
    Isolate(Kind, usize),
    /// Frames pass one way only.
    OneWay(Host, Host),
    /// All control planes on one side.
    Behead(Kind),
    /// A control plane with a data plane and a worker on one side.
    Split(usize),
    /// All links become like this, which has a name.
    Links(&'static str, Link),
}

impl Fault {
    /// Any, of any part.
    pub(super) fn draw(dice: &mut StdRng, cluster: &Cluster) -> Self {
        let leader = cluster.leader().unwrap_or_default();
        let kinds = [Kind::Control, Kind::Etcd, Kind::Plane, Kind::Worker];
        let kind = *kinds.choose(dice).expect("there are four");
        let any = dice.random_range(0..parts(cluster, kind).len());
        let two: Vec<Host> = cluster.net.hosts().choose_multiple(dice, 2).copied().collect();
        let worker = dice.random_range(0..cluster.workers.len());
        let (bad, link) = *Link::bad().choose(dice).expect("there are three");
        match dice.random_range(0..15) {
            0 | 1 => Self::Kill(kind, any),
            2 => Self::Kill(Kind::Control, leader),
            3 | 4 => Self::Freeze(kind, any),
            5 | 6 => Self::Restart(kind, any),
            7 => {
                let member = cluster.etcd_leader().unwrap_or_default();
                Self::KillBothLeaders { control: leader, member }
            }
            8 => Self::KillMajorityOfEtcd(dice.random_range(0..cluster.etcd.len())),
            9 => Self::KillSandbox(dice.random_range(0..1000)),
            10 => Self::KillHost(worker),
            11 => Self::Isolate(kind, any),
            12 => Self::OneWay(two[0], two[1]),
            13 if dice.random_bool(0.5) => {
                Self::Behead(if dice.random_bool(0.5) { Kind::Worker } else { Kind::Plane })
            }
            13 => Self::Split(leader),
            _ => Self::Links(bad, link),
        }
    }

    /// In words.
    pub(super) fn name(&self, cluster: &Cluster) -> String {
        let part = |kind, number: usize| match parts(cluster, kind).get(number) {
            Some(part) => part.name.clone(),
            None => "nobody".to_owned(),
        };
        match self {
            Self::Kill(kind, number) => format!("kill -9 of {}", part(*kind, *number)),
            Self::Freeze(kind, number) => format!("{} stands still", part(*kind, *number)),
            Self::Restart(kind, number) => format!("restart of {}", part(*kind, *number)),
            Self::KillBothLeaders { control, member } => {
                let (control, member) = (part(Kind::Control, *control), part(Kind::Etcd, *member));
                format!("kill -9 of both leaders, {control} and {member}")
            }
            Self::KillMajorityOfEtcd(left) => {
                format!("kill -9 of all of etcd but {}", part(Kind::Etcd, *left))
            }
            Self::KillSandbox(_) => "kill -9 of a sandbox".to_owned(),
            Self::KillHost(number) => {
                format!("death of the host of {}", part(Kind::Worker, *number))
            }
            Self::Isolate(kind, number) => {
                format!("the host of {} is cut off", part(*kind, *number))
            }
            Self::OneWay(from, to) => format!("cut one way from {} to {}", from.ip(), to.ip()),
            Self::Behead(Kind::Worker) => "control planes are cut from workers".to_owned(),
            Self::Behead(_) => "control planes are cut from data planes".to_owned(),
            Self::Split(control) => {
                format!("{} is cut off with d1 and w1", part(Kind::Control, *control))
            }
            Self::Links(bad, _) => format!("links are {bad}"),
        }
    }

    /// What it may cost.
    pub(super) fn harm(&self) -> Harm {
        match self {
            // What died held no call, or everything goes on in order.
            Self::Kill(Kind::Control | Kind::Etcd | Kind::Worker, _)
            | Self::Freeze(Kind::Control | Kind::Etcd | Kind::Worker, _)
            | Self::Restart(..)
            | Self::KillBothLeaders { .. }
            | Self::KillMajorityOfEtcd(_)
            | Self::Isolate(Kind::Control | Kind::Etcd, _)
            | Self::Links(..)
            | Self::Behead(_) => Harm::None,
            Self::Kill(Kind::Plane, _) => Harm::OfPlane,
            Self::KillSandbox(_) => Harm::OfSandbox,
            Self::KillHost(_) => Harm::OfHost(FOUND_OUT),
            Self::Freeze(Kind::Plane, _)
            | Self::Isolate(..)
            | Self::OneWay(..)
            | Self::Split(_) => Harm::Lasting(FOUND_OUT),
        }
    }

    /// It happens.
    pub(super) fn perform(&self, cluster: &mut Cluster) -> Result<()> {
        match self {
            Self::Kill(kind, number) => part(cluster, *kind, *number)?.kill(),
            Self::Freeze(kind, number) => part(cluster, *kind, *number)?.signal(Signal::STOP)?,
            Self::Restart(kind, number) => {
                part(cluster, *kind, *number)?.end()?;
            }
            Self::KillBothLeaders { control, member } => {
                part(cluster, Kind::Control, *control)?.kill();
                part(cluster, Kind::Etcd, *member)?.kill();
            }
            Self::KillMajorityOfEtcd(left) => {
                let all = cluster.etcd.iter_mut().enumerate();
                all.filter(|(number, _)| number != left).for_each(|(_, member)| member.kill());
            }
            Self::KillSandbox(number) => {
                let all: Vec<_> = cluster.programs().into_values().flatten().collect();
                if let Some((_, pid)) = all.get(number % all.len().max(1)) {
                    // It may have ended by itself meanwhile.
                    kill_process(*pid, Signal::KILL).unwrap_or_default();
                }
            }
            Self::KillHost(number) => cluster.kill_host(*number),
            Self::Isolate(kind, number) => {
                let host = part(cluster, *kind, *number)?.host;
                cluster.net.isolate(host);
            }
            Self::OneWay(from, to) => cluster.net.set(*from, *to, Link::cut()),
            Self::Behead(kind) => {
                let others = hosts(parts(cluster, *kind));
                cluster.net.cut(&hosts(&cluster.controls), &others);
            }
            Self::Split(control) => {
                let with = [
                    cluster.controls.get(*control),
                    cluster.planes.first(),
                    cluster.workers.first(),
                ];
                let ours: Vec<Host> = with.into_iter().flatten().map(|part| part.host).collect();
                cluster.net.cut(&ours, &cluster.others(&ours));
            }
            Self::Links(_, link) => {
                cluster.net.between(cluster.net.hosts(), cluster.net.hosts(), *link);
            }
        }
        Ok(())
    }

    /// As operators or machines would: links are well, what was stopped is started.
    pub(super) fn repair(&self, cluster: &mut Cluster) -> Result<()> {
        cluster.net.heal();
        match self {
            Self::Freeze(kind, number) => part(cluster, *kind, *number)?.signal(Signal::CONT)?,
            Self::Kill(Kind::Control, number) | Self::Restart(Kind::Control, number) => {
                cluster.start_control(*number)?;
            }
            Self::Kill(Kind::Plane, number) | Self::Restart(Kind::Plane, number) => {
                cluster.start_plane(*number)?;
            }
            Self::Kill(Kind::Worker, number)
            | Self::Restart(Kind::Worker, number)
            | Self::KillHost(number) => cluster.start_worker(*number)?,
            Self::Kill(Kind::Etcd, _)
            | Self::Restart(Kind::Etcd, _)
            | Self::KillMajorityOfEtcd(_) => {
                cluster.start_etcd()?;
            }
            Self::KillBothLeaders { control, .. } => {
                cluster.start_etcd()?;
                cluster.start_control(*control)?;
            }
            Self::KillSandbox(_)
            | Self::Isolate(..)
            | Self::OneWay(..)
            | Self::Behead(_)
            | Self::Split(_)
            | Self::Links(..) => {}
        }
        Ok(())
    }
}

fn parts(cluster: &Cluster, kind: Kind) -> &[Part] {
    match kind {
        Kind::Control => &cluster.controls,
        Kind::Etcd => &cluster.etcd,
        Kind::Plane => &cluster.planes,
        Kind::Worker => &cluster.workers,
    }
}

fn part(cluster: &mut Cluster, kind: Kind, number: usize) -> Result<&mut Part> {
    let parts = match kind {
        Kind::Control => &mut cluster.controls,
        Kind::Etcd => &mut cluster.etcd,
        Kind::Plane => &mut cluster.planes,
        Kind::Worker => &mut cluster.workers,
    };
    parts.get_mut(number).context("there is no such part")
}
