//! What the facts mean for conman.

use super::facts::{CONTROLLERS, Facts};

/// How good a fact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All that conman wants.
    Fine,
    /// conman runs, with something less.
    Worse,
    /// The native runtime does not run.
    Missing,
}

impl Verdict {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Verdict::Fine => "ok",
            Verdict::Worse => "worse",
            Verdict::Missing => "missing",
        }
    }
}

/// One fact, judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) check: &'static str,
    pub(super) verdict: Verdict,
    pub(super) found: String,
    /// What it costs; empty when it costs nothing.
    pub(super) cost: &'static str,
    /// What would help; empty when nothing need be done.
    pub(super) remedy: &'static str,
}

/// The namespaces that every container has of its own.
const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
/// Every container holds a few files open in the keeper and in conman, every session a few more.
const OPEN_FILES: u64 = 16_384;
/// Two hundred containers with room for their programs' threads.
const PIDS: u64 = 65_536;
/// One per process that looks at the store, and one per container that empties.
const INOTIFY_INSTANCES: u64 = 256;
const INOTIFY_WATCHES: u64 = 8_192;

fn finding(
    check: &'static str,
    found: impl Into<String>,
    problem: Option<(Verdict, &'static str, &'static str)>,
) -> Finding {
    let (verdict, cost, remedy) = problem.unwrap_or((Verdict::Fine, "", ""));
    Finding {
        check,
        verdict,
        found: found.into(),
        cost,
        remedy,
    }
}

/// A limit that should be at least so high.
fn at_least(
    check: &'static str,
    found: Option<u64>,
    least: u64,
    cost: &'static str,
    remedy: &'static str,
) -> Finding {
    let text = match found {
        None => "unknown".to_owned(),
        Some(u64::MAX) => "unlimited".to_owned(),
        Some(number) => number.to_string(),
    };
    let low = found.is_none_or(|number| number < least);
    finding(check, text, low.then_some((Verdict::Worse, cost, remedy)))
}

/// All findings, in the order in which one would mend them.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![
        root(facts),
        kernel(facts),
        namespaces(facts),
        overlay(facts),
    ];
    findings.extend(cgroups(facts));
    findings.push(finding(
        "seccomp",
        if facts.seccomp {
            "available"
        } else {
            "not in this kernel"
        },
        (!facts.seccomp).then_some((
            Verdict::Missing,
            "containers could make any system call: none is started",
            "a kernel with CONFIG_SECCOMP_FILTER",
        )),
    ));
    findings.push(finding(
        "idmapped mounts",
        if facts.idmapped_mounts {
            "available"
        } else {
            "not in this kernel"
        },
        (!facts.idmapped_mounts).then_some((
            Verdict::Missing,
            "a workspace could not belong to its repl and to nobody outside",
            "Linux 5.12 or newer",
        )),
    ));
    findings.extend(limits(facts));
    findings.push(port(facts));
    findings.push(clock(facts));
    findings
}

fn root(facts: &Facts) -> Finding {
    let (found, problem) = match (facts.is_root, facts.can_administer) {
        (true, true) => ("yes", None),
        (true, false) => (
            "without CAP_SYS_ADMIN",
            Some((
                Verdict::Missing,
                "no namespaces, no mounts: only --runtime process",
                "run outside of this container, or give it CAP_SYS_ADMIN",
            )),
        ),
        (false, _) => (
            "no",
            Some((
                Verdict::Missing,
                "no namespaces, no mounts: only --runtime process",
                "run as root",
            )),
        ),
    };
    finding("root", found, problem)
}

fn kernel(facts: &Facts) -> Finding {
    let problem = if facts.kernel < (5, 12) {
        Some((
            Verdict::Missing,
            "no clone into cgroups, no mapped mounts",
            "Linux 5.12 or newer, 5.14 for cgroup.kill",
        ))
    } else {
        None
    };
    finding("kernel", facts.kernel_text.clone(), problem)
}

