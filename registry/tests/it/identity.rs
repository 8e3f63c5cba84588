//! Who gets which identity, and that nobody gets another.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_api::token::Token;
use outrigger_api::v1;
use outrigger_api::v1::admin_client::AdminClient;
use outrigger_common::identity::{Principal, SpiffeId, TrustDomain};
use outrigger_common::mtls::{KeyRequest, Svid};
use outrigger_registry::ca::Authority;
use outrigger_registry::join::Joins;
use outrigger_registry::metrics::Metrics;
use outrigger_registry::store::redb::RedbStore;
use rcgen::{CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::harness::{Mesh, Sidecar, complete, refused, soon, until, workload};

const PROTOS: [&str; 4] = [
    include_str!("../../../api/proto/outrigger/v1/admin.proto"),
    include_str!("../../../api/proto/outrigger/v1/certificate.proto"),
    include_str!("../../../api/proto/outrigger/v1/discovery.proto"),
    include_str!("../../../api/proto/outrigger/v1/registration.proto"),
];
const OTLP: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const JOIN: &str = "/outrigger.v1.Join/Join";

/// Every method of the port, from the contract's own text.
fn methods() -> Vec<String> {
    let mut methods = vec![OTLP.to_owned()];
    for proto in PROTOS {
        let mut service = "";
        for line in proto.lines() {
            let mut words = line.trim().split([' ', '(', '{']);
            match (words.next(), words.next()) {
                (Some("service"), Some(name)) => service = name,
                (Some("rpc"), Some(method)) => methods.push(format!("/outrigger.v1.{service}/{method}")),
                _ => {}
            }
        }
    }
    assert!(methods.len() >= 11, "{methods:?}");
    methods
}

/// Calls a method with an empty message.
async fn call(channel: Channel, path: &str) -> Status {
    let mut client = tonic::client::Grpc::new(channel);
    soon("ready", client.ready()).await.unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let path = PathAndQuery::try_from(path).unwrap();
    soon("call", client.unary(Request::new(()), path, codec))
        .await
        .map(|_| ())
        .err()
        .unwrap_or_else(|| Status::ok(""))
}

#[tokio::test]
async fn without_a_certificate_nothing_but_joining_answers() {
    let mesh = Mesh::start("").await;
    let token = mesh.token("shop", "orders", &[], 0).await;
    for path in methods() {
        let status = call(mesh.anonymous(&token.pin), &path).await;
        assert_eq!(status.code(), Code::Unauthenticated, "{path}: {status:?}");
        let guarded = status.message().contains("no client certificate");
        assert_eq!(guarded, path != JOIN, "{path}: {status:?}");
    }
    let status = call(mesh.anonymous(&token.pin), "/outrigger.v1.Nothing/Here").await;
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test]
async fn each_method_answers_its_own_callers_alone() {
    let mesh = Mesh::start("").await;
    let sidecar = mesh.sidecar("shop", "orders", &["orders"]).await;
    for path in methods().iter().filter(|path| *path != JOIN) {
        let admins = path.contains(".Admin/");
        let by_sidecar = call(sidecar.channel.clone(), path).await;
        let by_admin = call(mesh.channel(mesh.admin_svid()), path).await;
        assert_eq!(
            by_sidecar.code() == Code::PermissionDenied,
            admins,
            "{path} by a sidecar: {by_sidecar:?}"
        );
        assert_eq!(by_admin.code() == Code::PermissionDenied, !admins, "{path} by the admin: {by_admin:?}");
    }
}

#[tokio::test]
async fn a_token_gives_the_identity_it_names_in_an_svid() {
    let mesh = Mesh::start("").await;
    let token = mesh.token("shop", "orders", &["orders"], 0).await;
    let svid = mesh.join(&token).await.unwrap();
    assert_eq!(svid.id.to_string(), "spiffe://mesh.local/ns/shop/sa/orders");
    let (_, leaf) = X509Certificate::from_der(&svid.chain[0]).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical && names.value.general_names.len() == 1);
    assert!(matches!(names.value.general_names[0], GeneralName::URI(uri) if uri == svid.id.to_string()));
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.flags == 1, "digitalSignature alone");
    let purposes = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(purposes.server_auth && purposes.client_auth && !purposes.any);
    assert!(!leaf.is_ca() && leaf.raw_serial().len() >= 8);
    let (_, root) = X509Certificate::from_der(&svid.bundle[0]).unwrap();
    let basic = root.basic_constraints().unwrap().unwrap();
    assert!(basic.value.ca && basic.value.path_len_constraint == Some(0));
    let usage = root.key_usage().unwrap().unwrap().value;
    assert!(usage.key_cert_sign() && usage.crl_sign() && !usage.digital_signature());
    leaf.verify_signature(Some(root.public_key())).unwrap();
    let lifetime = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
    assert_eq!(lifetime, 24 * 3600 + 60);
}

