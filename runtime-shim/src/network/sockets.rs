//! wasi:sockets through the Pod's network: the few calls that carry an address are replaced in the linker, map it, and go on to
//! wasmtime's own implementation. Name lookup is replaced as a whole, since the host's resolver is not the Pod's.

use std::sync::Arc;

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource, ResourceType};
use wasmtime_wasi::p2::bindings::sockets::network::{
    ErrorCode, IpAddress, IpAddressFamily, IpSocketAddress,
};
use wasmtime_wasi::p2::bindings::sockets::tcp::HostTcpSocket;
use wasmtime_wasi::p2::bindings::sockets::tcp_create_socket::Host as _;
use wasmtime_wasi::p2::bindings::sockets::udp::{
    HostIncomingDatagramStream, HostOutgoingDatagramStream, HostUdpSocket, IncomingDatagramStream,
    OutgoingDatagram, OutgoingDatagramStream,
};
use wasmtime_wasi::p2::bindings::sockets::udp_create_socket::Host as _;
use wasmtime_wasi::p2::{
    DynPollable, Network, Pollable, SocketResult, TcpSocket, UdpSocket, subscribe,
};
use wasmtime_wasi::sockets::{WasiSocketsCtxView, WasiSocketsView};

use super::{EachPollInside, PodNetwork, Protocol, Refused, ResolveError};
use crate::engine::guest::Guest;

const TCP: &str = "wasi:sockets/tcp@0.2.12";
const UDP: &str = "wasi:sockets/udp@0.2.12";
const TCP_CREATE: &str = "wasi:sockets/tcp-create-socket@0.2.12";
const UDP_CREATE: &str = "wasi:sockets/udp-create-socket@0.2.12";
const LOOKUP: &str = "wasi:sockets/ip-name-lookup@0.2.12";

type Outcome<T> = wasmtime::Result<(Result<T, ErrorCode>,)>;

/// Puts the Pod's network between guests and the sockets of the host.
pub(crate) fn shadow_sockets(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    shadow_creation(linker)?;
    shadow_tcp(linker)?;
    shadow_udp(linker)?;
    shadow_told_addresses(linker)?;
    shadow_lookup(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}

fn refused(refused: Refused) -> ErrorCode {
    match refused {
        Refused::Bind(_) => ErrorCode::AddressNotBindable,
        // What a connection to a port without listener gives: the host's services are not told apart from absent ones.
        Refused::HostLoopback(_) | Refused::NoEndpoint(_) | Refused::Policy(_) => {
            ErrorCode::ConnectionRefused
        }
    }
}

/// Separates what the guest is told from what ends it.
fn told<T>(result: SocketResult<T>) -> Outcome<T> {
    match result {
        Ok(value) => Ok((Ok(value),)),
        Err(err) => Ok((Err(err.downcast()?),)),
    }
}

/// Sockets are made where the Pod's sockets belong; from there on the kernel knows.
fn shadow_creation(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.instance(TCP_CREATE)?.func_wrap(
        "create-tcp-socket",
        |mut store: StoreContextMut<'_, Guest>, (family,): (IpAddressFamily,)| {
            let pod = Arc::clone(&store.data().network);
            let mut sockets = store.data_mut().sockets();
            match pod.make(|| Ok(sockets.create_tcp_socket(family))) {
                Ok(made) => told(made),
                Err(err) => Ok((Err(no_socket(&err)),)),
            }
        },
    )?;
    linker.instance(UDP_CREATE)?.func_wrap_async(
        "create-udp-socket",
        |mut store: StoreContextMut<'_, Guest>, (family,): (IpAddressFamily,)| {
            Box::new(async move {
                let netns = store.data().network.netns().cloned();
                let mut sockets = store.data_mut().sockets();
                let making = sockets.create_udp_socket(family);
                match netns {
                    None => told(making.await),
                    Some(netns) => match EachPollInside::new(netns, making).await {
                        Ok(made) => told(made),
                        Err(err) => Ok((Err(no_socket(&err)),)),
                    },
                }
            })
        },
    )
}

/// The Pod's namespace cannot be entered: it is being torn down, or the node is out of descriptors.
fn no_socket(err: &std::io::Error) -> ErrorCode {
    tracing::debug!(error = %err, "A guest's socket could not be made in its Pod's namespace");
    match err.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => ErrorCode::NewSocketLimit,
        _ => ErrorCode::InvalidState,
    }
}

