use std::net::{IpAddr as Ip, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};

use wasip3::http::types::{Fields, Request, Response, Scheme};
use wasip3::sockets::ip_name_lookup::resolve_addresses;
use wasip3::sockets::types::{
    IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, Ipv6SocketAddress,
    TcpSocket, UdpSocket,
};
use wasip3::wit_bindgen::StreamResult;

struct Command;

wasip3::cli::command::export!(Command);

type Done<T = ()> = Result<T, String>;

impl wasip3::exports::cli::run::Guest for Command {
    async fn run() -> Result<(), ()> {
        let args: Vec<String> = wasip3::cli::environment::get_arguments()
            .into_iter()
            .skip(1)
            .collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let done = match args.as_slice() {
            ["hello"] => print("hello from 0.3".into()).await,
            ["spin"] => loop {
                std::hint::spin_loop();
            },
            ["serve", address, port] => serve(address, port).await,
            ["listen"] => listen(IpAddressFamily::Ipv4).await,
            ["listen6"] => listen(IpAddressFamily::Ipv6).await,
            ["get", host, port] => get(host, port).await,
            ["bind", address, port] => bind(address, port).await,
            ["echo", port] => echo("0.0.0.0", port).await,
            ["echo", address, port] => echo(address, port).await,
            ["send", host, port] => send(host, port).await,
            ["fetch", authority, path] => fetch(authority, path).await,
            ["read", path] => read(path).await,
            other => Err(format!("unknown arguments {other:?}")),
        };
        match done {
            Ok(()) => Ok(()),
            Err(text) => {
                print(format!("error {text}")).await.map_err(|_| ())?;
                Err(())
            }
        }
    }
}

async fn print(line: String) -> Done {
    let (mut writer, reader) = wasip3::wit_stream::new();
    let written = wasip3::cli::stdout::write_via_stream(reader);
    writer.write_all(format!("{line}\n").into_bytes()).await;
    drop(writer);
    written.await.map_err(|err| format!("{err:?}"))
}

fn family(ip: Ip) -> IpAddressFamily {
    match ip {
        Ip::V4(_) => IpAddressFamily::Ipv4,
        Ip::V6(_) => IpAddressFamily::Ipv6,
    }
}

fn address(ip: Ip, port: &str) -> IpSocketAddress {
    let port = port.parse().expect("a port");
    match ip {
        Ip::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            IpSocketAddress::Ipv4(Ipv4SocketAddress {
                port,
                address: (a, b, c, d),
            })
        }
        Ip::V6(ip) => {
            let [a, b, c, d, e, f, g, h] = ip.segments();
            IpSocketAddress::Ipv6(Ipv6SocketAddress {
                port,
                flow_info: 0,
                address: (a, b, c, d, e, f, g, h),
                scope_id: 0,
            })
        }
    }
}

fn text(address: IpSocketAddress) -> String {
    match address {
        IpSocketAddress::Ipv4(Ipv4SocketAddress {
            port,
            address: (a, b, c, d),
        }) => SocketAddrV4::new([a, b, c, d].into(), port).to_string(),
        IpSocketAddress::Ipv6(Ipv6SocketAddress {
            port,
            flow_info,
            address: (a, b, c, d, e, f, g, h),
            scope_id,
        }) => {
            let ip = [a, b, c, d, e, f, g, h].into();
            SocketAddrV6::new(ip, port, flow_info, scope_id).to_string()
        }
    }
}

fn said<T>(result: Result<T, impl std::fmt::Debug>) -> Done<T> {
    result.map_err(|code| format!("{code:?}"))
}

async fn resolve(host: &str) -> Done<Ip> {
    let found = said(resolve_addresses(host.into()).await)?;
    let first = found.into_iter().next().map(|ip| match ip {
        IpAddress::Ipv4((a, b, c, d)) => Ip::V4(Ipv4Addr::new(a, b, c, d)),
        IpAddress::Ipv6((a, b, c, d, e, f, g, h)) => Ip::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h)),
    });
    first.ok_or_else(|| "no address".into())
}

async fn tcp_bound(ip: &str, port: &str) -> Done<TcpSocket> {
    let ip = ip.parse().expect("an address");
    let socket = said(TcpSocket::create(family(ip)))?;
    said(socket.bind(address(ip, port)))?;
    Ok(socket)
}

async fn bind(ip: &str, port: &str) -> Done {
    let socket = tcp_bound(ip, port).await?;
    print(format!("bound {}", text(said(socket.get_local_address())?))).await
}

