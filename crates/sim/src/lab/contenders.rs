//! Who competes, with every policy's parameters.

use std::{fmt, time::Duration};

use dirigent_core::{
    KeepAlive, Time,
    policy::{
        adaptive::{Adaptive, Terms},
        keep_alive::Fixed,
        scaling::Scaling,
    },
};
use serde::Serialize;

use super::{
    calls::StartTime,
    machines::Setup,
    policies::{
        artifact::{self, Artifact},
        histogram::Histogram,
        knative::{self, Knative},
        reduced::{Lack, Reduced, StartsOf},
    },
    world::{Binding, Excess, Rules, Victim},
};

/// Points of one policy with different parameters make a line of the plot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// `keep_alive = "auto"`.
    Ours,
    /// What a function gets by default today.
    Shipped,
    /// Idle sandboxes go after a fixed time.
    Fixed,
    /// The published artifact.
    Artifact,
    /// Knative's defaults.
    Knative,
    /// *Serverless in the Wild*.
    Histogram,
    /// PulseNet.
    PulseNet,
    /// Nobody can do better.
    Clairvoyant,
    /// Something taken away.
    Ablation,
}

impl Family {
    /// In legends.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Shipped => "shipped default",
            Self::Fixed => "fixed keep-alive",
            Self::Artifact => "published artifact",
            Self::Knative => "Knative KPA",
            Self::Histogram => "histogram",
            Self::PulseNet => "PulseNet split",
            Self::Clairvoyant => "clairvoyant bound",
            Self::Ablation => "ablation",
        }
    }
}

/// Makes the policy of one function.
pub type Make = Box<dyn Fn() -> Box<dyn Scaling> + Send + Sync>;

/// What a contender decides with.
pub enum Means {
    /// A policy, in a world of these rules.
    Policy(Rules, Make),
    /// The future.
    Knowledge,
    /// The product's own machines; their start time is the laboratory's.
    Machines(Setup),
}

impl fmt::Debug for Means {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy(rules, _) => f.debug_tuple("Policy").field(rules).finish(),
            Self::Knowledge => f.write_str("Knowledge"),
            Self::Machines(setup) => f.debug_tuple("Machines").field(setup).finish(),
        }
    }
}

/// One point to be measured.
#[derive(Debug)]
pub struct Contender {
    /// In the table.
    pub name: String,
    /// Which line it is on.
    pub family: Family,
    /// See there.
    pub means: Means,
}

impl Contender {
    fn new<P: Scaling + 'static>(
        family: Family,
        name: impl Into<String>,
        rules: Rules,
        make: impl Fn() -> P + Send + Sync + 'static,
    ) -> Self {
        let make: Make = Box::new(move || Box::new(make()));
        Self { name: name.into(), family, means: Means::Policy(rules, make) }
    }

    /// Ours at a price per idle sandbox, in thousandths.
    #[must_use]
    pub fn ours(price_milli: u64) -> Self {
        let terms = Terms { price_milli, ..Terms::default() };
        let name = format!("ours, price {}.{:03}", price_milli / 1000, price_milli % 1000);
        Self::new(Family::Ours, name, Rules::OURS, move || Adaptive::new(terms))
    }

    /// Late binding, starts that pay off, and sandboxes that go after this time.
    #[must_use]
    pub fn fixed(seconds: u64) -> Self {
        let keep = Duration::from_secs(seconds);
        let name = format!("fixed {seconds} s");
        Self::new(Family::Fixed, name, Rules::OURS, move || Fixed::new(keep))
    }

    /// The same with the windows between the first sandbox and the last: the product's default.
    #[must_use]
    pub fn shipped() -> Self {
        let keep = Duration::from_secs(60);
        let rules = Rules { tick: Some(knative::TICK), ..Rules::OURS };
        let name = "shipped, 60 s with windows";
        Self::new(Family::Shipped, name, rules, move || Fixed::with_windows(keep, Time::ZERO))
    }

    /// The default once more, by the product's own machines.
    #[must_use]
    pub fn machines() -> Self {
        let keep_alive = Duration::from_secs(60).into();
        Self::real(Family::Shipped, "shipped, real machines", keep_alive)
    }

    /// Ours once more, by the product's own machines.
    #[must_use]
    pub fn learned() -> Self {
        Self::real(Family::Ours, "ours, real machines", KeepAlive::Auto)
    }

    fn real(family: Family, name: &str, keep_alive: KeepAlive) -> Self {
        let setup = Setup {
            planes: 1,
            affinity: true,
            sandboxes: (0, 1000),
            keep_alive,
            link: Duration::ZERO,
            start: StartTime::Fixed(Duration::ZERO),
        };
        Self { name: name.to_owned(), family, means: Means::Machines(setup) }
    }

    /// As published.
    #[must_use]
    pub fn artifact() -> Self {
        let name = "published artifact";
        Self::new(Family::Artifact, name, PUBLISHED, Artifact::default)
    }

    /// Knative's defaults.
    #[must_use]
    pub fn knative() -> Self {
        let make = || Knative::new(knative::STABLE_WINDOW);
        Self::new(Family::Knative, "Knative KPA", KNATIVE, make)
    }

    /// *Serverless in the Wild*.
    #[must_use]
    pub fn histogram() -> Self {
        Self::new(Family::Histogram, "histogram, 4 h", Rules::OURS, Histogram::default)
    }

    /// PulseNet with this keep-alive.
    #[must_use]
    pub fn pulsenet(seconds: u64) -> Self {
        let keep = Duration::from_secs(seconds);
        let rules = Rules { excess: Excess::SingleUse { report_below: keep }, ..KNATIVE };
        let name = format!("PulseNet split, {seconds} s");
        Self::new(Family::PulseNet, name, rules, move || Knative::asynchronous(keep))
    }

    /// The bound.
    #[must_use]
    pub fn clairvoyant() -> Self {
        let (name, family) = ("clairvoyant bound".to_owned(), Family::Clairvoyant);
        Self { name, family, means: Means::Knowledge }
    }
}

