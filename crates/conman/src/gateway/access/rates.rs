//! How often: so many requests a second of one user, and to one repl.

use std::net::IpAddr;
use std::num::NonZeroU32;

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use model::api::{Refusal, RefusalCode};
use model::id::ReplId;

/// Who is counted: a user by name, and who has none by address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Who {
    User(String),
    Address(IpAddr),
}

/// See above. A burst may have as many as a second.
#[derive(Debug)]
pub(super) struct Rates {
    users: Option<DefaultKeyedRateLimiter<Who>>,
    repls: Option<DefaultKeyedRateLimiter<ReplId>>,
}

impl Rates {
    pub(super) fn new(user: Option<NonZeroU32>, repl: Option<NonZeroU32>) -> Self {
        Self {
            users: user.map(|rate| RateLimiter::keyed(Quota::per_second(rate))),
            repls: repl.map(|rate| RateLimiter::keyed(Quota::per_second(rate))),
        }
    }

    /// Counts one request, or refuses it.
    pub(super) fn take(
        &self,
        user: Option<&str>,
        address: IpAddr,
        repl: &ReplId,
    ) -> Result<(), Refusal> {
        let refused = |whom: String| {
            let message = format!("more requests in a second than {whom} may have");
            Err(Refusal::new(RefusalCode::RateLimited, message))
        };
        if let Some(users) = &self.users {
            let who = match user {
                Some(user) => Who::User(user.to_owned()),
                None => Who::Address(address),
            };
            if users.check_key(&who).is_err() {
                return refused(match who {
                    Who::User(user) => format!("the user {user}"),
                    Who::Address(address) => format!("who comes from {address}"),
                });
            }
        }
        if let Some(repls) = &self.repls
            && repls.check_key(repl).is_err()
        {
            return refused(format!("the repl {repl}"));
        }
        Ok(())
    }

    pub(super) fn forget_idle(&self) {
        if let Some(users) = &self.users {
            users.retain_recent();
        }
        if let Some(repls) = &self.repls {
            repls.retain_recent();
        }
    }
}
