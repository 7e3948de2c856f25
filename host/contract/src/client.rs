//! Who counts as one client.

use std::net::{IpAddr, Ipv6Addr};

/// What counts as one client. Who has an IPv6 address has the 64 bits behind its prefix, too (RFC 6177).
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}
