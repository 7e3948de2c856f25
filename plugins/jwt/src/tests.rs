use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use p256::ecdsa::signature::Signer;
use pointsman_sdk::testing::{
    FilterHost, OpenFilterSession, advance, counted, facts, log_lines, report, set_now_ms,
};
use sha2::Sha256;

use super::*;

const SECRET: &str = "thirty-two bytes are needed here";
/// What the test host's clock shows.
const NOW: u64 = 1_700_000_000;

const RSA_N: &str = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";
const EC_X: &str = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
const EC_Y: &str = "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0";
const ED_X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

/// The claims of RFC 7515 appendices A.1 to A.3: `exp` is 1300819380.
const RFC_CLAIMS: &str = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
const RFC_EXP_MS: u64 = 1_300_819_380_000;

fn rsa_key() -> Value {
    json!({"kty": "RSA", "n": RSA_N, "e": "AQAB"})
}

fn ec_key() -> Value {
    json!({"kty": "EC", "crv": "P-256", "x": EC_X, "y": EC_Y})
}

fn ed_key() -> Value {
    json!({"kty": "OKP", "crv": "Ed25519", "x": ED_X})
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn signed_with(header: &Value, claims: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let signed = format!(
        "{}.{}",
        base64(header.to_string()),
        base64(claims.to_string())
    );
    let signature = base64(sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}

fn hs256(secret: &[u8], signed: &[u8]) -> Vec<u8> {
    let code = Hmac::<Sha256>::new_from_slice(secret).unwrap();
    code.chain_update(signed).finalize().into_bytes().to_vec()
}

/// By `SECRET`.
fn token(claims: Value) -> String {
    signed_with(&json!({"alg": "HS256"}), &claims, |signed| {
        hs256(SECRET.as_bytes(), signed)
    })
}

fn bearer(token: &str) -> Facts {
    with_header("authorization", &format!("Bearer {token}"))
}

fn with_header(name: &str, value: &str) -> Facts {
    Facts {
        headers: vec![Header::new(name, value)],
        ..facts()
    }
}

/// `config` and `secret`.
fn start(mut config: Value) -> FilterHost<Jwt> {
    config["secret"] = SECRET.into();
    FilterHost::start(config).unwrap()
}

fn open(config: Value, claims: Value) -> Result<OpenFilterSession<JwtSession>, Refusal> {
    start(config).open(bearer(&token(claims)))
}

/// With these keys, and the client's token.
fn open_with_keys(keys: &[Value], token: &str) -> Result<(), Refusal> {
    let config = json!({"jwks": {"keys": keys}});
    let mut host = FilterHost::<Jwt>::start(config).unwrap();
    set_now_ms(RFC_EXP_MS - 1);
    host.open(bearer(token)).map(drop)
}

#[track_caller]
fn assert_refused<T: fmt::Debug>(opened: Result<T, Refusal>, expected: &str) {
    let refusal = opened.unwrap_err();
    assert_eq!((refusal.status, refusal.body.as_str()), (401, expected));
    let challenge = format!("Bearer error=\"invalid_token\", error_description=\"{expected}\"");
    let header = Header::new("www-authenticate", challenge);
    assert_eq!(refusal.headers, [header]);
}

/// RFC 7515 appendices A.1 to A.3; the claims of the first two end at the same second.
#[test]
fn the_tokens_of_the_rfc_are_good_until_they_expire() {
    let secret = json!({"kty": "oct", "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"});
    let vectors = [
        (
            secret,
            "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9",
            "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
        ),
        (
            rsa_key(),
            "eyJhbGciOiJSUzI1NiJ9",
            "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
        ),
        (
            ec_key(),
            "eyJhbGciOiJFUzI1NiJ9",
            "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        ),
    ];
    for (key, header, signature) in vectors {
        let token = format!("{header}.{RFC_CLAIMS}.{signature}");
        let config = json!({"jwks": {"keys": [key]}});
        let mut host = FilterHost::<Jwt>::start(config).unwrap();
        set_now_ms(RFC_EXP_MS - 1);
        host.open(bearer(&token)).unwrap();
        set_now_ms(RFC_EXP_MS);
        assert_refused(host.open(bearer(&token)), "the token has expired");

        let decoded = URL_SAFE_NO_PAD.decode(signature).unwrap();
        for place in [0, decoded.len() / 2, decoded.len() - 1] {
            let mut other = decoded.clone();
            other[place] ^= 1;
            let token = format!("{header}.{RFC_CLAIMS}.{}", base64(other));
            assert_refused(host.open(bearer(&token)), "the signature is wrong");
        }
        let other_claims = base64(r#"{"iss":"joe","exp":1300819381}"#);
        for forged in [
            format!("{header}.{other_claims}.{signature}"),
            format!("{header}.{RFC_CLAIMS}."),
            format!("{header}.{RFC_CLAIMS}.{}", base64(&decoded[1..])),
            format!(
                "{header}.{RFC_CLAIMS}.{}",
                base64([&decoded[..], &[0]].concat())
            ),
            format!("{header}.{RFC_CLAIMS}.{}", base64(vec![0; decoded.len()])),
        ] {
            assert_refused(host.open(bearer(&forged)), "the signature is wrong");
        }
    }
}

/// RFC 8037 appendix A.4: its payload is no JSON, which is found out once the signature is right.
#[test]
fn the_signature_of_the_rfc_with_ed25519_is_right() {
    let token = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    let opened = open_with_keys(&[ed_key()], token);
    assert_refused(opened, "the claims are no JSON object");
    let opened = open_with_keys(&[ed_key()], &token.replace("hgyY", "hgyX"));
    assert_refused(opened, "the signature is wrong");
}

#[test]
fn a_key_of_each_kind_verifies_what_its_owner_signs() {
    let ec = p256::ecdsa::SigningKey::from_slice(&[7; 32]).unwrap();
    let point = ec.verifying_key().to_sec1_point(false);
    let (x, y) = (base64(point.x().unwrap()), base64(point.y().unwrap()));
    let ed = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
    let keys = [
        json!({"kty": "EC", "crv": "P-256", "x": x, "y": y, "alg": "ES256", "use": "sig"}),
        json!({"kty": "OKP", "crv": "Ed25519", "x": base64(ed.verifying_key()), "alg": "Ed25519"}),
    ];
    let claims = json!({"exp": RFC_EXP_MS / 1000});
    let by_ec = |alg| {
        signed_with(&json!({"alg": alg}), &claims, |signed| {
            let signature: p256::ecdsa::Signature = ec.sign(signed);
            signature.to_bytes().to_vec()
        })
    };
    let by_ed = |alg| {
        signed_with(&json!({"alg": alg}), &claims, |signed| {
            ed.sign(signed).to_bytes().to_vec()
        })
    };
    open_with_keys(&keys, &by_ec("ES256")).unwrap();
    open_with_keys(&keys, &by_ed("EdDSA")).unwrap();
    open_with_keys(&keys, &by_ed("Ed25519")).unwrap();
    let wrong = "the signature is wrong";
    assert_refused(open_with_keys(&keys, &by_ec("EdDSA")), wrong);
    assert_refused(open_with_keys(&keys, &by_ed("ES256")), wrong);
}

/// RFC 8725 sections 2.1 and 3.1.
#[test]
fn a_token_cannot_choose_its_algorithm() {
    let no_key = "no key is for this algorithm and kid";
    let claims = json!({"exp": RFC_EXP_MS / 1000});
    for alg in [
        "none", "None", "nOnE", "", "HS384", "RS512", "PS256", "hs256",
    ] {
        let unsigned = signed_with(&json!({"alg": alg}), &claims, |_| Vec::new());
        for key in [rsa_key(), ec_key(), ed_key()] {
            assert_refused(open_with_keys(&[key], &unsigned), no_key);
        }
    }
    // What anybody knows of the public key is taken for a secret.
    for key in [rsa_key(), ec_key(), ed_key()] {
        for secret in [
            RSA_N.as_bytes(),
            EC_X.as_bytes(),
            &URL_SAFE_NO_PAD.decode(RSA_N).unwrap(),
        ] {
            let forged = signed_with(&json!({"alg": "HS256"}), &claims, |signed| {
                hs256(secret, signed)
            });
            assert_refused(open_with_keys(std::slice::from_ref(&key), &forged), no_key);
        }
    }
}

#[test]
fn the_kid_picks_the_key() {
    let secrets = [[1; 32], [2; 32]];
    let oct =
        |place: usize, kid: &str| json!({"kty": "oct", "k": base64(secrets[place]), "kid": kid});
    let sign = |header: Value, place: usize| {
        let claims = json!({"exp": RFC_EXP_MS / 1000});
        signed_with(&header, &claims, |signed| hs256(&secrets[place], signed))
    };
    let two = [oct(0, "a"), oct(1, "b"), rsa_key()];
    let one = &two[..1];
    let check = |keys: &[Value], header: Value, place, expected: Option<&str>| {
        let opened = open_with_keys(keys, &sign(header, place));
        match expected {
            None => opened.unwrap(),
            Some(error) => assert_refused(opened, error),
        }
    };
    let no_key = Some("no key is for this algorithm and kid");
    check(&two, json!({"alg": "HS256", "kid": "a"}), 0, None);
    check(&two, json!({"alg": "HS256", "kid": "b"}), 1, None);
    check(
        &two,
        json!({"alg": "HS256", "kid": "b"}),
        0,
        Some("the signature is wrong"),
    );
    check(&two, json!({"alg": "HS256", "kid": "c"}), 0, no_key);
    check(
        &two,
        json!({"alg": "RS256", "kid": "a"}),
        0,
        Some("the signature is wrong"),
    );
    // Which of the two is not said; with one key there is nothing to say.
    check(&two, json!({"alg": "HS256"}), 0, no_key);
    check(one, json!({"alg": "HS256"}), 0, None);
    check(one, json!({"alg": "HS256", "kid": "c"}), 0, no_key);
    // A key without a name takes tokens with any.
    let nameless = json!({"kty": "oct", "k": base64(secrets[0])});
    check(&[nameless], json!({"alg": "HS256", "kid": "c"}), 0, None);
}

#[test]
fn claims_are_checked() {
    let check = |config: Value, mut claims: Value, expected: Option<&str>| {
        if claims.get("exp").is_none() {
            claims["exp"] = (NOW + 10).into();
        }
        match expected {
            None => drop(open(config, claims).unwrap()),
            Some(error) => assert_refused(open(config, claims), error),
        }
    };
    let expired = Some("the token has expired");
    check(json!({}), json!({"exp": NOW}), expired);
    check(json!({}), json!({"exp": NOW as f64 + 0.001}), None);
    check(json!({}), json!({"exp": -1}), expired);
    check(json!({}), json!({"exp": 1e300}), None);
    check(json!({"leeway_secs": 60}), json!({"exp": NOW - 59}), None);
    check(
        json!({"leeway_secs": 60}),
        json!({"exp": NOW - 60}),
        expired,
    );
    let no_exp = Some("the claim exp is missing or unusable");
    check(json!({}), json!({"exp": null}), no_exp);
    check(json!({}), json!({"exp": "1800000000"}), no_exp);
    check(json!({"require_exp": false}), json!({"exp": null}), None);
    check(json!({"require_exp": false}), json!({"exp": NOW}), expired);
    check(json!({"require_exp": false}), json!({"exp": []}), no_exp);

    let early = Some("the token is not valid yet");
    check(json!({}), json!({"nbf": NOW}), None);
    check(json!({}), json!({"nbf": NOW + 1}), early);
    check(json!({"leeway_secs": 1}), json!({"nbf": NOW + 1}), None);
    check(
        json!({}),
        json!({"nbf": "soon"}),
        Some("the claim nbf is missing or unusable"),
    );

    let issuer = Some("the token is from another issuer");
    check(json!({"issuer": "a"}), json!({"iss": "a"}), None);
    check(json!({"issuer": ["a", "b"]}), json!({"iss": "b"}), None);
    check(json!({"issuer": "a"}), json!({"iss": "A"}), issuer);
    check(json!({"issuer": "a"}), json!({"iss": ["a"]}), issuer);
    check(json!({"issuer": "a"}), json!({}), issuer);

    let audience = Some("the token is for another audience");
    check(json!({"audience": "a"}), json!({"aud": "a"}), None);
    check(
        json!({"audience": ["a", "b"]}),
        json!({"aud": ["c", "b"]}),
        None,
    );
    check(json!({"audience": "a"}), json!({"aud": "b"}), audience);
    check(json!({"audience": "a"}), json!({"aud": []}), audience);
    check(
        json!({"audience": "a"}),
        json!({"aud": [["a"], 1]}),
        audience,
    );
    check(json!({"audience": "a"}), json!({}), audience);
    check(json!({}), json!({"aud": "a"}), audience);
}

#[test]
fn what_is_no_token_is_refused() {
    let mut host = start(json!({}));
    let mut check = |token: &str, expected| assert_refused(host.open(bearer(token)), expected);
    let claims = json!({"exp": NOW + 10});
    let with =
        |header: Value| signed_with(&header, &claims, |signed| hs256(SECRET.as_bytes(), signed));
    let good = with(json!({"alg": "HS256"}));
    for token in [
        "x".to_owned(),
        "..".to_owned(),
        format!("{good}.x"),
        format!("{good}="),
        format!("x{good}"),
        good.replacen('.', "", 1),
        with(json!([])),
        with(json!({"alg": 1})),
        with(json!({"typ": "JWT"})),
        with(json!({"alg": "HS256", "kid": 1})),
    ] {
        check(&token, "no token");
    }
    let crit = json!({"alg": "HS256", "crit": ["b64"], "b64": false});
    check(&with(crit), "an extension that is not understood");
    check(&"a".repeat(8193), "the token is too long");
    check(&token(json!([1])), "the claims are no JSON object");
    assert_eq!(counted("refused_malformed"), 13);
    assert_eq!(counted("accepted"), 0);
}

#[test]
fn the_token_is_found_where_the_operator_says() {
    let good = token(json!({"exp": NOW + 10}));
    let all = json!({"sources": ["header", "query", "subprotocol", "cookie"]});
    let query = |query: String| Facts {
        path: format!("/chat?{query}"),
        ..facts()
    };
    let offer = |offered: &[&str]| Facts {
        offered_subprotocols: offered.iter().map(|&name| name.to_owned()).collect(),
        ..facts()
    };
    let in_subprotocol = format!("bearer.{good}");
    let found = [
        (json!({}), bearer(&good)),
        (
            json!({}),
            with_header("authorization", &format!("bEARER  {good}")),
        ),
        (json!({"header": "X-Token"}), with_header("x-token", &good)),
        (
            json!({"header": "X-Token"}),
            with_header("x-token", &format!("Bearer {good}")),
        ),
        (all.clone(), query(format!("a=b&access_token={good}"))),
        (
            json!({"sources": ["query"], "query": "jwt"}),
            query(format!("jwt={good}")),
        ),
        (all.clone(), offer(&["chat", &in_subprotocol])),
        (
            all.clone(),
            with_header("cookie", &format!("a=b; access_token={good}")),
        ),
        (
            json!({"sources": ["cookie"], "cookie": "id"}),
            with_header("cookie", &format!("id={good}")),
        ),
        // Of another scheme, so it is none; the next place is looked at.
        (
            all.clone(),
            Facts {
                path: format!("/?access_token={good}"),
                ..with_header("authorization", "Basic YTpi")
            },
        ),
    ];
    for (config, facts) in found {
        let session = start(config).open(facts.clone()).unwrap();
        let hidden = session.admission.hide_subprotocols;
        let offers_it = facts.offered_subprotocols.contains(&in_subprotocol);
        assert_eq!(hidden.contains(&in_subprotocol), offers_it);
        assert_eq!(hidden.len(), usize::from(offers_it));
    }
    let missing = [
        (json!({}), facts()),
        (json!({}), with_header("authorization", "Bearer")),
        (json!({}), with_header("authorization", "Bearer ")),
        (json!({}), with_header("authorization", &good)),
        (json!({}), query(format!("access_token={good}"))),
        (json!({}), offer(&[&in_subprotocol])),
        (all.clone(), query("access_token=".to_owned())),
        (all.clone(), offer(&["bearer."])),
    ];
    for (config, facts) in missing {
        let refusal = start(config).open(facts).unwrap_err();
        let challenge = Header::new("www-authenticate", "Bearer");
        assert_eq!((refusal.status, refusal.headers), (401, vec![challenge]));
        assert_eq!(counted("refused_missing"), 1);
    }
    let twice = Facts {
        headers: [bearer(&good).headers, bearer(&good).headers].concat(),
        ..facts()
    };
    for facts in [twice, offer(&[&in_subprotocol, "bearer.x"])] {
        assert_refused(start(all.clone()).open(facts), "more than one token");
    }
    // The place before decides, and a token in a subprotocol is hidden all the same.
    let both = Facts {
        headers: bearer(&good).headers,
        ..offer(&["bearer.x", "chat"])
    };
    let session = start(all).open(both).unwrap();
    assert_eq!(session.admission.hide_subprotocols, ["bearer.x"]);
}

#[test]
fn the_backend_gets_claims_as_headers() {
    let config = json!({"claims_to_headers": {"sub": "X-User", "n": "x-n", "roles": "x-roles"}});
    let claims = json!({"exp": NOW + 10, "sub": "ada@x.org", "n": 7, "roles": ["a", "b"]});
    let session = open(config.clone(), claims.clone()).unwrap();
    let expected = [
        ("x-n", "7"),
        ("x-roles", r#"["a","b"]"#),
        ("x-user", "ada@x.org"),
    ];
    let mut headers = session.admission.set_headers;
    headers.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(
        headers,
        expected.map(|(name, value)| Header::new(name, value))
    );

    // The host would leave these out, and let the client's own header through.
    for sub in [
        json!(null),
        json!("a\r\nx-n: 8"),
        json!("a\0"),
        json!("Zoë"),
        json!(" a"),
        json!(["\u{7f}"]),
    ] {
        let mut claims = claims.clone();
        claims["sub"] = sub;
        assert_refused(
            open(config.clone(), claims),
            "the claim sub is missing or unusable",
        );
    }
    assert_eq!(counted("refused_claim"), 1);
}

#[test]
fn a_session_ends_with_its_token() {
    let close = |code| Verdict::Close(Close::new(code, "token expired"));
    for (config, code, life_secs) in [
        (json!({}), 1008, 10),
        (json!({"expired_close_code": 3000}), 3000, 10),
        (json!({"leeway_secs": 5}), 1008, 15),
    ] {
        let mut session = open(config, json!({"exp": NOW + 10})).unwrap();
        assert_eq!(session.tick_interval_ms, 1000);
        assert_eq!(session.session().interest(), Interest::empty());
        advance(Duration::from_millis(life_secs * 1000 - 1));
        assert_eq!(session.tick(), Verdict::Drop);
        advance(Duration::from_millis(1));
        assert_eq!(session.tick(), close(code));
        assert_eq!(counted("expired"), 1);
        session.end(&report());
    }
    let mut endless = open(json!({"require_exp": false}), json!({})).unwrap();
    assert_eq!(endless.tick_interval_ms, 0);
    advance(Duration::from_secs(1 << 30));
    assert_eq!(endless.tick(), Verdict::Drop);
}

/// The plugin was given another configuration in between, say.
#[test]
fn a_session_without_a_readable_token_ends_at_once() {
    let mut host = start(json!({}));
    for facts in [facts(), bearer("x"), bearer("e30.W10.")] {
        let mut session = host.filter().open(facts);
        assert_eq!(session.tick_interval_ms(), 1000);
        assert!(matches!(session.tick(), Verdict::Close(_)));
    }
}

fn refresh(token: &str) -> Message {
    Message::text(json!({"type": "auth.refresh", "token": token}).to_string())
}

#[track_caller]
fn assert_answer(verdict: Verdict, expected: Value) {
    let Verdict::Answer(messages) = verdict else {
        panic!("{verdict:?} is no answer");
    };
    let [Message::Text(text)] = &messages[..] else {
        panic!("{messages:?} is not one text");
    };
    assert_eq!(serde_json::from_str::<Value>(text).unwrap(), expected);
}

#[test]
fn a_new_token_prolongs_the_session() {
    let claims = |exp| json!({"exp": exp, "sub": "ada", "iss": "a"});
    let mut session = open(json!({"refresh": {}}), claims(NOW + 10)).unwrap();
    assert_eq!(session.session().interest(), Interest::CLIENT_TEXT);
    advance(Duration::from_secs(9));
    let verdict = session.from_client(refresh(&token(claims(NOW + 60))));
    assert_answer(verdict, json!({"type": "auth.refreshed", "exp": NOW + 60}));
    assert_eq!(counted("refreshed"), 1);
    advance(Duration::from_secs(50));
    assert_eq!(session.tick(), Verdict::Drop);
    advance(Duration::from_secs(1));
    assert!(matches!(session.tick(), Verdict::Close(_)));
    // Too late, though the next tick is to come.
    let verdict = session.from_client(refresh(&token(claims(NOW + 90))));
    assert!(matches!(verdict, Verdict::Close(_)));
}

#[test]
fn a_bad_new_token_changes_nothing() {
    let claims = json!({"exp": NOW + 60, "sub": "ada", "iss": "a"});
    let but = |key: &str, value: Value| {
        let mut claims = claims.clone();
        claims[key] = value;
        refresh(&token(claims))
    };
    let other = "the token is for another subject";
    let mut session = open(json!({"refresh": {}}), claims.clone()).unwrap();
    let bad = [
        (but("sub", json!("bob")), other),
        (but("iss", json!("b")), other),
        (but("sub", json!(null)), other),
        (but("exp", json!(NOW)), "the token has expired"),
        (
            refresh(&format!("{}x", token(claims.clone()))),
            "the signature is wrong",
        ),
        (
            Message::text(r#"{"type":"auth.refresh"}"#),
            "a token is needed",
        ),
        (
            Message::text(r#"{"type":"auth.refresh","token":5}"#),
            "a token is needed",
        ),
    ];
    let n = bad.len() as u64;
    for (message, error) in bad {
        assert_answer(
            session.from_client(message),
            json!({"type": "auth.error", "error": error}),
        );
        let verdict = session.from_client(but("exp", json!(NOW + 90)));
        assert_answer(
            verdict,
            json!({"type": "auth.error", "error": "one token a second is looked at"}),
        );
        advance(Duration::from_secs(1));
    }
    assert_eq!(
        (counted("refresh_refused"), counted("refreshed")),
        (2 * n, 0)
    );
    advance(Duration::from_secs(60 - n));
    assert!(matches!(session.tick(), Verdict::Close(_)));

    let nobody = json!({"exp": NOW + 60});
    let mut session = open(json!({"refresh": {}}), nobody.clone()).unwrap();
    let verdict = session.from_client(refresh(&token(nobody)));
    assert_answer(verdict, json!({"type": "auth.error", "error": other}));
}

#[test]
fn other_messages_pass() {
    let config = json!({"refresh": {"type": "renew"}});
    let mut session = open(config, json!({"exp": NOW + 60, "sub": "ada"})).unwrap();
    let long = format!(
        r#"{{"type":"renew","token":"x","pad":"{}"}}"#,
        "x".repeat(9216)
    );
    for text in [
        "",
        "hi",
        "renew",
        r#""renew""#,
        r#"["renew"]"#,
        r#"{"type":"renew""#,
        r#"{"type":"renewal","token":"x"}"#,
        r#"{"kind":"renew","token":"x"}"#,
        &long,
    ] {
        assert_eq!(
            session.from_client(Message::text(text)),
            Verdict::Forward,
            "{text}"
        );
        assert_eq!(session.from_backend(Message::text(text)), Verdict::Forward);
    }
    assert_eq!(
        session.from_client(Message::binary("renew")),
        Verdict::Forward
    );
    let taken = session.from_client(Message::text(r#" { "token" : "x", "type" : "renew" } "#));
    assert!(matches!(taken, Verdict::Answer(_)));
}

#[test]
fn a_wrong_configuration_is_refused() {
    let check = |mut config: Value, expected: &str| {
        if config.get("jwks").is_none() {
            config["secret"] = SECRET.into();
        }
        assert_eq!(FilterHost::<Jwt>::start(config).unwrap_err(), expected);
    };
    check(
        json!({"expired_close_code": 1000}),
        "expired_close_code: 1000 is not allowed: 1008, or 3000 to 4999",
    );
    check(
        json!({"leeway_secs": 61}),
        "leeway_secs: 61 is not allowed: 0 to 60",
    );
    check(
        json!({"sources": []}),
        "sources: [] is not allowed: at least one, and none twice",
    );
    check(
        json!({"sources": ["query", "query"]}),
        "sources: [Query, Query] is not allowed: at least one, and none twice",
    );
    check(
        json!({"sources": ["path"]}),
        "sources[0]: unknown variant `path`, expected one of `header`, `query`, `subprotocol`, `cookie`",
    );
    check(
        json!({"header": "a b"}),
        "header: \"a b\" is not allowed: a name without spaces and separators",
    );
    check(
        json!({"subprotocol_prefix": ""}),
        "subprotocol_prefix: \"\" is not allowed: a name without spaces and separators",
    );
    check(
        json!({"audience": 5}),
        "audience: 5 is not allowed: a string, or a list of strings",
    );
    check(
        json!({"issuer": []}),
        "issuer: [] is not allowed: a string, or a list of strings",
    );
    check(
        json!({"claims_to_headers": {"sub": "x y"}}),
        "claims_to_headers: \"x y\" is not allowed: a name without spaces and separators",
    );
    check(
        json!({"claims_to_headers": {"a": "X-A", "b": "x-a"}}),
        "claims_to_headers: two claims are for the header \"x-a\"",
    );
    check(
        json!({"claims_to_headers": {"a": "Upgrade"}}),
        "claims_to_headers: \"upgrade\" is not allowed: it belongs to the connection or the handshake",
    );
    check(
        json!({"claims_to_headers": {"a\"": "x"}}),
        "claims_to_headers: the claim \"a\\\"\" is not allowed: ASCII without quotes and backslashes",
    );
    check(
        json!({"refresh": {"type": ""}}),
        "refresh.type: \"\" is not allowed: 1 to 64 characters, ASCII without quotes and backslashes",
    );
    let unknown = FilterHost::<Jwt>::start(json!({"algorithm": "none"})).unwrap_err();
    assert!(
        unknown.starts_with("unknown field `algorithm`, expected one of"),
        "{unknown}"
    );
}

#[test]
fn wrong_keys_are_refused_and_never_repeated() {
    let check = |key: Value, expected: &str| {
        let config = json!({"jwks": {"keys": [rsa_key(), key]}});
        let error = FilterHost::<Jwt>::start(config).unwrap_err();
        assert_eq!(error, format!("jwks.keys[1]: {expected}"));
    };
    let but = |mut key: Value, member: &str, value: Value| {
        key[member] = value;
        key
    };
    let no_base64 = "not in base64url without padding (RFC 7515 section 2)";
    let kinds = "\"oct\", \"RSA\", \"EC\" with \"P-256\", or \"OKP\" with \"Ed25519\"";
    check(json!({}), "kty: a string is needed");
    check(json!({"kty": "oct"}), "k: a string is needed");
    check(
        json!({"kty": "oct", "k": "secret secret"}),
        &format!("k: {no_base64}"),
    );
    check(
        json!({"kty": "oct", "k": base64([0; 31])}),
        "k: a string of at least 32 bytes is needed",
    );
    check(
        json!({"kty": "AKP"}),
        &format!("kty \"AKP\" with crv \"\" is not allowed: {kinds}"),
    );
    check(
        but(ec_key(), "crv", json!("P-384")),
        &format!("kty \"EC\" with crv \"P-384\" is not allowed: {kinds}"),
    );
    check(
        but(ec_key(), "x", json!(EC_Y)),
        "x, y: no point of the curve P-256, of 32 bytes each",
    );
    check(
        but(ec_key(), "alg", json!("HS256")),
        "alg: \"HS256\" is not allowed: a key of kty \"EC\" is for \"ES256\"",
    );
    check(
        but(ed_key(), "x", json!("AA")),
        "x: no point of the curve Ed25519, of 32 bytes",
    );
    check(
        but(ed_key(), "x", json!(base64([&[1], &[0; 31][..]].concat()))),
        "x: a weak point of the curve Ed25519",
    );
    check(
        but(ed_key(), "d", json!("x")),
        "d: a private key does not belong here",
    );
    check(but(ed_key(), "kid", json!(5)), "kid: a string is needed");
    check(
        but(rsa_key(), "alg", json!("RS512")),
        "alg: \"RS512\" is not allowed: a key of kty \"RSA\" is for \"RS256\"",
    );
    check(
        but(rsa_key(), "n", json!(base64([255; 255]))),
        "n: 2040 bits are not allowed: 2048 to 8192",
    );
    check(
        but(rsa_key(), "n", json!(base64([255; 1025]))),
        "n: 8200 bits are not allowed: 2048 to 8192",
    );
    check(
        but(rsa_key(), "n", json!(base64([254; 256]))),
        "n: an even number is no modulus",
    );
    for e in ["Aw", "AQAC", "AQAAAAAB", ""] {
        check(
            but(rsa_key(), "e", json!(e)),
            "e: not allowed: an odd number from 65537 (\"AQAB\") to 4294967295",
        );
    }

    let refused = |config| FilterHost::<Jwt>::start(config).unwrap_err();
    assert_eq!(
        refused(json!({})),
        "no key: one is needed in \"secret\" or \"jwks\""
    );
    let encryption = but(rsa_key(), "use", json!("enc"));
    assert_eq!(
        refused(json!({"jwks": {"keys": [encryption]}})),
        "no key: one is needed in \"secret\" or \"jwks\""
    );
    for secret in [json!(SECRET[1..]), json!([SECRET]), json!(7)] {
        assert_eq!(
            refused(json!({"secret": secret})),
            "secret: a string of at least 32 bytes is needed"
        );
    }
    for jwks in [
        json!([]),
        json!({"keys": {}}),
        json!("x"),
        json!({"keys": vec![ec_key(); 33]}),
    ] {
        assert_eq!(
            refused(json!({"jwks": jwks})),
            "jwks: not allowed: a table { keys = [...] } of at most 32 keys"
        );
    }
    let named = but(rsa_key(), "kid", json!("a"));
    for pair in [
        [rsa_key(), rsa_key()],
        [named.clone(), rsa_key()],
        [named.clone(), named],
    ] {
        assert_eq!(
            refused(json!({"jwks": {"keys": pair}})),
            "jwks: two keys are for RS256: where there are several, each needs a \"kid\" of its own"
        );
    }
}

#[test]
fn nothing_tells_of_secrets_and_tokens() {
    let config = json!({"secret": SECRET, "jwks": {"keys": []}});
    let config: Config = serde_json::from_value(config).unwrap();
    let mut printed = format!("{config:?}");
    printed += &format!("{:?}", Jwt::configure(config).unwrap());
    let mut host = start(json!({}));
    let good = token(json!({"exp": NOW + 10}));
    printed += &format!("{:?}", host.open(bearer(&good)).unwrap().session());
    printed += &format!("{:?}", host.open(bearer(&format!("{good}x"))).unwrap_err());
    assert_eq!(log_lines().len(), 1);
    printed += &format!("{:?}", log_lines());
    for secret in [SECRET, &good[..20], &good[good.len() - 20..]] {
        assert!(!printed.contains(secret), "{printed}");
    }
}
