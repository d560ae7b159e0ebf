//! The keys of the docker runtime.

use model::spec::is_reference;

use super::{ConfigError, Surroundings, bad};
use crate::docker::engine::SOCKET;
use crate::runtime::docker::{DockerOptions, Pull};

/// As they were given.
pub(super) struct Keys {
    pub(super) engine: Option<String>,
    pub(super) image: Option<String>,
    pub(super) network: Option<String>,
    pub(super) pull: Option<Pull>,
}

impl Keys {
    /// Checks them and fills in the defaults.
    pub(super) fn resolve(self, surroundings: &Surroundings) -> Result<DockerOptions, ConfigError> {
        let engine = match (self.engine, &surroundings.docker_host) {
            (Some(address), _) => address
                .parse()
                .map_err(|error| bad("docker_engine", format!("{error}")))?,
            // One of another machine is somebody else's business, unless this runtime is asked for: then it does
            // not answer there.
            (None, Some(address)) => address.parse().or_else(|_| default_engine())?,
            (None, None) => default_engine()?,
        };
        if let Some(image) = &self.image
            && !is_reference(image)
        {
            return Err(bad(
                "image",
                format!("{image:?} is no image, as in debian:12"),
            ));
        }
        Ok(DockerOptions {
            engine,
            image: self.image,
            pull: self.pull.unwrap_or_default(),
            network: self.network.unwrap_or_else(|| "none".to_owned()),
        })
    }
}

fn default_engine() -> Result<crate::docker::engine::EngineAddress, ConfigError> {
    SOCKET
        .parse()
        .map_err(|error| bad("docker_engine", format!("{error}")))
}
