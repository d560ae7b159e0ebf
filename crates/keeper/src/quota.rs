//! Limits of processor time, lifted before their containers are killed: to end takes time of a processor too, and hundreds of
//! processes that share a tenth of one take seconds, while another host counts on their end.
//!
//! The keeper lifts them before each of its kills; when it is killed itself, the kernel kills its containers at once
//! and the guard lifts the limits (module `guard`).

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use model::id::ContainerId;
use model::wire::keeper::{CpuQuota, KeeperRefusal};
use rustix::fs::{Mode, OFlags};

use crate::failure::Step;

/// One limit, its control file open.
#[derive(Debug)]
pub(crate) struct Quota {
    file: OwnedFd,
    unlimited: String,
}

impl Quota {
    /// Opens the control file.
    pub(crate) fn open(quota: &CpuQuota) -> Result<Self, KeeperRefusal> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(&quota.file, flags, Mode::empty()).step("open cpu quota")?;
        Ok(Self::new(file, quota.unlimited.clone()))
    }

    /// Of a control file that is open.
    pub(crate) fn new(file: OwnedFd, unlimited: String) -> Self {
        Self { file, unlimited }
    }

    /// What lifts it.
    pub(crate) fn unlimited(&self) -> &str {
        &self.unlimited
    }

    /// Its control file.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Lifts it.
    pub(crate) fn lift(&self) {
        // Fails only when the cgroup is gone, and with it the container.
        let _ = rustix::io::write(&self.file, self.unlimited.as_bytes());
    }
}

/// Those of all containers that have one.
#[derive(Debug, Default)]
pub(crate) struct Quotas(BTreeMap<ContainerId, Quota>);

impl Quotas {
    /// Knows one more.
    pub(crate) fn insert(&mut self, id: ContainerId, quota: Quota) {
        self.0.insert(id, quota);
    }

    /// Its container has ended. Whether it had one.
    pub(crate) fn remove(&mut self, id: &ContainerId) -> bool {
        self.0.remove(id).is_some()
    }

    /// Lifts that of a container, if it has one.
    pub(crate) fn lift(&self, id: &ContainerId) {
        if let Some(quota) = self.0.get(id) {
            quota.lift();
        }
    }

    /// Lifts all.
    pub(crate) fn lift_all(&self) {
        self.0.values().for_each(Quota::lift);
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ContainerId, &Quota)> {
        self.0.iter()
    }
}
