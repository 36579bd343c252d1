//! A middle box that can forget its connections: the worker's side stays open, and nothing ever comes through again.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// See the module. It ends with the test.
pub(crate) struct Relay {
    address: SocketAddr,
    cuts: watch::Sender<u64>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Listens, and carries everything to `target`.
    pub(crate) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("there is a free port");
        let address = listener.local_addr().expect("it is bound");
        let (cuts, cut) = watch::channel(0);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                connections.spawn(carry(near, target, cut.clone()));
            }
        });
        Self { address, cuts, task }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Forgets the connections that there are; later ones are carried as before.
    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(mut near: TcpStream, target: SocketAddr, mut cut: watch::Receiver<u64>) {
    cut.mark_unchanged();
    let Ok(mut far) = TcpStream::connect(target).await else { return };
    tokio::select! {
        biased;
        _ = cut.changed() => {
            // The far side learns of it, the near one does not: no FIN, no reset, no data.
            drop(far);
            std::future::pending::<()>().await;
            drop(near);
        }
        _ = copy_bidirectional(&mut near, &mut far) => {}
    }
}
