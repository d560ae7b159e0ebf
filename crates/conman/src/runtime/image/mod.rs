//! Where a container's root file system comes from.
//!
//! - `host`: a *skeleton* that is made once per state directory (a private `/etc`, links for `bin` and the
//!   like, empty directories), with the machine's own `/usr` and `/opt` bound into it, read-only.
//! - `dir:PATH`: that directory, as it is, on top of a layer of empty mount points: what an image lacks of these would
//!   else be made anew in every container, an inode each on the disk.
//!
//! Either is only a lower layer: what the container writes goes to an overlay of its own, and what is to
//! last goes to its workspace.

mod skeleton;

use std::io;
use std::path::{Path, PathBuf};

use model::api::Refusal;
use model::spec::Image;
use model::wire::keeper::{Access, Bind};

use super::{image_not_found, needs_docker};

/// The home of the user in every container, and its working directory.
pub(super) const HOME: &str = "/home/repl";

/// The images of one state directory.
#[derive(Debug)]
pub(super) struct Images {
    host: PathBuf,
    host_binds: Vec<Bind>,
    mount_points: PathBuf,
}

/// What an image is made of.
pub(super) struct Layers {
    pub(super) lower: Vec<PathBuf>,
    pub(super) binds: Vec<Bind>,
}

impl Images {
    /// Makes the skeleton of `host` unless it is there already.
    pub(super) fn prepare(state: &Path) -> io::Result<Self> {
        let images = state.join("images");
        Ok(Self {
            host: skeleton::prepare(&images, Path::new("/"))?,
            host_binds: skeleton::binds(Path::new("/")),
            mount_points: skeleton::prepare_mount_points(&images)?,
        })
    }

    /// The layers of an image.
    pub(super) fn layers(&self, image: &Image) -> Result<Layers, Refusal> {
        match image {
            Image::Host => Ok(Layers {
                lower: vec![self.host.clone()],
                binds: self.host_binds.clone(),
            }),
            Image::Directory(path) => {
                let path = Path::new(path);
                check_directory(path)?;
                Ok(Layers {
                    lower: vec![path.to_owned(), self.mount_points.clone()],
                    binds: Vec::new(),
                })
            }
            Image::Docker(reference) => Err(needs_docker(reference, "its own containers")),
        }
    }
}

/// Whether a directory can be an image.
pub(super) fn check_directory(path: &Path) -> Result<(), Refusal> {
    if !path.is_absolute() {
        return Err(image_not_found(path, "is not an absolute path"));
    }
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(image_not_found(path, "is not a directory")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(image_not_found(path, "does not exist"))
        }
        Err(error) => Err(image_not_found(path, &format!("cannot be read: {error}"))),
    }
}

fn read_only(path: &Path) -> Bind {
    Bind {
        source: path.to_owned(),
        target: path.to_owned(),
        access: Access::ReadOnly,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::api::RefusalCode;

    #[test]
    fn a_directory_that_is_none_is_named() {
        let directory = tempfile::tempdir().unwrap();
        check_directory(directory.path()).unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        for (path, why) in [
            (directory.path().join("none"), "does not exist"),
            (file.clone(), "is not a directory"),
            (file.join("below"), "cannot be read"),
            (PathBuf::from("relative"), "is not an absolute path"),
        ] {
            let refusal = check_directory(&path).unwrap_err();
            assert_eq!(refusal.code, RefusalCode::ImageNotFound);
            assert!(refusal.message.contains(why), "{refusal}");
            assert!(
                refusal.message.contains(path.to_str().unwrap()),
                "{refusal}"
            );
        }
    }
}