/// The artifact binds early and asks any sandbox to go.
const PUBLISHED: Rules = Rules {
    binding: Binding::Early { again: Duration::from_millis(250) },
    tick: Some(artifact::PERIOD),
    victim: Victim::Any,
    excess: Excess::Queues,
};

/// The activator queues; a scale-down does not look at who is busy.
const KNATIVE: Rules = Rules {
    binding: Binding::Late,
    tick: Some(knative::TICK),
    victim: Victim::Any,
    excess: Excess::Queues,
};

/// The price of `keep_alive = "auto"`, in thousandths.
pub const PRICE: u64 = 1000;

/// The prices at which ours is measured, in thousandths, the dearest sandbox first.
const PRICES: [u64; 14] =
    [16_000, 8000, 5600, 4000, 2800, 2000, 1400, 1000, 500, 250, 120, 60, 30, 10];

/// Keep-alives in seconds: 10 s to 60 min.
const FIXED: [u64; 9] = [10, 30, 60, 120, 300, 600, 1200, 1800, 3600];

/// Everybody, in the order of the table.
#[must_use]
pub fn all() -> Vec<Contender> {
    let mut all: Vec<Contender> = PRICES.into_iter().map(Contender::ours).collect();
    all.push(Contender::shipped());
    all.extend(FIXED.into_iter().map(Contender::fixed));
    all.push(Contender::artifact());
    all.push(Contender::knative());
    all.push(Contender::histogram());
    all.extend([10, 60, 600].into_iter().map(Contender::pulsenet));
    all.push(Contender::clairvoyant());
    all
}

/// From the published design to ours, one step at a time, and ours with one thing taken away.
#[must_use]
pub fn ablations() -> Vec<Contender> {
    let family = Family::Ablation;
    let late = Rules { binding: Binding::Late, ..PUBLISHED };
    let early = Rules { binding: PUBLISHED.binding, ..Rules::OURS };
    let ticked = Rules { tick: Some(artifact::PERIOD), ..Rules::OURS };
    let minute = || Fixed::new(Duration::from_secs(60));
    let sized = move || StartsOf::new(Artifact::default(), minute());
    let lacks = |lack| move || Reduced::new(minute(), lack);
    vec![
        Contender::artifact(),
        Contender::new(family, "published, late binding", late, Artifact::default),
        Contender::new(family, "published, starts by event and queue", PUBLISHED, sized),
        Contender::new(family, "published, both", late, sized),
        Contender::fixed(60),
        Contender::new(family, "fixed 60 s, early binding", early, minute),
        Contender::new(family, "fixed 60 s, starts at ticks", ticked, lacks(Lack::Events)),
        Contender::new(
            family,
            "fixed 60 s, first decision 1",
            Rules::OURS,
            lacks(Lack::QueueSizedStarts),
        ),
        Contender::shipped(),
        Contender::ours(PRICE),
    ]
}
