//! A container's start: image, container, PID 1, its program.

use std::path::Path;
use std::time::Duration;

use futures_util::TryStreamExt;
use http::Method;
use http_body_util::BodyExt;
use model::api::{Refusal, RefusalCode};
use model::spec::Image;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncBufReadExt;
use tokio_util::io::StreamReader;

use super::{
    Docker, ENGINE_MAX, ENGINE_WORK_MAX, HOME, LABEL_EPOCH, LABEL_FLEET, LABEL_HOST, LABEL_REPL,
    Pull, hold_first,
};
use crate::docker::DockerId;
use crate::docker::engine::{EngineError, encode};
use crate::docker::process::Process;
use crate::runtime::StartRequest;
use crate::runtime::kept::{Outside, Record};

/// How long an image may take to come.
pub(super) const PULL_MAX: Duration = Duration::from_secs(10 * 60);

/// How often to look whether the init has become the program's parent. There is no event to wait for.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// How long that may take. It takes about a millisecond, and less than the engine's answer to the start.
const PROGRAM_MAX: Duration = Duration::from_secs(5);

/// What the engine's init says of a program that cannot be executed.
const INIT_FAILED: &str = "[FATAL tini (";

impl Docker {
    pub(super) async fn create_and_start(
        &self,
        request: &StartRequest,
        record: &Record,
    ) -> Result<Outside, Refusal> {
        let image = self.image(&request.spec.image)?;
        if self.options.pull == Pull::Always {
            self.pull(&image).await?;
        }
        let id = match self.create(request, record, &image).await {
            Err(error) if error.is_not_found() => {
                if self.options.pull != Pull::Missing {
                    let why = format!(
                        "is not on this machine, and docker_pull is {}",
                        self.options.pull.as_str()
                    );
                    return Err(no_image(&image, &why));
                }
                self.pull(&image).await?;
                self.create(request, record, &image).await
            }
            other => other,
        };
        let id = id.map_err(|error| start_failed(request, &error))?;
        let path = format!("/containers/{id}/start");
        let started = self
            .engine
            .call::<Value>(Method::POST, &path, None, ENGINE_WORK_MAX);
        started
            .await
            .map_err(|error| start_failed(request, &error))?;
        let inspected = self.engine.inspect(id.as_str(), ENGINE_MAX).await;
        let inspected = inspected.map_err(|error| start_failed(request, &error))?;
        let held = match inspected.state.pid {
            0 => None,
            pid => hold_first(pid, &id, &self.trees).map_err(|error| {
                Refusal::new(
                    RefusalCode::StartFailed,
                    format!("start {}: {error}", request.id),
                )
            })?,
        };
        if let Some((process, _)) = held
            && program_runs(&process).await
        {
            return Ok(Outside::Running {
                pid: process.pid,
                start_ticks: process.start_ticks,
            });
        }
        self.what_ended(request).await
    }

    /// The image of a spec, as the engine names it.
    fn image(&self, image: &Image) -> Result<String, Refusal> {
        match image {
            Image::Docker(reference) => Ok(reference.clone()),
            Image::Host => self.options.image.clone().ok_or_else(|| {
                Refusal::new(
                    RefusalCode::BadSpec,
                    "image: this host has no default image (--image): name one, as in docker:debian:12",
                )
            }),
            Image::Directory(path) => Err(Refusal::new(
                RefusalCode::BadSpec,
                format!("image: dir:{path} needs the native runtime, this host runs Docker's containers"),
            )),
        }
    }

