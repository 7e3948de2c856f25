//! Connections to backends, plain or in TLS (RFC 8446).
//!
//! What an operator says about certificates becomes a [`Tls`], made once and kept as long as nothing
//! of it changes; a [`BackendStream`] is what is relayed over, whichever it is.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::{fmt, io};

use pointsman_config::BackendTls;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use crate::relay::stream::Stream;

/// The only protocol that backends are spoken to in (RFC 7301).
const ALPN: &[u8] = b"http/1.1";

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// How the backends of an upstream prove who they are.
pub struct Tls {
    connector: TlsConnector,
    /// What certificates have to be for; none: the address's host.
    server_name: Option<ServerName<'static>>,
    /// What the operator wrote, and the certificates that it names.
    made_of: (BackendTls, Vec<u8>),
    /// Unique in this process.
    pub id: u64,
}

impl Tls {
    /// Reads certificates. Blocks. `before` is given back where it would be the same.
    ///
    /// # Errors
    /// The file cannot be read or holds no certificate, or the system trusts nobody.
    pub fn new(config: &BackendTls, before: Option<&Arc<Self>>) -> Result<Arc<Self>, String> {
        let pem = match &config.ca {
            Some(path) => std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?,
            None => Vec::new(),
        };
        if let Some(same) = before.filter(|tls| tls.made_of.0 == *config && tls.made_of.1 == pem) {
            return Ok(Arc::clone(same));
        }
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let mut client = match (config.insecure_skip_verify, &config.ca) {
            (true, _) => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AcceptAnyCert(provider)))
                .with_no_client_auth(),
            (false, Some(path)) => builder
                .with_root_certificates(roots_in(&pem, path)?)
                .with_no_client_auth(),
            (false, None) => builder
                .with_root_certificates(roots_of_the_system()?)
                .with_no_client_auth(),
        };
        client.alpn_protocols = vec![ALPN.to_vec()];
        let server_name = config.server_name.clone().map(ServerName::try_from);
        Ok(Arc::new(Self {
            connector: TlsConnector::from(Arc::new(client)),
            server_name: server_name.transpose().map_err(|error| error.to_string())?,
            made_of: (config.clone(), pem),
            id: NEXT_ID.fetch_add(1, Relaxed),
        }))
    }

    /// Begins TLS over a connection to `address`.
    ///
    /// # Errors
    /// The backend does not speak it, or cannot prove who it is.
    pub async fn connect(&self, stream: TcpStream, address: &str) -> io::Result<BackendStream> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host_of(address).to_owned()).map_err(io::Error::other)?,
        };
        let stream = self.connector.connect(name, stream).await?;
        Ok(BackendStream::Tls(Box::new(stream)))
    }
}

/// Of `host:port`, without the brackets of an IPv6 address and the dot at the end of a name.
fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.strip_prefix('[').unwrap_or(host);
    let host = host.strip_suffix(']').unwrap_or(host);
    host.strip_suffix('.').unwrap_or(host)
}

fn roots_in(pem: &[u8], path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let added = certificate
            .map_err(|error| error.to_string())
            .and_then(|certificate| roots.add(certificate).map_err(|error| error.to_string()));
        added.map_err(|error| format!("{}: {error}", path.display()))?;
    }
    match roots.is_empty() {
        true => Err(format!("{}: there is no certificate in it", path.display())),
        false => Ok(roots),
    }
}

fn roots_of_the_system() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    match roots.is_empty() {
        true => Err("this system trusts no certificates: name some with `ca`".to_owned()),
        false => Ok(roots),
    }
}

/// Believes everybody, as `insecure_skip_verify` asks for. Signatures are checked all the same.
#[derive(Debug)]
struct AcceptAnyCert(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAnyCert {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}

/// A connection to a backend.
#[derive(Debug)]
pub enum BackendStream {
    /// As it is.
    Plain(TcpStream),
    /// In a box, so that the others are no larger for it.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream for BackendStream {
    fn socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(stream) => Some(stream),
            Self::Tls(_) => None,
        }
    }

    fn connection(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(stream) => Some(stream),
            Self::Tls(stream) => Some(stream.get_ref().0),
        }
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(stream) => stream.poll_receive(cx, buffer),
            Self::Tls(stream) => {
                let mut buffer = ReadBuf::new(buffer);
                ready!(Pin::new(stream).poll_read(cx, &mut buffer))?;
                Poll::Ready(Ok(buffer.filled().len()))
            }
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(stream) => stream.poll_send(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_clear(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }
}

impl BackendStream {
    /// The socket below.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }
}

impl AsyncRead for BackendStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for BackendStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_what_a_certificate_is_for() {
        for (address, host) in [
            ("app.internal:443", "app.internal"),
            ("app.internal.:443", "app.internal"),
            ("127.0.0.1:443", "127.0.0.1"),
            ("[::1]:443", "::1"),
        ] {
            assert_eq!(host_of(address), host);
        }
    }

    #[test]
    fn a_file_without_certificates_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let config = BackendTls {
            ca: Some(folder.path().join("ca.pem")),
            ..BackendTls::default()
        };
        let missing = Tls::new(&config, None).unwrap_err();
        assert!(missing.contains("ca.pem: No such file"), "{missing}");
        std::fs::write(folder.path().join("ca.pem"), "nothing").unwrap();
        let empty = Tls::new(&config, None).unwrap_err();
        assert!(
            empty.ends_with("ca.pem: there is no certificate in it"),
            "{empty}"
        );
    }

    #[test]
    fn the_same_is_made_once() {
        let config = BackendTls {
            insecure_skip_verify: true,
            ..BackendTls::default()
        };
        let first = Tls::new(&config, None).unwrap();
        let again = Tls::new(&config, Some(&first)).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        let other = BackendTls {
            server_name: Some("app".to_owned()),
            ..config
        };
        let other = Tls::new(&other, Some(&first)).unwrap();
        assert!(!Arc::ptr_eq(&first, &other));
    }
}
