//! Paths that a backend may read as another than the route did (RFC 3986 section 6.2.2). The routes of
//! `/private/`, of `/wiki/` and, in any case, of `/shop/` allow one origin only, those of `/Wiki/` and
//! of everything else allow any.

use super::Case;
use crate::upgrade_request;

pub(super) fn cases() -> Vec<Case> {
    let group = "Paths that are to get round a route";
    let at = |path: &str| {
        let name = format!("`{}`", path.replace('|', "\\|"));
        Case::new(group, name, upgrade_request(path, &[]))
    };
    let mut cases = vec![
        at("/private/x").refused(403),
        Case::new(
            group,
            "`/private/x` of the origin that is allowed",
            upgrade_request("/private/x", &["Origin: https://app.example.org"]),
        )
        .tunnel(),
        Case::new(
            group,
            "`/private/x` of two origins",
            upgrade_request(
                "/private/x",
                &[
                    "Origin: https://app.example.org",
                    "Origin: https://evil.example",
                ],
            ),
        )
        .refused(403),
    ];
    for path in [
        "//private/x",
        "/.//private/x",
        "/./private/x",
        "/open/../private/x",
        "/open/..//private/x",
        "/%70rivate/x",
        "/%2e/private/x",
        "/%2E/private/x",
        "/open/%2e%2e/private/x",
        "/open/.%2e/private/x",
        "/open/..%2fprivate/x",
        "/%2fprivate/x",
        "/private%2fx",
        "/private%2Fx",
        "/private%5cx",
        "/\\private/x",
        "/;a/private/x",
        "/private;a=b/x",
        "/open/..;/private/x",
        "/private%3bx/y",
        "/private/../open/x",
        "/private%00/x",
        "/open%00/x",
        "/PRIVATE/x",
        "/Private/x",
        "/%50rivate/x",
        "/open/../Private/x",
        "/Private%2fx",
        "/%u0070rivate/x",
        "/pr%C4%B1vate/x",
        "/%EF%BD%90rivate/x",
    ] {
        cases.push(at(path).refused(400));
    }
    cases.push(
        at("/Wiki/x")
            .tunnel()
            .sent("get /wiki/x http")
            .note("two routes that differ in case only are two"),
    );
    cases.push(at("/wiki/x").refused(403));
    cases.push(at("/WIKI/x").refused(400));
    cases.push(at("/SHOP/x").refused(403).note("a route that ignores case"));
    cases.push(at("/privateer/x").tunnel());
    for path in [
        "/Open/X",
        "/a//b",
        "/a/./b/../c",
        "/a%2Fb;c=d/%7Ee",
        "/a%20b/%C3%A9",
        "/..",
        "/%252e/private/x",
    ] {
        cases.push(
            at(path)
                .tunnel()
                .sent(format!("get {} http", path.to_lowercase())),
        );
    }
    cases
}
