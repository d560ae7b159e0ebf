//! What an init and its programs may do: they are root, but of nothing.

use model::wire::keeper::{KeeperRefusal, KeeperRefusalCode};
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::BpfProgram;

use crate::failure::{Step, refused};

/// What root keeps, over the container's own ids and network only: what package managers and servers that
/// give up root by themselves need. Of Docker's default set this leaves out NET_RAW, MKNOD, AUDIT_WRITE,
/// SETFCAP, SETPCAP and SYS_CHROOT.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::NET_BIND_SERVICE);

/// Becomes root of the user namespace that this process was cloned into. Until then it is the host's root
/// without a name here.
pub(super) fn become_root() -> Result<(), KeeperRefusal> {
    rustix::thread::set_thread_groups(&[]).step("drop groups")?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)
        .step("become the container's root group")?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
        .step("become the container's root")
}

/// Gives up all that is left to give up, for this process and for every program that it starts. The ids
/// stay, and capabilities only go: the death signal stays armed.
pub(super) fn drop_all(filter: &BpfProgram) -> Result<(), KeeperRefusal> {
    rustix::thread::clear_ambient_capability_set().step("drop ambient capabilities")?;
    for bit in 0..64 {
        let Some(capability) = CapabilitySet::from_bits(1 << bit) else {
            continue;
        };
        if KEPT.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The first number that this kernel has no capability for, whatever we know.
            Err(rustix::io::Errno::INVAL) => break,
            Err(errno) => return Err(errno).step("drop bounding capabilities"),
        }
    }
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: KEPT,
            permitted: KEPT,
            inheritable: CapabilitySet::empty(),
        },
    )
    .step("drop capabilities")?;
    rustix::thread::set_no_new_privs(true).step("set no_new_privs")?;
    seccompiler::apply_filter(filter).map_err(|error| {
        refused(
            KeeperRefusalCode::Failed,
            "install seccomp filter",
            error.to_string(),
        )
    })
}
