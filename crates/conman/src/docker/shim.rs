//! Whose containers are in the cgroup trees, when the engine does not say: their shims do.
//!
//! The parent of a container's PID 1 is its shim, whose command line names the container, the namespace (`moby` for
//! Docker, others for others that use containerd) and the containerd that it belongs to. Several engines may run on
//! a machine; each has a containerd of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use super::DockerId;
use super::process::{HoldError, Process, Stat, hold};
use super::tree::{CgroupOf, Trees};

/// Docker's namespace in containerd.
const NAMESPACE: &str = "moby";

/// A container that is alive, with everything in it.
#[derive(Debug, Clone)]
pub struct Alive {
    /// Where it is.
    pub cgroup: CgroupOf,
    /// Its processes, PID 1 first.
    pub processes: Vec<Process>,
}

/// Why it cannot be told which containers are the engine's.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// Containers are here, and it is not known to whose containerd the engine talks.
    #[error(
        "the containers that run here are those of {}, and the engine that was asked does not answer: nobody can say \
         which are its own",
        addresses.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" and ")
    )]
    NobodyKnows {
        /// The containerds that they belong to.
        addresses: BTreeSet<PathBuf>,
    },
    /// The trees cannot be read.
    #[error("read the cgroup trees: {0}")]
    Trees(#[from] io::Error),
}

/// The containers of an engine that are alive, by what the kernel and the shims say. `listener` is the process that
/// listens at the engine's socket, where that is known.
///
/// # Errors
/// See [`FindError`].
pub fn find(trees: &Trees, listener: Option<u32>) -> Result<BTreeMap<DockerId, Alive>, FindError> {
    let mut owners = BTreeMap::new();
    let mut alive = BTreeMap::new();
    for (id, cgroup) in trees.all()? {
        let Some((one, shim)) = look(&id, cgroup, trees)? else {
            continue;
        };
        owners.insert(id.clone(), shim.containerd);
        alive.insert(id, one);
    }
    let own = choose(
        &owners,
        &listener.map_or_else(Containerd::default, Containerd::of),
    )?;
    alive.retain(|id, _| own.contains(id));
    Ok(alive)
}

/// One container of Docker's, if anything of it is alive.
fn look(id: &DockerId, cgroup: CgroupOf, trees: &Trees) -> io::Result<Option<(Alive, Shim)>> {
    let mut processes = Vec::new();
    for pid in cgroup.processes()? {
        match hold(pid, id, trees) {
            Ok((process, _)) => processes.push(process),
            Err(HoldError::Ended(_) | HoldError::Stranger { .. }) => {}
            Err(HoldError::Kernel { source, .. }) => return Err(source),
        }
    }
    // PID 1 is the one whose parent is outside, and is that parent's by its command line.
    let outside = |process: &Process| {
        let parent = Stat::of(process.pid)?.parent;
        let is_inside = processes.iter().any(|other| other.pid == parent);
        (!is_inside).then(|| Shim::of(parent)).flatten()
    };
    let first = processes
        .iter()
        .enumerate()
        .find_map(|(place, process)| Some((place, outside(process)?)));
    let Some((place, shim)) = first.filter(|(_, shim)| shim.is_of(id)) else {
        return Ok(None);
    };
    processes.swap(0, place);
    Ok(Some((Alive { cgroup, processes }, shim)))
}

/// The containerd that an engine talks to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Containerd {
    /// Its command line says so, or it has started this one for itself.
    Known(PathBuf),
    /// It is what the packages of Debian and of Docker have; a configuration file may say otherwise.
    Guessed(PathBuf),
}

impl Default for Containerd {
    fn default() -> Self {
        Containerd::Guessed("/run/containerd/containerd.sock".into())
    }
}

impl Containerd {
    /// That of the engine that is this process; of systemd's, which listens for an engine to come, the default.
    fn of(engine: u32) -> Self {
        let words = command_line(engine).unwrap_or_default();
        if let Some(address) = value_of(&words, "--containerd") {
            return Containerd::Known(address.into());
        }
        child_containerd(engine).map_or_else(Containerd::default, Containerd::Known)
    }
}

/// Which of these containers are an engine's, by the containerd of each and of the engine.
fn choose(
    owners: &BTreeMap<DockerId, PathBuf>,
    engine: &Containerd,
) -> Result<BTreeSet<DockerId>, FindError> {
    let (Containerd::Known(address) | Containerd::Guessed(address)) = engine;
    let own = owners.iter().filter(|(_, owner)| *owner == address);
    let own: BTreeSet<_> = own.map(|(id, _)| id.clone()).collect();
    match engine {
        // That none is its own would be no more than a guess.
        Containerd::Guessed(_) if own.is_empty() && !owners.is_empty() => {
            let addresses = owners.values().cloned().collect();
            Err(FindError::NobodyKnows { addresses })
        }
        _ => Ok(own),
    }
}