#[tokio::test]
async fn a_single_use_token_works_once_but_a_lost_answer_can_be_asked_for_again() {
    let mesh = Mesh::start("").await;
    let token = mesh.token("shop", "orders", &[], 0).await;
    let (first, other) = (KeyRequest::generate().unwrap(), KeyRequest::generate().unwrap());
    mesh.join_csr(&token, first.csr.to_vec()).await.unwrap();
    refused(mesh.join_csr(&token, other.csr.to_vec()).await, Code::Unauthenticated, "already used");
    let again = mesh.join_csr(&token, first.csr.to_vec()).await.unwrap();
    assert_eq!(complete(first, again).id.account(), Some("orders"));
}

#[tokio::test]
async fn of_many_who_race_for_a_single_use_token_one_joins() {
    let mesh = Mesh::start("").await;
    let token = mesh.token("shop", "orders", &[], 0).await;
    let tasks = outrigger_common::tasks::Tasks::current();
    let mesh = Arc::new(mesh);
    let racers: Vec<_> = (0..10)
        .map(|_| {
            let (mesh, token) = (mesh.clone(), token.clone());
            tasks.spawn_joinable("racer", async move { mesh.join(&token).await.is_ok() })
        })
        .collect();
    let mut joined = 0;
    for racer in racers {
        joined += usize::from(racer.await.unwrap());
    }
    assert_eq!(joined, 1);
}

#[tokio::test]
async fn a_token_with_a_time_to_live_works_often_until_it_expires() {
    let mesh = Mesh::start("").await;
    let token = mesh.token("shop", "orders", &[], 2).await;
    mesh.join(&token).await.unwrap();
    mesh.join(&token).await.unwrap();
    until("the token expires", || async { mesh.join(&token).await.is_err() }).await;
    refused(
        mesh.join(&token).await,
        Code::Unauthenticated,
        "token expired; make a new one with `outrigger token`",
    );
}

#[tokio::test]
async fn wrong_secret_and_unknown_token_look_alike_and_revoked_ones_are_unknown() {
    let mesh = Mesh::start("").await;
    let token = mesh.token("shop", "orders", &[], 60).await;
    let wrong = Token { secret: "guess".into(), ..token.clone() };
    let unknown = Token { id: "0000000000000000".into(), ..token.clone() };
    let odd = Token { id: "../ca/root".into(), ..token.clone() };
    let mut texts = std::collections::BTreeSet::new();
    for bad in [&wrong, &unknown, &odd] {
        let status = mesh.join(bad).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(!status.message().contains(&bad.secret));
        texts.insert(status.message().to_owned());
    }
    assert_eq!(texts.len(), 1, "{texts:?}");
    assert_eq!(mesh.metric("mesh_registry_joins_refused_total").await, 3.0);
    mesh.admin().revoke_token(v1::RevokeTokenRequest { id: token.id.clone() }).await.unwrap();
    refused(mesh.join(&token).await, Code::Unauthenticated, "token unknown");
}

#[tokio::test]
async fn revoking_a_token_ends_what_it_gave_unless_another_gives_it_too() {
    let mesh = Mesh::start("").await;
    let first = mesh.token("shop", "orders", &["orders"], 60).await;
    let sidecar = mesh.sidecar_as(mesh.join(&first).await.unwrap());
    let lease = sidecar.register(workload("w1", "orders.shop", 80)).await.unwrap().lease;
    let revoke = async |id: &str| {
        mesh.admin().revoke_token(v1::RevokeTokenRequest { id: id.to_owned() }).await.unwrap();
    };
    // The same identity by two tokens: what the other grants goes on.
    let second = mesh.token("shop", "orders", &["payments"], 0).await;
    mesh.join(&second).await.unwrap();
    revoke(&first.id).await;
    refused(
        sidecar.register(workload("w1", "orders.shop", 80)).await,
        Code::PermissionDenied,
        "not granted orders.shop",
    );
    sidecar.register(workload("w2", "payments.shop", 80)).await.unwrap();
    renew(&sidecar).await.unwrap();
    // Without any it may neither register, not even as one that only calls, nor renew.
    revoke(&second.id).await;
    let remedy = "join again with a new one: `outrigger token --namespace shop --account orders`";
    let caller = v1::RegisterRequest { ports: vec![], ..workload("w3", "x.y", 1) };
    refused(sidecar.register(caller).await, Code::PermissionDenied, remedy);
    refused(renew(&sidecar).await, Code::PermissionDenied, remedy);
    // What is registered stays until the certificate ends, so that a mistake can be mended.
    sidecar.renew(&lease, &[true]).await.unwrap();
    mesh.join(&mesh.token("shop", "orders", &["orders"], 0).await).await.unwrap();
    renew(&sidecar).await.unwrap();
    sidecar.register(workload("w1", "orders.shop", 80)).await.unwrap();
}

