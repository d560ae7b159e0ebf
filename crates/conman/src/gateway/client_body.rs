//! A request's body on its way to a container: passed on as it comes, but not for ever and not without end.
//!
//! A body that fails is its sender's doing. The connection to the container fails with it, so the reason is kept where whoever
//! answers the request finds it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use model::api::{Refusal, RefusalCode};
use tokio::time::Sleep;

/// How long a client may send nothing of a body whose request has no answer yet. Once it has one the two may talk as they like.
const PATIENCE: Duration = Duration::from_secs(60);

/// What became of a body, for whoever answers its request.
#[derive(Debug, Clone, Default)]
pub(super) struct Fate {
    failure: Arc<OnceLock<Refusal>>,
    is_answered: Arc<AtomicBool>,
}

impl Fate {
    /// Why the body failed, if it did.
    pub(super) fn failure(&self) -> Option<Refusal> {
        self.failure.get().cloned()
    }

    /// The request has its answer.
    pub(super) fn answered(&self) {
        self.is_answered.store(true, Ordering::Relaxed);
    }
}

/// See above.
#[derive(Debug)]
pub(super) struct ClientBody {
    inner: Incoming,
    /// Of so many bytes at the most.
    bytes_left: u64,
    bytes_max: u64,
    stalled: Option<Pin<Box<Sleep>>>,
    fate: Fate,
}

impl ClientBody {
    pub(super) fn new(inner: Incoming, bytes_max: Option<u64>) -> (Self, Fate) {
        let fate = Fate::default();
        let bytes_max = bytes_max.unwrap_or(u64::MAX);
        let body = Self {
            inner,
            bytes_left: bytes_max,
            bytes_max,
            stalled: None,
            fate: fate.clone(),
        };
        (body, fate)
    }

    fn fail<T>(&self, refusal: Refusal) -> Poll<Option<Result<T, Refusal>>> {
        let _ = self.fate.failure.set(refusal.clone());
        Poll::Ready(Some(Err(refusal)))
    }
}

/// The refusal of a body that has more bytes than it may.
pub(super) fn too_large(bytes_max: u64) -> Refusal {
    let message = format!("the body has more than {bytes_max} bytes");
    Refusal::new(RefusalCode::BodyTooLarge, message)
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = Refusal;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Refusal>>> {
        match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                self.stalled = None;
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                match self.bytes_left.checked_sub(length) {
                    Some(left) => self.bytes_left = left,
                    None => return self.fail(too_large(self.bytes_max)),
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                let message = format!("the body: {error}");
                self.fail(Refusal::new(RefusalCode::BadRequest, message))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending if self.fate.is_answered.load(Ordering::Relaxed) => {
                self.stalled = None;
                Poll::Pending
            }
            Poll::Pending => {
                let stalled = self
                    .stalled
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
                if stalled.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
                if self.fate.is_answered.load(Ordering::Relaxed) {
                    return Poll::Pending;
                }
                let message = format!("nothing of the body has come for {} s", PATIENCE.as_secs());
                self.fail(Refusal::new(RefusalCode::RequestTimeout, message))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
