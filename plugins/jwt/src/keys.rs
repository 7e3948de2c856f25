//! The operator's keys (RFC 7517) and which of them a token is held against. A key is of one
//! algorithm, by what it is; what a token's header says only has to agree (RFC 8725 section 3.1).

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use p256::ecdsa::signature::Verifier;
use serde_json::Value;
use sha2::Sha256;

use crate::rs256::RsaKey;

/// RFC 7518 section 3.2: as long as the hash.
const MIN_SECRET_BYTES: usize = 32;

/// Far more than are in use at one time.
const MAX_KEYS: usize = 32;

/// How a token may be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Hs256,
    Rs256,
    Es256,
    EdDsa,
}

impl Algorithm {
    /// As `alg` names it in keys and in headers. `Ed25519` is what RFC 9864 calls `EdDSA` with that
    /// curve.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "HS256" => Some(Self::Hs256),
            "RS256" => Some(Self::Rs256),
            "ES256" => Some(Self::Es256),
            "EdDSA" | "Ed25519" => Some(Self::EdDsa),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }
}

/// One key, ready to verify.
pub(crate) struct Key {
    id: Option<String>,
    verifier: KeyVerifier,
}

enum KeyVerifier {
    Hs256(Hmac<Sha256>),
    Rs256(RsaKey),
    Es256(p256::ecdsa::VerifyingKey),
    EdDsa(ed25519_dalek::VerifyingKey),
}

impl Key {
    /// Whether this key has signed the bytes.
    pub(crate) fn verify(&self, signed: &[u8], signature: &[u8]) -> bool {
        match &self.verifier {
            KeyVerifier::Hs256(key) => {
                let code = key.clone().chain_update(signed);
                code.verify_slice(signature).is_ok()
            }
            KeyVerifier::Rs256(key) => key.verify(signed, signature),
            // The two numbers, not DER (RFC 7518 section 3.4).
            KeyVerifier::Es256(key) => p256::ecdsa::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify(signed, &signature).is_ok()),
            KeyVerifier::EdDsa(key) => ed25519_dalek::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify_strict(signed, &signature).is_ok()),
        }
    }

    fn algorithm(&self) -> Algorithm {
        match self.verifier {
            KeyVerifier::Hs256(_) => Algorithm::Hs256,
            KeyVerifier::Rs256(_) => Algorithm::Rs256,
            KeyVerifier::Es256(_) => Algorithm::Es256,
            KeyVerifier::EdDsa(_) => Algorithm::EdDsa,
        }
    }

    /// Whether a token of this algorithm and `kid` may be held against this key. One that has no
    /// name, token or key, goes with any.
    fn fits(&self, algorithm: Algorithm, id: Option<&str>) -> bool {
        let same_id = match (self.id.as_deref(), id) {
            (Some(own), Some(id)) => own == id,
            (None, _) | (_, None) => true,
        };
        self.algorithm() == algorithm && same_id
    }
}

/// All keys. For each algorithm there is one key, or several that all have names of their own; so a
/// token is held against one key at most.
pub(crate) struct Keys(Vec<Key>);

impl Keys {
    /// Reads `jwks` and `secret` of the configuration. Errors say nothing of what was found in the
    /// members that hold keys.
    pub(crate) fn read(jwks: &Value, secret: &Value) -> Result<Self, String> {
        let mut keys = Vec::new();
        if !secret.is_null() {
            let secret = secret.as_str().map(str::as_bytes);
            let verifier = hs256(secret.unwrap_or_default()).map_err(|e| format!("secret: {e}"))?;
            keys.push(Key { id: None, verifier });
        }
        for (place, jwk) in listed(jwks)?.iter().enumerate() {
            let key = key(jwk).map_err(|error| format!("jwks.keys[{place}]: {error}"))?;
            keys.extend(key);
        }
        if keys.is_empty() {
            return Err("no key: one is needed in \"secret\" or \"jwks\"".to_owned());
        }
        for (place, key) in keys.iter().enumerate() {
            let alike = |other: &Key| other.fits(key.algorithm(), key.id.as_deref());
            if keys[..place].iter().any(alike) {
                return Err(format!(
                    "jwks: two keys are for {}: where there are several, each needs a \"kid\" of its own",
                    key.algorithm().name()
                ));
            }
        }
        Ok(Self(keys))
    }

