//! What the preparer mounts, as the host's root, for the containers to attach.
//!
//! Everything here is done in a mount namespace of the keeper's and the preparer's own, from which nothing spreads to the
//! host's: its mount table never shows any of it, and all of it vanishes with them and the containers.
//!
//! - *The scratch*, a small tmpfs on a directory beside the keeper's socket: the layers are attached under
//!   it, for overlayfs takes no detached mount as a layer before Linux 6.15.
//! - *The donor*, a user namespace with the containers' mapping, made once: mounts that are shifted by
//!   it show the host's root as owner on disk as the container's root.
//! - *Layers*: a shifted read-only clone of each lower directory, made at its first use and kept.
//! - *Overlays and binds*: made for each container as detached mounts. A container's init inherits their fds
//!   and attaches them in its own namespace.
//! - *The device directory*: one tmpfs with the harmless devices, made once; containers get it read-only.
//!
//! A file system that cannot be shifted (idmapped mounts need Linux 5.12, as an overlay's layers 5.19, and the file
//! system's support) is used as it is: its files then seem to be nobody's, can be read as others may
//! read them, and the container's entry in the list says so. Only what is to be written to is refused.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use model::wire::keeper::{Access, Bind, KeeperRefusal, KeeperRefusalCode, RootPlan};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

use crate::failure::{Step, refused};
use crate::{shared, sys};

/// The most layers that are kept attached; at one more, all unused ones are let go.
const LAYERS_MAX: usize = 512;

/// The size of a mount option, its terminating NUL included.
const OPTION_BYTES_MAX: usize = 256;

/// Everything that a native container's root needs from the keeper.
pub(crate) struct Root {
    /// The overlay.
    pub(crate) overlay: OwnedFd,
    /// `/dev`.
    pub(crate) devices: OwnedFd,
    /// What is bound, and where.
    pub(crate) binds: Vec<(OwnedFd, PathBuf)>,
}

struct Layer {
    /// Its name in the scratch, which is this process' working directory.
    name: String,
    device: u64,
    inode: u64,
    shifted: bool,
}

/// The keeper's mounts.
pub(crate) struct Mounts {
    uid_base: u32,
    scratch: PathBuf,
    donor: OwnedFd,
    devices: OwnedFd,
    layers: HashMap<PathBuf, Layer>,
    layers_made: u64,
    generation: u64,
}

impl Mounts {
    /// Enters a mount namespace of its own and prepares what all containers share. `scratch` is made if it
    /// does not exist; the caller removes it at the end.
    pub(crate) fn new(scratch: &Path, uid_base: u32) -> Result<Self, KeeperRefusal> {
        // SAFETY: this process has one thread and shares nothing with another that a new mount namespace or
        // file system context would surprise.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
            .step("enter a mount namespace")?;
        // Downstream, not private: what the host mounts later is seen here, and what it unmounts is not held.
        rustix::mount::mount_change(
            "/",
            MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
        )
        .step("detach mount propagation")?;
        match rustix::fs::mkdir(scratch, Mode::from_raw_mode(0o700)) {
            Err(errno) if errno != Errno::EXIST => {
                return Err(errno).step("make scratch directory");
            }
            _ => {}
        }
        rustix::mount::mount(
            c"conman",
            scratch,
            c"tmpfs",
            MountFlags::NOSUID | MountFlags::NOEXEC,
            c"mode=0711,size=1m,nr_inodes=4096",
        )
        .step("mount scratch")?;
        rustix::mount::mount_change(scratch, MountPropagationFlags::PRIVATE)
            .step("make scratch private")?;
        // Layers are named relative to it: an option of overlayfs has at most 255 bytes.
        rustix::process::chdir(scratch).step("enter scratch")?;
        let donor = shared::donor_namespace(uid_base)?;
        let devices = shared::make_devices(&scratch.join("dev"))?;
        Ok(Self {
            uid_base,
            scratch: scratch.to_owned(),
            donor,
            devices,
            layers: HashMap::new(),
            layers_made: 0,
            generation: 0,
        })
    }

    /// Adds its fds to a list.
    pub(crate) fn collect_fds(&self, list: &mut Vec<RawFd>) {
        list.push(self.donor.as_raw_fd());
        list.push(self.devices.as_raw_fd());
    }

    /// For another process that starts from this value: the names of its layers are its own.
    pub(crate) fn next_generation(&mut self) {
        self.generation += 1;
    }

