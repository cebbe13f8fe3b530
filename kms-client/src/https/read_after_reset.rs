//! A KME that refuses our certificate or request may send the reason and close the connection before the
//! request is complete (RFC 8446 section 6.2; RFC 9112 section 9.6). The write then fails with "broken pipe"
//! while the reason is still unread in the socket.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream whose writes stay pending after the KME closed the connection. Reads then return what it sent
/// before, and the end.
pub(crate) struct ReadAfterReset<S>(pub(crate) S);

impl<S: AsyncRead + Unpin> AsyncRead for ReadAfterReset<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAfterReset<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        pending_after_reset(Pin::new(&mut self.0).poll_write(cx, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        pending_after_reset(Pin::new(&mut self.0).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Pending without a waker: hyper also reads during each write, and the end of a connection always wakes the
/// reader.
fn pending_after_reset<T>(done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
    match done {
        Poll::Ready(Err(error))
            if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) =>
        {
            Poll::Pending
        }
        done => done,
    }
}
