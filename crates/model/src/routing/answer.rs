//! What a host's answer means for its session, and for all others of the repl.

use super::event::{Effect, Joined, NoWay};
use super::route::{Lead, Outage, Stage};
use super::{Asking, Due, Router};
use crate::api::{RefusalCode, Side};
use crate::id::{ReplId, Ticket};
use crate::time::BootTime;
use crate::wire::node::{NodeRefusal, OwnerHint};

impl Router {
    pub(super) fn answered(
        &mut self,
        ticket: Ticket,
        attempt: u32,
        answer: Result<Joined, NodeRefusal>,
        now: BootTime,
        out: &mut Vec<Effect>,
    ) {
        let Some(session) = self.sessions.get_mut(&ticket) else {
            return;
        };
        if session.attempt != attempt {
            return;
        }
        let (Some(asking), repl) = (session.asking.take(), session.repl.clone()) else {
            return;
        };
        let is_unreachable = matches!(
            &answer,
            Err(refused) if refused.refusal.code == RefusalCode::HostUnreachable
        );
        let woken = if is_unreachable {
            let outage = self.outages.entry(asking.host.clone());
            let outage = outage.or_insert_with(|| Outage::begin(now));
            outage.met(&ticket, now);
            let due = Due::Host(asking.host.clone());
            self.timers.insert((outage.retry_at, due));
            None
        } else {
            self.outages.remove(&asking.host)
        };
        match answer {
            Ok(joined) => self.joined(ticket, &repl, asking, joined, now, out),
            Err(refused) => self.refused(ticket, &repl, asking, refused, now, out),
        }
        self.advance(&repl, now, out);
        if let Some(outage) = woken {
            self.advance_all(outage.parked, now, out);
        }
    }

    fn joined(
        &mut self,
        ticket: Ticket,
        repl: &ReplId,
        asking: Asking,
        joined: Joined,
        now: BootTime,
        out: &mut Vec<Effect>,
    ) {
        let Some(route) = self.routes.get_mut(repl) else {
            return;
        };
        if joined.epoch < route.highest {
            // A container that has an heir already: the stream that came with the answer is dropped.
            route.waiting.insert(ticket);
            if asking.generation == route.generation {
                route.pause(now);
            }
            return;
        }
        if let Some(load) = joined.load {
            self.loads.set(&asking.host, load);
        }
        route.calm();
        route.highest = joined.epoch;
        route.stage = Stage::Led(Lead {
            host: asking.host.clone(),
            incarnation: asking.incarnation,
            epoch: Some(joined.epoch),
        });
        self.end(ticket, now, out);
        out.push(Effect::Grant {
            ticket,
            host: asking.host,
            incarnation: asking.incarnation,
            epoch: joined.epoch,
        });
    }

    fn refused(
        &mut self,
        ticket: Ticket,
        repl: &ReplId,
        asking: Asking,
        refused: NodeRefusal,
        now: BootTime,
        out: &mut Vec<Effect>,
    ) {
        let NodeRefusal { refusal, hint } = refused;
        let code = refusal.code;
        let no_way = NoWay {
            refusal,
            host: Some(asking.host.clone()),
            epoch: asking.epoch,
        };
        if code.side() != Side::Platform {
            return self.refuse(ticket, no_way, now, out);
        }
        let Some(route) = self.routes.get_mut(repl) else {
            return;
        };
        route.waiting.insert(ticket);
        if code == RefusalCode::NotOwner {
            // It says where not to look, not what is wrong: an earlier answer may say that.
            route.last.get_or_insert(no_way);
        } else {
            route.last = Some(no_way);
        }
        if asking.generation != route.generation {
            // Another session has heard it before, and the search has moved on.
            return;
        }
        match code {
            RefusalCode::NotOwner => self.denied(repl, asking, hint, now, out),
            RefusalCode::Draining
            | RefusalCode::NoCapacity
            | RefusalCode::DiskFull
            | RefusalCode::StartFailed => {
                route.stage = Stage::Unknown;
                route.unwilling.insert(asking.host);
                // Nobody was to own it yet: the next host can be asked at once.
                if asking.epoch.is_none() {
                    self.place(repl, now, out);
                }
            }
            // The lead stands; the host must be reached again, or be gone.
            RefusalCode::HostUnreachable => {}
            _ => route.pause(now),
        }
    }

    /// The host does not own the repl, or does so no longer.
    fn denied(
        &mut self,
        repl: &ReplId,
        asking: Asking,
        hint: Option<OwnerHint>,
        now: BootTime,
        out: &mut Vec<Effect>,
    ) {
        let Some(route) = self.routes.get_mut(repl) else {
            return;
        };
        route.stage = Stage::Unknown;
        let denial = Some((asking.host, asking.epoch));
        if route.denied == denial {
            // The same host denies the same again: its store and ours are not of one mind yet.
            return route.pause(now);
        }
        route.denied = denial;
        match hint {
            Some(OwnerHint {
                host: Some(host),
                epoch,
            }) => {
                if let Some(host) = self.hosts.get(&host) {
                    route.lead_to(host.id.clone(), host.incarnation, Some(epoch));
                }
            }
            Some(OwnerHint { host: None, epoch }) => {
                route.highest = route.highest.max(epoch);
                self.place(repl, now, out);
            }
            None => {}
        }
    }
}
