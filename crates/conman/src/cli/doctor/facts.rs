//! What doctor reads and tries. Nothing that it tries is left behind, and none of it fails: what cannot be
//! found out is a fact as well.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

/// A cgroup controller that limits of a spec need.
pub(super) const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// What a machine offers.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) is_root: bool,
    pub(super) can_administer: bool,
    /// `major.minor` of the kernel.
    pub(super) kernel: (u32, u32),
    pub(super) kernel_text: String,
    /// Those that `/proc/self/ns` lists.
    pub(super) namespaces: BTreeSet<String>,
    pub(super) user_namespaces_max: Option<u64>,
    /// `Ok` if an overlay could be mounted, in a mount namespace that is gone again.
    pub(super) overlay: Result<(), String>,
    /// Where the v2 tree is.
    pub(super) cgroup_v2: Option<String>,
    /// Which controllers the v2 tree has.
    pub(super) v2_controllers: BTreeSet<String>,
    /// Which controllers have a v1 tree.
    pub(super) v1_controllers: BTreeSet<String>,
    /// `None` when it could not be tried.
    pub(super) cgroup_kill: Option<bool>,
    pub(super) seccomp: bool,
    pub(super) idmapped_mounts: bool,
    pub(super) open_files_max: Option<u64>,
    pub(super) pid_max: Option<u64>,
    pub(super) inotify_instances_max: Option<u64>,
    pub(super) inotify_watches_max: Option<u64>,
    pub(super) port: u16,
    pub(super) port_free: Result<(), String>,
    pub(super) clock_source: Option<String>,
}

impl Facts {
    /// Those of this machine.
    pub(super) fn of_this_machine(port: u16) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let cgroup_v2 = mount_points(&mounts, "cgroup2").next().map(str::to_owned);
        let kernel_text = read("/proc/sys/kernel/osrelease").unwrap_or_default();
        let is_root = rustix::process::geteuid().is_root();
        Self {
            is_root,
            can_administer: capabilities(None)
                .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN)),
            kernel: parse_kernel(&kernel_text),
            kernel_text,
            namespaces: names_in("/proc/self/ns"),
            user_namespaces_max: number("/proc/sys/user/max_user_namespaces"),
            overlay: try_overlay(),
            v2_controllers: cgroup_v2
                .as_deref()
                .and_then(|root| read(&format!("{root}/cgroup.controllers")))
                .map(|text| text.split_whitespace().map(str::to_owned).collect())
                .unwrap_or_default(),
            v1_controllers: v1_controllers(&mounts),
            cgroup_kill: cgroup_v2.as_deref().and_then(try_cgroup_kill),
            cgroup_v2,
            seccomp: Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
            idmapped_mounts: has_mount_setattr(),
            open_files_max: getrlimit(Resource::Nofile).maximum.or(Some(u64::MAX)),
            pid_max: number("/proc/sys/kernel/pid_max"),
            inotify_instances_max: number("/proc/sys/fs/inotify/max_user_instances"),
            inotify_watches_max: number("/proc/sys/fs/inotify/max_user_watches"),
            port,
            port_free: TcpListener::bind((Ipv4Addr::LOCALHOST, port))
                .map(drop)
                .map_err(|error| error.to_string()),
            clock_source: read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        }
    }
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn number(path: &str) -> Option<u64> {
    read(path)?.parse().ok()
}

