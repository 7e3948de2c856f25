//! Policy `sticky`: a client comes back to the backend that it had, by a cookie. The cookie is a code
//! of the backend's address (HMAC-SHA256 with the operator's secret, 128 bits of it): it tells
//! nothing of the address, cannot be made up, and is the same on every host with that secret. Clients
//! without a cookie of a backend that is there go to the least loaded backend, by weight.

use std::{collections::BTreeMap, fmt};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use pointsman_sdk::{
    Header,
    policy::{Backend, Decision, Policy, Request, Wants, least},
};
use serde::Deserialize;
use serde_json::Value;
use sha2::Sha256;

/// Characters. Less could be found by trying.
const MIN_SECRET_LEN: usize = 16;

/// Each costs a code for each backend whenever these change, 2 to 3 µs.
const MAX_PREVIOUS_SECRETS: usize = 4;

/// What browsers cut `Max-Age` to, 400 days in seconds (RFC 6265bis section 5.5).
const MAX_MAX_AGE_SECS: i64 = 34_560_000;

/// What an operator may say.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The cookie's name.
    #[serde(default = "default_cookie")]
    cookie: String,
    /// A string of [`MIN_SECRET_LEN`] characters at least; here and below not a `String`, because the
    /// error of another type would repeat what it found.
    secret: Value,
    /// A list of strings like it, at most [`MAX_PREVIOUS_SECRETS`]. Cookies that were made with these
    /// still count, and are made anew.
    #[serde(default)]
    previous_secrets: Value,
    /// None: until the browser is closed. 1 to [`MAX_MAX_AGE_SECS`].
    max_age_secs: Option<i64>,
    #[serde(default)]
    secure: bool,
    /// `lax`, `strict` or `none`.
    #[serde(default = "default_same_site")]
    same_site: String,
    #[serde(default = "default_path")]
    path: String,
}

fn default_cookie() -> String {
    "pointsman".to_owned()
}

fn default_same_site() -> String {
    "lax".to_owned()
}

fn default_path() -> String {
    "/".to_owned()
}

/// Without the secrets.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").finish_non_exhaustive()
    }
}

/// The cookie, and the codes of the backends.
pub struct Sticky {
    cookie: String,
    /// What follows the cookie's value.
    attributes: String,
    /// Ready to make codes; the first one is the secret in use.
    secrets: Vec<Hmac<Sha256>>,
    /// In the order of the host: the code by the secret in use.
    codes: Vec<String>,
    /// The place of each code, by all secrets.
    places: BTreeMap<String, u32>,
    weights: Vec<f64>,
}

/// Without the secrets.
impl fmt::Debug for Sticky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sticky")
            .field("cookie", &self.cookie)
            .finish_non_exhaustive()
    }
}

impl Policy for Sticky {
    type Config = Config;

    fn configure(config: Config) -> Result<Self, String> {
        let attributes = attributes(&config)?;
        Ok(Self {
            secrets: secrets(&config)?,
            cookie: config.cookie,
            attributes,
            codes: Vec::new(),
            places: BTreeMap::new(),
            weights: Vec::new(),
        })
    }

    fn wants(&self) -> Wants {
        Wants {
            headers: vec!["cookie".to_owned()],
            figures: true,
            placed: true,
            session_ended: false,
        }
    }

    fn backends_changed(&mut self, backends: &[Backend]) {
        let addresses = backends.iter().map(|backend| backend.address.as_str());
        let codes = |secret| addresses.clone().map(move |address| code(secret, address));
        self.places = self
            .secrets
            .iter()
            .flat_map(|secret| codes(secret).zip(0..))
            .collect();
        self.codes = self.secrets.first().into_iter().flat_map(codes).collect();
        self.weights = backends
            .iter()
            .map(|b| f64::from(b.weight.max(1)))
            .collect();
    }

    fn choose(&mut self, request: &Request) -> Decision {
        if let Some((_, place)) = self.known(request) {
            // The others are for when that one cannot be reached.
            let n = self.codes.len() as u32;
            let others = (1..n).map(|i| (place + i) % n);
            return Decision::Ranked(std::iter::once(place).chain(others).collect());
        }
        let pairs = request.figures.iter().zip(&self.weights);
        let loads: Vec<f64> = pairs
            .map(|(figures, weight)| figures.load() as f64 / weight)
            .collect();
        Decision::Prefer(least(&loads, request.sequence))
    }

    /// The backend is not always the chosen one: that may have failed.
    fn placed(&mut self, request: &Request, backend: u32) -> Vec<Header> {
        let known = self.known(request).map(|(code, _)| code);
        let code = self.codes.get(backend as usize).map(String::as_str);
        match code {
            Some(code) if known != Some(code) => {
                let cookie = format!("{}={code}{}", self.cookie, self.attributes);
                vec![Header::new("set-cookie", cookie)]
            }
            Some(_) | None => Vec::new(),
        }
    }
}

