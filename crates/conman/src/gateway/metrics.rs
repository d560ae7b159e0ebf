//! What a gateway measures.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use model::api::{Outcome, RefusalCode};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Why an attempt ended as it did: a closed list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Reason {
    /// The container answered.
    Opened,
    /// The client went away.
    ClientGone,
    /// It was refused.
    Refused(RefusalCode),
}

impl Reason {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Reason::Opened => "opened",
            Reason::ClientGone => "client_gone",
            Reason::Refused(code) => code.as_str(),
        }
    }
}

impl EncodeLabelValue for Reason {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.as_str(), encoder)
    }
}

/// An outcome's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct OutcomeValue(Outcome);

impl EncodeLabelValue for OutcomeValue {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), std::fmt::Error> {
        let text = match self.0 {
            Outcome::Ok => "ok",
            Outcome::PlatformFail => "platform_fail",
            Outcome::UserFail => "user_fail",
            Outcome::ClientAbort => "client_abort",
        };
        EncodeLabelValue::encode(&text, encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SessionLabels {
    outcome: OutcomeValue,
    reason: Reason,
}

/// A gateway's metrics.
#[derive(Debug)]
pub struct GatewayMetrics {
    sessions: Family<SessionLabels, Counter>,
    open_seconds: Histogram,
    parked: Gauge<i64>,
    probes: Family<SessionLabels, Counter>,
    probe_stuck_seconds: Histogram,
    probe_longest_seconds: Gauge<f64, AtomicU64>,
}

/// Counts as parked while it lives.
pub(super) struct Parked(Gauge<i64>);

impl Drop for Parked {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl GatewayMetrics {
    /// Makes the metrics known to a registry.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            sessions: Family::default(),
            open_seconds: Histogram::new([
                0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0,
            ]),
            parked: Gauge::default(),
            probes: Family::default(),
            // The class edges of the stuck report, and what tells a start from a take-over.
            probe_stuck_seconds: Histogram::new([
                0.01, 0.1, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0,
                900.0, 3600.0,
            ]),
            probe_longest_seconds: Gauge::default(),
        };
        registry.register(
            "conman_sessions",
            "Attempts to reach a repl by outcome and reason",
            metrics.sessions.clone(),
        );
        registry.register(
            "conman_session_open_seconds",
            "Time from an attempt to the container's answer, of those that succeeded",
            metrics.open_seconds.clone(),
        );
        registry.register(
            "conman_sessions_parked",
            "Sessions that wait for their repl now",
            metrics.parked.clone(),
        );
        registry.register(
            "conman_probe_attempts",
            "Attempts of the prober to reach a host's synthetic repl, by outcome and reason",
            metrics.probes.clone(),
        );
        registry.register(
            "conman_probe_stuck_seconds",
            "For how long a host's synthetic repl could not be reached, from the first attempt without an answer to the next answer; of one that answers, the time of the attempt",
            metrics.probe_stuck_seconds.clone(),
        );
        registry.register(
            "conman_probe_longest_seconds",
            "The longest of these since this process began",
            metrics.probe_longest_seconds.clone(),
        );
        metrics
    }

    pub(super) fn park(&self) -> Parked {
        self.parked.inc();
        Parked(self.parked.clone())
    }

    /// An attempt of the prober: not one of the users'.
    pub(super) fn probed(&self, outcome: Outcome, reason: Reason) {
        let labels = SessionLabels {
            outcome: OutcomeValue(outcome),
            reason,
        };
        self.probes.get_or_create(&labels).inc();
    }

    /// A probe was reached, after so long.
    pub(super) fn reached(&self, stuck: Duration) {
        let stuck = stuck.as_secs_f64();
        self.probe_stuck_seconds.observe(stuck);
        if stuck > self.probe_longest_seconds.get() {
            self.probe_longest_seconds.set(stuck);
        }
    }

    pub(super) fn ended(&self, outcome: Outcome, reason: Reason, spent: Duration) {
        let labels = SessionLabels {
            outcome: OutcomeValue(outcome),
            reason,
        };
        self.sessions.get_or_create(&labels).inc();
        if outcome == Outcome::Ok {
            self.open_seconds.observe(spent.as_secs_f64());
        }
    }
}
