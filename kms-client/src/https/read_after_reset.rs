//! A KME that refuses our certificate, or our request, says so and hangs up, often before the request is out (RFC 8446,
//! section 6.2; RFC 9112, section 9.6). The write then fails with nothing but "broken pipe", while the reason lies unread in
//! the socket.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream whose writes don't fail when the other end has hung up, but wait: its reads tell what it said before, and then
/// that it is gone.
pub(crate) struct LastWords<S>(pub(crate) S);

impl<S: AsyncRead + Unpin> AsyncRead for LastWords<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for LastWords<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        unless_hung_up(Pin::new(&mut self.0).poll_write(cx, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        unless_hung_up(Pin::new(&mut self.0).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Nobody is woken for this: hyper reads beside each write, and the end of a connection always wakes who reads.
fn unless_hung_up<T>(done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
    match done {
        Poll::Ready(Err(error))
            if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) =>
        {
            Poll::Pending
        }
        done => done,
    }
}