    /// The key for a token of this algorithm and `kid`. None if no key fits, or if several do,
    /// because the token names none of them.
    pub(crate) fn pick(&self, algorithm: Algorithm, id: Option<&str>) -> Option<&Key> {
        let mut fitting = self.0.iter().filter(|key| key.fits(algorithm, id));
        let key = fitting.next()?;
        fitting.next().is_none().then_some(key)
    }
}

fn listed(jwks: &Value) -> Result<&[Value], String> {
    match jwks.get("keys") {
        Some(Value::Array(keys)) if keys.len() <= MAX_KEYS => Ok(keys),
        None if jwks.is_null() => Ok(&[]),
        _ => Err(format!(
            "jwks: not allowed: a table {{ keys = [...] }} of at most {MAX_KEYS} keys"
        )),
    }
}

/// None if the key is not for signatures. Members that are not known are passed over (RFC 7517
/// section 4).
fn key(jwk: &Value) -> Result<Option<Key>, String> {
    if jwk.get("use").is_some_and(|purpose| purpose != "sig") {
        return Ok(None);
    }
    if jwk.get("d").is_some() {
        return Err("d: a private key does not belong here".to_owned());
    }
    let kty = text(jwk, "kty")?;
    let crv = jwk.get("crv").and_then(Value::as_str);
    let verifier = match (kty, crv) {
        ("oct", _) => hs256(&bytes(jwk, "k")?).map_err(|error| format!("k: {error}"))?,
        ("RSA", _) => KeyVerifier::Rs256(RsaKey::new(&bytes(jwk, "n")?, &bytes(jwk, "e")?)?),
        ("EC", Some("P-256")) => es256(&bytes(jwk, "x")?, &bytes(jwk, "y")?)?,
        ("OKP", Some("Ed25519")) => ed_dsa(&bytes(jwk, "x")?)?,
        (kty, crv) => {
            return Err(format!(
                "kty {kty:?} with crv {:?} is not allowed: \"oct\", \"RSA\", \"EC\" with \"P-256\", or \"OKP\" with \"Ed25519\"",
                crv.unwrap_or_default()
            ));
        }
    };
    let id = match jwk.get("kid") {
        None => None,
        Some(_) => Some(text(jwk, "kid")?.to_owned()),
    };
    let key = Key { id, verifier };
    match jwk.get("alg") {
        Some(_) if Algorithm::named(text(jwk, "alg")?) != Some(key.algorithm()) => Err(format!(
            "alg: {:?} is not allowed: a key of kty {kty:?} is for {:?}",
            text(jwk, "alg")?,
            key.algorithm().name()
        )),
        _ => Ok(Some(key)),
    }
}

fn hs256(secret: &[u8]) -> Result<KeyVerifier, String> {
    let error = || format!("a string of at least {MIN_SECRET_BYTES} bytes is needed");
    if secret.len() < MIN_SECRET_BYTES {
        return Err(error());
    }
    let key = Hmac::new_from_slice(secret).map_err(|_| error())?;
    Ok(KeyVerifier::Hs256(key))
}

fn es256(x: &[u8], y: &[u8]) -> Result<KeyVerifier, String> {
    // SEC 1 section 2.3.3: uncompressed.
    let point = [&[4], x, y].concat();
    let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(&point);
    let key = key.map_err(|_| "x, y: no point of the curve P-256, of 32 bytes each")?;
    Ok(KeyVerifier::Es256(key))
}

fn ed_dsa(x: &[u8]) -> Result<KeyVerifier, String> {
    let key = ed25519_dalek::VerifyingKey::try_from(x);
    let key = key.map_err(|_| "x: no point of the curve Ed25519, of 32 bytes")?;
    match key.is_weak() {
        true => Err("x: a weak point of the curve Ed25519".to_owned()),
        false => Ok(KeyVerifier::EdDsa(key)),
    }
}

fn text<'a>(jwk: &'a Value, member: &str) -> Result<&'a str, String> {
    let text = jwk.get(member).and_then(Value::as_str);
    text.ok_or_else(|| format!("{member}: a string is needed"))
}

fn bytes(jwk: &Value, member: &str) -> Result<Vec<u8>, String> {
    let bytes = URL_SAFE_NO_PAD.decode(text(jwk, member)?);
    bytes.map_err(|_| format!("{member}: not in base64url without padding (RFC 7515 section 2)"))
}