fn namespaces(facts: &Facts) -> Finding {
    let missing: Vec<_> = NAMESPACES
        .iter()
        .copied()
        .filter(|name| !facts.namespaces.contains(*name))
        .collect();
    let user = facts.user_namespaces_max;
    if !missing.is_empty() {
        let cost = "containers would share what these keep apart: none is started";
        let problem = Some((Verdict::Missing, cost, "a kernel with all namespaces"));
        return finding(
            "namespaces",
            format!("without {}", missing.join(", ")),
            problem,
        );
    }
    let few = user.is_none_or(|most| most < 1_000);
    finding(
        "namespaces",
        match user {
            Some(most) => format!("all; at most {most} user namespaces"),
            None => "all; user namespaces unknown".to_owned(),
        },
        few.then_some((
            Verdict::Missing,
            "root in a container would be root outside: none is started",
            "sysctl user.max_user_namespaces=10000",
        )),
    )
}

fn overlay(facts: &Facts) -> Finding {
    match &facts.overlay {
        Ok(()) => finding("overlayfs", "mounted and gone again", None),
        Err(error) => finding(
            "overlayfs",
            error.clone(),
            Some((
                Verdict::Missing,
                "containers have no writable root of their own: none is started",
                "run as root, modprobe overlay; the state directory must not be on an overlay itself",
            )),
        ),
    }
}

fn cgroups(facts: &Facts) -> Vec<Finding> {
    let has =
        |name: &str| facts.v2_controllers.contains(name) || facts.v1_controllers.contains(name);
    let missing: Vec<_> = CONTROLLERS.into_iter().filter(|name| !has(name)).collect();
    let version = match (&facts.cgroup_v2, facts.v1_controllers.is_empty()) {
        (Some(root), true) => format!("v2 at {root}"),
        (Some(root), false) => format!("v1, and v2 at {root}"),
        (None, false) => "v1".to_owned(),
        (None, true) => "none".to_owned(),
    };
    let none = facts.cgroup_v2.is_none() && facts.v1_controllers.is_empty();
    let trees = finding(
        "cgroups",
        version,
        none.then_some((
            Verdict::Missing,
            "containers can be neither limited nor proven empty: none is started",
            "mount -t cgroup2 none /sys/fs/cgroup",
        )),
    );
    let controllers = finding(
        "controllers",
        match missing.len() {
            0 => CONTROLLERS.join(", "),
            _ => format!("without {}", missing.join(", ")),
        },
        (!missing.is_empty()).then_some((
            Verdict::Worse,
            "these limits of a spec are not kept",
            "enable them in the cgroup tree",
        )),
    );
    let kill = match facts.cgroup_kill {
        Some(true) => finding("cgroup.kill", "available", None),
        Some(false) | None => finding(
            "cgroup.kill",
            match facts.cgroup_kill {
                None => "could not be tried",
                _ => "not in this kernel",
            },
            Some((
                Verdict::Worse,
                "a container dies by its PID 1 alone, a few ms later",
                "a cgroup v2 tree (it may be empty), Linux 5.14",
            )),
        ),
    };
    vec![trees, controllers, kill]
}

fn limits(facts: &Facts) -> Vec<Finding> {
    vec![
        at_least(
            "open files",
            facts.open_files_max,
            OPEN_FILES,
            "fewer containers and sessions at once",
            "ulimit -Hn 65536, LimitNOFILE= for a service",
        ),
        at_least(
            "process ids",
            facts.pid_max,
            PIDS,
            "fewer processes in all containers together",
            "sysctl kernel.pid_max=4194304",
        ),
        at_least(
            "inotify instances",
            facts.inotify_instances_max,
            INOTIFY_INSTANCES,
            "fewer processes that share the store; fewer containers on cgroup v2",
            "sysctl fs.inotify.max_user_instances=1024",
        ),
        at_least(
            "inotify watches",
            facts.inotify_watches_max,
            INOTIFY_WATCHES,
            "fewer containers on cgroup v2",
            "sysctl fs.inotify.max_user_watches=65536",
        ),
    ]
}

fn port(facts: &Facts) -> Finding {
    match &facts.port_free {
        Ok(()) => finding("port", format!("{} is free", facts.port), None),
        Err(error) => finding(
            "port",
            format!("{}: {error}", facts.port),
            Some((
                Verdict::Worse,
                "`conman up` does not start on it",
                "end what listens there, or `conman up --listen 127.0.0.1:PORT`",
            )),
        ),
    }
}

