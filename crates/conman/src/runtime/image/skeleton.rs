//! The lower layer of the image `host`: everything but `/usr` and `/opt`.
//!
//! It is named by a fingerprint of what it was made from, so that a machine whose libraries were upgraded
//! gets a new one while running containers keep theirs; made under another name and renamed, so that
//! several hosts may make it at once.
//!
//! Of the machine's `/etc` only what programs need to start and to check certificates is copied: nothing
//! that tells about its users, its network or its secrets.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use model::wire::keeper::Bind;

use super::read_only;

/// Rises whenever this file makes something else.
const VERSION: u32 = 1;

/// Directories or links at the root that come from the machine: links are made again, directories bound.
const TOOLS: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// Bound, where they exist.
const TREES: [&str; 2] = ["usr", "opt"];

/// What is copied of `/etc`; a missing one is left out.
const ETC: [&str; 29] = [
    "alternatives",
    "bash.bashrc",
    "ca-certificates",
    "ca-certificates.conf",
    "debian_version",
    "gai.conf",
    "host.conf",
    "inputrc",
    "java-17-openjdk",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "login.defs",
    "magic",
    "mime.types",
    "os-release",
    "perl",
    "profile.d",
    "protocols",
    "python3",
    "python3.11",
    "rpc",
    "services",
    "shells",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
    "timezone",
];

const DIRECTORIES: [(&str, u32); 13] = [
    ("etc", 0o755),
    ("home", 0o755),
    ("home/repl", 0o755),
    ("root", 0o700),
    ("tmp", 0o1777),
    ("run", 0o755),
    ("var", 0o755),
    ("var/tmp", 0o1777),
    ("var/log", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("mnt", 0o755),
    ("srv", 0o755),
];

/// Mount points, of the keeper's and of ours.
const MOUNT_POINTS: [&str; 3] = ["proc", "sys", "dev"];

const FILES: [(&str, &str); 8] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/home/repl:/bin/bash\n\
         repl:x:1000:1000:repl:/home/repl:/bin/bash\n\
         nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    ),
    ("etc/group", "root:x:0:\nrepl:x:1000:\nnogroup:x:65534:\n"),
    (
        "etc/shadow",
        "root:*:19000:0:99999:7:::\nrepl:*:19000:0:99999:7:::\n",
    ),
    ("etc/hostname", "repl\n"),
    (
        "etc/hosts",
        "127.0.0.1\tlocalhost repl\n::1\tlocalhost ip6-localhost\n",
    ),
    ("etc/resolv.conf", ""),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\nprotocols: files\n",
    ),
    (
        "etc/profile",
        "# A login shell in a repl: its name and where one is.\n\
         export PATH=\"${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}\"\n\
         for part in /etc/profile.d/*.sh; do\n\
         \x20 [ -r \"$part\" ] && . \"$part\"\n\
         done\n\
         unset part\n\
         if [ -n \"${BASH-}\" ]; then\n\
         \x20 [ -r /etc/bash.bashrc ] && . /etc/bash.bashrc\n\
         \x20 PS1='\\[\\e[1;32m\\]${REPL:-repl}\\[\\e[0m\\]:\\[\\e[1;34m\\]\\w\\[\\e[0m\\]\\$ '\n\
         else\n\
         \x20 PS1=\"${REPL:-repl}:\\$ \"\n\
         fi\n",
    ),
];

/// The skeleton's directory; made below `images` if it is not there yet. `root` is the machine's root.
pub(super) fn prepare(images: &Path, root: &Path) -> io::Result<PathBuf> {
    let fingerprint = fingerprint(root);
    let place = images.join(format!("host-{fingerprint:016x}"));
    if place.is_dir() {
        return Ok(place);
    }
    std::fs::create_dir_all(images)?;
    let making = tempfile::Builder::new()
        .prefix(".host-")
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempdir_in(images)?;
    fill(making.path(), root)?;
    match std::fs::rename(making.path(), &place) {
        Ok(()) => {
            // It is not a temporary directory any more.
            let _ = making.keep();
        }
        // Another host was faster.
        Err(_) if place.is_dir() => {}
        Err(error) => return Err(error),
    }
    Ok(place)
}

/// A layer of nothing but what is mounted on in every container; made below `images` if it is not there yet.
pub(super) fn prepare_mount_points(images: &Path) -> io::Result<PathBuf> {
    let place = images.join("mount-points");
    // Safe to repeat, and by several hosts at once.
    for path in MOUNT_POINTS.into_iter().chain(["home", "home/repl"]) {
        make(&place.join(path), 0o755)?;
    }
    Ok(place)
}

/// What is bound into every container of this image.
pub(super) fn binds(root: &Path) -> Vec<Bind> {
    let tools = TOOLS
        .iter()
        .filter(|name| {
            let found = std::fs::symlink_metadata(root.join(name));
            found.is_ok_and(|found| found.is_dir())
        })
        .chain(TREES.iter().filter(|name| root.join(name).is_dir()));
    tools.map(|name| read_only(&root.join(name))).collect()
}

