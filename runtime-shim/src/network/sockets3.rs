//! wasi:sockets of WASI 0.3 through the Pod's network: the same seam as [`super::sockets`], over the calls of 0.3.
//!
//! What is different in 0.3: sockets that nobody bound are bound by the first `listen` or `send`, to every address of the host. In
//! the virtual network they are bound to the Pod's address before that.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use futures::FutureExt;
use wasmtime::StoreContextMut;
use wasmtime::component::{Access, Accessor, Linker, Resource, StreamReader};
use wasmtime_wasi::p3::bindings::sockets::ip_name_lookup;
use wasmtime_wasi::p3::bindings::sockets::types::{
    ErrorCode, HostTcpSocket, HostTcpSocketWithStore, HostUdpSocket, HostUdpSocketWithStore,
    IpAddress, IpAddressFamily, IpSocketAddress,
};
use wasmtime_wasi::p3::sockets::SocketError;
use wasmtime_wasi::sockets::{
    TcpSocket, UdpSocket, WasiSockets, WasiSocketsCtxView, WasiSocketsView,
};

use super::{EachPollInside, PodNetwork, Protocol, Refused, ResolveError};
use crate::engine::guest::Guest;

const TYPES: &str = "wasi:sockets/types@0.3.0";
const LOOKUP: &str = "wasi:sockets/ip-name-lookup@0.3.0";

type Outcome<T> = wasmtime::Result<(Result<T, ErrorCode>,)>;

/// Puts the Pod's network between guests and the sockets of the host.
pub(crate) fn shadow_sockets(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    shadow_creation(linker)?;
    shadow_tcp(linker)?;
    shadow_udp(linker)?;
    shadow_datagrams(linker)?;
    shadow_told_addresses(linker)?;
    shadow_lookup(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}

fn refused(refused: &Refused) -> ErrorCode {
    match refused {
        Refused::Bind(_) => ErrorCode::AddressNotBindable,
        // As with 0.2: the host's services are not told apart from absent ones.
        Refused::HostLoopback(_) | Refused::NoEndpoint(_) | Refused::Policy(_) => {
            ErrorCode::ConnectionRefused
        }
    }
}

/// Separates what the guest is told from what ends it.
fn told<T>(result: Result<T, SocketError>) -> Outcome<T> {
    match result {
        Ok(value) => Ok((Ok(value),)),
        Err(err) => Ok((Err(err.downcast()?),)),
    }
}

/// The Pod's namespace cannot be entered: it is being torn down, or the node is out of descriptors.
fn no_socket(err: &std::io::Error) -> ErrorCode {
    tracing::debug!(error = %err, "A guest's socket could not be made in its Pod's namespace");
    match err.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => {
            ErrorCode::Other(Some("no more sockets on this node".into()))
        }
        _ => ErrorCode::InvalidState,
    }
}

