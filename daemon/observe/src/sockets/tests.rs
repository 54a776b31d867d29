#![allow(clippy::unwrap_used)]
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::*;

fn own() -> Makers {
    let own = proc::control_group_of(std::process::id()).unwrap();
    Makers::of(&Groups::of(own))
}

#[test]
fn finds_who_listens_and_in_which_cgroup() {
    for address in ["127.0.0.1:0", "127.0.0.2:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
        let listener = TcpListener::bind(address).unwrap();
        let bound = listener.local_addr().unwrap();
        let found: Vec<Socket> = listeners(Some(bound.port())).unwrap();
        let [socket] = found.as_slice() else { panic!("{address}: {found:?}") };
        assert_eq!((socket.address, socket.port), (bound.ip(), bound.port()));
        assert!(socket.listens);
        assert_eq!(
            socket.v6_only,
            address.starts_with("[::1]"),
            "one bound to an IPv6 address takes no IPv4"
        );
        assert_eq!(socket.uid, nix::unistd::getuid().as_raw());
        assert!(own().made(socket), "{socket:?} {:?}", own());
        assert!(!Makers::default().made(socket));
        let moved = |uid| Makers { uid: Some(uid), ..Makers::default() };
        assert!(moved(socket.uid).made(socket) && !moved(socket.uid + 1).made(socket));
        assert_eq!(would_answer(bound).unwrap().as_ref(), Some(socket));
        assert_eq!(socket.holders()[0].pid, std::process::id());
        assert!(listeners(None).unwrap().contains(socket));

        let model: ModelName = "genesis".parse().unwrap();
        let fact = listeners_on(bound.port(), |socket| own().made(socket).then(|| model.clone())).unwrap();
        assert_eq!((fact[0].model.as_ref(), &fact[0].unit), (Some(&model), &None));
        let foreign = listeners_on(bound.port(), |_| None).unwrap();
        assert_eq!(foreign[0].unit, proc::describe(std::process::id()).unwrap().unit);

        drop(listener);
        // A child that another test has just forked keeps it open until it executes its program.
        let end = Instant::now() + Duration::from_secs(5);
        while !listeners(Some(bound.port())).unwrap().is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(listeners(Some(bound.port())).unwrap(), []);
        assert_eq!(would_answer(bound).unwrap(), None);
    }
}

#[test]
fn a_model_s_sockets_are_found_and_those_that_others_reach_have_a_name() {
    let model: ModelName = "genesis".parse().unwrap();
    let own = proc::control_group_of(std::process::id()).unwrap();
    let sockets = ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"].map(|at| TcpListener::bind(at).unwrap());
    let other = "aeon".parse().unwrap();
    let groups =
        BTreeMap::from([(model.clone(), Groups::of(own)), (other, Groups::of("/no/such/group".to_owned()))]);
    let found = of_models(&groups).unwrap();
    assert_eq!(found.keys().collect::<Vec<_>>(), [&model]);
    for socket in &sockets {
        let address = socket.local_addr().unwrap();
        let [listening] =
            found[&model].iter().filter(|found| found.address == address).collect::<Vec<_>>()[..]
        else {
            panic!("{address}: {found:?}")
        };
        let pids: Vec<u32> = listening.processes.iter().map(|process| process.pid).collect();
        let expected = if address.ip().is_loopback() { vec![] } else { vec![std::process::id()] };
        assert_eq!(pids, expected, "{address}");
    }
    assert_eq!(of_models(&BTreeMap::new()).unwrap(), BTreeMap::new());
}

#[test]
fn a_wildcard_socket_of_ipv6_takes_ipv4_connections_too() {
    let listener = TcpListener::bind("[::]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let socket = would_answer(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).unwrap().unwrap();
    assert_eq!(socket.address, IpAddr::V6(Ipv6Addr::UNSPECIFIED));
}

#[test]
fn of_two_sockets_on_one_port_the_narrower_answers() {
    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket,
        sockopt::ReusePort,
    };
    use std::os::fd::AsRawFd;
    let make = |ip: Ipv4Addr, port: u16| {
        let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        setsockopt(&fd, ReusePort, &true).unwrap();
        let [a, b, c, d] = ip.octets();
        bind(fd.as_raw_fd(), &SockaddrIn::new(a, b, c, d, port)).unwrap();
        listen(&fd, Backlog::new(1).unwrap()).unwrap();
        TcpListener::from(fd)
    };
    let wide = make(Ipv4Addr::UNSPECIFIED, 0);
    let port = wide.local_addr().unwrap().port();
    let narrow = make(Ipv4Addr::LOCALHOST, port);
    let of = |ip: [u8; 4]| would_answer(SocketAddr::from((ip, port))).unwrap().unwrap().address;
    assert_eq!(of([127, 0, 0, 1]), IpAddr::V4(Ipv4Addr::LOCALHOST));
    assert_eq!(of([127, 0, 0, 9]), IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    assert_eq!(listeners(Some(port)).unwrap().len(), 2);
    drop((wide, narrow));
}

#[test]
fn a_connection_s_server_end_is_found_before_and_after_it_is_accepted() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = listener.local_addr().unwrap();
    let client = TcpStream::connect(server).unwrap();
    let end = answers(server, client.local_addr().unwrap()).unwrap().unwrap();
    assert!(!end.listens && own().made(&end), "{end:?}");
    let (accepted, _) = listener.accept().unwrap();
    let end = answers(server, client.local_addr().unwrap()).unwrap().unwrap();
    assert!(!end.listens && own().made(&end), "{end:?}");
    drop((accepted, client));
}

#[test]
fn more_sockets_than_one_message_holds_are_all_listed() {
    let all: Vec<TcpListener> = (0..400).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let begin = Instant::now();
    let found: BTreeSet<u16> = listeners(None).unwrap().iter().map(|socket| socket.port).collect();
    println!("400 listeners: {:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_millis(500));
    assert!(all.iter().all(|listener| found.contains(&listener.local_addr().unwrap().port())));
}

#[test]
fn clients_are_counted_whether_accepted_or_not() {
    for address in ["127.0.0.1:0", "[::]:0"] {
        let listener = TcpListener::bind(address).unwrap();
        let port = listener.local_addr().unwrap().port();
        let count = || clients(port, &own()).unwrap();
        assert_eq!(count(), 0, "who listens is no client");
        let connect = || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let (first, second) = (connect(), connect());
        let accepted = listener.accept().unwrap();
        assert_eq!(count(), 2);
        assert_eq!(clients(port, &Makers::default()).unwrap(), 0, "another's are not counted");
        drop(first);
        assert_eq!(count(), 1, "the server has not closed its end");
        drop((second, accepted));
        assert_eq!(count(), 0);
    }
}