/// Guests of virtual Pods see `localhost` where they asked for it, not the address behind it.
fn shadow_told_addresses(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let mut tcp = linker.instance(TCP)?;
    type Told<T> = fn(&mut WasiSocketsCtxView<'_>, Resource<T>) -> SocketResult<IpSocketAddress>;
    let tcp_addresses: [(&str, Told<TcpSocket>); 2] = [
        ("[method]tcp-socket.local-address", |sockets, socket| {
            HostTcpSocket::local_address(sockets, socket)
        }),
        ("[method]tcp-socket.remote-address", |sockets, socket| {
            HostTcpSocket::remote_address(sockets, socket)
        }),
    ];
    for (name, address) in tcp_addresses {
        tcp.func_wrap(
            name,
            move |mut store: StoreContextMut<'_, Guest>, (socket,): (Resource<TcpSocket>,)| {
                let result = address(&mut store.data_mut().sockets(), socket);
                told(result.map(|real| shown(&store.data().network, real)))
            },
        )?;
    }
    let mut udp = linker.instance(UDP)?;
    let udp_addresses: [(&str, Told<UdpSocket>); 2] = [
        ("[method]udp-socket.local-address", |sockets, socket| {
            HostUdpSocket::local_address(sockets, socket)
        }),
        ("[method]udp-socket.remote-address", |sockets, socket| {
            HostUdpSocket::remote_address(sockets, socket)
        }),
    ];
    for (name, address) in udp_addresses {
        udp.func_wrap(
            name,
            move |mut store: StoreContextMut<'_, Guest>, (socket,): (Resource<UdpSocket>,)| {
                let result = address(&mut store.data_mut().sockets(), socket);
                told(result.map(|real| shown(&store.data().network, real)))
            },
        )?;
    }
    udp.func_wrap(
        "[method]incoming-datagram-stream.receive",
        |mut store: StoreContextMut<'_, Guest>,
         (stream, max): (Resource<IncomingDatagramStream>, u64)| {
            let result =
                HostIncomingDatagramStream::receive(&mut store.data_mut().sockets(), stream, max);
            let network = &store.data().network;
            told(result.map(|mut datagrams| {
                for datagram in &mut datagrams {
                    datagram.remote_address = shown(network, datagram.remote_address);
                }
                datagrams
            }))
        },
    )
}

fn shown(network: &PodNetwork, real: IpSocketAddress) -> IpSocketAddress {
    network.show(real.into()).into()
}

fn shadow_tcp(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let mut tcp = linker.instance(TCP)?;
    type Params = (Resource<TcpSocket>, Resource<Network>, IpSocketAddress);
    tcp.func_wrap_async(
        "[method]tcp-socket.start-bind",
        |mut store: StoreContextMut<'_, Guest>, (socket, network, wanted): Params| {
            Box::new(async move {
                let local = match store.data().network.map_bind(wanted.into()) {
                    Ok(local) => local,
                    Err(err) => return Ok((Err(refused(err)),)),
                };
                let mut sockets = store.data_mut().sockets();
                told(HostTcpSocket::start_bind(&mut sockets, socket, network, local.into()).await)
            })
        },
    )?;
    tcp.func_wrap_async(
        "[method]tcp-socket.start-connect",
        |mut store: StoreContextMut<'_, Guest>, (socket, network, wanted): Params| {
            Box::new(async move {
                let pod = &store.data().network;
                let remote = match pod.map_remote(wanted.into(), Protocol::Tcp) {
                    Ok(remote) => remote,
                    Err(err) => return Ok((Err(refused(err)),)),
                };
                let source = pod.source_for(remote);
                let mut sockets = store.data_mut().sockets();
                if let Some(source) = source {
                    let this = Resource::new_borrow(socket.rep());
                    let capability = Resource::new_borrow(network.rep());
                    match HostTcpSocket::start_bind(&mut sockets, this, capability, source.into())
                        .await
                    {
                        Ok(()) => HostTcpSocket::finish_bind(
                            &mut sockets,
                            Resource::new_borrow(socket.rep()),
                        )
                        .or_else(|err| err.downcast().map(|_| ()))?,
                        // Bound by the guest already, or beyond connecting, which the next call says.
                        Err(err) => match err.downcast()? {
                            ErrorCode::InvalidState | ErrorCode::ConcurrencyConflict => {}
                            code => return Ok((Err(code),)),
                        },
                    }
                }
                told(HostTcpSocket::start_connect(
                    &mut sockets,
                    socket,
                    network,
                    remote.into(),
                ))
            })
        },
    )
}

