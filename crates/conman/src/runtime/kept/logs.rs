//! A container's output: two files used in turn by its init, a pair for each epoch.

use std::io;
use std::path::{Path, PathBuf};

use model::id::Epoch;
use model::wire::keeper::LOG_BYTES_MAX;

/// The files that have something, oldest first; the last one grows.
pub(super) fn in_order(files: [PathBuf; 2]) -> Vec<PathBuf> {
    let found = files.map(|path| {
        let metadata = std::fs::metadata(&path).ok();
        (path, metadata)
    });
    match found {
        [(_, None), _] => Vec::new(),
        [(first, Some(_)), (_, None)] => vec![first],
        [(first, Some(one)), (second, Some(two))] => {
            let first_is_full = one.len() >= LOG_BYTES_MAX;
            let second_is_full = two.len() >= LOG_BYTES_MAX;
            match (first_is_full, second_is_full) {
                (false, false) => vec![first],
                (true, false) => vec![first, second],
                (false, true) => vec![second, first],
                // Between the last byte of one and the first of the next.
                (true, true) if one.modified().ok() > two.modified().ok() => vec![second, first],
                (true, true) => vec![first, second],
            }
        }
    }
}

/// The files of a repl's output, and whose each is.
fn of_epochs(directory: &Path) -> io::Result<Vec<(Epoch, PathBuf)>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        if let Some(epoch) = stem.and_then(|stem| stem.parse::<u64>().ok()) {
            found.push((Epoch(epoch), path));
        }
    }
    Ok(found)
}

/// The newest epoch that has output.
pub(super) fn newest(directory: &Path) -> io::Result<Option<Epoch>> {
    let found = of_epochs(directory)?;
    Ok(found.into_iter().map(|(epoch, _)| epoch).max())
}

/// Removes the output of all epochs but the newest one.
pub(super) fn remove_older(directory: &Path) -> io::Result<()> {
    let found = of_epochs(directory)?;
    let newest = found.iter().map(|(epoch, _)| *epoch).max();
    for (epoch, path) in found {
        if Some(epoch) < newest {
            match std::fs::remove_file(path) {
                // Another host cleans up after its own epoch of the same repl.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_growing_file_is_last() {
        let directory = tempfile::tempdir().unwrap();
        let files = [0, 1].map(|part| directory.path().join(format!("7.{part}")));
        let names = || -> Vec<_> {
            let found = in_order(files.clone()).into_iter();
            found
                .map(|path| path.extension().unwrap().to_owned())
                .collect()
        };
        let fill = |part: usize, bytes: u64| {
            let file = std::fs::File::create(&files[part]).unwrap();
            file.set_len(bytes).unwrap();
        };
        assert_eq!(names(), Vec::<&str>::new());
        fill(0, 10);
        assert_eq!(names(), ["0"]);
        fill(1, 0);
        assert_eq!(names(), ["0"]);
        fill(0, LOG_BYTES_MAX);
        assert_eq!(names(), ["0", "1"]);
        fill(1, 5);
        assert_eq!(names(), ["0", "1"]);
        fill(1, LOG_BYTES_MAX);
        assert_eq!(names(), ["0", "1"]);
        fill(0, 3);
        assert_eq!(names(), ["1", "0"]);
    }

    #[test]
    fn the_newest_epoch_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["9.0", "9.1", "10.0", "10.1", "other"] {
            std::fs::write(directory.path().join(name), "x").unwrap();
        }
        assert_eq!(newest(directory.path()).unwrap(), Some(Epoch(10)));
        remove_older(directory.path()).unwrap();
        remove_older(directory.path()).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["10.0", "10.1", "other"]);
        let none = directory.path().join("none");
        remove_older(&none).unwrap();
        assert_eq!(newest(&none).unwrap(), None);
    }
}
