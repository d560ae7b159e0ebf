//! How a failed step becomes a refusal that says precisely what failed.

use model::wire::keeper::{KeeperRefusal, KeeperRefusalCode};
use rustix::io::Errno;

/// Names the step that a kernel's refusal belongs to.
pub(crate) trait Step<T> {
    /// The refusal for this step: its code from the error number alone.
    fn step(self, step: &str) -> Result<T, KeeperRefusal>;
    /// The same with this code, except that a full disk and a reached limit stay what they are.
    fn step_or(self, step: &str, code: KeeperRefusalCode) -> Result<T, KeeperRefusal>;
}

impl<T> Step<T> for Result<T, Errno> {
    fn step(self, step: &str) -> Result<T, KeeperRefusal> {
        self.map_err(|errno| failed(step, errno))
    }

    fn step_or(self, step: &str, code: KeeperRefusalCode) -> Result<T, KeeperRefusal> {
        self.map_err(|errno| {
            let mut refusal = failed(step, errno);
            if refusal.code == KeeperRefusalCode::Failed {
                refusal.code = code;
            }
            refusal
        })
    }
}

/// A refusal from an error number.
pub(crate) fn failed(step: &str, errno: Errno) -> KeeperRefusal {
    let code = match errno {
        Errno::NOSPC | Errno::DQUOT => KeeperRefusalCode::DiskFull,
        Errno::MFILE | Errno::NFILE | Errno::AGAIN | Errno::NOMEM | Errno::USERS => {
            KeeperRefusalCode::LimitReached
        }
        _ => KeeperRefusalCode::Failed,
    };
    KeeperRefusal {
        code,
        step: step.to_owned(),
        message: std::io::Error::from(errno).to_string(),
        errno: Some(errno.raw_os_error()),
    }
}

/// A refusal that is not the kernel's.
pub(crate) fn refused(
    code: KeeperRefusalCode,
    step: &str,
    message: impl Into<String>,
) -> KeeperRefusal {
    KeeperRefusal {
        code,
        step: step.to_owned(),
        message: message.into(),
        errno: None,
    }
}
