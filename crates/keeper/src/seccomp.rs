//! What a container's programs may not ask of the kernel.
//!
//! A deny list, at least as strict as Docker's default for a container without extra capabilities, and closed
//! at its end: a number above [`JUDGED_MAX`] is of a call newer than this list and answers ENOSYS, so that a new
//! kernel adds no way around it. The same for the x32 variants of calls. Calls of another architecture
//! (32-bit x86) kill the process.
//!
//! Beyond Docker's default it denies ptrace and its kin, io_uring, every socket but Unix, IPv4, IPv6 and
//! netlink, and the injection of terminal input (TIOCSTI, TIOCLINUX).

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, sock_filter,
};

/// The highest system call number that this list has been judged for: `mseal` and what came up to Linux 6.18
/// (`open_tree_attr`, `file_getattr`, `file_setattr`), which are numbered the same on every architecture.
const JUDGED_MAX: u32 = 469;

/// Denied whatever their arguments.
const DENIED: &[i64] = &[
    // Mounts and roots.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    OPEN_TREE_ATTR,
    LISTMOUNT,
    STATMOUNT,
    // Namespaces.
    libc::SYS_unshare,
    libc::SYS_setns,
    // Other processes' memory and fds.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Keys are not namespaced.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // The kernel itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_syslog,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    libc::SYS_vhangup,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_fanotify_init,
    // Files by handle go around the root directory.
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    // Time.
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    // The container's name is ours.
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    // Placement of memory on nodes.
    libc::SYS_get_mempolicy,
    libc::SYS_set_mempolicy,
    libc::SYS_set_mempolicy_home_node,
    libc::SYS_mbind,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
];

/// Those that only the x86 has.
#[cfg(target_arch = "x86_64")]
const DENIED_HERE: &[i64] = &[
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
    libc::SYS__sysctl,
];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: &[i64] = &[];

// Newer than the libc crate's tables; the same number everywhere.
const STATMOUNT: i64 = 457;
const LISTMOUNT: i64 = 458;
const OPEN_TREE_ATTR: i64 = 467;

/// `clone` with any of these makes a namespace.
const NAMESPACE_FLAGS: &[i32] = &[
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

const SOCKET_FAMILIES: &[i32] = &[
    libc::AF_UNIX,
    libc::AF_INET,
    libc::AF_INET6,
    libc::AF_NETLINK,
];

/// Personalities that Docker allows: Linux with and without 32-bit addresses and UNAME26, and the question.
const PERSONALITIES: &[u64] = &[0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

fn condition(
    argument: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
}

/// One rule that matches when the argument is none of these.
fn none_of(argument: u8, values: &[u64]) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(
        values
            .iter()
            .map(|value| condition(argument, SeccompCmpOp::Ne, *value))
            .collect::<Result<_, _>>()?,
    )
}

/// The filter, to be built once.
pub(crate) fn program() -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = DENIED
        .iter()
        .chain(DENIED_HERE)
        .map(|number| (*number, vec![]))
        .collect();
    let mut clone_rules = Vec::new();
    for flag in NAMESPACE_FLAGS {
        let flag = *flag as u32 as u64;
        clone_rules.push(SeccompRule::new(vec![condition(
            0,
            SeccompCmpOp::MaskedEq(flag),
            flag,
        )?])?);
    }
    rules.insert(libc::SYS_clone, clone_rules);
    let families: Vec<u64> = SOCKET_FAMILIES
        .iter()
        .map(|family| *family as u64)
        .collect();
    rules.insert(libc::SYS_socket, vec![none_of(0, &families)?]);
    rules.insert(libc::SYS_socketpair, vec![none_of(0, &families)?]);
    rules.insert(libc::SYS_personality, vec![none_of(0, PERSONALITIES)?]);
    rules.insert(
        libc::SYS_ioctl,
        vec![
            SeccompRule::new(vec![condition(1, SeccompCmpOp::Eq, libc::TIOCSTI)?])?,
            SeccompRule::new(vec![condition(1, SeccompCmpOp::Eq, libc::TIOCLINUX)?])?,
        ],
    );
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
        std::env::consts::ARCH.try_into()?,
    )?;
    let denials: BpfProgram = filter.try_into()?;
    Ok(prologue().into_iter().chain(denials).collect())
}

/// What seccompiler cannot say, in front of its program: ENOSYS for `clone3`, whose flags a filter cannot see
/// (C libraries then fall back to `clone`), and for every number above the judged ones.
fn prologue() -> [sock_filter; 4] {
    // Classic BPF: load the number; jump if equal; jump if greater; return.
    const LOAD_WORD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_GREATER: u16 = 0x25;
    const RETURN: u16 = 0x06;
    let not_implemented = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    let instruction = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    [
        instruction(LOAD_WORD, 0, 0, 0),
        instruction(JUMP_EQUAL, 1, 0, libc::SYS_clone3 as u32),
        instruction(JUMP_GREATER, 0, 1, JUDGED_MAX),
        instruction(RETURN, 0, 0, not_implemented),
    ]
}
