//! How many operations hang: gauges that the watchdog sets.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Kind;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    operation: Kind,
}

/// One gauge for each kind, there from the beginning. To set one takes no lock.
pub(in crate::telemetry) struct Stuck {
    family: Family<Labels, Gauge<i64>>,
    gauges: [(Kind, Gauge<i64>); Kind::ALL.len()],
}

impl Default for Stuck {
    fn default() -> Self {
        let family = Family::<Labels, Gauge<i64>>::default();
        let gauges = Kind::ALL.map(|operation| {
            let gauge = family.get_or_create(&Labels { operation }).clone();
            (operation, gauge)
        });
        Self { family, gauges }
    }
}

impl Stuck {
    /// These hang now, and no others.
    pub(in crate::telemetry) fn set(&self, kinds: &[Kind]) {
        for (kind, gauge) in &self.gauges {
            let count = kinds.iter().filter(|stuck| *stuck == kind).count();
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "conman_stuck_operations",
            "Operations on repls that are past their deadline, or wait in a circle",
            self.family.clone(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_hang_are_counted_by_kind_and_the_others_are_zero() {
        let stuck = Stuck::default();
        let mut registry = Registry::default();
        stuck.register(&mut registry);
        stuck.set(&[Kind::Start, Kind::Kill, Kind::Start]);
        stuck.set(&[Kind::Start, Kind::Start]);
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        for line in [
            "conman_stuck_operations{operation=\"start\"} 2\n",
            "conman_stuck_operations{operation=\"kill\"} 0\n",
            "conman_stuck_operations{operation=\"route\"} 0\n",
        ] {
            assert!(page.contains(line), "{page}");
        }
    }
}
