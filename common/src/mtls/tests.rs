use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, ExtendedKeyUsagePurpose, IsCa,
};
use rcgen::{KeyPair, KeyUsagePurpose, PublicKeyData, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn root(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    fn pin(&self) -> String {
        key_pin(&self.0.key().subject_public_key_info())
    }

    fn leaf(
        &self,
        uris: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
        params.not_after = (SystemTime::now() + Duration::from_secs(600)).into();
        change(&mut params);
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let leaf = params.signed_by(&key, &self.0).unwrap().der().clone();
        (leaf, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())))
    }

    fn svid(&self, uri: &str) -> Svid {
        let (leaf, key) = self.leaf(&[uri], |_| ());
        Svid::new(vec![leaf], key, vec![self.root()]).unwrap()
    }
}

const ORDERS: &str = "spiffe://mesh.local/ns/shop/sa/orders";
const REGISTRY: &str = "spiffe://mesh.local/outrigger/registry";

async fn handshake(
    client: Arc<rustls::ClientConfig>,
    server: Arc<rustls::ServerConfig>,
) -> (Result<(), String>, Result<(), String>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (near, far) = tokio::io::duplex(64 * 1024);
    let connect = async {
        let mut stream = TlsConnector::from(client)
            .connect(ServerName::try_from("any.mesh").unwrap(), near)
            .await
            .map_err(|error| error.to_string())?;
        // The server's verdict on our certificate arrives with its first record (TLS 1.3).
        stream.write_all(b"x").await.map_err(|error| error.to_string())?;
        stream.read_u8().await.map(|_| ()).map_err(|error| error.to_string())
    };
    let accept = async {
        let mut stream = TlsAcceptor::from(server).accept(far).await.map_err(|error| error.to_string())?;
        let byte = stream.read_u8().await.map_err(|error| error.to_string())?;
        stream.write_u8(byte).await.map_err(|error| error.to_string())
    };
    tokio::join!(connect, accept)
}

#[tokio::test]
async fn peers_of_one_root_talk_and_others_do_not() {
    let (ca, other) = (Ca::new(), Ca::new());
    let server = server_config(&ca.svid(ORDERS), ClientAuth::Required, &[]).unwrap();
    let (client, accepted) = handshake(client_config(&ca.svid(ORDERS), &[]).unwrap(), server.clone()).await;
    assert_eq!((client, accepted), (Ok(()), Ok(())));

    let mut stranger = other.svid(ORDERS);
    stranger.bundle = vec![ca.root()];
    let (client, accepted) = handshake(client_config(&stranger, &[]).unwrap(), server.clone()).await;
    assert!(client.is_err() && accepted.is_err(), "a certificate of another root");

    let (client, accepted) = handshake(joining_client_config(&ca.pin(), &[]).unwrap(), server).await;
    assert!(client.is_err() && accepted.is_err(), "no certificate");

    let impostor = server_config(&other.svid(ORDERS), ClientAuth::Required, &[]).unwrap();
    let (client, _) = handshake(client_config(&ca.svid(ORDERS), &[]).unwrap(), impostor).await;
    assert!(client.is_err(), "a server of another root");
}

#[tokio::test]
async fn a_joiner_believes_the_pinned_root_alone() {
    let (ca, other) = (Ca::new(), Ca::new());
    let server = server_config(&ca.svid(REGISTRY), ClientAuth::Optional, &[]).unwrap();
    let (client, accepted) = handshake(joining_client_config(&ca.pin(), &[]).unwrap(), server.clone()).await;
    assert_eq!((client, accepted), (Ok(()), Ok(())));
    let (client, _) = handshake(joining_client_config(&other.pin(), &[]).unwrap(), server).await;
    assert!(client.is_err(), "another pin");

    // An impostor that shows the true root but signs with its own.
    let mut impostor = other.svid(REGISTRY);
    impostor.bundle = vec![other.root(), ca.root()];
    let server = server_config(&impostor, ClientAuth::Optional, &[]).unwrap();
    let (client, _) = handshake(joining_client_config(&ca.pin(), &[]).unwrap(), server).await;
    assert!(client.is_err(), "the true root beside a foreign chain");
}

#[test]
fn the_rules_of_svids_are_enforced() {
    let ca = Ca::new();
    let id = |uris: &[&str], change: fn(&mut CertificateParams)| peer_id(&[ca.leaf(uris, change).0]);
    assert_eq!(id(&[ORDERS], |_| ()).unwrap().to_string(), ORDERS);
    type Case = (&'static str, &'static [&'static str], fn(&mut CertificateParams));
    let refused: [Case; 6] = [
        ("no URI", &[], |_| ()),
        ("two URIs", &[ORDERS, REGISTRY], |_| ()),
        ("a foreign path", &["spiffe://mesh.local/workload"], |_| ()),
        ("a CA", &[ORDERS], |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        ("no key usage", &[ORDERS], |p| p.key_usages.clear()),
        ("signing of certificates", &[ORDERS], |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign)),
    ];
    for (what, uris, change) in refused {
        assert!(id(uris, change).is_err(), "{what}");
    }
    assert_eq!(peer_id(&[]), Err(PeerError::NoCertificate));
    assert_eq!(peer_id(&[CertificateDer::from(vec![1, 2, 3])]), Err(PeerError::Malformed));
}

#[test]
fn files_survive_a_round_trip_and_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("identity");
    let svid = Ca::new().svid(ORDERS);
    svid.write_dir(&path).unwrap();
    let read = Svid::read_dir(&path).unwrap();
    assert_eq!((read.chain, read.bundle, read.key), (svid.chain, svid.bundle, svid.key.clone_key()));
    for entry in std::fs::read_dir(&path).unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    std::fs::write(path.join("cert.pem"), "nonsense").unwrap();
    assert!(Svid::read_dir(&path).unwrap_err().to_string().contains("cert.pem"));
}

#[test]
fn a_request_is_completed_only_for_its_own_key() {
    let ca = Ca::new();
    let request = KeyRequest::generate().unwrap();
    let (foreign, _) = ca.leaf(&[ORDERS], |_| ());
    assert!(request.complete(vec![foreign], vec![ca.root()]).is_err());
}

#[test]
fn renewal_is_due_around_two_thirds_of_the_lifetime() {
    let svid = Ca::new().svid(ORDERS);
    let lifetime = svid.not_after.duration_since(svid.obtained).unwrap();
    for (unit, share) in [(0.0, 2.0 / 3.0 - 0.1), (0.5, 2.0 / 3.0), (1.0, 2.0 / 3.0 + 0.1)] {
        let due = svid.renew_at(unit).duration_since(svid.obtained).unwrap();
        assert!((due.as_secs_f64() / lifetime.as_secs_f64() - share).abs() < 0.01);
    }
}
