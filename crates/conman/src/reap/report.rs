//! What a reaping came to, in numbers.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Container, Reap, Stand};

/// When what happened, from the beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How many containers were found alive.
    pub count: usize,
    /// How many of them are proven dead.
    pub proven: usize,
    /// When the last SIGKILL was sent.
    pub sent: Option<Duration>,
    /// The first death.
    pub first: Option<Duration>,
    /// Half of them were dead by then.
    pub median: Option<Duration>,
    /// The last death.
    pub last: Option<Duration>,
    /// When the engine had recorded the last end and cleaned up.
    pub settled: Option<Duration>,
}

impl Report {
    /// Of a reaping that is over, or not yet.
    pub fn of(reap: &Reap) -> Self {
        let containers = reap.containers().values();
        let mut deaths: Vec<Duration> = containers
            .clone()
            .filter_map(|one| match one.stand {
                Stand::Dead(at) => Some(at),
                _ => None,
            })
            .collect();
        deaths.sort_unstable();
        Self {
            count: reap.containers().len(),
            proven: containers.filter(|one| one.is_proven()).count(),
            sent: reap.sent(),
            first: deaths.first().copied(),
            median: deaths.get(deaths.len().saturating_sub(1) / 2).copied(),
            last: deaths.last().copied(),
            settled: reap.settled(),
        }
    }

    /// As one JSON document, with each container.
    pub fn document(&self, reap: &Reap) -> Value {
        let containers: Vec<_> = reap.containers().values().map(container).collect();
        json!({
            "count": self.count,
            "proven": self.proven,
            "ok": reap.is_proven(),
            "sent_ms": ms(self.sent),
            "first_ms": ms(self.first),
            "median_ms": ms(self.median),
            "last_ms": ms(self.last),
            "settled_ms": ms(self.settled),
            "engine": if reap.silent().is_some() { "silent" } else { "answers" },
            "notes": reap.notes(),
            "look_failed": reap.look_failed(),
            "containers": containers,
        })
    }
}

fn ms(time: Option<Duration>) -> Option<f64> {
    // Microseconds are all that the clock is good for here.
    time.map(|time| (time.as_secs_f64() * 1e6).round() / 1e3)
}

fn container(one: &Container) -> Value {
    let dead = match one.stand {
        Stand::Dead(at) => Some(at),
        _ => None,
    };
    json!({
        "id": one.found.id.as_str(),
        "name": one.found.name,
        "pid": one.pid,
        "proven": one.is_proven(),
        "dead_ms": ms(dead),
        "problem": problem(one),
    })
}

/// Why a container is not proven dead, if it is not.
pub fn problem(one: &Container) -> Option<String> {
    match &one.stand {
        Stand::Dead(_) | Stand::Ended => None,
        Stand::Unheld(why) => Some(format!("was not killed: {why}")),
        Stand::Killed => Some("SIGKILL was sent, and it is not dead".to_owned()),
        Stand::Preparing => Some("was not killed: the engine took too long".to_owned()),
        Stand::Held | Stand::Terminated => {
            Some("was not killed: the time was over before".to_owned())
        }
    }
}
