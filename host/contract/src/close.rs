//! Close codes: their names, and which may be sent (RFC 6455 section 7.4, and IANA's registry of WebSocket close codes).

/// The purpose of the connection is fulfilled.
pub const NORMAL: u16 = 1000;
/// A server goes down, or a page is left. Also for silence, which has no code of its own.
pub const GOING_AWAY: u16 = 1001;
/// The peer broke the protocol.
pub const PROTOCOL_ERROR: u16 = 1002;
/// The peer sent a kind of data that is not taken.
pub const UNSUPPORTED_DATA: u16 = 1003;
/// Reported where a Close had no code; never sent.
pub const NO_STATUS: u16 = 1005;
/// Reported where no Close came; never sent.
pub const ABNORMAL: u16 = 1006;
/// Text that is not UTF-8, or does not inflate.
pub const INVALID_PAYLOAD: u16 = 1007;
/// A rule of ours was broken.
pub const POLICY_VIOLATION: u16 = 1008;
/// A message was longer than is taken.
pub const MESSAGE_TOO_BIG: u16 = 1009;
/// The server agreed on no extension that the client needs.
pub const MANDATORY_EXTENSION: u16 = 1010;
/// We could not go on.
pub const INTERNAL_ERROR: u16 = 1011;
/// The server, or the session's place, goes away; another may be there.
pub const SERVICE_RESTART: u16 = 1012;
/// There is too much to do.
pub const TRY_AGAIN_LATER: u16 = 1013;
/// A server behind this one failed.
pub const BAD_GATEWAY: u16 = 1014;
/// Reported where TLS failed; never sent.
pub const TLS_HANDSHAKE: u16 = 1015;

/// Whether a Close frame may have this code: 1004 to 1006 and 1015 only report, and 1016 to 2999 are of
/// the protocol's own and mean nothing yet.
pub const fn may_be_sent(code: u16) -> bool {
    matches!(
        code,
        NORMAL..=UNSUPPORTED_DATA | INVALID_PAYLOAD..=BAD_GATEWAY | 3000..=4999
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_codes_are_never_sent() {
        for code in [
            0,
            999,
            1004,
            NO_STATUS,
            ABNORMAL,
            TLS_HANDSHAKE,
            1016,
            2999,
            5000,
            u16::MAX,
        ] {
            assert!(!may_be_sent(code), "{code}");
        }
        for code in [
            NORMAL,
            GOING_AWAY,
            UNSUPPORTED_DATA,
            INVALID_PAYLOAD,
            MANDATORY_EXTENSION,
            BAD_GATEWAY,
            3000,
            4999,
        ] {
            assert!(may_be_sent(code), "{code}");
        }
    }
}
