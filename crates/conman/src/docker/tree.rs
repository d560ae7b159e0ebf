//! Containers in the machine's cgroup trees: found by their ids, whatever is above them.
//!
//! Docker names a container's cgroup by its id, in one of these ways, below any parent that it is told:
//!
//! ```text
//! v1, and v2 with the cgroupfs driver   <root>/docker/<id>
//! v2 with the systemd driver            <root>/system.slice/docker-<id>.scope
//! ```
//!
//! On a hybrid machine a container is in both kinds of tree: the v1 trees limit and freeze it, the v2 tree kills it
//! and tells when it is empty.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use super::DockerId;
use super::process::{HoldError, hold};
use crate::runtime::cgroup::{self, Tree, directory};

/// How long to wait before the files of a v1 cgroup, which tell nobody, are read again.
const V1_LOOK_AGAIN: Duration = Duration::from_millis(2);

/// How long the killed may take to end before what is left is killed again.
const KILL_AGAIN: Duration = Duration::from_millis(100);

/// How deep a container's cgroup may be.
const DEPTH_MAX: usize = 16;

/// The cgroup trees of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trees {
    v2: Option<PathBuf>,
    /// Each with the names of its controllers, or `name=…`.
    v1: Vec<(Vec<String>, PathBuf)>,
}

/// Where a container is in them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CgroupOf {
    v2: Option<PathBuf>,
    v1: BTreeSet<PathBuf>,
    freezer: Option<PathBuf>,
}

impl Trees {
    /// Those of this machine.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn of_this_machine() -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read_to_string(
            "/proc/self/mountinfo",
        )?))
    }

    /// Reads the text of a mountinfo file. The first mount of each tree counts.
    pub fn parse(mountinfo: &str) -> Self {
        let mut trees = Self::default();
        for (tree, point) in cgroup::trees(mountinfo) {
            match tree {
                Tree::V2 => {
                    trees.v2.get_or_insert(point);
                }
                Tree::V1(names) => {
                    let is_known = trees.v1.iter().any(|(known, _)| *known == names);
                    if !is_known {
                        let names = names.into_iter().map(str::to_owned).collect();
                        trees.v1.push((names, point));
                    }
                }
            }
        }
        trees
    }

    /// Where a container is, by the cgroup file of one of its processes; `None` if that is not one of its processes.
    pub fn cgroup_of(&self, cgroup_file: &str, id: &DockerId) -> Option<CgroupOf> {
        let mut found = CgroupOf::default();
        for line in cgroup_file.lines() {
            // 8:cpu,cpuacct:/docker/<id>        0::/system.slice/docker-<id>.scope
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
                continue;
            };
            let Some(path) = up_to(path, id) else {
                continue;
            };
            if controllers.is_empty() {
                found.v2 = self.v2.as_ref().map(|root| root.join(path));
                continue;
            }
            let wanted: Vec<&str> = controllers.split(',').collect();
            let is_it =
                |names: &[String]| wanted.iter().all(|name| names.iter().any(|n| n == name));
            if let Some((_, root)) = self.v1.iter().find(|(names, _)| is_it(names)) {
                found.add_v1(root.join(path), wanted.contains(&"freezer"));
            }
        }
        found.is_somewhere().then_some(found)
    }

    /// The container of which a process is, by its cgroup file; `None` if it is of none.
    pub fn id_in(&self, cgroup_file: &str) -> Option<DockerId> {
        let mut parts = cgroup_file.lines().flat_map(|line| line.split('/'));
        parts.find_map(id_in)
    }

    /// Every container that has a cgroup, whether anything is alive in it or not.
    ///
    /// # Errors
    /// When a tree cannot be read.
    pub fn all(&self) -> io::Result<BTreeMap<DockerId, CgroupOf>> {
        let mut found: BTreeMap<DockerId, CgroupOf> = BTreeMap::new();
        if let Some(root) = &self.v2 {
            let mut add = |id, path| found.entry(id).or_default().v2 = Some(path);
            search(root, DEPTH_MAX, &mut add)?;
        }
        for (names, root) in &self.v1 {
            let freezes = names.iter().any(|name| name == "freezer");
            let mut add = |id, path| found.entry(id).or_default().add_v1(path, freezes);
            search(root, DEPTH_MAX, &mut add)?;
        }
        Ok(found)
    }
}

