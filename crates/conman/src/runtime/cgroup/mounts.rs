//! Which cgroup trees this machine has, read from `/proc/self/mountinfo`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A controller that limits something of a spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Controller {
    /// Memory.
    Memory,
    /// CPU time.
    Cpu,
    /// Processes and threads.
    Pids,
}

impl Controller {
    /// All of them.
    pub const ALL: [Controller; 3] = [Controller::Memory, Controller::Cpu, Controller::Pids];

    /// Its name in the kernel.
    pub const fn as_str(self) -> &'static str {
        match self {
            Controller::Memory => "memory",
            Controller::Cpu => "cpu",
            Controller::Pids => "pids",
        }
    }
}

/// The cgroup trees of a machine: pure v2 has only the first, a v1 machine only the second, a hybrid
/// one both.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mounts {
    /// Where the v2 tree is mounted.
    pub v2: Option<PathBuf>,
    /// Where the v1 controllers that matter are mounted.
    pub v1: BTreeMap<Controller, PathBuf>,
}

impl Mounts {
    /// Reads the text of a mountinfo file. The first mount of each tree counts.
    pub fn parse(mountinfo: &str) -> Self {
        let mut mounts = Self::default();
        for (tree, point) in trees(mountinfo) {
            match tree {
                Tree::V2 => {
                    mounts.v2.get_or_insert(point);
                }
                Tree::V1(names) => {
                    for controller in Controller::ALL {
                        if names.contains(&controller.as_str()) {
                            mounts.v1.entry(controller).or_insert_with(|| point.clone());
                        }
                    }
                }
            }
        }
        mounts
    }

    /// The same trees from this cgroup on: one that a service manager has given away, to be found in each of
    /// them. An absolute path means the same as a relative one, as in `/proc/self/cgroup`.
    pub fn below(self, cgroup: &Path) -> Self {
        let cgroup = cgroup.strip_prefix("/").unwrap_or(cgroup);
        let moved = |root: PathBuf| root.join(cgroup);
        Self {
            v2: self.v2.map(moved),
            v1: self
                .v1
                .into_iter()
                .map(|(controller, root)| (controller, moved(root)))
                .collect(),
        }
    }
}

/// What a mount of a cgroup tree shows.
pub(crate) enum Tree<'a> {
    /// The v2 tree.
    V2,
    /// A v1 tree, with its mount's options: the names of its controllers are among them, or `name=…`.
    V1(Vec<&'a str>),
}

/// Every mount of a cgroup tree in the text of a mountinfo file, with where it is.
pub(crate) fn trees(mountinfo: &str) -> impl Iterator<Item = (Tree<'_>, PathBuf)> {
    mountinfo.lines().filter_map(|line| {
        // 41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
        let (left, right) = line.split_once(" - ")?;
        let point = PathBuf::from(unescape(left.split(' ').nth(4)?));
        let mut right = right.split(' ');
        match (right.next()?, right.nth(1)) {
            ("cgroup2", _) => Some((Tree::V2, point)),
            ("cgroup", Some(options)) => Some((Tree::V1(options.split(',').collect()), point)),
            _ => None,
        }
    })
}

/// The kernel writes blanks and backslashes in a path as `\040` and the like.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                plain.push(char::from(code));
                plain.push_str(&part[3..]);
            }
            None => {
                plain.push('\\');
                plain.push_str(part);
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pure_v2() {
        let mounts = Mounts::parse(
            "24 1 0:22 / /sys rw - sysfs sysfs rw\n\
             35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
        );
        assert_eq!(mounts.v2.unwrap(), PathBuf::from("/sys/fs/cgroup"));
        assert!(mounts.v1.is_empty());
    }

    #[test]
    fn hybrid_with_joined_controllers() {
        let mounts = Mounts::parse(
            "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
             32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
             34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
             35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
        );
        assert_eq!(mounts.v2.unwrap(), PathBuf::from("/sys/fs/cgroup/unified"));
        assert_eq!(
            mounts.v1,
            BTreeMap::from([
                (Controller::Memory, PathBuf::from("/sys/fs/cgroup/memory")),
                (Controller::Cpu, PathBuf::from("/sys/fs/cgroup/cpu,cpuacct")),
            ])
        );
    }

    #[test]
    fn a_cgroup_that_was_given_away() {
        let mounts = Mounts::parse(
            "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
             35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
        );
        let below = mounts.clone().below(Path::new("/system.slice/x.service"));
        assert_eq!(
            below.v2.as_deref(),
            Some(Path::new("/sys/fs/cgroup/unified/system.slice/x.service"))
        );
        assert_eq!(
            below.v1[&Controller::Memory],
            Path::new("/sys/fs/cgroup/memory/system.slice/x.service")
        );
        assert_eq!(below, mounts.below(Path::new("system.slice/x.service")));
    }

    #[test]
    fn none_at_all_and_blanks_in_a_path() {
        assert_eq!(
            Mounts::parse("24 1 0:22 / / rw - ext4 /dev/sda rw"),
            Mounts::default()
        );
        let mounts = Mounts::parse("41 31 0:38 / /a\\040b rw - cgroup2 cgroup2 rw");
        assert_eq!(mounts.v2.unwrap(), PathBuf::from("/a b"));
    }
}