    /// Makes a container's root.
    pub(crate) fn root(
        &mut self,
        plan: &RootPlan,
        notes: &mut Vec<String>,
    ) -> Result<Root, KeeperRefusal> {
        let overlay = self.overlay(plan, notes)?;
        let mut binds = Vec::with_capacity(plan.binds.len());
        for bind in &plan.binds {
            binds.push((self.bind(bind, notes)?, bind.target.clone()));
        }
        let devices = clone_tree(self.devices.as_fd(), c"").step("clone devices")?;
        self.set(
            devices.as_fd(),
            libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC,
        )
        .step("restrict devices")?;
        Ok(Root {
            overlay,
            devices,
            binds,
        })
    }

    /// Sets attributes and shifts if the file system can be shifted.
    fn set(&self, mount: BorrowedFd<'_>, attributes: u64) -> Result<Shift, Errno> {
        match sys::mount_setattr(mount, attributes, Some(self.donor.as_fd())) {
            Ok(()) => Ok(Shift::Done),
            Err(Errno::INVAL | Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => {
                sys::mount_setattr(mount, attributes, None).map(|()| Shift::Unsupported)
            }
            Err(errno) => Err(errno),
        }
    }

    fn overlay(
        &mut self,
        plan: &RootPlan,
        notes: &mut Vec<String>,
    ) -> Result<OwnedFd, KeeperRefusal> {
        if plan.lower.is_empty() {
            return Err(refused(
                KeeperRefusalCode::BadMessage,
                "mount overlay",
                "root.lower is empty",
            ));
        }
        for lower in &plan.lower {
            self.attach_layer(lower)?;
        }
        let upper = self.make_upper(&plan.upper)?;
        let work = make_directory(&plan.work, "make work directory")?;
        let lowers: Vec<&Layer> = plan.lower.iter().map(|path| &self.layers[path]).collect();
        for (path, layer) in plan.lower.iter().zip(&lowers) {
            if !layer.shifted {
                notes.push(format!(
                    "{}: owners cannot be shifted here, its files seem to be nobody's",
                    path.display()
                ));
            }
        }
        let context = rustix::mount::fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC)
            .step("open overlayfs")?;
        let configured = (|| {
            let set = |key: &CStr, value: &str| {
                rustix::mount::fsconfig_set_string(context.as_fd(), key, value)
            };
            set(c"source", "conman")?;
            // By relative name and by fd: a path may be too long for an option, and may have a colon.
            let names: Vec<&str> = lowers.iter().map(|layer| layer.name.as_str()).collect();
            let joined = names.join(":");
            if joined.len() < OPTION_BYTES_MAX {
                set(c"lowerdir", &joined)?;
            } else {
                // Since Linux 6.5.
                for name in names {
                    set(c"lowerdir+", name)?;
                }
            }
            set(c"upperdir", &fd_path(&upper))?;
            set(c"workdir", &fd_path(&work))?;
            // Nothing in the upper layer outlives the container: never wait for the disk because of it.
            rustix::mount::fsconfig_set_flag(context.as_fd(), c"volatile")?;
            rustix::mount::fsconfig_create(context.as_fd())
        })();
        configured.step("mount overlay").map_err(|mut refusal| {
            if let Some(words) = kernels_words(&context) {
                refusal.message = format!("{}: {words}", refusal.message);
            }
            refusal
        })?;
        let overlay = rustix::mount::fsmount(
            context.as_fd(),
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID,
        )
        .step("mount overlay")?;
        check_writable(&overlay, &work)?;
        Ok(overlay)
    }

    fn make_upper(&self, path: &Path) -> Result<OwnedFd, KeeperRefusal> {
        let upper = make_directory(path, "make upper directory")?;
        // The overlay's own root directory has this one's owner and mode.
        rustix::fs::chownat(
            &upper,
            c"",
            Some(Uid::from_raw(self.uid_base)),
            Some(Gid::from_raw(self.uid_base)),
            AtFlags::EMPTY_PATH,
        )
        .step("give away upper directory")?;
        Ok(upper)
    }

    /// Has the layer attached, shifted if possible. A directory that was replaced since is attached anew.
    fn attach_layer(&mut self, path: &Path) -> Result<(), KeeperRefusal> {
        let source = open_directory(path, "open image")?;
        let found = rustix::fs::fstat(&source).step("open image")?;
        if let Some(layer) = self.layers.get(path)
            && (layer.device, layer.inode) == (found.st_dev, found.st_ino)
        {
            return Ok(());
        }
        if self.layers.len() >= LAYERS_MAX {
            self.release_layers();
        }
        let tree = clone_tree(source.as_fd(), c"").step("clone image")?;
        let shift = self
            .set(
                tree.as_fd(),
                libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
            )
            .step("shift image")?;
        self.layers_made += 1;
        let name = self.layer_name(self.layers_made);
        let place = self.scratch.join(&name);
        rustix::fs::mkdir(&place, Mode::from_raw_mode(0o700)).step("attach image")?;
        attach(tree.as_fd(), &place).step("attach image")?;
        self.layers.insert(
            path.to_owned(),
            Layer {
                name,
                device: found.st_dev,
                inode: found.st_ino,
                shifted: shift == Shift::Done,
            },
        );
        Ok(())
    }