async fn listen(family: IpAddressFamily) -> Done {
    let socket = said(TcpSocket::create(family))?;
    let _clients = said(socket.listen())?;
    print(format!("listening at {}", text(said(socket.get_local_address())?))).await
}

async fn serve(ip: &str, port: &str) -> Done {
    let socket = tcp_bound(ip, port).await?;
    let mut clients = said(socket.listen())?;
    print(format!("listening at {}", text(said(socket.get_local_address())?))).await?;
    while let Some(client) = clients.next().await {
        let answer = format!(
            "from {} at {}\n",
            text(said(client.get_remote_address())?),
            text(said(client.get_local_address())?)
        );
        let (mut writer, reader) = wasip3::wit_stream::new();
        let sent = client.send(reader);
        writer.write_all(answer.into_bytes()).await;
        drop(writer);
        said(sent.await)?;
    }
    Ok(())
}

async fn get(host: &str, port: &str) -> Done {
    let ip = resolve(host).await?;
    let socket = said(TcpSocket::create(family(ip)))?;
    said(socket.connect(address(ip, port)).await)?;
    let (mut incoming, ended) = socket.receive();
    let mut answer = Vec::new();
    loop {
        let (result, piece) = incoming.read(Vec::with_capacity(1024)).await;
        answer.extend_from_slice(&piece);
        if !matches!(result, StreamResult::Complete(_)) {
            break;
        }
    }
    drop(incoming);
    said(ended.await)?;
    print(String::from_utf8_lossy(&answer).trim_end().to_owned()).await
}

async fn echo(ip: &str, port: &str) -> Done {
    let ip = ip.parse().expect("an address");
    let socket = said(UdpSocket::create(family(ip)))?;
    said(socket.bind(address(ip, port)))?;
    print(format!("listening at {}", text(said(socket.get_local_address())?))).await?;
    loop {
        let (data, peer) = said(socket.receive().await)?;
        let answer = format!("{} from {}", String::from_utf8_lossy(&data), text(peer));
        said(socket.send(answer.into_bytes(), Some(peer)).await)?;
    }
}

async fn send(host: &str, port: &str) -> Done {
    let ip = resolve(host).await?;
    let socket = said(UdpSocket::create(family(ip)))?;
    said(socket.send(b"ping".to_vec(), Some(address(ip, port))).await)?;
    let local = text(said(socket.get_local_address())?);
    let (data, peer) = said(socket.receive().await)?;
    print(format!("{} told by {} to {local}", String::from_utf8_lossy(&data), text(peer))).await
}

async fn fetch(authority: &str, path: &str) -> Done {
    let (_trailers, no_trailers) = wasip3::wit_future::new(|| Ok(None));
    let (request, _sent) = Request::new(Fields::new(), None, no_trailers, None);
    request.set_scheme(Some(&Scheme::Http)).map_err(|()| "scheme")?;
    request.set_authority(Some(authority)).map_err(|()| "authority")?;
    request.set_path_with_query(Some(path)).map_err(|()| "path")?;
    let response = said(wasip3::http::client::send(request).await)?;
    let status = response.get_status_code();
    let (_result, result) = wasip3::wit_future::new(|| Ok(()));
    let (mut body, _trailers) = Response::consume_body(response, result);
    let mut answer = Vec::new();
    loop {
        let (result, piece) = body.read(Vec::with_capacity(1024)).await;
        answer.extend_from_slice(&piece);
        if !matches!(result, StreamResult::Complete(_)) {
            break;
        }
    }
    print(format!("{status} {}", String::from_utf8_lossy(&answer).trim_end())).await
}

async fn read(path: &str) -> Done {
    use wasip3::filesystem::types::{DescriptorFlags, OpenFlags, PathFlags};
    for (folder, name) in wasip3::filesystem::preopens::get_directories() {
        let Some(rest) = path.strip_prefix(&name).map(|rest| rest.trim_start_matches('/')) else {
            continue;
        };
        let file = said(
            folder
                .open_at(PathFlags::SYMLINK_FOLLOW, rest.into(), OpenFlags::empty(), DescriptorFlags::READ)
                .await,
        )?;
        let (mut content, ended) = file.read_via_stream(0);
        let mut text = Vec::new();
        loop {
            let (result, piece) = content.read(Vec::with_capacity(4096)).await;
            text.extend_from_slice(&piece);
            if !matches!(result, StreamResult::Complete(_)) {
                break;
            }
        }
        drop(content);
        said(ended.await)?;
        return print(String::from_utf8_lossy(&text).trim_end().to_owned()).await;
    }
    Err("no such mount".into())
}