#[tokio::test]
async fn an_expired_token_still_grants_and_can_be_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = Arc::new(Metrics::new());
    let store = Arc::new(RedbStore::open(dir.path(), &metrics).unwrap());
    let domain = TrustDomain::new("mesh.local").unwrap();
    let day = Duration::from_secs(24 * 3600);
    let authority = Authority::open(&*store, dir.path(), domain.clone(), day, metrics.clone()).await.unwrap();
    let joins = Joins::new(store.clone(), Arc::new(authority), &metrics);
    let id = SpiffeId::workload(domain, "shop", "orders").unwrap();
    let now = SystemTime::now();
    let make = async |at| {
        let request = v1::CreateTokenRequest {
            namespace: "shop".into(),
            account: "orders".into(),
            ..Default::default()
        };
        Token::parse(&joins.create_token(request, at).await.unwrap().token).unwrap()
    };
    let csr = || KeyRequest::generate().unwrap().csr.to_vec();
    let (used, unused) = (make(now).await, make(now).await);
    let request = v1::JoinRequest { token_id: used.id.clone(), secret: used.secret.clone(), csr: csr() };
    joins.join(request, now).await.unwrap();
    // Making a token forgets those of long ago, but not those that somebody joined with.
    let later = now + 30 * day;
    make(later).await;
    joins.renew(&id, &csr(), later).await.unwrap();
    assert!(joins.revoke_token(&unused.id).await.is_err());
    joins.revoke_token(&used.id).await.unwrap();
    assert!(joins.renew(&id, &csr(), later).await.is_err());
}

async fn renew(sidecar: &Sidecar) -> Result<(), Status> {
    let csr = KeyRequest::generate().unwrap().csr.to_vec();
    let request = v1::RenewCertificateRequest { csr };
    soon("renew", sidecar.certificates().renew(request)).await.map(|_| ())
}

#[tokio::test]
async fn a_request_for_another_identity_gets_the_tokens() {
    let mesh = Mesh::start("").await;
    let domain = TrustDomain::new("mesh.local").unwrap();
    for wanted in [SpiffeId::admin(domain.clone()), SpiffeId::registry(domain.clone())] {
        let token = mesh.token("shop", "orders", &[], 0).await;
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new(vec!["localhost".into()]).unwrap();
        params.subject_alt_names.push(SanType::URI(wanted.to_string().try_into().unwrap()));
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let csr = params.serialize_request(&key).unwrap().der().to_vec();
        let answer = mesh.join_csr(&token, csr.clone()).await.unwrap();
        assert_eq!(answer.identity, "spiffe://mesh.local/ns/shop/sa/orders");
        let svid = assemble(&answer, &key);
        assert!(matches!(svid.id.principal(), Principal::Workload { .. }));
        let sidecar = mesh.sidecar_as(svid);
        let request = v1::RenewCertificateRequest { csr };
        let renewed = sidecar.certificates().renew(request).await.unwrap().into_inner();
        assert_eq!(renewed.identity, "spiffe://mesh.local/ns/shop/sa/orders");
        let status = call(sidecar.channel, "/outrigger.v1.Admin/Get").await;
        assert_eq!(status.code(), Code::PermissionDenied);
    }
}

#[tokio::test]
async fn requests_that_prove_no_p256_key_are_refused_and_do_not_use_the_token_up() {
    let mesh = Mesh::start("").await;
    let token = mesh.token("shop", "orders", &[], 0).await;
    let good = KeyRequest::generate().unwrap();
    let mut forged = good.csr.to_vec();
    *forged.last_mut().unwrap() ^= 1;
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let p384 = CertificateParams::default().serialize_request(&p384).unwrap().der().to_vec();
    let ed = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let ed = CertificateParams::default().serialize_request(&ed).unwrap().der().to_vec();
    let mut trailing = good.csr.to_vec();
    trailing.push(0);
    for (csr, words) in
        [(forged, "own key"), (p384, "P-256"), (ed, "P-256"), (trailing, "PKCS#10"), (Vec::new(), "PKCS#10")]
    {
        refused(mesh.join_csr(&token, csr).await, Code::InvalidArgument, words);
    }
    mesh.join_with(&token, good).await.unwrap();
}