    fn layer_name(&self, number: u64) -> String {
        format!("{}-{number}", self.generation)
    }

    /// Detaches all layers. Overlays that use them have clones of their own.
    fn release_layers(&mut self) {
        self.layers.clear();
        for made in 1..=self.layers_made {
            let place = self.scratch.join(self.layer_name(made));
            if rustix::mount::unmount(&place, UnmountFlags::DETACH).is_ok() {
                // It is an empty directory of the scratch: left behind, it would do no harm.
                let _ = rustix::fs::rmdir(&place);
            }
        }
    }

    fn bind(&self, bind: &Bind, notes: &mut Vec<String>) -> Result<OwnedFd, KeeperRefusal> {
        let source = open_directory(&bind.source, "open bind")?;
        let tree = clone_tree(source.as_fd(), c"").step("clone bind")?;
        let mut attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
        if bind.access == Access::ReadOnly {
            attributes |= libc::MOUNT_ATTR_RDONLY;
        }
        match (
            self.set(tree.as_fd(), attributes).step("shift bind")?,
            bind.access,
        ) {
            (Shift::Done, _) => {}
            (Shift::Unsupported, Access::ReadOnly) => notes.push(format!(
                "{}: owners cannot be shifted here, its files seem to be nobody's",
                bind.source.display()
            )),
            (Shift::Unsupported, Access::ReadWrite) => {
                return Err(refused(
                    KeeperRefusalCode::Failed,
                    "shift bind",
                    format!(
                        "{}: its file system cannot shift owners (idmapped mounts), so the container could not write to it",
                        bind.source.display()
                    ),
                ));
            }
        }
        Ok(tree)
    }
}

/// An overlay that could not make what it needs in its work directory comes up read-only, without an error:
/// for want of space, most likely. The same attempt tells which error it was.
fn check_writable(overlay: &OwnedFd, work: &OwnedFd) -> Result<(), KeeperRefusal> {
    let state = rustix::fs::fstatvfs(overlay).step("mount overlay")?;
    if !state.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    rustix::fs::mkdirat(work, c"attempt", Mode::from_raw_mode(0o700)).step("mount overlay")?;
    Err(refused(
        KeeperRefusalCode::Failed,
        "mount overlay",
        "it came up read-only",
    ))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shift {
    Done,
    Unsupported,
}

/// What the kernel has to say about a failed mount, beyond its error number.
fn kernels_words(context: &OwnedFd) -> Option<String> {
    let mut text = [0_u8; 512];
    let length = rustix::io::read(context, &mut text[..]).ok()?;
    let text = String::from_utf8_lossy(&text[..length]);
    Some(text.trim().trim_start_matches("e ").to_owned())
}

fn fd_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

pub(crate) fn open_directory(path: &Path, step: &str) -> Result<OwnedFd, KeeperRefusal> {
    let opened = rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    opened.step(step).map_err(|mut refusal| {
        if matches!(refusal.errno, Some(libc::ENOENT | libc::ENOTDIR)) {
            refusal.code = KeeperRefusalCode::ImageMissing;
        }
        refusal.message = format!("{}: {}", path.display(), refusal.message);
        refusal
    })
}

fn make_directory(path: &Path, step: &str) -> Result<OwnedFd, KeeperRefusal> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => {
            return Err(errno).step(step).map_err(|mut refusal| {
                refusal.message = format!("{}: {}", path.display(), refusal.message);
                refusal
            });
        }
    }
    rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .step(step)
}

/// A detached clone of the mount at `path` below `directory`.
fn clone_tree(directory: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd, Errno> {
    rustix::mount::open_tree(
        directory,
        path,
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH,
    )
}

/// Attaches a detached mount.
pub(crate) fn attach(mount: BorrowedFd<'_>, place: &Path) -> Result<(), Errno> {
    rustix::mount::move_mount(
        mount,
        c"",
        rustix::fs::CWD,
        place,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

/// Takes the scratch off its directory, with all that is attached below it.
pub(crate) fn release(scratch: &Path) {
    // In this process' own mount namespace, which ends with it in any case.
    let _ = rustix::mount::unmount(scratch, UnmountFlags::DETACH);
}