/// The containerd that an engine has started for itself.
fn child_containerd(engine: u32) -> Option<PathBuf> {
    let entries = std::fs::read_dir("/proc").ok()?;
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| Stat::of(*pid).is_some_and(|stat| stat.parent == engine))
        .find_map(|pid| {
            let words = command_line(pid)?;
            let config = value_of(&words, "--config")?;
            let directory = Path::new(config).parent()?;
            words[0]
                .ends_with("containerd")
                .then(|| directory.join("containerd.sock"))
        })
}

/// What a shim's command line says.
#[derive(Debug, PartialEq, Eq)]
struct Shim {
    namespace: String,
    id: String,
    containerd: PathBuf,
}

impl Shim {
    fn of(pid: u32) -> Option<Self> {
        Self::parse(&command_line(pid)?)
    }

    /// `containerd-shim-runc-v2 -namespace moby -id <id> -address /run/containerd/containerd.sock`
    fn parse(words: &[String]) -> Option<Self> {
        let program = Path::new(words.first()?).file_name()?.to_str()?;
        if !program.starts_with("containerd-shim") {
            return None;
        }
        Some(Self {
            namespace: value_of(words, "-namespace")?.to_owned(),
            id: value_of(words, "-id")?.to_owned(),
            containerd: value_of(words, "-address")?.into(),
        })
    }

    fn is_of(&self, id: &DockerId) -> bool {
        self.namespace == NAMESPACE && self.id == id.as_str()
    }
}

fn command_line(pid: u32) -> Option<Vec<String>> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = bytes.split(|byte| *byte == 0);
    let words: Vec<_> = words
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    // A process that has ended has none.
    words
        .first()
        .is_some_and(|word| !word.is_empty())
        .then_some(words)
}

/// Of `--name value` or `--name=value`.
fn value_of<'a>(words: &'a [String], name: &str) -> Option<&'a str> {
    words
        .iter()
        .enumerate()
        .find_map(|(at, word)| match word.strip_prefix(name)? {
            "" => words.get(at + 1).map(String::as_str),
            rest => rest.strip_prefix('='),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digit: char) -> DockerId {
        digit.to_string().repeat(64).parse().unwrap()
    }

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_shim_names_its_container_and_whose_it_is() {
        let line = format!(
            "/usr/bin/containerd-shim-runc-v2 -namespace moby -id {} -address /run/c.sock",
            id('a')
        );
        let shim = Shim::parse(&words(&line)).unwrap();
        assert_eq!(shim.containerd, Path::new("/run/c.sock"));
        assert!(shim.is_of(&id('a')));
        assert!(!shim.is_of(&id('b')));
        let other = Shim::parse(&words(&line.replace("moby", "k8s.io"))).unwrap();
        assert!(!other.is_of(&id('a')), "not Docker's");
        assert_eq!(
            Shim::parse(&words("sh -namespace moby -id x -address y")),
            None
        );
        assert_eq!(
            Shim::parse(&words("containerd-shim -namespace moby -id")),
            None
        );
    }

    #[test]
    fn containers_of_several_engines_are_not_mixed_up() {
        let owners = BTreeMap::from([
            (id('a'), PathBuf::from("/one.sock")),
            (id('b'), PathBuf::from("/two.sock")),
        ]);
        let own = |engine: Containerd| choose(&owners, &engine);
        let two = BTreeSet::from([id('b')]);
        assert_eq!(own(Containerd::Known("/two.sock".into())).unwrap(), two);
        assert_eq!(own(Containerd::Guessed("/two.sock".into())).unwrap(), two);
        assert!(
            own(Containerd::Known("/three.sock".into()))
                .unwrap()
                .is_empty()
        );
        let refused = own(Containerd::Guessed("/three.sock".into())).unwrap_err();
        assert!(
            refused
                .to_string()
                .contains("those of /one.sock and /two.sock"),
            "{refused}"
        );
        let none = choose(&BTreeMap::new(), &Containerd::default()).unwrap();
        assert!(none.is_empty());
    }

    #[test]
    fn options_are_read_in_both_forms() {
        let words = words("dockerd --containerd=/a --containerd-namespace x --exec-root /b");
        assert_eq!(value_of(&words, "--containerd"), Some("/a"));
        assert_eq!(value_of(&words, "--exec-root"), Some("/b"));
        assert_eq!(value_of(&words, "--data-root"), None);
    }

    #[test]
    fn a_process_has_a_command_line_until_it_ends() {
        assert!(!command_line(std::process::id()).unwrap().is_empty());
        assert_eq!(command_line(u32::MAX), None);
        assert_eq!(Containerd::of(std::process::id()), Containerd::default());
    }
}