impl CgroupOf {
    fn add_v1(&mut self, path: PathBuf, freezes: bool) {
        if freezes {
            self.freezer = Some(path.clone());
        }
        self.v1.insert(path);
    }

    fn is_somewhere(&self) -> bool {
        self.v2.is_some() || !self.v1.is_empty()
    }

    /// Whether no process is left in it; true when it does not exist.
    ///
    /// # Errors
    /// The kernel's, with the path in the text.
    pub fn is_empty(&self) -> io::Result<bool> {
        if let Some(path) = &self.v2 {
            return directory::is_empty_v2(path);
        }
        for path in &self.v1 {
            if !directory::is_empty_v1(path)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits until [`CgroupOf::is_empty`].
    ///
    /// # Errors
    /// As that.
    pub async fn emptied(&self) -> io::Result<()> {
        if let Some(path) = &self.v2 {
            return directory::emptied_v2(path).await;
        }
        while !self.is_empty()? {
            tokio::time::sleep(V1_LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// The processes in it, as this machine sees them.
    ///
    /// # Errors
    /// As [`CgroupOf::is_empty`].
    pub fn processes(&self) -> io::Result<BTreeSet<u32>> {
        let mut processes = BTreeSet::new();
        for path in self.v2.iter().chain(&self.v1) {
            directory::collect_processes(path, &mut processes)?;
        }
        Ok(processes)
    }

    /// Kills what is left in it until nothing is.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn end(&self, id: &DockerId, trees: &Trees) -> io::Result<()> {
        while !self.is_empty()? {
            self.kill(id, trees)?;
            // One that forks while the others are killed one by one leaves another behind.
            let _ = tokio::time::timeout(KILL_AGAIN, self.emptied()).await;
        }
        Ok(())
    }

    /// SIGKILL to everything in it: one write where a v2 tree holds it and the kernel can (5.14), else one by
    /// one. What is frozen by a v1 tree is thawed, for it could not die; a v2 tree lets the frozen die.
    ///
    /// # Errors
    /// The kernel's.
    pub fn kill(&self, id: &DockerId, trees: &Trees) -> io::Result<()> {
        let whole = self.v2.as_ref().map(|path| path.join("cgroup.kill"));
        match whole {
            Some(file) if file.exists() => directory::gone_is_fine(directory::write(&file, "1"))?,
            _ => self.kill_each(id, trees)?,
        }
        self.thaw()
    }

    fn kill_each(&self, id: &DockerId, trees: &Trees) -> io::Result<()> {
        for pid in self.processes()? {
            match hold(pid, id, trees) {
                Ok((process, _)) => process.signal(Signal::KILL)?,
                Err(HoldError::Ended(_) | HoldError::Stranger { .. }) => {}
                Err(HoldError::Kernel { source, .. }) => return Err(source),
            }
        }
        Ok(())
    }

    /// Lets a paused container go on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn thaw(&self) -> io::Result<()> {
        if let Some(freezer) = &self.freezer {
            let state = freezer.join("freezer.state");
            if says(&state, |text| text != "THAWED") {
                directory::gone_is_fine(directory::write(&state, "THAWED"))?;
            }
        }
        if let Some(path) = &self.v2 {
            let state = path.join("cgroup.freeze");
            if says(&state, |text| text != "0") {
                directory::gone_is_fine(directory::write(&state, "0"))?;
            }
        }
        Ok(())
    }
}

/// Whether a file exists and its text is so.
fn says(path: &Path, is_so: impl Fn(&str) -> bool) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| is_so(text.trim()))
}

/// The id in the name of a cgroup.
fn id_in(name: &str) -> Option<DockerId> {
    let scope = name
        .strip_prefix("docker-")
        .and_then(|name| name.strip_suffix(".scope"));
    scope.unwrap_or(name).parse().ok()
}

/// The path down to the container's own cgroup, relative to the root: a process may be further down.
fn up_to(path: &str, id: &DockerId) -> Option<PathBuf> {
    let mut own = PathBuf::new();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        own.push(part);
        if id_in(part).as_ref() == Some(id) {
            return Some(own);
        }
    }
    None
}