    async fn pull(&self, image: &str) -> Result<(), Refusal> {
        #[derive(Deserialize)]
        struct Line {
            error: Option<String>,
        }
        tracing::info!(image, "fetching the image");
        let (name, tag) = name_and_tag(image);
        let path = format!(
            "/images/create?fromImage={}&tag={}",
            encode(name),
            encode(tag)
        );
        let pulled = async {
            let response = self.engine.send(Method::POST, &path, None).await?;
            let stream = response.into_body().into_data_stream();
            let lines = StreamReader::new(stream.map_err(std::io::Error::other));
            let mut lines = lines.lines();
            let broken = |error: std::io::Error| EngineError::Broken(error.to_string());
            while let Some(line) = lines.next_line().await.map_err(broken)? {
                // Progress is of no interest here.
                if let Ok(Line { error: Some(error) }) = serde_json::from_str(&line) {
                    return Err(EngineError::Refused {
                        status: 200,
                        message: error,
                    });
                }
            }
            Ok(())
        };
        match tokio::time::timeout(PULL_MAX, pulled).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(EngineError::Refused { message, .. })) => {
                Err(no_image(image, &format!("could not be fetched: {message}")))
            }
            Ok(Err(error)) => Err(Refusal::new(
                RefusalCode::StartFailed,
                format!("fetch image {image}: {error}"),
            )),
            Err(_) => Err(no_image(image, "could not be fetched in ten minutes")),
        }
    }

    async fn create(
        &self,
        request: &StartRequest,
        record: &Record,
        image: &str,
    ) -> Result<DockerId, EngineError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Created {
            id: String,
        }
        let path = format!("/containers/create?name={}", self.name(&request.id));
        let body = self.body(request, record, image);
        let create = || {
            self.engine
                .call::<Created>(Method::POST, &path, Some(&body), ENGINE_WORK_MAX)
        };
        let created = match create().await {
            // Left by a run before, whose store counted epochs of its own.
            Err(EngineError::Refused { status: 409, .. }) => {
                super::Walls::abandon(self, &request.id).await;
                create().await?
            }
            other => other?,
        };
        created
            .id
            .parse()
            .map_err(|error: crate::docker::BadId| EngineError::Broken(error.to_string()))
    }

    fn body(&self, request: &StartRequest, record: &Record, image: &str) -> Value {
        let StartRequest { id, spec } = request;
        let env = record.env.iter();
        let env: Vec<String> = env.map(|(name, value)| format!("{name}={value}")).collect();
        let workspace = self.layout.workspace(id);
        let mut labels = serde_json::Map::new();
        for (name, value) in [
            (LABEL_FLEET, self.fleet.clone()),
            (LABEL_HOST, self.layout.host.to_string()),
            (LABEL_REPL, id.repl.to_string()),
            (LABEL_EPOCH, id.epoch.to_string()),
        ] {
            labels.insert(name.to_owned(), json!(value));
        }
        json!({
            "Image": image,
            // The command is the whole command, whatever the image would put before it.
            "Entrypoint": [],
            "Cmd": spec.command,
            "Env": env,
            "WorkingDir": HOME,
            "Hostname": id.repl.as_str(),
            "Labels": labels,
            "HostConfig": {
                // Reaps zombies, and lets a program be ended by SIGTERM that does not care.
                "Init": true,
                "NetworkMode": self.options.network,
                "Memory": spec.limits.memory_bytes,
                "MemorySwap": spec.limits.memory_bytes,
                "NanoCpus": spec.limits.cpu_millis.map_or(0, |millis| u64::from(millis) * 1_000_000),
                "PidsLimit": spec.limits.pids,
                "Mounts": [{
                    "Type": "bind",
                    "Source": workspace,
                    "Target": HOME,
                }],
                "RestartPolicy": { "Name": "no" },
                "SecurityOpt": ["no-new-privileges"],
                // As much as our own files keep of it.
                "LogConfig": {
                    "Type": "json-file",
                    "Config": { "max-size": "4m", "max-file": "2" },
                },
            },
        })
    }

    /// Of a container that has ended already: whether its program ever ran.
    async fn what_ended(&self, request: &StartRequest) -> Result<Outside, Refusal> {
        let id = &request.id;
        let exit = self.ended(id).await;
        let files = self.layout.log_files(id);
        let name = self.name(id);
        let followed = super::logs::follow(&self.engine, &name, files.clone());
        if let Err(error) = followed.await {
            tracing::warn!(%id, %error, "read the container's output");
        }
        let said = std::fs::read(&files[0]).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        if said.contains(INIT_FAILED) {
            let name = request.spec.command.first().map_or("", String::as_str);
            return Err(super::super::command_not_found(name));
        }
        Ok(Outside::Ended(exit))
    }
}

/// Whether the container's program runs: its init has a child that is another program. `false` when it has ended.
async fn program_runs(init: &Process) -> bool {
    let deadline = tokio::time::Instant::now() + PROGRAM_MAX;
    let link = |pid: u32| std::fs::read_link(format!("/proc/{pid}/exe"));
    while !init.has_ended() && tokio::time::Instant::now() < deadline {
        let children = format!("/proc/{0}/task/{0}/children", init.pid);
        let children = std::fs::read_to_string(Path::new(&children)).unwrap_or_default();
        let first = children.split_whitespace().next();
        let child = first.and_then(|pid| pid.parse().ok());
        if let Some(child) = child
            && let (Ok(init), Ok(child)) = (link(init.pid), link(child))
            && init != child
        {
            return true;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    !init.has_ended()
}

/// `debian:12` is `debian` and `12`; a port of a registry is no tag, and a digest is one.
fn name_and_tag(image: &str) -> (&str, &str) {
    if let Some((name, digest)) = image.split_once('@') {
        return (name, digest);
    }
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (image, "latest"),
    }
}

fn no_image(image: &str, why: &str) -> Refusal {
    Refusal::new(
        RefusalCode::ImageNotFound,
        format!("image docker:{image} {why}"),
    )
}

fn start_failed(request: &StartRequest, error: &EngineError) -> Refusal {
    let full =
        matches!(error, EngineError::Refused { message, .. } if message.contains("no space left"));
    let code = if full {
        RefusalCode::DiskFull
    } else {
        RefusalCode::StartFailed
    };
    Refusal::new(code, format!("start {}: {error}", request.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_a_name_and_a_tag() {
        assert_eq!(name_and_tag("debian"), ("debian", "latest"));
        assert_eq!(name_and_tag("debian:12"), ("debian", "12"));
        assert_eq!(name_and_tag("host:5000/a/b"), ("host:5000/a/b", "latest"));
        assert_eq!(name_and_tag("host:5000/a:1"), ("host:5000/a", "1"));
        assert_eq!(name_and_tag("a@sha256:0f"), ("a", "sha256:0f"));
    }
}
