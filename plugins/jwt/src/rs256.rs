//! RS256: RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017 section 8.2.2). It only verifies: all that it
//! works on is public, so its time may tell of it. Of the crate `rsa` this would be a small part,
//! and that crate carries an advisory about private keys (RUSTSEC-2023-0071).

use crypto_bigint::{
    BoxedUint, Odd,
    modular::{BoxedMontyForm, BoxedMontyParams},
};
use sha2::{Digest, Sha256};

/// RFC 7518 section 3.3 asks for the least; the most bounds what one verification costs.
const MODULUS_BITS: std::ops::RangeInclusive<u32> = 2048..=8192;

/// FIPS 186-5 section 5.4: an odd number above 2^16. The bound keeps the power short.
const MIN_EXPONENT: u32 = 65_537;

/// What precedes the hash in what is signed (RFC 8017 section 9.2 note 1).
const SHA256_INFO: [u8; 19] = [
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05,
    0x00, 0x04, 0x20,
];

/// A public key.
pub(crate) struct RsaKey {
    /// The modulus, made ready for products modulo it.
    modulus: BoxedMontyParams,
    /// How long a signature is, in bytes.
    len: usize,
    exponent: u32,
}

impl RsaKey {
    /// Both numbers are unsigned, the highest byte first. An error says which of the key's members
    /// (RFC 7518 section 6.3.1) is wrong, and what is allowed.
    pub(crate) fn new(modulus: &[u8], exponent: &[u8]) -> Result<Self, String> {
        let modulus = without_leading_zeros(modulus);
        let number = BoxedUint::from_be_slice_vartime(modulus);
        let bits = number.bit_width_vartime();
        if !MODULUS_BITS.contains(&bits) {
            let (least, most) = (MODULUS_BITS.start(), MODULUS_BITS.end());
            return Err(format!("n: {bits} bits are not allowed: {least} to {most}"));
        }
        let number: Option<Odd<BoxedUint>> = Odd::new(number).into();
        let number = number.ok_or("n: an even number is no modulus")?;
        let exponent = without_leading_zeros(exponent);
        let exponent = exponent_of(exponent).ok_or(format!(
            "e: not allowed: an odd number from {MIN_EXPONENT} (\"AQAB\") to 4294967295"
        ))?;
        Ok(Self {
            modulus: BoxedMontyParams::new_vartime(number),
            len: modulus.len(),
            exponent,
        })
    }

    /// Whether this key has signed the message. What ought to have been signed is made anew and
    /// compared as a whole: nothing of the signature's padding is parsed.
    pub(crate) fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        if signature.len() != self.len {
            return false;
        }
        let precision = self.modulus.bits_precision();
        let expected = BoxedUint::from_be_slice(&encoded(message, self.len), precision);
        let signature = BoxedUint::from_be_slice(signature, precision);
        match (signature, expected) {
            (Ok(signature), Ok(expected)) if signature < **self.modulus.modulus() => {
                self.power(signature) == expected
            }
            _ => false,
        }
    }

    /// To the exponent, modulo the modulus: squares, and multiplies where the exponent has a bit.
    fn power(&self, base: BoxedUint) -> BoxedUint {
        let base = BoxedMontyForm::new(base, &self.modulus);
        let mut power = base.clone();
        for bit in (0..self.exponent.ilog2()).rev() {
            power = power.square();
            if self.exponent >> bit & 1 == 1 {
                power = power.mul(&base);
            }
        }
        power.retrieve()
    }
}

/// EMSA-PKCS1-v1_5 (RFC 8017 section 9.2).
fn encoded(message: &[u8], len: usize) -> Vec<u8> {
    let hash = Sha256::digest(message);
    let mut encoded = vec![0xff; len - SHA256_INFO.len() - hash.len()];
    encoded[..2].copy_from_slice(&[0, 1]);
    if let Some(last) = encoded.last_mut() {
        *last = 0;
    }
    encoded.extend(SHA256_INFO);
    encoded.extend(hash);
    encoded
}

