//! What a host measures of itself.

use std::time::Duration;

use model::api::ContainerState;
use model::wire::node::DrainPhase;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::notice;

/// A part of a container's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KillPhase {
    /// From the sending of the signal to proven death.
    Dead,
    /// From proven death to the repl's release or hand-off.
    Released,
}

impl KillPhase {
    const ALL: [Self; 2] = [Self::Dead, Self::Released];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::Released => "released",
        }
    }
}

const STATES: [(&str, ContainerState); 5] = [
    ("starting", ContainerState::Starting),
    ("running", ContainerState::Running),
    ("destroying", ContainerState::Destroying),
    ("killing", ContainerState::Killing),
    ("releasing", ContainerState::Releasing),
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

/// [`notice::Kind`] as a label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabel {
    source: &'static str,
}

/// How a renewal went.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lateness {
    /// From sending to acknowledgement.
    pub(super) spent: Duration,
    /// What was left until the new deadline when it was acknowledged.
    pub(super) margin: Duration,
}

/// A host's metrics.
#[derive(Debug)]
pub struct HostMetrics {
    containers: Family<StateLabel, Gauge>,
    start_seconds: Histogram,
    kill_seconds: Family<PhaseLabel, Histogram>,
    drain_seconds: Family<PhaseLabel, Histogram>,
    renew_seconds: Histogram,
    margin_seconds: Histogram,
    pub(super) renewals_failed: Counter,
    pub(super) fences: Counter,
    pub(super) thefts: Counter,
    notice_sources: Family<SourceLabel, Gauge>,
    notice_failures: Family<SourceLabel, Counter>,
    notices: Family<SourceLabel, Counter>,
}

fn fine_seconds() -> Histogram {
    Histogram::new([
        0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
    ])
}

impl HostMetrics {
    /// Makes the metrics known to a registry.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            containers: Family::default(),
            start_seconds: fine_seconds(),
            kill_seconds: Family::new_with_constructor(fine_seconds),
            drain_seconds: Family::new_with_constructor(fine_seconds),
            renew_seconds: fine_seconds(),
            margin_seconds: Histogram::new([
                0.1, 0.5, 1.0, 1.5, 2.0, 2.5, 2.8, 2.9, 3.0, 10.0, 30.0,
            ]),
            renewals_failed: Counter::default(),
            fences: Counter::default(),
            thefts: Counter::default(),
            notice_sources: Family::default(),
            notice_failures: Family::default(),
            notices: Family::default(),
        };
        // Zero is a figure too: what first appears with its first event is no increase to Prometheus, and a host drains once.
        for (state, _) in STATES {
            metrics
                .containers
                .get_or_create(&StateLabel { state })
                .set(0);
        }
        for phase in KillPhase::ALL.map(KillPhase::as_str) {
            drop(metrics.kill_seconds.get_or_create(&PhaseLabel { phase }));
        }
        for phase in DrainPhase::ALL.map(DrainPhase::as_str) {
            drop(metrics.drain_seconds.get_or_create(&PhaseLabel { phase }));
        }
        registry.register(
            "conman_containers",
            "Containers on this host by state",
            metrics.containers.clone(),
        );
        registry.register(
            "conman_container_start_seconds",
            "Time from the committed claim to the running process",
            metrics.start_seconds.clone(),
        );
        registry.register(
            "conman_container_kill_seconds",
            "Time of each part of a container's end: signal to proven death, death to release",
            metrics.kill_seconds.clone(),
        );
        registry.register(
            "conman_drain_seconds",
            "Time from the notice of a drain to the end of each phase",
            metrics.drain_seconds.clone(),
        );
        registry.register(
            "conman_lease_renew_seconds",
            "Time from the sending of a renewal to its acknowledgement",
            metrics.renew_seconds.clone(),
        );
        registry.register(
            "conman_lease_margin_seconds",
            "Time left until the deadline when a renewal was acknowledged",
            metrics.margin_seconds.clone(),
        );
        registry.register(
            "conman_lease_renewals_failed",
            "Renewals without an answer in time",
            metrics.renewals_failed.clone(),
        );
        registry.register(
            "conman_lease_fences",
            "Times this host lost its lease and killed everything",
            metrics.fences.clone(),
        );
        registry.register(
            "conman_host_thefts",
            "Registrations of silent hosts that this host ended",
            metrics.thefts.clone(),
        );
        registry.register(
            "conman_notice_source_up",
            "Whether the last look at a source of notices worked",
            metrics.notice_sources.clone(),
        );
        registry.register(
            "conman_notice_source_failures",
            "Looks at a source of notices that failed",
            metrics.notice_failures.clone(),
        );
        registry.register(
            "conman_notices",
            "Notices that this machine is about to be gone",
            metrics.notices.clone(),
        );
        metrics
    }

    /// A container's state is another one than before; `None` before its first and after its last.
    pub(super) fn moved(&self, before: Option<ContainerState>, after: Option<ContainerState>) {
        for (state, by) in [(before, -1), (after, 1)] {
            let label = STATES.iter().find(|(_, other)| Some(*other) == state);
            if let Some((state, _)) = label {
                let state = StateLabel { state };
                self.containers.get_or_create(&state).inc_by(by);
            }
        }
    }

    pub(super) fn started(&self, spent: Duration) {
        self.start_seconds.observe(spent.as_secs_f64());
    }

    pub(super) fn kill(&self, phase: KillPhase, spent: Duration) {
        let phase = phase.as_str();
        self.kill_seconds
            .get_or_create(&PhaseLabel { phase })
            .observe(spent.as_secs_f64());
    }

    pub(super) fn drained(&self, phase: DrainPhase, after: Duration) {
        let phase = phase.as_str();
        self.drain_seconds
            .get_or_create(&PhaseLabel { phase })
            .observe(after.as_secs_f64());
    }

    pub(super) fn notice_source(&self, kind: notice::Kind, up: bool) {
        let label = SourceLabel {
            source: kind.as_str(),
        };
        self.notice_failures
            .get_or_create(&label)
            .inc_by((!up).into());
        drop(self.notices.get_or_create(&label));
        self.notice_sources.get_or_create(&label).set(up.into());
    }

    pub(super) fn notice(&self, kind: notice::Kind) {
        let label = SourceLabel {
            source: kind.as_str(),
        };
        self.notices.get_or_create(&label).inc();
    }

    pub(super) fn renewed(&self, lateness: Lateness) {
        self.renew_seconds.observe(lateness.spent.as_secs_f64());
        self.margin_seconds.observe(lateness.margin.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_once_in_a_hosts_life_is_there_as_zero_before() {
        let mut registry = Registry::default();
        let metrics = HostMetrics::register(&mut registry);
        metrics.notice_source(notice::Kind::File, true);
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        let phases = DrainPhase::ALL.map(|phase| {
            let phase = phase.as_str();
            format!("conman_drain_seconds_count{{phase=\"{phase}\"}} 0\n")
        });
        let others = [
            "conman_container_kill_seconds_count{phase=\"dead\"} 0\n",
            "conman_container_kill_seconds_count{phase=\"released\"} 0\n",
            "conman_notice_source_failures_total{source=\"file\"} 0\n",
            "conman_notices_total{source=\"file\"} 0\n",
        ];
        for line in phases.iter().map(String::as_str).chain(others) {
            assert!(page.contains(line), "{line} is not in {page}");
        }
    }
}