fn fill(place: &Path, root: &Path) -> io::Result<()> {
    for (path, mode) in DIRECTORIES {
        make(&place.join(path), mode)?;
    }
    for path in MOUNT_POINTS.iter().chain(&TREES) {
        make(&place.join(path), 0o755)?;
    }
    for name in TOOLS {
        let found = root.join(name);
        match std::fs::symlink_metadata(&found) {
            Ok(metadata) if metadata.is_symlink() => {
                symlink(std::fs::read_link(&found)?, place.join(name))?;
            }
            Ok(metadata) if metadata.is_dir() => make(&place.join(name), 0o755)?,
            _ => {}
        }
    }
    for name in ETC {
        let path = Path::new("etc").join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(place.join(parent))?;
        }
        copy(&root.join(&path), &place.join(&path))?;
    }
    for (path, text) in FILES {
        let path = place.join(path);
        // One that was copied as a link would lead this write elsewhere.
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))?;
    }
    std::fs::set_permissions(
        place.join("etc/shadow"),
        std::fs::Permissions::from_mode(0o640),
    )?;
    symlink("/proc/self/mounts", place.join("etc/mtab"))?;
    symlink("/run", place.join("var/run"))?;
    Ok(())
}

fn make(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).create(path)?;
    // Whatever the umask.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// Copies files, directories and links as they are; only what everybody may read.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = match std::fs::symlink_metadata(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if metadata.is_symlink() {
        return symlink(std::fs::read_link(from)?, to);
    }
    if metadata.is_dir() {
        std::fs::DirBuilder::new()
            .mode(0o755)
            .recursive(true)
            .create(to)?;
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    if metadata.is_file() && metadata.mode() & 0o004 != 0 {
        std::fs::copy(from, to)?;
        let mode = metadata.mode() & 0o755;
        std::fs::set_permissions(to, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Changes whenever something that is copied does, as far as sizes and times tell.
fn fingerprint(root: &Path) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    add(&VERSION.to_le_bytes());
    for name in ETC {
        add(name.as_bytes());
        if let Ok(metadata) = std::fs::symlink_metadata(root.join("etc").join(name)) {
            add(&metadata.len().to_le_bytes());
            add(&metadata.mtime().to_le_bytes());
            add(&metadata.mtime_nsec().to_le_bytes());
        }
    }
    for name in TOOLS {
        let link = std::fs::read_link(root.join(name)).unwrap_or_default();
        add(link.as_os_str().as_encoded_bytes());
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for directory in ["usr/bin", "etc/ssl/certs", "etc/ssl/private", "sbin"] {
            std::fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        symlink("usr/bin", root.path().join("bin")).unwrap();
        std::fs::write(root.path().join("etc/ld.so.cache"), "cache").unwrap();
        std::fs::write(
            root.path().join("etc/passwd"),
            "secret-user:x:0:0::/:/bin/sh\n",
        )
        .unwrap();
        std::fs::write(root.path().join("etc/ssl/private/key"), "secret").unwrap();
        std::fs::write(root.path().join("etc/ssl/certs/a.pem"), "public").unwrap();
        root
    }

    #[test]
    fn made_once_and_again_when_the_machine_changes() {
        let (images, root) = (tempfile::tempdir().unwrap(), machine());
        let first = prepare(images.path(), root.path()).unwrap();
        assert_eq!(prepare(images.path(), root.path()).unwrap(), first);
        std::fs::write(root.path().join("etc/ld.so.cache"), "another cache").unwrap();
        let second = prepare(images.path(), root.path()).unwrap();
        assert_ne!(first, second);
        assert_eq!(std::fs::read_dir(images.path()).unwrap().count(), 2);
        let read = |path: &Path| std::fs::read_to_string(path.join("etc/ld.so.cache")).unwrap();
        assert_eq!(
            (read(&first), read(&second)),
            ("cache".into(), "another cache".into())
        );
    }

    #[test]
    fn every_mount_point_is_there_and_nothing_else() {
        let images = tempfile::tempdir().unwrap();
        let place = prepare_mount_points(images.path()).unwrap();
        assert_eq!(prepare_mount_points(images.path()).unwrap(), place);
        let mut found: Vec<_> = std::fs::read_dir(&place)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        assert_eq!(found, ["dev", "home", "proc", "sys"]);
        assert!(place.join("home/repl").is_dir());
    }

    #[test]
    fn holds_tools_and_no_secrets() {
        let (images, root) = (tempfile::tempdir().unwrap(), machine());
        let place = prepare(images.path(), root.path()).unwrap();
        assert_eq!(
            std::fs::read_link(place.join("bin")).unwrap(),
            Path::new("usr/bin")
        );
        assert!(place.join("etc/ssl/certs/a.pem").is_file());
        assert!(!place.join("etc/ssl/private").exists());
        let passwd = std::fs::read_to_string(place.join("etc/passwd")).unwrap();
        assert!(!passwd.contains("secret"), "{passwd}");
        let mode = |path: &str| std::fs::metadata(place.join(path)).unwrap().mode() & 0o7777;
        assert_eq!(mode("tmp"), 0o1777);
        assert_eq!(mode(""), 0o755);
        let bound: Vec<_> = binds(root.path())
            .into_iter()
            .map(|bind| bind.source)
            .collect();
        assert_eq!(bound, [root.path().join("sbin"), root.path().join("usr")]);
    }

    #[test]
    fn all_at_once_make_one() {
        let (images, root) = (tempfile::tempdir().unwrap(), machine());
        let places: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| prepare(images.path(), root.path()).unwrap()))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert!(places.iter().all(|place| *place == places[0]));
        assert_eq!(std::fs::read_dir(images.path()).unwrap().count(), 1);
    }
}