pointsman_sdk::export!(Sticky: policy);

impl Sticky {
    /// The first of the request's cookies that is a backend's code, and the backend.
    fn known<'a>(&'a self, request: &'a Request) -> Option<(&'a str, u32)> {
        let mut codes = request.cookies(&self.cookie);
        codes.find_map(|code| Some((code, *self.places.get(code)?)))
    }
}

/// 22 characters.
fn code(secret: &Hmac<Sha256>, address: &str) -> String {
    let code = secret.clone().chain_update(address).finalize().into_bytes();
    URL_SAFE_NO_PAD.encode(&code[..16])
}

/// The secret in use, and those before it. Errors say nothing of what was found.
fn secrets(config: &Config) -> Result<Vec<Hmac<Sha256>>, String> {
    let secret = secret(&config.secret).ok_or("secret: at least 16 characters are needed")?;
    let previous = match &config.previous_secrets {
        Value::Null => Some(Vec::new()),
        Value::Array(previous) if previous.len() > MAX_PREVIOUS_SECRETS => None,
        Value::Array(previous) => previous.iter().map(self::secret).collect(),
        _ => None,
    };
    let previous = previous.ok_or(
        "previous_secrets: a list is needed, of at most 4, each with at least 16 characters",
    )?;
    Ok(std::iter::once(secret).chain(previous).collect())
}

fn secret(value: &Value) -> Option<Hmac<Sha256>> {
    let text = value.as_str()?;
    let is_long = text.chars().count() >= MIN_SECRET_LEN;
    is_long.then(|| Hmac::new_from_slice(text.as_bytes()).ok())?
}

/// All of `Set-Cookie` behind the value. Refuses what a browser would drop the cookie for.
fn attributes(config: &Config) -> Result<String, String> {
    check_name(config)?;
    let path = &config.path;
    let is_path = |byte: u8| matches!(byte, b' '..=b'~') && byte != b';';
    if !path.starts_with('/') || !path.bytes().all(is_path) {
        return Err(format!(
            "path: {path:?} is not allowed: it begins with \"/\" and has no \";\""
        ));
    }
    let max_age = match config.max_age_secs {
        None => String::new(),
        Some(secs) if (1..=MAX_MAX_AGE_SECS).contains(&secs) => format!("; Max-Age={secs}"),
        Some(secs) => {
            return Err(format!(
                "max_age_secs: {secs} is not allowed: 1 to {MAX_MAX_AGE_SECS}"
            ));
        }
    };
    let secure = if config.secure { "; Secure" } else { "" };
    let same_site = match config.same_site.as_str() {
        "lax" => "Lax",
        "strict" => "Strict",
        "none" if config.secure => "None",
        "none" => return Err("same_site: \"none\" needs secure = true".to_owned()),
        other => {
            return Err(format!(
                "same_site: {other:?} is not allowed: \"lax\", \"strict\" or \"none\""
            ));
        }
    };
    Ok(format!(
        "; Path={path}{max_age}; HttpOnly{secure}; SameSite={same_site}"
    ))
}

