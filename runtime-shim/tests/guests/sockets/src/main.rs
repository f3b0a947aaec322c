//! Tries what a Pod's network allows; prints one line per finding. Sockets come from the crate `wasip2`, since not every std has them.
//!
//! `serve [ADDRESS] PORT` answers every connection with `from PEER at LOCAL`; `get HOST PORT` prints such an answer; `bind ADDRESS PORT`,
//! `echo [ADDRESS] PORT` (UDP) and `send HOST PORT` (UDP) print what they got, or the error. `proxy PORT HOST TO` passes one connection
//! after the other on to `HOST:TO`. Names mean their IPv4 addresses, with `get6` and `send6` those of IPv6.

use std::net::{IpAddr as Ip, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};

use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::ip_name_lookup::resolve_addresses;
use wasip2::sockets::network::{ErrorCode, IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, Ipv6SocketAddress};
use wasip2::io::poll::poll;
use wasip2::io::streams::{InputStream, OutputStream, StreamError};
use wasip2::sockets::tcp::{ShutdownType, TcpSocket};
use wasip2::sockets::tcp_create_socket::create_tcp_socket;
use wasip2::sockets::udp::{OutgoingDatagram, UdpSocket};
use wasip2::sockets::udp_create_socket::create_udp_socket;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        ["serve", port] => serve("0.0.0.0", port),
        ["serve", address, port] => serve(address, port),
        ["get", host, port] => get(resolve(host, IpAddressFamily::Ipv4), port),
        ["get6", host, port] => get(resolve(host, IpAddressFamily::Ipv6), port),
        ["bind", address, port] => bind(address, port).and_then(|socket| Ok(println!("bound {}", text(socket.local_address()?)))),
        ["proxy", port, host, to] => proxy(port, host, to),
        ["echo", port] => echo("0.0.0.0", port),
        ["echo", address, port] => echo(address, port),
        ["send", host, port] => send(resolve(host, IpAddressFamily::Ipv4), port),
        ["send6", host, port] => send(resolve(host, IpAddressFamily::Ipv6), port),
        other => panic!("unknown arguments {other:?}"),
    };
    if let Err(code) = done {
        println!("error {code:?}");
        std::process::exit(1);
    }
}

fn family(ip: Ip) -> IpAddressFamily {
    match ip {
        Ip::V4(_) => IpAddressFamily::Ipv4,
        Ip::V6(_) => IpAddressFamily::Ipv6,
    }
}

fn address(ip: Ip, port: &str) -> IpSocketAddress {
    let port = port.parse().unwrap();
    match ip {
        Ip::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            IpSocketAddress::Ipv4(Ipv4SocketAddress { port, address: (a, b, c, d) })
        }
        Ip::V6(ip) => {
            let [a, b, c, d, e, f, g, h] = ip.segments();
            IpSocketAddress::Ipv6(Ipv6SocketAddress { port, flow_info: 0, address: (a, b, c, d, e, f, g, h), scope_id: 0 })
        }
    }
}

fn text(address: IpSocketAddress) -> String {
    match address {
        IpSocketAddress::Ipv4(Ipv4SocketAddress { port, address: (a, b, c, d) }) => SocketAddrV4::new([a, b, c, d].into(), port).to_string(),
        IpSocketAddress::Ipv6(Ipv6SocketAddress { port, flow_info, address: (a, b, c, d, e, f, g, h), scope_id }) => {
            SocketAddrV6::new([a, b, c, d, e, f, g, h].into(), port, flow_info, scope_id).to_string()
        }
    }
}

/// The first address of `host` of the kind `wanted`; one that is written out may be of either.
fn resolve(host: &str, wanted: IpAddressFamily) -> Result<Ip, ErrorCode> {
    if let Ok(ip) = host.parse() {
        return Ok(ip);
    }
    let stream = resolve_addresses(&instance_network(), host)?;
    loop {
        stream.subscribe().block();
        let ip: Ip = match stream.resolve_next_address() {
            Ok(Some(IpAddress::Ipv4((a, b, c, d)))) => Ipv4Addr::new(a, b, c, d).into(),
            Ok(Some(IpAddress::Ipv6((a, b, c, d, e, f, g, h)))) => Ipv6Addr::new(a, b, c, d, e, f, g, h).into(),
            Err(ErrorCode::WouldBlock) => continue,
            Ok(None) => return Err(ErrorCode::NameUnresolvable),
            Err(code) => return Err(code),
        };
        if family(ip) == wanted {
            return Ok(ip);
        }
    }
}

fn bind(ip: &str, port: &str) -> Result<TcpSocket, ErrorCode> {
    let ip: Ip = ip.parse().unwrap();
    let socket = create_tcp_socket(family(ip))?;
    socket.start_bind(&instance_network(), address(ip, port))?;
    socket.finish_bind()?;
    Ok(socket)
}