fn exponent_of(bytes: &[u8]) -> Option<u32> {
    let mut padded = [0; 4];
    let start = padded.len().checked_sub(bytes.len())?;
    padded[start..].copy_from_slice(bytes);
    let exponent = u32::from_be_bytes(padded);
    (exponent >= MIN_EXPONENT && exponent % 2 == 1).then_some(exponent)
}

fn without_leading_zeros(mut bytes: &[u8]) -> &[u8] {
    while let [0, rest @ ..] = bytes {
        bytes = rest;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use crypto_bigint::CheckedAdd;

    use super::*;

    /// RFC 7515 appendix A.2.
    const N: &str = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";
    const D: &str = "Eq5xpGnNCivDflJsRQBXHx1hdR1k6Ulwe2JZD50LpXyWPEAeP88vLNO97IjlA7_GQ5sLKMgvfTeXZx9SE-7YwVol2NXOoAJe46sui395IW_GO-pWJ1O0BkTGoVEn2bKVRUCgu-GjBVaYLU6f3l9kJfFNS3E0QbVdxzubSu3Mkqzjkn439X0M_V51gfpRLI9JYanrC4D4qAdGcopV_0ZHHzQlBjudU2QvXt4ehNYTCBr6XCLQUShb1juUO1ZdiYoFaFQT5Tw8bGUl_x_jTj3ccPDVZFD9pIuhLhBOneufuBiB4cS98l2SR_RQyGWSeWjnczT0QU91p1DhOVRuOopznQ";

    fn number(text: &str) -> BoxedUint {
        let bytes = URL_SAFE_NO_PAD.decode(text).unwrap();
        BoxedUint::from_be_slice(&bytes, 2048).unwrap()
    }

    fn key() -> RsaKey {
        let modulus = URL_SAFE_NO_PAD.decode(N).unwrap();
        // A leading zero, as some write it.
        RsaKey::new(&[&[0], &modulus[..]].concat(), &[0, 1, 0, 1]).unwrap()
    }

    /// What the owner of the key can make of any padding.
    fn signature(key: &RsaKey, encoded: &[u8]) -> Vec<u8> {
        let encoded = BoxedUint::from_be_slice(encoded, 2048).unwrap();
        let signature = BoxedMontyForm::new(encoded, &key.modulus).pow(&number(D));
        signature.retrieve().to_be_bytes().to_vec()
    }

    #[test]
    fn only_the_padding_of_the_rfc_is_right() {
        let key = key();
        let right = encoded(b"message", 256);
        assert!(key.verify(b"message", &signature(&key, &right)));
        assert!(!key.verify(b"massage", &signature(&key, &right)));
        for place in (0..256).step_by(15) {
            let mut wrong = right.clone();
            wrong[place] ^= 1;
            assert!(!key.verify(b"message", &signature(&key, &wrong)), "{place}");
        }
        // Bleichenbacher's forgery: a short padding, and what is left over behind the hash.
        let mut short = vec![0, 1, 0xff, 0];
        short.extend(&right[256 - 51..]);
        short.resize(256, 0);
        assert!(!key.verify(b"message", &signature(&key, &short)));
    }

    /// RFC 8017 section 5.2.2: it would be right modulo the modulus.
    #[test]
    fn a_signature_is_below_the_modulus() {
        let key = key();
        let below = (0_u8..=255).find_map(|last| {
            let message = [last];
            let signature = signature(&key, &encoded(&message, 256));
            let signature = BoxedUint::from_be_slice(&signature, 2048).unwrap();
            let above = Option::<BoxedUint>::from(signature.checked_add(&number(N)))?;
            Some((message, above.to_be_bytes()))
        });
        let (message, above) = below.expect("some signature is small");
        assert_eq!(above.len(), 256);
        assert!(!key.verify(&message, &above));
    }
}