/// RFC 6265 section 4.1.1, and the prefixes of RFC 6265bis section 4.1.3.
fn check_name(config: &Config) -> Result<(), String> {
    let name = &config.cookie;
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(format!(
            "cookie: {name:?} is not allowed: a name without spaces and separators"
        ));
    }
    let lower = name.to_ascii_lowercase();
    let is_host = lower.starts_with("__host-");
    if (is_host || lower.starts_with("__secure-")) && !config.secure {
        return Err(format!("cookie: {name:?} needs secure = true"));
    }
    if is_host && config.path != "/" {
        return Err(format!("cookie: {name:?} needs path = \"/\""));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use pointsman_sdk::testing::{PolicyHost, backend, request, weighted};
    use serde_json::json;

    use super::*;

    const SECRET: &str = "sixteen letters.";
    const OTHER_SECRET: &str = "sixteen numbers.";

    fn start(config: Value) -> PolicyHost<Sticky> {
        PolicyHost::start(
            config,
            &["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"].map(backend),
        )
        .unwrap()
    }

    fn with_cookies(fields: &[&str]) -> Request {
        Request {
            headers: fields
                .iter()
                .map(|field| Header::new("cookie", *field))
                .collect(),
            ..request()
        }
    }

    /// What the client sends after this backend has accepted its request; nothing if it was given
    /// no cookie.
    fn cookie(host: &mut PolicyHost<Sticky>, request: Request, backend: u32) -> Option<String> {
        let headers = host.placed(request, backend);
        let header = headers.first()?;
        assert_eq!((headers.len(), header.name.as_str()), (1, "set-cookie"));
        let (pair, _) = header.value.split_once(';').unwrap();
        Some(pair.to_owned())
    }

    #[test]
    fn a_client_comes_back_to_its_backend() {
        let mut host = start(json!({"secret": SECRET}));
        for place in 0..3 {
            let cookie = cookie(&mut host, request(), place).unwrap();
            let mut active = [0; 3];
            active[place as usize] = 1000;
            host.set_active(&active);
            let back = with_cookies(&["a=b", &format!("c=d; {cookie}")]);
            let order = [0, 1, 2].map(|i| (place + i) % 3);
            assert_eq!(host.choose(back), Decision::Ranked(order.to_vec()));
        }
    }

    /// `printf 10.0.0.1:80 | openssl dgst -sha256 -hmac "sixteen letters." -binary | head -c 16 | base64`
    #[test]
    fn the_cookie_is_a_code_of_the_address() {
        let mut host = start(json!({"secret": SECRET}));
        let set_cookie = |host: &mut PolicyHost<Sticky>| host.placed(request(), 0)[0].value.clone();
        assert_eq!(
            set_cookie(&mut host),
            "pointsman=oR0DyNc4KRxT0BSptXUoaw; Path=/; HttpOnly; SameSite=Lax"
        );
        let mut host = start(json!({
            "cookie": "__Secure-at", "secret": OTHER_SECRET, "max_age_secs": 3600, "secure": true,
            "same_site": "none", "path": "/chat",
        }));
        assert_eq!(
            set_cookie(&mut host),
            "__Secure-at=osd2NM8oSoDW8B45jAvK3A; Path=/chat; Max-Age=3600; HttpOnly; Secure; SameSite=None"
        );
    }

    #[test]
    fn a_cookie_is_set_only_where_the_right_one_is_missing() {
        let mut host = start(json!({"secret": SECRET}));
        let [first, second] = [0, 1].map(|place| cookie(&mut host, request(), place).unwrap());
        assert_eq!(cookie(&mut host, with_cookies(&[&first]), 0), None);
        // The backend failed, and another one accepted.
        assert_eq!(cookie(&mut host, with_cookies(&[&first]), 1), Some(second));
    }

    #[test]
    fn cookies_that_are_no_code_are_not_followed() {
        let mut host = start(json!({"secret": SECRET}));
        let mut others = start(json!({"secret": OTHER_SECRET}));
        host.set_active(&[1, 0, 1]);
        let real = cookie(&mut host, request(), 0).unwrap();
        let check_forged = |host: &mut PolicyHost<Sticky>, forged: &str| {
            let decision = host.choose(with_cookies(&[forged]));
            assert_eq!(decision, Decision::Prefer(1), "{forged}");
        };
        for place in 0..22 {
            let mut forged = real.clone().into_bytes();
            let byte = &mut forged["pointsman=".len() + place];
            *byte = if *byte == b'A' { b'B' } else { b'A' };
            check_forged(&mut host, std::str::from_utf8(&forged).unwrap());
        }
        check_forged(&mut host, &cookie(&mut others, request(), 0).unwrap());
        check_forged(&mut host, &format!("{real}A"));
        check_forged(&mut host, &real[..real.len() - 1]);
        check_forged(&mut host, &real.to_uppercase());
        for forged in ["pointsman=", "pointsman=10.0.0.1:80", "pointsman=0"] {
            check_forged(&mut host, forged);
        }
        let forged = with_cookies(&["pointsman=0"]);
        assert!(cookie(&mut host, forged, 1).is_some());
    }

    #[test]
    fn the_first_code_among_cookies_of_one_name_counts() {
        let mut host = start(json!({"secret": SECRET}));
        let [first, second] = [0, 1].map(|place| cookie(&mut host, request(), place).unwrap());
        let several = || with_cookies(&["pointsman=forged", &format!("{second}; {first}")]);
        assert_eq!(host.pick(several()), Some("10.0.0.2:80"));
        assert_eq!(cookie(&mut host, several(), 1), None);
        assert!(cookie(&mut host, several(), 0).is_some());
    }

    #[test]
    fn clients_of_a_backend_that_went_are_placed_anew() {
        let mut host = start(json!({"secret": SECRET}));
        let gone = cookie(&mut host, request(), 0).unwrap();
        let stays = cookie(&mut host, request(), 2).unwrap();
        host.backends_changed(&["10.0.0.3:80", "10.0.0.2:80"].map(backend));
        host.set_active(&[1, 0]);
        assert_eq!(host.choose(with_cookies(&[&gone])), Decision::Prefer(1));
        assert!(cookie(&mut host, with_cookies(&[&gone]), 1).is_some());
        assert_eq!(host.pick(with_cookies(&[&stays])), Some("10.0.0.3:80"));
        assert_eq!(cookie(&mut host, with_cookies(&[&stays]), 0), None);
    }

    #[test]
    fn a_previous_secret_counts_and_is_replaced() {
        let old = cookie(&mut start(json!({"secret": OTHER_SECRET})), request(), 0).unwrap();
        let new = cookie(&mut start(json!({"secret": SECRET})), request(), 0).unwrap();
        let mut host =
            start(json!({"secret": SECRET, "previous_secrets": ["x".repeat(16), OTHER_SECRET]}));
        host.set_active(&[9, 0, 0]);
        assert_eq!(host.pick(with_cookies(&[&old])), Some("10.0.0.1:80"));
        assert_eq!(
            cookie(&mut host, with_cookies(&[&old]), 0).as_ref(),
            Some(&new)
        );
        assert_eq!(cookie(&mut host, with_cookies(&[&new]), 0), None);

        let mut host = start(json!({"secret": SECRET}));
        host.set_active(&[9, 0, 0]);
        assert_ne!(host.pick(with_cookies(&[&old])), Some("10.0.0.1:80"));
    }

    #[test]
    fn clients_without_a_cookie_go_where_there_is_least_to_do() {
        let backends = [weighted("a", 1), weighted("b", 4), weighted("c", 1)];
        let mut host = PolicyHost::<Sticky>::start(json!({"secret": SECRET}), &backends).unwrap();
        host.set_active(&[1, 3, 1]);
        assert_eq!(host.pick(request()), Some("b"));
        host.set_active(&[1, 4, 2]);
        assert_eq!(host.pick_many(2), ["b", "a"]);
    }

    #[track_caller]
    fn refused(config: Value) -> String {
        PolicyHost::<Sticky>::start(config, &[backend("a")]).unwrap_err()
    }

    #[test]
    fn a_secret_is_asked_for_and_never_repeated() {
        for secret in [
            json!("fifteen charact"),
            json!(123_456_789),
            json!(["fifteen charact"]),
        ] {
            let error = "secret: at least 16 characters are needed";
            assert_eq!(refused(json!({"secret": secret})), error);
            let error = "previous_secrets: a list is needed, of at most 4, each with at least 16 characters";
            let previous = json!([SECRET, secret]);
            assert_eq!(
                refused(json!({"secret": SECRET, "previous_secrets": previous})),
                error
            );
            assert_eq!(
                refused(json!({"secret": SECRET, "previous_secrets": secret})),
                error
            );
        }
        let many = vec![SECRET; 5];
        assert!(refused(json!({"secret": SECRET, "previous_secrets": many})).contains("at most 4"));
        assert_eq!(refused(json!({})), "missing field `secret`");

        let text = r#"{"secret": "sixteen letters.", "previous_secrets": ["sixteen numbers."]}"#;
        let config: Config = serde_json::from_str(text).unwrap();
        let mut printed = format!("{config:?}");
        printed += &format!("{:?}", Sticky::configure(config).unwrap());
        assert!(!printed.contains("sixteen"), "{printed}");
    }

    #[test]
    fn what_a_browser_would_drop_is_refused() {
        let check = |mut config: Value, expected: &str| {
            config["secret"] = SECRET.into();
            assert_eq!(refused(config), expected);
        };
        check(
            json!({"cookie": "a b"}),
            "cookie: \"a b\" is not allowed: a name without spaces and separators",
        );
        check(
            json!({"cookie": ""}),
            "cookie: \"\" is not allowed: a name without spaces and separators",
        );
        check(
            json!({"cookie": "__Secure-a"}),
            "cookie: \"__Secure-a\" needs secure = true",
        );
        check(
            json!({"cookie": "__Host-a", "secure": true, "path": "/a"}),
            "cookie: \"__Host-a\" needs path = \"/\"",
        );
        check(
            json!({"same_site": "none"}),
            "same_site: \"none\" needs secure = true",
        );
        check(
            json!({"same_site": "Lax"}),
            "same_site: \"Lax\" is not allowed: \"lax\", \"strict\" or \"none\"",
        );
        check(
            json!({"max_age_secs": 0}),
            "max_age_secs: 0 is not allowed: 1 to 34560000",
        );
        for path in ["chat", "/a;b", "/a\nb", ""] {
            let expected =
                format!("path: {path:?} is not allowed: it begins with \"/\" and has no \";\"");
            check(json!({"path": path}), &expected);
        }
        let unknown = refused(json!({"secret": SECRET, "samesite": "lax"}));
        assert!(
            unknown.starts_with("unknown field `samesite`, expected one of"),
            "{unknown}"
        );
    }
}