fn listen(ip: &str, port: &str) -> Result<TcpSocket, ErrorCode> {
    let socket = bind(ip, port)?;
    socket.start_listen()?;
    socket.finish_listen()?;
    println!("listening at {}", text(socket.local_address()?));
    Ok(socket)
}

fn accept(socket: &TcpSocket) -> Result<(TcpSocket, InputStream, OutputStream), ErrorCode> {
    loop {
        socket.subscribe().block();
        match socket.accept() {
            Err(ErrorCode::WouldBlock) => {}
            accepted => return accepted,
        }
    }
}

fn serve(ip: &str, port: &str) -> Result<(), ErrorCode> {
    let socket = listen(ip, port)?;
    loop {
        let (client, input, output) = accept(&socket)?;
        let answer = format!("from {} at {}\n", text(client.remote_address()?), text(client.local_address()?));
        output.blocking_write_and_flush(answer.as_bytes()).unwrap();
        drop((input, output));
    }
}

fn connect(ip: Ip, port: &str) -> Result<(TcpSocket, InputStream, OutputStream), ErrorCode> {
    let socket = create_tcp_socket(family(ip))?;
    socket.start_connect(&instance_network(), address(ip, port))?;
    loop {
        socket.subscribe().block();
        match socket.finish_connect() {
            Ok((input, output)) => return Ok((socket, input, output)),
            Err(ErrorCode::WouldBlock) => {}
            Err(code) => return Err(code),
        }
    }
}

fn get(ip: Result<Ip, ErrorCode>, port: &str) -> Result<(), ErrorCode> {
    let (_socket, input, _output) = connect(ip?, port)?;
    let answer = input.blocking_read(1024).unwrap();
    print!("{}", String::from_utf8_lossy(&answer));
    Ok(())
}

fn proxy(port: &str, host: &str, to: &str) -> Result<(), ErrorCode> {
    let socket = listen("0.0.0.0", port)?;
    loop {
        let client = accept(&socket)?;
        match resolve(host, IpAddressFamily::Ipv4).and_then(|ip| connect(ip, to)) {
            Ok(server) => {
                println!("passing on to {host}:{to}");
                pass_on(&client, &server);
            }
            Err(code) => println!("{host}:{to} cannot be reached: {code:?}"),
        }
    }
}

/// Copies both ways until both sides have said all.
fn pass_on(one: &(TcpSocket, InputStream, OutputStream), other: &(TcpSocket, InputStream, OutputStream)) {
    let ways = [(one, other), (other, one)];
    let mut open = [true, true];
    while open != [false, false] {
        let waiting: Vec<usize> = (0..2).filter(|way| open[*way]).collect();
        let pollables: Vec<_> = waiting.iter().map(|way| ways[*way].0.1.subscribe()).collect();
        let ready = poll(&pollables.iter().collect::<Vec<_>>());
        drop(pollables);
        for at in ready {
            let way = waiting[at as usize];
            let (from, to) = ways[way];
            let passed = match from.1.read(4096) {
                Ok(bytes) => to.2.blocking_write_and_flush(&bytes).is_ok(),
                Err(StreamError::Closed | StreamError::LastOperationFailed(_)) => false,
            };
            if !passed {
                open[way] = false;
                // The other side may have gone already, and then there is nobody to tell.
                to.0.shutdown(ShutdownType::Send).ok();
            }
        }
    }
}

fn udp(ip: Ip, port: &str) -> Result<UdpSocket, ErrorCode> {
    let socket = create_udp_socket(family(ip))?;
    socket.start_bind(&instance_network(), address(ip, port))?;
    socket.finish_bind()?;
    Ok(socket)
}

fn echo(ip: &str, port: &str) -> Result<(), ErrorCode> {
    let socket = udp(ip.parse().unwrap(), port)?;
    println!("listening at {}", text(socket.local_address()?));
    let (incoming, outgoing) = socket.stream(None)?;
    loop {
        incoming.subscribe().block();
        for datagram in incoming.receive(16)? {
            let data = format!("{} from {}", String::from_utf8_lossy(&datagram.data), text(datagram.remote_address)).into_bytes();
            outgoing.subscribe().block();
            outgoing.check_send()?;
            outgoing.send(&[OutgoingDatagram { data, remote_address: Some(datagram.remote_address) }])?;
        }
    }
}

fn send(ip: Result<Ip, ErrorCode>, port: &str) -> Result<(), ErrorCode> {
    let ip = ip?;
    let any = match ip {
        Ip::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        Ip::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = udp(any, "0")?;
    let remote = address(ip, port);
    let (incoming, outgoing) = socket.stream(None)?;
    outgoing.subscribe().block();
    outgoing.check_send()?;
    outgoing.send(&[OutgoingDatagram { data: b"ping".to_vec(), remote_address: Some(remote) }])?;
    loop {
        incoming.subscribe().block();
        if let Some(datagram) = incoming.receive(1)?.first() {
            println!("{}", String::from_utf8_lossy(&datagram.data));
            return Ok(());
        }
    }
}
