//! The doors: connections to a Service that sleeps are taken, held until a Pod is ready, and passed on to it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use cox_client::tasks::TaskScope;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::backend::Backend;
use crate::data::{AGAIN, ATTEMPTS, CONNECT, Plane};

/// Connections that one door holds and passes on; further ones wait in the kernel.
const CONNECTIONS_LEN_MAX: usize = 1024;
/// Connections that the kernel takes for us until we do.
const BACKLOG: u32 = 256;

/// Opens a door; `None` where the address cannot be had: then only requests through the gateway wake the Service.
pub(super) fn open(
    ip: IpAddr,
    plane: Arc<Plane>,
    backend: &Arc<Backend>,
    scope: &TaskScope,
    cancel: &CancellationToken,
) -> Option<SocketAddr> {
    let listener = match listener(ip) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%ip, %error, service = %backend.key.service, "Connections to the Service's own address cannot wake it");
            return None;
        }
    };
    let addr = listener.local_addr().ok()?;
    let (backend, cancel) = (Arc::clone(backend), cancel.clone());
    scope.spawn("door", async move {
        let room = Arc::new(Semaphore::new(CONNECTIONS_LEN_MAX));
        let taking = async {
            while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
                let Ok((stream, _)) = listener.accept().await else {
                    tokio::time::sleep(AGAIN).await;
                    continue;
                };
                let (plane, backend) = (Arc::clone(&plane), Arc::clone(&backend));
                tokio::spawn(async move {
                    pass(stream, &plane, &backend).await;
                    drop(permit);
                });
            }
        };
        // What was taken has a task of its own.
        cancel.run_until_cancelled(taking).await;
    });
    Some(addr)
}

/// The address may be one that is local only while there are Pods: whoever comes then finds us.
fn listener(ip: IpAddr) -> std::io::Result<TcpListener> {
    let socket = match ip {
        IpAddr::V4(_) => TcpSocket::new_v4()?,
        IpAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if ip.is_ipv4() {
        rustix::net::sockopt::set_ip_freebind(&socket, true)?;
    }
    socket.bind(SocketAddr::new(ip, 0))?;
    socket.listen(BACKLOG)
}

/// Holds a connection until somebody can take it, then bytes both ways.
async fn pass(mut client: TcpStream, plane: &Plane, backend: &Arc<Backend>) {
    let _counted = backend.service.begin();
    client.set_nodelay(true).ok();
    for _ in 0..ATTEMPTS {
        if !plane.hold(backend).await {
            return;
        }
        let Some(to) = backend.pick(&[]) else {
            continue;
        };
        match tokio::time::timeout(CONNECT, TcpStream::connect(to)).await {
            Ok(Ok(mut endpoint)) => {
                endpoint.set_nodelay(true).ok();
                if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut endpoint).await
                {
                    tracing::debug!(%to, %error, "A connection that was held broke later");
                }
                return;
            }
            Ok(Err(_)) | Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}
