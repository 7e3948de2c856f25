//! A backend's stream whose answer is read before it counts that nothing can be written to it any more. A backend that
//! refuses an upload answers and closes while the rest of it is on its way, which resets the connection: the answer is
//! there, but the HTTP library would see the failed write first.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The stream. Its reading side says how it ends.
#[derive(Debug)]
pub struct ReadFirst<S> {
    stream: S,
    /// A write has failed: there are no more.
    is_broken: bool,
}

impl<S> ReadFirst<S> {
    /// Of a stream that is whole.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            is_broken: false,
        }
    }

    /// The bare stream.
    pub fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: AsyncWrite + Unpin> ReadFirst<S> {
    /// Waits for ever where a write has failed: what wakes is the reading side, and first of all now.
    fn write<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.is_broken {
            return Poll::Pending;
        }
        let polled = write(Pin::new(&mut self.stream), cx);
        if let Poll::Ready(Err(error)) = &polled {
            tracing::debug!(%error, "a backend takes no more: reading what it says");
            self.is_broken = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        polled
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadFirst<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadFirst<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, |stream, cx| stream.poll_write_vectored(cx, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(cx, |stream, cx| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.is_broken {
            true => Poll::Ready(Ok(())),
            false => Pin::new(&mut self.stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::{Duration, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_said_before_the_end_is_read_though_nothing_can_be_written() {
        let (near, mut far) = duplex(64);
        far.write_all(b"no").await.unwrap();
        drop(far);
        let mut near = ReadFirst::new(near);
        let written = timeout(Duration::from_secs(1), near.write_all(b"more"));
        assert!(written.await.is_err(), "the failed write is told");
        let mut said = String::new();
        near.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "no");
        near.shutdown().await.unwrap();
    }
}
