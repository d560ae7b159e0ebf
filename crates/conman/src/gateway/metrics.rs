//! What a gateway measures.

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
        metrics
    }

    pub(super) fn park(&self) -> Parked {
        self.parked.inc();
        Parked(self.parked.clone())
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