fn clock(facts: &Facts) -> Finding {
    let good = [
        "tsc",
        "kvm-clock",
        "arch_sys_counter",
        "hyperv_clocksource_tsc_page",
        "xen",
    ];
    match &facts.clock_source {
        Some(source) if good.contains(&source.as_str()) => {
            finding("clock source", source.clone(), None)
        }
        source => finding(
            "clock source",
            source.clone().unwrap_or_else(|| "unknown".to_owned()),
            Some((
                Verdict::Worse,
                "reading a clock is slow, or its rate is not known to keep the bound that leases rest on",
                "a machine with a stable TSC; see /sys/devices/system/clocksource",
            )),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Facts {
            is_root: true,
            can_administer: true,
            kernel: (6, 1),
            kernel_text: "6.1.0".into(),
            namespaces: set(&NAMESPACES),
            user_namespaces_max: Some(10_000),
            overlay: Ok(()),
            cgroup_v2: Some("/sys/fs/cgroup".into()),
            v2_controllers: set(&["cpuset", "cpu", "io", "memory", "pids"]),
            v1_controllers: set(&[]),
            cgroup_kill: Some(true),
            seccomp: true,
            idmapped_mounts: true,
            open_files_max: Some(1_048_576),
            pid_max: Some(4_194_304),
            inotify_instances_max: Some(1_024),
            inotify_watches_max: Some(65_536),
            port: 8080,
            port_free: Ok(()),
            clock_source: Some("tsc".into()),
        }
    }

    /// What is not fine, as `check: verdict`.
    fn problems(facts: &Facts) -> Vec<String> {
        let findings = judge(facts);
        let bad = findings
            .iter()
            .filter(|finding| finding.verdict != Verdict::Fine);
        bad.map(|finding| {
            assert!(
                !finding.cost.is_empty() && !finding.remedy.is_empty(),
                "{finding:?}"
            );
            format!("{}: {}", finding.check, finding.verdict.as_str())
        })
        .collect()
    }

    #[test]
    fn a_common_server_is_fine() {
        assert!(problems(&good()).is_empty());
    }

    #[test]
    fn both_cgroup_versions_do() {
        let mut facts = good();
        facts.v1_controllers = std::mem::take(&mut facts.v2_controllers);
        assert!(problems(&facts).is_empty());
        facts.cgroup_v2 = None;
        facts.cgroup_kill = None;
        assert_eq!(problems(&facts), ["cgroup.kill: worse"]);
        facts.v1_controllers.clear();
        assert_eq!(
            problems(&facts),
            [
                "cgroups: missing",
                "controllers: worse",
                "cgroup.kill: worse"
            ]
        );
    }

    #[test]
    fn each_missing_thing_is_found() {
        let nobody = Facts {
            is_root: false,
            can_administer: false,
            ..good()
        };
        assert_eq!(problems(&nobody), ["root: missing"]);
        assert_eq!(
            problems(&Facts {
                kernel: (4, 19),
                ..good()
            }),
            ["kernel: missing"]
        );
        assert_eq!(
            problems(&Facts {
                overlay: Err("no such device".into()),
                ..good()
            }),
            ["overlayfs: missing"]
        );
        assert_eq!(
            problems(&Facts {
                user_namespaces_max: Some(0),
                ..good()
            }),
            ["namespaces: missing"]
        );
        let low = Facts {
            open_files_max: Some(1_024),
            pid_max: Some(32_768),
            inotify_instances_max: Some(128),
            port_free: Err("in use".into()),
            clock_source: Some("acpi_pm".into()),
            ..good()
        };
        assert_eq!(
            problems(&low),
            [
                "open files: worse",
                "process ids: worse",
                "inotify instances: worse",
                "port: worse",
                "clock source: worse"
            ]
        );
    }

    #[test]
    fn a_machine_of_which_nothing_is_known_is_not_fine() {
        let unknown = problems(&Facts {
            overlay: Err("?".into()),
            port_free: Ok(()),
            ..empty()
        });
        assert!(unknown.len() >= 10, "{unknown:?}");
    }

    fn empty() -> Facts {
        Facts {
            is_root: false,
            can_administer: false,
            kernel: (0, 0),
            kernel_text: String::new(),
            namespaces: Default::default(),
            user_namespaces_max: None,
            overlay: Ok(()),
            cgroup_v2: None,
            v2_controllers: Default::default(),
            v1_controllers: Default::default(),
            cgroup_kill: None,
            seccomp: false,
            idmapped_mounts: false,
            open_files_max: None,
            pid_max: None,
            inotify_instances_max: None,
            inotify_watches_max: None,
            port: 0,
            port_free: Ok(()),
            clock_source: None,
        }
    }
}
