//! How much of what was written to a connection its peer's kernel has acknowledged: asked of our kernel, by
//! sock_diag(7). Nothing else tells of a byte: a write that succeeds, or a socket that becomes writable, says that a third of a
//! large buffer is free.
//!
//! Values in, values out over a socket of its own, which is asked and answers in one call each and never waits. Where
//! the system has no such socket to give, nothing is known.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};
use tokio::net::TcpStream;

/// What waits for one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SendQueue {
    /// Bytes that its kernel has acknowledged, since the connection began.
    pub(super) n_acked: u64,
    /// Bytes that our kernel has, and its kernel has not acknowledged.
    pub(super) n_waiting: u64,
}

/// Where a worker asks.
#[derive(Debug)]
pub(super) struct SendQueues(OwnedFd);

// linux/netlink.h, linux/sock_diag.h and linux/inet_diag.h.
const HEADER_BYTES: usize = 16;
const REQUEST_BYTES: usize = HEADER_BYTES + 56;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const IPPROTO_TCP: u8 = 6;
const INET_DIAG_INFO: u16 = 2;
/// Of `inet_diag_msg`: its length, and where `idiag_wqueue` is.
const MESSAGE_BYTES: usize = 72;
const WQUEUE_AT: usize = 60;
/// Of `tcp_info` (linux/tcp.h), since Linux 4.1.
const BYTES_ACKED_AT: usize = 120;

impl SendQueues {
    /// # Errors
    /// The system has no such sockets, does not give one to this process, or no descriptor is free.
    pub(super) fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            flags,
            Some(SOCK_DIAG),
        )?;
        Ok(Self(socket))
    }

    /// None: the kernel does not say.
    pub(super) fn of(&self, stream: &TcpStream) -> Option<SendQueue> {
        let request = request(stream.local_addr().ok()?, stream.peer_addr().ok()?);
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(&self.0, &request, SendFlags::empty(), &kernel).ok()?;
        let mut answer = [0; 1024];
        let (n, _) = recv(&self.0, &mut answer, RecvFlags::empty()).ok()?;
        read(&answer[..n])
    }
}

/// Asks for the one connection between these two.
fn request(local: SocketAddr, remote: SocketAddr) -> [u8; REQUEST_BYTES] {
    let family = match local {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let scope = match local {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(local) => local.scope_id(),
    };
    let (any_state, no_cookie) = (u32::MAX, u64::MAX);
    let mut request = [0; REQUEST_BYTES];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        request[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&(REQUEST_BYTES as u32).to_ne_bytes());
    put(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(&NLM_F_REQUEST.to_ne_bytes());
    // Sequence number and sender, which nobody reads: one question at a time.
    put(&[0; 8]);
    put(&[
        family.as_raw() as u8,
        IPPROTO_TCP,
        1 << (INET_DIAG_INFO - 1),
        0,
    ]);
    put(&any_state.to_ne_bytes());
    put(&local.port().to_be_bytes());
    put(&remote.port().to_be_bytes());
    put(&octets(local.ip()));
    put(&octets(remote.ip()));
    put(&scope.to_ne_bytes());
    put(&no_cookie.to_ne_bytes());
    request
}

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V6(ip) => ip.octets(),
        // In front, with nothing behind.
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            Ipv6Addr::new(high, low, 0, 0, 0, 0, 0, 0).octets()
        }
    }
}

fn read(answer: &[u8]) -> Option<SendQueue> {
    let u16_at = |at: usize| Some(u16::from_ne_bytes(*answer.get(at..)?.first_chunk()?));
    // The other type is an error, such as that there is no such connection.
    if u16_at(4)? != SOCK_DIAG_BY_FAMILY {
        return None;
    }
    let n_waiting = u32::from_ne_bytes(*answer.get(HEADER_BYTES + WQUEUE_AT..)?.first_chunk()?);
    let mut at = HEADER_BYTES + MESSAGE_BYTES;
    loop {
        let (len, kind) = (usize::from(u16_at(at)?), u16_at(at + 2)?);
        if kind == INET_DIAG_INFO {
            let info = answer.get(at + 4..at + len)?;
            let n_acked = u64::from_ne_bytes(*info.get(BYTES_ACKED_AT..)?.first_chunk()?);
            return Some(SendQueue {
                n_acked,
                n_waiting: n_waiting.into(),
            });
        }
        // Each is at least its own header long, and begins at a multiple of 4.
        at += len.max(4).next_multiple_of(4);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn connected(address: &str) -> Option<(TcpStream, TcpStream)> {
        let listener = TcpListener::bind(address).await.ok()?;
        let address = listener.local_addr().expect("bound");
        let to = match address.ip().is_unspecified() {
            // A connection of the old family at a socket of both.
            true => SocketAddr::from(([127, 0, 0, 1], address.port())),
            false => address,
        };
        let (near, far) = tokio::join!(TcpStream::connect(to), listener.accept());
        Some((far.expect("accepts").0, near.expect("connects")))
    }

    #[tokio::test]
    async fn what_a_far_end_has_not_taken_is_counted_and_what_its_kernel_has() {
        let queues = SendQueues::open().expect("a netlink socket");
        for address in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let Some((mut near, mut far)) = connected(address).await else {
                continue;
            };
            let mut n_written = 0;
            while let Ok(n) = near.try_write(&[0; 65_536]) {
                n_written += n as u64;
            }
            let stuck = queues.of(&near).expect("its queue");
            assert!(stuck.n_waiting > 0, "{address}");
            assert_eq!(stuck.n_acked + stuck.n_waiting, n_written, "{address}");
            let mut room = vec![0; n_written as usize];
            far.read_exact(&mut room).await.expect("open");
            let mut taken = queues.of(&near).expect("its queue");
            while taken.n_waiting > 0 {
                tokio::task::yield_now().await;
                taken = queues.of(&near).expect("its queue");
            }
            assert_eq!(taken.n_acked, n_written, "{address}");
            near.shutdown().await.expect("open");
        }
    }

    #[test]
    fn an_answer_that_is_cut_or_an_error_says_nothing() {
        let mut answer = vec![0; 400];
        assert_eq!(read(&answer), None);
        answer[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        let info = HEADER_BYTES + MESSAGE_BYTES;
        answer[info..info + 2].copy_from_slice(&280_u16.to_ne_bytes());
        answer[info + 2..info + 4].copy_from_slice(&INET_DIAG_INFO.to_ne_bytes());
        answer[info + 4 + BYTES_ACKED_AT] = 7;
        answer[HEADER_BYTES + WQUEUE_AT] = 5;
        let whole = SendQueue {
            n_acked: u64::from_ne_bytes([7, 0, 0, 0, 0, 0, 0, 0]),
            n_waiting: u32::from_ne_bytes([5, 0, 0, 0]).into(),
        };
        assert_eq!(read(&answer), Some(whole));
        for n in 0..info + 280 {
            assert_eq!(read(&answer[..n]), None, "{n}");
        }
    }
}
