//! The peer: `docker run` of the same server until it answers. The engine is started by the script.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::{fleet, http};

const IMAGE: &str = "conman-bench";
/// A port for each run, so that none waits for the one before to be let go of.
const FIRST_PORT: u16 = 21_000;

fn docker(arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("docker")
        .args(arguments)
        .output()
        .context("run docker")?;
    ensure!(
        output.status.success(),
        "docker {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs and removes containers one after another; how long each took until its server answered, in ms.
pub(crate) async fn runs(count: usize) -> anyhow::Result<Vec<f64>> {
    let directory = tempfile::tempdir()?;
    import(&fleet::make_image(directory.path())?)?;
    let mut spent = vec![];
    for number in 0..count {
        let port = FIRST_PORT + u16::try_from(number)?;
        spent.push(run_until_answer(port).await?.as_secs_f64() * 1e3);
    }
    docker(&["rmi", "-f", IMAGE])?;
    Ok(spent)
}

/// Makes an image of a root file system.
fn import(image: &Path) -> anyhow::Result<()> {
    let mut tar = Command::new("tar")
        .arg("-C")
        .arg(image)
        .args(["-c", "."])
        .stdout(Stdio::piped())
        .spawn()
        .context("run tar")?;
    let status = Command::new("docker")
        .args(["import", "-", IMAGE])
        .stdin(tar.stdout.take().context("tar's output")?)
        .stdout(Stdio::null())
        .status()
        .context("run docker import")?;
    ensure!(tar.wait()?.success() && status.success(), "docker import");
    Ok(())
}

/// Runs a container until its server answers, and removes it.
async fn run_until_answer(port: u16) -> anyhow::Result<Duration> {
    let publish = format!("127.0.0.1:{port}:8000");
    let began = Instant::now();
    let id = docker(&[
        "run",
        "-d",
        "-p",
        &publish,
        "-e",
        "ADDRESS=0.0.0.0",
        IMAGE,
        "/testserver",
        "8000",
    ])?;
    let address = format!("127.0.0.1:{port}");
    let spent = loop {
        // Docker's proxy accepts before the server listens, and breaks off: then it is asked again.
        match http::send(&address, "localhost", "GET", "/", "").await {
            Ok(answer) if answer.status == 200 => break began.elapsed(),
            _ => ensure!(
                began.elapsed() < Duration::from_secs(30),
                "docker's container is silent"
            ),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    docker(&["rm", "-f", &id])?;
    Ok(spent)
}