#[tokio::test]
async fn no_token_can_name_a_reserved_identity() {
    let mesh = Mesh::start("").await;
    for (namespace, account) in [
        ("x/../../outrigger", "admin"),
        ("outrigger/admin", ""),
        ("..", "admin"),
        ("", "admin"),
        ("shop", "orders/../../../outrigger/admin"),
        ("shop", "admin%2f"),
        ("Shop", "orders"),
    ] {
        let request = v1::CreateTokenRequest {
            namespace: namespace.into(),
            account: account.into(),
            ..Default::default()
        };
        refused(mesh.admin().create_token(request).await, Code::InvalidArgument, "valid name");
    }
    // A namespace that looks like the reserved path is just a namespace.
    let token = mesh.token("outrigger", "admin", &[], 0).await;
    let svid = mesh.join(&token).await.unwrap();
    assert_eq!(svid.id.to_string(), "spiffe://mesh.local/ns/outrigger/sa/admin");
    let status = call(mesh.channel(svid), "/outrigger.v1.Admin/Get").await;
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn certificates_signed_by_anyone_else_end_in_the_handshake() {
    let mesh = Mesh::start("").await;
    let bundle = mesh.admin_svid().bundle;
    let key = || KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let admin = "spiffe://mesh.local/outrigger/admin";
    // By a root of one's own with the same name.
    let (root_key, mut root) = (key(), CertificateParams::default());
    root.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    root.distinguished_name.push(rcgen::DnType::CommonName, "Outrigger root of mesh.local");
    let foreign = signed(admin, &Issuer::new(root, root_key), &bundle, None);
    // By a workload's own leaf, sent along as if it were an intermediate.
    let token = mesh.token("shop", "orders", &[], 0).await;
    let leaf_key = key();
    let csr = CertificateParams::default().serialize_request(&leaf_key).unwrap().der().to_vec();
    let leaf = CertificateDer::from(mesh.join_csr(&token, csr).await.unwrap().chain.remove(0));
    let issuer = Issuer::from_ca_cert_der(&leaf, leaf_key).unwrap();
    let by_leaf = signed(admin, &issuer, &bundle, Some(leaf.clone()));
    for svid in [foreign, by_leaf] {
        let mut client = AdminClient::new(mesh.channel(svid));
        let result =
            soon("call", client.get(v1::GetRequest { kind: "Token".into(), ..Default::default() })).await;
        assert_ne!(result.unwrap_err().code(), Code::Ok);
    }
    until("both are counted", || async {
        mesh.metric("mesh_registry_handshakes_total{result=\"failed\"}").await >= 2.0
    })
    .await;
}

#[tokio::test]
async fn an_expired_certificate_is_refused_on_the_connection_it_opened() {
    let mesh = Mesh::start("certificates:\n  lifetime: 2s\n").await;
    let sidecar = mesh.sidecar("shop", "orders", &["orders"]).await;
    let mut watcher = sidecar.watch(&[]).await;
    sidecar.register(workload("w1", "orders.shop", 80)).await.unwrap();
    let end = watcher.end().await;
    assert!(end.code() == Code::Unauthenticated && end.message().contains("expired"), "{end:?}");
    refused(sidecar.register(workload("w1", "orders.shop", 80)).await, Code::Unauthenticated, "expired");
}

#[tokio::test]
async fn the_registry_renews_its_own_certificates_and_the_admins() {
    let mesh = Mesh::start("certificates:\n  lifetime: 2s\n").await;
    let first = mesh.admin_svid();
    let token = mesh.token("shop", "orders", &[], 60).await;
    until("the admin's files are new", || async {
        Svid::read_dir(&mesh.data.join("admin")).is_ok_and(|svid| svid.not_after > first.not_after)
    })
    .await;
    until("two lifetimes are over", || async {
        SystemTime::now() > first.not_after + Duration::from_secs(2)
    })
    .await;
    // Both handshakes are with certificates that did not exist at the start.
    mesh.join(&token).await.unwrap();
    assert!(mesh.metric("mesh_registry_certificates_issued_total{kind=\"registry\"}").await >= 2.0);
}

fn assemble(answer: &v1::CertificateResponse, key: &KeyPair) -> Svid {
    let der = |ders: &[Vec<u8>]| ders.iter().cloned().map(CertificateDer::from).collect();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Svid::new(der(&answer.chain), key, der(&answer.bundle)).unwrap()
}

/// A certificate for `id` by another issuer.
fn signed(
    id: &str,
    issuer: &Issuer<'_, KeyPair>,
    bundle: &[CertificateDer<'static>],
    intermediate: Option<CertificateDer<'static>>,
) -> Svid {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let leaf = params.signed_by(&key, issuer).unwrap().der().clone();
    let chain = std::iter::once(leaf).chain(intermediate).collect();
    Svid::new(chain, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())), bundle.to_vec())
        .unwrap()
}