fn shadow_creation(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let mut types = linker.instance(TYPES)?;
    types.func_wrap(
        "[static]tcp-socket.create",
        |mut store: StoreContextMut<'_, Guest>, (family,): (IpAddressFamily,)| {
            let pod = Arc::clone(&store.data().network);
            let mut sockets = store.data_mut().sockets();
            match pod.make(|| Ok(HostTcpSocket::create(&mut sockets, family))) {
                Ok(made) => told(made),
                Err(err) => Ok((Err(no_socket(&err)),)),
            }
        },
    )?;
    types.func_wrap_async(
        "[static]udp-socket.create",
        |mut store: StoreContextMut<'_, Guest>, (family,): (IpAddressFamily,)| {
            Box::new(async move {
                let netns = store.data().network.netns().cloned();
                let mut sockets = store.data_mut().sockets();
                let making = HostUdpSocket::create(&mut sockets, family);
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

fn shadow_tcp(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let mut types = linker.instance(TYPES)?;
    types.func_wrap_async(
        "[method]tcp-socket.bind",
        |mut store: StoreContextMut<'_, Guest>,
         (socket, wanted): (Resource<TcpSocket>, IpSocketAddress)| {
            Box::new(async move {
                let local = match store.data().network.map_bind(wanted.into()) {
                    Ok(local) => local,
                    Err(err) => return Ok((Err(refused(&err)),)),
                };
                let mut sockets = store.data_mut().sockets();
                told(HostTcpSocket::bind(&mut sockets, socket, local.into()).await)
            })
        },
    )?;
    types.func_wrap_concurrent(
        "[method]tcp-socket.connect",
        |accessor: &Accessor<Guest>, (socket, wanted): (Resource<TcpSocket>, IpSocketAddress)| {
            Box::pin(async move {
                let prepared = accessor.with(|mut access| {
                    let guest = access.data_mut();
                    let remote = match guest.network.map_remote(wanted.into(), Protocol::Tcp) {
                        Ok(remote) => remote,
                        Err(err) => return Ok(Err(refused(&err))),
                    };
                    let source = guest.network.source_for(remote);
                    let bound =
                        source.map(|source| bind_tcp(&mut guest.sockets(), &socket, source.into()));
                    bound
                        .unwrap_or(Ok(Ok(())))
                        .map(|bound| bound.map(|()| remote))
                })?;
                match prepared {
                    Ok(remote) => {
                        let sockets = accessor.with_getter::<WasiSockets>(Guest::sockets);
                        let connecting = WasiSockets::connect(&sockets, socket, remote.into());
                        told(connecting.await)
                    }
                    Err(code) => Ok((Err(code),)),
                }
            })
        },
    )?;
    types.func_wrap_async(
        "[method]tcp-socket.listen",
        |mut store: StoreContextMut<'_, Guest>, (socket,): (Resource<TcpSocket>,)| {
            Box::new(async move {
                let guest = store.data_mut();
                let family = HostTcpSocket::get_address_family(
                    &mut guest.sockets(),
                    Resource::new_borrow(socket.rep()),
                )?;
                let any_port = match guest.network.any_port(any_address(family)) {
                    Ok(any_port) => any_port,
                    Err(err) => return Ok((Err(refused(&err)),)),
                };
                if let Some(any_port) = any_port
                    && let Err(code) = bind_tcp(&mut guest.sockets(), &socket, any_port.into())?
                {
                    return Ok((Err(code),));
                }
                let access = Access::<Guest, WasiSockets>::new(store, Guest::sockets);
                let listening: Result<StreamReader<Resource<TcpSocket>>, SocketError> =
                    WasiSockets::listen(access, socket).await;
                told(listening)
            })
        },
    )
}

/// Binds a socket that may be bound already; then its state is what the guest made it.
fn bind_tcp(
    sockets: &mut WasiSocketsCtxView<'_>,
    socket: &Resource<TcpSocket>,
    local: IpSocketAddress,
) -> wasmtime::Result<Result<(), ErrorCode>> {
    let this = Resource::new_borrow(socket.rep());
    at_once(HostTcpSocket::bind(sockets, this, local).now_or_never())
}

/// The same for datagrams.
fn bind_udp(
    sockets: &mut WasiSocketsCtxView<'_>,
    socket: &Resource<UdpSocket>,
    local: IpSocketAddress,
) -> wasmtime::Result<Result<(), ErrorCode>> {
    let this = Resource::new_borrow(socket.rep());
    at_once(HostUdpSocket::bind(sockets, this, local).now_or_never())
}

/// Binding waits for the address check alone, which is ours and never waits.
fn at_once(bound: Option<Result<(), SocketError>>) -> wasmtime::Result<Result<(), ErrorCode>> {
    match bound {
        Some(Ok(())) => Ok(Ok(())),
        Some(Err(err)) => Ok(match err.downcast()? {
            ErrorCode::InvalidState => Ok(()),
            code => Err(code),
        }),
        None => wasmtime::bail!("binding a socket had to wait"),
    }
}

/// Before a datagram leaves a socket that nobody bound: it gets the Pod's address, not all of the host's.
fn source_udp(
    guest: &mut Guest,
    socket: &Resource<UdpSocket>,
) -> wasmtime::Result<Result<(), ErrorCode>> {
    let this = Resource::new_borrow(socket.rep());
    let family = HostUdpSocket::get_address_family(&mut guest.sockets(), this)?;
    match guest.network.any_port(any_address(family)) {
        Ok(Some(any_port)) => bind_udp(&mut guest.sockets(), socket, any_port.into()),
        Ok(None) => Ok(Ok(())),
        Err(err) => Ok(Err(refused(&err))),
    }
}

fn any_address(family: IpAddressFamily) -> IpAddr {
    match family {
        IpAddressFamily::Ipv4 => Ipv4Addr::UNSPECIFIED.into(),
        IpAddressFamily::Ipv6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn shadow_udp(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let mut types = linker.instance(TYPES)?;
    types.func_wrap_async(
        "[method]udp-socket.bind",
        |mut store: StoreContextMut<'_, Guest>,
         (socket, wanted): (Resource<UdpSocket>, IpSocketAddress)| {
            Box::new(async move {
                let local = match store.data().network.map_bind(wanted.into()) {
                    Ok(local) => local,
                    Err(err) => return Ok((Err(refused(&err)),)),
                };
                let mut sockets = store.data_mut().sockets();
                told(HostUdpSocket::bind(&mut sockets, socket, local.into()).await)
            })
        },
    )?;
    types.func_wrap_async(
        "[method]udp-socket.connect",
        |mut store: StoreContextMut<'_, Guest>,
         (socket, wanted): (Resource<UdpSocket>, IpSocketAddress)| {
            Box::new(async move {
                let guest = store.data_mut();
                let remote = match guest.network.map_remote(wanted.into(), Protocol::Udp) {
                    Ok(remote) => remote,
                    Err(err) => return Ok((Err(refused(&err)),)),
                };
                if let Err(code) = source_udp(guest, &socket)? {
                    return Ok((Err(code),));
                }
                told(HostUdpSocket::connect(&mut guest.sockets(), socket, remote.into()).await)
            })
        },
    )
}

fn shadow_datagrams(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let mut types = linker.instance(TYPES)?;
    types.func_wrap_concurrent(
        "[method]udp-socket.send",
        |accessor: &Accessor<Guest>,
         (socket, data, wanted): (Resource<UdpSocket>, Vec<u8>, Option<IpSocketAddress>)| {
            Box::pin(async move {
                let prepared = accessor.with(|mut access| {
                    let guest = access.data_mut();
                    let mapped = wanted
                        .map(|wanted| guest.network.map_remote(wanted.into(), Protocol::Udp))
                        .transpose();
                    let remote = match mapped {
                        Ok(remote) => remote,
                        Err(err) => return Ok(Err(refused(&err))),
                    };
                    source_udp(guest, &socket).map(|bound| bound.map(|()| remote))
                })?;
                match prepared {
                    Ok(remote) => {
                        let sockets = accessor.with_getter::<WasiSockets>(Guest::sockets);
                        let remote = remote.map(IpSocketAddress::from);
                        let sending = <WasiSockets as HostUdpSocketWithStore<Guest>>::send(
                            &sockets, socket, data, remote,
                        );
                        told(sending.await)
                    }
                    Err(code) => Ok((Err(code),)),
                }
            })
        },
    )?;
    types.func_wrap_concurrent(
        "[method]udp-socket.receive",
        |accessor: &Accessor<Guest>, (socket,): (Resource<UdpSocket>,)| {
            Box::pin(async move {
                let sockets = accessor.with_getter::<WasiSockets>(Guest::sockets);
                let receiving =
                    <WasiSockets as HostUdpSocketWithStore<Guest>>::receive(&sockets, socket);
                let received = receiving.await;
                let network = accessor.with(|mut access| Arc::clone(&access.data_mut().network));
                told(received.map(|(data, peer)| (data, shown(&network, peer))))
            })
        },
    )
}

/// Guests of virtual Pods see `localhost` where they asked for it, not the address behind it.
fn shadow_told_addresses(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let mut types = linker.instance(TYPES)?;
    type Told<T> =
        fn(&mut WasiSocketsCtxView<'_>, Resource<T>) -> Result<IpSocketAddress, SocketError>;
    let tcp: [(&str, Told<TcpSocket>); 2] = [
        ("[method]tcp-socket.get-local-address", |sockets, socket| {
            HostTcpSocket::get_local_address(sockets, socket)
        }),
        (
            "[method]tcp-socket.get-remote-address",
            |sockets, socket| HostTcpSocket::get_remote_address(sockets, socket),
        ),
    ];
    for (name, address) in tcp {
        types.func_wrap(
            name,
            move |mut store: StoreContextMut<'_, Guest>, (socket,): (Resource<TcpSocket>,)| {
                let result = address(&mut store.data_mut().sockets(), socket);
                told(result.map(|real| shown(&store.data().network, real)))
            },
        )?;
    }
    let udp: [(&str, Told<UdpSocket>); 2] = [
        ("[method]udp-socket.get-local-address", |sockets, socket| {
            HostUdpSocket::get_local_address(sockets, socket)
        }),
        (
            "[method]udp-socket.get-remote-address",
            |sockets, socket| HostUdpSocket::get_remote_address(sockets, socket),
        ),
    ];
    for (name, address) in udp {
        types.func_wrap(
            name,
            move |mut store: StoreContextMut<'_, Guest>, (socket,): (Resource<UdpSocket>,)| {
                let result = address(&mut store.data_mut().sockets(), socket);
                told(result.map(|real| shown(&store.data().network, real)))
            },
        )?;
    }
    Ok(())
}

fn shown(network: &PodNetwork, real: IpSocketAddress) -> IpSocketAddress {
    network.show(real.into()).into()
}

fn shadow_lookup(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.instance(LOOKUP)?.func_wrap_concurrent(
        "resolve-addresses",
        |accessor: &Accessor<Guest>, (name,): (String,)| {
            Box::pin(async move {
                let pod = accessor.with(|mut access| Arc::clone(&access.data_mut().network));
                let found = pod.resolve(&name).await;
                let found: Result<Vec<IpAddress>, _> = found
                    .map(|found| found.into_iter().map(IpAddress::from).collect())
                    .map_err(|err| lookup_error(&err));
                Ok((found,))
            })
        },
    )
}

fn lookup_error(err: &ResolveError) -> ip_name_lookup::ErrorCode {
    match err {
        ResolveError::BadName => ip_name_lookup::ErrorCode::InvalidArgument,
        ResolveError::NotFound => ip_name_lookup::ErrorCode::NameUnresolvable,
        ResolveError::Unreachable => ip_name_lookup::ErrorCode::TemporaryResolverFailure,
    }
}