fn names_in(directory: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// `6.18.5-debian` is 6.18; what cannot be read is older than anything.
fn parse_kernel(text: &str) -> (u32, u32) {
    let mut numbers = text
        .split(|c: char| !c.is_ascii_digit())
        .map(|digits| digits.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn mount_points<'a>(mounts: &'a str, kind: &'a str) -> impl Iterator<Item = &'a str> {
    mounts.lines().filter_map(move |line| {
        let mut fields = line.split(' ').skip(1);
        let point = fields.next()?;
        (fields.next()? == kind).then_some(point)
    })
}

fn v1_controllers(mounts: &str) -> BTreeSet<String> {
    let lines = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let options = lines.filter(|fields| fields.get(2) == Some(&"cgroup"));
    let options = options.filter_map(|fields| fields.get(3).map(|options| options.to_string()));
    let all: BTreeSet<String> = options
        .flat_map(|options| options.split(',').map(str::to_owned).collect::<Vec<_>>())
        .collect();
    CONTROLLERS
        .iter()
        .filter(|name| all.contains(**name))
        .map(|name| name.to_string())
        .collect()
}

/// Mounts an overlay in a mount namespace of a thread's own, which is gone with the thread.
fn try_overlay() -> Result<(), String> {
    let directory = tempfile::Builder::new()
        .prefix("conman-doctor-")
        .tempdir()
        .map_err(|error| format!("make a directory: {error}"))?;
    let root = directory.path().to_owned();
    let thread = std::thread::Builder::new().spawn(move || -> Result<(), String> {
        use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
        use rustix::thread::{UnshareFlags, unshare_unsafe};
        // SAFETY: this thread has nothing open that the others share by number and that would be wrong in
        // its own mount namespace; only its view of the mounts and its working directory become its own.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }
            .map_err(|error| format!("a mount namespace: {error}"))?;
        mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )
        .map_err(|error| format!("private mounts: {error}"))?;
        // The layers are on the machine's own disk, as those of containers will be.
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(root.join(name)).map_err(|error| format!("make {name}: {error}"))?;
        }
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| root.join(name));
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        let options = std::ffi::CString::new(options).map_err(|error| error.to_string())?;
        mount(
            "overlay",
            root.join("merged"),
            "overlay",
            MountFlags::empty(),
            Some(options.as_c_str()),
        )
        .map_err(|error| error.to_string())
    });
    let thread = thread.map_err(|error| format!("start a thread: {error}"))?;
    thread
        .join()
        .unwrap_or_else(|_| Err("the probe panicked".to_owned()))
}

/// Makes a cgroup, looks whether it can be killed whole, and removes it.
fn try_cgroup_kill(root: &str) -> Option<bool> {
    let directory = Path::new(root).join(format!("conman-doctor-{}", std::process::id()));
    fs::create_dir(&directory).ok()?;
    let has = directory.join("cgroup.kill").exists();
    fs::remove_dir(&directory).ok()?;
    Some(has)
}

/// Whether the kernel knows the call that maps the ids of a mount, asked with a file descriptor that is
/// none: one that knows it says so, one that does not says that there is no such call.
fn has_mount_setattr() -> bool {
    // SAFETY: a null pointer with size zero; the kernel refuses before it would look at it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            -1,
            c"".as_ptr(),
            0,
            std::ptr::null::<u8>(),
            0,
        )
    };
    result == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_read_from_what_they_call_themselves() {
        assert_eq!(parse_kernel("6.18.5-debian"), (6, 18));
        assert_eq!(parse_kernel("5.4-rc1"), (5, 4));
        assert_eq!(parse_kernel(""), (0, 0));
    }

    #[test]
    fn mounts_tell_the_cgroup_trees() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu,cpuacct 0 0\n\
                      cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nosuid 0 0\n\
                      /dev/vda / ext4 rw,memory 0 0\n";
        assert_eq!(
            mount_points(mounts, "cgroup2").collect::<Vec<_>>(),
            ["/sys/fs/cgroup/unified"]
        );
        let controllers = v1_controllers(mounts);
        assert_eq!(controllers.into_iter().collect::<Vec<_>>(), ["cpu", "pids"]);
    }

    #[test]
    fn looking_leaves_nothing() {
        let mounts = || fs::read_to_string("/proc/self/mounts").unwrap();
        let before = mounts();
        let facts = Facts::of_this_machine(0);
        assert_eq!(mounts(), before);
        assert!(facts.kernel > (0, 0));
        let ours = format!("conman-doctor-{}", std::process::id());
        if let Some(root) = facts.cgroup_v2 {
            assert!(!Path::new(&root).join(ours).exists());
        }
    }
}