/// Tells of each container's cgroup below a directory. Not of one in another: an engine in a container is that
/// container's business.
fn search(
    below: &Path,
    depth_left: usize,
    found: &mut impl FnMut(DockerId, PathBuf),
) -> io::Result<()> {
    for child in directory::children(below)? {
        let name = child.file_name().and_then(|name| name.to_str());
        match name.and_then(id_in) {
            Some(id) => found(id, child),
            None if depth_left > 0 => search(&child, depth_left - 1, found)?,
            None => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digit: char) -> DockerId {
        digit.to_string().repeat(64).parse().unwrap()
    }

    fn trees(root: &Path) -> Trees {
        Trees {
            v2: Some(root.join("unified")),
            v1: vec![
                (vec!["rw".into(), "freezer".into()], root.join("freezer")),
                (
                    vec!["rw".into(), "cpu".into(), "cpuacct".into()],
                    root.join("cpu"),
                ),
            ],
        }
    }

    #[test]
    fn trees_are_read_with_the_names_of_their_controllers() {
        let trees = Trees::parse(
            "41 31 0:38 / /c/unified rw - cgroup2 cgroup2 rw\n\
             32 31 0:29 / /c/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
             33 31 0:29 / /again/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
             34 31 0:30 / /c/a\\040b rw - cgroup cgroup rw,name=systemd\n",
        );
        assert_eq!(trees.v2, Some("/c/unified".into()));
        let points: Vec<_> = trees.v1.iter().map(|(_, point)| point.clone()).collect();
        assert_eq!(points, [PathBuf::from("/c/cpu"), "/c/a b".into()]);
    }

    #[test]
    fn a_process_tells_where_its_container_is() {
        let trees = trees(Path::new("/c"));
        let a = id('a');
        let file = format!(
            "3:freezer:/docker/{a}\n2:cpu,cpuacct:/docker/{a}/nested\n1:memory:/docker/{a}\n0::/x.slice/docker-{a}.scope/init\n"
        );
        let found = trees.cgroup_of(&file, &a).unwrap();
        assert_eq!(
            found.v2,
            Some(format!("/c/unified/x.slice/docker-{a}.scope").into())
        );
        assert_eq!(found.freezer, Some(format!("/c/freezer/docker/{a}").into()));
        assert!(found.v1.contains(Path::new(&format!("/c/cpu/docker/{a}"))));
        assert_eq!(found.v1.len(), 2, "no tree of memory is mounted");
        // Of another container, of none, and one that only looks like it.
        assert_eq!(trees.cgroup_of(&file, &id('b')), None);
        assert_eq!(trees.cgroup_of("0::/user.slice\n", &a), None);
        let alike = format!("0::/docker/{a}0\n3:freezer:/libpod-{a}.scope\n");
        assert_eq!(trees.cgroup_of(&alike, &a), None);
    }

    #[test]
    fn containers_are_found_wherever_they_are_and_none_within_another() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let (a, b, c) = (id('a'), id('b'), id('c'));
        for path in [
            format!("unified/docker/{a}/docker/{c}"),
            format!("unified/my.slice/deep/docker-{b}.scope"),
            format!("freezer/docker/{a}"),
            "cpu/user".to_owned(),
            format!("cpu/libpod-{c}.scope"),
        ] {
            std::fs::create_dir_all(root.join(path)).unwrap();
        }
        let found = trees(root).all().unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), [&a, &b]);
        assert_eq!(
            found[&a].freezer,
            Some(root.join(format!("freezer/docker/{a}")))
        );
        assert_eq!(found[&b].freezer, None);
    }

    #[test]
    fn a_machine_without_such_trees_has_no_containers() {
        assert!(Trees::default().all().unwrap().is_empty());
        assert!(CgroupOf::default().is_empty().unwrap());
    }
}
