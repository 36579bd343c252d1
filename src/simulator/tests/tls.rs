//! Real TLS on a real loopback socket; the clock runs.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::client::{Client, START_S, TOKEN, World};
use crate::simulator::{ConnectAction, ConnectFault, Fault, Identity, When};

async fn connect(
    addr: SocketAddr,
    identity: &Identity,
    name: &'static str,
    alpn: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    connect_as(addr, identity, name, alpn, None).await
}

type Shown = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

pub(super) async fn connect_as(
    addr: SocketAddr,
    identity: &Identity,
    name: &'static str,
    alpn: &[&str],
    shown: Option<Shown>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(identity.ca_pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match shown {
        None => config.with_no_client_auth(),
        Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(addr).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(name).unwrap(), stream).await
}

#[tokio::test]
async fn pushes_go_through_tls_and_a_shutdown_ends_politely() {
    let (world, identity) = (World::new(), Identity::ephemeral().unwrap());
    let listen = world.simulator.listen("127.0.0.1:0".parse().unwrap(), identity.server_config());
    let listening = listen.await.unwrap();
    let addr = listening.local_addr();
    let mut clients = Vec::new();
    for name in ["localhost", "127.0.0.1", "::1"] {
        let stream = connect(addr, &identity, name, &["h2"]).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let mut client = Client::handshake(stream, world.provider_token(START_S)).await.unwrap();
        assert_eq!(client.outcome(TOKEN).await, "200");
        clients.push(client);
    }
    assert_eq!(world.simulator.connections_open(), 3);
    listening.shutdown().await;
    assert_eq!(world.simulator.connections_open(), 0);
    for client in clients {
        client.ended.await.unwrap().expect("GOAWAY and close_notify, no error");
    }
    assert!(TcpStream::connect(addr).await.is_err());
}

#[tokio::test]
async fn strangers_are_not_served() {
    let (world, identity) = (World::new(), Identity::ephemeral().unwrap());
    let listen = world.simulator.listen("127.0.0.1:0".parse().unwrap(), identity.server_config());
    let listening = listen.await.unwrap();
    let addr = listening.local_addr();
    assert!(connect(addr, &identity, "api.push.apple.com", &["h2"]).await.is_err(), "no name of Apple's");
    assert!(connect(addr, &identity, "localhost", &["http/1.1"]).await.is_err(), "HTTP/2 alone");
    assert!(
        connect(addr, &Identity::ephemeral().unwrap(), "localhost", &["h2"]).await.is_err(),
        "another CA"
    );
    let when = When { count: Some(1), ..When::default() };
    world.simulator.faults().add_connect(ConnectFault { when, action: ConnectAction::Refuse });
    assert!(connect(addr, &identity, "localhost", &["h2"]).await.is_err(), "refused at accept");
    connect(addr, &identity, "localhost", &["h2"]).await.unwrap();
    listening.shutdown().await;
}

#[tokio::test]
async fn two_listeners_of_one_simulator_end_apart() {
    let (world, identity) = (World::new(), Identity::ephemeral().unwrap());
    let mut listening = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..2 {
        let listen = world.simulator.listen("127.0.0.1:0".parse().unwrap(), identity.server_config());
        listening.push(listen.await.unwrap());
        let addr = listening.last().unwrap().local_addr();
        let stream = connect(addr, &identity, "localhost", &["h2"]).await.unwrap();
        clients.push(Client::handshake(stream, world.provider_token(START_S)).await.unwrap());
    }
    let addresses: Vec<_> = listening.iter().map(|listening| Some(listening.local_addr())).collect();
    for client in &mut clients {
        assert_eq!(client.outcome(TOKEN).await, "200");
    }
    let records = world.simulator.journal().records();
    assert_eq!(records.iter().map(|record| record.address).collect::<Vec<_>>(), addresses);
    world.simulator.faults().add(Fault::answer(503, "ServiceUnavailable").address(1).times(1));
    assert_eq!(clients[0].push(TOKEN).await.unwrap().status, 503, "the first listener is address 1");
    listening.remove(0).shutdown().await;
    assert!(clients[0].push(TOKEN).await.is_err());
    assert_eq!(clients[1].outcome(TOKEN).await, "200");
    listening.remove(0).shutdown().await;
}