fn shadow_udp(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let mut udp = linker.instance(UDP)?;
    udp.func_wrap_async(
        "[method]udp-socket.start-bind",
        |mut store: StoreContextMut<'_, Guest>,
         (socket, network, wanted): (Resource<UdpSocket>, Resource<Network>, IpSocketAddress)| {
            Box::new(async move {
                let local = match store.data().network.map_bind(wanted.into()) {
                    Ok(local) => local,
                    Err(err) => return Ok((Err(refused(err)),)),
                };
                let mut sockets = store.data_mut().sockets();
                told(HostUdpSocket::start_bind(&mut sockets, socket, network, local.into()).await)
            })
        },
    )?;
    type Streams = (
        Resource<IncomingDatagramStream>,
        Resource<OutgoingDatagramStream>,
    );
    udp.func_wrap_async(
        "[method]udp-socket.stream",
        |mut store: StoreContextMut<'_, Guest>,
         (socket, wanted): (Resource<UdpSocket>, Option<IpSocketAddress>)| {
            Box::new(async move {
                let remote = match wanted
                    .map(|wanted| {
                        store
                            .data()
                            .network
                            .map_remote(wanted.into(), Protocol::Udp)
                    })
                    .transpose()
                {
                    Ok(remote) => remote,
                    Err(err) => return Ok((Err(refused(err)),)),
                };
                let mut sockets = store.data_mut().sockets();
                let streams: Outcome<Streams> = told(
                    HostUdpSocket::stream(&mut sockets, socket, remote.map(IpSocketAddress::from))
                        .await,
                );
                streams
            })
        },
    )?;
    udp.func_wrap(
        "[method]outgoing-datagram-stream.send",
        |mut store: StoreContextMut<'_, Guest>,
         (stream, mut datagrams): (Resource<OutgoingDatagramStream>, Vec<OutgoingDatagram>)| {
            for datagram in &mut datagrams {
                let Some(wanted) = datagram.remote_address else { continue };
                match store.data().network.map_remote(wanted.into(), Protocol::Udp) {
                    Ok(remote) => datagram.remote_address = Some(remote.into()),
                    Err(err) => return Ok((Err(refused(err)),)),
                }
            }
            let mut sockets = store.data_mut().sockets();
            told(HostOutgoingDatagramStream::send(&mut sockets, stream, datagrams))
        },
    )
}

/// Addresses of a resolved name, handed to the guest one by one.
struct Found(std::vec::IntoIter<IpAddress>);

#[wasmtime_wasi::async_trait]
impl Pollable for Found {
    async fn ready(&mut self) {
        // Complete before the guest gets it.
    }
}

fn shadow_lookup(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let mut lookup = linker.instance(LOOKUP)?;
    lookup.resource(
        "resolve-address-stream",
        ResourceType::host::<Found>(),
        |mut store, rep| {
            store
                .data_mut()
                .sockets()
                .table
                .delete(Resource::<Found>::new_own(rep))?;
            Ok(())
        },
    )?;
    lookup.func_wrap_async(
        "resolve-addresses",
        |mut store: StoreContextMut<'_, Guest>, (_network, name): (Resource<Network>, String)| {
            Box::new(async move {
                let pod = Arc::clone(&store.data().network);
                // The guest waits here instead of polling: a lookup is short, and its timeouts are ours.
                let found = match pod.resolve(&name).await {
                    Ok(found) => found,
                    Err(err) => return Ok((Err(lookup_error(&err)),)),
                };
                let addresses: Vec<IpAddress> = found.into_iter().map(IpAddress::from).collect();
                let stream = store
                    .data_mut()
                    .sockets()
                    .table
                    .push(Found(addresses.into_iter()))?;
                Ok((Ok(stream),))
            })
        },
    )?;
    lookup.func_wrap(
        "[method]resolve-address-stream.resolve-next-address",
        |mut store: StoreContextMut<'_, Guest>, (stream,): (Resource<Found>,)| {
            let next: Result<Option<IpAddress>, ErrorCode> =
                Ok(store.data_mut().sockets().table.get_mut(&stream)?.0.next());
            Ok((next,))
        },
    )?;
    lookup.func_wrap(
        "[method]resolve-address-stream.subscribe",
        |mut store: StoreContextMut<'_, Guest>, (stream,): (Resource<Found>,)| {
            let pollable: Resource<DynPollable> =
                subscribe(store.data_mut().sockets().table, stream)?;
            Ok((pollable,))
        },
    )
}

fn lookup_error(err: &ResolveError) -> ErrorCode {
    match err {
        ResolveError::BadName => ErrorCode::InvalidArgument,
        ResolveError::NotFound => ErrorCode::NameUnresolvable,
        ResolveError::Unreachable => ErrorCode::TemporaryResolverFailure,
    }
}

/// The address family conversions used above are lossless both ways; this keeps them honest when wasmtime is upgraded.
#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    #[test]
    fn addresses_survive_the_conversion() {
        for text in ["127.64.0.7:8080", "[2001:db8::1]:53"] {
            let addr: SocketAddr = text.parse().unwrap();
            assert_eq!(SocketAddr::from(IpSocketAddress::from(addr)), addr);
        }
    }
}
